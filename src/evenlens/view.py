"""View: what a classifier is shown in place of the photograph."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and OpenCV weigh red, green and blue


class View(nn.Module):
    """What a classifier is shown in place of the photograph: a drawing of it, say.

    A subclass stands in its own file of `evenlens.views`, whose name is the view's, and writes `draw`. Its
    constructor's keyword arguments are its options. It is deterministic, keeps the size, has no trainable weight, and
    draws black on white: 1 is paper, 0 is ink. Each image of a batch is drawn as if it were alone.

    What a data set gives is drawn once and kept in eight bits (`evenlens.data.drawing`); what is deployed draws anew.

    Attributes:
        title: name and source, for tables.
        sketches: whether it draws lines; if not, tone stays.
        version: to be raised when it draws otherwise than before, so that drawings that are kept are made anew.
    """

    title: ClassVar[str]
    sketches: ClassVar[bool] = True
    version: ClassVar[int] = 1

    @classmethod
    def settle(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Fill in options that are found, not given, such as the hash of a file; they are part of the run's identity.

        Args:
            options: by name, checked, with defaults.

        Raises:
            UserError: what they name cannot be had.
        """
        return options

    def prepare(self) -> None:
        """Read what the view needs from files: here, not in the constructor, so that a saved model needs none."""

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) in [0, 1]."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to what the classifier is shown, of the same shape and range."""
        return self.draw(image).expand(-1, 3, -1, -1)


def grey(image: Tensor) -> Tensor:
    """Give the luma (B, 1, H, W) of images (B, 3, H, W): 0.299 red + 0.587 green + 0.114 blue."""
    red, green, blue = image.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def in_eight_bits(image: Tensor) -> Tensor:
    """Round images in [0, 1] to the nearest of 256 levels, as drawings are kept: so the deployed one looks alike."""
    return torch.round(image * 255.0) / 255.0
