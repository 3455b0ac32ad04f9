"""A search space: searched parameters with their ranges, and the baseline (trial 0)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from study.config import Value
from study.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One searched hyperparameter; bounds are inclusive."""

    name: str
    kind: Literal["float", "int", "categorical"]
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: tuple[Value, ...] = ()
    when: tuple[str, tuple[Value, ...]] | None = None  # (other parameter, its values)

    def contains(self, value: Value) -> bool:
        """Return whether the value lies in the parameter's range or choices."""
        nearest = self.nearest(value)
        if isinstance(value, float) and isinstance(nearest, float):
            return math.isclose(nearest, value, rel_tol=1e-9)  # steps do not add up exactly
        return nearest == value

    def nearest(self, value: Value) -> Value:
        """Return the value of the space that is nearest to `value`."""
        if self.kind == "categorical":
            return value if value in self.choices else self.choices[0]
        if isinstance(value, str):
            return math.nan  # near nothing
        assert self.low is not None and self.high is not None
        clipped = min(max(value, self.low), self.high)
        if self.step:
            stepped = self.low + round((clipped - self.low) / self.step) * self.step
            clipped = min(stepped, self.high)  # 0.3 + 6 * 0.1 is a little more than 0.9
        return clipped

    def active(self, values: Mapping[str, Value]) -> bool:
        """Return whether the parameter is searched, given the values of the others."""
        return self.when is None or values.get(self.when[0]) in self.when[1]


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """Searched parameters and fixed settings.

    Attributes:
        parameters: Ordered so that a parameter follows the one it depends on.
        fixed: Settings of all trials.
        baseline: Values of trial 0, all inside the space.
    """

    parameters: tuple[Parameter, ...]
    fixed: dict[str, Value]
    baseline: dict[str, Value]

    def describe(self) -> dict[str, Any]:
        """Return the space as a JSON object; equal spaces give equal objects."""
        searched = {p.name: dataclasses.asdict(p) for p in self.parameters}
        return {"search": searched, "fixed": self.fixed, "baseline": self.baseline}

    def corners(self) -> Iterator[dict[str, Value]]:
        """Yield variants of trial 0 with one parameter at an end of its range, or at each choice.

        For a conditional parameter the others are set so that it is searched.
        """
        by_name = {parameter.name: parameter for parameter in self.parameters}
        for parameter in self.parameters:
            values = {**self.fixed, **self.baseline}
            needed = parameter
            while needed.when is not None:
                name, allowed = needed.when
                if values.get(name) not in allowed:
                    values[name] = allowed[0]
                needed = by_name[name]
            for end in parameter.choices or (parameter.low, parameter.high):
                assert end is not None
                yield {**values, parameter.name: end}

    @staticmethod
    def of(description: Mapping[str, Any]) -> SearchSpace:
        """Return the space from its description by `describe`, also after a round trip in JSON."""
        parameters = []
        for entry in description["search"].values():
            when = entry["when"]
            condition = (when[0], tuple(when[1])) if when else None
            known = {**entry, "choices": tuple(entry["choices"]), "when": condition}
            parameters.append(Parameter(**known))
        return SearchSpace(
            tuple(parameters), dict(description["fixed"]), dict(description["baseline"])
        )


def find_space(name: str) -> Path:
    """Return the file of a search space: a path, or the name of one shipped with study.

    Raises:
        InputError: There is no such file; the nearest name is suggested.
    """
    path = Path(name)
    if os.path.isfile(name):  # also safe for names that cannot be files
        return path
    if path.suffix.lower() in (".yaml", ".yml"):
        raise InputError(f"there is no search space {path}.")
    package = Path(str(resources.files("study")))
    # In a checkout that is not installed they are beside the package.
    for shipped in (package / "search_spaces", package.parent / "search_spaces"):
        if shipped.is_dir():
            known = [file.stem for file in shipped.glob("*.yaml")]
            if name in known:
                return shipped / f"{name}.yaml"
            raise InputError(f"there is no search space {name!r}{did_you_mean(name, known)}")
    raise InputError("the search spaces shipped with study are missing; reinstall it.")
