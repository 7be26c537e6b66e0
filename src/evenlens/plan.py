"""What a run is going to be: names and options checked, defaults filled in, before any data are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from evenlens import datasets, methods, model_file, nets
from evenlens.config import SECTIONS, Net, RunConfig, changed, signature_options
from evenlens.data import source
from evenlens.data.dataset import Task
from evenlens.errors import UserError, unknown
from evenlens.method import Method, Needs
from evenlens.run_folder import Run
from evenlens.selecting import Rule


def complete(config: RunConfig) -> RunConfig:
    """Check names and options, and fill in what data set and method set by default. Reads no data.

    Raises:
        UserError: an unknown name, with the nearest known one.
    """
    config = located(config)
    kind, method = datasets.get(config.dataset, config.data.root), methods.get(config.method)
    Rule.of(config.select)
    required = {key: value for key, value in config.options.items() if key.partition(".")[0] in method.requires}
    options = {key: value for key, value in config.options.items() if key not in required}
    for key in options:
        if "." in key:
            raise unknown("section", key.partition(".")[0], [*SECTIONS, *method.requires])
    checked = method.settle(signature_options(f"option of {config.method}", method, options, method.requires))
    for name in method.requires:
        other = required_config(config, name, None)
        if name not in config.options:
            complete(other)
    data = source.resolve(config.dataset, kind, config.data)
    started_from(config)  # which opens them, so that one that is not there is refused here
    nets.check(config.net, int(data.size or kind.size))
    _rehearse(config.model_copy(update={"options": checked, "net": Net()}))
    return config.model_copy(update={"options": {**checked, **required}, "data": data})


def _rehearse(config: RunConfig) -> None:
    """Construct the method for a task that is made up: what its constructor refuses is refused before data are read."""
    task = Task(("0", "1"), ("0", "1"), 32)
    model_file.build_method(task, config, plain_methods(config, task))


def plain_methods(config: RunConfig, task: Task) -> dict[str, model_file.Required]:
    """Make untrained methods that train by cross-entropy, in place of those that a method requires, by their name."""
    of_group = replace(task, class_names=task.group_names)
    made: dict[str, model_file.Required] = {}
    for name, needs in methods.get(config.method).requires.items():
        plain = Method(task if needs.target == "label" else of_group, config)
        made[name] = nn.ModuleList([plain]) if needs.target == "each" else plain
    return made


def located(config: RunConfig) -> RunConfig:
    """Name a data set that was given by its path, and the folder that it lies in."""
    name, root = datasets.locate(config.dataset, config.data.root)
    return config.model_copy(update={"dataset": name, "data": config.data.model_copy(update={"root": root})})


def started_from(config: RunConfig) -> list[Run]:
    """Open the runs that a configuration names to start from: its base, and those put in a required one's place."""
    given = [config.options[name] for name in methods.get(config.method).requires if name in config.options]
    named = [folder for value in given for folder in named_runs(value)]
    return [Run.open(Path(folder).expanduser()) for folder in (*([config.base] if config.base else []), *named)]


def required_config(config: RunConfig, name: str, target: str | None) -> RunConfig:
    """Say how a run is made that a method starts from.

    Args:
        config: of the run that starts from it; its options of the form `<name>.<setting>` are settings of this one.
        name: of the argument that takes it.
        target: what it predicts, if not the label.

    Raises:
        UserError: a setting is unknown or not allowed.
    """
    needs = methods.get(config.method).requires[name]
    settings = {key.partition(".")[2]: value for key, value in config.options.items() if key.startswith(f"{name}.")}
    for key in settings:
        if key.startswith(("data.", "view.")):
            raise UserError(f"{name}.{key} is not allowed: what {config.method} starts from has the same data.")
        if name in config.options:
            raise UserError(f"{name}.{key} is given, and {name} as a run that is made already: leave out one of them.")
    changes: dict[str, Any] = {"method": needs.method, "options": {}, "base": None}
    if target is not None:
        changes["data"] = config.data.model_copy(update={"target": target, "fingerprint": None})
        changes["select"] = "balanced_accuracy"
    if "train.epochs" in settings:  # a length of its own, so that a budget of steps is not this one's too
        changes["train"] = config.train.model_copy(update={"steps": None})
    return changed(config.model_copy(update=changes), settings) if settings else config.model_copy(update=changes)


def required_configs(config: RunConfig) -> list[RunConfig]:
    """Say which runs a complete configuration starts from, other than those that it names itself."""
    found = []
    for name, needs in methods.get(config.method).requires.items():
        if name not in config.options:
            found += [required_config(config, name, target) for target in targets_of(config, needs)]
    return found


def targets_of(config: RunConfig, needs: Needs) -> list[str | None]:
    """Say what the networks predict that a method needs; None is the label."""
    if needs.target != "each":
        return [None if needs.target == "label" else needs.target]
    sensitive = config.data.sensitive or ()
    return [f"group.{column}" for column in sensitive] if len(sensitive) > 1 else ["group"]


def named_runs(value: Any) -> list[str]:
    """Give the folders that stand for a required run: one, or several with commas between."""
    return [str(folder) for folder in value] if isinstance(value, list | tuple) else [str(value)]
