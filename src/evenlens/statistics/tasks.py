"""Across data sets: methods are ranked within each task, and the ranks are compared over the tasks.

A metric's size differs from task to task for reasons that no method has part in; its order does not. Tasks are taken as
independent of each other, which those on the same images are not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import UserError
from evenlens.metrics import Floats
from evenlens.statistics.distributions import f_tail, normal_tails, range_quantile

MIN_TASKS = 4
"""With fewer, the F approximation of Friedman's test rejects in 7 to 50 of 100 cases where it should in 5."""
MIN_METHODS = 3


def ranks(scores: ArrayLike, higher_is_better: bool) -> Floats:
    """Rank methods within each task.

    Args:
        scores: (N, K) of N tasks and K methods.
        higher_is_better: of the scores.

    Returns:
        (N, K), 1 for the best; equal ones share the mean of their places.

    Raises:
        UserError: no table of defined numbers.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise UserError(
            "Ranks are of a table with a row for each task and a column for each method, in which every number is "
            "defined: leave out tasks or methods with undefined ones."
        )
    better = -table if higher_is_better else table
    ahead = (better[:, None, :] < better[:, :, None]).sum(axis=2)
    beside = (better[:, None, :] == better[:, :, None]).sum(axis=2)
    return ahead + (beside + 1) / 2


class Friedman(NamedTuple):
    """A test of whether methods rank alike.

    Attributes:
        chi_squared: Friedman's statistic.
        statistic: that of Iman and Davenport, distributed as F; infinite where all tasks rank alike.
        degrees: its two degrees of freedom, K - 1 and (K - 1)(N - 1).
        p_value: of the second, and never below the chance that all tasks rank alike, K! ^ (1 - N), which F would
            call 0; NaN with fewer than `MIN_TASKS` tasks or `MIN_METHODS` methods.
        average: (K,) mean rank of each method.
        n: number of tasks N.
    """

    chi_squared: float
    statistic: float
    degrees: tuple[int, int]
    p_value: float
    average: Floats
    n: int


def friedman(placed: ArrayLike) -> Friedman:
    """Test whether some methods rank better than others over the tasks, with the correction by Iman and Davenport.

    Simulated type-I error at 0.05: 4 and 5 tasks .05 to .07, 10 tasks .04 to .06, for 3 to 14 methods.

    Args:
        placed: (N, K) ranks, as `ranks` gives them.

    Raises:
        UserError: not a table of two tasks and two methods at least.

    Source: Friedman, 1937; Iman and Davenport, 1980, Communications in Statistics 9; as in Demsar, 2006, Statistical
    comparisons of classifiers over multiple data sets, JMLR 7. As there, ties are not corrected for: with many of them
    the test is a little more careful than it must be.
    """
    table = np.asarray(placed, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise UserError(f"Two tasks and two methods at least are compared; the ranks have the shape {table.shape}.")
    n, k = table.shape
    average = table.mean(axis=0)
    chi_squared = 12 * n / (k * (k + 1)) * (float(average @ average) - k * (k + 1) ** 2 / 4)
    rest = n * (k - 1) - chi_squared
    statistic = (n - 1) * chi_squared / rest if rest > 1e-9 else math.inf
    degrees = (k - 1, (k - 1) * (n - 1))
    enough = n >= MIN_TASKS and k >= MIN_METHODS
    agreement = math.exp((1 - n) * math.lgamma(k + 1))
    p_value = max(agreement, f_tail(max(0.0, statistic), *degrees)) if enough else math.nan
    return Friedman(chi_squared, statistic, degrees, p_value, average, n)


def critical_difference(num_methods: int, num_tasks: int, level: float = 0.05) -> float:
    """Give how far apart mean ranks must be for two methods to be told apart, all pairs together, by Nemenyi's test.

    Simulated type-I error at 0.05: 5 tasks .02 to .04, 10 tasks .035 to .05. It is careful where tasks are few.

    Args:
        num_methods: K, at least 2.
        num_tasks: N, at least 1.
        level: in (0, 1); for all pairs together.

    Raises:
        UserError: if one of them is out of its range.

    Source: Nemenyi, 1963; Demsar, 2006, section 3.2.2.
    """
    if num_tasks < 1:
        raise UserError(f"Ranks are compared over one task at least, not {num_tasks}.")
    return range_quantile(level, num_methods) / math.sqrt(2) * _standard_error(num_methods, num_tasks)


def cliques(average: ArrayLike, distance: float) -> list[tuple[int, ...]]:
    """Find the groups of methods that cannot be told apart: the bars of a critical-difference diagram.

    Args:
        average: (K,) mean ranks.
        distance: the critical difference; methods that far apart or less are joined.

    Returns:
        positions in each group, best first: as large as can be, two at least, none within another.
    """
    places = np.asarray(average, dtype=np.float64)
    order = np.argsort(places, kind="stable").tolist()
    found: list[tuple[int, ...]] = []
    reached = 0
    for start in range(len(order)):
        end = max(k for k in range(start, len(order)) if places[order[k]] - places[order[start]] <= distance) + 1
        if end > reached and end - start > 1:
            found.append(tuple(order[start:end]))
        reached = max(reached, end)
    return found


class RankTest(NamedTuple):
    """Mean ranks held against that of a baseline.

    Attributes:
        statistic: (K,) normal numbers: below 0 where the method ranks better than the baseline; NaN for the baseline.
        p_value: (K,) two-sided, not corrected for their number; NaN for the baseline and with too few tasks.
    """

    statistic: Floats
    p_value: Floats


def against_baseline(average: ArrayLike, num_tasks: int, baseline: int) -> RankTest:
    """Test each method's mean rank against that of the baseline; correct the p-values by `metrics.holm`.

    Args:
        average: (K,) mean ranks.
        num_tasks: N.
        baseline: position of the baseline.

    Source: Demsar, 2006, section 3.2.2; Holm, 1979. With Holm's correction its simulated type-I error at 0.05 is .02 to
    .04 for 5 tasks and .03 to .045 for 10.
    """
    places = np.asarray(average, dtype=np.float64)
    z = (places - places[baseline]) / _standard_error(len(places), num_tasks)
    z[baseline] = math.nan
    enough = num_tasks >= MIN_TASKS and len(places) >= MIN_METHODS
    p_value = [normal_tails(value) if enough and not math.isnan(value) else math.nan for value in z.tolist()]
    return RankTest(z, np.array(p_value))


def _standard_error(num_methods: int, num_tasks: int) -> float:
    """Give the standard deviation of the difference of two mean ranks by chance."""
    return math.sqrt(num_methods * (num_methods + 1) / (6 * num_tasks))
