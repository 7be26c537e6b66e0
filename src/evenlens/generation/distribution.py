"""How often each category occurs among a generator's images, and how far that is from a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evenlens.data.tables import combine
from evenlens.errors import UserError
from evenlens.generation.distances import (
    DISTANCES,
    ChiSquare,
    chi_square,
    distances,
    noise_floors,
    plausible,
    uniform,
)
from evenlens.generation.labels import Labels
from evenlens.metrics import Counts, Floats, Interval, wilson
from evenlens.metrics.intervals import tail
from evenlens.metrics.rates import divide
from evenlens.metrics.resampling import central

REPLICATES = 2000


@dataclass(frozen=True)
class Tally:
    """The category of each of N images.

    Attributes:
        name: the attribute, or several with "x" between.
        categories: the K categories.
        codes: (N,) in [0, K); -1 where an image has none.
        probability: (N, K) of each category, NaN where not known; None where the classifier wrote none down.
        complete: whether the categories are all that the classifier knows, not just those that occur.
    """

    name: str
    categories: tuple[str, ...]
    codes: np.ndarray
    probability: np.ndarray | None = None
    complete: bool = True

    @property
    def counts(self) -> Counts:
        """(K,) images of each category."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.categories))


def tally(labels: Labels, *names: str) -> Tally:
    """Count images by an attribute, or by several crossed.

    Args:
        labels: one face an image.
        *names: attributes; of several the categories are all combinations, the first varies slowest, and there are no
            probabilities: a classifier gives those of each attribute alone.

    Raises:
        UserError: an unknown attribute, or too many combinations.
    """
    parts = [labels.attribute(name) for name in names]
    complete = all(part.probability is not None for part in parts)
    if len(parts) == 1:
        return Tally(names[0], parts[0].classes, parts[0].codes, parts[0].probability, complete)
    crossed = combine([part.column for part in parts])
    return Tally(" x ".join(names), crossed.levels, crossed.codes, None, complete)


def goodman(counts: ArrayLike, confidence: float = 0.95) -> Interval[Floats]:
    """Give simultaneous intervals of the shares of K categories: all of them hold together.

    Args:
        counts: (K,) images of each category.
        confidence: in (0, 1), that no interval of the K misses.

    Returns:
        an interval of (K,) arrays; n is the number of all images.

    Source: Goodman, 1965, On simultaneous confidence intervals for multinomial proportions: each category has the
    score interval at 1 - (1 - confidence) / K.
    """
    images = np.asarray(counts)
    level = 1 - 2 * tail(confidence) / max(1, images.shape[-1])
    return wilson(images, np.broadcast_to(images.sum(axis=-1, keepdims=True), images.shape), level)


@dataclass(frozen=True)
class Distribution:
    """The shares of K categories among N images, and their distances from a target.

    Attributes:
        name: the attribute, or several with "x" between.
        categories: the K categories.
        counts: (K,) images of each.
        target: (K,) shares that are wanted.
        each: Wilson's interval of each share, (K,) arrays.
        together: Goodman's intervals, which hold all together.
        mean_probability: (K,) with intervals, of images whose probabilities are known; None where none are.
        distances: by the names of `DISTANCES`.
        floors: as `noise_floors` gives them.
        test: of the target.
    """

    name: str
    categories: tuple[str, ...]
    counts: Counts
    target: Floats
    each: Interval[Floats]
    together: Interval[Floats]
    mean_probability: Interval[Floats] | None
    distances: dict[str, Interval[float]]
    floors: dict[str, float]
    test: ChiSquare

    @property
    def n(self) -> int:
        """How many images have a category."""
        return int(self.counts.sum())


def describe(
    found: Tally, target: Floats | None = None, confidence: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> Distribution:
    """Count categories, and measure how far they are from a target.

    Distances have intervals as in `plausible`, by errors of a multinomial bootstrap.

    Args:
        found: the categories of images.
        target: (K,) shares; default: all equal.
        confidence: in (0, 1), of every interval.
        replicates: of the bootstrap.
        seed: of its random numbers.

    Raises:
        UserError: no image has a category, there is one category alone, or the confidence is not in (0, 1).

    Source: Efron, 1979, Bootstrap methods: another look at the jackknife.
    """
    counts, num = found.counts, len(found.categories)
    n = int(counts.sum())
    if not n or num < 2:
        why = f"'{found.categories[0]}' is its only category" if n else "no image has a category of it"
        raise UserError(
            f"The distribution of {found.name} cannot be told: {why}. If the generator made nothing else, name the "
            "other classes in --target, or give labels with probabilities."
        )
    shares = uniform(num) if target is None else target
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=replicates) / n
    return Distribution(
        found.name, found.categories, counts, shares, wilson(counts, np.full(num, n), confidence),
        goodman(counts, confidence), _mean(found, confidence),
        plausible(counts / n, drawn, shares, n, confidence),
        noise_floors(shares, n), chi_square(counts, shares),
    )  # fmt: skip


def _mean(found: Tally, confidence: float) -> Interval[Floats] | None:
    """Give the mean probability of each category, with an interval for many images."""
    if found.probability is None:
        return None
    known = found.probability[~np.isnan(found.probability).any(axis=1)]
    if not len(known):
        return None
    low, high = goodman_of_means(known, confidence)
    return Interval(known.mean(axis=0), low, high, np.full(known.shape[1], float(len(known))))


def goodman_of_means(values: Floats, confidence: float) -> tuple[Floats, Floats]:
    """Give the ends of intervals of K means of (N, K) probabilities, which hold together (Bonferroni; many images)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(1 - tail(confidence) / values.shape[1])
    mean, half = values.mean(axis=0), z * values.std(axis=0) / math.sqrt(len(values))
    return np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1)


# ---- two generators


class Difference(NamedTuple):
    """How another set of images differs: its number minus that of the first.

    Attributes:
        paired: whether the same images (of the same latents) were compared one by one.
        pairs: how many images both have, where paired.
        agreement: share of pairs of one category, where paired; else NaN.
        shares: (K,) differences of shares with intervals.
        distances: differences of distances by name, with intervals.
    """

    paired: bool
    pairs: int
    agreement: Interval[float]
    shares: Interval[Floats]
    distances: dict[str, Interval[float]]


def difference(
    first: Tally,
    other: Tally,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    target: Floats,
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Difference:
    """Compare the distributions of two sets of images, by percentile intervals of a bootstrap.

    Args:
        first: of the same categories as the other.
        other: what is compared with it.
        pairs: two arrays (M,) with the code of each image in the first and in the other set, -1 where it has none
            there: images are drawn with both. None: the sets have different images, and are drawn each by itself.
        target: (K,) shares.
        confidence: in (0, 1).
        replicates: of the bootstrap.
        seed: of its random numbers.
    """
    generator, num = np.random.default_rng(seed), len(first.categories)
    n = (int(first.counts.sum()), int(other.counts.sum()))
    if pairs is None:
        agreement = Interval(math.nan, math.nan, math.nan, 0.0)
        drawn = [generator.multinomial(size, one.counts / size, size=replicates)
                 for one, size in ((first, n[0]), (other, n[1]))]  # fmt: skip
    else:
        codes = [np.where(part < 0, num, part) for part in pairs]  # the last row and column: no category there
        cells = np.bincount(codes[0] * (num + 1) + codes[1], minlength=(num + 1) ** 2)
        tables = generator.multinomial(cells.sum(), cells / cells.sum(), size=replicates)
        tables = tables.reshape(replicates, num + 1, num + 1)
        drawn = [tables.sum(axis=2)[:, :num], tables.sum(axis=1)[:, :num]]
        both = (pairs[0] >= 0) & (pairs[1] >= 0)
        same = int(((pairs[0] == pairs[1]) & both).sum())
        agreement = Interval(*(float(part) for part in wilson(same, int(both.sum()), confidence)))
    one, two = (divide(part, part.sum(axis=1, keepdims=True)) for part in drawn)
    found = [part.counts / size for part, size in ((first, n[0]), (other, n[1]))]
    ends = np.quantile(two - one, [tail(confidence), 1 - tail(confidence)], axis=0)
    shares = Interval(found[1] - found[0], ends[0], ends[1], np.full(num, float(min(n))))
    far = [distances(part, target) for part in (found[0], found[1], one, two)]
    made = {
        name: Interval(float(far[1][name] - far[0][name]), *central(far[3][name] - far[2][name], confidence), min(n))
        for name in DISTANCES
    }
    number = 0 if pairs is None else int(agreement.n)
    return Difference(pairs is not None, number, agreement, shares, made)
