"""From the rates of subgroups to one number: how far apart a verification system serves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evenlens.metrics.counts import Floats
from evenlens.metrics.intervals import Interval

ALPHA = 0.5
"""Weight of false matches against false non-matches in the summaries of both."""
ALL_CORNERS = 12  # subgroups of whose box every corner is tried


class Box(NamedTuple):
    """Rates of G subgroups that are all within their ends at once, with the wanted confidence."""

    low: Floats
    high: Floats


def ratio(rates: Floats) -> Floats:
    """Largest rate divided by the smallest (..., G): at least 1; NaN if the smallest is 0 or one is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        smallest = rates.min(axis=-1)
        return np.where(smallest > 0, rates.max(axis=-1) / smallest, np.nan)


def gini(rates: Floats) -> Floats:
    """Gini coefficient of G >= 2 rates (..., G), times G / (G - 1): from 0, all equal, to 1; NaN if all are 0.

    Half the mean absolute difference of two of the rates, over their mean; over G^2 pairs, hence the correction.
    """
    num = rates.shape[-1]
    apart = np.abs(rates[..., :, None] - rates[..., None, :]).sum(axis=(-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return num / (num - 1) * apart / (2 * num**2 * rates.mean(axis=-1))


def fairness_discrepancy_rate(fmr: Floats, fnmr: Floats, alpha: float = ALPHA) -> Floats:
    """FDR = 1 - (alpha max |difference of FMR| + (1 - alpha) max |difference of FNMR|): 1 is best.

    Source: de Freitas Pereira and Marcel, 2021, Fairness in biometrics: a figure of merit to assess biometric
    verification systems, arXiv 2011.02395.
    """
    return 1 - (alpha * np.ptp(fmr, axis=-1) + (1 - alpha) * np.ptp(fnmr, axis=-1))


def garbe(fmr: Floats, fnmr: Floats, alpha: float = ALPHA) -> Floats:
    """GARBE = alpha Gini(FMR) + (1 - alpha) Gini(FNMR): from 0, which is best, to 1.

    Source: Howard, Laird, Sirotin, Rubin, Tipton and Vemury, 2022, Evaluating proposed fairness models for face
    recognition algorithms, arXiv 2203.05051.
    """
    return alpha * gini(fmr) + (1 - alpha) * gini(fnmr)


def inequity(fmr: Floats, fnmr: Floats, alpha: float = ALPHA) -> Floats:
    """Inequity rate (max FMR / min FMR)^alpha (max FNMR / min FNMR)^(1 - alpha): 1 is best.

    Source: Grother, 2021, Demographic differentials in face recognition algorithms, EAB virtual events series.
    """
    return ratio(fmr) ** alpha * ratio(fnmr) ** (1 - alpha)


SUMMARIES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "fmr_ratio": lambda fmr, fnmr: ratio(fmr),
    "fnmr_ratio": lambda fmr, fnmr: ratio(fnmr),
    "fairness_discrepancy_rate": fairness_discrepancy_rate,
    "garbe": garbe,
    "inequity": inequity,
}


def summarise(fmr: Floats, fnmr: Floats) -> dict[str, float]:
    """Compute every summary of the rates of G subgroups (G,); NaN with fewer than two or an undefined one."""
    if len(fmr) < 2:
        return dict.fromkeys(SUMMARIES, float("nan"))
    return {name: float(summary(fmr, fnmr)) for name, summary in SUMMARIES.items()}


def bounds(fmr: Box, fnmr: Box) -> dict[str, tuple[float, float]]:
    """Give the lowest and the highest value of each summary, of all rates within the boxes.

    An interval that is made so covers the truth whenever the boxes do, says of no two subgroups that they differ
    unless their intervals are apart, and is not drawn upwards by noise, as the largest of many noisy numbers is. It is
    wider than need be.

    Returns:
        ends by name; the upper end is infinite where the smallest rate may be 0. NaN as in `summarise`.
    """
    nothing = {name: (float("nan"), float("nan")) for name in SUMMARIES}
    if len(fmr.low) < 2 or np.isnan([*fmr.low, *fnmr.low]).any():
        return nothing
    ratios, apart, ginis = ([of(box) for box in (fmr, fnmr)] for of in (_ratio_ends, _apart_ends, _gini_ends))
    weights = (ALPHA, 1 - ALPHA)

    def mixed(ends: list[tuple[float, float]], end: int) -> float:
        return sum(weight * pair[end] for weight, pair in zip(weights, ends, strict=True))

    def product(end: int) -> float:
        return float(np.prod([pair[end] ** weight for weight, pair in zip(weights, ratios, strict=True)]))

    return {
        "fmr_ratio": ratios[0],
        "fnmr_ratio": ratios[1],
        "fairness_discrepancy_rate": (1 - mixed(apart, 1), 1 - mixed(apart, 0)),
        "garbe": (mixed(ginis, 0), mixed(ginis, 1)),
        "inequity": (product(0), product(1)),
    }


def _ratio_ends(box: Box) -> tuple[float, float]:
    with np.errstate(divide="ignore"):
        return max(1.0, float(box.low.max() / box.high.min())), float(np.divide(box.high.max(), box.low.min()))


def _apart_ends(box: Box) -> tuple[float, float]:
    return max(0.0, float(box.low.max() - box.high.min())), float(box.high.max() - box.low.min())


def _gini_ends(box: Box) -> tuple[float, float]:
    """Find the least and the most uneven rates of a box.

    The least uneven with some mean are as near to one level as the box lets them, by majorisation, and between two
    ends of the box their Gini coefficient is monotone in the level. The most uneven are at a corner, as the sets of
    rates with a smaller coefficient are convex.
    """
    levels = np.concatenate([box.low, box.high])
    near = gini(np.clip(levels[:, None], box.low, box.high))
    far = gini(np.where(_corners(box), box.high, box.low))
    return float(np.nanmin(near, initial=1)), float(np.nanmax(far, initial=0))


def _corners(box: Box) -> NDArray[np.bool_]:
    """Give the corners to try (M, G), True where a rate is at its upper end.

    Of few subgroups that is all of them. Of many, those in which the last rates of an order lie high, and from there
    on one rate after the other changes its end while that makes the rates more uneven.
    """
    num = len(box.low)
    if num <= ALL_CORNERS:
        return (np.arange(2**num)[:, None] >> np.arange(num)) % 2 == 1
    rank = np.argsort(np.argsort(box.low + box.high))
    best = max((rank >= k for k in range(num + 1)), key=lambda up: float(gini(np.where(up, box.high, box.low))))
    for _ in range(10 * num):
        flipped = best ^ np.eye(num, dtype=bool)
        values = gini(np.where(flipped, box.high, box.low))
        if values.max() <= gini(np.where(best, box.high, box.low)):
            break
        best = flipped[int(values.argmax())]
    return best[None]


def intervals(fmr: Floats, fnmr: Floats, fmr_box: Box, fnmr_box: Box) -> dict[str, Interval[float]]:
    """Give every summary with its ends; `n` is the number of subgroups."""
    ends = bounds(fmr_box, fnmr_box)
    return {name: Interval(value, *ends[name], float(len(fmr))) for name, value in summarise(fmr, fnmr).items()}
