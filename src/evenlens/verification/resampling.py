"""How sure a rate of pairs is: subjects are drawn again, and a pair counts as often as its subjects were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evenlens.metrics.counts import Floats
from evenlens.metrics.intervals import Interval, t_quantile, tail, wilson
from evenlens.verification.pairs import Codes, Pairs

CHUNK = 1 << 22  # numbers that are held at a time


class Subjects:
    """Replicates of the subjects of some pairs: how often each was drawn.

    As many are drawn of each subgroup as it has. A subject's pairs share its face, and are no independent
    observations; so an imposter pair counts as often as the product of its two subjects, and a genuine pair as often
    as its subject.

    Where subjects make no difference, this is too careful: a product of two counts varies three times as much as one
    count, so that the intervals of imposters are up to 1.7 times as wide as need be.

    Attributes:
        times: (S, R) how often each subject was drawn in each replicate.

    Source: Bolle, Ratha and Pankanti, 2004, Error analysis of pattern recognition systems: the subsets bootstrap, for
    drawing subjects; Owen, 2007, The pigeonhole bootstrap, for the product.
    """

    def __init__(self, pairs: Pairs, replicates: int = 1000, seed: int = 0) -> None:
        assert pairs.subjects is not None
        self.of = pairs.subjects
        group = np.full(int(self.of.max()) + 1, -1, dtype=np.int64)
        group[self.of[:, 1]] = pairs.second_group
        group[self.of[:, 0]] = pairs.first_group
        generator = np.random.default_rng(seed)
        self.times = np.zeros((len(group), replicates))
        for g in range(len(pairs.groups)):
            mine = np.flatnonzero(group == g)
            if len(mine):
                drawn = generator.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=replicates)
                self.times[mine] = drawn.T

    def means(self, rows: Codes, columns: Floats) -> Floats:
        """Give the weighted mean of columns over some pairs, in each replicate.

        Pairs of the same two subjects are added up first; the rest is a product of matrices, for some of these cells at
        a time.

        Args:
            rows: (n,) the pairs.
            columns: (n, Q) numbers of each pair.

        Returns:
            (R, Q); NaN where a replicate has none of the pairs.
        """
        low, high = np.sort(self.of[rows], axis=1).T
        cells, place = np.unique(low * len(self.times) + high, return_inverse=True)
        first, second = np.divmod(cells, len(self.times))
        counts = np.bincount(place, minlength=len(cells))
        table = np.stack([counts, *(np.bincount(place, column, len(cells)) for column in columns.T)])
        sums = np.zeros((len(table), self.times.shape[1]))
        size = max(1, CHUNK // self.times.shape[1])
        for start in range(0, len(cells), size):
            part = slice(start, start + size)
            weight = self.times[first[part]]
            weight *= np.where((first[part] == second[part])[:, None], 1, self.times[second[part]])
            sums += table[:, part] @ weight
        with np.errstate(divide="ignore", invalid="ignore"):
            return (sums[1:] / sums[0]).T

    def deviation(self, parts: Sequence[tuple[Codes, Floats]]) -> Floats:
        """Give the standard deviation over replicates of a sum of means, each of columns (n, Q) over some rows."""
        total: Floats = np.sum([self.means(rows, columns) for rows, columns in parts], axis=0)
        seen = total[~np.isnan(total).any(axis=1)]
        return seen.std(axis=0, ddof=1) if len(seen) > 1 else np.full(total.shape[1], np.nan)

    def number(self, rows: Codes) -> int:
        """Count the subjects of some pairs."""
        return len(np.unique(self.of[rows]))


def share_intervals(
    value: Floats, n: NDArray[Any], deviation: Floats | None, subjects: NDArray[Any] | None, confidence: float = 0.95
) -> Interval[Floats]:
    """Give the intervals of shares of pairs: Wilson's, of as many independent pairs as these are worth.

    Pairs are worth n divided by the design effect, which is the variance that drawing subjects gives to the share,
    divided by that of n independent pairs; and fewer where subjects are few, as far as Student's t is wider than the
    normal distribution. Where all pairs are accepted, or none, subjects show no variance: there the largest design
    effect of the row is taken, and if none is known each two subjects are worth one pair.

    Args:
        value: (..., G) shares.
        n: (..., G) numbers of pairs; 0 makes all NaN.
        deviation: (..., G) standard deviation over replicates; None takes pairs for independent.
        subjects: (..., G) numbers of subjects.
        confidence: in (0, 1).

    Source: Korn and Graubard, 1998, Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data; Wilson's interval for theirs as in `evenlens.metrics.cluster_rate_intervals`.
    """
    value, n = np.asarray(value, dtype=np.float64), np.asarray(n, dtype=np.float64)
    if deviation is None or subjects is None:
        return _exact_ends(value, n, wilson(value * n, n, confidence))
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = n * deviation**2 / (value * (1 - value))
    known = np.isfinite(effect) & (effect > 0)
    largest = np.where(known, effect, -np.inf).max(axis=-1, keepdims=True)
    fallback = np.where(np.isfinite(largest), largest, 2 * n / np.maximum(subjects, 1))
    effect = np.maximum(1, np.where(known, effect, fallback))
    worth = n / effect / _few(subjects, confidence) ** 2
    return _exact_ends(value, n, wilson(value * worth, worth, confidence))


def _exact_ends(value: Floats, n: NDArray[Any], found: Interval[Floats]) -> Interval[Floats]:
    """Keep an end of 0 or 1 free of rounding."""
    return Interval(value, np.where(value == 0, 0, found.low), np.where(value == 1, 1, found.high), n)


def number_intervals(
    value: Floats, deviation: Floats, subjects: NDArray[Any] | None, confidence: float = 0.95
) -> Interval[Floats]:
    """Give the intervals of numbers that err like a normal variable: Student's t, with the subjects' degrees."""
    number = np.asarray(np.full(np.shape(value), 1e9) if subjects is None else subjects, dtype=np.float64)
    half = np.asarray(deviation) * _normal(confidence) * _few(number, confidence)
    value = np.asarray(value, dtype=np.float64)
    return Interval(value, value - half, value + half, number)


def _few(subjects: NDArray[Any], confidence: float) -> Floats:
    """Say by how much Student's t is wider than the normal distribution, of so many subjects."""
    probability = 1 - tail(confidence)
    degrees = np.maximum(1, np.asarray(subjects, dtype=np.int64) - 1)
    student = {d: t_quantile(probability, int(d)) / _normal(confidence) for d in np.unique(degrees)}
    return np.vectorize(student.__getitem__, otypes=[np.float64])(degrees) if degrees.size else np.ones(degrees.shape)


def _normal(confidence: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(1 - tail(confidence))
