"""Networks: normalise, features, head. What is deployed takes images in [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evenlens.config import Net
from evenlens.data.dataset import Task
from evenlens.engine import Precision
from evenlens.errors import UserError, unknown

SMALL_IMAGE = 48  # pixels up to which a stem that quarters the image at once would leave nothing to see
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A network from images in [0, 1] to logits.

    It normalises its input and chooses its precision itself, so that no method, loss or user has to.

    Args:
        features: (B, 3, H, W) normalised -> (B, num_features).
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
        self.backbone = features
        self.num_features = num_features
        self.head = nn.Linear(num_features, num_outputs)

    def compute_in(self, precision: Precision) -> None:
        """Take this precision and layout from now on."""
        self.precision = precision
        self.to(memory_format=precision.memory_format)

    def features(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to features (B, F) in float32."""
        image = torch.addcmul(-self.mean / self.std, image, 1.0 / self.std)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.precision.bfloat16):
            return self.backbone(image).float()

    def forward(self, image: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in [0, 1] to logits (B, num_outputs) in float32."""
        return self.head(self.features(image))


def small_cnn(channels: tuple[int, ...] = (16, 32, 64, 128)) -> nn.Sequential:
    """Make a plain network for images of 28 to 64 px: four 3x3 convolutions with batch norm and ReLU; then the mean.

    The first halves the image by its stride, the next two by pooling. Where the image is large, a CPU is bound by
    memory: with pooling after a full-size first layer a step takes four times as long.
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip((3, *channels), channels, strict=False)):
        stride = 2 if number == 0 else 1
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        if 0 < number < len(channels) - 1:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


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
    if config.backbone == "small_cnn":
        if config.pretrained:
            raise UserError("small_cnn has no published weights: leave net.pretrained out or choose a timm backbone.")
        return Classifier(small_cnn(), 128, num_outputs, "small_cnn")
    backbone = _timm(config)
    small = config.stem == "small" or (config.stem == "auto" and task.image_size <= SMALL_IMAGE)
    if small and (config.stem == "small" or _has_large_stem(backbone)):
        _shrink_stem(backbone, config.backbone)
    settings: dict[str, Any] = backbone.pretrained_cfg
    mean, std = settings.get("mean", IMAGENET_MEAN), settings.get("std", IMAGENET_STD)
    return Classifier(backbone, backbone.num_features, num_outputs, config.backbone, tuple(mean), tuple(std))


def _timm(config: Net) -> Any:
    import timm

    known = timm.list_models()
    if config.backbone.split(".")[0] not in known:
        raise unknown("backbone", config.backbone, ["small_cnn", *_near(config.backbone, known)])
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


def thaw(net: nn.Module) -> nn.Module:
    """Copy a frozen network into one that can be trained on."""
    from copy import deepcopy

    return deepcopy(net).requires_grad_(True)
