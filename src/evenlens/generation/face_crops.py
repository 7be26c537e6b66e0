"""Faces within an image: where they are, and a square picture of each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evenlens.errors import UserError

CHIP = 300  # height and width of the picture of a face in pixels
PADDING = 0.25  # of the face's side, kept on each side of it
LONGEST = 800  # pixels of the long side of the image that is searched
SMALLEST = 0.06  # of the image's short side; what is smaller is taken for a mistake
STEP, NEIGHBOURS = 1.1, 3  # between the sizes that are searched; how many finds make a face
CASCADE = "haarcascade_frontalface_alt2.xml"
CAVEAT = (
    "Faces were found by OpenCV's cascade, which misses many, and not as many in every group: look at how many images "
    "had none, or label aligned images without --detect."
)
_of_thread = threading.local()  # a cascade serves one thread at a time


def check_installed() -> None:
    """Refuse to look for faces where OpenCV, or its cascade, is not there.

    Raises:
        UserError: saying what to install.
    """
    _cascade()


def find(pixels: np.ndarray) -> np.ndarray:
    """Find the faces in an image.

    Args:
        pixels: (H, W, 3) uint8, RGB.

    Returns:
        (F, 4) int64: left, top, right and bottom in pixels, the largest face first; equally large ones from the top.

    Raises:
        UserError: as in `check_installed`.

    Source: Viola and Jones, "Rapid object detection using a boosted cascade of simple features" (CVPR 2001), as OpenCV
    ships it trained. Differs from what labelled FairFace, dlib's network with landmarks: faces are not turned upright.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    image = Image.fromarray(pixels).convert("L")
    if scale < 1:
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
    least = max(20, round(SMALLEST * min(image.size)))
    found = _cascade().detectMultiScale(np.asarray(image), STEP, NEIGHBOURS, minSize=(least, least))
    if not len(found):
        return np.empty((0, 4), dtype=np.int64)
    left, top, wide, high = np.asarray(found, dtype=np.float64).T / scale
    boxes = np.stack([left, top, left + wide, top + high], axis=1).round().astype(np.int64)
    boxes = boxes.clip(0, [width, height, width, height])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return boxes[np.lexsort((boxes[:, 0], boxes[:, 1], -area))]


def chip(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Cut a face out of an image (H, W, 3): (CHIP, CHIP, 3) uint8, with a quarter of its side around it.

    Where that reaches beyond the image, the edge's pixels are repeated.
    """
    left, top, right, bottom = (int(each) for each in box)
    half = round(max(right - left, bottom - top) * (0.5 + PADDING))
    x, y = (left + right) // 2, (top + bottom) // 2
    rows, columns = (
        np.arange(middle - half, middle + max(half, 1)).clip(0, end - 1)
        for middle, end in ((y, pixels.shape[0]), (x, pixels.shape[1]))
    )
    cut = Image.fromarray(pixels[np.ix_(rows, columns)])
    return np.asarray(cut.resize((CHIP, CHIP), Image.Resampling.BILINEAR))


def _cascade() -> Any:
    if not hasattr(_of_thread, "cascade"):
        _of_thread.cascade = _open()
    return _of_thread.cascade


def _open() -> Any:
    try:
        import cv2
    except ImportError:
        raise UserError(
            "To find faces OpenCV is needed, which is not here: pip install 'evenlens[faces]'; or label "
            "aligned images without --detect."
        ) from None
    path = Path(cv2.__file__).parent / "data" / CASCADE
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise UserError(
            f"OpenCV {cv2.__version__} has no cascade for faces any more: pip install 'evenlens[faces]'; or "
            "label aligned images without --detect."
        )
    return cv2.CascadeClassifier(str(path))
