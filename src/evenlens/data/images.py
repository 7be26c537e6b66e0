"""The image store: every image made once, into one memory-mapped file of bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
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
FORMAT = 2  # of the store's files; part of its key
FITS = ("stretch", "short_side", "center_crop")

Progress = Callable[[int, int], None]
"""Called with (how many are done, how many there are)."""

Shape = tuple[int, ...]
Damaged = dict[int, str]
Chunk = tuple[int, Damaged, int]
"""A chunk whose images lie in the store: its first row, why some are damaged, its checksum."""
Fill = Callable[[Path, Shape, list[int]], Generator[Chunk, None, None]]
"""(folder, shape, first rows of the chunks wanted) -> the chunks, as they are made."""


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
        digests: (N,) int64, the digest of what each image was made from: equal for copies of one file, whatever
            their names; 0 where it could not be read.
    """

    pixels: np.ndarray
    fingerprint: str
    damaged: dict[int, str]
    digests: np.ndarray


def digest(data: bytes) -> int:
    """Hash bytes to a signed 64-bit number."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)


def read_image(path: Path, size: int, fit: str = "stretch") -> tuple[np.ndarray, int]:
    """Read an image file: its pixels as `decode` gives them, and the digest of the file's bytes.

    Raises:
        OSError: the file is missing, damaged, truncated or no image.
    """
    data = path.read_bytes()
    return decode(data, size, fit), digest(data)


def decode(data: bytes, size: int, fit: str = "stretch") -> np.ndarray:
    """Decode an image file's bytes to (size, size, 3) uint8: upright, RGB, square.

    JPEG is decoded at the smallest scale that still has enough pixels, which is faster than decoding all of it. Of 16
    bits the upper eight are kept; what is transparent shows the colour that it has.

    Args:
        data: the file.
        size: height and width in pixels.
        fit: how the square is made. `stretch`: all of the image, whatever its aspect. `short_side`: nothing is
            distorted, the ends of the long side are cut off. `center_crop`: as that, and of a square 9/8 as large
            the middle (64 of 72, 224 of 252 pixels).

    Raises:
        OSError: the bytes are damaged, truncated or no image.
    """
    wanted = _reach(size, fit)
    return _resize(upright(data, wanted), size, fit)


def upright(data: bytes, reach: int = 0) -> Image.Image:
    """Decode an image file's bytes to an upright RGB image of any size; otherwise as `decode`.

    Args:
        data: the file.
        reach: a JPEG may be decoded to a smaller size, but no side below this; 0 for its own size.

    Raises:
        OSError: the bytes are damaged, truncated or no image.
    """
    import simplejpeg

    if data.startswith(b"\xff\xd8\xff") and b"Exif\0\0" not in data:  # Exif may ask for a turn, which Pillow does
        try:
            return Image.fromarray(simplejpeg.decode_jpeg(data, min_height=reach, min_width=reach))
        except ValueError:
            pass  # an unusual colour space, or damage: Pillow reads the one and names the other
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise OSError("no image, or a damaged one" if data else "an empty file") from None
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _reach(size: int, fit: str) -> int:
    """Give the length that the short side is brought to."""
    return round(size * 9 / 8) if fit == "center_crop" else size


def _resize(image: Image.Image, size: int, fit: str) -> np.ndarray:
    width, height = image.size
    if fit == "stretch":
        box = (0.0, 0.0, float(width), float(height))
    else:
        side = min(width, height) * size / _reach(size, fit)
        box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    if image.size != (size, size) or box != (0.0, 0.0, size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    return np.asarray(image)


def open_files(
    files: Sequence[Path], size: int, name: str, progress: Progress | None = None, fit: str = "stretch"
) -> ImageStore:
    """Open the store of these image files, decoding what is not there yet.

    A file is known by its path, size and time of change: when one changes, a new store is made.
    """
    source = "\n".join([fit, *(f"{path}\t{_state(path)}" for path in files)])
    return open_store(files, size, partial(read_image, fit=fit), source=source, name=name, progress=progress)


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:
        return "missing"
    return f"{state.st_size}\t{state.st_mtime_ns}"


def open_store(
    items: Sequence[Any],
    size: int,
    make: Callable[[Any, int], tuple[np.ndarray, int]],
    *,
    source: str,
    name: str,
    progress: Progress | None = None,
) -> ImageStore:
    """Open a store, making the images that it lacks on all cores; a killed run goes on where it was.

    Args:
        items: what each of the N images is made from.
        size: height and width in pixels.
        make: (item, size) -> ((size, size, 3) uint8, digest of what it is made from), importable by name, as it runs
            in other processes. An image for which it raises OSError counts as damaged.
        source: text that names everything that the pixels depend on, besides the size.
        name: starts the folder's name, for people who look into the cache.
        progress: called after every chunk.
    """
    shape = (len(items), size, size, 3)
    return open_filled(shape, partial(_fill_on_all_cores, items, make), source=source, name=name, progress=progress)


def open_filled(shape: Shape, fill: Fill, *, source: str, name: str, progress: Progress | None = None) -> ImageStore:
    """Open a store, and have the chunks filled that it lacks; a killed run goes on where it was.

    Args:
        shape: (N, size, size, 3).
        fill: makes chunks of `CHUNK` images in the store's files, which `mapped` opens.
        source: text that names everything that the pixels depend on, besides the size.
        name: starts the folder's name, for people who look into the cache.
        progress: called after every chunk.
    """
    key = hashlib.blake2b(f"{FORMAT}\n{source}".encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    folder = cache_folder() / "images" / f"{name}-{shape[1]}px-{key}"
    header = _header(folder, shape)
    if not header:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):  # a second process waits, and then finds the store complete
            if not _header(folder, shape):
                _make_all(folder, shape, fill, progress)
        header = _header(folder, shape)
    pixels = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r", shape=shape)
    digests = np.fromfile(folder / "digests.i64", dtype=np.int64)
    return ImageStore(pixels, header["fingerprint"], {int(k): why for k, why in header["damaged"].items()}, digests)


def _header(folder: Path, shape: Shape) -> dict[str, Any]:
    """Read what `_make_all` wrote last; nothing, unless the store is whole."""
    try:
        header = json.loads((folder / "store.json").read_text())
        sizes = {"pixels.u8": int(np.prod(shape)), "digests.i64": 8 * shape[0]}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        whole &= {"fingerprint", "damaged"} <= {*header}
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return header if whole else {}


def _make_all(folder: Path, shape: Shape, fill: Fill, progress: Progress | None) -> None:
    pixels, digests, journal = folder / "pixels.u8", folder / "digests.i64", folder / "journal.jsonl"
    for path, num_bytes in ((pixels, int(np.prod(shape))), (digests, 8 * shape[0])):
        if not path.exists() or path.stat().st_size != num_bytes:
            journal.unlink(missing_ok=True)
            with path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk is noticed here, not half-way
                file.truncate(num_bytes)
    done = _read_journal(journal, folder, shape)
    waiting = [start for start in range(0, shape[0], CHUNK) if start not in done]
    with journal.open("a") as log, closing(fill(folder, shape, waiting)) as chunks:
        for start, damaged, check in chunks:
            done[start] = damaged
            log.write(json.dumps({"start": start, "damaged": damaged, "check": check}) + "\n")
            log.flush()
            if progress:
                progress(min(len(done) * CHUNK, shape[0]), shape[0])
    damaged_all = {row: why for found in done.values() for row, why in sorted(found.items())}
    header = {"fingerprint": _fingerprint(pixels), "damaged": damaged_all}
    with replacing(folder / "store.json") as part:
        part.write_text(json.dumps(header))
    journal.unlink()


def _fill_on_all_cores(
    items: Sequence[Any], make: Callable, folder: Path, shape: Shape, waiting: list[int]
) -> Generator[Chunk, None, None]:
    """Make each image in some process, a chunk at a time."""
    import loky
    from loky.process_executor import BrokenProcessPool

    workers = min(cores(), len(waiting)) or 1
    tasks = ((make, items[start : start + CHUNK], start, folder, shape) for start in waiting)
    pool = loky.ProcessPoolExecutor(workers, timeout=30)  # without it, workers of a killed parent wait for ever
    whole = False
    try:
        yield from _bounded_map(pool, tasks, 4 * workers)
        whole = True
    except BrokenProcessPool:
        raise UserError(
            "A process that makes images was ended from outside, as happens when memory runs out: make room, and the "
            "same command goes on where it was."
        ) from None
    finally:
        pool.shutdown(kill_workers=not whole)  # stopped early: wait for nobody


def _read_journal(path: Path, folder: Path, shape: Shape) -> dict[int, Damaged]:
    """Read which chunks are done, and cut off the last line where a killed run left half of one.

    Nothing is written through to the disk chunk by chunk, which would take longer than the decoding. After a power
    cut the journal may therefore know of chunks that never arrived: each is held against its checksum.
    """
    try:
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        entries = [json.loads(line) for line in whole.splitlines()]
        # mapped anew for each, so that what was read is not in memory for the rest
        entries = [entry for entry in entries if checksum(*mapped(folder, shape), entry["start"]) == entry["check"]]
        done = {entry["start"]: {int(k): why for k, why in entry["damaged"].items()} for entry in entries}
    except (FileNotFoundError, ValueError, KeyError):
        whole, text, done = "", "", {}
    if whole != text:
        path.write_text(whole)
    return done


def _bounded_map(pool: Any, tasks: Iterator[tuple], ahead: int) -> Iterator[Chunk]:
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


def _make_chunk(make: Callable, items: Sequence[Any], start: int, folder: Path, shape: Shape) -> Chunk:
    pixels, digests = mapped(folder, shape)
    damaged = {}
    for row, item in enumerate(items, start):
        try:
            pixels[row], digests[row] = make(item, shape[1])
        except OSError as error:
            damaged[row] = error.strerror or str(error)
            pixels[row], digests[row] = 0, 0
    return start, damaged, checksum(pixels, digests, start)


def mapped(folder: Path, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Map a store's pixels and digests to be written to."""
    pixels = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r+", shape=shape)
    return pixels, np.memmap(folder / "digests.i64", dtype=np.int64, mode="r+", shape=shape[:1])


def checksum(pixels: np.ndarray, digests: np.ndarray, start: int) -> int:
    """Sum up the chunk that starts at a row, so that one which never reached the disk is noticed."""
    chunk = slice(start, start + CHUNK)
    return zlib.crc32(digests[chunk].tobytes(), zlib.crc32(pixels[chunk].tobytes()))


def _fingerprint(path: Path) -> str:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
