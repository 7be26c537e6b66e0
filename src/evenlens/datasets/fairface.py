"""FairFace: faces balanced over seven races, with age and gender."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from evenlens.data.reading import read_table, to_column
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, UNUSED, Column, Table, position, split_by_hash
from evenlens.errors import UserError

if TYPE_CHECKING:
    import pyarrow

LEVELS = {
    "gender": ("Male", "Female"),
    "race": ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern"),
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"),
}
PUBLISHED = {"train": 86_744, "val": 10_954}
RACE4 = ("White", "Black", "Asian", "Indian")
TO_RACE4 = np.array([0, 1, -1, 2, 2, 3, -1])  # by the code of the race; two races have no place among the four
PHOTOGRAPH = "image_name"  # a column that some copies of the label files have: the photograph that a face is from


def split_official(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Keep the published val part for testing, and set a tenth of the training part aside for selection."""
    parts = split_by_hash(table.unit_names, {"val": 0.1}, seed)
    held_out = np.char.startswith(np.asarray(table.names), "val/")
    parts[held_out] = PARTS.index("test")
    return parts


def split_fairgrape(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Pool both published parts and split them 80 / 10 / 10 by a hash of the photograph."""
    return split_by_hash(table.unit_names, {"val": 0.1, "test": 0.1}, seed)


def split_imbalanced(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Keep all White faces and a fifth of the others, by a hash of the name, and split as `split_fairgrape` does."""
    race = table.column("race")
    kept = position([f"kept {name}" for name in table.names], seed) < 0.2  # another hash than that of the parts
    kept |= race.codes == race.levels.index("White")
    return np.where(kept, split_fairgrape(table, label, group, seed), UNUSED)


def read_labels(path: Path, part: str) -> pyarrow.Table:
    """Read one of the two label files: the columns file, gender, race and age, and image_name where there is one.

    Raises:
        UserError: it is no table, lacks a column, or names no image of its part, or one twice.
    """
    read = read_table(path)
    for column in ("file", *LEVELS):
        if column not in read.column_names:
            raise UserError(
                f"{path} lacks the column {column} (it has {', '.join(read.column_names)}): its first line must name "
                "file, age, gender and race."
            )
    seen = set()
    for name in read.column("file").to_pylist():
        if not name or not name.startswith(f"{part}/") or ".." in name or name in seen:
            why = "twice" if name in seen else f"which is no image of {part}/"
            raise UserError(f"{path} names '{name or ''}', {why}: put the file there as it was published.")
        seen.add(name)
    return read.select([name for name in ("file", *LEVELS, PHOTOGRAPH) if name in read.column_names])


class FairFace(Source):
    """FairFace: faces from photographs, balanced over seven races, with apparent age and gender.

    Source: Kärkkäinen & Joo, 2021, FairFace: face attribute dataset for balanced race, gender, and age, WACV,
    arXiv 1908.04913. The published validation part is our test part, as no labelled test part was published.
    Differs from FairGRAPE (arXiv 2207.10888), which pooled both parts too: the shares are of a hash of the
    photograph, where the original permuted a list with NumPy's seed 42, so the images of each part are others. The
    published label files do not name photographs; a column image_name that does is used where it is there, and
    without it each face is its own, so that faces of one photograph may lie in two parts. In `imbalanced`, the fifth
    of the faces that are not White is drawn by a hash as well.
    """

    title: ClassVar[str] = "FairFace"
    citation: ClassVar[str] = "Kärkkäinen & Joo, 2021, FairFace: face attribute dataset, arXiv 1908.04913"
    licence: ClassVar[str] = "CC BY 4.0"
    homepage: ClassVar[str] = "https://github.com/joojs/fairface"
    caveat: ClassVar[str] = (
        "Gender, race and age are the impressions of annotators, not what the people shown say of themselves. The "
        "images include children."
    )
    how_to_get: ClassVar[str] = (
        "Fetch the images with 0.25 padding and both label files from https://github.com/joojs/fairface, and unpack "
        "them so that fairface/ holds train/, val/, fairface_label_train.csv and fairface_label_val.csv."
    )
    size: ClassVar[int] = 64
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = (*LEVELS, "race4")
    protocols: ClassVar[dict[str, Protocol]] = {
        "official": Protocol("any of gender, race, age, against any of them", "gender", ("race",), split_official),
        "fairgrape": Protocol(
            "any target and groups, both parts pooled, 80/10/10 by photograph (arXiv 2207.10888)",
            "gender", ("race",), split_fairgrape,
        ),
        "imbalanced": Protocol(
            "as fairgrape, with all White faces and a fifth of the others (arXiv 2207.10888)",
            "gender", ("race",), split_imbalanced,
        ),
    }  # fmt: skip

    def table(self, skip_unreadable: bool) -> Table:
        """Read the two label files."""
        import pyarrow

        read = []
        for part in PUBLISHED:
            path = self.folder / f"fairface_label_{part}.csv"
            if not path.is_file():
                raise self.missing(path.name)
            read.append((path, read_labels(path, part)))
        both = pyarrow.concat_tables([labels for _, labels in read], promote_options="default")
        columns = {
            name: _joined([_column(labels, name, levels, path.name) for path, labels in read])
            for name, levels in LEVELS.items()
        }
        columns["race4"] = Column(RACE4, TO_RACE4[columns["race"].codes])
        names = both.column("file").to_pylist()
        if len(names) != sum(PUBLISHED.values()):
            self.notes.append(f"{len(names):,} labelled images are here; {sum(PUBLISHED.values()):,} were published.")
        units = None
        if PHOTOGRAPH in both.column_names:
            units = [unit or name for unit, name in zip(both.column(PHOTOGRAPH).to_pylist(), names, strict=True)]
        order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        return Table(names, columns, units=units).select(order)


def _column(labels: pyarrow.Table, name: str, levels: tuple[str, ...], where: str) -> Column:
    column = to_column(labels, name, levels, where)
    if (column.codes < 0).any():
        row = int(np.flatnonzero(column.codes < 0)[0])
        raise UserError(f"Row {row + 2} of {where} has no {name}: put the file there as it was published.")
    return column


def _joined(columns: list[Column]) -> Column:
    return Column(columns[0].levels, np.concatenate([column.codes for column in columns]))
