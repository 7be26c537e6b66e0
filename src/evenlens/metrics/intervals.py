"""How sure a number is: Wilson's interval for a rate, Student's for a mean over seeds; `resampling` has the others."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import UserError
from evenlens.metrics.counts import Counts, Floats
from evenlens.metrics.rates import divide, proportion

Number = TypeVar("Number", float, Floats)


class Interval(NamedTuple, Generic[Number]):
    """A value, the ends of its confidence interval, and the number of images (or seeds) that it rests on."""

    value: Number
    low: Number
    high: Number
    n: Number


def wilson(successes: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> Interval[Floats]:
    """Give Wilson's score interval of a share.

    Args:
        successes: (...,) numbers of images of which something is true.
        n: (...,) numbers of images; 0 makes the value and the interval NaN.
        confidence: in (0, 1).

    Returns:
        an interval of (...,) arrays in [0, 1].

    Raises:
        UserError: if the confidence is not in (0, 1).

    Source: Wilson, 1927.
    """
    z = NormalDist().inv_cdf(1 - tail(confidence))
    total = np.asarray(n, dtype=np.float64)
    share = divide(successes, total)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
        half = z * np.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / (1 + z**2 / total)
    return Interval(share, np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1), total)


def rate_intervals(name: str, counts: Counts, confidence: float = 0.95) -> Interval[Floats]:
    """Give the Wilson interval of a rate for each group.

    Args:
        name: a rate that is a share of images, as "true_positive_rate".
        counts: (..., G, C, C).
        confidence: in (0, 1).

    Returns:
        an interval of (..., G) arrays, or (..., G, C) for a rate of each class against the rest; n is the denominator.

    Raises:
        UserError: if the rate is not known or no share of images.
    """
    successes, n = proportion(name, counts)
    return wilson(successes, n, confidence)


def seed_interval(values: ArrayLike, confidence: float = 0.95) -> Interval[float]:
    """Give Student's t interval of a mean over seeds.

    Args:
        values: (S,) one number for each seed; with an undefined one among them the mean is undefined.
        confidence: in (0, 1).

    Returns:
        mean, ends and the number of seeds. One seed says nothing about others: the ends are NaN.

    Raises:
        UserError: if the confidence is not in (0, 1).

    Source: Student, 1908.
    """
    numbers = np.asarray(values, dtype=np.float64)
    beyond = tail(confidence)
    if numbers.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(numbers.mean())
    if numbers.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = t_quantile(1 - beyond, numbers.size - 1) * float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return Interval(mean, mean - half, mean + half, numbers.size)


def t_quantile(probability: float, degrees: int) -> float:
    """Give the quantile of Student's t distribution for a probability in (0.5, 1) and whole degrees of freedom.

    With t = sqrt(degrees) * tan(angle) the distribution is a finite sum of cosines, which is inverted by bisection. Of
    many degrees it is the normal one with a small correction, to ten digits.

    Source: Abramowitz and Stegun, 1964, 26.7.3 to 26.7.5.
    """
    if degrees > 200:
        return _t_of_many(NormalDist().inv_cdf(probability), degrees)
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        low, high = (low, angle) if _t_within(angle, degrees) > 2 * probability - 1 else (angle, high)
    return math.sqrt(degrees) * math.tan(angle)


def _t_of_many(z: float, degrees: int) -> float:
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / degrees + second / degrees**2 + third / degrees**3 + fourth / degrees**4


def _t_within(angle: float, degrees: int) -> float:
    """Give the probability that |t| is below sqrt(degrees) * tan(angle)."""
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= power / (power + 1) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def tail(confidence: float) -> float:
    """Give the probability beyond each end of an interval."""
    if not 0 < confidence < 1:
        raise UserError(f"A confidence lies between 0 and 1, as 0.95; {confidence} does not.")
    return (1 - confidence) / 2
