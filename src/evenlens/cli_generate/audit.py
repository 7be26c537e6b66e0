"""The command `evenlens generate audit`, thin."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.cli_generate._tables import cell, table
from evenlens.errors import UserError, unknown
from evenlens.files import write_json

if TYPE_CHECKING:
    from evenlens.generation import Confusion, Labels

MOST = 30  # rows of a table
Json = Mapping[str, Any]


File = Annotated[
    Path, typer.Argument(metavar="LABELS", help="Table of labelled images: CSV, TSV or Parquet; see below.")
]
Attributes = Annotated[
    list[str] | None, typer.Option("--attribute", help="Column to describe; may be given again. Default: all.")
]
Joint = Annotated[
    list[str] | None, typer.Option("--joint", help="Columns to cross, as race,gender. May be given again.")
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Wanted shares: uniform (default); race=White:.5,Black:.5 for one column, given again for others; "
        "or another table of labels, whose shares are wanted.",
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(help="Labels of other images to compare with: with the same ids, image by image."),
]
Confusions = Annotated[
    list[str] | None,
    typer.Option(
        "--confusion",
        help="How the classifier errs: a table of images with the columns truth and prediction, or a run's folder. "
        "With several columns write race=FILE.",
    ),
]
Rule = Annotated[
    str,
    typer.Option(help="Which images count: single (with exactly one face), first (their first), or confident."),
]
FeaturesFile = Annotated[
    Path | None, typer.Option(help="Features of these images, (N, D) in .npy or .safetensors: for their quality.")
]
Reference = Annotated[
    Path | None, typer.Option(help="Features of real images, or of a teacher's, by the same network.")
]
Extractor = Annotated[str, typer.Option(help="What made the features; it is shown wherever numbers are.")]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of the images: the page then shows some of each category.")
]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write all findings to this JSON file.")]
Page = Annotated[Path | None, typer.Option("--page", help="Write the page to this HTML file, and JSON beside it.")]
Confidence = Annotated[float, typer.Option(help="Of every interval.")]
Title = Annotated[str, typer.Option(help="Headline; default: the file's name.")]


def audit(
    file: File,
    attributes: Attributes = None,
    joint: Joint = None,
    target: Target = None,
    against: Against = None,
    confusion: Confusions = None,
    faces: Rule = "single",
    features: FeaturesFile = None,
    reference: Reference = None,
    extractor: Extractor = "",
    images: Images = None,
    json_out: JsonOut = None,
    page: Page = None,
    confidence: Confidence = 0.95,
    title: Title = "",
) -> None:
    """Say what a generator makes, by group, from the labels that a classifier gave its images.

    Shares of each category with intervals, how far they are from a target, and
    how far they would be by chance; corrected for the classifier's own errors,
    if these are known. The categories are apparent attributes, not identities.

    LABELS has one row a face: the columns [bold]id[/] (image) and one for each
    attribute; [bold]face[/] (0, 1, ...) and [bold]n_faces[/] where there may be several; and
    [bold]race.probability.White[/] and so on, if known. An image without a face has
    n_faces 0 and no attributes. FairFace's prediction CSV is read as it is.

    [bold]Examples[/bold]

      evenlens generate audit labels.parquet --attribute race --attribute gender --joint race,gender --page audit.html

      evenlens generate audit student.csv --against teacher.csv --attribute race --confusion labelled.csv --json a.json
    """
    from evenlens import generation
    from evenlens.generation import targets

    _check_places(page, json_out, images)
    if (features is None) != (reference is None) or (features is None and extractor):
        raise UserError("--features, --reference and --extractor belong together: give all three, or none.")
    crossed = [[name.strip() for name in text.split(",") if name.strip()] for text in joint or []]
    joined = [name for group in crossed for name in group]
    labels = generation.read_labels(file, list(dict.fromkeys([*attributes, *joined])) if attributes else [])
    names = list(dict.fromkeys(attributes or labels.attributes))
    used = list(dict.fromkeys([*names, *joined]))
    others = generation.read_labels(against, used) if against else None
    found = generation.audit(
        labels, names, crossed, targets.parse(target or [], used, faces), others,
        read_confusions(confusion or [], names), faces, confidence, title=title,
    )  # fmt: skip
    quality = None
    if features and reference:
        one, two = generation.read_features(features), generation.read_features(reference)
        quality = generation.compare_features(one, two, extractor, labels, others, names[0], faces)
    content = {**found.as_dict(quality), "command": shlex.join(["evenlens", *sys.argv[1:]])}
    sheets = _sheets(labels, names, images, faces) if images else []
    _print(content)
    _write_all(content, sheets, page, json_out)


def _check_places(page: Path | None, json_out: Path | None, images: Path | None) -> None:
    if page and page.suffix == ".json":
        raise UserError(f"{page} would be overwritten by the JSON beside the page: name the page .html.")
    if images and not page:
        raise UserError("--images is for the page: say where to write it with --page audit.html.")
    if images and not images.is_dir():
        raise UserError(f"There is no folder {images}: name the one that holds the images.")


def read_confusions(texts: list[str], names: list[str]) -> dict[str, Confusion]:
    """Read the classifier's errors, by attribute."""
    from evenlens.generation import read_confusion

    found: dict[str, Confusion] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            if len(names) > 1:
                raise UserError(f"--confusion {text} is of one of {', '.join(names)}: write {names[0]}={text}.")
            name, path = names[0], text
        if name not in names:
            raise unknown("attribute with a confusion matrix", name, names)
        if name in found:
            raise UserError(f"--confusion is given twice for {name}: leave one.")
        found[name] = read_confusion(path, name)
    return found


def _sheets(labels: Labels, names: list[str], images: Path, faces: str) -> list[Any]:
    from evenlens.generation import examples
    from evenlens.report import generation_page

    generation_page.check_ids(labels.ids, labels.where)
    return [generation_page.sheet(name, examples(labels, name, faces=faces), images) for name in names]


def _write_all(content: dict[str, Any], sheets: list[Any], page: Path | None, json_out: Path | None) -> None:
    if json_out:
        write_json(json_out, content)
    if page:
        from evenlens.report import generation_page

        written = generation_page.write(content, page, sheets)
        terminal.out.print(f"Page: {escape(str(written.resolve()))}", soft_wrap=True)


# ---- what is printed


def _print(content: Json) -> None:
    from evenlens.generation import words

    terminal.out.print(escape(words.faces(content)))
    for part in content["parts"]:
        terminal.out.print()
        terminal.out.print(_categories(content, part))
        terminal.out.print()
        terminal.out.print(_distances(content, part))
        terminal.out.print()
        for sentence in words.sentences(content, part):
            terminal.out.print(escape(sentence))
    if content["quality"]:
        terminal.out.print()
        terminal.out.print(_quality(content["quality"]))
        terminal.out.print(escape(words.quality_sentence(content)))
    terminal.out.print()
    for caveat in content["caveats"]:
        terminal.out.print(f"[yellow]![/] {escape(caveat)}")


def _categories(content: Json, part: Json) -> Table:
    from evenlens.generation import words

    entries = sorted(part["categories"], key=lambda entry: -entry["count"])[:MOST]
    keys = [("share, %", "together", "share"), ("mean\nprobability", "mean_probability", "mean_probability"),
            ("corrected", "corrected", "corrected"), ("against", "other", "other"),
            ("difference,\npoints", "difference", "difference")]  # fmt: skip
    shown = [(head, ends, value) for head, ends, value in keys if entries[0][value]]
    if len(shown) > 2:  # what is left fits into 80 columns
        shown = [each for each in shown if each[1] != "mean_probability"]
    left_out = len(part["categories"]) - len(entries)
    caption = f"below each share its {words.level(content)} interval; the target is {part['target']}"
    caption += f"; {left_out} rarer categories are in --json and --page" if left_out else ""
    heads = [head for head, _, _ in shown]
    made = table(
        f"{part['name']}: {words.images(part)}", caption, part["name"], "images", heads[0], "target", *heads[1:]
    )
    for entry in entries:
        cells = [cell({**entry[ends], "value": entry[value]["value"]}, 100, 1) for _, ends, value in shown]
        row = [f"{entry['count']:,}", cells[0], f"{100 * entry['target']:.1f}", *cells[1:]]
        made.add_row(escape(entry["name"]), *row)
    return made


def _distances(content: Json, part: Json) -> Table:
    from evenlens.generation.words import DISTANCE_WORDS, chi_square_words, level

    keys = [("corrected", "corrected"), ("against", "other"), ("difference", "difference")]
    first = part["distances"]["total_variation"]
    shown = [(head, key) for head, key in keys if first[key]]
    digits = 3 if len(shown) > 2 else 4
    caption = f"{level(content)} intervals; ↓: nearer to the target is lower\n{chi_square_words(part['test'])}"
    made = table("", caption, "distance", "value", "by\nchance", *(head for head, _ in shown))
    for name, (title, direction, _) in DISTANCE_WORDS.items():
        number = part["distances"][name]
        floor = "" if number["floor"] is None else f"{number['floor']:.4f}"
        made.add_row(
            f"{title} {direction}",
            cell(number, 1, digits),
            floor,
            *(cell(number[key], 1, digits) for _, key in shown),
        )
    return made


def _quality(found: Json) -> Table:
    from evenlens.generation.words import QUALITY_WORDS

    rows = {"all images": found["all"], **found["groups"]}
    caption = f"n: of generated and as many reference images; KID ± SD over subsets; features: {found['extractor']}"
    if found["why_no_groups"]:
        caption += f"\nNot by group: {found['why_no_groups']}."
    if found["left_out"]:
        caption += f"\nToo few images: {', '.join(found['left_out'])}."
    heads = [f"{title.replace('Precision', 'Prec.')} {direction}" for title, direction, _ in QUALITY_WORDS.values()]
    made = table("quality", caption, found["attribute"] or "", "n", *heads)
    for name, one in rows.items():
        cells = ["undef." if one[key] is None else f"{one[key]:.3f}" for key in QUALITY_WORDS]
        cells[1] += "" if one["kid_sd"] is None else f"\n[dim]± {one['kid_sd']:.3f}[/]"
        made.add_row(escape(name), f"{one['n']:,}", *cells)
        if name == "all images":
            made.add_section()
    return made
