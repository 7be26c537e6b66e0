"""The command `evenlens tone-leak`, thin: load photographs, measure views, print."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from evenlens import terminal
from evenlens.errors import UserError, unknown
from evenlens.files import write_json

if TYPE_CHECKING:
    from evenlens.config import RunConfig
    from evenlens.metrics import Interval
    from evenlens.tone_leak import ToneLeak

COLUMNS = {  # by what a number is multiplied, and its digits
    "darker": (1, 3), "ink": (1, 2), "grey told": (100, 1), "drawing told": (100, 1), "difference": (100, 1),
    "low-pass": (1, 2),
}  # fmt: skip
COLOURS = {"yes": "green", "no": "bold red", "not clear": "yellow", "undefined": "yellow"}
CAPTION = (
    "darker: change of the drawing when the photograph is darkened to half\n"
    "ink: in the darkest tenth, divided by that in the lightest\n"
    "told: % of the groups told right by a linear probe; difference: points less\n"
    "low-pass: correlation of photograph and drawing, both blurred\n"
    "below each number its 95 % interval over images"
)


def tone_leak(
    dataset: Annotated[str, typer.Argument(help="Data set, as in `evenlens list datasets`.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="data.* settings; and of one view, view.* options."),
    ] = None,
    view: Annotated[
        list[str] | None,
        typer.Option("--view", help="View to test; may be given again. Default: all that need no weights."),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write all numbers to this JSON file.")] = None,
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", help="Also write a PNG: photographs, dark to light, over each view's drawings."),
    ] = None,
) -> None:
    """Test whether drawings still show how dark skin is: each view against plain grey, on one data set.

    A view that is meant to take tone away must pass three tests. Exposure: it
    draws the same in half the light. Ink: it puts as much of it on the darkest
    images as on the lightest. Probe: a linear probe that sees 8 x 8 means tells
    the groups (data.sensitive) less well from drawings than from grey.

    A probe learns from at most 4,000 training images and is judged on at most
    4,000 validation images. Test images are not opened. A passed test is no
    proof: a network sees more than 8 x 8 means.

    [bold]Examples[/bold]

      evenlens tone-leak utkface --json tone.json

      evenlens tone-leak fairface --view weber_dog --view xdog data.sensitive=race data.size=64

      evenlens tone-leak utkface --view weber_dog view.sigma=2 --sheet sheet.png
    """
    from evenlens.config import parse_overrides

    names = _names(view)
    config, options = _settled(dataset, names, parse_overrides(settings or []))
    with terminal.watching(dataset) as watch:
        found, task = _measured(config, options, sheet, watch)
    _print(f"{dataset}: is {', '.join(task['sensitive'])} told from the drawing?", found)
    if json_out:
        content = {
            "dataset": dataset,
            **task,
            "views": [
                {"view": name, "options": options[name], "tone_leak": one.as_dict()} for name, one in found.items()
            ],
        }
        write_json(json_out, content)


def _names(given: list[str] | None) -> list[str]:
    """Check the names of views, each of which is taken once; without any, list those that read no files."""
    from evenlens import views
    from evenlens.config import PHOTOGRAPH
    from evenlens.view import View

    known = [name for name in views.names() if name != PHOTOGRAPH]
    for name in given or []:
        if name == PHOTOGRAPH:
            raise UserError(f"{PHOTOGRAPH} is the photograph, which a view is compared with: choose another --view.")
        if name not in known:
            raise unknown("view", name, known)
    return list(dict.fromkeys(given or [name for name in known if views.get(name).prepare is View.prepare]))


def _settled(dataset: str, names: list[str], settings: dict[str, Any]) -> tuple[RunConfig, dict[str, dict[str, Any]]]:
    """Give the configuration of the photographs, and the checked options of each view."""
    from evenlens import views
    from evenlens.config import SETTINGS, make_config

    options = {key.removeprefix("view."): value for key, value in settings.items() if key.startswith("view.")}
    others = {key: value for key, value in settings.items() if not key.startswith("view.")}
    for key in others:
        if not key.startswith("data."):
            raise unknown("setting of tone-leak", key, [name for name in SETTINGS if name.startswith("data.")])
        if key in ("data.view", "data.view_options"):
            raise UserError(
                f"{key} is not a setting here: name views with --view, and options of one as view.KEY=VALUE."
            )
    if options and len(names) != 1:
        raise UserError(
            f"view.{next(iter(options))} is an option of one view, and {len(names)} are tested: name one with --view."
        )
    return make_config(dataset, "", others), {name: views.settle(name, options) for name in names}


def _measured(
    config: RunConfig, options: dict[str, dict[str, Any]], sheet: Path | None, watch: Any
) -> tuple[dict[str, ToneLeak], dict[str, Any]]:
    """Load the photographs once, and measure each view; write the sheet if one is wanted."""
    from evenlens import run, tone_leak, view_sheet, views

    splits = run.load_data(config, watch).splits
    run.pin(config, splits)
    drawers = {name: views.build(name, settled) for name, settled in options.items()}
    for view in drawers.values():
        view.prepare()
    if sheet:
        view_sheet.write(drawers, splits.val, sheet)
    found = {
        name: tone_leak.measure(view, splits, watch=partial(_named, watch, name)) for name, view in drawers.items()
    }
    task = splits.task
    named = {"sensitive": list(task.sensitive), "group_names": list(task.group_names), "size": task.image_size}
    return found, {**named, "fingerprint": splits.fingerprint}


def _named(watch: Any, name: str, what: str, done: int, total: int) -> None:
    watch(name, done, total)


def _print(title: str, found: dict[str, ToneLeak]) -> None:
    table = Table(title=escape(title), caption=CAPTION, caption_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("view", overflow="fold")
    for name in COLUMNS:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for name, one in found.items():
        linear = one.linear
        numbers = (one.half, one.ink_ratio, linear.grey, linear.drawing, linear.difference, one.correlation)
        cells = [_cell(number, *shape) for number, shape in zip(numbers, COLUMNS.values(), strict=True)]
        table.add_row(escape(name), *cells)
    terminal.out.print(table)
    for name, one in found.items():
        terminal.out.print(f"[bold]{escape(name)}[/]")
        for verdict, sentence in zip(one.verdicts.values(), one.words, strict=True):
            head, _, rest = sentence.partition(":")
            said = Text.assemble((head, COLOURS[verdict]), f":{rest}")
            terminal.out.print(Padding(said, (0, 0, 0, 2)))


def _cell(number: Interval[float], factor: float, digits: int) -> str:
    value, low, high = (f"{factor * part:.{digits}f}" for part in number[:3])
    if number.value != number.value:
        return "[dim]undef.[/]"
    return value if number.low != number.low else f"{value}\n[dim]{low}…{high}[/]"
