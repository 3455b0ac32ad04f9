"""Base class of image classification tasks, which add images, class names and a network.

It provides stratified splits, cross-entropy, accuracy and figures.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.config import VAL_SHARE
from study.datasets.source import DataSource, ImageSet, Splits
from study.datasets.splits import stratified_split
from study.errors import InputError
from study.storage.cache import array_checksum
from study.task import Figure, Meter, Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Classification(Task):
    """One class per image, judged by accuracy."""

    metric = "val/accuracy"
    class_metric = "accuracy"

    @abc.abstractmethod
    def load_images(
        self, source: DataSource, split: Literal["train", "test"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return images `(N, C, H, W)` and class indices `(N,)`, both uint8, always the same.

        Every trial calls this. `study.storage.cache.cached` keeps images that are slow to read or
        draw, in memory shared by all processes.
        """

    def identity(self, source: DataSource) -> dict[str, Any]:
        """Read the data set; return checksum and counts.

        Raises:
            InputError: A file is missing.
        """
        try:
            sets = [self.load_images(source, split) for split in ("train", "test")]
        except FileNotFoundError as error:
            raise InputError(
                f"{self.name}: there is no {error.filename}; put the data set there, name its "
                "folder with --data-dir, or try out with --dataset sample."
            ) from None
        (train, _), (test, _) = sets
        return {
            "dataset": self.title if source.dataset == "real" else f"sample ({self.title})",
            "checksum": array_checksum(array for arrays in sets for array in arrays),
            "train": len(train),
            "test": len(test),
        }

    def load_splits(self, source: DataSource, config: Any) -> Splits:
        """Return a stratified split: every class has the same share in both parts."""
        images, targets = self.load_images(source, "train")
        train, val = stratified_split(targets, VAL_SHARE, config.split_seed, config.fold)
        return Splits(ImageSet(images, targets, train), ImageSet(images, targets, val))

    def load_full_size(
        self, source: DataSource, config: Any, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return the validation or test split; class labels have no size to restore."""
        if split == "val":
            return self.load_splits(source, config).val
        images, targets = self.load_images(source, "test")
        return ImageSet(images, targets, np.arange(len(targets)))

    def loss(self, logits: Tensor, targets: Tensor, config: Any) -> Tensor:
        """Return cross-entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets, label_smoothing=config.label_smoothing)

    def build_meter(self, device: torch.device) -> Meter:
        """Return a meter of accuracy, overall and per class."""
        from study.training.meters import ClassificationMeter

        return ClassificationMeter(self.classes, device)

    def figure_data(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the confusion counts."""
        return {"confusion": meter.arrays()["confusion"]}

    def figures(self, figure_data: Mapping[str, np.ndarray], note: str) -> dict[str, Figure]:
        """Draw the confusion matrix and the accuracy per class."""
        from study.figures import plots
        from study.training.metrics import class_accuracies

        confusion = figure_data["confusion"]
        accuracies = class_accuracies(confusion)
        return {
            "confusion_matrix": plots.confusion_matrix(confusion, self.classes, note),
            "accuracy_per_class": plots.class_bars(accuracies, self.classes, "accuracy", note),
        }
