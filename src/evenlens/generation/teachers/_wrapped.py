"""What generators from elsewhere have in common: a function whose images, labels and batches are of another form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenlens.errors import UserError, unknown
from evenlens.generation.generator import Generator

Call = Callable[[Tensor, Tensor | None], Tensor]
"""Latents (B, D) and labels (B,), or one-hot labels (B, K), to images (B, 3, H, H)."""

RANGES = ("symmetric", "unit")
CLASS = "class"  # what labels are of, where nobody said
SAME = 1e-3  # what two images of one latent may differ by: a GPU does not add in the same order twice
BELOW = -0.1  # an image in [0, 1] that goes further below was meant otherwise


class Wrapped(Generator):
    """A generator that is a function from elsewhere.

    One latent is tried: it tells the size of the images, and whether the function is deterministic.

    Args:
        call: latents (B, D) float32, and labels where it takes some, to images (B, 3, H, H).
        range: of its images: "symmetric" for [-1, 1], "unit" for [0, 1].
        batch: the only number of images that it makes at once; 0 where any will do.
        one_hot: whether it takes labels as rows of zeros and a one (B, K) float32, not as numbers (B,) int64.
        about: as in `Generator`, without `size`.

    Raises:
        UserError: it fails, or what it gives are no images of this range, or others for the same latent.
    """

    def __init__(self, call: Call, *, range: str, batch: int = 0, one_hot: bool = False, **about: Any) -> None:
        super().__init__(size=0, **about)
        self._call, self._range, self._batch, self._one_hot = call, range, batch, one_hot
        self.size = self._tried()

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Map latents (B, D) and labels (B,) to images (B, 3, size, size)."""
        if label is not None and self._one_hot:
            label = torch.nn.functional.one_hot(label, len(self.labels)).float()
        image = self._made(latent, label).to(self.device)
        return (image + 1) / 2 if self._range == "symmetric" else image

    def _made(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Call it with as many as it takes; the last batch is filled up with its last latent."""
        if not self._batch or not len(latent):
            return self._call(latent, label)
        made = []
        for start in range(0, len(latent), self._batch):
            rows = torch.arange(start, start + self._batch, device=latent.device).clamp_max(len(latent) - 1)
            made.append(self._call(latent[rows], None if label is None else label[rows]))
        return torch.cat(made)[: len(latent)]

    @torch.inference_mode()
    def _tried(self) -> int:
        latent = self.latents(1, 0).to(self.device)
        label = torch.zeros(1, dtype=torch.int64, device=self.device) if self.labels else None
        try:
            one, two = self.draw(latent, label), self.draw(latent, label)
        except UserError:
            raise
        except Exception as error:  # of any kind: it is foreign code
            with_label = f" with one of {len(self.labels)} labels" if self.labels else ""
            raise UserError(
                f"{self.title} fails on one latent of {self.latent_size} numbers{with_label} ({in_brief(error)}): set "
                "what it takes with latent=..., labels=... or one_hot=..., whichever its kind has."
            ) from None
        form = tuple(one.shape)
        if len(form) != 4 or form[:2] != (1, 3) or form[2] != form[3] or not one.is_floating_point():
            raise UserError(
                f"{self.title} made {form} of {str(one.dtype).removeprefix('torch.')} of one latent, where an image "
                "(1, 3, H, H) in floats is wanted: put a step before its output that makes it so."
            )
        if not torch.allclose(one, two, rtol=0, atol=SAME, equal_nan=True):
            raise UserError(f"{self.title} makes another image each time of the same latent: make its noise constant.")
        if self._range == "unit" and float(one.min()) < BELOW:
            raise UserError(
                f"{self.title} made an image with {float(one.min()):.2f}, and [0, 1] is allowed: if its images are in "
                "[-1, 1], say so with range=symmetric, or map them in your function."
            )
        return form[2]


def check_range(given: str) -> str:
    """Refuse a range of images that is not known."""
    if given not in RANGES:
        raise unknown("range of images", str(given), RANGES)
    return given


def check_count(name: str, given: Any, least: int = 0) -> int:
    """Refuse what is no whole number, or too small."""
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise UserError(f"{name}={given!r} is not allowed: it is a whole number, {least} or more.")
    return given


def label_names(labels: int | str | Sequence[str], known: int = 0) -> tuple[str, ...]:
    """Name the labels that a generator takes.

    Args:
        labels: their names, or how many there are; 0 or nothing where nobody said.
        known: how many it takes, as it says itself; 0 where it does not.

    Raises:
        UserError: another number of names, or a name given twice.
    """
    if isinstance(labels, bool) or not isinstance(labels, int | str | list | tuple):
        raise UserError(f"labels={labels!r} is not allowed: give their names, labels=Black,White, or their number.")
    if isinstance(labels, int):
        names = tuple(map(str, range(check_count("labels", labels))))
    else:
        names = (labels,) if isinstance(labels, str) and labels else tuple(map(str, labels))
    names = names or tuple(map(str, range(known)))
    if known and len(names) != known:
        raise UserError(f"{len(names)} labels were named, and the generator takes {known}: name all, in its order.")
    if len(set(names)) < len(names):
        raise UserError(f"The labels {', '.join(names)} are not all different: give each a name of its own.")
    return names


def fingerprint(paths: Sequence[Path], settings: dict[str, Any]) -> str:
    """Hash files and settings to 16 hex digits."""
    found = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "blake2b").digest())
    return found.hexdigest()


def in_brief(error: Exception) -> str:
    """Say in one line what went wrong in foreign code."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
