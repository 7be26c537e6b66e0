"""Numbers that compare generators beyond their shares: how varied their images are, and how alike at one latent."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from evenlens.generation.labels import Labels
from evenlens.metrics import Floats, Interval, wilson
from evenlens.metrics.intervals import tail

BLOCK = 256  # images of which pixels are compared at once


def vendi(features: Floats) -> float:
    """Give the Vendi score: the number of images that are as varied as these, if all of those were wholly different.

    exp of the entropy of the eigenvalues of K / N, where K holds the cosines of all pairs of features. It grows with
    the number of images, so it compares only where N is the same.

    Args:
        features: (N, D), by any network.

    Returns:
        from 1, all alike, to N, all at right angles.

    Source: Friedman and Dieng, 2023, The Vendi Score, arXiv 2210.02410.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(lengths, np.finfo(np.float64).tiny)
    product = unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit  # both have the same eigenvalues
    values = np.linalg.eigvalsh(product / len(unit)).clip(0)
    seen = values[values > 0]
    return float(np.exp(-(seen * np.log(seen)).sum()))


def spread(features: Floats, codes: np.ndarray, groups: tuple[str, ...]) -> dict[str, Any]:
    """Give the mean Euclidean distance of two images' features: of all, of one group, and of different groups.

    Args:
        features: (N, D).
        codes: (N,) the group of each image, in [0, len(groups)); -1 where it has none.
        groups: their names.

    Returns:
        `all`, `within`, `across` and `groups`, the mean within each; None where there is no such pair.

    Differs from the mean pairwise LPIPS that is usual in that the features are of a network of one's choice.
    """
    centred = features - features.mean(axis=0)  # small numbers lose fewer digits in differences of squares
    lengths = (centred * centred).sum(axis=1)
    apart = np.sqrt((lengths[:, None] + lengths - 2 * centred @ centred.T).clip(0))
    np.fill_diagonal(apart, 0)
    member = (codes[:, None] == np.arange(len(groups))).astype(np.float64)
    sums, counts = member.T @ apart @ member, member.sum(axis=0)
    pairs = counts * (counts - 1)
    mixed = counts.sum() ** 2 - (counts**2).sum()
    return {
        "all": _mean(apart.sum(), len(apart) * (len(apart) - 1)), "within": _mean(np.trace(sums), pairs.sum()),
        "across": _mean(sums.sum() - np.trace(sums), mixed),
        "groups": {name: _mean(sums[k, k], pairs[k]) for k, name in enumerate(groups)},
    }  # fmt: skip


def _mean(total: float, number: float) -> float | None:
    return float(total / number) if number else None


def pixel_difference(one: np.ndarray, other: np.ndarray, confidence: float = 0.95) -> Interval[float]:
    """Give the mean absolute difference of pixels, of images at the same place in both.

    Args:
        one: (N, H, W, 3) uint8.
        other: likewise.
        confidence: of the interval over images, for many of them.

    Returns:
        in [0, 1], where 1 is black against white; NaN ends for a single image.
    """
    parts = [
        np.abs(one[k : k + BLOCK].astype(np.int16) - other[k : k + BLOCK]).mean(axis=(1, 2, 3)) / 255
        for k in range(0, len(one), BLOCK)
    ]
    each = np.concatenate(parts)
    half = math.nan
    if len(each) > 1:
        half = NormalDist().inv_cdf(1 - tail(confidence)) * float(each.std(ddof=1)) / math.sqrt(len(each))
    mean = float(each.mean())
    return Interval(mean, max(0.0, mean - half), mean + half, float(len(each)))


def asked_and_seen(
    asked: np.ndarray, names: tuple[str, ...], seen: np.ndarray, classes: tuple[str, ...], confidence: float = 0.95
) -> dict[str, Any]:
    """Count what a generator was asked to make against what a classifier sees in it.

    Args:
        asked: (N,) label of each image, in [0, len(names)).
        names: of the labels; each is among the classes.
        seen: (N,) class of each image, in [0, len(classes)); -1 where it has none.
        classes: of the classifier.
        confidence: of Wilson's intervals.

    Returns:
        `counts` (labels, classes); `agreement`, the share of images that are seen as what was asked; `labels`, that
        share of each label.
    """
    known = seen >= 0
    cells = np.bincount(asked[known] * len(classes) + seen[known], minlength=len(names) * len(classes))
    counts = cells.reshape(len(names), len(classes))
    right = counts[np.arange(len(names)), [classes.index(name) for name in names]]
    each = wilson(right, counts.sum(axis=1), confidence)
    return {
        "names": list(names), "classes": list(classes), "counts": counts.tolist(),
        "agreement": plain(wilson(right.sum(), counts.sum(), confidence)),
        "labels": {name: plain(Interval(*(part[k] for part in each))) for k, name in enumerate(names)},
    }  # fmt: skip


def codes_of(labels: Labels, attribute: str, ids: np.ndarray) -> np.ndarray:
    """Give the class (M,) of each image by its id, -1 where it has none or is not there.

    Args:
        labels: one face an image.
        attribute: which one.
        ids: (M,).
    """
    order = np.argsort(labels.ids)
    place = np.searchsorted(labels.ids[order], ids).clip(0, len(order) - 1)
    return np.where(labels.ids[order][place] == ids, labels.attribute(attribute).codes[order][place], -1)


def plain(number: Interval[Any]) -> dict[str, float | None]:
    """Give an interval as JSON can hold it: undefined numbers are null."""
    return {name: float(value) if math.isfinite(value) else None for name, value in number._asdict().items()}
