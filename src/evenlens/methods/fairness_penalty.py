"""A penalty on how far apart the groups' mean scores are: the gap itself, made smooth, is minimised with the error."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evenlens.config import RunConfig
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.errors import UserError, unknown
from evenlens.losses import one_hot
from evenlens.method import Method, Range

CRITERIA = ("dp", "eopp", "eodds")
SPREADS = ("variance", "max_min")


class FairnessPenalty(Method):
    """Minimise cross-entropy plus `weight` times the squared gap between the groups' mean predicted probabilities.

    The rate r of a group is the mean probability of a class over its images: over all ("dp", demographic parity), over
    those of that class ("eopp", equal opportunity), or over those of each label apart ("eodds", equalized odds). Of
    two groups the squared gap is (r_1 - r_0)^2; of more, the mean of it over all pairs, or that of the two groups
    farthest apart. With two classes the penalty is the squared gap of the second one, summed over the labels for
    "eodds"; with more, half the sum over all classes, which of two is the same ("eopp": the sum over the classes).

    A batch holds few images of a small group, so its rates are mixed with running averages of the past,
    batch_share * batch + (1 - batch_share) * past, through which no gradient flows.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        criterion: "dp", "eopp" or "eodds".
        weight: of the penalty, at least 0 (lambda); 0 is plain training.
        spread: "variance" (twice the variance of the groups' rates, which is the mean squared gap of a pair) or
            "max_min".
        batch_share: in (0, 1]; 1 takes the rates of the batch alone.
        decay: of the running averages, in [0, 1).
        min_images: a rate of fewer images of a batch is left to the running average, at least 1.

    Source: a differentiable form of the loss meant in Yao et al., 2022, Improving fairness in image classification via
    sketching, arXiv 2211.00168.
    Differs from the authors' code: theirs counts hard predictions, through which no gradient flows, so that it only
    chose which epoch to keep; it grew with the number of batches; and a batch without one of the groups made it NaN
    for the rest of the epoch.
    """

    title: ClassVar[str] = "Fairness penalty (after Yao et al., 2022)"
    search: ClassVar[dict[str, Range]] = {"weight": Range(0.1, 30.0, log=True), "batch_share": Range(0.2, 1.0)}
    past: Tensor
    known: Tensor

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        *,
        criterion: str = "eodds",
        weight: float = 1.0,
        spread: str = "variance",
        batch_share: float = 0.5,
        decay: float = 0.9,
        min_images: int = 2,
    ) -> None:
        if criterion not in CRITERIA:
            raise unknown("criterion of fairness_penalty", criterion, CRITERIA)
        if spread not in SPREADS:
            raise unknown("spread of fairness_penalty", spread, SPREADS)
        if weight < 0 or not 0 < batch_share <= 1 or not 0 <= decay < 1 or min_images < 1:
            raise UserError(
                "fairness_penalty: weight must be at least 0, batch_share in (0, 1], decay in [0, 1) and min_images at "
                "least 1."
            )
        super().__init__(task, config)
        self.criterion, self.weight, self.spread = criterion, weight, spread
        self.batch_share, self.decay, self.min_images = batch_share, decay, min_images

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Make room for the running rates: (conditions, G, C), and for which of them are known."""
        super().prepare(train, tune)
        conditions = 1 if self.criterion == "dp" else self.task.num_classes
        shape, device = (conditions, self.task.num_groups, self.task.num_classes), train.label.device
        self.register_buffer("past", torch.zeros(shape, device=device))
        self.register_buffer("known", torch.zeros(shape[:2], dtype=torch.bool, device=device))

    def loss(self, batch: Batch) -> Tensor:
        """Give cross-entropy plus the penalty."""
        logits = self(batch.image)
        return functional.cross_entropy(logits, batch.label) + self.weight * self.penalty(logits.softmax(1), batch)

    def penalty(self, probability: Tensor, batch: Batch) -> Tensor:
        """Give the squared gap of a batch's rates, mixed with the past, and move the past on."""
        task = self.task
        number = batch.group if self.criterion == "dp" else task.cell(batch.label, batch.group)
        member = one_hot(number, self.known.numel()).to(probability.dtype)  # (B, conditions * G)
        size = member.sum(0).view(self.known.shape)
        rate = (member.T @ probability).view(self.past.shape) / size.clamp(min=1)[..., None]
        enough = size >= self.min_images
        mixed = self.joined(rate, enough, self.batch_share)
        self.past, self.known = self.joined(rate.detach(), enough, 1 - self.decay), self.known | enough
        gap = squared_gap(mixed, self.known, self.spread)  # (conditions, C)
        if self.criterion == "eopp":
            own = gap.diagonal()
            return own[1] if task.num_classes == 2 else own.sum()
        return gap.sum() / 2

    def joined(self, rate: Tensor, enough: Tensor, share: float) -> Tensor:
        """Mix this share of a batch's rates with the past; where only one of the two is known, take that."""
        mixed = torch.where(self.known[..., None], share * rate + (1 - share) * self.past, rate)
        return torch.where(enough[..., None], mixed, self.past)


def squared_gap(rate: Tensor, known: Tensor, spread: str) -> Tensor:
    """Give how far apart the groups are, squared: 0 where fewer than two are known.

    Args:
        rate: (conditions, G, C).
        known: (conditions, G), which rates count.
        spread: "variance" or "max_min".

    Returns:
        (conditions, C); of two groups (r_1 - r_0)^2 whatever the spread.
    """
    counts = known[..., None]
    if spread == "max_min":
        low = torch.where(counts, rate, torch.inf).amin(1)
        high = torch.where(counts, rate, -torch.inf).amax(1)
        return (high - low).clamp(min=0).square()
    number = counts.sum(1)
    mean = (rate * counts).sum(1) / number.clamp(min=1)
    return 2 * ((rate - mean[:, None]).square() * counts).sum(1) / (number - 1).clamp(min=1)
