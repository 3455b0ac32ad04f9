"""Intervals, against scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats
from sklearn.metrics import average_precision_score

from study.tasks.fashion import TASK
from study.training import intervals
from study.training.counts import log_odds, predicted
from study.training.meters import ClassificationMeter, SegmentationMeter

CPU = torch.device("cpu")


def test_the_interval_of_a_mean_is_scipy_s() -> None:
    values = [0.61, 0.58, 0.66, 0.60]
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert intervals.of_mean(values) == pytest.approx(expected)
    assert intervals.of_mean([0.6]) is None


@pytest.mark.parametrize("values", [[0.3, 0.97], [0.001, 0.9, 0.2], [0.999, 0.98], [0.0, 1.0]])
def test_the_interval_of_a_share_is_one_of_shares(values: list[float]) -> None:
    low, high = intervals.of_mean(values, intervals.SHARE) or (-1.0, 2.0)
    assert 0 <= low < np.mean(values) < high <= 1
    plain_low, plain_high = intervals.of_mean(values) or (0.0, 0.0)
    assert plain_low < 0 or plain_high > 1, "a case that is none"
    images = [(value, (0.9 * value, min(1.0, 1.2 * value))) for value in values]
    wide = intervals.widened(float(np.mean(values)), (low, high), images, intervals.SHARE)
    assert 0 <= wide[0] <= low and high <= wide[1] <= 1
    mirrored = intervals.of_mean([1 - value for value in values], intervals.SHARE) or (-1.0, 2.0)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_the_interval_of_a_share_is_the_logit_s() -> None:
    values = [0.91, 0.95, 0.97]
    mean, half = np.mean(values), stats.t.ppf(0.975, 2) * stats.sem(values)
    ends = special.expit(special.logit(mean) + np.array([-1, 1]) * half / (mean * (1 - mean)))
    assert intervals.of_mean(values, intervals.SHARE) == pytest.approx(tuple(ends))
    close = [0.61, 0.611, 0.609]  # where the scale hardly bends it is Student's
    assert intervals.of_mean(close, intervals.SHARE) == pytest.approx(
        intervals.of_mean(close), abs=1e-5
    )


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_equal_values_have_an_interval_without_width(value: float) -> None:
    same = intervals.of_mean([value, value], intervals.SHARE)
    assert same == pytest.approx((value, value), abs=1e-12)
    images = [(value, (value, value))] * 2
    assert intervals.widened(value, (value, value), images, intervals.SHARE) == pytest.approx(
        (value, value), abs=1e-12
    )


def test_the_interval_of_a_share_keeps_its_promise_near_one() -> None:
    """Of beta-distributed trainings around 0.97, where the plain one has the mean too rarely."""
    rng, mean, deviation = np.random.default_rng(0), 0.97, 0.02
    size = mean * (1 - mean) / deviation**2 - 1
    draws = rng.beta(mean * size, (1 - mean) * size, (4000, 3)).tolist()

    def part(bounds: intervals.Bounds) -> float:
        ends = np.array([intervals.of_mean(values, bounds) for values in draws])
        return float(np.mean((ends[:, 0] <= mean) & (mean <= ends[:, 1])))

    assert part(intervals.SHARE) == pytest.approx(0.95, abs=0.01)
    assert part(intervals.UNBOUNDED) < 0.935


def test_bounds_belong_to_the_metric() -> None:
    losses = [0.01, 0.9]
    low, high = intervals.of_mean(losses, intervals.bounds_of(TASK, "loss")) or (-1.0, 0.0)
    assert 0 < low < np.mean(losses) < 1 < high
    assert intervals.bounds_of(TASK, "num_params") == intervals.NOT_NEGATIVE
    assert intervals.bounds_of(TASK, "min_accuracy") == intervals.SHARE

    class Measures(type(TASK)):  # type: ignore[misc]
        bounds = {"error_in_pixels": intervals.NOT_NEGATIVE}

    assert intervals.bounds_of(Measures(), "error_in_pixels") == intervals.NOT_NEGATIVE
    # A metric that is none of shares and was not said to be: Student's, not a failure.
    assert intervals.of_mean([7.0, 9.0], intervals.SHARE) == intervals.of_mean([7.0, 9.0])


def test_the_bootstrap_of_accuracy_is_scipy_s_and_knows_groups() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.8
    targets = torch.zeros(400, dtype=torch.int64)
    logits = torch.tensor(np.where(right, 1.0, -1.0))[:, None] * torch.tensor([[1.0, -1.0]])
    meter = ClassificationMeter(("a", "b"), CPU)
    meter.keep_images()
    for part in (slice(0, 250), slice(250, 400)):
        meter.update(logits[part], targets[part])
    found = intervals.bootstrap(meter, np.arange(400))
    reference = stats.bootstrap((right,), np.mean, method="percentile", random_state=0)
    expected = (reference.confidence_interval.low, reference.confidence_interval.high)
    assert found == pytest.approx(expected, abs=0.01)
    # Images that come four times each are worth a quarter of as many.
    copied = ClassificationMeter(("a", "b"), CPU)
    copied.keep_images()
    copied.update(logits[:100].repeat(4, 1), targets)
    wide = intervals.bootstrap(copied, np.tile(np.arange(100), 4))
    narrow = intervals.bootstrap(copied, np.arange(400))
    assert wide and narrow
    assert wide[1] - wide[0] == pytest.approx(2 * (narrow[1] - narrow[0]), rel=0.15)
    assert intervals.bootstrap(copied, np.zeros(400)) is None


def test_the_bootstrap_of_average_precision_is_that_of_resampled_pixels() -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 3, (12, 16, 16))
    targets[:6][targets[:6] == 2] = 0  # a class that half of the images do not show
    noise = torch.linspace(1, 6, 12).view(-1, 1, 1, 1)
    logits = torch.nn.functional.one_hot(targets, 3).movedim(3, 1) * 4 + noise * torch.randn(
        12, 3, 16, 16
    )
    meter = SegmentationMeter(("a", "b", "c"), CPU)
    meter.keep_images()
    for part in (slice(0, 5), slice(5, 12)):
        meter.update(logits[part], targets[part])
    groups = np.repeat(np.arange(6), 2)
    weights = np.random.default_rng(1).multinomial(6, np.full(6, 1 / 6), 20)
    found = meter.resampled(groups, weights)
    scores = log_odds(logits, predicted(logits)).numpy()
    for value, weight in zip(found, weights, strict=True):
        images = np.repeat(np.arange(12), weight[groups])
        truth, score = targets.numpy()[images], scores[images]
        each = [
            average_precision_score((truth == k).ravel(), score[:, k].ravel())
            for k in range(3)
            if (truth == k).any()
        ]
        assert value == pytest.approx(np.mean(each), abs=1e-3)
    whole = meter.resampled(groups, np.ones((1, 6), np.int64))[0]
    assert whole == pytest.approx(meter.compute()["mean_ap"], abs=1e-3)
    low, high = intervals.bootstrap(meter, groups) or (1.0, 0.0)
    assert low < whole < high
