"""Learning rates against torch's schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from study.schedule import learning_rate, scheduled
from study.task import TrainConfig


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
