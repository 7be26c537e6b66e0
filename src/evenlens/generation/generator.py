"""Generator: what makes images from latents, whatever it is inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evenlens.errors import UserError


class Generator:
    """What makes images from latents, and, if it can be asked to, of a group.

    A subclass stands in its own file of `evenlens.generation.teachers` and writes `draw`. It is deterministic: the same
    latent gives the same image. Images are in [0, 1], as everywhere here.

    Attributes:
        title: what it is, for tables.
        latent_size: numbers of a latent, D.
        size: height and width of its images in pixels.
        attribute: what its labels are of, such as "race"; "" where it takes none.
        labels: names of what it can be asked for, in order; none where it takes no label.
        levels: of each label, the class of each attribute: more than one where it is asked for a combination.
        fingerprint: 16 hex digits that change when it would make other images.
        num_parameters: of its network; 0 where that is not known.
        num_bytes: of its file; 0 where there is none.
        settings: what else decides on its images, such as the truncation; it is written down with what it makes.
        device: where it computes.
    """

    def __init__(
        self,
        *,
        title: str,
        latent_size: int,
        size: int,
        fingerprint: str,
        attribute: str = "",
        labels: tuple[str, ...] = (),
        levels: Sequence[Mapping[str, str]] = (),
        num_parameters: int = 0,
        num_bytes: int = 0,
        settings: dict[str, Any] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.title, self.latent_size, self.size, self.fingerprint = title, latent_size, size, fingerprint
        self.attribute, self.labels = attribute, labels
        self.levels = tuple(levels) or tuple({attribute: name} for name in labels)
        self.num_parameters, self.num_bytes = num_parameters, num_bytes
        self.settings = settings or {}
        self.device = device or torch.device("cpu")

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Map latents (B, D) float32, and labels (B,) int64 where it takes some, to images (B, 3, size, size).

        Both lie on `device`. What lies outside [0, 1] is clipped by the caller.
        """
        raise NotImplementedError

    def latents(self, count: int, seed: int) -> Tensor:
        """Give latents (count, D) on the CPU as the generator expects them: drawn from a normal distribution."""
        return torch.randn(count, self.latent_size, generator=torch.Generator().manual_seed(seed))

    def check(self, latent: Tensor, label: Tensor | None = None) -> None:
        """Refuse latents or labels that are not this generator's.

        Raises:
            UserError: saying what it takes.
        """
        if latent.ndim != 2 or latent.shape[1] != self.latent_size:
            raise UserError(
                f"{self.title} takes latents of {self.latent_size} numbers, and was given {tuple(latent.shape)}: give "
                "one row of that length for each image."
            )
        if label is None and self.labels:
            raise UserError(f"{self.title} makes images of a given {self.attribute}: say which, one label for each.")
        if label is not None and not self.labels:
            raise UserError(f"{self.title} takes no labels: it makes what its latents say.")
        if label is not None and (
            label.shape != latent.shape[:1]
            or label.is_floating_point()
            or not ((label >= 0) & (label < len(self.labels))).all()
        ):
            raise UserError(f"{self.title} takes one label for each latent, a number from 0 to {len(self.labels) - 1}.")

    @torch.inference_mode()
    def sample(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        """Make images (B, 3, size, size) in [0, 1], float32, on `device`.

        Args:
            latent: (B, D).
            label: (B,) int64 in [0, len(labels)); None for a generator without labels.

        Raises:
            UserError: latents or labels of another form, or an image that holds a number that is not finite.
        """
        self.check(latent, label)
        label = label.to(self.device) if label is not None else None
        image = self.draw(latent.to(self.device, torch.float32), label).float()
        wanted = (len(latent), 3, self.size, self.size)
        if image.shape != wanted:
            raise UserError(f"{self.title} made images of the shape {tuple(image.shape)}, where {wanted} is wanted.")
        wrong = (~image.isfinite()).flatten(1).any(1).nonzero()
        if len(wrong):
            raise UserError(
                f"{self.title} made {len(wrong)} of {len(latent)} images with numbers that are not finite, such as "
                f"that of latent {int(wrong[0])}: these latents, or its weights, are damaged."
            )
        return image.clamp(0, 1)
