"""Undersampling: as many training images of every cell as the smallest has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor

from evenlens.config import RunConfig
from evenlens.data.batches import shuffled
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.method import Method


class Undersampling(Method):
    """Train on equally many images of every cell of label and group, the rest set aside.

    Let m be the size of the smallest cell that has images. Each cell gives m of its images, drawn without
    replacement; in the drawn set label and group are independent.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        redraw: draw anew for every pass, those images first that were shown least often, instead of once.

    Source: Japkowicz & Stephen, 2002, The class imbalance problem; as in Wang et al., 2020, arXiv 1911.11834.
    Differs from the study's code (arXiv 2401.03695): passes over the small set are repeated until the epoch has as
    many steps as anybody's, instead of a nested loop that made 160,000 passes; an empty cell is left out.
    """

    title: ClassVar[str] = "Undersampling (Japkowicz & Stephen, 2002)"
    stage: ClassVar[str] = "pre"
    shown: Tensor

    def __init__(self, task: Task, config: RunConfig, *, redraw: bool = False) -> None:
        super().__init__(task, config)
        self.redraw = redraw
        self.kept = torch.empty(0, dtype=torch.long)

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Draw the set, and count how often each image was shown."""
        super().prepare(train, tune)
        self.register_buffer("shown", torch.zeros(len(train), dtype=torch.int32))
        self.kept = self.draw(train)

    def draw(self, train: FairDataset) -> Tensor:
        """Draw m rows of every cell, the least often shown first, ties at random."""
        counts = train.cell_counts().flatten().cpu()
        smallest = int(counts[counts > 0].min())
        tie = torch.rand(len(train), generator=train.generator)
        rank = torch.argsort(self.shown.cpu() + tie)
        cell = train.cell.cpu()[rank]
        first = [rank[cell == number][:smallest] for number in range(train.task.num_cells)]
        return torch.cat(first).sort().values

    def batches(self, train: FairDataset) -> Iterable[Batch]:
        """Go over the drawn set, shuffled."""
        if self.redraw:
            self.kept = self.draw(train)
        self.shown[self.kept.to(self.shown.device)] += 1
        return train.batches(shuffled(self.kept, train.generator))
