"""How far shares are from a target, by several distances, with intervals, and what they are by chance."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from evenlens.metrics import Counts, Floats, Interval
from evenlens.metrics.rates import divide
from evenlens.metrics.resampling import central

# Name of a distance: what it is where shares are the target's, and whether it is of the target or of equal shares.
DISTANCES = {
    "total_variation": (0.0, "target"), "kl": (0.0, "target"), "js": (0.0, "target"), "l2": (0.0, "target"),
    "evenness": (1.0, "uniform"), "min_max_ratio": (1.0, "uniform"),
}  # fmt: skip
FEW = 5  # expected images below which a chi-square test is not to be trusted


def uniform(num: int) -> Floats:
    """Give (num,) equal shares."""
    return np.full(num, 1 / num)


def distances(shares: ArrayLike, target: Floats) -> dict[str, Floats]:
    """Give how far shares are from a target.

    Args:
        shares: (..., K), summing to 1.
        target: (K,), likewise.

    Returns:
        by name, each (...): `total_variation` half the sum of absolute differences, in [0, 1]; `kl` the divergence
        KL(shares || target) in nats, at least 0; `js` that of Jensen and Shannon in nats, in [0, ln 2]; `l2` the
        Euclidean distance; and without regard to the target `evenness`, entropy / ln K, and `min_max_ratio`, smallest
        by largest share, both in [0, 1]. NaN where it is not finite: KL, where a share is not 0 but its target is.

    Source: Kullback and Leibler, 1951; Lin, 1991, Divergence measures based on the Shannon entropy; Pielou, 1966
    (evenness).
    """
    p = np.asarray(shares, dtype=np.float64)
    middle = (p + target) / 2
    kl = _divergence(p, target)
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
    num = p.shape[-1]
    return {
        "total_variation": np.abs(p - target).sum(-1) / 2,
        "kl": np.where(np.isinf(kl), np.nan, kl),
        "js": (_divergence(p, middle) + _divergence(np.broadcast_to(target, p.shape), middle)) / 2,
        "l2": np.sqrt(((p - target) ** 2).sum(-1)),
        "evenness": entropy / math.log(num) if num > 1 else np.full(entropy.shape, np.nan),
        "min_max_ratio": divide(p.min(-1), p.max(-1)),
    }


def _divergence(p: Floats, q: Floats) -> Floats:
    """Give KL(p || q) over the last axis, at least 0; infinite where q lacks what p has."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log(p / q), 0)
    return np.maximum(terms.sum(-1), 0)


def noise_floors(target: Floats, n: int) -> dict[str, float]:
    """Give what distances are expected to be where N images are drawn from the target itself.

    Args:
        target: (K,) shares.
        n: N, images.

    Returns:
        `kl`: (K - 1) / (2 N), and `total_variation`: half the sum of sqrt(2 t (1 - t) / (pi N)); both hold for many
        images.
    """
    spread = np.sqrt(2 * target * (1 - target) / (math.pi * n)).sum() / 2
    return {"kl": (np.count_nonzero(target) - 1) / (2 * n), "total_variation": float(spread)}


class ChiSquare(NamedTuple):
    """Whether counts could come from a target.

    Attributes:
        statistic: N times the sum of (share - target)^2 / target.
        degrees: of freedom, K - 1.
        p_value: how often counts from the target itself are at least as far away, in [0, 1].
        effect: sqrt(statistic / N), which does not grow with N (Cohen's w).
        g: the likelihood ratio 2 N KL(shares || target).
        expected: images that the target gives its rarest category; below `FEW`, the p-value is not to be trusted.
    """

    statistic: float
    degrees: int
    p_value: float
    effect: float
    g: float
    expected: float


def chi_square(counts: Counts, target: Floats) -> ChiSquare:
    """Test whether (K,) counts could come from (K,) target shares.

    Categories of which the target has none are no part of the test where no image has them; NaN where one has.

    Source: Pearson, 1900; Cohen, 1988 (effect size w).
    """
    n, wanted = int(counts.sum()), target > 0
    degrees, expected = int(wanted.sum()) - 1, float(n * target[wanted].min())
    if counts[~wanted].any() or not degrees or not n:
        return ChiSquare(math.nan, degrees, math.nan, math.nan, math.nan, expected)
    shares, t = counts[wanted] / n, target[wanted]
    statistic = float(n * ((shares - t) ** 2 / t).sum())
    g = 2 * n * float(_divergence(shares, t))
    return ChiSquare(statistic, degrees, beyond(statistic, degrees), math.sqrt(statistic / n), g, expected)


def beyond(statistic: float, degrees: int) -> float:
    """Give the probability that a chi-square variable of whole degrees of freedom is larger.

    Source: Abramowitz and Stegun, 1964, 26.4.4 and 26.4.5: finite sums.
    """
    half = statistic / 2
    if half <= 0:
        return 1.0
    odd = degrees % 2
    powers = np.arange(odd / 2, degrees / 2)
    gammas = np.array([math.lgamma(power + 1) for power in powers])
    terms = np.exp(powers * math.log(half) - half - gammas).sum()
    return min(1.0, float(terms) + (math.erfc(math.sqrt(half)) if odd else 0.0))


def plausible(shares: Floats, drawn: Floats, target: Floats, n: int, confidence: float) -> dict[str, Interval[float]]:
    """Give intervals of all distances: the values that the truth may have, as what was found is to be expected of it.

    Near the target a bootstrap's percentile interval misses the truth: shares that are drawn again are farther from the
    target than those they are drawn from, which are farther than the truth. So shares on the line from the target
    through those found are taken for true, one after the other, with the errors of the bootstrap. The interval holds
    the distances of those for which what was found is neither too large nor too small, and the one that was found.

    Args:
        shares: (K,) found.
        drawn: (R, K) the same of replicates.
        target: (K,).
        n: images.
        confidence: in (0, 1).

    Source: Neyman, 1937 (an interval as a test turned around); see `metrics.inversion` for the same of gaps.
    """
    errors, made = drawn - shares, {}
    even = uniform(len(shares))
    same = np.allclose(target, even)
    for of, base in (("target", target), *(() if same else (("uniform", even),))):
        names = [name for name, (_, kind) in DISTANCES.items() if same or kind == of]
        found = distances(shares, base)
        step = shares - base if np.abs(shares - base).max() > 1e-12 else errors[np.abs(errors).sum(axis=1).argmax()]
        reach = 4 * math.sqrt((errors**2).sum(axis=1).mean() / max(1e-300, float((step**2).sum())))
        grid = np.unique([0, 1, *np.linspace(max(0.0, 1 - reach), 1 + reach, 41)])
        truths = distances(_into(base + grid[:, None] * step), base)
        ends = [_ends(base + factor * step + errors, base, names, confidence) for factor in grid]
        for name in names:
            low, high = np.array([each[name] for each in ends]).T
            value, ideal = float(found[name]), DISTANCES[name][0]
            made[name] = _turned(value, ideal, truths[name], low, high, n)
    return made


def _into(shares: Floats) -> Floats:
    """Bring shares (..., K) that may be below 0 back to shares."""
    above = np.maximum(shares, 0)
    return above / above.sum(axis=-1, keepdims=True)


def _ends(drawn: Floats, base: Floats, names: list[str], confidence: float) -> dict[str, tuple[float, float]]:
    found = distances(_into(drawn), base)
    return {name: central(found[name], confidence) for name in names}


def _turned(value: float, ideal: float, truths: Floats, low: Floats, high: Floats, n: int) -> Interval[float]:
    """Find the distances on a grid of truths for which a value lies between the ends that are to be expected.

    Args:
        value: what was found.
        ideal: the distance of the target itself, from which truths lead away.
        truths: (T,) distances on the grid, the target's first.
        low: (T,) lower end of what is to be found where each is true; NaN where undefined.
        high: (T,) upper end.
        n: images.
    """
    if math.isnan(value) or np.isnan(low).any() or np.isnan(truths).any():
        return Interval(value, math.nan, math.nan, n)
    if ideal:  # the more the nearer
        inner = _turned(ideal - value, 0.0, ideal - truths, ideal - high, ideal - low, n)
        return Interval(value, ideal - inner.high, ideal - inner.low, n)
    near = 0.0 if high[0] >= value else float(np.interp(value, np.maximum.accumulate(high), truths))
    far = value if low[0] >= value else float(np.interp(value, np.maximum.accumulate(low), truths))
    return Interval(value, min(near, value), max(far, value), n)
