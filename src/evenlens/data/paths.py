"""Paths of images in tables and folders: which column holds them, which files there are, and which are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from evenlens.data import reading
from evenlens.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
PATH_COLUMNS = ("file", "path", "image", "filename", "file_name", "image_path", "filepath", "image_id", "name", "id")


def path_column(table: Any, root: Path, suffix: str = "", but: Sequence[str] = ()) -> str:
    """Find the column that names images: one whose entries are files, else one that is called so.

    Args:
        table: as `read_table` gives it.
        root: folder of the images.
        suffix: what the paths lack.
        but: columns that are something else.
    """
    likely = path_columns(table, but)
    for column, entries in likely.items():
        if any(os.path.isfile(root / f"{entry}{suffix}") for entry in entries):
            return column
    called = next((column for column in likely if column.lower() in PATH_COLUMNS), None)
    if called is None:
        raise UserError(
            f"No column names the images (looked for {', '.join(PATH_COLUMNS[:5])}, and for one with files below "
            f"{root}): the columns are {', '.join(table.column_names)}; say which with --path COLUMN."
        )
    return called


def path_columns(table: Any, but: Sequence[str] = ()) -> dict[str, list[str]]:
    """Give the columns that may name images, those that are called so first, each with its first few paths."""
    rank = {name: place for place, name in enumerate(PATH_COLUMNS)}
    columns = sorted(
        (name for name in table.column_names if name not in but), key=lambda name: rank.get(name.lower(), len(rank))
    )
    found = {}
    for column in columns:
        entries = table.column(column).slice(0, 100).drop_null()[:3].to_pylist()
        paths = [PurePosixPath(entry.replace("\\", "/")) for entry in entries]
        found[column] = [str(path) for path in paths if not path.is_absolute() and ".." not in path.parts]
    return found


def list_images(root: Path) -> list[str]:
    """List the images below a folder by their paths, sorted; links to folders are not followed, hidden ones skipped."""
    return sorted(name for inside, _, files in _walk(root) for name in _images(inside, files))


def list_classes(root: Path) -> list[str]:
    """List the images of which the folders' names are the labels, sorted.

    Raises:
        UserError: one of the folders is a link, so that its images would be missing.
    """
    names: list[str] = []
    for inside, below, files in _walk(root):
        link = next((inside / name for name in sorted(below) if os.path.islink(root / inside / name)), None)
        if link:
            raise UserError(f"{link} in {root} is a link, which is not followed: put the folder itself there.")
        names += _images(inside, files)
    return sorted(names)


def _images(inside: Path, files: list[str]) -> list[str]:
    return [
        (inside / name).as_posix()
        for name in files
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    ]


def _walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Go through the folders below a root that are not hidden: path from the root, folders, files."""

    def stop(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): mend that, or take the folder away.")

    for folder, below, files in os.walk(root, onerror=stop):
        below[:] = [name for name in below if not name.startswith(".")]
        yield Path(folder).relative_to(root), below, files


def check_paths(paths: Any, where: str) -> None:
    """Refuse paths that lead out of the folder, before any of them is opened.

    Args:
        paths: a column of text, with slashes between folders.
        where: the table's name, for messages.

    Raises:
        UserError: naming the first one.
    """
    import pyarrow.compute as compute

    for pattern, why in (
        (r"^(/|[A-Za-z]:|~[^/]*/)", "an absolute path"),
        (r"(^|/)\.\.(/|$)", "a path with '..'"),
        (r"\x00", "which is no path"),
    ):
        bad = compute.match_substring_regex(paths, pattern)
        count = int(compute.sum(bad).as_py() or 0)
        if count:
            row = int(np.flatnonzero(bad.to_numpy())[0])
            more = f" (and {count - 1:,} more rows do so)" if count > 1 else ""
            raise UserError(
                f"{reading.row_of(where, row)} names {paths[row].as_py()!r}, {why}{more}: paths must lie below "
                "the folder of the images."
            )


def check_inside(root: Path, names: Sequence[str]) -> None:
    """Refuse an image that is, or lies in, a symbolic link to somewhere outside the folder.

    Raises:
        UserError: naming the first one.
    """
    inside = os.path.realpath(root)
    folders: dict[str, bool] = {}

    def leads_out(path: str) -> bool:
        return os.path.commonpath([inside, os.path.realpath(path)]) != inside

    for name in names:
        path = os.path.join(inside, name)
        parent = os.path.dirname(path)
        if parent not in folders:
            folders[parent] = leads_out(parent)
        if folders[parent] or (os.path.islink(path) and leads_out(path)):
            raise UserError(f"{name!r} is a link to somewhere outside {root}: put the image itself there.")
