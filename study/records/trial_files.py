"""The trials in a study's folder, damaged ones recovered from `optuna.db`."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from study.errors import DamagedFile, InputError
from study.records.optuna_recovery import recall_trials
from study.records.run_folder import RunFolder
from study.records.trial_record import TrialRecord
from study.storage.paths import AnyPath, ObjectPath, children


def run_folder(path: AnyPath, number: int) -> RunFolder:
    """Return the folder of a trial in a study's folder."""
    return RunFolder(path / "trials" / f"{number:04d}")


def load_trials(
    path: AnyPath, manifest: dict[str, Any], *, repair: bool
) -> tuple[list[TrialRecord], list[str]]:
    """Read the trials of a study; those with a damaged file are recovered from `optuna.db`.

    Args:
        path: The study's folder.
        manifest: The study's manifest.
        repair: Whether to rewrite such files, and to look for trials without a file.

    Returns:
        The trials by number, and the recovered damage as sentences.

    Raises:
        InputError: A file is damaged beyond recovery.
    """
    used = [int(folder.name) for folder in children(path / "trials") if _is_used(folder)]
    loaded = dict(enumerate(read_trials(path, max(used, default=-1) + 1)))
    found = {n: trial for n, trial in loaded.items() if isinstance(trial, TrialRecord)}
    damage = {n: error for n, error in loaded.items() if isinstance(error, DamagedFile)}
    repaired: list[str] = []
    if damage or repair:
        file = path / "optuna.db"
        for trial in recall_trials(file, manifest["metric"], manifest["mode"]):
            if trial.number not in found:
                folder = run_folder(path, trial.number)
                found[trial.number] = recalled = _with_metrics(trial, folder)
                why = damage.pop(trial.number, None) or DamagedFile(
                    f"{folder.path / 'trial.json'} is missing."
                )
                repaired.append(f"{why} Trial {trial.number} was recovered from {file}.")
                if repair:
                    recalled.save(folder.path)
    for left in damage.values():
        raise InputError(f"{left} This trial is not in optuna.db; restore the file from a backup.")
    return [found[number] for number in sorted(found)], repaired


def read_trials(path: AnyPath, num_trials: int) -> list[TrialRecord | DamagedFile]:
    """Return the first trials by number, with the error in place of one that is damaged."""

    def read(number: int) -> TrialRecord | DamagedFile:
        try:
            return TrialRecord.load(run_folder(path, number).path)
        except DamagedFile as error:
            return error

    with ThreadPoolExecutor(16 if isinstance(path, ObjectPath) else 1) as pool:
        return list(pool.map(read, range(num_trials)))


def _with_metrics(trial: TrialRecord, folder: RunFolder) -> TrialRecord:
    """Add the metrics in `metrics.json` to a trial from `optuna.db`, if they match."""
    try:
        rows = json.loads((folder.path / "metrics.json").read_bytes())
        whole = dataclasses.replace(trial, history=tuple(rows[: trial.epochs]))
        if whole.curve == trial.curve and whole.best == trial.best:
            return whole
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return trial  # the file is only for people and may be damaged
    return trial


def _is_used(folder: AnyPath) -> bool:
    """Return whether this is the folder of a trial that has begun."""
    return folder.name.isdigit() and (
        isinstance(folder, ObjectPath)
        or any(not file.name.startswith(".") for file in children(folder))
    )
