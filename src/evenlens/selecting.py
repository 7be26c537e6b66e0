"""Rules by which an epoch is kept: a metric of the validation images, their cross-entropy, or both together."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn import functional

from evenlens import metrics
from evenlens.errors import UserError, unknown

LAST = "last"
CROSS_ENTROPY = "cross_entropy"
SUM = re.compile(rf"{CROSS_ENTROPY}\+(?:(\d+(?:\.\d+)?)\*)?(\w+)")


@dataclass(frozen=True)
class Rule:
    """A rule by which the epoch is kept, by its name.

    `last` keeps the last epoch; a metric's name the one that is best by it; `cross_entropy` the one whose mean
    cross-entropy is lowest; `cross_entropy+METRIC` or `cross_entropy+2*METRIC` the one where their sum is, of a metric
    of which less is better.

    The sum, with demographic_parity_difference, is what the fairness loss of Yao et al., 2022 (arXiv 2211.00168) did:
    it had no gradient, and so chose which epoch was kept and nothing else. Differs from the authors' code: the gap is
    that of all validation images, not one that grows with the number of batches.

    Attributes:
        name: as it was written.
        metric: name of the metric; empty where none is looked at.
        weight: of the metric in a sum.
        error: whether the cross-entropy counts.
    """

    name: str
    metric: str
    weight: float
    error: bool

    @classmethod
    def of(cls, name: str) -> Rule:
        """Read a rule by its name.

        Raises:
            UserError: an unknown name, or a sum with a metric of which more is better.
        """
        if name in (LAST, CROSS_ENTROPY):
            return cls(name, "", 0.0, name == CROSS_ENTROPY)
        parts = SUM.fullmatch(name)
        metric = parts[2] if parts else name
        if metric not in metrics.METRICS:
            raise unknown("rule to select by", metric, (LAST, CROSS_ENTROPY, *metrics.METRICS))
        if parts and metrics.get(metric).direction == "higher":
            raise UserError(
                f"select={name} adds {metric}, of which more is better, to an error: add a metric of which less is "
                f"better, such as {CROSS_ENTROPY}+demographic_parity_difference."
            )
        return cls(name, metric, float(parts[1] or 1) if parts else 1.0, parts is not None)

    def prefers(self, score: float, other: float) -> bool:
        """Say whether an epoch of this score is kept rather than an earlier one of that score."""
        if self.name == LAST:
            return True
        lower = self.error or metrics.get(self.metric).direction == "lower"
        return score < other if lower else score > other

    @property
    def title(self) -> str:
        """How figures call the score."""
        of_metric = metrics.get(self.metric).title.lower() if self.metric else ""
        if not self.error:
            return of_metric
        times = f"{self.weight:g} times " if self.weight != 1 else ""
        return "cross-entropy" + (f" + {times}{of_metric}" if self.metric else "")

    def measured(self, counts: np.ndarray, train_cells: np.ndarray) -> float:
        """Compute the part of the score that is arithmetic on counts.

        Args:
            counts: (G, C, C) of the validation images.
            train_cells: (C, G) training images by label and group.

        Raises:
            UserError: it is undefined.
        """
        if not self.metric:
            return 0.0
        value = metrics.evaluate(counts, [self.metric], train_cells)[self.metric]
        if np.isnan(value):
            raise UserError(
                f"select={self.name} is undefined on the validation images: a label or group that it needs has none "
                "there. Choose another rule, such as select=balanced_accuracy or select=last."
            )
        return self.weight * value

    def score(self, logits: Tensor, label: Tensor, counts: np.ndarray, train_cells: np.ndarray) -> float:
        """Score an epoch by its predictions of the validation images: logits (N, C) and labels (N,), on the CPU."""
        error = float(functional.cross_entropy(logits, label)) if self.error else 0.0
        return error + self.measured(counts, train_cells)
