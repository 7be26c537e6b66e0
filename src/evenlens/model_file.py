"""One file that holds a trained method, and all that is needed to build it again. No pickle."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from evenlens import methods, views
from evenlens.config import PHOTOGRAPH, RunConfig, read_config
from evenlens.data.dataset import Task
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.method import Method
from evenlens.view import View
from evenlens.viewed import Viewed

FORMAT = "1"
VIEW = "view."  # before the names of what belongs to the view; no method has a part of this name


Required = Method | nn.ModuleList


def build_method(task: Task, config: RunConfig, required: dict[str, Required]) -> Method:
    """Construct a method as a configuration says, untrained.

    Args:
        task: what is predicted, for whom.
        config: names the method and its hyper-parameters.
        required: the trained methods that it starts from, by argument name; they are frozen here.
    """
    kind = methods.get(config.method)
    options = {key: value for key, value in config.options.items() if key.partition(".")[0] not in kind.requires}
    frozen = {name: module.requires_grad_(False).eval() for name, module in required.items()}
    return kind(task, config, **frozen, **options)


def describe(method: Method) -> str:
    """Write down how to build a method and the methods that it requires, as JSON."""
    return json.dumps(_description(method))


def _description(method: Method) -> dict[str, Any]:
    required: dict[str, Any] = {}
    for name in method.requires:
        module = getattr(method, name)
        several = isinstance(module, nn.ModuleList)
        required[name] = [_description(each) for each in module] if several else _description(module)
    config = method.config.model_dump(mode="json", exclude={"data": {"root"}})
    return {"task": method.task.as_dict(), "config": config, "requires": required}


def save_model(path: Path, description: str, state: dict[str, Tensor]) -> None:
    """Write weights and buffers with the description of how to build what they belong to."""
    # written by Python: what the libraries raise when a disk is full does not say so
    path.write_bytes(save(state, metadata={"evenlens": FORMAT, "description": description}))


def load_model(path: Path) -> Method:
    """Build what a model file deploys, ready to predict photographs: its view is part of it.

    Raises:
        UserError: as in `load_method`.
    """
    method, view = _load(path)
    return Viewed(method, view).eval().requires_grad_(False) if view else method


def load_method(path: Path) -> Method:
    """Build the method of a model file as it was trained, for images as its view shows them.

    Raises:
        UserError: no such file, another format, a damaged one, or tensors that do not fit.
    """
    return _load(path)[0]


def _load(path: Path) -> tuple[Method, View | None]:
    """Build a file's method, and its view where that is not the photograph."""
    if not path.is_file():
        raise UserError(f"There is no model at {path}: name a run folder or its model.safetensors.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except SafetensorError as error:
        raise UserError(f"{path} is no complete safetensors file ({error}).") from None
    if metadata.get("evenlens") != FORMAT:
        raise UserError(
            f"{path} was written in format {metadata.get('evenlens', 'unknown')} and this evenlens reads format "
            f"{FORMAT}: train it again, or use the version that wrote it."
        )
    try:
        method = _build(json.loads(metadata["description"]))
        view = build_view(method.config)
        if view:
            of_view = {name: state.pop(f"{VIEW}{name}") for name in view.state_dict()}
            view.load_state_dict(of_view)
        deployed = deployed_names(method)
        if set(state) != set(deployed):
            raise KeyError(sorted(set(state) ^ set(deployed))[0])
        method.load_state_dict(state, strict=False)
    except UserError as error:
        raise UserError(f"{path} cannot be built: {error}") from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} does not fit its own description ({_in_brief(error)}): copy the file again, or train it again."
        ) from None
    return method.eval().requires_grad_(False), view


def build_view(config: RunConfig) -> View | None:
    """Build the view of a run, without what it reads from files; nothing where it is the photograph."""
    data = config.data
    return None if data.view == PHOTOGRAPH else views.build(data.view, data.view_options)


def view_state(config: RunConfig) -> dict[str, Tensor]:
    """Give the weights and buffers of a run's view, read from its files, by their names in a model file."""
    view = build_view(config)
    if view is None:
        return {}
    view.prepare()
    return {f"{VIEW}{name}": value.contiguous() for name, value in view.state_dict().items()}


def _build(description: dict[str, Any]) -> Method:
    config = read_config(description["config"])
    config = config.model_copy(update={"net": config.net.model_copy(update={"pretrained": False})})
    required: dict[str, Required] = {
        name: nn.ModuleList(_build(each) for each in inner) if isinstance(inner, list) else _build(inner)
        for name, inner in description["requires"].items()
    }
    return build_method(Task.from_dict(description["task"]), config, required)


def deployed_names(method: Method) -> list[str]:
    """Name the entries of a method's state that predicting takes, each once: not those of a teacher, say."""
    left_out = tuple(f"{prefix}." for prefix in _left_out(method))
    once = {name for name, _ in (*method.named_parameters(), *method.named_buffers())}  # of what has several names
    return sorted(name for name in method.state_dict() if name in once and not name.startswith(left_out))


def _left_out(method: Method) -> Iterator[str]:
    for name, needs in method.requires.items():
        if not needs.deployed:
            yield name
        elif isinstance(inner := getattr(method, name), Method):
            yield from (f"{name}.{prefix}" for prefix in _left_out(inner))


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write what a killed run needs to go on; the old one stays until the new one is whole."""
    buffer = io.BytesIO()  # written by Python, as above
    torch.save(content, buffer)
    with replacing(path) as part:
        part.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint: tensors, numbers and text only, so that no code in it is ever run.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # of many kinds, from the archive down to the pickle
        raise bad_checkpoint(path, error) from None


def bad_checkpoint(path: Path, error: Exception) -> UserError:
    """Make the error for a checkpoint from which nothing can go on."""
    return UserError(
        f"{path} is no checkpoint of this run ({_in_brief(error)}): delete it, and the same command starts anew."
    )


def _in_brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def pick(method: Method, names: Collection[str]) -> dict[str, Tensor]:
    """Copy the named entries of a method's state to the CPU."""
    state = method.state_dict()
    return {name: state[name].detach().to("cpu", copy=True).contiguous() for name in names}
