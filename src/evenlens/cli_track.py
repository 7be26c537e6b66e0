"""The command `evenlens track`, thin, and what other commands on runs share with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenlens import terminal
from evenlens.errors import UserError

if TYPE_CHECKING:
    from evenlens.run import Run

Track = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="TRACKER", help="Also show it in tensorboard, wandb or mlflow; several times."),
]


def track(
    folders: Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold some.")],
    to: Annotated[str, typer.Option("--to", help="tensorboard, wandb or mlflow.")],
) -> None:
    """Show complete runs in a tracker, from what their folders say; while they are made, --track does.

    Writes into the folder of the runs: tensorboard/, wandb/ (offline unless WANDB_API_KEY or WANDB_MODE is set), or
    mlflow.db.

    [bold]Example[/bold]

      evenlens track runs --to tensorboard
    """
    from evenlens import trackers

    trackers.check([to])
    found = find_runs(folders)
    trackers.copy_runs([run.folder for run in found], to)
    terminal.out.print(f"Runs in {to}: {len(found)}")


def find_runs(folders: list[Path]) -> list[Run]:
    """Open the complete runs among folders and below them.

    Raises:
        UserError: there are none.
    """
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
