"""One file a data set: where it lives, its columns, its named protocols. The file's name is the data set's."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from evenlens.config import data_root
from evenlens.data import own
from evenlens.data.source import Source
from evenlens.errors import UserError, unknown
from evenlens.registry import find_class, module_names


def names() -> list[str]:
    """List the data sets of the field."""
    return module_names(__name__)


def own_names(root: Path | None = None) -> list[str]:
    """List the data sets of one's own: the folders below the data root that say what they are."""
    return sorted(path.parent.name for path in data_root(root).glob(f"*/{own.FILE}"))


def get(name: str, root: Path | None = None) -> type[Source]:
    """Give a data set's class by name; an unknown name is answered with the nearest known one.

    Args:
        name: of a file beside this one, or of a folder of one's own below the data root.
        root: the data root, where it is not the usual one.
    """
    if name in names():
        return _of_the_field(name)
    if name in own_names(root):
        return own.kind(data_root(root) / name)
    raise unknown("data set", name, [*names(), *own_names(root)])


@cache
def _of_the_field(name: str) -> type[Source]:
    return find_class(__name__, "data set", name, Source)


def locate(name: str, root: Path | None = None) -> tuple[str, Path | None]:
    """Take a path to a data set of one's own apart into its name and the root that it lies below.

    Args:
        name: a data set's name, or the path of a folder that holds `dataset.toml`, or of that file.
        root: the data root for what is a name.
    """
    path = Path(name).expanduser()
    if name in names() or (path.name == name and name in own_names(root)):
        return name, root
    if path.name == own.FILE:
        path = path.parent
    if not (path / own.FILE).is_file():
        if path.is_dir():
            raise UserError(
                f"{name} is a folder without {own.FILE}: say what is in it with evenlens data prepare {name} --label "
                "COLUMN --sensitive COLUMN."
            )
        return name, root
    path = path.resolve()
    check_name(path.name)
    return path.name, path.parent


def check_name(name: str) -> None:
    """Refuse a folder's name that cannot be that of a data set.

    Raises:
        UserError: it is that of a data set of the field, or has other characters than a run's folder should.
    """
    if name in names() or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(
            f"The folder's name is the data set's, and '{name}' cannot be one: rename it to letters, digits, - and _, "
            "and not to a data set that evenlens knows."
        )
