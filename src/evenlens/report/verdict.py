"""Rows -> what may be said of them: who is served worst, which methods change that, and what nobody should conclude."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evenlens import metrics
from evenlens.errors import unknown
from evenlens.metrics import Floats, Interval
from evenlens.registry import PLAIN, describe
from evenlens.report.summary import Row
from evenlens.report.wording import listed, percent

FEW = 20  # images; below it a rate says next to nothing
# Of each, the first that has an interval for every method is what the page talks about.
GAPS = ("equalized_odds_difference", "accuracy_equality_difference")
LEVELS = ("worst_cell_accuracy", "worst_group_accuracy")
REPLICATES = 4000  # the ends of an interval that holds for many comparisons lie far out


def baseline_of(rows: Sequence[Row], name: str | None) -> Row:
    """Give the row of the baseline method: as named, else that of plain training, else the first.

    Of several rows of it that on photographs, where there is one, else the first.

    Raises:
        UserError: no row is of the named method.
    """
    if name is not None:
        found = [row for row in rows if row.method == name]
        if not found:
            raise unknown("baseline among the reported methods", name, {row.method for row in rows})
    else:
        cards = describe("evenlens.methods")
        found = [row for row in rows if cards.get(row.method, {}).get("stage") == PLAIN]
    return min(found or rows[:1], key=lambda row: not row.on_photographs)


def best_of(rows: Sequence[Row], baseline: Row, level: str | None) -> Row | None:
    """Give the other method that serves the worst served best: one that fails all alike has no gap, but is never this.

    Args:
        rows: all methods.
        baseline: one of them.
        level: the metric that says how the worst served fare; where none is defined, the first other is as good.
    """
    others = [row for row in rows if row is not baseline]
    if not others or level is None:
        return others[0] if others else None
    return max(others, key=lambda row: row.numbers[level].value)


def mean_counts(row: Row) -> Floats:
    """Give a row's (G, C, C) counts as the mean over its seeds, so that an image counts once."""
    return row.counts / len(row.runs)


def rates(row: Row, name: str) -> Interval[Floats]:
    """Give a rate of each group, its Wilson interval and its n in images; more seeds do not make more images."""
    counts: Any = mean_counts(row)
    return metrics.rate_intervals(name, counts)


@dataclass(frozen=True)
class Served:
    """How a group, or a label within a group, is served.

    Attributes:
        name: of the group, or "label, group".
        accuracy: mean over seeds.
        low: lower end of Wilson's 95 % interval.
        high: its upper end.
        n: test images.
        group: its code.
    """

    name: str
    accuracy: float
    low: float
    high: float
    n: int
    group: int


def groups(row: Row) -> list[Served]:
    """List the groups that have test images, the worst served first."""
    names = row.runs[0].metrics["task"]["group_names"]
    value, low, high, n = rates(row, "accuracy")
    found = [
        Served(name, float(value[k]), float(low[k]), float(high[k]), round(n[k]), k)
        for k, name in enumerate(names)
        if n[k]
    ]
    return sorted(found, key=lambda served: served.accuracy)


def cells(row: Row) -> list[Served]:
    """List the cells that have test images, the worst served first."""
    task = row.runs[0].metrics["task"]
    value, low, high, n = rates(row, "true_positive_rate")
    found = [
        Served(f"{label}, {group}", float(value[k, c]), float(low[k, c]), float(high[k, c]), round(n[k, c]), k)
        for k, group in enumerate(task["group_names"])
        for c, label in enumerate(task["class_names"])
        if n[k, c]
    ]
    return sorted(found, key=lambda served: served.accuracy)


def first_defined(names: Sequence[str], rows: Sequence[Row]) -> str | None:
    """Choose the metric that is talked about: the first of `GAPS` or `LEVELS` that has an interval in every row."""
    return next((name for name in names if not any(math.isnan(row.numbers[name].low) for row in rows)), None)


def majority(row: Row) -> tuple[str, float]:
    """Give the most frequent label of the test images and its share: what always giving one answer is right for."""
    number = row.counts.sum(axis=(0, 2))
    most = int(number.argmax())
    return row.runs[0].metrics["task"]["class_names"][most], float(number[most] / number.sum())


def beats_one_answer(row: Row) -> bool:
    """Tell whether a row is clearly more often right than always giving the most frequent label as the answer."""
    return row.numbers["accuracy"].low > majority(row)[1]


# ---- one method against the baseline


def change(name: str, before: Row, after: Row, confidence: float = 0.95) -> Interval[float]:
    """Give how a metric differs between two rows, with an interval over the test images that both were tested on.

    Images are drawn once for both rows, so that what is hard for both does not blur the difference; the metric is
    given a sign by row, and its mean over all runs is the difference.
    """
    metric = metrics.get(name)
    runs = [*before.runs, *after.runs]
    old, new = len(before.runs), len(after.runs)
    sign = np.array([-1 / old] * old + [1 / new] * new) * len(runs)
    first = runs[0].metrics
    signed = replace(
        metric, range=(-1.0, 1.0), function=lambda counts, *reference: metric.function(counts, *reference) * sign
    )
    tables = [run.predictions("test") for run in runs]
    return metrics.joint_bootstrap(
        signed,
        np.stack([table["prediction"] for table in tables]),
        tables[0]["label"],
        tables[0]["group"],
        len(first["task"]["class_names"]),
        len(first["task"]["group_names"]),
        REPLICATES,
        confidence,
        train_cells=np.array(first["train_cells"]),
    )


@dataclass(frozen=True)
class Change:
    """A metric of a method minus that of the baseline.

    Attributes:
        value: the difference.
        low: lower end of its interval over test images.
        high: its upper end.
        agree: seeds for which the difference has the sign of `value`.
        seeds: seeds that both were trained with.
    """

    value: float
    low: float
    high: float
    agree: int
    seeds: int

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval leaves 0 out and no seed disagrees, else 0: not clear."""
        excludes = self.low > 0 or self.high < 0
        return int(math.copysign(1, self.value)) if excludes and self.agree == self.seeds else 0


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline, by metric."""

    row: Row
    changes: dict[str, Change]


def compare(rows: Sequence[Row], baseline: Row, gap: str | None, level: str | None) -> list[Comparison]:
    """Compare each other row with the baseline; the intervals of one metric hold for all comparisons together."""
    others = [row for row in rows if row is not baseline]
    names = [name for name in (gap, level, "accuracy") if name]
    confidence = 1 - 0.05 / max(1, len(others))
    return [Comparison(row, {name: _change(name, baseline, row, confidence) for name in names}) for row in others]


def _change(name: str, before: Row, after: Row, confidence: float) -> Change:
    value, low, high, _ = change(name, before, after, confidence)
    old = {run.config.seed: number for run, number in zip(before.runs, before.numbers[name].seeds, strict=True)}
    new = {run.config.seed: number for run, number in zip(after.runs, after.numbers[name].seeds, strict=True)}
    shared = [new[seed] - old[seed] for seed in new if seed in old]
    agree = sum(difference * value > 0 for difference in shared)
    return Change(value, low, high, agree, len(shared))


# ---- in words


def headline(comparisons: Sequence[Comparison], baseline: Row, gap: str | None, name: Callable[[Row], str]) -> str:
    """Say in a sentence or two what the comparison shows; `name` is what a row is called in prose."""
    if not comparisons:
        return f"One method was measured, {name(baseline)}, so nothing is compared."
    if gap is None:
        return (
            "These test images are too few to give the gap between groups an interval: no method can be called fairer."
        )
    clear = [item for item in comparisons if item.changes[gap].sign < 0]
    if not clear:
        return f"No method makes the gap between groups clearly smaller than {name(baseline)} does."
    costly = [name(item.row) for item in clear if item.changes["accuracy"].sign < 0]
    idle = [name(item.row) for item in clear if not beats_one_answer(item.row)]
    several = len(comparisons) > 1
    number = f"All {len(clear)}" if len(clear) == len(comparisons) else f"{len(clear)} of {len(comparisons)}"
    said = f"{number} methods" if several else name(clear[0].row)
    said += " makes" if len(clear) == 1 else " make"
    said += f" the gap between groups clearly smaller than {name(baseline)} does"
    said += f": {listed([name(item.row) for item in clear])}. " if several else ". "
    said += (
        f"Accuracy falls clearly with {listed(costly)}."
        if costly
        else f"Accuracy does not clearly fall{' with any' if several else ''}."
    )
    if idle:
        which = (
            f"{listed(idle)} {'is' if len(idle) == 1 else 'are'} not" if len(idle) < len(clear) else "none of them is"
        )
        said += f" But {which} clearly more often right than always giving the same answer."
    return said


def in_words(comparison: Comparison, gap: str | None, level: str | None) -> str:
    """Say what one comparison shows: gap, worst served, cost."""
    changes = comparison.changes
    gap_sign, level_sign = (changes[name].sign if name else 0 for name in (gap, level))
    worst = "worst cell" if level == LEVELS[0] else "worst group"
    said = {-1: "Gap clearly smaller", 0: "No clear difference in the gap", 1: "Gap clearly larger"}[gap_sign]
    if gap is None or math.isnan(changes[gap].low):
        said = "Too few images to compare the gap"
    said += {-1: f"; {worst} clearly worse", 0: "", 1: f"; {worst} clearly better"}[level_sign]
    said += {-1: "; accuracy clearly lower", 0: "; no clear cost in accuracy", 1: "; accuracy clearly higher"}[
        changes["accuracy"].sign
    ]
    if gap_sign < 0 and level_sign < 0:
        said += ". The gap closed by serving some worse, not by serving others better"
    return f"{said}.{_one_answer(comparison.row)}"


def _one_answer(row: Row) -> str:
    label, share = majority(row)
    return "" if beats_one_answer(row) else f" Not clearly better than always answering “{label}” ({percent(share)})."


def baseline_sentences(row: Row, name: str, gap: str | None) -> list[str]:
    """Say whom a row, called `name`, serves best and worst, and whether the test images can tell the two apart."""
    ranked, ranked_cells = groups(row), cells(row)
    worst, best = ranked[0], ranked[-1]
    if len(ranked) == 1:
        said = [f"{name} is right for {percent(worst.accuracy)} of {worst.name}, the only group with test images."]
    else:
        apart = worst.high < best.low
        said = [
            f"{name} serves “{best.name}” best ({_with_interval(best)}) and “{worst.name}” worst "
            f"({_with_interval(worst)}): {100 * (best.accuracy - worst.accuracy):.1f} points apart. "
            + ("The two intervals do not overlap." if apart else "The intervals overlap: this gap may be chance.")
        ]
    cell = ranked_cells[0]
    said.append(
        f"Within groups, it is worst for images with label and group “{cell.name}”: {_with_interval(cell)}."
        + (f" With fewer than {FEW} images this is hardly known." if cell.n < FEW else "")
    )
    if gap:
        number, title = row.numbers[gap], metrics.get(gap).title.lower()
        interval = f"95 % interval {100 * number.low:.1f} to {100 * number.high:.1f}"
        said.append(f"Its gap between groups, the {title}, is {100 * number.value:.1f} points ({interval}).")
    if not beats_one_answer(row):
        said.append(f"{name} is right for {percent(row.numbers['accuracy'].value)} of all images.{_one_answer(row)}")
    return said


def _with_interval(served: Served) -> str:
    interval = f"{100 * served.low:.1f} to {100 * served.high:.1f}"
    return f"{percent(served.accuracy)} right, 95 % interval {interval}, {served.n:,} images"


def seeds_in_words(rows: Sequence[Row]) -> str:
    """Say how many seeds the methods were trained with."""
    numbers = {len(row.runs) for row in rows}
    low, high = min(numbers), max(numbers)
    if low != high:
        return f"{low} to {high} seeds a method"
    return "1 seed a method" if low == 1 else f"{low} seeds a method"


LIMITS = (
    (
        "Labels are impressions.",
        "Labels and groups are what the data set says of an image: for photographs, what others saw in them, not what "
        "the people shown say of themselves. An error in them counts as an error, or a success, of the classifier.",
    ),
    (
        "The intervals hold for this test set.",
        "They say how far the numbers would move if other images of the same kind were drawn. They do not cover other "
        "cameras, places, people or uses.",
    ),
    (
        "Metrics conflict.",
        "Equal selection, equal error rates and equal accuracy cannot all hold where groups differ in how frequent the "
        "labels are (Kleinberg et al., 2016; Chouldechova, 2017). Which one matters is a question about the use, to be "
        "answered before looking at the numbers. A small gap alone is no merit: a classifier that fails all alike has "
        "none.",
    ),
    (
        "Two things are called worst group.",
        "Here “worst group” is the sensitive group with the lowest accuracy, and “worst cell” the label within a group "
        "with the lowest accuracy, which Sagawa et al. (2020) call worst group.",
    ),
)


def limits(rows: Sequence[Row], baseline: Row, num_comparisons: int) -> list[tuple[str, str]]:
    """List what the numbers do not say, as (what, why)."""
    small = [f"{served.name} ({served.n})" for served in groups(baseline) if served.n < FEW]
    small_cells = [f"{served.name} ({served.n})" for served in cells(baseline) if served.n < FEW]
    absent = _absent(baseline)
    nothing = "Conclude nothing from these." if small else "None in this test set."
    said = [*LIMITS, ("Seeds are few.", _again(min(len(row.runs) for row in rows)))]
    if num_comparisons > 1:
        why = f"The intervals of differences are widened so that all {num_comparisons} in a column hold together; "
        said.append(("Many comparisons.", why + "marking the best of many favours the lucky one all the same."))
    said.append((f"Groups with fewer than {FEW} test images.", f"{'; '.join(small)}{'. ' if small else ''}{nothing}"))
    if small_cells:
        rest = f" and {len(small_cells) - 8} more" if len(small_cells) > 8 else ""
        said.append((f"Cells with fewer than {FEW} test images.", f"{'; '.join(small_cells[:8])}{rest}."))
    if absent:
        said.append(("Groups without a test image.", f"{'; '.join(absent)}. Nothing is known about them."))
    return said


def _again(seeds: int) -> str:
    if seeds == 1:
        return "A method was trained once: another seed could change the order."
    return f"{seeds} seeds show {'little' if seeds < 5 else 'a part'} of what training again would change."


def _absent(row: Row) -> list[str]:
    names = row.runs[0].metrics["task"]["group_names"]
    return [name for name, n in zip(names, row.counts.sum(axis=(1, 2)), strict=True) if not n]
