"""Label tables: what is known about each image, and splits that stay put."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evenlens.errors import UserError, unknown

PARTS = ("train", "tune", "val", "test")
UNUSED = -1
MOST_CROSSINGS = 10_000


@dataclass(frozen=True)
class Column:
    """One attribute of every row: a code in [0, len(levels)), or -1 where it is not known.

    Attributes:
        levels: what each code means, in words.
        codes: (N,) int64.
    """

    levels: tuple[str, ...]
    codes: np.ndarray

    def __post_init__(self) -> None:
        if len(self.codes) and not -1 <= self.codes.min() <= self.codes.max() < len(self.levels):
            raise ValueError(
                f"codes must lie in [-1, {len(self.levels)}), found {self.codes.min()}..{self.codes.max()}"
            )

    def __getitem__(self, rows: np.ndarray) -> Column:
        return Column(self.levels, self.codes[rows])


@dataclass(frozen=True)
class Table:
    """The rows of a data set, sorted by name, with named columns.

    Attributes:
        names: (N,) what identifies an image: its path below the data set's folder.
        columns: attributes with levels, by name.
        numbers: (N,) quantities without levels, such as an age in years, by name.
        units: (N,) what an image is of (a subject, a lesion, a photograph): images of one unit belong in one part.
            None: each image is its own.
    """

    names: Sequence[str]
    columns: dict[str, Column]
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    units: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def unit_names(self) -> Sequence[str]:
        """(N,) units, or names where each image is its own."""
        return self.names if self.units is None else self.units

    def column(self, name: str) -> Column:
        """Look a column up by name; an unknown name is answered with the nearest known one."""
        if name not in self.columns:
            raise unknown("column", name, self.columns)
        return self.columns[name]

    def select(self, rows: np.ndarray) -> Table:
        """Keep these rows (positions or a mask), in this order."""
        positions = np.arange(len(self))[rows]
        return Table(
            [self.names[k] for k in positions],
            {name: column[positions] for name, column in self.columns.items()},
            {name: values[positions] for name, values in self.numbers.items()},
            None if self.units is None else [self.units[k] for k in positions],
        )


def combine(columns: Sequence[Column]) -> Column:
    """Cross columns into one of mixed radix: every combination exists, also one that no row has.

    A row that is unknown in one of the columns is unknown in the result. The first column varies slowest.
    """
    num = int(np.prod([len(column.levels) for column in columns], dtype=float))
    if num > MOST_CROSSINGS:
        raise UserError(
            f"Crossing these columns makes {num:,} groups: at most {MOST_CROSSINGS:,} can be told apart; choose fewer, "
            "or columns with fewer values."
        )
    codes = np.zeros(len(columns[0].codes), dtype=np.int64)
    levels: list[str] = [""]
    missing = np.zeros(len(codes), dtype=bool)
    for column in columns:
        codes = codes * len(column.levels) + np.maximum(column.codes, 0)
        missing |= column.codes < 0
        levels = [f"{left}, {right}" if left else right for left in levels for right in column.levels]
    codes[missing] = -1
    return Column(tuple(levels), codes)


def position(names: Sequence[str], seed: int) -> np.ndarray:
    """Place each name in [0, 1) by a hash of (seed, name): evenly, and the same whatever else is in the table.

    Rows that are added, removed or reordered never move another row, unlike a shuffled list.
    """
    prefix = f"{seed}:".encode()
    digests = b"".join(hashlib.blake2b(prefix + name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype=">u8").astype(np.float64) / 2.0**64


def split_by_hash(names: Sequence[str], shares: dict[str, float], seed: int) -> np.ndarray:
    """Assign each name to a part by its hash.

    Args:
        names: (N,) names; several images of one source should be given that source's name.
        shares: share of each part, by name, adding up to at most 1; the rest goes to `train`.
        seed: another seed gives another split.

    Returns:
        (N,) positions in `PARTS`.
    """
    place = position(names, seed)
    assigned = np.full(len(names), PARTS.index("train"), dtype=np.int64)
    start = 0.0
    for part, share in shares.items():
        assigned[(place >= start) & (place < start + share)] = PARTS.index(part)
        start += share
    return assigned


def split_fingerprint(names: Sequence[str], parts: np.ndarray) -> str:
    """Give the first 16 hex digits of a hash over (name, part) of every row that is used."""
    digest = hashlib.blake2b(digest_size=8)
    for name, part in sorted(zip(names, parts.tolist(), strict=True)):
        if part != UNUSED:
            digest.update(f"{name}\t{PARTS[part]}\n".encode())
    return digest.hexdigest()
