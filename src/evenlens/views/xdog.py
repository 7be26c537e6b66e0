"""Lines and areas of ink by the extended difference of Gaussians."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from evenlens import view
from evenlens.view import View
from evenlens.views import _filters as filters


class Xdog(View):
    """Draw a sharpened luma, cut at a level: what is dark becomes ink, and so does dark skin.

    With the luma g, S = (1 + p) G(sigma) * g - p G(k sigma) * g. The drawing is 1 where S >= epsilon, else
    1 + tanh(phi (S - epsilon)). As epsilon is a level of luminance, the drawing tells how dark skin is and how long the
    exposure was; it is here to be compared with. For the same reason a blank image darker than epsilon is ink.

    Args:
        sigma: standard deviation of the inner Gaussian for a short side of 256 pixels, above 0 to 32; it grows with the
            image.
        smallest_sigma: but not below this many pixels, 0.3 to 32.
        k: the outer Gaussian's standard deviation by the inner one's, above 1 to 8.
        p: how much the difference is amplified, 0 to 1000.
        epsilon: luminance from which on there is no ink, 0 to 1.
        phi: how steeply ink sets in, above 0 to 1000.

    Source: Winnemoeller, Kyprianidis and Olsen, 2012, XDoG: an extended difference-of-Gaussians compendium, Computers &
        Graphics 36(6), doi 10.1016/j.cag.2012.03.004.
    """

    title: ClassVar[str] = "XDoG (Winnemoeller et al., 2012)"

    def __init__(
        self,
        *,
        sigma: float = 1.2,
        smallest_sigma: float = 0.6,
        k: float = 1.6,
        p: float = 20.0,
        epsilon: float = 0.6,
        phi: float = 10.0,
    ) -> None:
        super().__init__()
        self.sigma = filters.number("sigma", sigma, 0, 32, open_end=True)
        self.smallest_sigma = filters.number("smallest_sigma", smallest_sigma, 0.3, 32)
        self.k = filters.number("k", k, 1, 8, open_end=True)
        self.p = filters.number("p", p, 0, 1000)
        self.epsilon = filters.number("epsilon", epsilon, 0, 1)
        self.phi = filters.number("phi", phi, 0, 1000, open_end=True)

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) in [0, 1]."""
        sigma = filters.in_pixels(self.sigma, self.smallest_sigma, image)
        inner, outer = filters.blurred(view.grey(image), sigma, self.k * sigma)
        return filters.soft_threshold((1.0 + self.p) * inner - self.p * outer, self.epsilon, self.phi)
