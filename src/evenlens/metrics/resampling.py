"""How sure a metric is: a multinomial bootstrap of the counts, which needs no images and takes milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from evenlens.metrics.counts import Counts, Floats, Outcomes
from evenlens.metrics.intervals import Interval, tail
from evenlens.metrics.patterns import Fixed, Patterns, chunks, is_group
from evenlens.metrics.rates import divide
from evenlens.metrics.table import METRICS, Metric, get

# If a larger share of the replicates is undefined, so is the interval.
MAX_UNDEFINED = 0.05


def resample(
    counts: Counts, replicates: int, generator: np.random.Generator, fixed: Fixed = "group", smooth: bool = False
) -> Counts:
    """Draw tables as the images would give them if they were drawn again with replacement.

    Args:
        counts: (G, C, C).
        replicates: R, how many tables.
        generator: where random numbers come from.
        fixed: "group" keeps the size of each group; "none" keeps only the number of images.
        smooth: add one image to every label of a group that has images, spread evenly over the predictions, before
            the shares to draw from are taken. Without it, what never happened in a small group never happens in a
            replicate: ten right out of ten would be known to be perfect.

    Returns:
        (R, G, C, C) int64.
    """
    blocks = counts.reshape(len(counts) if is_group(fixed) else 1, -1)
    sizes = blocks.sum(axis=1)
    weights = (_smoothed(counts) if smooth else counts).reshape(blocks.shape)
    shares = np.nan_to_num(divide(weights, sizes[:, None]))  # an absent group has no shares, and nothing is drawn
    if 4 * np.count_nonzero(shares) < shares.size:  # most cells cannot occur: draw over the others alone
        drawn = np.zeros((replicates, *blocks.shape), dtype=np.int64)
        for block, (size, share) in enumerate(zip(sizes, shares, strict=True)):
            possible = np.flatnonzero(share)
            drawn[:, block, possible] = generator.multinomial(size, share[possible], size=replicates)
        return drawn.reshape(replicates, *counts.shape)
    return generator.multinomial(sizes, shares, size=(replicates, len(sizes))).reshape(replicates, *counts.shape)


def bootstrap(
    metric: Metric | str,
    counts: Counts,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    fixed: Fixed = "group",
    train_cells: Counts | None = None,
) -> Interval[float]:
    """Give a bootstrap interval of a metric, from the counts alone.

    Tables are drawn as in `resample` with `smooth`. The interval reaches from the value to both sides as far as the
    farther end of the replicates' percentile interval, within the metric's range: that is the percentile interval
    together with its mirror image. A percentile interval alone fails where it matters most: replicates of a gap
    scatter above a small gap, so that it never contains the 0 of groups that are treated alike.

    Args:
        metric: a metric or its name.
        counts: (G, C, C).
        replicates: R.
        confidence: in (0, 1).
        seed: of the random numbers.
        fixed: as in `resample`.
        train_cells: (C, G), for metrics that need them.

    Returns:
        value, ends and the number of images. Undefined replicates are left out; the ends are NaN if the value is, or
        if more than `MAX_UNDEFINED` of the replicates are.

    Raises:
        UserError: if the metric is not known, or as in calling a `Metric`.
    """
    metric = get(metric) if isinstance(metric, str) else metric
    return _bootstrap([metric], counts, replicates, confidence, seed, fixed, train_cells)[0]


def bootstrap_all(
    counts: Counts,
    names: Iterable[str] | None = None,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    fixed: Fixed = "group",
    train_cells: Counts | None = None,
) -> dict[str, Interval[float]]:
    """Give the bootstrap intervals of several metrics from the same replicates: each as `bootstrap` gives it.

    Args:
        counts: (G, C, C).
        names: which metrics; without it all, save those that need training cells if there are none.
        replicates: R.
        confidence: in (0, 1).
        seed: of the random numbers.
        fixed: as in `resample`.
        train_cells: (C, G), for metrics that need them.

    Returns:
        interval by name.

    Raises:
        UserError: if a name is not known, or as in calling a `Metric`.
    """
    if names is None:
        names = [name for name, metric in METRICS.items() if train_cells is not None or not metric.needs_reference]
    metrics = [get(name) for name in names]
    intervals = _bootstrap(metrics, counts, replicates, confidence, seed, fixed, train_cells)
    return {metric.name: interval for metric, interval in zip(metrics, intervals, strict=True)}


def joint_bootstrap(
    metric: Metric | str,
    predictions: ArrayLike,
    label: ArrayLike,
    group: ArrayLike,
    num_classes: int,
    num_groups: int,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    fixed: Fixed = "group",
    train_cells: Counts | None = None,
) -> Interval[float]:
    """Give a bootstrap interval of a metric's mean over runs that predicted the same images.

    Images are drawn once for all runs, so that errors which the runs share are not counted as if each run had made
    them on images of its own. This is the uncertainty of the images; that of the seeds is `seed_interval`. Images
    that agree in group, label and every run's prediction are drawn as one number, which changes nothing but the time.
    The interval is made as in `bootstrap` and equals it in distribution for one run.

    Args:
        metric: a metric or its name.
        predictions: (S, N) predicted classes of S runs.
        label: (N,) true classes.
        group: (N,) sensitive groups.
        num_classes: C.
        num_groups: G.
        replicates: R.
        confidence: in (0, 1).
        seed: of the random numbers.
        fixed: as in `resample`.
        train_cells: (C, G), for metrics that need them.

    Returns:
        mean, ends and the number of images; NaN as in `bootstrap`, a replicate being undefined if it is for any run.

    Raises:
        UserError: if something has the wrong shape or is out of range, or as in calling a `Metric`.
    """
    metric = get(metric) if isinstance(metric, str) else metric
    patterns = Patterns.of(predictions, label, group, num_classes, num_groups, fixed)

    def mean(tables: Counts | Outcomes) -> Floats:
        return metric(tables, train_cells).mean(axis=-1)

    drawn = evaluate_all(patterns.draw(replicates, np.random.default_rng(seed)), [mean])[0]
    return make_interval(float(mean(patterns.table)), drawn, confidence, patterns.units, metric.range)


def evaluate_all(tables: Iterable[Counts], functions: Sequence[Callable[[Outcomes], Floats]]) -> list[Floats]:
    """Compute several functions of tables (R, ..., G, C, C) that come some replicates at a time: (R, ...) each."""
    parts: list[list[Floats]] = [[] for _ in functions]
    for some in tables:
        outcomes = Outcomes.of(some)
        for function, values in zip(functions, parts, strict=True):
            values.append(function(outcomes))
    return [np.concatenate(values) for values in parts]


def _bootstrap(
    metrics: Sequence[Metric],
    counts: Counts,
    replicates: int,
    confidence: float,
    seed: int,
    fixed: Fixed,
    train_cells: Counts | None,
) -> list[Interval[float]]:
    generator = np.random.default_rng(seed)
    functions = [partial(metric, train_cells=train_cells) for metric in metrics]
    values = [float(function(counts)) for function in functions]
    tables = (resample(counts, size, generator, fixed, smooth=True) for size in chunks(replicates, counts.size))
    n = int(counts.sum())
    return [
        make_interval(value, drawn, confidence, n, metric.range)
        for metric, value, drawn in zip(metrics, values, evaluate_all(tables, functions), strict=True)
    ]


def _smoothed(counts: Counts) -> Floats:
    """Add one image to each label that a group has, spread over the predictions; labels keep their total."""
    labels = counts.sum(axis=-1, keepdims=True)
    return (counts + 1 / counts.shape[-1]) * labels / (labels + 1)


def make_interval(
    value: float, drawn: Floats, confidence: float, n: int, limits: tuple[float, float] = (-math.inf, math.inf)
) -> Interval[float]:
    """Make an interval of a value and its replicates, as `bootstrap` describes it.

    Args:
        value: of the data.
        drawn: (R,) replicates of it; NaN where undefined.
        confidence: in (0, 1).
        n: how many images or clusters the value rests on.
        limits: lowest and highest possible value.
    """
    low, high = central(drawn, confidence)
    if math.isnan(value) or math.isnan(low):
        return Interval(value, math.nan, math.nan, n)
    reach = max(abs(low - value), abs(high - value))
    lowest, highest = limits
    return Interval(value, max(lowest, value - reach), min(highest, value + reach), n)


def central(drawn: Floats, confidence: float) -> tuple[float, float]:
    """Give the ends of the central part of replicates (R,); NaN if more than `MAX_UNDEFINED` of them are undefined."""
    beyond = tail(confidence)
    defined = drawn[~np.isnan(drawn)]
    if defined.size < max(1, (1 - MAX_UNDEFINED) * drawn.size):
        return math.nan, math.nan
    low, high = np.quantile(defined, [beyond, 1 - beyond])
    return float(low), float(high)
