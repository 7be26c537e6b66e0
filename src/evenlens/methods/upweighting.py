"""Upweighting: each cell of label and group weighs the same in the loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evenlens.config import RunConfig
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.method import Method


class Upweighting(Method):
    """Weight every image by one over the size of its cell of label and group.

    The weight of an image of cell k is N / (K n_k), with n_k the cell's size and K the number of cells that have
    images: its mean over the training images is 1, and the loss over all of them is the mean of the cells' means.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        original_scale: use N / n_k, K times larger, as the study does; with SGD this multiplies the learning rate.

    Source: inverse frequency weights, Horvitz & Thompson, 1952; as a baseline in arXiv 2209.15605.
    Differs from the study's code (arXiv 2401.03695) in the scale only: its loss is K times too large.
    """

    title: ClassVar[str] = "Upweighting (inverse cell frequency)"
    weight: Tensor

    def __init__(self, task: Task, config: RunConfig, *, original_scale: bool = False) -> None:
        super().__init__(task, config)
        self.original_scale = original_scale

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Count the cells."""
        super().prepare(train, tune)
        counts = train.cell_counts().flatten().float()
        weight = torch.where(counts > 0, len(train) / counts.clamp(min=1), 0.0)
        if not self.original_scale:
            weight = weight / (counts > 0).sum()
        self.register_buffer("weight", weight)

    def loss(self, batch: Batch) -> Tensor:
        """Give the mean of weight times cross-entropy."""
        each = functional.cross_entropy(self(batch.image), batch.label, reduction="none")
        return (self.weight[self.task.cell(batch.label, batch.group)] * each).mean()
