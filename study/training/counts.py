"""Counts that add up over batches and ranks, computed on the network's device.

Shapes: B batch, K classes, T bins of scores. `study.training.metrics` computes scores from them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class ConfusionMatrix:
    """Counts of (target, prediction) pairs.

    Attributes:
        counts: `(K, K)` int64; rows are targets, columns predictions.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Count class indices of the same shape, int64."""
        num_classes = len(self.counts)
        pairs = (targets * num_classes + predictions).flatten()
        self.counts += torch.bincount(pairs, minlength=num_classes**2).view_as(self.counts)


class ScoreHistograms:
    """Histograms of each class's scores for positives and negatives.

    They give the precision-recall curve and average precision of one class against the rest, equal
    to scikit-learn's except for scores that share a bin. Scores are log-odds, ordered like softmax
    probabilities, which would lose their order near 0 and 1. A bin is a float16 without its last
    bit, so its width is 0.1 to 0.2 % of the log-odds.

    Attributes:
        counts: `(K, T, 2)` int64; last axis negatives, positives.
    """

    NUM_BINS = 1 << 15

    def __init__(self, num_classes: int, device: torch.device) -> None:
        shape = (num_classes, self.NUM_BINS, 2)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, targets: Tensor, predictions: Tensor) -> None:
        """Count logits `(B, K, ...)`; targets and what was `predicted` are `(B, ...)` int64."""
        num_classes = len(self.counts)
        bits = log_odds(logits, predictions).half().view(torch.int16).to(torch.int32)
        # Float bits sort like floats, but for negative ones in reverse.
        negative = bits >> 31  # -1 or 0
        cells = (bits ^ negative).add_((negative + 1).mul_(1 << 15)).bitwise_and_(-2)
        # One index per count: (class, bin, negative or positive).
        ones = torch.ones_like(targets, dtype=torch.int32).unsqueeze(1)
        cells.scatter_add_(1, targets.unsqueeze(1), ones)
        shape = (1, num_classes) + (1,) * (logits.ndim - 2)
        classes = torch.arange(num_classes, dtype=torch.int32, device=cells.device).view(shape)
        cells += classes * (2 * self.NUM_BINS)
        # In memory order: the order does not matter for counting.
        flat = cells.movedim(1, -1) if cells.ndim == 4 else cells
        counted = torch.bincount(flat.flatten(), minlength=self.counts.numel())
        self.counts += counted.view_as(self.counts)


class ImageHistograms:
    """Coarser histograms like `ScoreHistograms`, one per image, for resampling images.

    Log-odds from -16 to 16 in bins of 1/64: average precision differs by less than 0.001.

    Attributes:
        counts: One `(B, K, T, 2)` int32 per batch; last axis negatives, positives.
    """

    NUM_BINS = 1 << 11
    LARGEST = 16.0

    def __init__(self) -> None:
        self.counts: list[Tensor] = []

    def update(self, logits: Tensor, targets: Tensor, predictions: Tensor) -> None:
        """Count logits `(B, K, ...)`; targets and what was `predicted` are `(B, ...)` int64."""
        num, num_classes = logits.shape[:2]
        scale = self.NUM_BINS / (2 * self.LARGEST)
        bins = (log_odds(logits, predictions) + self.LARGEST).mul_(scale)
        cells = bins.clamp_(0, self.NUM_BINS - 1).to(torch.int32).mul_(2)
        ones = torch.ones_like(targets, dtype=torch.int32).unsqueeze(1)
        cells.scatter_add_(1, targets.unsqueeze(1), ones)
        rows = torch.arange(num * num_classes, dtype=torch.int32, device=cells.device)
        cells += (2 * self.NUM_BINS * rows).view(num, num_classes, *[1] * (logits.ndim - 2))
        shape = (num, num_classes, self.NUM_BINS, 2)
        counted = torch.bincount(cells.flatten(), minlength=math.prod(shape))
        self.counts.append(counted.view(shape).to(torch.int32))


def predicted(logits: Tensor) -> Tensor:
    """Return the class of the largest logit over dimension 1, the first one on a tie, int64."""
    # On CPUs argmax over this dimension takes up to twenty times as long.
    return logits.max(dim=1).indices


def log_odds(logits: Tensor, predictions: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of softmax probabilities p over dimension 1, exact near 0 and 1.

    Args:
        logits: `(B, K, ...)`.
        predictions: `(B, ...)` int64, index of the largest logit.
    """
    logits = logits.float()
    where = predictions.unsqueeze(1)
    shifted = logits - logits.gather(1, where)
    terms = shifted.exp()
    # For the largest term, 1 - p would cancel: sum the other terms instead.
    others = terms.scatter(1, where, 0.0)
    rest = others.sum(dim=1, keepdim=True)
    return shifted.sub_((rest + 1 - terms).scatter_(1, where, rest).clamp_(min=1e-38).log_())
