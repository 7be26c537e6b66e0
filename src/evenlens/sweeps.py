"""Many runs: skip what is done, run the rest side by side."""

from __future__ import annotations

import multiprocessing
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from evenlens.config import RunConfig, read_config
from evenlens.errors import UserError
from evenlens.processes import cores, deaf_to_ctrl_c


@dataclass
class Outcome:
    """What became of a sweep.

    Attributes:
        folders: of the complete runs, in the order of the configurations.
        failed: why a run was not made, by its description.
        made: how many were made now; the others were there.
    """

    folders: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    made: int = 0


class Event(NamedTuple):
    """News of one run: a `kind` of "waiting", "skipped", "started", "steps", "done" or "failed"."""

    kind: str
    number: int
    config: RunConfig
    done: int = 0
    total: int = 0
    message: str = ""


def default_jobs() -> int:
    """Give how many runs go side by side: the cores, one thread each; one run at a time on a GPU."""
    import torch

    return 1 if torch.cuda.is_available() else cores()


def sweep(
    configs: list[RunConfig],
    runs: Path,
    jobs: int | None = None,
    listen: Callable[[Event], None] = lambda event: None,
    watch_images: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Outcome:
    """Make all runs that are not there yet, `jobs` at a time, each in a process of its own.

    A run that fails, or whose process dies, does not stop the others.

    Args:
        configs: what to run.
        runs: folder for the runs' folders.
        jobs: processes; default: `default_jobs()`.
        listen: told what happens to each run.
        watch_images: told of the decoding of images, which is done first.
    """
    from evenlens import plan, run

    if jobs is not None and jobs < 1:
        raise UserError(f"jobs={jobs} runs nothing: give 1 or more runs side by side, or leave it out.")
    completed = [plan.complete(config) for config in configs]  # names are checked before anything is read
    loaded: dict[str, Any] = {}
    pinned = []
    for config in completed:
        key = f"{config.dataset} {config.data}"
        if key not in loaded:
            loaded[key] = run.load_data(config, watch_images).splits
        pinned.append(run.pin(config, loaded[key]))
    outcome = Outcome([run.folder_of(config, runs) for config in pinned])
    todo = []
    for number, (config, folder) in enumerate(zip(pinned, outcome.folders, strict=True)):
        if folder.exists():
            listen(Event("skipped", number, config))
        elif folder not in outcome.folders[:number]:
            todo.append((number, config))
            listen(Event("waiting", number, config))
    if todo:
        _run_all(todo, runs, min(jobs or default_jobs(), len(todo)), outcome, listen)
    outcome.folders = [folder for folder in dict.fromkeys(outcome.folders) if folder.exists()]
    return outcome


def describe(config: RunConfig) -> str:
    """Name a run for people."""
    return f"{config.dataset} {config.method} seed {config.seed}"


@dataclass
class _Worker:
    process: Any
    connection: Connection
    number: int = -1


def _start_worker(runs: Path, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, str(runs), threads), daemon=True)
    with deaf_to_ctrl_c():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _run_all(
    todo: list[tuple[int, RunConfig]], runs: Path, jobs: int, outcome: Outcome, listen: Callable[[Event], None]
) -> None:
    waiting, configs = deque(todo), dict(todo)
    threads = max(1, cores() // jobs)
    workers = [_start_worker(runs, threads) for _ in range(jobs)]

    def hand_out(worker: _Worker) -> None:
        worker.number = -1
        if waiting:
            worker.number, config = waiting.popleft()
            with suppress(OSError):  # it died at once: that is noticed where its answer is awaited
                worker.connection.send(config.model_dump(mode="json"))
            listen(Event("started", worker.number, config))

    try:
        for worker in workers:
            hand_out(worker)
        while busy := [worker for worker in workers if worker.number >= 0]:
            for connection in wait([worker.connection for worker in busy]):
                worker = next(worker for worker in busy if worker.connection is connection)
                number, config = worker.number, configs[worker.number]
                try:
                    kind, done, total, message = worker.connection.recv()
                except (EOFError, OSError):  # the latter where it died before it read what it was handed
                    worker.process.join()
                    kind, done, total = "failed", 0, 0
                    message = (
                        f"its process ended with code {worker.process.exitcode}; a new sweep goes on where it was."
                    )
                    workers.remove(worker)
                    worker = _start_worker(runs, threads)
                    workers.append(worker)
                listen(Event(kind, number, config, done, total, message))
                if kind == "done":
                    outcome.made += 1
                elif kind == "failed":
                    outcome.failed[f"{describe(config)} ({config.identity()})"] = message
                if kind in ("done", "failed"):
                    hand_out(worker)
    finally:
        for worker in workers:
            if worker.number >= 0:
                worker.process.terminate()
            else:
                with suppress(OSError):
                    worker.connection.send(None)  # there is nothing more to do
            worker.connection.close()
            worker.process.join()


def _work(connection: Connection, runs: str, threads: int) -> None:
    """Make one run after another in this process, and tell of them."""
    from evenlens import engine, run

    engine.start(threads)
    told = 0.0

    def watch(what: str, done: int, total: int) -> None:
        nonlocal told
        if what == "steps" and (done == total or time.monotonic() - told > 0.2):
            told = time.monotonic()
            connection.send(("steps", done, total, ""))

    while True:
        try:
            content = connection.recv()
        except EOFError:  # whoever hands out work was killed
            return
        if content is None:
            return
        config = read_config(content)
        try:
            run.train(config, Path(runs), watch)
        except UserError as error:
            connection.send(("failed", 0, 0, str(error)))
        except Exception as error:  # anything: the other runs go on
            connection.send(("failed", 0, 0, f"{type(error).__name__}: {error}"))
        else:
            connection.send(("done", 0, 0, ""))
