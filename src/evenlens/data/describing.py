"""Find out what a folder of images or a table is, so that its `dataset.toml` need not be written by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from evenlens.data import own, paths, reading
from evenlens.data.own import Description
from evenlens.errors import UserError

SPLIT_COLUMNS = ("split", "partition", "part", "subset", "fold")
FEW_LEVELS = 50  # a column with at most that many different values is offered as a target or group


def describe(
    target: Path,
    label: str | None = None,
    sensitive: Sequence[str] = (),
    *,
    path: str | None = None,
    split: str | None = None,
    unit: str | None = None,
    bins: dict[str, tuple[float, ...]] | None = None,
) -> tuple[Path, Description]:
    """Describe the data set that a path is: a folder with `dataset.toml`, with one table, or with a folder a class.

    Args:
        target: such a folder, or a table.
        label: column to predict; where there is a `dataset.toml`, what that says holds.
        sensitive: columns whose crossing makes the groups; likewise.
        path: column with the paths of images.
        split: column with the part of each image.
        unit: column with what stays in one part.
        bins: edges that make levels of numbers.

    Returns:
        The data set's folder, and its description.

    Raises:
        UserError: it is none of these, or does not say what is needed.
    """
    asked: dict[str, Any] = {
        "label": label, "sensitive": tuple(sensitive), "path": path, "split": split, "unit": unit, "bins": bins
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value}
    if target.is_file() and target.name == own.FILE:
        target = target.parent
    if (target / own.FILE).is_file():
        settled = [name for name in ("path", "split", "unit", "bins") if name in given]
        if settled:
            raise UserError(f"{target / own.FILE} says what is in {target}: change '{settled[0]}' there.")
        return target, own.read(target)
    if target.is_file():
        return target.parent, _of_table(target, given)
    if not target.is_dir():
        raise UserError(f"There is no folder or table {target}: name a folder of images, or a table that lists some.")
    tables = find_tables(target)
    if len(tables) > 1:
        raise UserError(
            f"{target} holds {len(tables)} tables ({', '.join(found.name for found in tables[:4])}): name the one that "
            f"is meant, such as {tables[0]}."
        )
    return target, _of_table(tables[0], given) if tables else _of_folders(target, given)


def find_tables(folder: Path) -> list[Path]:
    """List the tables in a folder that need not be named to be meant: not readme.txt, and not what systems hide."""
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and reading.is_table(path))
    return [path for path in found if path.suffix.lower() != ".txt" and not path.name.startswith(".")]


def _of_table(table: Path, given: dict[str, Any]) -> Description:
    read = reading.read_table(table)
    if "label" not in given:
        listed = ", ".join(read.column_names)
        raise UserError(f"Say which column is to be predicted with --label: {table.name} has {listed}.")
    wanted = [given["label"], *given.get("sensitive", ()), *given.get("bins", {})]
    named = {key: given[key] for key in ("path", "split", "unit") if key in given}
    reading.check_columns(read.column_names, [*wanted, *named.values()], table.name)
    column, images, suffix = _find_images(table.parent, read, named.get("path"), [*wanted, *named.values()])
    split = named.get("split") or _split_column(read)
    taken = {*wanted, *named.values(), column, split}
    few = [name for name in read.column_names if name not in taken and 1 < _num_levels(read, name) <= FEW_LEVELS]
    found = {"table": table.name, "path": column, "images": images, "suffix": suffix, "split": split, "columns": few}
    return own.checked({**found, **given}, str(table))


def _num_levels(table: Any, name: str) -> int:
    import pyarrow.compute as compute

    return int(compute.count_distinct(table.column(name)).as_py())


def _split_column(table: Any) -> str | None:
    """Find a column whose name and values say that it is a split."""
    for name in table.column_names:
        values = table.column(name).unique().drop_null().to_pylist() if name.lower() in SPLIT_COLUMNS else []
        if values and all(value.lower() in own.PART_NAMES for value in values):
            return str(name)
    return None


def _find_images(folder: Path, table: Any, path: str | None, taken: Sequence[str]) -> tuple[str, str, str]:
    """Find which column of a table names images, below which folder they are, and what ending the names lack."""
    likely = paths.path_columns(table, [name for name in taken if name != path])
    below = sorted(found.name for found in folder.iterdir() if found.is_dir() and not found.name.startswith("."))
    for column in [path] if path else likely:
        for images in (".", *below):
            for suffix in ("", *paths.IMAGE_SUFFIXES):
                if any(os.path.isfile(folder / images / f"{entry}{suffix}") for entry in likely[column]):
                    return column, images, suffix
    return path or paths.path_column(table, folder, but=taken), ".", ""  # what is wrong is said when they are opened


def _of_folders(folder: Path, given: dict[str, Any]) -> Description:
    """Describe folders of which each is a class, below train/, val/ and test/ where there are such."""
    for key in ("path", "split"):
        if key in given:
            raise UserError(f"{folder} has no table, and --{key} is for one: leave it out.")
    names = paths.list_classes(folder)
    if not names:
        raise UserError(
            f"No image and no table in {folder}: looked for {', '.join(paths.IMAGE_SUFFIXES[:4])} and for "
            f"{', '.join(reading.SUFFIXES[:3])}, .parquet."
        )
    tops = {PurePosixPath(name).parts[0] for name in names}
    has_split = all(top.lower() in own.PART_NAMES for top in tops)
    wanted = (given.get("label", "class"), *given.get("sensitive", ()))
    folders = ("split", *wanted) if has_split else wanted
    depth = len(PurePosixPath(names[0]).parts) - 1
    if depth != len(folders):
        raise UserError(
            f"{names[0]} lies in {depth} folders below {folder}, and {len(folders)} are needed to give "
            f"{', '.join(folders)}: one folder for each, in this order, or a table (CSV, TSV, Parquet) in {folder}."
        )
    found = {"label": wanted[0], "folders": folders, "split": "split" if has_split else None}
    return own.checked({**given, **found}, str(folder))
