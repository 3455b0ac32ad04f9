"""One trial on all cores, or a trial per core: which gives more trials per hour?

    python tests/benchmarks/concurrency.py          # five minutes on two cores

Trains the same network in one process with as many threads as there are cores, and in as many
processes with one thread each, in turns; the sum of images per second is compared.
`study.cluster.resources.allocate` takes a trial per core by default.
"""

from __future__ import annotations

import multiprocessing
import os
from statistics import mean
from typing import Any

from report import Report, out_parser

CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "fashion, baseline": ("fashion", {"width1": 32, "width2": 32}, 60),
    "fashion, quarter of the widths": ("fashion", {"width1": 8, "width2": 8, "hidden": 32}, 200),
    "facade, quarter of the widths, 128 px": (
        "facade",
        {f"width{k + 1}": w for k, w in enumerate((16, 32, 64, 32, 16))} | {"image_size": 128},
        10,
    ),
}


def train(case: str, threads: int, epochs: int, start: Any, results: Any) -> None:
    """Train epochs with some threads, the first to warm up; tell the images per second."""
    import torch

    from study.datasets.source import DataSource
    from study.task import build_config, load_task
    from study.training.loop import fit

    torch.set_num_threads(threads)
    name, settings, num_batches = CASES[case]
    task = load_task(name)
    config = build_config(task.config_class, {**settings, "epochs": epochs + 1})
    trained = fit(task, config, DataSource.find(), limit_batches=num_batches)
    next(trained)
    start.wait()
    results.put([result.metrics["images_per_second"] for result in trained])


def rates(case: str, processes: int, threads: int, epochs: int) -> list[float]:
    """Return images per second of all processes together, for each epoch."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes), context.Queue()
    arguments = (case, threads, epochs, start, results)
    running = [context.Process(target=train, args=arguments) for _ in range(processes)]
    for process in running:
        process.start()
    found = [results.get() for _ in running]
    for process in running:
        process.join()
    return [sum(each) for each in zip(*found, strict=True)]


def main() -> None:
    """Measure all."""
    parser = out_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    report = Report("concurrency", args.out)
    for case in CASES:
        apart: list[float] = []
        together: list[float] = []
        for _ in range(args.repeats):
            apart.append(mean(rates(case, cores, 1, 2)))
            together.append(mean(rates(case, 1, cores, 2)))
        report.add(
            f"{case}: images/s, {cores} trials of 1 thread against 1 of {cores}",
            apart,
            together,
            better="higher",
        )
    report.write()


if __name__ == "__main__":
    main()
