"""What a table of results says of one method, one seed and one part: a rate for each group, perhaps by label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
ALL = "(all)"  # instead of a group or a label: over all of them; a group of a run can be called "all"
FINEST = 1e-9  # no number is taken to be written more finely


class Seen(NamedTuple):
    """What a rule has to say: the code of the finding, how bad it is, where it was seen, and what."""

    code: str
    severity: Severity
    where: str
    seen: str


class Key(NamedTuple):
    """Whom a number is about: a group (by each sensitive column) and a label; `ALL` is over all of them."""

    group: tuple[str, ...]
    label: str = ALL

    def __str__(self) -> str:
        group = ", ".join("all" if name == ALL else name for name in self.group)
        return group if self.label == ALL else f"{group} / {self.label}"


class Number(NamedTuple):
    """What a row says; NaN where it says nothing.

    Attributes:
        n: images.
        rate: the share of them that was predicted right, in [0, 1].
        unit: what one in the last digit is worth in its column.
        own: what one in the last digit is worth as this number is written; at least the unit.
        place: the row, in words.
        n_train: training images.
        seeds: how many runs the rate is a mean of; NaN where a spread is given, and no such number.
        spread: standard deviation over them.
    """

    n: float
    rate: float
    unit: float = FINEST
    own: float = FINEST
    place: str = ""
    n_train: float = math.nan
    seeds: float = 1.0
    spread: float = math.nan


@dataclass(frozen=True, eq=False)
class Result:
    """What a table says of one method with one setting, one seed, one epoch and one part.

    Attributes:
        table: its name.
        dataset: or "" where none is named.
        method: its name.
        settings: what tells it from others of the same method in the table, as "weight=3"; or "".
        seed: or "" where none is named.
        part: "val", "test", "train" or any other.
        epoch: or None.
        numbers: by group and label, those over all of them too.
        selected: whether the table says that this one was chosen.
        selected_epoch: which epoch the table says was chosen, or None.
        selection: how the table says that it was chosen, or "".
    """

    table: str
    dataset: str
    method: str
    settings: str
    seed: str
    part: str
    epoch: float | None
    numbers: dict[Key, Number]
    selected: bool = False
    selected_epoch: float | None = None
    selection: str = ""

    @property
    def name(self) -> str:
        """The method, and what tells it from others."""
        return f"{self.method} [{self.settings}]" if self.settings else self.method

    @cached_property
    def cells(self) -> dict[Key, Number]:
        """The finest numbers: of each group by its labels where it has them, else as a whole."""
        whole = {key: number for key, number in self.numbers.items() if ALL not in key.group}
        labelled = {key.group for key in whole if key.label != ALL}
        return {key: number for key, number in whole.items() if key.label != ALL or key.group not in labelled}

    @cached_property
    def groups(self) -> dict[str, Number]:
        """The number of each group, over its labels; NaN where that cannot be known."""
        own: dict[tuple[str, ...], list[Number]] = {}
        for key, number in self.cells.items():
            own.setdefault(key.group, []).append(number)
        return {str(Key(group)): self._pooled(group, numbers) for group, numbers in own.items()}

    def _pooled(self, group: tuple[str, ...], cells: Sequence[Number]) -> Number:
        n = sum(number.n for number in cells)
        if len(cells) == 1 or (math.isnan(n) and Key(group) in self.numbers):
            return self.numbers.get(Key(group), cells[0])
        right = sum(number.n * number.rate for number in cells if number.n != 0)
        return cells[0]._replace(
            n=n, rate=right / n if n else math.nan, unit=max(number.unit for number in cells), place="",
            n_train=sum(number.n_train for number in cells), spread=math.nan,
        )  # fmt: skip


def final(results: Sequence[Result]) -> list[Result]:
    """Give one epoch of each method, seed and part: what was chosen, else the last."""
    epochs: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        key = (result.table, result.dataset, result.name, result.seed, result.part)
        epochs.setdefault(key, []).append(result)
    return [
        max(tried, key=lambda one: (one.selected, one.epoch == one.selected_epoch, one.epoch or 0))
        for tried in epochs.values()
    ]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Name some of many: "a, b, c and 4 more"."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def where(results: Sequence[Result], part: str = "") -> str:
    """Say where something was seen: tables, data set and part."""
    tables, datasets = listed([result.table for result in results]), listed([result.dataset for result in results])
    inside = ", ".join(name for name in (datasets, part) if name)
    return f"{tables} ({inside})" if inside else tables
