"""Rules on how numbers came about: validation that is called test, and what was selected on test."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from evenlens.audits.lint.numbers import by_dataset
from evenlens.audits.lint.results import Number, Result, Seen, Severity, final, listed, where

SURE, LIKELY, UNTOLD = 0.001, 0.05, 0.5  # how probably chance made what was seen


# ---- L003: validation called test


def validation_as_test(results: Sequence[Result]) -> Iterator[Seen]:
    """Look for test numbers that are the validation numbers.

    Equal numbers happen by chance: among few images, or written with few digits. How often is estimated as if both were
    drawn anew, from normal distributions.
    """
    for of_dataset in by_dataset(results):
        pairs: dict[tuple, list[list[Result]]] = {}
        for result in of_dataset:
            if result.part in ("val", "test"):
                same = pairs.setdefault((result.name, result.seed, result.epoch), [[], []])
                same[result.part == "test"].append(result)
        tried = [(val, test) for vals, tests in pairs.values() for val in vals for test in tests]
        alike = [(val, test) for val, test in tried if _same_numbers(val, test)]
        if not alike:
            continue
        by_chance = min(1.0, math.comb(len(tried), len(alike)) * math.prod(_coincidence(val) for val, _ in alike))
        if by_chance < LIKELY:
            tables = [table for pair in alike for table in pair]
            yield Seen(
                "L003", "error" if by_chance < SURE else "warning", where(tables),
                f"The test numbers of {listed([test.name for _, test in alike])} are the validation numbers in each of "
                f"{len(alike[0][0].cells):,} groups or cells, for {len(alike):,} of {len(tried):,} results; by "
                f"chance that happens in {_seldom(by_chance)} cases.",
            )  # fmt: skip


def _same_numbers(one: Result, other: Result) -> bool:
    """Say whether two results have the same whom, the same images and the same rates; not where nothing is known."""
    if one.cells.keys() != other.cells.keys():
        return False
    both = [(number, other.cells[key]) for key, number in one.cells.items()]
    if any(not (math.isnan(a.n) or math.isnan(b.n) or a.n == b.n) for a, b in both):
        return False
    rated = [(a, b) for a, b in both if not (math.isnan(a.rate) and math.isnan(b.rate))]
    return bool(rated) and all(abs(a.rate - b.rate) <= max(a.unit, b.unit) / 2 for a, b in rated)


def _coincidence(result: Result) -> float:
    """Estimate how probable it is that other images as many give the same rates."""
    chance = 1.0
    for number in result.cells.values():
        if not math.isnan(number.rate):
            n = 1000 if math.isnan(number.n) else max(number.n, 1)
            deviation = math.sqrt(2 * max(number.rate * (1 - number.rate), 0.5 / n) / n)
            step = max(number.unit, 0 if math.isnan(number.n) else 1 / n)
            chance *= min(1.0, step / (deviation * math.sqrt(2 * math.pi)))
    return chance


def _seldom(chance: float) -> str:
    return f"{100 * chance:.0f} of 100" if chance >= 0.01 else f"1 of {min(1 / max(chance, 1e-9), 1e9):,.0f}"


# ---- L004: selection on test


CRITERIA: dict[str, Callable[[Result], float]] = {
    "overall accuracy": lambda result: _mean(result.groups.values(), weighted=True),
    "worst group": lambda result: _worst(result.groups.values()),
    "mean over groups": lambda result: _mean(result.groups.values(), weighted=False),
    "worst cell": lambda result: _worst(result.cells.values()),
}


def selection_on_test(results: Sequence[Result]) -> Iterator[Seen]:
    """Look for what was chosen because it is best on test.

    What can be seen: a column that says so; and, where a table shows several epochs or settings of a method, which of
    them was chosen: by a column (`selected`, `selected_epoch`), or because another table has the numbers of one alone.
    What cannot: tables that show nothing but what was chosen.
    """
    for of_dataset in by_dataset(results):
        yield from _declared(of_dataset)
        yield from _shown(of_dataset)


def _declared(results: Sequence[Result]) -> Iterator[Seen]:
    rules = {result.name: result.selection for result in results if result.selection}
    on_test = [name for name, rule in rules.items() if re.search(r"(?<![a-z])test", rule, re.IGNORECASE)]
    if on_test:
        yield Seen(
            "L004", "error", where(results),
            f"By the table's own words, {listed(on_test)} {'was' if len(on_test) == 1 else 'were'} selected by "
            f"'{rules[on_test[0]]}'.",
        )  # fmt: skip
    if len(set(rules.values())) > 1:
        said = [f"{next(name for name in rules if rules[name] == rule)} by '{rule}'" for rule in set(rules.values())]
        yield Seen(
            "L004", "warning", where(results), f"Methods were selected by different rules: {listed(sorted(said))}."
        )


def _shown(results: Sequence[Result]) -> Iterator[Seen]:
    """Judge each method by all its seeds: what was tried, what was chosen, and what is best on test."""
    found: dict[tuple[Severity, str], list[str]] = {}
    for axis in ("epochs", "settings"):
        for (_, name), tried in _tried(results, axis).items():
            judged = _judge(tried, results, axis)
            if judged:
                severity, seen, detail = judged
                found.setdefault((severity, seen), []).append(f"{name} ({detail})")
    for (severity, seen), names in found.items():
        yield Seen("L004", severity, where(results), f"{seen}: {listed(names)}.")


def _tried(results: Sequence[Result], axis: str) -> dict[tuple[str, str], list[list[Result]]]:
    """Give what a table shows of several epochs (or settings) on test: by table and method, a list for each seed."""
    slices: dict[tuple[str, str, str], list[Result]] = {}
    for result in results if axis == "epochs" else final(results):
        varied = result.epoch is not None if axis == "epochs" else bool(result.settings)
        if result.part == "test" and varied:
            name = result.name if axis == "epochs" else result.method
            slices.setdefault((result.table, name, result.seed), []).append(result)
    methods: dict[tuple[str, str], list[list[Result]]] = {}
    for (table, name, _), tried in slices.items():
        if len(tried) > 1:
            methods.setdefault((table, name), []).append(tried)
    return methods


def _judge(slices: list[list[Result]], results: Sequence[Result], axis: str) -> tuple[Severity, str, str] | None:
    """Say how bad a method's selection is, what was seen, and the numbers."""
    val = {
        (result.name, result.seed, result.epoch): result
        for result in (results if axis == "epochs" else final(results))
        if result.part == "val"
    }  # fmt: skip
    has_val = all((one.name, one.seed, one.epoch) in val for tried in slices for one in tried)
    known = [(tried, chosen) for tried in slices if (chosen := _chosen(tried, results)) is not None]
    if not known:
        most = max(len(tried) for tried in slices)
        return None if has_val else ("note", f"Nothing but test is shown of several {axis}", f"{most:,} {axis}")

    on_test = _explained(known)
    if not on_test:
        return None
    if has_val:
        of_val = [
            ([val[one.name, one.seed, one.epoch] for one in tried], val[chosen.name, chosen.seed, chosen.epoch])
            for tried, chosen in known
        ]
        if _explained(of_val):
            return None
    rule = min(on_test, key=lambda name: on_test[name])
    chance = min(1.0, len(CRITERIA) * on_test[rule])  # it could have been the best by any of them
    levels: list[Severity] = ["error", "warning", "note"] if has_val else ["warning", "note", "note"]
    runs = f" in each of {len(known):,} runs" if len(known) > 1 else ""
    return (
        levels[(chance >= LIKELY) + (chance >= UNTOLD)],
        f"What was chosen is the best on test{', and not the best on val' if has_val else ', and no val is shown'}",
        f"{rule} of {max(len(tried) for tried, _ in known):,} {axis}{runs}; for any at random that happens in "
        f"{_seldom(chance)} cases",
    )


def _explained(pairs: Sequence[tuple[Sequence[Result], Result]]) -> dict[str, float]:
    """Give the criteria by which what was chosen is the best of what was tried, each with how likely chance does it."""
    found = {}
    for name, criterion in CRITERIA.items():
        chance = 1.0
        for tried, chosen in pairs:
            values = np.array([criterion(one) for one in tried])
            top = values >= values.max() - 1e-12  # none, where a value is not known
            chance *= float(top.mean()) * bool(top[tried.index(chosen)])
        if 0 < chance < 1:
            found[name] = chance
    return found


def _chosen(tried: Sequence[Result], results: Sequence[Result]) -> Result | None:
    """Find which of several was chosen, if a column or another table says so."""
    flagged = [one for one in tried if one.selected]
    if len(flagged) == 1:
        return flagged[0]
    first = tried[0]
    same = [other for other in results if other.method == first.method and other.seed in (first.seed, "")]
    epochs = {other.selected_epoch for other in same if other.settings in (first.settings, "")} - {None}
    named = [one for one in tried if one.epoch in epochs]
    if len(named) == 1:
        return named[0]
    elsewhere = [other for other in same if other.table != first.table and other.part == "test"]
    alone = [other for other in elsewhere if sum(twin.table == other.table for twin in elsewhere) == 1]
    found = [one for one in tried if any(_same_numbers(one, other) for other in alone)]
    return found[0] if len(found) == 1 else None


def _worst(numbers: Iterable[Number]) -> float:
    """Give the lowest rate; NaN where one is not known."""
    return float(np.min([number.rate for number in numbers if number.n != 0], initial=1))


def _mean(numbers: Iterable[Number], weighted: bool) -> float:
    """Give the mean rate of groups, by their images or not; NaN where it cannot be known."""
    known = [number for number in numbers if number.n != 0]
    weights = [number.n if weighted else 1.0 for number in known]
    right = sum(weight * number.rate for weight, number in zip(weights, known, strict=True))
    return right / sum(weights) if known else math.nan
