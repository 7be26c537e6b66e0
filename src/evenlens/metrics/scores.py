"""Metrics of scores: how well probabilities rank the images of each group, and how far they can be taken at their word.

With two classes a score is the probability of the positive one (1). With more it is a row of probabilities, one for
each class: a ranking is then made for each class against the rest and averaged over the classes, calibration is that
of the predicted class, and the Brier score is a sum over the classes. What a group has no images for is undefined: NaN,
never 0. `score_table` has the metrics by name, and their intervals.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evenlens.errors import UserError
from evenlens.metrics.counts import Counts, Floats, _codes
from evenlens.metrics.gaps import Mask
from evenlens.metrics.rates import divide

# How far the probabilities of an image may be from adding up to 1.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model says about each image, beside what is true: checked when it is made.

    Attributes:
        score: (N,) probability in [0, 1] of the positive class of two, or (N, C) probabilities of C classes, which add
            up to 1 within `TOLERANCE`. Of (N, 2) the second column is kept. Numbers of any kind are taken.
        label: (N,) true classes in [0, C).
        group: (N,) sensitive groups in [0, num_groups).
        num_groups: G, at least 1. A group without images does not exist and is left out of gaps.
        bins: how many bins of equal width the calibration error has.

    Raises:
        UserError: if a shape is wrong, or something is no number or out of its range.
    """

    score: Floats
    label: Counts
    group: Counts
    num_groups: int
    bins: int = 15

    def __post_init__(self) -> None:
        if self.num_groups < 1 or self.bins < 1:
            raise UserError(f"Scores need one group and one bin at least, not {self.num_groups} and {self.bins}.")
        score = _probabilities(self.score)
        checked = {
            "score": score[:, 1] if score.shape[1:] == (2,) else score,
            "label": _codes("label", self.label, 2 if score.ndim == 1 else score.shape[1]),
            "group": _codes("group", self.group, self.num_groups),
        }
        if len({len(column) for column in checked.values()}) > 1:
            lengths = ", ".join(str(len(column)) for column in checked.values())
            raise UserError(f"score, label and group must be equally long; they have {lengths} rows.")
        for name, column in checked.items():
            object.__setattr__(self, name, column)

    @cached_property
    def images(self) -> Counts:
        """(G,) images of each group."""
        return np.bincount(self.group, minlength=self.num_groups)

    @cached_property
    def present(self) -> Mask:
        """(G,) which groups have at least one image."""
        return self.images > 0

    @cached_property
    def pooled(self) -> Scores:
        """All images as if they were one group: G is 1."""
        same = {name: getattr(self, name) for name in ("score", "label", "bins", "confidence", "squares")}
        pooled = object.__new__(Scores)  # what is checked is not checked again
        vars(pooled).update(same, group=np.zeros_like(self.group), num_groups=1)
        return pooled

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """The ranking by the score of two classes, or one for each class against the rest."""
        if self.score.ndim == 1:
            return (Ranking.of(self.score, self.label == 1, self.group, self.num_groups),)
        classes = range(self.score.shape[1])
        return tuple(Ranking.of(self.score[:, c], self.label == c, self.group, self.num_groups) for c in classes)

    @cached_property
    def shared(self) -> Mask:
        """(1,) or (C,) which rankings exist in every group that has one: groups are compared by the same classes."""
        defined = np.array([ranking.defined for ranking in self.rankings])
        shared: Mask = np.logical_or(defined, ~defined.any(axis=0)).all(axis=1)
        return shared

    @cached_property
    def confidence(self) -> tuple[Floats, Mask]:
        """(N,) probability that something is true, and whether it is: that the class is 1, or else the predicted."""
        if self.score.ndim == 1:
            return self.score, self.label == 1
        predicted = self.score.argmax(axis=1)
        return self.score[np.arange(len(self.score)), predicted], predicted == self.label

    @cached_property
    def cells(self) -> Counts:
        """(N,) numbers of (group, bin). Bin b holds confidences in (b / bins, (b + 1) / bins], and the first also 0."""
        edges = np.arange(self.bins + 1) / self.bins
        return self.group * self.bins + np.maximum(np.searchsorted(edges, self.confidence[0], side="left") - 1, 0)

    @cached_property
    def miscalibration(self) -> Floats:
        """(G, bins) what is true minus what was expected, summed over the bin and divided by the group's images."""
        confidence, true = self.confidence
        total = sum_by(self.cells, true - confidence, self.num_groups * self.bins)
        return divide(total.reshape(self.num_groups, self.bins), self.images[:, None])

    @cached_property
    def squares(self) -> Floats:
        """(N,) squared errors of the positive probability, or their sum over the classes if there are more than two."""
        if self.score.ndim == 1:
            return (self.score - self.label) ** 2
        return ((self.score - (self.label[:, None] == np.arange(self.score.shape[1]))) ** 2).sum(axis=1)


def _probabilities(score: Floats) -> Floats:
    """Check that a score is (N,) or (N, C) and holds probabilities."""
    given = np.asarray(score)
    if given.ndim not in (1, 2) or given.shape[1:] in ((0,), (1,)) or (given.size and given.dtype.kind not in "iubf"):
        raise UserError(
            "score must be one row of numbers, or a table with a column for each of two classes or more; "
            f"it is {given.dtype} of shape {given.shape}."
        )
    probability = given.astype(np.float64)
    wrong = np.argwhere(~((probability >= 0) & (probability <= 1)))
    if len(wrong):
        raise UserError(
            f"score must be a probability between 0 and 1; row {wrong[0][0]} has {probability[tuple(wrong[0])]}."
        )
    if probability.ndim == 2:
        total = probability.sum(axis=1)
        far = np.flatnonzero(np.abs(total - 1) > TOLERANCE)
        if far.size:
            raise UserError(f"The scores of an image must add up to 1; those of row {far[0]} make {total[far[0]]:.6g}.")
    return probability + 0.0  # no -0.0, whose place among others would depend on the sort


@dataclass(frozen=True, eq=False)
class Ranking:
    """The images of each group in the order of a score, where T ties hold all images of a group with one score.

    Attributes:
        group: (T,) group of each tie; ties are sorted by group and rising score.
        tied: (2, T) negative and positive images of the tie.
        below: (2, T) negative and positive images of its group with a lower score.
        total: (2, G) negative and positive images of each group.
    """

    group: Counts
    tied: Counts
    below: Counts
    total: Counts

    @classmethod
    def of(cls, score: Floats, positive: Mask, group: Counts, num_groups: int) -> Ranking:
        """Rank the images of each group by a score: score, positive and group are (N,)."""
        # The bits of numbers of 0 and more have the numbers' order; the label goes into the last. Sorting these takes a
        # fraction of the time that finding an order and following it does.
        key = (np.ascontiguousarray(score).view(np.int64) << 1) | positive
        last = np.cumsum(np.bincount(group, minlength=num_groups))
        if num_groups > 1:
            key = key[np.argsort(group.astype(np.min_scalar_type(num_groups)), kind="stable")]
        for part in np.split(key, last[:-1]):
            part.sort()
        count = np.zeros(len(key) + 1, dtype=np.int64)  # of positive images before each, over all groups
        np.cumsum(key & 1, out=count[1:])
        key >>= 1
        new = np.ones(len(key) + 1, dtype=np.bool_)
        np.not_equal(key[1:], key[:-1], out=new[1:-1])
        new[last] = True
        edge = np.flatnonzero(new)
        ties = np.diff(np.searchsorted(edge, last), prepend=0)
        before = np.stack([edge - count[edge], count[edge]])
        earlier = np.pad(before[:, np.cumsum(ties)], ((0, 0), (1, 0)))  # before each group
        below = before[:, :-1] - np.repeat(earlier[:, :-1], ties, axis=1)
        return cls(np.repeat(np.arange(num_groups), ties), np.diff(before), below, np.diff(earlier))

    def thinned(self, ties: int) -> Ranking:
        """Merge neighbours until each group has at most so many ties, with about as many images in each."""
        place = self.below.sum(axis=0) * ties // self.total.sum(axis=0)[self.group]
        start = np.flatnonzero(np.append(True, (place[1:] != place[:-1]) | (self.group[1:] != self.group[:-1])))
        tied = np.add.reduceat(self.tied, start, axis=1)
        return Ranking(self.group[start], tied, self.below[:, start], self.total)

    @property
    def defined(self) -> Mask:
        """(G,) which groups have images of the class and images of others."""
        return np.logical_and(*(self.total > 0))

    def above(self) -> tuple[Counts, Counts]:
        """(T,) negative and (T,) positive images of the tie's group with the tie's score or a higher one."""
        negatives, positives = self.total[:, self.group] - self.below
        return negatives, positives

    def sum(self, value: Floats | Counts) -> Floats:
        """Add up a number of each tie for each group, (T,) -> (G,)."""
        return sum_by(self.group, value, self.total.shape[1])

    def running_sum(self, value: Floats) -> Floats:
        """Add up a number of each tie over the tie and the group's ties with lower scores, (T,) -> (T,)."""
        total = self.sum(value)
        return np.cumsum(value) - (np.cumsum(total) - total)[self.group]

    @cached_property
    def auroc(self) -> Floats:
        """(G,) area under the receiver operating characteristic."""
        wins = self.sum(self.tied[1] * (2 * self.below[0] + self.tied[0]))
        return divide(wins, 2 * self.total[0] * self.total[1])

    @cached_property
    def average_precision(self) -> Floats:
        """(G,) mean over the positive images of the precision at their score."""
        negatives, positives = self.above()
        found = self.sum(self.tied[1] * (positives / (negatives + positives)))
        return np.where(self.defined, divide(found, self.total[1]), np.nan)


def sum_by(index: Counts, value: Floats | Counts | Mask, size: int) -> Floats:
    """Add up the values (M,) that have the same index in [0, size), (size,)."""
    return np.bincount(index, weights=value, minlength=size).astype(np.float64)


def over_shared(scores: Scores, values: Iterable[Floats]) -> Floats:
    """Average a number of each ranking, (G,) or (N,), over those that `Scores.shared` tells; NaN without any."""
    total: Floats | float = 0.0
    for value, shared in zip(values, scores.shared, strict=True):
        total = total + np.where(shared, value, 0)
    return divide(total, scores.shared.sum())


def auroc(scores: Scores) -> Floats:
    """Chance that a positive image of the group has a higher score than a negative one, ties counting half, (G,)."""
    return over_shared(scores, (ranking.auroc for ranking in scores.rankings))


def average_precision(scores: Scores) -> Floats:
    """Mean over a group's positive images of the precision at their score, (G,); images of one score come together."""
    return over_shared(scores, (ranking.average_precision for ranking in scores.rankings))


def expected_calibration_error(scores: Scores) -> Floats:
    """Mean distance of what is true from what was expected, over bins weighted by a group's images, (G,)."""
    return np.abs(scores.miscalibration).sum(axis=1)


def brier_score(scores: Scores) -> Floats:
    """Mean squared error of a group's probabilities, (G,); of more than two classes the sum over them."""
    return divide(sum_by(scores.group, scores.squares, scores.num_groups), scores.images)
