"""A data set of one's own: images, a table or folder names for labels, and one TOML that says which is what.

The folder's name is the data set's; it lies below the data root like any other, or is named by its path. See
`docs/guide.md` for the keys of `dataset.toml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import ConfigDict, Field, ValidationError

from evenlens.config import Section, read_toml
from evenlens.data import reading
from evenlens.data.images import ImageStore, Progress, open_files
from evenlens.data.paths import check_inside, check_paths, list_classes, path_column
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, UNUSED, Column, Table, split_by_hash
from evenlens.errors import UserError, unknown
from evenlens.files import replacing

FILE = "dataset.toml"
SHARES = {"val": 0.1, "test": 0.2}  # where the data set brings no split of its own
PART_NAMES = {
    **{part: part for part in PARTS},
    "training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test",
}  # fmt: skip
PATH = "\0path"  # the column of cleaned paths; no table can bring one of that name


class Description(Section):
    """What `dataset.toml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)  # TOML has lists where we have tuples

    label: str = Field(description="column to predict")
    sensitive: tuple[str, ...] = Field((), description="columns whose crossing makes the groups")
    columns: tuple[str, ...] = Field((), description="further columns that may be asked for")
    bins: dict[str, Annotated[tuple[float, ...], Field(min_length=1)]] = Field(
        {}, description="edges that make levels of a number: age = [18, 40] gives three"
    )
    levels: dict[str, tuple[str, ...]] = Field(
        {}, description="the values that a column may have, in their order; default: those that occur"
    )
    images: str = Field(".", description="folder of the images, from this file's folder")
    table: str | None = Field(None, description="the table; without one, folder names are the labels")
    path: str | None = Field(None, description="the table's column with each image's path below `images`")
    suffix: str = Field("", description="what to append to each path, such as .jpg")
    folders: tuple[str, ...] = Field((), description="columns that the folder names give, from the top")
    split: str | None = Field(None, description="column with train, tune, val or test; without one, by a hash")
    unit: str | None = Field(None, description="column with subject, lesion or photograph: stays in one part")
    title: str = Field("", description="for people")
    licence: str = Field("not stated", description="of the images")
    citation: str = Field("not stated", description="whom to cite")
    homepage: str = Field("", description="where it comes from")
    caveat: str = Field(
        "Nothing is known to evenlens about how these labels came about.", description="what a reader must know"
    )
    size: int = Field(64, ge=16, le=1024, description="of the images in pixels, where nothing else is asked")
    augment: str = Field("crop_flip", description="where nothing else is asked")

    def named(self) -> tuple[str, ...]:
        """All columns that can be a target or make groups."""
        return tuple(dict.fromkeys((self.label, *self.sensitive, *self.columns, *self.bins)))


def read(folder: Path) -> Description:
    """Read the description in a data set's folder.

    Raises:
        UserError: none there, no TOML, or a key or value that is not allowed.
    """
    path = folder / FILE
    return checked(read_toml(path), str(path))


def checked(content: dict[str, Any], where: str) -> Description:
    """Make a description of what somebody wrote.

    Args:
        content: as in `dataset.toml`.
        where: it was written, for messages.

    Raises:
        UserError: a key or value that is not allowed, or two that cannot be together.
    """
    try:
        says = Description.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key, place = str(first["loc"][0]), ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown(f"key of {where}", place, Description.model_fields) from None
        meaning = f"({key}: {Description.model_fields[key].description})"
        if first["type"] == "missing":
            raise UserError(f"{where} lacks the key '{place}' {meaning}.") from None
        message = first["msg"].replace("Input should", "it must").replace("a valid tuple", "a list")
        raise UserError(f"{where}: {place} = {first['input']!r} is not allowed: {message} {meaning}.") from None
    doubled = next((name for name, words in says.levels.items() if len({*words}) < len(words)), None)
    strange = next((name for name in says.levels if name not in says.named()), None)
    for wrong, why in (
        (says.label == "group", "the label cannot be called 'group', as the groups are: rename the column"),
        (not says.table and not says.folders, "it must have the key 'table', or 'folders'"),
        (says.table and says.folders, "the labels come from 'table' or from 'folders', not from both: remove one"),
        (strange, f"'levels' has '{strange}', which is in none of label, sensitive and columns"),
        (doubled, f"'levels' has a value of '{doubled}' twice: remove one"),
        ({*says.levels} & {*says.bins}, "a column is in 'levels' and in 'bins': remove it from one"),
    ):
        if wrong:
            raise UserError(f"{where} is not right: {why}.")
    return says


def write(folder: Path, description: Description) -> Path:
    """Write a description into a data set's folder."""
    import tomli_w

    path = folder / FILE
    content = description.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    with replacing(path) as part:
        part.write_text(tomli_w.dumps(content), encoding="utf-8")
    return path


def kind(folder: Path, description: Description | None = None) -> type[Source]:
    """Make the class of a data set of one's own, as if it stood in a file of `evenlens.datasets`."""
    says = description or read(folder)
    protocol = Protocol(
        "as its table says" if says.split else "70/10/20 by a hash of the name", says.label, says.sensitive, by_hash
    )
    constants = {
        "__doc__": says.title or folder.name,
        "title": says.title or folder.name,
        "citation": says.citation,
        "licence": says.licence,
        "homepage": says.homepage,
        "caveat": says.caveat,
        "how_to_get": f"It is described in {folder / FILE}.",
        "protocols": {"own": protocol},
        "columns": says.named(),
        "size": says.size,
        "augment": says.augment,
        "description": says,
    }
    return type("Own", (OwnSource,), constants)


def by_hash(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split 70 / 10 / 20 by a hash of each image's unit, so that rows that are added move none."""
    return split_by_hash(table.unit_names, SHARES, seed)


class OwnSource(Source):
    """Images and labels that somebody brought, read as the description in their folder says."""

    description: ClassVar[Description]

    @property
    def root(self) -> Path:
        """The folder that every path of the table is below."""
        return self.folder / self.description.images

    def table(self, skip_unreadable: bool) -> Table:
        """Read the table, or the names of the folders."""
        says = self.description
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root}, where {self.folder / FILE} says that the images are.")
        import pyarrow.compute as compute

        needed = [name for name in (*says.named(), says.split, says.unit) if name]
        rows, where = self.rows(needed, skip_unreadable)
        if not len(rows):
            raise UserError(f"{where} has no image: a table needs a row for each below its header, a folder files.")
        paths, rows = rows.column(PATH), rows.drop_columns(PATH)
        columns, numbers = {}, {}
        for name in says.named():
            if name in says.bins:
                numbers[name] = reading.to_numbers(rows, name, where)
                columns[name] = binned(numbers[name], says.bins[name])
            else:
                columns[name] = reading.to_column(rows, name, says.levels.get(name), where)
        units = None
        if says.unit:
            reading.check_columns(rows.column_names, [says.unit], where)
            units = compute.coalesce(rows.column(says.unit), paths)
        parts = _parts(rows, says.split, where) if says.split else None
        told = {name: columns[name].codes for name in (says.label, *says.sensitive)}
        if says.split and parts is not None:
            told[says.split] = parts
        for name, codes in told.items():
            lacking = int((codes < 0).sum())
            if lacking:
                self.notes.append(f"{lacking:,} of {len(paths):,} images have no {name} and are left out.")
        order = compute.sort_indices(paths)  # as Python sorts text
        names, by_name = paths.take(order).to_pylist(), order.to_numpy()
        _check_doubled(names, where)
        self.parts = None if parts is None else parts[by_name]
        return Table(
            names,
            {name: column[by_name] for name, column in columns.items()},
            {name: values[by_name] for name, values in numbers.items()},
            None if units is None else units.take(order).to_pylist(),
        )

    def rows(self, columns: Sequence[str] = (), skip_unreadable: bool = False) -> tuple[Any, str]:
        """Give the table as text with the column `PATH`, in its own order, and what to call it in messages.

        Args:
            columns: the only others that are needed; all, where none is named.
            skip_unreadable: leave out files whose names are no text.
        """
        import pyarrow
        import pyarrow.compute as compute

        says = self.description
        if says.table is None:
            rows, strange = _from_folders(self.root, says.folders, skip_unreadable)
            self.notes += [f"{strange:,} names of files are no text and are left out."] * bool(strange)
            return rows, str(self.root)
        path = self.folder / says.table
        table = reading.read_table(path, list(dict.fromkeys((says.path, *columns))) if says.path and columns else ())
        column = says.path or path_column(table, self.root, says.suffix, says.named())
        reading.check_columns(table.column_names, [column], path.name)
        paths = table.column(column)
        if paths.null_count:
            row = int(np.flatnonzero(paths.is_null().to_numpy())[0])
            raise UserError(f"{reading.row_of(path.name, row)} has no {column}: every row must name its image.")
        paths = compute.replace_substring(paths, "\\", "/")
        paths = compute.replace_substring_regex(paths, r"/(\./|/)+", "/")  # a/./b and a//b are a/b
        paths = compute.replace_substring_regex(paths, r"^\./", "")
        suffix, between = (pyarrow.scalar(text, paths.type) for text in (says.suffix, ""))
        paths = compute.binary_join_element_wise(paths, suffix, between)
        check_paths(paths, path.name)
        return table.append_column(PATH, paths), path.name

    def split(self, protocol: Protocol, table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
        """Take the part that the table names; without such a column, split by hash."""
        return super().split(protocol, table, label, group, seed) if self.parts is None else self.parts

    def images(self, table: Table, size: int, fit: str, progress: Progress | None) -> ImageStore:
        """Open the images, after a look that none of them lies outside the folder."""
        check_inside(self.root, table.names)
        return open_files([self.root / name for name in table.names], size, self.folder.name, progress, fit)


def binned(values: np.ndarray, edges: Sequence[float]) -> Column:
    """Make levels of a number: [18, 40] gives "under 18", "18 to 40" (40 is not in it) and "40 or more"."""
    ordered = sorted(set(edges))
    words = [repr(float(edge)).removesuffix(".0") for edge in ordered]
    between = [f"{low} to {high}" for low, high in pairwise(words)]
    codes = np.searchsorted(ordered, values, side="right")
    return Column(
        (f"under {words[0]}", *between, f"{words[-1]} or more"), np.where(np.isnan(values), -1, codes).astype(np.int64)
    )


def _from_folders(root: Path, folders: tuple[str, ...], skip_unreadable: bool) -> tuple[Any, int]:
    """Make a table of the folders' names; say how many files were left out because their names are no text."""
    import pyarrow

    listed = list_classes(root)
    names = [name for name in listed if name.encode(errors="ignore").decode() == name]
    if len(names) < len(listed) and not skip_unreadable:
        strange = next(name for name in listed if name.encode(errors="ignore").decode() != name)
        raise UserError(
            f"{len(listed) - len(names):,} names of files in {root} are no UTF-8, such as {strange!r}: rename them, or "
            "leave them out with data.skip_unreadable=true."
        )
    split = [PurePosixPath(name).parts[:-1] for name in names]
    wrong = next((name for name, parts in zip(names, split, strict=True) if len(parts) != len(folders)), None)
    if wrong is not None:
        raise UserError(
            f"{wrong} lies {len(PurePosixPath(wrong).parts) - 1} folders deep below {root}, and its labels are "
            f"{len(folders)} ({', '.join(folders)}): give a table, or one folder for each label."
        )
    columns: dict[str, Any] = {
        folder: pyarrow.array([parts[k] for parts in split], pyarrow.large_string()) for k, folder in enumerate(folders)
    }
    return pyarrow.table({**columns, PATH: pyarrow.array(names, pyarrow.large_string())}), len(listed) - len(names)


def _parts(rows: Any, name: str, where: str) -> np.ndarray:
    """Read a split column: the codes of `PARTS`, or UNUSED where it is empty."""
    found = reading.to_column(rows, name, where=where)
    translate = []
    for level in found.levels:
        part = PART_NAMES.get(level.lower())
        if part is None:
            raise UserError(f"{where} has the {name} {level!r}: allowed are {', '.join(PARTS)}, or nothing.")
        translate.append(PARTS.index(part))
    return np.array([*translate, UNUSED], dtype=np.int64)[found.codes]


def _check_doubled(names: list[str], where: str) -> None:
    doubled = sorted({one for one, other in pairwise(names) if one == other})
    if doubled:
        raise UserError(
            f"{where} lists {len(doubled):,} images more than once, such as {doubled[0]!r}: keep one row for each."
        )
