"""`study.json`: the identity of a study, and whether a command refers to the same one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from study.errors import DamagedFile, InputError, did_you_mean
from study.objective import OPTIONAL
from study.records.command_text import options_of
from study.records.lineage import first_place, name_of
from study.records.optuna_recovery import recall_manifest
from study.search_space import SearchSpace
from study.storage.files import read_document, write_document
from study.storage.paths import AnyPath, children, modified
from study.system.redaction import redacted

logger = logging.getLogger(__name__)

# Version of the metrics' definitions, `metrics_version` in the manifest (1 if absent), and the
# metrics whose meaning changed in each version.
METRICS_VERSION = 2
CHANGED = {2: ("val/loss",)}  # before, each trial's own training loss: smoothed, weighted, mixed

# Fields that must match for trials to belong to one study.
IDENTITY = ("task", "dataset", "checksum", "metric", "mode", "epochs", "seed", "sampler", "space")


def read_manifest(path: AnyPath) -> dict[str, Any]:
    """Read the manifest in a study's folder, from `optuna.db` if `study.json` is damaged.

    The study takes the name of its folder, even after the folder was renamed or copied.

    Raises:
        InputError: There is no manifest, or both files are damaged.
    """
    file = path / "study.json"
    if not file.exists() and not (path / "optuna.db").exists():
        raise InputError(f"there is no study in {path}.")
    try:
        manifest = read_document(file)
    except DamagedFile as error:
        recalled = recall_manifest(path / "optuna.db")
        if recalled is None:
            raise InputError(
                f"{error} Restore it from a backup, or choose another --name."
            ) from None
        logger.warning("%s Its content was recovered from optuna.db.", error)
        manifest = recalled
    for start in manifest.get("starts", []):  # old studies kept commands unmasked
        start["command"] = redacted(start["command"])
        if "options" not in start:  # old studies did not keep them
            options = options_of(start["command"])
            start["options"] = None if options is None else options.describe()
    missing = [key for key in (*IDENTITY, "study", "settings", "id") if key not in manifest]
    if missing:
        raise InputError(f"{file} is corrupted: {', '.join(missing)} missing.")
    manifest.setdefault("place", first_place(path, manifest))
    manifest["study"] = name_of(path, manifest)
    return manifest


def write_manifest(path: AnyPath, manifest: dict[str, Any]) -> None:
    """Write the manifest to a study's folder."""
    write_document(path / "study.json", manifest)


def space_of(manifest: dict[str, Any]) -> SearchSpace:
    """Return the search space in a manifest."""
    return SearchSpace.of(manifest["space"])


def changed_metrics(manifest: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Return the given metrics whose definition has changed since this study was created."""
    known = manifest.get("metrics_version", 1)
    changed = {name for version, some in CHANGED.items() if version > known for name in some}
    return sorted(changed.intersection(names))


def find_study(studies_dir: AnyPath, name: str | None) -> AnyPath:
    """Return the folder of a study by name, or of the one last run.

    Raises:
        InputError: There is none; the nearest name is suggested.
    """
    found = {
        folder.name: file
        for folder in children(studies_dir)
        for kind in ("optuna.db", "study.json")  # the second is the one that counts
        if (file := folder / kind).exists()
    }
    if not found:
        raise InputError(
            f"there is no study in {studies_dir}; start one with `python -m study.tune "
            "TASK`, or name the folder with --studies-dir."
        )
    if name is None:
        name = max(found, key=lambda known: modified(found[known]))
    if name not in found:
        raise InputError(f"there is no study {name!r} in {studies_dir}{did_you_mean(name, found)}")
    return studies_dir / name


def refuse_other_data(
    manifest: Mapping[str, Any], identity: Mapping[str, Any], place: Path
) -> None:
    """Check that a data set is the one a study uses.

    Args:
        manifest: The study's manifest.
        identity: The data set's identity.
        place: The data set's folder, for the message.

    Raises:
        InputError: The checksums differ.
    """
    if identity["checksum"] != manifest["checksum"]:
        raise InputError(
            f"the data set in {place} is not the one this study uses (checksum mismatch); set the "
            "right folder with --data-dir."
        )


def refuse_other_study(path: AnyPath, known: dict[str, Any], asked: dict[str, Any]) -> None:
    """Check that a command refers to the study in this folder.

    Raises:
        InputError: It does not; the message says what differs.
    """
    ways = (
        "Use the study's settings, or start a new study with another --name (add "
        f"--warm-start-from {path.name} to reuse what this one found)."
    )
    where = f"the study {path.name!r} in {path.parent}"
    for key in (*IDENTITY, *OPTIONAL):
        if known.get(key) != asked.get(key):
            before, now = (json.dumps(said.get(key, "none")) for said in (known, asked))
            if key == "space":
                before, now = _differences(known[key], asked[key])
            raise InputError(
                f"{where} was created with {key}={before}; this command asks for {key}={now}. "
                f"{ways}"
            )
    before, now = (manifest.get("warm_start", {}).get("from") for manifest in (known, asked))
    if now is not None and now != before:
        raise InputError(
            f"{where} was not created with --warm-start-from {now}, and only a new study can be "
            "warm-started. Drop the flag, or choose another --name."
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, str]:
    """Return the entries that differ between two search spaces."""
    texts: tuple[list[str], list[str]] = ([], [])
    for section in ("search", "fixed", "baseline"):
        for name in sorted(before[section].keys() | now[section].keys()):
            pair = [space[section].get(name, "absent") for space in (before, now)]
            if pair[0] != pair[1]:
                for text, entry in zip(texts, pair, strict=True):
                    text.append(f"{name}: {json.dumps(entry)}")
    return "; ".join(texts[0]), "; ".join(texts[1])
