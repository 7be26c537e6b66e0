"""CelebA: 202,599 aligned faces of celebrities with forty yes-or-no attributes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from evenlens.data.reading import read_table
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, UNUSED, Column, Table, position, split_by_hash
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    import pyarrow

ATTRIBUTES = {  # the published name: what -1 means, what 1 means
    "5_o_Clock_Shadow": ("no five o'clock shadow", "five o'clock shadow"),
    "Arched_Eyebrows": ("no arched eyebrows", "arched eyebrows"),
    "Attractive": ("not attractive", "attractive"),
    "Bags_Under_Eyes": ("no bags under the eyes", "bags under the eyes"), "Bald": ("not bald", "bald"),
    "Bangs": ("no bangs", "bangs"), "Big_Lips": ("no big lips", "big lips"),
    "Big_Nose": ("no big nose", "big nose"), "Black_Hair": ("not black hair", "black hair"),
    "Blond_Hair": ("not blond hair", "blond hair"), "Blurry": ("not blurry", "blurry"),
    "Brown_Hair": ("not brown hair", "brown hair"), "Bushy_Eyebrows": ("no bushy eyebrows", "bushy eyebrows"),
    "Chubby": ("not chubby", "chubby"), "Double_Chin": ("no double chin", "double chin"),
    "Eyeglasses": ("no eyeglasses", "eyeglasses"), "Goatee": ("no goatee", "goatee"),
    "Gray_Hair": ("not gray hair", "gray hair"), "Heavy_Makeup": ("no heavy makeup", "heavy makeup"),
    "High_Cheekbones": ("no high cheekbones", "high cheekbones"), "Male": ("female", "male"),
    "Mouth_Slightly_Open": ("mouth not slightly open", "mouth slightly open"),
    "Mustache": ("no mustache", "mustache"), "Narrow_Eyes": ("no narrow eyes", "narrow eyes"),
    "No_Beard": ("beard", "no beard"), "Oval_Face": ("no oval face", "oval face"),
    "Pale_Skin": ("not pale skin", "pale skin"), "Pointy_Nose": ("no pointy nose", "pointy nose"),
    "Receding_Hairline": ("no receding hairline", "receding hairline"),
    "Rosy_Cheeks": ("no rosy cheeks", "rosy cheeks"), "Sideburns": ("no sideburns", "sideburns"),
    "Smiling": ("not smiling", "smiling"), "Straight_Hair": ("not straight hair", "straight hair"),
    "Wavy_Hair": ("not wavy hair", "wavy hair"), "Wearing_Earrings": ("no earrings", "earrings"),
    "Wearing_Hat": ("no hat", "hat"), "Wearing_Lipstick": ("no lipstick", "lipstick"),
    "Wearing_Necklace": ("no necklace", "necklace"), "Wearing_Necktie": ("no necktie", "necktie"),
    "Young": ("not young", "young"),
}  # fmt: skip
OFFICIAL = ("train", "val", "test")  # what 0, 1 and 2 of the partition file mean
NUM = 202_599
FEWEST = 20  # images of two groups that give each part one of each
NAME = r"^\d{6}\.(jpg|png)$"
# Cells (label, group) of the official training part of which the study keeps so many, by target; the group is Male.
KEPT: dict[str, dict[tuple[int, int], int]] = {
    "Blond_Hair": {(0, 0): 2_000},
    "Black_Hair": {(1, 0): 10_000},
    "Smiling": {(0, 0): 10_000, (1, 1): 10_000},
}


def official_parts(table: Table) -> np.ndarray:
    """Give the (N,) positions in `PARTS` of the published partition."""
    return np.array([PARTS.index(part) for part in OFFICIAL])[table.numbers["partition"].astype(np.int64)]


def split_official(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Keep the published partition."""
    return official_parts(table)


def split_study(
    kept: dict[tuple[int, int], int], table: Table, label: np.ndarray, group: np.ndarray, seed: int
) -> np.ndarray:
    """Keep the published partition, and of some cells of training no more than a number, drawn by name.

    Args:
        kept: how many training images of a cell (label, group) are kept; all of a cell that is not named.
        table: with the partition.
        label: (N,) codes.
        group: (N,) codes.
        seed: of the draw.
    """
    parts = official_parts(table)
    place = position(table.names, seed)
    for (y, b), number in kept.items():
        rows = np.flatnonzero((parts == PARTS.index("train")) & (label == y) & (group == b))
        parts[rows[np.argsort(place[rows], kind="stable")][number:]] = UNUSED
    return parts


def split_fairgrape(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Pool all images and split them 80 / 10 / 10 by a hash of the person, or of the name where nobody is known."""
    return split_by_hash(table.unit_names, {"val": 0.1, "test": 0.1}, seed)


def shares(num: int) -> dict[str, int]:
    """Divide half of `num` images, which are those of one group, 70 / 15 / 15 over the parts."""
    train, val = num // 2 * 70 // 100, num // 2 * 15 // 100
    return {"train": train, "val": val, "test": num // 2 - train - val}


def split_sketch(table: Table, label: np.ndarray, group: np.ndarray, seed: int, num: int = 10_000) -> np.ndarray:
    """Draw the same number of images of two groups from each part of the published partition, by name.

    Raises:
        UserError: there are not two groups, or a part has too few images of one.
    """
    official, place = official_parts(table), position(table.names, seed)
    pools = {
        (code, part): np.flatnonzero((group == code) & (official == PARTS.index(part)))
        for code in _two_groups(group)
        for part in OFFICIAL
    }
    _check_enough(table, group, num, pools, shares)
    parts = np.full(len(table), UNUSED, dtype=np.int64)
    for (_, part), rows in pools.items():
        parts[rows[np.argsort(place[rows], kind="stable")][: shares(num)[part]]] = PARTS.index(part)
    return parts


def split_file_order(table: Table, label: np.ndarray, group: np.ndarray, seed: int, num: int = 10_000) -> np.ndarray:
    """Take the first images of two groups in the order of their names: training, then validation, then test.

    Raises:
        UserError: there are not two groups, or too few images of one.
    """
    order = np.argsort(np.asarray(table.names), kind="stable")
    pools = {(code, "all"): order[group[order] == code] for code in _two_groups(group)}
    _check_enough(table, group, num, pools, lambda asked: {"all": asked // 2})
    parts = np.full(len(table), UNUSED, dtype=np.int64)
    filled = np.repeat([PARTS.index(part) for part in OFFICIAL], [shares(num)[part] for part in OFFICIAL])
    for rows in pools.values():
        parts[rows[: num // 2]] = filled
    return parts


def _two_groups(group: np.ndarray) -> list[int]:
    codes = np.unique(group[group >= 0]).tolist()
    if len(codes) != 2:
        raise UserError(
            f"This protocol of CelebA balances two groups, and data.sensitive makes {len(codes)}: name one attribute "
            "that some images have and others lack, or choose data.protocol=official."
        )
    return codes


def _check_enough(
    table: Table,
    group: np.ndarray,
    num: int,
    pools: dict[tuple[int, str], np.ndarray],
    needed: Callable[[int], dict[str, int]],
) -> None:
    """Refuse a `num` for which a pool (group, part) has too few rows, and say which would do."""

    def short(asked: int) -> list[tuple[int, str]]:
        return [pool for pool, rows in pools.items() if len(rows) < needed(asked)[pool[1]]]

    if not short(num):
        return
    code, part = short(num)[0]
    words = next((c.levels[code] for c in table.columns.values() if np.array_equal(c.codes, group)), f"group {code}")
    most = next((asked for asked in range(num, FEWEST - 1, -2) if not short(asked)), 0)
    advice = f"lower data.num to {most} or less" if most else "choose another attribute in data.sensitive"
    raise UserError(
        f"{'CelebA' if part == 'all' else f'The official {part} part of CelebA'} has {len(pools[code, part]):,} images "
        f"of the group '{words}', and data.num={num} takes {needed(num)[part]:,}: {advice}."
    )


def read_spaced(path: Path, names: Sequence[str] | None = None) -> pyarrow.Table:
    """Read one of the publisher's text files, with spaces between the fields, as columns of text.

    Args:
        path: the file.
        names: of its columns; None where the file has two lines before its rows, the number of rows and the names of
            all columns but the first.

    Raises:
        UserError: another number of rows than the file says, a row with more or fewer fields, no UTF-8.
    """
    import pyarrow
    import pyarrow.csv

    published = "put it there as it was published"
    data, promised = path.read_bytes().replace(b"\r", b""), b""
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    data = data.replace(b" \n", b"\n").replace(b"\n ", b"\n")
    if names is None:
        promised, _, data = data.partition(b"\n")
        header, _, data = data.partition(b"\n")
        names = ["image_id", *header.decode("utf-8", "replace").split()]
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            read_options=pyarrow.csv.ReadOptions(column_names=names),
            parse_options=pyarrow.csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        )
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}): {published}.") from None
    if promised and promised.strip() != str(len(table)).encode():
        first = promised.decode("utf-8", "replace")[:40]
        raise UserError(f"{path} begins with '{first}' and lists {len(table):,} images: {published}, whole.")
    return table


def by_name(table: pyarrow.Table, path: Path, needed: Sequence[str]) -> pyarrow.Table:
    """Sort the rows of a label file by image, each of which must be named as published, and once.

    Raises:
        UserError: a column that is needed is lacking, or a name is another or doubled.
    """
    import pyarrow.compute as compute

    for column in needed:
        if column not in table.column_names:
            raise unknown(f"column of {path.name}", column, table.column_names)
    if not len(table):
        raise UserError(f"{path} lists no image: put it there as it was published.")
    names = table["image_id"]
    good = compute.match_substring_regex(names, NAME).fill_null(False)
    if not compute.all(good).as_py():
        strange = names.filter(compute.invert(good))[0]
        raise UserError(
            f"{path} names the image '{strange}', which is not like 000001.jpg: put the file there as it was published."
        )
    table = table.sort_by("image_id")
    sorted_names = table["image_id"].combine_chunks()
    doubled = compute.equal(sorted_names[1:], sorted_names[:-1])
    if compute.any(doubled).as_py():
        name = sorted_names[1:].filter(doubled)[0]
        raise UserError(f"{path} names the image '{name}' twice: put the file there as it was published.")
    return table


def coded(table: pyarrow.Table, column: str, allowed: Sequence[str], path: Path) -> np.ndarray:
    """Give (N,) positions in `allowed` of a column's values.

    Raises:
        UserError: a value is another, or lacking.
    """
    import pyarrow
    import pyarrow.compute as compute

    codes = compute.index_in(table[column], value_set=pyarrow.array(allowed))
    if codes.null_count:
        row = int(np.flatnonzero(codes.is_null().to_numpy())[0])
        raise UserError(
            f"{path} has the {column} '{table[column][row]}' for {table['image_id'][row]}: allowed are "
            f"{' and '.join(allowed)}."
        )
    return codes.to_numpy().astype(np.int64)


class CelebA(Source):
    """CelebA: faces of celebrities, aligned, each with forty yes-or-no attributes.

    Source: Liu, Luo, Wang & Tang, 2015, Deep learning face attributes in the wild, ICCV, arXiv 1411.7766.

    The protocols `study-*` are those of the empirical study (Yang et al., 2024, arXiv 2401.03695) and of the code that
    it builds on: the official partition, with some cells of training thinned out. Differs from them: what is kept is
    drawn without replacement by a hash of the name. The study's own list has 1,015 distinct images for its 2,000, as a
    tensor was shuffled in a way that duplicates values; for Smiling it kept the first 10,000 in the file's order.

    `fairgrape` pools all images and splits them anew (Lin, Kim & Joo, 2022, arXiv 2207.10888). Differs from it: one
    attribute is predicted, not 39 at once; and where identity_CelebA.txt is there, all images of a person go to one
    part, where the original split image by image.

    `sketch` and `sketch-file-order` take the same number of images of two groups (Yao, Cui, Li & Gu, 2022, Improving
    fairness in image classification via sketching, arXiv 2211.00168), balanced over groups but not over labels. The
    original took images in the file's order, which puts images of one person in several parts, and two images of each
    group in two parts; `sketch` keeps to the official partition instead, whose parts share no person, and
    `sketch-file-order` keeps the order but shares no image.

    At the study's 224 pixels the image store takes 30 GB; data.size=64 makes it 2.5 GB.

    Args:
        folder: holds img_align_celeba/ and the label files.
        num: images that `sketch` and `sketch-file-order` take in all, half of each group; even, at least 20.
    """

    title: ClassVar[str] = "CelebA"
    citation: ClassVar[str] = "Liu, Luo, Wang & Tang, 2015, Deep learning face attributes in the wild, arXiv 1411.7766"
    licence: ClassVar[str] = "non-commercial research only; no redistribution, of parts or of anything derived from it"
    homepage: ClassVar[str] = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    caveat: ClassVar[str] = (
        "The attributes, gender among them, are other people's impressions, not what the people shown say of "
        "themselves; some, such as Attractive, Big_Nose or Pale_Skin, are matters of taste. Many are mistaken. The "
        "images are of celebrities, collected from the web without asking them."
    )
    how_to_get: ClassVar[str] = (
        "Agree to the terms at https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, fetch img_align_celeba.zip, "
        "list_attr_celeba.txt, list_eval_partition.txt and, if you can, identity_CelebA.txt, and unpack the images so "
        "that celeba/ holds img_align_celeba/000001.jpg and the text files; the folders Anno, Eval and Img of the "
        "original, and label files as .csv, are found too."
    )
    size: ClassVar[int] = 224
    augment: ClassVar[str] = "flip"
    columns: ClassVar[tuple[str, ...]] = tuple(ATTRIBUTES)
    protocols: ClassVar[dict[str, Protocol]] = {
        "study-blond": Protocol(
            "blond hair by gender; 2,000 training images of women with other hair (arXiv 2401.03695)",
            "Blond_Hair", ("Male",), partial(split_study, KEPT["Blond_Hair"]), fixed=True,
        ),
        "study-makeup": Protocol(
            "heavy makeup by gender, nothing removed", "Heavy_Makeup", ("Male",), split_official, fixed=True
        ),
        "study-black-hair": Protocol(
            "black hair by gender; 10,000 training images of women with black hair",
            "Black_Hair", ("Male",), partial(split_study, KEPT["Black_Hair"]), fixed=True,
        ),
        "study-smiling": Protocol(
            "smiling by gender; 10,000 training images of women who do not smile and of men who do",
            "Smiling", ("Male",), partial(split_study, KEPT["Smiling"]), fixed=True,
        ),
        "official": Protocol("any of the attributes by any, official partition", "Smiling", ("Male",), split_official),
        "fairgrape": Protocol(
            "any attribute by gender, pooled and split 80/10/10 (arXiv 2207.10888)",
            "Smiling", ("Male",), split_fairgrape,
        ),
        "sketch": Protocol(
            "as many images of two groups, data.num in all, within the official partition (arXiv 2211.00168)",
            "Smiling", ("Male",), split_sketch,
        ),
        "sketch-file-order": Protocol(
            "as many images of two groups, data.num in all, in the file's order; people are in several parts",
            "Smiling", ("Male",), split_file_order,
        ),
    }  # fmt: skip

    def __init__(self, folder: Path, *, num: int = 10_000) -> None:
        super().__init__(folder)
        if num < FEWEST or num % 2:
            raise UserError(f"data.num={num} is not allowed: it must be even, for two groups, and at least {FEWEST}.")
        self.num = num

    def table(self, skip_unreadable: bool) -> Table:
        """Read the label files, each of which must be about the same images."""
        attributes = self._find("list_attr_celeba.txt", "list_attr_celeba.csv")
        partition = self._find("list_eval_partition.txt", "list_eval_partition.csv")
        wanted = {"list_attr_celeba.txt": attributes, "list_eval_partition.txt": partition}
        lacking = [
            name for name, path in {**wanted, "the folder img_align_celeba": self._pictures()}.items() if not path
        ]
        if not attributes or not partition or lacking:
            raise self.missing(" and ".join(lacking))
        labels = self._read(attributes, None, tuple(ATTRIBUTES))
        names = labels["image_id"].to_pylist()
        parts = self._read(partition, ("image_id", "partition"), ("partition",), names)
        columns = {
            name: Column(words, coded(labels, name, ("-1", "1"), attributes)) for name, words in ATTRIBUTES.items()
        }
        identity = self._find("identity_CelebA.txt")
        people = self._read(identity, ("image_id", "identity"), ("identity",), names) if identity else None
        if len(names) != NUM:
            self.notes.append(f"{len(names):,} labelled images are here; {NUM:,} were published.")
        return Table(
            names,
            columns,
            {"partition": coded(parts, "partition", ("0", "1", "2"), partition)},
            people["identity"].to_pylist() if people else None,
        )

    def split(self, protocol: Protocol, table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
        """Split, and note where this copy of the data or the protocol gives less than its name promises."""
        if protocol.fixed:
            train = official_parts(table) == PARTS.index("train")
            for (y, b), number in KEPT.get(protocol.target, {}).items():
                there = int((train & (label == y) & (group == b)).sum())
                if there < number:
                    words = f"{ATTRIBUTES[protocol.target][y]}, {ATTRIBUTES['Male'][b]}"
                    self.notes.append(f"{there:,} of {number:,} training images of the cell '{words}' are here.")
        if protocol.split is split_fairgrape and table.units is None:
            self.notes.append("identity_CelebA.txt is not here: images of one person may be in several parts.")
        if protocol.split is split_file_order:
            self.notes.append("In the file's order images of one person are in several parts.")
            return split_file_order(table, label, group, seed, self.num)
        if protocol.split is split_sketch:
            return split_sketch(table, label, group, seed, self.num)
        return protocol.split(table, label, group, seed)

    @property
    def root(self) -> Path:
        """The folder of the images, wherever it lies."""
        return self._pictures() or self.folder

    def _find(self, *names: str) -> Path | None:
        places = [self.folder / place / name for name in names for place in ("", "Anno", "Eval")]
        return next((path for path in places if path.is_file()), None)

    def _pictures(self) -> Path | None:
        places = [self.folder / place / "img_align_celeba" for place in ("img_align_celeba", "", "Img")]
        return next((path for path in places if path.is_dir()), None)

    def _read(
        self, path: Path, names: Sequence[str] | None, needed: Sequence[str], images: list[str] | None = None
    ) -> pyarrow.Table:
        """Read a label file as text or CSV; it must be about these images, where some are given."""
        table = read_table(path) if path.suffix == ".csv" else read_spaced(path, names)
        table = by_name(table, path, ("image_id", *needed))
        found = table["image_id"].to_pylist()
        if images is not None and found != images:
            other = min({*found} ^ {*images})
            raise UserError(
                f"{path} and the file of attributes are not about the same images: {other} is in one of them alone; "
                "put both there as they were published."
            )
        return table
