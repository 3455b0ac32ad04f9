"""95 % intervals: of a score on one set of images, and of a mean over a few trainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from study.meters import Meter


LEVEL = 0.95
NUM_RESAMPLES = 1000

Interval = tuple[float, float]  # lower and upper end


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


def of_mean(values: Sequence[float]) -> Interval | None:
    """Return Student's t interval of the mean of independent values; None of fewer than two.

    Trainings on folds share most of their training images, so for them it is somewhat narrow
    (Nadeau and Bengio 2003, "Inference for the Generalization Error").
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean - half, mean + half


def widened(
    value: float, trainings: Interval, images: Sequence[tuple[float, Interval]]
) -> Interval:
    """Return the interval of a mean over trainings that were all scored on the same images.

    What trainings and what images add is independent, so the squares of the half-widths add up.

    Args:
        value: The mean.
        trainings: Its interval over trainings alone.
        images: Of each training, the score and its bootstrap interval; none if it is unknown.
    """
    if not images:
        return trainings
    below = math.hypot(value - trainings[0], float(np.mean([v - low for v, (low, _) in images])))
    above = math.hypot(trainings[1] - value, float(np.mean([high - v for v, (_, high) in images])))
    return value - below, value + above


def shown(value: float, interval: Sequence[float] | None) -> str:
    """Return a value with its interval, for people."""
    return f"{value:.4f}" + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
