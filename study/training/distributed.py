"""Rank, world size, device, random numbers, wrapping and reducing, on plain `torch.distributed`.

In one process without a process group everything here is the identity. Under Ray Train or
torchrun the group exists already and is only used; on GPUs it must also serve the CPU
(`cpu:gloo,cuda:nccl`), so that flags and states travel without waiting for the GPU.
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
AGREE_SECONDS = 0.25  # between two questions whether to stop


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


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the GPU or CPU multiplies bfloat16 itself, so that it gains time.

    Of CPUs those with AVX-512 BF16 or AMX; older torch cannot tell and says no.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context of a forward pass in a `precision` of `study.config.PRECISIONS`."""
    enabled = precision == "bfloat16" or (precision == "auto" and computes_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def scoring_autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the same for scores: float32 on a CPU, as in the exported network; it costs little."""
    return autocast(device, precision if device.type == "cuda" else "float32")


def mixed_seed(*numbers: int) -> int:
    """Mix numbers to a seed for torch, so that neighbouring epochs and ranks are unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def random_states() -> list[list[Tensor]]:
    """Return by rank the states of torch's random numbers, of the CPU and of a GPU if any."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    every: list[list[Tensor]] = [states] * world_size()
    if world_size() > 1:
        dist.all_gather_object(every, states)
    return every


def set_random_states(every: list[list[Tensor]]) -> None:
    """Go on with random numbers from where `random_states` was asked for.

    The state of a GPU is ignored where there is none. For another number of workers there are no
    states: their random numbers stay as they are.
    """
    if len(every) != world_size():
        return
    states = every[rank()]
    torch.set_rng_state(states[0])
    if len(states) > 1 and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])


def wrap(model: nn.Module) -> nn.Module:
    """Return the module that averages gradients over workers in backward."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model)


def synced(model: nn.Module) -> nn.Module:
    """Return a model that normalises batches over all workers; its state has the same names."""
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return converted


def accumulating(model: nn.Module, more: bool) -> AbstractContextManager[None]:
    """Return the context of a part of a batch; workers average only after the last part.

    Args:
        model: What `wrap` returned.
        more: Whether another part follows.
    """
    if more and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def broadcast_buffers(model: nn.Module) -> None:
    """Give every worker the buffers of rank 0, such as running statistics of normalisation."""
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
    """Return whether an error of a worker says that another one is gone or silent.

    NCCL's errors have a type; gloo's are bare RuntimeErrors that begin with its source file.
    """
    return isinstance(error, dist.DistError | ConnectionError) or "gloo/transport" in str(error)


def agreed(question: Callable[[], bool]) -> Callable[[], bool]:
    """Return a question to which all workers get rank 0's answer, at the same call of it.

    All must ask equally often. Between two exchanges, `AGREE_SECONDS` apart, the answer is no;
    rank 0 says after how many calls the next one comes.
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
