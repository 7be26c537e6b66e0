"""How sure a metric is: a multinomial bootstrap of the counts, which needs no images and takes milliseconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import UserError
from evenlens.metrics.counts import Counts, Floats, Outcomes, count
from evenlens.metrics.intervals import Interval, tail
from evenlens.metrics.rates import divide
from evenlens.metrics.table import METRICS, Metric, get

Fixed = Literal["group", "none"]

# If a larger share of the replicates is undefined, so is the interval.
MAX_UNDEFINED = 0.05
# Replicates of at most this many numbers are held at once.
CHUNK = 2**24


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
    blocks = counts.reshape(len(counts) if _is_group(fixed) else 1, -1)
    sizes = blocks.sum(axis=1)
    weights = (_smoothed(counts) if smooth else counts).reshape(blocks.shape)
    shares = np.nan_to_num(divide(weights, sizes[:, None]))  # an absent group has no shares, and nothing is drawn
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
    runs = np.asarray(predictions)
    if runs.ndim != 2 or len(runs) == 0:
        raise UserError(f"Predictions must have axes (run, image) and at least one run; their shape is {runs.shape}.")
    tables = np.stack([count(run, label, group, num_classes, num_groups) for run in runs])
    value = float(metric(tables, train_cells).mean())

    patterns, weights = _patterns(
        np.stack([np.asarray(row, dtype=np.int64) for row in (group, label, *runs)]), tables[0]
    )
    cells = (patterns[0] * num_classes + patterns[1]) * num_classes + patterns[2:]  # (S, P)
    blocks = patterns[0] if _is_group(fixed) else np.zeros_like(patterns[0])
    generator = np.random.default_rng(seed)
    drawn = []
    for size in _chunks(replicates, max(weights.size, tables.size)):
        number = _draw(weights, blocks, size, generator)
        drawn_tables = np.stack([_sum_by(number, cell, tables[0].size) for cell in cells], axis=1)
        drawn.append(metric(drawn_tables.reshape(size, *tables.shape), train_cells).mean(axis=1))
    return _interval(metric, value, np.concatenate(drawn), confidence, runs.shape[1])


def _bootstrap(
    metrics: Sequence[Metric],
    counts: Counts,
    replicates: int,
    confidence: float,
    seed: int,
    fixed: Fixed,
    train_cells: Counts | None,
) -> list[Interval[float]]:
    values = [float(metric(counts, train_cells)) for metric in metrics]
    generator = np.random.default_rng(seed)
    drawn: list[list[Floats]] = [[] for _ in metrics]
    for size in _chunks(replicates, counts.size):
        tables = Outcomes.of(resample(counts, size, generator, fixed, smooth=True))
        for metric, parts in zip(metrics, drawn, strict=True):
            parts.append(metric(tables, train_cells))
    n = int(counts.sum())
    return [
        _interval(metric, value, np.concatenate(parts), confidence, n)
        for metric, value, parts in zip(metrics, values, drawn, strict=True)
    ]


def _is_group(fixed: str) -> bool:
    if fixed not in ("group", "none"):
        raise UserError(f"What stays fixed in a bootstrap is 'group' or 'none', not '{fixed}'.")
    return fixed == "group"


def _chunks(replicates: int, size: int) -> Iterator[int]:
    """Split the replicates so that tables of a size fit into memory."""
    if replicates < 1:
        raise UserError(f"A bootstrap draws at least one replicate, not {replicates}; 1000 is usual.")
    step = max(1, CHUNK // size)
    return (min(step, replicates - start) for start in range(0, replicates, step))


def _smoothed(counts: Counts) -> Floats:
    """Add one image to each label that a group has, spread over the predictions; labels keep their total."""
    labels = counts.sum(axis=-1, keepdims=True)
    return (counts + 1 / counts.shape[-1]) * labels / (labels + 1)


def _patterns(images: Counts, table: Counts) -> tuple[Counts, Floats]:
    """Merge images that agree in everything, and add what `_smoothed` adds: images that all runs predict alike.

    Args:
        images: (2 + S, N) group, label and predictions.
        table: (G, C, C) counts of any run.

    Returns:
        (2 + S, P) group, label and predictions of each pattern, sorted by group; and (P,) its smoothed weight.
    """
    classes = table.shape[-1]
    sizes = table.sum(axis=-1)  # (G, C)
    added_group, added_label, added_prediction = np.nonzero(np.repeat(sizes[..., None] > 0, classes, axis=-1))
    added = np.stack([added_group, added_label, *[added_prediction] * (len(images) - 2)])
    rows = np.concatenate([images, added], axis=1)
    weights = np.concatenate([np.ones(images.shape[1]), np.full(added.shape[1], 1 / classes)])
    size = sizes[rows[0], rows[1]]

    pattern = np.zeros(rows.shape[1], dtype=np.int64)
    first = pattern
    for row in rows:  # renumbered at every step: a product over many runs would overflow
        step = int(row.max(initial=0)) + 1
        _, first, pattern = np.unique(pattern * step + row, return_index=True, return_inverse=True)
    total = np.bincount(pattern, weights=weights * size / (size + 1)).astype(np.float64)
    return rows[:, first], total


def _draw(weights: Floats, blocks: Counts, replicates: int, generator: np.random.Generator) -> Counts:
    """Draw how often each pattern occurs, (R, P), where the sum of each (contiguous) block stays as it is."""
    drawn = []
    for block in np.unique(blocks):
        weight = weights[blocks == block]
        drawn.append(generator.multinomial(round(weight.sum()), weight / weight.sum(), size=replicates))
    return np.concatenate(drawn, axis=1) if drawn else np.zeros((replicates, 0), dtype=np.int64)


def _sum_by(number: Counts, cell: Counts, size: int) -> Counts:
    """Add up the columns of (R, P) that belong to one cell, (R, size)."""
    total = np.zeros((len(number), size), dtype=np.int64)
    order = np.argsort(cell, kind="stable")
    cells, start = np.unique(cell[order], return_index=True)
    if len(cells):
        total[:, cells] = np.add.reduceat(number[:, order], start, axis=1)
    return total


def _interval(metric: Metric, value: float, drawn: Floats, confidence: float, n: int) -> Interval[float]:
    beyond = tail(confidence)
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(value) or defined.size == 0 or defined.size < (1 - MAX_UNDEFINED) * drawn.size:
        return Interval(value, math.nan, math.nan, n)
    ends = np.quantile(defined, [beyond, 1 - beyond])
    reach = float(np.abs(ends - value).max())
    lowest, highest = metric.range
    return Interval(value, float(max(lowest, value - reach)), float(min(highest, value + reach)), n)
