"""Greyscale: colour is gone, tone stays."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from evenlens import view
from evenlens.view import View


class Grey(View):
    """Show the luma alone, 0.299 red + 0.587 green + 0.114 blue, as three equal channels.

    Takes away colour and keeps how dark skin is, so that it is the baseline for every sketch.

    Source: the baseline of Yao, Cui, Li and Gu, 2022, Improving fairness in image classification via sketching, arXiv
    2211.00168; the weights are those of ITU-R BT.601.
    Differs from the authors' code: theirs wrote every grey image to a JPEG file, and so compressed it once more.
    """

    title: ClassVar[str] = "Greyscale"
    sketches: ClassVar[bool] = False

    def draw(self, image: Tensor) -> Tensor:
        """Give the luma (B, 1, H, W) of images (B, 3, H, W)."""
        return view.grey(image)
