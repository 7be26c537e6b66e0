"""Edges one pixel wide by Canny's detector."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from evenlens import view
from evenlens.errors import UserError
from evenlens.view import View
from evenlens.views import _filters as filters


class Canny(View):
    """Draw lines of one pixel along the ridges of the luma's gradient, where they are or lead on from strong ones.

    The luma is blurred; its gradient is thinned to its ridges; a ridge above `high` is drawn, and one above `low` where
    it is connected with it. Every pixel is 0 or 1. The thresholds are absolute: half the exposure, fewer lines.

    Args:
        sigma: standard deviation of the blur for a short side of 256 pixels, above 0 to 32; it grows with the image.
        smallest_sigma: but not below this many pixels, 0.3 to 32.
        low: slope, in luma over eight pixels, above which a line may go on, above 0 to 4.
        high: slope above which one may begin, `low` to 4.

    Source: Canny, 1986, A computational approach to edge detection, IEEE Transactions on Pattern Analysis and Machine
        Intelligence 8(6), doi 10.1109/TPAMI.1986.4767851; thinning and hysteresis by `kornia.filters.canny`.
    """

    title: ClassVar[str] = "Canny (Canny, 1986)"

    def __init__(
        self, *, sigma: float = 1.6, smallest_sigma: float = 0.6, low: float = 0.1, high: float = 0.3
    ) -> None:
        super().__init__()
        self.sigma = filters.number("sigma", sigma, 0, 32, open_end=True)
        self.smallest_sigma = filters.number("smallest_sigma", smallest_sigma, 0.3, 32)
        self.low = filters.number("low", low, 0, 4, open_end=True)
        self.high = filters.number("high", high, 0, 4, open_end=True)
        if self.low > self.high:
            raise UserError(f"low = {low} is above high = {high}: give low at most as large as high.")

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) of zeros and ones."""
        from kornia.filters import canny  # half a second

        sigma = filters.in_pixels(self.sigma, self.smallest_sigma, image)
        (smooth,) = filters.blurred(view.grey(image), sigma)
        # kornia goes over the whole batch once for every pixel of the longest line, which takes long on a CPU
        here = image.device.type == "cpu" and not torch.compiler.is_compiling()
        edges = canny(smooth.detach(), self.low, self.high, kernel_size=1, hysteresis=not here)[1]
        return 1.0 - (led_on(edges) if here else edges)


def led_on(edges: Tensor) -> Tensor:
    """Keep strong pixels (1), and weak ones (0.5) that weak ones connect with a strong one, of images (B, 1, H, W)."""
    level = (2.0 * edges[:, 0]).to(torch.uint8).numpy()
    _compiled()(level)
    return torch.from_numpy(level == 2).to(edges.dtype)[:, None]


@cache
def _compiled() -> Callable[[np.ndarray], Any]:
    import numba

    return numba.njit(nogil=True, cache=False)(_follow)  # a cache on disk may not be writable, and may be stale


def _follow(level: np.ndarray) -> None:
    """Raise from 1 to 2 what touches a 2, in place; (B, H, W) of 0, 1 and 2."""
    num, height, width = level.shape
    waiting = np.empty((height * width, 2), dtype=np.int32)
    for image in range(num):
        count = 0
        for row in range(height):
            for column in range(width):
                if level[image, row, column] == 2:
                    waiting[count, 0], waiting[count, 1] = row, column
                    count += 1
        while count:
            count -= 1
            row, column = waiting[count, 0], waiting[count, 1]
            for near in range(max(row - 1, 0), min(row + 2, height)):
                for beside in range(max(column - 1, 0), min(column + 2, width)):
                    if level[image, near, beside] == 1:
                        level[image, near, beside] = 2
                        waiting[count, 0], waiting[count, 1] = near, beside
                        count += 1
