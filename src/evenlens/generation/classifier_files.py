"""Classifiers of faces in ONNX and TorchScript files, with a JSON file beside them that says what they predict."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.classifiers import EXAMPLE, FaceClassifier, Network, Outputs, fingerprint, in_order
from evenlens.measuring import Session
from evenlens.processes import cores

MOST_PIXELS = 4096  # of a side


def open_script(path: Path, crop: float, races: int) -> FaceClassifier:
    """Open a TorchScript file; gradients flow through it."""
    outputs = read_outputs(path, {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it will not make such files for ever
            module = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"{path} is no complete TorchScript file ({_in_brief(error)}): write it again.") from None
    made = Network(module=module, title=f"TorchScript ({path.name})", outputs=outputs, crop=crop,
                   fingerprint=fingerprint(path, crop=crop, outputs=_as_json(outputs)))  # fmt: skip
    return _tried(made, path)


def open_onnx(path: Path, crop: float, races: int) -> FaceClassifier:
    """Open an ONNX file; what `evenlens export --to onnx` wrote says itself what it predicts."""
    try:
        session = Session(path, cores())
    except ImportError:
        raise UserError(f"{path} needs ONNX Runtime, which is not here: pip install 'evenlens[export]'.") from None
    except Exception as error:  # of many kinds, all of ONNX Runtime's own
        raise UserError(f"{path} is no complete ONNX file ({_in_brief(error)}): write it again.") from None
    outputs = read_outputs(path, session.inner.get_modelmeta().custom_metadata_map)
    made = Onnx(session, title=f"ONNX ({path.name})", outputs=outputs, crop=crop,
                fingerprint=fingerprint(path, crop=crop, outputs=_as_json(outputs)))  # fmt: skip
    return _tried(made, path)


class Onnx(FaceClassifier):
    """A classifier that ONNX Runtime computes on the CPU; no gradient passes through it.

    Args:
        session: of the file.
        options: of `FaceClassifier`.
    """

    differentiable = False

    def __init__(self, session: Session, **options: Any) -> None:
        super().__init__(**options)
        self.session = session
        first = session.inner.get_inputs()[0].shape[:1]
        self.at_once = first[0] if first and isinstance(first[0], int) else 0  # 0: as many as there are

    def scores(self, shown: Tensor) -> Tensor:
        """Map what it is shown to outputs (B, O); a file for a fixed number of images gets as many at a time."""
        image, num = shown.detach().float().cpu().numpy(), len(shown)
        if not self.at_once:
            return torch.from_numpy(self.session(image)).to(shown.device)
        filled = np.concatenate([image, np.zeros((-num % self.at_once, *image.shape[1:]), np.float32)])
        parts = [self.session(filled[row : row + self.at_once]) for row in range(0, len(filled), self.at_once)]
        return torch.from_numpy(np.concatenate(parts)[:num]).to(shown.device)


def read_outputs(path: Path, words: Mapping[str, str]) -> Outputs:
    """Read what a file's outputs are: from the .json file beside it, else from what an ONNX file says of itself.

    The JSON file holds `attributes`, the classes of each attribute in the order of the outputs, `size` in pixels, and
    `mean` and `std` of each channel where the network expects a normalised image.

    Args:
        path: of the file; its description has the same name and ends in .json.
        words: that the file has in its metadata.

    Raises:
        UserError: no description, or one that is not of this form.
    """
    beside = path.with_suffix(".json")
    fields = _own_words(words) if not beside.is_file() else {}
    fields = fields or _read(path, beside)
    attributes, size = fields.get("attributes"), fields.get("size")
    mean, std = fields.get("mean", [0.0, 0.0, 0.0]), fields.get("std", [1.0, 1.0, 1.0])
    if not isinstance(attributes, dict) or not attributes or not all(map(_are_classes, attributes.values())):
        raise _wrong(beside, "attributes", "each with a list of at least two different classes")
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST_PIXELS:
        raise _wrong(beside, "size", f"a whole number of pixels from 1 to {MOST_PIXELS}")
    if not _are_numbers(mean) or not _are_numbers(std) or min(std) <= 0:
        raise _wrong(beside, "mean or std", "three numbers each, those of std above 0")
    classes = {str(name): tuple(levels) for name, levels in attributes.items()}
    return Outputs(classes, in_order(classes), size, tuple(map(float, mean)), tuple(map(float, std)))


def _own_words(words: Mapping[str, str]) -> dict[str, Any]:
    """Give what evenlens wrote into an ONNX file; nothing where it is another's."""
    try:
        return {"attributes": {words["target"]: json.loads(words["class_names"])}, "size": int(words["image_size"])}
    except (KeyError, ValueError):
        return {}


def _read(path: Path, beside: Path) -> dict[str, Any]:
    if not beside.is_file():
        raise UserError(f"{path} does not say what it predicts: put {beside.name} beside it, such as {EXAMPLE}.")
    try:
        fields = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{beside} is no JSON ({error}): write it such as {EXAMPLE}.") from None
    if not isinstance(fields, dict):
        raise UserError(f"{beside} holds no object: write it such as {EXAMPLE}.")
    return fields


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(isinstance(each, str) and each for each in value)
        and len(set(value)) == len(value)
    )


def _are_numbers(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(each, int | float) and not isinstance(each, bool) and abs(each) < 1e6 for each in value)
    )


def _wrong(beside: Path, what: str, wanted: str) -> UserError:
    return UserError(f"{beside} has a wrong {what}: needed is {wanted}, such as {EXAMPLE}.")


def _tried(made: FaceClassifier, path: Path) -> FaceClassifier:
    """Show it one image, so that a description that does not fit is noticed before any image is read."""
    wanted = sum(map(len, made.attributes.values()))
    try:
        with torch.inference_mode():
            found = made.scores(torch.zeros(1, 3, made.size, made.size))
    except Exception as error:  # of many kinds, from whatever the file does
        raise UserError(
            f"{path} cannot take images of {made.size} px ({_in_brief(error)}): mend size in "
            f"{path.with_suffix('.json').name}."
        ) from None
    if not isinstance(found, Tensor) or found.shape != (1, wanted):
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UserError(
            f"{path} gives {given} for one image, and {wanted} classes are named: one output (B, {wanted}) of logits "
            f"is needed; mend attributes in {path.with_suffix('.json').name}."
        )
    return made


def _as_json(outputs: Outputs) -> list[Any]:
    return [outputs.attributes, outputs.size, outputs.mean, outputs.std]


def _in_brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
