"""A generator that a function of yours gives, for what no file holds."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from evenlens.errors import UserError, unknown
from evenlens.generation.generator import Generator
from evenlens.generation.teachers import _wrapped


def load(address: str, device: torch.device, **options: Any) -> Generator:
    """Call `module:function` with the device and the options, and take the generator that it gives.

    The module is one that can be imported here: of an installed package, or in the working directory. Its code is run,
    as that of any program of yours. The function gives a `Generator`, or anything with `latent_size` and
    `sample(latent, label)`, which maps latents (B, D) float32, and labels (B,) int64 or None, to images (B, 3, H, H)
    in [0, 1]. It may also have `labels`, `attribute`, `title`, `fingerprint`, `num_parameters` and `num_bytes`.

    Args:
        address: such as `my_models:teacher`.
        device: handed to the function, as `device`.
        options: handed to it as they are.

    Raises:
        UserError: no such module or function, it fails, or what it gives is no generator.
    """
    name, _, word = address.partition(":")
    function = _found(name, word, address)
    try:
        made = function(device=device, **options)
    except UserError:
        raise
    except Exception as error:  # of any kind: it is foreign code
        raise UserError(f"{address} fails when it is called ({_wrapped.in_brief(error)}): mend it.") from None
    if isinstance(made, Generator):
        return made
    size = getattr(made, "latent_size", None)
    if not callable(getattr(made, "sample", None)) or isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise UserError(
            f"{address} gave {type(made).__name__}, which is no generator: give an evenlens Generator, or an object "
            "with latent_size and sample(latent, label)."
        )
    names = _wrapped.label_names(getattr(made, "labels", ()))
    settings = {"options": {key: str(value) for key, value in sorted(options.items())}} if options else {}
    source = inspect.getsourcefile(inspect.unwrap(function)) if inspect.isfunction(inspect.unwrap(function)) else None
    files, known = [Path(source)] if source else [], getattr(made, "fingerprint", "")
    return _wrapped.Wrapped(
        made.sample, range="unit", title=str(getattr(made, "title", address)), latent_size=size, labels=names,
        attribute=str(getattr(made, "attribute", _wrapped.CLASS)) if names else "", settings=settings,
        fingerprint=str(known or _wrapped.fingerprint(files, {"address": address, **settings})),
        num_parameters=int(getattr(made, "num_parameters", 0)), num_bytes=int(getattr(made, "num_bytes", 0)),
        device=device,
    )  # fmt: skip


def _found(name: str, word: str, address: str) -> Any:
    if not word or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{address} names no function: write module:function, such as my_models:teacher.")
    with _working_directory():
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                raise UserError(f"{name} needs {error.name}, which is not installed: install it.") from None
            raise UserError(
                f"There is no file or module {name} here: install its package, or start in the folder of {name}.py."
            ) from None
        except Exception as error:  # of any kind: it is foreign code
            raise UserError(f"{name} cannot be imported ({_wrapped.in_brief(error)}): mend it.") from None
    if not callable(getattr(module, word, None)):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown(f"function of {name}", word, own)
    return getattr(module, word)


@contextmanager
def _working_directory() -> Iterator[None]:
    """Let modules of the working directory be found, after all others: none of them hides an installed one."""
    place = os.getcwd()
    if place in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
