"""YAML files read with the line of every key, so that an error can name it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from study.errors import InputError
from study.task import did_you_mean

# YAML 1.1 reads 1e-4 as text, because it wants 1.0e-4; people mean a number.
FLOAT_WITHOUT_POINT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+")


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of a file."""

    path: Path
    line: int  # from 1

    def error(self, message: str) -> InputError:
        """Return the error that names this place."""
        return InputError(f"{self.path}, line {self.line}: {message}")


Section = dict[str, tuple[Place, Any]]  # key -> where it stands, and its value


def read_sections(path: Path, names: Sequence[str]) -> dict[str, Section]:
    """Read a file of sections, each a mapping; a section that is absent is empty.

    Raises:
        InputError: The file cannot be read, is not YAML, or has an unknown or repeated key.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Place(path, line).error(f"this is not YAML ({error.problem}).") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: this is not YAML ({error}).") from None
    try:
        return _sections(root, path, names)
    except RecursionError:
        raise InputError(f"{path}: an anchor contains itself.") from None


def _sections(root: Any, path: Path, names: Sequence[str]) -> dict[str, Section]:
    sections: dict[str, Section] = {name: {} for name in names}
    for name, (place, node) in _entries(root, Place(path, 1)).items():
        if name not in sections:
            raise place.error(f"there is no section {name!r}{did_you_mean(name, names)}")
        empty = isinstance(node, yaml.ScalarNode) and node.value in ("", "~", "null")
        entries = {} if empty else _entries(node, place)
        sections[name] = {
            key: (where, _value(item, where)) for key, (where, item) in entries.items()
        }
    return sections


def _entries(node: Any, place: Place) -> dict[str, tuple[Place, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise place.error("expected `name: value` lines here.")
    entries: dict[str, tuple[Place, yaml.Node]] = {}
    for key, value in node.value:
        where = Place(place.path, key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise where.error("a name must be a word.")
        if key.value in entries:
            raise where.error(f"{key.value!r} stands here twice.")
        entries[key.value] = (where, value)
    return entries


def _value(node: Any, place: Place) -> Any:
    """Return the plain value of a node."""
    if isinstance(node, yaml.MappingNode):
        return {key: _value(item, where) for key, (where, item) in _entries(node, place).items()}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, place) for item in node.value]
    if node.style is None and FLOAT_WITHOUT_POINT.fullmatch(node.value):
        return float(node.value)
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise place.error(f"{node.value!r} cannot be read ({error}).") from None
    finally:
        loader.dispose()
