"""Draw how many images of each label and group are in each part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import altair as alt

from evenlens.data.checking import Summary
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.report.charts import COLOURS, FONT, INK

SUFFIXES = (".svg", ".png", ".html")


class _Inert(json.JSONEncoder):
    """Writes no `<`: in a page, the name of a label could end the script that the figure stands in."""

    def encode(self, o: Any) -> str:
        return super().encode(o).replace("<", "\\u003c")


def chart(summary: Summary) -> alt.Chart:
    """Make bars of counts: a row a group, a colour a label, a column a part."""
    rows = [
        {"part": part, "label": label, "group": group, "images": int(counts[c, g])}
        for part, counts in summary.counts.items()
        for c, label in enumerate(summary.class_names)
        for g, group in enumerate(summary.group_names)
    ]
    few = len(summary.class_names) <= len(COLOURS)
    bars = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            y=alt.Y("group:N", sort=list(summary.group_names), title=", ".join(summary.sensitive)),
            x=alt.X("sum(images):Q", title="images"),
            color=alt.Color(
                "label:N",
                sort=list(summary.class_names),
                title=summary.target,
                scale=alt.Scale(range=list(COLOURS)) if few else alt.Undefined,
                legend=alt.Legend() if few else None,
            ),
            order=alt.Order("label:N"),
            tooltip=["part:N", "group:N", "label:N", "images:Q"],
        )
        .properties(width=220, height={"step": 18})
    )
    faceted = bars.facet(
        column=alt.Column("part:N", sort=list(summary.counts), title=None), title=f"{summary.title}: images by part"
    ).resolve_scale(x="independent")
    return faceted.configure(font=FONT).configure_title(color=INK)


def save(summary: Summary, path: Path) -> None:
    """Write the figure as SVG, PNG or a page that needs no network.

    Raises:
        UserError: another ending.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} cannot be drawn: its name must end in {', '.join(SUFFIXES)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind: Any = path.suffix.lower()[1:]
    with replacing(path) as part:
        options: dict[str, Any] = {"scale_factor": 2 if kind == "png" else 1}
        if kind == "html":
            options = {"inline": True, "json_kwds": {"cls": _Inert}}
        chart(summary).save(str(part), format=kind, **options)
