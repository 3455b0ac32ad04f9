"""Batches by index from a memory-mapped set: no worker processes, no per-image Python.

Images stay uint8 until a batch is on the device, where one pass converts and normalises it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from study.data import ImageSet
from study.distributed import rank, world_size

# A set that takes more than this part of the free GPU memory is streamed from host memory.
RESIDENT_SHARE = 0.4


class Batches:
    """Serves one rank's share of an image set as normalised batches on a device.

    Args:
        images: The set.
        device: Where batches go.
        normalization: Mean and deviation per channel, of images in [0, 1].
    """

    def __init__(
        self,
        images: ImageSet,
        device: torch.device,
        normalization: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        self.device = device
        self.indices = torch.from_numpy(images.indices)
        self.images = torch.from_numpy(images.images)
        self.targets = torch.from_numpy(images.targets)
        if device.type == "cuda":
            num_bytes = self.images.nbytes + self.targets.nbytes
            if num_bytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
                self.images, self.targets = self.images.to(device), self.targets.to(device)
        mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in normalization)
        self.scale = (1 / (255 * deviation)).to(device)
        self.offset = (-mean / deviation).to(device)

    def training(
        self, batch_size: int, seed: Sequence[int], skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's part of every global batch but the first `skip`, as `seed` orders them.

        Ranks get disjoint parts. An incomplete last batch is dropped, unless it is the only one:
        its gradient would count for as much as a full batch's.
        """
        order = torch.from_numpy(np.random.default_rng(list(seed)).permutation(len(self.indices)))
        num_batches = max(1, len(order) // batch_size)
        for number in range(skip, num_batches):
            batch = order[number * batch_size : (number + 1) * batch_size]
            yield self._gather(batch[rank() :: world_size()])

    def evaluation(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's images in order, each image on exactly one rank."""
        share = torch.arange(rank(), len(self.indices), world_size())
        for start in range(0, len(share), batch_size):
            yield self._gather(share[start : start + batch_size])

    def num_training_batches(self, batch_size: int) -> int:
        """Return how many batches `training` yields."""
        return max(1, len(self.indices) // batch_size)

    def _gather(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return images `(B, C, H, W)` float32, normalised, and targets `(B, ...)` int64."""
        chosen = self.indices[positions].to(self.images.device)
        images = self.images[chosen].to(self.device, non_blocking=True)
        targets = self.targets[chosen].to(self.device, non_blocking=True)
        return images.float().mul_(self.scale).add_(self.offset), targets.long()
