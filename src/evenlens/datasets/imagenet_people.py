"""Photographs of people at their work, sport or station from ImageNet, with the gender that annotators saw."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from evenlens.data.reading import read_table, to_column, to_numbers
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import Column, Table, split_by_hash
from evenlens.errors import UserError

if TYPE_CHECKING:
    import pyarrow

GENDERS = ("male", "female")
SYNSET = re.compile(r"n\d{8}")
IMAGE = re.compile(r"(?P<synset>n\d{8})_\d+\.JPEG")
NUM = 10_215
SAFETY, IMAGEABILITY = "synsets_safety.csv", "imageability_scores.csv"
DEMOGRAPHICS = "ImageNet demographics annotations.json"
TABLES = {  # label tables by file name: their columns for the image, its class and the gender
    "labels.csv": ("file", "class", "gender"),
    "Imagenet.csv": ("face_name_align", "classes", "gender"),
}


class Synset(NamedTuple):
    """A concept of WordNet, as it was judged.

    Attributes:
        name: its first word.
        safe: it was judged to be neither offensive nor sensitive.
        imageability: how easily it is pictured, from 1 to 5; NaN where nobody was asked.
    """

    name: str
    safe: bool
    imageability: float


def split_fairgrape(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split 80 / 10 / 10 by a hash of the file's name, wherever the file lies."""
    return split_by_hash([name.rpartition("/")[2] for name in table.names], {"val": 0.1, "test": 0.1}, seed)


def read_names(path: Path) -> dict[str, str]:
    """Read the first word of each synset from one of the two files of synsets (columns `wnid` and `synset`).

    Raises:
        UserError: it is no such table, or judges a synset twice.
    """
    table = read_table(path, ("wnid", "synset"))
    names: dict[str, str] = {}
    for wnid, words in zip(table["wnid"].to_pylist(), table["synset"].to_pylist(), strict=True):
        if not SYNSET.fullmatch(wnid or "") or wnid in names:
            why = "twice" if wnid in names else "which is not like n09618880"
            raise UserError(f"{path} names the synset '{wnid}', {why}: put the file there as it was published.")
        names[wnid] = (words or wnid).split(",")[0].strip()
    return names


def read_synsets(safety: Path, imageability: Path) -> dict[str, Synset]:
    """Read the official judgements of the synsets below "person".

    Args:
        safety: CSV with the columns `wnid`, `synset` (its words, with commas) and `safety`; only `safe` is safe.
        imageability: CSV with `wnid`, `synset` and `imageability score`, a number from 1 to 5.

    Returns:
        By WordNet number, in the order of the first file.

    Raises:
        UserError: a file is no such table.
    """
    names = read_names(safety)
    judged = read_table(safety, ("safety",))["safety"].to_pylist()
    scores = dict(
        zip(
            read_names(imageability),
            to_numbers(read_table(imageability, ("imageability score",)), "imageability score", imageability.name),
            strict=True,
        )
    )
    return {
        wnid: Synset(name, safety == "safe", float(scores.get(wnid, np.nan)))
        for (wnid, name), safety in zip(names.items(), judged, strict=True)
    }


def read_annotation(path: Path) -> dict[str, set[str]]:
    """Read which genders annotators gave to the people in each image.

    Args:
        path: JSON, a list with an object for each image; of it `url`, the image's file name, and `gender`, a list of
            words ("male", "female", "unsure"), are used.

    Returns:
        All words that were given, in lower case, by the image's file name.

    Raises:
        UserError: it is no such file.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON in UTF-8 ({error}): put it there as you received it.") from None
    found: dict[str, set[str]] = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        url, genders = (entry.get("url"), entry.get("gender")) if isinstance(entry, dict) else (None, None)
        listed = isinstance(genders, list) and all(isinstance(word, str) for word in genders)
        if not listed or not isinstance(url, str) or not IMAGE.fullmatch(url):
            raise UserError(
                f"Entry {number} of {path} must have a 'url' like n09618880_1956.JPEG and a 'gender' that is a list of "
                "words, such as ['female']: put the file there as you received it."
            )
        found.setdefault(url, set()).update(word.strip().lower() for word in genders or ())
    return found


def build_table(
    synsets: Mapping[str, Synset],
    genders: Mapping[str, Iterable[str]],
    min_imageability: float = 4.0,
    min_images: int = 10,
) -> Table:
    """Choose images and classes: safe and easily pictured, one clear gender, enough images.

    Args:
        synsets: by WordNet number.
        genders: what annotators said, by the image's file name, which begins with the WordNet number. An image is
            taken where all of it is one word, "male" or "female".
        min_imageability: least score of a class.
        min_images: least number of images of a class, counted after all else.

    Returns:
        Rows sorted by name, `<synset>/<file>`; columns class and gender. Classes are in the order of their numbers.
    """
    chosen = {}
    for file, words in genders.items():
        wnid, said = file.partition("_")[0], {*words}
        synset = synsets.get(wnid)
        if synset and synset.safe and synset.imageability >= min_imageability and said in ({"male"}, {"female"}):
            chosen[file] = wnid, GENDERS.index(said.pop())
    counts = Counter(wnid for wnid, _ in chosen.values())
    kept = sorted(wnid for wnid, count in counts.items() if count >= min_images)
    files = sorted(file for file, (wnid, _) in chosen.items() if wnid in kept)
    code = {wnid: number for number, wnid in enumerate(kept)}
    return Table(
        [f"{chosen[file][0]}/{file}" for file in files],
        {
            "class": Column(
                distinct(kept, {wnid: synsets[wnid].name for wnid in kept}),
                np.array([code[chosen[file][0]] for file in files], dtype=np.int64),
            ),
            "gender": Column(GENDERS, np.array([chosen[file][1] for file in files], dtype=np.int64)),
        },
    )


def distinct(synsets: Iterable[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """Name classes in words; where two have the same word, or none is known, by the number too."""
    synsets = list(synsets)
    often = Counter(names.get(wnid, wnid) for wnid in synsets)
    words = {wnid: names.get(wnid, wnid) for wnid in synsets}
    return tuple(word if often[word] == 1 else f"{word} ({wnid})" for wnid, word in words.items())


def read_labels(path: Path, names: Mapping[str, str]) -> Table:
    """Read a label table that is already made.

    Args:
        path: labels.csv, or Imagenet.csv as FairGRAPE published it (`TABLES`). The gender is male or female, or 0 or 1.
            The class is a word, a WordNet number, or a number; a number must stand for one synset, which the images'
            names begin with.
        names: of synsets, by WordNet number, as far as they are known.

    Returns:
        Rows sorted by name; columns class and gender.

    Raises:
        UserError: a column is lacking, a value is not allowed, or an image is named twice or not below the folder.
    """
    file, kind, sex = TABLES[path.name]
    table = read_table(path, (file, kind, sex))
    images = table[file].to_pylist()
    plain = path.name == "Imagenet.csv"
    for number, image in enumerate(images):
        if not image or image.startswith(("/", "~")) or ".." in image or "\\" in image or ":" in image:
            raise UserError(f"Row {number + 2} of {path} names the image '{image}', which is not below its folder.")
        if plain and not IMAGE.fullmatch(image):
            raise UserError(f"Row {number + 2} of {path} names the image '{image}', not like n09618880_1956.JPEG.")
    doubled = [image for image, count in Counter(images).items() if count > 1]
    if doubled:
        raise UserError(f"{path} names the image '{doubled[0]}' twice: keep one of its rows.")
    if plain:  # all images in one folder; ImageNet's own archives have one for each synset
        images = [f"{image.partition('_')[0]}/{image}" for image in images]
    order = np.array(sorted(range(len(images)), key=images.__getitem__), dtype=np.int64)
    return Table(
        [images[k] for k in order],
        {
            "class": _classes(table, kind, images, names, path)[order],
            "gender": Column(GENDERS, _genders(table, sex, path)[order]),
        },
    )


def _classes(table: pyarrow.Table, name: str, images: list[str], names: Mapping[str, str], path: Path) -> Column:
    column = to_column(table, name, None, path.name)
    if (column.codes < 0).any():
        raise UserError(f"Row {int(np.argmax(column.codes < 0)) + 2} of {path} has no {name}: fill it in.")
    synsets = list(column.levels)
    if all(level.isdecimal() for level in column.levels):
        matches = [IMAGE.fullmatch(image.rpartition("/")[2]) for image in images]
        pairs = {(code, match["synset"]) for code, match in zip(column.codes.tolist(), matches, strict=True) if match}
        if None in matches or not len(pairs) == len({wnid for _, wnid in pairs}) == len(synsets):
            raise UserError(
                f"{path} has numbers for classes, which must stand for one synset each, named in the image's file like "
                "n09618880_1956.JPEG: write the classes in words."
            )
        synsets = [wnid for _, wnid in sorted(pairs)]
    return Column(distinct(synsets, names), column.codes)


def _genders(table: pyarrow.Table, name: str, path: Path) -> np.ndarray:
    coded = {*table[name].to_pylist()} <= {"0", "1"}
    codes = to_column(table, name, ("0", "1") if coded else GENDERS, path.name).codes
    if (codes < 0).any():
        raise UserError(f"Row {int(np.argmax(codes < 0)) + 2} of {path} has no {name}: leave the image out.")
    return codes


class ImageNetPeople(Source):
    """ImageNet people: photographs of 104 kinds of people, such as nurse or carpenter, with their apparent gender.

    Source: Yang, Qinami, Fei-Fei, Deng & Russakovsky, 2020, Towards fairer datasets: filtering and balancing the
    distribution of the people subtree in the ImageNet hierarchy, FAT*, arXiv 1912.07726. The task is that of Lin, Kim &
    Joo, 2022, FairGRAPE, arXiv 2207.10888.

    The labels are read from the first of these that is in the folder: labels.csv (file, class, gender); Imagenet.csv,
    the table of FairGRAPE's authors (image_name, face_name_align, classes, gender: 0 male, 1 female); or the official
    annotation, of which the table is then made: synsets judged safe, with an imageability of 4 or more; images with one
    gender, male or female; classes with ten images or more.

    Differs from FairGRAPE: the images are split by a hash of the file's name instead of a shuffled list, and classes
    have words. Their function that makes the table cannot run, so this one follows what it was meant to do; whether it
    gives their 10,215 rows could not be tried, as the annotation of images is given out on request. Its form (a list of
    objects with `url` and `gender`) is known from that function alone.
    """

    title: ClassVar[str] = "ImageNet people"
    citation: ClassVar[str] = (
        "Yang et al., 2020, Towards fairer datasets: the people subtree of ImageNet, arXiv 1912.07726"
    )
    licence: ClassVar[str] = "non-commercial research and education only, by ImageNet's terms of access"
    homepage: ClassVar[str] = "https://image-net.org/update-sep-17-2019.php"
    caveat: ClassVar[str] = (
        "Gender, one of two, is what annotators saw in a photograph, not what the people shown say of themselves; "
        "where they were unsure the image is left out. The classes are impressions as well: nobody asked the people "
        "what they are. More than half of ImageNet's classes of people were withdrawn as offensive or sensitive; that "
        "the rest is harmless is the judgement of a few. The images were collected from the web without asking."
    )
    how_to_get: ClassVar[str] = (
        "With an account at https://image-net.org, get the archives of the synsets of people and unpack each into a "
        "folder of its name, so that imagenet_people/ holds n09618880/n09618880_1956.JPEG. Beside these folders put "
        "Imagenet.csv of https://github.com/Bernardo1998/FairGRAPE, and for the classes' words synsets_safety.csv of "
        "https://image-net.org/data/; or that file, imageability_scores.csv from the same place and 'ImageNet "
        "demographics annotations.json', for which to ask the ImageNet team; or a table labels.csv of your own."
    )
    size: ClassVar[int] = 224
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = ("class", "gender")
    protocols: ClassVar[dict[str, Protocol]] = {
        "fairgrape": Protocol(
            "the kind of person, by gender, 80/10/10 by file name (arXiv 2207.10888)",
            "class", ("gender",), split_fairgrape,
        ),
    }  # fmt: skip

    def table(self, skip_unreadable: bool) -> Table:
        """Read the label table, or make it of the official annotation."""
        safety, imageability, demographics = (self.folder / name for name in (SAFETY, IMAGEABILITY, DEMOGRAPHICS))
        made = next((self.folder / name for name in TABLES if (self.folder / name).is_file()), None)
        if made:
            named = next((path for path in (safety, imageability) if path.is_file()), None)
            table = read_labels(made, read_names(named) if named else {})
            if not named and any(SYNSET.fullmatch(level) for level in table.columns["class"].levels):
                self.notes.append(f"Put {SAFETY} beside {made.name} to see the classes in words.")
        else:
            lacking = [path.name for path in (safety, imageability, demographics) if not path.is_file()]
            if lacking:
                raise self.missing(f"labels.csv, or Imagenet.csv, or else {', '.join(lacking)}")
            genders = read_annotation(demographics)
            table = build_table(read_synsets(safety, imageability), genders)
            if not len(table):
                raise UserError(
                    f"None of the {len(genders):,} images in {demographics} is of a class that is safe, has an "
                    "imageability of 4 or more and ten images with one clear gender: put the three files there as they "
                    "were published."
                )
            self.notes.append(
                f"{len(table):,} of {len(genders):,} annotated images have one clear gender and a class that was kept."
            )
        if len(table) != NUM:
            self.notes.append(f"{len(table):,} labelled images are here; FairGRAPE's table has {NUM:,}.")
        return table
