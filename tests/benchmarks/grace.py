"""How long a falling learning rate hides who will win: when early stopping may begin.

    python tests/benchmarks/grace.py                                  # an hour on two cores
    python tests/benchmarks/grace.py --tasks fashion --configurations 8

Random configurations of small baselines are trained to the end with a schedule, on the cheap part
of the data that `curves.py` takes. Then random searches are replayed over their curves, in many
orders, two trials at a time, until a budget of so many full trainings is spent: without early
stopping, or with ASHA after a grace period. What counts is how far the best of what was found is
from the best of all.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import multiprocessing
import time
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from curves import NUM_TRAIN, NUM_VAL, part_of
from report import Report, out_parser

from study.datasets.source import DataSource, Splits
from study.search.asha import Rungs
from study.task import Task, build_config, load_task
from study.training.loop import fit

EPOCHS = 20
FACTOR = 3.0
GRACES = (2, 4, 6, 8, 10, 12, 14, 16)
TRIALS = (4, 8)  # budgets, in full trainings
ORDERS = 2000
CONCURRENT = 2
FIXED: dict[str, dict[str, Any]] = {
    "fashion": {"kernel_size": 3, "hidden": 64, "batch_norm": True, "flip": 0.5, "shift": 0.072},
    "facade": {"image_size": 64, "last_relu": False, "flip": 0.5},
}


def configurations(task: str, num: int) -> list[dict[str, Any]]:
    """Return random settings: learning rate, decay and widths."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num):
        values: dict[str, Any] = {
            "learning_rate": float(np.exp(rng.uniform(np.log(5e-4), np.log(2e-2)))),
            "weight_decay": float(np.exp(rng.uniform(np.log(1e-6), np.log(1e-3)))),
        }
        if task == "fashion":
            values["dropout"] = float(rng.uniform(0, 0.4))
            values |= {"width1": int(rng.integers(8, 25)), "width2": int(rng.integers(16, 49))}
        else:
            width = int(rng.integers(4, 13))
            values |= {f"width{n}": width * k for n, k in enumerate((1, 2, 4, 2, 1), 1)}
        found.append({**FIXED[task], **values})
    return found


def small(task: Task) -> Task:
    """Return the task on the part of its data that `curves.py` takes."""
    whole = task.load_splits

    def load_splits(source: DataSource, config: Any) -> Splits:
        splits = whole(source, config)
        return Splits(part_of(splits.train, NUM_TRAIN), part_of(splits.val, NUM_VAL))

    task = copy.copy(task)
    task.load_splits = load_splits  # type: ignore[method-assign]
    return task


def curve(job: tuple[str, str, dict[str, Any]]) -> list[float]:
    """Train a configuration; return its metric after each epoch."""
    name, schedule, values = job
    torch.set_num_threads(1)
    task = load_task(name)
    config = build_config(task.config_class, {**values, "schedule": schedule, "epochs": EPOCHS})
    results = fit(small(task), config, DataSource.find())
    return [result.metrics[task.metric] for result in results]


def search(curves: Sequence[Sequence[float]], grace: int | None, budget: int) -> float:
    """Return the best value that a random search sees in so many epochs."""
    rungs = None if grace is None else Rungs(grace, EPOCHS, FACTOR)
    waiting = iter(range(len(curves)))
    running: list[list[int]] = []
    best, spent = 0.0, 0
    while True:
        running += [[number, 0] for number in itertools.islice(waiting, CONCURRENT - len(running))]
        if not running:
            return best
        for one in list(running):
            number, epoch = one
            value = curves[number][epoch]
            best, spent, one[1] = max(best, value), spent + 1, epoch + 1
            if spent == budget:
                return best
            stops = rungs is not None and not rungs.goes_on(number, one[1], (value,))
            if stops or one[1] == EPOCHS:
                running.remove(one)


def agreement(curves: np.ndarray, epoch: int) -> float:
    """Return the share of pairs that stand after an epoch as they do by their best in the end."""
    now, then = curves[:, epoch - 1], curves.max(axis=1)
    pairs = list(itertools.combinations(range(len(curves)), 2))
    return mean(float((now[a] - now[b]) * (then[a] - then[b]) > 0) for a, b in pairs)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, then replay."""
    parser: argparse.ArgumentParser = out_parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=["fashion", "facade"], choices=list(FIXED))
    parser.add_argument("--schedules", nargs="+", default=["one_cycle", "constant"])
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    report = Report("grace", args.out)
    began = time.monotonic()
    for task in args.tasks:
        load_task(task).identity(DataSource.find())  # the cache, once
    jobs = [
        (task, schedule, values)
        for task in args.tasks
        for schedule in args.schedules
        for values in configurations(task, args.configurations)
    ]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        trained = pool.map(curve, jobs, chunksize=1)
    report.note("seconds of training", time.monotonic() - began)
    for task, schedule in itertools.product(args.tasks, args.schedules):
        picked = zip(jobs, trained, strict=True)
        curves = np.array([found for job, found in picked if job[:2] == (task, schedule)])
        report.note(f"{task}, {schedule}: curves", curves.round(4).tolist())
        shares = {epoch: round(agreement(curves, epoch), 3) for epoch in range(1, EPOCHS + 1)}
        report.note(f"{task}, {schedule}: pairs in their final order", shares)
        rng = np.random.default_rng(0)
        orders = [curves[rng.permutation(len(curves))] for _ in range(ORDERS)]
        for trials in TRIALS:
            full = None
            for grace in (None, *GRACES):
                found = [search(order, grace, trials * EPOCHS) for order in orders]
                missed = [float(curves.max()) - best for best in found]
                full = full or mean(missed)
                name = "no stopping" if grace is None else f"ASHA from epoch {grace}"
                what = f"{task}, {schedule}, {trials} trainings' epochs, {name}; best missed by"
                report.add(what, mean(missed), full)
            report.note(
                f"{task}, {schedule}, {trials}: error of a mean", stdev(missed) / ORDERS**0.5
            )
    report.write()


if __name__ == "__main__":
    main()
