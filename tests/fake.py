"""Small data for tests: a set in memory with a known bias, and copies of the publishers' layouts."""

import csv
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from evenlens.data.images import ImageStore
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import Column, Table, split_by_hash

SIZE = 16


def split(table, label, group, seed):
    return split_by_hash([name.partition("#")[0] for name in table.names], {"val": 0.2, "test": 0.2}, seed)


class Tiny(Source):
    """Squares on noise: the class is the square's place, the group a tint, and the two mostly go together.

    In a quarter of the images the square stands anywhere, so that the best guess under the training data follows the
    tint, and the best guess under even cells follows the square: the optimum of every method is known.
    """

    title = "Tiny"
    citation = "made up"
    licence = "none needed"
    homepage = "https://example.org"
    caveat = "made up"
    size = SIZE
    augment = "none"
    columns = ("place", "tint")
    protocols = {"made": Protocol("place of a square, by tint", "place", ("tint",), split)}

    def __init__(self, folder, *, num=600, num_classes=2, num_groups=2, correlation=0.9, noise=0.2, rename=(), seed=0):
        super().__init__(folder)
        generator = np.random.default_rng(seed)
        self.place = generator.integers(num_classes, size=num)
        follows = generator.random(num) < correlation
        self.tint = np.where(follows, self.place % num_groups, generator.integers(num_groups, size=num))
        shown = np.where(generator.random(num) < 0.25, generator.integers(num_classes, size=num), self.place)
        self.pixels = draw(shown, self.tint, num_classes, noise, generator)
        if len(rename):  # the same images, other numbers for the groups
            self.tint = np.array(rename)[self.tint]
        self.num_classes, self.num_groups = num_classes, num_groups

    def table(self, skip_unreadable):
        columns = {
            "place": Column(tuple(f"place {k}" for k in range(self.num_classes)), self.place),
            "tint": Column(tuple(f"tint {k}" for k in range(self.num_groups)), self.tint),
        }
        return Table([f"{row:05d}" for row in range(len(self.place))], columns)

    def images(self, table, size, progress):
        return ImageStore(self.pixels, hashlib.blake2b(self.pixels.tobytes(), digest_size=8).hexdigest(), {})


def draw(place, tint, num_classes, noise, generator):
    num = len(place)
    pixels = generator.normal(0.5, noise, (num, SIZE, SIZE, 3))
    pixels += 0.35 * np.eye(3)[tint % 3][:, None, None] * (1 - 0.3 * (tint // 3))[:, None, None, None]
    step = SIZE // num_classes
    for row in range(num):
        start = place[row] * step
        pixels[row, 4:12, start : start + step] += 0.5
    return (pixels.clip(0, 1) * 255).astype(np.uint8)


def face(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8).astype(np.uint8))


def utkface(root: Path, num: int = 400) -> Path:
    """A folder in the layout of UTKFace: age_gender_race_time.jpg.chip.jpg."""
    folder = root / "utkface" / "UTKFace"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for k in range(num):
        age = int(generator.integers(1, 90))
        gender, race = int(generator.integers(2)), int(generator.choice(5, p=[0.5, 0.15, 0.15, 0.15, 0.05]))
        face(k).save(folder / f"{age}_{gender}_{race}_2017010{k:011d}.jpg.chip.jpg", "JPEG", quality=90)
    return root


def fairface(root: Path, num: int = 300) -> Path:
    """A folder in the layout of FairFace: train/, val/ and a label file for each."""
    from evenlens.datasets.fairface import LEVELS

    generator = np.random.default_rng(1)
    for part, number in (("train", num), ("val", num // 3)):
        folder = root / "fairface" / part
        folder.mkdir(parents=True)
        with (root / "fairface" / f"fairface_label_{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "age", "gender", "race", "service_test"])
            for k in range(1, number + 1):
                face(k).save(folder / f"{k}.jpg", "JPEG")
                levels = [LEVELS[name][generator.integers(len(LEVELS[name]))] for name in ("age", "gender", "race")]
                writer.writerow([f"{part}/{k}.jpg", *levels, "False"])
    return root
