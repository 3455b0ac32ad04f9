"""Rank, world size, device, random states, model wrapping and reductions on `torch.distributed`.

In a single process without a process group everything here is a no-op. Under Ray Train or torchrun
the group already exists and is only used; on GPUs it must also support the CPU
(`cpu:gloo,cuda:nccl`), so that flags and states are exchanged without waiting for the GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
AGREE_SECONDS = 0.25  # between two exchanges on whether to stop


def rank() -> int:
    """Return this process's rank among the workers of the trial, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of workers of the trial, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def device() -> torch.device:
    """Return the GPU assigned to this process, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the device has native bfloat16 arithmetic, so that it saves time.

    CPUs have it with AVX-512 BF16 or AMX; older torch cannot tell and says no.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the autocast context for a `precision` of `study.config.PRECISIONS`."""
    enabled = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def scoring_autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the same for scoring: float32 on a CPU, as in the exported network, at little cost."""
    return autocast(device, precision if device.type == "cuda" else "float32")


def mixed_seed(*numbers: int) -> int:
    """Mix numbers into a seed for torch, so that neighbouring epochs and ranks are independent."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def random_states() -> list[list[Tensor]]:
    """Return torch's random states by rank, of the CPU and of a GPU if any."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    every: list[list[Tensor]] = [states] * world_size()
    if world_size() > 1:
        dist.all_gather_object(every, states)
    return every


def set_random_states(every: list[list[Tensor]]) -> None:
    """Restore the random states returned by `random_states`.

    A GPU's state is ignored without a GPU. With another number of workers nothing is restored.
    """
    if len(every) != world_size():
        return
    states = every[rank()]
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def wrap(model: nn.Module) -> nn.Module:
    """Wrap a model so that gradients are averaged over workers in the backward pass."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model)


def synced(model: nn.Module) -> nn.Module:
    """Convert a model to batch normalisation over all workers; state names stay the same."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def accumulating(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """Return the context for a micro-batch; gradients are averaged only after the last one.

    Args:
        model: A model returned by `wrap`.
        more: Whether another micro-batch follows.
    """
    if more and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def broadcast_buffers(model: nn.Module) -> None:
    """Copy rank 0's buffers, such as running statistics of normalisation, to all workers."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def broadcast(value: T) -> T:
    """Return rank 0's value on every rank; tensors in it must be on the CPU."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0)
    return values[0]


def all_reduce_sum(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its sum over all workers, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def lost_peer(error: BaseException) -> bool:
    """Return whether a worker's error means that another worker is gone or unresponsive.

    NCCL's errors have a type; gloo's are plain RuntimeErrors that name its source file.
    """
    return isinstance(error, dist.DistError | ConnectionError) or "gloo/transport" in str(error)


def agreed(question: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that gives rank 0's answer to all workers, at the same call.

    All workers must call it equally often. Between exchanges, about `AGREE_SECONDS` apart, the
    answer is no; rank 0 decides after how many calls the next exchange takes place.
    """
    if world_size() == 1:
        return question
    calls, left, since = 1, 1, time.monotonic()

    def answer() -> bool:
        nonlocal calls, left, since
        left -= 1
        if left > 0:
            return False
        now = time.monotonic()
        calls = max(1, min(2 * calls, int(calls * AGREE_SECONDS / max(now - since, 1e-6))))
        told = torch.tensor([int(rank() == 0 and question()), calls])
        dist.broadcast(told, 0)
        yes, calls = told.tolist()
        left, since = calls, time.monotonic()
        return bool(yes)

    return answer
