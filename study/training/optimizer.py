"""Fused optimizers and learning-rate schedules.

The learning rate is a stateless function of the step and the number of steps. So a resumed run
continues as if never interrupted, and rungs stay comparable: at any epoch all trials are at the
same point of their schedules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

from study.config import TrainConfig

Item = TypeVar("Item")
# As in torch's OneCycleLR: first rate relative to the highest, last rate relative to the first.
START, END = 1 / 25, 1e-4


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `network`.

    `adam` applies `weight_decay` to the gradient of every parameter, as the baselines do; `adamw`
    decouples it from the gradient (Loshchilov and Hutter 2019, "Decoupled Weight Decay
    Regularization"), `sgd` applies it to the gradients, and both exclude biases and normalisation
    scales.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), rate, weight_decay=decay, fused=True)
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, rate, fused=True)
    momentum = config.momentum
    return torch.optim.SGD(groups, rate, momentum, nesterov=momentum > 0, fused=True)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Return the learning rate of a step.

    `cosine` falls to 0 along half a cosine (Loshchilov and Hutter 2017, "SGDR"; torch's
    CosineAnnealingLR). `one_cycle` rises along half a cosine for a fraction `warm_up` of the steps
    and falls along another (Smith and Topin 2019, "Super-Convergence"; like torch's OneCycleLR, but
    without changing Adam's momentum).

    Args:
        config: Provides `schedule`, `learning_rate` (the highest) and `warm_up`.
        step: From 0, over all epochs.
        num_steps: Total steps over all epochs.
    """
    highest = config.learning_rate
    if config.schedule == "constant":
        return highest
    if config.schedule == "cosine":
        return _between(highest, 0.0, step / num_steps)
    first, top = START * highest, config.warm_up * num_steps - 1
    if step < top:
        return _between(first, highest, step / top)
    return _between(highest, END * first, (step - top) / (num_steps - 1 - top))


def _between(start: float, end: float, part: float) -> float:
    """Interpolate along half a cosine, `part` from 0 to 1."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def scheduled(
    batches: Iterator[Item],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    first: int,
    num_steps: int,
) -> Iterator[Item]:
    """Yield batches after setting the optimizer's learning rate for each step.

    Args:
        batches: One per step.
        optimizer: All its parameter groups get the same rate.
        config: See `learning_rate`.
        first: Step of the first batch.
        num_steps: Total steps over all epochs.
    """
    for step, batch in enumerate(batches, first):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, num_steps)
        yield batch
