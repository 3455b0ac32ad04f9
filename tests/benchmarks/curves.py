"""Train every configuration of a grid once and keep its learning curve, for replays in seconds.

    python tests/benchmarks/curves.py fashion      # minutes on a GPU, many hours on two cores
    python tests/benchmarks/curves.py facade

Writes `curves/<task>.csv`: the values of a configuration, then the metric on the validation split
after each epoch. Lines that are there already are kept, so that a run that was cut off goes on.
`searchers.py` replays searchers and schedulers over the curves.

All learning rates and weight decays of one choice of widths are trained side by side, as one
network with a group of channels for each: convolutions and batch normalisation keep groups apart,
so each group is the baseline of `study.training.models` with its own start, trained by its own Adam
on the same batches. The setting is cheap: of Fashion-MNIST 10,000 training and 5,000 validation
images, of mini-facade all, split by facade, at 64x64 pixels; no image of a test split.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor, nn

from study.datasets.source import DataSource, ImageSet
from study.task import Task, build_config, load_task
from study.training import distributed
from study.training.batches import Batches

PLACE = Path(__file__).parent / "curves"
EPOCHS = 20
NUM_TRAIN, NUM_VAL = 10_000, 5_000  # at most


def log_grid(low: float, high: float, num: int) -> list[float]:
    """Return numbers evenly spaced in their logarithm, rounded to three digits."""
    return [float(f"{value:.3g}") for value in np.geomspace(low, high, num)]


GRIDS: dict[str, dict[str, list[Any]]] = {
    "fashion": {
        "learning_rate": log_grid(1e-4, 1e-2, 13),
        "weight_decay": log_grid(1e-7, 1e-3, 3),
        "width1": [8, 16, 32, 64],
        "width2": [8, 16, 32, 64, 128],
    },
    "facade": {  # width5 = width1
        "learning_rate": log_grid(1e-4, 1e-2, 9),
        "weight_decay": log_grid(1e-7, 1e-3, 3),
        "width1": [4, 16],
        "width2": [8, 32],
        "width3": [16, 64],
        "width4": [8, 32],
    },
}
SETTINGS: dict[str, dict[str, Any]] = {"fashion": {}, "facade": {"image_size": 64}}


def grouped_fashion(widths: Sequence[int], num_classes: int, groups: int) -> nn.Module:
    """Return `study.training.models.TwoConv` once per group; its linear layers are convolutions."""
    first, second = (groups * width for width in widths)
    hidden = groups * 128
    return nn.Sequential(
        nn.Conv2d(groups, first, 5, padding="same", groups=groups),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5, padding="same", groups=groups),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(second, hidden, 7, groups=groups),
        nn.ReLU(),
        nn.Conv2d(hidden, groups * num_classes, 1, groups=groups),
        nn.Flatten(),
    )


def grouped_facade(widths: Sequence[int], num_classes: int, groups: int) -> nn.Module:
    """Return `study.training.models.HourglassNet` once per group."""
    w1, w2, w3, w4 = (groups * width for width in widths)

    def conv(inputs: int, outputs: int, kernel_size: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, kernel_size, padding="same", groups=groups)

    return nn.Sequential(
        conv(3 * groups, w1, 7),
        nn.ReLU(),
        nn.BatchNorm2d(w1),
        conv(w1, w2, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.BatchNorm2d(w2),
        conv(w2, w3, 5),
        nn.ReLU(),
        nn.BatchNorm2d(w3),
        conv(w3, w4, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.BatchNorm2d(w4),
        conv(w4, w1, 3),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.BatchNorm2d(w1),
        conv(w1, groups * num_classes, 3),
        nn.ReLU(),
    )


BUILD = {"fashion": grouped_fashion, "facade": grouped_facade}


class GroupedAdam:
    """Adam with L2 penalty (`torch.optim.Adam`), a learning rate and a decay for each group."""

    def __init__(self, model: nn.Module, rates: Tensor, decays: Tensor) -> None:
        self.parameters = [p for p in model.parameters()]
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.rates = [self._spread(rates, p) for p in self.parameters]
        self.decays = [self._spread(decays, p) for p in self.parameters]
        self.steps = 0

    @staticmethod
    def _spread(values: Tensor, parameter: Tensor) -> Tensor:
        """Return one value for each row of a parameter, as a column."""
        each = values.repeat_interleave(len(parameter) // len(values))
        return each.view(-1, *[1] * (parameter.ndim - 1)).to(parameter.device)

    @torch.no_grad()
    def step(self) -> None:
        """Take a step and forget the gradients."""
        self.steps += 1
        grads = [p.grad for p in self.parameters]
        grads = torch._foreach_add(grads, torch._foreach_mul(self.parameters, self.decays))
        torch._foreach_lerp_(self.first, grads, 0.1)
        torch._foreach_mul_(self.second, 0.999)
        torch._foreach_addcmul_(self.second, grads, grads, 0.001)
        roots = torch._foreach_sqrt(self.second)
        torch._foreach_div_(roots, (1 - 0.999**self.steps) ** 0.5)
        torch._foreach_add_(roots, 1e-8)
        updates = torch._foreach_div(self.first, roots)
        torch._foreach_mul_(updates, self.rates)
        torch._foreach_add_(self.parameters, updates, alpha=-1 / (1 - 0.9**self.steps))
        for parameter in self.parameters:
            parameter.grad = None


def train(
    task: Task, widths: Sequence[int], pairs: Sequence[Any], seed: int
) -> Iterator[list[float]]:
    """Train one choice of widths with all pairs of learning rate and decay side by side.

    Yields:
        After each epoch the metric of each pair, nan where the loss is not finite.
    """
    device, groups, num_classes = distributed.device(), len(pairs), len(task.classes)
    config = build_config(task.config_class, SETTINGS[task.name])
    splits = task.load_splits(DataSource.find(), config)
    train_set, val_set = part_of(splits.train, NUM_TRAIN), part_of(splits.val, NUM_VAL)
    batches, val = (Batches(part, device, task.normalization) for part in (train_set, val_set))
    torch.manual_seed(seed)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model: Any = BUILD[task.name](widths, num_classes, groups).to(device, memory_format=layout)
    rates, decays = torch.tensor(pairs, dtype=torch.float32, device=device).T
    adam = GroupedAdam(model, rates, decays)

    def logits(images: Tensor) -> Tensor:
        """Return logits `(B, groups, K, ...)`."""
        with distributed.autocast(device, config.precision):
            out = model(images.repeat(1, groups, 1, 1))
        return out.float().unflatten(1, (groups, num_classes))

    for epoch in range(1, EPOCHS + 1):
        model.train()
        for images, targets in batches.training(config.batch_size, (seed, epoch)):
            out = logits(images)
            wanted = targets.unsqueeze(1).expand(-1, groups, *targets.shape[1:])
            loss = nn.functional.cross_entropy(out.flatten(0, 1), wanted.flatten(0, 1))
            (loss * groups).backward()
            adam.step()
        model.eval()
        meters = [task.build_meter(device) for _ in pairs]
        with torch.inference_mode():
            for images, targets in val.evaluation(150 if task.name == "facade" else 500):
                out = logits(images)
                for group, meter in enumerate(meters):
                    meter.update(out[:, group], targets)
            finite = out.isfinite().transpose(0, 1).flatten(1).all(dim=1).tolist()
        name = task.metric.removeprefix("val/")
        yield [
            meter.compute()[name] if good else float("nan")
            for meter, good in zip(meters, finite, strict=True)
        ]


def part_of(images: ImageSet, num: int) -> ImageSet:
    """Return so many images of a set at most, always the same."""
    chosen = np.random.default_rng(0).permutation(len(images))[:num]
    return ImageSet(images.images, images.targets, images.indices[np.sort(chosen)])


def work(process: int, processes: int, name: str, path: Path, seconds: float) -> None:
    """Train every `processes`-th choice of widths that is missing."""
    names, values = list(GRIDS[name]), list(GRIDS[name].values())
    done = {tuple(row[2 : len(names)]) for row in rows(path)}
    pairs = list(itertools.product(*values[:2]))
    began = time.monotonic()
    task = load_task(name)
    every = sorted(itertools.product(*values[2:]), key=lambda widths: -sum(widths))
    for number, widths in enumerate(every):
        if number % processes != process or tuple(map(str, widths)) in done:
            continue
        if time.monotonic() - began > seconds:
            break
        curves = np.array(list(train(task, widths, pairs, seed=number)))
        with path.open("a", newline="") as file:
            for pair, curve in zip(pairs, curves.T, strict=True):
                csv.writer(file).writerow([*pair, *widths, *(f"{value:.4f}" for value in curve)])
        print(
            f"{widths} {time.monotonic() - began:.0f} s, best {np.nanmax(curves):.4f}", flush=True
        )


def rows(path: Path) -> list[list[str]]:
    """Return the lines of a file of curves but the first."""
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=sorted(GRIDS))
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more after")
    parser.add_argument("--out", type=Path, default=PLACE)
    args = parser.parse_args(argv)
    path = args.out / f"{args.task}.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        epochs = [f"epoch{number}" for number in range(1, EPOCHS + 1)]
        path.write_text(",".join([*GRIDS[args.task], *epochs]) + "\n")
    load_task(args.task).identity(DataSource.find())  # the cache, once
    torch.multiprocessing.spawn(
        work, (args.processes, args.task, path, args.seconds), nprocs=args.processes
    )
    print(f"{len(rows(path))} lines")


if __name__ == "__main__":
    main()
