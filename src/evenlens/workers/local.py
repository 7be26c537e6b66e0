"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from evenlens.errors import UserError
from evenlens.processes import cores, deaf_to_ctrl_c, end_with_parent, memory
from evenlens.stores import Store, open_store
from evenlens.workers import Engine, News, Task, Workers, make_run

UNDER_WAY = ("started", "steps")  # news after which there are more
LETTING_GO = 5.0  # seconds that a worker without work has to end


@dataclass
class _Process:
    process: Any
    connection: Connection
    units: tuple[int, ...]
    place: str = ""  # of the run that it makes; empty without work


class LocalWorkers(Workers):
    """Processes of this machine, each for one run after another; on GPUs each sees those of its units alone."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.store, self.processes = store, list[_Process]()
        self.gpus = _gpus() if engine.resources.gpu != 0 else []
        self._slots = fitting(engine)
        self.threads = max(engine.resources.cores, cores() // self._slots)
        self.hides_gpus = engine.resources.gpu == 0

    @property
    def slots(self) -> int:
        """How many runs, of one device each, go side by side."""
        return self._slots

    def start(self, task: Task) -> None:
        """Hand a run to a process that has no work, or to a new one."""
        size = task.config.train.devices
        taken = {unit for each in self.processes if each.place for unit in each.units}
        units = tuple(unit for unit in range(max(self._slots, size)) if unit not in taken)[:size]
        worker = next((each for each in self.processes if not each.place and each.units == units), None)
        if worker is None:
            for each in [each for each in self.processes if not each.place and {*each.units} & {*units}]:
                self._let_go(each)
            worker = self._begin(units)
        worker.place = task.place
        with suppress(OSError):  # it died at once: that is noticed where its answer is awaited
            worker.connection.send(task.packed())

    def _begin(self, units: tuple[int, ...]) -> _Process:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = theirs, self.store.address, self.threads, self._visible(units)
        process = context.Process(target=_work, args=arguments)  # no daemon, as it may start processes of its own
        with deaf_to_ctrl_c():
            process.start()
        theirs.close()
        worker = _Process(process, ours, units)
        self.processes.append(worker)
        return worker

    def _visible(self, units: tuple[int, ...]) -> str | None:
        """Name the GPUs that a process may see, as CUDA_VISIBLE_DEVICES does; None leaves it as it is."""
        if self.hides_gpus:
            return ""
        return ",".join(dict.fromkeys(self.gpus[unit % len(self.gpus)] for unit in units)) if self.gpus else None

    def events(self, timeout: float) -> Sequence[News]:
        """Give what happened since the last call; wait for it, at most `timeout` seconds."""
        busy = [each for each in self.processes if each.place]
        ready = {*wait([part for each in busy for part in (each.connection, each.process.sentinel)], timeout)}
        news: list[News] = []
        for each in busy:
            if {each.connection, each.process.sentinel} & ready:
                news += self._hear(each)
        return news

    def _hear(self, worker: _Process) -> list[News]:
        news: list[News] = []
        with suppress(EOFError, OSError):  # it has died
            while worker.connection.poll():
                news.append(worker.connection.recv())
        if news and news[-1].kind not in UNDER_WAY:
            worker.place = ""
        elif not worker.process.is_alive():
            self._end(worker)
            news.append(News(worker.place, "died", message=_how(worker.process.exitcode)))
        return news

    def stop(self, place: str) -> None:
        """End a run at once, and its process."""
        for worker in [each for each in self.processes if each.place == place]:
            self._end(worker)

    def _end(self, worker: _Process) -> None:
        """End a process and all that it started."""
        self.processes.remove(worker)
        with suppress(OSError, AttributeError):  # it is gone, or this is a system without groups
            os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()

    def _let_go(self, worker: _Process) -> None:
        with suppress(OSError):
            worker.connection.send(None)  # there is nothing more to do
        worker.process.join(LETTING_GO)
        self._end(worker)

    def close(self) -> None:
        """End what still runs, and let the workers go."""
        for worker in [each for each in self.processes if each.place]:
            self._end(worker)
        for worker in self.processes:
            with suppress(OSError):
                worker.connection.send(None)
        for worker in [*self.processes]:
            self._let_go(worker)


def _how(code: int | None) -> str:
    """Say how a process ended."""
    killed = code is not None and code < 0
    why = " (often for want of memory)" if code == -signal.SIGKILL else ""
    return f"it was killed by signal {-code}{why}" if killed and code else f"its process ended with code {code}"


def fitting(engine: Engine) -> int:
    """Say how many runs go side by side: as many as is asked, or as fit by what each needs and what there is.

    Raises:
        UserError: one needs more than there is.
    """
    wanted, there = engine.resources, cores()
    fits = {f"cores={wanted.cores}": (there // wanted.cores, f"{there} cores")}
    if wanted.memory is not None:
        free = memory()
        fits[f"memory={wanted.memory / 1e9:g}GB"] = free // wanted.memory, f"{free / 1e9:.1f} GB"
    for asked, (number, what) in fits.items():
        if number < 1:
            raise UserError(f"{asked} for a run is more than this machine has ({what}): ask for less.")
    num_gpus = len(_gpus()) if wanted.gpu != 0 else 0
    if num_gpus:
        fits["gpu"] = num_gpus * int(1 / (wanted.gpu or 1.0)), "GPUs"
    elif wanted.gpu:
        raise UserError(f"gpu={wanted.gpu:g} asks for a share of a GPU, and none is seen here: leave it out.")
    return engine.jobs or min(number for number, _ in fits.values())


def _gpus() -> list[str]:
    """Name the GPUs that this process may use, as CUDA_VISIBLE_DEVICES does."""
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:number] if named else [str(place) for place in range(number)]


# ---- in the process


def _work(connection: Connection, address: str, threads: int, gpus: str | None) -> None:
    """Make one run after another in this process, and tell of them."""
    with suppress(AttributeError, OSError):
        os.setpgid(0, 0)  # so that what it starts can be ended with it
    end_with_parent()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    from evenlens import engine, run  # noqa: F401  what takes time is loaded before a run's time is counted

    engine.start(threads)
    store = open_store(address)
    while True:
        try:
            content = connection.recv()
        except EOFError:  # whoever hands out work is gone
            return
        if content is None:
            return
        task = Task.unpacked(content)
        connection.send(News(task.place, "started"))
        connection.send(make_run(task, store, connection.send))
