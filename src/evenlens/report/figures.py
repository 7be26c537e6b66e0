"""Rows -> Vega-Lite figures, each with the table of what it shows.

Figures carry letters, shapes and colours for methods, so that none of these is needed alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import altair as alt

from evenlens import metrics
from evenlens.report import verdict
from evenlens.report.charts import COLOURS, INK, NONE, Figure, rounded, span, spec, tooltip
from evenlens.report.summary import Number, Row
from evenlens.report.wording import listed, percent
from evenlens.selecting import CROSS_ENTROPY, LAST, Rule

SHAPES = {"circle": "●", "square": "■", "triangle-up": "▲", "diamond": "◆", "triangle-down": "▼", "cross": "✚"}


class Mark(NamedTuple):
    """How a method is shown in every figure."""

    letter: str
    title: str
    colour: str
    shape: str
    symbol: str


@dataclass(frozen=True)
class Shown:
    """The rows of a page with their marks."""

    rows: Sequence[Row]
    marks: Sequence[Mark]
    baseline: Row
    best: Row | None
    gap: str | None
    level: str | None

    def mark(self, row: Row) -> Mark:
        """Give the mark of a row."""
        return self.marks[[other is row for other in self.rows].index(True)]

    def name(self, row: Row) -> str:
        """Call a row in prose: its title without what stands in parentheses, and its letter."""
        mark = self.mark(row)
        return f"{re.sub(r' [(][^()]*[)]', '', mark.title)} ({mark.letter})"

    @property
    def most_seeds(self) -> int:
        """How many seeds a method has at most."""
        return max(len(row.runs) for row in self.rows)

    @property
    def task(self) -> dict[str, Any]:
        """What is predicted, for whom."""
        return self.baseline.runs[0].metrics["task"]


def marks(rows: Sequence[Row]) -> list[Mark]:
    """Give each row a letter, a colour and a shape."""
    shapes = list(SHAPES)
    return [
        Mark(letter(k), row.title, COLOURS[k % len(COLOURS)], shape := shapes[k % len(shapes)], SHAPES[shape])
        for k, row in enumerate(rows)
    ]


def letter(number: int) -> str:
    """Count A, B, ... Z, AA, AB, ..."""
    rest, last = divmod(number, 26)
    return (letter(rest - 1) if rest else "") + chr(ord("A") + last)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Find the points that no other beats in one coordinate without losing in the other.

    Args:
        points: (accuracy, gap) each; more accuracy and less gap are better. Undefined ones are on no front.

    Returns:
        positions of the points on the front, by growing gap.
    """
    known = [k for k, point in enumerate(points) if not any(map(math.isnan, point))]

    def beaten(k: int) -> bool:
        accuracy, gap = points[k]
        return any(points[j] != points[k] and points[j][0] >= accuracy and points[j][1] <= gap for j in known)

    return sorted((k for k in known if not beaten(k)), key=lambda k: (points[k][1], points[k][0]))


def all_figures(shown: Shown) -> list[Figure]:
    """Make every figure that these rows allow."""
    made = [
        trade_off(shown),
        group_rates(shown),
        *(class_rates(shown, c) for c in (1, 0) if len(shown.task["class_names"]) == 2),
        *(cell_map(shown, row) for row in (shown.baseline, shown.best) if len(shown.task["class_names"]) > 2),
        *(curves(shown, key, said) for key, said in _logged(shown)),
    ]
    return [figure for figure in made if figure]


# ---- what figures share


def _colour(shown: Shown) -> alt.Color:
    scale = alt.Scale(domain=[mark.letter for mark in shown.marks], range=[mark.colour for mark in shown.marks])
    return alt.Color("letter:N", scale=scale, legend=None)


def _shape(shown: Shown) -> alt.Shape:
    scale = alt.Scale(domain=[mark.letter for mark in shown.marks], range=[mark.shape for mark in shown.marks])
    return alt.Shape("letter:N", scale=scale, legend=None)


def _name(mark: Mark) -> str:
    return f"{mark.letter} {mark.title}"


# ---- accuracy against the gap


def trade_off(shown: Shown) -> Figure | None:
    """Draw accuracy against the gap, with the Pareto front."""
    if shown.gap is None or len(shown.rows) < 2:
        return None
    gap = metrics.get(shown.gap)
    pairs = [(row.numbers["accuracy"], row.numbers[shown.gap]) for row in shown.rows]
    front = pareto_front([(accuracy.value, other.value) for accuracy, other in pairs])
    values = [_point(mark, *pair, k in front) for k, (mark, pair) in enumerate(zip(shown.marks, pairs, strict=True))]
    line = [values[k] for k in front]
    x = alt.X("gap:Q", scale=_around(values, "gap"))
    x = x.axis(format="%", tickCount=6).title(f"{gap.title} (← smaller is better)")
    y = alt.Y("accuracy:Q", scale=_around(values, "accuracy"))
    y = y.axis(format="%", tickCount=6).title("Accuracy (higher is better ↑)")
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y, color=_colour(shown))
    tip = tooltip(
        ("method", "method"), ("accuracy_text", "accuracy"), ("accuracy_interval", "95 % interval"),
        ("gap_text", gap.title.lower()), ("gap_interval", "95 % interval"), ("front", "on the Pareto front"),
    )  # fmt: skip
    step = alt.Chart(alt.InlineData(values=line)).encode(x=x, y=y, order=alt.Order("gap:Q"))
    chart = alt.layer(
        step.mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.5, color="#7b8794"),
        base.mark_rule(strokeWidth=1, opacity=0.55).encode(x="gap_low:Q", x2="gap_high:Q"),
        base.mark_rule(strokeWidth=1, opacity=0.55).encode(y="accuracy_low:Q", y2="accuracy_high:Q"),
        base.mark_point(size=110, filled=True, opacity=1).encode(shape=_shape(shown), tooltip=tip),
        base.mark_text(dx=11, dy=-9, fontSize=13, fontWeight="bold").encode(text="letter:N", color=alt.value(INK)),
    ).properties(height=360)
    on_front = listed([_name(shown.marks[k]) for k in front]) if front else "none"
    description = f"Accuracy against {gap.title.lower()} for {len(values)} methods. On the Pareto front: {on_front}."
    return Figure(
        "trade-off",
        "Accuracy against fairness",
        f"Up and to the left is better. {gap.definition} The dashed line joins the Pareto front, the methods that no "
        "other beats in one of the two without losing in the other. Crosses are 95 % intervals over test images; "
        "where they overlap, the order is not settled. Axes do not start at 0.",
        description,
        spec(chart, description),
        ["method", "accuracy", "95 % interval", gap.title.lower(), "95 % interval", "on the front"],
        [
            [str(v[f]) for f in ("method", "accuracy_text", "accuracy_interval", "gap_text", "gap_interval", "front")]
            for v in values
        ],
    )  # fmt: skip


def _around(values: list[dict[str, Any]], key: str) -> alt.Scale:
    """Give a scale that holds all intervals and a little more, within what a share can be."""
    seen = [v[name] for v in values for name in (key, f"{key}_low", f"{key}_high") if v[name] is not None]
    more = max(0.005, 0.06 * (max(seen) - min(seen)))
    return alt.Scale(domain=[max(0.0, min(seen) - more), min(1.0, max(seen) + more)], zero=False, nice=False)


def _point(mark: Mark, accuracy: Number, gap: Number, on_front: bool) -> dict[str, Any]:
    point: dict[str, Any] = {"letter": mark.letter, "method": _name(mark), "front": "yes" if on_front else "no"}
    for key, number in (("accuracy", accuracy), ("gap", gap)):
        point |= {
            key: rounded(number.value),
            f"{key}_low": rounded(number.low),
            f"{key}_high": rounded(number.high),
            f"{key}_text": percent(number.value),
            f"{key}_interval": span(number.low, number.high),
        }
    return point


# ---- rates by group


def group_rates(shown: Shown) -> Figure:
    """Draw the accuracy of every group under every method."""
    return _by_group(shown, "group-accuracy", "Accuracy by group", "accuracy", None)


def class_rates(shown: Shown, label: int) -> Figure:
    """Draw, for a task of two classes, the share of a label's images that is predicted right, by group."""
    known = "true positive rate" if label == 1 else "true negative rate"
    title = f"Right among images labelled “{shown.task['class_names'][label]}”, by group ({known})"
    return _by_group(shown, f"class-{label}", title, "true_positive_rate", label)


def _by_group(shown: Shown, key: str, title: str, rate: str, label: int | None) -> Figure:
    values: list[dict[str, Any]] = []
    empty: list[str] = []
    for row, mark in zip(shown.rows, shown.marks, strict=True):
        share, low, high, n = (field if label is None else field[:, label] for field in verdict.rates(row, rate))
        for k, group in enumerate(shown.task["group_names"]):
            if n[k]:
                interval = span(low[k], high[k])
                values.append(
                    {"letter": mark.letter, "method": _name(mark), "group": f"{group}\nn = {n[k]:,.0f}", "place": k,
                     "rate": rounded(share[k]), "low": rounded(low[k]), "high": rounded(high[k]),
                     "text": percent(share[k]), "interval": interval}
                )  # fmt: skip
            elif row is shown.baseline:
                empty.append(group)
    step = max(14 if len(values) <= 80 else 10, 34 // (len(shown.rows) + 1))  # a label has two lines
    lanes = alt.YOffset("letter:N", sort=None, scale=alt.Scale(paddingOuter=0.6))
    y = alt.Y(
        "group:N",
        sort=None,
        title=None,
        axis=alt.Axis(labelExpr="split(datum.label, '\\n')", labelLimit=150, ticks=False, domain=False),
    )
    x = alt.X("rate:Q", scale=alt.Scale(zero=False, nice=True)).axis(format="%", tickCount=6).title("Predicted right")
    base = alt.Chart(alt.InlineData(values=values)).encode(y=y, yOffset=lanes, color=_colour(shown))
    tip = tooltip(("group", "group"), ("method", "method"), ("text", "right"), ("interval", "95 % interval"))
    ink = alt.value(INK)
    chart = alt.layer(
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q").title("Predicted right"), x2="high:Q"),
        base.mark_point(size=55, filled=True, opacity=1).encode(x=x, shape=_shape(shown), tooltip=tip),
        base.mark_text(align="left", dx=5, fontSize=min(10, step)).encode(x="high:Q", text="letter:N", color=ink),
    ).properties(height=len({v["place"] for v in values}) * (len(shown.rows) + 1) * step)  # fmt: skip
    description = f"{title}: {len(shown.rows)} methods, {len(shown.task['group_names'])} groups; numbers in the table."
    missing = f" Without such images: {', '.join(empty)}." if empty else ""
    return Figure(
        key,
        title,
        "Each point is the mean over seeds, each line Wilson 95 % interval; n is the number of test images. "
        f"The axis does not start at 0.{missing}",
        description,
        spec(chart, description),
        ["group", "method", "right", "95 % interval"],
        [[v["group"], v["method"], v["text"], v["interval"]] for v in sorted(values, key=lambda v: v["place"])],
    )


# ---- cells of a task with many classes


def cell_map(shown: Shown, row: Row | None) -> Figure | None:
    """Draw the accuracy of each label within each group of one method."""
    if row is None:
        return None
    classes, names = shown.task["class_names"], shown.task["group_names"]
    share, low, high, n = verdict.rates(row, "true_positive_rate")
    values: list[dict[str, Any]] = [
        {"group": group, "label": label, "n": f"{n[k, c]:,.0f}", "rate": rounded(share[k, c]),
         "short": f"{100 * share[k, c]:.0f}" if n[k, c] else NONE, "text": percent(share[k, c]),
         "interval": span(low[k, c], high[k, c])}
        for k, group in enumerate(names) for c, label in enumerate(classes)
    ]  # fmt: skip
    x = alt.X(
        "label:N", sort=None, title=None, axis=alt.Axis(orient="top", labelAngle=-90, labelLimit=110, ticks=False)
    )
    y = alt.Y("group:N", sort=None, title=None, axis=alt.Axis(labelLimit=150, ticks=False))
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y)
    scale = alt.Scale(domain=[0, 1], range=["#f3f7fb", "#6baed6"])  # never so dark that dark ink is hard to read
    tip = tooltip(("group", "group"), ("label", "label"), ("text", "right"), ("interval", "95 % interval"), ("n", "n"))
    chart = alt.layer(
        base.mark_rect(stroke="white").encode(color=alt.Color("rate:Q", scale=scale, legend=None), tooltip=tip),
        base.mark_text(fontSize=10).encode(text="short:N", color=alt.value(INK)),
    ).properties(height=24 * len(names))
    mark = shown.mark(row)
    description = f"Percent right for each label within each group, {_name(mark)}; numbers in the table."
    return Figure(
        f"cells-{mark.letter}",
        f"Percent right for each label within each group: {_name(mark)}",
        f"Darker is more often right; {NONE} has no test image.",
        description,
        spec(chart, description),
        ["group", "label", "right", "95 % interval", "n"],
        [[v["group"], v["label"], v["text"], v["interval"], v["n"]] for v in values],
        keyed=False,
    )


# ---- training


def _logged(shown: Shown) -> list[tuple[str, str]]:
    """Name what was logged by epoch and is worth a curve: the loss, and the score that epochs were chosen by."""
    rule = Rule.of(shown.baseline.runs[0].config.select)
    score = "val_accuracy" if rule.name == LAST else f"val_{rule.name}"
    keys = {key for row in shown.rows for run in row.runs for entry in run.log for key in entry}
    said = "accuracy" if rule.name == LAST else rule.title
    wanted = [("loss", "Training loss"), (score, f"{said.capitalize()} on validation images")]
    return [(key, title) for key, title in wanted if key in keys]


def curves(shown: Shown, key: str, title: str) -> Figure:
    """Draw something that was logged by epoch, a line a run."""
    values: list[dict[str, Any]] = []
    for row, mark in zip(shown.rows, shown.marks, strict=True):
        for run in row.runs:
            last = max((entry["epoch"] for entry in run.log if key in entry), default=0)
            values += [
                {"letter": mark.letter, "method": _name(mark), "seed": str(run.config.seed), "run": run.metrics["id"],
                 "epoch": entry["epoch"], "value": rounded(entry[key]), "text": f"{entry[key]:.4f}",
                 "kept": "yes" if entry["epoch"] == run.metrics["selected_epoch"] else "no",
                 "end": mark.letter if entry["epoch"] == last else ""}
                for entry in run.log if key in entry
            ]  # fmt: skip
    share, near = not key.startswith(("loss", f"val_{CROSS_ENTROPY}")), alt.Scale(zero=False, nice=False, padding=10)
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d", grid=False), scale=near)
    y = alt.Y("value:Q", title=None, scale=near, axis=alt.Axis(format="%" if share else "~g"))
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, y=y, color=_colour(shown), detail="run:N")
    tip = tooltip(("method", "method"), ("seed", "seed"), ("epoch", "epoch"), ("text", "value"), ("kept", "kept"))
    kept = base.transform_filter(alt.datum.kept == "yes")
    chart = alt.layer(
        base.mark_line(strokeWidth=1.5),
        base.mark_point(size=12, filled=True, opacity=0.7).encode(tooltip=tip),
        kept.mark_point(size=70, filled=True, opacity=1).encode(shape=_shape(shown), tooltip=tip),
        base.mark_text(align="left", dx=7, fontSize=11).encode(text="end:N", color=alt.value(INK)),
    ).properties(height=240)
    description = f"{title} by epoch, {len({v['run'] for v in values})} runs; numbers in the table."
    note = "" if key != "loss" else " Methods minimise different losses: compare the shape of a curve, not its height."
    return Figure(
        f"curve-{re.sub('[^a-z0-9]+', '-', key)}",
        f"{title}, by epoch",
        f"One line a run; the large mark is the epoch that was kept, chosen on validation images.{note}",
        description,
        spec(chart, description),
        ["method", "seed", "epoch", "value", "kept"],
        [[v["method"], v["seed"], str(v["epoch"]), v["text"], v["kept"]] for v in values],
    )
