"""Avatars: drawings of faces whose every attribute is chosen by us. They show how the tool works, not how people fare.

Faces are composed by DiceBear in the style "Avataaars", with the ten skin tones of the Monk scale, and rasterised by
resvg. The label is whether the mouth smiles; the group is whether the tone is light (1 to 5) or dark (6 to 10). How
many dark faces there are, how far the smile follows the tone, and how bright the pictures are, are options: the bias
that a network learns from them is known, because it was put there.

Source of the tones: Monk, "The Monk Skin Tone Scale" (2023), doi:10.31235/osf.io/pdf4c.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from evenlens.data.images import ImageStore, Progress, digest, open_store
from evenlens.data.source import Protocol, Source
from evenlens.data.tables import PARTS, Column, Table
from evenlens.errors import UserError

if TYPE_CHECKING:
    from dicebear import Style

MONK_TONES = (
    "#f6ede4", "#f3e7db", "#f7ead0", "#eadaba", "#d7bd96",
    "#a07e56", "#825c43", "#604134", "#3a312a", "#292420",
)  # fmt: skip
FIRST_DARK_TONE = 5
LEVELS = {
    "smiling": ("not smiling", "smiling"),
    "tone": tuple(f"monk {number}" for number in range(1, 11)),
    "hair": ("short", "long"),
    "beard": ("no beard", "beard"),
    "glasses": ("no glasses", "glasses"),
}

STYLE = "avataaars"
CREDIT = (
    "Faces: remix of “Avataaars” (https://avataaars.com/) by Pablo Stanley (https://twitter.com/pablostanley), "
    "licensed “Free for personal and commercial use” (https://avataaars.com/), as shipped in dicebear-styles and "
    "drawn with DiceBear (https://www.dicebear.com). Skin tones: Monk Skin Tone Scale by Ellis Monk "
    "(https://skintone.google)."
)

# Sorted by eye at 130 and at 48 pixels. Nearly every smile has a mouth of the same colours turned down
# (default-disbelief, smile-concerned, twinkle-sad), so the shape must be seen. Left out: tongue, eating, grimace, vomit
# (neither clearly one nor the other) and screamOpen (a larger concerned).
MOUTHS = (("concerned", "disbelief", "sad", "serious"), ("default", "smile", "twinkle"))
HAIR = (
    ("dreads01", "frizzle", "shortCurly", "shortFlat", "shortRound", "shortWaved", "sides", "theCaesar"),
    ("bigHair", "bob", "curly", "curvy", "dreads", "longButNotTooLong", "straight01", "straight02"),
)
BEARDS = ("beardLight", "beardMajestic", "beardMedium")
GLASSES = ("prescription01", "prescription02", "round")
EYES = ("default", "happy", "side", "squint", "surprised", "wink")
EYEBROWS = ("default", "defaultNatural", "flatNatural", "raisedExcited", "raisedExcitedNatural", "upDown")
CLOTHES = ("blazerAndShirt", "collarAndSweater", "hoodie", "overall", "shirtCrewNeck", "shirtScoopNeck", "shirtVNeck")
HAIR_COLOURS = ("#2c1b18", "#4a312c", "#724133", "#a55728", "#b58143", "#c93305", "#d6b370", "#e8e1e1")
CLOTHES_COLOURS = ("#262e33", "#3c4f5c", "#25557c", "#5199e4", "#929598", "#a7ffc4", "#ff5c5c", "#ffffb1")
GLASSES_COLOURS = ("#262e34", "#3c4f5d", "#25557d", "#929599", "#ff488e")
BACKGROUNDS = ("#9fb8c8", "#c8b89f", "#a8c89f", "#c89fb4", "#b0a8d0", "#d8d8d0", "#7f93a8", "#8fa38a")
EXPOSURE_JITTER = 0.2  # each picture's exposure is the option's times 1.2**u, u uniform in [-1, 1]


def split_as_drawn(table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
    """Take the part that each drawing was made for, the first word of its name."""
    return np.array([PARTS.index(name.partition("/")[0]) for name in table.names])


class Avatars(Source):
    """Drawn faces that smile or not, with light or dark skin: a known bias, in half a minute, without a download.

    In the training drawings one face in five is dark, and the smile follows the skin: 90 % of the light faces smile
    and 90 % of the dark ones do not. In the validation and test drawings every combination is equally frequent. These
    are drawings with attributes set by us: they show what a method does about a known bias, and nothing about people.

    Args:
        folder: not used; drawings lie in the cache.
        num_train: training drawings.
        num_val: validation drawings.
        num_test: test drawings.
        dark_share: share of dark skin (Monk tones 6 to 10) in training, in [0, 1].
        correlation: how far the smile follows the skin in training: P(smiling | light) = P(not smiling | dark), in
            [0.5, 1]; 0.5 is not at all.
        exposure: amount of light in all drawings, above 0; 0.5 is one stop darker.
        drawing_seed: another seed draws other faces.

    Source: DiceBear with the style "Avataaars" by Pablo Stanley; skin tones of the Monk Skin Tone Scale, Monk, 2023,
    doi:10.31235/osf.io/pdf4c.
    """

    title: ClassVar[str] = "Avatars"
    citation: ClassVar[str] = CREDIT
    licence: ClassVar[str] = "drawn on this machine; the style is free for personal and commercial use"
    homepage: ClassVar[str] = "https://www.dicebear.com/styles/avataaars/"
    caveat: ClassVar[str] = (
        "These are drawings, and their attributes were set by us. They show what a method does about a bias that is "
        "known because it was put there; they prove nothing about people."
    )
    how_to_get: ClassVar[str] = "Nothing to fetch: it is drawn at first use."
    size: ClassVar[int] = 48
    augment: ClassVar[str] = "crop_flip"
    columns: ClassVar[tuple[str, ...]] = (*LEVELS, "skin")
    protocols: ClassVar[dict[str, Protocol]] = {
        "drawn": Protocol("smiling or not, by light and dark skin", "smiling", ("skin",), split_as_drawn),
        "tones": Protocol("smiling or not, by the ten Monk tones", "smiling", ("tone",), split_as_drawn),
    }

    def __init__(
        self,
        folder: Path,
        *,
        num_train: int = 4000,
        num_val: int = 1500,
        num_test: int = 2500,
        dark_share: float = 0.2,
        correlation: float = 0.9,
        exposure: float = 1.0,
        drawing_seed: int = 0,
    ) -> None:
        super().__init__(folder)
        biased = {"dark_share": dark_share, "correlation": correlation}
        balanced = {"dark_share": 0.5, "correlation": 0.5}
        parts = {"test": (num_test, balanced), "train": (num_train, biased), "val": (num_val, balanced)}
        drawn = {
            part: people(number, **bias, exposure=exposure, seed=4 * drawing_seed + PARTS.index(part))
            for part, (number, bias) in parts.items()
        }
        self.names = [f"{part}/{row:06d}" for part, (number, _) in parts.items() for row in range(number)]
        self.people = {name: np.concatenate([table[name] for table in drawn.values()]) for name in drawn["train"]}

    def table(self, skip_unreadable: bool) -> Table:
        """Give the attributes that the faces are drawn with."""
        columns = {name: Column(levels, self.people[name]) for name, levels in LEVELS.items()}
        dark = (self.people["tone"] >= FIRST_DARK_TONE).astype(np.int64)
        self.notes.append("These are drawings with attributes set by us: they prove nothing about people.")
        return Table(self.names, {**columns, "skin": Column(("light skin", "dark skin"), dark)})

    def images(self, table: Table, size: int, fit: str, progress: Progress | None) -> ImageStore:
        """Draw the faces, which are square as they are, or open the drawings of an earlier run."""
        rows = [dict(zip(self.people, values, strict=True)) for values in zip(*self.people.values(), strict=True)]
        packages = ("dicebear-core", "dicebear-styles", "resvg-py")
        hashed = hashlib.blake2b(digest_size=8)
        for values in self.people.values():
            hashed.update(values.tobytes())
        source = " ".join([hashed.hexdigest(), *(version(package) for package in packages)])
        return open_store(rows, size, _make, source=source, name="avatars", progress=progress)


def people(
    num: int, *, dark_share: float = 0.2, correlation: float = 0.9, exposure: float = 1.0, seed: int = 0
) -> dict[str, np.ndarray]:
    """Choose who is drawn: a table of attributes with exact cell sizes, a pure function of its arguments.

    `round(num * dark_share)` faces are dark; of the light ones a share of `correlation` smiles, of the dark ones a
    share of `1 - correlation`. Within each of these four cells the tones are spread evenly, and so are hair (half
    long), beard (a quarter) and glasses (a quarter). An evaluation set without bias: `dark_share=0.5, correlation=0.5`.

    Args:
        num: number of drawings, N.
        dark_share: share of the tones 6 to 10, in [0, 1].
        correlation: P(smiling | light) = P(not smiling | dark), in [0.5, 1]; 0.5 is none.
        exposure: amount of light, above 0; 1 draws the style's own colours, 0.5 is one stop darker.
        seed: of everything random.

    Returns:
        One array of N by name: `smiling`, `tone`, `hair`, `beard`, `glasses` (int64, levels in `LEVELS`), `exposure`
        (float64) and `drawing` (int64), the seed of what is neither: colours, eyes, clothes, place in the picture.

    Raises:
        UserError: an argument is out of its range.
    """
    _check(num, dark_share, correlation, exposure)
    generator = np.random.Generator(np.random.PCG64(seed))
    num_dark = round(num * dark_share)
    cells = []
    for first_tone, size, smile_share in (
        (0, num - num_dark, correlation),
        (FIRST_DARK_TONE, num_dark, 1 - correlation),
    ):
        num_smiling = round(size * smile_share)
        cells += [_cell(1, first_tone, num_smiling, generator), _cell(0, first_tone, size - num_smiling, generator)]
    order = generator.permutation(num)
    table = {name: np.concatenate([cell[name] for cell in cells])[order] for name in LEVELS}
    jitter = (1 + EXPOSURE_JITTER) ** generator.uniform(-1, 1, num)
    return table | {"exposure": exposure * jitter, "drawing": generator.integers(2**63 - 1, size=num)}


def draw(row: Mapping[str, Any], size: int) -> np.ndarray:
    """Draw one face: the same row and size give the same pixels.

    Args:
        row: one row of `people`, by name.
        size: width and height in pixels.

    Returns:
        (size, size, 3) uint8, sRGB; the exposure multiplies linear light, and what is too bright is clipped.
    """
    from dicebear import Avatar
    from PIL import Image
    from resvg_py import svg_to_bytes

    svg = Avatar(_style(), _options(row)).to_string()
    png = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        pixels = np.asarray(image.convert("RGB"))
    return _exposure_table(float(row["exposure"]))[pixels]


def _make(row: Mapping[str, Any], size: int) -> tuple[np.ndarray, int]:
    pixels = draw(row, size)
    return pixels, digest(pixels.tobytes())


def _check(num: int, dark_share: float, correlation: float, exposure: float) -> None:
    """Refuse what cannot be drawn."""
    for name, given, good, allowed in (
        ("num", num, num >= 0, "0 or more"),
        ("dark_share", dark_share, 0 <= dark_share <= 1, "from 0 to 1"),
        ("correlation", correlation, 0.5 <= correlation <= 1, "from 0.5 (none) to 1"),
        ("exposure", exposure, 0 < exposure < np.inf, "above 0; 1 leaves the colours as they are"),
    ):
        if not good:
            raise UserError(f"avatars: {name} is {given}, but must be {allowed}.")


def _cell(smiling: int, first_tone: int, size: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Make the rows of one label and one group: each attribute's counts are exact, their combination is random."""

    def spread(levels: np.ndarray) -> np.ndarray:
        return generator.permutation(generator.permutation(levels)[np.arange(size) % len(levels)])

    return {
        "smiling": np.full(size, smiling),
        "tone": spread(first_tone + np.arange(5)),
        "hair": spread(np.array([0, 1])),
        "beard": spread(np.array([0, 0, 0, 1])),
        "glasses": spread(np.array([0, 0, 0, 1])),
    }


def _options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Say one row in DiceBear's options; nothing is left to DiceBear's own chance.

    Python's `random.Random.random` is used, whose stream is promised to stay the same.
    """
    uniform = random.Random(int(row["drawing"])).random

    def one_of(choices: tuple[str, ...]) -> str:
        return choices[int(uniform() * len(choices))]

    def between(low: float, high: float) -> float:
        return round(low + uniform() * (high - low), 2)

    hair_colour = one_of(HAIR_COLOURS)
    return {
        "seed": "avatar",
        "skinColor": MONK_TONES[int(row["tone"])],
        "mouthVariant": one_of(MOUTHS[int(row["smiling"])]),
        "topVariant": one_of(HAIR[int(row["hair"])]),
        "facialHairVariant": one_of(BEARDS),
        "facialHairProbability": 100 * int(row["beard"]),
        "accessoriesVariant": one_of(GLASSES),
        "accessoriesProbability": 100 * int(row["glasses"]),
        "eyesVariant": one_of(EYES),
        "eyebrowsVariant": one_of(EYEBROWS),
        "clothesVariant": one_of(CLOTHES),
        "hairColor": hair_colour,
        "facialHairColor": hair_colour,
        "clothesColor": one_of(CLOTHES_COLOURS),
        "accessoriesColor": one_of(GLASSES_COLOURS),
        "backgroundColor": one_of(BACKGROUNDS),
        "scale": between(1.55, 1.85),
        "rotate": between(-10, 10),
        "translateX": between(-5, 5),
        "translateY": between(8, 16),
    }


@cache
def _style() -> Style:
    """Read the style once a process."""
    from dicebear import Style

    return Style(json.loads(files("dicebear_styles").joinpath(f"{STYLE}.json").read_text("utf-8")))


def _exposure_table(exposure: float) -> np.ndarray:
    """Map each of the 256 sRGB values to the one seen at this exposure (IEC 61966-2-1)."""
    value = np.arange(256) / 255
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    light = np.minimum(light * exposure, 1)
    value = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(value * 255).astype(np.uint8)
