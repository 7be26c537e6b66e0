"""The command `evenlens generate convert`, thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from evenlens import terminal


def convert(
    pickle: Annotated[Path, typer.Argument(metavar="IN.pkl", help="Network pickle of StyleGAN2-ADA for PyTorch.")],
    weights: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="New file for the generator's weights.")],
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="You trust whoever made this pickle.")] = False,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds that reading the pickle may take.")] = 600.0,
) -> None:
    """Turn a StyleGAN2-ADA pickle into weights that need no trust.

    A pickle is a program. It is read once, in a process of its own that can
    neither connect anywhere nor start a program, by a reader that knows the few
    names that weights need and runs none of the source text in the pickle.

    Mind the licence: NVIDIA's networks are for research and evaluation only.

    [bold]Examples[/bold]

      evenlens generate convert ffhq.pkl ffhq.safetensors --trust-pickle
    """
    from evenlens.generation.teachers import converting

    found = converting.convert(pickle, weights, trust_pickle, time_limit)
    size = 4 << (len(found["channels"]) - 1)
    classes = f", {found['c_dim']} classes" if found["c_dim"] else ""
    terminal.out.print(
        f"StyleGAN2 of {size} px, latents of {found['z_dim']}{classes}, {found['num_parameters']:,} parameters: "
        f"{escape(str(weights))}", soft_wrap=True, highlight=False,
    )  # fmt: skip
