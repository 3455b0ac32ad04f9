"""Rank, world size, device, wrapping and reducing, on plain `torch.distributed`.

In one process without a process group everything here is the identity. Under Ray Train or
torchrun the group exists already and is only used.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """Return this process's number among all workers of the trial, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers of the trial, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Return the GPU given to this process, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def wrap(model: nn.Module) -> nn.Module:
    """Return the module that averages gradients over workers in backward."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model)


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all workers, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
