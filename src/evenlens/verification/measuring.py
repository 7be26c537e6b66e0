"""Decisions on pairs -> the rates of each subgroup, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evenlens.metrics.counts import Floats
from evenlens.metrics.intervals import Interval
from evenlens.metrics.rates import divide
from evenlens.verification import rates, summaries
from evenlens.verification.pairs import Codes, Mask, Pairs
from evenlens.verification.resampling import Subjects, number_intervals, share_intervals
from evenlens.verification.thresholds import Criterion, Cuts, Decisions

BINS = 60  # of a distribution of scores
Part = tuple[Codes, Floats]


class Rates(NamedTuple):
    """Error rates at one kind of thresholds; rows are targets and at last the best accuracy, columns subgroups.

    Attributes:
        fmr: (F + 1, K) share of imposter pairs that are accepted.
        fnmr: (F + 1, K) share of genuine pairs that are rejected.
        fmr_mean: (F + 1, K) mean over folds.
        fmr_sd: (F + 1, K) standard deviation over folds; NaN without folds.
        fnmr_mean: likewise.
        fnmr_sd: likewise.
    """

    fmr: Interval[Floats]
    fnmr: Interval[Floats]
    fmr_mean: Floats
    fmr_sd: Floats
    fnmr_mean: Floats
    fnmr_sd: Floats


class Scores(NamedTuple):
    """Numbers that need no threshold, of K sets of pairs.

    Attributes:
        eer: (K,) equal error rate, within what FMR and FNMR may be at its threshold.
        auc: (K,) area under the ROC curve.
        d_prime: (K,).
        accuracy: (2, K) at the accuracy threshold: the pooled one, and the subgroup's own.
        det: K curves (FMR, FNMR).
        edges: (BINS + 1,) of the distributions of scores.
        genuine: (K, BINS) share of genuine pairs in each bin.
        imposters: (K, BINS) of imposter pairs.
    """

    eer: Interval[Floats]
    auc: Interval[Floats]
    d_prime: Interval[Floats]
    accuracy: Interval[Floats]
    det: list[tuple[Floats, Floats]]
    edges: Floats
    genuine: Floats
    imposters: Floats


class Measured(NamedTuple):
    """All numbers of an audit; K = G + 1 sets of pairs: within each subgroup, and at last all.

    Attributes:
        pooled: at the pooled thresholds.
        own: at the thresholds of each subgroup; of all pairs undefined.
        scores: what needs no threshold.
        matrix: (F, G, G) FMR at the pooled thresholds, of pairs between two subgroups; symmetric.
        boxes: FMR and FNMR (F, G) of all subgroups at once, at the pooled and at the own thresholds.
        genuine: (K,) numbers of genuine pairs.
        imposters: (K,) of imposter pairs.
        subjects: (K,) of subjects; None where they are not known.
    """

    pooled: Rates
    own: Rates
    scores: Scores
    matrix: Interval[Floats]
    boxes: tuple[list[tuple[summaries.Box, summaries.Box]], list[tuple[summaries.Box, summaries.Box]]]
    genuine: Codes
    imposters: Codes
    subjects: Codes | None


class _One(NamedTuple):
    """The numbers of one set of pairs, with their standard deviations over replicates; Q = 2 (F + 1)."""

    fmr: Floats
    fmr_sd: Floats
    fnmr: Floats
    fnmr_sd: Floats
    held: tuple[int, int]
    accuracy: Floats
    accuracy_sd: Floats
    other: Floats
    other_sd: Floats
    det: tuple[Floats, Floats]
    num: tuple[int, int]
    subjects: int


def measure(
    pairs: Pairs, decided: Decisions, subjects: Subjects | None, criterion: Criterion, confidence: float
) -> Measured:
    """Measure every subgroup and all pairs.

    Args:
        pairs: the pairs.
        decided: what thresholds decided of them.
        subjects: replicates; None takes pairs for independent.
        criterion: what accuracy is.
        confidence: of every interval, in (0, 1).
    """
    sets = [pairs.group == g for g in range(len(pairs.groups))] + [np.ones(len(pairs), dtype=bool)]
    found = [_measure_one(pairs, decided, subjects, criterion, inside) for inside in sets]
    people = None if subjects is None else np.array([one.subjects for one in found])
    half = len(decided.pooled)

    def column(name: str, part: slice = slice(None)) -> Floats:
        return np.stack([getattr(one, name)[part] for one in found], axis=1)

    held = np.array([one.held for one in found]).T  # genuine, imposters
    kinds: list[Rates] = []
    boxes = []
    for kind, accepted in ((slice(0, half), decided.pooled), (slice(half, None), decided.own)):
        values = [(column(name, kind), n, column(f"{name}_sd", kind) if subjects else None)
                  for name, n in (("fmr", held[1]), ("fnmr", held[0]))]  # fmt: skip
        if accepted is decided.own:
            for value, _, _ in values:
                value[:, -1] = math.nan
        fmr, fnmr = (_within(*parts, people, confidence) for parts in values)
        kinds.append(Rates(fmr, fnmr, *_over_folds(pairs, decided, accepted, sets)))
        boxes.append(_boxes(values, people, confidence, len(pairs.groups)))
    return Measured(
        kinds[0], kinds[1], _scores(pairs, found, sets, subjects, people, confidence),
        _matrix(pairs, decided, subjects, confidence), (boxes[0], boxes[1]), np.array([one.num[0] for one in found]),
        np.array([one.num[1] for one in found]), people,
    )  # fmt: skip


def _within(
    value: Floats, n: Floats, deviation: Floats | None, people: Codes | None, confidence: float
) -> Interval[Floats]:
    """Give intervals of shares (F, K): those of the K - 1 subgroups by themselves, and those of all pairs."""
    parts = []
    for some in (slice(0, -1), slice(-1, None)):
        number, spread = np.broadcast_to(n, value.shape)[:, some], None if deviation is None else deviation[:, some]
        parts.append(share_intervals(value[:, some], number, spread, None if people is None else people[some],
                                     confidence))  # fmt: skip
    return Interval(*(np.concatenate(fields, axis=1) for fields in zip(*parts, strict=True)))


def _boxes(
    values: Sequence[tuple[Floats, Floats, Floats | None]], people: Codes | None, confidence: float, num_groups: int
) -> list[tuple[summaries.Box, summaries.Box]]:
    """Give the ends of both rates of all subgroups at once, at each target (Bonferroni's)."""
    together = 1 - (1 - confidence) / (2 * num_groups)
    fmr, fnmr = (_within(*parts, people, together) for parts in values)
    return [
        (summaries.Box(fmr.low[k, :-1], fmr.high[k, :-1]), summaries.Box(fnmr.low[k, :-1], fnmr.high[k, :-1]))
        for k in range(len(fmr.low))
    ]


def _measure_one(
    pairs: Pairs, decided: Decisions, subjects: Subjects | None, criterion: Criterion, inside: Mask
) -> _One:
    """Measure one set of pairs."""
    mine, label = inside[decided.rows], pairs.genuine[decided.rows]
    places = [np.flatnonzero(mine & label), np.flatnonzero(mine & ~label)]
    accepted = [np.concatenate([decided.pooled[:, at], decided.own[:, at]]).T.astype(np.float64) for at in places]
    wrong = [1 - accepted[0], accepted[1]]
    rows = [decided.rows[at] for at in places]
    fnmr, fmr = (_mean(columns) for columns in wrong)
    half = len(decided.pooled)
    of_accuracy = [half - 1, 2 * half - 1]
    weights = _weights(criterion, len(rows[0]), len(rows[1]))
    errors = [weight * columns[:, of_accuracy] for weight, columns in zip(weights, wrong, strict=True)]
    everyone = [np.flatnonzero(inside & pairs.genuine), np.flatnonzero(inside & ~pairs.genuine)]
    scores = [pairs.score[at] for at in everyone]
    area, apart = rates.area_under_curve(*scores), rates.d_prime(*scores)
    cuts = Cuts.of(pairs.score[inside], pairs.genuine[inside])
    eer = rates.equal_error_rate(cuts)
    at_eer = [(scores[0] < eer.threshold)[:, None].astype(float), (scores[1] >= eer.threshold)[:, None].astype(float)]
    of_all = [np.stack([area.genuine, apart.genuine], axis=1), np.stack([area.imposters, apart.imposters], axis=1)]
    return _One(
        fmr,
        _deviation(subjects, [(rows[1], wrong[1])]),
        fnmr,
        _deviation(subjects, [(rows[0], wrong[0])]),
        (len(rows[0]), len(rows[1])),
        1 - np.sum([_mean(columns) for columns in errors], axis=0),
        _deviation(subjects, list(zip(rows, errors, strict=True))),
        np.array([eer.value, area.value, apart.value, *_mean(at_eer[0]), *_mean(at_eer[1])]),
        np.concatenate([
            _deviation(subjects, list(zip(everyone, of_all, strict=True))),
            *(_deviation(subjects, [part]) for part in zip(everyone, at_eer, strict=True)),
        ]),
        rates.det_curve(cuts),
        (len(everyone[0]), len(everyone[1])),
        0 if subjects is None else subjects.number(np.concatenate(everyone)),
    )  # fmt: skip


def _weights(criterion: Criterion, genuine: int, imposters: int) -> tuple[float, float]:
    if criterion == "balanced" or not genuine + imposters:
        return 0.5, 0.5
    return genuine / (genuine + imposters), imposters / (genuine + imposters)


def _mean(columns: Floats) -> Floats:
    return columns.mean(axis=0) if len(columns) else np.full(columns.shape[1], math.nan)


def _deviation(subjects: Subjects | None, parts: Sequence[Part]) -> Floats:
    """Give the standard deviation of a sum of means, each over some rows: (Q,)."""
    if any(not len(rows) for rows, _ in parts):
        return np.full(parts[0][1].shape[1], math.nan)
    if subjects is None:
        return np.sqrt(sum(columns.var(axis=0) / len(rows) for rows, columns in parts))
    return subjects.deviation(parts)


def _over_folds(
    pairs: Pairs, decided: Decisions, accepted: Mask, sets: Sequence[Mask]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Give mean and standard deviation over folds of FMR, then of FNMR: (F + 1, K) each."""
    num = len(decided.by_fold)
    label = pairs.genuine[decided.rows]
    made = []
    for genuine in (False, True):
        wrong = accepted != genuine
        by_fold = np.full((num, len(accepted), len(sets)), math.nan)
        for k, inside in enumerate(sets):
            at = np.flatnonzero(inside[decided.rows] & (label == genuine))
            fold = decided.fold[at]
            size = np.bincount(fold, minlength=num)
            hits = [np.bincount(fold, row, num) for row in wrong[:, at]]
            by_fold[:, :, k] = divide(np.stack(hits, axis=1), size[:, None])
        sd = by_fold.std(axis=0, ddof=1) if num > 1 else np.full(by_fold.shape[1:], math.nan)
        made += [by_fold.mean(axis=0), sd]
    return made[0], made[1], made[2], made[3]


def _scores(
    pairs: Pairs, found: Sequence[_One], sets: Sequence[Mask], subjects: Subjects | None, people: Codes | None,
    confidence: float,
) -> Scores:  # fmt: skip
    num = np.array([one.num for one in found], dtype=np.float64).T
    eer, area, apart, fnmr, fmr = np.stack([one.other for one in found], axis=1)
    area_sd, apart_sd, fnmr_sd, fmr_sd = np.stack([one.other_sd for one in found], axis=1)
    given = people is not None
    # The EER lies between FMR and FNMR at any threshold, so between the ends of both at the threshold found.
    sides = [
        share_intervals(rate, n, sd if given else None, people, 1 - (1 - confidence) / 2)
        for rate, n, sd in ((fmr, num[1], fmr_sd), (fnmr, num[0], fnmr_sd))
    ]
    ends = (np.minimum(sides[0].low, sides[1].low), np.maximum(sides[0].high, sides[1].high))
    few: NDArray[Any] = num.min(axis=0) if people is None else people
    edges = np.linspace(pairs.score.min(), pairs.score.max(), BINS + 1)
    shares = [
        np.stack([_shares(pairs.score[inside & (pairs.genuine == genuine)], edges) for inside in sets])
        for genuine in (True, False)
    ]
    return Scores(
        Interval(eer, *ends, num.sum(axis=0)),
        share_intervals(area, num.min(axis=0), area_sd, few, confidence),
        number_intervals(apart, apart_sd, people, confidence),
        _accuracy(found, few, confidence),
        [one.det for one in found],
        edges,
        shares[0],
        shares[1],
    )


def _accuracy(found: Sequence[_One], few: NDArray[Any], confidence: float) -> Interval[Floats]:
    value, sd = (np.stack([getattr(one, name) for one in found], axis=1) for name in ("accuracy", "accuracy_sd"))
    value[1, -1] = math.nan
    n = np.broadcast_to(np.array([sum(one.held) for one in found], dtype=np.float64), value.shape)
    return share_intervals(value, n, sd, np.broadcast_to(few, value.shape), confidence)


def _shares(score: Floats, edges: Floats) -> Floats:
    if not len(score) or edges[0] == edges[-1]:
        return np.full(len(edges) - 1, math.nan)
    return np.histogram(score, edges)[0] / len(score)


def _matrix(pairs: Pairs, decided: Decisions, subjects: Subjects | None, confidence: float) -> Interval[Floats]:
    """Give the FMR of pairs between each two subgroups: (F, G, G)."""
    num, targets = len(pairs.groups), len(decided.pooled) - 1
    at = np.flatnonzero(~pairs.genuine[decided.rows])
    rows = decided.rows[at]
    low, high = np.sort(np.stack([pairs.first_group[rows], pairs.second_group[rows]]), axis=0)
    cell = low * num + high
    order = np.argsort(cell, kind="stable")
    ends = np.searchsorted(cell[order], np.arange(num * num + 1))
    value, sd, size = (np.full((num * num, targets), math.nan) for _ in range(3))
    people = np.zeros(num * num)
    for k in np.flatnonzero(np.diff(ends)):
        some = order[ends[k] : ends[k + 1]]
        columns = decided.pooled[:-1, at[some]].T.astype(np.float64)
        value[k], size[k] = _mean(columns), len(some)
        if subjects:
            sd[k], people[k] = _deviation(subjects, [(rows[some], columns)]), subjects.number(rows[some])
    found = share_intervals(
        value.T, np.nan_to_num(size.T), sd.T if subjects else None, people if subjects else None, confidence
    )
    square = [field.reshape(targets, num, num) for field in found]
    upper = np.triu(np.ones((num, num), dtype=bool))
    return Interval(*(np.where(upper, field, field.transpose(0, 2, 1)) for field in square))
