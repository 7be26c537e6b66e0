"""The command `evenlens reproduce`, thin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.errors import UserError
from evenlens.files import write_json

if TYPE_CHECKING:
    from evenlens.expected import Expected
    from evenlens.recipes import Recipe
    from evenlens.reproducing import Cost, Value
    from evenlens.run import Run

MARKS = {
    "within": "[green]within[/]",
    "outside": "[bold red]outside[/]",
    "undefined": "[bold red]undefined[/]",
    "not made": "[bold red]not made[/]",
}


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(help="A recipe that comes with evenlens, or the path of one; default: list what there is."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(help="Runs side by side; default: the cores, or one on a GPU.", min=1)
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write the comparison to this JSON file.")
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Write what came out into the recipe, as what is to be expected.")
    ] = False,
) -> None:
    """Make the runs of a recipe, and hold its numbers against those it is expected to give.

    A recipe's table "expected" says what came out when it was recorded: each
    value with a tolerance, the fingerprint of the data, versions and device.
    First you are told what the runs will cost here; the time is estimated from
    that of the record, by how long a training step takes on both machines.
    Ctrl-C stops at any time, and the same command goes on.

    Exit code 1 where a value is outside of its tolerance or undefined, and 2
    where data are missing, or are not those of the record; then nothing is run.
    Other versions or another device are told, and are no failure.

    [bold]Examples[/bold]

      evenlens reproduce

      evenlens reproduce drawn-faces --json comparison.json

      evenlens reproduce recipes/study-small/utkface-race-reduced.toml

      evenlens reproduce my-recipe.toml --record
    """
    from evenlens import reproducing

    if name is None:
        if record or json_out:
            raise UserError("--record and --json are of one recipe: name it, as in evenlens reproduce my-recipe.toml.")
        _print_list()
        return
    path = reproducing.find(name)
    recipe, expected = reproducing.read(path)
    if not expected and not record:
        raise UserError(
            f"{path} does not say what to expect: make its runs with evenlens sweep {path}, or write their numbers "
            f"into it with evenlens reproduce {path} --record."
        )
    if json_out and json_out.is_dir():
        raise UserError(f"--json {json_out} is a folder: name a file.")
    if record:
        _record(path, recipe, runs, jobs)
    elif expected:
        _compare(name, recipe, expected, runs, jobs, json_out)


def _compare(
    name: str, recipe: Recipe, expected: Expected, runs: Path, jobs: int | None, json_out: Path | None
) -> None:
    from evenlens import reproducing

    recipe = reproducing.complete(recipe, expected)
    spent = reproducing.cost(recipe, expected, runs, jobs)
    for line in _cost_lines(spent, expected):
        terminal.out.print(escape(line), soft_wrap=True, highlight=False)
    recipe, made = _sweep(recipe, runs, jobs)
    values = reproducing.compare(expected, reproducing.tables(recipe, made, expected.metrics))
    _print_values(recipe.title, values)
    for line in reproducing.differences(expected, made):
        terminal.out.print(f"Computed otherwise: {escape(line)}.", soft_wrap=True, highlight=False)
    if json_out:
        write_json(json_out, reproducing.as_dict(name, spent, expected, values, made))
    if said := reproducing.complaint(values):
        terminal.err.print(f"[bold red]Not reproduced:[/] {escape(said)}", soft_wrap=True, highlight=False)
        raise typer.Exit(1)
    terminal.out.print(f"[green]Reproduced:[/] all {len(values)} values are within their tolerance.", highlight=False)


def _record(path: Path, recipe: Recipe, runs: Path, jobs: int | None) -> None:
    from evenlens import expected, reproducing
    from evenlens.report.summary import COLUMNS

    recipe = reproducing.complete(recipe, None)
    expected.check_seeds(recipe.configs)
    reproducing.check_data(recipe.configs)
    recipe, made = _sweep(recipe, runs, jobs)
    step = reproducing.step_seconds(recipe.configs[0], reproducing.side_by_side(runs, jobs))
    expected.write(path, expected.record(made, reproducing.tables(recipe, made, [*COLUMNS]), step))
    terminal.out.print(f"Recorded: {escape(str(path))}", soft_wrap=True, highlight=False)


def _sweep(recipe: Recipe, runs: Path, jobs: int | None) -> tuple[Recipe, list[Run]]:
    """Make the runs that are missing; without all of them there is nothing to compare."""
    from evenlens.run import Run
    from evenlens.sweeps import sweep_recipe
    from evenlens.workers import Engine

    with terminal.sweep_display() as (listen, watch):
        recipe, outcome = sweep_recipe(recipe, runs, engine=Engine(jobs=jobs), listen=listen, watch_images=watch)
    for which, why in outcome.failed.items():
        terminal.err.print(f"[bold red]failed:[/] {escape(which)}: {escape(why)}", soft_wrap=True)
    if outcome.failed:
        raise UserError(
            f"{len(outcome.failed)} of {len(recipe.configs)} runs failed; the same command tries them again."
        )
    return recipe, [Run.open(folder) for folder in outcome.folders]


def _cost_lines(spent: Cost, expected: Expected) -> Iterator[str]:
    """Say what it will cost."""
    draws = f" Up to {spent.undrawn} more, which the search draws by their scores, may be there or not."
    more = draws if spent.undrawn else ""
    yield f"{spent.runs} runs, and those that they start from; {spent.there} of the {spent.runs} are there.{more}"
    yield f"Data: {', '.join(spent.data)}."
    if spent.seconds:
        here, there = terminal.duration(spent.seconds), terminal.duration(expected.seconds)
        yield (
            f"About {here} on this machine, {spent.jobs} side by side, and {max(1, round(spent.megabytes))} MB. That "
            f"is an estimate: {there} were measured for all runs, one after another, on {expected.device} "
            f"({expected.precision}), and a training step takes {spent.pace:.2g} times as long here. Reading images "
            "for the first time comes on top."
        )


def _print_values(title: str, values: Sequence[Value]) -> None:
    from evenlens.report.summary import COLUMNS

    for task in dict.fromkeys(value.task for value in values):
        table = Table(title=escape(f"{title}: {task}"), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in ("row", "metric"):
            table.add_column(column, overflow="fold")
        for column in ("expected", "tolerance", "found"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("verdict")
        row = ""
        for value in (value for value in values if value.task == task):
            numbers = [f"{value.expected:.4f}", f"{value.tolerance:.4f}"]
            numbers.append("" if value.found is None else f"{value.found:.4f}")
            metric = COLUMNS.get(value.metric, value.metric)
            table.add_row("" if value.row == row else escape(value.row), metric, *numbers, MARKS[value.verdict])
            row = value.row
        terminal.out.print(table)


def _print_list() -> None:
    """List what can be reproduced: what comes with the package, and in a copy of the project its recipes."""
    from evenlens import reproducing
    from evenlens.registry import describe

    cards = describe("evenlens.datasets")
    caption = "time: all runs, one after another, on the machine of the record"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption)
    table.add_column("recipe, and the data that it needs", no_wrap=True)
    for column in ("runs", "time", "MB"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, path in reproducing.known().items():
        recipe, expected = reproducing.read(path)
        if expected:
            names = dict.fromkeys(config.dataset for config in recipe.configs)
            data = ", ".join(cards.get(each, {}).get("title", each) for each in names)
            numbers = (str(len(recipe.configs)), terminal.duration(expected.seconds), f"{expected.megabytes:.0f}")
            table.add_row(f"{escape(name)}\n  [dim]{escape(data)}[/]", *numbers)
    terminal.out.print(table)
