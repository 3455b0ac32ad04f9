"""One setting: its default, help and bounds, and what a value must be to be one of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from study.errors import InputError

Value = int | float | str | bool


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
