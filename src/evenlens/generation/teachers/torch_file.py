"""A generator in a file of torch: TorchScript, or torch.export. A pickled module is never opened."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenlens import measuring
from evenlens.errors import UserError
from evenlens.generation.teachers import _exported, _wrapped
from evenlens.generation.teachers._wrapped import Wrapped

FILES = re.compile(r"\btorch\.(from_file|save|load)\(")  # what TorchScript has for reading and writing files


def load(
    address: str,
    device: torch.device,
    range: str = "symmetric",
    latent: int = 0,
    labels: int | str | Sequence[str] = (),
    attribute: str = _wrapped.CLASS,
    one_hot: bool = False,
) -> Wrapped:
    """Open a TorchScript or torch.export file as a generator.

    Its forward takes latents (B, D) float32, and labels (B,) int64, or one-hot (B, K) float32, where `labels` says so
    or the file; it gives images (B, 3, H, H).

    What that can do: TorchScript is a program in a language of its own, which torch interprets. It can compute, and a
    hostile one can use up memory or time. Python it cannot run: torch reads its archive with an unpickler that knows
    tensors and the archive's own classes, and refuses all else. Operations that read or write files are refused here.
    A torch.export file is data as well, but torch's reader opens pickles in it and evaluates its expressions as
    Python. It is therefore checked word by word and written anew in memory before torch reads it; see `_exported`.

    Args:
        address: path of the file.
        device: where it computes.
        range: of its images: "symmetric" for [-1, 1], "unit" for [0, 1].
        latent: numbers of a latent; TorchScript does not say.
        labels: names of the labels in their order, or how many there are; none for a generator without labels.
        attribute: what the labels are of.
        one_hot: TorchScript takes labels as rows of zeros and a one.

    Raises:
        UserError: a pickle, a damaged file, one that holds what is not allowed, or that is no generator.
    """
    _wrapped.check_range(range)
    _wrapped.check_count("latent", latent)
    if not isinstance(one_hot, bool):
        raise UserError(f"one_hot={one_hot!r} is not allowed: it is true or false.")
    path = Path(address)
    kind, content = _read(path)
    names = _wrapped.label_names(labels)
    batch = 0
    if kind == "script":
        call, num_parameters = _script(path, content, device)
        if not latent:
            raise UserError(f"{path} is TorchScript, which does not say how long its latents are: say it, latent=512.")
    else:
        program = _exported.read(path, content)
        batch, latent, names, one_hot = _form(path, program, latent, names)
        call, num_parameters = _program(program, device)
    settings = {"range": range}
    return Wrapped(
        call, range=range, batch=batch, one_hot=one_hot, title=path.name, latent_size=latent, labels=names,
        attribute=attribute if names else "", num_parameters=num_parameters, num_bytes=len(content), settings=settings,
        fingerprint=_wrapped.fingerprint([path], {**settings, "one_hot": one_hot}), device=device,
    )  # fmt: skip


def _read(path: Path) -> tuple[str, bytes]:
    """Read a file and tell by the names in its archive what it is, before anything in it is opened."""
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            code = [archive.read(each) for each, name in zip(archive.namelist(), names, strict=True)
                    if name.startswith("code/") and name.endswith(".py")]  # fmt: skip
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        what = (
            "a pickle of an old kind, or damaged" if content[:1] == b"\x80" else f"damaged, or no such file ({error})"
        )
        raise UserError(f"{path} is {what}: {_safe_way()}") from None
    if "constants.pkl" in names and code:
        for text in code:
            found = FILES.search(text.decode("utf-8", "replace"))
            if found:
                raise UserError(
                    f"{path} is TorchScript that uses torch.{found[1]}, which reads or writes files: it is not opened; "
                    "a generator only computes."
                )
        return "script", content
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        return "exported", content
    if "data.pkl" in names:
        raise UserError(f"{path} is a pickle, which runs code when it is opened, or weights alone: {_safe_way()}")
    raise UserError(f"{path} is an archive of another kind: {_safe_way()}")


def _safe_way() -> str:
    return (
        "in the program that made it, write it with torch.onnx.export, torch.export.save or torch.jit.save, or give "
        "it as module:function; weights of a StyleGAN2 as .safetensors."
    )


def _script(path: Path, content: bytes, device: torch.device) -> tuple[_wrapped.Call, int]:
    try:
        with measuring.quiet():  # torch.jit is called old, and is all that old files can be read with
            module: Any = torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except Exception as error:  # of many kinds, from the archive down to the interpreter
        raise UserError(f"{path} cannot be opened as TorchScript ({_wrapped.in_brief(error)}).") from None

    def call(latent: Tensor, label: Tensor | None) -> Tensor:
        return module(latent) if label is None else module(latent, label)

    return call, sum(value.numel() for value in module.parameters())


def _program(program: Any, device: torch.device) -> tuple[_wrapped.Call, int]:
    with measuring.quiet():
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module = program.module(check_guards=False)  # those of the file were not read

    def call(latent: Tensor, label: Tensor | None) -> Tensor:
        return module(latent) if label is None else module(latent, label)

    return call, sum(value.numel() for value in program.parameters())


def _form(path: Path, program: Any, latent: int, names: tuple[str, ...]) -> tuple[int, int, tuple[str, ...], bool]:
    """Tell from its inputs: fixed batch or 0, numbers of a latent, labels, and whether these are one-hot."""
    wanted = set(program.graph_signature.user_inputs)
    inputs = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    if not inputs or len(inputs) > 2 or not all(isinstance(each, Tensor) for each in inputs):
        raise UserError(f"{path} takes {len(inputs)} inputs: a generator takes latents, and labels or nothing.")
    first = inputs[0]
    if first.dim() != 2 or not isinstance(first.shape[1], int) or first.dtype != torch.float32:
        raise UserError(f"{path} takes {tuple(first.shape)} of {first.dtype}: latents (B, D) in float32 are wanted.")
    if latent and latent != first.shape[1]:
        raise UserError(f"latent={latent} was given, and the latents of {path} have {first.shape[1]}: leave it out.")
    one_hot = len(inputs) == 2 and inputs[1].dim() == 2
    if len(inputs) == 2:
        known = inputs[1].shape[1] if one_hot else 0
        names = _wrapped.label_names(names, known if isinstance(known, int) else 0)
    if (len(inputs) == 2) != bool(names):
        what = (
            "takes labels: say which, as labels=4 or their names"
            if len(inputs) == 2
            else "takes no labels: leave them out"
        )
        raise UserError(f"{path} {what}.")
    return first.shape[0] if isinstance(first.shape[0], int) else 0, first.shape[1], names, one_hot
