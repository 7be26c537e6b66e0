"""The command `evenlens sketch`, thin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from evenlens import terminal
from evenlens.errors import UserError

if TYPE_CHECKING:
    from evenlens.sketching import Sketched

LISTED = 20  # images that cannot be read, by name


def sketch(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder of images, sub-folders too; or one image.")],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to write the drawings to.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the view, such as sigma=2.")
    ] = None,
    view: Annotated[str, typer.Option(help="What draws: grey, or a sketch.")] = "weber_dog",
    weights: Annotated[
        Path | None, typer.Option(help="File of weights, for a view that learned to draw; same as weights=FILE.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Bring the short side to so many pixels first; default: each at its own size.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write up to 24 photographs, each over its drawing, to this PNG file.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files of the same names that are in OUTPUT already.")
    ] = False,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Images that cannot be read are listed, and are no error.")
    ] = False,
) -> None:
    """Draw a folder of images: lines instead of skin, black on white.

    Names and sub-folders are kept: a/b.jpg becomes a/b.png, in 8 bits of grey, at its own size. What was drawn before
    from the same file in the same way is not drawn again, so that a killed run goes on. OUTPUT lies outside of INPUT.

    [bold]Examples[/bold]

      evenlens sketch photos drawings

      evenlens sketch photos drawings --view xdog sigma=2 --sheet sheet.png

      evenlens sketch photos drawings --view informative --weights netG_A_latest.pth

      evenlens sketch face.jpg drawings --size 256
    """
    from evenlens.config import parse_overrides
    from evenlens.sketching import sketch_folder

    options: dict[str, Any] = parse_overrides(settings or [])
    if weights is not None:
        if "weights" in options:
            raise UserError("--weights and weights= are both given: leave one.")
        options["weights"] = str(weights)
    if size is not None and size < 1:
        raise UserError(f"--size {size} is not allowed: the short side in pixels, at least 1.")
    with terminal.watching("sketching") as watch:
        done = sketch_folder(source, target, view, options, size=size or 0, overwrite=overwrite, sheet=sheet,
                             watch=watch)  # fmt: skip
    _tell(done, target, sheet)
    if done.unreadable and not skip_unreadable:
        raise UserError(
            f"{len(done.unreadable):,} of {len(done.pairs) + len(done.unreadable):,} images cannot be read: mend or "
            "remove them, or accept that with --skip-unreadable; the others are drawn."
        )


def _tell(done: Sketched, target: Path, sheet: Path | None) -> None:
    kept = f", {done.num_kept:,} were there" if done.num_kept else ""
    terminal.out.print(f"{done.num_made:,} drawn{kept}: {escape(str(target))}", soft_wrap=True, highlight=False)
    if sheet and done.pairs:
        terminal.out.print(f"Sheet: {escape(str(sheet))}", soft_wrap=True, highlight=False)
    for name, why in list(done.unreadable.items())[:LISTED]:
        terminal.err.print(f"left out: {escape(name)} ({escape(why)})", soft_wrap=True, highlight=False)
    if len(done.unreadable) > LISTED:
        terminal.err.print(f"left out: {len(done.unreadable) - LISTED:,} more")
