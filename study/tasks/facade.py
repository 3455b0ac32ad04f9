"""Facade segmentation: building parts in 256x256 RGB photographs, five classes.

python -m study.train facade --image-size 128 --epochs 8
python -m study.tune facade --num-samples 50
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.config import VAL_SHARE
from study.datasets import drawn_facades, mini_facade
from study.datasets.source import DataSource, ImageSet, Splits
from study.datasets.splits import grouped_split
from study.errors import InputError
from study.storage.cache import Entry, array_checksum, cached
from study.task import Figure, Meter, Task, TrainConfig, Value, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor


SAMPLE_TRAIN, SAMPLE_TEST = 40, 8  # buildings drawn, three crops each
# Share of pixels by class in the starter set's training images (`split_seed` 0).
SHARES = (0.356, 0.405, 0.024, 0.165, 0.051)
SAMPLE_SIZE = 128  # pixels, of the drawn crops


@dataclasses.dataclass(frozen=True, kw_only=True)
class FacadeConfig(TrainConfig):
    """Settings of the hourglass baseline and of a U-Net."""

    epochs: int = setting(20, "passes over the training split", low=1, searchable=False)
    batch_size: int = setting(8, "images per optimizer step, over all workers", low=1)
    image_size: int = setting(
        256,
        "height and width of images in pixels: a multiple of 4, with a unet of 2^depth",
        low=16,
        high=256,
        searchable=False,
    )
    model: str = setting("hourglass", "network family", choices=("hourglass", "unet"))
    width1: int = setting(64, "hourglass: channels of the first convolution", low=1, high=1024)
    width2: int = setting(128, "hourglass: channels of the second convolution", low=1, high=1024)
    width3: int = setting(256, "hourglass: channels of the third convolution", low=1, high=1024)
    width4: int = setting(128, "hourglass: channels of the fourth convolution", low=1, high=1024)
    width5: int = setting(64, "hourglass: channels of the fifth convolution", low=1, high=1024)
    last_relu: bool = setting(
        True, "hourglass: apply ReLU to the logits, as the reference project does"
    )
    depth: int = setting(4, "unet: number of times the size is halved", low=1, high=8)
    width: int = setting(16, "unet: channels at full size", low=8, high=256)
    growth: float = setting(
        1.6,
        "unet: factor by which channels grow with each halving, in steps of eight",
        low=1.0,
        high=2.0,
    )
    block: str = setting("plain", "unet: kind of convolution pairs", choices=("plain", "residual"))
    norm: str = setting("batch", "unet: kind of normalisation", choices=("batch", "group"))
    dropout: float = setting(
        0.0,
        "unet: channel dropout probability at the coarsest and the last level",
        low=0.0,
        high=0.9,
    )
    loss: str = setting(
        "cross_entropy",
        "training loss; dice and lovasz are mixed with cross-entropy",
        choices=("cross_entropy", "weighted", "dice", "lovasz"),
    )
    class_power: float = setting(
        0.5,
        "weighted: a class weighs its share of pixels to the power of minus this",
        low=0.0,
        high=1.0,
    )
    region_share: float = setting(
        0.5, "dice, lovasz: fraction of the loss; cross-entropy is the rest", low=0.0, high=1.0
    )
    split: str = setting(
        "facade",
        "what the split keeps together: all crops of a facade, or (image) nothing, which leaks",
        choices=("facade", "image"),
        searchable=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple = 2**self.depth if self.model == "unet" else 4
        if self.image_size % multiple:
            why = f" (depth={self.depth})" if self.model == "unet" else ""
            raise InputError(
                f"image_size must be a multiple of {multiple}{why}, but got {self.image_size}."
            )


class Facade(Task):
    """The facade segmentation task on mini-facade."""

    name = "facade"
    title = "building-facade segmentation"
    classes = mini_facade.CLASSES
    metric = "val/mean_ap"
    class_metric = "ap"
    config_class: type[TrainConfig] = FacadeConfig
    sample_settings: Mapping[str, Value] = {"image_size": 64, "epochs": 4}
    # Of the 906 training images of the starter set.
    normalization = ((0.496, 0.466, 0.425), (0.222, 0.213, 0.211))
    colors = mini_facade.PALETTE

    def acquire(self, source: DataSource, paths: Sequence[Path]) -> None:
        """Import a starter set or build one from the CMP Facade Database."""
        mini_facade.acquire(source, paths)

    def identity(self, source: DataSource) -> dict[str, Any]:
        """Verify and cache the data set; return checksum and counts."""
        return self._load(source).meta

    def _load(self, source: DataSource) -> Entry:
        if source.dataset == "real":
            return mini_facade.load(source)

        def build(draft: Path) -> dict[str, Any]:
            drawn = []
            for seed, (split, num) in enumerate([("train", SAMPLE_TRAIN), ("test", SAMPLE_TEST)]):
                images, targets, groups = drawn_facades.draw_set(num, seed, SAMPLE_SIZE)
                drawn += [images, targets]
                np.save(draft / f"{split}_images.npy", images)
                np.save(draft / f"{split}_targets.npy", targets)
                np.save(draft / f"{split}_groups.npy", groups)
                if split == "train":
                    np.save(draft / "train_shares.npy", mini_facade.class_shares(targets))
            return {
                "dataset": "sample facades (drawn by the program)",
                "checksum": array_checksum(drawn),
                "train": SAMPLE_TRAIN * drawn_facades.CROPS,
                "test": SAMPLE_TEST * drawn_facades.CROPS,
                "facades": SAMPLE_TRAIN,
                "grouped_by": "construction",
            }

        key = [mini_facade.LAYOUT, SAMPLE_TRAIN, SAMPLE_TEST, SAMPLE_SIZE, drawn_facades.VERSION]
        return cached(source.cache_dir, "facade-sample", key, build)

    def load_splits(self, source: DataSource, config: FacadeConfig) -> Splits:
        """Return images `(N, 3, S, S)` and targets `(N, S, S)`, uint8, split by facade."""
        entry = self._load(source)
        groups = entry.array("train_groups")
        kept = groups if config.split == "facade" else np.arange(len(groups))
        train, val = grouped_split(
            kept,
            entry.array("train_shares"),
            VAL_SHARE,
            config.split_seed,
            config.fold,
        )
        scaled = mini_facade.resized(entry, source, config.image_size)
        images, targets = scaled.array("train_images"), scaled.array("train_targets")
        return Splits(
            ImageSet(images, targets, train, groups), ImageSet(images, targets, val, groups)
        )

    def load_full_size(
        self, source: DataSource, config: FacadeConfig, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return images at `image_size` with masks at the data set's own size."""
        entry = self._load(source)
        if split == "val":
            val = self.load_splits(source, config).val
            return ImageSet(val.images, entry.array("train_targets"), val.indices, val.groups)
        scaled = mini_facade.resized(entry, source, config.image_size)
        images, targets = scaled.array("test_images"), entry.array("test_targets")
        groups = entry.array("test_groups")
        return ImageSet(images, targets, np.arange(len(targets)), groups)

    def build_model(self, config: FacadeConfig) -> torch.nn.Module:
        """Return a network of the family `model`."""
        from study.training.models import HourglassNet, UNet

        if config.model == "unet":
            levels = (config.width * config.growth**level for level in range(config.depth + 1))
            channels = [max(8, 8 * round(width / 8)) for width in levels]
            residual = config.block == "residual"
            return UNet(channels, residual, config.norm, config.dropout, len(self.classes))
        widths = (config.width1, config.width2, config.width3, config.width4, config.width5)
        return HourglassNet(widths, len(self.classes), config.last_relu)

    def loss(self, logits: Tensor, targets: Tensor, config: FacadeConfig) -> Tensor:
        """Return cross-entropy over all pixels, or the variant chosen by `loss`."""
        from torch.nn.functional import cross_entropy

        from study.training import losses

        smoothing = config.label_smoothing
        if config.loss == "weighted":
            weights = losses.class_weights(SHARES, config.class_power)
            return losses.weighted_cross_entropy(logits, targets, weights, smoothing)
        pixels = cross_entropy(logits, targets, label_smoothing=smoothing)
        if config.loss == "cross_entropy":
            return pixels
        regions = (losses.dice if config.loss == "dice" else losses.lovasz)(logits, targets)
        return (1 - config.region_share) * pixels + config.region_share * regions

    def build_meter(self, device: torch.device) -> Meter:
        """Return average precision, IoU and pixel accuracy."""
        from study.training.meters import SegmentationMeter

        return SegmentationMeter(self.classes, device)

    def figure_data(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return the counts, and the best, median and worst images by pixel accuracy."""
        arrays = meter.arrays()
        targets = images.targets[images.indices]
        scores = (arrays["predictions"] == targets).mean(axis=(1, 2))
        order = np.argsort(-scores, kind="stable")
        middle = len(order) // 2
        chosen = np.unique([0, 1, middle - 1, middle, len(order) - 2, len(order) - 1])
        places = order[chosen[(chosen >= 0) & (chosen < len(order))]]
        return {
            "confusion": arrays["confusion"],
            "histograms": arrays["histograms"],
            "images": _enlarged(images.images[images.indices[places]], targets.shape[1]),
            "targets": targets[places],
            "predictions": arrays["predictions"][places],
            "scores": scores[places],
        }

    def figures(self, figure_data: Mapping[str, np.ndarray], note: str) -> dict[str, Figure]:
        """Draw precision-recall curves, AP and IoU per class, confusion matrix and examples."""
        from study.figures import image_plots, plots
        from study.training import metrics

        histograms, confusion = figure_data["histograms"], figure_data["confusion"]
        curves = [metrics.precision_recall_curve(counts) for counts in histograms]
        precisions = [metrics.average_precision(counts) for counts in histograms]
        ious = metrics.intersections_over_union(confusion)
        colors = [plots.hex_color(color) for color in mini_facade.PALETTE]
        shown = figure_data["scores"]  # best, median and worst images
        words = [("best", "median", "worst")[3 * k // len(shown)] for k in range(len(shown))]
        scores = [f"{w}: {100 * score:.1f} % right" for w, score in zip(words, shown, strict=True)]
        return {
            "precision_recall": plots.precision_recall(
                curves, precisions, self.classes, colors, note
            ),
            "ap_per_class": plots.class_bars(
                precisions, self.classes, "average precision", note, colors
            ),
            "iou_per_class": plots.class_bars(ious, self.classes, "IoU", note, colors),
            "confusion_matrix": plots.confusion_matrix(confusion, self.classes, note),
            "segmentations": image_plots.segmentations(
                figure_data["images"],
                figure_data["targets"],
                figure_data["predictions"],
                scores,
                mini_facade.PALETTE,
                self.classes,
                note,
            ),
        }


def _enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Return images `(n, 3, S, S)` with pixels repeated to `size`, the size of the masks."""
    if images.shape[-1] == size:
        return images
    nearest = np.arange(size) * images.shape[-1] // size
    return images[:, :, nearest][..., nearest]


TASK = Facade()
