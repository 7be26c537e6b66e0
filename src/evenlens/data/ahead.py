"""Reading ahead: while one batch is worked on, the disk fetches the rows of the next ones.

Which rows an epoch visits is known before it begins. Left to page faults, a map that is not in memory is read page by
page, each asked for when the one before has come: the disk has one thing to do at a time.
"""

from __future__ import annotations

import io
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from evenlens.processes import memory

WINDOW = 32 << 20  # bytes of rows that the disk is asked for together, sorted by their place in the file
PIECE = 128 << 10  # bytes of one request: of a longer one Linux may fetch no more than the beginning


class ReadAhead:
    """Reads batches of rows from a store's file, which the disk was asked for before their turn.

    They are the rows of the map, to the bit. What is in the system's cache already is not fetched again, and what was
    read stays there while there is room; the process itself holds one batch.
    """

    def __init__(self, pixels: np.memmap) -> None:
        """Take images (M, H, W, 3), uint8, as `evenlens.data.images` maps them from a file."""
        self.shape, self.row_bytes = pixels.shape[1:], pixels[0].nbytes
        self.file = io.FileIO(str(pixels.filename))
        weakref.finalize(self, self.file.close)
        # without it, Linux fetches what lies around a row, too
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Read batches one after another.

        Args:
            batches: of each the rows (B,) of the store, in any order, repeats allowed.

        Yields:
            The images of each batch, (B, H, W, 3) uint8.

        Raises:
            OSError: the disk fails, or the file has become shorter.
        """
        num = max(1, WINDOW // (self.row_bytes * max(1, len(batches[0])))) if batches else 1
        windows = [batches[start : start + num] for start in range(0, len(batches), num)]
        with ThreadPoolExecutor(1) as aside:  # a request waits while the disk has as many as it takes
            asking = aside.submit(self._ask, windows[0] if windows else [])
            for window, following in zip(windows, [*windows[1:], []], strict=False):
                asking.result()
                asking = aside.submit(self._ask, following)
                yield from map(self._rows, window)

    def _ask(self, window: Sequence[Tensor]) -> None:
        size = self.row_bytes
        for row in torch.cat([torch.arange(0), *window]).unique().tolist():  # sorted
            for start in range(row * size, (row + 1) * size, PIECE):
                os.posix_fadvise(self.file.fileno(), start, min(PIECE, size), os.POSIX_FADV_WILLNEED)

    def _rows(self, rows: Tensor) -> Tensor:
        images = np.empty((len(rows), *self.shape), np.uint8)
        for place, row in enumerate(rows.tolist()):
            if os.preadv(self.file.fileno(), [images[place]], row * self.row_bytes) != self.row_bytes:
                raise OSError(f"The image store ends before its image {row}: it was changed while it was read.")
        return torch.from_numpy(images)


def where_needed(pixels: np.ndarray) -> ReadAhead | None:
    """Read ahead where the images lie in a file that is larger than half of the memory; else their map is faster.

    Only on Linux: macOS and Windows take no such advice.
    """
    if sys.platform != "linux" or not isinstance(pixels, np.memmap) or pixels.nbytes <= memory() / 2:
        return None
    return ReadAhead(pixels)
