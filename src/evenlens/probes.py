"""Probes: fresh discriminators that are fitted to tell the group from some numbers, and judged on other images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evenlens import engine, metrics
from evenlens.metrics import Interval
from evenlens.metrics.resampling import make_interval

DISCRIMINATORS = ("linear", "mlp")
STEPS, HIDDEN, LEARNING_RATE, DECAY = 300, 64, 0.01, 0.01
REPLICATES = 1000


@dataclass(frozen=True)
class Told:
    """How well one discriminator tells the groups of some images.

    Attributes:
        label: which images, by the class's name; "" for all.
        discriminator: "linear" or "mlp".
        balanced_accuracy: mean over the groups of the share that is recognised; NaN where it is undefined.
        low: end of its 95 % interval, over test images, the discriminator being fixed.
        high: the other end.
        chance: what guessing gives: one over the number of groups.
        num_images: that it was judged on.
    """

    label: str
    discriminator: str
    balanced_accuracy: float
    low: float
    high: float
    chance: float
    num_images: int


@dataclass(frozen=True)
class Rows:
    """What a discriminator is shown: inputs (N, F), labels (N,) and groups (N,) of the same images, on the CPU."""

    inputs: Tensor
    label: Tensor
    group: Tensor

    def keep(self, mask: Tensor) -> Rows:
        """Keep the rows where the mask (N,) is true."""
        return Rows(self.inputs[mask], self.label[mask], self.group[mask])


@dataclass(frozen=True)
class Guesses:
    """Which group a discriminator takes each image for.

    Attributes:
        guess: (N,) int64 in [0, G).
        true: (N,) int64 in [0, G), the groups that are on both sides being numbered anew.
        num_groups: G; below 2 there is nothing to tell, and no image.
    """

    guess: np.ndarray
    true: np.ndarray
    num_groups: int

    @property
    def chance(self) -> float:
        """What guessing gives: one over the number of groups; NaN where there is nothing to tell."""
        return 1 / self.num_groups if self.num_groups > 1 else float("nan")

    def balanced_accuracy(self) -> Interval[float]:
        """Give the mean over the groups of the share that is recognised, with its 95 % interval over images."""
        if self.num_groups < 2:
            return Interval(*(float("nan"),) * 3, 0)
        table = metrics.count(self.guess, self.true, np.zeros(len(self.true), int), self.num_groups, 1)
        return metrics.bootstrap("balanced_accuracy", table, fixed="none")


def tell(fit: Rows, judge: Rows, discriminator: str, seed: int = 0, label: str = "") -> Told:
    """Fit one discriminator and judge it; groups that are not on both sides are left out.

    Args:
        fit: what it learns from.
        judge: what it is judged on.
        discriminator: "linear" or "mlp".
        seed: of its weights.
        label: which images these are.
    """
    told = guesses(fit, judge, discriminator, seed)
    value, low, high, n = told.balanced_accuracy()
    num_images = int(n) if told.num_groups > 1 else len(judge.group)
    return Told(label, discriminator, value, low, high, told.chance, num_images)


def guesses(fit: Rows, judge: Rows, discriminator: str, seed: int = 0) -> Guesses:
    """Fit one discriminator and let it guess; arguments are those of `tell`, and groups on one side are left out."""
    groups = np.intersect1d(fit.group.numpy(), judge.group.numpy())
    if len(groups) < 2:
        return Guesses(np.empty(0, int), np.empty(0, int), len(groups))
    fit, judge = (each.keep(torch.isin(each.group, torch.from_numpy(groups))) for each in (fit, judge))
    true = [np.searchsorted(groups, each.group.numpy()) for each in (fit, judge)]
    scale, centre = torch.std_mean(fit.inputs, dim=0, correction=0)
    scale = torch.where(scale > 0, scale, torch.inf)
    guess = _fitted((fit.inputs - centre) / scale, torch.from_numpy(true[0]), discriminator, len(groups), seed)
    return Guesses(guess((judge.inputs - centre) / scale).numpy(), true[1], len(groups))


def difference(first: Guesses, second: Guesses, seed: int = 0) -> Interval[float]:
    """Give how much better the first tells the groups than the second, in balanced accuracy, on the same images.

    The 95 % interval is that of a bootstrap in which each group keeps its images' number, and an image brings both
    guesses. Each group is drawn from as if it had one image more, which both guess alike.

    Args:
        first: guesses.
        second: guesses of the same images.
        seed: of the bootstrap.
    """
    if first.num_groups < 2:
        return Interval(*(float("nan"),) * 3, 0)
    true, num_groups = first.true, first.num_groups
    better = (first.guess == true).astype(int) - (second.guess == true)
    table = np.zeros((num_groups, 3))  # images of a group that only the second has right, both or none, only the first
    np.add.at(table, (true, better + 1), 1)
    sizes = table.sum(axis=1)
    shares = (table + np.array([0, 1, 0])) / (sizes + 1)[:, None]
    drawn = np.random.default_rng(seed).multinomial(sizes.astype(int), shares, size=(REPLICATES, num_groups))

    def mean(counts: np.ndarray) -> np.ndarray:
        return ((counts[..., 2] - counts[..., 0]) / sizes).mean(axis=-1)

    return make_interval(float(mean(table)), mean(drawn), 0.95, len(true), (-1.0, 1.0))


class _Guess:
    """A fitted discriminator: inputs (N, F) to numbers of groups (N,)."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self.net, self.device = net, device

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.to(self.device)).argmax(1).cpu()


def _fitted(inputs: Tensor, group: Tensor, discriminator: str, num_groups: int, seed: int) -> _Guess:
    """Fit on all rows at once, each group weighing the same."""
    device, size = engine.start(), inputs.shape[1]
    with engine.fork_rng(device):
        torch.manual_seed(seed)
        hidden = [nn.Linear(size, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_groups)]
        net = (nn.Linear(size, num_groups) if discriminator == "linear" else nn.Sequential(*hidden)).to(device)
    inputs, group = inputs.to(device), group.to(device)
    weight = len(group) / (num_groups * torch.bincount(group, minlength=num_groups).float())
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=DECAY)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        functional.cross_entropy(net(inputs), group, weight).backward()
        optimiser.step()
        falling.step()
    return _Guess(net, device)
