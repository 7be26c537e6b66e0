"""Labelling: images and classifiers in, a row for each face out, and one for each image in which there was none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evenlens.data.images import upright
from evenlens.data.paths import check_inside, check_paths
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.generation import face_crops
from evenlens.generation.classifiers import FaceClassifier
from evenlens.generation.labels import OWN, Attribute, Labels
from evenlens.generation.quality import Features
from evenlens.processes import cores
from evenlens.run import Watch, silent

BATCH = 128  # images that are held at once
MOST_PIXELS = 1 << 22  # of all images that are resized at once
BOX, PROBLEM = ("left", "top", "right", "bottom"), "problem"


class Seen(NamedTuple):
    """What there is to see of one image.

    Attributes:
        faces: pictures (H, W, 3) uint8, the largest face first; the image itself where no face was looked for.
        boxes: (F, 4) where they are in the image, in pixels; empty where no face was looked for.
        problem: why it cannot be read, in words; "" where it can.
    """

    faces: list[np.ndarray]
    boxes: np.ndarray
    problem: str = ""


def label_images(
    folder: Path | str,
    ids: Sequence[str],
    classifiers: Sequence[FaceClassifier],
    *,
    detect: bool = False,
    watch: Watch = silent,
) -> Labels:
    """Say what classifiers see in the faces of N images.

    An image that cannot be read is a row without a face, whose column `problem` says why. With `detect` each face that
    is found is a row, the largest first, with its box in the columns left, top, right and bottom, in pixels; an image
    in which none is found is a row too. The probabilities are the softmax of the logits, and the margin is how far
    the first is ahead of the second. The same images and classifiers give the same labels.

    Args:
        folder: of the images.
        ids: (N,) their paths below it, each once.
        classifiers: which attributes to find, each by one of them; images go to where they compute.
        detect: look for faces, and label what is cut out; default: each image is taken to be one face.
        watch: told of progress.

    Raises:
        UserError: no images, a path that leads out of the folder, no image that can be read, no classifier, an
            attribute by two of them, a classifier that answers with a number that is not finite, or no detector here.
    """
    folder = Path(folder)
    _check_ids(folder, ids)
    _check_classifiers(classifiers)
    if detect:
        face_crops.check_installed()
    seen: list[Seen] = []
    found: dict[str, list[np.ndarray]] = {name: [] for one in classifiers for name in one.attributes}
    for start, batch in _decoded(folder, ids, detect):
        faces = [face for one in batch for face in one.faces]
        for classifier in classifiers if faces else ():
            for name, part in _probabilities(classifier, faces, ids[start]).items():
                found[name].append(part)
        seen += [one._replace(faces=[]) for one in batch]  # their pixels are not needed any more
        watch("images", start + len(batch), len(ids))
    if all(one.problem for one in seen):
        raise UserError(
            f"None of the {len(ids):,} images in {folder} can be read, such as {ids[0]} ({seen[0].problem}): make them "
            "again."
        )
    return _as_labels(folder, ids, seen, found, classifiers, detect)


def features_of(folder: Path | str, ids: Sequence[str], classifier: FaceClassifier, watch: Watch = silent) -> Features:
    """Give what the last layer of a classifier sees of N whole images: (N, F), as float64.

    Args:
        folder: of the images.
        ids: (N,) their paths below it, each once.
        classifier: whose last layer.
        watch: told of progress.

    Raises:
        UserError: no images, a path that leads out of the folder, an image that cannot be read, or a classifier whose
            last layer is not known or gives numbers that are not finite.
    """
    folder = Path(folder)
    _check_ids(folder, ids)
    found = []
    for start, batch in _decoded(folder, ids, detect=False):
        wrong = [(name, one.problem) for name, one in zip(ids[start:], batch, strict=False) if one.problem]
        if wrong:
            raise UserError(f"{folder / wrong[0][0]} cannot be read ({wrong[0][1]}): take it away, or make it again.")
        with torch.inference_mode():
            values = classifier.features(_views([one.faces[0] for one in batch], classifier)).double().cpu()
        _check_finite(values, classifier, ids[start])
        found.append(values.numpy())
        watch("features", start + len(batch), len(ids))
    return Features(np.concatenate(found), np.array(ids), str(folder))


def write_features(features: Features, path: Path | str, extractor: str) -> None:
    """Write features as .safetensors, float32, with the ids and what made them in its metadata: for `read_features`.

    Raises:
        UserError: another ending.
    """
    from safetensors.numpy import save

    path = Path(path)
    check_features_path(path)
    words = {"extractor": extractor}
    if features.ids is not None:
        words["ids"] = json.dumps(features.ids.tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(save({"features": features.values.astype(np.float32)}, metadata=words))


def check_features_path(path: Path) -> None:
    """Refuse a path for features that ends otherwise than .safetensors."""
    if path.suffix.lower() != ".safetensors":
        raise UserError(f"{path} ends in '{path.suffix}': features are written as .safetensors.")


# ---- what is given


def _check_ids(folder: Path, ids: Sequence[str]) -> None:
    import pyarrow

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name the one that holds the images.")
    if not len(ids):
        raise UserError(f"There is no image to label in {folder}: make some first.")
    if len(set(ids)) < len(ids):
        raise UserError(f"An image in {folder} is to be labelled twice: name each once.")
    try:
        check_paths(pyarrow.chunked_array([pyarrow.array(list(ids), pyarrow.string())]), "the list of images")
    except UnicodeEncodeError as error:
        raise UserError(f"The name {str(error.object)!r} of an image in {folder} is no text: rename it.") from None
    check_inside(folder, ids)


def _check_classifiers(classifiers: Sequence[FaceClassifier]) -> None:
    if not classifiers:
        raise UserError("There is nothing to label with: give at least one classifier.")
    names = [name for one in classifiers for name in one.attributes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        titles = " and ".join(one.title for one in classifiers if twice in one.attributes)
        raise UserError(f"Two classifiers say {twice}: {titles}; leave one, or give it another name with NAME=ADDRESS.")
    taken = next((name for name in names if name in (*OWN, *BOX, PROBLEM)), None)
    if taken:
        raise UserError(f"An attribute cannot be called {taken}, as a column of labels is: name it with NAME=ADDRESS.")


# ---- images


def _decoded(folder: Path, ids: Sequence[str], detect: bool) -> Iterator[tuple[int, list[Seen]]]:
    """Decode a batch at a time on all cores: its first row, and what there is to see."""
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(ids), BATCH):
            files = [folder / name for name in ids[start : start + BATCH]]
            yield start, list(pool.map(_seen_with_faces if detect else _seen_whole, files))


def _seen_whole(path: Path) -> Seen:
    try:
        return Seen([np.asarray(upright(path.read_bytes()))], np.empty((0, 4), np.int64))
    except OSError as error:
        return Seen([], np.empty((0, 4), np.int64), error.strerror or str(error))


def _seen_with_faces(path: Path) -> Seen:
    whole = _seen_whole(path)
    if whole.problem:
        return whole
    boxes = face_crops.find(whole.faces[0])
    return Seen([face_crops.chip(whole.faces[0], box) for box in boxes], boxes)


def _views(images: Sequence[np.ndarray], classifier: FaceClassifier) -> Tensor:
    """Give what a classifier is shown of B images of any sizes, (B, 3, size, size); those of one size are one batch."""
    shapes = np.array([image.shape[:2] for image in images])
    made = torch.empty(len(images), 3, classifier.size, classifier.size, device=classifier.device)
    for height, width in np.unique(shapes, axis=0).tolist():
        rows = np.flatnonzero((shapes == (height, width)).all(axis=1))
        step = max(1, MOST_PIXELS // (height * width))
        for few in np.split(rows, range(step, len(rows), step)):
            pixels = torch.from_numpy(np.stack([images[row] for row in few])).to(classifier.device)
            made[torch.from_numpy(few)] = classifier.view(pixels.permute(0, 3, 1, 2).float().div_(255.0))
    return made


# ---- answers


@torch.inference_mode()
def _probabilities(classifier: FaceClassifier, faces: Sequence[np.ndarray], first: str) -> dict[str, np.ndarray]:
    """Give the probabilities (B, K) float32 of B faces, by attribute; a batch of faces at a time."""
    parts: dict[str, list[Tensor]] = {name: [] for name in classifier.attributes}
    for start in range(0, len(faces), BATCH):
        view = _views(faces[start : start + BATCH], classifier)
        for name, logits in classifier.logits_of(view).items():
            _check_finite(logits, classifier, first)
            parts[name].append(logits.float().cpu().softmax(dim=1))
    return {name: torch.cat(part).numpy() for name, part in parts.items()}


def _check_finite(values: Tensor, classifier: FaceClassifier, first: str) -> None:
    if not values.isfinite().all():
        raise UserError(
            f"{classifier.title} answers with numbers that are not finite, among the images from {first} on: its "
            "weights are damaged, or it expects other images."
        )


def _as_labels(
    folder: Path, ids: Sequence[str], seen: list[Seen], found: dict[str, list[np.ndarray]],
    classifiers: Sequence[FaceClassifier], detect: bool,
) -> Labels:  # fmt: skip
    """Put together a row for each face, and one for each image without any."""
    # without a detector an image that can be read is one face
    num = np.array([len(one.boxes) if detect else not one.problem for one in seen], dtype=np.int64)
    rows = np.repeat(np.arange(len(ids)), np.maximum(num, 1))
    face = np.arange(len(rows)) - np.searchsorted(rows, rows)
    has = num[rows] > 0
    classes = {name: levels for one in classifiers for name, levels in one.attributes.items()}
    attributes = {name: _attribute(levels, found[name], has) for name, levels in classes.items()}
    problem = np.array([one.problem or None for one in seen], dtype=object)
    others = {PROBLEM: problem[rows]}
    if detect:
        corners = np.concatenate([one.boxes for one in seen]).astype(str).astype(object)
        for place, name in enumerate(BOX):
            others[name] = np.full(len(rows), None, dtype=object)
            others[name][has] = corners[:, place]
    unreadable = sum(bool(one.problem) for one in seen)
    notes = tuple(_notes(unreadable, int((num == 0).sum()) - unreadable, detect))
    return Labels(np.array(ids)[rows], face, num[rows], attributes, others, str(folder), notes)


def _attribute(classes: tuple[str, ...], parts: list[np.ndarray], has: np.ndarray) -> Attribute:
    """Give the classes, probabilities and margins of N rows, of which those with a face have some."""
    probability = np.full((len(has), len(classes)), np.nan, dtype=np.float32)
    if parts:
        probability[has] = np.concatenate(parts)
    ordered = np.sort(probability, axis=1)
    codes = np.full(len(has), -1, dtype=np.int64)
    codes[has] = probability[has].argmax(axis=1)
    return Attribute(classes, codes, probability, ordered[:, -1] - ordered[:, -2])


def _notes(unreadable: int, without: int, detect: bool) -> Iterable[str]:
    if unreadable:
        yield (
            f"{unreadable:,} {'image' if unreadable == 1 else 'images'} cannot be read: they have rows without a face, "
            "and the column problem says why."
        )
    if detect:
        yield f"No face was found in {without:,} {'image that' if without == 1 else 'images that'} can be read."
        yield face_crops.CAVEAT
    else:
        yield "No face was looked for: each image that can be read is taken to be one face."
