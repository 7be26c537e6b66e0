"""A run on several devices of this machine: start a process for each, which together make it."""

from __future__ import annotations

import multiprocessing
import os
import socket
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from evenlens.config import RunConfig, read_config
from evenlens.errors import UserError
from evenlens.processes import cores, deaf_to_ctrl_c, end_with_parent
from evenlens.run import Busy, Watch


def train(config: RunConfig, runs: Path, watch: Watch, wait_for_others: bool = False) -> Path:
    """Make a run by `config.train.devices` processes on this machine; torchrun does the same on several.

    Args:
        config: what to run.
        runs: folder for the runs' folders.
        watch: told of progress.
        wait_for_others: if somebody else is making it, wait until they have.

    Returns:
        The run's folder.

    Raises:
        UserError: fewer devices here, or what `run.train` refuses.
        RuntimeError: a process failed.
        ChildProcessError: one was killed, which may go better another time.
    """
    devices = config.train.devices
    there, what, threads = _devices()
    if devices > there:
        raise UserError(
            f"train.devices={devices} and there are {there} {what} here: ask for that many, or start the command on "
            "several machines with torchrun."
        )
    content = config.model_dump(mode="json")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    port = _free_port()
    group = []
    with deaf_to_ctrl_c():
        for place in range(devices):
            said = theirs if place == 0 else None
            given = (
                place,
                devices,
                port,
                min(threads, max(1, cores() // devices)),
                content,
                str(runs),
                wait_for_others,
                said,
            )
            group.append(context.Process(target=_member, args=given))
            group[-1].start()
    theirs.close()
    try:
        return _listen(ours, group, watch)
    finally:
        for process in group:
            process.terminate()
            process.join()


def _listen(connection: Connection, group: list[Any], watch: Watch) -> Path:
    """Hear the first process until it has the run, and look whether all are alive."""
    ended: dict[Any, Any] = {process.sentinel: process for process in group}
    while True:
        for ready in wait([connection, *ended]):
            if ready is not connection:
                process = ended[ready]
                if process.exitcode and not connection.poll(0.5):  # what the first one has to say goes first
                    raise _ended(process, group)
                del ended[process.sentinel]
                continue
            try:
                kind, *said = connection.recv()
            except EOFError:
                group[0].join()
                raise _ended(group[0], group) from None
            if kind == "made":
                for process in group:
                    process.join(60)
                return Path(said[0])
            if kind == "refused":
                raise (Busy if said[1] else UserError)(said[0])
            if kind == "failed":
                lost = [process for process in group if process.exitcode]  # which is why the first one failed
                raise _ended(lost[0], group) if lost else RuntimeError(said[0])
            watch(*said)


def _member(
    place: int,
    size: int,
    port: int,
    threads: int,
    content: dict[str, Any],
    runs: str,
    wait_for_others: bool,
    connection: Connection | None,
) -> None:
    """Be one of the processes; the first one tells of it."""
    os.environ |= {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    end_with_parent()
    from evenlens import engine, run

    def tell(*message: Any) -> None:
        if connection:
            with suppress(OSError):  # whoever asked is gone, and ends this process soon
                connection.send(message)

    try:
        engine.start(threads)
        made = run.train(read_config(content), Path(runs), lambda *news: tell("watch", *news), wait=wait_for_others)
    except UserError as error:
        tell("refused", str(error), isinstance(error, Busy))
    except Exception as error:
        tell("failed", f"{type(error).__name__}: {error}")
        os._exit(1)  # the others wait in vain
    else:
        tell("made", str(made.folder))
    engine.stop()


def _ended(process: Any, group: list[Any]) -> ChildProcessError:
    return ChildProcessError(f"one of its {len(group)} processes ended with code {process.exitcode}")


def _devices() -> tuple[int, str, int]:
    """Give how many devices there are, what they are, and how many threads this process computes with."""
    import torch

    there = (torch.cuda.device_count(), "GPUs") if torch.cuda.is_available() else (cores(), "cores")
    return *there, torch.get_num_threads()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
