"""Tails of the distributions that tests of significance need, in numpy and the standard library alone."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

import numpy as np

from evenlens.errors import UserError
from evenlens.metrics import Floats


def chi_squared_tail(value: float, degrees: int) -> float:
    """Give how likely a chi-squared number is at least `value`, in [0, 1].

    Args:
        value: at least 0.
        degrees: of freedom, at least 1; whole, so that the tail is a finite sum.

    Source: Abramowitz and Stegun, 1964, 6.5.21.
    """
    half, shape = value / 2, 0.5 if degrees % 2 else 1.0
    if half <= 0:
        return 1.0
    tail = math.erfc(math.sqrt(half)) if degrees % 2 else math.exp(-half)
    while shape < degrees / 2:
        tail += math.exp(shape * math.log(half) - half - math.lgamma(shape + 1))
        shape += 1
    return min(1.0, tail)


def f_tail(value: float, above: float, below: float) -> float:
    """Give how likely a number distributed as F is at least `value`, in [0, 1].

    Args:
        value: at least 0; it may be infinite.
        above: degrees of freedom of the numerator, above 0.
        below: those of the denominator, above 0.

    Source: Abramowitz and Stegun, 1964, 26.6.2.
    """
    return _incomplete_beta(below / (below + above * value), below / 2, above / 2)


def t_tails(value: float, degrees: float) -> float:
    """Give how likely a number distributed as Student's t is as far from 0 as `value`, on either side, in [0, 1]."""
    return f_tail(value**2, 1, degrees)


def normal_tails(value: float) -> float:
    """Give how likely a standard normal number is as far from 0 as `value`, on either side, in [0, 1]."""
    return math.erfc(abs(value) / math.sqrt(2))


def range_tail(value: float, number: int) -> float:
    """Give how likely the range of some standard normal numbers is at least `value`, in [0, 1].

    It is the studentized range with endless degrees of freedom.

    Args:
        value: at least 0.
        number: how many numbers, at least 2.

    Source: Tippett, 1925, On the extreme individuals and the range of samples, Biometrika 17.
    """
    z, density, below = _normal_grid()
    between = below - np.vectorize(NormalDist().cdf, otypes=[float])(z - value)
    within = number * float(np.sum(density * between ** (number - 1))) * (z[1] - z[0])
    return min(1.0, max(0.0, 1 - within))


@cache
def range_quantile(level: float, number: int) -> float:
    """Give the value that the range of some standard normal numbers exceeds with a probability of `level`.

    Args:
        level: in (0, 1).
        number: how many numbers, at least 2.

    Raises:
        UserError: if the level or the number is out of its range.
    """
    if not 0 < level < 1 or number < 2:
        raise UserError(f"A range has a level between 0 and 1 and two numbers at least, not {level} and {number}.")
    low, high = 0.0, 20.0
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (middle, high) if range_tail(middle, number) > level else (low, middle)
    return (low + high) / 2


@cache
def _normal_grid() -> tuple[Floats, Floats, Floats]:
    """Give places, density and distribution of the normal; sums over them are integrals to twelve digits."""
    z = np.linspace(-9, 9, 361)
    return z, np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), np.vectorize(NormalDist().cdf, otypes=[float])(z)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Give the regularised incomplete beta function for x in [0, 1].

    Source: continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions, evaluated as in Lentz,
    1976, Applied Optics 15.
    """
    if not 0 < x < 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # beyond, the other tail's fraction converges faster
        return 1 - _incomplete_beta(1 - x, b, a)
    tiny = 1e-300
    fraction, top, bottom = 1.0, 1.0, 0.0
    for step in range(1000):
        m = step // 2
        if step == 0:
            term = 1.0
        elif step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        bottom = 1 / (1 + term * bottom or tiny)
        top = 1 + term / top or tiny
        fraction *= top * bottom
        if abs(top * bottom - 1) < 1e-15:
            break
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    return min(1.0, front * (fraction - 1) / a)
