"""`study.json`: what a study is, and whether another command means the same study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from study.errors import InputError
from study.task import did_you_mean

# What must be the same for trials to belong to one study.
IDENTITY = ("task", "dataset", "checksum", "metric", "mode", "epochs", "seed", "space")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest in a study's folder.

    Raises:
        InputError: There is none, or it is damaged.
    """
    file = path / "study.json"
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        missing = [key for key in (*IDENTITY, "study", "settings") if key not in manifest]
    except FileNotFoundError:
        raise InputError(f"there is no study in {path}.") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged ({error}).") from None
    if missing:
        raise InputError(f"{file} is damaged: it does not say {', '.join(missing)}.")
    return manifest


def find_study(studies_dir: Path, name: str | None) -> Path:
    """Return the folder of a study by name, or of the one last run.

    Raises:
        InputError: There is none; the nearest name is suggested.
    """
    found = {file.parent.name: file for file in studies_dir.glob("*/study.json")}
    if not found:
        raise InputError(
            f"there is no study in {studies_dir.absolute()}; start one with `python -m study.tune "
            "TASK`, or name the folder with --studies-dir."
        )
    if name is None:
        name = max(found, key=lambda known: found[known].stat().st_mtime)
    if name not in found:
        raise InputError(f"there is no study {name!r} in {studies_dir}{did_you_mean(name, found)}")
    return studies_dir.absolute() / name


def refuse_other_study(path: Path, known: dict[str, Any], asked: dict[str, Any]) -> None:
    """Make sure that a command means the study in this folder.

    Raises:
        InputError: It does not; the message says what differs.
    """
    for key in IDENTITY:
        if known[key] != asked[key]:
            before, now = json.dumps(known[key]), json.dumps(asked[key])
            if key == "space":
                before, now = _differences(known[key], asked[key])
            raise InputError(
                f"the study {path.name!r} in {path.parent} has another {key}: {before} there, "
                f"{now} asked for. Give the new study another --name, or the old study's settings."
            )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """Return the entries of two search spaces that differ."""
    texts: tuple[list[str], list[str]] = ([], [])
    for section in ("search", "fixed"):
        for name in sorted(before[section].keys() | now[section].keys()):
            pair = [space[section].get(name, "absent") for space in (before, now)]
            if pair[0] != pair[1]:
                for text, entry in zip(texts, pair, strict=True):
                    text.append(f"{name}: {json.dumps(entry)}")
    return "; ".join(texts[0]), "; ".join(texts[1])
