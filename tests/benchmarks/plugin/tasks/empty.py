"""A task with nothing to learn: one number, one image, so that only the platform takes time.

With `EMPTY_UNTRACKED` in the environment nothing goes to MLflow while trials run: a switch of the
benchmark, which the product does not have.
"""

from __future__ import annotations

import math
import os
from typing import Any, Literal

import numpy as np
import torch

from study.datasets.source import DataSource, ImageSet, Splits
from study.task import Meter, Task, TrainConfig


class _Score:
    """Remembers what the network says."""

    def __init__(self) -> None:
        self.value = 0.0

    def update(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        self.value = logits[0, 0].item()

    def reduce(self) -> None:
        pass

    def keep_images(self) -> None:
        pass

    def resampled(self, groups: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return np.full(len(weights), self.value)

    def compute(self) -> dict[str, float]:
        return {"score": self.value, "score/only": self.value}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"score": np.array([self.value])}


class _Number(torch.nn.Module):
    """Says how near the learning rate is to 0.001 and the weight decay to 0.00001."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        far = math.log10(config.learning_rate) + 3, math.log10(config.weight_decay) + 5
        self.score = -math.hypot(*far)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.weight * 0 + self.score).expand(len(images), 1)


class Empty(Task):
    """The task."""

    name = "empty"
    title = "nothing"
    classes = ("only",)
    metric = "val/score"
    class_metric = "score"
    normalization = ((0.0,), (1.0,))

    def identity(self, source: DataSource) -> dict[str, Any]:
        """Return the identity of nothing; only the driver asks."""
        if "EMPTY_UNTRACKED" in os.environ:
            import study.tracking.tracker

            study.tracking.tracker.StudyTracker.touch = lambda self, number: None  # type: ignore
        return {"dataset": "nothing", "checksum": "0", "train": 1, "test": 0}

    def load_splits(self, source: DataSource, config: TrainConfig) -> Splits:
        """Return one image."""
        images, targets = np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.uint8)
        only = ImageSet(images, targets, np.arange(1))
        return Splits(only, only)

    def load_full_size(
        self, source: DataSource, config: TrainConfig, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return one image."""
        return self.load_splits(source, config).val

    def build_model(self, config: TrainConfig) -> torch.nn.Module:
        """Return one number."""
        return _Number(config)

    def loss(
        self, logits: torch.Tensor, targets: torch.Tensor, config: TrainConfig
    ) -> torch.Tensor:
        """Return zero."""
        return logits.mean() * 0

    def build_meter(self, device: torch.device) -> Meter:
        """Return what remembers the score."""
        return _Score()

    def figure_data(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the score."""
        return meter.arrays()


TASK = Empty()
