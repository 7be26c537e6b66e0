"""Put images and labels of several data sets into one whose split stays put: what re-training on added images needs.

Every image keeps the part that it has where it comes from, and what was there before never moves. Images are linked
into the folder (or copied, where that is not possible), so that the folder is whole in itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from evenlens import datasets
from evenlens.data import own
from evenlens.data.incoming import TABLE, Input, by_prefix, fit, open_input, read_digests, rows_of
from evenlens.data.own import Description, OwnSource
from evenlens.data.placing import write
from evenlens.data.tables import PARTS, UNUSED
from evenlens.errors import UserError

UNFIT = re.compile(r"[\n\r\\]")  # what a name or value must not hold to be the same once it was in a table


@dataclass
class Merged:
    """What a merge found and did.

    Attributes:
        folder: the data set.
        added: rows that are new, by the input's name.
        kept: rows that were there before.
        copies: new rows left out because the same image is there, as (name, name of the one that stays).
        moved: new rows whose part gave way to that of their unit.
        problems: rows that cannot be taken, as (name, why).
        unused: new rows left out because they are in no part where they come from.
        lacking: further columns that an input does not have, by its name; they are empty in its rows.
        parts: rows in each part, at the end.
    """

    folder: Path
    added: dict[str, int] = field(default_factory=dict)
    kept: int = 0
    copies: list[tuple[str, str]] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    unused: int = 0
    lacking: dict[str, list[str]] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)


class Refused(UserError):
    """Rows cannot be taken; nothing was written.

    Attributes:
        found: all that was found.
    """

    def __init__(self, found: Merged) -> None:
        listed = "; ".join(f"{name}: {why}" for name, why in found.problems[:3])
        more = f" (and {len(found.problems) - 3:,} more)" if len(found.problems) > 3 else ""
        rows = "1 row" if len(found.problems) == 1 else f"{len(found.problems):,} rows"
        super().__init__(
            f"{rows} cannot be taken: {listed}{more}. Mend them, or leave them out with --skip-bad, or take values "
            "that are new with --new-levels; nothing was written."
        )
        self.found = found


def merge(
    folder: Path,
    inputs: Sequence[str],
    label: str | None = None,
    sensitive: Sequence[str] = (),
    *,
    unit: str | None = None,
    prefixes: bool = False,
    new_levels: bool = False,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Merged:
    """Add images to a data set of one's own, or make one of several. Doing it again changes nothing.

    Args:
        folder: the data set; what it holds already stays as it is, its split included.
        inputs: one or more data sets by name, folders, or tables.
        label: column to predict; needed where the folder is new.
        sensitive: columns whose crossing makes the groups.
        unit: column of new tables with what stays in one part; default: that of the data set, where they have it.
        prefixes: a file name that begins with train_, val_ or test_ says its part.
        new_levels: values that the columns did not have before are taken; else they are problems.
        skip_bad: leave out rows with problems; else any problem stops all, and nothing is written.
        progress: called with (files read, files).

    Raises:
        Refused: rows have problems and `skip_bad` is not set.
        UserError: an input is none, or lacks the label or a sensitive column.
    """
    with _alone(folder):
        wanted, old = _existing(folder, label, sensitive)
        asked = wanted or Description(label=label or "", sensitive=tuple(sensitive))
        first = open_input(inputs[0], asked, unit)
        wanted = wanted or _wanted(first, asked, unit)
        fresh = [first, *(open_input(name, wanted, unit) for name in inputs[1:])]
        if unit and not any(isinstance(g.source, OwnSource) and g.source.description.unit == unit for g in fresh):
            raise UserError(f"--unit {unit} is for a table, and none is given: a {own.FILE} says its own unit.")
        result = Merged(folder, kept=len(old.table) if old else 0)
        for given in fresh:
            result.lacking |= {given.name: lacking} if (lacking := fit(given, wanted)) else {}
            given.parts = by_prefix(given) if prefixes else given.parts
        read_digests([*([old] if old else []), *fresh], progress)
        levels = {name: list((old or first).table.column(name).levels) for name in wanted.named()}
        rows = _choose(old, fresh, levels, new_levels, result)
        if result.problems and not skip_bad:
            raise Refused(result)
        if any(map(len, rows)):
            write(folder, wanted, levels, old, fresh, rows)
        elif not old:
            raise UserError(f"None of the rows can be taken, so that {folder} would be empty; nothing was written.")
    parts = np.concatenate([*([old.parts] if old else []), *(g.parts[r] for g, r in zip(fresh, rows, strict=True))])
    result.parts = {part: int((parts == number).sum()) for number, part in enumerate(PARTS)}
    return result


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another process from adding to the same data set, which would lose the rows of one of the two."""
    if not (folder / own.FILE).is_file():
        yield
        return
    lock = FileLock(folder / ".merging.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"Another process is adding to {folder}: wait until it is done, and try again.") from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _existing(folder: Path, label: str | None, sensitive: Sequence[str]) -> tuple[Description | None, Input | None]:
    """Open what is there; nothing where the folder is new, or what a merge left that was killed."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: name the folder of a data set, or a new one.")
    if not (folder / own.FILE).is_file():
        datasets.check_name(folder.resolve().name)
        left = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
        others = sorted({*left} - {"images", TABLE})
        if others:
            raise UserError(
                f"{folder} holds {', '.join(others[:3])} and no {own.FILE}: make it a data set with evenlens data "
                "prepare, or name a new folder."
            )
        return None, None
    says = own.read(folder)
    if label not in (None, says.label) or tuple(sensitive) not in ((), says.sensitive):
        groups = f"{says.label} by {', '.join(says.sensitive)}" if says.sensitive else says.label
        raise UserError(f"{folder} is there, and is about {groups}: leave --label and --sensitive out.")
    return says, rows_of(own.kind(folder, says)(folder), folder.name, "own")


def _wanted(first: Input, asked: Description, unit: str | None) -> Description:
    """Describe a new data set: as asked, with the levels of numbers and the name of the unit of the first input."""
    if not asked.label:
        raise UserError(f"Say which column is to be predicted with --label: {', '.join(first.table.columns)}.")
    says = first.source.description if isinstance(first.source, OwnSource) else asked
    bins = {name: edges for name, edges in says.bins.items() if name in asked.named()}
    return asked.model_copy(update={"images": "images", "unit": unit or says.unit, "bins": bins})


def _choose(
    old: Input | None, fresh: list[Input], levels: dict[str, list[str]], new_levels: bool, result: Merged
) -> list[np.ndarray]:
    """Choose the rows of each input that are taken, and settle their parts; `levels` gets those that are new."""
    names = list(levels)
    seen: dict[int, dict[tuple[str, ...], str]] = {}  # by digest: what is said of an image, and by which name
    part_of: dict[str, int] = {}
    if old:
        for name, found, said in zip(old.table.names, old.digests.tolist(), old.words(names), strict=True):
            seen.setdefault(found, {}).setdefault(said, name)
        for row in np.argsort(-old.parts, kind="stable").tolist():  # of several, the part that comes first in PARTS
            unit = old.unit(row)
            if unit is not None and old.parts[row] != UNUSED:
                part_of[unit] = int(old.parts[row])
    words = [given.words(names) for given in fresh]
    picked: list[list[int]] = [[] for _ in fresh]
    result.unused = sum(int((given.parts == UNUSED).sum()) for given in fresh)
    # Of copies, and of a unit's images, those that were trained on come first: they must not end up in another part.
    order = sorted((p, number, row) for number, given in enumerate(fresh) for row, p in enumerate(given.parts.tolist()))
    for part, number, row in order:
        given, said, found = fresh[number], words[number][row], int(fresh[number].digests[row])
        name = f"{given.name}/{given.table.names[row]}"
        if part == UNUSED:
            continue
        why = _problem(given.table.names[row], found, said, {} if new_levels else levels, names)
        if not why and found in seen:
            same = [other for known, other in seen[found].items() if _agree(known, said)]
            if same:
                result.copies.append((name, same[0]))
                continue
            why = f"the same image as {next(iter(seen[found].values()))}, with other labels"
        if why:
            result.problems.append((name, why))
            continue
        seen[found] = {said: name}
        unit = given.unit(row)
        if unit is not None and part_of.setdefault(unit, part) != part:
            result.moved.append(name)
            given.parts[row] = part_of[unit]
        picked[number].append(row)
    for number, given in enumerate(fresh):
        result.added[given.name] = result.added.get(given.name, 0) + len(picked[number])
        for k, name in enumerate(names):
            taken = {words[number][row][k] for row in picked[number]}
            levels[name] += [w for w in given.table.column(name).levels if w in taken and w not in levels[name]]
    return [np.array(sorted(rows), dtype=np.int64) for rows in picked]


def _agree(said: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Say whether two rows may be about one image: what both of them know is the same."""
    return all(one == another or not one or not another for one, another in zip(said, other, strict=True))


def _problem(name: str, found: int, said: tuple[str, ...], levels: dict[str, list[str]], names: list[str]) -> str:
    """Say why a row cannot be taken; nothing if it can."""
    if found == 0:
        return "no such file"
    if not said[0]:
        return f"no {names[0]}"
    if any(UNFIT.search(text) for text in (name, *said)):
        return "a line break or backslash in its name or labels"
    for column, word in zip(names, said, strict=True):
        if word and levels and word not in levels[column]:
            return f"unknown {column} '{word}'"
    return ""
