"""A soft pencil drawing by colour dodge."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from evenlens import view
from evenlens.view import View
from evenlens.views import _filters as filters


class Pencil(View):
    """Draw the luma divided by its blur, as the colour dodge of image editors does: soft strokes, like pencil.

    With the luma g and b = G(sigma) * g, the drawing is (g + delta) / (b + delta), at most 1. A longer exposure cancels
    out.

    Args:
        sigma: standard deviation of the blur for a short side of 256 pixels, above 0 to 64; it grows with the image.
        smallest_sigma: but not below this many pixels, 0.3 to 64.
        delta: luminance that counts as noise, above 0 to 1; it keeps black from dividing by zero.

    Source: the colour dodge blend of image editors, of a grey image over its blurred negative; no paper.
    Differs from it by delta, without which noise in black is drawn as strokes.
    """

    title: ClassVar[str] = "Pencil (colour dodge)"

    def __init__(self, *, sigma: float = 4.0, smallest_sigma: float = 2.0, delta: float = 0.02) -> None:
        super().__init__()
        self.sigma = filters.number("sigma", sigma, 0, 64, open_end=True)
        self.smallest_sigma = filters.number("smallest_sigma", smallest_sigma, 0.3, 64)
        self.delta = filters.number("delta", delta, 0, 1, open_end=True)

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) in [0, 1]."""
        luma = view.grey(image)
        (around,) = filters.blurred(luma, filters.in_pixels(self.sigma, self.smallest_sigma, image))
        return ((luma + self.delta) / (around + self.delta)).clamp(0.0, 1.0)
