"""The command `evenlens sweep`, thin: read the recipe, make the runs, show the table; and who asks how far it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from evenlens import terminal
from evenlens.cli_track import Track
from evenlens.errors import UserError
from evenlens.files import write_json

if TYPE_CHECKING:
    from evenlens.recipes import Recipe
    from evenlens.report.figures import Shown
    from evenlens.run import Run
    from evenlens.searching import Found

MAKE = "make"  # the hidden command that `evenlens sweep RECIPE` is
UNITS = {"s": 1, "m": 60, "h": 3600}
BYTES = {"MB": 10**6, "GB": 10**9}


class RecipeFirst(typer.core.TyperGroup):
    """A group whose first word may be a recipe: `evenlens sweep recipe.toml` makes it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put in the command that is left out."""
        named = not args or args[0] in self.commands or args[0] in ctx.help_option_names
        return super().parse_args(ctx, args if named else [MAKE, *args])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show what belongs to the command that is left out, as if it were of the group."""
        self.params, own = self.commands[MAKE].params, self.params
        super().format_help(ctx, formatter)
        self.params = own

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Say both ways to use it."""
        return ["RECIPE [OPTIONS]", "|", "COMMAND RECIPE"]


app = typer.Typer(cls=RecipeFirst, no_args_is_help=True)

RecipeFile = Annotated[Path, typer.Argument(help="A TOML file: a run's settings, in which a value may be a list.")]
Runs = Annotated[
    str, typer.Option("--runs", help="Folder that holds the runs, or an address such as s3://bucket/runs.")
]
Page = Annotated[
    Path | None,
    typer.Option(
        "--page", help="Also write the report to this HTML file; of several tasks, one numbered file each and this one."
    ),
]


def _making(help_text: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel="How the runs are made")


@app.callback()
def sweep() -> None:
    """Make every run of a recipe that is not there yet, side by side, and show the table.

    [bold]Example[/bold] of a recipe:

      dataset = "avatars"
      method = ["erm", "oversampling"]
      seed = [1, 2, 3]
      train.epochs = 12

    With search = 20, every method has its defaults and 19 draws from its own
    ranges; validation images choose one.

    A sweep that was killed or cancelled goes on with the same command, and so
    does a recipe that was changed: what is there is not made again. Several
    machines share the runs through a folder that all see, or a store's address.

    [bold]Examples[/bold]

      evenlens sweep recipes/utkface-race.toml --page report.html

      evenlens sweep recipe.toml --engine ray --gpu 0.25 --time-limit 2h

      evenlens sweep status recipe.toml

      evenlens sweep cancel recipe.toml
    """


@app.command(MAKE, hidden=True)
def make(
    recipe: RecipeFile,
    runs: Runs = "runs",
    page: Page = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    track: Track = None,
    engine: Annotated[str, _making("local: processes of this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[
        str | None, _making("Of the Ray cluster; default: the one that runs here, else one is started.", "HOST:PORT")
    ] = None,
    jobs: Annotated[int | None, _making("Runs side by side; default: as many as fit.")] = None,
    cores: Annotated[int, _making("Of each run.")] = 1,
    memory: Annotated[str | None, _making("That a run needs: no more go side by side than fit.", "4GB")] = None,
    gpu: Annotated[
        float | None, _making("Share of a GPU for each run, 0 to 1; default: a whole one, if there is any.")
    ] = None,
    retries: Annotated[int, _making("Times that a run is tried again whose process died.")] = 2,
    time_limit: Annotated[str | None, _making("For one run: 90s, 30m or 2h; default: any.", "2h")] = None,
) -> None:
    """Make every run of a recipe that is not there yet, side by side, and show the table."""
    from evenlens.following import following
    from evenlens.recipes import read_recipe
    from evenlens.stores import open_store
    from evenlens.workers import Engine, Resources

    given = Engine(engine, address, jobs, Resources(cores, _amount("--memory", memory, BYTES), gpu))
    how: dict[str, Any] = {
        "recipe": recipe,
        "engine": given,
        "retries": retries,
        "time_limit": _amount("--time-limit", time_limit, UNITS),
    }
    read = read_recipe(recipe)
    folder = open_store(runs).folder if "://" in runs else Path(runs)
    with following(folder, track or [], terminal.warn):
        failed = sweep_and_show(read, runs, page, f"evenlens sweep {recipe}", markdown, **how)
    if failed:
        raise UserError(f"{len(failed)} of {len(read.configs)} runs failed; the same command tries them again.")


@app.command()
def status(
    recipe: RecipeFile,
    runs: Runs = "runs",
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write it to this JSON file.")] = None,
) -> None:
    """Say how far a recipe is: from any machine that sees the runs.

    Counts the runs that are there of the recipe as it is now, and shows who
    makes the others, the time left, and which are running or have failed.

    [bold]Example[/bold]

      evenlens sweep status recipe.toml
    """
    from evenlens import recipes, stores, sweep_records, sweeps

    read = recipes.read_recipe(recipe)
    found = sweep_records.status(sweeps.complete(read.configs), recipe, stores.open_store(runs), read.undrawn)
    terminal.print_status(found)
    if json_out:
        write_json(json_out, found.as_dict())


@app.command()
def cancel(recipe: RecipeFile, runs: Runs = "runs") -> None:
    """Stop the sweep of a recipe: from any machine that sees the runs.

    It ends within seconds. What is complete stays, and what is under way goes
    on after its last epoch when the recipe is swept again.

    [bold]Example[/bold]

      evenlens sweep cancel recipe.toml
    """
    from evenlens import stores, sweep_records

    asked = sweep_records.cancel(recipe, stores.open_store(runs))
    for who in asked:
        terminal.out.print(f"Asked {escape(who)} to stop: it does within seconds, and complete runs stay.")
    if not asked:
        terminal.out.print(f"No sweep of {escape(str(recipe))} is under way in {escape(runs)}.", soft_wrap=True)


def _amount(option: str, text: str | None, units: dict[str, int]) -> Any:
    """Read a number with its unit."""
    if text is None:
        return None
    found = re.fullmatch(rf"(\d+(?:\.\d+)?)({'|'.join(units)})", text.strip())
    if not found or not float(found[1]):
        raise UserError(f"{option} {text} is not right: write a number with its unit, {' or '.join(units)}.")
    return int(float(found[1]) * units[found[2]]) or 1


# ---- what is shown


def sweep_and_show(
    read: Recipe,
    runs: Path | str,
    page: Path | None,
    command: str,
    markdown: bool = False,
    **how: Any,
) -> dict[str, str]:
    """Make a recipe's runs, print what they say, and write the page; give why a run failed, by its name."""
    from evenlens import searching, sweeps
    from evenlens.report import significance_page, summary
    from evenlens.run import Run

    with terminal.sweep_display() as (listen, watch):
        read, outcome = sweeps.sweep_recipe(read, runs, listen=listen, watch_images=watch, **how)
    for name, why in outcome.failed.items():
        terminal.err.print(f"[bold red]failed:[/] {escape(name)}: {escape(why)}", soft_wrap=True)
    if not outcome.folders:
        return outcome.failed
    every = [Run.open(folder) for folder in outcome.folders]
    searched = searching.choose(read.searches, every)
    chosen = searching.chosen_runs(searched) if searched else every
    tasks = summary.by_task(chosen)
    shown = {}
    for number, (name, made) in enumerate(tasks.items(), start=1):
        alone = len(tasks) == 1
        title = read.title if alone else f"{read.title}: {name}"
        if markdown and not alone:
            print(f"\n### {name}\n\n", end="")
        out = page if alone or not page else significance_page.numbered(page, number)
        found = searching.of_task(searched, made[0])
        shown[name] = _show_task(read, made, found, title, out, command, markdown)
    if len(tasks) > 1:
        show_over_tasks(shown, page, markdown, read.title, read.about, command)
    return outcome.failed


def _show_task(
    recipe: Recipe, made: list[Run], found: list[Found], title: str, page: Path | None, command: str, markdown: bool
) -> Shown:
    from evenlens.report import compression, compression_words, search, significance, summary
    from evenlens.report import page as pages

    rows = summary.sort_rows(summary.summarise(made), recipe.baseline)
    made_baseline = any(row.method == recipe.baseline for row in rows)  # its runs may have failed
    shown = pages.show(rows, recipe.baseline if made_baseline else None, sort=False)
    tested = significance.find(shown)
    if markdown:
        print(summary.to_markdown(rows))
        print(f"\n{significance.to_markdown(tested)}")
        if compressed := compression.find(shown):
            print(f"\n{compression_words.to_markdown(compressed)}")
    else:
        terminal.print_rows(rows, title)
        terminal.out.print(escape(significance.headline(tested)), soft_wrap=True, highlight=False)
    for line in search.printed(found):
        terminal.out.print(escape(line), soft_wrap=True, highlight=False)
    for note in made[0].metrics["notes"]:
        terminal.out.print(f"[dim]Note: {escape(note)}[/]", soft_wrap=True)
    if page:
        pages.write(
            made, page, title=title, about=recipe.about, baseline=recipe.baseline, command=command, rows=rows,
            found=found,
        )  # fmt: skip
        terminal.out.print(f"Page: {escape(str(page.resolve()))}", soft_wrap=True)
    return shown


def show_over_tasks(
    shown: dict[str, Shown], page: Path | None, markdown: bool, title: str, about: str, command: str | None
) -> None:
    """Show how methods rank over several tasks, and write the page that stands before theirs."""
    from evenlens.report import significance_page, significance_tasks

    found = significance_tasks.compare(shown)
    if markdown:
        print(f"\n### All tasks\n\n{significance_tasks.to_markdown(found)}")
    else:
        terminal.out.print(escape(significance_tasks.headline(found)), soft_wrap=True, highlight=False)
    if page:
        out = significance_page.write(found, page, title=title, about=about, command=command)
        terminal.out.print(f"Page over all tasks: {escape(str(out.resolve()))}", soft_wrap=True)
