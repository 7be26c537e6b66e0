"""The command `evenlens generate study`, thin."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal


def study(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML file that says what to make.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for everything that is made.")],
) -> None:
    """Make a whole study from one recipe: teacher, labels, audit, balance, students, comparison.

    A classifier labels what the teacher makes, students are distilled from
    balanced pairs, and another classifier judges them all. Each stage is a folder
    or file of its own below --out; a killed study goes on where it was.

    [bold]Examples[/bold]

      evenlens generate study recipes/generation/avatars.toml --out avatars
    """
    from evenlens import generation_study

    read, began = generation_study.read_study(recipe), time.perf_counter()
    with terminal.watching("study") as watch:

        def tell(text: str) -> None:
            passed = time.perf_counter() - began
            terminal.err.print(f"[dim]{passed:5.0f} s[/]  {escape(text)}", highlight=False, soft_wrap=True)

        done = generation_study.make(read, out, watch, tell)
    for attribute, found in done.variation.items():
        terminal.out.print(escape(f"{attribute}: total variation to equal shares"), highlight=False)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("generator")
        table.add_column("as the judge sees it", justify="right")
        for name, value in found.items():
            table.add_row(escape(name), f"{value:.3f}")
        terminal.out.print(table)
        terminal.out.print()
    terminal.out.print(f"Page: {escape(str(done.page.resolve()))}", soft_wrap=True, highlight=False)
