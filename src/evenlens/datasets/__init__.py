"""One file a data set: where it lives, its columns, its named protocols. The file's name is the data set's."""

from __future__ import annotations

from functools import cache

from evenlens.data.source import Source
from evenlens.registry import find_class, module_names


def names() -> list[str]:
    """List the data sets."""
    return module_names(__name__)


@cache
def get(name: str) -> type[Source]:
    """Give a data set's class by name; an unknown name is answered with the nearest known one."""
    return find_class(__name__, "data set", name, Source)
