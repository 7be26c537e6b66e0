"""The table that FairFace's prediction script writes: class names, and scores as printed numpy arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from evenlens.data.reading import check_columns, row_of, to_column
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.generation.labels import Attribute, Labels, check_probabilities, numbered

NAME, FOLDER = "face_name_align", "detected_faces/"
RACES = ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern")
AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
HEADS = {  # attribute: the column with its scores, and its classes in the order of the scores
    "race": ("race_scores_fair", RACES),
    "race4": ("race_scores_fair_4", ("White", "Black", "Asian", "Indian")),
    "gender": ("gender_scores_fair", ("Male", "Female")),
    "age": ("age_scores_fair", AGES),
}
FACE = re.compile(r"^(?P<stem>.*)_face(?P<face>\d+)$", re.DOTALL)
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)"


def fits(columns: Sequence[str]) -> bool:
    """Say whether a table with these columns is of this form."""
    return NAME in columns


def from_table(table: Any, path: Path, attributes: Sequence[str] = ()) -> Labels:
    """Make labels of such a table.

    The face 1 of 0042.png is in the row detected_faces/0042_face1.png; its id is 0042.png. Images without a face have
    no row, so they cannot be counted.

    Args:
        table: as `reading.read_table` gives it; arrays may contain line breaks.
        path: of the file.
        attributes: which of race, race4, gender and age; default: those that are there.

    Raises:
        UserError: a class that is not of this form, an array of another length, or a face twice.
    """
    where = path.name
    known = [name for name in HEADS if name in table.column_names]
    check_columns(known, attributes, where)
    if not known or not len(table):
        raise UserError(f"{where} has a column {NAME}, but no faces: it needs rows, and one of {', '.join(HEADS)}.")
    files = table.column(NAME).to_pylist()
    if None in files:
        raise UserError(f"{row_of(where, files.index(None))} has no {NAME}: every row names its face.")
    ids, face = (np.array(part) for part in zip(*(_image_of(name) for name in files), strict=True))
    image = numbered(ids)
    key = image * (int(face.max()) + 1) + face
    twice = np.flatnonzero(np.bincount(key)[key] > 1)
    if len(twice):
        raise UserError(f"{row_of(where, int(twice[1]))} has the face {files[int(twice[1])]!r} again: remove one.")
    read = {name: _attribute(table, name, where) for name in (attributes or known)}
    note = f"{where} has no rows for images without a face: how many there were is not known."
    others = {NAME: np.array(files, dtype=object)}
    return Labels(ids, face, np.bincount(image)[image], read, others, str(path), (note,))


def write(labels: Labels, path: Path | str) -> None:
    """Write labels in this form, for tools that read it; it has no rows for images without a face.

    Args:
        labels: with some of the attributes race, race4, gender and age, in classes of this form.
        path: ends in .csv; replaced if it is there.

    Raises:
        UserError: another ending, or other attributes or classes.
    """
    import pyarrow
    import pyarrow.csv

    path = Path(path)
    check(path, {name: one.classes for name, one in labels.attributes.items()})
    rows = labels.select(labels.n_faces > 0)
    paths = [PurePosixPath(name) for name in rows.ids.tolist()]
    names = [
        f"{FOLDER}{name.with_name(f'{name.stem}_face{face}{name.suffix}')}"
        for name, face in zip(paths, rows.face.tolist(), strict=True)
    ]
    columns: dict[str, Any] = {NAME: names}
    for name, one in rows.attributes.items():
        columns[name] = np.array([*one.classes, None], dtype=object)[one.codes].tolist()
    for name, one in rows.attributes.items():
        if one.probability is not None:
            columns[HEADS[name][0]] = [np.array2string(row, max_line_width=75) for row in one.probability]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        pyarrow.csv.write_csv(pyarrow.table(columns), part)


def check(path: Path, attributes: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse to write labels of these attributes in this form, where it cannot hold them; errors as in `write`.

    Args:
        path: to be written.
        attributes: the classes of each.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path} ends in '{path.suffix}': this form is a .csv.")
    strange = [name for name, classes in attributes.items() if name not in HEADS or classes != HEADS[name][1]]
    if strange:
        raise UserError(
            f"The attribute {strange[0]} is not one of this form ({', '.join(HEADS)}, each in its own classes): write "
            "the labels as a table of evenlens."
        )


def _image_of(name: str) -> tuple[str, int]:
    """Give the image that a face was cut out of, and its number."""
    below = name.replace("\\", "/")
    path = PurePosixPath(below.rpartition(FOLDER)[2] if FOLDER in below else PurePosixPath(below).name)
    found = FACE.match(path.stem)
    if not found:
        return str(path), 0
    return str(path.with_name(f"{found['stem']}{path.suffix}") if found["stem"] else path), int(found["face"])


def _attribute(table: Any, name: str, where: str) -> Attribute:
    scores, classes = HEADS[name]
    codes = to_column(table, name, classes, where).codes
    if scores not in table.column_names:
        return Attribute(classes, codes)
    values = _arrays(table.column(scores).to_pylist(), scores, len(classes), where)
    checked = check_probabilities(values, np.ones(len(codes), dtype=bool), name, where)
    ordered = np.sort(checked, axis=1)
    return Attribute(classes, codes, checked, ordered[:, -1] - ordered[:, -2])


def _arrays(texts: Sequence[str | None], name: str, length: int, where: str) -> np.ndarray:
    """Read N printed arrays of one length: (N, length) float64."""
    found = [re.findall(NUMBER, text or "") for text in texts]
    for row, numbers in enumerate(found):
        if len(numbers) != length:
            raise UserError(
                f"{row_of(where, row)} has {len(numbers)} numbers in {name}: {length} are needed, as numpy prints them."
            )
    return np.array(found, dtype=np.float64).reshape(-1, length)
