"""The log of the held-out test: which weights were scored, when, why and with what result.

studies/NAME/tests/TIME-ID.json   one file per opening of the split, so that no two commands write
                                  the same file, even on different machines; written before
                                  anything is scored, and updated with the scores
studies/NAME/tests.json           all openings in one file, for people; old studies have only this
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from study.errors import DamagedFile, InputError, StorageError
from study.formatting import metric_name, score, with_interval
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, now
from study.storage.files import read_document, write_document
from study.storage.paths import AnyPath, children
from study.task import Task

CONFIRMATIONS = "confirm"  # in a study's folder
EARLIEST = "1970-01-01T00:00:00+0000"


def study_folder(record: StudyRecord) -> AnyPath:
    """Return the folder of the study that a record belongs to, also for a confirmation."""
    return record.path.parent.parent if "confirms" in record.manifest else record.path


def folder_in_study(record: StudyRecord, trial: TrialRecord) -> str:
    """Return a trial's folder relative to the study's, as written in an opening."""
    path = record.run_folder(trial.number).path
    return str(path).removeprefix(f"{study_folder(record)}/")


def of_confirmation(opening: Mapping[str, Any]) -> bool:
    """Return whether an opening belongs to a confirmation, by the path of its folder."""
    return CONFIRMATIONS in PurePosixPath(opening.get("folder", "")).parts


def read_openings(folder: AnyPath) -> list[dict[str, Any]]:
    """Return all recorded openings of a study's test split, oldest first.

    One that was interrupted before it had scores has no `metrics`.

    Raises:
        InputError: A file is damaged.
    """
    together = folder / "tests.json"
    earlier = _read(together)["tests"] if together.exists() else []
    known = {one.get("id", place): one for place, one in enumerate(earlier)}
    # An opening's own file is newer than its entry in tests.json, which counts if the file is gone.
    known |= {opening["id"]: opening for opening in map(_read, _files(folder))}

    def order(opening: dict[str, Any]) -> tuple[float, str]:
        return _seconds(opening.get("time", EARLIEST)), opening.get("id", "")

    return sorted(known.values(), key=order)


def read_tests(folder: AnyPath) -> list[dict[str, Any]]:
    """Return the openings that have scores, oldest first.

    Raises:
        InputError: A file is damaged.
    """
    return [opening for opening in read_openings(folder) if "metrics" in opening]


def begin_opening(folder: AnyPath, about: Mapping[str, Any]) -> dict[str, Any]:
    """Record an opening of the test split before it takes place; return the opening.

    Args:
        folder: The study's folder.
        about: The weights and the purpose.

    Raises:
        StorageError: The opening cannot be recorded, so the split must not be opened.
    """
    who = {"host": socket.gethostname(), "pid": os.getpid()}
    own = f"{time.time_ns()}-{uuid.uuid4().hex[:6]}"  # sorts by time even within a second
    opening = {**about, "id": own, "time": now(), **who}
    try:
        (folder / "tests").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot create {folder / 'tests'} ({error.strerror}), so the test split stays closed."
        ) from None
    record_opening(folder, opening)
    return opening


def record_opening(folder: AnyPath, opening: Mapping[str, Any]) -> None:
    """Write an opening to its file, and all of them to `tests.json`.

    Raises:
        StorageError: It cannot be written.
    """
    stamp = "".join(c for c in opening["time"][:19] if c.isalnum())
    write_document(folder / "tests" / f"{stamp}-{opening['id']}.json", dict(opening))
    written: list[dict[str, Any]] = []
    # Reread after writing: the last writer has seen the files of all others.
    while (openings := read_openings(folder)) != written:
        write_document(folder / "tests.json", {"tests": openings}, shared=True)
        written = openings


def _files(folder: AnyPath) -> list[AnyPath]:
    return [path for path in children(folder / "tests") if path.name.endswith(".json")]


def _read(path: AnyPath) -> dict[str, Any]:
    try:
        return read_document(path)
    except DamagedFile as error:
        raise InputError(
            f"{error} It records which weights have been tested: restore it from a backup, or "
            "delete it and test again."
        ) from None


def _seconds(text: str) -> float:
    """Return a recorded time in seconds since 1970."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()


def result_of(task: Task, metric: str, test: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a test to log in MLflow.

    Of the per-class metrics only the task's own are logged, and their minimum only if it is the
    study's metric: MLflow's page is slow with more than 30 keys.

    Args:
        task: The task.
        metric: The study's metric, e.g. `val/mean_ap`.
        test: An entry of `tests.json`.
    """
    result = {}
    own, smallest = (f"test/{metric_name(metric)}", f"test/min_{task.class_metric}")
    for name, value in test["metrics"].items():
        split, kind, *label = name.split("/")
        known = (not label and name != smallest) or kind == task.class_metric or name == own
        if split == "test" and known:
            result[name] = value
    return result


def tags_of(test: Mapping[str, Any]) -> dict[str, str]:
    """Return the MLflow tags of a test: purpose, image size and interval."""
    tags = {"study.tested": test.get("why", "export"), "study.test_size": test["size"]}
    if test.get("forced"):
        tags["study.test_forced"] = "the trial had not ended"
    for name, (low, high) in test.get("intervals", {}).items():
        if name.startswith("test/"):
            tags["study.test_interval"] = f"{name} {score(low)} to {score(high)}"
    return tags


def describe_test(metric: str, test: Mapping[str, Any]) -> str:
    """Return a test as a line for people; `metric` is the study's, e.g. `val/mean_ap`."""
    if "metrics" not in test:
        return (
            f"the test split was opened for trial {test['trial']} at {test['time']} by a command "
            "that was interrupted before it had scores"
        )
    metric = metric_name(metric)
    names = [f"{split}/{metric}" for split in ("test", "val")]
    value, val = (test["metrics"][name] for name in names)
    texts = [
        with_interval(test["metrics"][name], test.get("intervals", {}).get(name)) for name in names
    ]
    brackets = " (brackets: 95 % CI, bootstrap)" if names[0] in test.get("intervals", {}) else ""
    opened = "evaluated once" if test.get("openings", 1) < 2 else f"opened {test['openings']} times"
    if test.get("forced"):
        opened += ", before the trial had ended"
    return (
        f"test ({opened}, {test['size']}): {metric} {texts[0]}; validation at the same size "
        f"{texts[1]}, gap {value - val:+.4f}{brackets}"
    )
