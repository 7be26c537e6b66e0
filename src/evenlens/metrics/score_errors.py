"""How far a measure of scores may be off in each group, to first order.

The influence of an image is the change of the value for a small change of the image's weight. The sum of the squares is
the variance, which a bootstrap of ever more replicates would come to; of the AUROC it is DeLong's, exactly. Where
images come in clusters the influences are first added up within each. All rows are used as they are, save that the
variances of a ranking with more than a million different scores are those of a coarser one (`LONG`).

Sources: DeLong et al., 1988; Obuchowski, 1997 (clusters); Kish, 1965 (effective number of clusters); Boyd et al., 2013
(average precision on the logit scale); Wilson, 1927.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from evenlens.metrics.counts import Counts, Floats
from evenlens.metrics.gaps import Mask
from evenlens.metrics.intervals import t_quantile, wilson
from evenlens.metrics.patterns import cluster_codes
from evenlens.metrics.rates import divide
from evenlens.metrics.scores import (
    Ranking,
    Scores,
    brier_score,
    expected_calibration_error,
    over_shared,
    sum_by,
)

# A bin is clearly wrong if it is off by more than so many standard errors.
CLEARLY = 3.0
# From so many degrees of freedom on, Student's t is a short series.
MANY = 30
# A ranking of more ties is thinned out for a variance, and keeps this many for each group.
LONG, TIES = 2**20, 2**12


@dataclass(frozen=True, eq=False)
class Drawn:
    """Scores, and the (N,) numbers of the clusters that were drawn, or None if each image was."""

    scores: Scores
    cluster: Counts | None

    @classmethod
    def of(cls, scores: Scores, clusters: ArrayLike | None) -> Drawn:
        """Number clusters, (N,) whole numbers or names; a UserError if they do not fit the scores."""
        return cls(scores, None if clusters is None else cluster_codes(clusters, len(scores.label)))

    @cached_property
    def pairs(self) -> tuple[Counts, Counts, Counts]:
        """(N,) the pair (cluster, group) of each image; (M,) the cluster and the group of each pair, in this order."""
        groups = self.scores.num_groups
        cluster = np.arange(len(self.scores.group)) if self.cluster is None else self.cluster
        code, pair = np.unique(cluster * groups + self.scores.group, return_inverse=True)
        return pair, code // groups, code % groups

    def effective(self, chosen: Mask) -> Floats:
        """Tell how many equal clusters would tell as much as those of the chosen images (N,) of each group, (G,)."""
        pair, _, group = self.pairs
        size = sum_by(pair, chosen, len(group))
        square = sum_by(group, size**2, self.scores.num_groups)
        return sum_by(group, size, self.scores.num_groups) ** 2 / np.where(square > 0, square, 1)

    @cached_property
    def units(self) -> Floats:
        """(G,) images, or effective number of clusters."""
        if self.cluster is None:
            return self.scores.images.astype(np.float64)
        return self.effective(np.ones(len(self.cluster), dtype=np.bool_))

    @cached_property
    def sides(self) -> Floats:
        """(rankings, 2, G) negative and positive images, or effective numbers of the clusters that have some."""
        if self.cluster is None:
            return np.array([ranking.total for ranking in self.scores.rankings], dtype=np.float64)
        label = self.scores.label
        classes = [1] if self.scores.score.ndim == 1 else range(self.scores.score.shape[1])
        return np.array([[self.effective(label != c), self.effective(label == c)] for c in classes])

    @cached_property
    def rankings(self) -> tuple[Ranking, ...]:
        """The rankings of the scores; a long one is thinned out if nobody has to go back from it to rows."""
        if self.cluster is None and self.scores.score.ndim == 1 and len(self.scores.rankings[0].group) > LONG:
            return (self.scores.rankings[0].thinned(TIES),)
        return self.scores.rankings

    def of_ties(self, influences: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
        """Do as `covariance` for the influence of the negative and the positive images of each ranking's ties."""
        if self.cluster is None and self.scores.score.ndim == 1:
            (ranking,), ((negative, positive),) = self.rankings, influences
            variance = ranking.sum(ranking.tied[0] * negative**2 + ranking.tied[1] * positive**2)
            return variance, np.broadcast_to(0.0, (len(variance), len(variance)))
        rows = (self.to_rows(number, *influence) for number, influence in enumerate(influences))
        return self.covariance(over_shared(self.scores, rows))

    def to_rows(self, index: int, negative: Floats, positive: Floats) -> Floats:
        """Give each image the number (T,) that its tie in a ranking has for images of its side, (N,)."""
        order, side = self.orders[index]
        tie = np.repeat(np.arange(len(negative)), self.scores.rankings[index].tied.sum(axis=0))
        rows = np.empty(len(order))
        rows[order] = np.where(side, positive[tie], negative[tie])
        return rows

    @cached_property
    def orders(self) -> list[tuple[Counts, Mask]]:
        """The (N,) rows in the order of each ranking, by group and rising score, and which of them are positive."""
        scores = self.scores
        columns = [(1, scores.score)] if scores.score.ndim == 1 else [*enumerate(scores.score.T)]
        orders = []
        for positive, score in columns:
            order = np.argsort(score)
            order = order[np.argsort(scores.group[order].astype(np.min_scalar_type(scores.num_groups)), kind="stable")]
            orders.append((order, scores.label[order] == positive))
        return orders

    def covariance(self, influence: Floats) -> tuple[Floats, Floats]:
        """Give the variance of each group's value, (G,), and the correlations, (G, G), for what images add, (N,)."""
        groups = self.scores.num_groups
        if self.cluster is None:
            return sum_by(self.scores.group, influence**2, groups), np.broadcast_to(0.0, (groups, groups))
        pair, cluster, group = self.pairs
        total = sum_by(pair, influence, len(group))
        product = _products(cluster, group * groups, group, total, groups**2).reshape(groups, groups)
        variance = np.diagonal(product)
        correlation = divide(product, np.sqrt(np.outer(variance, variance)))
        return variance, np.clip(np.nan_to_num(correlation), -1, 1)

    @cached_property
    def bin_covariance(self) -> Floats:
        """(G, bins, bins) covariance of `Scores.miscalibration` within each group."""
        scores, bins = self.scores, self.scores.bins
        off, mean = scores.confidence[1] - scores.confidence[0], scores.miscalibration
        if self.cluster is None:
            squares, sizes = sum_by(scores.cells, off**2, mean.size), scores.images.astype(np.float64)
            products, with_size = squares.reshape(*mean.shape, 1) * np.eye(bins), mean * sizes[:, None]
        else:
            pair, _, group = self.pairs
            size = np.bincount(pair, minlength=len(group))
            code, entry = np.unique(pair * bins + scores.cells % bins, return_inverse=True)
            block, column, total = code // bins, code % bins, sum_by(entry, off, len(code))
            cell = group[block] * bins + column
            products = _products(block, cell * bins, column, total, mean.size * bins).reshape(*mean.shape, bins)
            with_size = sum_by(cell, total * size[block], mean.size).reshape(mean.shape)
            sizes = sum_by(group, size**2, len(mean))
        cross = with_size[:, :, None] * mean[:, None, :]
        centred = products - cross - cross.swapaxes(1, 2) + np.einsum("g,gb,gc->gbc", sizes, mean, mean)
        return divide(centred, scores.images[:, None, None] ** 2)


def _products(block: Counts, place: Counts, column: Counts, value: Floats, size: int) -> Floats:
    """Add up the products of every two values of a block, those of i and j at place[i] + column[j].

    The entries (M,) are sorted by block, and no block has a column twice. Returns (size,).
    """
    total = sum_by(place + column, value**2, size)
    for lag in range(1, len(block)):
        first = np.flatnonzero(block[lag:] == block[:-lag])
        if not first.size:
            break
        second = first + lag
        product = value[first] * value[second]
        total += sum_by(place[first] + column[second], product, size)
        total += sum_by(place[second] + column[first], product, size)
    return total


@dataclass(frozen=True, eq=False)
class Estimates:
    """A value for each group and how far it may be off.

    Attributes:
        value: (G,).
        variance: (G,).
        correlation: (G, G) of the values; groups that share no cluster have 0.
        units: (G,) how many images or clusters would have had to be alike for a perfect value.
        freedom: (G,) degrees of freedom of the variance.
        top: highest possible value.
        bias: (G,) how much too large chance makes the value, if it does.
        low_variance: (G,) variance for the low end, where it is another and the scale is plain; else it is logit.
    """

    value: Floats
    variance: Floats
    correlation: Floats
    units: Floats
    freedom: Floats
    top: float = 1.0
    bias: Floats | None = None
    low_variance: Floats | None = None

    def of(self, groups: Mask) -> Estimates:
        """Leave out the other groups."""
        names = ("value", "variance", "units", "freedom", "bias", "low_variance")
        parts = {name: getattr(self, name)[groups] for name in names if getattr(self, name) is not None}
        return replace(self, correlation=self.correlation[np.ix_(groups, groups)], **parts)

    @property
    def excess(self) -> Floats:
        """(G,) the bias, or 0."""
        return np.zeros_like(self.value) if self.bias is None else self.bias

    def reach(self, probability: float) -> tuple[Floats, Floats]:
        """Tell how far below and above its value, (G,) each, a group's true one lies at most with this probability.

        What chance has added to a value comes on top, below.
        """
        t = _student(probability, self.freedom)
        share = self.value / self.top
        unseen = t**2 / (self.units + t**2)
        if self.low_variance is None:
            spread = np.where((share > 0) & (share < 1), share * (1 - share), np.inf)
            with np.errstate(over="ignore"):
                factor = np.exp(t * np.sqrt(self.variance) / self.top / spread)
            low, high = share / (share + (1 - share) * factor), share / (share + (1 - share) / factor)
        else:
            low, high = share - t * np.sqrt(self.low_variance), share + t * np.sqrt(self.variance)
            high = np.maximum(high, wilson(share * self.units, self.units, 2 * probability - 1).high)
        low, high = np.minimum(low, share * (1 - unseen)), np.maximum(high, share + (1 - share) * unseen)
        return self.top * (share - low), self.top * (high - share)

    def limits(self, probability: float) -> tuple[Floats, Floats]:
        """Give the ends of each group's interval, (G,) each."""
        down, up = self.reach(probability)
        return np.maximum(self.value - self.excess - down, 0), np.minimum(self.value + up, self.top)


def _student(probability: float, freedom: Floats) -> Floats:
    """Give the quantile of Student's t for degrees of freedom (G,), those below `MANY` rounded down, at least to 1.

    Source: Abramowitz and Stegun, 1964, 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    many = np.maximum(freedom, MANY)
    t = z + (z**3 + z) / (4 * many) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * many**2)
    for degrees in range(1, MANY):
        here = np.maximum(np.floor(freedom), 1) == degrees
        if here.any():
            t[here] = t_quantile(probability, degrees)
    return t


def _unbiased(units: Floats) -> Floats:
    """Give n / (n - 1), by which a variance about a mean of n is too small; 1 where there is but one."""
    return np.where(units > 1, divide(units, units - 1), 1.0)


def _scale(units: Floats, images: Counts) -> Floats:
    """Give what turns deviations of images into their influence on a mean; NaN of none."""
    return np.where(images > 0, divide(np.sqrt(_unbiased(units)), images), np.nan)


def _auroc(drawn: Drawn) -> Estimates:
    scores = drawn.scores
    value = over_shared(scores, (ranking.auroc for ranking in scores.rankings))
    influences = (_auroc_influence(*pair) for pair in zip(drawn.rankings, drawn.sides, strict=True))
    units = _alike(drawn, drawn.sides.min(axis=1))
    return Estimates(value, *drawn.of_ties(influences), units, drawn.units - 1)


def _average_precision(drawn: Drawn) -> Estimates:
    scores, positive = drawn.scores, drawn.sides[:, 1]
    value = over_shared(scores, (ranking.average_precision for ranking in scores.rankings))
    influences = (_precision_influence(*pair) for pair in zip(drawn.rankings, positive, strict=True))
    units = _alike(drawn, positive)
    return Estimates(value, *drawn.of_ties(influences), units, units - 1)


def _alike(drawn: Drawn, units: Floats) -> Floats:
    """Tell how many units, (rankings, G) for each, would have to be alike for all rankings to be perfect, (G,).

    A mean over C classes moves by a C-th of what the class with the fewest units moves by.
    """
    chosen = units[drawn.scores.shared]
    return np.minimum(len(chosen) * chosen.min(axis=0), drawn.units) if len(chosen) else drawn.units


def _auroc_influence(ranking: Ranking, units: Floats) -> tuple[Floats, Floats]:
    """Tell what images of each tie add to the error of their group's AUROC: negative and positive ones, (T,) each.

    Args:
        ranking: of one class against the rest.
        units: (2, G) effective numbers of negative and positive images.
    """
    scale = _scale(units, ranking.total)
    beaten = divide(ranking.below + ranking.tied / 2, ranking.total[:, ranking.group])  # share of each side
    auroc = ranking.auroc[ranking.group]
    return (1 - beaten[1] - auroc) * scale[0, ranking.group], (beaten[0] - auroc) * scale[1, ranking.group]


def _precision_influence(ranking: Ranking, units: Floats) -> tuple[Floats, Floats]:
    """Do as `_auroc_influence` for the average precision; units (G,) are of positive images.

    A positive image adds the precision at its own score, and lifts that at its score and lower ones; a negative lowers.
    """
    negatives, positives = ranking.above()
    precision = positives / (negatives + positives)
    change = ranking.tied[1] / (negatives + positives)
    lowered, lifted = ranking.running_sum(change * precision), ranking.running_sum(change * (1 - precision))
    scale = _scale(units, ranking.total[1])[ranking.group]
    return -lowered * scale, (precision - ranking.average_precision[ranking.group] + lifted) * scale


def _of_mean(drawn: Drawn, value: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """Give the covariance of means (G,) over the images of each group; rows (N,)."""
    scale = _scale(drawn.units, drawn.scores.images)
    return drawn.covariance((rows - value[drawn.scores.group]) * scale[drawn.scores.group])


def _brier_score(drawn: Drawn) -> Estimates:
    value = brier_score(drawn.scores)
    top = 1.0 if drawn.scores.score.ndim == 1 else 2.0
    return Estimates(value, *_of_mean(drawn, value, drawn.scores.squares), drawn.units, drawn.units - 1, top)


def _expected_calibration_error(drawn: Drawn) -> Estimates:
    """Estimate the error of a sum of distances.

    With the sign of its bin for each image the sum is a mean, and varies as one. Of bins that are not clearly wrong
    chance alone may have made all of the distance: they count with the mean and the variance of the absolute value of
    a normal error, which is at least as large as that of a calibrated bin.
    """
    scores = drawn.scores
    confidence, true = scores.confidence
    value, off = expected_calibration_error(scores), scores.miscalibration
    sign = np.where(off < 0, -1.0, 1.0)
    variance, correlation = _of_mean(drawn, value, (true - confidence) * sign.ravel()[scores.cells])

    covariance = drawn.bin_covariance * _unbiased(drawn.units)[:, None, None]
    observed = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0))
    expected = sum_by(scores.cells, confidence * (1 - confidence), off.size).reshape(off.shape)
    error = np.maximum(observed, divide(np.sqrt(expected), scores.images[:, None]))
    clear = np.abs(off) > CLEARLY * error
    signed, chance = np.where(clear, sign, 0), np.where(clear, 0, error)
    related = np.clip(np.nan_to_num(divide(covariance, observed[:, :, None] * observed[:, None, :])), -1, 1)
    related = np.maximum(related, np.eye(scores.bins))
    folded = 2 / np.pi * (related * np.arcsin(related) + np.sqrt(1 - related**2) - 1)  # covariance of absolute values
    parts = ((signed, covariance), (chance, folded))
    low = sum(np.einsum("gb,gbc,gc->g", side, product, side) for side, product in parts)
    bias = np.sqrt(2 / np.pi) * chance.sum(axis=1)
    return Estimates(
        value, variance, correlation, drawn.units, drawn.units - 1, bias=bias, low_variance=np.maximum(low, 0)
    )


ESTIMATES: dict[str, Callable[[Drawn], Estimates]] = {
    "auroc": _auroc,
    "average_precision": _average_precision,
    "expected_calibration_error": _expected_calibration_error,
    "brier_score": _brier_score,
}
