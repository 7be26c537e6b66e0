"""Bias mimicking: for each class, a view in which all classes have its mix of groups."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenlens.config import RunConfig
from evenlens.data.batches import shuffled, take_per_cell
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.errors import UserError, unknown
from evenlens.method import Log, Method, Range

CELLS = ("none", "undersampling", "oversampling", "upweighting")


class BiasMimicking(Method):
    """Learn each class against the rest from a subset in which label and group are independent.

    The view of class c holds all images of c, and of every other class as many as can be had with the mix of groups
    that c has: with n the numbers of images, min over groups h of floor(n(c, g) n(k, h) / n(c, h)) of class k and
    group g, drawn without replacement. The network's own head has one sigmoid a class; head c sees view c alone:

        sum over images i, classes c of [i in view c] BCE(z_ic, [y_i = c]) / how many those are

    These heads are not calibrated against each other, so after each epoch a second, linear head learns all classes by
    cross-entropy from the features, scaled to length 1, that the epoch has produced. It is what predicts.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        second_head: how it sees the cells of label and group: "upweighting" weights each image by one over its
            cell's size, "undersampling" and "oversampling" take equally many of each cell, "none" takes all.
        head_learning_rate: of the second head as a multiple of the network's, above 0; at length 1, features are
            small and their head is slow.
        refresh: draw the views anew for every epoch.
        per_head: add up the means of the heads, instead of one mean over all that is kept.

    Source: Qraitem et al., 2023, Bias mimicking: a simple sampling approach for bias mitigation, arXiv 2209.15605.
    Differs from the authors' code: the views' sizes are computed exactly, not by a linear program; where a cell that
    a view wants is empty the view has none of that class, where theirs puts in an image that breaks the mix; the
    second head sees the last incomplete batch too, undersamples without repeats, and its weights have mean 1; its
    default is "upweighting", since "none" leans on how common the cells are (on CelebA the gap is twice as large).
    """

    title: ClassVar[str] = "Bias mimicking (Qraitem et al., 2023)"
    search: ClassVar[dict[str, Range]] = {"head_learning_rate": Range(0.1, 100.0, log=True)}
    view: Tensor

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        *,
        second_head: str = "upweighting",
        head_learning_rate: float = 10.0,
        refresh: bool = False,
        per_head: bool = False,
    ) -> None:
        if second_head not in CELLS:
            raise unknown("way of bias_mimicking for second_head", second_head, CELLS)
        if head_learning_rate <= 0:
            raise UserError(f"bias_mimicking: head_learning_rate={head_learning_rate} must be above 0.")
        super().__init__(task, config)
        self.second = nn.Linear(self.net.num_features, task.num_classes)
        self.second_head = second_head
        self.head_learning_rate = head_learning_rate
        self.refresh = refresh
        self.per_head = per_head
        self.seen: list[tuple[Tensor, ...]] = []  # this epoch's features, labels and cells

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Draw the views; give the second head an optimiser of its own."""
        super().prepare(train, tune)
        self.add_optimiser(self.second.parameters(), self.config.train.learning_rate * self.head_learning_rate)
        self.register_buffer("view", self.draw(train))

    def draw(self, train: FairDataset) -> Tensor:
        """Draw which images (N,) are in which classes' views (C,): true or false."""
        cell = train.cell.cpu()
        sizes = view_sizes(train.cell_counts().cpu()).flatten(1)  # by view and cell
        kept = [rank_in_cell(cell, train.generator) < size[cell] for size in sizes]
        return torch.stack(kept, 1).to(train.label.device)

    def features(self, image: Tensor) -> Tensor:
        """Give the features (B, F), scaled to length 1."""
        return functional.normalize(self.net.features(image))

    def forward(self, image: Tensor) -> Tensor:
        """Let the second head judge."""
        return self.second(self.features(image))

    def get_extra_state(self) -> list[tuple[Tensor, ...]]:
        """Give what a run that is killed in the middle of an epoch needs beside parameters and buffers."""
        return self.seen

    def set_extra_state(self, state: list[Any]) -> None:
        """Take that back."""
        self.seen = [tuple(part) for part in state]

    def train_epoch(self, train: FairDataset) -> Log:
        """Train the network on the views, then the second head on the features seen."""
        if self.refresh and self.epoch > 0:
            self.view.copy_(self.draw(train))
        self.seen.clear()
        log = super().train_epoch(train)
        return {**log, "head_loss": self.train_second(train)}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step of the network, and keep its features for the second head."""
        features = self.net.features(batch.image)
        loss = self.masked_loss(self.net.head(features), batch.label, self.view[batch.index])
        self.update(self.optimisers[0], loss)
        cell = self.task.cell(batch.label, batch.group)
        self.seen.append((functional.normalize(features.detach()), batch.label, cell))
        return {"loss": loss.detach()}

    def masked_loss(self, logits: Tensor, label: Tensor, kept: Tensor) -> Tensor:
        """Give the binary cross-entropy of the entries (B, C) that are kept."""
        target = functional.one_hot(label, self.task.num_classes).to(logits)
        each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * kept
        if self.per_head:
            return (each.sum(0) / kept.sum(0).clamp(min=1)).sum()
        return each.sum() / kept.sum().clamp(min=1)

    def train_second(self, train: FairDataset) -> float:
        """Show the second head the epoch's features once, in batches; give its mean loss."""
        features, label, cell = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        self.seen.clear()
        counts = torch.bincount(cell, minlength=self.task.num_cells)
        weight = torch.where(counts > 0, len(cell) / counts.clamp(min=1) / (counts > 0).sum(), 0.0)
        order = shuffled(self.chosen(cell.cpu(), counts.cpu(), train.generator), train.generator).to(cell.device)
        chunks, done = order.split(train.batch_size), float(self.epoch)
        losses = []
        for number, rows in enumerate(chunks):
            self.set_learning_rate(done + number / len(chunks))
            each = functional.cross_entropy(self.second(features[rows]), label[rows], reduction="none")
            loss = (each * weight[cell[rows]] if self.second_head == "upweighting" else each).mean()
            self.update(self.optimisers[1], loss)
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()

    def chosen(self, cell: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Give the rows of the epoch's features that the second head is shown."""
        if self.second_head == "undersampling":
            return take_per_cell(cell, torch.where(counts > 0, counts[counts > 0].min(), 0), generator)
        if self.second_head == "oversampling":
            return take_per_cell(cell, torch.where(counts > 0, counts.max(), 0), generator)
        return torch.arange(len(cell))


def view_sizes(counts: Tensor) -> Tensor:
    """Give how many images of each cell (k, g) the view of each class c holds: (C, C, G) int64.

    Of class k these are the most that keep the mix p of class c: x_g = p_g T with T = min over h of n(k, h) / p_h.

    Args:
        counts: (C, G) int64, images by label and group.
    """
    wanted, available = counts[:, None, :], counts[None, :, :]  # n(c, g) and n(k, g)
    sizes = torch.where(wanted > 0, available, 0)
    for group in range(counts.shape[1]):
        own = wanted[:, :, group, None]
        limit = wanted * available[:, :, group, None] // own.clamp(min=1)  # in whole numbers: exact
        sizes = torch.where(own > 0, torch.minimum(sizes, limit), sizes)
    return sizes


def rank_in_cell(cell: Tensor, generator: torch.Generator) -> Tensor:
    """Number the rows of each cell from 0 in random order: (N,)."""
    order = torch.randperm(len(cell), generator=generator)
    order = order[cell[order].argsort(stable=True)]
    sizes = torch.bincount(cell)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(cell)) - (sizes.cumsum(0) - sizes)[cell[order]]
    return rank
