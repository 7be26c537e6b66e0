"""Files of torch.export, read so that nothing in them is run.

`torch.export.load` opens pickles (example inputs, some constants), evaluates the sizes in a file as Python (sympify),
looks operations up by any name below `torch`, and pastes guards and names into source text. What is allowed here is
listed: plain tensors, sizes in a few words, operations of ATen, names that are identifiers. The archive is then written
anew from what was checked, so that what torch reads is what was looked at.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from evenlens import measuring
from evenlens.errors import UserError
from evenlens.generation.teachers import _wrapped

MODEL = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
PAYLOAD = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")
LEFT_OUT = re.compile(r"data/sample_inputs/model\.pt|\.data/serialization_id|\.format_version|\.storage_alignment")
TARGET = re.compile(
    r"torch\.ops\.(aten|prims)\.(?!from_file\b)\w+\.\w+|torch\.sym_(int|float|max|min|not|ite)|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge)"
)
SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, (positive|nonnegative|integer)=True)*\)")
EXPRESSION = re.compile(
    r"(\d{1,18}|[-,() ]|Integer|Rational|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing)*"
)
WORD = re.compile(r"[\w.:+-]*")  # neither brackets nor spaces: nothing that could be source text
TREES = ("in_spec", "out_spec")
TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def read(path: Path, content: bytes) -> Any:
    """Read an exported program, checked and without guards and remarks.

    Args:
        path: of the file, for messages.
        content: of the file.

    Raises:
        UserError: it holds what is not allowed, or is damaged.
    """
    try:
        anew = _checked(path, content)
        with measuring.quiet():
            return torch.export.load(anew)
    except UserError:
        raise
    except Exception as error:  # of many kinds, from the archive up to the graph
        raise UserError(
            f"{path} cannot be read by this torch {torch.__version__} ({_wrapped.in_brief(error)}): export it again."
        ) from None


def _checked(path: Path, content: bytes) -> io.BytesIO:
    parts: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.namelist():
            name = entry.partition("/")[2]
            if name in parts:
                raise _refused(path, f"{name} twice")
            if name in (MODEL, *CONFIGS, *PLAIN) or PAYLOAD.fullmatch(name):
                parts[name] = archive.read(entry)
            elif not LEFT_OUT.fullmatch(name):
                raise _refused(path, f"the part {name}")
    for name in (MODEL, *CONFIGS):
        if name not in parts:
            raise UserError(f"{path} has no {name}: write it again with this torch {torch.__version__}.")
        found = json.loads(parts[name])
        _check(path, found, "")
        parts[name] = json.dumps(found).encode()
    parts["data/sample_inputs/model.pt"] = b""  # these would be a pickle; no bytes are no examples
    anew = io.BytesIO()
    with zipfile.ZipFile(anew, "w") as archive:
        for name, data in parts.items():
            archive.writestr(f"generator/{name}", data)
    anew.seek(0)
    return anew


def _check(path: Path, found: Any, key: str) -> None:
    """Go through what a JSON file says; remarks are taken out, all other words must be allowed."""
    if isinstance(found, dict):
        for remark, empty in (("metadata", {}), ("guards_code", [])):
            if remark in found:
                found[remark] = empty
        if found.get("use_pickle"):
            raise _refused(path, "a pickle")
        for name, value in found.items():
            _check(path, name, "")
            _check(path, value, name)
    elif isinstance(found, list):
        for value in found:
            _check(path, value, key)
    elif isinstance(found, str):
        _check_word(path, found, key)


def _check_word(path: Path, word: str, key: str) -> None:
    if key == "target":
        if not TARGET.fullmatch(word):
            raise _refused(path, f"the operation {word[:60]!r}")
    elif key == "expr_str":
        if not EXPRESSION.fullmatch(SYMBOL.sub("1", word)):
            raise _refused(path, f"the size {word[:60]!r}")
    elif key in TREES:
        _check_tree(path, json.loads(word)[1])
    elif not WORD.fullmatch(word):
        raise _refused(path, f"{word[:60]!r} as {key or 'a name'}")


def _check_tree(path: Path, tree: dict[str, Any]) -> None:
    """Let arguments be nested in tuples, lists and dictionaries alone."""
    if tree["type"] not in TREE_TYPES:
        raise _refused(path, f"arguments in {tree['type']!r}")
    _check(path, json.loads(tree["context"] or "null"), "")
    for child in tree["children_spec"]:
        _check_tree(path, child)


def _refused(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds {what}, which a plain exported network does not have and which could run code: it is not "
        "opened; export it again with nothing but tensors and ATen operations, or as ONNX."
    )
