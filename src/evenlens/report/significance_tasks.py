"""Rows of several tasks -> how methods rank over them: tests, words, tables, and the page before the tasks' own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evenlens import __version__, metrics, statistics
from evenlens.metrics import Floats
from evenlens.report import figures, significance, verdict
from evenlens.report.figures import Mark, Shown
from evenlens.report.significance import LEVEL, higher_is_better
from evenlens.report.summary import Row
from evenlens.report.wording import NUMBERS, counted, listed, p_value
from evenlens.statistics import MIN_METHODS, MIN_TASKS, Friedman, RankTest


@dataclass(frozen=True)
class Ranked:
    """Methods ranked by one measure.

    Attributes:
        measure: name of the metric.
        tasks: those in which it is defined for every method.
        values: (N, K) mean over seeds.
        placed: (N, K) ranks, 1 for the best.
        test: Friedman's, with the mean ranks.
        corrected: its p-value, corrected for the number of measures.
        distance: critical difference at `LEVEL`.
        cliques: methods that cannot be told apart, by position.
        against: each method against the baseline.
        against_corrected: (K,) p-values, corrected for the number of comparisons of all methods and measures.
    """

    measure: str
    tasks: list[str]
    values: Floats
    placed: Floats
    test: Friedman
    corrected: float
    distance: float
    cliques: list[tuple[int, ...]]
    against: RankTest
    against_corrected: Floats

    def sign(self, k: int) -> int:
        """1 where a method ranks significantly better than the baseline, -1 where worse, else 0."""
        if not self.against_corrected[k] < LEVEL:
            return 0
        return 1 if self.against.statistic[k] < 0 else -1


@dataclass(frozen=True)
class Overview:
    """Several tasks together.

    Attributes:
        tasks: what each page shows, by what the task is.
        marks: of the methods that every task has, the baseline first.
        ranked: by measure; none where fewer than two tasks or methods can be compared.
        left_out: methods that some task has not.
    """

    tasks: Mapping[str, Shown]
    marks: list[Mark]
    ranked: list[Ranked]
    left_out: list[str]


def compare(tasks: Mapping[str, Shown]) -> Overview:
    """Rank the methods that every task has; a method is known by its name and by what tells its rows apart."""
    by_label = [{row.label: row for row in shown.rows} for shown in tasks.values()]
    common = [label for label in by_label[0] if all(label in rows for rows in by_label)]
    left_out = sorted({label for rows in by_label for label in rows} - {*common})
    first = next(iter(tasks.values())).baseline.label
    if first not in common:  # the task's own baseline was not made everywhere
        first = verdict.baseline_of([by_label[0][label] for label in common], None).label if common else ""
    common.sort(key=lambda label: label != first)
    if len(common) < 2 or len(tasks) < 2:
        return Overview(tasks, figures.marks([by_label[0][label] for label in common]), [], left_out)
    table = [[rows[label] for label in common] for rows in by_label]
    chosen = [_measure(names, table) for names in (verdict.GAPS, verdict.LEVELS, ("accuracy",))]
    names = [name for name in chosen if name]
    first_place = _values(table, names[0])
    mean = statistics.ranks(first_place[_defined(first_place)], higher_is_better(names[0])).mean(axis=0)
    order = [0, *sorted(range(1, len(common)), key=lambda k: mean[k])]
    table = [[rows[k] for k in order] for rows in table]
    return Overview(tasks, figures.marks(table[0]), _ranked(names, table, [*tasks]), left_out)


def _values(table: Sequence[Sequence[Row]], name: str) -> Floats:
    return np.array([[row.numbers[name].value for row in rows] for rows in table])


def _defined(values: Floats) -> list[bool]:
    return [not np.isnan(row).any() for row in values]


def _measure(names: Sequence[str], table: Sequence[Sequence[Row]]) -> str | None:
    """Choose the metric that most tasks define, the first of several; None where fewer than two do."""
    number = {name: sum(_defined(_values(table, name))) for name in names}
    best = max(names, key=lambda name: number[name])
    return best if number[best] > 1 else None


def _ranked(names: Sequence[str], table: Sequence[Sequence[Row]], tasks: Sequence[str]) -> list[Ranked]:
    """Make all tests; the baseline is the first column."""
    made = []
    for name in names:
        values = _values(table, name)
        kept = _defined(values)
        placed = statistics.ranks(values[kept], higher_is_better(name))
        test = statistics.friedman(placed)
        distance = statistics.critical_difference(placed.shape[1], test.n, LEVEL)
        made.append(
            (name, [task for task, keep in zip(tasks, kept, strict=True) if keep], values[kept], placed, test, distance,
             statistics.cliques(test.average, distance), statistics.against_baseline(test.average, test.n, 0))
        )  # fmt: skip
    of_friedman = metrics.holm([one[4].p_value for one in made])
    of_baseline = metrics.holm([one[7].p_value for one in made])
    return [
        Ranked(name, kept, values, placed, test, float(p), distance, joined, against, corrected)
        for (name, kept, values, placed, test, distance, joined, against), p, corrected in zip(
            made, of_friedman, of_baseline, strict=True
        )
    ]


# ---- in words


def short(title: str) -> str:
    """Give a method's title without what stands in parentheses."""
    return re.sub(r" [(][^()]*[)]", "", title)


def headline(found: Overview) -> str:
    """Say which methods rank better than the baseline by more than chance."""
    number = len(found.tasks)
    if not found.ranked:
        return "Nothing is ranked: the tasks have fewer than two methods, or a measure, in common."
    base = _name(found.marks[0])
    most = max(one.test.n for one in found.ranked)
    if most < MIN_TASKS:
        return (
            f"Whether a method ranks better than {base} cannot be said with {counted(most, 'task')}: a test over "
            f"tasks needs {NUMBERS[MIN_TASKS]} at least."
        )
    if len(found.marks) < MIN_METHODS:
        return (
            f"Whether a method ranks better than {base} cannot be said of {counted(len(found.marks), 'method')}: ranks "
            f"are tested among {NUMBERS[MIN_METHODS]} at least."
        )
    better = _ranks(found, 1)
    if not better:
        return f"No method ranks significantly better than {base} over {counted(number, 'task')}."
    return f"Ranked significantly better than {base} over {counted(number, 'task')}: {better}."


def _name(mark: Mark) -> str:
    return f"{short(mark.title)} ({mark.letter})"


def _ranks(found: Overview, sign: int) -> str:
    said = []
    for k, mark in enumerate(found.marks):
        by = [metrics.get(one.measure).title.lower() for one in found.ranked if one.sign(k) == sign]
        said += [f"{_name(mark)} by {listed(by)}"] if by else []
    return "; ".join(said)


def sentences(found: Overview) -> list[str]:
    """Say what was tested and what to mind."""
    said = []
    worse = _ranks(found, -1)
    number = sum(int((~np.isnan(one.against.p_value)).sum()) for one in found.ranked)
    said += [f"Ranked significantly worse: {worse}."] if worse else []
    if number:
        said.append(
            f"{counted(number, 'comparison').capitalize()} of mean ranks with that of the baseline, corrected together "
            "by the Holm method; the Friedman tests are corrected for the number of measures. Over few tasks only "
            "what holds in nearly all of them is found: a difference that is not may be there all the same."
        )
    if found.left_out:
        said.append(f"Left out, because a task has none: {listed(found.left_out)}.")
    for one in found.ranked:
        absent = [task for task in found.tasks if task not in one.tasks]
        if absent:
            title = metrics.get(one.measure).title.lower()
            said.append(f"Left out by {title}, which is undefined there: {listed(absent)}.")
    return said


NOTE = (
    "Each number that is ranked is the mean over the seeds of a method in a task; how sure it is, the page of the task "
    "says. Tasks count as independent of each other: those on the same images are not, and make the tests too bold. "
    "The bars are of the Nemenyi test of all pairs; the table holds each method against the baseline alone, and finds "
    "more."
)


# ---- tables


class RankLine(NamedTuple):
    """A method's row: for each measure mean rank, z, corrected p-value, words, and the tag of the words."""

    mark: Mark
    cells: list[tuple[str, str, str, str, str]]


def rank_lines(found: Overview) -> list[RankLine]:
    """Fill the table of mean ranks against the baseline."""
    return [
        RankLine(mark, [_rank_cell(one, k, baseline=k == 0) for one in found.ranked])
        for k, mark in enumerate(found.marks)
    ]


def _rank_cell(one: Ranked, k: int, baseline: bool) -> tuple[str, str, str, str, str]:
    rank = f"{one.test.average[k]:.2f}"
    if baseline:
        return rank, "", "", "baseline", ""
    p = float(one.against_corrected[k])
    words = {1: "better", -1: "worse", 0: "not significant"}[one.sign(k)]
    tag = {1: "passed", -1: "failed", 0: ""}[one.sign(k)]
    if math.isnan(p):
        return rank, "", "", "too few tasks" if one.test.n < MIN_TASKS else "too few methods", ""
    return rank, significance.signed(float(one.against.statistic[k])), p_value(p), words, tag


def friedman_lines(found: Overview) -> list[list[str]]:
    """Fill the table of Friedman's tests, a measure a row."""
    return [
        [metrics.get(one.measure).title, str(one.test.n), f"{one.test.chi_squared:.2f}",
         "no end" if math.isinf(one.test.statistic) else f"{one.test.statistic:.2f}",
         f"{one.test.degrees[0]}, {one.test.degrees[1]}", p_value(one.test.p_value), p_value(one.corrected),
         f"{one.distance:.2f}"]
        for one in found.ranked
    ]  # fmt: skip


def place_lines(one: Ranked) -> list[list[str]]:
    """Fill a table of one measure: for each task the value of each method, in percent, with its rank."""
    return [
        [task, *(f"{100 * value:.1f} ({rank:g})" for value, rank in zip(values, placed, strict=True))]
        for task, values, placed in zip(one.tasks, one.values.tolist(), one.placed.tolist(), strict=True)
    ]


def to_markdown(found: Overview) -> str:
    """Write finding and mean ranks as Markdown."""
    lines = [f"**{headline(found)}** {' '.join(sentences(found))}".rstrip()]
    if found.ranked:
        head = [f"{metrics.get(one.measure).title}, mean rank over {one.test.n} tasks" for one in found.ranked]
        lines += ["", f"| method | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
        for line in rank_lines(found):
            cells = [f"{rank} ({words}{f', p {p}' if p else ''})" for rank, _, p, words, _ in line.cells]
            lines.append(f"| {line.mark.title} | {' | '.join(cells)} |")
    return "\n".join(lines)


# ---- for machines


def machine_readable(found: Overview, title: str, command: str | None) -> dict[str, Any]:
    """Give the page's content as JSON can hold it, save that NaN has to become null."""
    return {
        "version": __version__,
        "title": title,
        "command": command,
        "headline": headline(found),
        "sentences": sentences(found),
        "level": LEVEL,
        "methods": [{"letter": mark.letter, "title": mark.title} for mark in found.marks],
        "left_out": found.left_out,
        "tasks": {name: significance.headline(significance.find(shown)) for name, shown in found.tasks.items()},
        "measures": [
            {
                "metric": one.measure,
                "tasks": one.tasks,
                "values": one.values.tolist(),
                "ranks": one.placed.tolist(),
                "mean_ranks": one.test.average.tolist(),
                "friedman": {
                    "chi_squared": one.test.chi_squared,
                    "f": None if math.isinf(one.test.statistic) else one.test.statistic,
                    "degrees": one.test.degrees,
                    "p_value": one.test.p_value,
                    "p_holm": one.corrected,
                },
                "critical_difference": one.distance,
                "not_told_apart": [[found.marks[k].letter for k in group] for group in one.cliques],
                "z": one.against.statistic.tolist(),
                "p_value": one.against.p_value.tolist(),
                "p_holm": one.against_corrected.tolist(),
            }
            for one in found.ranked
        ],
    }
