"""The images that a group's predictions get wrong, small enough to stand in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from evenlens import run as running
from evenlens.data.dataset import FairDataset
from evenlens.errors import UserError
from evenlens.report.summary import Row
from evenlens.run import Run

MOST = 24  # images on a sheet
PIXELS = 112  # of a larger image's edge


class Picture(NamedTuple):
    """An image with what it should and what it did become."""

    uri: str
    name: str
    label: str
    prediction: str


class Sheet(NamedTuple):
    """Images that one method gets wrong.

    Attributes:
        title: of the method.
        said: how many there are, and how these were chosen.
        pictures: `MOST` at most; none where there is none.
    """

    title: str
    said: str
    pictures: list[Picture]


def sheets(rows: Sequence[Row], group: int) -> tuple[list[Sheet], str]:
    """Show what each row's first run gets wrong in a group, as its network was shown it.

    Args:
        rows: methods on the same data.
        group: code of the group.

    Returns:
        a sheet for each row, and an empty text; or none, and one sentence that says why.
    """
    try:
        return [_sheet(row, group, _test_images(row.runs[0])) for row in rows], ""
    except (UserError, OSError) as error:
        return [], f"The images cannot be shown, as the data are not available here any more: {error}"


def _test_images(run: Run) -> FairDataset:
    loaded = running.load_data(run.config)
    running.pin(run.config, loaded.splits)  # other images of the same name would be shown as if they had been tested
    return loaded.splits.test


def _sheet(row: Row, group: int, test: FairDataset) -> Sheet:
    run = row.runs[0]
    name, classes = run.metrics["task"]["group_names"][group], run.metrics["task"]["class_names"]
    table = run.predictions("test")
    inside = table["group"] == group
    wrong = np.flatnonzero(inside & (table["label"] != table["prediction"]))
    wrong = wrong[np.argsort(table["file"][wrong], kind="stable")]
    seed = f"seed {run.config.seed}"
    if not len(wrong):
        return Sheet(row.title, f"No image of “{name}” is predicted wrong ({inside.sum():,} images, {seed}).", [])
    chosen = wrong[np.unique(np.linspace(0, len(wrong) - 1, min(MOST, len(wrong))).round().astype(int))]
    place = {file: k for k, file in enumerate(test.names)}
    pictures = [
        Picture(
            _uri(test, place[table["file"][k]]),
            str(table["file"][k]),
            classes[table["label"][k]],
            classes[table["prediction"][k]],
        )
        for k in chosen
        if table["file"][k] in place
    ]
    said = f"{len(wrong):,} of {inside.sum():,} images of “{name}” are predicted wrong ({seed}). "
    if len(chosen) < len(wrong):
        said += f"Shown are {len(chosen)}, evenly spaced in the order of their file names, not chosen by eye."
    return Sheet(row.title, said, pictures)


def _uri(test: FairDataset, position: int) -> str:
    image = Image.fromarray(test.pixels[int(test.rows[position])].numpy())
    if max(image.size) > PIXELS:
        image.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
