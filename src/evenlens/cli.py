"""The commands, thin: parse, call, print."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from evenlens import (
    __version__,
    cli_audit,
    cli_compress,
    cli_data,
    cli_export,
    cli_generate,
    cli_reproduce,
    cli_sketch,
    cli_sweep,
    cli_tone_leak,
    cli_track,
    cli_verify,
    registry,
    terminal,
)
from evenlens.cli_track import Track, find_runs
from evenlens.errors import UserError, unknown

app = typer.Typer(
    name="evenlens",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_generate.app, name="generate")
app.add_typer(cli_sweep.app, name="sweep")
app.command()(cli_audit.audit)
app.command()(cli_audit.lint)
app.command()(cli_compress.compress)
app.command()(cli_export.export)
app.command("tone-leak")(cli_tone_leak.tone_leak)
app.command()(cli_reproduce.reproduce)
app.command()(cli_sketch.sketch)
app.command()(cli_track.track)
app.command()(cli_verify.verify)
UsageError: Any = typer.BadParameter.__base__  # typer gives it no public name; the parent of all wrong arguments
INTERRUPTED = 130

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]


def main() -> None:
    """Run the command line; what a person did wrong is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text, nor a terminal UTF-8
    if os.environ.get("RANK", "0") != "0":  # one of several processes that torchrun started: the first one talks
        terminal.out.quiet = terminal.err.quiet = True
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _stop(str(error))
    except UsageError as error:
        _stop(error.format_message())
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        _stop(
            f"{error.strerror or error}{where}: nothing unfinished counts as a run; mend that, or choose another place "
            "(--runs, EVENLENS_CACHE), and the same command goes on."
        )
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:
        terminal.err.print("Stopped. The same command goes on from what is finished.")
    sys.exit(code)


def _stop(message: str) -> NoReturn:
    terminal.err.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(2)


def _version(value: bool) -> None:
    if value:
        terminal.out.print(f"evenlens {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """See how an image model treats groups of people, repair it, and prove it.

    Start with [bold]evenlens demo[/bold]: six methods on drawn faces, in three minutes, and a page to look at.
    Then [bold]evenlens list[/bold], and [bold]evenlens train avatars erm[/bold].
    """


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="Data set, as in `evenlens list datasets`.")],
    method: Annotated[str, typer.Argument(help="Method, as in `evenlens list methods`.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Hyper-parameters of the method, and data.*, net.*, train.* settings."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 1,
    runs: RunsFolder = Path("runs"),
    track: Track = None,
) -> None:
    """Train one method, select on validation data, test once.

    Writes a run folder with configuration, log, model, predictions and metrics. A run that is there already is
    shown, not made again; one that was killed goes on after its last epoch.

    [bold]Examples[/bold]

      evenlens train avatars erm

      evenlens train utkface group_dro step_size=0.05 train.epochs=20 data.root=~/data --seed 2

      evenlens train fairface erm data.target=age data.sensitive=race,gender net.backbone=resnet18
    """
    from evenlens import run as running
    from evenlens.config import make_config, parse_overrides
    from evenlens.following import following

    config = make_config(dataset, method, {"seed": seed, **parse_overrides(settings or [])})
    with terminal.watching(f"{dataset} {method}") as watch, following(runs, track or [], terminal.warn):
        made = running.train(config, runs, watch)
    terminal.print_run(made)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where runs and page go.")] = Path("evenlens-demo"),
    jobs: Annotated[
        int | None, typer.Option(help="Runs side by side; default: the cores, or one on a GPU.", min=1)
    ] = None,
) -> None:
    """Do the main job on drawn faces: which group does plain training fail, and which methods repair it?

    Needs no data, no network and no GPU. The faces are drawings whose attributes are set by us; they show how the
    tool works, and prove nothing about people.
    """
    from evenlens.recipes import read_recipe
    from evenlens.workers import Engine

    recipe = Path(__file__).with_name("demo.toml")
    page = folder / "report.html"
    if cli_sweep.sweep_and_show(read_recipe(recipe), folder / "runs", page, "evenlens demo", engine=Engine(jobs=jobs)):
        raise UserError("A run of the demo failed; the same command tries it again.")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Headline.")] = "evenlens report",
    baseline: Annotated[str | None, typer.Option(help="Method that the others are compared with.")] = None,
    pictures: Annotated[
        bool, typer.Option(help="Show test images that are predicted wrong; their licence goes with the page.")
    ] = True,
) -> None:
    """Write one self-contained HTML page about runs on the same data: tables, figures, images, how to repeat it.

    Of several tasks it writes a numbered page each, and one before them that ranks the methods over all tasks.
    """
    from evenlens.report import page as pages
    from evenlens.report import significance_page, summary

    tasks = summary.by_task(find_runs(folders))
    shown = {name: pages.show(summary.summarise(made), baseline) for name, made in tasks.items()}
    for number, (name, one) in enumerate(shown.items(), start=1):
        out = page if len(shown) == 1 else significance_page.numbered(page, number)
        said = title if len(shown) == 1 else f"{title}: {name}"
        written = pages.write(tasks[name], out, title=said, baseline=baseline, rows=one.rows, pictures=pictures)
        terminal.out.print(f"Page: {escape(str(written.resolve()))}", soft_wrap=True)
    if len(shown) > 1:
        cli_sweep.show_over_tasks(shown, page, False, title, "", None)


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="methods, datasets, views, metrics or settings; default: the first two.")
    ] = None,
) -> None:
    """List methods, data sets, views, metrics, or the settings of a run."""
    kinds = ("methods", "datasets", "views", "metrics", "settings")
    if what is not None and what not in kinds:
        raise unknown("kind of thing to list", what, kinds)
    for kind in (what,) if what else kinds[:2]:
        if kind in terminal.PLACES:
            terminal.list_cards(kind)
        elif kind == "metrics":
            terminal.list_metrics()
        else:
            terminal.list_settings()


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method, a data set, a view, a metric, or a run's folder.")],
) -> None:
    """Show the card of a method, data set, view or metric, or the numbers of a run."""
    from evenlens import metrics

    for package in terminal.PLACES.values():
        if name in registry.module_names(package):
            terminal.show_card(package, name)
            return
    if name in metrics.METRICS:
        metric = metrics.get(name)
        terminal.out.print(f"[bold]{metric.title}[/] ({metric.name})\n{metric.definition}\nSource: {metric.source}")
        terminal.out.print(f"Range {metric.range[0]:g} to {metric.range[1]:g}; {metric.direction} is better.")
    elif Path(name).exists():
        from evenlens.run import Run

        terminal.print_run(Run.open(name))
    else:
        known = list(metrics.METRICS)
        for package in terminal.PLACES.values():
            known += registry.module_names(package)
        raise unknown("method, data set, view, metric or run folder", name, known)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A run's folder or its model.safetensors.")],
    folder: Annotated[Path, typer.Argument(help="Folder of images; sub-folders too.")],
    table: Annotated[Path, typer.Option("--out", help="The .csv or .parquet file to write.")] = Path("predictions.csv"),
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out images that cannot be read, and say which.")] = False,
    groups: Annotated[
        Path | None,
        typer.Option(help="Table of file names and groups, for a method that predicts with the group."),
    ] = None,
) -> None:
    """Predict a folder of images: one row an image, with the class and the probability of each."""
    from evenlens import predict as predicting

    with terminal.watching("predicting") as watch:
        written = predicting.predict_folder(model, folder, table, skip_unreadable, watch, groups)
    terminal.out.print(f"{written.num_images:,} images: {escape(str(table))}", soft_wrap=True)
    for name, why in written.unreadable.items():
        terminal.err.print(f"left out: {escape(name)} ({escape(why)})", soft_wrap=True)


@app.command()
def leakage(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    of: Annotated[str, typer.Option(help="logits, or features, which need the images.")] = "logits",
    part: Annotated[
        str, typer.Option(help="test, having learned from val; or val, in two halves, which leaves the test closed.")
    ] = "test",
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this JSON file.")] = None,
) -> None:
    """Ask fresh discriminators whether what a model gives away tells the group: for all images, and in each label."""
    from evenlens import leakage as leaking
    from evenlens.run import Run

    with terminal.watching("leakage") as watch:
        found = leaking.measure(Run.open(folder), of, part, watch=watch)
    terminal.print_leakage(found)
    if json_out:
        found.write_json(json_out)
