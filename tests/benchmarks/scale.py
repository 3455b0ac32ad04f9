"""A thousand trials of ten reports each that learn nothing: ours, and plain Ray Tune.

    python tests/benchmarks/scale.py
    python tests/benchmarks/scale.py --trials 100          # two minutes
    python tests/benchmarks/scale.py --sides ours          # of ours, untracked, plain

Ours is `python -m study.tune` on a task of one number and one image, with everything that a study
does: checkpoint, record, Optuna's file, MLflow, figures. `untracked` is the same without MLflow and
figures. Plain Ray Tune has the same searcher over the same space and a trainable that returns a
number, its actor used again; it keeps no checkpoint and no results. Each is a command of its own,
timed from its start to its end; memory is the driver's resident set, looked at twice a second.

What the JSON file says of other sides, or of other numbers of trials, stays there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from contenders import finish, run, start_ray
from report import Report, out_parser

SPACE = """\
search:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  weight_decay: {type: float, low: 1.0e-7, high: 1.0e-3, log: true}
"""
CONCURRENT = 2
SIDES = ("ours", "untracked", "plain")
MEMORY_MIB = 1536  # the driver's limit
PART = 100  # trials at both ends whose speed is compared; of fewer than 500 a fifth


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--reports", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="they replace what the file has")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        bare(int(args.bare[0]), int(args.bare[1]), Path(args.bare[2]))
        return
    report = Report("scale", args.out)
    found: dict[str, Any] = {}
    if report.out.exists():
        found = json.loads(report.out.read_text())["notes"]["found"]
    size = f"{args.trials}x{args.reports}"
    for side in args.sides:
        found.setdefault(size, {})[side] = []
    for _ in range(args.repeats):
        for side in args.sides:
            found[size][side].append(measure(side, args.trials, args.reports))
            print(side, json.dumps(found[size][side][-1]), flush=True)
    for size, sides in found.items():
        for side, runs in sides.items():  # of a file from before there were repeats
            sides[side] = runs if isinstance(runs, list) else [runs]
        for side in [side for side in SIDES if side in sides]:
            add_rows(report, f"{size} {side}", sides[side], sides.get("plain"), side != "plain")
    report.note("at a time", CONCURRENT)
    report.note("goals", "a command within 1.3 times plain's, no memory that grows with reports")
    report.note("growth", "of the driver's memory over the second half of the trials, per report")
    report.note("found", found)
    report.write()


def add_rows(
    report: Report, name: str, runs: list[Any], plain: list[Any] | None, ours: bool
) -> None:
    """Add what was found of one side."""
    of = {key: [run[key] for run in runs] for key in runs[0]}
    for what, key in (("command", "command_s"), ("first to last trial's end", "trials_s")):
        against = [run[key] for run in plain] if plain and ours else []
        goal = 1 / 1.3 if key == "command_s" and ours else None
        report.add(f"{name}: {what}, s", of[key], against, reach=goal)
    limits = (1.3, MEMORY_MIB) if ours else (None, None)
    report.add(f"{name}: last trials' time / first ones'", of["slowdown"], limit=limits[0])
    report.add(f"{name}: driver's memory, most, MiB", of["peak_mib"], limit=limits[1])
    report.add(f"{name}: its growth per report, KiB", of["kib_per_report"])


def measure(side: str, trials: int, reports: int) -> dict[str, float]:
    """Run a side; return its times in seconds and the driver's memory."""
    import os

    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        home = Path(folder)
        (home / "space.yaml").write_text(SPACE)
        os.environ.pop("EMPTY_UNTRACKED", None)
        if side == "untracked":
            os.environ["EMPTY_UNTRACKED"] = "1"
        began = time.time()
        if side == "plain":
            command = (__file__, "--bare", trials, reports, home / "ends.json")
        else:
            command = (
                "-m",
                "study.tune",
                "empty",
                "--num-samples",
                trials,
                "--epochs",
                reports,
                "--search-space",
                "space.yaml",
                "--scheduler",
                "none",
                "--cpus-per-worker",
                1,
                "--max-concurrent",
                CONCURRENT,
            )
        process = run(*command, home=home, background=True)
        memory: list[tuple[float, float]] = []
        watching = threading.Thread(target=watch, args=(process, memory))
        watching.start()
        finish(process, home)
        done = time.time()
        watching.join()
        if side == "plain":
            ends = sorted(json.loads((home / "ends.json").read_text()))
        else:
            files = (home / "studies" / "empty" / "trials").glob("*/trial.json")
            records = [json.loads(file.read_text()) for file in files]
            assert all(len(record["history"]) == reports for record in records)
            ends = sorted(record["history"][-1]["ended"] for record in records)
            if "tracking is not complete" in (home / "output").read_text(errors="replace"):
                print("MLflow was not complete when the command ended", flush=True)
    assert len(ends) == trials
    part = PART if trials >= 5 * PART else trials // 5
    middle = ends[trials // 2]
    halfway = min(memory, key=lambda sample: abs(sample[0] - middle))[1]
    at_end = min(memory, key=lambda sample: abs(sample[0] - ends[-1]))[1]
    return {
        "command_s": done - began,
        "trials_s": ends[-1] - ends[0],
        "after_last_s": done - ends[-1],
        "first_s": ends[part - 1] - ends[0],
        "last_s": ends[-1] - ends[-part],
        "slowdown": (ends[-1] - ends[-part]) / (ends[part - 1] - ends[0]),
        "peak_mib": max(mib for _, mib in memory),
        "kib_per_report": 1024 * (at_end - halfway) / (reports * (trials - trials // 2)),
        "memory_mib": [round(mib, 1) for _, mib in memory[:: max(1, len(memory) // 20)]],
    }


def watch(process: Any, memory: list[tuple[float, float]]) -> None:
    """Note the time and the resident set of a process, in MiB, until it ends."""
    while process.poll() is None:
        text = Path(f"/proc/{process.pid}/status").read_text()
        for line in text.splitlines():
            if line.startswith("VmRSS"):
                memory.append((time.time(), int(line.split()[1]) / 1024))
        time.sleep(0.5)


def bare(trials: int, reports: int, out: Path) -> None:
    """Run as many reports with Ray Tune alone; write when trials ended."""
    start_ray()
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    from study.search.sampler import tpe

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    class Nothing(tune.Trainable):
        """Returns the same scores as the task `empty`."""

        def setup(self, config: dict[str, Any]) -> None:
            far = math.log10(config["learning_rate"]) + 3, math.log10(config["weight_decay"]) + 5
            self.score = -math.hypot(*far)
            self.epoch = 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            self.epoch += 1
            return {"score": self.score, "ended": time.time(), "done": self.epoch >= reports}

    space = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "weight_decay": optuna.distributions.FloatDistribution(1e-7, 1e-3, log=True),
    }
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(Nothing, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                num_samples=trials,
                search_alg=OptunaSearch(
                    space,
                    metric="score",
                    mode="max",
                    sampler=tpe(0),
                ),
                max_concurrent_trials=CONCURRENT,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        results = tuner.fit()
    out.write_text(json.dumps([result.metrics["ended"] for result in results if result.metrics]))


if __name__ == "__main__":
    main()
