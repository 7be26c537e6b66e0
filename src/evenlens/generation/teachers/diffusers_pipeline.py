"""A diffusion model in a folder of the library diffusers: the latent is the noise that it starts from."""

from __future__ import annotations

import importlib
import importlib.util
import json
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evenlens.errors import UserError
from evenlens.generation.generator import Generator
from evenlens.generation.teachers import _wrapped

PIPELINES = ("DDPMPipeline", "DDIMPipeline")
MODEL, SCHEDULER = "unet", "scheduler"  # folders


class Diffusion(Generator):
    """An unconditional diffusion model whose steps are deterministic, so that a latent has one image."""

    def __init__(self, net: Any, scheduler: Any, steps: int, **about: Any) -> None:
        super().__init__(**about)
        self._net, self._scheduler, self._steps = net, scheduler, steps

    def draw(self, latent: Tensor, label: Tensor | None) -> Tensor:
        """Take the noise (B, 3 * size * size) away, step by step, from images (B, 3, size, size)."""
        image = latent.reshape(-1, 3, self.size, self.size)
        self._scheduler.set_timesteps(self._steps, device=self.device)
        for step in self._scheduler.timesteps:
            noise = self._net(image, step).sample
            image = self._scheduler.step(noise, step, image, eta=0.0).prev_sample
        return (image + 1) / 2


def load(address: str, device: torch.device, steps: int = 50) -> Diffusion:
    """Open `diffusers:FOLDER`, an unconditional DDPM or DDIM pipeline with weights in safetensors.

    Network and noise schedule are read one by one from their folders, so that no other class that the folder names is
    looked up. Nothing is fetched.

    Source: Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2021, arXiv 2010.02502, with eta = 0.

    Args:
        address: `diffusers:` and the folder.
        device: where it computes.
        steps: of the sampling, at least 1.

    Raises:
        UserError: the library is missing, no such folder, another pipeline, or no weights in safetensors.
    """
    folder = Path(address.removeprefix("diffusers:"))
    _wrapped.check_count("steps", steps, 1)
    _check_folder(folder)
    if importlib.util.find_spec("diffusers") is None:
        raise UserError(
            "Generators of diffusers take that library, which is not installed: pip install 'evenlens[diffusers]'."
        )
    diffusers: Any = importlib.import_module("diffusers")
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    try:
        net = diffusers.UNet2DModel.from_pretrained(**where, subfolder=MODEL, use_safetensors=True)
        scheduler = diffusers.DDIMScheduler.from_pretrained(**where, subfolder=SCHEDULER)
    except Exception as error:  # of many kinds
        raise UserError(
            f"diffusers cannot open {folder} ({_wrapped.in_brief(error)}): save the pipeline again."
        ) from None
    shape = net.config.sample_size
    size = shape if isinstance(shape, int) else shape[0]
    if (shape if isinstance(shape, int) else shape[1]) != size or net.config.in_channels != 3:
        raise UserError(
            f"{folder} makes {net.config.in_channels} channels of {shape} pixels: 3 and a square are wanted."
        )
    if getattr(net.config, "num_class_embeds", None):
        raise UserError(f"{folder} takes classes, which is not supported here: give it as module:function.")
    settings = {"steps": steps}
    weights = sorted((folder / MODEL).glob("*.safetensors"))
    files = [*weights, folder / MODEL / "config.json", folder / SCHEDULER / "scheduler_config.json"]
    return Diffusion(
        net.to(device).eval().requires_grad_(False), scheduler, steps, title=f"diffusers {folder.name}",
        latent_size=prod((3, size, size)), size=size, fingerprint=_wrapped.fingerprint(files, settings),
        num_parameters=sum(value.numel() for value in net.parameters()), settings=settings, device=device,
        num_bytes=sum(path.stat().st_size for path in weights),
    )  # fmt: skip


def _check_folder(folder: Path) -> None:
    """Refuse a folder that is no pipeline of a known kind, or has no safe weights, before the library sees it."""
    if not (folder / "model_index.json").is_file():
        raise UserError(f"There is no pipeline of diffusers in {folder}: it holds model_index.json.")
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'model_index.json'} is damaged ({_wrapped.in_brief(error)}): copy it again."
        ) from None
    if kind not in PIPELINES:
        raise UserError(
            f"{folder} is a {kind}, and {' and '.join(PIPELINES)} are supported: give others as module:function."
        )
    for name in (f"{MODEL}/config.json", f"{SCHEDULER}/scheduler_config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: save the pipeline again, with save_pretrained.")
    if not list((folder / MODEL).glob("*.safetensors")):
        raise UserError(
            f"{folder / MODEL} holds no weights in safetensors: save them with save_pretrained(folder, "
            "safe_serialization=True); a .bin is a pickle, and is not opened."
        )
