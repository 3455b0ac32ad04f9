"""Training on Fashion-MNIST as people write it: torchvision, DataLoader, an epoch at a time.

What `ray_pattern.py` and `optuna_loop.py` run. The network, the optimizer, the numbers of images
and the metrics are those of the task `few`; threads: 1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import datasets, transforms

MEAN, DEVIATION = 0.2860, 0.3530


def net(config: dict[str, Any]) -> nn.Module:
    """Return the two-convolution network."""
    first, second, kernel = config["width1"], config["width2"], config["kernel_size"]
    return nn.Sequential(
        nn.Conv2d(1, first, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, kernel, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * 7 * 7, config["hidden"]),
        nn.ReLU(),
        nn.Linear(config["hidden"], 10),
    )


def loaders(config: dict[str, Any]) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return batches to train and to validate with.

    `config["data"]`: `dataset` reads image by image through torchvision's transforms; `memory`
    normalises all images once, as a tensor.
    """
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((MEAN,), (DEVIATION,))]
    )
    whole: Dataset[Any]
    fashion = datasets.FashionMNIST(config["root"], train=True, transform=transform)
    if config["data"] == "memory":
        images = (fashion.data.unsqueeze(1).float() / 255 - MEAN) / DEVIATION
        whole = TensorDataset(images, fashion.targets)
    else:
        whole = fashion
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0)).tolist()
    num_train, num_val = config["train_images"], config["val_images"]
    train, val = Subset(whole, order[:num_train]), Subset(whole, order[-num_val:])
    size = config["batch_size"]
    return DataLoader(train, size, shuffle=True, drop_last=True), DataLoader(val, size)


def epochs(
    config: dict[str, Any],
    model: nn.Module,
    train: DataLoader[Any],
    val: DataLoader[Any],
) -> Iterator[dict[str, float]]:
    """Train and validate; yield the metrics of each epoch."""
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"]
    )
    for _ in range(config["epochs"]):
        started = time.perf_counter()
        train_loss, train_right, num_train = 0.0, 0, 0
        model.train()
        for images, targets in train:
            optimizer.zero_grad()
            logits = model(images)
            loss = cross_entropy(logits, targets)
            loss.backward()
            optimizer.step()
            train_loss += loss.item() * len(targets)
            train_right += (logits.argmax(1) == targets).sum().item()
            num_train += len(targets)
        metrics = {"train/loss": train_loss / num_train, "train/accuracy": train_right / num_train}
        metrics["images_per_second"] = num_train / (time.perf_counter() - started)
        metrics |= validate(model, val)
        metrics["epoch_seconds"] = time.perf_counter() - started
        yield metrics


def validate(model: nn.Module, val: DataLoader[Any]) -> dict[str, float]:
    """Return loss, and accuracy, also per class."""
    val_loss = 0.0
    right, seen = torch.zeros(10), torch.zeros(10)
    model.eval()
    with torch.no_grad():
        for images, targets in val:
            logits = model(images)
            val_loss += cross_entropy(logits, targets).item() * len(targets)
            seen += torch.bincount(targets, minlength=10)
            right += torch.bincount(targets[logits.argmax(1) == targets], minlength=10)
    scores = {f"val/accuracy/{k}": (right[k] / seen[k]).item() for k in range(10) if seen[k]}
    total = seen.sum().item()
    return {"val/loss": val_loss / total, "val/accuracy": right.sum().item() / total, **scores}
