"""What a view makes of a store's images: drawn once, all of a batch together, into a store of its own."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenlens import engine, views
from evenlens.config import PHOTOGRAPH
from evenlens.data import images
from evenlens.data.images import CHUNK, Chunk, ImageStore, Progress, Shape
from evenlens.view import View

BATCH_PIXELS = 1 << 22  # of a batch that is drawn at once: 256 images of 128 px


def draw_store(store: ImageStore, name: str, options: dict[str, Any], progress: Progress | None = None) -> ImageStore:
    """Show a store through a view; what is not drawn yet is drawn, and a killed run goes on where it was.

    The drawings' key is the photographs' fingerprint and the view with its options. Their own fingerprint and digests
    are those of the photographs, which say what was looked at: a drawing may differ in its last bit from one device to
    the next.

    Args:
        store: of photographs.
        name: of the view.
        options: of the view, as `views.settle` gives them.
        progress: called with (images drawn, N).
    """
    if name == PHOTOGRAPH:
        return store
    settings = json.dumps(options, sort_keys=True, default=str)
    source = f"{store.fingerprint}\n{name} {views.get(name).version}\n{settings}"

    def fill(folder: Path, shape: Shape, waiting: list[int]) -> Generator[Chunk, None, None]:
        view = views.build(name, options)
        view.prepare()
        view.to(engine.start())
        pixels, digests = images.mapped(folder, shape)
        for start in waiting:
            chunk = slice(start, start + CHUNK)
            pixels[chunk], digests[chunk] = draw_pixels(view, store.pixels[chunk]), store.digests[chunk]
            yield start, {}, images.checksum(pixels, digests, start)

    drawn = images.open_filled(store.pixels.shape, fill, source=source, name=name, progress=progress)
    return replace(drawn, fingerprint=store.fingerprint, damaged=store.damaged)


@torch.inference_mode()
def draw_pixels(view: View, pixels: np.ndarray) -> np.ndarray:
    """Draw images (B, H, W, 3) in uint8, a bounded number of pixels at a time; give the same shape and type."""
    device = engine.start()
    size = max(1, BATCH_PIXELS // (pixels.shape[1] * pixels.shape[2]))
    made = []
    for start in range(0, len(pixels), size):
        image = torch.from_numpy(np.ascontiguousarray(pixels[start : start + size])).to(device)
        shown = view(image.permute(0, 3, 1, 2).float().div_(255.0))
        made.append(shown.mul(255.0).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(made) if made else np.empty_like(pixels)
