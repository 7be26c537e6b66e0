"""One file a view: what a classifier is shown in place of the photograph. The file's name is the view's."""

from __future__ import annotations

from functools import cache
from typing import Any

from evenlens.config import signature_options
from evenlens.errors import UserError
from evenlens.registry import find_class, module_names
from evenlens.view import View


def names() -> list[str]:
    """List the views."""
    return module_names(__name__)


@cache
def get(name: str) -> type[View]:
    """Give a view's class by name; an unknown name is answered with the nearest known one."""
    return find_class(__name__, "view", name, View)


def settle(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Check a view's options, and fill in its defaults and what it finds in files.

    Raises:
        UserError: an unknown view or option, a value that is not allowed, or a file that cannot be had.
    """
    kind = get(name)
    settled = kind.settle(signature_options(f"option of {name}", kind, options, ()))
    try:
        kind(**settled)  # what its constructor refuses is refused before any work
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(name) else f"{name}: {said}") from None
    return settled


def build(name: str, options: dict[str, Any]) -> View:
    """Build a view as `settle` gave its options; what it needs from files is not read before `View.prepare`."""
    return get(name)(**options).eval().requires_grad_(False)
