"""Which part of the building is this pixel: facade segmentation, 256x256 RGB, five classes.

python -m study.train facade --image-size 128 --epochs 8
python -m study.tune facade --num-samples 50
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from study.cache import Entry, array_checksum, cached
from study.data import DataSource, ImageSet, Splits
from study.datasets import drawn_facades, mini_facade
from study.split import grouped_split
from study.task import Meter, TrainConfig, Value, setting

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor

VAL_SHARE = 1 / 6  # of the facades
SAMPLE_TRAIN, SAMPLE_TEST = 40, 8  # buildings drawn, three crops each
SAMPLE_SIZE = 128  # pixels, of the drawn crops


@dataclasses.dataclass(frozen=True, kw_only=True)
class FacadeConfig(TrainConfig):
    """Settings of the hourglass baseline."""

    epochs: int = setting(20, "passes over the training split", low=1, searchable=False)
    batch_size: int = setting(8, "images per optimizer step, over all workers", low=1)
    image_size: int = setting(
        256, "height and width of images, pixels, a multiple of 4", low=16, high=256,
        searchable=False,
    )  # fmt: skip
    width1: int = setting(64, "channels of the first convolution", low=1, high=1024)
    width2: int = setting(128, "channels of the second convolution", low=1, high=1024)
    width3: int = setting(256, "channels of the third convolution", low=1, high=1024)
    width4: int = setting(128, "channels of the fourth convolution", low=1, high=1024)
    width5: int = setting(64, "channels of the fifth convolution", low=1, high=1024)
    last_relu: bool = setting(True, "ReLU on the logits, as in the reference project")
    split: str = setting(
        "facade",
        "what is kept on one side: all crops of a facade, or (image) each by itself, which leaks",
        choices=("facade", "image"),
        searchable=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % 4:
            from study.errors import InputError

            raise InputError(f"image_size must be a multiple of 4, but got {self.image_size}.")


class Facade:
    """mini-facade as a `study.task.Task`."""

    name = "facade"
    title = "building-facade segmentation"
    classes = mini_facade.CLASSES
    metric = "val/mean_ap"
    mode: Literal["max", "min"] = "max"
    class_metric = "ap"
    config_class: type[TrainConfig] = FacadeConfig
    sample_settings: Mapping[str, Value] = {"image_size": 64, "epochs": 4}
    # Of the 906 training images of the starter set.
    normalization = ((0.496, 0.466, 0.425), (0.222, 0.213, 0.211))
    downloads = False
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
                if split == "train":
                    np.save(draft / "train_groups.npy", groups)
                    np.save(draft / "train_shares.npy", mini_facade.class_shares(targets))
            return {
                "dataset": "sample facades (drawn by the program)",
                "checksum": array_checksum(drawn),
                "train": SAMPLE_TRAIN * drawn_facades.CROPS,
                "test": SAMPLE_TEST * drawn_facades.CROPS,
                "facades": SAMPLE_TRAIN,
                "grouped_by": "construction",
            }

        key = [SAMPLE_TRAIN, SAMPLE_TEST, SAMPLE_SIZE, drawn_facades.VERSION]
        return cached(source.cache_dir, "facade-sample", key, build)

    def load_splits(self, source: DataSource, config: FacadeConfig) -> Splits:
        """Return the split by facade: images `(N, 3, S, S)` and targets `(N, S, S)`, uint8."""
        entry = self._load(source)
        groups = entry.array("train_groups")
        if config.split == "image":
            groups = np.arange(len(groups))
        train, val = grouped_split(
            groups, entry.array("train_shares"), VAL_SHARE, config.split_seed
        )
        scaled = mini_facade.resized(entry, source, config.image_size)
        images, targets = scaled.array("train_images"), scaled.array("train_targets")
        return Splits(ImageSet(images, targets, train), ImageSet(images, targets, val))

    def load_full_size(
        self, source: DataSource, config: FacadeConfig, split: Literal["val", "test"]
    ) -> ImageSet:
        """Return images at `image_size` with masks at the data set's own size."""
        entry = self._load(source)
        if split == "val":
            val = self.load_splits(source, config).val
            return ImageSet(val.images, entry.array("train_targets"), val.indices)
        scaled = mini_facade.resized(entry, source, config.image_size)
        images, targets = scaled.array("test_images"), entry.array("test_targets")
        return ImageSet(images, targets, np.arange(len(targets)))

    def build_model(self, config: FacadeConfig) -> torch.nn.Module:
        """Return the hourglass network."""
        from study.models import HourglassNet

        widths = (config.width1, config.width2, config.width3, config.width4, config.width5)
        return HourglassNet(widths, len(self.classes), config.last_relu)

    def loss(self, logits: Tensor, targets: Tensor, config: FacadeConfig) -> Tensor:
        """Return cross-entropy over all pixels."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, targets)

    def build_meter(self, device: torch.device) -> Meter:
        """Return average precision, IoU and pixel accuracy."""
        from study.meters import SegmentationMeter

        return SegmentationMeter(self.classes, device)

    def evidence(
        self, model: torch.nn.Module, meter: Meter, images: ImageSet
    ) -> dict[str, np.ndarray]:
        """Return counts, and the best, median and worst images by pixel accuracy."""
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

    def figures(self, evidence: Mapping[str, np.ndarray], note: str) -> dict[str, Figure]:
        """Draw precision-recall curves, AP and IoU per class, confusion matrix and examples."""
        from study import figures, metrics

        histograms, confusion = evidence["histograms"], evidence["confusion"]
        curves = [metrics.precision_recall_curve(counts) for counts in histograms]
        precisions = [metrics.average_precision(counts) for counts in histograms]
        ious = metrics.intersections_over_union(confusion)
        colors = [figures.hex_color(color) for color in mini_facade.PALETTE]
        scores = [f"{100 * score:.1f} % of pixels right" for score in evidence["scores"]]
        return {
            "precision_recall": figures.precision_recall(
                curves, precisions, self.classes, colors, note
            ),
            "ap_per_class": figures.class_bars(precisions, self.classes, "average precision", note),
            "iou_per_class": figures.class_bars(ious, self.classes, "IoU", note),
            "confusion_matrix": figures.confusion_matrix(confusion, self.classes, note),
            "segmentations": figures.segmentations(
                evidence["images"],
                evidence["targets"],
                evidence["predictions"],
                scores,
                mini_facade.PALETTE,
                self.classes,
                note,
            ),
        }


def _enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Return images `(n, 3, S, S)` with pixels repeated to `size`, to lie over masks."""
    if images.shape[-1] == size:
        return images
    nearest = np.arange(size) * images.shape[-1] // size
    return images[:, :, nearest][..., nearest]


TASK = Facade()
