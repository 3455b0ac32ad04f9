"""Studies in MLflow whose records say that they trained: seconds, and no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from begun import begin
from mlflow.tracking import MlflowClient

from study import tune
from study.records.study_record import StudyRecord
from study.runner.plan import make_plan
from study.tune import build_parser, options_of

SPACE = "search:\n  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}\n"
KEYS = ("val/loss", "val/accuracy")


def flags(home: Path, name: str, num: int) -> list[str]:
    (home / "space.yaml").write_text(SPACE)
    return [
        "fashion",
        "--dataset",
        "sample",
        "--name",
        name,
        "--num-samples",
        str(num),
        "--epochs",
        "2",
        "--search-space",
        str(home / "space.yaml"),
        "--cpus-per-worker",
        "1",
        "--max-concurrent",
        "1",
        "--studies-dir",
        str(home / "studies"),
        "--tracking-uri",
        f"sqlite:///{home / 'mlflow.db'}",
    ]


def train(home: Path, name: str, num: int, more: Sequence[str] = ()) -> StudyRecord:
    """Have a study's record say that it trained so many trials."""
    plan = make_plan(options_of(build_parser().parse_args([*flags(home, name, num), *more])))
    uri = f"sqlite:///{home / 'mlflow.db'}"
    record = StudyRecord.create_or_continue(plan.folder, plan.manifest(), "command", uri=uri)
    while record.num_ended() < num:
        trial = begin(record)
        for epoch in (1, 2):
            values = dict.fromkeys(KEYS, 0.1 * epoch + 0.01 * trial.number)
            record.report(trial.number, {"epoch": epoch, "ended": 1e9 + epoch, **values})
        record.end(trial.number, "finished")
    record.close()
    return record


def extended(home: Path, name: str, num: int) -> StudyRecord:
    """Run a study's command after its trials were trained: all goes to MLflow."""
    record = train(home, name, num)
    assert tune.main(flags(home, name, num)) == 0
    return record


def client_of(home: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
