"""Rows -> the section on what the network was shown in place of photographs, and what of tone that lets through."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import altair as alt

from evenlens import views
from evenlens.config import PHOTOGRAPH
from evenlens.errors import UserError
from evenlens.metrics import Interval
from evenlens.report.charts import COLOURS, INK, Figure, rounded, span, spec, tooltip
from evenlens.report.figures import Shown
from evenlens.report.wording import listed, percent
from evenlens.tone_leak import NO, SAID, TESTS, UNCLEAR, UNDEFINED, YES, ToneLeak

TAGS = {YES: "passed", NO: "failed", UNCLEAR: "undecided", UNDEFINED: "undecided"}
PROBES = {"linear": "linear probe", "mlp": "one hidden layer"}


@dataclass(frozen=True)
class Viewed:
    """A view that the networks of some rows were shown.

    Attributes:
        name: of the view.
        title: of the view, with options where rows differ in these.
        options: of the view.
        letters: of the rows.
        leak: what it lets through of tone, as the first of the runs measured it: it is the same for all of them.
    """

    name: str
    title: str
    options: dict[str, Any]
    letters: list[str]
    leak: ToneLeak


def find(shown: Shown) -> list[Viewed]:
    """Gather the views for which tone was measured; a page without any gets an empty list."""
    letters: dict[str, list[str]] = {}
    first: dict[str, tuple[str, dict[str, Any], ToneLeak]] = {}
    for row, mark in zip(shown.rows, shown.marks, strict=True):
        data = row.runs[0].config.data
        content = next(filter(None, (run.metrics.get("tone_leak") for run in row.runs)), None)
        if data.view == PHOTOGRAPH or not content:
            continue
        key = json.dumps([data.view, data.view_options], sort_keys=True, default=str)
        letters.setdefault(key, []).append(mark.letter)
        first.setdefault(key, (data.view, data.view_options, ToneLeak.from_dict(content)))
    every = [(name, options) for name, options, _ in first.values()]
    return [
        Viewed(name, _title(name, options, every), options, letters[key], leak)
        for key, (name, options, leak) in first.items()
    ]


def _title(name: str, options: dict[str, Any], every: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Give a view's title; of one that this evenlens does not have, the name."""
    try:
        title = views.get(name).title
    except UserError:
        title = name
    same = [other for known, other in every if known == name]
    varied = [f"{key}={value}" for key, value in options.items() if any(other.get(key) != value for other in same)]
    return f"{title} [{', '.join(varied)}]" if varied else title


# ---- the table


class Cell(NamedTuple):
    """What stands in a cell: a number, its interval, and whether the test that it belongs to is passed."""

    value: str
    interval: str
    verdict: str = ""
    tag: str = ""


class Line(NamedTuple):
    """A view's row."""

    title: str
    letters: str
    cells: list[Cell]
    words: str


def lines(found: Sequence[Viewed]) -> list[Line]:
    """Fill the table."""
    return [Line(one.title, listed(one.letters), _cells(one.leak), _in_words(one.leak)) for one in found]


def _cells(leak: ToneLeak) -> list[Cell]:
    probe, verdicts = leak.linear, leak.verdicts
    return [
        _cell(leak.half, 1, 3, verdicts["exposure"]),
        _cell(leak.ink_ratio, 1, 2, verdicts["ink"]),
        _cell(probe.grey, 100, 1),
        _cell(probe.drawing, 100, 1),
        _cell(probe.difference, 100, 2, verdicts["probe"]),
        _cell(leak.correlation, 1, 2),
    ]


def _cell(number: Interval[float], factor: float, digits: int, verdict: str = "") -> Cell:
    said, tag = (SAID[verdict], TAGS[verdict]) if verdict else ("", "")
    value, low, high = (f"{factor * part:.{digits}f}".replace("-", "\N{MINUS SIGN}") for part in number[:3])
    if math.isnan(number.value):
        return Cell("undefined", "", said if verdict != UNDEFINED else "", tag)
    return Cell(value, "no interval" if math.isnan(number.low) else f"{low} to {high}", said, tag)


def _in_words(leak: ToneLeak) -> str:
    """Say which tests are passed, and what may be overlooked."""
    verdicts = leak.verdicts
    said = []
    for verdict in (YES, NO, UNCLEAR, UNDEFINED):
        tests = [test for test in TESTS if verdicts[test] == verdict]
        if tests:
            said.append(f"{SAID[verdict].capitalize()}: {listed(tests)}.")
    return " ".join([*said, *([leak.remark] if leak.remark else [])])


# ---- the figure


def all_figures(found: Sequence[Viewed]) -> list[Figure]:
    """Draw how well probes tell the groups; nothing where no probe is defined."""
    values = [value for one in found for value in _values(one)]
    if not values:
        return []
    title = "Groups told right (balanced accuracy; ← lower is better)"
    kinds = ["grey", "drawing"]
    colour = alt.Color("of:N", scale=alt.Scale(domain=kinds, range=list(COLOURS[:2])), legend=None)
    shape = alt.Shape("of:N", scale=alt.Scale(domain=kinds, range=["circle", "square"]), legend=None)
    axis = alt.Axis(labelExpr="split(datum.label, '\\n')", labelLimit=170, ticks=False, domain=False)
    base = alt.Chart(alt.InlineData(values=values)).encode(y=alt.Y("lane:N", sort=None, title=None, axis=axis))
    x = alt.X("value:Q", scale=alt.Scale(zero=False, nice=False, padding=12)).axis(format="%", tickCount=6).title(title)
    tip = tooltip(("view", "view"), ("of", "from"), ("probe", "probe"), ("text", "told right"),
                  ("interval", "95 % interval"))  # fmt: skip
    chances = [{"value": chance} for chance in sorted({value["chance"] for value in values})]
    chart = alt.layer(
        alt.Chart(alt.InlineData(values=chances)).mark_rule(color=INK, strokeDash=[5, 4]).encode(x="value:Q"),
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q").title(title), x2="high:Q", color=colour),
        base.mark_point(size=55, filled=True, opacity=1).encode(x=x, color=colour, shape=shape, tooltip=tip),
    ).properties(height=34 * len(values))
    description = f"Balanced accuracy of probes on grey and on drawings, {len(found)} views; numbers in the table."
    figure = Figure(
        "tone-leak",
        "How well the group is told from 8 x 8 means",
        "Circles: from plain grey; squares: from what the network was shown. Dashed: guessing. Each line is a 95 % "
        "interval over validation images. The axis does not start at 0.",
        description,
        spec(chart, description),
        ["view", "from", "probe", "told right", "95 % interval"],
        [[value[name] for name in ("view", "of", "probe", "text", "interval")] for value in values],
        keyed=False,
    )
    return [figure]


def _values(one: Viewed) -> list[dict[str, Any]]:
    return [
        {"view": one.title, "lane": f"{one.title}\n{of}, {PROBES[probe.discriminator]}", "of": of,
         "probe": PROBES[probe.discriminator], "chance": rounded(probe.chance), "value": rounded(number.value),
         "low": rounded(number.low), "high": rounded(number.high), "text": percent(number.value),
         "interval": span(number.low, number.high)}
        for probe in one.leak.probes
        for of, number in (("grey", probe.grey), ("drawing", probe.drawing))
        if not math.isnan(number.value)
    ]  # fmt: skip


# ---- for machines


def machine_readable(found: Sequence[Viewed]) -> list[dict[str, Any]] | None:
    """Give what the section says as JSON can hold it."""
    return [
        {"view": one.name, "title": one.title, "options": one.options, "rows": one.letters, **one.leak.as_dict()}
        for one in found
    ] or None
