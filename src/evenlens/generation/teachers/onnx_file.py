"""A generator in an ONNX file, which ONNX Runtime computes: a graph of known operations, no code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenlens import measuring
from evenlens.errors import UserError
from evenlens.generation.teachers import _wrapped
from evenlens.generation.teachers._wrapped import Wrapped
from evenlens.processes import cores

FLOAT, NUMBER = "tensor(float)", "tensor(int64)"


def load(
    address: str,
    device: torch.device,
    range: str = "symmetric",
    latent: int = 0,
    labels: int | str | Sequence[str] = (),
    attribute: str = _wrapped.CLASS,
) -> Wrapped:
    """Open an ONNX file as a generator; it computes on the CPU.

    Its first input are latents (B, D) or (B, D, 1, 1) in float32; a second one, where there is one, labels: one-hot
    (B, K) in float32, or numbers (B,) in int64. Its first output are images (B, 3, H, H) in float32. Where B is a
    fixed number, so many are made at once. Weights in files of their own must lie beside it.

    Args:
        address: path of the file.
        device: where its images are wanted.
        range: of its images: "symmetric" for [-1, 1], "unit" for [0, 1].
        latent: numbers of a latent, where the file does not say.
        labels: names of the labels in their order, or how many there are; default: numbers, where the file says how
            many.
        attribute: what the labels are of.

    Raises:
        UserError: a library is missing, a damaged file, one that reads other files, other inputs or outputs.
    """
    measuring.check_installed()
    _wrapped.check_range(range)
    path = Path(address)
    beside, num_parameters = _looked_into(path)
    session = _session(path)
    inputs = session.get_inputs()
    spatial, size = _latent(path, inputs, _wrapped.check_count("latent", latent))
    names, one_hot = _labels(path, inputs, labels)
    batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else 0
    words = [each.name for each in inputs]
    output = session.get_outputs()[0].name

    def call(latent: Tensor, label: Tensor | None) -> Tensor:
        values = latent.cpu().numpy()
        given = {words[0]: values.reshape(*values.shape, 1, 1) if spatial else values}
        if label is not None:
            given[words[1]] = label.cpu().numpy()
        return torch.from_numpy(np.asarray(session.run([output], given)[0]))

    settings = {"range": range}
    return Wrapped(
        call, range=range, batch=batch, one_hot=one_hot, title=path.name, latent_size=size, labels=names,
        attribute=attribute if names else "", fingerprint=_wrapped.fingerprint([path, *beside], settings),
        num_parameters=num_parameters, num_bytes=sum(each.stat().st_size for each in (path, *beside)),
        settings=settings, device=device,
    )  # fmt: skip


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = cores(), 1
    options.log_severity_level = 4  # what goes wrong is raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, all of ONNX Runtime's own
        raise UserError(f"ONNX Runtime cannot open {path} ({_wrapped.in_brief(error)}): export it again.") from None


def _looked_into(path: Path) -> tuple[list[Path], int]:
    """Find the files of weights that it names, refusing those that lie elsewhere, and count its parameters."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of many kinds, from the protocol down to the disk
        raise UserError(f"{path} is damaged or no ONNX file ({_wrapped.in_brief(error)}): export it again.") from None
    names = {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(names):
        if Path(name).name != name or "\\" in name or name in ("", ".", "..") or (path.parent / name).is_symlink():
            raise UserError(
                f"{path} takes weights from {name!r}, which may lie anywhere: they must be a file beside it, named "
                "without a folder, and no link."
            )
        if not (path.parent / name).is_file():
            raise UserError(f"{path} takes weights from {name!r}, which is not beside it: copy both.")
    num_parameters = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    return [path.parent / name for name in sorted(names)], num_parameters


def _tensors(message: Any) -> Iterator[Any]:
    """Give every tensor below a message of the protocol, wherever it hangs."""
    import onnx

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in value if isinstance(value, Sequence) or hasattr(value, "add") else [value]:
            if isinstance(each, onnx.TensorProto):
                yield each
            elif hasattr(each, "ListFields"):
                yield from _tensors(each)


def _latent(path: Path, inputs: Sequence[Any], given: int) -> tuple[bool, int]:
    """Tell from the first input whether latents have two more dimensions, and how long they are."""
    shape = inputs[0].shape if inputs else []
    spatial = len(shape) == 4 and shape[2:] == [1, 1]
    if not inputs or inputs[0].type != FLOAT or (len(shape) != 2 and not spatial):
        raise UserError(
            f"{path} takes {_said(inputs)}: the first input of a generator are latents (B, D) or (B, D, 1, 1) in "
            "float32, so export it with that one first."
        )
    known = shape[1] if isinstance(shape[1], int) else 0
    if known and given and known != given:
        raise UserError(f"latent={given} was given, and the latents of {path} have {known} numbers: leave it out.")
    if not known and not given:
        raise UserError(f"{path} does not say how long its latents are: say it, as latent=512.")
    return spatial, known or given


def _labels(path: Path, inputs: Sequence[Any], labels: Any) -> tuple[tuple[str, ...], bool]:
    """Tell from the second input which labels it takes, and whether as rows of zeros and a one."""
    if len(inputs) == 1:
        if labels:
            raise UserError(f"{path} has one input, the latents, and takes no labels: leave labels={labels} out.")
        return (), False
    shape, kind = inputs[1].shape, inputs[1].type
    one_hot = kind == FLOAT and len(shape) == 2
    if len(inputs) > 2 or not (one_hot or (kind == NUMBER and len(shape) == 1)):
        raise UserError(
            f"{path} takes {_said(inputs)}: after the latents a generator takes nothing, or labels, one-hot (B, K) in "
            "float32 or numbers (B,) in int64; export it with everything else made constant."
        )
    names = _wrapped.label_names(labels, shape[1] if one_hot and isinstance(shape[1], int) else 0)
    if not names:
        raise UserError(f"{path} takes labels and does not say how many there are: say it, as labels=4 or their names.")
    return names, one_hot


def _said(inputs: Sequence[Any]) -> str:
    return " and ".join(f"{each.name} {tuple(each.shape)} of {each.type[7:-1]}" for each in inputs) or "no input"
