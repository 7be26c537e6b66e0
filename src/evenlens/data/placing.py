"""Write a data set that rows were added to: place their images, then the table, then the description."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evenlens.data import own
from evenlens.data.images import digest
from evenlens.data.incoming import TABLE, Input, digest_column
from evenlens.data.own import Description
from evenlens.data.tables import PARTS, UNUSED
from evenlens.files import replacing


def write(
    folder: Path,
    wanted: Description,
    levels: dict[str, list[str]],
    old: Input | None,
    fresh: list[Input],
    rows: list[np.ndarray],
) -> None:
    """Place the images, then write table and description: killed at any moment, the old data set stands.

    Args:
        folder: the data set's.
        wanted: its description, as it was or as it shall be.
        levels: the values that each column may have.
        old: the rows that are there.
        fresh: where new rows come from.
        rows: those that are taken of each.
    """
    says = wanted.model_copy(
        update={
            **_keys(wanted), "table": TABLE, "suffix": "", "folders": (), **_about(wanted, fresh, rows),
            "levels": {name: tuple(words) for name, words in levels.items() if name not in wanted.bins},
        }
    )  # fmt: skip
    lines: dict[str, list[str]] = {}
    if old:
        _add_lines(lines, says, old, range(len(old.table)), old.table.names)
        if wanted.table is None:  # before new images lie among the folders that are its labels
            _commit(folder, says, lines)
    taken = {*old.table.names} if old else set()
    for given, picked in zip(fresh, rows, strict=True):
        paths = _place(given, picked.tolist(), folder / wanted.images, taken)
        taken |= {*paths}
        _add_lines(lines, says, given, picked.tolist(), paths)
    _commit(folder, says, lines)


def _keys(wanted: Description) -> dict[str, str]:
    """Name the columns beside the attributes: as in the table that was there, so that more tables like it fit."""
    keys: dict[str, str] = {}
    for key, usual in (("path", "file"), ("split", "split"), ("unit", "unit")):
        name = getattr(wanted, key) or usual
        while name in (*keys.values(), *wanted.named()):
            name += "_"
        keys[key] = name
    return keys


def _about(wanted: Description, fresh: list[Input], rows: list[np.ndarray]) -> dict[str, str]:
    """Put together what has to be known about the images: what was said before, and what comes with the new ones."""
    said = {}
    for key, between in (("licence", "; "), ("citation", "; "), ("caveat", " ")):
        nothing = Description.model_fields[key].default
        texts = [getattr(wanted, key)]
        for given, picked in zip(fresh, rows, strict=True):
            text = getattr(given.source, key)
            if len(picked) and text != nothing and not any(text in other for other in texts):
                texts.append(f"{given.source.title}: {text}")
        said[key] = between.join(text for text in texts if text != nothing) or nothing
    return said


def _add_lines(
    lines: dict[str, list[str]], says: Description, given: Input, picked: Sequence[int], paths: Sequence[str]
) -> None:
    """Add rows to a table's columns, each with the path that its image has now."""

    def column(name: str | None) -> list[str]:
        return lines.setdefault(str(name), [])

    column(says.path).extend(paths)
    column(says.split).extend(PARTS[given.parts[row]] if given.parts[row] != UNUSED else "" for row in picked)
    # An image that is its own gets its path as its unit: names of several inputs may be alike, paths are not.
    column(says.unit).extend(given.unit(row) or path for row, path in zip(picked, paths, strict=True))
    column(digest_column(says)).extend(f"{int(given.digests[row]) & (2**64 - 1):016x}" for row in picked)
    names = list(says.named())
    words = given.words(names)
    for k, name in enumerate(names):
        if name in says.bins:
            numbers = given.table.numbers[name]
            column(name).extend(repr(float(numbers[row])).removesuffix(".0") if words[row][k] else "" for row in picked)
        else:
            column(name).extend(words[row][k] for row in picked)


def _commit(folder: Path, says: Description, lines: dict[str, list[str]]) -> None:
    """Write table and description, in the order in which what is there is a data set between the two, too."""
    import pyarrow
    import pyarrow.csv

    folder.mkdir(parents=True, exist_ok=True)
    first = (folder / own.FILE).is_file() and own.read(folder).table == TABLE
    if first:  # the old table fits a description that allows more levels; the new one would not fit the old one
        own.write(folder, says)
    with replacing(folder / TABLE) as part:
        table = pyarrow.table({key: pyarrow.array(value, "string") for key, value in lines.items()})
        pyarrow.csv.write_csv(table, part)
    if not first:  # the old description names another table, or there is none
        own.write(folder, says)


def _place(given: Input, picked: list[int], root: Path, taken: set[str]) -> list[str]:
    """Link or copy images below the root, each under its input's name; give their paths from there."""

    def is_other(name: str, row: int) -> bool:
        path = f"{name}/{given.table.names[row]}"
        there, source = root / path, given.root / given.table.names[row]
        return path in taken or (
            there.exists() and not there.samefile(source) and digest(there.read_bytes()) != given.digests[row]
        )

    name, number = given.name, 1
    while any(is_other(name, row) for row in picked):
        number += 1
        name = f"{given.name}-{number}"
    paths = [f"{name}/{given.table.names[row]}" for row in picked]
    for row, path in zip(picked, paths, strict=True):
        target, source = root / path, (given.root / given.table.names[row]).resolve()
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as part:
                try:
                    os.link(source, part)
                except OSError:  # another disk, or one without links
                    shutil.copy2(source, part)
    return paths
