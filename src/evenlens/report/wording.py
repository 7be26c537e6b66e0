"""How numbers and names are written for people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percent(value: float, digits: int = 1) -> str:
    """Write a share for people: 0.451 -> "45.1 %"."""
    return "undefined" if math.isnan(value) else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return "undefined" if math.isnan(value) else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def listed(names: Sequence[str], most: int = 8) -> str:
    """Join names as a sentence does; of many the first."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def counted(number: int, thing: str) -> str:
    """Write how many there are of something, small numbers as words: "no seed", "one seed", "two seeds", "13 seeds"."""
    said = NUMBERS[number] if number < len(NUMBERS) else f"{number:,}"
    return f"{said} {thing}{'s' if number > 1 else ''}"


def p_value(value: float) -> str:
    """Write a p-value: three digits, and no more of one that is very small."""
    if math.isnan(value):
        return "undefined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
