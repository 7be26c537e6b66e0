"""Adversaries on the logits, one for each class: within a class, the answer must not tell the group."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from evenlens.config import RunConfig
from evenlens.data.dataset import Batch, FairDataset, Task
from evenlens.losses import one_hot, reverse_gradient
from evenlens.method import Method, Range
from evenlens.methods._options import above, at_least


class AdversarialLogits(Method):
    """Let an adversary of each class guess the group from the logits, and learn to leave it guessing.

    The adversary of class c is a network with one hidden layer that sees the logits of the images of class c. All
    minimise sum_c CE(A_c(logits), group), each a mean over its class; the network minimises its own cross-entropy, and
    gets the gradient of that sum times -factor / C. Since each looks within one class, it aims at equalized odds.

    Args:
        task: what is predicted, for whom.
        config: the run's settings.
        factor: of the reversed gradient, at least 0; 0 is plain training.
        hidden: units of each adversary, at least 1.
        adversary_learning_rate: of the adversaries, as a multiple of the run's learning rate, above 0.

    Source: Zhang et al., 2018, Mitigating unwanted biases with adversarial learning, arXiv 1801.07593, for the idea; as
    the baseline adv_debiasing in the code of Jung et al., 2021, arXiv 2106.04411.
    Differs from the latter, which cannot be built: the adversaries follow the run's schedule; they start without an
    opinion, so that the numbering of groups decides nothing; no teacher beside them; the factor is shared by the C
    classes, as ten adversaries of full weight leave nothing of the labels.
    """

    title: ClassVar[str] = "Adversaries on logits (Jung et al., 2021)"
    search: ClassVar[dict[str, Range]] = {
        "factor": Range(0.2, 20.0, log=True),
        "adversary_learning_rate": Range(0.1, 10.0, log=True),
    }

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        *,
        factor: float = 4.0,
        hidden: int = 32,
        adversary_learning_rate: float = 1.0,
    ) -> None:
        at_least(0, config.method, factor=factor)
        at_least(1, config.method, hidden=hidden)
        above(0, config.method, adversary_learning_rate=adversary_learning_rate)
        super().__init__(task, config)
        self.factor, self.hidden, self.adversary_learning_rate = factor, hidden, adversary_learning_rate

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Make the adversaries; they serve training only."""
        super().prepare(train, tune)
        self.adversaries = Adversaries(self.task, self.hidden).to(self.epoch.device)
        rate = self.config.train.learning_rate * self.adversary_learning_rate
        self.add_optimiser(self.adversaries.parameters(), rate)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Let both sides step at once, down one gradient that is reversed between them."""
        logits = self(batch.image)
        loss = functional.cross_entropy(logits, batch.label)
        guess = self.adversaries.loss(
            reverse_gradient(logits, self.factor / self.task.num_classes), batch.label, batch.group
        )
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        (loss + guess).backward()
        for optimiser in self.optimisers:
            optimiser.step()
        return {"loss": loss.detach(), "adversary": guess.detach()}


class Adversaries(nn.Module):
    """For each class, a network from logits to the groups with one hidden layer; all of them at once."""

    def __init__(self, task: Task, hidden: int) -> None:
        super().__init__()
        self.num_classes = task.num_classes
        self.inner = nn.Linear(task.num_classes, task.num_classes * hidden)
        self.outer = nn.Linear(task.num_classes * hidden, task.num_groups, bias=False)
        self.bias = nn.Linear(task.num_classes, task.num_groups, bias=False)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.bias.weight)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Map logits (B, C) to groups (B, G), each row by the adversary of its label."""
        own = one_hot(label, self.num_classes).to(logits.dtype)
        hidden = self.inner(logits).relu().unflatten(1, (self.num_classes, -1)) * own[:, :, None]
        return self.outer(hidden.flatten(1)) + self.bias(own)

    def loss(self, logits: Tensor, label: Tensor, group: Tensor) -> Tensor:
        """Give the sum over the classes that the batch holds of the mean cross-entropy of their adversary's guesses."""
        each = functional.cross_entropy(self(logits, label), group, reduction="none")
        own = one_hot(label, self.num_classes).to(logits.dtype)
        return ((each @ own) / own.sum(0).clamp(min=1)).sum()
