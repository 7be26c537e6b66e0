"""The commands, thin: parse, call, print."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evenlens import __version__, registry
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    from evenlens.report.summary import Row
    from evenlens.run import Run
    from evenlens.sweeps import Event

app = typer.Typer(
    name="evenlens",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""See how an image model treats groups of people, repair it, and prove it.

    Start with [bold]evenlens demo[/bold]: six methods on drawn faces, in three minutes, and a page to look at.
    Then [bold]evenlens list[/bold], and [bold]evenlens train avatars erm[/bold].""",
)
out = Console()
err = Console(stderr=True)

UsageError: Any = typer.BadParameter.__base__  # typer gives it no public name; the parent of all wrong arguments
INTERRUPTED = 130

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
PLACES = {"methods": "evenlens.methods", "datasets": "evenlens.datasets"}


def main() -> None:
    """Run the command line; what a person did wrong is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text, nor a terminal UTF-8
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
        err.print("Stopped. The same command goes on after the last finished epoch.")
    sys.exit(code)


def _stop(message: str) -> NoReturn:
    err.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(2)


def _version(value: bool) -> None:
    if value:
        out.print(f"evenlens {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


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

    config = make_config(dataset, method, {"seed": seed, **parse_overrides(settings or [])})
    with _watching(f"{dataset} {method}") as watch:
        made = running.train(config, runs, watch)
    _print_run(made)


@app.command()
def sweep(
    recipe: Annotated[Path, typer.Argument(help="A TOML file: a run's settings, in which a value may be a list.")],
    jobs: Annotated[
        int | None, typer.Option(help="Runs side by side; default: the cores, or one on a GPU.", min=1)
    ] = None,
    runs: RunsFolder = Path("runs"),
    page: Annotated[Path | None, typer.Option("--page", help="Also write the report to this HTML file.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
) -> None:
    """Make every run of a recipe that is not there yet, side by side, and show the table.

    [bold]Example[/bold] of a recipe:

      dataset = "avatars"
      method = ["erm", "oversampling"]
      seed = [1, 2, 3]
      train.epochs = 12
    """
    from evenlens.sweeps import read_recipe

    read = read_recipe(recipe)
    command = f"evenlens sweep {recipe}"
    failed = _sweep_and_show(read, runs, jobs, page, markdown, command)
    if failed:
        raise UserError(f"{len(failed)} of {len(read.configs)} runs failed; the same command tries them again.")


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
    from evenlens.sweeps import read_recipe

    recipe = Path(__file__).with_name("demo.toml")
    page = folder / "report.html"
    if _sweep_and_show(read_recipe(recipe), folder / "runs", jobs, page, False, "evenlens demo"):
        raise UserError("A run of the demo failed; the same command tries it again.")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    page: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Headline.")] = "evenlens report",
    baseline: Annotated[str | None, typer.Option(help="Method that the others are compared with.")] = None,
) -> None:
    """Write one self-contained HTML page about runs on the same data: tables, figures, images, how to repeat it."""
    from evenlens.report import page as pages

    written = pages.write(_find_runs(folders), page, title=title, baseline=baseline)
    out.print(f"Page: {escape(str(written.resolve()))}", soft_wrap=True)


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="methods, datasets, metrics or settings; default: the first two.")
    ] = None,
) -> None:
    """List methods, data sets, metrics, or the settings of a run."""
    kinds = ("methods", "datasets", "metrics", "settings")
    if what is not None and what not in kinds:
        raise unknown("kind of thing to list", what, kinds)
    for kind in (what,) if what else kinds[:2]:
        if kind in PLACES:
            _list_cards(kind)
        elif kind == "metrics":
            _list_metrics()
        else:
            _list_settings()


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, a data set, a metric, or a run's folder.")]) -> None:
    """Show the card of a method, data set or metric, or the numbers of a run."""
    from evenlens import metrics

    for package in PLACES.values():
        if name in registry.module_names(package):
            _show_card(package, name)
            return
    if name in metrics.METRICS:
        metric = metrics.get(name)
        out.print(f"[bold]{metric.title}[/] ({metric.name})\n{metric.definition}\nSource: {metric.source}")
        out.print(f"Range {metric.range[0]:g} to {metric.range[1]:g}; {metric.direction} is better.")
    elif Path(name).exists():
        from evenlens.run import Run

        _print_run(Run.open(name))
    else:
        known = [name for package in PLACES.values() for name in registry.module_names(package)] + list(metrics.METRICS)
        raise unknown("method, data set, metric or run folder", name, known)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A run's folder or its model.safetensors.")],
    folder: Annotated[Path, typer.Argument(help="Folder of images; sub-folders too.")],
    table: Annotated[Path, typer.Option("--out", help="The .csv or .parquet file to write.")] = Path("predictions.csv"),
    skip_unreadable: Annotated[bool, typer.Option(help="Leave out images that cannot be read, and say which.")] = False,
) -> None:
    """Predict a folder of images: one row an image, with the class and the probability of each."""
    from evenlens import predict as predicting

    with _watching("predicting") as watch:
        written = predicting.predict_folder(model, folder, table, skip_unreadable, watch)
    out.print(f"{written.num_images:,} images: {escape(str(table))}", soft_wrap=True)
    for name, why in written.unreadable.items():
        err.print(f"left out: {escape(name)} ({escape(why)})", soft_wrap=True)


# ---- what the commands share


@contextmanager
def _watching(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each thing that is being done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bars: dict[str, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"{escape(title)}: {what}", total=total)
            progress.update(bars[what], completed=done, total=total)

        yield watch


def _sweep_and_show(
    recipe: Any, runs: Path, jobs: int | None, page: Path | None, markdown: bool, command: str
) -> dict[str, str]:
    from evenlens.report import summary
    from evenlens.run import Run
    from evenlens.sweeps import sweep as run_sweep

    with _sweep_display(len(recipe.configs)) as (listen, watch):
        outcome = run_sweep(recipe.configs, runs, jobs, listen, watch)
    for name, why in outcome.failed.items():
        err.print(f"[bold red]failed:[/] {escape(name)}: {escape(why)}", soft_wrap=True)
    if not outcome.folders:
        return outcome.failed
    made = [Run.open(folder) for folder in outcome.folders]
    rows = summary.sort_rows(summary.summarise(made), recipe.baseline)
    if markdown:
        print(summary.to_markdown(rows))
    else:
        _print_rows(rows, recipe.title)
    for note in made[0].metrics["notes"]:
        out.print(f"[dim]Note: {escape(note)}[/]", soft_wrap=True)
    if page:
        from evenlens.report import page as pages

        pages.write(
            made, page, title=recipe.title, about=recipe.about, baseline=recipe.baseline, command=command, rows=rows
        )
        out.print(f"Page: {escape(str(page.resolve()))}", soft_wrap=True)
    return outcome.failed


@contextmanager
def _sweep_display(num_runs: int) -> Iterator[tuple[Callable[[Event], None], Callable[[str, int, int], None]]]:
    """Show one bar for the sweep and one for each run under way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from evenlens.sweeps import describe

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        whole = progress.add_task("runs", total=num_runs)
        bars: dict[Any, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"preparing {what}", total=total)
            progress.update(bars[what], completed=done, total=total, visible=done < total)

        def listen(event: Event) -> None:
            if event.kind == "started":
                bars[event.number] = progress.add_task(f"  {escape(describe(event.config))}", total=None)
            elif event.kind == "steps":
                progress.update(bars[event.number], completed=event.done, total=event.total)
            elif event.kind in ("done", "failed"):
                progress.remove_task(bars.pop(event.number))
            if event.kind in ("done", "failed", "skipped"):
                progress.advance(whole)

        yield listen, watch


def _find_runs(folders: list[Path]) -> list[Run]:
    from evenlens.run import Run

    found = []
    for folder in folders:
        if (folder / "metrics.json").is_file():
            found.append(Run.open(folder))
        elif folder.is_dir():
            found += [
                Run.open(path.parent)
                for path in sorted(folder.glob("**/metrics.json"))
                if not path.parent.name.startswith(".")  # of a run that is not complete
            ]
        else:
            raise UserError(f"There is no folder {folder}: name run folders, or a folder that holds some.")
    if not found:
        raise UserError(f"No complete run below {', '.join(map(str, folders))}: make one with evenlens train.")
    return found


def _print_rows(rows: list[Row], title: str) -> None:
    from evenlens import metrics
    from evenlens.report.summary import COLUMNS

    table = Table(
        title=escape(title), caption="95 % intervals over test images; seeds' spread is on the page", expand=False
    )
    table.add_column("method")
    for name in COLUMNS:
        direction = "↑" if metrics.get(name).direction == "higher" else "↓"
        table.add_column(f"{COLUMNS[name]} {direction}", justify="right")
    table.add_column("s", justify="right")
    for row in rows:
        numbers = [row.numbers[name] for name in COLUMNS]
        cells = [
            f"{n.value:.3f}\n[dim]{n.low:.2f} to {n.high:.2f}[/]" if n.value == n.value else "undefined"
            for n in numbers
        ]
        table.add_row(escape(row.title), *cells, f"{row.seconds:.0f}")
    out.print(table)


def _print_run(run: Run) -> None:
    config, measured = run.config, run.metrics["test"]["metrics"]
    table = Table("metric", "test", "95 % interval", title=f"{config.dataset} / {config.method}, seed {config.seed}")
    from evenlens import metrics
    from evenlens.report.summary import SHOWN

    for name in SHOWN:
        value, low, high = measured[name]
        spread = "" if low is None else f"{low:.3f} to {high:.3f}"
        table.add_row(metrics.get(name).title, "undefined" if value is None else f"{value:.3f}", spread)
    out.print(table)
    task, counts = run.metrics["task"], run.metrics["test"]["counts"]
    groups = Table("group", "images", "accuracy", "95 % interval")
    intervals = metrics.rate_intervals("accuracy", _array(counts))
    for number, name in enumerate(task["group_names"]):
        value, low, high, n = (float(field[number]) for field in intervals)
        groups.add_row(
            escape(name), f"{n:.0f}", *((f"{value:.3f}", f"{low:.3f} to {high:.3f}") if n else ("undefined", ""))
        )
    out.print(groups)
    for note in run.metrics["notes"]:
        out.print(f"[dim]Note: {escape(note)}[/]", soft_wrap=True)
    kept = f"Kept epoch {run.metrics['selected_epoch']} by {config.select} on validation data."
    out.print(f"{kept} Run: {escape(str(run.folder))}", soft_wrap=True)


def _array(nested: Any) -> Any:
    import numpy as np

    return np.array(nested)


def _list_cards(kind: str) -> None:
    table = Table(title=kind, title_justify="left", show_lines=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is")
    if kind == "methods":
        table.add_column("stage")
        table.add_column("needs groups in")
    for name, card in registry.describe(PLACES[kind]).items():
        more = [card.get("stage", "in"), card.get("needs_group", "training") or "nothing"] if kind == "methods" else []
        table.add_row(name, escape(card["summary"]), *more)
    out.print(table)


def _list_metrics() -> None:
    from evenlens import metrics

    table = Table("name", "what it is", "better")
    for metric in metrics.METRICS.values():
        table.add_row(metric.name, escape(metric.definition), metric.direction)
    out.print(table)


def _list_settings() -> None:
    from evenlens.config import SECTIONS, RunConfig

    table = Table("setting", "default", "what it is")
    for key in ("seed", "select", "precision"):
        field = RunConfig.model_fields[key]
        table.add_row(key, str(field.default), field.description)
    for section, kind in SECTIONS.items():
        for key, field in kind.model_fields.items():
            table.add_row(f"{section}.{key}", "" if field.default is None else str(field.default), field.description)
    out.print(table)


def _show_card(package: str, name: str) -> None:
    import inspect

    from evenlens import datasets, methods

    kind: Any = (methods if package.endswith("methods") else datasets).get(name)
    out.print(f"[bold]{escape(kind.title)}[/] ({name})\n")
    out.print(escape(inspect.getdoc(kind) or ""), highlight=False)
    if package.endswith("datasets"):
        out.print(
            f"\nLicence: {escape(kind.licence)}\nTo know: {escape(kind.caveat)}\nGet it: {escape(kind.how_to_get)}"
        )
        for protocol_name, protocol in kind.protocols.items():
            out.print(f"  data.protocol={protocol_name}: {escape(protocol.summary)}")
    options = [p for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        prefix = "" if package.endswith("methods") else "data."
        out.print(f"  {prefix}{option.name}={option.default}", highlight=False)
