"""Fashion-MNIST that notes in the file `$FIRST_STEP` when its first training step was taken."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from study.task import TrainConfig
from study.tasks.fashion import Fashion


class Timed(Fashion):
    """The task."""

    name = "timed"
    title = "Fashion-MNIST with a clock"

    def loss(
        self, logits: torch.Tensor, targets: torch.Tensor, config: TrainConfig
    ) -> torch.Tensor:
        """Return cross-entropy; it is asked for once the first batch is through the network."""
        place = Path(os.environ["FIRST_STEP"])
        if not place.exists():
            place.write_text(str(time.time()))
        return super().loss(logits, targets, config)


TASK = Timed()
