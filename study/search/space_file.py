"""Search spaces: YAML read with line numbers and checked against a task's settings.

    fixed:                # settings shared by all trials
      image_size: 128
    search:               # one entry for each hyperparameter
      learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
      batch_size: {type: int, low: 8, high: 32, step: 8}
      last_relu: {type: categorical, choices: [true, false]}
      width5: {type: int, low: 8, high: 64, when: {last_relu: true}}
    baseline:             # trial 0 where it differs from the task's defaults
      width5: 16

`low` and `high` are inclusive. A parameter with `when` is only searched in trials where the other
parameter has that value, or one of a list of values. Every value is parsed by the type of its
setting: `no` is a string for a string setting and false for a boolean one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from study.config import (
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
from study.errors import InputError, did_you_mean
from study.search.yaml_lines import Place, Section, read_sections
from study.search_space import Parameter, SearchSpace

Condition = tuple[str, tuple[Value, ...]]  # another parameter, and its values
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
        config_class: Defines the names, types and bounds of hyperparameters.
        base: Settings that the file overrides (from the sample data set).
        assigned: Settings that override the file (`--set`); they are no longer searched.

    Raises:
        InputError: The file is invalid; the message names file, line, and what is allowed.
    """
    sections = read_sections(path, SECTIONS)
    settings = _Settings(config_fields(config_class))
    fixed = {
        name: settings.checked(place, name, value)
        for name, (place, value) in settings.known(sections["fixed"]).items()
    }
    searched = _searched(sections["search"], fixed, settings)
    for name, (place, _) in settings.known(sections["baseline"]).items():
        if name not in searched:
            raise place.error(f"baseline: {name} is not searched; move it to `fixed`.")
    fixed = {**base, **fixed, **assigned}
    parameters = {name: known for name, known in searched.items() if name not in assigned}
    places = {name: place for name, (place, _) in sections["search"].items()}
    ordered = _order(path, parameters, fixed, places, config_class)
    baseline = _baseline(ordered, sections["baseline"], base, fixed, settings)
    fixed = {name: value for name, value in fixed.items() if name not in parameters}
    return SearchSpace(tuple(ordered), fixed, baseline)


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The settings of a task, against which names and values are checked."""

    fields: Mapping[str, dataclasses.Field[Any]]

    def known(self, section: Section) -> Section:
        """Return the section after checking that all its names are settings."""
        for name, (place, _) in section.items():
            if name not in self.fields:
                raise place.error(f"there is no setting {name!r}{did_you_mean(name, self.fields)}")
        return section

    def checked(self, place: Place, name: str, value: object, where: str = "") -> Value:
        """Check and convert a value of the file: fixed, searched or in `when`."""
        try:
            return check_value(self.fields[name], value)
        except InputError as error:
            raise place.error(f"{where}{error}") from None


def _searched(
    section: Section, fixed: Mapping[str, Value], settings: _Settings
) -> dict[str, Parameter]:
    """Return the parameters under `search`, by name."""
    parameters = {}
    for name, (place, entry) in settings.known(section).items():
        if name in fixed:
            raise place.error(f"{name} is both fixed and searched; remove one.")
        if not settings.fields[name].metadata["searchable"]:
            raise place.error(f"{name} cannot differ between trials; move it to `fixed`.")
        if not isinstance(entry, dict):
            raise place.error(
                f"{name} must look like {{type: float, low: 1.0e-4, high: 1.0e-2, log: true}}; "
                "a value for all trials goes under `fixed`."
            )
        parameters[name] = _Entry(name, entry, place, settings).parameter()
    return parameters


def _baseline(
    ordered: Sequence[Parameter],
    section: Section,
    base: Mapping[str, Value],
    fixed: Mapping[str, Value],
    settings: _Settings,
) -> dict[str, Value]:
    """Return the values of trial 0: from the file, else the nearest to the defaults."""
    baseline: dict[str, Value] = {}
    for parameter in ordered:
        name = parameter.name
        value: Value | None = None
        if name in section:
            place, raw = section[name]
            value = settings.checked(place, name, raw)
            if not parameter.contains(value):
                raise place.error(f"baseline: {name}={value} is outside its search range.")
        if not parameter.active({**fixed, **baseline}):
            continue
        if value is None:
            value = parameter.nearest(base.get(name, default_of(settings.fields[name])))
        baseline[name] = value
    return baseline


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An entry under `search`."""

    name: str
    entry: dict[str, Any]
    place: Place
    settings: _Settings

    def parameter(self) -> Parameter:
        """Return the entry as a parameter."""
        written = self.entry.get("type")
        kind: Any = next((known for known in KEYS if known == written), None)
        if kind is None:
            raise self._error(f"type must be one of {', '.join(KEYS)}, but got {written!r}.")
        for key in self.entry:
            if key not in KEYS[kind]:
                hint = did_you_mean(str(key), KEYS[kind])
                raise self._error(f"a {kind} parameter has no {key!r}{hint}")
        when = self._condition()
        return self._categorical(when) if kind == "categorical" else self._numeric(kind, when)

    def _error(self, message: str) -> InputError:
        return self.place.error(f"{self.name}: {message}")

    def _categorical(self, when: Condition | None) -> Parameter:
        choices = self.entry.get("choices")
        if not isinstance(choices, list) or not choices:
            raise self._error("choices must be a non-empty list.")
        values = tuple(self.settings.checked(self.place, self.name, choice) for choice in choices)
        if len(set(values)) < len(values):
            raise self._error("choices contains a duplicate value.")
        return Parameter(name=self.name, kind="categorical", choices=values, when=when)

    def _numeric(self, kind: Literal["int", "float"], when: Condition | None) -> Parameter:
        field_kind = field_type(self.settings.fields[self.name])
        if field_kind.__name__ != kind:
            fitting = " or ".join(sorted({field_kind.__name__, "categorical"} & KEYS.keys()))
            raise self.place.error(
                f"{self.name} cannot be searched as {kind}; use type: {fitting}."
            )
        low, high = (self._number(bound, kind) for bound in ("low", "high"))
        written = self.entry.get("log", Plain("false"))
        log = read_boolean(written) if isinstance(written, Plain) else None
        if log is None:
            raise self._error(f"log must be true or false, but got {written!r}.")
        if low >= high:
            raise self._error(f"low must be below high, but got low={low}, high={high}.")
        if log and low <= 0:
            raise self._error(f"log requires low > 0, but got low={low}.")
        for bound in (low, high):
            self.settings.checked(self.place, self.name, bound)
        step = None
        if "step" in self.entry:
            step = self._number("step", kind)
            if log:
                raise self._error("log and step are mutually exclusive; remove one.")
            steps = (high - low) / step if step > 0 else 0.0
            if not 1 <= steps < float("inf") or abs(steps - round(steps)) > 1e-9 * steps:
                raise self._error(
                    f"high must be low plus a multiple of step, but got low={low}, "
                    f"high={high}, step={step}."
                )
        return Parameter(
            name=self.name, kind=kind, low=low, high=high, log=log, step=step, when=when
        )

    def _number(self, key: str, kind: str) -> Any:
        written: Any = self.entry.get(key)
        wanted = int if kind == "int" else float
        value = read_plain(written, wanted) if isinstance(written, Plain) else written
        if wanted is float and isinstance(value, int):
            value = float(value) if abs(value) <= LARGEST else math.inf
        if not isinstance(value, wanted) or not math.isfinite(value):
            words = "a whole number" if kind == "int" else "a number"
            hint = how_to_write(written, wanted)
            raise self._error(f"{key} must be {words}, but got {written!r}{hint}.")
        return value

    def _condition(self) -> Condition | None:
        """Return the other parameter and its values, checked against its setting."""
        if "when" not in self.entry:
            return None
        when, fields = self.entry["when"], self.settings.fields
        if not isinstance(when, dict) or len(when) != 1:
            raise self._error("when must look like {other_parameter: value}.")
        ((other, values),) = when.items()
        if other not in fields:
            raise self._error(f"when: there is no setting {other!r}{did_you_mean(other, fields)}")
        values = values if isinstance(values, list) else [values]
        if not values or None in values or any(isinstance(v, (dict, list)) for v in values):
            raise self._error(
                f"when: {other} needs a value, or a list of values, as in "
                f"{{{other}: value}} or {{{other}: [value, value]}}."
            )
        never = f"{self.name}: when: {other} is never %r in this space; "
        return other, tuple(
            self.settings.checked(self.place, other, value, never % value) for value in values
        )


def _order(
    path: Path,
    parameters: Mapping[str, Parameter],
    fixed: Mapping[str, Value],
    places: Mapping[str, Place],
    config_class: type[TrainConfig],
) -> list[Parameter]:
    """Sort parameters so that each follows the one it depends on; resolve fixed conditions."""
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
            elif other != name and fixed.get(other, default_of(fields[other])) in values:
                ordered[name] = dataclasses.replace(parameter, when=None)
            elif other != name:
                dropped.add(name)
            else:
                raise places[name].error(f"{name}: when: a parameter cannot depend on itself.")
        if len(waiting) == before:
            names = ", ".join(waiting)
            raise places[next(iter(waiting))].error(f"when: {names} depend on each other.")
    if not ordered:
        raise InputError(f"{path} leaves nothing to search; keep a parameter under `search`.")
    return list(ordered.values())
