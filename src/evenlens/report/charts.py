"""What the figures and confusion matrices of all pages share.

Colours are those of Okabe and Ito (2008), which people with any kind of colour vision can tell apart.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import altair as alt

COLOURS = ("#333333", "#0072B2", "#D55E00", "#009E73", "#AA4499", "#B8860B", "#56B4E9")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
NONE = "\N{EN DASH}"
INK, FAINT = "#1f2933", "#e4e7eb"
# Heights are numbers, not steps: Vega-Lite fits a width to the page only beside one, or warns on every console.
FIT = alt.AutoSizeParams(type="fit-x", contains="padding")


class Figure(NamedTuple):
    """A figure and what is beside it.

    Attributes:
        key: its name within the page.
        title: what it shows.
        caption: how to read it.
        description: what is read out in its place.
        spec: Vega-Lite.
        head: the columns of its table.
        rows: the rows of its table.
        keyed: whether methods are told apart in it, so that it needs their key.
    """

    key: str
    title: str
    caption: str
    description: str
    spec: dict[str, Any]
    head: list[str]
    rows: list[list[str]]
    keyed: bool = True


def spec(chart: Any, description: str) -> dict[str, Any]:
    """Give a chart the style and the width of the page, as Vega-Lite."""
    axis = {"labelColor": INK, "titleColor": INK, "gridColor": FAINT, "domainColor": "#9aa5b1", "tickColor": "#9aa5b1"}
    styled = (
        chart.properties(width="container", autosize=FIT, description=description, background="transparent")
        .configure(font=FONT)
        .configure_axis(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", **axis)
        .configure_view(stroke=None)
    )
    return styled.to_dict()


def rounded(value: float) -> float | None:
    """Write a number for a figure; undefined is null."""
    return None if math.isnan(value) else round(float(value), 5)


def span(low: float, high: float) -> str:
    """Write the interval of a share."""
    return "undefined" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f} %"


def tooltip(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    """Show (field, title) each when a mark is pointed at."""
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in fields]


# ---- confusion matrices


class Share(NamedTuple):
    """A cell of a confusion matrix."""

    percent: str
    n: str
    style: str
    right: bool


def share(n: float, total: float, right: bool) -> Share:
    """Make the cell of `n` of a label's `total` images, never so dark that dark ink is hard to read.

    Args:
        n: how many are predicted as something.
        total: how many the label has.
        right: whether that is their own label.
    """
    if not total:
        return Share(NONE, "0", "", right)
    part = n / total
    colour = "0, 90, 150" if right else "180, 70, 0"
    number = f"{n:,.0f}" if float(n).is_integer() else f"{n:,.1f}"
    return Share(f"{100 * part:.0f} %", number, f"background: rgba({colour}, {0.04 + 0.51 * part:.2f})", right)
