"""Oversampling: as many training images of every cell as the largest has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from evenlens.config import RunConfig
from evenlens.data.batches import balanced, shuffled, take_per_cell
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.method import Method


class Oversampling(Method):
    """Train on equally many images of every cell of label and group, images of small cells repeated.

    Let M be the size of the largest cell. Every cell gives M images: all of its own, each as often as any other of
    the cell, give or take one. A pass is drawn anew from these, as many images as any method sees.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        bootstrap: draw every cell's images with replacement instead, as weighted samplers do; then a pass leaves
            out about 37 % of the largest cell.

    Source: Japkowicz & Stephen, 2002, The class imbalance problem; as in Wang et al., 2020, arXiv 1911.11834.
    Differs from the study's code (arXiv 2401.03695): that draws M with replacement once, for the largest cell too,
    and so never shows 37 % of its images; here every image is in the set.
    """

    title: ClassVar[str] = "Oversampling (Japkowicz & Stephen, 2002)"
    stage: ClassVar[str] = "pre"

    def __init__(self, task: Task, config: RunConfig, *, bootstrap: bool = False) -> None:
        super().__init__(task, config)
        self.bootstrap = bootstrap

    def order(self, train: FairDataset) -> Tensor:
        """Give the rows of a pass: as if the evened-out set were shuffled."""
        cell = train.cell.cpu()
        if self.bootstrap:
            return balanced(cell, train.generator)
        counts = torch.bincount(cell, minlength=train.task.num_cells)
        quota = torch.where(counts > 0, counts.max(), 0)
        return shuffled(take_per_cell(cell, quota, train.generator), train.generator)

    def batches(self, train: FairDataset) -> Iterable[Batch]:
        """Go over the evened-out set, shuffled."""
        return train.batches(self.order(train))
