"""The commands below `evenlens data`, thin: parse, call, print."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from evenlens import terminal
from evenlens.errors import UserError
from evenlens.files import write_json

if TYPE_CHECKING:
    from evenlens.config import Data
    from evenlens.data.own import Description
    from evenlens.data.source import Source

app = typer.Typer(
    no_args_is_help=True,
    help="Bring images and labels: look at them, decode them once, add to them, fetch what is free.",
    rich_markup_mode="rich",
)

Target = Annotated[str, typer.Argument(help="A data set's name, a folder of images, or a table that lists some.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="data.* settings, such as data.protocol=natural.")
]
Label = Annotated[str | None, typer.Option("--label", help="Column to predict.")]
Sensitive = Annotated[
    str | None, typer.Option("--sensitive", help="Columns whose crossing makes the groups, with commas between.")
]
PathColumn = Annotated[str | None, typer.Option("--path", help="Column with the images' paths; found by itself.")]
SplitColumn = Annotated[str | None, typer.Option("--split", help="Column with train, tune, val or test.")]
Unit = Annotated[
    str | None, typer.Option("--unit", help="Column with subject, lesion or photograph: stays in one part.")
]
Bins = Annotated[
    list[str] | None, typer.Option("--bins", help="Make levels of a number: age=18,40,65. May be given again.")
]
Size = Annotated[int | None, typer.Option("--size", help="Height and width of the decoded images in pixels.")]
Fit = Annotated[str | None, typer.Option("--fit", help="How they become square: stretch, short_side or center_crop.")]
Json = Annotated[Path | None, typer.Option("--json", help="Also write what was found to this JSON file.")]


@app.command()
def check(
    target: Target,
    settings: Settings = None,
    label: Label = None,
    sensitive: Sensitive = None,
    path: PathColumn = None,
    split: SplitColumn = None,
    unit: Unit = None,
    bins: Bins = None,
    size: Size = None,
    fit: Fit = None,
    images: Annotated[bool, typer.Option(help="Open every image, too; what is decoded is kept for training.")] = True,
    json_out: Json = None,
) -> None:
    """Find what is wrong: missing and damaged images, copies, labels, cells too small to conclude from.

    Ends with exit code 2 where something must be mended. Writes nothing beside
    the images.

    [bold]Examples[/bold]

      evenlens data check photos --label smiling --sensitive gender,race

      evenlens data check photos --label smiling --sensitive age --bins age=18,40

      evenlens data check utkface data.protocol=natural
    """
    from evenlens.data import checking

    name, kind, data, _ = _open(target, settings, label, sensitive, path, split, unit, bins, size, fit)
    with terminal.watching(name) as watch:
        found = checking.check(name, kind, data, images, lambda done, total: watch("images", done, total))
    terminal.print_counts(found.summary)
    for warning in found.warnings:
        terminal.out.print(f"[yellow]![/] {escape(warning)}", soft_wrap=True)
    _write_json(json_out, found.as_dict())
    if found.problems:
        raise UserError(f"{len(found.problems)} problems. " + " ".join(found.problems))
    terminal.out.print("Nothing has to be mended.")


@app.command()
def prepare(
    target: Target,
    settings: Settings = None,
    label: Label = None,
    sensitive: Sensitive = None,
    path: PathColumn = None,
    split: SplitColumn = None,
    unit: Unit = None,
    bins: Bins = None,
    size: Size = None,
    fit: Fit = None,
) -> None:
    """Decode a data set once, on all cores; a killed one goes on. A folder of your own becomes a named data set.

    What is what is written to [bold]dataset.toml[/bold] in the folder. From then on the
    folder is a data set like any other.

    [bold]Examples[/bold]

      evenlens data prepare photos --label smiling --sensitive gender --size 96

      evenlens data prepare utkface --size 128

      evenlens train photos erm
    """
    from evenlens.data import own
    from evenlens.data.source import load
    from evenlens.processes import cores

    name, kind, data, described = _open(target, settings, label, sensitive, path, split, unit, bins, size, fit)
    began, made = time.perf_counter(), 0

    with terminal.watching(name) as watch:

        def progress(done: int, total: int) -> None:
            nonlocal made
            made = done
            watch("images", done, total)

        loaded = load(name, kind, data, progress)
    seconds = time.perf_counter() - began
    parts = ", ".join(f"{len(getattr(loaded.splits, part)):,} {part}" for part in ("train", "val", "test"))
    speed = f"{made:,} images in {seconds:.1f} s, {made / seconds:,.0f} a second on {cores()} cores. " if made else ""
    terminal.out.print(f"{speed or 'Decoded before. '}{parts}. Fingerprint {loaded.splits.fingerprint}.")
    for note in loaded.notes:
        terminal.out.print(f"[yellow]![/] {escape(note)}", soft_wrap=True)
    if described:
        folder, description = described
        sizes = {"size": data.size} if data.size else {}
        written = own.write(folder, description.model_copy(update=sizes))
        more = [f"data.fit={data.fit}"] if fit else []  # what the description does not say
        then = " ".join(["evenlens train", str(folder), "METHOD", *more, *(settings or [])])
        terminal.out.print(f"{escape(str(written))} says what is what. Now: {escape(then)}", soft_wrap=True)


@app.command()
def summary(
    target: Target,
    settings: Settings = None,
    label: Label = None,
    sensitive: Sensitive = None,
    path: PathColumn = None,
    split: SplitColumn = None,
    unit: Unit = None,
    bins: Bins = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Also draw the counts: a .svg, .png or .html file.")
    ] = None,
    json_out: Json = None,
) -> None:
    """Count images by part, label and group, and say where there are too few to conclude anything.

    Opens no image.

    [bold]Examples[/bold]

      evenlens data summary photos data.sensitive=gender --plot counts.svg

      evenlens data summary fairface data.target=age data.sensitive=race,gender
    """
    from evenlens.data import checking

    name, kind, data, _ = _open(target, settings, label, sensitive, path, split, unit, bins, None, None)
    found = checking.summarise(name, kind, data)
    terminal.print_counts(found)
    for note in (*found.notes, *found.warnings):
        terminal.out.print(f"[yellow]![/] {escape(note)}", soft_wrap=True)
    _write_json(json_out, found.as_dict())
    if plot:
        from evenlens.report import counts

        counts.save(found, plot)
        terminal.out.print(f"Figure: {escape(str(plot))}", soft_wrap=True)


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="Your data set's folder, with its dataset.toml.")],
    inputs: Annotated[list[str], typer.Argument(help="What to add: folders, tables, or data sets by name.")],
    unit: Unit = None,
    prefixes: Annotated[
        bool, typer.Option(help="File names that begin with train_, val_ or test_ say the part.")
    ] = False,
    new_levels: Annotated[bool, typer.Option(help="Take values that the columns did not have before.")] = False,
    skip_bad: Annotated[bool, typer.Option(help="Leave out rows that cannot be taken, and list them.")] = False,
    json_out: Json = None,
) -> None:
    """Add labelled images to a data set. No image that was there moves to another part.

    New images keep the split that they bring, or get their part by a hash of what
    they are of (--unit). Copies are found by content and left out. Doing it twice
    changes nothing. Then go on training from a run.

    [bold]Examples[/bold]

      evenlens data add photos new_batch

      evenlens train photos erm base=runs/photos/erm/1a2b3c4d5e
    """
    from evenlens import datasets
    from evenlens.data import own

    if not (folder / own.FILE).is_file() and str(folder) in datasets.own_names():
        folder = datasets.data_root(None) / folder.name
    if not (folder / own.FILE).is_file():
        raise UserError(
            f"{folder} has no {own.FILE}: make one with evenlens data prepare, or a new data set of several with "
            "evenlens data merge."
        )
    _merge(folder, inputs, None, (), unit, prefixes, new_levels, skip_bad, json_out)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(help="The new data set's folder; its name is the data set's.")],
    inputs: Annotated[list[str], typer.Argument(help="Folders, tables, or data sets by name.")],
    label: Label = None,
    sensitive: Sensitive = None,
    unit: Unit = None,
    prefixes: Annotated[
        bool, typer.Option(help="File names that begin with train_, val_ or test_ say the part.")
    ] = False,
    new_levels: Annotated[bool, typer.Option(help="Take values that the first input's columns do not have.")] = False,
    skip_bad: Annotated[bool, typer.Option(help="Leave out rows that cannot be taken, and list them.")] = False,
    json_out: Json = None,
) -> None:
    """Make one data set of several, each image in the part that it has where it comes from.

    The first input says which values the columns have, and in which order; others
    are refused, or taken with --new-levels. Of copies the one in train is kept.

    [bold]Example[/bold]

      evenlens data merge faces fairface photos --label gender --sensitive race
    """
    if not label and not folder.joinpath("dataset.toml").is_file():
        raise UserError("Say which column is to be predicted with --label, and whose treatment with --sensitive.")
    _merge(folder, inputs, label, _words(sensitive), unit, prefixes, new_levels, skip_bad, json_out)


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="A data set that may be fetched freely.")],
    root: Annotated[Path | None, typer.Option("--root", help="Folder of data sets; or $EVENLENS_DATA.")] = None,
) -> None:
    """Fetch a data set whose terms allow it, checked by its checksum; one that broke off goes on.

    For all others it says what to fetch and where to put it.

    [bold]Example[/bold]

      evenlens data download cifar100 --root data
    """
    from evenlens import datasets
    from evenlens.config import data_root
    from evenlens.data import downloads

    kind = datasets.get(name, root)
    folder = data_root(root) / (kind.home or name)
    if not kind.downloads:
        raise UserError(f"{kind.title} cannot be fetched for you ({kind.licence}). {kind.how_to_get}".rstrip())
    folder.mkdir(parents=True, exist_ok=True)
    for wanted in kind.downloads:
        with terminal.watching(name, in_bytes=True) as watch:
            got = downloads.fetch(wanted, folder, lambda done, total: watch("bytes", done, total))
        if wanted.unpack:
            downloads.unpack(got, folder / wanted.into)
        terminal.out.print(f"{escape(str(got))}: complete.", soft_wrap=True)
    terminal.out.print(f"Terms: {escape(kind.licence)}. Please cite {escape(kind.citation)}.", soft_wrap=True)


# ---- what the commands share


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _open(
    target: str,
    settings: list[str] | None,
    label: str | None,
    sensitive: str | None,
    path: str | None,
    split: str | None,
    unit: str | None,
    bins: list[str] | None,
    size: int | None,
    fit: str | None,
) -> tuple[str, type[Source], Data, tuple[Path, Description] | None]:
    """Give name, class and settings of what was named; folder and description where it has no `dataset.toml` yet."""
    from evenlens import datasets
    from evenlens.config import make_config, parse_overrides
    from evenlens.data import own
    from evenlens.data.describing import describe

    short = {"data.target": label, "data.sensitive": list(_words(sensitive)), "data.size": size, "data.fit": fit}
    given = {**{key: value for key, value in short.items() if value}, **parse_overrides(settings or [])}
    data = make_config(target, "", given).data
    if target in datasets.names():
        if path or split or unit or bins:
            raise UserError(f"{target} knows its own columns: --path, --split, --unit and --bins are for your own.")
        return target, datasets.get(target), data, None
    place = Path(target).expanduser()
    if target in datasets.own_names(data.root) and not place.exists():
        place = datasets.data_root(data.root) / target
    elif not place.exists() and place.name == target:
        datasets.get(target, data.root)  # a name that is not known: says the nearest one
    edges = dict(_bins(pair) for pair in bins or [])
    folder, description = describe(
        place, data.target, data.sensitive or (), path=path, split=split, unit=unit, bins=edges
    )
    folder = folder.resolve()
    data = data.model_copy(update={"root": folder.parent})
    datasets.check_name(folder.name)
    described = (folder / own.FILE).exists()
    if described and place.is_file() and place.name not in (own.FILE, description.table):
        raise UserError(
            f"{folder / own.FILE} is about {description.table or 'its folders'}, not {place.name}: edit it."
        )
    fresh = None if described else (folder, description)
    return folder.name, own.kind(folder, description), data, fresh


def _bins(pair: str) -> tuple[str, tuple[float, ...]]:
    name, _, edges = pair.partition("=")
    try:
        found = tuple(float(edge) for edge in edges.split(","))
    except ValueError:
        found = ()
    if not name or not found:
        raise UserError(f"--bins {pair} is not right: write a column and rising numbers, such as age=18,40,65.")
    return name, found


def _merge(
    folder: Path,
    inputs: list[str],
    label: str | None,
    sensitive: tuple[str, ...],
    unit: str | None,
    prefixes: bool,
    new_levels: bool,
    skip_bad: bool,
    json_out: Path | None,
) -> None:
    from evenlens import merging

    try:
        with terminal.watching(folder.name) as watch:
            done = merging.merge(
                folder, inputs, label, sensitive, unit=unit, prefixes=prefixes, new_levels=new_levels,
                skip_bad=skip_bad, progress=lambda read, total: watch("files", read, total),
            )  # fmt: skip
    except merging.Refused as refused:  # the message names a few rows, the file all of them
        _write_json(json_out, {**vars(refused.found), "folder": str(folder)})
        raise
    for name, number in done.added.items():
        terminal.out.print(f"{escape(name)}: {number:,} added")
    listed = {
        "copies left out": [f"{name} = {other}" for name, other in done.copies],
        "rows left out": [f"{name}: {why}" for name, why in done.problems],
        "kept with their unit": done.moved,
    }
    for name, columns in done.lacking.items():
        terminal.out.print(f"{escape(name)} has no {escape(', '.join(columns))}: left empty", soft_wrap=True)
    if done.unused:
        terminal.out.print(f"{done.unused:,} left out: they are in no part where they come from")
    for what, lines in listed.items():
        if lines:
            more = f" and {len(lines) - 5:,} more" if len(lines) > 5 else ""
            terminal.out.print(f"{len(lines):,} {what}: {escape('; '.join(lines[:5]))}{more}", soft_wrap=True)
    parts = ", ".join(f"{number:,} {part}" for part, number in done.parts.items() if number)
    terminal.out.print(f"{escape(str(folder))}: {done.kept:,} kept; now {parts}.", soft_wrap=True)
    _write_json(json_out, {**vars(done), "folder": str(folder)})


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path:
        write_json(path, content)
