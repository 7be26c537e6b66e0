"""The generator of StyleGAN2, from weights in safetensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log2, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.generation.generator import Generator
from evenlens.generation.teachers import _wrapped

MAPPING_RATE = 0.01  # learning rate of the mapping, folded into its weights
EPSILON = 1e-8
FIR = (1.0, 3.0, 3.0, 1.0)
IGNORED = "resample_filter"  # buffers that hold FIR
CONFIG = "config"  # key of a file's metadata


@dataclass(frozen=True)
class Config:
    """The form of a network.

    Attributes:
        channels: of the features at 4, 8, ... pixels; so many as the image's size has.
        z_dim: numbers of a latent.
        w_dim: numbers of a style.
        c_dim: classes; 0 where it takes none.
        num_layers: of the mapping.
    """

    channels: tuple[int, ...]
    z_dim: int = 512
    w_dim: int = 512
    c_dim: int = 0
    num_layers: int = 8

    @property
    def resolution(self) -> int:
        """Height and width of the images in pixels."""
        return 4 << (len(self.channels) - 1)

    @classmethod
    def standard(cls, resolution: int, channel_base: int = 32768, channel_max: int = 512, **others: int) -> Config:
        """Give the usual form: min(channel_base / r, channel_max) channels at r pixels, here as in config F."""
        sizes = [4 << level for level in range(int(log2(resolution)) - 1)]
        return cls(tuple(min(channel_base // size, channel_max) for size in sizes), **others)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> Config:
        """Read the form off the shapes of a file's tensors.

        Raises:
            UserError: a tensor that tells it is missing.
        """
        levels = 0
        while f"synthesis.b{4 << levels}.torgb.weight" in shapes:
            levels += 1
        layers = 0
        while f"mapping.fc{layers}.weight" in shapes:
            layers += 1
        try:
            channels = tuple(shapes[f"synthesis.b{4 << level}.torgb.weight"][1] for level in range(levels))
            w_dim = shapes["synthesis.b4.conv1.affine.weight"][1]
            embed = shapes.get("mapping.embed.weight")
            z_dim = shapes["mapping.fc0.weight"][1] - (embed[0] if embed else 0)
            return cls(channels, z_dim, w_dim, embed[1] if embed else 0, layers)
        except (KeyError, IndexError) as error:
            name = error.args[0] if isinstance(error, KeyError) else "synthesis.b4.torgb.weight"
            raise UserError(f"there is no usable {name}, which every StyleGAN2 generator has") from None


# ---- the network


class Dense(nn.Module):
    """A layer of which the weights are kept as for a learning rate of 1, and scaled as it computes."""

    def __init__(self, width: int, out: int, rate: float = 1.0, start: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width) / rate)
        self.bias = nn.Parameter(torch.full((out,), start))
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width) to (B, out)."""
        return functional.linear(x, self.weight * (self.rate / sqrt(x.shape[1])), self.bias * self.rate)


class Styles(nn.Module):
    """From a latent, and a class, to a style."""

    w_avg: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.z_dim
        if config.c_dim:
            self.embed = Dense(config.c_dim, config.w_dim)
            width += config.w_dim
        for layer in range(config.num_layers):
            self.add_module(f"fc{layer}", Dense(width, config.w_dim, MAPPING_RATE))
            width = config.w_dim
        self.register_buffer("w_avg", torch.zeros(config.w_dim))
        self.config = config

    def forward(self, latent: Tensor, one_hot: Tensor | None) -> Tensor:
        """Map latents (B, z_dim), and classes (B, c_dim), to styles (B, w_dim)."""
        x = _normed(latent)
        if one_hot is not None:
            x = torch.cat([x, _normed(self.embed(one_hot))], dim=1)
        for layer in range(self.config.num_layers):
            x = _lrelu(self.get_submodule(f"fc{layer}")(x))
        return x


class Layer(nn.Module):
    """A convolution whose input channels are scaled by the style, with noise that is always the same."""

    noise_const: Tensor

    def __init__(self, width: int, out: int, w_dim: int, size: int, up: bool) -> None:
        super().__init__()
        self.affine = Dense(w_dim, width, start=1.0)
        self.weight = nn.Parameter(torch.randn(out, width, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(size, size))
        self.up = up

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, width, h, h) and styles (B, w_dim) to (B, out, size, size)."""
        scale = self.affine(style)
        # Scaling what goes in and what comes out is the same as scaling the weights of each image, and needs no
        # weights of each image.
        strength = scale.square() @ self.weight.square().sum((2, 3)).T
        x = x * scale[:, :, None, None]
        if self.up:
            x = functional.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = functional.conv2d(x, _fir(x), padding=1, groups=x.shape[1])
        else:
            x = functional.conv2d(x, self.weight, padding=1)
        x = x * (strength + EPSILON).rsqrt()[:, :, None, None]
        return _lrelu(x + self.noise_const * self.noise_strength + self.bias[:, None, None])


class ToRGB(nn.Module):
    """From features to colours."""

    def __init__(self, width: int, w_dim: int) -> None:
        super().__init__()
        self.affine = Dense(w_dim, width, start=1.0)
        self.weight = nn.Parameter(torch.randn(3, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, width, h, h) and styles (B, w_dim) to (B, 3, h, h)."""
        scale = self.affine(style) / sqrt(x.shape[1])
        return functional.conv2d(x * scale[:, :, None, None], self.weight) + self.bias[:, None, None]


class Block(nn.Module):
    """The layers of one size; the first has a constant instead of a layer that doubles the size."""

    def __init__(self, width: int, out: int, w_dim: int, size: int) -> None:
        super().__init__()
        if width:
            self.conv0 = Layer(width, out, w_dim, size, up=True)
        else:
            self.const = nn.Parameter(torch.randn(out, size, size))
        self.conv1 = Layer(out, out, w_dim, size, up=False)
        self.torgb = ToRGB(out, w_dim)
        self.first = not width

    def forward(self, x: Tensor | None, image: Tensor | None, style: Tensor) -> tuple[Tensor, Tensor]:
        """Map features and image of half the size to those of this size."""
        x = self.const.expand(len(style), -1, -1, -1) if x is None or self.first else self.conv0(x, style)
        x = self.conv1(x, style)
        colours = self.torgb(x, style)
        return x, colours if image is None else _doubled(image) + colours


class Synthesis(nn.Module):
    """From a style to an image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        before = 0
        for level, channels in enumerate(config.channels):
            self.add_module(f"b{4 << level}", Block(before, channels, config.w_dim, 4 << level))
            before = channels

    def forward(self, style: Tensor) -> Tensor:
        """Map styles (B, w_dim) to images (B, 3, resolution, resolution), about in [-1, 1]."""
        x: Tensor | None = None
        image: Tensor | None = None
        for block in self.children():
            x, image = block(x, image, style)
        assert image is not None
        return image


class StyleGAN2Net(nn.Module):
    """The generator, with constant noise and one style for all layers.

    Source: Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020, arXiv 1912.04958; the names of
    its tensors are those of StyleGAN2-ADA, 2020, arXiv 2006.06676. Differs from the authors' code: it computes in
    float32 all through, without the clamp at 256 of their float16 layers, and needs no compiled operation.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.mapping, self.synthesis = Styles(config), Synthesis(config)

    def forward(self, latent: Tensor, label: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Map latents (B, z_dim), and labels (B,) int64 where it takes some, to images, about in [-1, 1].

        Args:
            latent: (B, z_dim).
            label: (B,) int64 in [0, c_dim), where c_dim is not 0.
            truncation: 1 for styles as they are, 0 for the mean style. Below 1 images are better and less varied, and
                rare groups are rarer still (arXiv 2209.02836).
        """
        one_hot = None if label is None else functional.one_hot(label, self.config.c_dim).to(latent.dtype)
        style = self.mapping(latent, one_hot)
        if truncation != 1:
            style = torch.lerp(self.mapping.w_avg, style, truncation)
        return self.synthesis(style)


def _lrelu(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2) * sqrt(2)


def _normed(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + EPSILON).rsqrt()


def _fir(x: Tensor) -> Tensor:
    """Give the filter for each channel of x, with the gain for pixels that were put between."""
    taps = x.new_tensor(FIR)
    return (torch.outer(taps, taps) / 16).expand(x.shape[1], 1, 4, 4)


def _doubled(image: Tensor) -> Tensor:
    """Double the size: zeros between the pixels, padding (2, 1, 2, 1) and the filter, which is its own mirror image."""
    return functional.conv_transpose2d(image, _fir(image), stride=2, padding=1, groups=image.shape[1])


# ---- the file


class StyleGAN2(Generator):
    """A StyleGAN2 of a file."""

    def __init__(self, net: StyleGAN2Net, truncation: float, **about: Any) -> None:
        super().__init__(**about)
        self.net, self._truncation = net, truncation

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Map latents (B, z_dim) and labels (B,) to images (B, 3, size, size)."""
        return (self.net(latent, label, self._truncation) + 1) / 2


def load(
    address: str,
    device: torch.device,
    truncation: float = 1.0,
    labels: int | str | Sequence[str] = (),
    attribute: str = _wrapped.CLASS,
) -> StyleGAN2:
    """Open a StyleGAN2 generator in safetensors, with the names of StyleGAN2-ADA, such as `mapping.fc0.weight`.

    Its form is in the file's metadata, as `evenlens generate convert` writes it, or read off the tensors' shapes.

    Args:
        address: path of the file.
        device: where it computes.
        truncation: from 0, the mean style for all, to 1, none; see `StyleGAN2Net`.
        labels: names of the classes in their order, where it takes some; default: their numbers.
        attribute: what the classes are of.

    Raises:
        UserError: a damaged file, other weights, or a truncation or labels that are not allowed.
    """
    if isinstance(truncation, bool) or not isinstance(truncation, int | float) or not 0 <= truncation <= 1:
        raise UserError(f"truncation={truncation!r} is not allowed: it lies from 0 to 1, and 1 is none.")
    path = Path(address)
    net = read(path)
    names = _wrapped.label_names(labels, net.config.c_dim) if net.config.c_dim or labels else ()
    if names and not net.config.c_dim:
        raise UserError(f"{path} takes no labels: leave labels={labels} out.")
    settings = {"truncation": float(truncation)}
    return StyleGAN2(
        net.to(device).eval().requires_grad_(False), truncation, title=f"StyleGAN2 {path.stem}",
        latent_size=net.config.z_dim, size=net.config.resolution, labels=names, attribute=attribute if names else "",
        fingerprint=_wrapped.fingerprint([path], settings), settings=settings, device=device,
        num_parameters=sum(value.numel() for value in net.parameters()), num_bytes=path.stat().st_size,
    )  # fmt: skip


def read(path: Path) -> StyleGAN2Net:
    """Build the network of a file; errors as in `load`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys() if IGNORED not in name}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no complete safetensors file ({error}): copy it again.") from None
    try:
        return build(state, metadata.get(CONFIG, ""))
    except UserError as error:
        raise UserError(f"{path} holds no StyleGAN2 generator: {error}.") from None


def build(state: Mapping[str, Tensor], config: str = "") -> StyleGAN2Net:
    """Build a network from its tensors, each checked by name and shape.

    Args:
        state: tensors by the names of StyleGAN2-ADA, without resample_filter.
        config: the form as JSON; "" to read it off the shapes.

    Raises:
        UserError: what does not fit, as part of a sentence.
    """
    found = Config.from_shapes({name: tuple(value.shape) for name, value in state.items()})
    if config and json.loads(json.dumps(asdict(found))) != _json(config):
        raise UserError(f"its config {config} does not fit its tensors")
    if not all(re.fullmatch(r"[1-9]\d*", str(each)) for each in (*found.channels, found.z_dim, found.w_dim)):
        raise UserError(f"its tensors give an impossible form ({found})")
    with torch.device("meta"):
        net = StyleGAN2Net(found)
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    for name in sorted(wanted.keys() ^ state.keys()):
        raise UserError(f"{name} is missing" if name in wanted else f"{name} belongs to no StyleGAN2 generator")
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            raise UserError(f"{name} is {tuple(state[name].shape)}, where {shape} is wanted")
        if not state[name].is_floating_point() or not state[name].isfinite().all():
            raise UserError(f"{name} holds numbers that are no floats, or not finite")
    net.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return net


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UserError("its config in the metadata is no JSON") from None


def write(path: Path, net: StyleGAN2Net) -> None:
    """Write a network's tensors and form to a safetensors file, in one piece."""
    state = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    metadata = {"format": "pt", "architecture": "stylegan2", CONFIG: json.dumps(asdict(net.config))}
    with replacing(path) as part:
        part.write_bytes(save(state, metadata))
