"""An audit of a generator -> Vega-Lite figures, each with the table of what it shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from evenlens.generation.words import level, percent, spread
from evenlens.report.charts import COLOURS, INK, Figure, spec, tooltip

MOST = 40  # categories of a figure; the tables have all
KINDS = {  # what is drawn of a category: its words and its colour
    "share": ("as labelled", "#7fb2d6"),
    "corrected": ("corrected for the classifier's errors", "#e8a26b"),
    "other": ("against", "#b9c0c8"),
}
WIDTH = 22  # pixels of a bar's lane


def shares(content: Mapping[str, Any], number: int) -> Figure:
    """Draw the share of each category as a bar with its interval, and the target as a line.

    Args:
        content: the findings.
        number: which part of them.
    """
    part = content["parts"][number]
    drawn = extremes(part["categories"])
    kinds = [kind for kind in KINDS if drawn[0][kind]]
    values = [_value(content, entry, kind, k) for k, entry in enumerate(drawn) for kind in kinds]
    targets = [{"lane": _lane(entry["name"], k), "target": round(entry["target"], 5), "name": entry["name"],
                "text": percent(entry["target"])} for k, entry in enumerate(drawn)]  # fmt: skip
    lowest, highest = (pick(drawn, key=lambda entry: entry["share"]["value"]) for pick in (min, max))
    description = (
        f"Shares of {len(drawn)} categories of {part['name']}, from {percent(lowest['share']['value'])} "
        f"({plain(lowest['name'])}) to {percent(highest['share']['value'])} ({plain(highest['name'])}); the target is "
        f"{part['target']}. Numbers in the table."
    )
    return Figure(
        f"shares-{number}", f"How often each category of {part['name']} occurs", _caption(content, part, drawn, kinds),
        description, spec(_chart(values, targets, kinds, len(drawn)), description),
        [part["name"], "what", "share", f"{level(content)} interval", "target"],
        [[v["name"], v["what"], v["text"], v["interval"], v["target"]] for v in values], keyed=False,
    )  # fmt: skip


def extremes(entries: Sequence[Mapping[str, Any]], most: int = MOST) -> list[Mapping[str, Any]]:
    """Choose the categories that are farthest from their target, in their order."""
    apart = sorted(range(len(entries)), key=lambda k: -abs(entries[k]["share"]["value"] - entries[k]["target"]))
    return [entries[k] for k in sorted(apart[:most])]


def plain(name: str) -> str:
    """Write a name in one line."""
    return " ".join(name.split())


def _lane(name: str, k: int) -> str:
    """Name a lane; the number keeps equal names apart, and is not shown."""
    return f"{plain(name)}\n{k}"


def _value(content: Mapping[str, Any], entry: Mapping[str, Any], kind: str, k: int) -> dict[str, Any]:
    number = entry[kind]
    ends = entry["together"] if kind == "share" else number
    low, high = (math.nan if ends[end] is None else ends[end] for end in ("low", "high"))
    return {
        "lane": _lane(entry["name"], k), "name": entry["name"], "kind": kind, "what": KINDS[kind][0],
        "share": round(number["value"], 5), "low": None if math.isnan(low) else round(low, 5),
        "high": None if math.isnan(high) else round(high, 5), "text": percent(number["value"]),
        "interval": spread(ends), "target": percent(entry["target"]),
    }  # fmt: skip


def _chart(values: list[dict[str, Any]], targets: list[dict[str, Any]], kinds: list[str], num: int) -> Any:
    axis = alt.Axis(labelExpr="split(datum.label, '\\n')[0]", labelLimit=190, ticks=False, domain=False, grid=False)
    y = alt.Y("lane:N", sort=None, title=None, axis=axis, scale=alt.Scale(paddingInner=0.25, paddingOuter=0.15))
    x = alt.X("share:Q", scale=alt.Scale(zero=True, nice=True)).axis(format="%", tickCount=6).title("share of images")
    offset = alt.YOffset("kind:N", sort=kinds, scale=alt.Scale(domain=kinds))
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=[KINDS[kind][1] for kind in kinds]), legend=None)
    tip = tooltip(
        ("name", "category"), ("what", "what"), ("text", "share"), ("interval", "interval"), ("target", "target")
    )
    base = alt.Chart(alt.InlineData(values=values)).encode(y=y, yOffset=offset)
    height = num * (WIDTH * len(kinds) + 8)
    mark = max(8.0, 0.75 * height / num)
    return alt.layer(
        base.mark_bar().encode(x=x, color=colour, tooltip=tip),
        base.mark_rule(strokeWidth=1.6, color=INK).encode(x=alt.X("low:Q").title("share of images"), x2="high:Q"),
        alt.Chart(alt.InlineData(values=targets))
        .mark_tick(color=COLOURS[4], thickness=3, size=mark, orient="vertical")
        .encode(y=y, x="target:Q", tooltip=tooltip(("name", "category"), ("text", "target"))),
    ).properties(height=max(60, height))


def _caption(content: Mapping[str, Any], part: Mapping[str, Any], drawn: Sequence[Any], kinds: Sequence[str]) -> str:
    said = f"Purple lines: the target, {part['target']}. Black lines: {level(content)} intervals"
    said += ", which hold together for the shares as labelled." if len(kinds) > 1 else ", which hold together."
    names = {"share": "Blue bars: shares as labelled", "corrected": "orange: corrected"}
    names["other"] = f"grey: {plain(Path(content['against']['source']).name)}" if content["against"] else ""
    if len(kinds) > 1:
        said += f" {', '.join(names[kind] for kind in kinds)}."
    left_out = len(part["categories"]) - len(drawn)
    if left_out:
        said += (
            f" Drawn are the {len(drawn)} of {len(part['categories'])} categories that are farthest from their target; "
            "the table has all."
        )
    return said
