"""Show runs in TensorBoard, Weights & Biases or MLflow: a copy of what their folders say, and nothing more.

No run knows of a tracker, so that none can change what a run is. Complete runs are copied by `copy_runs`, those on
their way by `evenlens.following`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evenlens.config import read_toml
from evenlens.errors import UserError, unknown

LOG, PARTIAL = "log.jsonl", ".partial"
BATCH = 1000  # metrics that MLflow takes at once
QUIET = {  # of the libraries: no word to the terminal, and no news of this machine to their makers
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_X_DISABLE_STATS": "true",  # they would be those of the process that reads
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "GIT_PYTHON_REFRESH": "quiet",
}


@dataclass(frozen=True)
class Reading:
    """What the folder of a run says, of a complete one or one on its way.

    Attributes:
        dataset, method, id: as its folder is named.
        settings: its configuration by dotted key, without the place of the images.
        log: one entry an epoch.
        times: when each epoch ended, in seconds since 1970, as far as the log tells.
        numbers: metrics and the ends of their intervals, by names such as "test/accuracy" and "test/accuracy_low"; what
            is undefined is left out. Empty until the run is complete.
        kept: the epoch that they are of; 0 until the run is complete.
    """

    dataset: str
    method: str
    id: str
    settings: dict[str, bool | int | float | str]
    log: list[dict[str, float]]
    times: list[float]
    numbers: dict[str, float]
    kept: int

    @property
    def title(self) -> str:
        """How lists call it."""
        return f"{self.method} seed {self.settings.get('seed', '?')}"


def read(folder: Path) -> Reading:
    """Read the folder of a run; of one on its way what is there already.

    Raises:
        UserError: its configuration cannot be read.
        OSError, ValueError, KeyError: it is complete, and damaged.
    """
    log: list[dict[str, float]] = []
    complete, ended = not folder.name.endswith(PARTIAL), 0.0
    with suppress(FileNotFoundError):
        ended = (folder / LOG).stat().st_mtime
        for line in (folder / LOG).read_text(encoding="utf-8").splitlines():
            try:
                log.append(json.loads(line))
            except ValueError:  # it is being written
                break
    times = []
    for entry in reversed(log):
        times.append(ended)
        ended -= entry.get("seconds", 0) + entry.get("evaluation_seconds", 0)
    config = folder / "config.toml"
    settings = dict(_flat(read_toml(config))) if config.is_file() else {}
    settings.pop("data.root", None)
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8")) if complete else {}
    numbers = {
        f"{part}/{name}{end}": value
        for part in ("val", "test")
        for name, interval in content.get(part, {}).get("metrics", {}).items()
        for end, value in zip(("", "_low", "_high"), interval, strict=True)
        if value is not None
    }
    dataset, method, name = folder.absolute().parts[-3:]
    place = (dataset, method, name.removeprefix(".").removesuffix(PARTIAL))
    return Reading(*place, settings, log, times[::-1], numbers, content.get("selected_epoch", 0))


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, bool | int | float | str) else json.dumps(value)


# ---- the trackers


class Tracker:
    """One run in one tracker, opened when it is made.

    Attributes:
        held: how many epochs the tracker has of it.
    """

    library = ""
    held = 0

    def __init__(self, store: Path, run: Reading) -> None:
        """Open the run in the tracker, where it may have been before.

        Args:
            store: folder that holds the runs' folders.
            run: what is known of the run so far.
        """
        raise NotImplementedError

    def epochs(self, run: Reading, numbers: range) -> None:
        """Write epochs by their numbers, counted from 1."""
        raise NotImplementedError

    def end(self, run: Reading) -> None:
        """Write what is known of a complete run."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the run, complete or not."""

    def copy(self, run: Reading) -> None:
        """Write what it does not have yet."""
        self.epochs(run, range(self.held + 1, len(run.log) + 1))
        self.held = max(self.held, len(run.log))
        if run.kept:
            self.end(run)


class TensorBoard(Tracker):
    """Event files in `tensorboard/DATASET/METHOD/ID`, written from the first epoch whenever a run is opened."""

    library = "tensorboard"

    def __init__(self, store: Path, run: Reading) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = store / "tensorboard" / run.dataset / run.method / run.id
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer: Any = SummaryWriter(str(folder))

    def epochs(self, run: Reading, numbers: range) -> None:
        """Write points of each curve."""
        for number in numbers:
            for name, value in run.log[number - 1].items():
                self.writer.add_scalar(name, value, number, walltime=run.times[number - 1])
        self.writer.flush()

    def end(self, run: Reading) -> None:
        """Write metrics as points at the epoch that was kept, and the run's row of the table of settings."""
        columns = {name: run.numbers[name] for name in run.numbers if not name.endswith(("_low", "_high"))}
        for name in run.numbers.keys() - columns.keys():
            self.writer.add_scalar(name, run.numbers[name], run.kept)
        self.writer.add_hparams(run.settings, columns, run_name=".", global_step=run.kept)

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WandB(Tracker):
    """A run in `wandb/`, offline unless the environment has WANDB_API_KEY or says otherwise by WANDB_MODE.

    Offline a run is written anew whenever it is opened. Online it goes on: wandb drops steps that it has.
    """

    library = "wandb"

    def __init__(self, store: Path, run: Reading) -> None:
        wandb: Any = import_module("wandb")
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        for old in (store / "wandb").glob(f"offline-run-*-{run.id}"):
            shutil.rmtree(old)
        self.code = 1
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "evenlens",
            group=f"{run.dataset} {run.method}",
            name=run.title,
            id=run.id,
            config=run.settings,
            dir=str(store),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",  # several runs are on their way at once
        )

    def epochs(self, run: Reading, numbers: range) -> None:
        """Write steps of the history."""
        for number in numbers:
            self.run.log(run.log[number - 1], step=number)

    def end(self, run: Reading) -> None:
        """Write the metrics into the summary."""
        self.run.summary.update({**run.numbers, "selected_epoch": run.kept})
        self.code = 0

    def close(self) -> None:
        """Finish the run, as stopped where it is not complete."""
        self.run.finish(exit_code=self.code)


class MLflow(Tracker):
    """A run in the experiment of its data set, in `mlflow.db` (SQLite) unless MLFLOW_TRACKING_URI says otherwise.

    A run that is there already goes on; one that is finished there stays as it is.
    """

    library = "mlflow"

    def __init__(self, store: Path, run: Reading) -> None:
        self.entities: Any = import_module("mlflow.entities")
        own = f"sqlite:///{(store / 'mlflow.db').absolute().as_posix()}"
        self.client: Any = import_module("mlflow").MlflowClient(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own
        )
        experiment = self.client.get_experiment_by_name(run.dataset)
        number = experiment.experiment_id if experiment else self.client.create_experiment(run.dataset)
        there = self.client.search_runs([number], f"tags.evenlens_id = '{run.id}'", max_results=1)
        if there:
            made = there[0]
            self.held = int(made.data.metrics.get("epoch", 0))
        else:
            tags = {"evenlens_id": run.id, "method": run.method}
            made = self.client.create_run(number, _milliseconds(run.times[:1]), tags, run.title)
            params = [self.entities.Param(key, str(value)) for key, value in run.settings.items()]
            self.client.log_batch(made.info.run_id, params=params)
        self.id, self.finished = made.info.run_id, made.info.status == "FINISHED"
        if there and not self.finished:
            self.client.update_run(self.id, "RUNNING")
        self.times = run.times

    def epochs(self, run: Reading, numbers: range) -> None:
        """Write the epochs' metrics, an epoch whole or not at all."""
        found = []
        for number in numbers:
            found += self._metrics(run.log[number - 1], number, run.times[number - 1 : number])
            if len(found) > BATCH // 2 or number == numbers[-1]:
                self.client.log_batch(self.id, metrics=found)
                found = []
        self.times = run.times

    def end(self, run: Reading) -> None:
        """Write the metrics, and finish the run."""
        if not self.finished:
            found = self._metrics(run.numbers, run.kept, run.times[-1:])
            for start in range(0, len(found), BATCH):
                self.client.log_batch(self.id, metrics=found[start : start + BATCH])
            self.client.set_terminated(self.id, "FINISHED", _milliseconds(run.times[-1:]))
        self.finished = True

    def close(self) -> None:
        """Mark a run that is not complete as killed."""
        if not self.finished:
            self.client.set_terminated(self.id, "KILLED", _milliseconds(self.times[-1:]))

    def _metrics(self, numbers: dict[str, float], step: int, when: list[float]) -> list[Any]:
        return [self.entities.Metric(name, value, _milliseconds(when), step) for name, value in numbers.items()]


def _milliseconds(when: list[float]) -> int:
    return int(1000 * (when[0] if when else time.time()))


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def check(names: Iterable[str]) -> None:
    """Refuse a tracker that there is not, or whose library is not installed.

    Raises:
        UserError: saying which.
    """
    for name in names:
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        if importlib.util.find_spec(TRACKERS[name].library) is None:
            raise UserError(f"The tracker {name} needs a library that is not here: pip install 'evenlens[track]'.")


def copy_runs(folders: Sequence[Path], name: str) -> None:
    """Write complete runs into a tracker, those that it has already again or not at all.

    Args:
        folders: of the runs; each is written beside the data sets of the runs that it is among.
        name: of the tracker, see `TRACKERS`.

    Raises:
        UserError: no such tracker, its library is missing, another process is writing there, or writing failed.
    """
    check([name])
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    for folder in folders:
        store = folder.absolute().parents[2]
        try:
            with lock(store, name):
                run = read(folder)
                tracker = TRACKERS[name](store, run)
                try:
                    tracker.copy(run)
                finally:
                    tracker.close()
        except Timeout:
            raise UserError(f"Another process is writing to {name} for {store}: wait for it, or stop it.") from None
        except UserError:
            raise
        except Exception as error:  # whatever a library raises, it is this run that did not get there
            raise UserError(f"{folder} could not be written to {name}: {sentence(error)}.") from error


def lock(store: Path, name: str) -> FileLock:
    """Give the lock of whoever writes to a tracker for a folder of runs; it does not wait."""
    return FileLock(store / f".{name}.lock", timeout=0)


def sentence(error: Exception) -> str:
    """Say in one line what a library raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".rstrip(":. ")
