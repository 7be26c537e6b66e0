"""The command `evenlens generate label`, thin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.errors import UserError

if TYPE_CHECKING:
    from evenlens.generation import Labels
    from evenlens.generation.classifiers import FaceClassifier


def label(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images, or of samples.")],
    table: Annotated[Path, typer.Argument(metavar="LABELS", help="Table to write: .parquet or .csv.")],
    by: Annotated[
        list[str], typer.Option("--by", metavar="[NAME=]CLASSIFIER", help="What labels them; may be given again.")
    ],
    crop: Annotated[
        float,
        typer.Option(help="Share of the side that is looked at, about the middle; .625 where aligned as in FFHQ."),
    ] = 1.0,
    detect: Annotated[
        bool, typer.Option("--detect", help="Look for faces with OpenCV, and label each that is found.")
    ] = False,
    races: Annotated[int, typer.Option(help="Of the published network for faces: 7 or 4.")] = 7,
    features: Annotated[
        Path | None,
        typer.Option(help="Write what the first classifier's last layer sees to this .safetensors file, too."),
    ] = None,
    prediction_csv: Annotated[
        Path | None, typer.Option(help="Write the table that FairFace's prediction script writes, too.")
    ] = None,
) -> None:
    """Label images with classifiers: classes, probabilities and margins of each face, for generate audit and balance.

    CLASSIFIER is the folder of a run; the weights of FairFace's network (.pt or
    .safetensors); or an .onnx or TorchScript file with a .json file beside it.
    NAME= renames its attribute, or takes one of several. These are apparent
    attributes. Images that cannot be read, or without a face, have n_faces 0.

    [bold]Examples[/bold]

      evenlens generate label faces labels.parquet --by runs/utkface/erm/1a2b3c4d5e

      evenlens generate label faces labels.csv --by fair7.pt --by race4=fair4.pt --crop 0.625
    """
    if features and detect:
        raise UserError("--features are of whole images, and --detect labels parts of them: run it twice.")
    if detect and crop != 1:
        raise UserError("--crop is for aligned images, and --detect cuts faces out itself: leave one of them.")
    if table.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"{table} ends in '{table.suffix}': labels are written as .csv or .parquet.")
    from evenlens.generation import classifiers, face_csv, labelling, labels

    folder, ids = _images(images)
    judges = [classifiers.load(address, crop, races) for address in by]
    if prediction_csv:
        face_csv.check(prediction_csv, {name: levels for one in judges for name, levels in one.attributes.items()})
    if features:
        labelling.check_features_path(features)
    with terminal.watching("labelling") as watch:
        found = labelling.label_images(folder, ids, judges, detect=detect, watch=watch)
        if features:
            seen = labelling.features_of(folder, found.ids[found.n_faces > 0].tolist(), judges[0], watch)
            labelling.write_features(seen, features, judges[0].title)
    labels.write_labels(found, table)
    if prediction_csv:
        face_csv.write(found, prediction_csv)
    _print(found, judges)
    for path in filter(None, (table, features, prediction_csv)):
        terminal.out.print(f"Written: {escape(str(path))}", soft_wrap=True, highlight=False)


def _images(folder: Path) -> tuple[Path, list[str]]:
    """Give the folder that the images lie in, and their paths below it."""
    from evenlens.data.paths import IMAGE_SUFFIXES, list_images
    from evenlens.generation.samples import FOREIGN, INFO, Samples

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: name one that holds images.")
    if (folder / INFO).is_file() or any((folder / name).is_dir() for name in FOREIGN):
        samples = Samples.open(folder)
        return samples.images, samples.ids.tolist()
    ids = list_images(folder)
    if not ids:
        raise UserError(f"No image below {folder}: looked for files ending in {', '.join(IMAGE_SUFFIXES)}.")
    return folder, ids


def _print(found: Labels, judges: list[FaceClassifier]) -> None:
    """Say what was seen: shares of the classes among all faces, and how sure the classifiers were."""
    has = found.n_faces > 0
    images = len(np.unique(found.image))
    none = len(np.unique(found.image[~has]))
    terminal.out.print(f"{int(has.sum()):,} faces in {images:,} images; {none:,} without any.", highlight=False)
    for judge in judges:
        for name in judge.attributes:
            _print_attribute(found, name, judge.title, has)
    for note in found.notes:
        terminal.out.print(f"[yellow]![/] {escape(note)}", highlight=False)


def _print_attribute(found: Labels, name: str, by: str, has: np.ndarray) -> None:
    one = found.attributes[name]
    counts = np.bincount(one.codes[has], minlength=len(one.classes))
    said = f"by {by}"
    if one.margin is not None and has.any():
        said += f"; the class is {one.margin[has].mean():.2f} ahead of the next one, on average"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column(escape(name), overflow="fold")
    table.add_column("faces", justify="right")
    table.add_column("share, %", justify="right")
    for k in np.argsort(-counts, kind="stable").tolist():
        share = f"{100 * counts[k] / max(1, counts.sum()):.1f}"
        table.add_row(escape(one.classes[k]), f"{counts[k]:,}", share)
    terminal.out.print()
    terminal.out.print(table)
    terminal.out.print(escape(said), highlight=False)
