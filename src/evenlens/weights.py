"""Files of weights that another program wrote. Nothing in a file is ever run."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenlens.errors import UserError

NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")  # names under which a checkpoint keeps them
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")  # of wrappers that a network was trained in


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: of the file.
        state: tensors by name, without wrappers' prefixes.
        class_names: of the rows of the last layer, where the file says them.
        sha256: of the file, in hex.
    """

    path: Path
    state: dict[str, Tensor]
    class_names: tuple[str, ...]
    sha256: str


def read(path: Path) -> Checkpoint:
    """Read weights: a safetensors file, or what torch saved, of which tensors, numbers and text alone are read.

    Raises:
        UserError: no such file, a damaged one, one that would run code, or no weights in it.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights at {path}: give the path of a .pt, .pth or .safetensors file.")
    content = path.read_bytes()
    names: tuple[str, ...] = ()
    if path.suffix == ".safetensors":
        found, names = _read_safetensors(path)
    else:
        found = _read_torch(path)
    state = _unwrapped(path, found)
    return Checkpoint(path, state, names, hashlib.sha256(content).hexdigest())


def _read_safetensors(path: Path) -> tuple[Any, tuple[str, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            words = (file.metadata() or {}).get("class_names")
            names = json.loads(words) if words else []
            return {name: file.get_tensor(name) for name in file.keys()}, tuple(map(str, names))  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no complete safetensors file ({error}): copy it again.") from None


def _read_torch(path: Path) -> Any:
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forms of storage that are old
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes().lstrip()[:1] == b"<":
            raise UserError(
                f"{path} is a web page, not weights: what was fetched is the page before the file; open it by hand."
            ) from None
        found = re.search(r"(?:GLOBAL|type|class) ([\w.]+\.[\w.]+)", str(error))
        raise UserError(
            f"{path} is not read: it holds more than weights{f' ({found[1]})' if found else ''}, and to read that "
            "would run what is in the file. In the program that made it, save the weights alone, with "
            "torch.save(model.state_dict(), ...) or as safetensors."
        ) from None
    except Exception as error:  # of many kinds, from the archive down
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is no file of weights, or a damaged one ({type(error).__name__}: {reason}).") from None


def _unwrapped(path: Path, found: Any) -> dict[str, Tensor]:
    """Find the weights in a checkpoint, and take off the prefixes that all names share."""
    while isinstance(found, dict) and not (found and all(isinstance(value, Tensor) for value in found.values())):
        inner = next((found[name] for name in NESTS if isinstance(found.get(name), dict)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(
            f"{path} holds no weights by name: a state_dict is wanted, as it is or under one of {', '.join(NESTS)}."
        )
    state = {str(name): value for name, value in found.items()}
    while prefix := next((word for word in PREFIXES if all(name.startswith(word) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
