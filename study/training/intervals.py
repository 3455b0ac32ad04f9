"""95 % intervals: of a score on one set of images, and of a mean over a few trainings."""

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
Bounds = tuple[float, float]  # of what a metric can be
UNBOUNDED: Bounds = (-math.inf, math.inf)
SHARE: Bounds = (0.0, 1.0)
NOT_NEGATIVE: Bounds = (0.0, math.inf)


def bootstrap(meter: Meter, groups: np.ndarray, seed: int = 0) -> Interval | None:
    """Return the percentile bootstrap interval of a task's metric, over what images show.

    Efron 1979. Whole groups are drawn with replacement, as many as there are: crops of one
    building say less than as many buildings.

    Args:
        meter: Has seen the images, with `keep_images` told before.
        groups: `(n,)` what each of them shows, in the order in which the meter saw them.
        seed: Of the resamples.

    Returns:
        The interval; None if all images show the same.
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
    """Return between which values a metric lies, by its name without the split.

    A meter's metrics are shares in [0, 1] unless the task says otherwise; a loss and costs such as
    `num_params` are above 0.
    """
    if metric == "loss" or metric in COSTS:
        return NOT_NEGATIVE
    return task.bounds.get(metric, SHARE)


def of_mean(values: Sequence[float], bounds: Bounds = UNBOUNDED) -> Interval | None:
    """Return Student's t interval of the mean of independent values; None of fewer than two.

    Within bounds it is taken on a scale that has none: the logit of a share, as the logit limits of
    Korn and Graubard 1999, "Analysis of Health Surveys", the logarithm of what is above 0; the
    standard error goes there by the delta method. So it has the mean in it and stays within them,
    and of trainings near 1 it holds what it promises, where the plain one does not (of 3 draws from
    a beta distribution of mean 0.97 and deviation 0.02 it has the mean in 94.9 %, not in 92.3 %).

    Trainings on folds share most of their training images, so for them it is somewhat narrow
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

    What trainings and what images add is independent, so the squares of the half-widths add up, on
    the scale of `of_mean`.

    Args:
        value: The mean.
        trainings: Its interval over trainings alone.
        images: Of each training, the score and its bootstrap interval; none if it is unknown.
        bounds: Of the metric, as for `trainings`.
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
    """Return the interval of these half-widths, taken on a scale without bounds."""
    low, high = bounds
    if not low < value < high:  # all values are at a bound, or it is none of this metric
        return value - below, value + above
    slope = _slope(value, bounds)
    place = _free(value, bounds)
    ends = (_bound(place - slope * below, bounds), _bound(place + slope * above, bounds))
    return min(ends[0], value), max(ends[1], value)  # rounding


def _halves(value: float, interval: Interval, bounds: Bounds) -> tuple[float, float]:
    """Return the half-widths with which `_within` gives an interval."""
    low, high = bounds
    if not low < value < high:
        return value - interval[0], interval[1] - value
    place, slope = _free(value, bounds), _slope(value, bounds)
    below, above = (abs(_free(end, bounds) - place) / slope for end in interval)
    return below, above


def _free(value: float, bounds: Bounds) -> float:
    """Return where a value lies on the scale without bounds."""
    low, high = bounds
    if math.isinf(low):
        return value
    if value <= low or value >= high:
        return -math.inf if value <= low else math.inf
    return math.log(value - low) - (0.0 if math.isinf(high) else math.log(high - value))


def _bound(place: float, bounds: Bounds) -> float:
    """Return the value at a place on the scale without bounds."""
    low, high = bounds
    if math.isinf(low):
        return place
    if math.isinf(high):
        return low + math.exp(min(place, 700.0))
    share = 1 / (1 + math.exp(-place)) if place > 0 else 1 - 1 / (1 + math.exp(place))
    return low + (high - low) * share


def _slope(value: float, bounds: Bounds) -> float:
    """Return by how much the scale without bounds is stretched at a value."""
    low, high = bounds
    if math.isinf(low):
        return 1.0
    return 1 / (value - low) + (0.0 if math.isinf(high) else 1 / (high - value))
