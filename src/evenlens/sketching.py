"""A folder of photographs in, a folder of drawings out: names kept, at any size, and a killed run goes on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evenlens import views
from evenlens.data.drawing import draw_pixels
from evenlens.data.images import upright
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.predict import IMAGE_SUFFIXES
from evenlens.processes import cores
from evenlens.run import Watch, silent
from evenlens.view import View

SUFFIXES = IMAGE_SUFFIXES | {".gif"}
RECORD = ".evenlens-sketch.jsonl"
"""The file in the output folder that says what was made from what: a line for each drawing, the last one counts."""

BATCH_PIXELS = 1 << 21  # drawn at once: 32 images of 256 px
WAITING_PIXELS = 4 * BATCH_PIXELS  # decoded and waiting for others of their shape
LARGEST = 1 << 28  # pixels that a photograph may be enlarged to
SHEET_PAIRS = 24
SHEET_ROW = 8  # pairs side by side
TILE = 160  # height and width in pixels that a picture of the sheet fits into
GAP = 6


@dataclass(frozen=True)
class Sketched:
    """What became of a folder.

    Attributes:
        num_made: drawings made now.
        num_kept: drawings that were there already, made from the same files in the same way.
        unreadable: why an image was not drawn, by its path below the input folder.
        pairs: photograph and drawing, sorted by the photograph's path.
    """

    num_made: int
    num_kept: int
    unreadable: dict[str, str]
    pairs: tuple[tuple[Path, Path], ...] = field(repr=False)


@dataclass(frozen=True)
class _Item:
    """A photograph to be drawn: its path, its path below the input folder, and that of its drawing below the output."""

    path: Path
    name: str
    out: str


def sketch_folder(
    source: Path,
    target: Path,
    view: str,
    options: dict[str, Any] | None = None,
    *,
    size: int = 0,
    overwrite: bool = False,
    sheet: Path | None = None,
    watch: Watch = silent,
) -> Sketched:
    """Draw every image below a folder, each at its own size: 8-bit grey PNG, black on white.

    Sub-folders and names are kept; the ending becomes .png. Of an animation the first picture is drawn. Links are
    followed to files inside the folder only. What cannot be read is left out and told of.

    A drawing that is there and was made from the same file (by size and time of change) in the same way is kept, so
    that a killed run goes on where it was. Every drawing is whole or not there.

    Args:
        source: a folder, or one image.
        target: the folder to write; made if it is not there.
        view: its name; one that draws.
        options: of the view.
        size: short side in pixels that images are brought to first; 0 for their own.
        overwrite: replace files of the same names that were not made by this command in the same way.
        sheet: a .png to write `contact_sheet` to.
        watch: told of progress.

    Raises:
        UserError: no images, an unknown view or option, folders inside each other, two images for one drawing, files
            that are in the way, or a disk that cannot be written.
    """
    if size < 0:
        raise UserError(f"A short side of {size} pixels is not allowed: at least 1, or 0 for the images' own.")
    settings = views.settle(view, options or {})
    drawer = views.build(view, settings)
    if type(drawer).draw is View.draw:
        drawing = [name for name in views.names() if views.get(name).draw is not View.draw]
        raise UserError(f"{view} shows the photograph as it is and draws nothing: choose one of {', '.join(drawing)}.")
    _check_places(source, target, sheet)
    items, unreadable = _find(source)
    _check_names(items, target, sheet)
    record = _Record(target, {"view": view, "options": settings, "size": size})
    wanted = [item for item in items if not record.has(item, overwrite)]
    drawer.prepare()
    kept = len(items) - len(wanted)
    if wanted:
        with _writable(target):
            target.mkdir(parents=True, exist_ok=True)
            with record.open():
                unreadable |= _Drawing(drawer, size, record, watch, kept, len(items)).run(wanted)
    pairs = tuple((item.path, target / item.out) for item in items if item.name not in unreadable)
    if sheet and pairs:
        with _writable(sheet):
            contact_sheet(pairs, sheet)
    return Sketched(len(pairs) - kept, kept, dict(sorted(unreadable.items())), pairs)


def contact_sheet(pairs: Sequence[tuple[Path, Path]], sheet: Path, most: int = SHEET_PAIRS) -> None:
    """Write a picture of photographs, each over its drawing, evenly spaced over all.

    Args:
        pairs: photograph and drawing, in the order that they are shown in; at least one.
        sheet: the PNG to write.
        most: how many are shown.
    """
    chosen = [pairs[place] for place in np.linspace(0, len(pairs) - 1, min(most, len(pairs))).round().astype(int)]
    columns = min(SHEET_ROW, len(chosen))
    rows = -(-len(chosen) // columns)
    page = Image.new("RGB", (GAP + columns * (TILE + GAP), rows * (2 * TILE + 3 * GAP)), "#b8b8b8")
    for number, pair in enumerate(chosen):
        row, column = divmod(number, columns)
        for place, path in enumerate(pair):
            picture = upright(path.read_bytes(), TILE)
            picture = _scaled(picture, TILE / max(picture.size))
            left = GAP + column * (TILE + GAP) + (TILE - picture.width) // 2
            # a photograph stands on its drawing, and both are nearest to each other
            top = GAP + row * (2 * TILE + 3 * GAP) + (TILE - picture.height if place == 0 else TILE + GAP)
            page.paste(picture, (left, top))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    with replacing(sheet) as part:
        page.save(part, "PNG")


# ---- what is drawn, and where to


def _check_places(source: Path, target: Path, sheet: Path | None) -> None:
    if not source.exists():
        raise UserError(f"There is no folder or image {source}: name one that holds images.")
    if not target.is_dir() and (target.exists() or target.suffix.lower() in SUFFIXES):
        raise UserError(f"{target} is a file, or named like an image: name a folder for the drawings.")
    here, there = source.resolve(), target.resolve()
    if here == there:
        raise UserError(f"{source} is both input and output: name another folder for the drawings.")
    if there.is_relative_to(here):
        raise UserError(f"The output {target} lies inside the input {source}: name a folder outside of it.")
    if source.is_dir() and here.is_relative_to(there):
        raise UserError(f"The input {source} lies inside the output {target}: name another folder for the drawings.")
    if sheet:
        if sheet.suffix.lower() != ".png" or sheet.is_dir():
            raise UserError(f"The contact sheet {sheet} is a PNG file: give it a name that ends in .png.")
        if sheet.resolve().is_relative_to(here):
            raise UserError(f"The contact sheet {sheet} lies inside the input {source}: give it another place.")


def _find(source: Path) -> tuple[list[_Item], dict[str, str]]:
    """Find the images, sorted by path, and links that lead out, with the reason why these are not followed."""
    if source.is_file():
        return [_Item(source, source.name, f"{source.stem}.png")], {}
    root = source.resolve()
    found: list[_Item] = []
    left_out: dict[str, str] = {}

    def note(error: OSError) -> None:
        left_out[os.path.relpath(error.filename, source)] = error.strerror or str(error)

    for folder, folders, files in os.walk(source, onerror=note):
        images = [name for name in files if Path(name).suffix.lower() in SUFFIXES]
        for number, name in enumerate((*images, *folders)):
            path = Path(folder, name)
            below = path.relative_to(source)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                left_out[str(below)] = "a link that leads out of the folder"
            elif number < len(images) and (path.is_file() or not path.exists()):  # not a pipe; of a lost one we tell
                found.append(_Item(path, str(below), str(below.with_suffix(".png"))))
    if not found and not left_out:
        raise UserError(f"No image below {source}: looked for files ending in {', '.join(sorted(SUFFIXES))}.")
    return sorted(found, key=lambda item: Path(item.name)), left_out


def _check_names(items: Sequence[_Item], target: Path, sheet: Path | None) -> None:
    """Refuse two images for one drawing, a drawing where a folder is wanted, and one that would leave the folder."""
    owners: dict[str, _Item] = {}
    for item in items:
        other = owners.setdefault(os.path.normcase(item.out), item)
        if other is not item:
            raise UserError(
                f"{other.name} and {item.name} would both be drawn to {item.out}: rename one, or draw them apart."
            )
    there = target.resolve()
    folders = {folder for item in items for folder in Path(item.out).parents}
    for below in sorted(folders):
        if os.path.normcase(below) in owners:
            raise UserError(
                f"{owners[os.path.normcase(below)].name} would be drawn to {below}, which is the name of a folder of "
                "images: rename one."
            )
        place = target / below
        if os.path.lexists(place) and not (place.is_dir() and place.resolve().is_relative_to(there)):
            raise UserError(f"{place} is a file, or a link that leads out of {target}: name another folder.")
    for item in items:
        path = target / item.out
        if path.is_dir():
            raise UserError(f"{path} is a folder where a drawing is to be written: name another folder.")
        if sheet and sheet.resolve() == path.resolve():
            raise UserError(f"The contact sheet {sheet} has the name of a drawing: give it another.")
        if path.exists() and path.samefile(item.path):
            raise UserError(f"{item.path} would be replaced by its drawing: name another folder.")


# ---- what was made before


class _Record:
    """What was made from what: `RECORD` in the output folder.

    A line is written before its drawing is put in place, so that a killed run never leaves a drawing that nobody owns;
    the drawing's length says whether it is the one that was meant.
    """

    def __init__(self, target: Path, made_with: dict[str, Any]) -> None:
        self.target = target
        text = json.dumps(made_with, sort_keys=True, default=str)
        self.key = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        self.begin = {"key": self.key, "made_with": made_with}
        self.lock = threading.Lock()
        self.entries: dict[str, Any] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for line in (target / RECORD).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # half a line, where a run was killed
                    entry = json.loads(line)
                    self.entries[entry["drawing"]] = entry

    def has(self, item: _Item, overwrite: bool) -> bool:
        """Say whether an image's drawing is there, as it would be made now.

        Raises:
            UserError: something else is there, and may not be replaced.
        """
        path = self.target / item.out
        if not os.path.lexists(path):
            return False
        if self.entries.get(item.out) == self._entry(item, path.lstat().st_size):
            return True
        if overwrite:
            return False
        raise UserError(
            f"{path} is there, and was not made from this {item.name} with the same view and options: name another "
            "folder, or replace what is there with --overwrite."
        )

    def _entry(self, item: _Item, num_bytes: int) -> dict[str, Any]:
        return {"drawing": item.out, "bytes": num_bytes, "from": item.name, "state": _state(item.path), "by": self.key}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep the file open for `put`."""
        with (self.target / RECORD).open("a", encoding="utf-8") as self.file:
            self.file.write("\n")  # a killed run may have left half a line
            self._write(self.begin)
            yield

    def put(self, item: _Item, drawn: np.ndarray) -> None:
        """Write a drawing (H, W) in uint8."""
        path, png = self.target / item.out, _encode(drawn)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write(self._entry(item, len(png)))
        with replacing(path) as part:
            part.write_bytes(png)

    def _write(self, entry: dict[str, Any]) -> None:
        with self.lock:
            self.file.write(json.dumps(entry, default=str) + "\n")
            self.file.flush()


def _state(path: Path) -> list[int]:
    """Tell a file from what it was before it changed; nothing where it cannot be looked at."""
    try:
        state = path.stat()
    except OSError:
        return []
    return [state.st_size, state.st_mtime_ns]


@contextmanager
def _writable(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or place} cannot be written ({error.strerror or error}): mend that or name another "
            "place, and the same command goes on where it was."
        ) from None


# ---- drawing


class _Drawing:
    """Decoding, drawing and encoding, one beside the other, with a bounded number of pixels in memory."""

    def __init__(self, view: View, size: int, record: _Record, watch: Watch, done: int, total: int) -> None:
        self.view, self.size, self.record = view, size, record
        self.watch, self.done, self.total = watch, done, total
        self.waiting: dict[tuple[int, ...], list[tuple[_Item, np.ndarray]]] = {}
        self.held = 0  # pixels that are waiting
        self.writing: set[Future[None]] = set()
        self.failed: dict[str, str] = {}

    def run(self, items: Sequence[_Item]) -> dict[str, str]:
        """Draw all; give the reason of what could not be read, by name."""
        self.watch("images", self.done, self.total)
        with ThreadPoolExecutor(cores()) as pool:
            try:
                for item, pixels in _ahead(pool, self._decode, items, 4 * cores()):
                    if isinstance(pixels, str):
                        self.failed[item.name] = pixels
                        self._count()
                        continue
                    self.waiting.setdefault(pixels.shape, []).append((item, pixels))
                    self.held += pixels.size // 3
                    if self._pixels(pixels.shape) >= BATCH_PIXELS:
                        self._draw(pool, pixels.shape)
                    while self.held > WAITING_PIXELS:
                        self._draw(pool, max(self.waiting, key=self._pixels))
                for shape in list(self.waiting):
                    self._draw(pool, shape)
                self._settle(0)
            finally:
                pool.shutdown(cancel_futures=True)
        return self.failed

    def _pixels(self, shape: tuple[int, ...]) -> int:
        return len(self.waiting[shape]) * shape[0] * shape[1]

    def _decode(self, item: _Item) -> np.ndarray | str:
        """Give the pixels (H, W, 3) of an image, or why it cannot be read."""
        try:
            image = upright(item.path.read_bytes())  # all of it, as a JPEG decoded smaller has another aspect
            return np.asarray(_scaled(image, self.size / min(image.size)) if self.size else image)
        except OSError as error:
            return error.strerror or str(error)

    def _draw(self, pool: ThreadPoolExecutor, shape: tuple[int, ...]) -> None:
        """Draw the images of a shape that are waiting, and hand their drawings to those who write."""
        self.held -= self._pixels(shape)
        items, pixels = zip(*self.waiting.pop(shape), strict=True)
        drawn = draw_pixels(self.view, np.stack(pixels))[..., 0]
        self.writing |= {pool.submit(self.record.put, item, ink) for item, ink in zip(items, drawn, strict=True)}
        self._settle(2 * len(items))

    def _settle(self, most: int) -> None:
        """Wait until at most so many drawings are being written; what went wrong is raised here."""
        while len(self.writing) > most or any(future.done() for future in self.writing):
            finished, self.writing = wait(self.writing, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                self._count()

    def _count(self) -> None:
        self.done += 1
        self.watch("images", self.done, self.total)


def _encode(drawn: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG")
    return file.getvalue()


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    """Multiply both sides; the aspect stays.

    Raises:
        OSError: it would be too large, as of a strip whose short side is brought to many pixels.
    """
    width, height = (max(1, round(length * scale)) for length in image.size)
    if width * height > max(LARGEST, image.width * image.height):
        raise OSError(f"{image.width} x {image.height} pixels would become {width} x {height}, which is too large")
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], Any], items: Iterable[_Item], most: int
) -> Iterator[tuple[_Item, Any]]:
    """Work on items in their order with at most so many of them handed out."""
    running: list[tuple[_Item, Future[Any]]] = []
    for item in items:
        running.append((item, pool.submit(work, item)))
        if len(running) >= most:
            first, future = running.pop(0)
            yield first, future.result()
    for first, future in running:
        yield first, future.result()
