"""The image store: every image made once, into one memory-mapped file of bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from filelock import FileLock
from PIL import Image, ImageOps

CHUNK = 256  # images between two entries of the journal: what a killed run may have to do again
FORMAT = 1  # of the store's files; part of its key

Progress = Callable[[int, int], None]
"""Called with (how many are done, how many there are)."""


def cache_folder() -> Path:
    """Give the folder for what can be made again: `$EVENLENS_CACHE`, else the platform's own."""
    return Path(os.environ.get("EVENLENS_CACHE") or platformdirs.user_cache_dir("evenlens"))


@dataclass(frozen=True)
class ImageStore:
    """N images of one size as bytes, mapped from a file: nothing is read before it is used.

    Attributes:
        pixels: (N, size, size, 3) uint8.
        fingerprint: 16 hex digits of a hash over the bytes of all images.
        damaged: why an image could not be read, by its position; its pixels are black.
    """

    pixels: np.ndarray
    fingerprint: str
    damaged: dict[int, str]


def decode(path: Path, size: int) -> np.ndarray:
    """Read an image file as (size, size, 3) uint8: upright, RGB, stretched to the square.

    JPEG is decoded at the smallest scale that still has `size` pixels, which is faster than decoding all of it.

    Raises:
        OSError: the file is missing, damaged, truncated or no image.
    """
    import simplejpeg

    data = path.read_bytes()
    if data.startswith(b"\xff\xd8\xff") and b"Exif" not in data[:512]:  # Exif may ask for a turn, which Pillow does
        try:
            pixels = simplejpeg.decode_jpeg(data, min_height=size, min_width=size)
        except ValueError:
            pass  # an unusual colour space, or damage: Pillow reads the one and names the other
        else:
            return _resize(Image.fromarray(pixels), size)
    with Image.open(io.BytesIO(data)) as image:
        return _resize(ImageOps.exif_transpose(image).convert("RGB"), size)


def _resize(image: Image.Image, size: int) -> np.ndarray:
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(image)


def open_files(files: Sequence[Path], size: int, name: str, progress: Progress | None = None) -> ImageStore:
    """Open the store of these image files, decoding what is not there yet.

    A file is known by its path, size and time of change: when one changes, a new store is made.
    """
    source = "\n".join(f"{path}\t{_state(path)}" for path in files)
    return open_store(files, size, decode, source=source, name=name, progress=progress)


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "missing"
    return f"{state.st_size}\t{state.st_mtime_ns}"


def open_store(
    items: Sequence[Any],
    size: int,
    make: Callable[[Any, int], np.ndarray],
    *,
    source: str,
    name: str,
    progress: Progress | None = None,
) -> ImageStore:
    """Open a store, making the images that it lacks on all cores; a killed run goes on where it was.

    Args:
        items: what each of the N images is made from.
        size: height and width in pixels.
        make: (item, size) -> (size, size, 3) uint8, importable by name, as it runs in other processes. An image
            for which it raises OSError, ValueError or SyntaxError (Pillow's, for a broken PNG) counts as damaged.
        source: text that names everything that the pixels depend on, besides the size.
        name: starts the folder's name, for people who look into the cache.
        progress: called after every chunk.
    """
    key = hashlib.blake2b(f"{FORMAT}\n{source}".encode(), digest_size=8).hexdigest()
    folder = cache_folder() / "images" / f"{name}-{size}px-{key}"
    shape = (len(items), size, size, 3)
    if not (folder / "store.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # a second process waits, and then finds the store complete
            if not (folder / "store.json").exists():
                _make_all(folder, shape, items, make, progress)
    header = json.loads((folder / "store.json").read_text())
    pixels = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r", shape=shape)
    return ImageStore(pixels, header["fingerprint"], {int(k): why for k, why in header["damaged"].items()})


def _make_all(
    folder: Path, shape: tuple[int, ...], items: Sequence[Any], make: Callable, progress: Progress | None
) -> None:
    import loky

    pixels, journal = folder / "pixels.u8", folder / "journal.jsonl"
    num_bytes = int(np.prod(shape))
    if not pixels.exists() or pixels.stat().st_size != num_bytes:
        journal.unlink(missing_ok=True)
        with pixels.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk is noticed here, not half-way
    done: dict[int, dict[int, str]] = {}
    if journal.exists():
        for line in journal.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # the last line of a killed run may be cut off
                entry = json.loads(line)
                done[entry["start"]] = {int(k): why for k, why in entry["damaged"].items()}
    waiting = [start for start in range(0, shape[0], CHUNK) if start not in done]
    workers = min(len(os.sched_getaffinity(0)), len(waiting)) or 1
    with loky.ProcessPoolExecutor(max_workers=workers) as pool, journal.open("a") as log:
        tasks = ((make, items[start : start + CHUNK], start, pixels, shape) for start in waiting)
        for start, damaged in _bounded_map(pool, tasks, 4 * workers):
            done[start] = damaged
            log.write(json.dumps({"start": start, "damaged": damaged}) + "\n")
            log.flush()
            if progress:
                progress(min(len(done) * CHUNK, shape[0]), shape[0])
    damaged_all = {row: why for found in done.values() for row, why in sorted(found.items())}
    header = {"fingerprint": _fingerprint(pixels), "damaged": damaged_all}
    (folder / "store.json.new").write_text(json.dumps(header))
    (folder / "store.json.new").replace(folder / "store.json")
    journal.unlink()


def _bounded_map(pool: Any, tasks: Iterator[tuple], ahead: int) -> Iterator[tuple[int, dict[int, str]]]:
    """Run tasks in any order with at most `ahead` of them handed out, so that memory stays flat."""
    from concurrent.futures import FIRST_COMPLETED, wait

    running = {pool.submit(_make_chunk, *task) for _, task in zip(range(ahead), tasks, strict=False)}
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            running |= {pool.submit(_make_chunk, *task) for _, task in zip(range(1), tasks, strict=False)}
            yield future.result()


def _make_chunk(
    make: Callable, items: Sequence[Any], start: int, pixels: Path, shape: tuple[int, ...]
) -> tuple[int, dict[int, str]]:
    mapped = np.memmap(pixels, dtype=np.uint8, mode="r+", shape=shape)
    damaged = {}
    for row, item in enumerate(items, start):
        try:
            mapped[row] = make(item, shape[1])
        except (OSError, ValueError, SyntaxError) as error:
            damaged[row] = str(error)
            mapped[row] = 0
    mapped.flush()
    return start, damaged


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
