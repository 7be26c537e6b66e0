"""The folder of a generator that evenlens trained: a student, or a teacher of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.generator import Generator
from evenlens.generation.students.nets import StudentNet

FORMAT = 1
INFO, WEIGHTS = "student.json", "model.safetensors"


def fits(folder: Path) -> bool:
    """Say whether a folder holds a generator of this kind."""
    return (folder / INFO).is_file()


class Student(Generator):
    """A generator of the built-in architecture, from its folder."""

    def __init__(self, net: StudentNet, info: dict[str, Any], fingerprint: str, num_bytes: int, device: Any) -> None:
        super().__init__(
            title=str(info["title"]), latent_size=net.latent_size, size=net.size, fingerprint=fingerprint,
            attribute=str(info["attribute"]), labels=tuple(info["labels"]), levels=info.get("levels", ()),
            num_parameters=sum(value.numel() for value in net.parameters()), num_bytes=num_bytes, device=device,
        )  # fmt: skip
        self.net, self.info = net.float().to(device).eval().requires_grad_(False), info

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Map latents (B, D) and labels (B,) to images (B, 3, size, size)."""
        return (self.net(latent, label) + 1) / 2


def read_info(folder: Path) -> dict[str, Any]:
    """Read what is known of a student.

    Raises:
        UserError: the file is damaged, or another format.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if info["format"] != FORMAT:
            raise UserError(f"{folder} is in format {info['format']}, and this evenlens reads {FORMAT}: make it again.")
        for name, kind in (("title", str), ("attribute", str), ("labels", list), ("net", dict), ("chosen", dict)):
            if not isinstance(info[name], kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        return dict(info)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INFO} is damaged ({type(error).__name__}: {error}): make it again.") from None


def load(address: str, device: torch.device) -> Student:
    """Open a student's folder.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    folder = Path(address)
    info, path = read_info(folder), folder / WEIGHTS
    try:
        with torch.device("meta"):  # it takes no memory yet: what is said to be large may not be there
            net = StudentNet(**info["net"])
        net.load_state_dict(load_file(path), assign=True)
        if len(info["labels"]) != net.num_labels:
            raise ValueError(f"{len(info['labels'])} labels are named, and it takes {net.num_labels}")
    except (SafetensorError, OSError, RuntimeError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise UserError(f"{path} does not fit {INFO} ({' '.join(str(error).split())[:120]}): make it again.") from None
    content = path.read_bytes()
    fingerprint = hashlib.blake2b(content, digest_size=8).hexdigest()
    return Student(net, info, fingerprint, len(content), device)
