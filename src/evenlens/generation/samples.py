"""A folder of what a generator made: images, the latent of each, and how they were made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evenlens import __version__
from evenlens.data.images import open_files
from evenlens.data.paths import IMAGE_SUFFIXES, check_inside, check_paths, list_images
from evenlens.data.reading import check_columns, read_table
from evenlens.errors import UserError
from evenlens.files import replacing, write_json
from evenlens.generation.balancing import quotas
from evenlens.generation.generator import Generator
from evenlens.processes import cores
from evenlens.run import Watch, silent

FORMAT = 1
INFO, TABLE, LATENTS, IMAGES = "samples.json", "samples.parquet", "latents.npy", "images"
OTHER_IMAGES = "s_images"  # what some programs call the folder of images
FOREIGN = ("latents", "latentsz", "s_latentsz")  # folders of one .npy for each image, by the image's name
MOST_AT_ONCE, PIXELS_AT_ONCE = 64, 1 << 22  # images and pixels that are made together


@dataclass(frozen=True)
class Samples:
    """What a generator made, N images.

    In the folder lie `images/`, `latents.npy` (N, D), `samples.parquet` with the columns id (the file's path below
    `images/`), row (of the latents) and label, and `samples.json`.

    Attributes:
        folder: that holds them.
        ids: (N,) paths below `images`.
        latents: (N, D) float32, the latent of each.
        label: (N,) what each was asked to be, among `labels`; None where it was not asked.
        labels: names of the labels.
        attribute: what the labels are of.
        info: how they were made, as `samples.json` says.
    """

    folder: Path
    ids: np.ndarray
    latents: np.ndarray = field(repr=False)
    label: np.ndarray | None = field(default=None, repr=False)
    labels: tuple[str, ...] = ()
    attribute: str = ""
    info: dict[str, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def images(self) -> Path:
        """The folder of the images."""
        there = (name for name in (IMAGES, OTHER_IMAGES) if (self.folder / name).is_dir())
        return self.folder / next(there, IMAGES)

    @property
    def size(self) -> int:
        """Height and width of the images in pixels, as the first one has it."""
        path = self.images / str(self.ids[0])
        try:
            with Image.open(path) as image:
                return min(image.size)
        except OSError:
            raise UserError(f"{path} is missing, damaged or no image: make the samples again.") from None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of names, latents and how they were made."""
        content = hashlib.blake2b(self.latents.tobytes(), digest_size=8)
        content.update("\n".join(self.ids.tolist()).encode(errors="surrogateescape"))
        content.update(json.dumps(self.info.get("generator", {}), sort_keys=True).encode())
        return content.hexdigest()

    def select(self, rows: np.ndarray) -> Samples:
        """Keep these rows, in this order."""
        label = None if self.label is None else self.label[rows]
        return Samples(self.folder, self.ids[rows], self.latents[rows], label, self.labels, self.attribute, self.info)

    def pixels(self, size: int = 0, watch: Watch = silent) -> np.ndarray:
        """Give the images (N, size, size, 3) uint8, decoded once and kept in the cache.

        Args:
            size: height and width; 0 for the images' own.
            watch: told of progress.

        Raises:
            UserError: an image that cannot be read.
        """
        files = [self.images / name for name in self.ids.tolist()]
        store = open_files(files, size or self.size, "samples", lambda done, total: watch("decoding", done, total))
        if store.damaged:
            row, why = next(iter(store.damaged.items()))
            more = f", and {len(store.damaged) - 1:,} more" if len(store.damaged) > 1 else ""
            raise UserError(f"{files[row]} cannot be read ({why}){more}: make them again.")
        return store.pixels

    @classmethod
    def open(cls, folder: Path | str) -> Samples:
        """Open a folder of samples: one that evenlens wrote, or `images/` beside `latents/` with one .npy for each.

        An image belongs to the latent of its own name; never are two sorted listings put side by side.

        Raises:
            UserError: no such folder, an image without a latent, latents of different lengths or that are not finite,
                a pickle, or a path that leads out of the folder.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: make samples with evenlens generate sample.")
        return _open_own(folder) if (folder / INFO).is_file() else _open_foreign(folder)


def _open_own(folder: Path) -> Samples:
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        attribute, labels = str(info["attribute"]), tuple(map(str, info["labels"]))
        made_in = info["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INFO} is damaged ({error}): make the samples again.") from None
    if made_in != FORMAT:
        raise UserError(f"{folder} is in format {made_in}, and this evenlens reads {FORMAT}: make the samples again.")
    table = read_table(folder / TABLE)
    check_columns(table.column_names, ("id", "row", *(["label"] if labels else [])), TABLE)
    if any(table.column(name).null_count for name in table.column_names) or not len(table):
        raise UserError(f"{folder / TABLE} is empty, or has empty fields: make the samples again.")
    check_paths(table.column("id"), TABLE)
    ids = np.array(table.column("id").to_pylist(), dtype=str)
    if len(np.unique(ids)) < len(ids):
        raise UserError(f"{folder / TABLE} names an image twice: make the samples again.")
    check_inside(folder, [IMAGES])
    check_inside(folder / IMAGES, ids.tolist())
    latents = read_latents(folder / LATENTS)
    rows = _rows(table.column("row").to_pylist(), len(latents), folder)
    label = None
    if labels:
        place = {name: number for number, name in enumerate(labels)}
        try:
            label = np.array([place[name] for name in table.column("label").to_pylist()], dtype=np.int64)
        except KeyError as error:
            raise UserError(
                f"{folder / TABLE} has the label {error}, which {INFO} does not know: make the samples again."
            ) from None
    return Samples(folder, ids, latents[rows], label, labels, attribute, info)


def _rows(found: list[str], there: int, folder: Path) -> np.ndarray:
    """Read which latent belongs to each image."""
    if not all(text.isdecimal() and len(text) < 16 and int(text) < there for text in found):
        raise UserError(f"{folder / TABLE} has rows that {LATENTS} ({there:,}) has not: make the samples again.")
    return np.array(found, dtype=np.int64)


def _open_foreign(folder: Path) -> Samples:
    images = next((folder / name for name in (IMAGES, OTHER_IMAGES) if (folder / name).is_dir()), None)
    latents = next((folder / name for name in FOREIGN if (folder / name).is_dir()), None)
    if images is None or latents is None:
        raise UserError(
            f"{folder} is no folder of samples: it needs {INFO}, which evenlens generate sample writes, or the folders "
            "images and latents, with one .npy for each image, of the same name."
        )
    names = list_images(images)
    if not names:
        raise UserError(f"No image below {images}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}.")
    check_inside(images, names)
    check_inside(folder, [images.name, latents.name])
    check_inside(latents, [Path(name).with_suffix(".npy").as_posix() for name in names])
    found = []
    for name in names:
        path = latents / Path(name).with_suffix(".npy")
        if not path.is_file():
            raise UserError(f"{name} has no latent: {path} is missing. Add it, or take the image away.")
        found.append(read_latents(path, one=True))
    lengths = {len(each) for each in found}
    if len(lengths) > 1:
        raise UserError(f"The latents in {latents} have different lengths ({sorted(lengths)}): one generator has one.")
    return Samples(folder, np.array(names), np.stack(found), info={"generator": {"title": folder.name}})


def read_latents(path: Path, one: bool = False) -> np.ndarray:
    """Read latents (N, D), or one (D,), from a .npy file, as float32.

    Raises:
        UserError: no such file, a pickle, another shape, or numbers that are not finite.
    """
    try:
        # mapped, not read: a header may claim any size
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        why = (
            "it holds a pickle, or no numbers"
            if "pickle" in str(error) or "Python objects" in str(error)
            else "it is missing or damaged"
        )
        raise UserError(f"{path} is not read, as {why}: write it with numpy.save(path, array of numbers).") from None
    if not isinstance(values, np.ndarray):
        raise UserError(f"{path} is an archive of arrays: write one array, with numpy.save(path, array of numbers).")
    fits = values.ndim and values.size and (values.size == values.shape[-1] if one else values.ndim == 2)
    if values.dtype.kind not in "fiu" or not fits:
        wanted = "one latent (D,)" if one else "a latent in each row (N, D)"
        raise UserError(f"{path} holds {values.shape} of {values.dtype}: {wanted} in numbers is needed.")
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused
        made = np.array(values.reshape(-1) if one else values, dtype=np.float32)
    if not np.isfinite(made).all():
        raise UserError(f"{path} holds numbers that are not finite: make these latents again.")
    return made


def make_samples(
    generator: Generator,
    folder: Path | str,
    count: int = 0,
    seed: int = 0,
    latents: Tensor | None = None,
    label: Tensor | None = None,
    watch: Watch = silent,
) -> Samples:
    """Have a generator make images into a new folder; a killed run goes on where it was.

    Args:
        generator: that makes them.
        folder: to be written; it is there when it is complete. One that is complete and was made in the same way is
            opened.
        count: how many; 0 where latents are given.
        seed: of the latents, and of the labels.
        latents: (N, D) to make them from; default: drawn by the generator.
        label: (N,) what to make; default, where the generator takes labels: as many of each, in random order.
        watch: told of progress.

    Raises:
        UserError: nothing to make, something else in the folder, or what `Generator.sample` refuses.
    """
    folder = Path(folder)
    if latents is None and count < 1:
        raise UserError(f"{count} images cannot be made: ask for at least one.")
    latents = generator.latents(count, seed) if latents is None else latents.float().cpu()
    if label is None and generator.labels:
        label = even_labels(len(latents), len(generator.labels), seed)
    generator.check(latents, label)
    info = _info(generator, latents, label, seed)
    if folder.exists():
        if not (folder / INFO).is_file():
            raise UserError(f"{folder} is there already and holds something else: name a new folder.")
        there = Samples.open(folder)
        if {**there.info, "version": ""} != {**info, "version": ""}:
            raise UserError(f"{folder} holds other samples than these would be: name another folder, or delete it.")
        return there
    part = folder.with_name(f".{folder.name}.partial")
    if (part / INFO).is_file() and (part / INFO).read_text(encoding="utf-8") != json.dumps(info, indent=1):
        shutil.rmtree(part)  # of other samples
    (part / IMAGES).mkdir(parents=True, exist_ok=True)
    write_json(part / INFO, info)
    ids = [f"{row:06d}.png" for row in range(len(latents))]
    with ThreadPoolExecutor(cores()) as pool:
        for rows in _batches(len(latents), generator.size):
            if not all((part / IMAGES / ids[row]).is_file() for row in rows):
                image = generator.sample(latents[rows], None if label is None else label[rows])
                pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
                list(pool.map(_write, [part / IMAGES / ids[row] for row in rows], pixels))
            watch("images", rows[-1] + 1, len(latents))
    _write_table(part / TABLE, ids, None if label is None else [generator.labels[k] for k in label.tolist()])
    with (part / LATENTS).open("wb") as file:
        np.save(file, latents.numpy())
    part.replace(folder)
    return Samples.open(folder)


def even_labels(count: int, num: int, seed: int) -> Tensor:
    """Give labels (count,) in random order, as many of each of `num` as can be."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))
    return (torch.arange(count) % num)[order]


def asked_labels(count: int, shares: np.ndarray, seed: int) -> Tensor:
    """Give labels (count,) in random order, of each of K as many as its share (K,), summing to 1, says."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + 1))
    return torch.from_numpy(np.repeat(np.arange(len(shares)), quotas(shares, count)))[order]


def _info(generator: Generator, latents: Tensor, label: Tensor | None, seed: int) -> dict[str, Any]:
    made_from = hashlib.blake2b(latents.numpy().tobytes(), digest_size=8)
    made_from.update(b"" if label is None else label.numpy().tobytes())
    info = {
        "format": FORMAT, "version": __version__, "seed": seed, "count": len(latents), "latents": made_from.hexdigest(),
        "attribute": generator.attribute, "labels": list(generator.labels),
        "generator": {
            "title": generator.title, "fingerprint": generator.fingerprint, "size": generator.size,
            "latent_size": generator.latent_size, "num_parameters": generator.num_parameters,
            "num_bytes": generator.num_bytes, **generator.settings,
        },
    }  # fmt: skip
    return dict(json.loads(json.dumps(info)))  # as it is read again: a tuple becomes a list


def _batches(num: int, size: int) -> Iterator[list[int]]:
    step = max(1, min(MOST_AT_ONCE, PIXELS_AT_ONCE // size**2))
    for start in range(0, num, step):
        yield list(range(start, min(start + step, num)))


def _write(path: Path, pixels: np.ndarray) -> None:
    with replacing(path) as part:
        Image.fromarray(pixels).save(part, format="png", compress_level=1)


def _write_table(path: Path, ids: Sequence[str], labels: Sequence[str] | None) -> None:
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, Any] = {"id": list(ids), "row": np.arange(len(ids))}
    if labels is not None:
        columns["label"] = list(labels)
    with replacing(path) as part:
        pyarrow.parquet.write_table(pyarrow.table(columns), part)
