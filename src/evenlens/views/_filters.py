"""What the drawing operators share: filters along rows and columns, scales, and the checks of their options.

A filter of one dimension is a matrix that holds its taps and its border, so that filtering a batch is two matrix
products. Only the blocks near the diagonal are multiplied. On processors and at the sizes that networks are shown this
is several times faster than a depthwise convolution (`benchmarks/views.py`), and a kernel may be longer than the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from evenlens.errors import UserError

TRUNCATE = 4.0  # standard deviations at which a Gaussian is cut off, as SciPy does
BLOCK = 32  # rows of a matrix that are multiplied at once

Taps = tuple[float, ...]
Band = list[tuple[int, int, Tensor]]
"""A matrix without its zeros: for each block of rows its first and last column, and what lies between them."""

SMOOTH: Taps = (0.25, 0.5, 0.25)
SLOPE: Taps = (-0.5, 0.0, 0.5)


@cache
def gaussian_taps(sigma: float) -> Taps:
    """Give the samples of a Gaussian that sum to one; an odd number of them.

    Args:
        sigma: standard deviation in pixels, above 0.
    """
    reach = int(TRUNCATE * sigma + 0.5)
    weight = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return tuple((weight / weight.sum()).tolist())


def mirrored(position: np.ndarray, length: int) -> np.ndarray:
    """Fold positions back into 0 .. length - 1 by reflection about the outermost pixels, as often as it takes."""
    period = max(2 * (length - 1), 1)
    folded = position % period
    return np.minimum(folded, period - folded) if length > 1 else 0 * position


def matrix(length: int, taps: Taps) -> np.ndarray:
    """Give the (length, length) matrix that correlates a column with the taps, its ends reflected."""
    reach = len(taps) // 2
    rows = np.arange(length)[:, None]
    made = np.zeros((length, length))
    np.add.at(made, (rows, mirrored(rows + np.arange(-reach, reach + 1), length)), np.array(taps))
    return made


def _make_band(length: int, several: tuple[Taps, ...], dtype: torch.dtype, device: torch.device) -> Band:
    full = np.stack([matrix(length, taps) for taps in several])
    band: Band = []
    with torch.inference_mode(False):  # a tensor of inference mode could not be used in training
        for start in range(0, length, BLOCK):
            block = full[:, start : start + BLOCK]
            used = np.flatnonzero(block.any(axis=(0, 1)))
            first, last = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
            flat = np.ascontiguousarray(block[:, :, first:last].reshape(-1, last - first))
            band.append((first, last, torch.tensor(flat, dtype=dtype, device=device)))
    return band


_kept_band = lru_cache(maxsize=64)(_make_band)


def _band(length: int, several: tuple[Taps, ...], image: Tensor) -> Band:
    make = _make_band if torch.compiler.is_compiling() else _kept_band  # a traced tensor must not be kept
    return make(length, several, image.dtype, image.device)


def along_columns(image: Tensor, *several: Taps) -> tuple[Tensor, ...]:
    """Filter every column of images (B, C, H, W) with each of some taps; the ends are reflected."""
    flat, num = image.flatten(0, 1), len(several)
    with full_precision(image):
        parts = [
            torch.bmm(block.expand(flat.shape[0], -1, -1), flat[:, first:last]).unflatten(1, (num, -1))
            for first, last, block in _band(image.shape[2], several, image)
        ]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return tuple(part.unflatten(0, image.shape[:2]) for part in whole.unbind(1))


def along_rows(image: Tensor, taps: Taps) -> Tensor:
    """Filter every row of images (B, C, H, W) with taps; the ends are reflected."""
    flat = image.flatten(0, 1)
    with full_precision(image):
        parts = [
            torch.bmm(flat[..., first:last], block.mT.expand(flat.shape[0], -1, -1))
            for first, last, block in _band(image.shape[3], (taps,), image)
        ]
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return whole.unflatten(0, image.shape[:2])


def blurred(image: Tensor, *sigmas: float) -> tuple[Tensor, ...]:
    """Blur images (B, C, H, W) with Gaussians, reflected at the border.

    Args:
        image: of any size, also smaller than the kernels.
        sigmas: standard deviations in pixels, each above 0.

    Returns:
        as many images as there are sigmas.
    """
    several = [gaussian_taps(sigma) for sigma in sigmas]
    return tuple(along_rows(part, taps) for part, taps in zip(along_columns(image, *several), several, strict=True))


def gradient(image: Tensor) -> tuple[Tensor, Tensor]:
    """Give the slope of images (B, C, H, W) to the right and downwards, by Sobel's operator, per pixel."""
    smooth, slope = along_columns(image, SMOOTH, SLOPE)
    return along_rows(smooth, SLOPE), along_rows(slope, SMOOTH)


@contextmanager
def full_precision(image: Tensor) -> Iterator[None]:
    """Keep products from being rounded to TF32 or bfloat16: a line is a small difference of large numbers."""
    kind = image.device.type
    if kind != "cuda" and not torch.is_autocast_enabled(kind):
        yield  # nothing to hold off, and nothing for an exporter to trip over
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def soft_threshold(value: Tensor, epsilon: float, phi: float) -> Tensor:
    """Give 1 from epsilon on, and below it 1 + tanh(phi (value - epsilon)), which falls towards 0."""
    return 1.0 + torch.tanh(phi * (value - epsilon).clamp(max=0.0))


def in_pixels(sigma: float, smallest: float, image: Tensor) -> float:
    """Scale a sigma that is meant for a short side of 256 pixels to this image's, but not below the smallest."""
    return max(sigma * min(image.shape[-2:]) / 256.0, smallest)


def number(name: str, value: float, low: float, high: float, *, open_end: bool = False) -> float:
    """Check an option at the door.

    Args:
        name: of the option.
        value: what was given for it.
        low: the least that is allowed; with `open_end` it is not allowed itself.
        high: the most that is allowed.
        open_end: whether the value must be above `low`.

    Raises:
        UserError: it is no number, or outside.
    """
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not right or not low <= value <= high or (open_end and value == low):
        start = "above" if open_end else "from"
        raise UserError(f"{name} = {value!r} cannot be used: give a number {start} {low:g} to {high:g}.")
    return float(value)


def whole(name: str, value: int, low: int, high: int) -> int:
    """Check an option that must be a whole number from `low` to `high`; errors as `number`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} = {value!r} cannot be used: give a whole number from {low} to {high}.")
    return value
