"""One file a method. The file's name is the method's; nothing outside this folder names one."""

from __future__ import annotations

from functools import cache

from evenlens.method import Method
from evenlens.registry import find_class, module_names


def names() -> list[str]:
    """List the methods."""
    return module_names(__name__)


@cache
def get(name: str) -> type[Method]:
    """Give a method's class by name; an unknown name is answered with the nearest known one."""
    return find_class(__name__, "method", name, Method)
