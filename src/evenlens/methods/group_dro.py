"""Group DRO: minimise the loss of the cell that fares worst."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evenlens.config import RunConfig
from evenlens.data.batches import balanced
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.method import Method, Range


class GroupDRO(Method):
    """Put weight on the cells of label and group with the largest loss, by multiplicative steps.

    A distribution q over the K cells starts uniform. Each batch, with l_k the mean cross-entropy of its images of
    cell k, sets q_k to q_k exp(step_size * l_k), scaled to the former sum, and minimises the mean of l under q. Cells
    that the batch does not hold keep their share, and leave the mean.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        step_size: of the weights' update (the paper's eta), at least 0; 0 gives the mean of the cells' means.
        balanced_batches: draw every cell equally often, with replacement, as the authors do.
        adjustment: the paper's generalisation adjustment C, at least 0: C / sqrt(n_k) is added to the loss that q
            sees, which favours small cells.

    Source: Sagawa et al., 2020, Distributionally robust neural networks for group shifts, arXiv 1911.08731.
    Differs from the authors' code: cells absent from a batch do not lose weight to those present; the adjustment
    does not leak into the reported loss; the method is always on (theirs runs plain ERM unless a switch is set).
    """

    title: ClassVar[str] = "Group DRO (Sagawa et al., 2020)"
    search: ClassVar[dict[str, Range]] = {"step_size": Range(1e-3, 1e-1, log=True), "adjustment": Range(0.0, 5.0)}
    weight: Tensor
    margin: Tensor

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        *,
        step_size: float = 0.01,
        balanced_batches: bool = True,
        adjustment: float = 0.0,
    ) -> None:
        super().__init__(task, config)
        self.step_size = step_size
        self.balanced_batches = balanced_batches
        self.adjustment = adjustment

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Start from equal weights over the cells that have images."""
        super().prepare(train, tune)
        counts = train.cell_counts().flatten().float()
        self.register_buffer("weight", (counts > 0) / (counts > 0).sum())
        self.register_buffer("margin", torch.where(counts > 0, self.adjustment / counts.clamp(min=1).sqrt(), 0.0))

    def batches(self, train: FairDataset) -> Iterable[Batch]:
        """Go over as many images as there are, every cell equally likely."""
        if not self.balanced_batches:
            return train.batches()
        return train.batches(balanced(train.cell.cpu(), train.generator))

    def loss(self, batch: Batch) -> Tensor:
        """Update the weights from the cells' mean losses, and give the mean under them."""
        each = functional.cross_entropy(self(batch.image), batch.label, reduction="none")
        cell = self.task.cell(batch.label, batch.group)
        size = torch.zeros_like(self.weight).index_add_(0, cell, torch.ones_like(each))
        mean = torch.zeros_like(self.weight).index_add(0, cell, each) / size.clamp(min=1)
        return reweigh(self.weight, mean, size > 0, self.step_size, self.margin)


def reweigh(weight: Tensor, loss: Tensor, present: Tensor, step_size: float, margin: Tensor) -> Tensor:
    """Move `weight` towards the larger losses, in place, and give the mean loss under it.

    Args:
        weight: (K,) distribution over the cells.
        loss: (K,) mean loss of each cell; only it carries a gradient.
        present: (K,) which cells the batch holds.
        step_size: of the update.
        margin: (K,) added to the losses that the weights see.
    """
    with torch.no_grad():
        grown = weight.log() + step_size * (loss + margin)  # in logarithms, where large steps do not overflow
        share = torch.where(present, grown, -torch.inf).softmax(0)
        weight.copy_(torch.where(present, share * weight[present].sum(), weight))
    return (share * loss).sum()
