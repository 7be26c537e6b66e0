"""A generator that is known by what it made: images and their latents, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.generator import Generator
from evenlens.generation.samples import Samples


def load(address: str, device: torch.device) -> Folder:
    """Open a folder of samples as the generator that made them; errors as in `Samples.open`, or of equal latents."""
    return Folder(Samples.open(Path(address)), device)


class Folder(Generator):
    """Gives the images that a generator made before, for the latents that it made them from, and for no others.

    With it a teacher that cannot be run here, or not any more, can be distilled, labelled and compared.
    """

    def __init__(self, samples: Samples, device: torch.device) -> None:
        pixels = samples.pixels()
        super().__init__(
            title=f"samples in {samples.folder.name}", latent_size=samples.latents.shape[1], size=pixels.shape[1],
            fingerprint=samples.fingerprint, device=device, settings={"samples": len(samples)},
        )  # fmt: skip
        self._pixels, self._samples = pixels, samples
        self._row = {latent.tobytes(): row for row, latent in enumerate(samples.latents)}
        if len(self._row) < len(samples):
            raise UserError(
                f"{samples.folder} has several images of one latent, so that a latent does not say which is meant: "
                "give a folder in which each image has its own."
            )

    def latents(self, count: int, seed: int) -> Tensor:
        """Choose latents (count, D) among those whose images there are, each at most once.

        Raises:
            UserError: there are not as many.
        """
        there = len(self._samples)
        if count > there:
            raise UserError(f"{self.title} are {there:,} images, and {count:,} are wanted: ask for at most as many.")
        rows = np.random.default_rng(seed).permutation(there)[:count]
        return torch.from_numpy(self._samples.latents[rows])

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Look images (B, 3, size, size) up by their latents (B, D), which are equal to the bit."""
        rows = [self._row.get(each.tobytes(), -1) for each in latent.cpu().numpy()]
        if -1 in rows:
            raise UserError(
                f"{self.title} have no image of latent {rows.index(-1)}: a folder makes no new ones, so give it "
                "latents that it holds."
            )
        return torch.from_numpy(self._pixels[rows]).to(self.device).permute(0, 3, 1, 2).float() / 255
