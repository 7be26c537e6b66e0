"""Batches of images from the store, each augmented on its own, all at once, on the store's device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from evenlens.errors import unknown

Augment = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(pixels (N, H, W, 3) uint8, rows (B,) there, generator on the CPU) -> (B, 3, H, W) uint8 or float in [0, 255]."""


def _on(device: torch.device, *draws: Tensor) -> list[Tensor]:
    """Bring what was made on the CPU to a device, which is not waited for."""
    return [draw.to(device, non_blocking=True) for draw in draws]


def none(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Leave every image as it is."""
    return pixels[rows].permute(0, 3, 1, 2)


def flip(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image, left to right."""
    return _window(pixels, rows, generator, pad=0)


def crop_flip(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Move every image by up to an eighth of its size, its edge mirrored outwards, and mirror every other one."""
    return _window(pixels, rows, generator, pad=pixels.shape[1] // 8)


def _window(pixels: Tensor, rows: Tensor, generator: torch.Generator, pad: int) -> Tensor:
    """Pick pixels by index: cropping and mirroring cost one copy, and no image is touched twice."""
    num, height, width = len(rows), pixels.shape[1], pixels.shape[2]
    shift = torch.randint(-pad, pad + 1, (2, num, 1), generator=generator)
    mirrored = torch.rand(num, 1, generator=generator) < 0.5
    y = _reflect(torch.arange(height) + shift[0], height)
    x = _reflect(torch.arange(width) + shift[1], width)
    x = torch.where(mirrored, width - 1 - x, x)
    y, x = _on(pixels.device, y, x)
    place = (rows[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
    chosen = pixels.view(-1, 3).index_select(0, place.view(-1))
    return chosen.view(num, height, width, 3).permute(0, 3, 1, 2)


def _reflect(position: Tensor, length: int) -> Tensor:
    return (length - 1) - ((length - 1) - position.abs()).abs()


def resized_crop_flip(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Cut a part of 8 to 100 % of the area, 3:4 to 4:3, resize it to the whole, and mirror every other one.

    The distribution of torchvision's RandomResizedCrop but for its ten tries: a part that would stick out is
    cut to the image's edge.
    """
    return _resized_window(pixels, rows, generator, smallest=0.08)


def resized_crop_flip_jitter(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Cut and mirror heavily, and change brightness, contrast and saturation: for the two views of contrastive methods.

    A part of 20 to 100 % of the area is resized to the whole, and every other image mirrored. In four of five images,
    brightness, contrast and saturation are each multiplied by 0.6 to 1.4. Hue is not turned and no image is made grey:
    colour may be what tells the groups apart, and a view that hides it would change the group that it stands for. So a
    grey image stays grey, and a coloured one coloured.
    """
    image = _resized_window(pixels, rows, generator, smallest=0.2)
    factor = torch.empty(3, len(rows), 1, 1, 1).uniform_(0.6, 1.4, generator=generator)
    changed = torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.8
    (factor,) = _on(image.device, torch.where(changed, factor, 1.0))
    return _jitter(image, *factor)


def rotate_flip_jitter(pixels: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror, for images without an up or down, and change brightness, contrast and hue a little.

    Mirrored left to right and top to bottom, each every other time; turned by up to 20 degrees either way, the corners
    filled with what is mirrored outwards; brightness and contrast times 0.9 to 1.1, hue turned by up to a tenth of the
    circle. The sketching study's augmentation of skin lesions (arXiv 2211.00168), whose corners were black.
    """
    from kornia.enhance import adjust_hue

    num, height, width = len(rows), pixels.shape[1], pixels.shape[2]
    mirrored = torch.where(torch.rand(2, num, generator=generator) < 0.5, -1.0, 1.0)
    angle = torch.empty(num).uniform_(-20.0, 20.0, generator=generator).deg2rad()
    factor = torch.empty(2, num, 1, 1, 1).uniform_(0.9, 1.1, generator=generator)
    hue = torch.empty(num).uniform_(-0.1, 0.1, generator=generator) * 2 * torch.pi
    theta = torch.zeros(num, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * mirrored[0], -angle.sin() * mirrored[0] * height / width
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * mirrored[1] * width / height, angle.cos() * mirrored[1]
    theta, factor, hue = _on(pixels.device, theta, factor, hue)
    image = pixels[rows].permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(theta, [num, 3, height, width], align_corners=False)
    turned = functional.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    brightness, contrast = factor.unbind()
    changed = _jitter(turned, brightness, contrast, torch.ones_like(contrast))
    return adjust_hue(changed / 255.0, hue).clamp_(0, 1) * 255.0


def _jitter(image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Multiply brightness, then contrast, then saturation, of images in [0, 255] by a factor of each (B, 1, 1, 1)."""
    image = (image * brightness).clamp_(0, 255)
    image = torch.lerp(_grey(image).mean((2, 3), keepdim=True), image, contrast).clamp_(0, 255)
    return torch.lerp(_grey(image), image, saturation).clamp_(0, 255)


def _grey(image: Tensor) -> Tensor:
    """Give the luma (B, 1, H, W) of images (B, 3, H, W)."""
    (weight,) = _on(image.device, torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1))
    return (image * weight).sum(1, keepdim=True)


def _resized_window(pixels: Tensor, rows: Tensor, generator: torch.Generator, smallest: float) -> Tensor:
    """Resize a part of at least this share of the area to the whole, and mirror every other one."""
    num, height, width = len(rows), pixels.shape[1], pixels.shape[2]
    area = torch.empty(num).uniform_(smallest, 1.0, generator=generator)
    aspect = torch.empty(num).uniform_(-0.2877, 0.2877, generator=generator).exp()  # log of 4/3
    tall, wide = (area / aspect).sqrt().clamp(max=1.0), (area * aspect).sqrt().clamp(max=1.0)
    offset = torch.rand(2, num, generator=generator) * 2 - 1
    sign = torch.where(torch.rand(num, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(num, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = wide * sign, offset[0] * (1 - wide)
    theta[:, 1, 1], theta[:, 1, 2] = tall, offset[1] * (1 - tall)
    (theta,) = _on(pixels.device, theta)
    image = pixels[rows].permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(theta, [num, 3, height, width], align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


AUGMENTS: dict[str, Augment] = {
    f.__name__: f for f in (none, flip, crop_flip, resized_crop_flip, resized_crop_flip_jitter, rotate_flip_jitter)
}


def get(name: str) -> Augment:
    """Look an augmentation up by name; an unknown name is answered with the nearest known one."""
    if name not in AUGMENTS:
        raise unknown("augmentation", name, AUGMENTS)
    return AUGMENTS[name]
