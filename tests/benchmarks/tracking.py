"""What tracking costs: a report of 15 metrics, ours and by Ray's callback, and a study's share.

    python tests/benchmarks/tracking.py
    python tests/benchmarks/tracking.py --trials 6      # of the study on the full Fashion-MNIST

Both write reports to a SQLite store of their own, in turns. Ours is what `StudyTracker` calls for
an epoch, one batch; Ray's is `MLflowLoggerCallback.log_trial_result`, with the same metrics alone.

The share is the CPU time of the driver's tracking thread and of the process that draws figures, its
imports included, in the wall time of a study of trials of two epochs, two at a time with one thread
each. What the driver takes to import MLflow and make the store, while Ray starts, is not in it;
`startup.py` measures that.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import run
from ray.air.integrations.mlflow import MLflowLoggerCallback
from report import Report, median, out_parser

from study.tracking.store import connect, ensure_experiment, log_history

NAMES = ["train/loss", "train/accuracy", "val/loss", "val/accuracy", "epoch_seconds"]
NAMES += [f"val/accuracy/{number}" for number in range(10)]
SPACE = """\
search:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  width1: {type: int, low: 4, high: 16, log: true}
  width2: {type: int, low: 4, high: 16, log: true}
baseline: {width1: 8, width2: 8}
"""


class OneTrial:
    """What the callback asks of a Tune trial."""

    config = {"learning_rate": 1e-3}

    def __str__(self) -> str:
        return "trial"


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--reports", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3, help="of the study, too")
    parser.add_argument("--trials", type=int, default=12, help="of the study; 0: no study")
    parser.add_argument("--study", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.study:
        sys.exit(timed_study(args.study))
    ours: list[float] = []
    against: list[float] = []
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        uri = f"sqlite:///{Path(folder) / 'ours.db'}"
        client = connect(uri)
        run_id = client.create_run(ensure_experiment(client, uri, "ours")).info.run_id
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
                log_history(client, run_id, [{"epoch": step, "ended": time.time(), **metrics}])
                middle = time.perf_counter()
                result = {**metrics, "training_iteration": step}
                callback.log_trial_result(step, trial, result)
                mine.append(middle - started)
                rays.append(time.perf_counter() - middle)
            ours.append(1000 * median(mine))
            against.append(1000 * median(rays))
    report = Report("tracking", args.out)
    report.add(f"a report of {len(NAMES)} metrics, ms", ours, against, reach=5.0)
    if args.trials:
        runs = [study(args.trials) for _ in range(args.repeats)]
        shares = [100 * (thread + figures) / wall for thread, figures, wall in runs]
        report.add("tracking's part of a study's wall time, %", shares, limit=2.0)
        threads = [100 * thread / wall for thread, _, wall in runs]
        report.add("of it the driver's thread, which training may wait for, %", threads)
        found = [dict(zip(("thread s", "figures s", "wall s"), run, strict=True)) for run in runs]
        report.note("studies", {"trials": args.trials, "runs": found})
    report.note("reports per repeat", args.reports)
    report.note("against", "MLflowLoggerCallback, which also logs training_iteration")
    report.write()


def study(trials: int) -> tuple[float, float, float]:
    """Run a study on the full set; return seconds: CPU of tracking, CPU of figures, wall time."""
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        home = Path(folder)
        (home / "space.yaml").write_text(SPACE)
        started = time.perf_counter()
        run(
            __file__,
            "--study",
            "fashion",
            "--num-samples",
            trials,
            "--epochs",
            2,
            "--search-space",
            "space.yaml",
            "--cpus-per-worker",
            1,
            "--max-concurrent",
            2,
            "--scheduler",
            "none",
            home=home,
        )
        wall = time.perf_counter() - started
        thread, figures = json.loads((home / "tracking.json").read_text())
    return thread, figures, wall


def timed_study(argv: list[str]) -> int:
    """Run `study.tune` in this process; leave the CPU seconds of its tracking in a file."""
    import psutil

    from study import tune
    from study.tracking.figure_worker import Drawing

    close = Drawing.close

    def timed(self: Drawing) -> None:  # the tracking thread's last act
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        found = [time.thread_time(), times.user + times.system]
        Path("tracking.json").write_text(json.dumps(found))
        close(self)

    Drawing.close = timed  # type: ignore[method-assign]
    return tune.main(argv)


if __name__ == "__main__":
    main()
