"""Fashion-MNIST with as many images as asked for, to measure what a trial takes beside them."""

from __future__ import annotations

import dataclasses

from study.datasets.source import DataSource, ImageSet, Splits
from study.task import setting
from study.tasks.fashion import Fashion, FashionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewConfig(FashionConfig):
    """Settings of the task."""

    train_images: int = setting(64, "images to train with", low=1, searchable=False)
    val_images: int = setting(64, "images to validate with", low=1, searchable=False)


class Few(Fashion):
    """The task."""

    name = "few"
    title = "some of Fashion-MNIST"
    config_class = FewConfig

    def load_splits(self, source: DataSource, config: FewConfig) -> Splits:
        """Return the first images of both parts of the split."""
        splits = super().load_splits(source, config)
        parts = zip(
            (splits.train, splits.val), (config.train_images, config.val_images), strict=True
        )
        return Splits(*(ImageSet(s.images, s.targets, s.indices[:num]) for s, num in parts))


TASK = Few()
