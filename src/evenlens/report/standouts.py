"""Which groups are served worse, or better, than all others: where a single gap between many groups says little.

The largest difference between many groups is that of the smallest ones. A group of ten images can hide that one of a
thousand is served badly; held against all others by itself, the large one is seen.
"""

from __future__ import annotations

import numpy as np

from evenlens import metrics
from evenlens.metrics import Counts, Floats
from evenlens.metrics.rates import divide


def p_values(counts: Counts) -> tuple[Floats, Floats]:
    """Test for each group whether as many of its images are predicted right as of the others with the same labels.

    Errors of a label are dealt out over its images without regard to the group: the number that a group gets of each
    label is hypergeometric, and their sum over the labels is what is tested, exactly (stratified by label).

    Args:
        counts: (G, C, C) images by group, label and prediction.

    Returns:
        two-sided p-values (G,), corrected for the number of groups (Holm, 1979), of which two are one test; NaN for a
        group that is empty or alone. And errors minus what was to be expected (G,): positive is worse.

    Source: Mantel and Haenszel, 1959, in the exact form of Gart, 1970.
    """
    counts = np.asarray(counts, dtype=np.int64)
    images = counts.sum(axis=2)  # (G, C)
    wrong = images - np.diagonal(counts, axis1=1, axis2=2)
    total, errors = images.sum(axis=0), wrong.sum(axis=0)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total.max(initial=0) + 1)))])
    expected = (images * divide(errors, total)).sum(axis=1, where=images > 0)
    p = np.full(len(counts), np.nan)
    for g in range(len(counts)):
        if 0 < images[g].sum() < total.sum():
            p[g] = _two_sided(int(wrong[g].sum()), images[g], total, errors, logs)
    tests = np.count_nonzero(~np.isnan(p))
    return (p if tests == 2 else metrics.holm(p)), wrong.sum(axis=1) - expected


def _two_sided(found: int, drawn: Counts, total: Counts, errors: Counts, logs: Floats) -> float:
    """Give twice the smaller tail of a sum of hypergeometric numbers of errors; all but `found` and `logs` are (C,)."""
    start, shares = 0, np.ones(1)
    for n, size, marked in zip(drawn.tolist(), total.tolist(), errors.tolist(), strict=True):
        if n:
            first, one = _hypergeometric(n, size, marked, logs)
            start, shares = start + first, np.convolve(shares, one)
    place = found - start
    below, above = shares[: max(place + 1, 0)].sum(), shares[max(place, 0) :].sum()
    return float(min(1.0, 2 * min(below, above)))


def _hypergeometric(n: int, size: int, marked: int, logs: Floats) -> tuple[int, Floats]:
    """Give how likely each number of marked ones is among n of `size`, from the first number on that is not absurd."""
    lowest, highest = max(0, n - (size - marked)), min(n, marked)
    middle, reach = n * marked / size, 20 + 12 * np.sqrt(n * marked / size * (1 - marked / size))
    k = np.arange(max(lowest, int(middle - reach)), min(highest, int(middle + reach)) + 1)

    def chosen(of: int, some: Counts) -> Floats:
        return logs[of] - logs[some] - logs[of - some]

    logarithm = chosen(marked, k) + chosen(size - marked, n - k) - chosen(size, np.array(n))
    return int(k[0]), np.exp(logarithm)
