"""Searches -> the section on how each row was chosen, its figures, and the same for machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt

from evenlens.method import Range
from evenlens.report.charts import INK, NONE, Figure, rounded, spec, tooltip
from evenlens.report.figures import Mark, Shown
from evenlens.search_curve import Point, curve, test_score
from evenlens.searching import RANDOM, Found, Trial

BANDS = 4  # methods whose intervals are drawn; of more they would hide each other
BUDGETS = (1, 2, 3, 5, 10, 20, 30, 50, 100)  # that the table of a figure shows, with the last


class Searched(NamedTuple):
    """A search and the row that it made.

    Attributes:
        mark: of the row.
        found: what was tried.
        points: score against budget; empty where the defaults failed.
    """

    mark: Mark
    found: Found
    points: list[Point]


class Line(NamedTuple):
    """A row of the section's table, in words."""

    mark: Mark
    ranges: str
    draws: str
    chosen: str
    score: str
    defaults: str


def find(shown: Shown, found: Sequence[Found]) -> list[Searched]:
    """Give the search of each row, in the order of the rows; rows that no search made are left out."""
    made = {each.chosen.runs[0].folder: each for each in found if each.chosen}
    pairs = [(mark, made.get(row.runs[0].folder)) for row, mark in zip(shown.rows, shown.marks, strict=True)]
    return [Searched(mark, each, curve(each)) for mark, each in pairs if each]


def section(searched: Sequence[Searched], found: Sequence[Found]) -> dict[str, Any]:
    """Give what the template of the section names; empty where nothing was searched."""
    return {
        "search_sentences": sentences(found) if found else [],
        "search_lines": lines(searched),
        "search_figures": all_figures(searched),
    }


# ---- in words


def sentences(found: Sequence[Found]) -> list[str]:
    """Say how the rows were chosen, with what budget, and what was not looked at."""
    first = found[0].search
    most = max(len(each.search.draws[0].configs) for each in found)
    rules = dict.fromkeys(each.search.rule.title for each in found)
    said = [
        f"Every method was given {_counted(first.budget, 'draw')}: its defaults"
        + (f", and {_counted(first.budget - 1, 'draw')} from its own ranges." if first.budget > 1 else ".")
        + (
            " Draws were made where earlier ones of the same method scored well (TPE, optuna)."
            if first.sampler != RANDOM
            else ""
        ),
        f"The row of a method is the draw with the best {' or '.join(rules)} on validation images"
        + (f", mean over {most} seeds" if most > 1 else "")
        + ", the earlier one of equals. No test image was looked at to choose it.",
    ]
    plain = sorted({each.search.method for each in found if not each.search.ranges})
    if plain and first.budget > 1:
        said.append(f"With nothing to search, and so run once a seed: {', '.join(plain)}.")
    for each in found:
        missing = [trial.draw.number for trial in each.trials if math.isnan(trial.score)]
        if missing:
            numbers = ", ".join(map(str, missing))
            said.append(
                f"Of {each.search.method}, draw {numbers} has a run that failed or is not there: it cannot be chosen"
                + ("." if each.chosen else ", and no other is complete, so that there is no row.")
            )
    return said


def printed(found: Sequence[Found]) -> list[str]:
    """Say on a terminal how the rows were chosen, and what was chosen of each search."""
    said = sentences(found) if found else []
    for each in found:
        if (trial := each.chosen) and each.search.ranges:
            drawn = f"draw {trial.draw.number} of {len(each.trials)}, {_settings(trial, each)}"
            said.append(f"{each.search.method}: {drawn}; {trial.score:.3f} on validation images.")
    return said


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _settings(trial: Trial, found: Found) -> str:
    """Write what was drawn, as the command line takes it."""
    if trial.draw.settings:
        return ", ".join(f"{name}={value}" for name, value in trial.draw.settings.items())
    return "the defaults" if found.search.ranges else "nothing to search"


def _range(where: Range) -> str:
    return f"{where.low:g} to {where.high:g}{', on a logarithmic scale' if where.log else ''}"


def lines(searched: Sequence[Searched]) -> list[Line]:
    """Make the rows of the table."""
    made = []
    for mark, found, _ in searched:
        search, chosen, first = found.search, found.chosen, found.trials[0]
        assert chosen  # or there were no row
        done = sum(not math.isnan(trial.score) for trial in found.trials)
        made.append(Line(
            mark, "; ".join(f"{name} {_range(where)}" for name, where in search.ranges.items()) or NONE,
            f"{done}" if done == len(found.trials) else f"{done} of {len(found.trials)}",
            f"draw {chosen.draw.number}: {_settings(chosen, found)}", _number(chosen.score), _number(first.score),
        ))  # fmt: skip
    return made


def _number(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.3f}"


# ---- figures


def all_figures(searched: Sequence[Searched]) -> list[Figure]:
    """Draw score against budget for each rule, on validation and on test images; without a search, nothing."""
    figures = []
    for number, rule in enumerate(dict.fromkeys(each.found.search.rule.name for each in searched)):
        drawn = [each for each in searched if each.found.search.rule.name == rule and each.points]
        if max((len(each.points) for each in drawn), default=1) > 1:
            figures += [budgets(drawn, part, number) for part in ("val", "test")]
    return figures


def budgets(drawn: Sequence[Searched], part: str, number: int) -> Figure:
    """Draw what each number of draws is expected to give on one part."""
    title = drawn[0].found.search.rule.title
    most = max(len(each.points) for each in drawn)
    images = "validation images" if part == "val" else "test images"
    values = [value for each in drawn for value in _values(each, part, most)]
    letters, several = [each.mark.letter for each in drawn], len(drawn) > BANDS
    x = alt.X("budget:Q", title="Draws for each method", scale=alt.Scale(domain=[1, most], nice=False, padding=14),
              axis=alt.Axis(tickMinStep=1, format="d"))  # fmt: skip
    scale = alt.Scale(zero=False, nice=True)
    y = alt.Y("value:Q", title=f"{title[0].upper()}{title[1:]}, {images}", scale=scale)
    colours = alt.Scale(domain=letters, range=[each.mark.colour for each in drawn])
    shapes = alt.Scale(domain=letters, range=[each.mark.shape for each in drawn])
    colour = alt.Color("letter:N", scale=colours, legend=None)
    base = alt.Chart(alt.InlineData(values=values)).encode(x=x, color=colour)
    told = tooltip(("method", "method"), ("budget", "draws"), ("text", "expected"), ("interval", "95 % interval"))
    dashes = alt.StrokeDash("still:N", scale=alt.Scale(domain=[False, True], range=[[1, 0], [5, 4]]), legend=None)
    marks = base.transform_filter("!datum.still || datum.budget == 1")
    layers = [
        *([] if several else [base.mark_area(opacity=0.14).encode(y=alt.Y("low:Q", scale=scale), y2="high:Q")]),
        base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dashes),
        marks.mark_point(size=45, filled=True, opacity=1).encode(
            y=y, shape=alt.Shape("letter:N", scale=shapes, legend=None), tooltip=told
        ),
        base.transform_filter(f"datum.budget == {most}").mark_text(align="left", dx=7, fontSize=12).encode(
            y=y, text="letter:N", color=alt.value(INK)
        ),
    ]  # fmt: skip
    said = {
        "val": "The best score on validation images that a number of draws is expected to find",
        "test": "The score on test images of what the validation images would choose among a number of draws",
    }[part]
    description = f"{said}: " + "; ".join(
        f"{each.mark.letter} {_at(each.points[0], part)} with 1 draw, {_at(each.points[-1], part)} with "
        f"{len(each.points)}" for each in drawn
    )  # fmt: skip
    still = " A dashed line is a method with nothing to search." if any(v["still"] for v in values) else ""
    band = "Intervals stand in the table" if several else "Bands are 95 % intervals"
    return Figure(
        f"budget-{part}-{number}", "Score against budget" if part == "val" else "What the choice gives on test images",
        f"{said}, the first always the defaults (arXiv 1909.03004, without replacement). {band}: over draws, not over "
        "images or seeds, and too narrow above at the full budget, where no sample holds a better draw than was seen."
        f"{still}",
        description, spec(alt.layer(*layers).properties(height=320), description),
        ["Method", *(f"{n} {'draw' if n == 1 else 'draws'}" for n in _shown_budgets(most))],
        [[f"{each.mark.letter} {each.mark.title}", *(_cell(each, part, n) for n in _shown_budgets(most))]
         for each in drawn],
    )  # fmt: skip


def _values(each: Searched, part: str, most: int) -> list[dict[str, Any]]:
    """Give what is drawn of a search; what has nothing to search stays where it is."""
    still = len(each.points) == 1 and most > 1
    points = [each.points[0]._replace(budget=n) for n in (1, most)] if still else each.points
    values = []
    for point in points:
        value, low, high = getattr(point, part)
        alone = still or point.budget == 1 or math.isnan(low)
        text, interval = _number(value), NONE if alone else f"{low:.3f} to {high:.3f}"
        values.append({
            "letter": each.mark.letter, "method": f"{each.mark.letter} {each.mark.title}", "budget": point.budget,
            "value": rounded(value), "low": rounded(low), "high": rounded(high), "still": still, "text": text,
            "interval": interval,
        })  # fmt: skip
    return values


def _shown_budgets(most: int) -> list[int]:
    return [*(n for n in BUDGETS if n < most), most]


def _at(point: Point, part: str) -> str:
    return _number(getattr(point, part)[0])


def _cell(each: Searched, part: str, budget: int) -> str:
    if budget > len(each.points):
        return _at(each.points[0], part) if len(each.points) == 1 else NONE
    value, low, high = getattr(each.points[budget - 1], part)
    return _number(value) if budget == 1 or math.isnan(low) else f"{value:.3f} ({low:.3f} to {high:.3f})"


# ---- the same for machines


def machine_readable(searched: Sequence[Searched], found: Sequence[Found]) -> dict[str, Any] | None:
    """Give every draw, its settings and scores, and the curves; None on a page without a search."""
    if not found:
        return None
    letters = {id(each.found): each for each in searched}
    return {
        "draws": found[0].search.budget,
        "seed": found[0].search.seed,
        "sampler": found[0].search.sampler,
        "chosen_by": "the mean over seeds of the rule's score on validation images; the earlier draw of equals",
        "rows": [_machine_row(each, letters.get(id(each))) for each in found],
    }


def _machine_row(found: Found, searched: Searched | None) -> dict[str, Any]:
    search = found.search
    return {
        "letter": searched.mark.letter if searched else None,
        "method": search.method,
        "rule": search.rule.name,
        "ranges": {name: {"low": r.low, "high": r.high, "log": r.log} for name, r in search.ranges.items()},
        "chosen": found.chosen.draw.number if found.chosen else None,
        "draws": [
            {
                "number": trial.draw.number,
                "settings": trial.draw.settings,
                "val": _plain(trial.score),
                "runs": [
                    {"id": run.metrics["id"], "seed": run.config.seed, "val": val, "test": _plain(test_score(run))}
                    for run, val in zip(trial.runs, trial.val, strict=True)
                ],
            }
            for trial in found.trials
        ],
        "score_against_budget": [
            {"draws": p.budget, "val": list(map(_plain, p.val)), "test": list(map(_plain, p.test))}
            for p in (searched.points if searched else [])
        ],
    }


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
