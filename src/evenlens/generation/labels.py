"""Labelled images: what a classifier said about each face that a generator made, and which images had none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evenlens.data.reading import check_columns, read_table, row_of, to_column, to_numbers
from evenlens.data.tables import Column
from evenlens.errors import UserError, unknown
from evenlens.files import replacing

OWN = ("id", "face", "n_faces", "split")  # columns of a manifest that are no attribute
PROBABILITY, MARGIN = ".probability.", ".margin"
RULES = ("single", "first", "confident")
MOST_CLASSES = 60  # a column with more values is no attribute, unless it is named
TOLERANCE = 1e-3  # by which probabilities may miss 1


@dataclass(frozen=True)
class Attribute:
    """What a classifier said of one attribute, such as apparent gender.

    Attributes:
        classes: the K classes in words.
        codes: (N,) the class that was given, in [0, K); -1 where none was.
        probability: (N, K) of each class, summing to 1; NaN where there was no face. None: not written down.
        margin: (N,) how far the class is ahead of the next one; NaN where there was no face. None: not written down.
    """

    classes: tuple[str, ...]
    codes: np.ndarray
    probability: np.ndarray | None = None
    margin: np.ndarray | None = None

    @property
    def column(self) -> Column:
        """The classes without their probabilities."""
        return Column(self.classes, self.codes)

    def among(self, classes: Sequence[str]) -> Attribute:
        """Give the same labels where there are further classes, in this order, which no image has."""
        place = {name: k for k, name in enumerate(classes)}
        new = np.array([*(place[name] for name in self.classes), -1], dtype=np.int64)
        probability = None
        if self.probability is not None:
            probability = np.where(np.isnan(self.probability).any(axis=1, keepdims=True), np.nan, 0).repeat(
                len(classes), 1
            )
            probability[:, new[:-1]] = self.probability
        return Attribute(tuple(classes), new[self.codes], probability, self.margin)

    def __getitem__(self, rows: np.ndarray) -> Attribute:
        probability, margin = (None if part is None else part[rows] for part in (self.probability, self.margin))
        return Attribute(self.classes, self.codes[rows], probability, margin)


class Faces(NamedTuple):
    """Which images were kept, one face each, and which were not.

    Attributes:
        images: all of them.
        without: images in which no face was found.
        several: images with more than one face.
        kept: images that are kept, with one face each.
        left_out: faces that are not kept.
        rule: one of `RULES`.
    """

    images: int
    without: int
    several: int
    kept: int
    left_out: int
    rule: str


@dataclass(frozen=True)
class Labels:
    """N faces, and images without one, with the classes that a classifier gave them.

    Attributes:
        ids: (N,) which image, in words.
        face: (N,) which face of the image, from 0.
        n_faces: (N,) how many faces the image has; of an image with 0 there is one row, without classes.
        attributes: by name.
        others: (N,) further columns as text, by name.
        where: what they were read from, for people.
        notes: what a reader of a result should know.
    """

    ids: np.ndarray
    face: np.ndarray
    n_faces: np.ndarray
    attributes: dict[str, Attribute]
    others: dict[str, np.ndarray] = field(default_factory=dict)
    where: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def image(self) -> np.ndarray:
        """(N,) the number of each row's image, in the order in which images first occur."""
        return numbered(self.ids)

    def attribute(self, name: str) -> Attribute:
        """Look an attribute up; an unknown name is answered with the nearest known one."""
        if name not in self.attributes:
            raise unknown(f"attribute of {self.where or 'the labels'}", name, self.attributes)
        return self.attributes[name]

    def select(self, rows: np.ndarray) -> Labels:
        """Keep these rows (positions or a mask), in this order."""
        return Labels(
            self.ids[rows], self.face[rows], self.n_faces[rows],
            {name: attribute[rows] for name, attribute in self.attributes.items()},
            {name: values[rows] for name, values in self.others.items()}, self.where, self.notes,
        )  # fmt: skip

    def one_face(self, rule: str = "single") -> tuple[Labels, Faces]:
        """Keep one face an image, so that rows are images and one image counts once.

        Args:
            rule: "single" keeps images with exactly one face; "first" keeps the first face of each; "confident" the
                face with the largest probabilities, mean over the attributes.

        Raises:
            UserError: another rule, no image with a face is left, or there are no probabilities to choose by.
        """
        if rule not in RULES:
            raise unknown("rule for images with several faces", rule, RULES)
        found = np.flatnonzero(self.n_faces > 0)
        if rule == "single":
            kept = np.flatnonzero(self.n_faces == 1)
        else:
            best = -self._confidence()[found] if rule == "confident" else self.face[found]
            order = found[np.lexsort((self.face[found], best, self.image[found]))]
            kept = np.sort(order[np.diff(self.image[order], prepend=-1) > 0])
        if not len(kept):
            raise UserError(
                f"No image of {self.where or 'the labels'} is left with one face ({len(found):,} faces were found): "
                "there is nothing to audit. Label other images, or take --faces first."
            )
        first = np.flatnonzero(np.diff(np.sort(self.image), prepend=-1))
        per_image = self.n_faces[np.argsort(self.image, kind="stable")][first]
        without, several = int((per_image == 0).sum()), int((per_image > 1).sum())
        return self.select(kept), Faces(len(per_image), without, several, len(kept), len(found) - len(kept), rule)

    def _confidence(self) -> np.ndarray:
        known = [one.probability for one in self.attributes.values() if one.probability is not None]
        if not known:
            raise UserError(
                f"{self.where or 'The labels'} has no probabilities, so no face is more confident than another: take "
                "--faces first or --faces single."
            )
        return np.mean([part.max(axis=1) for part in known], axis=0)


def numbered(values: Sequence[str] | np.ndarray) -> np.ndarray:
    """Number N words in the order in which they first occur: (N,) int64."""
    import pyarrow

    codes = pyarrow.array(np.asarray(values, dtype=object), pyarrow.large_string()).dictionary_encode().indices
    return np.asarray(codes, dtype=np.int64)


def read_labels(path: Path | str, attributes: Sequence[str] = ()) -> Labels:
    """Read a table of labelled images: one row a face, and one for each image in which none was found.

    Its columns are `id`; `face` and `n_faces`, where there may be other numbers than one; for each attribute a column
    with the class in words, and, if known, `<attribute>.probability.<class>` and `<attribute>.margin`. Others are kept.
    The CSV that FairFace's prediction script writes is read too, see `face_csv`.

    Args:
        path: CSV, TSV or Parquet.
        attributes: which columns are attributes; default: those with probabilities or a margin; where there are none,
            every further column of few different words.

    Raises:
        UserError: as in `reading.read_table`, and where rows contradict each other: naming the first one.
    """
    from evenlens.generation import face_csv

    path = Path(path)
    if path.is_file() and path.suffix.lower() in (".pkl", ".pickle", ".pt", ".pth"):
        raise UserError(f"{path} may run code when it is opened, so it is not: write labels as CSV or Parquet.")
    table = read_table(path)
    if face_csv.fits(table.column_names):
        return face_csv.from_table(table, path, attributes)
    where = path.name
    check_columns(table.column_names, ["id", *attributes], where)
    if not len(table):
        raise UserError(f"{where} has no rows: label the images first.")
    empty = np.flatnonzero(table.column("id").is_null().to_numpy())
    if len(empty):
        raise UserError(f"{row_of(where, int(empty[0]))} has no id: every row names its image.")
    ids = np.array(table.column("id").to_pylist())
    face, n_faces, notes = _numbers_of_faces(table, ids, where)
    names = list(attributes) or _attributes(table)
    if not names:
        raise UserError(f"{where} has no attribute: beside id it needs a column with classes, such as gender.")
    read = {name: _attribute(table, name, n_faces, where) for name in names}
    starts = tuple(f"{name}{end}" for name in names for end in (PROBABILITY, MARGIN))
    mine = {*OWN[:3], *names}
    further = [name for name in table.column_names if name not in mine and not name.startswith(starts)]
    others = {name: np.array(table.column(name).to_pylist(), dtype=object) for name in further}
    return Labels(ids, face, n_faces, read, others, str(path), notes)


def write_labels(labels: Labels, path: Path | str) -> None:
    """Write a table that `read_labels` reads, as .csv or .parquet; what is there is replaced.

    Raises:
        UserError: another ending.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    path = Path(path)
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{path} ends in '{path.suffix}': labels are written as .csv or .parquet.")
    columns: dict[str, Any] = {"id": labels.ids, "face": labels.face, "n_faces": labels.n_faces}
    for name, one in labels.attributes.items():
        words = np.array([*one.classes, None], dtype=object)
        columns[name] = pyarrow.array(words[one.codes], pyarrow.string())
        for k, level in enumerate(one.classes if one.probability is not None else ()):
            columns[f"{name}{PROBABILITY}{level}"] = pyarrow.array(one.probability[:, k], from_pandas=True)  # type: ignore[index]
        if one.margin is not None:
            columns[name + MARGIN] = pyarrow.array(one.margin, from_pandas=True)
    columns |= {name: pyarrow.array(values, pyarrow.string()) for name, values in labels.others.items()}
    table = pyarrow.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, part)
        else:
            pyarrow.parquet.write_table(table, part)


def _numbers_of_faces(table: Any, ids: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Read which face each row is, and of how many; without these columns each image has the one face of its row."""
    image = numbered(ids)
    has = {name: name in table.column_names for name in ("face", "n_faces")}
    face = _whole(table, "face", where) if has["face"] else np.zeros(len(ids), dtype=np.int64)
    key = image * (int(face.max()) + 1) + face
    order = np.argsort(key, kind="stable")
    twice = order[1:][np.diff(key[order]) == 0]
    if len(twice):
        row = int(twice.min())
        what = f"face {face[row]} of '{ids[row]}'" if has["face"] else f"the id '{ids[row]}'"
        raise UserError(
            f"{row_of(where, row)} has {what} again: each face of an image has one row, and a number in the column "
            "face that tells it from the others."
        )
    rows = np.bincount(image)[image]
    notes: tuple[str, ...] = ()
    if not has["n_faces"]:
        notes = (f"{where} does not say in how many images no face was found: those may be missing here.",)
    n_faces = _whole(table, "n_faces", where) if has["n_faces"] else rows
    first = np.full(image.max() + 1, -1)
    first[image[::-1]] = n_faces[::-1]
    for wrong, why in (
        (n_faces != first[image], "another n_faces than the rows before it of the same image"),
        (face >= np.maximum(n_faces, 1), "a face beyond n_faces: the first is 0, and n_faces counts them"),
        ((rows > n_faces) & (rows > 1), "more rows than its image has faces"),
    ):
        if wrong.any():
            raise UserError(f"{row_of(where, int(wrong.argmax()))} has {why}: mend the table.")
    return face, n_faces, notes


def _whole(table: Any, name: str, where: str) -> np.ndarray:
    values = to_numbers(table, name, where)
    wrong = np.flatnonzero(~((values >= 0) & (values < 1e6) & (np.floor(values) == values)))
    if len(wrong):
        given = table.column(name)[int(wrong[0])].as_py()
        raise UserError(
            f"{row_of(where, int(wrong[0]))} has the {name} {given or 'nothing'}: a whole number from 0 is needed."
        )
    return values.astype(np.int64)


def _attributes(table: Any) -> list[str]:
    """Name the attributes: columns with probabilities or a margin, else all that have few different words."""
    names = table.column_names
    found = [name.partition(PROBABILITY)[0] for name in names if PROBABILITY in name]
    found += [name.removesuffix(MARGIN) for name in names if name.endswith(MARGIN)]
    if found:
        return list(dict.fromkeys(found))
    return [name for name in names
            if name not in OWN and 1 <= len(table.column(name).unique().drop_null()) <= MOST_CLASSES]  # fmt: skip


def _attribute(table: Any, name: str, n_faces: np.ndarray, where: str) -> Attribute:
    check_columns(table.column_names, [name], where)
    start = f"{name}{PROBABILITY}"
    classes = [column.removeprefix(start) for column in table.column_names if column.startswith(start)]
    column = to_column(table, name, classes or None, where)
    if not column.levels:
        raise UserError(f"The column {name} of {where} is empty: it holds the class of each face.")
    filled = np.flatnonzero((n_faces == 0) & (column.codes >= 0))
    if len(filled):
        row = int(filled[0])
        raise UserError(
            f"{row_of(where, row)} has n_faces 0 and yet the {name} '{column.levels[column.codes[row]]}': where no "
            "face was found, attributes are empty."
        )
    probability = None
    if classes:
        parts = [to_numbers(table, start + level, where) for level in classes]
        probability = check_probabilities(np.stack(parts, axis=1), n_faces > 0, name, where)
    margin = to_numbers(table, name + MARGIN, where) if name + MARGIN in table.column_names else None
    return Attribute(column.levels, column.codes, probability, margin)


def check_probabilities(values: np.ndarray, faces: np.ndarray, name: str, where: str) -> np.ndarray:
    """Give (N, K) probabilities as they are, or refuse them.

    Args:
        values: (N, K), each row all NaN or in [0, 1] with the sum 1.
        faces: (N,) which rows have a face; only they have probabilities, and all of them do.
        name: of the attribute.
        where: the file's name, for messages.

    Raises:
        UserError: naming the first row that is wrong.
    """
    empty = np.isnan(values).all(axis=1)
    with np.errstate(invalid="ignore"):
        sound = (values >= 0).all(axis=1) & (np.abs(values.sum(axis=1) - 1) <= TOLERANCE)
    wrong = np.flatnonzero(~np.where(faces, sound, empty))
    if len(wrong):
        row = int(wrong[0])
        given = "nothing" if empty[row] else ", ".join(f"{value:g}" for value in values[row][:9])
        needed = f"numbers in [0, 1] with the sum 1 (within {TOLERANCE:g})" if faces[row] else "nothing, without a face"
        raise UserError(f"{row_of(where, row)} has as probabilities of {name} {given}: needed is {needed}.")
    return values
