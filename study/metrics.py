"""Counts that add up over batches and ranks, and what is computed from them.

Shapes: B batch, K classes, T bins of scores. Everything is summed first and divided once, so a
short last batch or an uneven shard changes nothing.
"""

from __future__ import annotations

import math

import numpy as np
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
    """Histograms of each class's score over its positives and its negatives.

    From them follow the precision-recall curve and average precision of one class against the
    rest, equal to scikit-learn's up to scores that share a bin. Scores are log-odds, whose order
    is the order of softmax probabilities. Bins are even in asinh of the log-odds: even bins of
    probability would lose the order of most scores, which lie next to 0 and 1.

    Attributes:
        counts: `(K, T, 2)` int64; last axis negatives, positives.
    """

    NUM_BINS = 8192
    KNEE = 4.0  # log-odds up to which bins are about evenly wide
    LIMIT = 88.0  # log-odds beyond it share the outermost bins; float32's exp ends there

    def __init__(self, num_classes: int, device: torch.device) -> None:
        shape = (num_classes, self.NUM_BINS, 2)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count a batch: logits `(B, K, ...)` float, targets `(B, ...)` int64."""
        num_classes = len(self.counts)
        reach = math.asinh(self.LIMIT / self.KNEE)
        scores = log_odds(logits).div_(self.KNEE).asinh_()
        scores.add_(reach).mul_(self.NUM_BINS / (2 * reach)).clamp_(0, self.NUM_BINS - 1)
        # One number for each count: (class, bin, negative or positive).
        cells = scores.long().mul_(2)
        cells.scatter_add_(1, targets.unsqueeze(1), torch.ones_like(targets).unsqueeze(1))
        shape = (1, num_classes) + (1,) * (logits.ndim - 2)
        classes = torch.arange(num_classes, device=cells.device).view(shape)
        cells += classes * (2 * self.NUM_BINS)
        counted = torch.bincount(cells.flatten(), minlength=self.counts.numel())
        self.counts += counted.view_as(self.counts)


def log_odds(logits: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of softmax probabilities p over dimension 1, exact near 0 and 1."""
    logits = logits.float()
    top, where = logits.max(dim=1, keepdim=True)
    shifted = logits - top
    terms = shifted.exp()
    rest = terms.sum(dim=1, keepdim=True) - terms
    # Next to the largest term, a difference would lose all that the others add up to.
    rest.scatter_(1, where, terms.scatter(1, where, 0.0).sum(dim=1, keepdim=True))
    return shifted.sub_(rest.clamp_(min=1e-38).log_())


def accuracy(counts: np.ndarray) -> float:
    """Return the share of correct predictions from confusion counts `(K, K)`; nan if empty."""
    return _ratio(np.trace(counts), counts.sum())


def class_accuracies(counts: np.ndarray) -> list[float]:
    """Return the share of each class's items that were recognised (recall); nan if absent."""
    return [_ratio(counts[k, k], counts[k].sum()) for k in range(len(counts))]


def intersections_over_union(counts: np.ndarray) -> list[float]:
    """Return IoU per class (Jaccard index) from confusion counts; nan if in neither."""
    union = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    return [_ratio(counts[k, k], union[k]) for k in range(len(counts))]


def precision_recall_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall as the threshold falls, from one class's counts `(T, 2)`.

    Only thresholds at which a score lies are kept; recall is nan if the class is absent.
    """
    kept = counts[counts.sum(axis=1) > 0][::-1]
    negatives, positives = kept[:, 0].cumsum(), kept[:, 1].cumsum()
    total = positives[-1] if len(kept) else 0
    recall = positives / total if total else np.full(len(kept), np.nan)
    return positives / np.maximum(positives + negatives, 1), recall


def average_precision(counts: np.ndarray) -> float:
    """Return average precision of one class from its counts `(T, 2)`; nan if it is absent.

    The sum over thresholds of precision times the step in recall, as defined by
    `sklearn.metrics.average_precision_score`.
    """
    precision, recall = precision_recall_curve(counts)
    if not len(recall) or np.isnan(recall[-1]):
        return float("nan")
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_of_present(values: list[float]) -> float:
    """Return the mean over the values that are not nan; nan if there is none."""
    present = [value for value in values if value == value]
    return _ratio(sum(present), len(present))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
