"""Within a data set: do methods differ by more than their seeds do, which ones, and by how much?

Seeds are few. Below `MIN_SEEDS` every number here is undefined (NaN): it could be computed of two, and would mislead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import UserError
from evenlens.metrics import Floats, seed_interval
from evenlens.statistics.distributions import chi_squared_tail, t_tails

MIN_SEEDS = 3
NO_SPREAD = 1e-12  # two sums of the same numbers can differ by rounding


class Omnibus(NamedTuple):
    """A test of whether all methods are alike: its statistic, degrees of freedom and p-value, all NaN if undefined."""

    statistic: float
    degrees: int
    p_value: float


def alexander_govern(samples: Sequence[ArrayLike]) -> Omnibus:
    """Test whether methods have the same mean, where each may have a spread of its own.

    Each method's distance from the mean that is weighted by precision follows Student's t, which is turned into a
    normal number; the sum of squares is compared with chi-squared.

    Simulated type-I error at 0.05, methods of equal spread: 3 seeds .03 to .06 for 2 to 10 methods and .08 for 14;
    5 seeds .04 to .06; 10 seeds .05. Seeds that move all methods alike make it smaller, below .03.

    Args:
        samples: for each method (S,) one value a seed; at least two methods, whose S may differ.

    Returns:
        the test. Undefined if a method has fewer than `MIN_SEEDS` seeds, an undefined value, or the same value for
        every seed.

    Raises:
        UserError: fewer than two methods, or one whose values are no row of numbers.

    Source: Alexander and Govern, 1994, A new and simpler approximation for ANOVA under variance heterogeneity, Journal
    of Educational Statistics 19(2).
    """
    values = [_row(sample) for sample in samples]
    if len(values) < 2:
        raise UserError(f"Two methods at least are compared; {len(values)} was given.")
    degrees = len(values) - 1
    if not all(has_spread(sample) for sample in values):
        return Omnibus(math.nan, degrees, math.nan)
    n = np.array([len(sample) for sample in values])
    mean = np.array([sample.mean() for sample in values])
    error = np.array([sample.std(ddof=1) for sample in values]) / np.sqrt(n)
    weight = error**-2 / (error**-2).sum()
    t = (mean - weight @ mean) / error
    a = n - 1.5
    b = 48 * a**2
    c = np.sqrt(a * np.log1p(t**2 / (n - 1)))
    z = c + (c**3 + 3 * c) / b - (4 * c**7 + 33 * c**5 + 240 * c**3 + 855 * c) / (10 * b**2 + 8 * b * c**4 + 1000 * b)
    statistic = float(z @ z)
    return Omnibus(statistic, degrees, chi_squared_tail(statistic, degrees))


class PairedTest(NamedTuple):
    """A method minus the baseline, seed by seed.

    Attributes:
        difference: mean over the shared seeds, in the unit of the values.
        low: lower end of its interval.
        high: its upper end.
        statistic: Student's t.
        p_value: two-sided, not corrected for other tests.
        n: shared seeds.
    """

    difference: float
    low: float
    high: float
    statistic: float
    p_value: float
    n: int


def paired_test(values: ArrayLike, baseline: ArrayLike, confidence: float = 0.95) -> PairedTest:
    """Test whether a method differs from the baseline by more than seeds explain: Student's test of the differences.

    Args:
        values: (S,) of the method.
        baseline: (S,) of the baseline, for the same seeds in the same order.
        confidence: of the interval, in (0, 1).

    Returns:
        the test. Below `MIN_SEEDS` it has a difference and nothing else. Differences that are the same for all seeds
        have no test either, since nothing says how far they move; if they are all 0, the p-value is 1.

    Raises:
        UserError: shapes that differ, or a confidence outside (0, 1).

    Source: Student, 1908, The probable error of a mean, Biometrika 6.
    """
    first, second = _row(values), _row(baseline)
    if first.shape != second.shape:
        raise UserError(f"Differences are taken seed by seed; there are {len(first)} values and {len(second)}.")
    differences = first - second
    n = len(differences)
    mean, low, high, _ = seed_interval(differences, confidence)
    if has_spread(differences):
        t = mean / (float(differences.std(ddof=1)) / math.sqrt(n))
        return PairedTest(mean, low, high, t, t_tails(t, n - 1), n)
    same = n >= MIN_SEEDS and bool(np.all(np.abs(differences) <= NO_SPREAD))
    return PairedTest(mean, math.nan, math.nan, math.nan, 1.0 if same else math.nan, n)


def hedges_g(values: ArrayLike, baseline: ArrayLike) -> float:
    """Give how many standard deviations lie between two methods, corrected for few seeds.

    The difference of the means, over the spread of the seeds of both together, times the exact factor that takes off
    what few seeds add. Its sign is that of method minus baseline.

    Args:
        values: (S,) of the method.
        baseline: (T,) of the baseline; the seeds need not be the same.

    Returns:
        NaN below `MIN_SEEDS` in either, with an undefined value, or where neither has any spread.

    Source: Hedges, 1981, Distribution theory for Glass's estimator of effect size, Journal of Educational Statistics 6.
    """
    first, second = _row(values), _row(baseline)
    degrees = len(first) + len(second) - 2
    if min(len(first), len(second)) < MIN_SEEDS or not (has_spread(first) or has_spread(second)):
        return math.nan
    squares = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in (first, second))
    factor = math.exp(math.lgamma(degrees / 2) - math.lgamma((degrees - 1) / 2)) / math.sqrt(degrees / 2)
    return factor * float(first.mean() - second.mean()) / math.sqrt(squares / degrees)


def superiority(values: ArrayLike, baseline: ArrayLike, higher_is_better: bool = True) -> float:
    """Give how likely a seed of a method is better than a seed of the baseline; equal ones count by half.

    Args:
        values: (S,) of the method.
        baseline: (T,) of the baseline.
        higher_is_better: of the values.

    Returns:
        A in [0, 1]: 0.5 is no difference, 1 always better. NaN below `MIN_SEEDS` or with an undefined value.

    Source: Vargha and Delaney, 2000, A critique and improvement of the CL common language effect size statistics,
    Journal of Educational and Behavioral Statistics 25(2).
    """
    first, second = _row(values), _row(baseline)
    pairs = (first[:, None] - second) * (1 if higher_is_better else -1)
    if min(len(first), len(second)) < MIN_SEEDS or np.isnan(pairs).any():
        return math.nan
    return float((np.sign(pairs) / 2 + 0.5).mean())


def has_spread(values: ArrayLike) -> bool:
    """Say whether (S,) values are of seeds enough, all defined, and not all the same."""
    found = np.asarray(values, dtype=np.float64)
    return len(found) >= MIN_SEEDS and bool(np.ptp(found) > NO_SPREAD)  # not so where one is NaN


def _row(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1:
        raise UserError(f"A method has one value a seed; its values have the shape {found.shape}.")
    return found
