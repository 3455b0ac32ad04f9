"""The best trials of a search, trained again on folds and seeds that did not choose them.

A search's best validation score is the best of many on the same images, so it promises too much.
A confirmation is a small study beside it, `studies/NAME/confirm/0-4-7` for the trials 0, 4 and 7:
all trained to the end, no trial stopped early, on other folds with other seeds. Then the closed
split is scored with each. The winner is the configuration with the best mean validation score, in
the study's (first) objective, of those whose means satisfy its constraints; what the test says
chooses nothing. `study.selection.confirmation` reads the result.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from study.cluster.resources import this_machine
from study.datasets.source import DataSource
from study.errors import InputError
from study.objective import Goal
from study.records.manifest import METRICS_VERSION, refuse_other_data
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.runner import run
from study.runner.plan import StudyPlan
from study.selection import confirmation_runs
from study.selection.confirmation import Confirmation, candidates_of, find, folder_of
from study.selection.test_log import result_of, tags_of
from study.storage.paths import AnyPath
from study.task import Task, load_task, prepare


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfirmPlan(StudyPlan):
    """A confirmation as asked for.

    Attributes:
        searched: The study whose trials are confirmed.
        chosen: These trials, by number.
    """

    searched: StudyRecord
    chosen: tuple[TrialRecord, ...]

    @property
    def folder(self) -> AnyPath:
        """The confirmation's folder."""
        return folder_of(self.searched, self.chosen)

    @property
    def title(self) -> str:
        """What it is called in messages."""
        numbers = ", ".join(str(t.number) for t in self.chosen)
        return f"confirmation of trials {numbers} of study {self.name}"

    @property
    def begun_before(self) -> bool:
        """Whether MLflow may know the study that it confirms."""
        return True

    def manifest(self) -> dict[str, Any]:
        """Return what the confirmation's `study.json` says."""
        known = self.searched.manifest
        kept = ("study", "task", "dataset", "checksum", "epochs", "seed", "sampler", "data")
        return {
            **{key: known[key] for key in kept if key in known},
            **self.goal.describe(),
            "space": self.space.describe(),
            "settings": self.settings,
            "confirms": confirmation_runs.describe(self.searched, self.chosen),
            "metrics_version": METRICS_VERSION,
        }


def confirm(
    searched: StudyRecord,
    ranking: Sequence[TrialRecord],
    seeds: int,
    asked: RunOptions,
    command: str,
) -> int:
    """Train the best trials again with several seeds, test each training; return the exit code.

    The same command goes on after a crash, a larger number of seeds adds trainings.

    Args:
        searched: The study.
        ranking: Its trials, best first.
        seeds: Trainings of each.
        asked: Where data and studies lie, and what the trainings run on.
        command: The command line.

    Raises:
        InputError: A mistake in the flags, or there is nothing to confirm.
    """
    if seeds < 2:
        raise InputError(f"--confirm {seeds}: a confidence interval needs at least 2 seeds.")
    chosen = candidates_of(searched.goal, ranking)
    if not chosen:
        raise InputError(f"study {searched.path.name} has no trial with a result yet to confirm.")
    task = load_task(searched.manifest["task"])
    source = DataSource.find(searched.manifest["dataset"], asked.data_dir)
    plan = _plan(task, source, searched, chosen, seeds, asked)
    ended, left = _progress(plan, seeds)
    if left:  # those that were cut off go on first, in their order
        options = dataclasses.replace(plan.options, num_samples=ended + left)
        plan = dataclasses.replace(plan, options=options)
    code = run.run(plan, plan.manifest(), command, conclude=None)
    record = StudyRecord.read(plan.folder)
    trainings = record.trials()[: len(chosen) * seeds]
    if _progress(plan, seeds)[1]:
        return code
    finished = _finished(record, trainings)
    if not finished:
        print("failed: no training finished, so nothing is tested", file=sys.stderr)
        return 1
    trouble = _test_all(task, source, record, finished, asked.tracking_uri)
    confirmation = find(searched, ranking)
    assert confirmation is not None
    if trouble := _track(confirmation, asked.tracking_uri) or trouble:
        print(trouble, file=sys.stderr)
    return code


def _finished(record: StudyRecord, trainings: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trainings that were trained to the end, after saying which were not, and why."""
    for trial in trainings:
        if trial.state != "finished":
            of = confirmation_runs.place_of(record.manifest["confirms"], trial.number).trial
            why = trial.reason or "it was stopped"
            print(f"training {trial.number} (of trial {of}) does not count: {why}", file=sys.stderr)
    return [trial for trial in trainings if trial.state == "finished"]


def _progress(plan: ConfirmPlan, seeds: int) -> tuple[int, int]:
    """Return how many trainings have ended, and how many of those asked for have not.

    A command that asked for more seeds and was cut off may have left one among the first.
    """
    num = len(plan.chosen) * seeds
    if not (plan.folder / "study.json").exists():
        return 0, num
    record = StudyRecord.read(plan.folder)
    return record.num_ended(), num - sum(t.state != "running" for t in record.trials()[:num])


def _plan(
    task: Task,
    source: DataSource,
    searched: StudyRecord,
    chosen: tuple[TrialRecord, ...],
    seeds: int,
    asked: RunOptions,
) -> ConfirmPlan:
    manifest = searched.manifest
    options = dataclasses.replace(
        asked,
        num_samples=len(chosen) * seeds,
        scheduler="none",
        keep_weights=sys.maxsize,  # a later command may ask for fewer seeds
    )
    options.check()
    identity = prepare(task, source)
    refuse_other_data(manifest, identity, source.data_dir)
    plan = ConfirmPlan(
        task=task,
        goal=Goal(searched.goal.objectives[:1]),  # constraints are judged of means, by `find`
        name=manifest["study"],
        source=source,
        identity=identity,
        space=confirmation_runs.space_of(searched.space),
        settings={k: v for k, v in manifest["settings"].items() if k != "fold"},
        epochs=manifest["epochs"],
        resources=None,
        options=options,
        searched=searched,
        chosen=chosen,
    )
    if options.address is not None:
        return plan
    planned = plan.with_resources([this_machine()])
    assert isinstance(planned, ConfirmPlan)
    return planned


def _test_all(
    task: Task,
    source: DataSource,
    record: StudyRecord,
    finished: Sequence[TrialRecord],
    tracking_uri: str | None,
) -> str | None:
    """Score the closed split with finished trainings, and record that here and in MLflow.

    Returns:
        A sentence if MLflow cannot be told.
    """
    from study.selection.held_out_test import prepare, test_once
    from study.tracking import results, store

    uri = store.resolve_uri(tracking_uri)
    client, trouble = store.connect(uri), None
    runs = [results.ensure_run(uri, record, task, trial) for trial in finished]
    for place, (trial, run_id) in enumerate(zip(finished, runs, strict=True), 1):
        print(f"testing training {place} of {len(finished)}", file=sys.stderr)
        test = test_once(prepare(task, source, record, trial), "confirm")
        about = (client, run_id, result_of(task, trial.metric, test), tags_of(test))
        trouble = results.try_to_tell(results.record_test, *about) or trouble
    return trouble


def _track(confirmation: Confirmation, tracking_uri: str | None) -> str | None:
    """Write the result to the confirmation's run in MLflow; as `_test_all`."""
    from study.tracking import results, store

    winner, manifest = confirmation.winner, confirmation.record.manifest
    scores = {}
    for split in ("val", "test"):
        key = f"confirmed/{split}/{winner.metric}"
        scores[key] = winner.mean(split)
        if (interval := winner.interval(split)) is not None:
            scores |= {f"{key}_low": interval[0], f"{key}_high": interval[1]}
    tags = {"study.winner": str(winner.trial.number), "study.seeds": str(confirmation.seeds)}
    uri = store.resolve_uri(tracking_uri)
    about = (uri, manifest["study"], manifest["id"], scores, tags)
    return results.try_to_tell(results.record_confirmation, *about)
