"""`tests.json`: which weights were scored on the closed split, when, why and with what result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.errors import DamagedFile, InputError
from study.files import read_document, write_document
from study.interval import shown
from study.object_path import AnyPath
from study.record import StudyRecord
from study.task import Task


def study_folder(record: StudyRecord) -> AnyPath:
    """Return the folder of the study, also of the record of its confirmation."""
    return record.path.parent.parent if "confirms" in record.manifest else record.path


def read_tests(folder: AnyPath) -> list[dict[str, Any]]:
    """Return what `tests.json` in a study's folder says, oldest first.

    Raises:
        InputError: It is damaged.
    """
    file = folder / "tests.json"
    try:
        tests: list[dict[str, Any]] = read_document(file)["tests"] if file.exists() else []
    except DamagedFile as error:
        raise InputError(
            f"{error} It says which weights were tested already: put it back from a backup, or "
            "delete it and test again."
        ) from None
    return tests


def write_tests(folder: AnyPath, tests: Sequence[Mapping[str, Any]]) -> None:
    """Write `tests.json` to a study's folder."""
    write_document(folder / "tests.json", {"tests": list(tests)})


def result_of(task: Task, metric: str, test: Mapping[str, Any]) -> dict[str, float]:
    """Return what MLflow keeps of a test: of the per-class metrics only the task's own.

    Nor the smallest of them, unless it is the study's metric: MLflow's page drags with more than
    30 keys.

    Args:
        task: The task.
        metric: The study's, e.g. `val/mean_ap`.
        test: Of `tests.json`.
    """
    result = {}
    own, smallest = (f"test/{metric.split('/', 1)[1]}", f"test/min_{task.class_metric}")
    for name, value in test["metrics"].items():
        split, kind, *label = name.split("/")
        known = (not label and name != smallest) or kind == task.class_metric or name == own
        if split == "test" and known:
            result[name] = value
    return result


def tags_of(test: Mapping[str, Any]) -> dict[str, str]:
    """Return what MLflow keeps of a test beside its scores: why, at which size, the interval."""
    tags = {"study.tested": test.get("why", "export"), "study.test_size": test["size"]}
    for name, (low, high) in test.get("intervals", {}).items():
        if name.startswith("test/"):
            tags["study.test_interval"] = f"{name} {low:.4f} to {high:.4f}"
    return tags


def describe_test(metric: str, test: Mapping[str, Any]) -> str:
    """Return the line on a test, for people; `metric` is the study's, e.g. `val/mean_ap`."""
    metric = metric.split("/", 1)[1]
    names = [f"{split}/{metric}" for split in ("test", "val")]
    value, val = (test["metrics"][name] for name in names)
    texts = [shown(test["metrics"][name], test.get("intervals", {}).get(name)) for name in names]
    brackets = " (in brackets: 95 %, bootstrap)" if names[0] in test.get("intervals", {}) else ""
    return (
        f"test (evaluated once, {test['size']}): {metric} {texts[0]}; validation at the same size "
        f"{texts[1]}, gap {value - val:+.4f}{brackets}"
    )
