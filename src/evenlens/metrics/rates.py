"""What happens to the images of one group: shares of its counts.

Every function takes counts (..., G, C, C) with axes (group, label, prediction), or their `Outcomes`, and keeps leading
dimensions. Where a class is called positive, it is each class in turn against the rest: the result is (..., G, C), and
of two classes the second (1) is the one that is meant by "positive" elsewhere. A share of nothing is undefined: NaN,
never 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import UserError, unknown
from evenlens.metrics.counts import Counts, Floats, Outcomes

# The rates that are a share of a number of images, as (numerator, denominator): what a Wilson interval needs.
_PROPORTIONS: dict[str, Callable[[Outcomes], tuple[Counts, Counts]]] = {
    "accuracy": lambda o: (o.tp.sum(axis=-1), o.images),
    "error_rate": lambda o: (o.fn.sum(axis=-1), o.images),
    "selection_rate": lambda o: (o.predicted, np.broadcast_to(o.images[..., None], o.predicted.shape)),
    "true_positive_rate": lambda o: (o.tp, o.labels),
    "false_positive_rate": lambda o: (o.fp, o.negatives),
    "true_negative_rate": lambda o: (o.negatives - o.fp, o.negatives),
    "false_negative_rate": lambda o: (o.fn, o.labels),
    "precision": lambda o: (o.tp, o.predicted),
}


def divide(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Divide elementwise; 0 / 0 is NaN, without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.true_divide(numerator, denominator)


def proportion(name: str, counts: Counts | Outcomes) -> tuple[Counts, Counts]:
    """Give a rate as the two numbers of images that it is the quotient of.

    Args:
        name: a rate that is a share of images: not balanced accuracy or F1.
        counts: (..., G, C, C).

    Returns:
        numerator and denominator, (..., G) or (..., G, C) each.

    Raises:
        UserError: if the name is not known or the rate is no share of images.
    """
    if name not in RATES:
        raise unknown("rate", name, RATES)
    if name not in _PROPORTIONS:
        raise UserError(f"'{name}' is not a share of a number of images; use bootstrap for its interval.")
    return _PROPORTIONS[name](Outcomes.of(counts))


def accuracy(counts: Counts | Outcomes) -> Floats:
    """Share of a group's images that are predicted right, (..., G)."""
    return divide(*proportion("accuracy", counts))


def error_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's images that are predicted wrong, (..., G)."""
    return divide(*proportion("error_rate", counts))


def balanced_accuracy(counts: Counts | Outcomes) -> Floats:
    """Mean over the classes of the share of a group's images of the class that are predicted right, (..., G)."""
    return true_positive_rate(counts).mean(axis=-1)


def selection_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's images that are predicted positive, (..., G, C)."""
    return divide(*proportion("selection_rate", counts))


def true_positive_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's positive images that are predicted positive, (..., G, C); also recall, accuracy of a cell."""
    return divide(*proportion("true_positive_rate", counts))


def false_positive_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's negative images that are predicted positive, (..., G, C)."""
    return divide(*proportion("false_positive_rate", counts))


def true_negative_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's negative images that are predicted negative, (..., G, C)."""
    return divide(*proportion("true_negative_rate", counts))


def false_negative_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's positive images that are predicted negative, (..., G, C)."""
    return divide(*proportion("false_negative_rate", counts))


def precision(counts: Counts | Outcomes) -> Floats:
    """Share of a group's images predicted positive that are positive, (..., G, C)."""
    return divide(*proportion("precision", counts))


def f1(counts: Counts | Outcomes) -> Floats:
    """Harmonic mean of precision and true positive rate, (..., G, C): 2 TP / (2 TP + FP + FN)."""
    o = Outcomes.of(counts)
    return divide(2 * o.tp, o.labels + o.predicted)


def one_vs_rest_error_rate(counts: Counts | Outcomes) -> Floats:
    """Share of a group's images on the wrong side of a class against the rest, (..., G, C); of two, the error rate."""
    o = Outcomes.of(counts)
    return divide(o.fp + o.fn, o.images[..., None])


@dataclass(frozen=True)
class Rate:
    """A number for each group.

    Attributes:
        name: how it is called in code and commands.
        title: how it is called in tables and figures.
        definition: one plain sentence.
        function: counts (..., G, C, C) -> (..., G), or (..., G, C) where `per_class`.
        higher_is_better: None where neither is.
        per_class: whether one class is the positive one, each in turn.
        needs_labels: whether it is about right and wrong; a rate of what is predicted, whatever is true, is not.
    """

    name: str
    title: str
    definition: str
    function: Callable[[Counts | Outcomes], Floats]
    higher_is_better: bool | None
    per_class: bool
    needs_labels: bool = True


RATES: dict[str, Rate] = {
    rate.name: rate
    for rate in (
        Rate("accuracy", "Accuracy", "Share of a group's images that are predicted right.", accuracy, True, False),
        Rate("error_rate", "Error rate", "Share of a group's images predicted wrong.", error_rate, False, False),
        Rate(
            "balanced_accuracy",
            "Balanced accuracy",
            "Mean over the classes of the share of a group's images of the class that are predicted right.",
            balanced_accuracy,
            True,
            False,
        ),
        Rate(
            "selection_rate",
            "Selection rate",
            "Share of a group's images that are predicted positive.",
            selection_rate,
            None,
            True,
            needs_labels=False,
        ),
        Rate(
            "true_positive_rate",
            "True positive rate",
            "Share of a group's positive images that are predicted positive.",
            true_positive_rate,
            True,
            True,
        ),
        Rate(
            "false_positive_rate",
            "False positive rate",
            "Share of a group's negative images that are predicted positive.",
            false_positive_rate,
            False,
            True,
        ),
        Rate(
            "true_negative_rate",
            "True negative rate",
            "Share of a group's negative images that are predicted negative.",
            true_negative_rate,
            True,
            True,
        ),
        Rate(
            "false_negative_rate",
            "False negative rate",
            "Share of a group's positive images that are predicted negative.",
            false_negative_rate,
            False,
            True,
        ),
        Rate(
            "precision",
            "Precision",
            "Share of a group's images predicted positive that are positive.",
            precision,
            True,
            True,
        ),
        Rate("f1", "F1", "Harmonic mean of a group's precision and true positive rate.", f1, True, True),
    )
}
