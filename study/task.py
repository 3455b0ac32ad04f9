"""A task: what the training loop, a study and an export rely on; and how task files are found.

A task is one file `study/tasks/<name>.py` that ends with `TASK = ...`, and one search space
`search_spaces/<name>.yaml`. Nothing lists them: they are found by file name. All that a task file
needs besides its data can be imported from here.
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

# What the network's images show, in an export's `meta.json`; tells how a photograph is prepared.
WHOLE = "the whole photograph"
OBJECT = "one object, light on black, filling the image"


def best_row(history: Sequence[Mapping[str, float]], metric: str, mode: str) -> dict[str, float]:
    """Return the epoch that is best by a metric, the first of equals."""
    choose = max if mode == "max" else min
    return dict(choose(history, key=lambda row: row[metric]))


def base_values(task: Task, dataset: str) -> dict[str, Value]:
    """Return the settings that differ from the config's defaults for a data set."""
    return dict(task.sample_settings) if dataset == "sample" else {}


class Figure(Protocol):
    """A figure of matplotlib, of which only this is used."""

    def savefig(self, *file: Any, **options: Any) -> None:
        """Write it to a file."""


class Meter(Protocol):
    """Counts over batches and ranks, divided once at the end."""

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits `(B, K, ...)` float, targets `(B, ...)` int64."""

    def reduce(self) -> None:
        """Add up the counts of all ranks."""

    def keep_images(self) -> None:
        """From now on keep what each image contributes, for `resampled`."""

    def resampled(self, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the task's metric `(R,)` on resamples of the images of one process.

        Args:
            groups: `(n,)` group of each image, in the order in which they were seen, from 0.
            weights: `(R, G)` how often each group counts.
        """

    def compute(self) -> dict[str, float]:
        """Return metrics by name without the split, e.g. `accuracy`, `ap/window`.

        They are shares in [0, 1] unless the task's `bounds` say otherwise.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """Return counts and this rank's predictions, from which figures are drawn."""


class Task(abc.ABC):
    """All that the training loop, the study and the export know of a task.

    `study.classification.Classification` has most of it for tasks that name what an image shows.
    """

    name: str  # "facade": file name, command-line word and stem of the search space
    title: str  # one phrase for people
    classes: tuple[str, ...]
    metric: str  # "val/mean_ap": what search, scheduler, checkpoints and study.best use
    mode: Literal["max", "min"] = "max"
    class_metric: str  # "ap": the per-class metric that tables show
    config_class: type[TrainConfig] = TrainConfig  # its `model`, if any, is the family of networks
    sample_settings: Mapping[str, Value] = {}  # defaults that make `--dataset sample` quick
    normalization: tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation; images in [0, 1]
    downloads: bool = False  # whether a missing real data set is fetched without being asked for
    shows: str = WHOLE  # how `study.predict` prepares a photograph
    colors: Sequence[tuple[int, int, int]] | None = None  # red, green, blue by class, 0 to 255
    bounds: Mapping[str, tuple[float, float]] = {}  # of its meter's metrics that are not in [0, 1]

    def acquire(self, source: DataSource, paths: Sequence[Path]) -> None:
        """Put the real data set into the data directory: from `paths`, or by download."""
        if paths:
            raise InputError(
                f"{self.name} cannot import data; copy its files into {source.data_dir} yourself."
            )

    @abc.abstractmethod
    def identity(self, source: DataSource) -> dict[str, Any]:
        """Verify the data set, cache it, and return what identifies it (checksum, counts).

        Raises:
            InputError: Missing or damaged; the message names the file and the ways out.
        """

    @abc.abstractmethod
    def load_splits(self, source: DataSource, config: Any) -> Splits:
        """Return training and validation images, sharing one memory-mapped cache.

        No setting that can be searched may change what validates, or trials would not compare.
        """

    @abc.abstractmethod
    def load_full_size(
        self, source: DataSource, config: Any, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return images as the network takes them with targets at the data set's own size.

        The test split is closed: only `study.best` asks for it.
        """

    @abc.abstractmethod
    def build_model(self, config: Any) -> torch.nn.Module:
        """Return a module: `(B, C, H, W)` float32, normalised -> logits `(B, K, ...)`."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, config: Any) -> Tensor:
        """Return the mean over images of what each loses, so that parts of a batch add up.

        It is trained on, and `train/loss`. `val/loss` is plain cross-entropy, whatever this is.
        """

    @abc.abstractmethod
    def build_meter(self, device: torch.device) -> Meter:
        """Return an empty meter that counts on `device`."""

    def figure_data(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the small arrays from which `figures` can draw later, without the data set.

        `images` are the ones that `meter` has seen, in order.
        """
        return {}

    def figures(self, figure_data: Mapping[str, np.ndarray], note: str) -> Mapping[str, Figure]:
        """Draw what a reader wants to see of one evaluation, by file stem.

        `note` says what was evaluated and stands below every title.
        """
        return {}


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    package = importlib.import_module("study.tasks")  # by its name: tasks rest on this module
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_task(name: str) -> Task:
    """Return the task in `study/tasks/<name>.py`.

    Raises:
        InputError: There is none; the nearest name is suggested.
    """
    names = task_names()
    if name not in names:
        raise InputError(f"unknown task {name!r}{did_you_mean(name, names)}")
    task: Task = importlib.import_module(f"study.tasks.{name}").TASK
    return task


def prepare(task: Task, source: DataSource) -> dict[str, Any]:
    """Verify and cache a task's data set, downloading it if the task allows; return its identity.

    Raises:
        InputError: Missing or damaged; the message names the file and the ways out.
    """
    if source.dataset == "real" and task.downloads:
        task.acquire(source, [])
    return task.identity(source)


def class_key(name: str) -> str:
    """Return a class name as it stands in metric names: a slash becomes a dash."""
    return name.replace("/", "-")
