"""HAM10000: 10,015 dermatoscopic images of pigmented skin lesions, with diagnosis, sex, age and skin tone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from evenlens.data.downloads import Download
from evenlens.data.reading import check_columns, read_table, to_column, to_numbers
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, UNUSED, Column, Table, position, split_by_hash
from evenlens.errors import UserError

if TYPE_CHECKING:
    import pyarrow

# In the order of the sketch protocol's class numbers, which its random draw goes through.
DIAGNOSES = {
    "akiec": "actinic keratosis (akiec)",
    "bcc": "basal cell carcinoma (bcc)",
    "bkl": "benign keratosis (bkl)",
    "df": "dermatofibroma (df)",
    "nv": "melanocytic nevus (nv)",
    "vasc": "vascular lesion (vasc)",
    "mel": "melanoma (mel)",
}
MALIGNANT = ("akiec", "bcc", "mel")
SITES = (
    "abdomen", "acral", "back", "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck", "scalp",
    "trunk", "upper extremity",
)  # fmt: skip
AGE_EDGES = (30, 40, 50, 60, 70)
AGE_BANDS = ("under 30", "30-39", "40-49", "50-59", "60-69", "70 or older")
ITA_EDGES = (-30.0, 10.0, 28.0, 41.0, 55.0)  # degrees; an angle on an edge belongs to the darker band
ITA_BANDS = ("dark", "brown", "tan", "intermediate", "light", "very light")
TONES = ("lighter (ITA 32 or more)", "darker (ITA under 32)")
NEEDED = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
FOLDERS = ("HAM10000_images", "HAM10000_images_part_1", "HAM10000_images_part_2", "ISIC2018_Task3_Training_Input")
TABLES = ("HAM10000_metadata.csv", "HAM10000_metadata.tab")
NUM_IMAGES = 10_015
FIRST, LAST = "ISIC_0027419", "ISIC_0032258"  # images of the publisher's first and last row
UNKNOWN = "unknown"
DATAVERSE = "https://dataverse.harvard.edu/api/access/datafile"
HOW_TO_ADD_TONE = (
    "Add a column ita (individual typology angle in degrees, of the skin beside the lesion), such as that of the "
    "table in https://github.com/ubc-tea/Improving-Fairness-in-Image-Classification-via-Sketching."
)


def apportion(counts: np.ndarray, num: int, random: np.random.RandomState) -> np.ndarray:
    """Share `num` draws among classes in proportion: whole parts first, then the largest remainders.

    Equal remainders are settled by lot. This and the next function repeat scikit-learn's stratified draw, its
    arithmetic and the order of its random numbers, so that the same seed gives the same rows.

    Args:
        counts: (C,) members of each class.
        num: how many to share.
        random: where lots come from.

    Returns:
        (C,) int64 with the sum `num`.
    """
    exact = counts / counts.sum() * num
    shares = np.floor(exact)
    remainders = exact - shares
    lacking = int(num - shares.sum())
    for remainder in np.unique(remainders)[::-1]:
        if lacking <= 0:
            break
        equal = np.flatnonzero(remainders == remainder)
        chosen = random.choice(equal, size=min(len(equal), lacking), replace=False)
        shares[chosen] += 1
        lacking -= len(chosen)
    return shares.astype(np.int64)


def stratified_draw(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Draw a share of rows, each class in proportion, as scikit-learn's `train_test_split(stratify=...)` does.

    Args:
        labels: (N,) class numbers; the result depends on the order of the rows.
        share: of the rows to draw, in (0, 1), rounded up to whole rows.
        seed: of NumPy's RandomState, modulo 2**32.

    Returns:
        The positions of the rows drawn, sorted.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    num = int(np.ceil(share * len(labels)))
    random = np.random.RandomState(seed % 2**32)  # the original's stream of random numbers
    stay = apportion(counts, len(labels) - num, random)
    drawn = apportion(counts - stay, num, random)
    rows = []
    for code, members in enumerate(counts):
        mixed = np.flatnonzero(codes == code)[random.permutation(members)]
        rows.append(mixed[stay[code] : stay[code] + drawn[code]])
    return np.sort(np.concatenate(rows))


def split_sketch(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Test on a stratified fifth of the lesions with one image, and set a tenth of the other lesions aside.

    Rows of unknown sex or age are left out, whatever is asked for. With seed 1 and the publisher's order of rows, the
    test part is the original's.
    """
    known = (table.column("sex").codes >= 0) & (table.column("age60").codes >= 0)
    rows = np.flatnonzero(known)
    _, lesion, counts = np.unique(np.asarray(table.unit_names)[rows], return_inverse=True, return_counts=True)
    single = rows[counts[lesion] == 1]
    single = single[np.argsort(table.numbers["order"][single])]
    parts = np.where(known, split_by_hash(table.unit_names, {"val": 0.1}, seed), UNUSED)
    parts[single[stratified_draw(table.column("dx").codes[single], 0.2, seed)]] = PARTS.index("test")
    return parts


def split_lesions(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split 70 / 10 / 20 by lesion within each crossing of label and group, ranked by a hash of the lesion.

    A lesion belongs to the cell of its first image, by image id, whose label and group are known.
    """
    images = [name.rpartition("/")[2] for name in table.names]
    lesions = table.unit_names
    cell: dict[str, tuple[int, int]] = {}
    for row in sorted(np.flatnonzero((label >= 0) & (group >= 0)).tolist(), key=images.__getitem__):
        cell.setdefault(lesions[row], (int(label[row]), int(group[row])))
    place = dict(zip(cell, position(list(cell), seed), strict=True))
    members: dict[tuple[int, int], list[str]] = {}
    for lesion in sorted(cell, key=lambda lesion: (place[lesion], lesion)):
        members.setdefault(cell[lesion], []).append(lesion)
    part = {}
    for ranked in members.values():
        test, val = round(0.2 * len(ranked)), round(0.1 * len(ranked))
        for rank, lesion in enumerate(ranked):
            part[lesion] = PARTS.index("test" if rank < test else "val" if rank < test + val else "train")
    return np.array([part.get(lesion, UNUSED) for lesion in lesions], dtype=np.int64)


class HAM10000(Source):
    """HAM10000 (ISIC 2018 task 3): dermatoscopic images of pigmented skin lesions, by diagnosis, sex, age and tone.

    Source: Tschandl, Rosendahl & Kittler, 2018, The HAM10000 dataset, Scientific Data 5, doi:10.1038/sdata.2018.161.
    Differs from the sketching study (arXiv 2211.00168) in `sketch`: the original chose its model on the images that
    it reported, a stratified fifth of the lesions with a single image. Those are the test part here, and a tenth of
    the other lesions is the val part. That draw goes through the rows in the publisher's order; where a table has
    them in another, it goes through them by image id, which gives other images with the same number of each class.
    `lesions` is no publication's: no lesion lies in two parts, and each crossing of the asked label and group gives
    its share of lesions to each part, so that asking for others gives another split.
    """

    title: ClassVar[str] = "HAM10000 (ISIC 2018 task 3)"
    citation: ClassVar[str] = (
        "Tschandl, Rosendahl & Kittler, 2018, The HAM10000 dataset, a large collection of multi-source dermatoscopic "
        "images of common pigmented skin lesions, doi:10.1038/sdata.2018.161"
    )
    licence: ClassVar[str] = "CC BY-NC 4.0"
    homepage: ClassVar[str] = "https://doi.org/10.7910/DVN/DBW86T"
    caveat: ClassVar[str] = (
        "The diagnosis of about half of the lesions is from pathology, of the others from follow-up, consensus or "
        "confocal microscopy. Malignant means melanoma, basal cell carcinoma and actinic keratosis (akiec), which is "
        "counted as malignant though much of it is a precursor. Skin tone is an angle (ITA) computed from the pixels "
        "around the lesion, at -3 to 49 degrees: lighter against darker is light against intermediate and tan, and "
        "hardly any brown or dark skin is here. The images come from two clinics, in Austria and Australia."
    )
    how_to_get: ClassVar[str] = (
        "Fetch HAM10000_metadata (in its original format, CSV), HAM10000_images_part_1.zip and "
        "HAM10000_images_part_2.zip from https://doi.org/10.7910/DVN/DBW86T, and unpack each archive into a folder of "
        "its name, so that ham10000/ holds HAM10000_metadata.csv, HAM10000_images_part_1/ and HAM10000_images_part_2/."
    )
    size: ClassVar[int] = 64
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = (
        "dx", "malignant", "sex", "age60", "age_band", "tone", "tone_band", "localization",
    )  # fmt: skip
    protocols: ClassVar[dict[str, Protocol]] = {
        "lesions": Protocol(
            "any target and groups, 70/10/20 by lesion within each label and group", "malignant", ("sex",),
            split_lesions,
        ),
        "sketch": Protocol(
            "any target and groups, the sketching study's 1,094 images for testing (arXiv 2211.00168)", "dx", ("sex",),
            split_sketch,
        ),
    }  # fmt: skip

    downloads: ClassVar[tuple[Download, ...]] = (
        Download(
            f"{DATAVERSE}/4338392?format=original",
            "md5:8f85fb1aa29d80a2797247e434deb79d",
            690_218,
            unpack=False,
            name="HAM10000_metadata.csv",
        ),
        Download(
            f"{DATAVERSE}/3172585",
            "md5:4639bfa73ab251610530a97c898e6e46",
            1_366_522_108,
            name="HAM10000_images_part_1.zip",
            into="HAM10000_images_part_1",
        ),
        Download(
            f"{DATAVERSE}/3172584",
            "md5:da43d6cc50f6613013be07e8986b384b",
            1_403_566_547,
            name="HAM10000_images_part_2.zip",
            into="HAM10000_images_part_2",
        ),
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.has_tone = True
        self.as_published = True

    def table(self, skip_unreadable: bool) -> Table:
        """Read the metadata, and in which folder each image lies."""
        path = self._metadata()
        read = read_table(path)
        check_columns(read.column_names, NEEDED, path.name)
        images = _identifiers(read, path)
        names = [f"{folder}/{image}.jpg" for image, folder in zip(images, self._folders(images), strict=True)]
        order = np.array(sorted(range(len(images)), key=images.__getitem__), dtype=np.int64)
        self.as_published = bool(images) and (images[0], images[-1]) == (FIRST, LAST)
        ranks = np.arange(len(images), dtype=np.float64)
        if not self.as_published:
            ranks[order] = np.arange(len(images))
        age = _bounded(read, "age", 0, 120, path)
        self.has_tone = "ita" in read.column_names
        ita = _bounded(read, "ita", -90, 90, path) if self.has_tone else np.full(len(images), np.nan)
        if not self.has_tone:
            self.notes.append(f"Skin tone is not known: {path.name} has no column ita. {HOW_TO_ADD_TONE}")
        if len(images) != NUM_IMAGES:
            self.notes.append(f"{len(images):,} images are listed here; {NUM_IMAGES:,} were published.")
        table = Table(
            names,
            _columns(read, age, ita, path.name),
            {"age": age, "ita": ita, "order": ranks},
            read.column("lesion_id").to_pylist(),
        )
        return table.select(np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64))

    def split(self, protocol: Protocol, table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
        """Assign rows to parts, once it is clear that what is asked for is known.

        Raises:
            UserError: skin tone is asked for, and the table has none.
        """
        if not self.has_tone and ((label < 0).all() or (group < 0).all()):
            raise UserError(
                f"The metadata of HAM10000 in {self.folder} have no column ita, so tone and tone_band are not known. "
                f"{HOW_TO_ADD_TONE}"
            )
        if protocol.split is split_sketch and not self.as_published:
            self.notes.append(
                "The metadata do not have the publisher's order of rows, so the sketch protocol's test part was drawn "
                "by image id: as many of each class as the original's, but other images."
            )
        return super().split(protocol, table, label, group, seed)

    def _metadata(self) -> Path:
        for name in TABLES:
            if (self.folder / name).is_file():
                return self.folder / name
        bare = self.folder / "HAM10000_metadata"
        if bare.is_file():
            raise UserError(f"{bare} has no ending that says what it is: rename it to HAM10000_metadata.csv.")
        raise self.missing(" or ".join(TABLES))

    def _folders(self, images: list[str]) -> list[str]:
        """Find the folder of each image, listing each folder once; for an image that is nowhere, the first one."""
        here = [folder for folder in FOLDERS if (self.folder / folder).is_dir()]
        if not here:
            raise self.missing(f"a folder {', '.join(FOLDERS[:-1])} or {FOLDERS[-1]}")
        found: dict[str, str] = {}
        for folder in reversed(here):
            found |= dict.fromkeys(os.listdir(self.folder / folder), folder)
        return [found.get(f"{image}.jpg", here[0]) for image in images]


def _identifiers(read: pyarrow.Table, path: Path) -> list[str]:
    """Give the image of each row, each a plain name and there once, with its lesion."""
    images = read.column("image_id").to_pylist()
    seen: set[str] = set()
    for row, (image, lesion) in enumerate(zip(images, read.column("lesion_id").to_pylist(), strict=True), 2):
        if not image or not re.fullmatch(r"[\w-]+", image):
            raise UserError(f"Row {row} of {path} has the image_id '{image or ''}': it must be like ISIC_0024306.")
        if image in seen:
            raise UserError(f"{path} names the image {image} twice: put the file there as it was published.")
        if not lesion:
            raise UserError(f"Row {row} of {path} has no lesion_id: put the file there as it was published.")
        seen.add(image)
    return images


def _bounded(read: pyarrow.Table, name: str, low: float, high: float, path: Path) -> np.ndarray:
    values = to_numbers(read, name, path.name)
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        raise UserError(
            f"Row {wrong[0] + 2} of {path} has the {name} {values[wrong[0]]:g}, which is not between {low} and {high}."
        )
    return values


def _columns(read: pyarrow.Table, age: np.ndarray, ita: np.ndarray, where: str) -> dict[str, Column]:
    dx = to_column(read, "dx", tuple(DIAGNOSES), where)
    if (dx.codes < 0).any():
        row = int(np.flatnonzero(dx.codes < 0)[0])
        raise UserError(f"Row {row + 2} of {where} has no dx: put the file there as it was published.")
    malignant = np.array([name in MALIGNANT for name in DIAGNOSES], dtype=np.int64)
    return {
        "dx": Column(tuple(DIAGNOSES.values()), dx.codes),
        "malignant": Column(("benign", "malignant"), malignant[dx.codes]),
        "sex": _known(to_column(read, "sex", ("male", "female", UNKNOWN), where)),
        "age60": _where_known(age, age < 60, ("60 or older", "under 60")),
        "age_band": _where_known(age, np.digitize(age, AGE_EDGES), AGE_BANDS),
        "tone": _where_known(ita, ita < 32, TONES),
        "tone_band": _where_known(ita, np.digitize(ita, ITA_EDGES, right=True), ITA_BANDS),
        "localization": _known(to_column(read, "localization", (*SITES, UNKNOWN), where)),
    }


def _known(column: Column) -> Column:
    """Make the last level, which says that nothing is known, no level."""
    last = len(column.levels) - 1
    return Column(column.levels[:-1], np.where(column.codes == last, -1, column.codes))


def _where_known(values: np.ndarray, codes: np.ndarray, levels: tuple[str, ...]) -> Column:
    return Column(levels, np.where(np.isnan(values), -1, codes))
