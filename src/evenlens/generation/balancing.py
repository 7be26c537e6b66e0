"""Balanced sampling: as many labelled images of each group as a target wants, chosen by a seed, and what it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evenlens.data.paths import check_paths
from evenlens.data.reading import check_columns, in_order, read_table, row_of, to_column
from evenlens.data.tables import position
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.generation.distances import uniform
from evenlens.generation.distribution import Tally, tally
from evenlens.generation.labels import Attribute, Faces, Labels
from evenlens.generation.targets import Targets
from evenlens.metrics import Counts, Floats

ID, GROUP = "id", "group"  # columns of a table of chosen images; each other one is an attribute
ROUNDING = 1e-9  # by which a product of share and total may miss a whole number


@dataclass(frozen=True)
class Chosen:
    """Images that were chosen, M rows; an image that was drawn several times has several.

    Attributes:
        ids: (M,) paths below the folder of images, in random order.
        group: (M,) int64 in [0, G).
        groups: the G groups in words, sorted.
        attributes: what the groups are of; of several, a group is a combination, its classes joined by ", ".
        classes: of each group, the class of each attribute; where it is empty, the groups' names say it.
    """

    ids: np.ndarray
    group: np.ndarray
    groups: tuple[str, ...]
    attributes: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """Of each group, the class of each attribute."""
        single = len(self.attributes) == 1
        return self.classes or tuple((name,) if single else tuple(name.split(", ")) for name in self.groups)


class Drawn(NamedTuple):
    """What was drawn of one group.

    Attributes:
        name: of the group.
        target: its wanted share, in [0, 1].
        available: images that could be chosen.
        dropped: images that are in it, with a smaller margin than was asked for.
        quota: images that the target gives it.
        drawn: rows that were chosen; an image counts as often as it was drawn.
        different: different images among them.
        effective: (sum w)^2 / sum w^2 where w is how often an image was drawn: the number of images, each drawn once,
            that say as much; Kish, 1965, Survey sampling.
    """

    name: str
    target: float
    available: int
    dropped: int
    quota: int
    drawn: int
    different: int
    effective: float


@dataclass(frozen=True)
class Balanced:
    """A balanced choice, and what was lost on the way to it.

    Attributes:
        chosen: the images.
        groups: what was drawn of each, in the order of the classes.
        faces: images in all, without a face, with several, and which were kept.
        unlabelled: images with a face and without a class.
        target: what the target is, in words.
        where: the labels' file.
        seed: of the choice.
        min_margin: that each image has at least.
        replace: whether an image could be drawn more than once.
    """

    chosen: Chosen
    groups: tuple[Drawn, ...]
    faces: Faces
    unlabelled: int
    target: str
    where: str
    seed: int
    min_margin: float
    replace: bool

    @property
    def yielded(self) -> float:
        """Rows that were drawn by images that were labelled."""
        return len(self.chosen) / self.faces.images

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON can hold it, without the chosen images."""
        return {
            "labels": self.where, "attributes": list(self.chosen.attributes), "target": self.target, "seed": self.seed,
            "min_margin": self.min_margin, "replace": self.replace, "faces": self.faces._asdict(),
            "unlabelled": self.unlabelled, "dropped": sum(one.dropped for one in self.groups),
            "drawn": len(self.chosen), "different": sum(one.different for one in self.groups), "yield": self.yielded,
            "groups": [one._asdict() for one in self.groups],
        }  # fmt: skip


class Grouped(NamedTuple):
    """Images by group, and what share of each is wanted.

    Attributes:
        labels: one face an image.
        faces: which were kept.
        tally: the group of each image.
        classes: of each group, the class of each attribute.
        shares: (K,) wanted, summing to 1.
        target: what they are, in words.
    """

    labels: Labels
    faces: Faces
    tally: Tally
    classes: tuple[tuple[str, ...], ...]
    shares: Floats
    target: str


def grouped(labels: Labels, attributes: Sequence[str], target: Targets | None = None, faces: str = "single") -> Grouped:
    """Put images into groups: the classes of an attribute, or all combinations of several.

    Args:
        labels: of all faces.
        attributes: one or more.
        target: wanted shares; default: equal ones. Those of a combination are the product of its parts', or, of a
            table of labels, those of the combinations there.
        faces: which face of an image with several counts, as in `Labels.one_face`.

    Raises:
        UserError: no or an unknown attribute, a target that does not fit, or an id that is a path out of the folder.
    """
    import pyarrow

    names = tuple(dict.fromkeys(attributes))
    if not names:
        raise UserError("Say what to balance: name an attribute, such as --attribute race.")
    wanted = target or Targets()
    wanted.check(names)
    check_paths(pyarrow.chunked_array([pyarrow.array(labels.ids, pyarrow.string())]), Path(labels.where).name)
    classes = {name: tuple(dict.fromkeys((*labels.attribute(name).classes, *wanted.classes(name)))) for name in names}
    wanted = wanted.among(classes)
    whole = changed(labels, attributes={name: labels.attribute(name).among(classes[name]) for name in names})
    kept, summary = whole.one_face(faces)
    found, (shares, words) = tally(kept, *names), wanted.shares(names, classes)
    if shares is None:
        shares = uniform(len(found.categories))
    return Grouped(kept, summary, found, tuple(itertools.product(*classes.values())), shares, words)


def balance(
    labels: Labels,
    attributes: Sequence[str],
    target: Targets | None = None,
    *,
    total: int = 0,
    seed: int = 0,
    min_margin: float = 0.0,
    replace: bool = False,
    faces: str = "single",
) -> Balanced:
    """Choose images at random so that each group has the share that is wanted.

    Which images are chosen depends on their ids and the seed alone, not on the order of rows. A smaller total with the
    same seed chooses some of the same images.

    Args:
        labels: of all faces.
        attributes: one, or several whose combinations are balanced.
        target: wanted shares; default: equal ones.
        total: rows to choose; 0: the most for which every group has its share of different images.
        seed: another seed chooses other images.
        min_margin: of each attribute used: how far the class must be ahead of the next one, in probability.
        replace: whether the images of a group that is too small are drawn several times, each as often as the others
            or once more.
        faces: which face of an image with several counts, as in `Labels.one_face`.

    Raises:
        UserError: what `grouped` refuses; a wanted group without an image, or with too few and no `replace`; no
            margins to choose by; a total or margin below 0.

    Differs from the sampler of fair-distill (Kotti), which takes the first images in file order, of one
    attribute only, and an image with several faces more than once.
    """
    if total < 0 or not 0 <= min_margin < math.inf:
        raise UserError(
            f"A total of {total} with a margin of {min_margin:g} cannot be drawn: both are 0 or more, a total of 0 "
            "being the largest that the images allow."
        )
    found = grouped(labels, attributes, target, faces)
    names, codes = tuple(dict.fromkeys(attributes)), found.tally.codes
    sure = codes >= 0
    if min_margin > 0:
        sure &= np.min([_margin(found.labels, name) for name in names], axis=0) >= min_margin
    available = np.bincount(codes[sure], minlength=len(found.shares))
    check_filled(found, available, min_margin)
    quota = quotas(found.shares, total or largest(found.shares, available), available)
    if not replace:
        _check_enough(found, quota, available)
    rows = _draw(found.labels.ids, np.where(sure, codes, -1), quota, available, seed)
    return Balanced(
        _chosen(found, names, rows), _counted(found, rows, available, quota), found.faces, int((codes < 0).sum()),
        found.target, labels.where, seed, min_margin, replace,
    )  # fmt: skip


def quotas(shares: Floats, total: int, available: Counts | None = None) -> Counts:
    """Give each of K groups a whole number of images, adding up to the total.

    Each gets its share rounded down, and what is left goes to the largest remainders; of equal ones to the group with
    the most images, and then to the first.

    Args:
        shares: (K,) in [0, 1], summing to 1.
        total: at least 0.
        available: (K,) images of each.

    Source: Hamilton's method of apportionment; Balinski and Young, 1982, Fair representation.
    """
    exact = np.asarray(shares) * total
    whole = np.floor(exact + ROUNDING * max(1, total)).astype(np.int64)
    remainder = np.where(np.asarray(shares) > 0, np.round(exact - whole, 6), -1)
    stock = np.zeros(len(whole)) if available is None else available
    order = np.lexsort((np.arange(len(whole)), -stock, -remainder))
    whole[order[: total - int(whole.sum())]] += 1
    return whole


def largest(shares: Floats, available: Counts) -> int:
    """Give the most images for which no group of K needs more than are available: equal shares give K times the least.

    Args:
        shares: (K,) wanted, summing to 1.
        available: (K,) images of each; at least one where the share is not 0.
    """
    wanted = shares > 0
    most = (available[wanted] / shares[wanted]).min()
    return int(min(available[wanted].sum(), math.floor(most * (1 + ROUNDING))))


def check_filled(found: Grouped, available: Counts, min_margin: float = 0.0) -> None:
    """Refuse a target that wants a group in which no image is."""
    empty = np.flatnonzero((found.shares > 0) & (available == 0))
    if not len(empty):
        return
    name = found.tally.categories[empty[0]]
    more = f" (nor in {len(empty) - 1:,} more groups that it wants)" if len(empty) > 1 else ""
    sure = f" with a margin of {min_margin:g}" if min_margin > 0 and found.tally.counts[empty[0]] else ""
    raise UserError(
        f"The target wants a share of {found.shares[empty[0]]:.3g} of '{name}' ({found.tally.name}), and no image"
        f"{sure} is in it{more}: label more samples, cross fewer attributes, or give shares with --target, 0 for what "
        "is not wanted."
    )


def _check_enough(found: Grouped, quota: Counts, available: Counts) -> None:
    short = np.flatnonzero(quota > available)
    if not len(short):
        return
    worst = short[(quota - available)[short].argmax()]
    more = f" ({len(short):,} groups are short)" if len(short) > 1 else ""
    raise UserError(
        f"{quota[worst]:,} images of '{found.tally.categories[worst]}' are wanted and there are {available[worst]:,}, "
        f"{quota[worst] - available[worst]:,} too few{more}: ask for --total {largest(found.shares, available)} or "
        "less, draw images several times with --replace, or label more samples."
    )


def _margin(labels: Labels, name: str) -> Floats:
    """Give how far the class of each image is ahead of the next one: (N,), NaN where that is not known."""
    one: Attribute = labels.attribute(name)
    if one.margin is not None:
        return one.margin
    if one.probability is None:
        raise UserError(
            f"{labels.where or 'The labels'} has neither margins nor probabilities of {name}, so none can be asked "
            f"for: leave --min-margin out, or add the column {name}.margin."
        )
    rows = np.arange(len(one.codes))
    others = one.probability.copy()
    others[rows, one.codes] = 0
    return one.probability[rows, one.codes] - others.max(axis=1)


def _draw(ids: np.ndarray, codes: np.ndarray, quota: Counts, available: Counts, seed: int) -> np.ndarray:
    """Choose rows (M,) in random order; an image's place in its group's queue is a hash of its id.

    Args:
        ids: (N,) different ones.
        codes: (N,) groups, -1 for what may not be chosen.
        quota: (K,) how many of each.
        available: (K,) how many there are.
        seed: of the hash.
    """
    rows = np.flatnonzero(codes >= 0)
    place = position([f"balance {name}" for name in ids[rows].tolist()], seed)
    rows = rows[np.lexsort((ids[rows], place, codes[rows]))]
    group = codes[rows]
    rank = np.arange(len(rows)) - (np.cumsum(available) - available)[group]
    times, more = np.divmod(quota, np.maximum(available, 1))
    drawn = np.repeat(rows, times[group] + (rank < more[group]))
    return np.random.default_rng(seed).permutation(drawn)


def _counted(found: Grouped, rows: np.ndarray, available: Counts, quota: Counts) -> tuple[Drawn, ...]:
    """Count what was drawn of each group: rows (M,) of images, available (K,), quota (K,)."""
    names, codes = found.tally.categories, found.tally.codes
    times, known = np.bincount(rows, minlength=len(codes)), codes >= 0
    drawn, different, squares = (
        np.bincount(codes[known], weights[known], minlength=len(names)) for weights in (times, times > 0, times**2)
    )
    effective, dropped = drawn**2 / np.maximum(squares, 1), found.tally.counts - available
    return tuple(
        Drawn(name, float(found.shares[k]), int(available[k]), int(dropped[k]), int(quota[k]), int(drawn[k]),
              int(different[k]), float(effective[k]))
        for k, name in enumerate(names)
    )  # fmt: skip


def _chosen(found: Grouped, names: tuple[str, ...], rows: np.ndarray) -> Chosen:
    """Name the chosen rows; groups are sorted, as they are when the table is read again."""
    categories, codes = found.tally.categories, found.tally.codes[rows]
    groups = in_order([categories[k] for k in np.unique(codes)])
    place = {name: number for number, name in enumerate(groups)}
    to_group = np.array([place.get(name, -1) for name in categories])
    classes = tuple(found.classes[categories.index(name)] for name in groups)
    return Chosen(found.labels.ids[rows], to_group[codes], tuple(groups), names, classes)


def write_chosen(chosen: Chosen, path: Path | str) -> None:
    """Write the columns id, group and one for each attribute, as .parquet or .csv; what is there is replaced.

    Raises:
        UserError: another ending.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    path = Path(path)
    check_ending(path)
    columns: dict[str, Any] = {
        ID: pyarrow.array(chosen.ids, pyarrow.string()),
        GROUP: np.array(chosen.groups, dtype=object)[chosen.group],
    }
    for name, levels in zip(chosen.attributes, zip(*chosen.parts, strict=True), strict=True):
        columns[name] = np.array(levels, dtype=object)[chosen.group]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        write = pyarrow.csv.write_csv if path.suffix.lower() == ".csv" else pyarrow.parquet.write_table
        write(pyarrow.table(columns), part)


def check_ending(path: Path) -> None:
    """Refuse a name that does not say how to write a table."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{path} ends in '{path.suffix}': chosen images are written as .parquet or .csv.")


def read_chosen(path: Path | str) -> Chosen:
    """Read a table of chosen images: the columns id, group and one for each attribute; a row for each draw.

    Raises:
        UserError: as in `reading.read_table`; a column is missing, a field empty, there is no row, an id leads out of
            the folder, or a group has two classes of one attribute.
    """
    path = Path(path)
    table, where = read_table(path), path.name
    check_columns(table.column_names, (ID, GROUP), where)
    names = tuple(name for name in table.column_names if name not in (ID, GROUP))
    if not names:
        raise UserError(f"{where} says no attribute: beside id and group it needs a column such as gender.")
    if not len(table):
        raise UserError(f"{where} has no rows: choose images with evenlens generate balance.")
    for name in table.column_names:
        empty = np.flatnonzero(table.column(name).is_null().to_numpy())
        if len(empty):
            raise UserError(f"{row_of(where, int(empty[0]))} has no {name}: every row needs one.")
    check_paths(table.column(ID), where)
    groups = to_column(table, GROUP, where=where)
    first = np.unique(groups.codes, return_index=True)[1]
    classes = []
    for name in names:
        column = to_column(table, name, where=where)
        differs = np.flatnonzero(column.codes != column.codes[first][groups.codes])
        if len(differs):
            row = int(differs[0])
            raise UserError(
                f"{row_of(where, row)} has the {name} '{column.levels[column.codes[row]]}', and another row of the "
                f"group '{groups.levels[groups.codes[row]]}' has another: a group has one class of each attribute."
            )
        classes.append([column.levels[code] for code in column.codes[first]])
    ids = np.array(table.column(ID).to_pylist(), dtype=str)
    return Chosen(ids, groups.codes, tuple(groups.levels), names, tuple(zip(*classes, strict=True)))
