"""Copy runs into trackers while they are made, by reading their folders.

A process of its own for each tracker looks at the folders again and again and hands on what is new. It may fail, hang
or be slow, and no run notices. What makes the runs, and on which machine, is all the same to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evenlens.processes import deaf_to_ctrl_c
from evenlens.trackers import LOG, PARTIAL, QUIET, TRACKERS, Reading, Tracker, check, lock, read, sentence

PAUSE = 1.0  # seconds between two looks at the runs
PATIENCE = 30.0  # seconds that a command waits for its trackers when its runs are done


@contextmanager
def following(store: Path, names: Sequence[str], warn: Callable[[str], None]) -> Iterator[None]:
    """Hand on to trackers what happens in a folder of runs, for as long as this lasts.

    Each tracker has a process of its own, which ends with this one. What goes wrong there is one warning, and nothing
    here fails or waits for it; only at the end it has `PATIENCE` seconds to write the rest. Runs that were complete
    before are left to `copy_runs`.

    Args:
        store: folder for the runs' folders; it need not be there yet.
        names: of trackers, see `TRACKERS`.
        warn: told in one sentence that a tracker has failed, from a thread.

    Raises:
        UserError: no such tracker, or its library is missing; before anything is done.
    """
    check(names)
    followers = [_Follower(store, name, warn) for name in dict.fromkeys(names)]
    try:
        yield
    finally:
        for follower in followers:
            follower.let_finish()
        until = time.monotonic() + PATIENCE
        for follower in followers:
            follower.wait(until)


class _Follower:
    """The process that follows for one tracker, seen from the command that started it."""

    def __init__(self, store: Path, name: str, warn: Callable[[str], None]) -> None:
        self.name, self.warn, self.warned = name, warn, False
        self.process: subprocess.Popen[str] | None = None
        command = [sys.executable, "-P", "-m", "evenlens.following", name, str(store)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        try:
            with deaf_to_ctrl_c():
                self.process = subprocess.Popen(command, **pipes, env={**QUIET, **os.environ}, encoding="utf-8")
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(stamps(store)) + "\n")  # the first epochs may be over before it looks
            self.process.stdin.flush()
        except OSError as error:
            self._warn(sentence(error))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        if self.process is not None and self.process.stdout is not None:
            with self.process.stdout as said:
                for line in said:
                    self._warn(line.strip())

    def _warn(self, why: str) -> None:
        if not self.warned:
            self.warned = True
            self.warn(f"{self.name} is not told any more ({why}). The runs go on; afterwards: evenlens track RUNS --to "
                      f"{self.name}")  # fmt: skip

    def let_finish(self) -> None:
        """Say that there is nothing more to come."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):  # it has ended
                self.process.stdin.close()

    def wait(self, until: float) -> None:
        """Wait for it until a moment of the monotonic clock, and end it then."""
        if self.process is None:
            return
        try:
            code = self.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._warn(f"it took longer than {PATIENCE:g} s")
            self.process.kill()
            code = self.process.wait()
        self.thread.join(1)
        if code:
            self._warn(f"its process ended with code {code}")


def stamps(store: Path) -> dict[str, list[int]]:
    """Say for each run's folder, complete or on its way, when its log was written (nanoseconds) and its bytes."""
    found = {}
    for log in (*store.glob(f"*/*/[!.]*/{LOG}"), *store.glob(f"*/*/.*{PARTIAL}/{LOG}")):
        with suppress(OSError):  # it has moved since
            status = log.stat()
            found[str(log.parent)] = [status.st_mtime_ns, status.st_size]
    return found


def follow(store: Path, name: str, known: dict[str, list[int]], ended: threading.Event) -> None:
    """Write to a tracker what changes in a folder of runs, until told that it has ended.

    Args:
        store: folder of the runs' folders.
        name: of the tracker.
        known: what `stamps` said before the first of the runs.
        ended: set when there is nothing more to come; after it there is one more look.

    Raises:
        Timeout: to the end another process wrote to the tracker.
        Exception: whatever the tracker's library raises.
    """
    ours, open_runs = lock(store, name), dict[str, Tracker]()
    while True:
        last, began = ended.is_set(), time.monotonic()
        now = stamps(store)
        pause = max(PAUSE, 10 * (time.monotonic() - began))  # at most a tenth of a core, however many runs
        changed = [folder for folder in now if now[folder] != known.get(folder)]
        if changed and _taken(ours, PATIENCE if last else 0.0):
            known = now
            for run in map(read, map(Path, changed)):
                _hand_on(store, name, run, open_runs)
        if last:
            break
        ended.wait(pause)
    for tracker in open_runs.values():
        tracker.close()
    ours.release()


def _taken(ours: FileLock, patience: float) -> bool:
    """Take the lock, unless another command hands on the same runs; if there is patience, wait, and fail after it."""
    try:
        if not ours.is_locked:
            ours.acquire(timeout=patience)
    except Timeout:
        if patience:
            raise
        return False
    return True


def _hand_on(store: Path, name: str, run: Reading, open_runs: dict[str, Tracker]) -> None:
    if run.log or run.kept:
        if run.id not in open_runs:
            open_runs[run.id] = TRACKERS[name](store, run)
        open_runs[run.id].copy(run)
        if run.kept:
            open_runs.pop(run.id).close()


def main() -> None:
    """Follow for the command that started this: its first line says what was there, and that it closes its end, all."""
    name, store = sys.argv[1:]
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries talk; only what is told here is heard
    with suppress(AttributeError, OSError):
        os.nice(10)
    ended = threading.Event()
    known = json.loads(sys.stdin.readline() or "{}")

    def listen() -> None:
        while os.read(0, 4096):
            pass
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        follow(Path(store), name, known, ended)
    except Exception as error:  # any: one sentence, and the runs go on
        print(sentence(error), file=told, flush=True)


if __name__ == "__main__":
    main()
