"""Classifiers of faces, whatever they are kept in: images in, logits of one or several attributes out."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenlens import engine, model_file, nets, weights
from evenlens.config import Net
from evenlens.data.dataset import Task
from evenlens.errors import UserError
from evenlens.generation.face_csv import HEADS
from evenlens.method import Method
from evenlens.viewed import Viewed

FACE_SIZE, FACE_NET = 224, "resnet34"  # of the published network with 18 outputs
FACE_ROWS = tuple(word for name in ("race", "gender", "age") for word in HEADS[name][1])  # its outputs
RACES = (7, 4)
MARGIN_OF_CROP = 8 / 9  # what a run with data.fit=center_crop keeps of the side
TORCH_FILES = (".pt", ".pth", ".ts", ".jit", ".bin", ".ckpt")
EXAMPLE = '{"attributes": {"gender": ["Male", "Female"]}, "size": 224, "mean": [0, 0, 0], "std": [1, 1, 1]}'


class Outputs(NamedTuple):
    """What a network's outputs are, and what it looks at.

    Attributes:
        attributes: the classes of each attribute, in words.
        rows: of the network's outputs, which are each attribute's.
        size: height and width in pixels that the network is shown.
        mean: of each channel, taken off an image in [0, 1] before the network sees it.
        std: of each channel, divided by.
    """

    attributes: dict[str, tuple[str, ...]]
    rows: dict[str, slice]
    size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)


class FaceClassifier:
    """Says what a face appears to be, by attribute. Its weights are frozen; where it can, it passes gradients on.

    A subclass writes `scores`, and `deep` where it knows its last layer's input.

    Attributes:
        title: what it is, for tables.
        fingerprint: 16 hex digits that change when its answers would.
        attributes: the classes of each attribute, in words and in order.
        size: height and width in pixels of what its network is shown.
        crop: share of the side that it looks at, in (0, 1], about the middle.
        square: whether it looks at a square of the image's short side, and so never distorts; else at all of it.
        differentiable: whether gradients flow from its logits to the image.
        has_features: whether it is known what its last layer sees.
        device: where it computes.
    """

    differentiable = True
    has_features = False

    def __init__(self, title: str, fingerprint: str, outputs: Outputs, crop: float = 1.0, square: bool = False) -> None:
        self.title, self.fingerprint, self.outputs = title, fingerprint, outputs
        self.size, self.crop, self.square = outputs.size, crop, square
        self.device = torch.device("cpu")
        self._mean, self._std = (torch.tensor(part).view(3, 1, 1) for part in (outputs.mean, outputs.std))

    @property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each attribute."""
        return self.outputs.attributes

    def scores(self, shown: Tensor) -> Tensor:
        """Map what `view` gives, normalised, (B, 3, size, size), to all outputs of the network (B, O)."""
        raise NotImplementedError

    def deep(self, shown: Tensor) -> Tensor:
        """Map what `view` gives, normalised, to what the last layer sees (B, F).

        Raises:
            UserError: the file does not say which layer is the last.
        """
        raise UserError(
            f"{self.title} gives no features, as its file holds outputs alone: take a run of evenlens, or the "
            "published weights of a network, for them."
        )

    def to(self, device: torch.device) -> FaceClassifier:
        """Compute there from now on."""
        self.device = device
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    def view(self, image: Tensor) -> Tensor:
        """Cut and resize images (B, 3, H, W) in [0, 1], of any size, to what the network is shown, still in [0, 1].

        The middle is kept, `round(crop * side)` pixels of it, and brought to (B, 3, size, size), bilinear with
        antialiasing. What has this size already is not touched.
        """
        height, width = image.shape[2:]
        if self.square:
            height = width = min(height, width)
        height, width = (max(1, round(self.crop * side)) for side in (height, width))
        top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
        image = image[:, :, top : top + height, left : left + width]
        if (height, width) == (self.size, self.size):
            return image
        return functional.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)

    def logits(self, image: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, H, W) in [0, 1], on `device`, to logits (B, K) by attribute."""
        return self.logits_of(self.view(image))

    def logits_of(self, view: Tensor) -> dict[str, Tensor]:
        """Map what `view` gave to logits (B, K) by attribute."""
        found = self.scores(self._normalised(view))
        return {name: found[:, rows] for name, rows in self.outputs.rows.items()}

    def features(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1], on `device`, to what its last layer sees (B, F).

        Raises:
            UserError: as in `deep`.
        """
        return self.deep(self._normalised(self.view(image)))

    def _normalised(self, view: Tensor) -> Tensor:
        plain = not any(self.outputs.mean) and set(self.outputs.std) == {1.0}
        return view if plain else (view - self._mean) / self._std


class Network(FaceClassifier):
    """A classifier that is a module of torch.

    Args:
        module: maps what it is shown (B, 3, size, size) to outputs (B, O).
        last: maps the same to what the last layer sees (B, F); None where that is not known.
        options: of `FaceClassifier`.
    """

    def __init__(self, module: nn.Module, last: Callable[[Tensor], Tensor] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.module, self.last, self.has_features = module.eval(), last, last is not None
        for parameter in module.parameters():  # TorchScript has no requires_grad_
            parameter.requires_grad_(False)

    def scores(self, shown: Tensor) -> Tensor:
        """Map what it is shown to outputs (B, O)."""
        return self.module(shown)

    def deep(self, shown: Tensor) -> Tensor:
        """Map what it is shown to features (B, F)."""
        return self.last(shown) if self.last else super().deep(shown)

    def to(self, device: torch.device) -> FaceClassifier:
        """Compute there from now on."""
        self.module.to(device)
        return super().to(device)


# ---- opening


def load(address: str | Path, crop: float = 1.0, races: int = 7, device: torch.device | None = None) -> FaceClassifier:
    """Open a classifier of faces.

    Args:
        address: a run of evenlens (its folder or model.safetensors); the published ResNet-34 for faces with 18 outputs
            (.pt or .safetensors, told by its shapes); an .onnx or TorchScript file with a .json file beside it, of the
            same name. Written `NAME=ADDRESS`, the attribute of a classifier that has one gets this name, and of one
            that has several this one alone is taken.
        crop: share of the side that it looks at, about the middle, in (0, 1]: .625 where faces are aligned as in FFHQ.
        races: of the published network: 7 for the one for seven races, gender and age; 4 for the one whose first four
            outputs are four races, and the others nothing. The name race4 stands for 4.
        device: where it computes; default: the fastest here. An .onnx file computes on the CPU.

    Raises:
        UserError: nothing there, a pickle, an unknown kind, a method that takes the group to predict, a missing
            description, or a damaged file.

    Source: the 18 outputs are those of FairFace (Kärkkäinen and Joo, WACV 2021), shown 224 px with ImageNet's mean and
    standard deviation; the crop is fair-distill's, 160 of 256 px. Differs from fair-distill, which cuts 160 px whatever
    the image's size.
    """
    if not 0 < crop <= 1:
        raise UserError(f"A crop of {crop:g} is not allowed: give the share of the side that is kept, above 0 up to 1.")
    if races not in RACES:
        raise UserError(f"There is no network for {races} races: choose 7 or 4.")
    name, path = _split(str(address))
    made = _opener(path)(path, crop, 4 if name == "race4" else races)
    return _named(made, name).to(device or engine.start())


def _split(address: str) -> tuple[str, Path]:
    """Take the name off `NAME=ADDRESS`; a path with such a sign stays whole."""
    name, equals, rest = address.partition("=")
    if not equals or Path(address).exists():
        return "", Path(address)
    if not name.strip() or not rest.strip():
        raise UserError(f"'{address}' is no classifier: write NAME=ADDRESS, such as gender=runs/one.")
    return name.strip(), Path(rest.strip())


def _opener(path: Path) -> Callable[[Path, float, int], FaceClassifier]:
    ending = path.suffix.lower()
    if path.is_dir():
        return _open_run
    if ending in (".pkl", ".pickle"):
        raise UserError(
            f"{path} is a pickle, which runs code when it is opened: in the program that made it, save the weights "
            "alone, or write ONNX."
        )
    if not path.is_file():
        raise UserError(
            f"There is no classifier at {path}: give the folder of a run, or a .safetensors, .pt or .onnx file."
        )
    if ending == ".onnx":
        from evenlens.generation.classifier_files import open_onnx

        return open_onnx
    if ending == ".safetensors":
        return _open_run if _is_run(path) else _open_face_net
    if ending in TORCH_FILES:
        from evenlens.generation.classifier_files import open_script

        return open_script if _is_script(path) else _open_face_net
    raise UserError(
        f"{path} ends in '{ending}': a classifier is the folder of a run, or a .safetensors, .pt or .onnx file."
    )


def _is_run(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return "evenlens" in (file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no complete safetensors file ({error}): copy it again.") from None


def _is_script(path: Path) -> bool:
    """Tell TorchScript from saved weights, without opening either: only the first has constants and code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _named(made: FaceClassifier, name: str) -> FaceClassifier:
    """Give a classifier's one attribute another name, or keep one of several."""
    there = made.attributes
    if not name or list(there) == [name]:
        return made
    if len(there) > 1 and name not in there:
        raise UserError(
            f"{made.title} has several attributes ({', '.join(there)}): name one of them, or leave {name}= out."
        )
    old = name if name in there else next(iter(there))
    made.outputs = made.outputs._replace(attributes={name: there[old]}, rows={name: made.outputs.rows[old]})
    return made


def fingerprint(path: Path, **settings: Any) -> str:
    """Give 16 hex digits of a file's bytes and of how it is used."""
    content = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8)
    with path.open("rb") as file:
        content.update(hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()


def in_order(attributes: Mapping[str, tuple[str, ...]]) -> dict[str, slice]:
    """Give each attribute its outputs, one after the other."""
    stops = [sum(len(classes) for classes in list(attributes.values())[: k + 1]) for k in range(len(attributes))]
    return {name: slice(stop - len(attributes[name]), stop) for name, stop in zip(attributes, stops, strict=True)}


def _open_run(path: Path, crop: float, races: int) -> FaceClassifier:
    """Open what a run of evenlens deploys; its attribute is what it predicts."""
    file = path / "model.safetensors" if path.is_dir() else path
    method = model_file.load_model(file)
    if any("prediction" in each.needs_group for each in method.modules() if isinstance(each, Method)):
        raise UserError(
            f"{path} ({method.config.method}) predicts with each image's group, which a generated image has not: "
            "label with another run."
        )
    task, fit = method.task, method.config.data.fit
    made = Network(
        module=method, last=_last_layer(method),
        title=f"{method.config.method} on {method.config.dataset} ({file.absolute().parent.name})",
        fingerprint=fingerprint(file, crop=crop),
        outputs=Outputs({task.target: task.class_names}, {task.target: slice(0, task.num_classes)}, task.image_size),
        crop=crop * MARGIN_OF_CROP if fit == "center_crop" else crop, square=fit != "stretch",
    )  # fmt: skip
    made.differentiable = not isinstance(method, Viewed)  # a view rounds to eight bits
    return made


def _last_layer(method: Method) -> Callable[[Tensor], Tensor]:
    if isinstance(method, Viewed):
        return lambda image: method.net.features(method.shown(image))
    return lambda image: method.net.features(image)


def _open_face_net(path: Path, crop: float, races: int) -> FaceClassifier:
    """Open the published network for faces by its weights: a ResNet-34 by torchvision's names, with 18 outputs."""
    state = weights.read(path).state
    net = nets.build(Net(backbone=FACE_NET, stem="standard"), Task(FACE_ROWS, ("all",), FACE_SIZE))
    named = {name: name.replace("backbone.", "").replace("head.", "fc.") for name in net.state_dict()}
    wanted = {there: net.state_dict()[name] for name, there in named.items() if there not in ("mean", "std")}
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    state = counters | state  # which old files lack, and nothing at prediction looks at
    odd = next((name for name in (*wanted, *state) if _shape(wanted, name) != _shape(state, name)), None)
    if odd:
        raise UserError(
            f"{path} holds weights of a network that is not known here: {odd} is {_shape(state, odd)} there, and "
            f"{_shape(wanted, odd)} in the ResNet-34 for faces with {len(FACE_ROWS)} outputs; give a run of evenlens, "
            "or the network itself as ONNX or TorchScript."
        )
    net.load_state_dict({name: state[there] for name, there in named.items() if there in wanted}, strict=False)
    attributes = {name: classes for name, (_, classes) in HEADS.items() if (name == "race4") == (races == 4)}
    return Network(
        module=net, last=net.features, title=f"{FACE_NET} for faces, {races} races ({path.name})",
        fingerprint=fingerprint(path, crop=crop, races=races),
        outputs=Outputs(attributes, in_order(attributes), FACE_SIZE), crop=crop,
    )  # fmt: skip


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(state[name].shape) if name in state else "absent"
