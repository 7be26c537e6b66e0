"""The commands `evenlens generate distil` and `evenlens generate teach`, thin."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from evenlens import terminal

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

Given = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as epochs=50; see the guide for all of them."),
]
ClassifierRun = Annotated[
    str,
    typer.Option(
        "--classifier",
        help="Run or file that says what an image shows: for terms that look through it, and to choose the epoch.",
    ),
]
Crop = Annotated[float, typer.Option(help="Share of the side that the classifier looks at, about the middle.")]


def distil(
    samples: Annotated[Path, typer.Argument(metavar="SAMPLES", help="Folder of what the teacher made.")],
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="New folder for the student.")],
    settings: Given = None,
    pairs: Annotated[
        Path | None, typer.Option(help="Learn from these images alone, as evenlens generate balance chose them.")
    ] = None,
    conditional: Annotated[
        bool, typer.Option("--conditional", help="A student that is asked for the group with each latent.")
    ] = False,
    classifier: ClassifierRun = "",
    crop: Crop = 1.0,
    attributes: Annotated[
        list[str] | None, typer.Option("--attribute", help="Whose shares choose the epoch; default: those of --pairs.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Wanted shares, as for evenlens generate audit.")
    ] = None,
    title: Annotated[str, typer.Option(help="Name of the student in tables; default: from what it is.")] = "",
) -> None:
    """Train a small generator to make what a teacher makes of the same latents.

    Balanced pairs alone do not balance a student: of fresh latents it makes what
    the teacher makes of them. With [bold]--conditional[/] it is asked for a group, and
    makes as many of each as are wanted.

    It learns by named terms, each with a weight: [bold]pixel[/], [bold]features[/],
    [bold]perceptual[/], [bold]adversarial[/], [bold]diversity[/], [bold]group[/]. A weight may change along
    the training: pixel="1->0". After each epoch it is scored on fixed latents by
    KID and total variation; the best epoch is kept, a grid of images is drawn,
    and a killed training goes on from there. Judge it by another classifier than
    the one it learned from.

    [bold]Examples[/bold]

      evenlens generate distil faces student epochs=50

      evenlens generate distil faces fair --pairs chosen.parquet --conditional --classifier runs/.../4f2a group=0.3
    """
    from evenlens.config import parse_overrides
    from evenlens.generation import balancing, distillation, targets
    from evenlens.generation.samples import Samples
    from evenlens.generation.students.settings import read_settings

    read = read_settings(parse_overrides(settings or []))
    chosen = balancing.read_chosen(pairs) if pairs else None
    found = Samples.open(samples)
    looks = _classifier(classifier, crop)
    with terminal.watching("distilling") as watch:
        folder = distillation.distil(
            found, student, read, chosen=chosen, conditional=conditional, classifier=looks,
            attributes=attributes or (), target=targets.parse(target or []), title=title, watch=watch,
        )  # fmt: skip
    _tell(folder)


def teach(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Whose training images are learned.")],
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="New folder for the generator.")],
    settings: Given = None,
    classifier: ClassifierRun = "",
    crop: Crop = 1.0,
) -> None:
    """Train a small generator from a data set's images: a teacher that works anywhere, without a download.

    It learns from the training images alone, biased as they are. Settings of the
    data are data.KEY=VALUE, as for evenlens train. A killed training goes on
    after its last epoch.

    [bold]Examples[/bold]

      evenlens generate teach avatars teacher data.size=32 data.num_train=6000 epochs=20

      evenlens generate teach fairface teacher data.size=64 channels=96 epochs=100
    """
    from evenlens.config import make_config, parse_overrides
    from evenlens.generation import distillation
    from evenlens.generation.students.settings import TEACHING, read_settings

    given = parse_overrides(settings or [])
    data = {key: value for key, value in given.items() if key.startswith("data.")}
    own = {key: value for key, value in given.items() if key not in data}
    read = read_settings({**TEACHING, **own})
    with terminal.watching("teaching") as watch:
        config, looks = make_config(dataset, "", data), _classifier(classifier, crop)
        folder = distillation.teach(config, teacher, read, classifier=looks, watch=watch)
    _tell(folder)


def _classifier(address: str, crop: float) -> FaceClassifier | None:
    from evenlens.generation import classifiers

    return classifiers.load(address, crop) if address else None


def _tell(folder: Path) -> None:
    from evenlens.generation.students.student_file import read_info
    from evenlens.report import student_page

    info = read_info(folder)
    page = student_page.write(folder, shlex.join(["evenlens", *sys.argv[1:]]))
    best = info["chosen"]
    apart = f", total variation {best['variation']:.3f}" if "variation" in best else ""
    terminal.out.print(
        f"{escape(info['title'])}: {info['num_parameters']:,} parameters, epoch {best['epoch']} of "
        f"{info['settings']['epochs']} (KID {best['kid']:.3f}{apart}): {escape(str(folder))}",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    terminal.out.print(f"Page: {escape(str(page.resolve()))}", soft_wrap=True)
