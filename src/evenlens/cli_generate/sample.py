"""The command `evenlens generate sample`, thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from evenlens import terminal
from evenlens.errors import UserError, unknown


def sample(
    generator: Annotated[str, typer.Argument(metavar="GENERATOR", help="What makes images; see below.")],
    folder: Annotated[Path, typer.Argument(metavar="SAMPLES", help="New folder for images and latents.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of this kind, such as truncation=0.7.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many images.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the latents; the same seed gives the same images.")] = 0,
    latents: Annotated[
        Path | None, typer.Option(help="Make them from these latents, (N, D) in .npy, or those of a folder of samples.")
    ] = None,
    only: Annotated[
        str, typer.Option(help="For a generator that takes labels: make this one alone; default: as many of each.")
    ] = "",
) -> None:
    """Have a generator make images, and keep the latent of each.

    GENERATOR is a student or teacher that evenlens made, or one from elsewhere: a
    folder with images/ and latents/, an .onnx file, TorchScript or torch.export
    (.pt, .pt2), a StyleGAN2 in .safetensors, diffusers:FOLDER, or a function of
    yours as module:function. A pickle is never opened; see [bold]evenlens generate
    convert[/].

    [bold]Examples[/bold]

      evenlens generate sample student faces --count 5000

      evenlens generate sample teacher.onnx faces --count 20000 --seed 1 range=unit
    """
    import torch

    from evenlens.config import parse_overrides
    from evenlens.generation import samples, teachers

    if latents is None and count < 1:
        raise UserError(f"--count {count} is not allowed: ask for at least one image.")
    made = teachers.load(generator, **parse_overrides(settings or []))
    given = None
    if latents is not None:
        found = samples.Samples.open(latents).latents if latents.is_dir() else samples.read_latents(latents)
        given = torch.from_numpy(found)
    label = None
    if only:
        if only not in made.labels:
            raise unknown(f"label of {made.title}", only, made.labels)
        label = torch.full((len(given) if given is not None else count,), made.labels.index(only))
    with terminal.watching("making") as watch:
        done = samples.make_samples(made, folder, count, seed, given, label, watch)
    terminal.out.print(f"{len(done):,} images of {escape(made.title)}: {escape(str(done.folder))}", soft_wrap=True,
                       highlight=False)  # fmt: skip
