"""Optimizers: the baseline's as it always was, what the others decay; rates against torch's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from study.datasets.source import DataSource
from study.task import Task, TrainConfig
from study.tasks.facade import TASK as FACADE
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import TASK as FASHION
from study.tasks.fashion import FashionConfig
from study.training.batches import Batches
from study.training.loop import fit
from study.training.models import HourglassNet, TwoConv
from study.training.optimizer import build_optimizer, learning_rate, scheduled

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


def rates(scheduler: LRScheduler, num_steps: int) -> list[float]:
    found = []
    for _ in range(num_steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        if len(found) < num_steps:
            scheduler.step()
    return found


def some_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.02)


@pytest.mark.parametrize("warm_up", [0.0, 0.05, 0.25, 0.3, 0.9])
@pytest.mark.parametrize("num_steps", [7, 240])
def test_one_cycle_is_torch_s(warm_up: float, num_steps: int) -> None:
    config = TrainConfig(schedule="one_cycle", learning_rate=0.02, warm_up=warm_up)
    torch_s = OneCycleLR(some_optimizer(), 0.02, num_steps, pct_start=warm_up, cycle_momentum=False)
    ours = [learning_rate(config, step, num_steps) for step in range(num_steps)]
    assert ours == pytest.approx(rates(torch_s, num_steps), rel=1e-9)


def test_cosine_is_torch_s() -> None:
    config = TrainConfig(schedule="cosine", learning_rate=0.02)
    ours = [learning_rate(config, step, 50) for step in range(50)]
    assert ours == pytest.approx(rates(CosineAnnealingLR(some_optimizer(), 50), 50), rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_few_steps_are_enough(schedule: str) -> None:
    for num_steps in (1, 2, 3, 4):
        for warm_up in (0.0, 0.25, 0.5):
            config = TrainConfig(schedule=schedule, learning_rate=0.5, warm_up=warm_up)
            for step in range(num_steps):
                assert 0 < learning_rate(config, step, num_steps) <= 0.5


def test_each_batch_is_served_with_its_rate() -> None:
    optimizer = some_optimizer()
    config = TrainConfig(schedule="cosine", learning_rate=0.02)
    seen = [
        (batch, optimizer.param_groups[0]["lr"])
        for batch in scheduled(iter("ab"), optimizer, config, 3, 10)
    ]
    assert seen == [("a", learning_rate(config, 3, 10)), ("b", learning_rate(config, 4, 10))]
