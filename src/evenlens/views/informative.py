"""Informative Drawings: line drawings by a published network, whose weights are not ours to ship."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenlens import view
from evenlens.errors import UserError
from evenlens.view import View

if TYPE_CHECKING:
    from evenlens.weights import Checkpoint

BLOCKS = 3  # of the published weights
CHANNELS = {1: "grey", 3: "RGB"}  # what a generator may take
MOST_PIXELS = 1 << 20  # drawn at a time: 16 images of 256 px, for which about 1 GB is needed
LONGEST = 8  # times `size`: the most that a long side becomes, so that a strip one pixel high does not fill the memory
SMALLEST = 8  # what the generator takes: at a quarter of it, a reflected border of 1 is still there
WHERE = (
    "the authors offer model.zip at drive.google.com, file 1MIdHzecxz-z0uY3ARL_R40DlKcuQxiDk, and in it "
    "netG_A_latest.pth of the anime, contour and opensketch style"
)


class Informative(View):
    """Draw the lines that a network has learned to draw, so that depth and meaning of the photograph stay.

    The network takes the image at a short side of `size` pixels (bicubic; 256 is what it was trained at, and small
    images come out poor without) and its drawing is brought back to the image's own size (bilinear, averaging where
    it gets smaller). It is a convolution, two that halve the size, residual blocks, two that double it, and a
    convolution under a sigmoid, each but the last with instance normalisation, so that an image is drawn by itself.
    What is not a multiple of 4 is reflected at the right and at the bottom, and cut off again. An image with sides of
    more than 1 to 8 is drawn with a long side of 8 x `size`.

    Its weights are not part of evenlens. The file is the authors' state dict, as torch or safetensors saves it; nothing
    but tensors is read from it.

    Args:
        weights: path of the file.
        sha256: of the file, or how it begins, at least 8 hex digits; another file is refused. Found if not given.
        blocks: residual blocks, at least 1; found in the file: 0 means so, and 3 where there is none.
        channels: of the input, 3 or, for a network of grey images, 1; found in the file: 0 means so, and 3 where there
            is none.
        size: short side in pixels while drawing, from 16 to 4096; 0 for the image's own, which takes about 1 kB of
            memory a pixel.

    Source: Chan, Durand and Isola, 2022, Learning to generate line drawings that convey geometry and semantics, arXiv
    2203.12691.
    Differs from the authors' code: the drawing has the image's size, where theirs keeps 256 pixels and rounds odd sizes
    up by as much as 3; a long side is bounded.
    """

    title: ClassVar[str] = "Informative Drawings (Chan, Durand and Isola, 2022)"

    def __init__(
        self, *, weights: str = "", sha256: str = "", blocks: int = 0, channels: int = 0, size: int = 256
    ) -> None:
        if sha256 and (len(sha256) < 8 or not weights):
            raise UserError(f"informative: sha256={sha256} is at least 8 hex digits, of the file that weights names.")
        if blocks < 0:
            raise UserError(f"informative: blocks={blocks} is not allowed: at least 1, or 0 to find them in the file.")
        if channels not in (0, *CHANNELS):
            raise UserError(f"informative: channels={channels} is not allowed: 3 for RGB, 1 for grey, or 0 to find it.")
        if size != 0 and not 16 <= size <= 4096:
            raise UserError(
                f"informative: size={size} is not allowed: from 16 to 4096 pixels, or 0 for the image's own."
            )
        super().__init__()
        self.weights, self.sha256, self.size = weights, sha256.lower(), size
        self.generator = Generator(blocks or BLOCKS, channels or 3).eval().requires_grad_(False)

    @classmethod
    def settle(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Find in the file what is not given: its hash, the number of blocks and of channels."""
        found = ("sha256", "blocks", "channels")
        if not options["weights"] or all(options[name] for name in found):
            return options
        checkpoint = _read(options["weights"], options["sha256"])
        shapes = _shapes(checkpoint, options["blocks"], options["channels"])
        return {**options, **dict(zip(found, (checkpoint.sha256, *shapes), strict=True))}

    def prepare(self) -> None:
        """Load the file.

        Raises:
            UserError: none is named, it is another one than before, or it does not fit.
        """
        if not self.weights:
            raise UserError(f"informative draws with published weights: get them ({WHERE}) and name weights=FILE.")
        checkpoint = _read(self.weights, self.sha256)
        _shapes(checkpoint, self.generator.blocks, self.generator.channels)
        self.generator.load_state_dict(checkpoint.state)

    def draw(self, image: Tensor) -> Tensor:
        """Draw images (B, 3, H, W), a bounded number of pixels at a time."""
        if self.generator.channels == 1:
            image = view.grey(image)
        height, width = self._drawn_at(*image.shape[2:])
        if torch.compiler.is_compiling():  # an exported program has no bound, as its batch has no number
            return self._draw(image, height, width)
        most = max(1, MOST_PIXELS // (height * width))
        return torch.cat([self._draw(part, height, width) for part in image.split(most)])

    def _drawn_at(self, height: int, width: int) -> tuple[int, int]:
        if not self.size:
            return height, width
        scale = min(self.size / min(height, width), LONGEST * self.size / max(height, width))
        return max(1, int(height * scale + 1e-6)), max(1, int(width * scale + 1e-6))  # as torchvision rounds: down

    def _draw(self, image: Tensor, height: int, width: int) -> Tensor:
        own = tuple(image.shape[2:])
        if own != (height, width):
            image = functional.interpolate(image, (height, width), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        drawn = self.generator(_reflected(_reflected(image, 2), 3))[:, :, :height, :width]
        if own != (height, width):
            drawn = functional.interpolate(drawn, own, mode="bilinear", antialias=True).clamp(0.0, 1.0)
        return drawn


def _reflected(image: Tensor, dim: int) -> Tensor:
    """Go on at the end of a dimension by reflecting, up to a multiple of 4; an image may be smaller than what is added.

    Pixels 0 to n - 1 are followed by n - 2, n - 3, ... 0, 1, and so on, as torch's own reflection has it where it can.
    """
    num = image.shape[dim]
    wanted = max(SMALLEST, 4 * -(-num // 4))
    if wanted == num:
        return image
    place = torch.arange(wanted, device=image.device) % max(1, 2 * (num - 1))
    return image.index_select(dim, torch.minimum(place, 2 * (num - 1) - place))


# ---- the network


class Generator(nn.Module):
    """The authors' network: images (B, `channels`, H, W) in [0, 1] to drawings (B, 1, H', W') in [0, 1].

    H' is 4 ceil(ceil(H / 2) / 2), and W' likewise; H and W are at least 5. Names and order of its layers are those of
    the published files, in which paddings and normalisations count. Fresh weights are the same everywhere, N(0, 0.02)
    as in the paper, and the global stream of random numbers is left alone.
    """

    def __init__(self, blocks: int = BLOCKS, channels: int = 3) -> None:
        super().__init__()
        self.blocks, self.channels = blocks, channels
        with torch.device("meta"):
            self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(channels, 64, 7), *_normed(64))
            self.model1 = nn.Sequential(
                *(nn.Conv2d(64, 128, 3, 2, 1), *_normed(128)), *(nn.Conv2d(128, 256, 3, 2, 1), *_normed(256))
            )
            self.model2 = nn.Sequential(*(_Residual(256) for _ in range(blocks)))
            self.model3 = nn.Sequential(
                *(nn.ConvTranspose2d(256, 128, 3, 2, 1, output_padding=1), *_normed(128)),
                *(nn.ConvTranspose2d(128, 64, 3, 2, 1, output_padding=1), *_normed(64)),
            )
            self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(64, 1, 7), nn.Sigmoid())
        self.to_empty(device="cpu")
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in self.parameters():
                value.normal_(0.0, 0.02, generator=random)

    def forward(self, image: Tensor) -> Tensor:
        """Draw."""
        return self.model4(self.model3(self.model2(self.model1(self.model0(image)))))


class _Residual(nn.Module):
    """Two convolutions, whose output is added to the input as it is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first = (nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), *_normed(width))
        self.conv_block = nn.Sequential(
            *first, nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def _normed(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(width), nn.ReLU()


# ---- the file


def _read(weights: str, sha256: str) -> Checkpoint:
    from evenlens.weights import read

    checkpoint = read(Path(weights).expanduser())
    if not checkpoint.sha256.startswith(sha256.lower()):
        raise UserError(f"{weights} is another file than sha256={sha256} says: its own is {checkpoint.sha256}.")
    return checkpoint


def _shapes(checkpoint: Checkpoint, blocks: int = 0, channels: int = 0) -> tuple[int, int]:
    """Give the number of blocks and of input channels in a file whose entries all fit.

    Args:
        checkpoint: as read.
        blocks: how many there must be; 0 for as many as there are.
        channels: likewise.

    Raises:
        UserError: the first entry that is lacking, has another shape, or has no place.
    """
    state = checkpoint.state
    numbers = {found[1] for name in state if (found := re.match(r"model2\.(\d+)\.", name))}
    first = state.get("model0.1.weight", torch.empty(0))
    channels = channels or (first.shape[1] if first.dim() == 4 and first.shape[1] in CHANNELS else 3)
    blocks = blocks or len(numbers) or BLOCKS
    wanted = {name: value.shape for name, value in Generator(blocks, channels).state_dict().items()}
    wrong = f"{checkpoint.path} is no generator of Informative Drawings with {blocks} blocks and {channels} channels: "
    for name, shape in wanted.items():
        if name not in state:
            raise UserError(f"{wrong}it has no {name}; {WHERE}.")
        if state[name].shape != shape:
            raise UserError(f"{wrong}{name} is {tuple(state[name].shape)} there, and {tuple(shape)} is wanted.")
    odd = next((name for name in state if name not in wanted), None)
    if odd is not None:
        raise UserError(f"{wrong}{odd} {tuple(state[odd].shape)} has no place in it.")
    return blocks, channels
