"""Seconds that a report of 15 metrics takes on its way to MLflow, ours and Ray's callback.

    python tests/benchmarks/tracking.py

Both write to a SQLite store of their own, in turns. Ours is what `StudyTracker` calls for an epoch,
one batch; Ray's is `MLflowLoggerCallback.log_trial_result`, with the same metrics alone.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from ray.air.integrations.mlflow import MLflowLoggerCallback
from report import Report, median, out_parser

from study.tracking_store import connect, experiment_id, log_metrics

NAMES = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "epoch_seconds"]
NAMES += [f"val/accuracy/{number}" for number in range(10)]


class OneTrial:
    """What the callback asks of a Tune trial."""

    config = {"learning_rate": 1e-3}

    def __str__(self) -> str:
        return "trial"


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--reports", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    ours: list[float] = []
    against: list[float] = []
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        uri = f"sqlite:///{Path(folder) / 'ours.db'}"
        client = connect(uri)
        run_id = client.create_run(experiment_id(client, uri, "ours")).info.run_id
        trial: Any = OneTrial()
        callback = MLflowLoggerCallback(
            f"sqlite:///{Path(folder) / 'ray.db'}", experiment_name="ray"
        )
        callback.setup()
        callback.log_trial_start(trial)
        step = 0
        for _ in range(args.repeats):
            mine, rays = [], []
            for _ in range(args.reports):
                step += 1
                metrics = {name: 0.5 + step / 1000 for name in NAMES}
                started = time.perf_counter()
                log_metrics(client, run_id, step, metrics, time.time())
                middle = time.perf_counter()
                result = {**metrics, "training_iteration": step}
                callback.log_trial_result(step, trial, result)
                mine.append(middle - started)
                rays.append(time.perf_counter() - middle)
            ours.append(1000 * median(mine))
            against.append(1000 * median(rays))
    report = Report("tracking", args.out)
    report.add(f"a report of {len(NAMES)} metrics, ms", ours, against, reach=5.0)
    report.note("reports per repeat", args.reports)
    report.note("against", "MLflowLoggerCallback, which also logs training_iteration")
    report.write()


if __name__ == "__main__":
    main()
