"""Scores from summed counts (`study.training.counts`), divided only once at the end.

So a short last batch or uneven shards change nothing. Shapes: K classes, T bins of scores.
"""

from __future__ import annotations

import numpy as np


def accuracy(counts: np.ndarray) -> float:
    """Return the fraction of correct predictions from confusion counts `(K, K)`; nan if empty."""
    return _ratio(np.trace(counts), counts.sum())


def class_accuracies(counts: np.ndarray) -> list[float]:
    """Return the fraction of each class's items classified correctly (recall); nan if absent."""
    return [_ratio(counts[k, k], counts[k].sum()) for k in range(len(counts))]


def intersections_over_union(counts: np.ndarray) -> list[float]:
    """Return IoU (Jaccard index) per class from confusion counts; nan if in neither."""
    union = counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    return [_ratio(counts[k, k], union[k]) for k in range(len(counts))]


def precision_recall_curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall as the threshold falls, from one class's counts `(T, 2)`.

    Only thresholds that occur as scores are kept; recall is nan if the class is absent.
    """
    kept = counts[counts.sum(axis=1) > 0][::-1]
    negatives, positives = kept[:, 0].cumsum(), kept[:, 1].cumsum()
    total = positives[-1] if len(kept) else 0
    recall = positives / total if total else np.full(len(kept), np.nan)
    return positives / np.maximum(positives + negatives, 1), recall


def average_precision(counts: np.ndarray) -> float:
    """Return the average precision of one class from its counts `(T, 2)`; nan if it is absent.

    It is the sum over thresholds of precision times the step in recall, as defined by
    `sklearn.metrics.average_precision_score`.
    """
    precision, recall = precision_recall_curve(counts)
    if not len(recall) or np.isnan(recall[-1]):
        return float("nan")
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def average_precisions(counts: np.ndarray) -> np.ndarray:
    """Return average precisions from counts `(..., T, 2)`, like `average_precision`."""
    positives = counts[..., ::-1, 1]
    recalled = positives.cumsum(axis=-1)
    precision = recalled / np.maximum(counts[..., ::-1, :].sum(axis=-1).cumsum(axis=-1), 1)
    with np.errstate(invalid="ignore"):
        values: np.ndarray = (positives * precision).sum(axis=-1) / recalled[..., -1]
    return values


def mean_of_present(values: list[float]) -> float:
    """Return the mean of the values that are not nan; nan if there are none."""
    present = [value for value in values if value == value]
    return _ratio(sum(present), len(present))


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")
