"""Augmentation of a whole batch in one pass on its device; masks are transformed with their images.

Off by default. Each kind is a setting that can be searched:

    python -m study.train fashion --flip 0.5 --shift 0.07
    python -m study.tune facade --set flip=0.5 --set crop=0.6 --set brightness=0.2
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from study.config import TrainConfig

ERASED = (0.02, 0.2)  # erased fraction of the image area, from the paper below
ERASED_ASPECT = (0.3, 3.3)  # height to width, from the same paper


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augments each image independently, with torch's random generator.

    Attributes:
        flip: Probability of a horizontal flip.
        shift: Largest shift in both directions, as a fraction of the size; by whole pixels, unless
            images are cropped, which interpolates anyway.
        crop: Smallest side of a crop that is enlarged to full size, as a fraction of it.
        erase: Probability of erasing a rectangle (Zhong et al. 2020, "Random Erasing Data
            Augmentation"); targets are unchanged.
        brightness: Largest relative change of brightness, up or down.
    """

    flip: float
    shift: float
    crop: float
    erase: float
    brightness: float

    @staticmethod
    def of(config: TrainConfig) -> Augmentation | None:
        """Return the augmentation of a config; None if all of it is off."""
        names = [field.name for field in dataclasses.fields(Augmentation)]
        asked = Augmentation(**{name: getattr(config, name) for name in names})
        off = Augmentation(flip=0.0, shift=0.0, crop=1.0, erase=0.0, brightness=0.0)
        return None if asked == off else asked

    def __call__(self, images: Tensor, targets: Tensor, black: Tensor) -> tuple[Tensor, Tensor]:
        """Return augmented images and their targets.

        Args:
            images: `(B, C, H, W)` float32, normalised.
            targets: `(B,)` or `(B, H, W)` int64.
            black: `(1, C, 1, 1)`, black after normalisation.
        """
        moved = self.shift > 0 or self.crop < 1
        if moved:
            images, targets = self._moved(images, targets)
        elif self.flip:
            images, targets = self._flipped(images, targets)
        if self.brightness:
            factor = 1 + self.brightness * _uniform(images, -1.0, 1.0)
            images = (images - black) * factor.view(-1, 1, 1, 1) + black
        if self.erase:
            images = self._erased(images)
        return images, targets

    def _flipped(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen = _uniform(images) < self.flip
        images = torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)
        if targets.ndim == 3:
            targets = torch.where(chosen.view(-1, 1, 1), targets.flip(-1), targets)
        return images, targets

    def _moved(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Flip, crop and shift by one affine map, with reflection padding."""
        side = _uniform(images, self.crop, 1.0)
        mirror = torch.where(_uniform(images) < self.flip, -1.0, 1.0)
        # In coordinates from -1 to 1 over the image: a crop stays inside, a shift may not.
        free = (1 - side) + 2 * self.shift
        maps = torch.zeros(len(images), 2, 3, device=images.device)
        maps[:, 0, 0], maps[:, 1, 1] = side * mirror, side
        for row, size in enumerate((images.shape[3], images.shape[2])):
            offset = free * _uniform(images, -1.0, 1.0)
            if self.crop == 1:  # whole pixels, so that a shift blurs nothing
                offset = (offset * size / 2).round() * 2 / size
            maps[:, row, 2] = offset
        grid = affine_grid(maps, list(images.shape), align_corners=False)
        images = grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
        if targets.ndim == 3:
            planes = targets.unsqueeze(1).float()
            planes = grid_sample(planes, grid, "nearest", "reflection", align_corners=False)
            targets = planes.squeeze(1).long()
        return images, targets

    def _erased(self, images: Tensor) -> Tensor:
        """Set a rectangle to 0, the mean of the data set."""
        height, width = images.shape[2:]
        area = _uniform(images, *ERASED)
        low, high = torch.tensor(ERASED_ASPECT).log().tolist()
        aspect = _uniform(images, low, high).exp()
        tall, wide = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
        top, left = _uniform(images) * (1 - tall), _uniform(images) * (1 - wide)
        rows = (torch.arange(height, device=images.device) + 0.5) / height
        columns = (torch.arange(width, device=images.device) + 0.5) / width
        inside = _between(rows, top, tall).unsqueeze(2) & _between(columns, left, wide).unsqueeze(1)
        chosen = (_uniform(images) < self.erase).view(-1, 1, 1)
        return images.masked_fill((inside & chosen).unsqueeze(1), 0.0)


def _uniform(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return a random number for each image, `(B,)`."""
    return low + (high - low) * torch.rand(len(images), device=images.device)


def _between(places: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Return `(B, n)`, whether each of n positions is in each image's interval."""
    start, end = start.unsqueeze(1), (start + length).unsqueeze(1)
    return (places >= start) & (places < end)
