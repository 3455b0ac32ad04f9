"""Fashion-MNIST with trials that go wrong in ways their `fault` names, for real.

In `$FAULTS` trials that begin and faults that strike once leave a mark, and while there is a file
`hold` trials wait; `$PAUSE` is in seconds per batch. With the fault `eats` trial 0 takes `$EATS`
MiB for a whole batch.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import torch

from study.task import setting
from study.tasks.fashion import Fashion, FashionConfig

eaten = bytearray()
FAULTS = ("none", "raises", "raises-once", "memory", "dies-once", "hangs-once", "eats")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultyConfig(FashionConfig):
    """Settings of the task."""

    fault: str = setting("none", "what goes wrong in epoch 2; cycle: by the seed", choices=FAULTS)
    cycle: bool = setting(False, "take the fault whose number is the seed's")


class Faulty(Fashion):
    """The task."""

    name = "faulty"
    title = "Fashion-MNIST with faults"
    config_class = FaultyConfig

    def loss(
        self, logits: torch.Tensor, targets: torch.Tensor, config: FaultyConfig
    ) -> torch.Tensor:
        """Return cross-entropy, unless this is where something goes wrong."""
        (Path(os.environ["FAULTS"]) / f"began-{config.seed}").touch()
        time.sleep(float(os.environ.get("PAUSE", 0)))
        while (Path(os.environ["FAULTS"]) / "hold").exists():
            time.sleep(0.1)
        fault = FAULTS[config.seed % len(FAULTS)] if config.cycle else config.fault
        seen = Path(os.environ["FAULTS"]) / str(config.seed)
        first = not seen.exists()
        if logits.requires_grad and first and self._second_epoch(config):
            if fault.endswith("-once"):
                seen.write_text(str(os.getpid()))
            if fault.startswith("raises"):
                raise OSError(5, "Input/output error")
            if fault == "dies-once":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "hangs-once":
                time.sleep(3600)
        if fault == "memory" and len(targets) > config.batch_size // 4:
            torch.empty(2**55)  # more than there is
        if fault == "eats" and config.seed == 0:
            size = int(os.environ["EATS"]) * 2**20 * len(targets) // config.batch_size
            if size > len(eaten):
                eaten.extend(b"x" * (size - len(eaten)))
                time.sleep(2)  # in which Ray's memory monitor sees it
        return super().loss(logits, targets, config)

    def _second_epoch(self, config: FaultyConfig) -> bool:
        """Return whether the trial has saved an epoch."""
        folder = Path(os.environ["FAULTS"]).parent / "studies" / "faulty" / "trials"
        number = config.seed - int(os.environ.get("STUDY_SEED", "0"))
        return (folder / f"{number:04d}" / "last.pt").exists()


TASK = Faulty()
