"""The folder of one trial: its checkpoints, figures and, if it failed, its error.

trial.json      the trial's record (`study.records.trial_record`); not with study.train
last.pt         state to resume from: network, optimizer, settings, metrics of all epochs
best.pt         the same for the best epoch
metrics.json    one object per epoch, for people
evidence.npz    data for the figures of the best epoch
figures/*.png
error.txt       traceback of the last failure
mlflow_run.json id of the trial's run in MLflow
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from study.errors import DamagedFile, StorageError
from study.storage.files import read_document, replacing, write_document, write_text
from study.storage.paths import AnyPath, children
from study.task import best_row

if TYPE_CHECKING:
    from study.training.loop import EpochResult


def write_arrays(path: AnyPath, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz` atomically."""
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_arrays(path: AnyPath) -> dict[str, np.ndarray]:
    """Read a file written by `write_arrays`.

    Raises:
        DamagedFile: It is missing or damaged.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return dict(archive)
    except StorageError:
        raise
    except Exception as error:  # a damaged archive makes the readers raise anything
        raise DamagedFile(
            f"{path} is missing or damaged ({type(error).__name__}: {error})."
        ) from error


class RunFolder:
    """Reads and writes the folder of one trial.

    Attributes:
        path: The folder.
        damage: Damage found on reading, as sentences for people.
    """

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.damage: list[str] = []

    @property
    def last_checkpoint(self) -> AnyPath:
        """The checkpoint that the trial resumes from."""
        return self.path / "last.pt"

    @property
    def best_checkpoint(self) -> AnyPath:
        """The checkpoint of the best epoch."""
        return self.path / "best.pt"

    @property
    def figure_data_file(self) -> AnyPath:
        """The data for the figures of the best epoch."""
        return self.path / "evidence.npz"

    @property
    def error_file(self) -> AnyPath:
        """The traceback of the last failure."""
        return self.path / "error.txt"

    @property
    def run_id(self) -> str | None:
        """The id of the trial's run in MLflow; None if it has none yet or the file is damaged."""
        path = self.path / "mlflow_run.json"
        try:
            return str(read_document(path)["run_id"])
        except DamagedFile:
            return None  # the tracker finds the run by its tags and rewrites the file

    def write_run_id(self, run_id: str) -> None:
        """Write `mlflow_run.json` unless it has this id already."""
        if self.run_id != run_id:
            self.path.mkdir(parents=True, exist_ok=True)
            write_document(self.path / "mlflow_run.json", {"run_id": run_id}, shared=True)

    def record(self, result: EpochResult, facts: Mapping[str, Any]) -> None:
        """Save an epoch; existing files stay intact if the process dies halfway.

        Args:
            result: The epoch.
            facts: Plain values stored with the weights: data set, code version, machine.

        Raises:
            StorageError: The disk is full.
        """
        from study.records import checkpoint

        self.path.mkdir(parents=True, exist_ok=True)
        state = {**result.state, "facts": dict(facts)}
        if result.is_best:
            write_arrays(self.figure_data_file, result.figure_data())
            checkpoint.save(state, self.best_checkpoint, self.last_checkpoint)
        else:
            checkpoint.save(state, self.last_checkpoint)
        text = json.dumps(state["history"], indent=1)
        write_text(self.path / "metrics.json", text, durable=False)  # for people; a copy

    def record_part(self, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Save a state in the middle of an epoch."""
        from study.records import checkpoint

        self.path.mkdir(parents=True, exist_ok=True)
        checkpoint.save({**state, "facts": dict(facts)}, self.last_checkpoint)

    def last_state(self) -> dict[str, Any] | None:
        """Return the state to resume from; None if there is none.

        It is the last checkpoint, or that of the best epoch if the last one is damaged (noted in
        `damage`) or if the process was killed between writing the two: the best is written first.
        """
        from study.records import checkpoint

        states = []
        for path in (self.last_checkpoint, self.best_checkpoint):
            try:
                states.append(checkpoint.load(path))
            except DamagedFile as error:
                if path.exists() and not states:
                    self.damage.append(str(error))
        return max(states, key=lambda state: len(state["history"]), default=None)

    def load_or_repair_weights(self, metric: str, mode: str) -> dict[str, Any]:
        """Return the checkpoint of the best epoch.

        If `best.pt` is damaged and the best epoch was the last one, it is restored from `last.pt`.

        Raises:
            DamagedFile: Neither can be used; names `best.pt`.
        """
        from study.records import checkpoint

        try:
            return checkpoint.load(self.best_checkpoint)
        except DamagedFile as error:
            try:
                state = checkpoint.load(self.last_checkpoint)
            except DamagedFile:
                raise error from None
            if "part" in state or best_row(state["history"], metric, mode) != state["history"][-1]:
                raise error from None
            checkpoint.save(state, self.best_checkpoint)
            return state

    def figures(self) -> list[AnyPath]:
        """Return the figure files, sorted by name."""
        found = children(self.path / "figures")
        return [path for path in found if path.name.endswith(".png")]

    def drop_weights(self) -> None:
        """Delete the checkpoints."""
        for path in (self.last_checkpoint, self.best_checkpoint):
            path.unlink(missing_ok=True)
