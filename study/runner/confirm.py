"""Confirmation: retrains the best trials of a study on folds and seeds that did not select them.

The best validation score of a search is the best of many on the same images, so it is optimistic.
A confirmation is a small study inside the study's folder, `studies/NAME/confirm/0-4-7` for trials
0, 4 and 7: each is trained for all epochs, without early stopping, on other folds with other seeds.
Then every training is scored on the held-out test. The winner is the configuration with the best
mean validation score in the study's (first) objective, among those whose means satisfy its
constraints; the test scores select nothing. `study.selection.confirmation` reads the result.
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
    """A requested confirmation.

    Attributes:
        searched: The study whose trials are confirmed.
        chosen: These trials, ordered by number.
    """

    searched: StudyRecord
    chosen: tuple[TrialRecord, ...]

    @property
    def folder(self) -> AnyPath:
        """The confirmation's folder."""
        return folder_of(self.searched, self.chosen)

    @property
    def title(self) -> str:
        """Name in messages."""
        numbers = ", ".join(str(t.number) for t in self.chosen)
        return f"confirmation of trials {numbers} of study {self.name}"

    @property
    def begun_before(self) -> bool:
        """Whether MLflow may know the study; always, since the search ran before."""
        return True

    def manifest(self) -> dict[str, Any]:
        """Return the content of the confirmation's `study.json`."""
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
    """Retrain the best trials with several seeds, test each training; return the exit code.

    The same command resumes after a crash; a larger number of seeds adds trainings.

    Args:
        searched: The study.
        ranking: Its trials, best first.
        seeds: Trainings per trial.
        asked: Locations of data and studies, and resources of the trainings.
        command: The command line.

    Raises:
        InputError: The flags are invalid, or there is nothing to confirm.
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
    if left:  # interrupted ones resume first, in order
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
    """Return the finished trainings, after printing which did not finish and why."""
    for trial in trainings:
        if trial.state != "finished":
            of = confirmation_runs.place_of(record.manifest["confirms"], trial.number).trial
            why = trial.reason or "it was stopped"
            print(f"training {trial.number} (of trial {of}) does not count: {why}", file=sys.stderr)
    return [trial for trial in trainings if trial.state == "finished"]


def _progress(plan: ConfirmPlan, seeds: int) -> tuple[int, int]:
    """Return how many trainings have ended, and how many of the requested ones have not.

    An interrupted command with more seeds may have left an unfinished one among the first.
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
        goal=Goal(searched.goal.objectives[:1]),  # constraints apply to means, see `find`
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
    """Score finished trainings on the held-out test; record the scores here and in MLflow.

    Returns:
        A message if MLflow cannot be updated.
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
    """Write the result to the confirmation's run in MLflow; returns as `_test_all`."""
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
