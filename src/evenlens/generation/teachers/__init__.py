"""Generators by what they are kept in: one file each, the safest first."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evenlens.errors import UserError, unknown
from evenlens.generation.generator import Generator

PICKLES = (".pkl", ".pickle")
FUNCTION = "entry_point"  # the kind whose options are those of the function


def load(address: str | Path, device: torch.device | None = None, /, **options: Any) -> Generator:
    """Open a generator.

    Args:
        address: a student or teacher that evenlens made (its folder), a folder of images with their latents, an .onnx
            file, a TorchScript or torch.export file (.pt, .ts, .pt2), a StyleGAN2 in .safetensors, `diffusers:FOLDER`,
            or a function of yours that gives a `Generator`, as `module:function`.
        device: where it computes; default: the fastest here.
        options: of this kind of generator, such as `truncation` and `range`; the module of the kind lists them.

    Raises:
        UserError: nothing there, a pickle, an unknown kind or option, or a damaged file.
    """
    from evenlens import engine

    opener = _opener(str(address))
    _check_options(opener, options)
    return opener(str(address), device or engine.start(), **options)


def _check_options(opener: Callable[..., Generator], options: dict[str, Any]) -> None:
    kind = opener.__module__.rpartition(".")[2]
    own, known = (list(inspect.signature(opener).parameters)[part] for part in (slice(2), slice(2, None)))
    for name in options:
        if name in own or (kind != FUNCTION and name not in known):
            raise unknown(f"option of a generator of the kind {kind}", name, known)


def _opener(address: str) -> Callable[..., Generator]:
    path = Path(address)
    ending = path.suffix.lower()
    if ending in PICKLES:
        raise UserError(
            f"{path} is a pickle, which runs code when it is opened: turn it into weights once, with evenlens generate "
            f"convert {path} {path.with_suffix('.safetensors')} --trust-pickle, if you trust who made it."
        )
    if path.is_dir():
        from evenlens.generation.students import student_file
        from evenlens.generation.teachers import folder

        return student_file.load if student_file.fits(path) else folder.load
    if address.startswith("diffusers:"):
        from evenlens.generation.teachers import diffusers_pipeline

        return diffusers_pipeline.load
    if not path.exists() and ":" in address:
        from evenlens.generation.teachers import entry_point

        return entry_point.load
    if not path.is_file():
        raise UserError(f"There is no generator at {address}: give a file, a folder, or module:function.")
    if ending == ".onnx":
        from evenlens.generation.teachers import onnx_file

        return onnx_file.load
    if ending in (".pt", ".pth", ".ts", ".jit", ".pt2"):
        from evenlens.generation.teachers import torch_file

        return torch_file.load
    if ending == ".safetensors":
        from evenlens.generation.teachers import stylegan2

        return stylegan2.load
    raise UserError(
        f"{path} ends in '{ending}': a generator is an .onnx, .pt, .ts, .pt2 or .safetensors file, a folder, or "
        "module:function."
    )
