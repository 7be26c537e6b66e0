"""What is on its way into another data set: rows with their files, parts and digests, wherever they come from."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from evenlens import datasets
from evenlens.config import Data, data_root
from evenlens.data import own, reading
from evenlens.data.describing import describe
from evenlens.data.images import digest
from evenlens.data.own import Description, OwnSource
from evenlens.data.source import Source, make_source
from evenlens.data.tables import PARTS, Column, Table, combine
from evenlens.errors import UserError
from evenlens.processes import cores

TABLE = "evenlens.csv"  # of what was merged: no name that a table of somebody's own is likely to have
SEED = 1  # of the split of what brings none: the default of data.seed, so that a run made before saw the same parts


@dataclass
class Input:
    """Rows on their way into a merged data set.

    Attributes:
        name: of where they come from; starts their images' new paths.
        root: folder that the names are below.
        source: the data set that they are of.
        table: the rows.
        parts: (N,) positions in `PARTS`, or UNUSED.
        digests: (N,) int64 of the files; 0 where there is none.
    """

    name: str
    root: Path
    source: Source
    table: Table
    parts: np.ndarray
    digests: np.ndarray

    def unit(self, row: int) -> str | None:
        """Give what an image is of; None where it is its own."""
        unit = self.table.unit_names[row]
        return None if unit == self.table.names[row] else unit

    def words(self, names: list[str]) -> list[tuple[str, ...]]:
        """Give the values of these columns for each row in words, empty where not known."""
        columns = [self.table.column(name) for name in names]
        words = [np.array([*column.levels, ""], dtype=object)[column.codes] for column in columns]
        return list(zip(*words, strict=True))


def open_input(name: str, wanted: Description, unit: str | None) -> Input:
    """Open an input: a data set of the field, one of one's own, a folder, or a table.

    Args:
        name: of a data set, or a path.
        wanted: the data set that it shall be added to.
        unit: column of a bare table with what stays in one part.

    Raises:
        UserError: it is none of these, or its table cannot be read.
    """
    if name in datasets.names():
        kind = datasets.get(name)
        free = next((name for name, protocol in kind.protocols.items() if not protocol.fixed), None)
        if free is None or kind.images is not Source.images:
            raise UserError(f"{kind.title} cannot be merged: it is no set of image files with a free choice of labels.")
        return rows_of(make_source(name, kind, Data()), name, free)
    place = Path(name).expanduser()
    if not place.exists() and place.name == name:
        datasets.get(name)  # a name that is not known: says the nearest one
        place = data_root(None) / name
    described = place.name == own.FILE or (place / own.FILE).is_file()
    folder, says = describe(place, wanted.label or None, wanted.sensitive)
    header = reading.read_table(folder / says.table).column_names if says.table else [*says.folders]
    if says.table and not described:
        settings = _settings(header, wanted, unit)
        folder, says = describe(place, wanted.label or None, wanted.sensitive, **settings)
    needed = (wanted.label, *wanted.sensitive) if wanted.label else ()
    more = [column for column in wanted.named() if column in (*header, *needed) and column not in says.named()]
    bins = {name: edges for name, edges in wanted.bins.items() if name in header}
    says = says.model_copy(update={"columns": (*says.columns, *more), "bins": {**bins, **says.bins}})
    stem = place.stem if place.is_file() and not described else folder.resolve().name
    name = re.sub(r"[^\w.-]", "_", stem).lstrip(".") or "images"
    return rows_of(own.kind(folder, says)(folder), name, "own")


def _settings(header: list[str], wanted: Description, unit: str | None) -> dict[str, Any]:
    """Say which columns of a bare table are which, where they have the names that they have in the data set."""
    named = {key: getattr(wanted, key) for key in ("path", "split", "unit")}
    same = {key: column for key, column in named.items() if column in header}
    bins = {name: edges for name, edges in wanted.bins.items() if name in header}
    return {**same, **({"unit": unit} if unit else {}), "bins": bins}


def rows_of(source: Source, name: str, protocol_name: str) -> Input:
    """Read a data set's rows, each in the part that a protocol gives it."""
    table = source.table(False)
    protocol = type(source).protocols[protocol_name]
    label = table.column(protocol.target)
    group = combine([table.column(column) for column in protocol.sensitive]) if protocol.sensitive else label
    parts = np.asarray(source.split(protocol, table, label.codes, group.codes, SEED))
    root = source.root
    if isinstance(source, OwnSource):
        own.check_inside(root, table.names)
    return Input(name, root, source, table, parts.copy(), _known_digests(source, table))


def digest_column(says: Description) -> str:
    """Name the column with the digests in a table that was written here."""
    name = "digest"
    while name in (says.path, says.split, says.unit, *says.named()):
        name += "_"
    return name


def _known_digests(source: Source, table: Table) -> np.ndarray:
    """Give the digests that an earlier merge wrote down, 0 for what is not known."""
    known: dict[str, int] = {}
    if isinstance(source, OwnSource) and source.description.table == TABLE:
        column, rows = digest_column(source.description), reading.read_table(source.folder / TABLE)
        found = rows.column(column).to_pylist() if column in rows.column_names else [None] * len(rows)
        for name, word in zip(rows.column(source.description.path).to_pylist(), found, strict=True):
            known[name] = int(word, 16) if re.fullmatch("[0-9a-f]{16}", word or "") else 0
    return np.array([known.get(name, 0) for name in table.names], dtype=np.uint64).view(np.int64)


def fit(given: Input, wanted: Description) -> list[str]:
    """Give an input the columns of the data set that it goes into, with the same levels of numbers.

    Returns:
        The columns that it does not have and that are empty now.

    Raises:
        UserError: it lacks the label or a sensitive column, or has words where numbers are wanted.
    """
    table, lacking = given.table, []
    for name in wanted.named():
        if name not in table.columns and name not in table.numbers:
            if name in (wanted.label, *wanted.sensitive):
                raise UserError(f"{given.name} has no column {name}: it has {', '.join(table.columns)}.")
            lacking.append(name)
            table.columns[name] = Column((), np.full(len(table), -1))
            table.numbers[name] = np.full(len(table), np.nan)
        if name in wanted.bins:
            if name not in table.numbers:
                raise UserError(
                    f"{given.name} has words as its {name}, and numbers are wanted, for levels at "
                    f"{', '.join(f'{edge:g}' for edge in wanted.bins[name])}: give a table with a number an image."
                )
            table.columns[name] = own.binned(table.numbers[name], wanted.bins[name])
    return lacking


def by_prefix(given: Input) -> np.ndarray:
    """Give the parts that file names say which begin with train_, val_ or test_; the others stay as they are."""
    parts = given.parts.copy()
    for row, name in enumerate(given.table.names):
        word, underscore, _ = PurePosixPath(name).name.lower().partition("_")
        if underscore and word in own.PART_NAMES:
            parts[row] = PARTS.index(own.PART_NAMES[word])
    return parts


def read_digests(inputs: list[Input], progress: Callable[[int, int], None] | None) -> None:
    """Read every file whose digest is not known yet; 0 stays where there is no file."""
    waiting = [(given, row) for given in inputs for row in np.flatnonzero(given.digests == 0).tolist()]

    def read(place: tuple[Input, int]) -> int:
        given, row = place
        try:
            return digest((given.root / given.table.names[row]).read_bytes())
        except OSError:
            return 0

    with ThreadPoolExecutor(4 * cores()) as pool:
        for done, ((given, row), value) in enumerate(zip(waiting, pool.map(read, waiting), strict=True), 1):
            given.digests[row] = value
            if progress and (done % 256 == 0 or done == len(waiting)):
                progress(done, len(waiting))
