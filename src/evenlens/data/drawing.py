"""What a view makes of a store's images: drawn once, all of a batch together, into a store of its own."""

from __future__ import annotations

import json
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenlens import engine, views
from evenlens.config import PHOTOGRAPH
from evenlens.data import images
from evenlens.data.dataset import to_tensor
from evenlens.data.images import CHUNK, Chunk, ImageStore, Progress, Shape
from evenlens.processes import cores
from evenlens.view import View

BATCH_PIXELS, CORE_PIXELS = 1 << 22, 1 << 19  # of a batch that a GPU draws at once, and that a core does


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
        pixels, digests = images.mapped(folder, shape)
        for start in waiting:
            chunk = slice(start, start + CHUNK)
            pixels[chunk], digests[chunk] = draw_pixels(view, store.pixels[chunk]), store.digests[chunk]
            yield start, {}, images.checksum(pixels, digests, start)

    drawn = images.open_filled(store.pixels.shape, fill, source=source, name=name, progress=progress)
    return replace(drawn, fingerprint=store.fingerprint, damaged=store.damaged)


def draw_pixels(view: View, pixels: np.ndarray) -> np.ndarray:
    """Draw images (B, H, W, 3) in uint8, a bounded number of pixels at a time; give the same shape and type.

    On processors each core draws batches of its own, which is faster than all cores at one, above all where they are
    shared with others.
    """
    device = engine.start()
    view = view.to(device)
    on_cpu = device.type == "cpu"
    size = max(1, (CORE_PIXELS if on_cpu else BATCH_PIXELS) // max(1, pixels.shape[1] * pixels.shape[2]))
    batches = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    workers = min(cores(), len(batches)) if on_cpu else 1
    if workers <= 1:
        made = [_draw(view, device, batch) for batch in batches]
    else:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            made = list(pool.map(partial(_draw, view, device), batches))
    return np.concatenate(made) if made else np.empty_like(pixels)


@torch.inference_mode()
def _draw(view: View, device: torch.device, pixels: np.ndarray) -> np.ndarray:
    image = to_tensor(np.ascontiguousarray(pixels)).to(device)
    shown = view(image.permute(0, 3, 1, 2).float().div_(255.0))
    return shown.mul(255.0).round_().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
