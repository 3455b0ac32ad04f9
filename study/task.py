"""What a task is: its settings (`TrainConfig`) and the `Task` that the loop relies on.

A task is one file `study/tasks/<name>.py` that ends with `TASK = ...`, and one search space
`search_spaces/<name>.yaml`. Nothing lists them: they are found by file name.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from study.errors import InputError
from study.setting import Value as Value
from study.setting import check_value
from study.setting import setting as setting

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from study.data import DataSource, ImageSet, Splits
    from study.meters import Meter

NUM_FOLDS = 6  # of the training split, see `study.split`
# What the network's images show, in an export's `meta.json`; tells how a photograph is prepared.
WHOLE = "the whole photograph"
OBJECT = "one object, light on black, filling the image"
SCHEDULES = ("constant", "cosine", "one_cycle")
PRECISIONS = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings that every task has. A task extends it with its own fields.

    A field's name is its name everywhere: YAML key, command-line flag, MLflow parameter and key
    of the checkpoint's metadata.

    Raises:
        InputError: A field has the wrong type or lies outside its bounds.
    """

    epochs: int = setting(10, "passes over the training split", low=1, searchable=False)
    batch_size: int = setting(128, "images per optimizer step, over all workers", low=1)
    optimizer: str = setting("adam", "how steps are taken", choices=("adam", "adamw", "sgd"))
    learning_rate: float = setting(1e-3, "step size of the optimizer, the highest one", low=0.0)
    weight_decay: float = setting(1e-5, "L2 penalty, or decay of adamw", low=0.0)
    momentum: float = setting(0.9, "sgd: part of the last step that is kept", low=0.0, high=0.999)
    schedule: str = setting("constant", "of the rate over all epochs", choices=SCHEDULES)
    warm_up: float = setting(
        0.25, "one_cycle: share of the steps over which the rate rises", low=0.0, high=0.9
    )
    label_smoothing: float = setting(
        0.0, "part of a target that is spread over all classes", low=0.0, high=0.9
    )
    flip: float = setting(0.0, "probability of mirroring a training image", low=0.0, high=1.0)
    shift: float = setting(
        0.0, "largest random shift of a training image, part of its size", low=0.0, high=0.5
    )
    crop: float = setting(
        1.0, "smallest side of a crop that is enlarged, part of the image's", low=0.1, high=1.0
    )
    erase: float = setting(
        0.0, "probability of erasing a rectangle of a training image", low=0.0, high=1.0
    )
    brightness: float = setting(
        0.0, "largest random change of brightness, part of it", low=0.0, high=1.0
    )
    compile: bool = setting(
        False, "torch.compile the network; its time counts in the first epoch", searchable=False
    )
    precision: str = setting(
        "auto",
        "of products in training; auto: bfloat16 where GPU or CPU computes in it",
        choices=PRECISIONS,
        searchable=False,
    )
    sync_batch_norm: bool = setting(
        False, "batch normalisation over all workers of a trial; GPUs only", searchable=False
    )
    seed: int = setting(0, "seed of weights, batch order and dropout", low=0, searchable=False)
    split_seed: int = setting(0, "seed of the training/validation split", low=0, searchable=False)
    fold: int = setting(
        0,
        "which sixth of the training split validates",
        low=0,
        high=NUM_FOLDS - 1,
        searchable=False,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = check_value(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def best_row(history: Sequence[Mapping[str, float]], metric: str, mode: str) -> dict[str, float]:
    """Return the epoch that is best by a metric, the first of equals."""
    choose = max if mode == "max" else min
    return dict(choose(history, key=lambda row: row[metric]))


def config_fields(config_class: type[TrainConfig]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a config class by name."""
    return {field.name: field for field in dataclasses.fields(config_class)}


def build_config(config_class: type[TrainConfig], values: Mapping[str, object]) -> TrainConfig:
    """Build a config from `values`; every other field keeps its default.

    Raises:
        InputError: Unknown name (the nearest known one is suggested) or bad value.
    """
    known = config_fields(config_class)
    for name in values:
        if name not in known:
            raise InputError(f"there is no setting {name!r}{did_you_mean(name, known)}")
    return config_class(**values)  # type: ignore[arg-type]


def base_values(task: Task, dataset: str) -> dict[str, Value]:
    """Return the settings that differ from the config's defaults for a data set."""
    return dict(task.sample_settings) if dataset == "sample" else {}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the nearest known word."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}."


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
                f"{self.name} imports nothing; put its files into {source.data_dir} yourself."
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
    def loss(self, logits: torch.Tensor, targets: torch.Tensor, config: Any) -> torch.Tensor:
        """Return the mean over images of what each loses, so that parts of a batch add up.

        It is trained on, and `train/loss`. `val/loss` is plain cross-entropy, whatever this is.
        """

    @abc.abstractmethod
    def build_meter(self, device: torch.device) -> Meter:
        """Return an empty meter that counts on `device`."""

    def evidence(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the small arrays from which `figures` can draw later, without the data set.

        `images` are the ones that `meter` has seen, in order.
        """
        return {}

    def figures(self, evidence: Mapping[str, np.ndarray], note: str) -> dict[str, Figure]:
        """Draw what a reader wants to see of one evaluation, by file stem.

        `note` says what was evaluated and stands below every title.
        """
        return {}


def task_names() -> list[str]:
    """Return the names of all tasks, sorted."""
    import study.tasks

    return sorted(module.name for module in pkgutil.iter_modules(study.tasks.__path__))


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


def class_key(name: str) -> str:
    """Return a class name as it stands in metric names: a slash becomes a dash."""
    return name.replace("/", "-")
