"""Tests -> figures: each seed's difference to the baseline, and critical-difference diagrams over tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from evenlens import metrics
from evenlens.report.charts import INK, Figure, rounded, spec, tooltip
from evenlens.report.figures import Mark
from evenlens.report.significance import Significance, higher_is_better
from evenlens.report.significance_tasks import Ranked, short
from evenlens.report.wording import counted, listed, p_value, points

LANE = 24  # pixels between the names of a critical-difference diagram
AXIS, BARS, STEP = 1.6, 0.75, 0.6  # in lanes: what stands above the axis, the first bar below it, and to the next


def seed_differences(found: Significance) -> list[Figure]:
    """Draw how each seed of each method differs from the same seed of the baseline, by the first measure."""
    if not found.tested:
        return []
    name = found.measures[0].name
    title, better = metrics.get(name).title, "right" if higher_is_better(name) else "left"
    base = found.shown.baseline
    old = {run.config.seed: value for run, value in zip(base.runs, base.numbers[name].seeds, strict=True)}
    values: list[dict[str, Any]] = []
    means: list[dict[str, Any]] = []
    for item in (one for one in found.against if one.measure == name):
        mark = found.shown.mark(item.row)
        means.append({"method": f"{mark.letter} {short(mark.title)}", "value": rounded(100 * item.test.difference)})
        values += [
            {"method": f"{mark.letter} {short(mark.title)}", "letter": mark.letter, "seed": str(run.config.seed),
             "value": rounded(100 * (value - old[run.config.seed])), "text": points(value - old[run.config.seed])}
            for run, value in zip(item.row.runs, item.row.numbers[name].seeds, strict=True)
            if run.config.seed in old
        ]  # fmt: skip
    axis = alt.Axis(labelLimit=190, ticks=False, domain=False)
    y = alt.Y("method:N", sort=None, title=None, axis=axis)
    said = f"{title}, method minus baseline, in points (further {better} is better)"
    x = alt.X("value:Q", title=said, axis=alt.Axis(tickCount=6), scale=alt.Scale(zero=True, nice=True, padding=10))
    marks = [mark for mark in found.shown.marks if any(value["letter"] == mark.letter for value in values)]
    colour = alt.Color("letter:N", legend=None, scale=alt.Scale(domain=[mark.letter for mark in marks],
                                                               range=[mark.colour for mark in marks]))  # fmt: skip
    tip = tooltip(("method", "method"), ("seed", "seed"), ("text", "difference, points"))
    base_line = alt.Chart(alt.InlineData(values=[{"value": 0}])).mark_rule(color=INK, strokeDash=[5, 4])
    chart = alt.layer(
        base_line.encode(x="value:Q"),
        alt.Chart(alt.InlineData(values=values)).mark_point(size=70, filled=True, opacity=0.8).encode(
            x=x, y=y, color=colour, tooltip=tip),
        alt.Chart(alt.InlineData(values=means)).mark_tick(color=INK, thickness=2, size=20).encode(x=x, y=y),
    ).properties(height=34 * len(means))  # fmt: skip
    description = f"Difference of {len(means)} methods to the baseline by seed, {title.lower()}; numbers in the table."
    return [
        Figure(
            "seed-differences", f"{title}: each seed against the same seed of the baseline",
            "Each point is one seed, each upright line the mean of a method; dashed is no difference. Where the points "
            "of a method lie on both sides, another seed could turn the finding round.",
            description, spec(chart, description), ["method", "seed", "difference, points"],
            [[value["method"], value["seed"], value["text"]] for value in values], keyed=False,
        )
    ]  # fmt: skip


def critical_difference(ranked: Ranked, marks: Sequence[Mark]) -> Figure:
    """Draw mean ranks on a line, and join methods that cannot be told apart by bars, as Demsar, 2006, does.

    Args:
        ranked: the ranks by one measure.
        marks: of the methods, in the order of the ranks' columns.
    """
    order = sorted(range(len(marks)), key=lambda k: ranked.test.average[k])
    left = order[: math.ceil(len(order) / 2)]
    lowest = BARS + STEP * max(0, len(ranked.cliques) - 1)
    lines: list[dict[str, Any]] = []
    names: list[dict[str, Any]] = []
    most = len(marks)
    margin = 0.4 * (most - 1)
    # The best and the worst are lowest in number: their lines are the shortest, so that none crosses another.
    for side, of_side in (("left", left), ("right", order[len(left) :][::-1])):
        end = 1 - 0.12 * margin if side == "left" else most + 0.12 * margin
        for place, k in enumerate(of_side):
            rank, y = float(ranked.test.average[k]), lowest + 0.8 + place
            text = f"{marks[k].letter} {rank:.2f} {short(marks[k].title)}"  # where room is short, its end goes
            lines += [{"x": rank, "x2": rank, "y": 0, "y2": y}, {"x": rank, "x2": end, "y": y, "y2": y}]
            names.append({"x": end, "y": y, "side": side, "text": text, "rank": rank, "letter": marks[k].letter,
                          "colour": marks[k].colour, "method": f"{marks[k].letter} {marks[k].title}"})  # fmt: skip
    bars = [
        {"x": float(ranked.test.average[group[0]]) - 0.012 * most, "y": BARS + STEP * number,
         "x2": float(ranked.test.average[group[-1]]) + 0.012 * most}
        for number, group in enumerate(ranked.cliques)
    ]  # fmt: skip
    bottom = lowest + 0.8 + math.ceil(len(order) / 2)
    chart = _layers(ranked, most, margin, bottom, lines, names, bars).properties(height=round(LANE * (bottom + AXIS)))
    joined = "; ".join(listed([marks[k].letter for k in group]) for group in ranked.cliques) or "none"
    title = metrics.get(ranked.measure).title
    description = (
        f"Critical-difference diagram by {title.lower()} over {counted(ranked.test.n, 'task')}. Mean ranks: "
        f"{', '.join(f'{marks[k].letter} {ranked.test.average[k]:.2f}' for k in order)}. Not told apart: {joined}."
    )
    return Figure(
        f"critical-difference-{ranked.measure}", f"Mean ranks by {title.lower()}",
        f"Mean rank over {counted(ranked.test.n, 'task')}, 1 is best. Methods joined by a bar are not told apart by "
        f"the Nemenyi test: their ranks differ by no more than the critical difference of {ranked.distance:.2f}, which "
        f"holds for all pairs together at 5 %. Friedman test with the correction by Iman and Davenport: p "
        f"{_equals(ranked.test.p_value)}.",
        description, spec(chart, description), ["method", "mean rank", "joined with"],
        [[f"{marks[k].letter} {marks[k].title}", f"{ranked.test.average[k]:.2f}", _joined(ranked, marks, k)]
         for k in order], keyed=False,
    )  # fmt: skip


def _equals(p: float) -> str:
    said = p_value(p)
    return said if said[0] in "<u" else f"= {said}"


def _joined(ranked: Ranked, marks: Sequence[Mark], k: int) -> str:
    others = sorted({other for group in ranked.cliques if k in group for other in group} - {k})
    return listed([marks[other].letter for other in others], most=30) if others else "none"


def _layers(
    ranked: Ranked, most: int, margin: float, bottom: float, lines: list[dict[str, Any]], names: list[dict[str, Any]],
    bars: list[dict[str, Any]],
) -> Any:  # fmt: skip
    """Lay ruler, axis, lines, bars and names over each other."""
    scale = alt.Scale(domain=[1 - margin, most + margin], nice=False, zero=False)
    axis = alt.Axis(
        orient="top", values=[*range(1, most + 1)], format="d", grid=False, domain=False, offset=-LANE * AXIS
    )
    down = alt.Scale(domain=[bottom, -AXIS], nice=False)
    x, y = alt.X("x:Q", scale=scale, axis=axis, title=None), alt.Y("y:Q", scale=down, axis=None)

    def drawn(values: list[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y)

    reach = min(ranked.distance, most - 1 + margin)
    ruler = [{"x": 1, "x2": 1 + reach, "y": -AXIS + 0.25}]
    ends = [{"x": place, "y": -AXIS + 0.1, "y2": -AXIS + 0.4} for place in (1, 1 + reach)]
    said = [{"x": 1, "y": -AXIS + 0.25, "text": f"CD {ranked.distance:.2f} "}]
    tip = tooltip(("method", "method"), ("rank", "mean rank"))
    room = alt.ExprRef(f"width * {0.88 * margin / (most - 1 + 2 * margin):.3f}")

    def named(side: str, **place: Any) -> alt.Chart:
        of_side = drawn([name for name in names if name["side"] == side])
        return of_side.mark_text(fontSize=12, limit=room, color=INK, **place).encode(text="text:N", tooltip=tip)

    return alt.layer(
        drawn([{"x": 1, "x2": most, "y": 0}]).mark_rule(color=INK, strokeWidth=1.5).encode(x2="x2:Q"),
        drawn(ruler).mark_rule(color=INK, strokeWidth=1.5).encode(x2="x2:Q"),
        drawn(ends).mark_rule(color=INK, strokeWidth=1.5).encode(y2="y2:Q"),
        drawn(said).mark_text(align="right", dx=-4, fontSize=11, color=INK).encode(text="text:N"),
        drawn(lines).mark_rule(color="#7b8794", strokeWidth=1).encode(x2="x2:Q", y2="y2:Q"),
        drawn([name | {"x": name["rank"], "y": 0} for name in names])
        .mark_point(size=60, filled=True, opacity=1)
        .encode(color=alt.Color("colour:N", scale=None, legend=None), tooltip=tip),
        drawn(bars).mark_rule(color=INK, strokeWidth=5, strokeCap="round").encode(x2="x2:Q"),
        named("left", align="right", dx=-4),
        named("right", align="left", dx=4),
    )
