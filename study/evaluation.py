"""Evaluation of a network on an image set: loss and the task's metrics, summed over all workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from study import distributed
from study.batches import Batches
from study.data import ImageSet
from study.errors import TrialError
from study.meters import Meter
from study.objective import worst_class
from study.task import Task, TrainConfig

Item = TypeVar("Item")
# Wraps an iterator of batches to show progress: (batches, how many, "training" or "validation").
Watch = Callable[[Iterator[Item], int, str], Iterator[Item]]


def evaluate(
    task: Task,
    config: TrainConfig,
    network: torch.nn.Module,
    batches: Batches,
    images: ImageSet,
    *,
    parts: int = 1,
    limit_batches: int | None = None,
    keep_images: bool = False,
    watch: Watch[Any] = lambda batches, total, phase: batches,
) -> tuple[dict[str, float], Meter, ImageSet]:
    """Evaluate the unwrapped network, each image once over all ranks.

    Where targets are larger than the network's output, its logits are enlarged (bilinear).

    Args:
        task: Gives loss and meter.
        config: Its settings.
        network: Takes normalised images.
        batches: `study.batches.Batches` over `images`.
        images: The set.
        parts: Divides the batch size by so much.
        limit_batches: Stop after so many batches.
        keep_images: Have the meter keep what an interval is computed from.
        watch: Shows progress.

    Returns:
        Metrics by name without the split (`loss`, `accuracy`, ...), the meter, and this rank's
        images in the order in which the meter saw them.

    Raises:
        TrialError: The loss is not finite.
    """
    network.eval()
    meter = task.build_meter(batches.device)
    if keep_images:
        meter.keep_images()
    sums = torch.zeros(2, dtype=torch.float64, device=batches.device)
    share = images.indices[distributed.rank() :: distributed.world_size()]
    batch_size = -(-config.batch_size // parts)
    limit_batches = limit_batches and limit_batches * parts
    total = -(-len(share) // batch_size)
    served = itertools.islice(batches.evaluation(batch_size), limit_batches)
    with torch.inference_mode():
        for inputs, targets in watch(served, min(total, limit_batches or total), "validation"):
            with distributed.scoring_autocast(batches.device, config.precision):
                logits = network(inputs)
            logits = _sized_like(logits, targets)
            loss = task.loss(logits.float(), targets, config)
            sums += torch.stack([loss * len(inputs), torch.ones_like(loss) * len(inputs)])
            meter.update(logits, targets)
    distributed.all_reduce_sum([sums])
    loss_sum, num_images = sums.tolist()
    if not abs(loss_sum) < float("inf"):
        raise TrialError(f"the validation loss is not finite ({loss_sum}).")
    meter.reduce()
    if limit_batches:
        share = share[: limit_batches * batch_size]
    seen = ImageSet(images.images, images.targets, share, images.groups)
    scores = meter.compute()
    return {"loss": loss_sum / num_images, **scores, **worst_class(task, scores)}, meter, seen


def _sized_like(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.ndim == 3 and logits.shape[2:] != targets.shape[1:]:
        size = targets.shape[1:]
        return torch.nn.functional.interpolate(logits.float(), size, mode="bilinear")
    return logits
