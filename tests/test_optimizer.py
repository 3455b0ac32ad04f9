"""Optimizers: the baseline's as it always was, and what the others decay."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from study.batches import Batches
from study.datasets.source import DataSource
from study.loop import fit
from study.models import HourglassNet, TwoConv
from study.optimizer import build_optimizer
from study.task import Task, TrainConfig
from study.tasks.facade import TASK as FACADE
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import TASK as FASHION
from study.tasks.fashion import FashionConfig

# As the plain loop below multiplies; by default, some CPUs do it in bfloat16.
EXACT = {"epochs": 1, "weight_decay": 0.01, "precision": "float32"}
WIDTHS = {f"width{n}": 4 for n in range(1, 6)}
BASELINES: dict[str, tuple[Task, TrainConfig, type[nn.Module], tuple]] = {
    "fashion": (
        FASHION,
        FashionConfig(batch_size=64, width1=4, width2=6, hidden=16, **EXACT),
        TwoConv,
        ((4, 6), 16, 5, 10),
    ),
    "facade": (
        FACADE,
        FacadeConfig(batch_size=4, image_size=32, **WIDTHS, **EXACT),
        HourglassNet,
        ((4,) * 5, 5),
    ),
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_baseline_learns_bit_for_bit_as_plain_adam(sample: DataSource, name: str) -> None:
    task, config, network_class, sizes = BASELINES[name]
    result = next(fit(task, config, sample, limit_batches=6))
    torch.manual_seed(config.seed)
    splits = task.load_splits(sample, config)
    network = network_class(*sizes).to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=0.01, fused=True)
    batches = Batches(splits.train, torch.device("cpu"), task.normalization)
    for images, targets in itertools.islice(batches.training(config.batch_size, (0, 1)), 6):
        adam.zero_grad()
        cross_entropy(network(images), targets).backward()
        adam.step()
    state = result.state["network"]
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def stepped(network: nn.Module, gradient: float, **settings: object) -> nn.Module:
    optimizer = build_optimizer(network, TrainConfig(learning_rate=0.1, **settings))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()
    return network


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_biases_and_scales_do_not_decay(optimizer: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    stepped(network, 0.0, optimizer=optimizer, weight_decay=0.5)
    weight, *others = network.parameters()
    # Nesterov's first step goes 1 + momentum times as far.
    shrunk = 1 - 0.1 * 0.5 * (1.9 if optimizer == "sgd" else 1.0)
    assert torch.allclose(weight, before[0] * shrunk)
    assert all(torch.equal(a, b) for a, b in zip(others, before[1:], strict=True))


@pytest.mark.parametrize(("momentum", "moved"), [(0.0, 0.1), (0.5, 0.15)])
def test_sgd_takes_its_momentum(momentum: float, moved: float) -> None:
    network = nn.Linear(1, 1)
    before = network.weight.item()
    stepped(network, 1.0, optimizer="sgd", momentum=momentum, weight_decay=0.0)
    assert before - network.weight.item() == pytest.approx(moved, rel=1e-5)
