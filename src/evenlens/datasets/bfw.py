"""BFW: 20,000 faces of 800 subjects in eight equal subgroups, and the pairs of them that verification is judged by."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from evenlens.data.reading import check_columns, read_table, to_column, to_numbers
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, Column, Table, position
from evenlens.errors import UserError

if TYPE_CHECKING:
    import pyarrow

GENDERS = ("female", "male")
ETHNICITIES = ("asian", "black", "indian", "white")
SUBGROUPS = tuple(f"{ethnicity}_{gender}s" for ethnicity in ETHNICITIES for gender in GENDERS)  # the folders' names
SUBGROUP_LEVELS = tuple(f"{ethnicity} {gender}" for ethnicity in ETHNICITIES for gender in GENDERS)
INITIALS = tuple(f"{ethnicity[0]}{gender[0]}".upper() for ethnicity in ETHNICITIES for gender in GENDERS)  # AF, AM ...
BAD_IMAGES = (  # the first shows another person than its folder says, the others are cartoons
    "asian_females/n002509/0139_03.jpg",
    "asian_males/n006741/0275_02.jpg",
    "white_females/n003391/0017_02.jpg",
)
NUM_IMAGES = 20_000
FOLDS = ("1", "2", "3", "4", "5")

# Facts of the published tables, to compare one's own with; genuine pairs are of one subject, imposter pairs of two.
PAPER_GENUINE, PAPER_IMPOSTER = 240_000, 681_379  # of each subgroup 30,000 genuine: 100 subjects, 25 * 24 / 2 pairs
IMPOSTER_BY_SUBGROUP = {  # by the subgroup of a pair's first image; in some pairs the second is of another
    "AF": 85_135, "AM": 85_232, "BF": 85_016, "BM": 85_141, "IF": 85_287, "IM": 85_152, "WF": 85_223, "WM": 85_193,
}  # fmt: skip
V015_GENUINE_BY_FOLD = (48_514, 48_469, 48_527, 48_512, 48_497)  # of the CSV of version 0.1.5: 242,519
V015_IMPOSTER_BY_FOLD = (136_194, 136_185, 136_284, 136_242, 136_474)

PAIR_COLUMNS = ("fold", "p1", "p2", "label", "att1", "att2")
OTHER_COLUMNS = ("id1", "id2", "a1", "a2", "g1", "g2", "e1", "e2")
ROW_NUMBERS = ("", "id", "index", "unnamed: 0", "__index_level_0__")  # names of a column of row numbers, in lower case
SHOWN = 5  # subjects or rows that a note names


@dataclass(frozen=True)
class Pairs:
    """N pairs of images with their scores, each column over the same N rows.

    Attributes:
        fold: (N,) int64, 1 to 5.
        first: each pair's first image; the levels are the paths of all images, the same for both sides.
        second: its second image.
        genuine: (N,) bool, both images are of one subject as the table says.
        first_subject: subject of the first image; levels such as "asian_females/n000009", the same for both sides.
        second_subject: subject of the second image.
        first_group: subgroup of the first image, with the levels `SUBGROUP_LEVELS`.
        second_group: subgroup of the second image; another one in some imposter pairs.
        scores: (N,) float64 of each matcher, by its column's name; larger means more alike.
        notes: what a person should know of this table.
        of_these_data: those of the notes that are about these published data, not about pairs in general.
    """

    fold: np.ndarray
    first: Column
    second: Column
    genuine: np.ndarray
    first_subject: Column
    second_subject: Column
    first_group: Column
    second_group: Column
    scores: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()
    of_these_data: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.fold)

    def counts(self) -> np.ndarray:
        """Count pairs: (5, 8, 8, 2) int64, with axes fold, subgroup of the first and of the second image, genuine."""
        shape = (len(FOLDS), len(SUBGROUPS), len(SUBGROUPS), 2)
        cells = (self.fold - 1, self.first_group.codes, self.second_group.codes, self.genuine.astype(np.int64))
        return np.bincount(np.ravel_multi_index(cells, shape), minlength=int(np.prod(shape))).reshape(shape)


def read_pairs(path: Path, scores: Sequence[str] | None = None) -> Pairs:
    """Read a table of pairs, such as bfw-v0.1.5-datatable.csv, from CSV or Parquet.

    Subjects are read from the images' paths. What the columns att, a, g and e say of a side's subgroup has to agree
    with each other and with the path; of these only att1 and att2 have to be there.

    Args:
        path: the table.
        scores: names of the columns with scores; None takes every other column that holds numbers.

    Raises:
        UserError: it is a pickle or no table, lacks a column, names folds other than 1 to 5, labels other than 0 and
            1, paths that are not subgroup/subject/file, or columns that contradict each other.
    """
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise UserError(
            f"{path} is a pickle, which can run any program when it is opened, so it is not read: if you trust it, "
            f"make a table of it with python -c \"import pandas; pandas.read_pickle('{path}')"
            f".to_parquet('{path.with_suffix('.parquet')}')\" and give that."
        )
    read = read_table(path)
    check_columns(read.column_names, PAIR_COLUMNS, path.name)
    if not len(read):
        raise UserError(f"{path} has no rows: a table of pairs has one row for each pair.")
    where = path.name
    fold = _whole(to_column(_as_whole(read, "fold"), "fold", FOLDS, where), "fold", where).codes + 1
    genuine = _whole(to_column(_as_whole(read, "label"), "label", ("0", "1"), where), "label", where).codes == 1
    images, first, second = _images(read, where)
    subjects, subject_of = np.unique([image.rpartition("/")[0] for image in images], return_inverse=True)
    group_of = np.array([SUBGROUPS.index(image.partition("/")[0]) for image in images], dtype=np.int64)
    for side, groups in (("1", group_of[first]), ("2", group_of[second])):
        _check_side(read, side, groups, where)
    values, notes, strange = _scores(read, scores, where)
    pairs = Pairs(
        fold,
        Column(images, first),
        Column(images, second),
        genuine,
        Column(tuple(subjects.tolist()), subject_of[first]),
        Column(tuple(subjects.tolist()), subject_of[second]),
        Column(SUBGROUP_LEVELS, group_of[first]),
        Column(SUBGROUP_LEVELS, group_of[second]),
        values,
    )
    of_these_data = (*strange, *_against_the_published(pairs))
    return replace(pairs, notes=(*notes, *_notes(pairs), *of_these_data), of_these_data=of_these_data)


def _as_whole(read: pyarrow.Table, name: str) -> pyarrow.Table:
    """Spell whole numbers without a point: pandas writes 1.0 where a column once had gaps."""
    import pyarrow
    import pyarrow.compute as compute

    return pyarrow.table({name: compute.replace_substring_regex(read.column(name), r"^(\d+)\.0$", r"\1")})


def _whole(column: Column, name: str, where: str) -> Column:
    """Refuse a column with gaps."""
    if (column.codes < 0).any():
        row = int(np.flatnonzero(column.codes < 0)[0])
        raise UserError(f"Row {row + 2} of {where} has no {name}: put the file there as it was published.")
    return column


def _images(read: pyarrow.Table, where: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Give the paths of all images, sorted, and the position of each row's first and second one among them."""
    import pyarrow

    both = pyarrow.chunked_array([*read.column("p1").chunks, *read.column("p2").chunks]).combine_chunks()
    if isinstance(both, pyarrow.ChunkedArray):  # in several pieces only past 2 GB of text
        both = pyarrow.concat_arrays(both.chunks)
    encoded = both.dictionary_encode()
    found = np.array(encoded.dictionary.to_pylist(), dtype=object)
    codes = np.asarray(encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False), dtype=np.int64)
    for code, image in [(-1, "")] * bool((codes < 0).any()) + list(enumerate(found)):
        pieces = image.split("/")
        if len(pieces) != 3 or pieces[0] not in SUBGROUPS or not all(pieces) or {".", ".."} & {*pieces}:
            row = int(np.flatnonzero(codes == code)[0]) % len(read)
            raise UserError(
                f"Row {row + 2} of {where} has the image '{image}', which is not like "
                "asian_females/n000009/0010_01.jpg: the first folder must be one of "
                f"{', '.join(SUBGROUPS)}, and the second the subject."
            )
    order = np.argsort(found)
    rank = np.empty(len(found), dtype=np.int64)
    rank[order] = np.arange(len(found))
    codes = rank[codes]
    return tuple(found[order].tolist()), codes[: len(read)], codes[len(read) :]


def _check_side(read: pyarrow.Table, side: str, groups: np.ndarray, where: str) -> None:
    """Compare what the columns of one side say with the subgroups that its paths say."""
    number = np.arange(len(SUBGROUPS))
    for letter, levels, expected in (
        ("att", SUBGROUPS, number),
        ("a", INITIALS, number),
        ("g", ("F", "M"), number % 2),
        ("e", ("A", "B", "I", "W"), number // 2),
    ):
        name = f"{letter}{side}"
        if name not in read.column_names:
            continue
        said = to_column(read, name, levels, where)
        wrong = np.flatnonzero(said.codes != expected[groups])
        if len(wrong):
            row = int(wrong[0])
            given = levels[said.codes[row]] if said.codes[row] >= 0 else "nothing"
            raise UserError(
                f"{len(wrong):,} rows of {where} contradict themselves: in row {row + 2}, {name} is {given}, where "
                f"p{side} is in {SUBGROUPS[groups[row]]}/; put the file there as it was published."
            )


def _scores(
    read: pyarrow.Table, wanted: Sequence[str] | None, where: str
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Read the columns with scores; say where some are missing, and which columns are none."""
    given = list(wanted) if wanted is not None else []
    if wanted is None:
        taken = {*PAIR_COLUMNS, *OTHER_COLUMNS}
        named = [name for name in read.column_names if not re.fullmatch(r"column \d+", name)]  # the others are indices
        given = [name for name in named if name not in taken and name.lower() not in ROW_NUMBERS]
    values, notes, strange = {}, [], []
    for name in given:
        try:
            values[name] = to_numbers(read, name, where)
        except UserError:
            if wanted is not None:
                raise
            strange.append(f"The column {name} of {where} holds other things than numbers, so it is no score.")
            continue
        lacking = int(np.isnan(values[name]).sum())
        if lacking:
            notes.append(f"{lacking:,} of {len(read):,} pairs have no score in {name}.")
    if not values:
        raise UserError(f"{where} has no column of scores besides {', '.join(read.column_names)}.")
    return values, notes, strange


def _notes(pairs: Pairs) -> list[str]:
    """Say what a published table should not show: subjects in two folds, pairs twice, labels against the subjects."""
    notes = []
    num_subjects = len(pairs.first_subject.levels)
    seen = np.zeros((num_subjects, len(FOLDS)), dtype=bool)
    for subject in (pairs.first_subject, pairs.second_subject):
        seen[subject.codes, pairs.fold - 1] = True
    several = [pairs.first_subject.levels[code] for code in np.flatnonzero(seen.sum(1) > 1)]
    if several:
        notes.append(
            f"{len(several)} of {num_subjects} subjects are in more than one fold, so thresholds of four folds have "
            f"seen subjects of the fifth: {_listed(several)}."
        )
    low, high = np.minimum(pairs.first.codes, pairs.second.codes), np.maximum(pairs.first.codes, pairs.second.codes)
    twice = len(pairs) - len(np.unique(low * len(pairs.first.levels) + high))
    if twice:
        notes.append(f"{twice:,} pairs repeat two images that an earlier row has, in this or the other order.")
    if (low == high).any():
        notes.append(f"{int((low == high).sum()):,} pairs compare an image with itself.")
    against = int((pairs.genuine != (pairs.first_subject.codes == pairs.second_subject.codes)).sum())
    if against:
        notes.append(f"{against:,} pairs have a label that contradicts the subjects of their paths.")
    return notes


def _against_the_published(pairs: Pairs) -> list[str]:
    """Say which pairs show images that are known to be wrong, and whether there are as many as were published."""
    notes = []
    bad = np.array([image in BAD_IMAGES for image in pairs.first.levels])
    flawed = int((bad[pairs.first.codes] | bad[pairs.second.codes]).sum())
    if flawed:
        notes.append(f"{flawed:,} pairs show one of the images known to be wrong ({_listed(BAD_IMAGES)}).")
    num = int(pairs.genuine.sum())
    if (len(pairs) - num, num) not in [(PAPER_IMPOSTER, PAPER_GENUINE), (PAPER_IMPOSTER, sum(V015_GENUINE_BY_FOLD))]:
        notes.append(
            f"{num:,} genuine and {len(pairs) - num:,} imposter pairs are here; {PAPER_GENUINE:,} (in version 0.1.5 "
            f"{sum(V015_GENUINE_BY_FOLD):,}) and {PAPER_IMPOSTER:,} were published."
        )
    return notes


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def split_subjects(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split the subjects of each subgroup 70 / 10 / 20, ranked by a hash of the subject."""
    subjects = sorted(set(table.unit_names))
    place = dict(zip(subjects, position(subjects, seed), strict=True))
    part = {}
    for subgroup in SUBGROUPS:
        ranked = sorted((s for s in subjects if s.startswith(f"{subgroup}/")), key=lambda s: (place[s], s))
        test, val = round(0.2 * len(ranked)), round(0.1 * len(ranked))
        for rank, subject in enumerate(ranked):
            part[subject] = PARTS.index("test" if rank < test else "val" if rank < test + val else "train")
    return np.array([part[subject] for subject in table.unit_names], dtype=np.int64)


class BFW(Source):
    """BFW (Balanced Faces in the Wild): faces of 800 subjects, balanced over four ethnicities and two genders.

    Source: Robinson, Livitz, Henon, Qin, Fu & Timoner, 2020, Face recognition: too bias, or not too bias?, CVPR
    Workshops, arXiv 2002.06483. Made for verification: its table of pairs is read by `read_pairs`. Differs from
    the publication in posing a classification as well, with parts that share no subject, and in leaving out three
    images that are known to be wrong.
    """

    title: ClassVar[str] = "BFW (Balanced Faces in the Wild)"
    citation: ClassVar[str] = "Robinson et al., 2020, Face recognition: too bias, or not too bias?, arXiv 2002.06483"
    licence: ClassVar[str] = "research only, on the terms of VGGFace2, which the images are from"
    homepage: ClassVar[str] = "https://github.com/visionjo/facerec-bias-bfw"
    caveat: ClassVar[str] = (
        "Gender and ethnicity were assigned to public figures by others, helped by algorithms, in two and four "
        "categories that do not hold everybody. Each subgroup has 100 subjects: what is seen of a subgroup rests on "
        "few people, however many images they have."
    )
    how_to_get: ClassVar[str] = (
        "Ask for the face crops as https://github.com/visionjo/facerec-bias-bfw says, and unpack them so that the "
        "eight folders asian_females/, asian_males/ and so on, with a folder for each subject, lie in bfw/ or in a "
        "folder below it, such as bfw/bfw-cropped-aligned/."
    )
    size: ClassVar[int] = 64
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = ("gender", "ethnicity")
    protocols: ClassVar[dict[str, Protocol]] = {
        "subjects": Protocol(
            "gender or ethnicity, 70/10/20 by subject within each of the eight subgroups", "gender", ("ethnicity",),
            split_subjects,
        ),
    }  # fmt: skip

    def table(self, skip_unreadable: bool) -> Table:
        """List the images of the eight folders."""
        home = self._home()
        names, units, group = [], [], []
        for code, subgroup in enumerate(SUBGROUPS):
            if not (home / subgroup).is_dir():
                self.notes.append(f"The folder {subgroup} is not here.")
                continue
            for subject in sorted(entry.name for entry in os.scandir(home / subgroup) if entry.is_dir()):
                unit = f"{subgroup}/{subject}"
                found = [name for name in os.listdir(home / unit) if name.lower().endswith((".jpg", ".jpeg", ".png"))]
                kept = sorted(name for name in found if f"{unit}/{name}" not in BAD_IMAGES)
                if len(kept) < len(found):
                    self.notes.append(f"An image of {unit} that is known to be wrong was left out.")
                names += [(home / unit / name).relative_to(self.folder).as_posix() for name in kept]
                units += [unit] * len(kept)
                group += [code] * len(kept)
        if len(names) != NUM_IMAGES - len(BAD_IMAGES):
            self.notes.append(
                f"{len(names):,} images are here; {NUM_IMAGES:,} were published, {len(BAD_IMAGES)} of them wrong."
            )
        codes = np.array(group, dtype=np.int64)
        columns = {"gender": Column(GENDERS, codes % 2), "ethnicity": Column(ETHNICITIES, codes // 2)}
        order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)
        return Table(names, columns, units=units).select(order)

    def _home(self) -> Path:
        """Find the folder that holds the subgroups' folders: this one, or the nearest below it."""
        level = [self.folder] if self.folder.is_dir() else []
        for _ in range(6):  # the publisher's archive has them four folders down
            holds = [folder for folder in level if any((folder / subgroup).is_dir() for subgroup in SUBGROUPS)]
            if len(holds) > 1:
                raise UserError(
                    f"Both {holds[0]} and {holds[1]} hold images of BFW: leave only those that are meant below "
                    f"{self.folder}."
                )
            if holds:
                return holds[0]
            level = sorted(Path(entry) for folder in level for entry in os.scandir(folder) if entry.is_dir())
        raise self.missing(f"folders {', '.join(SUBGROUPS)}, with a folder for each subject")
