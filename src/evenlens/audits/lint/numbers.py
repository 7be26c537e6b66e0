"""Rules on the numbers of tables: whom they are about, and whether they can be numbers of these images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from evenlens.audits.lint.results import ALL, Key, Number, Result, Seen, listed, where

MOST_SEEDS = 10  # that a mean is thought to be of
SLACK = 1e-6  # of numbers that a computer wrote


def by_dataset(results: Sequence[Result]) -> list[list[Result]]:
    """Part results by the data set that they name."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result.dataset, []).append(result)
    return list(found.values())


# ---- L002: the same groups, labels, images, seeds and methods everywhere


def missing(results: Sequence[Result]) -> Iterator[Seen]:
    """Look for what one table, method or part has and another has not."""
    for of_dataset in by_dataset(results):
        parts: dict[str, list[Result]] = {}
        for result in of_dataset:
            parts.setdefault(result.part, []).append(result)
        for part, of_part in parts.items():
            yield from _whom(of_part, part)
            yield from _images(of_part, part)
            yield from _seeds(of_part, part)
        yield from _parts({part: of_part for part, of_part in parts.items() if part != "train"})
        yield from _methods(of_dataset)


def _whom(results: Sequence[Result], part: str) -> Iterator[Seen]:
    """Find groups, then labels of groups, that some results have no rate of."""
    yield from _lacking(results, part, "group", lambda result: _rated(result.groups))
    labelled = [result for result in results if any(key.label != ALL for key in result.cells)]
    cells = {result: _rated({str(key): number for key, number in result.cells.items()}) for result in labelled}
    there = {result: _rated(result.groups) for result in labelled}
    shared = set.intersection(*there.values()) if there else set()  # a group that is missing is told once
    kept = {
        result: {str(key) for key in result.cells if str(Key(key.group)) in shared} & cells[result]
        for result in labelled
    }  # fmt: skip
    yield from _lacking(labelled, part, "cell", lambda result: kept[result])


def _rated(numbers: dict[str, Number]) -> set[str]:
    return {name for name, number in numbers.items() if not math.isnan(number.rate)}


def _lacking(results: Sequence[Result], part: str, kind: str, of: Callable[[Result], set[str]]) -> Iterator[Seen]:
    has, called = {result: of(result) for result in results}, _called(results)
    everything = dict.fromkeys(name for result in results for name in sorted(has[result]))
    without: dict[tuple[str, ...], list[str]] = {}
    for name in everything:
        lacking = tuple(dict.fromkeys(called[result] for result in results if name not in has[result]))
        if lacking:
            without.setdefault(lacking, []).append(name)
    for lacking, names in without.items():
        noun, are = (kind, "is") if len(names) == 1 else (f"{kind}s", "are")
        alike = next(((a, b) for a in names for b in everything if a != b and a.casefold() == b.casefold()), None)
        hint = f"; '{alike[0]}' and '{alike[1]}' look like one" if alike else ""
        yield Seen(
            "L002", "error", where(results, part),
            f"The {noun} {listed(names)} {are} missing for {listed(lacking)}, and there for others{hint}.",
        )  # fmt: skip


def _called(results: Sequence[Result]) -> dict[Result, str]:
    """Name the method of each result, and its table where there are several."""
    several = len({result.table for result in results}) > 1
    return {result: f"{result.name} in {result.table}" if several else result.name for result in results}


def _images(results: Sequence[Result], part: str) -> Iterator[Seen]:
    """Find groups that have another number of images for one method than for another."""
    sizes: dict[str, dict[float, str]] = {}
    for result, method in _called(results).items():
        for name, number in result.groups.items():
            if not math.isnan(number.n):
                sizes.setdefault(name, {}).setdefault(number.n, method)
    uneven = {name: found for name, found in sizes.items() if len(found) > 1}
    if uneven:
        name, found = next(iter(uneven.items()))
        (one, first), (other, second) = list(found.items())[:2]
        again = "" if first != second else "another time "
        yield Seen(
            "L002", "error", where(results, part),
            f"The group {name} has {one:,.0f} images for {first} and {again}{other:,.0f} for {second}"
            f"{f', and {len(uneven) - 1:,} more groups differ, too' if len(uneven) > 1 else ''}: they are not the same "
            "images.",
        )  # fmt: skip


def _seeds(results: Sequence[Result], part: str) -> Iterator[Seen]:
    """Find methods that have other seeds than others."""
    seeds: dict[str, set[str]] = {}
    for result, method in _called(results).items():
        seeds.setdefault(method, set()).add(result.seed)
    every = set().union(*seeds.values())
    fewer = {name: sorted(every - found) for name, found in seeds.items() if found != every}
    if fewer and "" not in every:
        name, lacking = next(iter(fewer.items()))
        yield Seen(
            "L002", "warning", where(results, part),
            f"Seeds that others have are missing for {len(fewer):,} of {len(seeds):,} methods: {name} has no seed "
            f"{listed(lacking)}.",
        )  # fmt: skip


def _parts(parts: dict[str, list[Result]]) -> Iterator[Seen]:
    """Find groups that one part has and another has not."""
    groups = {part: set().union(*(_rated(result.groups) for result in found)) for part, found in parts.items()}
    for part, found in groups.items():
        lacking = sorted(set().union(*groups.values()) - found)
        if lacking:
            yield Seen(
                "L002", "warning", where([result for results in parts.values() for result in results]),
                f"{listed(lacking)} {'is' if len(lacking) == 1 else 'are'} in no row of {part}, and in rows of "
                f"{listed([other for other in groups if other != part])}.",
            )  # fmt: skip


def _methods(results: Sequence[Result]) -> Iterator[Seen]:
    """Find methods that one table has and another, which shares some, has not."""
    methods: dict[str, set[str]] = {}
    for result in results:
        methods.setdefault(result.table, set()).add(result.method)
    names = list(methods)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            shared, apart = methods[one] & methods[other], methods[one] ^ methods[other]
            if shared and apart:
                yield Seen(
                    "L002", "note", f"{one}, {other}",
                    f"{listed(sorted(apart))} {'is' if len(apart) == 1 else 'are'} in one of the two tables only, and "
                    f"{listed(sorted(shared))} in both.",
                )  # fmt: skip


# ---- L009: rates that are whole numbers of images


def impossible(results: Sequence[Result]) -> Iterator[Seen]:
    """Look for rates that no whole number of these images gives."""
    tables: dict[str, list[Result]] = {}
    for result in results:
        tables.setdefault(result.table, []).append(result)
    for found in tables.values():
        numbers = [
            (result, key, number) for result in found for key, number in result.numbers.items() if _countable(number)
        ]
        wrong = [item for item in numbers if not _whole(item[2])]
        if not wrong or all(_whole(number, cut_off=True) for _, _, number in numbers):
            continue
        named = any(result.seed for result in found) or any(number.seeds > 1 for _, _, number in numbers)
        means = 0 if named else _means([number for _, _, number in numbers])
        result, key, number = wrong[0]
        of = f"{number.n:,.0f}{f' in {number.seeds:.0f} runs' if number.seeds > 1 else ''}"
        would_be = f"{number.n * number.seeds * number.rate:,.2f} images"
        yield Seen(
            "L009", "warning" if means else "error", where(found),
            f"{len(wrong):,} of {len(numbers):,} rates are of no whole number of images: {number.place} "
            f"({result.name}, {key}) says {_as_written(number)} of {of}, which would be {would_be}."
            + (f" All would fit if they were means over {means} runs, which the table does not say." if means else ""),
        )  # fmt: skip


def _full(number: Number) -> bool:
    return number.n > 0 and not math.isnan(number.rate)


def _countable(number: Number) -> bool:
    return _full(number) and not math.isnan(number.seeds)


def _whole(number: Number, cut_off: bool = False, seeds: float = 1.0) -> bool:
    """Say whether a whole number of right images gives the rate: rounded, or cut off after its last digit."""
    total = number.n * number.seeds * seeds
    around = number.own if cut_off else number.own / 2
    low, high = (total * (number.rate + sign * (around + SLACK)) for sign in (-1, 1))
    return math.floor(high) >= math.ceil(low)


def _means(numbers: Sequence[Number]) -> int:
    """Give the smallest number of runs that all rates could be means of, or 0."""
    counts = range(2, MOST_SEEDS + 1)
    return next((seeds for seeds in counts if all(_whole(number, seeds=seeds) for number in numbers)), 0)


def _as_written(number: Number) -> str:
    digits = min(6, max(2, round(-math.log10(number.own))))
    return f"{number.rate:.{digits}f}"


# ---- L010: the row over all groups


def not_the_mean(results: Sequence[Result]) -> Iterator[Seen]:
    """Look for rows over all groups (or labels) that are not what the rows of the groups give."""
    for of_dataset in by_dataset(results):
        wrong: list[str] = []
        checked = 0
        for result in of_dataset:
            for key, number in result.numbers.items():
                parts = _within(result, key)
                known = [part for part in parts if part.n != 0]
                if len(parts) < 2 or not known or math.isnan(number.rate) or not all(map(_full, known)):
                    continue
                checked += 1
                said = _contradiction(result, key, number, known)
                wrong += [said] if said else []
        if wrong:
            yield Seen(
                "L010", "error", where(of_dataset),
                f"{len(wrong):,} of {checked:,} numbers over all groups or labels are not those of their groups: "
                f"{wrong[0]}.",
            )  # fmt: skip


def _within(result: Result, key: Key) -> list[Number]:
    """Give the finest numbers that one over all groups or labels is made of."""
    if key in result.cells:
        return []
    return [
        number
        for cell, number in result.cells.items()
        if all(whole in (ALL, part) for whole, part in zip(key.group, cell.group, strict=True))
        and key.label in (ALL, cell.label)
    ]


def _contradiction(result: Result, key: Key, number: Number, known: Sequence[Number]) -> str:
    """Say how a number over all disagrees with those that it is made of, or nothing."""
    n = sum(part.n for part in known)
    place = f"{number.place} ({result.name}, {key})"
    if not math.isnan(number.n) and number.n != n:
        return f"{place} is of {number.n:,.0f} images, and its groups have {n:,.0f} together"
    mean = sum(part.n * part.rate for part in known) / n
    sums = [other.own for whole, other in result.numbers.items() if whole not in result.cells]
    rounding = (min(sums) + min(part.own for part in known)) / 2 + SLACK  # a zero at a number's end may be left out
    if abs(mean - number.rate) <= rounding:
        return ""
    is_even = abs(sum(part.rate for part in known) / len(known) - number.rate) <= rounding
    why = ", which is their mean without regard to how many images each has" if is_even else ""
    return f"{place} says {_as_written(number)}{why}, and its {len(known)} rows give {mean:.4f} by their images"
