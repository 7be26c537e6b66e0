"""The command `evenlens compress`, thin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.errors import UserError
from evenlens.files import replacing

if TYPE_CHECKING:
    from evenlens.candidates import Search

MARKS = {
    "within": "[green]within[/]",
    "not within": "[bold red]not\nwithin[/]",
    "cannot be told": "[yellow]cannot\nbe told[/]",
}


def compress(
    dataset: Annotated[str, typer.Argument(help="Data set, as in `evenlens list datasets`.")],
    method: Annotated[str, typer.Argument(help="Method that compresses, as in `evenlens list methods`.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="As for `evenlens train`, except sparsity: structure=weights."),
    ] = None,
    max_gap: Annotated[
        float,
        typer.Option("--max-gap", help="Bound on the worst excess accuracy gap: 0.02 is 2 points of accuracy."),
    ] = 0.02,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="Bound on the fall of accuracy over all images.")
    ] = 0.05,
    target: Annotated[str, typer.Option(help="What is to be small: latency or size.")] = "latency",
    sparsity: Annotated[
        str | None, typer.Option(help="Shares to remove, with commas between; default: six between 0.25 and 0.875.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 1,
    runs: Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")] = Path("runs"),
    jobs: Annotated[
        int | None, typer.Option(help="Runs side by side; default: the cores, or one on a GPU.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Export the chosen network to this folder.")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this JSON file.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="Write the frontier to this HTML file, and JSON beside it.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of every interval.")] = 0.95,
) -> None:
    """Find the smallest network that keeps every group's excess accuracy gap within a bound.

    Makes the dense network and one candidate of each sparsity, where they are
    not there yet, and judges them on validation images: a candidate is within
    where the whole intervals of its worst excess gap, and of the fall of its
    accuracy, are. The cheapest of these is chosen, and only then tested.

    Exit code 1 where none is within, 3 where it cannot be told.

    [bold]Examples[/bold]

      evenlens compress utkface fairgrape --max-gap 0.02 --target latency --page frontier.html

      evenlens compress utkface fairgrape --max-gap 0.03 --target size structure=weights objective=ceag --out model
    """
    from evenlens import compressing
    from evenlens.config import make_config, parse_overrides

    config = make_config(dataset, method, {"seed": seed, **parse_overrides(settings or [])})
    sparsities = _numbers(sparsity)
    _check_places(out, page)
    with terminal.sweep_display() as (listen, watch):
        found = compressing.search(config, max_gap, target, sparsities, runs, jobs, confidence, max_drop, listen, watch)
    _print(found)
    _write_all({**found.as_dict(), "command": _command(found, sparsity, settings or [])}, json_out, page)
    if out and found.chosen:
        _export(found.chosen.folder, out)
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--sparsity {text} is not right: write numbers with commas between, as 0.3,0.5,0.7.") from None


def _check_places(out: Path | None, page: Path | None) -> None:
    """Refuse, before anything is trained, where the results could not be put."""
    if page and page.suffix == ".json":
        raise UserError(f"{page} would be overwritten by the JSON beside the page: name the page .html.")
    if out and out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "export.json").is_file())):
        raise UserError(f"{out} holds other things than an export: name another folder with --out.")


def _write_all(content: dict[str, Any], json_out: Path | None, page: Path | None) -> None:
    if json_out:
        _write(json_out, json.dumps(content, indent=1, allow_nan=False))
    if page:
        from evenlens.report import frontier

        written = frontier.write(content, page)
        terminal.out.print(f"Page: {escape(str(written.resolve()))}", soft_wrap=True)


def _print(found: Search) -> None:
    """Print all candidates, and what was found."""
    for name, why in found.failed.items():
        terminal.err.print(f"[bold red]failed:[/] {escape(name)}: {escape(why)}", soft_wrap=True)
    title = f"{found.config.dataset} / {found.config.method}, seed {found.config.seed}: {found.structure} removed"
    level = f"{100 * found.confidence:g} %"
    packed = found.measure == "bytes_gzip"
    caption = (
        f"{level} intervals on {found.dense.accuracy.n:,.0f} validation images; bounds: gap {found.max_gap:g}, "
        f"fall of accuracy {found.max_drop:g}; "
        f"time of one image, torch on the CPU with one thread"
    )
    table = Table(title=escape(title), caption=caption, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    names = ("sparsity", "M not\nzero" if packed else "M para-\nmeters", "MB,\ngzip" if packed else "MB",
             "p50 ms\np90", "accuracy", "worst\ngroup", "worst\nexcess gap", "")  # fmt: skip
    for name in names:
        table.add_column(name, justify="left" if name in ("sparsity", "") else "right")
    for each in (found.dense, *found.candidates):
        chosen = each is found.chosen
        words = "dense" if each is found.dense else f"{each.sparsity:g}"
        verdict = "[bold green]chosen[/]" if chosen else MARKS.get(str(each.verdict), "")
        table.add_row(
            f"[bold]{words}[/]" if chosen else words,
            f"{(each.parameters_nonzero if packed else each.parameters) / 1e6:.3f}",
            f"{(each.bytes_gzip if packed else each.bytes) / 1e6:.3f}",
            f"{each.latency.p50:.2f}\n[dim]{each.latency.p90:.2f}[/]",
            *(_cell(number, 2) for number in (each.accuracy, each.worst_group_accuracy)),
            _cell(each.excess),
            verdict,
        )
        if each is found.dense:
            table.add_section()
    terminal.out.print(table)
    if found.tested:
        _print_tested(found)
    for text in found.sentences():
        terminal.out.print(escape(text), soft_wrap=True, highlight=False)
    for text in found.notes():
        terminal.out.print(f"[dim]Note: {escape(text)}[/]", soft_wrap=True, highlight=False)


def _print_tested(found: Search) -> None:
    tested, level = found.tested, f"{100 * found.confidence:g} % intervals"
    if tested is None:
        return
    caption = f"{level} on {tested.accuracy['dense'].n:,.0f} test images, which had no part in the choice"
    table = Table("", "chosen", "dense", title="Tested once", title_justify="left", caption=caption)
    table.add_row("worst excess gap", _cell(tested.excess), "")
    table.add_row("fall of accuracy", _cell(tested.drop), "")
    for name, by in (("accuracy", tested.accuracy), ("worst-group accuracy", tested.worst_group_accuracy)):
        table.add_row(name, _cell(by["chosen"]), _cell(by["dense"]))
    terminal.out.print(table)


def _cell(interval: Any, digits: int = 3) -> str:
    if interval is None:
        return ""
    value, low, high, _ = interval
    to = " to " if low < 0 else "-"
    return "undefined" if value != value else f"{value:.3f}\n[dim]{low:.{digits}f}{to}{high:.{digits}f}[/]"


def _command(found: Search, sparsity: str | None, settings: list[str]) -> str:
    """Write the command that finds the same, without the places where runs and results lie."""
    import shlex

    words = ["evenlens", "compress", found.config.dataset, found.config.method]
    words += ["--max-gap", f"{found.max_gap:g}", "--target", found.target, "--seed", str(found.config.seed)]
    words += ["--max-drop", f"{found.max_drop:g}"] if found.max_drop != 0.05 else []
    words += ["--sparsity", sparsity] if sparsity else []
    words += ["--confidence", f"{found.confidence:g}"] if found.confidence != 0.95 else []
    return shlex.join([*words, *settings])


def _export(folder: Path, out: Path) -> None:
    """Export the chosen run: as ONNX where that can be made, else as weights."""
    from evenlens import measuring
    from evenlens.run_folder import Run
    from evenlens.shipping import Wanted, export_run

    to = "onnx"
    try:
        measuring.check_installed()
    except UserError:
        to = "weights"
    with terminal.watching("export") as watch:
        place, content = export_run(Run.open(folder), Wanted(to), out, watch)
    for name in content["files"].values():
        terminal.out.print(escape(str(place / name)), soft_wrap=True)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
