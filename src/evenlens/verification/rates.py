"""Numbers of a set of pairs that need no threshold of one's choice: DET curve, EER, AUC, d'."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from evenlens.metrics.counts import Floats
from evenlens.verification.thresholds import Cuts


def det_curve(cuts: Cuts, most: int = 80) -> tuple[Floats, Floats]:
    """Give false match rates and the false non-match rates there, as the threshold rises.

    Args:
        cuts: of the pairs.
        most: about how many points; those are kept that are evenly spaced in the logarithm of either rate.

    Returns:
        FMR (K,) falling and FNMR (K,) rising; empty without genuine or imposter pairs.

    Source: Martin et al., 1997, The DET curve in assessment of detection task performance.
    """
    if not cuts.genuine or not cuts.imposters:
        return np.zeros(0), np.zeros(0)
    matches, misses = cuts.imposters_above, cuts.genuine_below
    kept = {0, len(matches) - 1}
    for rising, total in ((misses, cuts.genuine), (matches[::-1], cuts.imposters)):
        wanted = np.geomspace(1, total, most // 2)
        places = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
        kept |= {*(places if rising is misses else len(matches) - 1 - places).tolist()}
    places = np.array(sorted(kept))
    return matches[places] / cuts.imposters, misses[places] / cuts.genuine


class Eer(NamedTuple):
    """The equal error rate and the threshold next to it."""

    value: float
    threshold: float


def equal_error_rate(cuts: Cuts) -> Eer:
    """Give the error rate at which false matches and false non-matches are equally frequent.

    Between two neighbouring thresholds, the curve is taken to be straight.

    Returns:
        in [0, 1]; NaN without genuine or imposter pairs.
    """
    if not cuts.genuine or not cuts.imposters:
        return Eer(math.nan, math.nan)
    fmr, fnmr = cuts.imposters_above / cuts.imposters, cuts.genuine_below / cuts.genuine
    k = int(np.argmax(fnmr >= fmr))  # the first; k > 0, as FNMR is 0 and FMR 1 at first
    before, after = fmr[k - 1] - fnmr[k - 1], fnmr[k] - fmr[k]
    part = before / (before + after)
    value = fmr[k - 1] + part * (fmr[k] - fmr[k - 1])
    return Eer(float(value), float(cuts.thresholds[k if part > 0.5 else k - 1]))


class Placements(NamedTuple):
    """What each pair adds to a number that is a mean over genuine pairs plus one over imposters.

    Attributes:
        value: the number.
        genuine: (n,) influence of each genuine pair, up to a constant.
        imposters: (m,) of each imposter pair.
    """

    value: float
    genuine: Floats
    imposters: Floats


def area_under_curve(genuine: Floats, imposters: Floats) -> Placements:
    """Give the probability that a genuine pair has a higher score than an imposter one; equal ones count half.

    Args:
        genuine: (n,) scores.
        imposters: (m,) scores.

    Returns:
        the area in [0, 1], and the placement of each pair among those of the other kind. NaN without either.

    Source: DeLong, DeLong and Clarke-Pearson, 1988, for placements.
    """
    if not len(genuine) or not len(imposters):
        return Placements(math.nan, np.full(len(genuine), math.nan), np.full(len(imposters), math.nan))
    of_genuine = _below(np.sort(imposters), genuine)
    of_imposters = 1 - _below(np.sort(genuine), imposters)
    return Placements(float(of_genuine.mean()), of_genuine, of_imposters)


def _below(ordered: Floats, values: Floats) -> Floats:
    """Give the share of sorted scores that is below each value, half of those that are equal included."""
    order = np.argsort(values)  # searching in order is several times as fast
    found = np.empty(len(values))
    sides = [np.searchsorted(ordered, values[order], side) for side in ("left", "right")]
    found[order] = (sides[0] + sides[1]) / (2 * len(ordered))
    return found


def d_prime(genuine: Floats, imposters: Floats) -> Placements:
    """Give how many standard deviations lie between the means: |m1 - m0| / sqrt((v1 + v0) / 2).

    Args:
        genuine: (n,) scores, with mean m1 and variance v1.
        imposters: (m,) scores.

    Returns:
        d' >= 0, and the influence of each pair. NaN without either kind, or where no score varies.

    Source: Daugman, 2000, Biometric decision landscapes.
    """
    nothing = Placements(math.nan, np.full(len(genuine), math.nan), np.full(len(imposters), math.nan))
    if not len(genuine) or not len(imposters):
        return nothing
    one, zero = genuine - genuine.mean(), imposters - imposters.mean()
    spread = math.sqrt((np.mean(one**2) + np.mean(zero**2)) / 2)
    if spread == 0:
        return nothing
    apart = genuine.mean() - imposters.mean()
    value, sign = abs(apart) / spread, math.copysign(1, apart)
    return Placements(
        float(value),
        sign * one / spread - value * one**2 / (4 * spread**2),
        -sign * zero / spread - value * zero**2 / (4 * spread**2),
    )
