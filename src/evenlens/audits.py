"""Predictions and groups in, findings out. Needs no network and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from evenlens import metrics
from evenlens.errors import UserError
from evenlens.metrics import Interval


@dataclass(frozen=True)
class Audit:
    """How one set of predictions treats groups.

    Attributes:
        counts: (G, C, C) images by group, label and prediction.
        class_names: what each label means.
        group_names: what each group means.
    """

    counts: np.ndarray
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]

    def metric(self, name: str, replicates: int = 1000) -> Interval[float]:
        """Give a metric with its 95 % bootstrap interval; undefined is NaN."""
        return metrics.bootstrap(name, self.counts, replicates)

    def by_group(self, rate: str = "accuracy") -> dict[str, Interval[float]]:
        """Give a rate of each group with its 95 % Wilson interval; for two classes, of class 1."""
        intervals = metrics.rate_intervals(rate, self.counts)
        if intervals.value.ndim > 1:
            if len(self.class_names) > 2:
                raise UserError(
                    f"'{rate}' is a rate of one class; with {len(self.class_names)} classes use 'accuracy'."
                )
            intervals = Interval(*(field[..., 1] if field.ndim > 1 else field for field in intervals))
        return {
            name: Interval(*(float(field[number]) for field in intervals))
            for number, name in enumerate(self.group_names)
        }

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric that needs no training counts, by name; undefined is NaN."""
        names = [name for name, metric in metrics.METRICS.items() if not metric.needs_reference]
        return metrics.evaluate(self.counts, names)


def audit(
    label: ArrayLike,
    prediction: ArrayLike,
    group: ArrayLike,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
) -> Audit:
    """Count predictions by group and label.

    Args:
        label: (N,) true classes, numbers or words.
        prediction: (N,) predicted classes, from the same vocabulary.
        group: (N,) sensitive groups, numbers or words.
        class_names: the classes in order, where labels are numbers 0 to C - 1; default: what occurs, sorted.
        group_names: likewise for the groups.

    Raises:
        UserError: lengths differ, there is nothing, a value is missing or no class, or names do not fit.
    """
    columns = {"label": np.asarray(label), "prediction": np.asarray(prediction), "group": np.asarray(group)}
    shapes = {name: column.shape for name, column in columns.items()}
    if len(set(shapes.values())) > 1 or len(shapes["label"]) != 1 or not shapes["label"][0]:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise UserError(f"Label, prediction and group must be lists of one length, and not empty; given are {listed}.")
    for name, column in columns.items():
        _check_values(name, column)
    classes, codes = _encode(np.concatenate([columns["label"], columns["prediction"]]), class_names, "class")
    groups, group_codes = _encode(columns["group"], group_names, "group")
    label_codes, prediction_codes = np.split(codes, 2)
    if len(classes) < 2:
        raise UserError(f"All labels and predictions are '{classes[0]}': at least two classes are needed.")
    return Audit(metrics.count(prediction_codes, label_codes, group_codes, len(classes), len(groups)), classes, groups)


def _check_values(name: str, column: np.ndarray) -> None:
    """Refuse missing values, and scores in the place of classes."""
    missing = sum(value is None or value != value for value in column.tolist()) if column.dtype.kind in "fO" else 0
    if missing:
        raise UserError(f"The column {name} has {missing} missing values: leave those rows out.")
    if column.dtype.kind == "f" and (column != np.round(column)).any():
        raise UserError(
            f"The column {name} holds {column[column != np.round(column)][0]:g}: give the predicted class, not a score."
        )


def _encode(values: np.ndarray, names: Sequence[str] | None, kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    if names is None:
        found, codes = np.unique(values.astype(str) if values.dtype.kind == "O" else values, return_inverse=True)
        return tuple(str(value) for value in found), codes
    if isinstance(names, str) or len(set(names)) < len(names):
        raise UserError(f"The {kind} names must be a list of different names; given is {names!r}.")
    if values.dtype.kind not in "iub" or values.min() < 0 or values.max() >= len(names):
        raise UserError(f"With {kind} names given, {kind} values must be whole numbers from 0 to {len(names) - 1}.")
    return tuple(names), values.astype(np.int64)
