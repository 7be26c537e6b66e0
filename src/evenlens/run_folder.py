"""The folder of a complete run: reading it, and writing what is in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from evenlens import __version__, metrics, model_file
from evenlens.config import RunConfig, read_config, read_toml
from evenlens.data.dataset import FairDataset
from evenlens.errors import UserError
from evenlens.method import Method

FORMAT = 1  # of the folder's files


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

    def load(self) -> Method:
        """Build the trained method, ready to predict."""
        return model_file.load_model(self.folder / "model.safetensors")


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
