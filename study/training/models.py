"""Networks. Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TwoConv(nn.Module):
    """Two convolutions, each with ReLU and 2x2 max pooling, and a small fully connected head.

    `(B, 1, 28, 28)` -> logits `(B, K)`.

    Args:
        widths: Channels of the two convolutions.
        hidden: Units of the head's hidden layer.
        kernel_size: Kernel size, odd; padding preserves the image size.
        num_classes: K.
        image_size: Height and width in pixels.
        batch_norm: Whether batch normalisation follows each pooling, where it processes a quarter
            of the pixels.
        dropout: Dropout probability before both layers of the head.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int,
        kernel_size: int,
        num_classes: int,
        image_size: int = 28,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first, second = widths

        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
            conv = nn.Conv2d(inputs, outputs, kernel_size, padding="same")
            return [conv, nn.MaxPool2d(2), *norm, nn.ReLU()]  # ReLU commutes with pooling

        drop = [nn.Dropout(dropout)] if dropout else []
        self.features = nn.Sequential(*stage(1, first), *stage(first, second))
        self.head = nn.Sequential(
            nn.Flatten(),
            *drop,
            nn.Linear(second * (image_size // 4) ** 2, hidden),
            nn.ReLU(),
            *drop,
            nn.Linear(hidden, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, K)`."""
        logits: Tensor = self.head(self.features(images))
        return logits


class HourglassNet(nn.Module):
    """The facade baseline: six convolutions, down to a quarter of the size and back up.

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
            conv(3, w1, 7),
            nn.ReLU(),
            nn.BatchNorm2d(w1),
            conv(w1, w2, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.BatchNorm2d(w2),
            conv(w2, w3, 5),
            nn.ReLU(),
            nn.BatchNorm2d(w3),
            conv(w3, w4, 3),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.BatchNorm2d(w4),
            conv(w4, w5, 3),
            nn.ReLU(),
            nn.Upsample(scale_factor=2),
            nn.BatchNorm2d(w5),
            conv(w5, num_classes, 3),
            nn.ReLU() if last_relu else nn.Identity(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, K, H, W)`."""
        logits: Tensor = self.layers(images)
        return logits


def normalization(kind: str, channels: int) -> nn.Module:
    """Return `batch` normalisation, or `group` normalisation in groups of eight channels."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(max(1, channels // 8), channels)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each normalised and followed by ReLU.

    `(B, inputs, H, W)` -> `(B, outputs, H / stride, W / stride)`.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the first convolution.
        norm: See `normalization`.
        residual: Whether the input, through a 1x1 convolution where shapes differ, is added
            before the last ReLU (He et al. 2016, "Deep Residual Learning").
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, norm: str = "batch", residual: bool = True
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            normalization(norm, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            normalization(norm, outputs),
        )
        self.stride = stride
        self.shortcut: nn.Module | None = None
        if residual and (inputs != outputs or stride > 1):
            # `forward` applies the stride. On CPUs with AVX2 but no AVX-512, oneDNN's gradient of a
            # strided 1x1 convolution with fewer than 8 channels, channels last, is wrong or never
            # returns (torch 2.14).
            self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        elif residual:
            self.shortcut = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return `(B, outputs, H / stride, W / stride)`."""
        changed: Tensor = self.body(images)
        if self.shortcut is not None:
            changed = changed + self.shortcut(images[:, :, :: self.stride, :: self.stride])
        return changed.relu()


class ResidualNet(nn.Module):
    """A small residual net: a convolution, three stages of residual blocks, and one linear layer.

    `(B, 1, H, W)` -> logits `(B, K)`. Later stages have half the size and twice the channels. The
    last layer sees every position, not a global average: garments are aligned.

    Args:
        width: Channels of the first stage.
        blocks: Residual blocks per stage.
        dropout: Dropout probability before the last layer.
        num_classes: K.
        image_size: Height and width in pixels.
        stem_pool: Whether 2x2 max pooling follows the first convolution: every stage has a quarter
            of the pixels, so twice the width takes about the same time.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        dropout: float,
        num_classes: int,
        image_size: int = 28,
        stem_pool: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            *([nn.MaxPool2d(2)] if stem_pool else []),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inputs, side = width, image_size // 2 if stem_pool else image_size
        for stage in range(3):
            side = -(-side // 2) if stage else side
            for block in range(blocks):
                outputs = width * 2**stage
                layers.append(ConvBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inputs * side**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, K)`."""
        logits: Tensor = self.head(self.dropout(self.features(images).flatten(1)))
        return logits


class UNet(nn.Module):
    """A U-Net: an encoder down to the coarsest size, and a decoder with skip connections.

    `(B, 3, H, W)` -> logits `(B, K, H, W)`, H and W multiples of 2 to the depth. Ronneberger et
    al. 2015, "U-Net", with padded convolutions and nearest-neighbour upsampling.

    Args:
        widths: Channels from the finest size to the coarsest, one more than the depth.
        residual: Whether blocks are residual.
        norm: See `normalization`.
        dropout: Channel dropout probability, at the coarsest size and before the last layer.
        num_classes: K.
    """

    def __init__(
        self,
        widths: Sequence[int],
        residual: bool,
        norm: str,
        dropout: float,
        num_classes: int,
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> ConvBlock:
            return ConvBlock(inputs, outputs, 1, norm, residual)

        pairs = list(itertools.pairwise(widths))
        self.first = block(3, widths[0])
        self.down = nn.ModuleList(block(fine, coarse) for fine, coarse in pairs)
        self.up = nn.ModuleList(block(fine + coarse, fine) for fine, coarse in reversed(pairs))
        self.pool = nn.MaxPool2d(2)
        self.enlarge = nn.Upsample(scale_factor=2)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `(B, K, H, W)`."""
        images = self.first(images)
        skipped = []
        for block in self.down:
            skipped.append(images)
            images = block(self.pool(images))
        images = self.dropout(images)
        for block in self.up:
            images = block(torch.cat([skipped.pop(), self.enlarge(images)], 1))
        logits: Tensor = self.head(self.dropout(images))
        return logits


class Normalized(nn.Module):
    """A network with built-in normalisation for images in [0, 1], used for exports.

    Args:
        network: Takes normalised images.
        mean: Mean per channel, for images in [0, 1].
        deviation: Standard deviation per channel.
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
        """Return logits for images `(B, C, H, W)` float32 in [0, 1]."""
        logits: Tensor = self.network((images - self.mean) / self.deviation)
        return logits
