"""Tables of numbers with their intervals, as these commands print them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table


def table(title: str, caption: str, *columns: str) -> Table:
    """Make a table whose first column holds names, and the others numbers."""
    made = Table(title=escape(title), caption=escape(caption), title_justify="left", caption_justify="left",
                 box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)  # fmt: skip
    for place, column in enumerate(columns):
        made.add_column(escape(column), justify="right" if place else "left", overflow="fold")
    return made


def cell(number: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    """Write a number, and below it its interval."""
    if not number or number["value"] is None:
        return "undefined"
    value, low, high = (
        "" if number[key] is None else f"{factor * number[key]:z.{digits}f}" for key in ("value", "low", "high")
    )
    return f"{value}\n[dim]{low}…{high}[/]" if low else value
