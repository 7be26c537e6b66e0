"""Who makes the runs of a sweep: processes of this machine, or of a Ray cluster. What a worker does is the same."""

from __future__ import annotations

import errno
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evenlens.config import RunConfig, read_config
from evenlens.errors import UserError, unknown
from evenlens.stores import Store, Unreachable

ENGINES = ("local", "ray")
TELL = 0.2  # seconds between two words of one run's progress, at least
GONE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EIO: "the disk or the network behind it fails",
    errno.ESTALE: "the shared folder was taken away",
    errno.ENOTCONN: "the shared folder is not connected",
    errno.EROFS: "the disk can only be read now",
}


@dataclass(frozen=True)
class Resources:
    """What one run gets; one that trains on several devices gets as many times that.

    Attributes:
        cores: threads of the CPU, 1 or more.
        memory: bytes that it needs at most, so that no more go side by side than fit; None does not ask.
        gpu: share of a GPU, 0 to 1; None is a whole one where there is any.
    """

    cores: int = 1
    memory: int | None = None
    gpu: float | None = None

    def __post_init__(self) -> None:
        if self.cores < 1:
            raise UserError(f"cores={self.cores} is not allowed: a run needs 1 core or more.")
        if self.memory is not None and self.memory < 1:
            raise UserError(f"memory={self.memory} is not allowed: give the bytes that a run needs, such as 4GB.")
        if self.gpu is not None and not 0 <= self.gpu <= 1:
            raise UserError(
                f"gpu={self.gpu:g} is not allowed: it is the share of one GPU, from 0 to 1; several GPUs for a run are "
                "train.devices=2."
            )


@dataclass(frozen=True)
class Engine:
    """What runs are made with.

    Attributes:
        name: "local" for processes of this machine, "ray" for a Ray cluster.
        address: of the Ray cluster, host:port; None is the one that runs here, or one that is started for the sweep.
        jobs: runs side by side, at most; None is as many as fit.
        resources: of one run.
    """

    name: str = "local"
    address: str | None = None
    jobs: int | None = None
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise unknown("engine", self.name, ENGINES)
        if self.address is not None and self.name != "ray":
            raise UserError(f"address={self.address} is of a Ray cluster: ask for engine ray too, or leave it out.")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"jobs={self.jobs} runs nothing: give 1 or more runs side by side, or leave it out.")

    def start(self, store: Store) -> Workers:
        """Get workers that make runs into a store."""
        if self.name == "ray":
            from evenlens.workers.ray_cluster import RayWorkers

            return RayWorkers(self, store)
        from evenlens.workers.local import LocalWorkers

        return LocalWorkers(self, store)


Packed = tuple[str, dict[str, Any], tuple[str, ...]]


class Task(NamedTuple):
    """A run, as it is handed to a worker.

    Attributes:
        place: of its folder below the runs' folder, which tells runs apart.
        config: pinned.
        requires: places of the complete runs that it starts from.
    """

    place: str
    config: RunConfig
    requires: tuple[str, ...] = ()

    def packed(self) -> Packed:
        """Give it as what any process can read."""
        return self.place, self.config.model_dump(mode="json"), self.requires

    @classmethod
    def unpacked(cls, packed: Packed) -> Task:
        """Read it as another process gave it."""
        place, config, requires = packed
        return cls(place, read_config(config), requires)


class News(NamedTuple):
    """What a worker says of a run.

    Attributes:
        place: of the run.
        kind: "started"; "steps", of which `done` of `total` are taken; "made"; "refused", as it would be again; "busy",
            as another process makes it; "died" with its worker; or "halt", where no run could be made any more.
        seconds: that a run took, once it is made.
        message: why, in one sentence.
    """

    place: str
    kind: str
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    message: str = ""


class Workers(ABC):
    """Those who make runs side by side, each in a process of its own."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many runs, of one device each, go side by side now."""

    @abstractmethod
    def start(self, task: Task) -> None:
        """Begin a run, or let it begin as soon as there is room."""

    @abstractmethod
    def events(self, timeout: float) -> Sequence[News]:
        """Give what happened since the last call; wait for it, at most `timeout` seconds."""

    @abstractmethod
    def stop(self, place: str) -> None:
        """End a run at once, and its process; nothing more is heard of it."""

    @abstractmethod
    def close(self) -> None:
        """End what still runs, and let the workers go."""


# ---- what a worker does


_data: dict[str, Any] = {}  # of the last run of this process: the next one mostly has the same


def make_run(task: Task, store: Store, watch: Callable[[News], None]) -> News:
    """Make one run in this process, whatever the engine.

    Args:
        task: the run.
        store: where it belongs.
        watch: told of its steps.

    Returns:
        The last news of it; no error gets out.
    """
    from evenlens import run

    told = 0.0

    def steps(what: str, done: int, total: int) -> None:
        nonlocal told
        if what == "steps" and (done == total or time.monotonic() - told > TELL):
            told = time.monotonic()
            watch(News(task.place, "steps", done, total))

    try:
        store.check()
        for place in (*task.requires, task.place):
            store.fetch(place)
        began = time.perf_counter()
        run.train(task.config, store.folder, steps, _loaded(task.config))
        seconds = time.perf_counter() - began
        store.check()  # else it was made into a folder that came in place of the one that is gone
        store.put(task.place)
    except Exception as error:  # anything: the other runs go on
        return _excuse(task.place, store, error)
    return News(task.place, "made", seconds=seconds)


def _loaded(config: RunConfig) -> Any:
    """Load the data of a run, or take those of the run before; None where the processes of the run load them."""
    from evenlens import run

    if config.train.devices > 1:
        return None
    key = f"{config.dataset} {config.data.model_dump_json()}"
    if key not in _data:
        _data.clear()
        _data[key] = run.load_data(config)
    return _data[key]


def _excuse(place: str, store: Store, error: Exception) -> News:
    """Say whether an error is of this run alone, of its worker, or of all."""
    import torch

    from evenlens.run import Busy

    if isinstance(error, Busy):
        return News(place, "busy")
    if isinstance(error, Unreachable):
        return News(place, "halt", message=str(error))
    if isinstance(error, OSError) and error.errno in GONE:
        return News(place, "halt", message=f"{GONE[error.errno]} ({error})")
    try:
        store.check()  # a folder that is gone has many errors
    except Unreachable as gone:
        return News(place, "halt", message=str(gone))
    if isinstance(error, UserError):
        return News(place, "refused", message=str(error))
    if isinstance(error, MemoryError | torch.OutOfMemoryError | ChildProcessError):  # the last of one of its processes
        return News(place, "died", message=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return News(place, "refused", message=f"{type(error).__name__}: {error}")
