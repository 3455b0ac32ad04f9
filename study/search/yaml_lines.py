"""YAML files read with the line of every key, so that errors can name it.

Unquoted scalars are kept as written (`Plain`): whether `no`, `1e-3` or `2026-11-26` is a string, a
number or a boolean depends on the setting, not on YAML. Size, depth and the expansion of aliases
are limited, so a small file cannot exhaust memory.
"""

from __future__ import annotations

import codecs
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from study.config import Plain
from study.errors import InputError, did_you_mean

MOST_BYTES = 100_000
MOST_NODES = 10_000  # with aliases expanded
MOST_LEVELS = 20
NOTHING = ("", "~", "null", "Null", "NULL")
MERGE = "tag:yaml.org,2002:merge"
ENCODINGS = {  # by byte order mark
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A line of a file."""

    path: Path
    line: int  # from 1

    def error(self, message: str) -> InputError:
        """Return the error that names this place."""
        return InputError(f"{self.path}, line {self.line}: {message}")


Section = dict[str, tuple[Place, Any]]  # key -> its place and value


def read_sections(path: Path, names: Sequence[str]) -> dict[str, Section]:
    """Read a file of sections, each a mapping; absent sections are empty.

    Raises:
        InputError: The file cannot be read, is not YAML, is too large, or has an unknown or
            repeated key.
    """
    text = _text(path)
    try:
        _check_events(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise _mistake(path, text, error) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Place(path, line).error(
            f"this is not valid YAML (unprintable character {error.character:#x})."
        ) from None
    except yaml.YAMLError as error:
        raise InputError(
            f"{path}: this is not valid YAML ({' '.join(str(error).split())})."
        ) from None
    _check_growth(path, root, {})
    sections: dict[str, Section] = {name: {} for name in names}
    for name, (place, node) in _entries(root, Place(path, 1)).items():
        if name not in sections:
            raise place.error(f"there is no section {name!r}{did_you_mean(name, names)}")
        entries = {} if _is_nothing(node) else _entries(node, place)
        sections[name] = {
            key: (where, _value(item, where)) for key, (where, item) in entries.items()
        }
    return sections


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise InputError(f"{path} is not a search space: larger than {MOST_BYTES:,} bytes.")
        known = (name for mark, name in ENCODINGS.items() if content.startswith(mark))
        return content.decode(next(known, "utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read ({error}); save it as UTF-8.") from None


def _check_events(path: Path, text: str) -> None:
    """Reject tags, and nesting deep enough to exhaust recursion."""
    level = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        place = Place(path, event.start_mark.line + 1)
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            if level > MOST_LEVELS:
                raise place.error(f"nested more than {MOST_LEVELS} levels deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
        if getattr(event, "tag", None) not in (None, "!"):
            raise place.error(f"the tag {event.tag!r} is not supported; remove it.")


def _check_growth(path: Path, node: Any, known: dict[int, tuple[int, int] | None]) -> None:
    """Reject aliases that contain themselves or expand beyond any reasonable search space.

    Args:
        path: The file.
        node: Part of it.
        known: Size and depth of nodes with aliases expanded, by the node's identity; None for one
            being counted.
    """
    if node is None or id(node) in known:
        if node is not None and known[id(node)] is None:
            raise Place(path, node.start_mark.line + 1).error("this anchor contains itself.")
        return
    known[id(node)] = None
    children: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size, depth = 1, 0
    for child in children:
        _check_growth(path, child, known)
        counted = known[id(child)]
        assert counted is not None
        size, depth = size + counted[0], max(depth, counted[1])
    if size > MOST_NODES or depth >= MOST_LEVELS:
        raise Place(path, node.start_mark.line + 1).error(
            f"its aliases expand to more than {MOST_NODES:,} values or {MOST_LEVELS} levels; "
            "use fewer aliases."
        )
    known[id(node)] = size, depth + 1


def _mistake(path: Path, text: str, error: yaml.MarkedYAMLError) -> InputError:
    mark = error.problem_mark or error.context_mark
    place = Place(path, mark.line + 1 if mark else 1)
    if mark is not None:
        line = text[: mark.index].rpartition("\n")[2] + text[mark.index :].partition("\n")[0]
        if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in str(error.problem):
            return place.error("this is not valid YAML (a tab); indent with spaces.")
    return place.error(f"this is not valid YAML ({error.problem}).")


def _is_nothing(node: Any) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NOTHING


def _entries(node: Any, place: Place) -> dict[str, tuple[Place, yaml.Node]]:
    """Return a mapping's entries by key; its own override those of merged mappings (`<<`)."""
    if not isinstance(node, yaml.MappingNode):
        raise place.error("expected `name: value` lines here.")
    entries: dict[str, tuple[Place, yaml.Node]] = {}
    merged: dict[str, tuple[Place, yaml.Node]] = {}
    for key, value in node.value:
        where = Place(place.path, key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise where.error("a name must be a plain word.")
        if key.tag == MERGE:
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(part, yaml.MappingNode):
                    raise where.error("`<<` takes an anchor's `name: value` pairs, as in `<<: *a`.")
                merged = {**_entries(part, where), **merged}
            continue
        if key.value in entries:
            first = entries[key.value][0].line
            raise where.error(f"{key.value!r} is defined twice, first on line {first}; remove one.")
        entries[key.value] = (where, value)
    return {**merged, **entries}


def _value(node: Any, place: Place) -> Any:
    """Return a node as a dict, a list, None, a `Plain`, or a string if quoted."""
    if isinstance(node, yaml.MappingNode):
        return {key: _value(item, where) for key, (where, item) in _entries(node, place).items()}
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, place) for item in node.value]
    if _is_nothing(node):
        return None
    return Plain(node.value) if node.style is None else node.value
