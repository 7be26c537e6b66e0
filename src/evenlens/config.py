"""What a run is made of: read from TOML and `key=value`, checked before any work, hashed to the run's id."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evenlens.errors import UserError, unknown


class Section(BaseModel):
    """A group of settings that knows all its names."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(Section):
    """Which images, what is predicted, whose treatment is measured. What is None is the data set's own default."""

    root: Path | None = Field(
        None, strict=False, description="folder that holds a folder for each data set; or $EVENLENS_DATA"
    )
    protocol: str | None = Field(None, description="named protocol: target, groups, injected bias and split")
    target: str | None = Field(None, description="column to predict")
    sensitive: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1, description="columns whose crossing makes the groups"
    )
    size: int | None = Field(None, ge=16, le=1024, description="height and width of the images in pixels")
    fit: Literal["stretch", "short_side", "center_crop"] = Field(
        "stretch", description="how an image becomes square; short_side and center_crop keep its aspect and cut"
    )
    view: str = Field("rgb", description="what the network is shown: rgb, grey or a sketch; see evenlens list views")
    view_options: dict[str, Any] = Field({}, description="options of the view, given as view.<option>=VALUE")
    augment: str | None = Field(
        None, description="none, flip, crop_flip, resized_crop_flip, resized_crop_flip_jitter or rotate_flip_jitter"
    )
    seed: int = Field(1, ge=0, lt=2**63, description="of the split and of injected bias; not of the training")
    tune: float = Field(
        0.0, ge=0, le=0.5, description="share of the training images set aside for a method's second stage"
    )
    skip_unreadable: bool = Field(False, description="leave out images and names that cannot be read, and say so")
    options: dict[str, Any] = Field({}, description="options of this data set alone")
    fingerprint: str | None = Field(None, description="hash over pixels, labels and split; refuses other data")


class Net(Section):
    """The network. Image size and number of outputs follow from the data and the method."""

    backbone: str = Field("small_cnn", description="small_cnn, or any timm name, such as resnet18")
    pretrained: bool = Field(False, description="start from published weights (fetched or from timm's cache)")
    stem: Literal["auto", "small", "standard"] = Field(
        "auto", description="small: 3x3 first layer without pooling, which auto takes up to 48 px"
    )


class Train(Section):
    """How it is trained, the same for every method."""

    epochs: int = Field(10, ge=1, description="scored and saved after each")
    devices: int = Field(
        1, ge=1, le=1024, description="processes, a GPU or core each, that share every batch; the numbers stay the same"
    )
    steps: int | None = Field(
        None, ge=1, description="optimiser steps of the whole run; default: each epoch one pass, for every method"
    )
    batch_size: int = Field(128, ge=1, description="images a step")
    optimizer: Literal["adam", "adamw", "nadam", "sgd"] = Field("adam", description="sgd is with momentum 0.9")
    learning_rate: float = Field(1e-3, gt=0, description="at the start of the schedule")
    weight_decay: float = Field(1e-4, ge=0, description="as the optimiser defines it")
    schedule: Literal["constant", "cosine", "step", "quarters", "halves"] = Field(
        "cosine",
        description="step: a tenth after each third of the epochs; quarters: after each quarter; halves: after half",
    )


class RunConfig(Section):
    """One run. `options` are the hyper-parameters of the method: its constructor's keyword arguments."""

    dataset: str
    method: str
    seed: int = Field(1, ge=0, lt=2**63, description="of weights, order and augmentation")
    select: str = Field("unbiased_accuracy", description="which epoch is kept, by its score on the validation images")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto takes what is faster here")
    base: str | None = Field(None, description="folder of a run whose network training goes on from")
    options: dict[str, Any] = {}
    data: Data = Data()
    net: Net = Net()
    train: Train = Train()

    def identity(self) -> str:
        """Hash what decides the numbers to 10 hex digits; where the images lie does not, nor on how many devices."""
        content = self.model_dump(mode="json", exclude={"data": {"root"}, "train": {"devices"}})
        content["base"] = self.base and Path(self.base).expanduser().resolve().name  # which is the base's own hash
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()


PHOTOGRAPH = "rgb"  # the view that changes nothing
AUGMENTS = ("none", "flip", "crop_flip", "resized_crop_flip", "resized_crop_flip_jitter", "rotate_flip_jitter")
SECTIONS: dict[str, type[Section]] = {"data": Data, "net": Net, "train": Train}
SCALARS = ("seed", "select", "precision", "base")
SETTINGS = [*SCALARS, *(f"{name}.{key}" for name, section in SECTIONS.items() for key in section.model_fields)]


def data_root(root: Path | None) -> Path:
    """Give the folder that holds a folder for each data set: as given, else `$EVENLENS_DATA`, else ~/data."""
    return Path(root or os.environ.get("EVENLENS_DATA") or "~/data").expanduser()


def parse_value(text: str) -> Any:
    """Read the right side of key=value: a TOML value, else a word; commas make a list of either."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return [parse_value(part) for part in text.split(",") if part] if "," in text else text


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Turn ["train.epochs=20", "weight=3"] into a dictionary by key."""
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{pair}' is no setting: write key=value, such as train.epochs=20.")
        settings[key.strip()] = parse_value(value.strip())
    return settings


def make_config(dataset: str, method: str, settings: dict[str, Any] | None = None) -> RunConfig:
    """Build a run's configuration from settings by key.

    `data.*`, `net.*` and `train.*` go to their sections, `seed`, `select`, `precision` and `base` to the run; a
    `data.*` key that no data set shares is an option of this one, `view.*` are options of the view; all other keys are
    hyper-parameters of the method.
    Those with a dot are settings of a run that the method starts from: `teacher.train.epochs=50`.

    Raises:
        UserError: an unknown key (with the nearest known one), or a value that is not allowed.
    """
    empty: dict[str, Any] = {"dataset": dataset, "method": method, "options": {}, "data": {}, "net": {}, "train": {}}
    return _settle(empty, settings or {})


def changed(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """Give a configuration in which some settings, by key as in `make_config`, are others; errors likewise."""
    return _settle(config.model_dump(mode="json", exclude_none=True), settings)


def _settle(content: dict[str, Any], settings: dict[str, Any]) -> RunConfig:
    for key, value in settings.items():
        section, dot, name = key.partition(".")
        if dot and section in SECTIONS:
            if name in SECTIONS[section].model_fields:
                content[section][name] = value
            elif section == "data":
                content["data"].setdefault("options", {})[name] = value
            else:
                raise unknown(f"setting of {section}", name, SECTIONS[section].model_fields, SETTINGS)
        elif dot and section == "view":
            content["data"].setdefault("view_options", {})[name] = value
        elif key in SCALARS:
            content[key] = str(value) if key == "base" else value  # a path may look like a number
        else:
            content["options"][key] = value
    sensitive = content["data"].get("sensitive")
    if isinstance(sensitive, str):
        content["data"]["sensitive"] = [sensitive]
    return read_config(content)


def first_mistake(error: ValidationError) -> tuple[str, str]:
    """Give the place of the first thing that is wrong in checked settings, with dots, and say what it must be."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"].replace("Input should", "it must")


def read_config(content: dict[str, Any]) -> RunConfig:
    """Check a dictionary as it stands in a run's config.toml."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        first, (place, message) = error.errors()[0], first_mistake(error)
        if first["type"] in ("missing", "extra_forbidden"):
            raise UserError(f"The configuration's '{place}' is {first['type'].partition('_')[0]}: {message}.") from None
        raise UserError(f"{place}={first['input']!r} is not allowed: {message}.") from None


def to_toml(config: RunConfig) -> str:
    """Write a configuration as TOML that `read_config` takes."""
    import tomli_w

    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, naming file and place of a mistake."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None


def signature_options(
    kind: str, owner: type, given: dict[str, Any], reserved: Iterable[str], also: Iterable[str] = ()
) -> dict[str, Any]:
    """Check hyper-parameters against a constructor and fill in its defaults.

    Args:
        kind: what a person calls the owner ("option of flac").
        owner: a class; see `keyword_options`.
        given: options by name.
        reserved: arguments that are not options.
        also: names that would have been known in the same place, for the message.
    """
    known = {name: default for name, default in keyword_options(owner).items() if name not in set(reserved)}
    for name, value in given.items():
        if name not in known:
            raise unknown(kind, name, [*known, *also], SETTINGS)
        if not _fits(value, known[name]):
            raise UserError(
                f"{kind.removeprefix('option of ')}: {name}={value!r} is not allowed; it must be "
                f"{'true or false' if isinstance(known[name], bool) else f'like {known[name]!r}'}."
            )
    return {**known, **given}


def option_owners(owner: type) -> list[type]:
    """Give the classes whose constructors make up the options of one: it, and while they hand theirs on, its bases."""
    import inspect

    owners = []
    for kind in owner.__mro__:
        if "__init__" in vars(kind):
            owners.append(kind)
            parameters = inspect.signature(vars(kind)["__init__"]).parameters.values()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
                break
    return owners


def keyword_options(owner: type) -> dict[str, Any]:
    """Give the options of a class, its constructor's keyword-only arguments, with their defaults.

    Those of a base count too where the constructor hands on what it does not know; its own defaults go first.
    """
    import inspect

    found: dict[str, Any] = {}
    for kind in option_owners(owner):
        for name, parameter in inspect.signature(vars(kind)["__init__"]).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                found.setdefault(name, parameter.default)
    return found


def _fits(value: Any, default: Any) -> bool:
    """Say whether a value is of the kind of a default."""
    if default is None or isinstance(default, bool) or isinstance(value, bool):
        return default is None or (isinstance(value, bool) and isinstance(default, bool))
    if isinstance(default, int):
        return isinstance(value, int)
    if isinstance(default, float):
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, list | tuple) if isinstance(default, tuple) else isinstance(value, type(default))
