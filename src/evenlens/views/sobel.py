"""Edges by the length of Sobel's gradient."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from evenlens import view
from evenlens.view import View
from evenlens.views import _filters as filters

FAINT = 1e-3  # luma per pixel below which a mean slope is rounding, not an edge: a quarter of one of 256 levels


class Sobel(View):
    """Draw how steep the luma is, in units of each image's own mean steepness.

    With the gradient (x, y) of the luma, n = sqrt(x^2 + y^2) and its mean over the image, the drawing is
    1 - n / (scale mean), at least 0. A longer exposure cancels out. Pixels outside are reflected.

    Args:
        scale: the slope that is drawn as full ink, by the image's mean slope, above 0 to 100.

    Source: Sobel and Feldman, 1968, A 3x3 isotropic gradient operator for image processing, Stanford Artificial
        Intelligence Project.
    Differs from the usual division by the largest slope, which one strong edge decides: the rest would be faint.
    """

    title: ClassVar[str] = "Sobel (Sobel and Feldman, 1968)"

    def __init__(self, *, scale: float = 4.0) -> None:
        super().__init__()
        self.scale = filters.number("scale", scale, 0, 100, open_end=True)

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) in [0, 1]."""
        right, down = filters.gradient(view.grey(image))
        length = (right.square() + down.square()).clamp(min=1e-16).sqrt()  # the slope of a root at 0 is no number
        full = self.scale * length.mean((-2, -1), keepdim=True).clamp(min=FAINT)
        return (1.0 - length / full).clamp(min=0.0)
