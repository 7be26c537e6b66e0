"""What a bootstrap draws where one table of counts does not say enough: images of several runs, or clusters of images.

Images or clusters that agree in everything make one pattern. How often each pattern occurs is drawn as one number,
which changes nothing but the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import UserError
from evenlens.metrics.counts import Counts, Floats, count
from evenlens.metrics.rates import divide

Fixed = Literal["group", "none"]

# Replicates of at most this many numbers are held at once.
CHUNK = 2**24


def is_group(fixed: str) -> bool:
    """Tell whether the sizes of the groups stay fixed.

    Raises:
        UserError: if it is neither "group" nor "none".
    """
    if fixed not in ("group", "none"):
        raise UserError(f"What stays fixed in a bootstrap is 'group' or 'none', not '{fixed}'.")
    return fixed == "group"


def chunks(replicates: int, size: int) -> Iterator[int]:
    """Split the replicates so that tables of a size fit into memory.

    Raises:
        UserError: if there is not one replicate at least.
    """
    if replicates < 1:
        raise UserError(f"A bootstrap draws at least one replicate, not {replicates}; 1000 is usual.")
    step = max(1, CHUNK // max(1, size))
    return (min(step, replicates - start) for start in range(0, replicates, step))


def cluster_codes(cluster: ArrayLike, num_images: int) -> Counts:
    """Number the clusters from 0.

    Args:
        cluster: (N,) whose image each is, as whole numbers or names.
        num_images: N.

    Returns:
        (N,) in [0, clusters).

    Raises:
        UserError: if it is something else, or not one for each image.
    """
    names = np.asarray(cluster)
    if names.dtype.kind == "O" and all(isinstance(name, str) for name in names.ravel()):
        names = names.astype(str)
    if names.ndim != 1 or (names.size and names.dtype.kind not in "iuUST"):
        given = f"it is {names.dtype} of shape {names.shape}"
        raise UserError(f"cluster must be one row of whole numbers or names, none of them missing; {given}.")
    if len(names) != num_images:
        raise UserError(f"cluster must be as long as prediction, label and group: {num_images} rows, not {len(names)}.")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Patterns:
    """Images, or clusters of images, of S runs that predicted the same images.

    Attributes:
        table: (S, G, C, C) counts of the data.
        weights: (P,) how many images or clusters have a pattern, smoothed.
        blocks: (P,) which patterns are drawn together, ascending.
        sizes: (B,) how many images or clusters are drawn in each block that occurs.
        owner: (E,) the pattern of an entry; an entry is what agrees within a pattern, ascending.
        images: (E,) how many images an entry has.
        cells: (S, E) where the images of an entry lie in each run's flattened table.
    """

    table: Counts
    weights: Floats
    blocks: Counts
    sizes: Counts
    owner: Counts
    images: Counts
    cells: Counts

    @classmethod
    def of(
        cls,
        predictions: ArrayLike,
        label: ArrayLike,
        group: ArrayLike,
        num_classes: int,
        num_groups: int,
        fixed: Fixed = "group",
        clusters: ArrayLike | None = None,
    ) -> Patterns:
        """Merge what agrees, and smooth.

        Smoothing adds one image to each label of a group that has images, spread evenly over the predictions, which
        all runs make alike; labels keep their total. With clusters it adds one cluster instead, as large as those
        that have images of this group and label are on average, all its images predicted alike. Without it, what never
        happened in a small group never happens in a replicate; and what was right for ten people, of whom there are
        ten images each, is as little known to be perfect as what was right for ten images.

        Args:
            predictions: (S, N) predicted classes of S runs.
            label: (N,) true classes.
            group: (N,) sensitive groups.
            num_classes: C.
            num_groups: G.
            fixed: "group" keeps the number of images of each group, or that of its clusters; clusters that have images
                of several groups are then a block of their own. "none" keeps only the number of all.
            clusters: (N,) whose image each is, as whole numbers or names; without it every image is its own.

        Raises:
            UserError: if something has the wrong shape or is out of range.
        """
        runs = np.asarray(predictions)
        if runs.ndim != 2 or len(runs) == 0:
            raise UserError(
                f"Predictions must have axes (run, image) and at least one run; their shape is {runs.shape}."
            )
        table = np.stack([count(run, label, group, num_classes, num_groups) for run in runs])
        images = np.stack([np.asarray(row, dtype=np.int64) for row in (group, label, *runs)])
        by_group = is_group(fixed)
        codes = None if clusters is None else cluster_codes(clusters, images.shape[1])
        if codes is None or not codes.size:
            return _of_images(table, images, by_group)
        return _of_clusters(table, images, codes, by_group)

    @property
    def units(self) -> int:
        """How many images or clusters there are."""
        return int(self.sizes.sum())

    def draw(self, replicates: int, generator: np.random.Generator) -> Iterator[Counts]:
        """Draw tables (R, S, G, C, C), some replicates at a time: the same images or clusters for all runs.

        Raises:
            UserError: if there is not one replicate at least.
        """
        width = self.table[0].size
        for size in chunks(replicates, max(self.weights.size, self.table.size)):
            tables = np.empty((size, len(self.table), width), dtype=np.int64)
            for table, number in zip(tables, self._numbers(size, generator), strict=True):
                images = number[self.owner] * self.images
                for run, cell in zip(table, self.cells, strict=True):
                    run[:] = np.bincount(cell, weights=images, minlength=width)
            yield tables.reshape(size, *self.table.shape)

    def _numbers(self, replicates: int, generator: np.random.Generator) -> Counts:
        """Draw how often each pattern occurs, (R, P)."""
        drawn = [np.zeros((replicates, 0), dtype=np.int64)]
        for block, size in zip(np.unique(self.blocks), self.sizes, strict=True):
            weight = self.weights[self.blocks == block]
            drawn.append(generator.multinomial(size, weight / weight.sum(), size=replicates))
        return np.concatenate(drawn, axis=1)


def _of_images(table: Counts, images: Counts, by_group: bool) -> Patterns:
    classes = table.shape[-1]
    added = _added(table[0], len(table))
    rows = np.concatenate([images, added], axis=1)
    weights = np.concatenate([np.ones(images.shape[1]), np.full(added.shape[1], 1 / classes)])
    number = table[0].sum(axis=-1)[rows[0], rows[1]]
    first, pattern = _merge(rows)
    rows = rows[:, first]
    weights = np.bincount(pattern, weights=weights * number / (number + 1)).astype(np.float64)
    blocks = rows[0] if by_group else np.zeros_like(rows[0])
    sizes = np.array([round(weights[blocks == block].sum()) for block in np.unique(blocks)], dtype=np.int64)
    every = np.arange(len(first))
    return Patterns(table, weights, blocks, sizes, every, np.ones_like(every), _cells(rows, classes))


def _of_clusters(table: Counts, images: Counts, cluster: Counts, by_group: bool) -> Patterns:
    """Merge images to entries of their clusters, add the clusters that smooth, and merge clusters to patterns."""
    num_groups, classes = table.shape[1], table.shape[-1]
    rows = np.concatenate([images, _added(table[0], len(table))], axis=1)
    first, kind = _merge(rows)
    rows = rows[:, first]
    place = rows[0] * classes + rows[1]  # the group and label of each kind of image

    merged, number = np.unique(cluster * len(first) + kind[: len(cluster)], return_counts=True)
    owner, what = np.divmod(merged, len(first))
    block = _blocks(owner, rows[0, what], num_groups) if by_group else np.zeros(int(owner[-1]) + 1, dtype=np.int64)

    # A cluster weighs m / (m + 1), where m is how many clusters have images of its group and label; if it has images
    # of several, their mean. What the images of a group and label lose by that, added clusters give back.
    labels = table[0].sum(axis=-1).ravel()
    having = np.bincount(np.unique(owner * labels.size + place[what]) % labels.size, minlength=labels.size)
    shrunk = number * (having / (having + 1))[place[what]]
    kept = np.bincount(owner, weights=shrunk) / np.bincount(owner, weights=number)
    lost = np.zeros((num_groups + 1, labels.size))
    np.add.at(lost, (block[owner], place[what]), number * (1 - kept[owner]))
    to_block, to_place = np.nonzero(lost)
    usual = np.rint(divide(labels, having)[to_place]).astype(np.int64)
    predicted = np.full((labels.size, classes), -1)
    predicted[labels > 0] = kind[len(cluster) :].reshape(-1, classes)

    units = len(block) + np.arange(len(to_place) * classes)
    owner, what = np.append(owner, units), np.append(what, predicted[to_place].ravel())
    number = np.append(number, np.repeat(usual, classes))
    weights = np.append(kept, np.repeat(lost[to_block, to_place] / usual / classes, classes))
    sizes, block = np.bincount(block), np.append(block, np.repeat(to_block, classes))

    chosen, pattern, entries = _alike(owner, what * (number.max() + 1) + number, block)
    length = np.bincount(owner)[chosen]
    return Patterns(
        table=table,
        weights=np.bincount(pattern, weights=weights).astype(np.float64),
        blocks=block[chosen],
        sizes=sizes[sizes > 0],
        owner=np.repeat(np.arange(len(chosen)), length),
        images=number[entries],
        cells=_cells(rows[:, what[entries]], classes),
    )


def _alike(owner: Counts, code: Counts, block: Counts) -> tuple[Counts, Counts, Counts]:
    """Merge clusters of the same block with the same entries.

    Args:
        owner: (E,) the cluster of each entry, ascending, from 0.
        code: (E,) what an entry is, ascending within a cluster.
        block: (U,) of each cluster.

    Returns:
        (P,) a cluster of each pattern; (U,) the pattern of each cluster; the entries of the (P,) clusters, in order.
    """
    length = np.bincount(owner)
    start = np.cumsum(length) - length
    code = np.unique(code, return_inverse=True)[1]
    pattern = block * (length.max() + 1) + length
    for k in range(length.max()):  # clusters part where their k-th entries differ
        longer = np.flatnonzero(length > k)
        here = pattern[longer] * (code.max() + 1) + code[start[longer] + k]
        pattern[longer] = np.unique(here, return_inverse=True)[1]
    first, pattern = _merge(np.stack([block, length, pattern]))
    chosen = length[first]
    entries = np.arange(chosen.sum()) + np.repeat(start[first] - (np.cumsum(chosen) - chosen), chosen)
    return first, pattern, entries


def _added(table: Counts, num_runs: int) -> Counts:
    """List the images that smooth a table (G, C, C): (2 + S, A) group, label and predictions, one of each class."""
    present = np.repeat(table.sum(axis=-1, keepdims=True) > 0, table.shape[-1], axis=-1)
    group, label, prediction = np.nonzero(present)
    return np.stack([group, label, *[prediction] * num_runs])


def _merge(rows: Counts) -> tuple[Counts, Counts]:
    """Find columns that agree in all rows (K, N): a column of each kind, in order, and (N,) the kind of each column."""
    kind = np.zeros(rows.shape[1], dtype=np.int64)
    first = kind
    for row in rows:  # renumbered at every step: a product over many runs would overflow
        step = int(row.max(initial=0)) + 1
        _, first, kind = np.unique(kind * step + row, return_index=True, return_inverse=True)
    return first, kind


def _blocks(owner: Counts, group: Counts, num_groups: int) -> Counts:
    """Give each cluster's group, or the number of groups where it has several."""
    start = np.flatnonzero(np.diff(owner, prepend=-1))
    lowest, highest = np.minimum.reduceat(group, start), np.maximum.reduceat(group, start)
    return np.where(lowest == highest, lowest, num_groups)


def _cells(rows: Counts, classes: int) -> Counts:
    """Say where images lie in each run's flattened table: (2 + S, E) -> (S, E)."""
    return (rows[0] * classes + rows[1]) * classes + rows[2:]
