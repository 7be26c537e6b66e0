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
from PIL import Image, ImageOps, UnidentifiedImageError

from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.processes import cores, deaf_to_ctrl_c

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

    JPEG is decoded at the smallest scale that still has `size` pixels, which is faster than decoding all of it. Of 16
    bits the upper eight are kept; what is transparent shows the colour that it has.

    Raises:
        OSError: the file is missing, damaged, truncated or no image.
    """
    import simplejpeg

    data = path.read_bytes()
    if data.startswith(b"\xff\xd8\xff") and b"Exif\0\0" not in data:  # Exif may ask for a turn, which Pillow does
        try:
            pixels = simplejpeg.decode_jpeg(data, min_height=size, min_width=size)
        except ValueError:
            pass  # an unusual colour space, or damage: Pillow reads the one and names the other
        else:
            return _resize(Image.fromarray(pixels), size)
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _resize(_rgb(ImageOps.exif_transpose(image)), size)
    except UnidentifiedImageError:
        raise OSError("no image, or a damaged one" if data else "an empty file") from None
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


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
            for which it raises OSError counts as damaged.
        source: text that names everything that the pixels depend on, besides the size.
        name: starts the folder's name, for people who look into the cache.
        progress: called after every chunk.
    """
    key = hashlib.blake2b(f"{FORMAT}\n{source}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    folder = cache_folder() / "images" / f"{name}-{size}px-{key}"
    shape = (len(items), size, size, 3)
    header = _header(folder, shape)
    if not header:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # a second process waits, and then finds the store complete
            if not _header(folder, shape):
                _make_all(folder, shape, items, make, progress)
        header = _header(folder, shape)
    pixels = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r", shape=shape)
    return ImageStore(pixels, header["fingerprint"], {int(k): why for k, why in header["damaged"].items()})


def _header(folder: Path, shape: tuple[int, ...]) -> dict[str, Any]:
    """Read what `_make_all` wrote last; nothing, unless the store is whole."""
    try:
        header = json.loads((folder / "store.json").read_text())
        whole = (folder / "pixels.u8").stat().st_size == int(np.prod(shape)) and {"fingerprint", "damaged"} <= {*header}
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return header if whole else {}


def _make_all(
    folder: Path, shape: tuple[int, ...], items: Sequence[Any], make: Callable, progress: Progress | None
) -> None:
    import loky
    from loky.process_executor import BrokenProcessPool

    pixels, journal = folder / "pixels.u8", folder / "journal.jsonl"
    num_bytes = int(np.prod(shape))
    if not pixels.exists() or pixels.stat().st_size != num_bytes:
        journal.unlink(missing_ok=True)
        with pixels.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk is noticed here, not half-way
            file.truncate(num_bytes)
    done = _read_journal(journal)
    waiting = [start for start in range(0, shape[0], CHUNK) if start not in done]
    workers = min(cores(), len(waiting)) or 1
    tasks = ((make, items[start : start + CHUNK], start, pixels, shape) for start in waiting)
    pool = loky.ProcessPoolExecutor(workers, timeout=30)  # without it, workers of a killed parent wait for ever
    try:
        with journal.open("a") as log:
            for start, damaged in _bounded_map(pool, tasks, 4 * workers):
                done[start] = damaged
                log.write(json.dumps({"start": start, "damaged": damaged}) + "\n")
                log.flush()
                if progress:
                    progress(min(len(done) * CHUNK, shape[0]), shape[0])
    except BrokenProcessPool:
        raise UserError(
            "A process that makes images was ended from outside, as happens when memory runs out: make room, and the "
            "same command goes on where it was."
        ) from None
    finally:
        pool.shutdown(kill_workers=len(done) < len(range(0, shape[0], CHUNK)))  # stopped early: wait for nobody
    damaged_all = {row: why for found in done.values() for row, why in sorted(found.items())}
    header = {"fingerprint": _fingerprint(pixels), "damaged": damaged_all}
    with replacing(folder / "store.json") as part:
        part.write_text(json.dumps(header))
    journal.unlink()


def _read_journal(path: Path) -> dict[int, dict[int, str]]:
    """Read which chunks are done, and cut off the last line where a killed run left half of one."""
    try:
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        entries = [json.loads(line) for line in whole.splitlines()]
        done = {entry["start"]: {int(k): why for k, why in entry["damaged"].items()} for entry in entries}
    except (FileNotFoundError, ValueError, KeyError):
        whole, text, done = "", "", {}
    if whole != text:
        path.write_text(whole)
    return done


def _bounded_map(pool: Any, tasks: Iterator[tuple], ahead: int) -> Iterator[tuple[int, dict[int, str]]]:
    """Run tasks in any order with at most `ahead` of them handed out, so that memory stays flat."""
    from concurrent.futures import FIRST_COMPLETED, wait

    def submit(num: int) -> set[Any]:
        with deaf_to_ctrl_c():
            return {pool.submit(_make_chunk, *task) for _, task in zip(range(num), tasks, strict=False)}

    running = submit(ahead)
    while running:
        finished, running = wait(running, return_when=FIRST_COMPLETED)
        for future in finished:
            running |= submit(1)
            yield future.result()


def _make_chunk(
    make: Callable, items: Sequence[Any], start: int, pixels: Path, shape: tuple[int, ...]
) -> tuple[int, dict[int, str]]:
    mapped = np.memmap(pixels, dtype=np.uint8, mode="r+", shape=shape)
    damaged = {}
    for row, item in enumerate(items, start):
        try:
            mapped[row] = make(item, shape[1])
        except OSError as error:
            damaged[row] = error.strerror or str(error)
            mapped[row] = 0
    mapped.flush()
    return start, damaged


def _fingerprint(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
