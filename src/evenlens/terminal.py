"""What the commands print: tables, cards, bars of progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evenlens import metrics, registry

if TYPE_CHECKING:
    from evenlens.data.checking import Summary
    from evenlens.leakage import Leakage
    from evenlens.report.summary import Row
    from evenlens.run import Run
    from evenlens.scheduling import Event
    from evenlens.sweep_records import Status

out = Console()
err = Console(stderr=True)
PLACES = {"methods": "evenlens.methods", "datasets": "evenlens.datasets", "views": "evenlens.views"}


@contextmanager
def watching(title: str, in_bytes: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each thing that is being done."""
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        bars: dict[str, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"{escape(title)}: {what}", total=total)
            progress.update(bars[what], completed=done, total=total)

        yield watch


def warn(message: str) -> None:
    """Print what a person should know, and go on."""
    err.print(f"[yellow]![/] {escape(message)}", soft_wrap=True, highlight=False)


@contextmanager
def sweep_display() -> Iterator[tuple[Callable[[Event], None], Callable[[str, int, int], None]]]:
    """Show one bar for the sweep, with the time that it will still take, and one for each run under way."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Task) -> Text:
            left = task.fields.get("left", task.time_remaining)
            return Text("" if left is None else f"{duration(left)} left")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=err, transient=True) as progress:
        whole = progress.add_task("runs", total=None, left=None)
        bars: dict[str, Any] = {}
        total = 0

        def watch(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(f"preparing {what}", total=total)
            progress.update(bars[what], completed=done, total=total, visible=done < total)

        def listen(event: Event) -> None:
            nonlocal total
            job = event.job
            if event.kind in ("waiting", "skipped"):
                total += 1
                progress.update(whole, total=total)
            elif event.kind == "started":
                bars[job.place] = progress.add_task(f"  {escape(job.name)}", total=None)
            elif event.kind == "steps" and job.place in bars:
                progress.update(bars[job.place], completed=job.done, total=job.total)
            elif event.kind != "steps" and job.place in bars:
                progress.remove_task(bars.pop(job.place))
            progress.update(whole, advance=event.kind in ("done", "failed", "skipped"), left=event.left)

        yield listen, watch


def duration(seconds: float) -> str:
    """Write seconds as a person would: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_status(status: Status) -> None:
    """Print how far the runs of a recipe are."""
    draws = f" Up to {status.undrawn} more, which the search draws by their scores, are not counted."
    more = draws if status.undrawn else ""
    out.print(f"{status.complete} of {status.total} runs are complete.{more}", highlight=False)
    for sweep in status.sweeps:
        left = "" if sweep["left"] is None else f", {duration(sweep['left'])} left"
        changed = " The recipe was changed since: it makes those of the older one." if sweep["changed"] else ""
        who = f"{sweep['host']}, process {sweep['pid']}"
        out.print(f"Being made by {escape(who)}, {sweep['slots']} at a time{left}.{changed}", soft_wrap=True)
    if status.ended and status.complete < status.total:
        said = {"ended": "ended", "cancelled": "was cancelled", "died": "was killed"}.get(status.ended, status.why)
        out.print(f"No sweep is under way; the last one {escape(said)}. The same command goes on.", soft_wrap=True)
    if not status.rows:
        return
    table = Table("run", "", "step", "what is known", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in status.rows:
        tries = f"try {row['tries']}" if row["tries"] > 1 else ""
        mark = "[bold red]failed[/]" if row["state"] == "failed" else escape(row["state"])
        steps = f"{row['done']} / {row['total']}" if row["total"] else ""
        table.add_row(escape(row["name"]), mark, steps, escape(row["message"] or tries))
    out.print(table)


def print_rows(rows: list[Row], title: str) -> None:
    """Print the narrow table of a comparison."""
    from evenlens.report.summary import COLUMNS

    caption = "below each number its 95 % interval over test images; the seeds' spread is on the page"
    table = Table(title=escape(title), caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name, short in COLUMNS.items():
        direction = "↑" if metrics.get(name).direction == "higher" else "↓"
        table.add_column(f"{short} {direction}", justify="right")
    table.add_column("s", justify="right")
    for row in rows:
        numbers = [row.numbers[name] for name in COLUMNS]
        cells = [
            f"{n.value:.3f}\n[dim]{n.low:.2f}-{n.high:.2f}[/]" if n.value == n.value else "undefined" for n in numbers
        ]
        table.add_row(escape(row.label), *cells, f"{row.seconds:.0f}")
    out.print(table)


def print_counts(summary: Summary) -> None:
    """Print how many images of each label and group are in each part; where these are many, labels and groups apart."""
    shown, left_out = 40, ""
    groups = {name: {part: counts[:, g] for part, counts in summary.counts.items()}
              for g, name in enumerate(summary.group_names)}  # fmt: skip
    lines: list[tuple[str, str, dict[str, int]]] = [
        (group, label, {part: int(values[c]) for part, values in parts.items()})
        for group, parts in groups.items()
        for c, label in enumerate(summary.class_names)
    ]
    if len(lines) > shown:
        lines = [(group, "", {part: int(v.sum()) for part, v in parts.items()}) for group, parts in groups.items()]
        lines += [
            ("", label, {part: int(counts[c].sum()) for part, counts in summary.counts.items()})
            for c, label in enumerate(summary.class_names)
        ]
    if len(lines) > 3 * shown:
        left_out = f"; {len(lines) - 3 * shown} more rows in --json"
    table = Table(
        title=escape(f"{summary.title}: {summary.target} by {', '.join(summary.sensitive)}"),
        caption=f"{summary.unused:,} images are not used{left_out}", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    table.add_column(escape(", ".join(summary.sensitive)))
    table.add_column(escape(summary.target))
    for part in summary.counts:
        table.add_column(part, justify="right")
    table.add_column("", no_wrap=True)
    first = next(iter(summary.counts), "")
    most = max((counts.get(first, 0) for _, _, counts in lines), default=0) or 1
    before = ""
    for group, label, counts in lines[: 3 * shown]:
        bar = "█" * round(16 * counts.get(first, 0) / most)
        numbers = [f"{counts[part]:,}" for part in summary.counts]
        table.add_row(escape(group if group != before or not label else ""), escape(label), *numbers, f"[dim]{bar}[/]")
        before = group
    totals = [f"[bold]{int(counts.sum()):,}[/]" for counts in summary.counts.values()]
    table.add_section()
    table.add_row("all", "", *totals, "")
    out.print(table)


def print_run(run: Run) -> None:
    """Print what one run measured on its test images."""
    config, measured = run.config, run.metrics["test"]["metrics"]
    table = Table("metric", "test", "95 % interval", title=f"{config.dataset} / {config.method}, seed {config.seed}")
    from evenlens.report.summary import SHOWN

    for name in SHOWN:
        value, low, high = measured[name]
        spread = "" if low is None else f"{low:.3f} to {high:.3f}"
        table.add_row(metrics.get(name).title, "undefined" if value is None else f"{value:.3f}", spread)
    out.print(table)
    task, counts = run.metrics["task"], run.metrics["test"]["counts"]
    groups = Table("group", "images", "accuracy", "95 % interval")
    intervals = metrics.rate_intervals("accuracy", np.array(counts))
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


def print_leakage(found: Leakage) -> None:
    """Print how well the group was told, beside chance."""
    caption = "balanced over the groups; 95 % interval over images, for these discriminators; bold: above chance"
    table = Table(title=f"the group, told from the {found.of} ({found.part})", caption=caption, box=box.SIMPLE_HEAD)
    for name in ("images of", "discriminator"):
        table.add_column(name)
    for name in ("told right", "95 % interval", "chance", "images"):
        table.add_column(name, justify="right")
    for told in found.told:
        value = f"{told.balanced_accuracy:.3f}"
        numbers = (f"[bold]{value}[/]" if told.low > told.chance else value, f"{told.low:.3f} to {told.high:.3f}",
                   f"{told.chance:.3f}")  # fmt: skip
        shown = ("undefined", "", "") if told.balanced_accuracy != told.balanced_accuracy else numbers
        table.add_row(escape(told.label or "all labels"), told.discriminator, *shown, f"{told.num_images:,}")
    out.print(table)


def list_cards(kind: str) -> None:
    """Print a line for each method, data set or view."""
    table = Table(title=kind, title_justify="left", show_lines=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is")
    if kind == "methods":
        table.add_column("stage")
        table.add_column("needs groups in")
    for name, card in registry.describe(PLACES[kind]).items():
        more = [card.get("stage", "in"), card.get("needs_group", "training") or "nothing"] if kind == "methods" else []
        table.add_row(name, escape(card["summary"]), *more)
    if kind == "datasets":
        from evenlens.config import data_root

        for path in sorted(data_root(None).glob("*/dataset.toml")):
            table.add_row(escape(path.parent.name), escape(f"Your own, in {path.parent}"))
    out.print(table)


def list_metrics() -> None:
    """Print a line for each metric."""
    table = Table("name", "what it is", "better")
    for metric in metrics.METRICS.values():
        table.add_row(metric.name, escape(metric.definition), metric.direction)
    out.print(table)


def list_settings() -> None:
    """Print a line for each setting of a run."""
    from evenlens.config import SCALARS, SECTIONS, RunConfig

    table = Table("setting", "default", "what it is")
    for key in SCALARS:
        field = RunConfig.model_fields[key]
        table.add_row(key, str(field.default), field.description)
    for section, kind in SECTIONS.items():
        for key, field in kind.model_fields.items():
            table.add_row(f"{section}.{key}", "" if field.default is None else str(field.default), field.description)
    out.print(table)


def show_card(package: str, name: str) -> None:
    """Print all that is known about a method, a data set or a view."""
    import inspect
    from importlib import import_module

    from evenlens.cards import read_doc
    from evenlens.config import keyword_options

    kind: Any = import_module(package).get(name)
    out.print(f"[bold]{escape(kind.title)}[/] ({name})\n")
    out.print(escape(inspect.getdoc(kind) or ""), highlight=False)
    if package.endswith("datasets"):
        out.print(
            f"\nLicence: {escape(kind.licence)}\nTo know: {escape(kind.caveat)}\nGet it: {escape(kind.how_to_get)}"
        )
        for protocol_name, protocol in kind.protocols.items():
            out.print(f"  data.protocol={protocol_name}: {escape(protocol.summary)}")
    told, explained = inspect.getdoc(kind) or "", read_doc(kind).arguments
    for option, default in keyword_options(kind).items():
        prefix = {PLACES["datasets"]: "data.", PLACES["views"]: "view."}.get(package, "")
        more = "" if f"    {option}: " in told else f"  ({explained[option]})"
        out.print(escape(f"  {prefix}{option}={default}{more}"), highlight=False)
