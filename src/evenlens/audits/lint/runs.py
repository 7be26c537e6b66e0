"""Folders of runs -> a table of results: a row for each run, part, group and label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evenlens.config import read_toml
from evenlens.errors import UserError

if TYPE_CHECKING:
    import pyarrow


def read_runs(folder: Path) -> pyarrow.Table:
    """Write the runs in a folder as a table of text, with a column for each of their settings.

    Raises:
        UserError: there is no run, or one is damaged.
    """
    import pyarrow

    found = [
        path
        for path in sorted(folder.rglob("metrics.json"))
        if path.with_name("config.toml").is_file()
        and not any(name.startswith(".") for name in path.relative_to(folder).parts)
    ]
    if not found:
        raise UserError(f"{folder} is no run and holds none: name folders of runs, or tables of results themselves.")
    runs: dict[str, list[dict[str, str]]] = {}
    for path in found:
        run, of_run = _rows_of(path)
        runs.setdefault(run, of_run)  # a copy of a run is the same run
    rows = [row for of_run in runs.values() for row in of_run]
    text = pyarrow.large_string()
    names = dict.fromkeys(name for row in rows for name in row)
    return pyarrow.table({name: pyarrow.array([row.get(name) for row in rows], text) for name in names})


def _rows_of(path: Path) -> tuple[str, list[dict[str, str]]]:
    """Read a run's id, and its counts and settings as rows."""
    config = read_toml(path.with_name("config.toml"))
    flat = {
        f"{section}.{name}".strip("."): value if isinstance(value, str) else json.dumps(value)
        for section, part in config.items()
        for name, value in (part.items() if isinstance(part, dict) else [("", part)])
    }
    rows = []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        run = {
            "dataset": f"{flat.pop('dataset')} {flat.pop('data.fingerprint', '')[:8]}".strip(),
            "method": flat.pop("method"),
            "seed": flat.pop("seed"),
            "selection": f"{flat['select']} on val",  # a run scores its epochs on nothing else
        }
        flat.pop("data.root", None)
        name = str(content["id"])
        groups, classes = content["task"]["group_names"], content["task"]["class_names"]
        train = np.asarray(content["train_cells"])
        for part in ("val", "test"):
            counts = np.asarray(content[part]["counts"])
            for group, label in np.ndindex(len(groups), len(classes)):
                of_cell = counts[group, label]
                numbers = {"n": of_cell.sum(), "correct": of_cell[label], "n_train": train[label, group]}
                whom = {"part": part, "group": groups[group], "label": classes[label]}
                rows.append({**flat, **run, **whom, **{name: f"{number:d}" for name, number in numbers.items()}})
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(
            f"{path} is damaged ({why}): copy the run again, or delete its folder and make it again."
        ) from None
    return name, rows
