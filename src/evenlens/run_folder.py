"""The folder of a complete run: reading it, and writing what is in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evenlens import __version__, metrics, model_file
from evenlens.config import RunConfig, read_config, read_toml
from evenlens.data.dataset import FairDataset, Splits
from evenlens.data.tables import PARTS
from evenlens.errors import UserError
from evenlens.method import Method

FORMAT = 1  # of the folder's files
TRAINED = ("train", "tune", "base")  # parts whose images a network has learned from


@dataclass(frozen=True)
class Run:
    """A complete run, read from its folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | str) -> Run:
        """Open a run's folder.

        Raises:
            UserError: no run there, or one that another format of evenlens wrote.
        """
        run = cls(Path(folder))
        if not (run.folder / "metrics.json").is_file():
            raise UserError(f"{folder} is no run: a run's folder holds config.toml and metrics.json.")
        if not isinstance(run.metrics, dict):
            raise damaged(run.folder / "metrics.json", "it holds no object")
        if run.metrics.get("format") != FORMAT:
            raise UserError(
                f"{folder} was written in format {run.metrics.get('format')} by evenlens {run.metrics.get('version')}, "
                f"and this evenlens {__version__} reads format {FORMAT}: make the run again, or use that version."
            )
        return run

    @cached_property
    def config(self) -> RunConfig:
        """How it was made."""
        content = read_toml(self.folder / "config.toml")
        try:
            return read_config(content)
        except UserError as error:
            raise damaged(self.folder / "config.toml", error) from None

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` says."""
        return self._read("metrics.json", json.loads)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """What `environment.json` says."""
        return self._read("environment.json", json.loads)

    @cached_property
    def log(self) -> list[dict[str, float]]:
        """One entry an epoch."""
        return self._read("log.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])

    def required(self, name: str) -> list[Path]:
        """Give the folders of the runs that it started from by the name of a method's argument; they may be gone."""
        places = (self.metrics.get("requires") or {}).get(name) or []
        return [self.folder.absolute().parents[2] / place for place in places]

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        try:
            return parse((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise damaged(self.folder / name, error) from None

    def predictions(self, part: str = "test") -> dict[str, np.ndarray]:
        """Read the columns of predictions.parquet for "val" or "test"."""
        import pyarrow.parquet

        path = self.folder / "predictions.parquet"
        try:
            table = pyarrow.parquet.read_table(path, filters=[("part", "==", part)])
        except (OSError, pyarrow.ArrowException) as error:
            raise damaged(path, error) from None
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}

    def images(self) -> dict[str, np.ndarray]:
        """Read which images it was made with: `part` (train, tune, val, test or base), `file` and `digest`.

        `base` are the images that the runs it started from were trained on.
        """
        import pyarrow.parquet

        path = self.folder / "images.parquet"
        if not path.is_file():
            raise UserError(
                f"{self.folder} does not say which images it was trained on (there is no images.parquet; an earlier "
                "evenlens wrote none): delete it and make it again."
            )
        try:
            table = pyarrow.parquet.read_table(path)
        except (OSError, pyarrow.ArrowException) as error:
            raise damaged(path, error) from None
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}

    def load(self) -> Method:
        """Build what the run deploys, ready to predict photographs."""
        return model_file.load_model(self.folder / "model.safetensors")

    def load_method(self) -> Method:
        """Build the method as it was trained, for images as the run's view shows them."""
        return model_file.load_method(self.folder / "model.safetensors")


def damaged(path: Path, why: object) -> UserError:
    """Make the error for a file of a run that is missing or cannot be read."""
    return UserError(
        f"{path} is damaged ({' '.join(str(why).split())[:160]}): copy the run again, or delete its folder and make it "
        "again."
    )


def measure(counts: np.ndarray, train_cells: np.ndarray) -> dict[str, list[float | None]]:
    """Give every metric as [value, low, high] with its 95 % bootstrap interval; undefined is null."""
    measured = {}
    for name, interval in metrics.bootstrap_all(counts, train_cells=train_cells).items():
        numbers = (interval.value, interval.low, interval.high)
        measured[name] = [None if np.isnan(number) else round(float(number), 6) for number in numbers]
    return measured


def write_predictions(path: Path, parts: dict[str, tuple[FairDataset, Tensor]]) -> None:
    """Write one row an image: part, index, file, label, prediction, group, attributes and logits."""
    import pyarrow
    import pyarrow.parquet

    tables = []
    for name, (part, logits) in parts.items():
        columns: dict[str, Any] = {
            "part": [name] * len(part),
            "index": part.rows.numpy(),
            "file": list(part.names),
            "label": part.label.cpu().numpy(),
            "prediction": logits.argmax(1).numpy(),
            "group": part.group.cpu().numpy(),
        }
        for column, values in part.attributes.items():
            levels = np.array([*values.levels, ""])
            columns[f"attribute.{column}"] = levels[values.codes]
        for number in range(logits.shape[1]):
            columns[f"logit.{number}"] = logits[:, number].numpy()
        tables.append(pyarrow.table(columns))
    pyarrow.parquet.write_table(pyarrow.concat_tables(tables), path, compression="zstd")


def write_images(path: Path, splits: Splits, started_from: Sequence[Run]) -> None:
    """Write down which images were trained on, selected on and tested on, and what `started_from` were trained on."""
    import pyarrow
    import pyarrow.parquet

    columns: dict[str, list[np.ndarray]] = {"part": [], "file": [], "digest": []}

    def add(part: str, names: Sequence[str] | np.ndarray, digests: np.ndarray) -> None:
        columns["part"].append(np.full(len(names), part, dtype=object))
        columns["file"].append(np.asarray(names, dtype=object))
        columns["digest"].append(digests)

    for part in PARTS:
        if part != "tune" or splits.tune is not splits.train:
            add(part, getattr(splits, part).names, getattr(splits, part).digests)
    for run in started_from:
        images = run.images()
        trained = np.isin(images["part"], TRAINED)
        add("base", images["file"][trained], images["digest"][trained])
    table = pyarrow.table({name: np.concatenate(values) for name, values in columns.items()})
    pyarrow.parquet.write_table(table, path, compression="zstd")


def refuse_seen(run: Run, dataset: str, splits: Splits) -> None:
    """Refuse to start from a run that was trained on an image that is to be selected or tested on.

    A copy is found by its content, whatever its name. An image that this run had held out is no reason: if it has a
    copy among the training images of the same data set, that was reported with the data.

    Args:
        run: to start from.
        dataset: name of the data set.
        splits: its parts.

    Raises:
        UserError: saying how many there are, and which.
    """
    images = run.images()

    def those(*parts: str) -> np.ndarray:
        return np.isin(images["part"], parts)

    trained = {*images["digest"][those("train", "tune")].tolist()}
    inherited = {*images["digest"][those("base")].tolist()} - trained
    there = those("val", "test") if dataset == run.config.dataset else those()
    held_out = {*zip(images["file"][there], images["digest"][there].tolist(), strict=True)}
    for part in ("test", "val"):
        data = getattr(splits, part)
        found = data.digests.tolist()
        seen = [
            row
            for row, image in enumerate(zip(data.names, found, strict=True))
            if found[row] and (found[row] in inherited or (found[row] in trained and image not in held_out))
        ]
        if len(seen):
            listed = ", ".join(data.names[row] for row in seen[:3])
            raise UserError(
                f"{len(seen):,} of the {len(data):,} images of the part '{part}' were in the training of {run.folder} "
                f"({listed}{', ...' if len(seen) > 3 else ''}): a number measured on them says nothing. Take a split "
                "that keeps them in train, as evenlens data merge makes it, or another run."
            )
