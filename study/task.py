"""The task interface used by the training loop, studies and exports, and task discovery.

A task is one file `study/tasks/<name>.py` that ends with `TASK = ...`, and one search space
`search_spaces/<name>.yaml`. There is no registry: tasks are found by file name. A task file can
import everything it needs besides its data from here.
"""

from __future__ import annotations

import abc
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from study.config import (
    NUM_FOLDS,
    PRECISIONS,
    SCHEDULES,
    TrainConfig,
    Value,
    build_config,
    config_fields,
    setting,
)
from study.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from study.datasets.source import DataSource, ImageSet, Splits

__all__ = [
    "NUM_FOLDS",
    "OBJECT",
    "PRECISIONS",
    "SCHEDULES",
    "WHOLE",
    "Figure",
    "Meter",
    "Task",
    "TrainConfig",
    "Value",
    "base_values",
    "best_row",
    "build_config",
    "class_key",
    "config_fields",
    "load_task",
    "prepare",
    "setting",
    "task_names",
]

# What the network's images show, kept in an export's `meta.json`: decides how photos are prepared.
WHOLE = "the whole photograph"
OBJECT = "one object, light on black, filling the image"


def best_row(history: Sequence[Mapping[str, float]], metric: str, mode: str) -> dict[str, float]:
    """Return the best epoch by a metric; of equal ones the first."""
    choose = max if mode == "max" else min
    return dict(choose(history, key=lambda row: row[metric]))


def base_values(task: Task, dataset: str) -> dict[str, Value]:
    """Return the settings of a data set that differ from the config's defaults."""
    return dict(task.sample_settings) if dataset == "sample" else {}


class Figure(Protocol):
    """A matplotlib figure, reduced to the one method used here."""

    def savefig(self, *file: Any, **options: Any) -> None:
        """Write the figure to a file."""


class Meter(Protocol):
    """Counts summed over batches and ranks, divided once at the end."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits `(B, K, ...)` float, targets `(B, ...)` int64."""

    def reduce(self) -> None:
        """Add up the counts of all ranks."""

    def keep_images(self) -> None:
        """From now on keep the contribution of each image, for `resampled`."""

    def resampled(self, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the task's metric `(R,)` on resamples of the images of one process.

        Args:
            groups: `(n,)` group of each image from 0, in the order the images were seen.
            weights: `(R, G)` how often each group is counted.
        """

    def compute(self) -> dict[str, float]:
        """Return metrics by name without the split, e.g. `accuracy`, `ap/window`.

        Values lie in [0, 1] unless the task's `bounds` say otherwise.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the counts and this rank's predictions, from which figures are drawn."""


class Task(abc.ABC):
    """Everything the training loop, the study and the export know about a task.

    `study.classification.Classification` implements most of it for image classification.
    """

    name: str  # "facade": file name, command-line word and stem of the search space
    title: str  # one phrase, for display
    classes: tuple[str, ...]
    metric: str  # "val/mean_ap": used by search, scheduler, checkpoints and study.best
    mode: Literal["max", "min"] = "max"
    class_metric: str  # "ap": the per-class metric that tables show
    config_class: type[TrainConfig] = TrainConfig  # `model`, if any, is the network family
    sample_settings: Mapping[str, Value] = {}  # defaults that make `--dataset sample` quick
    normalization: tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation; images in [0, 1]
    downloads: bool = False  # whether a missing real data set is downloaded automatically
    shows: str = WHOLE  # how `study.predict` prepares a photograph
    colors: Sequence[tuple[int, int, int]] | None = None  # red, green, blue by class, 0 to 255
    bounds: Mapping[str, tuple[float, float]] = {}  # of the meter's metrics outside [0, 1]

    def acquire(self, source: DataSource, paths: Sequence[Path]) -> None:
        """Put the real data set into the data directory, from `paths` or by download."""
        if paths:
            raise InputError(
                f"{self.name} cannot import data; copy its files into {source.data_dir} yourself."
            )

    @abc.abstractmethod
    def identity(self, source: DataSource) -> dict[str, Any]:
        """Verify and cache the data set; return its identity (checksum, counts).

        Raises:
            InputError: Missing or corrupted; the message names the file and what to do.
        """

    @abc.abstractmethod
    def load_splits(self, source: DataSource, config: Any) -> Splits:
        """Return training and validation images, sharing one memory-mapped cache.

        No searchable setting may change the validation images, or trials would not be comparable.
        """

    @abc.abstractmethod
    def load_full_size(
        self, source: DataSource, config: Any, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return images at the network's input size, with targets at the data set's own size.

        The test split is held out: only `study.best` requests it.
        """

    @abc.abstractmethod
    def build_model(self, config: Any) -> torch.nn.Module:
        """Return a module: `(B, C, H, W)` float32, normalised -> logits `(B, K, ...)`."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, config: Any) -> Tensor:
        """Return the mean loss over the images, so that micro-batches add up.

        This is the training loss, `train/loss`. `val/loss` is always plain cross-entropy.
        """

    @abc.abstractmethod
    def build_meter(self, device: torch.device) -> Meter:
        """Return an empty meter that counts on `device`."""

    def figure_data(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return small arrays from which `figures` can draw later, without the data set.

        `images` are those that `meter` has seen, in the same order.
        """
        return {}

    def figures(self, figure_data: Mapping[str, np.ndarray], note: str) -> Mapping[str, Figure]:
        """Draw the figures of one evaluation, by file stem.

        `note` says what was evaluated and appears below every title.
        """
        return {}


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    package = importlib.import_module("study.tasks")  # by name: tasks import this module
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_task(name: str) -> Task:
    """Return the task in `study/tasks/<name>.py`.

    Raises:
        InputError: There is no such task; the nearest name is suggested.
    """
    names = task_names()
    if name not in names:
        raise InputError(f"unknown task {name!r}{did_you_mean(name, names)}")
    task: Task = importlib.import_module(f"study.tasks.{name}").TASK
    return task


def prepare(task: Task, source: DataSource) -> dict[str, Any]:
    """Verify and cache a task's data set, downloading it if the task allows; return its identity.

    Raises:
        InputError: Missing or corrupted; the message names the file and what to do.
    """
    if source.dataset == "real" and task.downloads:
        task.acquire(source, [])
    return task.identity(source)


def class_key(name: str) -> str:
    """Return a class name as used in metric names: a slash becomes a dash."""
    return name.replace("/", "-")
