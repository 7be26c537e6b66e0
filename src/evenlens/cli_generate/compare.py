"""The command `evenlens generate compare`, thin: open, compare, print."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.cli_generate._tables import cell, table
from evenlens.cli_generate.audit import Attributes, Confidence, Confusions, Joint, Target, Title
from evenlens.errors import UserError

MOST = 30  # rows of a table of categories
SIDES = 4  # generators that fit beside each other into 80 columns
Json = Mapping[str, Any]


Teacher = Annotated[str, typer.Argument(metavar="TEACHER", help="What the students learnt from; see below.")]
Students = Annotated[list[str], typer.Argument(metavar="STUDENT...", help="One to five students.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for images, labels, figures and the page.")]
By = Annotated[
    list[str], typer.Option("--by", metavar="[NAME=]CLASSIFIER", help="What labels the images; may be given again.")
]
Count = Annotated[int, typer.Option(help="Images of each.")]
Seed = Annotated[int, typer.Option(help="Of the latents, and of all other random numbers.")]
Extractor = Annotated[
    str, typer.Option(metavar="CLASSIFIER", help="Whose features quality is measured by; default: the first --by.")
]
Reference = Annotated[
    Path | None, typer.Option(help="Further images for quality: samples or any folder, as the balanced subset.")
]
Crop = Annotated[float, typer.Option(help="Share of the side that classifiers look at, about the middle.")]
Detect = Annotated[bool, typer.Option("--detect", help="Look for faces in the images, and label these.")]


def compare(
    teacher: Teacher,
    students: Students,
    out: Out,
    by: By,
    count: Count = 2000,
    seed: Seed = 0,
    attributes: Attributes = None,
    joint: Joint = None,
    target: Target = None,
    confusion: Confusions = None,
    extractor_run: Extractor = "",
    reference: Reference = None,
    crop: Crop = 1.0,
    detect: Detect = False,
    confidence: Confidence = 0.95,
    title: Title = "Teacher and students",
) -> None:
    """Compare a teacher with its students on the same latents: by group, by quality, by size and speed.

    All make images of the same latents, the same classifiers label them, and a
    page with figures shows what each makes, by group. Students that can be asked
    for a group are asked for each as often as the target wants it. TEACHER and
    STUDENT are what generate sample takes, CLASSIFIER is what generate label
    takes: let it be another one than the students were trained with.

    The folder gets compare.html, compare.json, figures (PNG, SVG, PDF), and all
    images with their labels. Stopped and run again, the command goes on with the
    images that are there.

    [bold]Examples[/bold]

      evenlens generate compare teacher plain conditional --out compared --by runs/judge --attribute race

      evenlens generate compare faces student --out compared --by runs/judge --joint race,gender --count 5000
    """
    from evenlens.cli_generate.audit import read_confusions
    from evenlens.generation import classifiers, comparing, targets, teachers
    from evenlens.generation.comparison_sides import Settings
    from evenlens.report import comparison_page

    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out names a folder.")
    judges = [classifiers.load(address, crop) for address in by]
    extractor = classifiers.load(extractor_run, crop) if extractor_run else None
    crossed = [[name.strip() for name in text.split(",") if name.strip()] for text in joint or []]
    names = attributes or [name for judge in judges for name in judge.attributes]
    used = list(dict.fromkeys([*names, *(name for group in crossed for name in group)]))
    settings = Settings(
        count, seed, tuple(names), crossed, targets.parse(target or [], used), read_confusions(confusion or [], names),
        detect=detect, confidence=confidence,
    )  # fmt: skip
    opened = {name: teachers.load(each) for name, each in zip(comparing.names_of(students), students, strict=True)}
    with terminal.watching("comparing") as watch:
        found = comparing.compare(
            teachers.load(teacher), opened, out, judges, settings, extractor=extractor, reference=reference,
            title=title, watch=watch,
        )  # fmt: skip
    page = comparison_page.write(found, out, shlex.join(["evenlens", *sys.argv[1:]]))
    _print(found.content)
    terminal.out.print(f"Page: {escape(str(page.resolve()))}", soft_wrap=True, highlight=False)


# ---- what is printed


def _print(content: Json) -> None:
    from evenlens.generation import comparison_words as words

    for text in words.warnings(content):
        terminal.out.print(f"[bold red]WARNING:[/] [red]{escape(text)}[/]", highlight=False)
    terminal.out.print(escape(words.headline(content)), highlight=False)
    for number, part in enumerate(content["generators"][0]["parts"]):
        terminal.out.print()
        if len(content["generators"]) <= SIDES:
            terminal.out.print(_shares(content, number, part))
            terminal.out.print()
        terminal.out.print(_distances(content, number))
    for each in (*_qualities(content), _likeness(content), _costs(content)):
        terminal.out.print()
        terminal.out.print(each)
    terminal.out.print()
    for caveat in content["caveats"]:
        terminal.out.print(f"[yellow]![/] {escape(caveat)}", highlight=False)


def _shares(content: Json, number: int, part: Json) -> Table:
    from evenlens.generation.words import level

    sides = [each["parts"][number]["categories"] for each in content["generators"]]
    order = sorted(range(len(sides[0])), key=lambda k: -sides[0][k]["count"])
    names = [each["name"] for each in content["generators"]]
    caption = f"below each share its {level(content)} interval; the target is {part['target']}"
    left_out = len(order) - MOST
    caption += f"; {left_out} rarer categories are on the page" if left_out > 0 else ""
    made = table(f"{part['name']}: share of images, %", caption, part["name"], "target", *names)
    for k in order[:MOST]:
        shown = [cell({**each[k]["together"], "value": each[k]["share"]["value"]}, 100, 1) for each in sides]
        made.add_row(escape(sides[0][k]["name"]), f"{100 * sides[0][k]['target']:.1f}", *shown)
    return made


def _distances(content: Json, number: int) -> Table:
    from evenlens.generation import comparison_words as words

    part = content["generators"][0]["parts"][number]
    fixed = bool(part["correction"])
    heads = [
        "total\nvariation ↓",
        "by\nchance",
        *(["corrected"] if fixed else []),
        "less teacher",
        "same as\nteacher, %",
    ]
    made = table(f"{part['name']}: how far from {part['target']}", "", "generator", *heads)
    for each in content["generators"]:
        mine = each["parts"][number]
        found, student = mine["distances"]["total_variation"], each["role"] == "student"
        cells = [cell(found, 1, 3), f"{found['floor']:.3f}", *([cell(found["corrected"], 1, 3)] if fixed else [])]
        cells += [f"{cell(found['difference'], 1, 3)}\n[dim]{words.nearer(found['difference'])}[/]" if student else ""]
        cells += [cell(mine["comparison"]["agreement"], 100, 1) if student else ""]
        made.add_row(escape(each["name"]), *cells)
    return made


def _qualities(content: Json) -> list[Table]:
    from evenlens.generation.comparison_words import AGAINST
    from evenlens.generation.words import QUALITY_WORDS

    tables = []
    for name in content["references"]:
        heads = [f"{title.replace('Precision', 'Prec.')} {direction}" for title, direction, _ in QUALITY_WORDS.values()]
        caption = f"features: {content['extractor']['title']}; KID ± SD over subsets; by group on the page"
        made = table(f"quality against {AGAINST[name]}", caption, "generator", "n", *heads)
        for each in content["generators"]:
            one = each["quality"][name]["all"]
            cells = ["undef." if one[key] is None else f"{one[key]:.3f}" for key in QUALITY_WORDS]
            cells[1] += "" if one["kid_sd"] is None else f"\n[dim]± {one['kid_sd']:.3f}[/]"
            made.add_row(escape(each["name"]), f"{one['n']:,}", *cells)
        tables.append(made)
    return tables


def _likeness(content: Json) -> Table:
    caption = "pixels: mean absolute difference from the teacher at the same latent, of the whole range"
    first = content["generators"][0]["diversity"]
    caption += f"; Vendi score of {first['n']:,} images" if first else ""
    made = table("likeness and variety", caption, "generator", "pixels, %", "seen as\nasked, %", "Vendi ↑",
                   "distance\nwithin", "distance\nacross")  # fmt: skip
    for each in content["generators"]:
        one = each["diversity"] or {}
        shown = ["" if one.get(key) is None else f"{one[key]:.2f}" for key in ("vendi", "within", "across")]
        asked = cell(each["asked"]["agreement"], 100, 1) if each["asked"] else ""
        pixels = cell(each["pixels"], 100, 1) if each["pixels"] else ""
        made.add_row(escape(each["name"]), pixels, asked, *shown)
    return made


def _costs(content: Json) -> Table:
    from evenlens.generation import comparison_words as words

    caption = f"median times in turns, {content['device']}; below: than the teacher"
    made = table("size and speed", caption, "generator", "parameters", "MB", "ms an image,\none at a time",
                   "ms an image,\n32 at a time")  # fmt: skip
    for each in content["generators"]:
        times, own = each["times"], each["role"] == "teacher"
        cells = [f"{each['num_parameters']:,}" if each["num_parameters"] else "not known",
                 f"{each['num_bytes'] / 1e6:,.1f}" if each["num_bytes"] else "not known"]  # fmt: skip
        cells += [
            words.milliseconds(each["speed"][batch]["ms"]) if each["speed"] else "not run" for batch in words.SPEEDS
        ]
        keys = [("num_parameters", "fewer", "more"), ("num_bytes", "smaller", "larger"),
                *((f"speed_{batch}", "faster", "slower") for batch in words.SPEEDS)]  # fmt: skip
        for k, (key, more, less) in enumerate(keys):
            cells[k] += f"\n[dim]{words.compared(times[key], more, less)}[/]" if times[key] and not own else ""
        made.add_row(escape(each["name"]), *cells)
    return made
