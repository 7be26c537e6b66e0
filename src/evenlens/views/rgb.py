"""The photograph as it is."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from evenlens.view import View


class Rgb(View):
    """Show the photograph, in colour.

    Source: none; it is what the others are compared with.
    """

    title: ClassVar[str] = "Photograph"
    sketches: ClassVar[bool] = False

    def forward(self, image: Tensor) -> Tensor:
        """Give the images (B, 3, H, W) as they are."""
        return image
