"""Garment classification: Fashion-MNIST, 28x28 grey images of ten classes.

python -m study.train fashion --epochs 6
python -m study.tune fashion --num-samples 20
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.classification import Classification
from study.datasets import drawn_garments, fashion_mnist
from study.datasets.source import DataSource, ImageSet
from study.storage.cache import Entry, array_checksum, cached
from study.task import OBJECT, Figure, Meter, TrainConfig, Value, setting

if TYPE_CHECKING:
    import torch


NUM_EXAMPLES = 6  # per class in figures, for right and wrong predictions each
SAMPLE_TRAIN, SAMPLE_TEST = 3000, 500  # images drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class FashionConfig(TrainConfig):
    """Settings of the two-convolution baseline and of a small residual network."""

    epochs: int = setting(6, "passes over the training split", low=1, searchable=False)
    model: str = setting("two_conv", "network family", choices=("two_conv", "residual"))
    width1: int = setting(32, "two_conv: channels of the first convolution", low=1, high=1024)
    width2: int = setting(32, "two_conv: channels of the second convolution", low=1, high=1024)
    hidden: int = setting(128, "two_conv: units of the fully connected layer", low=1, high=8192)
    kernel_size: int = setting(
        5, "two_conv: height and width of both kernels, pixels", low=1, high=13
    )
    batch_norm: bool = setting(False, "two_conv: batch normalisation after both convolutions")
    width: int = setting(16, "residual: channels of the first of three stages", low=1, high=256)
    blocks: int = setting(1, "residual: blocks per stage", low=1, high=18)
    stem_pool: bool = setting(False, "residual: 2x2 max pooling before the first stage")
    dropout: float = setting(0.0, "dropout probability in the head", low=0.0, high=0.9)


class Fashion(Classification):
    """The garment classification task on Fashion-MNIST."""

    name = "fashion"
    title = "Fashion-MNIST classification"
    classes = fashion_mnist.CLASSES
    config_class: type[TrainConfig] = FashionConfig
    sample_settings: Mapping[str, Value] = {"epochs": 4, "batch_size": 64}
    normalization = ((0.2860,), (0.3530,))  # of the 60,000 training images
    downloads = True
    shows = OBJECT

    def acquire(self, source: DataSource, paths: Sequence[Path]) -> None:
        """Import Fashion-MNIST, or download what is missing."""
        fashion_mnist.acquire(source, paths)

    def identity(self, source: DataSource) -> dict[str, Any]:
        """Verify and cache the data set; return checksum and counts."""
        return self._load(source).meta

    def _load(self, source: DataSource) -> Entry:
        if source.dataset == "real":
            return fashion_mnist.load(source)

        def build(draft: Path) -> dict[str, Any]:
            drawn = []
            for seed, (split, num) in enumerate([("train", SAMPLE_TRAIN), ("test", SAMPLE_TEST)]):
                images, targets = drawn_garments.draw_set(num, seed)
                drawn += [images, targets]
                np.save(draft / f"{split}_images.npy", images)
                np.save(draft / f"{split}_targets.npy", targets)
            return {
                "dataset": "sample garments (drawn by the program)",
                "checksum": array_checksum(drawn),
                "train": SAMPLE_TRAIN,
                "test": SAMPLE_TEST,
            }

        key = [SAMPLE_TRAIN, SAMPLE_TEST, drawn_garments.VERSION]
        return cached(source.cache_dir, "fashion-sample", key, build)

    def load_images(
        self, source: DataSource, split: Literal["train", "test"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return images `(N, 1, 28, 28)` and classes `(N,)`, uint8, memory-mapped."""
        entry = self._load(source)
        return entry.array(f"{split}_images"), entry.array(f"{split}_targets")

    def build_model(self, config: FashionConfig) -> torch.nn.Module:
        """Return a network of the family `model`."""
        from study.training.models import ResidualNet, TwoConv

        num_classes = len(self.classes)
        if config.model == "residual":
            sizes = (config.width, config.blocks, config.dropout, num_classes)
            return ResidualNet(*sizes, stem_pool=config.stem_pool)
        return TwoConv(
            (config.width1, config.width2),
            config.hidden,
            config.kernel_size,
            num_classes,
            batch_norm=config.batch_norm,
            dropout=config.dropout,
        )

    def figure_data(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the confusion counts, examples by class and the first layer's filters."""
        from torch.nn import Conv2d

        arrays = meter.arrays()
        shape = (len(self.classes), NUM_EXAMPLES)
        result = super().figure_data(model, meter, images)
        indices = images.indices
        targets = images.targets[indices]
        for kind in ("right", "wrong"):
            chosen = np.zeros((*shape, *images.images.shape[2:]), np.uint8)
            confidences = np.full(shape, np.nan, np.float32)
            taken_for = np.zeros(shape, np.uint8)
            for label in range(len(self.classes)):
                match = (arrays["predictions"] == targets) == (kind == "right")
                found = np.flatnonzero((targets == label) & match)
                found = found[np.argsort(-arrays["confidences"][found], kind="stable")]
                found = found[:NUM_EXAMPLES]
                chosen[label, : len(found)] = images.images[indices[found], 0]
                confidences[label, : len(found)] = arrays["confidences"][found]
                taken_for[label, : len(found)] = arrays["predictions"][found]
            result[f"{kind}_images"] = chosen
            result[f"{kind}_confidences"] = confidences
            result[f"{kind}_taken_for"] = taken_for
        first = next(layer for layer in model.modules() if isinstance(layer, Conv2d))
        result["filters"] = first.weight.detach().cpu().numpy()
        return result

    def figures(self, figure_data: Mapping[str, np.ndarray], note: str) -> dict[str, Figure]:
        """Draw the confusion matrix, accuracy per class, examples and filters."""
        from study.figures import image_plots

        right = (figure_data["right_images"], figure_data["right_confidences"])
        wrong = (
            figure_data["wrong_images"],
            figure_data["wrong_confidences"],
            figure_data["wrong_taken_for"],
        )
        return {
            **super().figures(figure_data, note),
            "right_and_wrong": image_plots.right_and_wrong(right, wrong, self.classes, note),
            "filters": image_plots.filters(figure_data["filters"], note),
        }


TASK = Fashion()
