"""The folder of one trial: its checkpoints, metrics, figures and, if it failed, its error.

last.pt         everything to go on with (network, optimizer, history)
best.pt         weights of the best epoch, with settings and metrics
metrics.json    one object per epoch
evidence.npz    what the figures of the best epoch are drawn from
figures/*.png
error.txt       traceback of a failed trial
mlflow_run      id of the trial's run in MLflow
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from study.task import Task

if TYPE_CHECKING:
    from study.loop import EpochResult


def write_text(path: Path, text: str) -> None:
    """Write a text file; readers see the old content or the new one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an `.npz`; readers see the old file or the new one."""
    draft = path.with_name(f".draft-{path.name}")
    np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
    os.replace(draft, path)


class RunFolder:
    """Reads and writes the folder of one trial."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def best_checkpoint(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best.pt"

    @property
    def error_file(self) -> Path:
        """The traceback of a trial that failed."""
        return self.path / "error.txt"

    @property
    def run_id(self) -> str | None:
        """The trial's run in MLflow; None if it has none yet."""
        path = self.path / "mlflow_run"
        return path.read_text().strip() if path.exists() else None

    @run_id.setter
    def run_id(self, run_id: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "mlflow_run", run_id + "\n")

    def record(self, result: EpochResult, facts: Mapping[str, Any]) -> None:
        """Save an epoch; what is already there stays whole if the process dies in the middle.

        Args:
            result: The epoch.
            facts: Plain values stored with the weights: data set, code version, machine.
        """
        from study import checkpoint

        self.path.mkdir(parents=True, exist_ok=True)
        state = result.state
        if result.is_best:
            best = {key: state[key] for key in ("task", "config", "network")}
            best |= {"epoch": result.epoch, "metrics": result.metrics, "facts": dict(facts)}
            checkpoint.save(self.best_checkpoint, best)
            write_arrays(self.path / "evidence.npz", result.evidence())
        checkpoint.save(self.path / "last.pt", state)
        write_text(self.path / "metrics.json", json.dumps(state["history"], indent=1))

    def last_state(self) -> dict[str, Any] | None:
        """Return the state to resume from, None if there is none yet.

        Raises:
            CheckpointError: It is damaged.
        """
        from study import checkpoint

        path = self.path / "last.pt"
        if not path.exists():
            return None
        state = checkpoint.load(path)
        # In case the process died between the two files.
        write_text(self.path / "metrics.json", json.dumps(state["history"], indent=1))
        return state

    def history(self) -> list[dict[str, float]]:
        """Return the metrics of all epochs, oldest first."""
        path = self.path / "metrics.json"
        rows: list[dict[str, float]] = json.loads(path.read_text()) if path.exists() else []
        return rows

    def draw(self, task: Task, note: str) -> list[Path]:
        """Draw learning curves and the figures of the best epoch; return the files."""
        from study.figures import learning_curves

        history = self.history()
        if not history:
            return []
        with np.load(self.path / "evidence.npz", allow_pickle=False) as evidence:
            figures = task.figures(evidence, note)
        figures["learning_curves"] = learning_curves(history, task.metric, note)
        return save_figures(figures, self.path / "figures")


def save_figures(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write figures as PNG files named by their keys; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1])
    return paths
