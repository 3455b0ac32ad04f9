"""Settings of a trial (`TrainConfig`): defaults, help texts and bounds, and parsing of values."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from study.errors import InputError, did_you_mean

Value = int | float | str | bool

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y"), True),
    **dict.fromkeys(("false", "no", "off", "n"), False),
}
# Numbers as people and Python write them; YAML 1.1 reads some as strings, times or octal.
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)")
OTHER_BASE = re.compile(r"[-+]?0([oO][0-7]+|[xX][0-9a-fA-F]+|[bB][01]+)")
DECIMAL = re.compile(r"[-+]?([0-9]+(_[0-9]+)*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"([-+]?)\.?(inf|infinity|nan)", re.IGNORECASE)
SCHEDULES = ("constant", "cosine", "one_cycle")
PRECISIONS = ("auto", "float32", "bfloat16")
NUM_FOLDS = 6  # of the training split, see `study.datasets.splits`
VAL_SHARE = 1 / NUM_FOLDS  # validation's share of the training split
LARGEST = 2**63 - 1  # integer that fits the databases of Optuna and MLflow


class Plain(str):
    """Unquoted text from a file or a command line; the setting's type decides its meaning."""


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
        default: Also the baseline's value.
        help: One phrase for `--help`, with the unit.
        low: Smallest allowed value, inclusive.
        high: Largest allowed value, inclusive.
        choices: Allowed words of a string field.
        searchable: False for settings that all trials of a study must share.
    """
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata={**metadata, "searchable": searchable})


def field_type(field: dataclasses.Field[Any]) -> type:
    """Return the Python type of a config field: the type of its default."""
    return type(field.default)


def default_of(field: dataclasses.Field[Any]) -> Value:
    """Return the default of a config field."""
    assert isinstance(field.default, (int, float, str, bool))
    return field.default


def check_value(field: dataclasses.Field[Any], value: object) -> Value:
    """Return `value` as the field's type; `Plain` text is parsed as that type.

    Raises:
        InputError: Wrong type, out of bounds, or not one of the choices.
    """
    kind = field_type(field)
    written = value
    if isinstance(value, Plain):
        value = read_plain(value, kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) <= LARGEST else math.copysign(math.inf, value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        hint = how_to_write(written, kind)
        raise InputError(f"{field.name} must be {_kind_name(kind)}, but got {value!r}{hint}.")
    low, high = field.metadata.get("low"), field.metadata.get("high")
    choices = field.metadata.get("choices")
    if isinstance(value, float) and value != value:
        raise InputError(f"{field.name} must be a number, but got nan.")
    if isinstance(value, (int, float)) and low is not None and value < low:
        raise InputError(f"{field.name} must be at least {low:g}, but got {value}.")
    if isinstance(value, (int, float)) and high is not None and value > high:
        raise InputError(f"{field.name} must be at most {high:g}, but got {value}.")
    if isinstance(value, float) and math.isinf(value):
        raise InputError(f"{field.name} must be a finite number, but got {value}.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InputError(f"{field.name} must be below 2^63, but got a larger number.")
    if choices is not None and value not in choices:
        near = difflib.get_close_matches(str(value).lower(), choices, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"{field.name} must be one of {', '.join(choices)}, but got {value!r}{hint}"
        )
    assert isinstance(value, (int, float, str, bool))
    return value


def parse_value(field: dataclasses.Field[Any], text: str) -> Value:
    """Parse a field's value from text, of a command line or an MLflow parameter.

    Raises:
        InputError: `text` is not a valid value.
    """
    if field_type(field) is bool and text in ("0", "1"):
        return text == "1"
    return check_value(field, Plain(text.strip()))


def read_number(text: str) -> int | float | None:
    """Parse a number such as `64`, `1_000`, `0o17`, `1e-3`, `1.0e2` or `.inf`; else return None.

    `017` is ambiguous and not accepted: it may mean 17 or, in octal, 15.
    """
    try:
        if OTHER_BASE.fullmatch(text):
            return int(text, 0)
        if WHOLE.fullmatch(text):
            return int(text)
        if DECIMAL.fullmatch(text) and not re.match(r"[-+]?0[0-9]", text):
            return float(text)
    except ValueError:  # thousands of digits
        return None
    match = NOT_FINITE.fullmatch(text)
    return float(match[1] + match[2]) if match else None


def read_boolean(text: str) -> bool | None:
    """Parse true, yes, on, y or false, no, off, n; return None for anything else."""
    return BOOLEANS.get(text.lower())


def read_plain(text: Plain, kind: type) -> object:
    """Parse plain text as a value of a type; text that does not parse is returned as it is."""
    if kind is bool:
        said = read_boolean(text)
        return str(text) if said is None else said
    if kind is str:
        return str(text)
    number = read_number(text)
    if kind is int and isinstance(number, float) and number.is_integer() and abs(number) < 2**53:
        return int(number)
    return str(text) if number is None else number


def how_to_write(written: object, kind: type) -> str:
    """Return the end of an error message: how to write the value that was probably meant."""
    if kind not in (int, float) or not isinstance(written, str):
        return ""
    if not isinstance(written, Plain):
        return "; write it without quotes" if read_number(written) is not None else ""
    stripped = re.sub(r"^([-+]?)0+(?=[0-9])", r"\1", written)
    decimal = re.sub(r"^([-+]?[0-9]+),(?![0-9]{3}$)", r"\1.", written)  # 1,000 may be a thousand
    for tried in (stripped, decimal, written.replace("\u2212", "-")):
        if tried != written and read_number(tried) is not None:
            return f"; write {tried}"
    return ""


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names[kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings common to all tasks. A task extends it with its own fields.

    A field has one name everywhere: YAML key, command-line flag, MLflow parameter and key in the
    checkpoint's metadata.

    Raises:
        InputError: A field has the wrong type or lies outside its bounds.
    """

    epochs: int = setting(10, "passes over the training split", low=1, searchable=False)
    batch_size: int = setting(128, "images per optimizer step, over all workers", low=1)
    optimizer: str = setting(
        "adam", "algorithm that updates the weights", choices=("adam", "adamw", "sgd")
    )
    learning_rate: float = setting(
        1e-3, "step size of the optimizer; with a schedule, its maximum", low=0.0
    )
    weight_decay: float = setting(1e-5, "L2 penalty; with adamw, decoupled weight decay", low=0.0)
    momentum: float = setting(0.9, "sgd: Nesterov momentum", low=0.0, high=0.999)
    schedule: str = setting("constant", "learning-rate schedule", choices=SCHEDULES)
    warm_up: float = setting(
        0.25,
        "one_cycle: fraction of the steps during which the learning rate rises",
        low=0.0,
        high=0.9,
    )
    label_smoothing: float = setting(
        0.0, "fraction of each target spread over all classes", low=0.0, high=0.9
    )
    flip: float = setting(0.0, "probability of mirroring a training image", low=0.0, high=1.0)
    shift: float = setting(
        0.0,
        "largest random shift of a training image, as a fraction of its size",
        low=0.0,
        high=0.5,
    )
    crop: float = setting(
        1.0,
        "smallest side of a random crop, resized to full size, as a fraction of the image's",
        low=0.1,
        high=1.0,
    )
    erase: float = setting(
        0.0, "probability of erasing a rectangle of a training image", low=0.0, high=1.0
    )
    brightness: float = setting(
        0.0, "largest random change of brightness, as a fraction", low=0.0, high=1.0
    )
    compile: bool = setting(
        False,
        "torch.compile the network; compilation counts towards the first epoch's time",
        searchable=False,
    )
    precision: str = setting(
        "auto",
        "number format of matrix products in training; auto: bfloat16 where the hardware has it",
        choices=PRECISIONS,
        searchable=False,
    )
    sync_batch_norm: bool = setting(
        False,
        "synchronise batch normalisation over all workers of a trial (GPUs only)",
        searchable=False,
    )
    seed: int = setting(0, "seed of weights, batch order and dropout", low=0, searchable=False)
    split_seed: int = setting(0, "seed of the training/validation split", low=0, searchable=False)
    fold: int = setting(
        0,
        "which sixth of the training split is used for validation",
        low=0,
        high=NUM_FOLDS - 1,
        searchable=False,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = check_value(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)


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


def check_sync(sync_batch_norm: bool, workers: int, gpus: bool) -> None:
    """Check that a trial's workers can synchronise batch normalisation.

    Raises:
        InputError: They cannot.
    """
    if sync_batch_norm and workers > 1 and not gpus:
        raise InputError(
            "sync_batch_norm=True: torch synchronises batch normalisation only on GPUs; leave it "
            "out, or use --workers-per-trial 1."
        )


def parse_assignments(
    assignments: Sequence[str], config_class: type[TrainConfig]
) -> dict[str, Value]:
    """Return the values of repeated `--set FIELD=VALUE` flags."""
    fields = config_fields(config_class)
    values = {}
    for text in assignments:
        name, separator, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not separator:
            raise InputError(f"--set takes FIELD=VALUE, but got {text!r}.")
        if name not in fields:
            raise InputError(f"--set: there is no setting {name!r}{did_you_mean(name, fields)}")
        try:
            values[name] = parse_value(fields[name], value.strip())
        except InputError as error:
            raise InputError(f"--set {text}: {error}") from None
    return values
