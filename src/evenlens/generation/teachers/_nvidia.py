"""Weights out of a network pickle of StyleGAN2-ADA, in a process of its own: `python -m ..._nvidia IN OUT`.

Such a pickle holds the source text of its classes, which its own tools execute. Here a class becomes a box that keeps
the state it was pickled with: no source is executed, and every name that is not on the list below is refused. Prints
one line of JSON, and ends with 0, or 2 where something is refused.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.teachers import stylegan2

GENERATOR = "G_ema"
MOST_ELEMENTS = 1 << 30  # of one tensor
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen", "urllib.")


class Box:
    """What stands for an object of a class that is not built: its state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state


class Attributes(dict):
    """A dictionary, where the pickle has one with attributes."""


def _boxed(meta: Any) -> Box:
    """Stand for `torch_utils.persistence._reconstruct_persistent_obj`, which would execute `module_src`."""
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise UserError("an object of a class has no state")
    return Box(meta["state"])


def _storage(content: bytes) -> Any:
    """Stand for `torch.storage._load_from_bytes`, which would open a pickle within."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *others: Any) -> Tensor:
    """Stand for `torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UserError("a tensor has no storage")
    if int(np.prod([int(each) for each in size], dtype=np.float64)) > MOST_ELEMENTS:
        raise UserError("a tensor is too large")
    flat = torch.empty(0, dtype=storage.dtype)
    return flat.set_(storage._untyped_storage, int(offset), tuple(map(int, size)), tuple(map(int, stride)))


def _parameter(value: Tensor, *others: Any) -> Tensor:
    """Stand for `torch._utils._rebuild_parameter`."""
    return value


def _bytes(text: str, encoding: str) -> bytes:
    """Stand for `_codecs.encode`, with which old pickles write bytes."""
    if encoding != "latin1":
        raise UserError(f"text is encoded as {encoding!r}")
    return text.encode("latin1")


def _number(kind: Any, content: bytes) -> Any:
    """Stand for `numpy.core.multiarray.scalar`."""
    if not isinstance(kind, np.dtype) or kind.hasobject:
        raise UserError("a number of numpy is no number")
    return np.frombuffer(content, kind)[0]


def _dtype(name: str, *others: Any) -> np.dtype:
    """Stand for `numpy.dtype`."""
    return np.dtype(name[:8])


def _array(*parts: Any) -> Any:
    """Stand for arrays of numpy, of which none is a weight."""
    return _Ignored()


class _Ignored:
    """Takes any state and keeps none."""

    def __setstate__(self, state: Any) -> None:
        pass


def _size(values: Any) -> tuple[int, ...]:
    return tuple(int(each) for each in values)


def _device(*parts: Any) -> str:
    return "cpu"


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _boxed,
    ("dnnlib.util", "EasyDict"): Attributes,
    ("dnnlib", "EasyDict"): Attributes,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _Ignored,
    **{(f"numpy.{core}.multiarray", "scalar"): _number for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")},
}
DTYPES = ("float16", "float32", "float64", "int64", "int32", "uint8", "bool")


class Unpickler(pickle.Unpickler):
    """Reads a pickle in which nothing but the names in `ALLOWED` may occur."""

    def find_class(self, module: str, name: str) -> Any:
        """Give what stands for a name; refuse the ones that are not known."""
        if module == "torch" and name in DTYPES:
            return name
        if module.startswith("dnnlib.tflib"):
            raise UserError(
                "it is of the TensorFlow era: turn it into one of StyleGAN2-ADA for PyTorch first, with the legacy.py "
                "of that project"
            )
        found = ALLOWED.get((module, name))
        if found is None:
            raise UserError(f"it uses {module}.{name}, which weights do not need and which may do anything")
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refuse references to what lies outside of the pickle."""
        raise UserError("it refers to something outside of itself")


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Read the generator of a pickle and write it in safetensors.

    Gives its form, and how many parameters it has.

    Raises:
        UserError: what is refused, as part of a sentence.
    """
    try:
        with source.open("rb") as file:
            content = Unpickler(file).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"it is damaged or no pickle ({type(error).__name__}: {str(error)[:100]})") from None
    box = content.get(GENERATOR) if isinstance(content, dict) else content
    if not isinstance(box, Box):
        raise UserError(f"it has no {GENERATOR}, the generator")
    state: dict[str, Tensor] = {}
    _collect(box, "", state)
    net = stylegan2.build({name: value for name, value in state.items() if stylegan2.IGNORED not in name})
    stylegan2.write(target, net)
    return {**asdict(net.config), "num_parameters": sum(value.numel() for value in net.parameters())}


def _collect(box: Any, prefix: str, state: dict[str, Tensor], depth: int = 0) -> None:
    """Gather parameters and buffers by name, as `state_dict` does."""
    if not isinstance(box, Box) or depth > 10:
        raise UserError(f"{prefix.rstrip('.') or 'the generator'} is no module")
    for kind in ("_parameters", "_buffers"):
        for name, value in (box.state.get(kind) or {}).items():
            if isinstance(value, Tensor):
                state[f"{prefix}{name}"] = value
    for name, inner in (box.state.get("_modules") or {}).items():
        if inner is not None:
            _collect(inner, f"{prefix}{name}.", state, depth + 1)


def _guard(event: str, details: Any) -> None:
    """Stop what weights have no need for: a second wall behind the list of names."""
    if event.startswith(FORBIDDEN):
        raise UserError(f"it wants to do {event}")


def main(source: str, target: str) -> int:
    """Convert, print one line of JSON, and give the exit code."""
    import warnings

    warnings.simplefilter("ignore")  # of storages, whose form is old
    sys.addaudithook(_guard)
    try:
        print(json.dumps(convert(Path(source), Path(target))))
    except UserError as error:
        print(json.dumps({"error": str(error)}))
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
