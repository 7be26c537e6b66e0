"""Networks: normalise, features, head. What is deployed takes images in [0, 1]."""

from __future__ import annotations

import json
import time
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional

from evenlens import engine
from evenlens.config import Net
from evenlens.data.dataset import Task
from evenlens.data.images import cache_folder
from evenlens.dividing import over_processes
from evenlens.engine import Precision
from evenlens.errors import UserError, unknown
from evenlens.files import replacing

SMALL = "small_cnn"
SMALL_IMAGE = 48  # pixels up to which a stem that quarters the image at once would leave nothing to see
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A network from images in [0, 1] to logits.

    It normalises its input and chooses its precision itself, so that no method, loss or user has to.

    Args:
        features: has `forward_features`, normalised (B, 3, H, W) -> maps, and `forward_head`, maps -> (B, F), as the
            networks of timm have.
        num_features: F.
        num_outputs: logits.
        name: of the backbone.
        mean: of each channel, taken off the image.
        std: of each channel, divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        features: nn.Module,
        num_features: int,
        num_outputs: int,
        name: str,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.name = name
        self.precision = Precision()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.backbone: Any = features
        self.num_features = num_features
        self.head = nn.Linear(num_features, num_outputs)

    def compute_in(self, precision: Precision) -> None:
        """Take this precision and layout from now on."""
        self.precision = precision
        self.to(memory_format=precision.memory_format)

    def features(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to features (B, F) in float32."""
        return over_processes(lambda share: self.pooled(self._maps(share)), self.backbone, image)

    def maps(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to the last layer's maps before pooling: (B, F, h, w) of a CNN."""
        return over_processes(self._maps, self.backbone, image)

    def _maps(self, image: Tensor) -> Tensor:
        image = torch.addcmul(-self.mean / self.std, image, 1.0 / self.std)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.precision.bfloat16):
            return self.backbone.forward_features(image)

    def pooled(self, maps: Tensor) -> Tensor:
        """Pool maps to features (B, F) in float32."""
        with torch.autocast(maps.device.type, torch.bfloat16, enabled=self.precision.bfloat16):
            return self.backbone.forward_head(maps, pre_logits=True).to(self.mean.dtype)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, num_outputs) in float32."""
        return self.head(self.features(image))


class SmallCNN(nn.Sequential):
    """A plain network for images of 28 to 64 px: four 3x3 convolutions with batch norm and ReLU; then the mean.

    The first halves the image by its stride, the next two by pooling. Where the image is large, a CPU is bound by
    memory: with pooling after a full-size first layer a step takes four times as long.
    """

    def __init__(self, channels: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((3, *channels), channels, strict=False)):
            stride = 2 if number == 0 else 1
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            if 0 < number < len(channels) - 1:
                layers.append(nn.MaxPool2d(2))
        super().__init__(*layers)

    def forward_features(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to maps (B, F, h, w), as timm's networks do."""
        return super().forward(image)

    def forward_head(self, maps: Tensor, pre_logits: bool = True) -> Tensor:
        """Pool maps to features (B, F); there is no head to leave out."""
        return maps.mean((2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to features (B, F)."""
        return self.forward_head(self.forward_features(image))


@cache
def check(config: Net, image_size: int) -> None:
    """Try a network on images of this size, so that one that cannot be is refused before any data are read.

    Raises:
        UserError: an unknown backbone, a stem that it does not have, or a size that it cannot take.
    """
    task = Task(("0", "1"), ("0", "1"), image_size)
    try:
        net = build(config if config.backbone == SMALL else config.model_copy(update={"pretrained": False}), task)
        with torch.inference_mode():
            net.eval()(torch.zeros(2, 3, image_size, image_size))
    except UserError:
        raise
    except Exception as error:  # of many kinds, from many networks
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"net.backbone={config.backbone} cannot take images of {image_size} px ({reason}): choose another, or the "
            "data.size that it is made for."
        ) from None


def build(config: Net, task: Task, num_outputs: int | None = None) -> Classifier:
    """Build a classifier by its backbone's name.

    Args:
        config: backbone, weights and stem.
        task: gives image size and number of classes.
        num_outputs: logits; default: one a class.

    Raises:
        UserError: an unknown backbone, a small stem that it does not have, or weights that cannot be had.
    """
    num_outputs = num_outputs or task.num_classes
    if config.backbone == SMALL:
        if config.pretrained:
            raise UserError("small_cnn has no published weights: leave net.pretrained out or choose a timm backbone.")
        return Classifier(SmallCNN(), 128, num_outputs, SMALL)
    backbone = _timm(config)
    small = config.stem == "small" or (config.stem == "auto" and task.image_size <= SMALL_IMAGE)
    if small and (config.stem == "small" or _has_large_stem(backbone)):
        _shrink_stem(backbone, config.backbone)
    settings: dict[str, Any] = backbone.pretrained_cfg
    mean, std = settings.get("mean", IMAGENET_MEAN), settings.get("std", IMAGENET_STD)
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features  # of what is left after pooling
    return Classifier(backbone, width, num_outputs, config.backbone, tuple(mean), tuple(std))


def _timm(config: Net) -> Any:
    import timm

    known = timm.list_pretrained() if "." in config.backbone else timm.list_models()
    if config.backbone not in known:
        raise unknown("backbone", config.backbone, [SMALL, *_near(config.backbone, known)])
    try:
        return timm.create_model(config.backbone, pretrained=config.pretrained, num_classes=0)
    except Exception as error:
        if not config.pretrained:
            raise
        reason = str(error).strip().partition("\n")[0][:160]
        raise UserError(
            f"The published weights of {config.backbone} cannot be had here ({type(error).__name__}: {reason}). Run "
            "once where there is a network, or fill timm's cache, or train from scratch with net.pretrained=false."
        ) from None


def _near(name: str, known: list[str]) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, known, n=5, cutoff=0.3)


def _has_large_stem(backbone: Any) -> bool:
    return isinstance(getattr(backbone, "conv1", None), nn.Conv2d) and hasattr(backbone, "maxpool")


def _shrink_stem(backbone: Any, name: str) -> None:
    """Let the first layer of a ResNet look at 3x3 pixels at full resolution; what weights it had, it loses."""
    if not _has_large_stem(backbone):
        raise UserError(
            f"{name} has no 7x7 first layer to replace: net.stem=small is for ResNets; choose net.stem=standard."
        )
    backbone.conv1 = nn.Conv2d(3, backbone.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()


CHOICES = {
    "fp32": [Precision(), Precision(channels_last=True)],
    "bf16": [Precision(bfloat16=True), Precision(bfloat16=True, channels_last=True)],
}
CHOICES["auto"] = CHOICES["fp32"] + CHOICES["bf16"]


def choose_precision(wanted: str, net: Classifier, image_size: int, batch_size: int, device: torch.device) -> Precision:
    """Take the fastest way to compute that is allowed, by timing a few training steps of this network.

    What was found is kept in the cache by network, size, device, threads and versions, so that all runs of a
    comparison compute alike, and only the first one measures.
    """
    choices = CHOICES[wanted]
    batch_size = min(batch_size, 64)
    key = f"{net.name} {image_size} px, batch {batch_size}, {wanted}, {engine.describe(device)}, {torch.__version__}"
    path = cache_folder() / "precision.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # runs side by side wait for the first one's measurement
        known = _read_known(path)
        if key not in known:
            seconds = [step_seconds(choice, net, image_size, batch_size, device) for choice in choices]
            known[key] = seconds.index(min(seconds))
            with replacing(path) as part:
                part.write_text(json.dumps(known, indent=1))
    return choices[known[key]]


def _read_known(path: Path) -> dict[str, int]:
    """Read what was measured; it is a cache, so a damaged one is as good as none."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def step_seconds(
    precision: Precision, net: Classifier, image_size: int, batch_size: int, device: torch.device
) -> float:
    """Measure the seconds of one training step on random images: the best of a few."""
    trial = deepcopy(net).to(device).train()
    trial.compute_in(precision)
    with engine.fork_rng(device):
        image = torch.rand(batch_size, 3, image_size, image_size).to(device, memory_format=precision.memory_format)
        best = float("inf")
        for _ in range(4):  # the first one warms up
            begin = time.perf_counter()
            loss = functional.cross_entropy(trial(image), torch.zeros(batch_size, dtype=torch.long, device=device))
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - begin)
    return best


def thaw(net: nn.Module) -> nn.Module:
    """Copy a frozen network into one that can be trained on."""
    return deepcopy(net).requires_grad_(True)


def go_on_from(net: Classifier, task: Task, base: Classifier, base_task: Task) -> None:
    """Give a network the weights of a trained one.

    The head's rows follow the names of the classes, in whatever order they stand; a class that the trained network
    does not know keeps its fresh row.

    Args:
        net: the network, changed in place.
        task: what it is for.
        base: the trained network.
        base_task: what that one was trained for.

    Raises:
        UserError: the two are of different shapes.
    """
    state = {name: value for name, value in base.state_dict().items() if not name.startswith("head.")}
    here = {name: value.shape for name, value in net.state_dict().items() if not name.startswith("head.")}
    if base.name != net.name or here != {name: value.shape for name, value in state.items()}:
        raise UserError(
            f"The network to go on from is a {base.name} for images of {base_task.image_size} px and this one a "
            f"{net.name} for {task.image_size} px: choose the same net.backbone, net.stem and data.size."
        )
    net.load_state_dict(state, strict=False)
    wanted, known = list(task.class_names), list(base_task.class_names)
    if task == base_task and net.head.weight.shape == base.head.weight.shape:
        net.head.load_state_dict(base.head.state_dict())
    elif len(net.head.weight) == len(wanted) and len(base.head.weight) == len(known):
        with torch.no_grad():
            for row, name in enumerate(wanted):
                if name in known:
                    net.head.weight[row] = base.head.weight[known.index(name)]
                    net.head.bias[row] = base.head.bias[known.index(name)]
