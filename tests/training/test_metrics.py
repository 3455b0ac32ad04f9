"""Metrics against hand calculations and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, jaccard_score, precision_recall_curve

from study.training import metrics
from study.training.counts import ConfusionMatrix, ScoreHistograms, log_odds, predicted
from study.training.meters import ClassificationMeter, SegmentationMeter

CPU = torch.device("cpu")


def test_confusion_matrix_by_hand() -> None:
    confusion = ConfusionMatrix(3, CPU)
    confusion.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    confusion.update(torch.tensor([1]), torch.tensor([1]))  # a short last batch
    counts = confusion.counts.numpy()
    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    assert metrics.accuracy(counts) == 3 / 4
    assert metrics.class_accuracies(counts)[:2] == [0.5, 1.0]
    assert np.isnan(metrics.class_accuracies(counts)[2]), "an absent class has no accuracy"
    assert metrics.intersections_over_union(counts)[:2] == [1 / 2, 2 / 3]
    assert np.isnan(metrics.intersections_over_union(counts)[2])


def test_iou_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets, predictions = rng.integers(0, 4, (2, 5000))
    confusion = ConfusionMatrix(4, CPU)
    confusion.update(torch.tensor(predictions), torch.tensor(targets))
    expected = jaccard_score(targets, predictions, average=None)
    assert np.allclose(metrics.intersections_over_union(confusion.counts.numpy()), expected)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 12.0])
def test_average_precision_equals_scikit_learn(sharpness: float) -> None:
    # Sharp scores crowd next to 0 and 1, where even bins of probability lose their order.
    torch.manual_seed(0)
    targets = torch.randint(0, 5, (4, 64, 64))
    logits = torch.randn(4, 5, 64, 64) * sharpness
    logits.scatter_add_(1, targets[:, None], torch.full((4, 1, 64, 64), sharpness))
    histograms = ScoreHistograms(5, CPU)
    for image in range(4):
        part = logits[image : image + 1]
        histograms.update(part, targets[image : image + 1], predicted(part))
    scores = logits.double().softmax(dim=1).movedim(1, 0).reshape(5, -1).numpy()
    for label in range(5):
        expected = average_precision_score((targets == label).flatten().numpy(), scores[label])
        assert metrics.average_precision(histograms.counts[label].numpy()) == pytest.approx(
            expected, abs=1e-3
        )


def test_histograms_count_every_pixel_once() -> None:
    logits, targets = torch.randn(3, 4, 8, 8), torch.randint(0, 4, (3, 8, 8))
    histograms = ScoreHistograms(4, CPU)
    histograms.update(logits, targets, predicted(logits))
    totals = histograms.counts.sum(dim=1)  # (K, 2): negatives, positives
    assert totals.sum(dim=1).tolist() == [3 * 64] * 4
    assert totals[:, 1].tolist() == torch.bincount(targets.flatten(), minlength=4).tolist()


def test_histograms_take_infinite_certainty() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]])
    histograms = ScoreHistograms(2, CPU)
    histograms.update(logits, torch.tensor([0, 1]), predicted(logits))
    assert metrics.average_precision(histograms.counts[0].numpy()) == 1.0


def test_precision_recall_curve_by_hand() -> None:
    counts = np.zeros((10, 2), np.int64)
    counts[9] = (0, 1)  # the highest score is a positive
    counts[5] = (1, 0)
    counts[2] = (0, 1)
    precision, recall = metrics.precision_recall_curve(counts)
    assert precision.tolist() == [1.0, 0.5, pytest.approx(2 / 3)]
    assert recall.tolist() == [0.5, 0.5, 1.0]
    assert metrics.average_precision(counts) == pytest.approx(0.5 * 1.0 + 0.5 * 2 / 3)
    assert average_precision_score([1, 0, 1], [0.9, 0.5, 0.2]) == pytest.approx(0.5 + 1 / 3)


def test_curve_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    bins, positive = rng.integers(0, 50, 2000), rng.integers(0, 2, 2000)
    counts = np.zeros((50, 2), np.int64)
    np.add.at(counts, (bins, positive), 1)
    precision, recall = metrics.precision_recall_curve(counts)
    expected = precision_recall_curve(positive, bins)
    assert np.allclose(precision, expected[0][::-1][1:])
    assert np.allclose(recall, expected[1][::-1][1:])


def test_an_absent_class_is_left_out_of_the_mean() -> None:
    meter = SegmentationMeter(["a", "b", "c"], CPU)
    targets = torch.tensor([[[0, 1], [0, 1]]])
    meter.update(torch.randn(1, 3, 2, 2), targets)
    result = meter.compute()
    assert "ap/c" not in result
    assert result["mean_ap"] == pytest.approx((result["ap/a"] + result["ap/b"]) / 2)


def test_meters_do_not_depend_on_batches() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(10, 3), torch.randint(0, 3, (10,))
    whole, parts = (ClassificationMeter(["a", "b", "c"], CPU) for _ in range(2))
    whole.update(logits, targets)
    parts.update(logits[:7], targets[:7])
    parts.update(logits[7:], targets[7:])
    assert whole.compute() == parts.compute()
    assert np.array_equal(whole.arrays()["predictions"], parts.arrays()["predictions"])


def test_log_odds_are_exact_near_certainty() -> None:
    logits = torch.tensor([[30.0, 0.0, -5.0]])
    exact = logits.double()
    for label in range(3):
        others = torch.cat([exact[:, :label], exact[:, label + 1 :]], dim=1)
        expected = exact[:, label] - others.logsumexp(dim=1)
        assert log_odds(logits, predicted(logits))[:, label].item() == pytest.approx(
            expected.item(), rel=1e-6
        )
