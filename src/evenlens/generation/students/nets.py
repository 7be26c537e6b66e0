"""The networks of distillation: a small generator of images, and the discriminator that it learns against."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, leaky_relu, relu
from torch.nn.utils.parametrizations import spectral_norm

from evenlens.errors import UserError

SMALLEST = 4  # pixels of the first feature map
LEAK = 0.01
SIZES = tuple(SMALLEST * 2**n for n in range(1, 8))


def doublings(size: int) -> int:
    """Give how often 4 pixels are doubled to reach this size.

    Raises:
        UserError: it is no power of two from 8 to 512.
    """
    if size not in SIZES:
        known = ", ".join(map(str, SIZES))
        raise UserError(f"Images of {size} pixels cannot be made: a student's size is one of {known}.")
    return int(math.log2(size // SMALLEST))


class Norm(nn.Module):
    """Batch normalisation whose scale and shift are those of the wanted label; without labels it has none.

    Differs from TinyGAN's code, in which a slip gives scale and shift the same first values: here they are 1 and 0.
    """

    def __init__(self, channels: int, num_labels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Embedding(num_labels, channels) if num_labels else None
        self.shift = nn.Embedding(num_labels, channels) if num_labels else None
        if self.scale is not None and self.shift is not None:
            nn.init.ones_(self.scale.weight)
            nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Normalise (B, C, H, W)."""
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        return x * self.scale(label)[:, :, None, None] + self.shift(label)[:, :, None, None]


class Block(nn.Module):
    """Twice the size by two depthwise separable convolutions, beside a shortcut."""

    def __init__(self, before: int, after: int, num_labels: int) -> None:
        super().__init__()
        self.first, self.second = Norm(before, num_labels), Norm(after, num_labels)
        self.depth1 = nn.Conv2d(before, before, 3, padding=1, groups=before)
        self.point1 = nn.Conv2d(before, after, 1)
        self.depth2 = nn.Conv2d(after, after, 3, padding=1, groups=after)
        self.point2 = nn.Conv2d(after, after, 1)
        self.shortcut = nn.Conv2d(before, after, 1)
        for layer in (self.depth1, self.depth2):
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))
        for layer in (self.point1, self.point2, self.shortcut):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        """Map (B, before, H, W) to (B, after, 2 H, 2 W)."""
        y = self.point1(self.depth1(_twice(relu(self.first(x, label)))))
        y = self.point2(self.depth2(relu(self.second(y, label))))
        return y + self.shortcut(_twice(x))


def _twice(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class StudentNet(nn.Module):
    """A small generator after TinyGAN: a linear layer to 4 x 4, and blocks that double the size.

    With size 128, latents of 512 and 64 channels it has 13,348,611 parameters, less than half of StyleGAN2's 30,370,060
    at 1024 pixels.

    Args:
        size: height and width of its images, a power of two from 8 to 512.
        latent_size: numbers of a latent.
        channels: of the last feature map; each earlier one has twice as many, the first two the same.
        num_labels: labels that it can be asked for; 0 for none. With labels each batch normalisation has a scale and
            a shift for each of them.

    Source: Chang and Lu, 2020, TinyGAN: distilling BigGAN for conditional image generation, arXiv 2009.13829.
    """

    def __init__(self, *, size: int = 128, latent_size: int = 512, channels: int = 64, num_labels: int = 0) -> None:
        super().__init__()
        self.size, self.latent_size, self.channels, self.num_labels = size, latent_size, channels, num_labels
        num = doublings(size)
        widths = [channels * 2 ** max(num - 1 - k, 0) for k in range(num)]
        self.start = nn.Linear(latent_size, widths[0] * SMALLEST**2)
        self.blocks = nn.ModuleList(
            Block(before, after, num_labels) for before, after in zip([widths[0], *widths], widths, strict=False)
        )
        self.norm = nn.BatchNorm2d(channels)
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def settings(self) -> dict[str, int]:
        """Give what builds it anew."""
        return {"size": self.size, "latent_size": self.latent_size, "channels": self.channels,
                "num_labels": self.num_labels}  # fmt: skip

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents (B, latent_size), and labels (B,) if it has some, to images (B, 3, size, size) in [-1, 1]."""
        x = self.start(latent).unflatten(1, (-1, SMALLEST, SMALLEST))
        for block in self.blocks:
            x = block(x, label)
        return torch.tanh(self.last(relu(self.norm(x))))


class Discriminator(nn.Module):
    """Tells made images from those to be learned; its layers' outputs are compared, too.

    Each layer halves the size by a convolution of 4 x 4 under spectral normalisation; what is left is summed up and
    mapped to one logit. With labels the logit has a part that says whether the image is of its label. At 128 pixels and
    64 channels it has 11,147,201 parameters.

    Args:
        size: height and width of images, a power of two from 8 to 512.
        channels: of the first layer; each further one has twice as many.
        num_labels: labels of images; 0 for none.

    Source: Chang and Lu, 2020, arXiv 2009.13829; the label's part: Miyato and Koyama, 2018, arXiv 1802.05637.
    """

    def __init__(self, *, size: int = 128, channels: int = 64, num_labels: int = 0) -> None:
        super().__init__()
        widths = [3, *(channels * 2**k for k in range(doublings(size)))]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1)) for before, after in pairwise(widths)
        )
        self.last = spectral_norm(nn.Linear(widths[-1], 1))
        self.of_label = spectral_norm(nn.Embedding(num_labels, widths[-1])) if num_labels else None

    def forward(self, image: Tensor, label: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Map images (B, 3, size, size) in [-1, 1] to logits (B,) and each layer's output (B, C, H, W)."""
        found = []
        for layer in self.layers:
            image = leaky_relu(layer(image), LEAK)
            found.append(image)
        summed = image.sum((2, 3))
        logit = self.last(summed)[:, 0]
        if self.of_label is not None:
            logit = logit + (self.of_label(label) * summed).sum(1)
        return logit, found
