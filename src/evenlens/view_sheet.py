"""A sheet to look at: photographs from the darkest to the lightest, and below them what each view makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evenlens.data.dataset import FairDataset
from evenlens.data.drawing import draw_pixels
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.view import LUMA, View

MOST = 8  # images in a row
CELL, GAP, NAMES = 128, 4, 132  # pixels: an image's edge, between images, for the names of the rows
TITLE = "photograph"
AT_ONCE = 1024  # photographs in memory


def write(views: Mapping[str, View], part: FairDataset, path: Path) -> None:
    """Write a PNG with a row of photographs and a row for each view.

    The photographs are evenly spaced in the order of the mean luma of their middle, darkest first: nothing is chosen by
    eye. Small ones are enlarged without smoothing.

    Args:
        views: by name, prepared.
        part: photographs.
        path: ends in .png; replaced if it is there.

    Raises:
        UserError: another ending.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} ends in '{path.suffix}': the sheet is written as .png.")
    rows = {TITLE: by_tone(part)}
    rows |= {name: draw_pixels(view, rows[TITLE]) for name, view in views.items()}
    width = NAMES + len(rows[TITLE]) * (CELL + GAP)
    sheet = Image.new("RGB", (width, len(rows) * (CELL + GAP)), "white")
    font, canvas = ImageFont.load_default(14), ImageDraw.Draw(sheet)
    for number, (name, images) in enumerate(rows.items()):
        top = number * (CELL + GAP)
        canvas.text((GAP, top + CELL / 2), name, "black", font, anchor="lm")
        for column, pixels in enumerate(images):
            smooth = Image.Resampling.NEAREST if len(pixels) < CELL else Image.Resampling.BOX
            sheet.paste(Image.fromarray(pixels).resize((CELL, CELL), smooth), (NAMES + column * (CELL + GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        sheet.save(unfinished, "PNG", optimize=True)


def by_tone(part: FairDataset) -> np.ndarray:
    """Take photographs (at most `MOST`, H, W, 3) evenly spaced in the order of their middle's luma."""
    height, width = part.pixels.shape[1:3]
    middle = part.pixels[:, height // 4 : -(height // 4), width // 4 : -(width // 4)]
    means = [middle[rows].numpy().mean((1, 2)) for rows in part.rows.split(AT_ONCE)]
    order = np.argsort(np.concatenate(means) @ np.array(LUMA), kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(MOST, len(order))).round().astype(int)]
    return part.pixels[part.rows[chosen]].numpy()
