"""Weights that another program trained: nothing is trained here, so that they can be measured, repaired, compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from evenlens.config import RunConfig
from evenlens.data.dataset import FairDataset, Task
from evenlens.errors import UserError, unknown
from evenlens.foreign import HEADS, put
from evenlens.method import Method, Offer
from evenlens.weights import read


class Foreign(Method):
    """Load a network's weights from a file instead of training it.

    The file is a state dict of torchvision or timm, as safetensors or as torch saves it, of the network that
    `net.backbone` names; torchvision's MobileNetV2 and EfficientNet-B0 are known by the order of their layers. Nothing
    but tensors, numbers and text is read from it. The rows of its last layer are found by the names of the classes,
    where these are known: those of the published FairFace network with 18 outputs are.

    The file's hash is part of the run's identity, so that another file under the same name makes another run.

    Args:
        task: what is predicted, for whom.
        config: the run's settings; `net` must be what the weights are of.
        weights: path of the file; "" keeps the network as it starts, which is published weights with
            net.pretrained=true, under a last layer that knows nothing.
        sha256: of the file, or how it begins, at least 8 hex digits; another file is refused. Found if not given.
        classes: what the file's outputs are, in order, where it does not say so itself.
        head: "take" the file's last layer, or keep a "new" one, to go on from with base=RUN.

    Source: none; weights are published with many papers, such as Karkkainen and Joo, 2021, FairFace, whose network
    has rows for race, gender and age side by side.
    """

    title: ClassVar[str] = "Weights from elsewhere"
    stage: ClassVar[str] = "pre"
    needs_group: tuple[str, ...] = ()
    claims: ClassVar[str] = ""

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        *,
        weights: str = "",
        sha256: str = "",
        classes: tuple[str, ...] = (),
        head: str = "take",
    ) -> None:
        if head not in HEADS:
            raise unknown("head of foreign", head, HEADS)
        if weights and config.base:
            raise UserError("foreign: weights and base are both given, and one network takes one of them: leave one.")
        if sha256 and (len(sha256) < 8 or not weights):
            raise UserError(f"foreign: sha256={sha256} is at least 8 hex digits, of the file that weights names.")
        super().__init__(task, config)
        self.weights, self.sha256, self.head = weights, sha256.lower(), head
        self.classes = tuple(str(name) for name in classes)

    @classmethod
    def settle(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Find the file's hash, where it is not given."""
        if options["weights"] and not options["sha256"]:
            return {**options, "sha256": read(Path(options["weights"]).expanduser()).sha256}
        return options

    def prepare(self, train: FairDataset, tune: FairDataset) -> None:
        """Load the file: here, not where the method is built, so that a saved model needs it no more."""
        self.net.requires_grad_(False)  # not before: the fastest precision is found by steps of training
        if not self.weights:
            self.notes.append("foreign was given no weights: the network is as it started, and nothing was trained.")
            return
        checkpoint = read(Path(self.weights).expanduser())
        if not checkpoint.sha256.startswith(self.sha256):
            raise UserError(
                f"{self.weights} is another file than sha256={self.sha256} says: its own is {checkpoint.sha256}."
            )
        self.notes += put(checkpoint, self.net, self.task.class_names, self.classes, self.head)
        self.notes.append(f"The weights are those of a file whose SHA-256 is {checkpoint.sha256}.")

    def fit(self, train: FairDataset, tune: FairDataset, offer: Offer) -> None:
        """Offer the network as it is, once."""
        if self.epoch:
            return  # a run that goes on after it was done
        self.epoch += 1
        offer({})
        for _ in range(self.config.train.steps or self.config.train.epochs * self.epoch_steps(train)):
            self.stepped()  # the bar of progress goes to its end
