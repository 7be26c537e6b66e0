"""Method: the one abstraction. A way to train, repair or compress a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenlens.config import RunConfig, Train
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.errors import UserError
from evenlens.nets import Classifier, build

Log = dict[str, float]
Offer = Callable[[Log], None]
"""Called by `fit` after each epoch with its means. The runner logs, saves, and if the method is complete, scores."""

FINITE_CHECK = 100  # steps between two looks at the losses: each look waits for the device


@dataclass(frozen=True)
class Needs:
    """A trained network that a method starts from.

    Attributes:
        method: what has to have trained it, on the same data, seed and backbone.
        target: what it predicts: the "label", the "group", or "each" of the sensitive columns, which makes a list of
            networks.
        deployed: whether predicting takes it; if not, it is left out of the saved model.
    """

    method: str
    target: Literal["label", "group", "each"] = "label"
    deployed: bool = False


@dataclass(frozen=True)
class Range:
    """Where to look for a hyper-parameter: between `low` and `high`, evenly or by orders of magnitude."""

    low: float
    high: float
    log: bool = False


class Diverged(UserError):
    """The loss is no finite number any more."""


@dataclass(frozen=True)
class Middle:
    """Where in an epoch a run was killed, to go on from there.

    Attributes:
        history: what each step of the epoch returned until then.
        restore: puts back all state as it was then.
    """

    history: list[dict[str, Tensor]]
    restore: Callable[[], None]


class Method(nn.Module):
    """A way to train, repair or compress a classifier.

    The levels are nested, `fit > train_epoch > step > loss`: a subclass overrides the innermost one that says what
    it does, and inherits the rest. With nothing overridden it minimises cross-entropy. Its constructor's keyword
    arguments are its hyper-parameters; its state is its parameters and buffers, and is saved with it.

    Attributes:
        title: name and source, for tables.
        stage: when it acts, "pre", "in", "post" or "compress"; "none" is plain training, the baseline.
        needs_group: in which of "training", "tuning", "prediction" it must know the group.
        claims: the metric that it is meant to better, against cross-entropy alone; empty where it claims nothing.
        requires: trained methods it is handed, frozen, by argument name; each is kept under this name.
        search: where to look for better hyper-parameters, by argument name.
        task: what is predicted, for whom.
        config: the run's settings; a method reads `config.train` and `config.net` only.
        net: the network that `forward` uses unless it is overridden.
        notes: what a reader of the run has to know, one sentence each; to be filled in `prepare`.
        epoch: how many epochs are done.
        history: what each step of this epoch's pass returned so far; empty outside of it.
        position: the time of the step under way, in epochs.
        middle: where in its first epoch from now training goes on, if not at the start.
    """

    title: ClassVar[str]
    stage: ClassVar[str] = "in"
    needs_group: tuple[str, ...] = ("training",)
    claims: ClassVar[str] = "equalized_odds_difference"
    requires: ClassVar[dict[str, Needs]] = {}
    search: ClassVar[dict[str, Range]] = {}

    epoch: Tensor

    def __init__(self, task: Task, config: RunConfig) -> None:
        super().__init__()
        self.task = task
        self.config = config
        self.net = self.make_net()
        self.optimisers: list[torch.optim.Optimizer] = []
        self.notes: list[str] = []
        self.stepped: Callable[[], None] = lambda: None  # called after each step; a progress bar, say
        self.history: list[dict[str, Tensor]] = []
        self.position = 0.0
        self.middle: Middle | None = None
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))

    @classmethod
    def settle(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Fill in options that are found, not given, such as the hash of a file; they are part of the run's identity.

        Args:
            options: by name, checked, with defaults.

        Raises:
            UserError: what they name cannot be had.
        """
        return options

    def make_net(self) -> Classifier:
        """Build the network; override it for other outputs than one logit a class."""
        return build(self.config.net, self.task)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, C). This is what is deployed."""
        return self.net(image)

    def predict(self, batch: Batch) -> Tensor:
        """Give the logits (B, C) of a batch, whatever its labels; override it where predicting takes the group."""
        return self(batch.image)

    # ---- the levels, outermost first

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Look at the data once, before `fit`: set buffers, make optimisers. Here: one optimiser over `net`."""
        self.add_optimiser(self.net.parameters())

    def fit(self, train: FairDataset, tune: FairDataset, offer: Offer) -> None:
        """Train. A run that was killed enters here again, with its state restored: start from `self.epoch`."""
        while self.epoch < self.config.train.epochs:
            log = self.train_epoch(train)
            self.epoch += 1
            offer(log)

    def batches(self, train: FairDataset) -> Iterable[Batch]:
        """Give what one pass sees. Only `step` looks into it, so it may be anything; here: all rows, shuffled."""
        return train.batches()

    def train_epoch(self, train: FairDataset) -> Log:
        """Take one epoch's optimiser steps and give the means of what `step` returned.

        An epoch has the same number of steps for every method, that of one pass over the training images, so that
        methods which see fewer or more images a pass are compared at an equal budget.
        """
        self.train()
        steps, done = self.epoch_steps(train), float(self.epoch)
        batches = islice(self.endless(train), steps)
        if self.middle:
            middle, self.middle = self.middle, None
            for _ in islice(batches, len(middle.history)):  # drawn as they were before the run was killed
                pass
            self.history = middle.history
            middle.restore()
        for number, batch in enumerate(batches, len(self.history)):
            self.position = done + number / steps
            self.set_learning_rate(self.position)
            self.history.append(self.step(batch))
            self.stepped()
            if (number + 1) % FINITE_CHECK == 0:
                self._check_finite(self.history, number + 1 - FINITE_CHECK)
        history, self.history = self.history, []
        self._check_finite(history, 0)
        return {name: torch.stack([entry[name] for entry in history]).mean().item() for name in history[0]}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimiser step; give what is to be logged, detached and left on its device."""
        loss = self.loss(batch)
        self.update(self.optimisers[0], loss)
        return {"loss": loss.detach()}

    def loss(self, batch: Batch) -> Tensor:
        """Give the loss of a batch; here: the mean cross-entropy."""
        return functional.cross_entropy(self(batch.image), batch.label)

    def review(self, train: FairDataset) -> dict[str, Any]:
        """Say what there is to know about the finished method beside its predictions, as what JSON can hold.

        Called once, with the state that was selected; it is kept in the run's metrics.json under "review".
        """
        return {}

    # ---- what the levels are made with

    @property
    def complete(self) -> bool:
        """Whether it could be deployed as it is now; a pruner says no before it is sparse."""
        return True

    def add_optimiser(
        self, parameters: Iterable[nn.Parameter], learning_rate: float | None = None
    ) -> torch.optim.Optimizer:
        """Make an optimiser as the run's settings say; it follows the schedule and is saved with the run."""
        optimiser = make_optimiser(self.config.train, parameters, learning_rate)
        self.optimisers.append(optimiser)
        return optimiser

    def update(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        """Take one step of an optimiser down the gradient of a loss."""
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def epoch_steps(self, train: FairDataset) -> int:
        """Give how many optimiser steps this epoch has: one pass, or its even part of the budget."""
        budget, epochs, done = self.config.train.steps, self.config.train.epochs, int(self.epoch)
        if budget:
            return (done + 1) * budget // epochs - done * budget // epochs
        return math.ceil(len(train) / self.config.train.batch_size)

    def train(self, mode: bool = True) -> Method:
        """Switch to training; a part whose weights are all frozen stays as it is, its running statistics too."""
        super().train(mode)
        for module in self.modules():
            weights = list(module.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                nn.Module.train(module, False)
        return self

    def endless(self, train: FairDataset) -> Iterator[Batch]:
        """Go over `batches` again and again; refuse where there are none."""
        while True:
            empty = True
            for batch in self.batches(train):
                empty = False
                yield batch
            if empty:
                raise UserError(f"{type(self).__name__} has no training image to show: a class or group is empty.")

    def set_learning_rate(self, position: float) -> None:
        """Set the learning rates of all optimisers to where the schedule is at a time in epochs."""
        factor = schedule_factor(self.config.train.schedule, position, self.config.train.epochs)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def _check_finite(self, history: list[dict[str, Tensor]], start: int) -> None:
        for name in history[0]:
            finite = torch.isfinite(torch.stack([entry[name] for entry in history[start:]]))
            if not finite.all():
                number = start + int((~finite).nonzero()[0])
                raise Diverged(
                    f"The {name} is not a finite number at step {number + 1} of epoch {int(self.epoch) + 1}: "
                    "a smaller train.learning_rate or precision=fp32 may help."
                )


def drop_teachers(method: Method) -> None:
    """Take away from a method, in place, and from those within it, the networks that predicting does not take."""
    for name, needs in method.requires.items():
        inner = getattr(method, name, None)
        if inner is not None and not needs.deployed:
            delattr(method, name)
        for each in inner if isinstance(inner, nn.ModuleList) else [inner]:
            if isinstance(each, Method):
                drop_teachers(each)


def schedule_factor(schedule: str, position: float, epochs: int) -> float:
    """Give the share of the learning rate at a time in epochs, in [0, epochs).

    `cosine` falls from 1 to 0 along half a wave; `step` is a tenth from epoch floor(E/3) on, and a hundredth from
    floor(2E/3); `quarters` goes on so after each quarter of the epochs; `halves` is a tenth
    from epoch floor(E/2) on.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * position / epochs))
    if schedule == "step":
        passed = (position >= epochs // 3) + (position >= 2 * epochs // 3) if epochs >= 3 else 0
        return 0.1**passed
    if schedule == "halves":
        return 0.1 if 0 < epochs // 2 <= position else 1.0
    if schedule == "quarters":
        return 0.1 ** sum(position >= quarter * epochs // 4 > 0 for quarter in (1, 2, 3))
    return 1.0


def make_optimiser(
    train: Train, parameters: Iterable[nn.Parameter], learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """Make the optimiser that the settings name."""
    rate, decay = learning_rate or train.learning_rate, train.weight_decay
    if train.optimizer == "sgd":
        optimiser: torch.optim.Optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    else:
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam}
        optimiser = kinds[train.optimizer](parameters, rate, weight_decay=decay)
    for group in optimiser.param_groups:
        group["initial_lr"] = rate
    return optimiser
