"""One table of counts, from which every threshold metric is arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evenlens.errors import UserError

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """What happened to the images of each group, each class against the rest: all that a metric needs of counts.

    Making it once for many metrics saves most of the time of a bootstrap.

    Attributes:
        tp: (..., G, C) images of the class that are predicted as it.
        labels: (..., G, C) images of the class.
        predicted: (..., G, C) images that are predicted as the class.
    """

    tp: Counts
    labels: Counts
    predicted: Counts

    @classmethod
    def of(cls, counts: Counts | Outcomes) -> Outcomes:
        """Sum up counts (..., G, C, C); what is summed up already is given back."""
        if isinstance(counts, Outcomes):
            return counts
        return cls(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2))

    @cached_property
    def images(self) -> Counts:
        """(..., G) images of the group."""
        return self.labels.sum(axis=-1)

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """(..., G) which groups have at least one image."""
        return self.images > 0

    @cached_property
    def fp(self) -> Counts:
        """(..., G, C) images of other classes that are predicted as the class."""
        return self.predicted - self.tp

    @cached_property
    def fn(self) -> Counts:
        """(..., G, C) images of the class that are predicted as another."""
        return self.labels - self.tp

    @cached_property
    def negatives(self) -> Counts:
        """(..., G, C) images of other classes."""
        return self.images[..., None] - self.labels

    @cached_property
    def pooled(self) -> Outcomes:
        """All images as if they were one group: G is 1."""
        return Outcomes(*(part.sum(axis=-2, keepdims=True) for part in (self.tp, self.labels, self.predicted)))


def count(prediction: ArrayLike, label: ArrayLike, group: ArrayLike, num_classes: int, num_groups: int) -> Counts:
    """Count the images of each group, label and prediction.

    Tables of batches or processes add up to the table of all. A group without images keeps its place, with zeros.

    Args:
        prediction: (N,) predicted classes in [0, num_classes).
        label: (N,) true classes in [0, num_classes).
        group: (N,) sensitive groups in [0, num_groups).
        num_classes: C, at least 2.
        num_groups: G, at least 1.

    Returns:
        (G, C, C) int64 with axes (group, label, prediction).

    Raises:
        UserError: if lengths differ, or if something is no whole number or out of its range.
    """
    if num_classes < 2 or num_groups < 1:
        raise UserError(f"Counting needs two classes and one group at least, not {num_classes} and {num_groups}.")
    columns = [
        _checked("prediction", prediction, num_classes),
        _checked("label", label, num_classes),
        _checked("group", group, num_groups),
    ]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(str(len(column)) for column in columns)
        raise UserError(f"prediction, label and group must be equally long; they have {lengths} rows.")
    predicted, true, sensitive = columns
    cell = np.multiply(
        sensitive, num_classes, dtype=np.int64
    )  # bytes would overflow, and copies of all three are large
    cell += true
    cell *= num_classes
    cell += predicted
    size = num_groups * num_classes * num_classes
    return np.bincount(cell, minlength=size).astype(np.int64).reshape(num_groups, num_classes, num_classes)


def _codes(name: str, values: ArrayLike, limit: int) -> Counts:
    """Give (N,) whole numbers in [0, limit) as int64."""
    return _checked(name, values, limit).astype(np.int64)


def _checked(name: str, values: ArrayLike, limit: int) -> Counts:
    """Check that values are (N,) whole numbers in [0, limit)."""
    codes = np.asarray(values)
    if codes.ndim != 1 or (codes.size and codes.dtype.kind not in "iub"):
        raise UserError(f"{name} must be one row of whole numbers; it is {codes.dtype} of shape {codes.shape}.")
    wrong = np.flatnonzero((codes < 0) | (codes >= limit))
    if wrong.size:
        raise UserError(f"{name} must lie between 0 and {limit - 1}; row {wrong[0]} has {codes[wrong[0]]}.")
    return codes if codes.size else codes.astype(np.int64)
