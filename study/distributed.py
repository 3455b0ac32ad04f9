"""Rank, world size, device, random numbers, wrapping and reducing, on plain `torch.distributed`.

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


def random_state() -> list[torch.Tensor]:
    """Return the state of torch's random numbers, of the CPU and of the GPU if there is one."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def set_random_state(states: list[torch.Tensor]) -> None:
    """Go on with random numbers from a state; one of a GPU is ignored where there is none."""
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


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
