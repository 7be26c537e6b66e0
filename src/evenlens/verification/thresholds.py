"""Thresholds: at a target false match rate, and of the best accuracy. A pair is accepted if its score >= threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np

from evenlens.metrics.counts import Floats
from evenlens.verification.pairs import Codes, Mask, Pairs

Criterion = Literal["balanced", "plain"]


def allowed(target: float, n: int) -> int:
    """Give floor(target * n), how many of n imposters may be accepted; exact, as 0.29 * 100 is not in floats."""
    return int(Fraction(repr(float(target))) * n)


def at_false_match_rate(imposters: Floats, targets: Sequence[float]) -> Floats:
    """Give the lowest thresholds that accept no more than floor(f n) imposters.

    The threshold is the smallest number above the (k + 1)-th largest score, k = floor(f n). Of equal scores either all
    are accepted or none, so that fewer than k may be.

    Args:
        imposters: (n,) scores.
        targets: (F,) false match rates in (0, 1).

    Returns:
        (F,); NaN without imposters.

    Source: ISO/IEC 19795-1, 2021, for the rates.
    """
    n = len(imposters)
    if not n:
        return np.full(len(targets), math.nan)
    places = [n - 1 - allowed(target, n) for target in targets]
    return np.nextafter(np.partition(imposters, sorted({*places}))[places], math.inf)


def of_best_accuracy(score: Floats, genuine: Mask, criterion: Criterion = "balanced") -> float:
    """Give the threshold of the highest accuracy, over all mid-points of neighbouring scores; of equal ones the last.

    Accepting all and accepting none are tried as well.

    Args:
        score: (n,).
        genuine: (n,) bool.
        criterion: "balanced" is the mean of the shares of genuine and imposter pairs that are decided right, "plain"
            that of all pairs.

    Returns:
        NaN without genuine or without imposter pairs.
    """
    cuts = Cuts.of(score, genuine)
    if not cuts.genuine or not cuts.imposters:
        return math.nan
    accepted, rejected = cuts.genuine - cuts.genuine_below, cuts.imposters - cuts.imposters_above
    weights = (cuts.imposters, cuts.genuine) if criterion == "balanced" else (1, 1)
    right = weights[0] * accepted + weights[1] * rejected  # whole numbers, so that equal is equal
    best = len(right) - 1 - int(np.argmax(right[::-1]))
    return float(cuts.thresholds[best])


class Cuts(NamedTuple):
    """Every way in which a threshold can divide scores, from accepting all to accepting none.

    Attributes:
        thresholds: (K,) rising; mid-points of neighbouring scores, the lowest score, and one above the highest.
        genuine_below: (K,) genuine pairs that are rejected.
        imposters_above: (K,) imposter pairs that are accepted.
        genuine: number of genuine pairs.
        imposters: number of imposter pairs.
    """

    thresholds: Floats
    genuine_below: Codes
    imposters_above: Codes
    genuine: int
    imposters: int

    @classmethod
    def of(cls, score: Floats, genuine: Mask) -> Cuts:
        """Sort scores (n,), of which some are genuine."""
        order = np.argsort(score)
        ordered, n = score[order], len(score)
        below = np.concatenate([[0], np.cumsum(genuine[order])])
        places = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [n]]) if n else np.zeros(1, dtype=np.int64)
        inner = places[1:-1]
        left, right = ordered[inner - 1], ordered[inner]
        middle = left + (right - left) / 2
        middle = np.where(middle > left, middle, right)
        ends = (ordered[:1], np.nextafter(ordered[-1:], math.inf)) if n else (np.zeros(1), np.zeros(0))
        num = int(below[-1])
        genuine_below = below[places]
        above = (n - num) - (places - genuine_below)
        return cls(np.concatenate([ends[0], middle, ends[1]]), genuine_below, above, num, n - num)


class Fitted(NamedTuple):
    """Thresholds of some pairs.

    Attributes:
        pooled: (F + 1,) at each target, of all imposters, and at last that of the best accuracy.
        own: (G, F + 1) of each subgroup's pairs.
    """

    pooled: Floats
    own: Floats


def fit(pairs: Pairs, rows: Codes, targets: Sequence[float], criterion: Criterion = "balanced") -> Fitted:
    """Fit all thresholds to some rows of the pairs: the pooled one to all, a subgroup's to pairs within it."""
    score, genuine, group = pairs.score[rows], pairs.genuine[rows], pairs.group[rows]

    def of(some: Mask | slice) -> Floats:
        values, labels = score[some], genuine[some]
        return np.append(at_false_match_rate(values[~labels], targets), of_best_accuracy(values, labels, criterion))

    return Fitted(of(slice(None)), np.stack([of(group == g) for g in range(len(pairs.groups))]))


class Decisions(NamedTuple):
    """What thresholds decide, each fitted to pairs of other folds than those that it is applied to.

    Attributes:
        rows: (M,) the pairs that are decided: all, or where folds are of subjects those within a fold.
        pooled: (F + 1, M) bool, accepted at the pooled threshold.
        own: (F + 1, M) bool, accepted at the threshold of the pair's subgroup; of two subgroups never.
        fold: (M,) of each pair; 0 where there are no folds.
        by_fold: the thresholds that were applied in each fold.
        fewest: the smallest number of imposters that a pooled threshold was fitted to.
    """

    rows: Codes
    pooled: Mask
    own: Mask
    fold: Codes
    by_fold: list[Fitted]
    fewest: int


def decide(pairs: Pairs, targets: Sequence[float], criterion: Criterion = "balanced", folds: bool = True) -> Decisions:
    """Fit thresholds on all folds but one and apply them to that one, for each fold; without folds to what they saw."""
    imposters = int(np.count_nonzero(~pairs.genuine))
    if pairs.folds is None or not folds:
        rows = np.arange(len(pairs))
        fitted = fit(pairs, rows, targets, criterion)
        return Decisions(rows, *_apply(pairs, rows, fitted), np.zeros(len(pairs), dtype=np.int64), [fitted], imposters)
    first, second = pairs.folds.T
    made, by_fold, fewest = [], [], imposters
    for fold in range(pairs.num_folds):
        seen = np.flatnonzero((first != fold) & (second != fold))
        rows = np.flatnonzero((first == fold) & (second == fold))
        by_fold.append(fit(pairs, seen, targets, criterion))
        fewest = min(fewest, int(np.count_nonzero(~pairs.genuine[seen])))
        made.append((rows, *_apply(pairs, rows, by_fold[-1]), np.full(len(rows), fold)))
    rows, pooled, own, fold_of = (np.concatenate(parts, axis=-1) for parts in zip(*made, strict=True))
    return Decisions(rows, pooled, own, fold_of, by_fold, fewest)


def _apply(pairs: Pairs, rows: Codes, fitted: Fitted) -> tuple[Mask, Mask]:
    score, group = pairs.score[rows], pairs.group[rows]
    own = (score >= fitted.own.T[:, group]) & (group >= 0)
    return score >= fitted.pooled[:, None], own
