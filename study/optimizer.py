"""Optimizers: Adam as the baselines have it, AdamW, and SGD with momentum; all of them fused."""

from __future__ import annotations

import torch
from torch import nn

from study.setting import TrainConfig


def build_optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `network`.

    `adam` adds `weight_decay` to the gradient of every parameter, as the baselines do; `adamw`
    shrinks weights by it (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"),
    `sgd` adds it to their gradients, and both spare biases and the scales of normalisation.
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
