"""Batches by index from a memory-mapped set: no worker processes, no per-image Python.

Images stay uint8 until a batch is on the device, where one pass converts, normalises and augments
it. On a GPU the whole set is kept in GPU memory if it fits; else batches stream from host memory,
and the next ones are gathered and copied while one is computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from study.datasets.source import ImageSet
from study.training.augmentation import Augmentation
from study.training.distributed import rank, world_size

# A set larger than this fraction of the free GPU memory is streamed from host memory.
RESIDENT_SHARE = 0.4
NUM_AHEAD = 2  # batches gathered in advance when streaming

Pair = tuple[Tensor, Tensor]


class Batches:
    """Serves one rank's share of an image set as normalised batches on a device.

    Args:
        images: The image set.
        device: Device of the batches.
        normalization: Mean and standard deviation per channel, for images in [0, 1].
        beside: Batches over the same arrays, which are then stored only once.
        streaming: Whether batches come from host memory one by one; None to stream only if the
            set does not fit.
    """

    def __init__(
        self,
        images: ImageSet,
        device: torch.device,
        normalization: tuple[Sequence[float], Sequence[float]],
        *,
        beside: Batches | None = None,
        streaming: bool | None = None,
    ) -> None:
        self.device = device
        self.source = images
        self.images: Tensor
        self.targets: Tensor
        if beside is not None and images.images is beside.source.images:
            self.images, self.targets, streaming = beside.images, beside.targets, beside.streaming
        else:
            self.images = torch.from_numpy(images.images)
            self.targets = torch.from_numpy(images.targets)
            if streaming is None:
                streaming = device.type == "cuda" and not self._fits()
            if not streaming:
                self.images, self.targets = self.images.to(device), self.targets.to(device)
        self.streaming: bool = bool(streaming)
        self.indices = torch.from_numpy(images.indices).to(self.images.device)
        mean, deviation = (torch.tensor(v).view(1, -1, 1, 1) for v in normalization)
        self.scale = (1 / (255 * deviation)).to(device)
        self.offset = (-mean / deviation).to(device)

    def _fits(self) -> bool:
        num_bytes = self.images.nbytes + self.targets.nbytes
        return bool(num_bytes < RESIDENT_SHARE * torch.cuda.mem_get_info(self.device)[0])

    def training(
        self,
        batch_size: int,
        seed: Sequence[int],
        skip: int = 0,
        augmentation: Augmentation | None = None,
    ) -> Iterator[Pair]:
        """Yield this rank's part of every global batch after the first `skip`, shuffled by `seed`.

        Ranks get disjoint parts. An incomplete last batch is dropped, unless it is the only one:
        its gradient would count as much as a full batch's.
        """
        shuffled = np.random.default_rng(list(seed)).permutation(len(self.indices))
        order = torch.from_numpy(shuffled).to(self.indices.device)
        global_batches = (
            order[number * batch_size : (number + 1) * batch_size]
            for number in range(skip, self.num_training_batches(batch_size))
        )
        chosen = (batch[rank() :: world_size()] for batch in global_batches)
        for images, targets in self._served(chosen):
            if augmentation is None:
                yield images, targets
            else:
                yield augmentation(images, targets, self.offset)

    def evaluation(self, batch_size: int) -> Iterator[Pair]:
        """Yield this rank's images in order, each image on exactly one rank."""
        places = torch.arange(len(self.indices), device=self.indices.device)
        share = places[rank() :: world_size()]
        return self._served(torch.split(share, batch_size))

    def num_training_batches(self, batch_size: int) -> int:
        """Return the number of batches `training` yields."""
        return max(1, len(self.indices) // batch_size)

    def _served(self, chosen: Iterable[Tensor]) -> Iterator[Pair]:
        """Yield images `(B, C, H, W)` float32, normalised, and targets `(B, ...)` int64."""
        for images, targets in self._ahead(chosen) if self.streaming else map(self._pick, chosen):
            images = images.to(self.device, non_blocking=True)
            targets = targets.to(self.device, non_blocking=True)
            inputs = images.to(torch.float32, memory_format=torch.channels_last)
            yield inputs.mul_(self.scale).add_(self.offset), targets.long()

    def _pick(self, places: Tensor) -> Pair:
        rows = self.indices[places]
        return self.images[rows], self.targets[rows]

    def _pinned(self, places: Tensor) -> Pair:
        """Pick into page-locked memory, from which a GPU copies while it computes."""
        images, targets = self._pick(places)
        if self.device.type == "cuda":
            images, targets = images.pin_memory(), targets.pin_memory()
        return images, targets

    def _ahead(self, chosen: Iterable[Tensor]) -> Iterator[Pair]:
        """Yield batches while a thread gathers the next `NUM_AHEAD`."""
        waiting: deque[Future[Pair]] = deque()
        with ThreadPoolExecutor(1, "batches") as thread:
            for places in chosen:
                waiting.append(thread.submit(self._pinned, places))
                if len(waiting) > NUM_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
