"""View: what a classifier is shown in place of the photograph."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and OpenCV weigh red, green and blue
MANY = 1 << 19  # numbers of a batch from which on compiling pays


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
    plain = not torch.compiler.is_compiling() and image.is_cpu and image.dtype == torch.float32
    if plain and image.numel() >= MANY and not (image.requires_grad and torch.is_grad_enabled()):
        luma = torch.empty(image.shape[0], 1, *image.shape[2:])
        _in_one_pass()(image.detach().numpy(), luma[:, 0].numpy())
        return luma
    red, green, blue = image.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


@cache
def _in_one_pass() -> Callable[[np.ndarray, np.ndarray], None]:
    """Compile `_weigh`: tensors take five passes over memory for it, a third of what a simple drawing costs."""
    import numba

    return numba.njit(nogil=True, cache=False)(_weigh)  # a cache on disk may not be writable, and may be stale


def _weigh(image: np.ndarray, luma: np.ndarray) -> None:
    """Set `luma` (B, H, W) to that of images (B, 3, H, W), rounded after each step as tensors are."""
    num, _, height, width = image.shape
    red, green, blue = np.float32(LUMA[0]), np.float32(LUMA[1]), np.float32(LUMA[2])
    for index in range(num):
        for y in range(height):
            for x in range(width):
                first = red * image[index, 0, y, x] + green * image[index, 1, y, x]
                luma[index, y, x] = first + blue * image[index, 2, y, x]


def in_eight_bits(image: Tensor) -> Tensor:
    """Round images in [0, 1] to the nearest of 256 levels, as drawings are kept: so the deployed one looks alike."""
    return torch.round(image * 255.0) / 255.0
