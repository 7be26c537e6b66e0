"""Processes: how many go side by side, what memory they have, and who says when they stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path


def cores() -> int:
    """Give how many cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(root: Path = Path("/")) -> int:
    """Give how many bytes of memory processes may use: what the machine has free, or what their containers allow.

    Where the system does not say what is free, it is what the machine has.

    Args:
        root: the folder that has `proc/` and `sys/`, on Linux.
    """
    free, groups = root / "proc/meminfo", root / "proc/self/cgroup"
    lines = free.read_text().splitlines() if free.is_file() else []
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, kinds, place = line.split(":", 2)
        if kinds not in ("", "memory"):  # version 2 of control groups has no kinds
            continue
        top, name = root / "sys/fs/cgroup" / kinds, "memory.limit_in_bytes" if kinds else "memory.max"
        group = top / place.lstrip("/")
        for folder in (group, *group.parents):  # a container may see its own group at the top, by no name
            limit = folder / name
            if folder.is_relative_to(top) and limit.is_file() and (text := limit.read_text().strip()).isdigit():
                found.append(int(text))
    return min(found, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def end_with_parent() -> None:
    """See to it that this process ends as soon as the one that started it is gone, and what it started with it.

    Where it leads a group of processes, all of that ends. It is a process of `multiprocessing`.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    with suppress(AttributeError, OSError):  # a system without groups
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes in here, and Ctrl-C does not reach them: a terminal sends it to all, each with its traceback.

    They inherit that it is ignored; a blocked signal loky would unblock. In the milliseconds of the start Ctrl-C is
    lost, and has to be pressed again. Only the main thread may change this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
