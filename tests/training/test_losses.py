"""Losses against scikit-learn, hand calculation and the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from study.datasets.source import DataSource
from study.tasks.facade import SHARES, TASK, FacadeConfig
from study.training.loop import fit
from study.training.losses import class_weights, dice, lovasz, weighted_cross_entropy

LOSSES = ("cross_entropy", "weighted", "dice", "lovasz")


@pytest.fixture
def pixels() -> tuple[Tensor, Tensor]:
    """Logits and targets of four images; the first lacks a class, the last has only one."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(4, 5, 6, 7, generator=generator)
    targets = torch.randint(0, 5, (4, 6, 7), generator=generator)
    targets[0][targets[0] == 2] = 1
    targets[3] = 4
    return logits, targets


def test_weights_are_one_in_the_mean_over_pixels() -> None:
    for power in (0.0, 0.4, 1.0):
        weights = class_weights((0.2, 0.7, 0.1), power)
        assert np.dot((0.2, 0.7, 0.1), weights) == pytest.approx(1)
        assert weights[2] / weights[1] == pytest.approx(7**power)
    assert class_weights((0.2, 0.7, 0.1), 0.0) == pytest.approx([1, 1, 1])
    assert sum(SHARES) == pytest.approx(1, abs=2e-3)


def test_weighted_cross_entropy_by_hand(pixels: tuple[Tensor, Tensor]) -> None:
    logits, targets = pixels
    weights = [0.5, 1.0, 2.0, 3.0, 0.1]
    each = cross_entropy(logits, targets, reduction="none")
    expected = (each * torch.tensor(weights)[targets]).mean()
    assert weighted_cross_entropy(logits, targets, weights, 0.0) == pytest.approx(expected)
    plain = cross_entropy(logits, targets, label_smoothing=0.1)
    assert weighted_cross_entropy(logits, targets, [1.0] * 5, 0.1) == pytest.approx(plain)


def test_dice_by_hand(pixels: tuple[Tensor, Tensor]) -> None:
    logits, targets = pixels
    scores = logits.softmax(1).numpy()
    images = []
    for p, t in zip(scores, targets.numpy(), strict=True):
        losses = [
            1 - 2 * p[k][t == k].sum() / ((p[k] ** 2).sum() + (t == k).sum()) for k in np.unique(t)
        ]
        images.append(np.mean(losses))
    assert dice(logits, targets).item() == pytest.approx(np.mean(images), rel=1e-5)


def test_lovasz_of_sure_predictions_is_one_minus_iou(pixels: tuple[Tensor, Tensor]) -> None:
    logits, targets = pixels
    chosen = logits.argmax(1)
    images = []
    for prediction, target in zip(chosen.numpy(), targets.numpy(), strict=True):
        iou = jaccard_score(
            target.ravel(), prediction.ravel(), labels=np.unique(target), average=None
        )
        images.append(1 - iou.mean())
    sure = 1000.0 * torch.nn.functional.one_hot(chosen, 5).movedim(3, 1)
    assert lovasz(sure, targets).item() == pytest.approx(np.mean(images), rel=1e-5)


def test_lovasz_of_unsure_predictions_is_the_paper_s(pixels: tuple[Tensor, Tensor]) -> None:
    logits, targets = pixels
    scores = logits.softmax(1).numpy().reshape(4, 5, -1)
    images = []
    for p, t in zip(scores, targets.numpy().reshape(4, -1), strict=True):
        losses = []
        for label in np.unique(t):
            foreground = (t == label).astype(float)
            errors = np.abs(foreground - p[label])
            order = np.argsort(-errors)
            value, before = 0.0, 0.0
            for place in range(len(order)):  # 1 - IoU if the first ones are all wrong
                wrong = order[: place + 1]
                union = foreground.sum() + (1 - foreground[wrong]).sum()
                jaccard = 1 - (foreground.sum() - foreground[wrong].sum()) / union
                value += errors[order[place]] * (jaccard - before)
                before = jaccard
            losses.append(value)
        images.append(np.mean(losses))
    assert lovasz(logits, targets).item() == pytest.approx(np.mean(images), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_batch_add_up(pixels: tuple[Tensor, Tensor], loss: str) -> None:
    config = FacadeConfig(loss=loss, label_smoothing=0.1)
    logits, targets = (tensor.clone() for tensor in pixels)
    gradients = []
    for parts in (1, 3):
        inputs = logits.detach().requires_grad_()
        pieces = zip(inputs.chunk(parts), targets.chunk(parts), strict=True)
        whole = sum(TASK.loss(a, b, config) * len(a) / 4 for a, b in pieces)
        assert isinstance(whole, Tensor)
        whole.backward()
        gradients.append((whole.item(), inputs.grad))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_learned_from(sample: DataSource, loss: str) -> None:
    config = FacadeConfig(
        epochs=2,
        image_size=32,
        batch_size=4,
        model="unet",
        depth=2,
        width=8,
        loss=loss,
        learning_rate=0.01,
    )
    losses = [r.metrics["train/loss"] for r in fit(TASK, config, sample, limit_batches=12)]
    assert losses[1] < 0.9 * losses[0]


def test_losses_are_computed_in_float32(pixels: tuple[Tensor, Tensor]) -> None:
    logits, targets = pixels
    for loss in LOSSES:
        config = FacadeConfig(loss=loss)
        with torch.autocast("cpu", torch.bfloat16):
            found = TASK.loss(logits.bfloat16(), targets, config)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(TASK.loss(logits, targets, config).item(), rel=0.02)
