"""Coherent lines: a difference of Gaussians across the flow of edges, gathered along it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evenlens import view
from evenlens.view import View
from evenlens.views import _filters as filters

TINY = 1e-6  # length below which a direction is none


class CoherentLines(View):
    """Draw long smooth lines: edges are detected across their direction and gathered along it.

    1. Flow: the tangent t of each pixel, a right angle from Sobel's gradient, is replaced `rounds` times by the sum
       over neighbours y of w(x, y) (t(x) . t(y)) t(y), made a unit again. w = (1 + tanh(n(y) - n(x))) / 2 lets steeper
       neighbours weigh more, with n the length of the gradient by its largest in the image.
    2. Across: F(x) = sum over s of (G(sigma; s) - rho G(1.6 sigma; s)) g(x + s u), u at a right angle to t.
    3. Along: H(x) = the mean of F with weights G(flow; s) on the curve that follows t from x, both ways.
    4. Ink where H < 0 and 1 + tanh(H) < tau; every pixel is 0 or 1.

    `tau` is an absolute difference of luma: half the exposure, fewer lines.

    Args:
        sigma: standard deviation across, for a short side of 256 pixels, above 0 to 16; it grows with the image.
        smallest_sigma: but not below this many pixels, 0.3 to 16.
        flow: standard deviation along, for a short side of 256 pixels, above 0 to 32; at least twice the one across.
        rho: weight of the surroundings, 0 to 1: below 1 there is less noise.
        tau: how dark 1 + tanh(H) may be without ink, 0 to 1.
        radius: of the neighbours that smooth the flow, 1 to 16 pixels.
        rounds: how often it is smoothed, 0 to 10.

    Source: Kang, Lee and Chui, 2007, Coherent line drawing, NPAR, doi 10.1145/1274871.1274878.
    Differs from the paper: the flow is smoothed along rows and then along columns, not over a disc, as the authors do
        in Flow-based image abstraction (2009, doi 10.1109/TVCG.2008.81); the drawing is not put back on the image to be
        drawn once more.
    """

    title: ClassVar[str] = "Coherent lines (Kang et al., 2007)"

    def __init__(
        self,
        *,
        sigma: float = 1.5,
        smallest_sigma: float = 0.5,
        flow: float = 3.0,
        rho: float = 0.997,
        tau: float = 0.998,
        radius: int = 4,
        rounds: int = 2,
    ) -> None:
        super().__init__()
        self.sigma = filters.number("sigma", sigma, 0, 16, open_end=True)
        self.smallest_sigma = filters.number("smallest_sigma", smallest_sigma, 0.3, 16)
        self.flow = filters.number("flow", flow, 0, 32, open_end=True)
        self.rho = filters.number("rho", rho, 0, 1)
        self.tau = filters.number("tau", tau, 0, 1)
        self.radius = filters.whole("radius", radius, 1, 16)
        self.rounds = filters.whole("rounds", rounds, 0, 10)

    def draw(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to drawings (B, 1, H, W) of zeros and ones."""
        luma = view.grey(image)
        sigma = filters.in_pixels(self.sigma, self.smallest_sigma, image)
        tangent = edge_flow(luma, self.radius, self.rounds)
        across = difference_across(luma, tangent, sigma, self.rho)
        gathered = gather_along(across, tangent, filters.in_pixels(self.flow, 2.0 * sigma, image))
        return 1.0 - ((gathered < 0.0) & (1.0 + torch.tanh(gathered) < self.tau)).to(luma.dtype)


def edge_flow(luma: Tensor, radius: int, rounds: int) -> Tensor:
    """Give the smoothed direction of edges.

    Args:
        luma: (B, 1, H, W).
        radius: of the neighbours that are looked at, in pixels.
        rounds: how often it is smoothed.

    Returns:
        (B, 2, H, W), steps to the right and downwards, of length one; zero where there is no edge nearby.
    """
    right, down = filters.gradient(luma)
    length = (right.square() + down.square()).sqrt()
    tangent = _unit(torch.cat([-down, right], dim=1))
    steep = torch.tanh(length / length.amax((-2, -1), keepdim=True).clamp(min=TINY))
    for _ in range(rounds):
        for dimension in (-1, -2):
            tangent = _unit(_smoothed(tangent, steep, radius, dimension))
    return tangent


def _unit(vectors: Tensor) -> Tensor:
    length = vectors.square().sum(1, keepdim=True).sqrt()
    return torch.where(length > TINY, vectors / length.clamp(min=TINY), torch.zeros_like(vectors))


def _smoothed(tangent: Tensor, steep: Tensor, radius: int, dimension: int) -> Tensor:
    """Sum over neighbours along one dimension; `steep` is the tanh of the gradient's length."""
    size = tangent.shape[dimension]
    pad = (radius, radius) if dimension == -1 else (0, 0, radius, radius)
    tangents, steeps = functional.pad(tangent, pad), functional.pad(steep, pad)  # no direction outside, so no weight
    total = tangent * 0.5
    for start in (k for k in range(2 * radius + 1) if k != radius):
        other, steeper = tangents.narrow(dimension, start, size), steeps.narrow(dimension, start, size)
        # tanh(n(y) - n(x)) from the two tanh, by the addition theorem
        weight = 0.5 + 0.5 * (steeper - steep) / (1.0 - steeper * steep)
        total = total + weight * (tangent * other).sum(1, keepdim=True) * other
    return total


def difference_across(luma: Tensor, tangent: Tensor, sigma: float, rho: float) -> Tensor:
    """Filter images (B, 1, H, W) with G(sigma) - rho G(1.6 sigma), sampled at a right angle to the tangent."""
    outer = filters.gaussian_taps(1.6 * sigma)
    inner = filters.gaussian_taps(sigma)
    margin = (len(outer) - len(inner)) // 2
    here = _places(luma)
    normal = torch.stack([tangent[:, 1], -tangent[:, 0]], dim=-1)
    total = torch.zeros_like(luma)
    for k, wide in enumerate(outer):
        narrow = inner[k - margin] if margin <= k < len(outer) - margin else 0.0
        total = total + (narrow - rho * wide) * _look_up(luma, here + (k - len(outer) // 2) * normal)
    return total


def gather_along(response: Tensor, tangent: Tensor, sigma: float) -> Tensor:
    """Average (B, 1, H, W) with Gaussian weights along the curve that follows the tangent from each pixel both ways.

    The curve is followed in steps of a pixel. Where there is no direction it stands still.
    """
    steps = max(int(2.0 * sigma + 0.5), 1)
    weights = [float(torch.exp(torch.tensor(-0.5 * (step / sigma) ** 2))) for step in range(steps + 1)]
    field = torch.cat([tangent, response], dim=1)
    total = response * weights[0]
    for sign in (1.0, -1.0):
        place, heading = _places(response), sign * tangent.permute(0, 2, 3, 1)
        for weight in weights[1:]:
            place = place + heading
            found = _look_up(field, place)
            total = total + weight * found[:, 2:]
            ahead = _unit(found[:, :2]).permute(0, 2, 3, 1)
            heading = torch.where((ahead * heading).sum(-1, keepdim=True) < 0.0, -ahead, ahead)  # no turning back
    return total / (weights[0] + 2.0 * sum(weights[1:]))


def _places(image: Tensor) -> Tensor:
    """Give the column and row of every pixel, (1, H, W, 2)."""
    height, width = image.shape[-2:]
    down = torch.arange(height, dtype=image.dtype, device=image.device)[:, None].expand(height, width)
    right = torch.arange(width, dtype=image.dtype, device=image.device).expand(height, width)
    return torch.stack([right, down], dim=-1)[None]


def _look_up(image: Tensor, place: Tensor) -> Tensor:
    """Interpolate images (B, C, H, W) at columns and rows (B, H, W, 2); outside, the nearest pixel counts."""
    height, width = image.shape[-2:]
    scale = torch.tensor([2.0 / width, 2.0 / height], dtype=image.dtype, device=image.device)
    grid = (place + 0.5) * scale - 1.0
    return functional.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
