"""Evaluation of a network on an image set: loss and the task's metrics, summed over all workers.

Scores do not depend on a trial's training settings, so trials are comparable. The loss is plain
cross-entropy; the loss a trial trains on, with label smoothing, class weights and the like, is only
in `train/loss`.
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
VOID = -100  # target ignored by `cross_entropy`
# Wraps an iterator of batches to show progress: (batches, total, "training" or "validation").
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
        task: Provides the meter.
        network: Takes normalised images.
        batches: `study.training.batches.Batches` over `images`.
        images: The image set.
        batch_size: Images at a time; does not affect scores.
        precision: One of `study.config.PRECISIONS`, used on a GPU.
        limit_batches: Number of batches to stop after.
        keep_images: Whether the meter keeps the data for an interval.
        progress: Wraps the iterator of batches to show progress.

    Returns:
        Metrics by name without the split (`loss`, the mean cross-entropy, `accuracy`, ...), the
        meter, and this rank's images in the order the meter saw them.

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
    """Return the images of this rank, at most `most`."""
    share = images.indices[distributed.rank() :: distributed.world_size()]
    return dataclasses.replace(images, indices=share[:most])


def _mean(sums: torch.Tensor) -> float:
    """Return the mean loss over all workers from each one's sums of `_cross_entropy`."""
    distributed.all_reduce_sum([sums])
    loss_sum, num_targets = sums.tolist()
    if not abs(loss_sum) < float("inf"):
        raise Diverged(f"the validation loss is not finite ({loss_sum}).")
    return float(loss_sum / num_targets)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the sum of cross-entropies and the number of targets, `(2,)` float64.

    Targets outside the classes, such as void pixels, do not count.
    """
    known = (targets >= 0) & (targets < logits.shape[1])
    each = cross_entropy(
        logits.float(), targets.where(known, VOID), ignore_index=VOID, reduction="none"
    )
    return torch.stack([each.sum(dtype=torch.float64), known.sum(dtype=torch.float64)])


def _sized_like(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Resize logits (bilinear) to the targets if their sizes differ."""
    if targets.ndim == 3 and logits.shape[2:] != targets.shape[1:]:
        size = targets.shape[1:]
        return torch.nn.functional.interpolate(logits.float(), size, mode="bilinear")
    return logits
