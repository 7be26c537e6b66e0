"""What a gap would be by chance: the same predictions, handed out without regard to the group.

The largest of many noisy numbers minus the smallest is not small. Fourteen groups of a hundred images, all predicted
right nine times in ten, are ten points apart in accuracy on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from evenlens.metrics.counts import Counts
from evenlens.metrics.patterns import chunks
from evenlens.metrics.resampling import MAX_UNDEFINED, evaluate_all
from evenlens.metrics.table import Metric, get

BEYOND = 0.05


class Chance(NamedTuple):
    """What a metric is where groups are treated alike, and how seldom it is then as bad as it was found.

    Attributes:
        expected: its mean.
        high: how bad it gets by chance: its 95 % quantile, or its 5 % quantile where more is better (a ratio, a worst
            rate).
        p_value: how often it is at least as bad as found, (1 + number of tables) / (1 + all tables), in (0, 1].
        n: images.
    """

    expected: float
    high: float
    p_value: float
    n: int


def chance(
    metric: Metric | str,
    counts: Counts,
    replicates: int = 1000,
    seed: int = 0,
    train_cells: Counts | None = None,
) -> Chance:
    """Redraw tables as they would be if groups were treated alike, and compare a metric with them.

    A metric of errors is compared with tables in which the images of a label exchange their predictions: how likely an
    error is depends on the label, but not on the group. What is left of a difference in accuracy is then due to labels
    that are harder, and more frequent in some group. A metric that looks at predictions alone, such as the selection
    rate, is compared with tables in which all images exchange theirs. How many images each group and label has, and
    how often each class is predicted for a label (or for all), stays as it is: a test by permutation.

    Args:
        metric: a metric or its name; one that does not look at groups stays as it is, and its p-value is 1.
        counts: (G, C, C) with axes (group, label, prediction).
        replicates: R.
        seed: of the random numbers.
        train_cells: (C, G), for metrics that need them.

    Returns:
        NaN where the metric is, and where more than `MAX_UNDEFINED` of the redrawn tables leave it undefined.

    Raises:
        UserError: if the metric is not known, if there is not one replicate, or as in calling a `Metric`.

    Source: Good, 2005, Permutation, Parametric and Bootstrap Tests of Hypotheses; the p-value as in Phipson and Smyth,
    2010 (arXiv:1603.05766).
    """
    metric = get(metric) if isinstance(metric, str) else metric
    found = float(metric(counts, train_cells))
    n = int(counts.sum())
    tables = exchanged(counts, replicates, np.random.default_rng(seed), within_labels=metric.needs_labels)
    drawn = evaluate_all(tables, [partial(metric, train_cells=train_cells)])[0]
    defined = drawn[~np.isnan(drawn)]
    if math.isnan(found) or defined.size < max(1, (1 - MAX_UNDEFINED) * drawn.size):
        return Chance(math.nan, math.nan, math.nan, n)
    higher = metric.direction == "higher"
    as_bad = defined <= found + 1e-12 if higher else defined >= found - 1e-12
    p_value = float((1 + np.count_nonzero(as_bad)) / (1 + defined.size))
    high = np.quantile(defined, BEYOND if higher else 1 - BEYOND)
    return Chance(float(defined.mean()), float(high), p_value, n)


def exchanged(
    counts: Counts, replicates: int, generator: np.random.Generator, within_labels: bool = True
) -> Iterator[Counts]:
    """Draw tables in which images have exchanged their predictions.

    Args:
        counts: (G, C, C).
        replicates: R, how many tables.
        generator: where random numbers come from.
        within_labels: whether only images of the same label exchange; otherwise all do. The tables then say no more
            about labels: every image counts as one of the first.

    Yields:
        (R, G, C, C) int64, some of the replicates at a time.

    Raises:
        UserError: if there is not one replicate at least.
    """
    for size in chunks(replicates, counts.size):
        tables = np.zeros((size, *counts.shape), dtype=np.int64)
        if within_labels:
            for label in range(counts.shape[1]):
                tables[:, :, label] = _contingency(
                    counts[:, label].sum(axis=1), counts[:, label].sum(axis=0), size, generator
                )
        else:
            tables[:, :, 0] = _contingency(counts.sum(axis=(1, 2)), counts.sum(axis=(0, 1)), size, generator)
        yield tables


def _contingency(rows: Counts, columns: Counts, replicates: int, generator: np.random.Generator) -> Counts:
    """Draw tables with these sums of rows (G,) and columns (C,) as if rows did not matter: (R, G, C).

    One row after the other takes its images from those that are left, and of them one class after the other: each
    number is hypergeometric.
    """
    tables = np.zeros((replicates, len(rows), len(columns)), dtype=np.int64)
    kinds = np.flatnonzero(columns)
    pool = np.tile(columns, (replicates, 1))
    for row in np.flatnonzero(rows):
        missing = np.full(replicates, rows[row])
        others = pool.sum(axis=1)
        for column in kinds:
            others -= pool[:, column]
            taken = generator.hypergeometric(pool[:, column], others, missing)
            tables[:, row, column] = taken
            missing -= taken
        pool -= tables[:, row]
    return tables
