"""Networks. Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TwoConv(nn.Module):
    """Two convolutions, each with ReLU and 2x2 max pooling, and a small fully connected head.

    `(B, 1, 28, 28)` -> logits `(B, K)`.

    Args:
        widths: Channels of the two convolutions.
        hidden: Units of the head's hidden layer.
        kernel_size: Odd; sizes are kept by padding.
        num_classes: K.
        image_size: Height and width in pixels.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int,
        kernel_size: int,
        num_classes: int,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        first, second = widths
        self.features = nn.Sequential(
            nn.Conv2d(1, first, kernel_size, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size, padding="same"),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(second * (image_size // 4) ** 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, K)`."""
        logits: Tensor = self.head(self.features(images))
        return logits


class HourglassNet(nn.Module):
    """The facade baseline: six convolutions, down to a quarter of the size and up again.

    `(B, 3, H, W)` -> logits `(B, K, H, W)`, H and W multiples of 4.

    Args:
        widths: Channels of the first five convolutions.
        num_classes: K.
        last_relu: Whether logits pass through a ReLU, as in the reference project.
    """

    def __init__(self, widths: Sequence[int], num_classes: int, last_relu: bool = True) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = widths

        def conv(inputs: int, outputs: int, kernel_size: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel_size, padding="same")

        self.layers = nn.Sequential(
            *(conv(3, w1, 7), nn.ReLU(), nn.BatchNorm2d(w1)),
            *(conv(w1, w2, 5), nn.MaxPool2d(2), nn.ReLU(), nn.BatchNorm2d(w2)),
            *(conv(w2, w3, 5), nn.ReLU(), nn.BatchNorm2d(w3)),
            *(conv(w3, w4, 3), nn.MaxPool2d(2), nn.ReLU()),
            *(nn.Upsample(scale_factor=2), nn.BatchNorm2d(w4)),
            *(conv(w4, w5, 3), nn.ReLU(), nn.Upsample(scale_factor=2), nn.BatchNorm2d(w5)),
            conv(w5, num_classes, 3),
            nn.ReLU() if last_relu else nn.Identity(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, K, H, W)`."""
        logits: Tensor = self.layers(images)
        return logits


class Normalized(nn.Module):
    """A network that takes images in [0, 1]: what is exported, so no user can normalise wrongly.

    Args:
        network: Takes normalised images.
        mean: Per channel, of images in [0, 1].
        deviation: Per channel.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], deviation: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of images `(B, C, H, W)` float32 in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.deviation)
        return logits
