"""Evaluation of a network on an image set: loss and the task's metrics, summed over all workers.

A trial's settings are no argument here: whatever a search changes, scores measure the network, so
that trials compare. The loss is plain cross-entropy; what a trial trains on, with label smoothing,
class weights and the like, is in `train/loss` alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch.nn.functional import cross_entropy

from study.datasets.source import ImageSet
from study.errors import Diverged
from study.task import Meter, Task
from study.training import distributed
from study.training.batches import Batches
from study.training.worst_class import worst_class

Item = TypeVar("Item")
VOID = -100  # what `cross_entropy` leaves out
# Wraps an iterator of batches to show progress: (batches, how many, "training" or "validation").
Progress = Callable[[Iterator[Item], int, str], Iterator[Item]]


def evaluate(
    task: Task,
    network: torch.nn.Module,
    batches: Batches,
    images: ImageSet,
    *,
    batch_size: int,
    precision: str,
    limit_batches: int | None = None,
    keep_images: bool = False,
    progress: Progress[Any] = lambda batches, total, phase: batches,
) -> tuple[dict[str, float], Meter, ImageSet]:
    """Evaluate the unwrapped network, each image once over all ranks.

    Args:
        task: Gives the meter.
        network: Takes normalised images.
        batches: `study.training.batches.Batches` over `images`.
        images: The set.
        batch_size: Images at a time; changes no score.
        precision: On a GPU, one of `study.config.PRECISIONS`.
        limit_batches: Stop after so many batches.
        keep_images: Have the meter keep what an interval is computed from.
        progress: Sees the iterator of batches, to show how far it is.

    Returns:
        Metrics by name without the split (`loss`, the mean cross-entropy, `accuracy`, ...), the
        meter, and this rank's images in the order in which the meter saw them.

    Raises:
        Diverged: The loss is not finite.
    """
    network.eval()
    meter = task.build_meter(batches.device)
    if keep_images:
        meter.keep_images()
    seen = _seen(images, limit_batches and limit_batches * batch_size)
    served = itertools.islice(batches.evaluation(batch_size), limit_batches)
    sums = torch.zeros(2, dtype=torch.float64, device=batches.device)
    with torch.inference_mode():
        for inputs, targets in progress(served, -(-len(seen) // batch_size), "validation"):
            with distributed.scoring_autocast(batches.device, precision):
                logits = network(inputs)
            logits = _sized_like(logits, targets)
            sums += _cross_entropy(logits, targets)
            meter.update(logits, targets)
    loss = _mean(sums)
    meter.reduce()
    scores = meter.compute()
    return {"loss": loss, **scores, **worst_class(task, scores)}, meter, seen


def _seen(images: ImageSet, most: int | None) -> ImageSet:
    """Return the images of this rank, at most so many."""
    share = images.indices[distributed.rank() :: distributed.world_size()]
    return dataclasses.replace(images, indices=share[:most])


def _mean(sums: torch.Tensor) -> float:
    """Return the mean loss over all workers from what each has of `_cross_entropy`."""
    distributed.all_reduce_sum([sums])
    loss_sum, num_targets = sums.tolist()
    if not abs(loss_sum) < float("inf"):
        raise Diverged(f"the validation loss is not finite ({loss_sum}).")
    return float(loss_sum / num_targets)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of cross-entropies, and over how many targets, `(2,)` float64.

    Targets that are no class, as the void pixels of some data sets, do not count.
    """
    known = (targets >= 0) & (targets < logits.shape[1])
    each = cross_entropy(
        logits.float(), targets.where(known, VOID), ignore_index=VOID, reduction="none"
    )
    return torch.stack([each.sum(dtype=torch.float64), known.sum(dtype=torch.float64)])


def _sized_like(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Enlarge logits (bilinear) where targets are larger than the network's output."""
    if targets.ndim == 3 and logits.shape[2:] != targets.shape[1:]:
        size = targets.shape[1:]
        return torch.nn.functional.interpolate(logits.float(), size, mode="bilinear")
    return logits
