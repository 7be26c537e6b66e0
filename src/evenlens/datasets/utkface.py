"""UTKFace: 23,708 aligned faces with age, gender and race in the file name."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, UNUSED, Column, Table, position, split_by_hash
from evenlens.errors import UserError

NAME = re.compile(r"(?P<age>\d{1,3})_(?P<gender>[01])_(?P<race>[0-4])_\d+(\.jpg)?(\.chip)?\.jpg", re.IGNORECASE)
NAMELESS = frozenset(  # published with a field missing; known, so no reason to stop
    {
        "39_1_20170116174525125.jpg.chip.jpg",
        "61_1_20170109142408075.jpg.chip.jpg",
        "61_1_20170109150557335.jpg.chip.jpg",
    }
)
# Published counts by cell (label, group): images in val and test, and in all parts before any are left out.
# What the study leaves out of training it does not count, so the pool of the rarer cells is that of the images.
STUDY_AGE = {(0, 0): (1008, 1049, 10263), (0, 1): (159, 154, 1537), (1, 0): (896, 855, 8849), (1, 1): (157, 163, 1680)}
STUDY_RACE = {(0, 0): (571, 549, 5477), (0, 1): (693, 689, 6912), (1, 0): (466, 470, 4601), (1, 1): (640, 662, 6713)}
AGE_EDGES = (10, 15, 20, 25, 30, 40, 50, 60)  # of Balancing Act
AGE_BANDS = ("under 10", "10-14", "15-19", "20-24", "25-29", "30-39", "40-49", "50-59", "60 or older")


def study(
    published: dict[tuple[int, int], tuple[int, int, int]],
    names: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Split as the empirical study did, with a gender-group correlation of ten to one injected in training.

    Each cell of label y and group b gives its published share to val and to test. Of what remains, the cells with
    y = b are the majority and are kept; the other cell of the same b keeps a tenth of its majority's number.

    Args:
        published: (val, test, all) images of each cell (y, b).
        names: (N,) file names; which images go where is decided by their hash.
        label: (N,) y, or -1.
        group: (N,) b, or -1.
        seed: of the hash.
    """
    parts = np.full(len(names), UNUSED, dtype=np.int64)
    place = position(names.tolist(), seed)
    pools = {}
    for cell, (num_val, num_test, num_all) in published.items():
        rows = np.flatnonzero((label == cell[0]) & (group == cell[1]))
        rows = rows[np.argsort(place[rows], kind="stable")]
        val, test = round(len(rows) * num_val / num_all), round(len(rows) * num_test / num_all)
        parts[rows[:val]] = PARTS.index("val")
        parts[rows[val : val + test]] = PARTS.index("test")
        pools[cell] = rows[val + test :]
    for b in (0, 1):
        parts[pools[b, b]] = PARTS.index("train")
        parts[pools[1 - b, b][: len(pools[b, b]) // 10]] = PARTS.index("train")
    return parts


def split_study_age(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split for gender against adult or child."""
    return study(STUDY_AGE, np.asarray(table.names), label, group, seed)


def split_study_race(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split for gender against White or not."""
    return study(STUDY_RACE, np.asarray(table.names), label, group, seed)


def split_mfd(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Take 100 images of each cell for testing and 100 for selection; all others train as they are.

    A copy with fewer than 400 images in its smallest cell gives a quarter of that cell's number instead of 100.
    """
    parts = np.full(len(table), UNUSED, dtype=np.int64)
    place = position(table.names, seed)
    cells = [np.flatnonzero((label == y) & (group == b)) for y in (0, 1) for b in (0, 1)]
    num = min(100, min(map(len, cells)) // 4)
    for cell in cells:
        rows = cell[np.argsort(place[cell], kind="stable")]
        parts[rows] = PARTS.index("train")
        parts[rows[:num]] = PARTS.index("test")
        parts[rows[num : 2 * num]] = PARTS.index("val")
    return parts


def split_fairgrape(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Leave the race "Other" out, whatever is asked for, and split the rest 80 / 10 / 10 by a hash of the name."""
    parts = split_by_hash(table.names, {"val": 0.1, "test": 0.1}, seed)
    return np.where(table.column("race4").codes < 0, UNUSED, parts)


def split_balancing_act(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Take a fifth of all images for testing, rounded up, and a tenth of the others for selection."""
    parts = np.full(len(table), PARTS.index("train"), dtype=np.int64)
    order = np.argsort(position(table.names, seed), kind="stable")
    num = -(-len(table) // 5)
    parts[order[:num]] = PARTS.index("test")
    parts[order[num : num + (len(table) - num) // 10]] = PARTS.index("val")
    return parts


def split_natural(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Split 70 / 10 / 20 by a hash of the file name, nothing injected."""
    return split_by_hash(table.names, {"val": 0.1, "test": 0.2}, seed)


class UTKFace(Source):
    """UTKFace: aligned faces of all ages with apparent gender and race.

    Source: Zhang, Song & Qi, 2017, Age progression/regression by conditional adversarial autoencoder, CVPR.
    Differs from the study's protocol (arXiv 2401.03695): the same counts by cell, drawn by a hash of the file name
    instead of a shuffled directory listing, so that anybody gets the same images. The other protocols are drawn so
    too, with the counts of their originals, but not their images. `mfd` is what the study's MFD ran on: all ages, no
    injected bias and 400 balanced test images, which the original also chose its model on; here another 400 are for
    choosing. `balancing-act` (arXiv 2310.20673) keeps the original's test part of 4,741 of the 23,705 sorted names,
    there drawn by NumPy's RandomState(1357); the original has no val part, so a tenth of its other 18,964 became
    one. `fairgrape` (arXiv 2207.10888) leaves out the race "Other", which leaves 22,013 images.
    """

    title: ClassVar[str] = "UTKFace"
    citation: ClassVar[str] = (
        "Zhang, Song & Qi, 2017, Age progression/regression by conditional adversarial autoencoder"
    )
    licence: ClassVar[str] = "non-commercial research only; copyright stays with the owners of the images"
    homepage: ClassVar[str] = "https://susanqq.github.io/UTKFace/"
    caveat: ClassVar[str] = (
        "Gender and race are other people's impressions of a face, partly made by an algorithm, not what the people "
        "shown say of themselves. The images include children."
    )
    how_to_get: ClassVar[str] = (
        "Fetch 'Aligned & Cropped Faces' from https://susanqq.github.io/UTKFace/ and unpack it so that the images "
        "lie in utkface/UTKFace/."
    )
    size: ClassVar[int] = 64
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = ("gender", "race", "race4", "white", "adult", "age20", "age_band")
    protocols: ClassVar[dict[str, Protocol]] = {
        "study-race": Protocol(
            "gender, groups White and not White, correlated ten to one in training (arXiv 2401.03695)",
            "gender", ("white",), split_study_race, fixed=True,
        ),
        "study-age": Protocol(
            "gender, groups 20 or older and 10 or younger, correlated ten to one in training (arXiv 2401.03695)",
            "gender", ("adult",), split_study_age, fixed=True,
        ),
        "natural": Protocol(
            "any target and groups, nothing injected, 70/10/20 by name", "gender", ("race",), split_natural
        ),
        "fairgrape": Protocol(
            "any target and groups, four races, 80/10/10 by name (arXiv 2207.10888)",
            "gender", ("race4",), split_fairgrape,
        ),
        "balancing-act": Protocol(
            "any target and groups, such as five races or nine age bands, a fifth for testing (arXiv 2310.20673)",
            "gender", ("race",), split_balancing_act,
        ),
        "mfd": Protocol(
            "gender, groups 20 or older and under 20, natural training, balanced test (MFD in arXiv 2401.03695)",
            "gender", ("age20",), split_mfd, fixed=True,
        ),
    }  # fmt: skip

    def table(self, skip_unreadable: bool) -> Table:
        """Read age, gender and race from the names of the images."""
        folder = self.folder / "UTKFace"
        if not folder.is_dir():
            raise self.missing("a folder UTKFace with images named age_gender_race_time.jpg")
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        matches = {name: NAME.fullmatch(name) for name in names}
        strange = [name for name, match in matches.items() if match is None and name not in NAMELESS]
        listed = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
        if strange and not skip_unreadable:
            raise UserError(
                f"{len(strange)} of {len(names):,} file names of UTKFace do not parse as age_gender_race_time.jpg: "
                f"{listed}. Rename or remove them, or leave them out with data.skip_unreadable=true."
            )
        if strange:
            self.notes.append(f"{len(strange)} files whose names do not parse were left out: {listed}.")
        read = {name: match for name, match in matches.items() if match}
        if not read:
            raise self.missing("images named age_gender_race_time.jpg")
        if len(read) != 23_705:
            self.notes.append(f"{len(read):,} images with a complete name are here; 23,705 were published.")
        age, gender, race = (
            np.array([int(match[field]) for match in read.values()]) for field in ("age", "gender", "race")
        )
        adult = np.where(age >= 20, 0, np.where(age <= 10, 1, -1))
        return Table(
            [f"UTKFace/{name}" for name in read],
            {
                "gender": Column(("male", "female"), gender),
                "race": Column(("White", "Black", "Asian", "Indian", "Other"), race),
                "race4": Column(("White", "Black", "Asian", "Indian"), np.where(race == 4, -1, race)),
                "white": Column(("White", "not White"), (race != 0).astype(np.int64)),
                "adult": Column(("20 or older", "10 or younger"), adult),
                "age20": Column(("20 or older", "under 20"), (age < 20).astype(np.int64)),
                "age_band": Column(AGE_BANDS, np.digitize(age, AGE_EDGES)),
            },
            {"age": age},
        )
