"""Repeats of the same run, seed and all: how far numbers move for no reason that a seed or a method gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evenlens.metrics import t_quantile


class Repeatability(NamedTuple):
    """How far repeats of one run lie apart.

    Attributes:
        deviation: standard deviation within repeats, in the unit of the values; 0 if all are equal.
        largest: the largest difference between two repeats of one run.
        limit: two single runs of one seed differ by more in 5 of 100 cases only.
        degrees: of freedom: all runs minus the number of different ones.
    """

    deviation: float
    largest: float
    limit: float
    degrees: int

    def of_means(self, seeds: int) -> float:
        """Give the limit for the difference of two means over so many seeds: no difference of methods goes below it."""
        return self.limit / math.sqrt(seeds)


def repeatability(repeats: Sequence[Sequence[float]]) -> Repeatability | None:
    """Give the floor of non-determinism: the spread that is left when settings and seed are the same.

    Args:
        repeats: for each run the values of all that repeat it; those that were made once say nothing. Undefined values
            are left out.

    Returns:
        the spread, pooled over the runs; None if nothing was repeated.

    Source: repeatability standard deviation and limit, ISO 5725-6:1994. Differs from it: Student's quantile in place of
    the normal one, as repeats are few.
    """
    values = [np.array([value for value in one if not math.isnan(value)]) for one in repeats]
    several = [one for one in values if len(one) > 1]
    degrees = sum(len(one) - 1 for one in several)
    if not degrees:
        return None
    squares = sum(float(((one - one.mean()) ** 2).sum()) for one in several)
    deviation, largest = math.sqrt(squares / degrees), max(float(np.ptp(one)) for one in several)
    return Repeatability(deviation, largest, t_quantile(0.975, degrees) * math.sqrt(2) * deviation, degrees)
