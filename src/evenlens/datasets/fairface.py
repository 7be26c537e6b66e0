"""FairFace: faces balanced over seven races, with age and gender."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

import numpy as np

from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, Column, Table, split_by_hash
from evenlens.errors import UserError

LEVELS = {
    "gender": ("Male", "Female"),
    "race": ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern"),
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70"),
}


def split_official(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Keep the published val part for testing, and set a tenth of the training part aside for selection."""
    parts = split_by_hash(table.names, {"val": 0.1}, seed)
    held_out = np.char.startswith(np.asarray(table.names), "val/")
    parts[held_out] = PARTS.index("test")
    return parts


def read_labels(path: Path, part: str) -> list[dict[str, str]]:
    """Read one of the two label files.

    Raises:
        UserError: it is no table of UTF-8 and commas, lacks a column, or names no image of its part, or one twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lacking = sorted({"file", *LEVELS} - set(reader.fieldnames or ()))
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8 ({error}): put it there as it was published.") from None
    if lacking:
        raise UserError(
            f"{path} lacks the column {lacking[0]}: its first line must name file, age, gender and race, with commas "
            "between them."
        )
    seen = set()
    for row in rows:
        name = row["file"] or ""
        if not name.startswith(f"{part}/") or ".." in name or name in seen:
            why = "twice" if name in seen else f"which is no image of {part}/"
            raise UserError(f"{path} names '{name}', {why}: put the file there as it was published.")
        seen.add(name)
    return rows


class FairFace(Source):
    """FairFace: faces from photographs, balanced over seven races, with apparent age and gender.

    Source: Kärkkäinen & Joo, 2021, FairFace: face attribute dataset for balanced race, gender, and age, WACV,
    arXiv 1908.04913. The published validation part is our test part, as no labelled test part was published.
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
    columns: ClassVar[tuple[str, ...]] = tuple(LEVELS)
    protocols: ClassVar[dict[str, Protocol]] = {
        "official": Protocol("any of gender, race, age, against any of them", "gender", ("race",), split_official),
    }

    def table(self, skip_unreadable: bool) -> Table:
        """Read the two label files."""
        rows = []
        for part in ("train", "val"):
            path = self.folder / f"fairface_label_{part}.csv"
            if not path.is_file():
                raise self.missing(path.name)
            rows += read_labels(path, part)
        rows.sort(key=lambda row: row["file"])
        columns = {}
        for name, levels in LEVELS.items():
            code = {level: number for number, level in enumerate(levels)}
            codes = np.array([code.get(row[name], -1) for row in rows], dtype=np.int64)
            if (codes < 0).any():
                wrong = next(row for row, value in zip(rows, codes, strict=True) if value < 0)
                raise UserError(
                    f"{wrong['file']} of FairFace has the {name} '{wrong[name]}', which is not one of "
                    f"{', '.join(levels)}: put the label files there as they were published."
                )
            columns[name] = Column(levels, codes)
        if len(rows) != 97_698:
            self.notes.append(f"{len(rows):,} labelled images are here; 97,698 were published.")
        return Table([row["file"] for row in rows], columns)
