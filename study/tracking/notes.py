"""Texts for a study and its trials in MLflow's UI: columns, and descriptions in Markdown.

Links are relative to MLflow's page, so they work at any address.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from study.formatting import metric_name, metric_value, number
from study.records.study_record import REPORT_FILE, StudyRecord
from study.records.trial_record import TrialRecord, counts
from study.task import Task, class_key

NUM_BEST = 5  # trials in a study's table
NOTE = "mlflow.note.content"
VIEW = "trials"  # key of the view with all trials
TRAINING = "workflowType=machine_learning"  # the half of MLflow's UI that is not for chat models


def experiment_tags(task: Task, record: StudyRecord) -> dict[str, str]:
    """Return tags that make MLflow show an experiment as training, with the study's metric first.

    Each browser stores its own choice of columns, but a shared view is a tag of the experiment (as
    of MLflow 3.17), so the tags include one: all trials, best first.
    """
    best = f"metrics.`{best_metric(record)}`"
    metrics = [best, *(f"metrics.`{name}`" for name in record.goal.metrics[1:])]
    settings = [f"params.`{parameter.name}`" for parameter in record.space.parameters]
    classes = [f"tags.`{_class_tag(task, name)}`" for name in task.classes]
    trials = "tags.`study.role` = 'trial'"
    if study_id := record.manifest.get("id"):  # another study of this name may have been here
        trials += f" and tags.`study.id` = '{study_id}'"
    columns = [*metrics, "tags.`study.best_epoch`", *classes, *settings]
    name = "attributes.`Run Name`"
    view = {
        "searchFilter": trials,
        "orderByKey": best,
        "orderByAsc": record.manifest["mode"] == "min",
        "selectedColumns": columns,
        # By default all tags, including the class scores, would come after the last setting.
        "columnOrder": [name, *columns],
        "columnWidths": {name: 230} | {column: _width(column) for column in columns},
    }
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": record.manifest["metric"],
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
        NOTE: f"A study of {task.title}. Its run describes it; the trials are nested below it.",
    }


def best_metric(record: StudyRecord) -> str:
    """Return the MLflow metric of a best value, since MLflow shows only a metric's last value."""
    return f"best/{metric_name(record.manifest['metric'])}"


def _width(column: str) -> int:
    """Return a column width, pixels, that fits its title and a five-digit number."""
    return max(90, 20 + 7 * len(column.partition(".")[2].strip("`")))


def class_tags(task: Task, trial: TrialRecord) -> dict[str, str]:
    """Return the score of each class at a trial's best epoch, as tags of its run.

    As metrics they would show the last epoch, or make MLflow's page slow (more than 30 metrics).
    """
    scores = {name: f"val/{task.class_metric}/{class_key(name)}" for name in task.classes}
    return {
        _class_tag(task, name): metric_value(trial.metrics[key])
        for name, key in scores.items()
        if key in trial.metrics
    }


def _class_tag(task: Task, name: str) -> str:
    return f"best/{task.class_metric}/{class_key(name)}"


def trials_place(experiment: str) -> str:
    """Return the URL fragment of an experiment's trials in MLflow, with the relevant columns."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&{TRAINING}"


def study_note(
    record: StudyRecord, task: Task, experiment: str, parent: str, runs: Mapping[int, str]
) -> str:
    """Return the description of a study: its state, its best trials, and commands to run.

    Args:
        record: The study.
        task: The study's.
        experiment: Id in MLflow.
        parent: Id of the study's run.
        runs: Ids of the trials' runs, by trial.
    """
    manifest, ranking = record.manifest, record.ranking()
    states = ", ".join(f"{n} {state}" for state, n in counts(record.trials()).items() if n)
    data = manifest.get("data", {}).get("dataset", manifest["dataset"])
    lines = [f"**{task.title}**, {data}. Objective {record.goal}. Trials: {states or 'none yet'}."]
    place = f"#/experiments/{experiment}/runs/{parent}/artifacts/{REPORT_FILE}?{TRAINING}"
    trials = f"[All trials, best first]({trials_place(experiment)})"
    lines.append(f"\n{trials} \u00b7 [Report of the study]({place})")
    if manifest["dataset"] != "real":
        lines.insert(0, "**Sample data, drawn by the program: not a result on real images.**\n")
    if ranking:
        lines += ["", *_trial_rows(record, ranking[:NUM_BEST], experiment, runs)]
        lines += ["", f"Best of {len(ranking)} on the same validation images, so optimistic.", ""]
        lines += _class_rows(task, record, ranking[0])
    name = record.path.name
    lines += ["", "```"]
    lines += [start["command"] for start in manifest.get("starts", [])[-1:]]
    lines += [f"python -m study.report {name}", f"python -m study.best {name} --export", "```"]
    return "\n".join(lines)


def _trial_rows(
    record: StudyRecord, trials: list[TrialRecord], experiment: str, runs: Mapping[int, str]
) -> list[str]:
    names = [parameter.name for parameter in record.space.parameters]
    metrics = record.goal.metrics
    header = ["trial", *metrics, "epoch", *names]
    rows = [_cells(header), _cells(["---"] * len(header))]
    for trial in trials:
        best = trial.best or {}
        run_id = runs.get(trial.number) or record.run_folder(trial.number).run_id
        text = f"trial {trial.number}"
        place = f"#/experiments/{experiment}/runs/{run_id}?{TRAINING}"
        link = f"[{text}]({place})" if run_id else text
        scores = [metric_value(best[metric]) if metric in best else "" for metric in metrics]
        values = [number(trial.params[n]) if n in trial.params else "" for n in names]
        rows.append(_cells([link, *scores, str(trial.best_epoch), *values]))
    return rows


def _cells(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _class_rows(task: Task, record: StudyRecord, best: TrialRecord) -> list[str]:
    """Return a table of the per-class metric: the baseline and the best trial."""
    base = record.trials()[0]
    rows = [_cells([task.class_metric, "baseline", f"trial {best.number}"]), _cells(["---"] * 3)]
    keys = [(name, f"val/{task.class_metric}/{class_key(name)}") for name in task.classes]
    for name, key in [*keys, ("**all**", task.metric)]:
        cells = [metric_value(t.metrics[key]) if key in t.metrics else "" for t in (base, best)]
        rows.append(_cells([name, *cells]))
    return rows


def trial_note(record: StudyRecord, trial: TrialRecord) -> str:
    """Return the description of a trial: how it ended, its best epoch and its settings."""
    epochs = f"{trial.epochs} of {record.manifest['epochs']} epochs"
    how = {
        "finished": f"Trained to the end, {epochs}.",
        "stopped": f"Stopped early after {epochs}: other trials were better at this rung.",
        "failed": f"Failed after {epochs}: {trial.reason}",
    }.get(trial.state, f"Running; {epochs}.")
    lines = [how]
    if trial.best:
        scores = [
            f"{m} {metric_value(trial.best[m])}" for m in record.goal.metrics if m in trial.best
        ]
        lines.append(f"Best epoch {trial.best_epoch}: {', '.join(scores)}.")
    lines += [f"Retried in epoch {f['epoch']}: {f['reason']}" for f in trial.failures]
    settings = ", ".join(f"{key} {number(value)}" for key, value in trial.params.items())
    return "\n\n".join([*lines, f"Settings: {settings}"])
