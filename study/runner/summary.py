"""Summary printed at the end of a study: results, and commands to run next."""

from __future__ import annotations

import shlex

from study.formatting import pixels, sample_mark
from study.objective import show_values
from study.records.study_record import REPORT_FILE, StudyRecord
from study.records.trial_record import counts
from study.reporting.progress import standings
from study.reporting.tables import per_class_table
from study.runner.plan import StudyPlan


def places(study: StudyPlan) -> list[str]:
    """Return the flags with which another command finds the study."""
    args = study.options
    flags = {
        "--studies-dir": None if args.studies_dir == "studies" else args.studies_dir,
        "--tracking-uri": args.tracking_uri,
    }
    return [word for flag, value in flags.items() if value for word in (flag, value)]


def page_command(study: StudyPlan) -> str:
    """Return the command that shows a study's trials in MLflow."""
    return shlex.join(["python", "-m", "study.ui", study.name, *places(study)])


def summary(study: StudyPlan, record: StudyRecord) -> str:
    """Return the summary of a study: counts, the best trials, and commands to run next."""
    count = counts(record.trials())
    states = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    title = f"\nstudy {study.name}: {states}   {sample_mark(study.source.dataset)}"
    lines = [title.rstrip()]
    ranking = record.ranking()
    if not ranking:
        reasons = {trial.reason for trial in record.trials() if trial.reason}
        return "\n".join([*lines, "no trial has a result", *sorted(reasons)])
    goal, best = record.goal, ranking[0]
    word = "nearest" if goal.missed(best) else "best"
    size = study.settings.get("image_size")
    measured = f"validation at {pixels(size)}" if size else "validation"
    args = study.options
    given = [*places(study), *(["--data-dir", args.data_dir] if args.data_dir else [])]
    show = shlex.join(["python", "-m", "study.best", study.name, *given])
    report = []
    if (record.path / REPORT_FILE).exists():
        report = [
            f"  {args.studies_dir}/{study.name}/{REPORT_FILE}   # the full report, an HTML page"
        ]
    return "\n".join(
        [
            *lines,
            standings(record, ranking, 5),
            f"\n{word}: trial {best.number}, {show_values(goal, best)} "
            f"at epoch {best.best_epoch} ({measured}, chosen as the best of {len(ranking)}: "
            "optimistic)",
            per_class_table(study.task, best.metrics),
            "\nnext:",
            f"  {show} --confirm 3   # retrain with other seeds: a score that is not optimistic",
            f"  {show} --export   # score it once on the test split and export it",
            *report,
            f"  {page_command(study)}   # all trials, curves and figures in MLflow",
        ]
    )
