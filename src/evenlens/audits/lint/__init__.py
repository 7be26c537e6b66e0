"""A linter for tables of results: mistakes that make fairness comparisons say what they do not show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from evenlens.audits.lint import methods, numbers, selection
from evenlens.audits.lint.results import ALL, Result, Seen, Severity, where
from evenlens.audits.lint.tables import ROLES, read_results

__all__ = ["CODES", "ROLES", "Code", "Finding", "lint"]


class Code(NamedTuple):
    """What a code means: a title, why it matters, and what to do."""

    title: str
    why: str
    advice: str


CODES = {
    "L000": Code(
        "not everything could be checked",
        "What was not looked at need not be in order.",
        "Add the columns or rows.",
    ),
    "L001": Code(
        "the worst group is a majority group",
        "A reader takes the worst group for a minority that is short of images, and methods that give weight to small "
        "groups make this gap larger.",
        "Say which group it is and how many images it has, and look for a reason other than their number.",
    ),
    "L002": Code(
        "not the same groups, images or seeds",
        "Gaps over different groups, images or seeds are different quantities: a method is not why they differ.",
        "Measure all methods on the same images, groups and seeds, or compare only what all have.",
    ),
    "L003": Code(
        "validation called test",
        "What was selected on these images looks better on them than it is.",
        "Find out which part was measured, and measure on a test part that nothing was selected on.",
    ),
    "L004": Code(
        "selection on test, or by different rules",
        "The best of several on test is best partly by chance, and a method chosen by a kinder rule looks too good.",
        "Choose epochs and settings of all methods by one rule on val, and look at test once.",
    ),
    "L005": Code(
        "the baseline is not unfair",
        "There is nothing to repair that these images could show, and improvements over it are noise.",
        "Take more images, data or a task in which the baseline is unfair; or say that no unfairness was found.",
    ),
    "L006": Code(
        "levelling down",
        "Nobody is served better: the gap closed from above.",
        "Show the rates of the best and the worst group beside the gap.",
    ),
    "L007": Code(
        "differences smaller than their intervals, or a single run",
        "Other images or another seed could turn the order round.",
        "Give intervals of the differences, several seeds, or call these methods equal as far as is known.",
    ),
    "L008": Code(
        "too few images in a group",
        "The rate of so few images says little, and the largest gap is often theirs by chance.",
        "Get more images, or leave such groups out of gaps, for all methods, and say so.",
    ),
    "L009": Code(
        "a rate that is no share of n images",
        "The rate and the number of images do not belong together, so one of them is of something else.",
        "Find out which images the rate is of; of means over seeds, write a row for each seed, or how many there were.",
    ),
    "L010": Code(
        "the whole is not the sum of its groups",
        "The row over all groups is of other images than the groups, or is another kind of mean.",
        "Compute it over the same images, each with the same weight; or call it what it is.",
    ),
}
"""What each code means. A code keeps its meaning from version to version."""


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        code: one of `CODES`.
        severity: "error": the comparison does not hold; "warning": it may not show what it seems to; "note": to know.
        where: tables, data set and part.
        seen: what was seen, in a sentence with numbers.
    """

    code: str
    severity: Severity
    where: str
    seen: str

    @property
    def title(self) -> str:
        """What it is called."""
        return CODES[self.code].title

    @property
    def why(self) -> str:
        """Why it matters."""
        return CODES[self.code].why

    @property
    def advice(self) -> str:
        """What to do."""
        return CODES[self.code].advice

    @property
    def text(self) -> str:
        """All of it, in a line."""
        return f"{self.where}: {self.seen} {self.why} {self.advice}"

    def as_dict(self) -> dict[str, str]:
        """Give it as JSON can hold it."""
        return {
            "code": self.code,
            "severity": self.severity,
            "title": self.title,
            "where": self.where,
            "seen": self.seen,
            "why": self.why,
            "advice": self.advice,
        }


def lint(
    tables: Sequence[Path | str],
    columns: Mapping[str, str | Sequence[str]] | None = None,
    baseline: str | None = None,
) -> list[Finding]:
    """Look for mistakes in tables of results.

    A table has a row for each method and group: its rate, and how many images that is of. Columns for seeds, parts,
    labels, epochs and more are used where they are there.

    Args:
        tables: CSV, TSV or Parquet files, and folders that are runs or hold some. They are looked at together.
        columns: by role, the columns that are not called as in `ROLES`: {"rate": "top-1", "group": ["race", "sex"]}.
        baseline: the method that others are compared with; default: one called baseline, vanilla, plain or standard,
            else the first that is known to look at no groups, else the first.

    Returns:
        what was found, errors first, then by code.

    Raises:
        UserError: a table that cannot be read as one of results, or no such method.
    """
    results = read_results(tables, columns)
    boards = methods.boards(results, baseline)
    found: list[Seen] = []
    for on_results in (numbers.missing, selection.validation_as_test, selection.selection_on_test, numbers.impossible,
                       numbers.not_the_mean):  # fmt: skip
        found += on_results(results)
    for on_board in (methods.majority_is_worst, methods.fair_baseline, methods.levelling_down, methods.unclear,
                     methods.few_images):  # fmt: skip
        for board in boards:
            found += on_board(board)
    order = {"error": 0, "warning": 1, "note": 2}
    found.sort(key=lambda seen: (order[seen.severity], seen.code))
    return [Finding(*seen) for seen in (*found, *_unchecked(results, boards, baseline))]


def _unchecked(results: Sequence[Result], boards: Sequence[methods.Board], baseline: str | None) -> Iterator[Seen]:
    """Say what was not looked at, and why."""
    lacking = []
    if any(math.isnan(number.n) for result in results for number in result.groups.values()):
        lacking.append("L001, L005, L007 to L010 where the number of images (n) is lacking")
    if any(math.isnan(number.seeds) for result in results for number in result.groups.values()):
        lacking.append("L009 where there is a spread and no number of seeds")
    if {"val", "test"} - {result.part for result in results}:
        lacking.append("L003 without rows of val and of test")
    tried = any(result.epoch is not None or result.settings for result in results)
    if not tried and not any(result.selection or result.selected_epoch is not None for result in results):
        lacking.append("L004 without rows of the epochs or settings that were tried, or a word on selection")
    if all(len(board.methods) < 2 for board in boards):
        lacking.append("L006 and L007 with one method alone")
    if baseline and any(board.baseline is None for board in boards):
        lacking.append(f"L005 and L006 where there is no {baseline}")
    if not any(ALL in key.group for result in results for key in result.numbers):
        lacking.append("L010 without rows over all groups ('all')")
    if lacking:
        yield Seen("L000", "note", where(results), f"Not checked: {'; '.join(lacking)}.")
