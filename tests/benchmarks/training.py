"""Images per second of the training loop against a bare loop and against tutorials' way.

    python tests/benchmarks/training.py              # ten minutes on two cores; also on a GPU

bare      the same network, batch size, fused optimizer and memory format (channels last) on float
          tensors that lie normalised on the device: no metrics, no reports, nothing but steps
tutorial  torchvision's data set and transforms, a DataLoader (the better of 0 and 2 processes),
          loss and accuracy by `.item()` for each batch
ours      `study.training.loop.fit`, all of it

All take turns, epoch by epoch, with all cores. Epochs have the same number of batches.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from contenders import unpack
from report import Report, out_parser
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from study.datasets.source import DataSource
from study.task import TrainConfig, build_config, load_task
from study.training import distributed
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import fit

Epoch = Callable[[], float]  # trains one and returns images per second


def bare(name: str, config: TrainConfig, num_batches: int, device: torch.device) -> Epoch:
    """Return an epoch of nothing but steps."""
    task = load_task(name)
    splits = task.load_splits(DataSource.find(), config)
    batches = Batches(splits.train, device, task.normalization)
    served = itertools.islice(batches.training(config.batch_size, (0, 1)), num_batches)
    images, targets = (torch.cat(parts) for parts in zip(*served, strict=True))
    images = images.to(memory_format=torch.channels_last)
    network = task.build_model(config).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate, fused=True)

    def epoch() -> float:
        started = time.perf_counter()
        network.train()
        order = torch.randperm(len(images), device=device).split(config.batch_size)
        for chosen in order:
            optimizer.zero_grad(set_to_none=True)
            with distributed.autocast(device, config.precision):
                loss = cross_entropy(network(images[chosen]), targets[chosen])
            loss.backward()
            optimizer.step()
        loss.item()
        return len(images) / (time.perf_counter() - started)

    return epoch


def tutorial(config: TrainConfig, num_batches: int, processes: int, device: torch.device) -> Epoch:
    """Return an epoch on Fashion-MNIST as the tutorials write it."""
    from torchvision import datasets, transforms

    task = load_task("fashion")
    (mean,), (deviation,) = task.normalization
    steps = [transforms.ToTensor(), transforms.Normalize((mean,), (deviation,))]
    root = unpacked()
    data = datasets.FashionMNIST(root, train=True, transform=transforms.Compose(steps))
    loader = DataLoader(data, config.batch_size, shuffle=True, num_workers=processes)
    network = task.build_model(config).to(device)
    optimizer = torch.optim.Adam(network.parameters(), config.learning_rate)

    def epoch() -> float:
        network.train()
        started, seen, running, right = time.perf_counter(), 0, 0.0, 0
        for images, targets in itertools.islice(loader, num_batches):
            images, targets = images.to(device), targets.to(device)
            optimizer.zero_grad()
            logits = network(images)
            loss = nn.functional.cross_entropy(logits, targets)
            loss.backward()
            optimizer.step()
            running += loss.item() * len(images)
            right += (logits.argmax(1) == targets).sum().item()
            seen += len(images)
        return seen / (time.perf_counter() - started)

    return epoch


@functools.cache
def unpacked() -> str:
    """Return a folder where torchvision finds Fashion-MNIST, until the process ends."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    unpack(Path(folder.name))
    return folder.name


def ours(name: str, config: TrainConfig, num_batches: int) -> Iterator[dict[str, float]]:
    """Yield the metrics of epochs of `fit`."""
    for result in fit(load_task(name), config, DataSource.find(), limit_batches=num_batches):
        yield result.metrics


def compare_training(report: Report, name: str, settings: dict[str, Any], args: Any) -> None:
    """Add rows for one task and one network."""
    device = distributed.device()
    config = build_config(load_task(name).config_class, {**settings, "epochs": args.repeats + 1})
    num_batches = args.batches if name == "fashion" else max(1, args.batches // 6)
    results = ours(name, config, num_batches)
    others = {"bare loop": bare(name, config, num_batches, device)}
    if name == "fashion":
        for processes in (0, 2):
            others[f"tutorial, {processes} processes"] = tutorial(
                config, num_batches, processes, device
            )
    rates: dict[str, list[float]] = {"ours": [], **{other: [] for other in others}}
    for repeat in range(args.repeats + 1):
        found = {other: epoch() for other, epoch in others.items()}
        found["ours"] = next(results)["images_per_second"]
        for other, rate in found.items() if repeat else ():  # the first warms up
            rates[other].append(rate)
    widths = "-".join(str(value) for key, value in settings.items() if key.startswith("width"))
    what = f"{name} {widths}, batch {config.batch_size}, images/s, against"
    for other in others:
        reach = 0.95
        if other != "bare loop":
            reach = 1.3 if settings["width1"] == 32 else 3.0
        report.add(f"{what} {other}", rates["ours"], rates[other], better="higher", reach=reach)


def compare_validation(report: Report, settings: dict[str, Any], args: Any) -> None:
    """Add rows for validation of facades, and for an epoch with it."""
    task, device = load_task("facade"), distributed.device()
    config = build_config(task.config_class, settings)
    val = task.load_splits(DataSource.find(), config).val
    batches = Batches(val, device, task.normalization)
    network = task.build_model(config).to(device, memory_format=torch.channels_last).eval()
    ready = list(itertools.islice(batches.evaluation(config.batch_size), args.batches // 4))
    times: dict[str, list[float]] = {"forward": [], "ours": []}
    for repeat in range(args.repeats + 1):
        started = time.perf_counter()
        with torch.inference_mode(), distributed.scoring_autocast(device, config.precision):
            for images, _ in ready:
                network(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        middle = time.perf_counter()
        evaluate(
            task,
            network,
            batches,
            val,
            batch_size=config.batch_size,
            precision=config.precision,
            limit_batches=len(ready),
        )
        if repeat:
            times["forward"].append(middle - started)
            times["ours"].append(time.perf_counter() - middle)
    size = settings["image_size"]
    widths = "-".join(str(value) for key, value in settings.items() if key.startswith("width"))
    report.add(
        f"facade {widths}, {size} px, validation with average precision, s, against forward alone",
        times["ours"],
        times["forward"],
        reach=1 / 1.15,
    )


def main() -> None:
    """Measure all."""
    parser = out_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60, help="of an epoch of fashion")
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    report = Report("training", args.out)
    report.note("settings", {"repeats": args.repeats, "threads": torch.get_num_threads()})
    compare_training(report, "fashion", {"width1": 32, "width2": 32}, args)
    compare_training(report, "fashion", {"width1": 8, "width2": 8, "hidden": 32}, args)
    quarter = {f"width{k + 1}": width for k, width in enumerate((16, 32, 64, 32, 16))}
    facade = {**quarter, "image_size": 128}
    compare_training(report, "facade", facade, args)
    compare_validation(report, facade, args)
    report.write()


if __name__ == "__main__":
    main()
