"""What a task is: its settings (`TrainConfig`) and the `Task` protocol that the loop relies on.

A task is one file `study/tasks/<name>.py` that ends with `TASK = ...`, and one search space
`search_spaces/<name>.yaml`. Nothing lists them: they are found by file name.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from study.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from study.data import DataSource, ImageSet, Splits
    from study.meters import Meter

NUM_FOLDS = 6  # of the training split, see `study.split`
Value = int | float | str | bool
SCHEDULES = ("constant", "cosine", "one_cycle")


def setting(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
    searchable: bool = True,
) -> Any:
    """Declare a field of a `TrainConfig`: default, help text with its unit, inclusive bounds.

    Args:
        default: Also the value that the task's baseline uses.
        help: One phrase for `--help`, with the unit.
        low: Smallest allowed value, inclusive.
        high: Largest allowed value, inclusive.
        choices: Allowed words of a string field.
        searchable: False for settings that trials of one study must share.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata={**metadata, "searchable": searchable})


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
    sync_batch_norm: bool = setting(
        False, "batch normalisation over all workers of a trial; GPUs only", searchable=False
    )
    seed: int = setting(0, "seed of weights, batch order and dropout", low=0, searchable=False)
    split_seed: int = setting(0, "seed of the training/validation split", low=0, searchable=False)
    fold: int = setting(
        0, "which sixth of the training split validates", low=0, high=NUM_FOLDS - 1,
        searchable=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = check_value(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


def best_row(history: Sequence[Mapping[str, float]], metric: str, mode: str) -> dict[str, float]:
    """Return the epoch that is best by a metric, the first of equals."""
    choose = max if mode == "max" else min
    return dict(choose(history, key=lambda row: row[metric]))


def field_type(field: dataclasses.Field[Any]) -> type:
    """Return the Python type of a config field, which is the type of its default."""
    return type(field.default)


def default_of(field: dataclasses.Field[Any]) -> Value:
    """Return the default of a config field."""
    assert isinstance(field.default, (int, float, str, bool))
    return field.default


def check_value(field: dataclasses.Field[Any], value: object) -> Value:
    """Return `value` as the field's type.

    Raises:
        InputError: Wrong type, out of bounds, or not one of the choices.
    """
    kind = field_type(field)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{field.name} must be {_kind_name(kind)}, but got {value!r}.")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    choices = field.metadata.get("choices")
    if isinstance(value, float) and value != value:
        raise InputError(f"{field.name} must be a number, but got nan.")
    if isinstance(value, (int, float)) and low is not None and value < low:
        raise InputError(f"{field.name} must be at least {low:g}, but got {value}.")
    if isinstance(value, (int, float)) and high is not None and value > high:
        raise InputError(f"{field.name} must be at most {high:g}, but got {value}.")
    if choices is not None and value not in choices:
        raise InputError(f"{field.name} must be one of {', '.join(choices)}, but got {value!r}.")
    assert isinstance(value, (int, float, str, bool))
    return value


def parse_value(field: dataclasses.Field[Any], text: str) -> Value:
    """Return the value that `text`, from a command line or an MLflow parameter, stands for.

    Raises:
        InputError: `text` is no such value.
    """
    kind = field_type(field)
    if kind is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in words:
            raise InputError(f"{field.name} must be true or false, but got {text!r}.")
        return words[text.lower()]
    try:
        value = kind(text)
    except ValueError:
        raise InputError(f"{field.name} must be {_kind_name(kind)}, but got {text!r}.") from None
    return check_value(field, value)


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names[kind]


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


class Task(Protocol):
    """All that the training loop, the study and the export know of a task.

    It may also have `shows`, how `study.predict` prepares a photograph (`study.model_folder`:
    the whole one if it says nothing), and `colors`, red, green and blue of each class, 0 to 255.
    """

    name: str  # "facade": file name, command-line word and stem of the search space
    title: str  # one phrase for people
    classes: tuple[str, ...]
    metric: str  # "val/mean_ap": what search, scheduler, checkpoints and study.best use
    mode: Literal["max", "min"]
    class_metric: str  # "ap": the per-class metric that tables show
    config_class: type[TrainConfig]  # its field `model`, if any, is the family of networks
    sample_settings: Mapping[str, Value]  # defaults that make `--dataset sample` quick
    normalization: tuple[tuple[float, ...], tuple[float, ...]]  # mean, deviation; images in [0, 1]
    downloads: bool  # whether a missing real data set is fetched without being asked for

    def acquire(self, source: DataSource, paths: Sequence[Path]) -> None:
        """Put the real data set into the data directory: from `paths`, or by download."""

    def identity(self, source: DataSource) -> dict[str, Any]:
        """Verify the data set, cache it, and return what identifies it (checksum, counts).

        Raises:
            InputError: Missing or damaged; the message names the file and the ways out.
        """

    def load_splits(self, source: DataSource, config: Any) -> Splits:
        """Return training and validation images, sharing one memory-mapped cache."""

    def load_full_size(
        self, source: DataSource, config: Any, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return images as the network takes them with targets at the data set's own size.

        The test split is closed: only `study.best` asks for it.
        """

    def build_model(self, config: Any) -> torch.nn.Module:
        """Return a module: `(B, C, H, W)` float32, normalised -> logits `(B, K, ...)`."""

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, config: Any) -> torch.Tensor:
        """Return the mean over images of what each loses, so that parts of a batch add up."""

    def build_meter(self, device: torch.device) -> Meter:
        """Return an empty meter that counts on `device`."""

    def evidence(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the small arrays from which `figures` can draw later, without the data set.

        `images` are the ones that `meter` has seen, in order.
        """

    def figures(self, evidence: Mapping[str, np.ndarray], note: str) -> dict[str, Figure]:
        """Draw what a reader wants to see of one evaluation, by file stem.

        `note` says what was evaluated and stands below every title.
        """


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
