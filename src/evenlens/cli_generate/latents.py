"""The command `evenlens generate latents`, thin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.errors import UserError
from evenlens.files import replacing, write_json

if TYPE_CHECKING:
    from evenlens.generation.fair_latents import FairLatents, Prior
    from evenlens.generation.latent_probe import Judged


From = Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder of samples of the generator.")]
LabelsFile = Annotated[Path, typer.Argument(metavar="LABELS", help="Table of labels of these samples.")]
Out = Annotated[Path, typer.Argument(metavar="OUT.npy", help="Latents to write; all numbers go to OUT.json.")]
Attributes = Annotated[list[str], typer.Option("--attribute", help="What to make fair; given again: all combinations.")]
Count = Annotated[int, typer.Option(help="How many latents.", min=1)]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", help="Wanted shares: uniform (default); race=White:.5,Black:.5; or a table of labels."),
]
Seed = Annotated[int, typer.Option(help="Of the probe and of the latents.", min=0)]
Address = Annotated[
    str, typer.Option(help="What made the samples: new latents are its own. Default: standard normal numbers.")
]
Rule = Annotated[
    str, typer.Option(help="Which images count: single (with exactly one face), first (their first), or confident.")
]
ProbeOut = Annotated[Path | None, typer.Option("--probe", help="Write the fitted probe to this .safetensors file.")]


def latents(
    samples: From,
    labels: LabelsFile,
    out: Out,
    attributes: Attributes,
    count: Count = 5000,
    target: Target = None,
    seed: Seed = 0,
    generator: Address = "",
    faces: Rule = "single",
    probe: ProbeOut = None,
) -> None:
    """Choose latents so that a generator, as it is, makes the wanted shares.

    A probe learns from labelled samples which group a latent leads to. Latents
    are drawn as the generator draws them, and taken or left so that each group
    gets its share; within a group, images are as varied as before. Make and audit
    the images:

      evenlens generate sample GENERATOR fair --latents OUT.npy

    It is cheap, and what a conditional student must beat. If the latent does not
    decide on the group, shares stay short of the target: that is said.

    [bold]Examples[/bold]

      evenlens generate latents samples labels.parquet fair.npy --attribute skin --count 5000

      evenlens generate latents samples labels.csv fair.npy --attribute race --attribute gender --generator teacher.onnx
    """
    import numpy as np

    from evenlens.generation import balancing, fair_latents, latent_probe, read_labels, targets
    from evenlens.generation.samples import Samples

    if out.suffix != ".npy":
        raise UserError(f"{out} ends in '{out.suffix}': latents are written as .npy.")
    if probe:
        latent_probe.check_probe_ending(probe)
    made, names = Samples.open(samples), list(dict.fromkeys(attributes))
    prior = _prior(generator, made.latents.shape[1])
    if not generator:
        fair_latents.check_normal(made.latents)
    wanted = targets.parse(target or [], names, faces)
    groups = balancing.grouped(read_labels(labels, names), names, wanted, faces)
    balancing.check_filled(groups, groups.tally.counts)
    known = fair_latents.labelled_latents(made, groups)
    with terminal.watching("fitting") as watch:
        fitted = latent_probe.fit_probe(known.latents, known.group, known.groups, names, seed, watch)
        found = fair_latents.draw_latents(fitted, prior, count, known.target, seed, watch)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part, part.open("wb") as file:
        np.save(file, found.latents.numpy())
    told = {**fitted.judged._asdict(), "learned": fitted.judged.learned}
    about = {"samples": str(samples), "labels": str(labels), "generator": generator or None, "attributes": names,
             "target": groups.target, "faces": groups.faces._asdict()}  # fmt: skip
    write_json(out.with_suffix(".json"), {**about, "probe": told, **found.as_dict()})
    if probe:
        fitted.save(probe)
    _print(found, fitted.judged, " x ".join(names), groups.target)
    terminal.out.print(f"Latents: {escape(str(out))}", soft_wrap=True, highlight=False)


def _prior(address: str, latent_size: int) -> Prior:
    from evenlens.generation import fair_latents, teachers

    if not address:
        return fair_latents.normal_prior(latent_size)
    made = teachers.load(address)
    if made.latent_size != latent_size or made.labels:
        what = "makes images of a given label" if made.labels else f"takes latents of {made.latent_size} numbers"
        raise UserError(
            f"{made.title} {what}, and the samples are of latents of {latent_size} numbers alone: name the generator "
            "that made them."
        )
    return made.latents


def _print(found: FairLatents, judged: Judged, name: str, target: str) -> None:
    table = Table(
        title=escape(name), title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
        show_edge=False, caption=escape(f"shares in %, as the probe sees them; the target is {target}"),
    )  # fmt: skip
    table.add_column("group", overflow="fold")
    for head in ("target", "before", "drawn for", "expected"):
        table.add_column(head, justify="right", no_wrap=True)
    for k, group in enumerate(found.groups):
        shares = (found.target, found.prior, found.aimed, found.expected)
        table.add_row(escape(group), *(f"{100 * each[k]:.1f}" for each in shares))
    terminal.out.print(table)
    terminal.out.print()
    lines = [
        f"Probe: {judged.kind}, log-loss {judged.loss:.4f} on {judged.num_judged:,} held-out latents, where the shares "
        f"alone have {judged.loss_of_shares:.4f} (difference ± {judged.standard_error:.4f}). It is right about "
        f"{100 * judged.accuracy:.1f} % of them; the largest group alone is {100 * judged.accuracy_of_shares:.1f} %.",
        f"{len(found):,} latents; {100 * found.acceptance:.1f} % of those looked at were accepted.",
    ]
    for line in lines:
        terminal.out.print(line, highlight=False)
    if not judged.learned:
        sentence = "The probe learned nothing that chance does not explain: expect the shares to stay as they were."
        terminal.out.print(f"[yellow]![/] {sentence}", highlight=False)
    elif found.distance(found.expected) > 0.01:
        terminal.out.print(
            f"[yellow]![/] The latents do not decide on the group well enough: total variation from the target is "
            f"expected to be {found.distance(found.expected):.3f}, and was {found.distance(found.prior):.3f}.",
            highlight=False,
        )  # fmt: skip
