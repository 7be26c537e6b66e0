"""What is deployed where a network was trained on drawings: photographs in, the view, then the method."""

from __future__ import annotations

from torch import Tensor, nn

from evenlens.data.dataset import Batch
from evenlens.method import Method, Needs
from evenlens.nets import Classifier
from evenlens.view import View, in_eight_bits


class Viewed(Method):
    """A trained method behind its view: it takes photographs, and shows the method what it was trained on.

    Args:
        inner: trained on what the view shows, in eight bits.
        view: what it was trained on.
    """

    title = "A method behind its view"
    requires = {"inner": Needs("", deployed=True)}  # noqa: RUF012 - as of every method

    def __init__(self, inner: Method, view: View) -> None:
        nn.Module.__init__(self)  # it has no network of its own
        self.task, self.config, self.notes = inner.task, inner.config, inner.notes
        self.needs_group = inner.needs_group
        self.optimisers, self.stepped = [], lambda: None
        self.inner, self.view = inner, view

    @property
    def net(self) -> Classifier:  # type: ignore[override]
        """The network of the method behind the view."""
        return self.inner.net

    def shown(self, image: Tensor) -> Tensor:
        """Give what the method is shown of images (B, 3, H, W)."""
        return in_eight_bits(self.view(image))

    def forward(self, image: Tensor) -> Tensor:
        """Map photographs (B, 3, H, W) in [0, 1] to logits (B, C)."""
        return self.inner(self.shown(image))

    def predict(self, batch: Batch) -> Tensor:
        """Give the logits (B, C) of a batch of photographs."""
        return self.inner.predict(batch._replace(image=self.shown(batch.image)))
