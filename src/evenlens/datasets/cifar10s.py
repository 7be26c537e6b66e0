"""CIFAR-10S: ten objects in two versions of every picture, with training skewed by object."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from evenlens.data.byte_rows import (
    NUM_VALUES,
    SIDE,
    Place,
    find_folder,
    hold_out_test,
    note_numbers,
    number_within,
    rank,
    read_bytes,
    read_labels,
    read_levels,
    state,
    to_image,
    to_pixels,
)
from evenlens.data.downloads import Download
from evenlens.data.images import ImageStore, Progress, digest, open_store
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, UNUSED, Column, Table, position
from evenlens.errors import UserError, unknown

FILES = {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]}
# What the picture is called as it was, and when changed.
CHANGES = {
    "grey": ("colour", "grey"),
    "centre_crop": ("whole", "centre crop"),
    "low_resolution_16": ("32 pixels", "16 pixels"),
    "low_resolution_8": ("32 pixels", "8 pixels"),
}


def make_image(item: tuple[Place, str], size: int) -> tuple[np.ndarray, int]:
    """Read one picture and change it, unless the change is "".

    Returns:
        (size, size, 3) uint8, and the digest of the published bytes and the change: two versions are no copies.

    Raises:
        OSError: the file ends before it.
    """
    place, change = item
    data = read_bytes(place)
    return to_pixels(apply(to_image(data), change), size), digest(data + change.encode())


def apply(image: Image.Image, change: str) -> Image.Image:
    """Make the changed version of a picture; "" leaves it as it is."""
    if change == "grey":
        return image.convert("L").convert("RGB")
    if change == "centre_crop":
        return image.crop((2, 2, 30, 30)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    if change.startswith("low_resolution_"):
        side = int(change.rpartition("_")[2])
        return image.resize((side, side), Image.Resampling.BILINEAR).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return image


def both_versions(labels: dict[str, np.ndarray], objects: tuple[str, ...], versions: tuple[str, str]) -> Table:
    """Make the table that holds every picture twice, sorted by name.

    Args:
        labels: by "train" and "test", (N,) labels in the order of the files.
        objects: names of the labels.
        versions: names of a picture as it was and of a changed one.

    Returns:
        Columns `object` and `domain`; the number `row` is the picture's place in the files of its part.
    """
    rows = []
    for part, codes in labels.items():
        for row, (code, number) in enumerate(zip(codes.tolist(), number_within(codes).tolist(), strict=True)):
            unit = f"{part}/{objects[code]}/{number:05d}"
            rows += [(f"{unit} {version}", unit, code, domain, row) for domain, version in enumerate(versions)]
    names, units, objects_of, domains_of, rows_of = zip(*sorted(rows), strict=True)
    columns = {"object": Column(objects, np.array(objects_of)), "domain": Column(versions, np.array(domains_of))}
    return Table(names, columns, {"row": np.array(rows_of)}, units)


def split_study(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Test on the first nine tenths of each object's published test pictures and select on the last, both versions."""
    parts = np.full(len(table), PARTS.index("train"), dtype=np.int64)
    number = np.array([int(unit.rpartition("/")[2]) for unit in table.unit_names])
    published = np.char.startswith(np.asarray(table.names), "test/")
    for code in np.unique(label):
        rows = np.flatnonzero(published & (label == code))
        tested = 10 * number[rows] < 9 * len({*number[rows].tolist()})
        parts[rows] = np.where(tested, PARTS.index("test"), PARTS.index("val"))
    return parts


def split_full_test(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Test on all published test pictures, in both versions, and select on a tenth of each object's training ones."""
    return hold_out_test(table, label, seed)


def skew_training(parts: np.ndarray, table: Table, skew: float, seed: int) -> np.ndarray:
    """Keep one version of every published training picture, the other is in no part.

    In each part, `floor(skew * n)` of the n pictures of an object with an even number are changed, and as many of an
    object with an odd number are not. Which, the hash of the picture's name decides.

    Args:
        parts: (N,) positions in `PARTS`, equal for both versions of a picture.
        table: of `both_versions`, in any order.
        skew: share of an object's pictures that have its usual version, in [0.5, 1].
        seed: of the hash.
    """
    parts = parts.copy()
    place = position(table.unit_names, seed)
    code, changed = table.column("object").codes, table.column("domain").codes == 1
    training = np.char.startswith(np.asarray(table.names), "train/")
    for part in np.unique(parts[training]):
        for number in np.unique(code):
            rows = np.flatnonzero(training & (parts == part) & (code == number))
            ranks = rank(place[rows])
            pictures = len(rows) // 2
            usual = math.floor(skew * pictures + 1e-6)  # 0.57 * 5000 comes out a little below 2850
            wanted = usual if number % 2 == 0 else pictures - usual
            parts[rows[changed[rows] != (ranks < wanted)]] = UNUSED
    return parts


class CIFAR10S(Source):
    """CIFAR-10S: ten objects in colour and grey, where training shows each object mostly in one of the two.

    A bias that is known because it was put there: airplanes, birds, deer, frogs and ships are mostly grey in training,
    automobiles, cats, dogs, horses and trucks mostly in colour. Every test picture is shown in both versions. The
    protocol `study` is that of arXiv 2401.03695; `full-test` tests on all published test pictures.

    Args:
        folder: holds `cifar-10-batches-bin/`.
        skew: share of an object's training pictures that have its usual version, in [0.5, 1]; 0.5 is no bias.
        change: how the second version is made: `grey` (luma of ITU-R 601-2), `centre_crop` (the middle 28 x 28,
            enlarged to 32 x 32), `low_resolution_16` or `low_resolution_8` (reduced to as many pixels, and enlarged).

    Source: Wang, Qinami, Karakozis, Genova, Nair, Hata & Russakovsky, 2020, Towards fairness in visual recognition,
    CVPR, arXiv 1911.11834; pictures of Krizhevsky, 2009, Learning multiple layers of features from tiny images.
    Differs from the publications in this: which pictures are changed is decided by a hash of their names, not by a
    random generator that depends on what was drawn before. The first publication has no validation part; `full-test`
    takes a tenth of its training pictures, skewed alike. Pictures are enlarged and reduced bilinearly; how the original
    did it we do not know.
    """

    title: ClassVar[str] = "CIFAR-10S"
    citation: ClassVar[str] = (
        "Wang et al., 2020, Towards fairness in visual recognition, arXiv 1911.11834; pictures of Krizhevsky, 2009, "
        "Learning multiple layers of features from tiny images"
    )
    licence: ClassVar[str] = "none stated; the publisher asks to cite Krizhevsky, 2009"
    homepage: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar.html"
    caveat: ClassVar[str] = (
        "The groups are versions of a picture that we make, such as colour and grey: results show what a method does "
        "about a bias that was put there, and nothing about people. One picture in a hundred is grey as it was "
        "published, and so the same in both versions. 3.3 % of the test pictures have near-duplicates in training "
        "(Barz & Denzler, 2020, arXiv 1902.00423)."
    )
    how_to_get: ClassVar[str] = (
        "Fetch https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and unpack it so that "
        "cifar10/cifar-10-batches-bin/ holds data_batch_1.bin to data_batch_5.bin, test_batch.bin and batches.meta.txt."
    )
    size: ClassVar[int] = SIDE
    augment: ClassVar[str] = "crop_flip"
    home: ClassVar[str] = "cifar10"
    columns: ClassVar[tuple[str, ...]] = ("object", "domain")
    protocols: ClassVar[dict[str, Protocol]] = {
        "study": Protocol(
            "ten objects by version; test and val are 900 and 100 test pictures of each, twice (arXiv 2401.03695)",
            "object", ("domain",), split_study, fixed=True,
        ),
        "full-test": Protocol(
            "ten objects by version; test is all test pictures, twice (arXiv 1911.11834); val a tenth of training",
            "object", ("domain",), split_full_test, fixed=True,
        ),
    }  # fmt: skip
    downloads: ClassVar[tuple[Download, ...]] = (
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            170_052_171,
        ),
    )

    def __init__(self, folder: Path, *, skew: float = 0.95, change: str = "grey") -> None:
        super().__init__(folder)
        if not 0.5 <= skew <= 1:
            raise UserError(f"data.skew={skew} is not in [0.5, 1]: it is the share of an object's usual version.")
        if change not in CHANGES:
            raise unknown("data.change", change, CHANGES)
        self.skew, self.change = skew, change

    def table(self, skip_unreadable: bool) -> Table:
        """Read the label bytes of all pictures; each is there in both versions."""
        home = self._home()
        objects = read_levels(home / "batches.meta.txt", 10)
        labels = {
            part: np.concatenate([read_labels(home / file, (10,))[:, 0] for file in files]).astype(np.int64)
            for part, files in FILES.items()
        }
        note_numbers(self, labels)
        return both_versions(labels, objects, CHANGES[self.change])

    def _home(self) -> Path:
        """Give the folder of the files, all of which are there."""
        files = ["batches.meta.txt", *FILES["train"], *FILES["test"]]
        return find_folder(self, "cifar-10-batches-bin", files, pickled="cifar-10-batches-py")

    def split(self, protocol: Protocol, table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
        """Assign pictures to parts by the protocol, and skew those that were published for training."""
        return skew_training(protocol.split(table, label, group, seed), table, self.skew, seed)

    def images(self, table: Table, size: int, fit: str, progress: Progress | None) -> ImageStore:
        """Make both versions of every picture, so that one store serves every skew and seed."""
        home, row_bytes, places = self._home(), 1 + NUM_VALUES, {}
        for part, files in FILES.items():
            paths = [home / file for file in files]
            places[part] = [
                Place(str(path), start + 1) for path in paths for start in range(0, path.stat().st_size, row_bytes)
            ]
        changed = (table.column("domain").codes == 1).tolist()
        items = [
            (places[name.partition("/")[0]][row], self.change if is_changed else "")
            for name, row, is_changed in zip(table.names, table.numbers["row"].tolist(), changed, strict=True)
        ]
        source = f"{self.change}\n{state([home / file for files in FILES.values() for file in files])}"
        return open_store(items, size, make_image, source=source, name="cifar10s", progress=progress)
