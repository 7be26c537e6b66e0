"""CIFAR-100: a hundred classes of objects, each of which may be a group whose accuracy is to be kept."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from evenlens.data.byte_rows import (
    NUM_VALUES,
    PUBLISHED,
    SIDE,
    Place,
    find_folder,
    hold_out_test,
    note_numbers,
    number_within,
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
from evenlens.data.tables import Column, Table
from evenlens.errors import UserError


def make_image(place: Place, size: int) -> tuple[np.ndarray, int]:
    """Read one picture: (size, size, 3) uint8, and the digest of its bytes.

    Raises:
        OSError: the file ends before it.
    """
    data = read_bytes(place)
    return to_pixels(to_image(data), size), digest(data)


def to_table(labels: dict[str, np.ndarray], coarse: tuple[str, ...], fine: tuple[str, ...]) -> Table:
    """Make the table of all pictures, sorted by name.

    Args:
        labels: by "train" and "test", (N, 2) coarse and fine labels in the order of the files.
        coarse: names of the coarse labels.
        fine: names of the fine labels.

    Returns:
        Columns `fine`, `coarse` and `class`, which is `fine` once more; the number `row` is the picture's place in
        the file of its part.
    """
    rows = []
    for part, codes in labels.items():
        numbers = number_within(codes[:, 1])
        for row, ((above, code), number) in enumerate(zip(codes.tolist(), numbers.tolist(), strict=True)):
            rows.append((f"{part}/{fine[code]}/{number:05d}", above, code, row))
    names, coarse_of, fine_of, rows_of = zip(*sorted(rows), strict=True)
    column = Column(fine, np.array(fine_of))
    columns = {"fine": column, "coarse": Column(coarse, np.array(coarse_of)), "class": column}
    return Table(names, columns, {"row": np.array(rows_of)})


def split_official(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Keep the published test pictures for testing, and set a tenth of each class's others aside for selection."""
    return hold_out_test(table, table.column("fine").codes, seed)


class CIFAR100(Source):
    """CIFAR-100: a hundred classes of objects in twenty kinds, where the classes themselves are the groups.

    A group's accuracy is here that of a class: what pruning, say, does to the classes that are hard. The column
    `class` is `fine` once more, as a column cannot be label and group at once. So only those crossings of label and
    group exist in which the two are equal; what compares groups within a label, such as equal opportunity, is not
    defined, and what compares accuracies is.

    Source: Krizhevsky, 2009, Learning multiple layers of features from tiny images, technical report, University of
    Toronto; classes as groups by Hashemizadeh, Ramirez, Sukumaran, Farnadi, Lacoste-Julien & Gallego-Posada, 2024,
    Balancing Act: constraining disparate impact in sparse models, ICLR, arXiv 2310.20673. Differs from the latter,
    which selects on test images: a tenth of the training pictures of each class, by a hash of the name, is the
    validation part. It trains without augmentation (`data.augment=none`); the default here is `crop_flip`.
    """

    title: ClassVar[str] = "CIFAR-100"
    citation: ClassVar[str] = "Krizhevsky, 2009, Learning multiple layers of features from tiny images"
    licence: ClassVar[str] = "none stated; the publisher asks to cite Krizhevsky, 2009"
    homepage: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar.html"
    caveat: ClassVar[str] = (
        "The groups are the classes of objects, or the twenty kinds that they belong to, and no groups of people. 10 % "
        "of the test pictures have near-duplicates in training (Barz & Denzler, 2020, arXiv 1902.00423)."
    )
    how_to_get: ClassVar[str] = (
        "Fetch https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz and unpack it so that "
        "cifar100/cifar-100-binary/ holds train.bin, test.bin, fine_label_names.txt and coarse_label_names.txt."
    )
    size: ClassVar[int] = SIDE
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = ("fine", "coarse", "class")
    protocols: ClassVar[dict[str, Protocol]] = {
        "balancing-act": Protocol(
            "a hundred classes, each of which is a group (arXiv 2310.20673)", "fine", ("class",), split_official
        ),
        "coarse": Protocol(
            "a hundred classes, with the twenty kinds of objects as groups", "fine", ("coarse",), split_official
        ),
    }
    downloads: ClassVar[tuple[Download, ...]] = (
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            168_513_733,
        ),
    )

    def table(self, skip_unreadable: bool) -> Table:
        """Read the label bytes and the names of the labels."""
        home = self._home()
        coarse, fine = read_levels(home / "coarse_label_names.txt", 20), read_levels(home / "fine_label_names.txt", 100)
        labels = {part: read_labels(home / f"{part}.bin", (20, 100)).astype(np.int64) for part in PUBLISHED}
        above = np.unique(np.concatenate(list(labels.values())), axis=0)
        split_classes = np.flatnonzero(np.bincount(above[:, 1], minlength=100) > 1)
        if len(split_classes):
            raise UserError(
                f"In {home} the class '{fine[split_classes[0]]}' belongs to more than one coarse label: fetch "
                "train.bin and test.bin again."
            )
        note_numbers(self, labels)
        return to_table(labels, coarse, fine)

    def _home(self) -> Path:
        """Give the folder of the files, all of which are there."""
        files = ["fine_label_names.txt", "coarse_label_names.txt", "train.bin", "test.bin"]
        return find_folder(self, "cifar-100-binary", files, pickled="cifar-100-python")

    def images(self, table: Table, size: int, fit: str, progress: Progress | None) -> ImageStore:
        """Read all pictures."""
        home, row_bytes = self._home(), 2 + NUM_VALUES
        items = [
            Place(str(home / f"{name.partition('/')[0]}.bin"), row * row_bytes + 2)
            for name, row in zip(table.names, table.numbers["row"].tolist(), strict=True)
        ]
        source = state([home / f"{part}.bin" for part in PUBLISHED])
        return open_store(items, size, make_image, source=source, name="cifar100", progress=progress)
