"""Edges one pixel wide by Canny's detector."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from evenlens import view
from evenlens.errors import UserError
from evenlens.view import View
from evenlens.views import _filters as filters

WEAK, STRONG = 1, 2
TINY = 1e-6  # is added to the squared slope, as in kornia
STEEP = 2.0**0.5 - 1.0  # tangent of 22.5 degrees, half-way between a straight and a slanted direction


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
        Intelligence 8(6), doi 10.1109/TPAMI.1986.4767851; on a GPU by `kornia.filters.canny`, on a
        CPU by the same rules image by image.
    """

    title: ClassVar[str] = "Canny (Canny, 1986)"

    def __init__(self, *, sigma: float = 1.6, smallest_sigma: float = 0.6, low: float = 0.1, high: float = 0.3) -> None:
        super().__init__()
        self.sigma = filters.number("sigma", sigma, 0, 32, open_end=True)
        self.smallest_sigma = filters.number("smallest_sigma", smallest_sigma, 0.3, 32)
        self.low = filters.number("low", low, 0, 4, open_end=True)
        self.high = filters.number("high", high, 0, 4, open_end=True)
        if self.low > self.high:
            raise UserError(f"low = {low} is above high = {high}: give low at most as large as high.")

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) of zeros and ones."""
        sigma = filters.in_pixels(self.sigma, self.smallest_sigma, image)
        (smooth,) = filters.blurred(view.grey(image), sigma)
        if image.device.type == "cpu" and not torch.compiler.is_compiling():
            return 1.0 - edges_on_cpu(smooth, self.low, self.high)
        from kornia.filters import canny  # half a second

        with filters.full_precision(image):
            return 1.0 - canny(smooth, self.low, self.high, kernel_size=1)[1]


def edges_on_cpu(smooth: Tensor, low: float, high: float) -> Tensor:
    """Give what `kornia.filters.canny` gives for images (B, 1, H, W): 1 on a line, else 0.

    It goes over the whole batch once for every pixel of the longest line, which a GPU bears. Here each image is
    followed by itself.
    """
    found = np.zeros((smooth.shape[0], *smooth.shape[2:]), dtype=np.uint8)
    _compiled()(smooth.detach()[:, 0].numpy(), low, high, found)
    return torch.from_numpy(found == STRONG).to(smooth.dtype)[:, None]


@cache
def _compiled() -> Callable[..., None]:
    import numba

    return numba.njit(nogil=True, cache=False)(_trace)  # a cache on disk may not be writable, and may be stale


def _trace(smooth: np.ndarray, low: float, high: float, level: np.ndarray) -> None:
    """Set `level` (B, H, W), zeros, to STRONG on lines; what was too weak is left at WEAK."""
    num, height, width = smooth.shape
    right, down = np.zeros((height, width), smooth.dtype), np.zeros((height, width), smooth.dtype)
    length = np.full((height + 2, width + 2), np.sqrt(TINY), smooth.dtype)  # a border without slope
    waiting = np.empty((height * width, 2), dtype=np.int32)
    for image in range(num):
        luma = smooth[image]
        for y in range(height):
            above, below = max(y - 1, 0), min(y + 1, height - 1)
            for x in range(width):
                left, beyond = max(x - 1, 0), min(x + 1, width - 1)
                falling, rising = luma[below, beyond] - luma[above, left], luma[above, beyond] - luma[below, left]
                right[y, x] = falling + rising + 2 * (luma[y, beyond] - luma[y, left])
                down[y, x] = falling - rising + 2 * (luma[below, x] - luma[above, x])
                length[y + 1, x + 1] = np.sqrt(right[y, x] ** 2 + down[y, x] ** 2 + TINY)
        count = 0
        for y in range(height):
            for x in range(width):
                here = length[y + 1, x + 1]
                if here <= low:
                    continue
                across, along = abs(right[y, x]), abs(down[y, x])
                step_x, step_y = 1, 1 if right[y, x] * down[y, x] > 0 else -1
                straight = along < STEEP * across or across < STEEP * along
                if along < STEEP * across:
                    step_y = 0
                elif across < STEEP * along:
                    step_x, step_y = 0, 1
                ahead = length[y + 1 + step_y, x + 1 + step_x]
                if here <= length[y + 1 - step_y, x + 1 - step_x] or here < ahead or (here == ahead and not straight):
                    continue
                level[image, y, x] = WEAK
                if here > high:
                    level[image, y, x] = STRONG
                    waiting[count, 0], waiting[count, 1] = y, x
                    count += 1
        while count:
            count -= 1
            row, column = waiting[count, 0], waiting[count, 1]
            for y in range(max(row - 1, 0), min(row + 2, height)):
                for x in range(max(column - 1, 0), min(column + 2, width)):
                    if level[image, y, x] == WEAK:
                        level[image, y, x] = STRONG
                        waiting[count, 0], waiting[count, 1] = y, x
                        count += 1
