"""What a student learns by: loss terms, each by its name, and how their weights change over the training.

Images are in [-1, 1] here, as a student makes them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, relu, softplus

from evenlens.errors import UserError

KINDS = ("bce", "hinge", "non_saturating")
SURE = 0.9  # what a discriminator is to say of a real image, where 1 would make it too sure of itself
NUMBER = r"\d*\.?\d+(?:e[+-]?\d+)?"
SCHEDULE = re.compile(rf"\s*({NUMBER})\s*(?:->\s*({NUMBER}))?\s*", re.IGNORECASE)


class Schedule(NamedTuple):
    """A weight that goes in a straight line from the first epoch to the last."""

    first: float
    last: float

    @classmethod
    def read(cls, name: str, given: object) -> Schedule:
        """Read a number, or two as "1->0".

        Raises:
            UserError: it is neither, or below 0.
        """
        found = SCHEDULE.fullmatch(str(given))
        if found is None or isinstance(given, bool):
            raise UserError(f"{name}={given} is no weight: write a number from 0, or two, such as 1->0.")
        first = float(found[1])
        made = cls(first, float(found[2]) if found[2] else first)
        if not math.isfinite(max(made)):  # 1e999
            raise UserError(f"{name}={given} is no weight: it is too large.")
        return made

    def at(self, progress: float) -> float:
        """Give the weight when a part of the training, in [0, 1], is done."""
        return self.first + (self.last - self.first) * progress

    @property
    def used(self) -> bool:
        """Say whether it ever weighs anything."""
        return max(self) > 0


def pixel(made: Tensor, wanted: Tensor) -> Tensor:
    """Give the mean absolute difference of images (B, 3, H, W)."""
    return (made - wanted).abs().mean()


def features(made: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Give the mean absolute differences of the discriminator's layers, added up by their weights.

    The last layer weighs 1, the one before a quarter, and each earlier one half of the next.

    Args:
        made: each layer's output (B, C, H, W) for made images.
        wanted: likewise for those they should look like.

    Source: Wang et al., 2018, arXiv 1711.11585; the weights are those of Chang and Lu, 2020, arXiv 2009.13829.
    """
    num = len(made)
    weights = [1.0 if k == num - 1 else 0.5 ** (num - k) for k in range(num)]
    return torch.stack([w * (x - y).abs().mean() for w, x, y in zip(weights, made, wanted, strict=True)]).sum()


def adversarial(kind: str, logit: Tensor) -> Tensor:
    """Give a generator's loss from the logits (B,) of what it made.

    Args:
        kind: "bce" and "non_saturating" are -log sigmoid, "hinge" the mean of -logit.
        logit: of the discriminator.

    Source: Goodfellow et al., 2014, arXiv 1406.2661; hinge: Lim and Ye, 2017, arXiv 1705.02894.
    """
    return -logit.mean() if kind == "hinge" else softplus(-logit).mean()


def discriminating(kind: str, real: Tensor, made: Tensor) -> Tensor:
    """Give a discriminator's loss from the logits (B,) of real and of made images.

    "bce" wants 0.9 for real ones; "hinge" a margin of one on both sides; "non_saturating" is bce with 1, to be used
    with `gradient_penalty`.
    """
    if kind == "hinge":
        return relu(1 - real).mean() + relu(1 + made).mean()
    sure = SURE if kind == "bce" else 1.0
    return binary_cross_entropy_with_logits(real, torch.full_like(real, sure)) + softplus(made).mean()


def gradient_penalty(logit: Tensor, image: Tensor) -> Tensor:
    """Give half the mean squared length of the discriminator's gradient at real images.

    Args:
        logit: (B,) of these images.
        image: (B, 3, H, W), requiring a gradient.

    Source: R1 of Mescheder, Geiger and Nowozin, 2018, arXiv 1801.04406.
    """
    (slope,) = torch.autograd.grad(logit.sum(), image, create_graph=True)
    return slope.square().flatten(1).sum(1).mean() / 2


def diversity(
    logits: Mapping[str, Tensor], target: Mapping[str, Tensor], temperature: float = 1.0, entropy: float = 0.0
) -> Tensor:
    """Give how far the attributes of a batch are from a target, mean over attributes; its gradient reaches each image.

    Of each attribute, with p the mean over the batch of softmax(logits / temperature), KL(p || target) / ln K, which is
    0 where p is the target, and for a uniform one 1 where all are of one class. A plain batch has (K - 1) / 2B nats too
    much, so that zero is not reached.

    Args:
        logits: (B, K) by attribute.
        target: (K,) shares by attribute.
        temperature: below 1, nearer to counting.
        entropy: weight of each image's own entropy / ln K, so that images that are half one and half the other are no
            way to balance.

    Source: after the diversity loss of fair GAN distillation, which counts classes and so has no gradient.
    """
    parts = []
    for name, values in logits.items():
        own = (values / temperature).softmax(1)
        mean, wanted = own.mean(0), target[name]
        distance = torch.where(mean > 0, mean * (mean.clamp(min=1e-12) / wanted.clamp(min=1e-12)).log(), 0).sum()
        unsure = -(own * own.clamp(min=1e-12).log()).sum(1).mean()
        parts.append((distance + entropy * unsure) / math.log(values.shape[1]))
    return torch.stack(parts).mean()


def group(logits: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Give the cross-entropy of the attributes that a classifier sees, with those that were asked for.

    Args:
        logits: (B, K) by attribute.
        wanted: (B,) int64 by attribute.
    """
    return torch.stack([cross_entropy(logits[name], label) for name, label in wanted.items()]).mean()
