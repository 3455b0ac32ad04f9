"""What a trial takes beside its training: one epoch on 64 images, in studies of 20 such trials.

    python tests/benchmarks/overhead.py
    python tests/benchmarks/overhead.py --repeats 1 --trials 12      # a minute

Everything counts that a study does: drawing hyperparameters, handing the trial to its process,
checkpoint, record, MLflow, figures. Two numbers per trial:

- to the command's end = (end of the command - end of the first trial - seconds of the other trials'
  epochs / trials at a time) / other trials. So what is left to do when the last trial has ended,
  figures and Ray's own end, is shared among the trials. This is the one with the limit.
- between trials = (end of the last trial - end of the third) / trials in between x trials at a time
  - seconds of the epoch itself.

The other side is Ray Tune with an actor that is used again, training the same and keeping nothing:
no search, no checkpoint, no record, no tracking.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contenders import environment, run_study, start_ray
from report import Report, out_parser

SPACE = """\
search:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  weight_decay: {type: float, low: 1.0e-7, high: 1.0e-3, log: true}
"""
SKIPPED = 3  # first trials, in which processes start and import


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bare", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        bare(*args.bare)
        return
    report = Report("overhead", args.out)
    ours: dict[int, list[float]] = {1: [], 2: []}
    left: dict[int, list[float]] = {1: [], 2: []}
    plain: dict[int, list[float]] = {1: [], 2: []}
    whole: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.repeats):
        for concurrent in (1, 2):
            all_of_it, overhead, end = study(args.trials, concurrent)
            whole[concurrent].append(all_of_it)
            ours[concurrent].append(overhead)
            left[concurrent].append(end)
            plain[concurrent].append(plain_tune(args.trials, concurrent))
    for concurrent in (1, 2):
        name = f"overhead per trial to the command's end, {concurrent} at a time, s"
        report.add(name, whole[concurrent], limit=1.0)
    for concurrent in (1, 2):
        name = f"overhead per trial between trials, {concurrent} at a time, s"
        report.add(name, ours[concurrent], plain[concurrent])
    for concurrent in (1, 2):
        report.add(f"from the last trial's end to the command's, {concurrent}, s", left[concurrent])
    report.note("against", "Ray Tune, actor used again, the same training and nothing kept")
    report.note("trials", args.trials)
    report.write()


def per_trial(ends: list[float], epoch_seconds: list[float], concurrent: int) -> float:
    """Return the overhead of a trial from when trials ended and how long their epochs took."""
    ends = sorted(ends)
    each = (ends[-1] - ends[SKIPPED - 1]) / (len(ends) - SKIPPED)
    return each * concurrent - sum(epoch_seconds) / len(epoch_seconds)


def study(trials: int, concurrent: int) -> tuple[float, float, float]:
    """Run a study; return both overheads per trial, and seconds from the last trial's end on."""
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        home = Path(folder)
        (home / "space.yaml").write_text(SPACE)
        run_study(
            "few",
            "--num-samples",
            trials,
            "--epochs",
            1,
            "--search-space",
            "space.yaml",
            "--cpus-per-worker",
            1,
            "--max-concurrent",
            concurrent,
            "--scheduler",
            "none",
            home=home,
        )
        done = time.time()
        files = (home / "studies" / "few" / "trials").glob("*/trial.json")
        rows = [json.loads(file.read_text())["history"][-1] for file in files]
    rows.sort(key=lambda row: row["ended"])
    ends, epochs = [row["ended"] for row in rows], [row["epoch_seconds"] for row in rows]
    assert len(ends) == trials
    whole = (done - ends[0] - sum(epochs[1:]) / concurrent) / (trials - 1)
    return whole, per_trial(ends, epochs, concurrent), done - ends[-1]


def plain_tune(trials: int, concurrent: int) -> float:
    """Return the overhead per trial of Ray Tune alone, run by a process of its own."""
    command = [sys.executable, __file__, "--bare", str(trials), str(concurrent)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    return per_trial([row[0] for row in rows], [row[1] for row in rows], concurrent)


def bare(trials: int, concurrent: int) -> None:
    """Train with Ray Tune alone; print when trials ended, and how long their epochs took."""
    start_ray()
    from ray import tune

    from study.datasets.source import DataSource

    source = DataSource.find()

    def train(config: dict[str, float]) -> None:
        import torch

        from study.task import build_config, load_task
        from study.training.loop import fit

        torch.set_num_threads(1)
        task = load_task("few")
        settings = build_config(task.config_class, {**config, "epochs": 1})
        for result in fit(task, settings, source):
            tune.report({**result.state["history"][-1], "done": True})

    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={
                "learning_rate": tune.loguniform(1e-4, 1e-2),
                "weight_decay": tune.loguniform(1e-7, 1e-3),
            },
            tune_config=tune.TuneConfig(
                num_samples=trials, max_concurrent_trials=concurrent, reuse_actors=True
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        results = tuner.fit()
    rows = [(result.metrics["ended"], result.metrics["epoch_seconds"]) for result in results]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
