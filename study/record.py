"""The record of a study: its folder, the one place where its state lives.

    studies/NAME/study.json       what the study is, and the commands that ran it
    studies/NAME/optuna.db        its trials, an Optuna study in SQLite (optuna-dashboard reads it)
    studies/NAME/trials/0007/     one `study.run_folder.RunFolder` for each trial

Ray keeps nothing that matters, and MLflow can be rebuilt from here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from study.errors import InputError
from study.manifest import read_manifest, refuse_other_study
from study.run_folder import RunFolder, write_text
from study.space import Parameter, SearchSpace
from study.task import Value

if TYPE_CHECKING:
    import optuna

# How a trial ended: all epochs, early by the scheduler, or with an error.
Ending = Literal["finished", "stopped", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the record has it.

    Attributes:
        number: From 0.
        state: `running` also stands for a trial that was cut off and can go on.
        values: Hyperparameters of the search space.
        value: The metric at the best epoch; None before the first epoch.
        epoch: The best epoch; None before the first.
        metrics: All metrics at the best epoch.
        curve: The metric by epoch.
        seconds: Time spent, over all epochs.
        reason: Why it failed.
    """

    number: int
    state: Literal["finished", "stopped", "failed", "running"]
    values: dict[str, Value]
    value: float | None
    epoch: int | None
    metrics: dict[str, float]
    curve: dict[int, float]
    seconds: float
    reason: str | None


class StudyRecord:
    """Reads and writes a study's folder. Only one process may have it open for writing."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._open: dict[int, optuna.trial.Trial] = {}
        self._study: optuna.Study | None = None
        self.lock: FileLock | None = None  # held as long as the record is open for writing

    @staticmethod
    def read(path: Path) -> StudyRecord:
        """Open a study for reading.

        Raises:
            InputError: There is none, or its manifest is damaged.
        """
        return StudyRecord(path, read_manifest(path))

    @staticmethod
    def create_or_continue(path: Path, manifest: dict[str, Any], command: str) -> StudyRecord:
        """Open a study for writing, starting it if there is none.

        Args:
            path: The study's folder.
            manifest: What the study is; must agree with that of an earlier start.
            command: The command line, kept in the manifest.

        Raises:
            InputError: The folder cannot be written, another process has the study open, or the
                study under this name is another one.
        """
        manifest = json.loads(json.dumps(manifest))  # tuples become lists, as in the file
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_text(path / ".probe", "")
            (path / ".probe").unlink()
        except OSError as error:
            raise InputError(
                f"cannot write the study's folder {path} ({error.strerror}); name another with "
                "--studies-dir."
            ) from None
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = (path / "driver.json").read_text() if (path / "driver.json").exists() else "?"
            raise InputError(
                f"the study in {path} is being run by another process ({holder}); wait for it, or "
                "choose another --name."
            ) from None
        driver = {"host": socket.gethostname(), "pid": os.getpid()}
        write_text(path / "driver.json", json.dumps(driver))
        if (path / "study.json").exists():
            known = read_manifest(path)
            refuse_other_study(path, known, manifest)
            manifest = known
        start = {"command": command, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **driver}
        manifest = {**manifest, "starts": [*manifest.get("starts", []), start]}
        write_text(path / "study.json", json.dumps(manifest, indent=1))
        record = StudyRecord(path, manifest)
        record.lock = lock
        return record

    @property
    def study(self) -> optuna.Study:
        """The Optuna study; its sampler goes on from the trials there are."""
        if self._study is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            url = f"sqlite:///{self.path / 'optuna.db'}"
            storage = optuna.storages.RDBStorage(
                url, engine_kwargs={"connect_args": {"timeout": 60}}
            )
            maximize = self.manifest["mode"] == "max"
            self._study = optuna.create_study(
                study_name=self.manifest["study"],
                storage=storage,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )
            # A sampler that starts anew must not repeat its first draws.
            seed = self.manifest["seed"] + 1_000_003 * len(self._study.trials)
            self._study.sampler = optuna.samplers.TPESampler(seed=seed % 2**32)
        return self._study

    def run_folder(self, number: int) -> RunFolder:
        """Return the folder of a trial."""
        return RunFolder(self.path / "trials" / f"{number:04d}")

    def ask(self, space: SearchSpace) -> tuple[int, dict[str, Value]]:
        """Begin a new trial; return its number and hyperparameters. Trial 0 is the baseline."""
        if not self.study.get_trials(deepcopy=False):
            self.study.enqueue_trial(space.baseline)
        return self._draw(self.study.ask(), space)

    def reopen(self, number: int, space: SearchSpace) -> tuple[int, dict[str, Value]]:
        """Go on with a trial that was cut off; return its number and hyperparameters."""
        import optuna

        frozen = self.study.get_trials(deepcopy=False)[number]
        if frozen.state == optuna.trial.TrialState.WAITING:  # cut off before it was asked
            return self._draw(self.study.ask(), space)
        return self._draw(optuna.trial.Trial(self.study, frozen._trial_id), space)

    def _draw(self, trial: optuna.trial.Trial, space: SearchSpace) -> tuple[int, dict[str, Value]]:
        """Draw what is searched; Optuna gives again what the trial has already."""
        values: dict[str, Value] = {}
        for parameter in space.parameters:
            if parameter.active({**space.fixed, **values}):
                values[parameter.name] = _suggest(trial, parameter)
        self._open[trial.number] = trial
        return trial.number, values

    def report(self, number: int, history: list[dict[str, float]]) -> None:
        """Record the epochs of a running trial that are not recorded yet."""
        trial = self._open[number]
        metric = self.manifest["metric"]
        known = self.study.get_trials(deepcopy=False)[number]
        best = self._best_row(history)
        if best is not None and best != known.user_attrs.get("best"):
            trial.set_user_attr("best", best)
        for row in history:
            if int(row["epoch"]) not in known.intermediate_values:
                trial.report(row[metric], int(row["epoch"]))
        trial.set_user_attr("seconds", sum(row["epoch_seconds"] for row in history))

    def end(self, number: int, ending: Ending, reason: str | None = None) -> None:
        """End a trial."""
        import optuna

        trial = self._open.pop(number)
        if reason is not None:
            trial.set_user_attr("reason", reason)
        best = self.study.get_trials(deepcopy=False)[number].user_attrs.get("best")
        state = {
            "finished": optuna.trial.TrialState.COMPLETE,
            "stopped": optuna.trial.TrialState.PRUNED,
            "failed": optuna.trial.TrialState.FAIL,
        }[ending]
        value = None
        if ending == "finished":
            assert best is not None
            value = best[self.manifest["metric"]]
        self.study.tell(trial, value, state)

    def trial(self, number: int) -> TrialRecord:
        """Return one trial."""
        return self._record_of(self.study.get_trials(deepcopy=False)[number])

    def trials(self) -> list[TrialRecord]:
        """Return all trials by number."""
        return [self._record_of(trial) for trial in self.study.get_trials(deepcopy=False)]

    def _record_of(self, trial: optuna.trial.FrozenTrial) -> TrialRecord:
        names: dict[str, Literal["finished", "stopped", "failed"]]
        names = {"COMPLETE": "finished", "PRUNED": "stopped", "FAIL": "failed"}
        best = dict(trial.user_attrs.get("best") or {})
        epoch = int(best.pop("epoch")) if best else None
        return TrialRecord(
            number=trial.number,
            state=names.get(trial.state.name, "running"),
            values=dict(trial.params),
            value=best.get(self.manifest["metric"]),
            epoch=epoch,
            metrics=best,
            curve=dict(trial.intermediate_values),
            seconds=trial.user_attrs.get("seconds", 0.0),
            reason=trial.user_attrs.get("reason"),
        )

    def seed(self, number: int) -> int:
        """Return the seed of a trial; trial 0 has the study's own."""
        return int(self.manifest["seed"]) + number

    def params(self, trial: TrialRecord) -> dict[str, Value]:
        """Return all settings of a trial, searched and shared."""
        return {**self.manifest["settings"], **trial.values, "seed": self.seed(trial.number)}

    def ranking(self) -> list[TrialRecord]:
        """Return the trials that have a value and did not fail, best first."""
        sign = -1 if self.manifest["mode"] == "max" else 1
        ranked = [t for t in self.trials() if t.value is not None and t.state != "failed"]
        return sorted(ranked, key=lambda trial: (sign * _number(trial.value), trial.number))

    def _best_row(self, history: list[dict[str, float]]) -> dict[str, float] | None:
        metric = self.manifest["metric"]
        choose = max if self.manifest["mode"] == "max" else min
        return choose(history, key=lambda row: row[metric]) if history else None


def counts(trials: list[TrialRecord]) -> dict[str, int]:
    """Return the number of trials by state."""
    states = ("finished", "stopped", "failed", "running")
    return {state: sum(trial.state == state for trial in trials) for state in states}


def _suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Value:
    name, low, high, step = parameter.name, parameter.low, parameter.high, parameter.step
    if parameter.kind == "categorical":
        value = trial.suggest_categorical(name, parameter.choices)
        assert value is not None
        return value
    assert low is not None and high is not None
    if parameter.kind == "int":
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=step, log=parameter.log)


def _number(value: float | None) -> float:
    assert value is not None and math.isfinite(value)
    return value
