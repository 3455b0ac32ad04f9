"""Search spaces: YAML read with line numbers and checked against a task's settings.

    fixed:                # settings of all trials
      image_size: 128
    search:               # one entry for each hyperparameter
      learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
      batch_size: {type: int, low: 8, high: 32, step: 8}
      last_relu: {type: categorical, choices: [true, false]}
      width5: {type: int, low: 8, high: 64, when: {last_relu: true}}
    baseline:             # trial 0 where it differs from the task's defaults
      width5: 16

`low` and `high` are inclusive. A parameter with `when` is only searched in trials where the other
parameter has that value, or one of a list of values. Every value, wherever it stands, is read as
what its setting is: `no` is a word for a setting of words and false for one of true and false.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from study.errors import InputError, did_you_mean
from study.setting import (
    LARGEST,
    Plain,
    TrainConfig,
    Value,
    check_value,
    config_fields,
    default_of,
    field_type,
    how_to_write,
    read_boolean,
    read_plain,
)
from study.space import Parameter, SearchSpace
from study.yaml_lines import Place, Section, read_sections

SECTIONS = ("fixed", "search", "baseline")
KEYS = {
    "float": ("type", "low", "high", "log", "step", "when"),
    "int": ("type", "low", "high", "log", "step", "when"),
    "categorical": ("type", "choices", "when"),
}


def load_space(
    path: Path,
    config_class: type[TrainConfig],
    base: Mapping[str, Value],
    assigned: Mapping[str, Value],
) -> SearchSpace:
    """Read and check a search space.

    Args:
        path: The YAML file.
        config_class: Gives the names, types and bounds of hyperparameters.
        base: Settings below those of the file (of the sample data set).
        assigned: Settings above those of the file (`--set`); they are no longer searched.

    Raises:
        InputError: The file is wrong; the message names file, line, and what is allowed.
    """
    fields = config_fields(config_class)
    sections = read_sections(path, SECTIONS)

    def known(section: Section) -> dict[str, tuple[Place, Any]]:
        for name, (place, _) in section.items():
            if name not in fields:
                raise place.error(f"there is no setting {name!r}{did_you_mean(name, fields)}")
        return section

    def checked(place: Place, name: str, value: object, where: str = "") -> Value:
        """Return a value, as every one of the file is checked: fixed, searched, `when`."""
        try:
            return check_value(fields[name], value)
        except InputError as error:
            raise place.error(f"{where}{error}") from None

    fixed = {
        name: checked(place, name, value)
        for name, (place, value) in known(sections["fixed"]).items()
    }
    parameters = {}
    places = {}
    for name, (place, entry) in known(sections["search"]).items():
        if name in fixed:
            raise place.error(f"{name} is both fixed and searched; remove one.")
        if not fields[name].metadata["searchable"]:
            raise place.error(f"{name} is the same for all trials; set it under `fixed`.")
        parameters[name] = _parameter(name, entry, place, checked, fields)
        places[name] = place
    for name, (place, _) in known(sections["baseline"]).items():
        if name not in parameters:
            raise place.error(f"baseline: {name} is not searched; set it under `fixed`.")
    settled = {**base, **fixed, **assigned}
    for name in assigned:
        parameters.pop(name, None)
    ordered = _order(path, parameters, settled, places, config_class)
    baseline: dict[str, Value] = {}
    for parameter in ordered:
        name = parameter.name
        value: Value | None = None
        if name in sections["baseline"]:
            place, raw = sections["baseline"][name]
            value = checked(place, name, raw)
            if not parameter.contains(value):
                raise place.error(f"baseline: {name}={value} is outside its search range.")
        if not parameter.active({**settled, **baseline}):
            continue
        if value is None:
            value = parameter.nearest(base.get(name, default_of(fields[name])))
        baseline[name] = value
    settled = {name: value for name, value in settled.items() if name not in parameters}
    return SearchSpace(tuple(ordered), settled, baseline)


def _parameter(
    name: str, entry: Any, place: Place, checked: Any, fields: Mapping[str, Any]
) -> Parameter:
    """Check one entry under `search`."""
    if not isinstance(entry, dict):
        raise place.error(
            f"{name} must be like {{type: float, low: 1.0e-4, high: 1.0e-2, log: true}}; "
            "a value for all trials goes under `fixed`."
        )
    kind: Any = next((known for known in KEYS if known == entry.get("type")), None)
    if kind is None:
        raise place.error(
            f"{name}: type must be one of {', '.join(KEYS)}, but got {entry.get('type')!r}."
        )
    for key in entry:
        if key not in KEYS[kind]:
            hint = did_you_mean(str(key), KEYS[kind])
            raise place.error(f"{name}: a {kind} parameter has no {key!r}{hint}")
    when = _condition(name, entry, place, checked, fields)
    if kind == "categorical":
        choices = entry.get("choices")
        if not isinstance(choices, list) or not choices:
            raise place.error(f"{name}: choices must be a list of values.")
        values = tuple(checked(place, name, choice) for choice in choices)
        if len(set(values)) < len(values):
            raise place.error(f"{name}: choices has a value twice.")
        return Parameter(name=name, kind=kind, choices=values, when=when)
    field_kind = field_type(fields[name])
    if field_kind.__name__ != kind:
        fitting = " or ".join(sorted({field_kind.__name__, "categorical"} & KEYS.keys()))
        raise place.error(f"{name} cannot be searched as {kind}; use type: {fitting}.")
    low, high = (_number(name, bound, entry, place, kind) for bound in ("low", "high"))
    said = entry.get("log", Plain("false"))
    log = read_boolean(said) if isinstance(said, Plain) else None
    if log is None:
        raise place.error(f"{name}: log must be true or false, but got {said!r}.")
    if low >= high:
        raise place.error(f"{name}: low must be below high, but got low={low}, high={high}.")
    if log and low <= 0:
        raise place.error(f"{name}: log needs low above 0, but got low={low}.")
    for bound in (low, high):
        checked(place, name, bound)
    step = None
    if "step" in entry:
        step = _number(name, "step", entry, place, kind)
        if log:
            raise place.error(f"{name}: log and step exclude each other; remove one.")
        steps = (high - low) / step if step > 0 else 0.0
        if not 1 <= steps < float("inf") or abs(steps - round(steps)) > 1e-9 * steps:
            raise place.error(
                f"{name}: high must be low plus a multiple of step, but got low={low}, "
                f"high={high}, step={step}."
            )
    return Parameter(name=name, kind=kind, low=low, high=high, log=log, step=step, when=when)


def _number(name: str, key: str, entry: dict[str, Any], place: Place, kind: str) -> Any:
    written: Any = entry.get(key)
    wanted = int if kind == "int" else float
    value = read_plain(written, wanted) if isinstance(written, Plain) else written
    if wanted is float and isinstance(value, int):
        value = float(value) if abs(value) <= LARGEST else math.inf
    if not isinstance(value, wanted) or not math.isfinite(value):
        words = "a whole number" if kind == "int" else "a number"
        hint = how_to_write(written, wanted)
        raise place.error(f"{name}: {key} must be {words}, but got {written!r}{hint}.")
    return value


def _condition(
    name: str, entry: dict[str, Any], place: Place, checked: Any, fields: Collection[str]
) -> tuple[str, tuple[Value, ...]] | None:
    """Return the other parameter and its values, each a value that its setting can have."""
    if "when" not in entry:
        return None
    when = entry["when"]
    if not isinstance(when, dict) or len(when) != 1:
        raise place.error(f"{name}: when must be like {{other_parameter: value}}.")
    ((other, values),) = when.items()
    if other not in fields:
        raise place.error(
            f"{name}: when: there is no setting {other!r}{did_you_mean(other, fields)}"
        )
    values = values if isinstance(values, list) else [values]
    if not values or None in values or any(isinstance(value, (dict, list)) for value in values):
        raise place.error(
            f"{name}: when: {other} needs a value, or a list of values, as in "
            f"{{{other}: value}} or {{{other}: [value, value]}}."
        )
    never = f"{name}: when: {other} is never %r in this space; "
    return other, tuple(checked(place, other, value, never % value) for value in values)


def _order(
    path: Path,
    parameters: Mapping[str, Parameter],
    settled: Mapping[str, Value],
    places: Mapping[str, Place],
    config_class: type[TrainConfig],
) -> list[Parameter]:
    """Sort parameters so that each follows the one it depends on; settle fixed conditions."""
    fields = config_fields(config_class)
    ordered: dict[str, Parameter] = {}
    waiting = dict(parameters)
    dropped: set[str] = set()
    while waiting:
        before = len(waiting)
        for name, parameter in list(waiting.items()):
            other, values = parameter.when or (None, ())
            if other in waiting and other != name:
                continue
            del waiting[name]
            if other is None:
                ordered[name] = parameter
            elif other in ordered:
                for value in values:
                    if not ordered[other].contains(value):
                        raise places[name].error(
                            f"{name}: when: {other} is never {value!r} in this space."
                        )
                ordered[name] = parameter
            elif other in dropped:
                dropped.add(name)
            elif other != name and settled.get(other, default_of(fields[other])) in values:
                ordered[name] = dataclasses.replace(parameter, when=None)
            elif other != name:
                dropped.add(name)
            else:
                raise places[name].error(f"{name}: when: it cannot depend on itself.")
        if len(waiting) == before:
            names = ", ".join(waiting)
            raise places[next(iter(waiting))].error(f"when: {names} depend on one another.")
    if not ordered:
        raise InputError(f"{path} searches nothing; leave a parameter under `search`.")
    return list(ordered.values())
