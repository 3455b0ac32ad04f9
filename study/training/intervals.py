"""95 % confidence intervals: for a score on one image set, and for a mean over a few trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from study.objective import COSTS

if TYPE_CHECKING:
    from study.task import Meter, Task

LEVEL = 0.95
NUM_RESAMPLES = 1000

Interval = tuple[float, float]  # lower and upper end
Bounds = tuple[float, float]  # range of a metric
UNBOUNDED: Bounds = (-math.inf, math.inf)
SHARE: Bounds = (0.0, 1.0)
NOT_NEGATIVE: Bounds = (0.0, math.inf)


def bootstrap(meter: Meter, groups: np.ndarray, seed: int = 0) -> Interval | None:
    """Return the percentile bootstrap interval of a task's metric, over groups of images.

    Efron 1979. Whole groups are drawn with replacement, as many as there are: several crops of one
    building carry less information than as many buildings.

    Args:
        meter: Has seen the images, after a call of `keep_images`.
        groups: `(n,)` group (subject) of each image, in the order the meter saw them.
        seed: Seed of the resampling.

    Returns:
        The interval; None if there is only one group.
    """
    names, member_of = np.unique(groups, return_inverse=True)
    num = len(names)
    if num < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES)
    values = meter.resampled(member_of, drawn)
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bounds_of(task: Task, metric: str) -> Bounds:
    """Return the range of a metric by its name without the split.

    A meter's metrics are in [0, 1] unless the task says otherwise; losses and costs such as
    `num_params` are above 0.
    """
    if metric == "loss" or metric in COSTS:
        return NOT_NEGATIVE
    return task.bounds.get(metric, SHARE)


def of_mean(values: Sequence[float], bounds: Bounds = UNBOUNDED) -> Interval | None:
    """Return Student's t interval of the mean of independent values; None for fewer than two.

    With bounds it is computed on an unbounded scale: the logit for a share, as in the logit limits
    of Korn and Graubard 1999, "Analysis of Health Surveys", the logarithm for a positive value; the
    standard error is transformed by the delta method. So the interval contains the mean and stays
    within the bounds, and its coverage near 1 is better than that of the plain interval (for 3
    draws from a beta distribution of mean 0.97 and deviation 0.02, 94.9 % instead of 92.3 %).

    Trainings on folds share most of their training images, so for them it is somewhat too narrow
    (Nadeau and Bengio 2003, "Inference for the Generalization Error").
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return _within(mean, half, half, bounds)


def widened(
    value: float,
    trainings: Interval,
    images: Sequence[tuple[float, Interval]],
    bounds: Bounds = UNBOUNDED,
) -> Interval:
    """Return the interval of a mean over trainings that were all scored on the same images.

    The variation over trainings and over images is independent, so the squared half-widths add up,
    on the scale of `of_mean`.

    Args:
        value: The mean.
        trainings: Its interval over trainings alone.
        images: Score and bootstrap interval of each training; empty if unknown.
        bounds: Range of the metric, as for `trainings`.
    """
    if not images:
        return trainings
    below, above = _halves(value, trainings, bounds)
    return _within(
        value,
        math.hypot(below, float(np.mean([v - low for v, (low, _) in images]))),
        math.hypot(above, float(np.mean([high - v for v, (_, high) in images]))),
        bounds,
    )


def _within(value: float, below: float, above: float, bounds: Bounds) -> Interval:
    """Return the interval with these half-widths, computed on the unbounded scale."""
    low, high = bounds
    if not low < value < high:  # all values are at a bound, or the bounds are not this metric's
        return value - below, value + above
    slope = _slope(value, bounds)
    place = _free(value, bounds)
    ends = (_bound(place - slope * below, bounds), _bound(place + slope * above, bounds))
    return min(ends[0], value), max(ends[1], value)  # rounding


def _halves(value: float, interval: Interval, bounds: Bounds) -> tuple[float, float]:
    """Return the half-widths from which `_within` gives an interval."""
    low, high = bounds
    if not low < value < high:
        return value - interval[0], interval[1] - value
    place, slope = _free(value, bounds), _slope(value, bounds)
    below, above = (abs(_free(end, bounds) - place) / slope for end in interval)
    return below, above


def _free(value: float, bounds: Bounds) -> float:
    """Map a value to the unbounded scale."""
    low, high = bounds
    if math.isinf(low):
        return value
    if value <= low or value >= high:
        return -math.inf if value <= low else math.inf
    return math.log(value - low) - (0.0 if math.isinf(high) else math.log(high - value))


def _bound(place: float, bounds: Bounds) -> float:
    """Map a point on the unbounded scale back to a value."""
    low, high = bounds
    if math.isinf(low):
        return place
    if math.isinf(high):
        return low + math.exp(min(place, 700.0))
    share = 1 / (1 + math.exp(-place)) if place > 0 else 1 - 1 / (1 + math.exp(place))
    return low + (high - low) * share


def _slope(value: float, bounds: Bounds) -> float:
    """Return the derivative of the unbounded scale at a value."""
    low, high = bounds
    if math.isinf(low):
        return 1.0
    return 1 / (value - low) + (0.0 if math.isinf(high) else 1 / (high - value))
