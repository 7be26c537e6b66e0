"""The command `evenlens generate balance`, thin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.files import write_json

if TYPE_CHECKING:
    from evenlens.generation.balancing import Balanced

MOST = 60  # rows of a table


def balance(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Table of labelled images: CSV, TSV or Parquet.")],
    chosen: Annotated[Path, typer.Argument(metavar="CHOSEN", help="Table to write: .parquet or .csv.")],
    attributes: Annotated[
        list[str], typer.Option("--attribute", help="What to balance; given again: all combinations.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Wanted shares: uniform (default); race=White:.5,Black:.5 for one attribute, given again for others; "
            "or another table of labels, whose shares are wanted.",
        ),
    ] = None,
    total: Annotated[
        int, typer.Option(help="Rows to choose; default: as many as the scarcest group allows, each image once.", min=0)
    ] = 0,
    seed: Annotated[int, typer.Option(help="Another seed chooses other images.", min=0)] = 0,
    min_margin: Annotated[
        float, typer.Option(help="Leave out images whose class is less far ahead of the next one, in probability.")
    ] = 0.0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Draw the images of a group that is too small several times.")
    ] = False,
    faces: Annotated[
        str, typer.Option(help="Which images count: single (with exactly one face), first (their first), or confident.")
    ] = "single",
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this JSON file.")] = None,
) -> None:
    """Choose labelled images at random, so that groups have the wanted shares.

    LABELS is what evenlens generate label writes, or any table that evenlens
    generate audit reads. CHOSEN has a row for each draw, with the columns [bold]id[/],
    [bold]group[/] and one for each attribute: what a student is trained on.

    Balanced are apparent attributes, as a classifier sees them. What is not named
    is not balanced: of four equal races, eight in ten may be women.

    [bold]Examples[/bold]

      evenlens generate balance labels.parquet chosen.parquet --attribute skin

      evenlens generate balance labels.csv chosen.csv --attribute race --attribute gender --min-margin .2 --json b.json

      evenlens generate balance labels.csv chosen.csv --attribute sex --target sex=f:.6,m:.4 --total 9000 --replace
    """
    from evenlens.generation import balancing, read_labels, targets

    balancing.check_ending(chosen)
    names = list(dict.fromkeys(attributes))
    found = balancing.balance(
        read_labels(labels, names), names, targets.parse(target or [], names, faces), total=total, seed=seed,
        min_margin=min_margin, replace=replace, faces=faces,
    )  # fmt: skip
    balancing.write_chosen(found.chosen, chosen)
    if json_out:
        write_json(json_out, found.as_dict())
    _print(found)
    terminal.out.print(f"Chosen: {escape(str(chosen))}", soft_wrap=True, highlight=False)


def _print(found: Balanced) -> None:
    kept, chosen = found.faces, found.chosen
    table = Table(
        title=escape(" x ".join(chosen.attributes)), title_justify="left", caption_justify="left",
        caption=escape(_caption(found)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False,
    )  # fmt: skip
    table.add_column("group", overflow="fold")
    for head in ("target, %", "there", "unsure", "drawn", "different", "effective"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in sorted(found.groups, key=lambda one: one.available)[:MOST]:
        numbers = (one.available, one.dropped, one.drawn, one.different, round(one.effective))
        table.add_row(escape(one.name), f"{100 * one.target:.1f}", *(f"{number:,}" for number in numbers))
    terminal.out.print(table)
    terminal.out.print()
    lost = [f"{kept.without:,} without a face", f"{kept.several:,} with several (rule: {kept.rule})",
            f"{found.unlabelled:,} without a class"]  # fmt: skip
    terminal.out.print(f"{kept.images:,} images, of them {', '.join(lost)}.", highlight=False)
    terminal.out.print(f"{len(chosen):,} drawn, {100 * found.yielded:.1f} % of the images.", highlight=False)


def _caption(found: Balanced) -> str:
    lines = [f"the target is {found.target}; the scarcest group comes first"]
    if found.min_margin > 0:
        lines.append(f"unsure: their margin is below {found.min_margin:g}")
    if found.replace:
        lines.append("effective: as many images, each drawn once, say as much")
    if len(found.groups) > MOST:
        lines.append(f"{len(found.groups) - MOST:,} larger groups are in --json")
    return "\n".join(lines)
