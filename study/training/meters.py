"""Meters of the two kinds of task: they keep counts and compute metrics from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from study.task import class_key
from study.training import metrics
from study.training.counts import ConfusionMatrix, ImageHistograms, ScoreHistograms, predicted
from study.training.distributed import all_reduce_sum


class ClassificationMeter:
    """Accuracy, overall and per class; keeps each image's prediction and confidence."""

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = [class_key(name) for name in classes]
        self.confusion = ConfusionMatrix(len(classes), device)
        self.predictions: list[Tensor] = []
        self.confidences: list[Tensor] = []
        self.right: list[Tensor] | None = None  # only if asked for

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count logits `(B, K)` and targets `(B,)` int64."""
        confidence, prediction = logits.float().softmax(dim=1).max(dim=1)
        self.confusion.update(prediction, targets)
        self.predictions.append(prediction.to(torch.uint8))
        self.confidences.append(confidence)
        if self.right is not None:
            self.right.append(prediction == targets)

    def keep_images(self) -> None:
        """Start keeping the data for `resampled`."""
        self.right = []

    def resampled(self, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return accuracy `(R,)` with the groups of images weighted by `weights` `(R, G)`."""
        assert self.right is not None
        right = torch.cat(self.right).cpu().numpy()
        num_groups = weights.shape[1]
        hits, images = (np.bincount(groups, w, num_groups) for w in (right, np.ones(len(right))))
        accuracies: np.ndarray = (weights @ hits) / (weights @ images)
        return accuracies

    def reduce(self) -> None:
        """Add up the counts of all ranks."""
        all_reduce_sum([self.confusion.counts])

    def compute(self) -> dict[str, float]:
        """Return `accuracy` and `accuracy/<class>`; absent classes are left out."""
        counts = self.confusion.counts.cpu().numpy()
        result = {"accuracy": metrics.accuracy(counts)}
        for name, value in zip(self.classes, metrics.class_accuracies(counts), strict=True):
            result[f"accuracy/{name}"] = value
        return {name: value for name, value in result.items() if value == value}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return `confusion` `(K, K)`, `predictions` `(n,)` uint8, `confidences` `(n,)`."""
        return {
            "confusion": self.confusion.counts.cpu().numpy(),
            "predictions": torch.cat(self.predictions).cpu().numpy(),
            "confidences": torch.cat(self.confidences).cpu().numpy(),
        }


class SegmentationMeter:
    """Average precision, IoU and pixel accuracy; keeps each image's predicted mask."""

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes = [class_key(name) for name in classes]
        self.confusion = ConfusionMatrix(len(classes), device)
        self.histograms = ScoreHistograms(len(classes), device)
        self.predictions: list[Tensor] = []
        self.images: ImageHistograms | None = None  # only if asked for

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Count logits `(B, K, H, W)` and targets `(B, H, W)` int64."""
        prediction = predicted(logits)
        self.confusion.update(prediction, targets)
        self.histograms.update(logits, targets, prediction)
        self.predictions.append(prediction.to(torch.uint8))
        if self.images is not None:
            self.images.update(logits, targets, prediction)

    def keep_images(self) -> None:
        """Start keeping the data for `resampled`: 80 KB per image with five classes."""
        self.images = ImageHistograms()

    def resampled(self, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return mean AP `(R,)` with the groups of images weighted by `weights` `(R, G)`."""
        assert self.images is not None
        counts = torch.cat(self.images.counts).cpu().numpy()
        summed = np.zeros((weights.shape[1], *counts.shape[1:]), np.float32)  # exact below 2**24
        np.add.at(summed, groups, counts)
        means = []
        for some in np.array_split(weights.astype(np.float32), max(1, len(weights) // 50)):
            resamples = np.tensordot(some, summed, 1).astype(np.float64)
            means.append(np.nanmean(metrics.average_precisions(resamples), axis=1))
        return np.concatenate(means)

    def reduce(self) -> None:
        """Add up the counts of all ranks."""
        all_reduce_sum([self.confusion.counts, self.histograms.counts])

    def compute(self) -> dict[str, float]:
        """Return `mean_ap`, `ap/<class>`, `mean_iou`, `iou/<class>` and `accuracy`.

        A class without pixels has no average precision and is left out of the mean.
        """
        counts = self.confusion.counts.cpu().numpy()
        precisions = [metrics.average_precision(c) for c in self.histograms.counts.cpu().numpy()]
        ious = metrics.intersections_over_union(counts)
        result = {"mean_ap": metrics.mean_of_present(precisions)}
        result |= {f"ap/{k}": v for k, v in zip(self.classes, precisions, strict=True)}
        result["mean_iou"] = metrics.mean_of_present(ious)
        result |= {f"iou/{k}": v for k, v in zip(self.classes, ious, strict=True)}
        result["accuracy"] = metrics.accuracy(counts)
        return {name: value for name, value in result.items() if value == value}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return `confusion`, `histograms` `(K, T, 2)`, `predictions` `(n, H, W)` uint8."""
        return {
            "confusion": self.confusion.counts.cpu().numpy(),
            "histograms": self.histograms.counts.cpu().numpy(),
            "predictions": torch.cat(self.predictions).cpu().numpy(),
        }
