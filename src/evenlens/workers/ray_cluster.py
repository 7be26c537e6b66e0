"""Workers that are processes of a Ray cluster, which may be on other machines."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from evenlens import __version__
from evenlens.errors import UserError
from evenlens.processes import cores, deaf_to_ctrl_c
from evenlens.stores import Store, open_store
from evenlens.workers import Engine, News, Packed, Task, Workers, make_run

ANSWER = 5.0  # seconds that an address has to answer
LOOK = 2.0  # seconds between two looks at what the cluster has
OBJECTS = 100 << 20  # bytes of shared memory that a cluster of our own keeps: what is sent is small


class RayWorkers(Workers):
    """Tasks of a Ray cluster, one a run; Ray finds a machine for each, and uses its processes again."""

    def __init__(self, engine: Engine, store: Store) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise UserError("The engine ray needs Ray: pip install 'evenlens[ray]', or leave --engine out.") from None
        self.ray, self.engine, self.store = ray, engine, store
        self.guest = ray.is_initialized()  # of whoever called this from Python
        if not self.guest:
            _connect(ray, engine)
        self.looked, self.rooms = -math.inf, list[int]()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self.unread = self.board.take.remote()
        self.task = ray.remote(max_retries=0)(_make)  # who schedules tries again
        self.places: dict[Any, str] = {}
        self.refused: list[News] = []

    @property
    def slots(self) -> int:
        """How many runs, of one device each, go side by side on the machines that are there now."""
        fitting = sum(self._rooms())
        return min(fitting, self.engine.jobs or fitting)

    def _rooms(self) -> list[int]:
        """Say for each machine of the cluster how many runs fit."""
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            machines = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
            self.has_gpus = any(machine.get("GPU") for machine in machines)
            asked = self._asked(1)
            self.rooms = [
                int(min(machine.get(name, 0) // amount for name, amount in asked.items() if amount))
                for machine in machines
            ]
        return self.rooms

    def _asked(self, size: int) -> dict[str, float]:
        """Give what a run on so many devices asks Ray for."""
        one = self.engine.resources
        gpu = (1.0 if one.gpu is None and self.has_gpus else one.gpu or 0.0) * size
        return {"CPU": one.cores * size, "GPU": math.ceil(gpu) if gpu > 1 else gpu, "memory": (one.memory or 0) * size}

    def start(self, task: Task) -> None:
        """Hand a run to Ray."""
        size = task.config.train.devices
        if size > max(self._rooms(), default=0):
            listed = ", ".join(f"{name}={amount:g}" for name, amount in self._asked(size).items() if amount)
            why = f"it asks for {listed} on one machine, and no machine of the cluster has that: ask for less."
            self.refused.append(News(task.place, "refused", message=why))
            return
        asked, one = self._asked(size), self.engine.resources
        variables = {name: value for name, value in os.environ.items() if name.startswith("EVENLENS_")}
        ref = self.task.options(
            num_cpus=asked["CPU"], num_gpus=asked["GPU"], memory=asked["memory"] or None, name=task.place
        ).remote(task.packed(), self.store.address, one.cores, __version__, variables, os.getcwd(), self.board)
        self.places[ref] = task.place

    def events(self, timeout: float) -> Sequence[News]:
        """Give what happened since the last call; wait for it, at most `timeout` seconds."""
        news, self.refused = self.refused, []
        everything = [self.unread, *self.places]
        self.ray.wait(everything, num_returns=1, timeout=0 if news else timeout)
        ready, _ = self.ray.wait(everything, num_returns=len(everything), timeout=0)
        if self.unread in ready:
            news += self.ray.get(self.unread)
            self.unread = self.board.take.remote()
        for ref in ready:
            if place := self.places.pop(ref, None):
                news.append(self._outcome(ref, place))
        return news

    def _outcome(self, ref: Any, place: str) -> News:
        exceptions = self.ray.exceptions
        try:
            return News(*self.ray.get(ref))
        except exceptions.RayTaskError as error:  # before it could say so itself: another evenlens, or none
            cause = error.cause
            return News(place, "refused", message=f"a worker failed with {type(cause).__name__}: {cause}")
        except exceptions.OutOfMemoryError:
            return News(place, "died", message="its machine had no memory left")
        except exceptions.RayError as error:
            return News(place, "died", message=f"Ray lost it ({type(error).__name__})")

    def stop(self, place: str) -> None:
        """End a run at once, and its process."""
        for ref in [ref for ref, other in self.places.items() if other == place]:
            self.places.pop(ref)
            self.ray.cancel(ref, force=True)

    def close(self) -> None:
        """End what still runs, and let the cluster go; one that was started for the sweep ends."""
        with suppress(Exception):  # a cluster that is gone has nothing to end
            for place in [*self.places.values()]:
                self.stop(place)
            self.ray.kill(self.board)
        if not self.guest:
            self.ray.shutdown()


def _connect(ray: Any, engine: Engine) -> None:
    """Join the cluster at the address, or the one that is here, or start one on this machine.

    Raises:
        UserError: nothing answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what it will do one day
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if engine.address is not None:
        _knock(engine.address)
    with deaf_to_ctrl_c():
        try:
            ray.init(address=engine.address or "auto", **quiet)
            return
        except Exception as error:  # of many kinds: other versions of Ray or Python, or not on a machine of the cluster
            if engine.address is not None:
                said = " ".join(str(error).split())[:300]
                raise UserError(f"The Ray cluster at {engine.address} cannot be joined: {said}") from None
            if not isinstance(error, ConnectionError):
                raise
        # else beside other work on this machine a run would take many times as long as with local processes
        os.environ.setdefault("RAY_worker_niceness", "0")
        number = max(cores(), (engine.jobs or 1) * engine.resources.cores)
        ray.init(address="local", num_cpus=number, include_dashboard=False, object_store_memory=OBJECTS, **quiet)


def _knock(address: str) -> None:
    """Look whether anything answers at host:port, as Ray itself would wait for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()) or "/" in host:
        raise UserError(f"address={address} is none of a Ray cluster: give host:port of its head, or auto.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            f"No Ray cluster answers at {address} ({why}): start one with ray start, or leave it out."
        ) from None


# ---- in the cluster


class _Board:
    """Where the workers say how far they are, and the one who schedules reads it."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self.written = asyncio.Event()

    async def tell(self, news: News) -> None:
        """Write something."""
        self.news.append(news)
        self.written.set()

    async def take(self) -> list[News]:
        """Give all that was written, as soon as there is something."""
        await self.written.wait()
        self.written.clear()
        news, self.news = self.news, []
        return news


def _make(
    packed: Packed, address: str, threads: int, version: str, variables: dict[str, str], folder: str, board: Any
) -> tuple[Any, ...]:
    """Make one run in a process of the cluster."""
    place = packed[0]
    if version != __version__:
        why = f"{socket.gethostname()} has evenlens {__version__}, and the sweep {version}: install the same one there."
        return tuple(News(place, "refused", message=why))
    for name, value in variables.items():
        os.environ.setdefault(name, value)  # a machine may have its own places for data and caches
    with suppress(OSError):
        os.chdir(folder)  # a path in a recipe is meant from there
    if not import_module("ray").get_gpu_ids():  # Ray leaves all to be seen by one that asked for none
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from evenlens import engine, run  # noqa: F401  what takes time is loaded before a run's time is counted

    engine.start(threads)
    board.tell.remote(News(place, "started"))
    return tuple(make_run(Task.unpacked(packed), open_store(address), board.tell.remote))
