"""Small images published as rows of bytes: a few label bytes, then 32 x 32 values of red, of green and of blue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from evenlens.data.source import Source
from evenlens.data.tables import PARTS, Table, position
from evenlens.errors import UserError

SIDE = 32
NUM_VALUES = 3 * SIDE * SIDE
PUBLISHED = {"train": 50_000, "test": 10_000}  # pictures, of either data set


class Place(NamedTuple):
    """Where the bytes of an image are: in which file, and from which byte on."""

    path: str
    start: int


def find_folder(source: Source, name: str, files: Sequence[str], pickled: str) -> Path:
    """Give the folder `name` of a data set, in which all of these files are.

    Raises:
        UserError: one is missing; also where only the folder `pickled` is there, as a pickle may run anything.
    """
    home = source.folder / name
    if not home.is_dir() and (source.folder / pickled).is_dir():
        raise source.missing(f"{name}/; the Python version {pickled}/ is not read")
    for file in files:
        if not (home / file).is_file():
            raise source.missing(f"{name}/{file}")
    return home


def note_numbers(source: Source, labels: dict[str, np.ndarray]) -> None:
    """Note where more or fewer pictures are there than were published, by "train" and "test"."""
    for part, number in PUBLISHED.items():
        if len(labels[part]) != number:
            source.notes.append(f"{len(labels[part]):,} pictures for {part} are here; {number:,} were published.")


def read_labels(path: Path, allowed: Sequence[int]) -> np.ndarray:
    """Read the label bytes of all rows of a file.

    Args:
        path: the file.
        allowed: for each label byte of a row how many values it has.

    Returns:
        (N, len(allowed)) uint8.

    Raises:
        UserError: the file has no rows of this length, or a label that is not allowed.
    """
    num_bytes, row_bytes = path.stat().st_size, len(allowed) + NUM_VALUES
    if num_bytes == 0 or num_bytes % row_bytes:
        raise UserError(f"{path} has {num_bytes:,} bytes, which are no rows of {row_bytes:,}: fetch it again.")
    rows = np.memmap(path, dtype=np.uint8, mode="r", shape=(num_bytes // row_bytes, row_bytes))
    labels = np.array(rows[:, : len(allowed)])
    strange = np.argwhere(labels >= np.array(allowed))
    if len(strange):
        row, which = strange[0].tolist()
        raise UserError(
            f"Row {row} of {path} has the label {labels[row, which]}, which is not below {allowed[which]}: fetch it "
            "again."
        )
    return labels


def read_levels(path: Path, num: int) -> tuple[str, ...]:
    """Read the names of the labels, one a line.

    Raises:
        UserError: they are not as many as there are labels, or one of them is no word or is there twice.
    """
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except UnicodeDecodeError:
        lines = []
    names = tuple(line.strip() for line in lines if line.strip())
    if len({*names}) != num or len(names) != num or not all(re.fullmatch("[a-z0-9_-]+", name) for name in names):
        raise UserError(f"{path} must hold {num} different names, one a line: fetch it again.")
    return names


def read_bytes(place: Place) -> bytes:
    """Read the bytes of an image, without the labels.

    Raises:
        OSError: the file ends before it.
    """
    with open(place.path, "rb") as file:
        file.seek(place.start)
        data = file.read(NUM_VALUES)
    if len(data) < NUM_VALUES:
        raise OSError("the file ends early")
    return data


def to_image(data: bytes) -> Image.Image:
    """Make an image of 32 x 32 pixels of its planes."""
    planes = np.frombuffer(data, dtype=np.uint8).reshape(3, SIDE, SIDE)
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Give a square image as (size, size, 3) uint8."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def state(paths: Sequence[Path]) -> str:
    """Say which files these are: another size or time of change is another file."""
    return "\n".join(f"{path}\t{path.stat().st_size}\t{path.stat().st_mtime_ns}" for path in paths)


def number_within(codes: np.ndarray) -> np.ndarray:
    """Count, for each row, the rows before it that have the same code: (N,) int64."""
    order = np.argsort(codes, kind="stable")
    first = np.searchsorted(codes[order], codes[order], side="left")
    numbers = np.empty(len(codes), dtype=np.int64)
    numbers[order] = np.arange(len(codes)) - first
    return numbers


def hold_out_test(table: Table, codes: np.ndarray, seed: int) -> np.ndarray:
    """Keep the published test images for testing, and set a tenth of the others of each class aside for selection.

    Which, their hash decides. All rows of one unit go together.

    Args:
        table: names that begin with "test/" were published for testing.
        codes: (N,) class of each row.
        seed: of the hash.

    Returns:
        (N,) positions in `PARTS`.
    """
    parts = np.full(len(table), PARTS.index("test"), dtype=np.int64)
    place = position(table.unit_names, seed)
    published = np.char.startswith(np.asarray(table.names), "test/")
    for code in np.unique(codes):
        rows = np.flatnonzero((codes == code) & ~published)
        ranks = rank(place[rows])
        parts[rows] = np.where(ranks < len({*ranks.tolist()}) // 10, PARTS.index("val"), PARTS.index("train"))
    return parts


def rank(place: np.ndarray) -> np.ndarray:
    """Rank (N,) positions of units from 0; rows of one unit share its rank."""
    return np.unique(place, return_inverse=True)[1]
