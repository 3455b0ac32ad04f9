"""Losses: cross-entropy, and losses that favour rare classes in segmentation.

All are means over per-image losses. So a batch split into micro-batches or among workers has the
same loss and gradient as the whole: `dice` and `lovasz` use sets of pixels within an image, never
across the batch, and class weights are not divided by their sum.
Shapes: B batch, K classes, N pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot


def weighted_cross_entropy(
    logits: Tensor, targets: Tensor, weights: Sequence[float], label_smoothing: float
) -> Tensor:
    """Return the sum of weighted cross-entropies, divided by the number of pixels.

    Args:
        logits: `(B, K, ...)`.
        targets: `(B, ...)` int64.
        weights: Weight of each class; 1 on average over pixels.
        label_smoothing: As in `torch.nn.functional.cross_entropy`.
    """
    table = torch.tensor(weights, device=logits.device)
    total = cross_entropy(
        logits.float(), targets, table, reduction="sum", label_smoothing=label_smoothing
    )
    return total / targets.numel()


def class_weights(shares: Sequence[float], power: float) -> list[float]:
    """Return weights `share ** -power`, scaled to 1 on average over pixels.

    Args:
        shares: Fraction of the pixels in each class.
        power: 0 for equal weights, 1 for classes that contribute equally.
    """
    raw = [share**-power for share in shares]
    mean = sum(share * weight for share, weight in zip(shares, raw, strict=True))
    return [weight * sum(shares) / mean for weight in raw]


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Return 1 - soft Dice, averaged over the classes in an image, then over images.

    Milletari et al. 2016, "V-Net", with squares in the denominator as there.

    Args:
        logits: `(B, K, H, W)`.
        targets: `(B, H, W)` int64.
    """
    scores, wanted = _pixels(logits, targets)
    common = (scores * wanted).sum(2)
    whole = (scores.square() + wanted).sum(2)
    return _over_present(1 - 2 * common / whole.clamp(min=1e-6), wanted)


def lovasz(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the Lovasz extension of 1 - IoU, averaged over an image's classes, then over images.

    Berman et al. 2018, "The Lovasz-Softmax loss".

    Args:
        logits: `(B, K, H, W)`.
        targets: `(B, H, W)` int64.
    """
    scores, wanted = _pixels(logits, targets)
    errors, order = (wanted - scores).abs().sort(dim=2, descending=True)
    hits = wanted.gather(2, order)
    total = hits.sum(2, keepdim=True)
    common = total - hits.cumsum(2)
    jaccard = 1 - common / (total + (1 - hits).cumsum(2)).clamp(min=1)
    steps = torch.cat([jaccard[..., :1], jaccard[..., 1:] - jaccard[..., :-1]], 2)
    return _over_present((errors * steps).sum(2), wanted)


def _pixels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities and one-hot targets, `(B, K, N)` float32."""
    scores = logits.float().softmax(1).flatten(2)
    wanted = one_hot(targets.flatten(1), logits.shape[1]).transpose(1, 2)
    return scores, wanted.to(scores.dtype).contiguous()


def _over_present(losses: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean of `(B, K)` over the classes present in an image, then over images."""
    present = (wanted.amax(2) > 0).to(losses.dtype)
    return ((losses * present).sum(1) / present.sum(1)).mean()
