"""What a sweep says of itself beside its runs, for who asks how far it is, or wants it to stop, from any machine."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evenlens import __version__
from evenlens.config import RunConfig, read_config, to_toml
from evenlens.errors import UserError
from evenlens.scheduling import Schedule, State
from evenlens.stores import Store

FRESH = 3  # pauses of the store after which a sweep that said nothing may have died
CANCEL = ".cancel"


class Record:
    """What one sweep writes, about once a second, into a file of its own; earlier ones of its recipe are replaced."""

    def __init__(self, store: Store, recipe: Path | None) -> None:
        host, pid = socket.gethostname(), os.getpid()
        self.store = store
        self.key = hashlib.blake2b(f"{host} {pid} {time.time()}".encode(), digest_size=5).hexdigest()
        self.name = f"{self.key}.json"
        self.content: dict[str, Any] = {
            "version": __version__, **_name(recipe), "host": host, "pid": pid, "started": time.time(),
        }  # fmt: skip
        self.written = -math.inf
        for name, content in sweeps_of(store, self.content):  # what earlier ones left, which have ended or died
            if not alive(content, store.pause):
                store.remove_note(name)

    def look(self, schedule: Schedule) -> bool:
        """Write how far it is, if that was not done just now, and say whether somebody wants it to stop.

        Raises:
            Unreachable: the store is gone.
        """
        if time.monotonic() - self.written < self.store.pause:
            return False
        self.written = time.monotonic()
        self.store.check()
        self.write(schedule, "running")
        return self.store.has_note(self.key + CANCEL)

    def write(self, schedule: Schedule, state: str, why: str = "") -> None:
        """Write how far it is.

        Args:
            schedule: of the sweep.
            state: "running", "ended", "cancelled" or "halted".
            why: it was halted.
        """
        runs = []
        for job in schedule.jobs.values():
            row: dict[str, Any] = {"place": job.place, "name": job.name, "state": job.state.value, "tries": job.tries}
            row |= {"seconds": round(job.seconds, 3), "done": job.done, "total": job.total, "message": job.message}
            runs.append(row)
        changing = {"beat": time.time(), "state": state, "why": why, "left": schedule.left(), "slots": schedule.slots}
        self.store.write_note(self.name, {**self.content, **changing, "runs": runs})

    def close(self, schedule: Schedule, state: str, why: str = "") -> None:
        """Write how it ended, if the store is still there."""
        with suppress(OSError, UserError):
            self.write(schedule, state, why)
            self.store.remove_note(self.key + CANCEL)


def _name(recipe: Path | None) -> dict[str, str]:
    """Tell a recipe by its path, and by its text where it lies elsewhere on another machine."""
    if recipe is None:
        return {"recipe": "", "text": ""}
    text = hashlib.blake2b(recipe.read_bytes(), digest_size=8).hexdigest()
    return {"recipe": str(recipe.absolute()), "text": text}


def sweeps_of(store: Store, named: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Give the names and contents of the records of a recipe, the oldest first."""
    found = []
    for name, content in store.notes().items():
        same = any(named[key] and named[key] == content.get(key) for key in ("recipe", "text"))
        if name.endswith(".json") and same and isinstance(content.get("runs"), list):
            found.append((name, content))
    return sorted(found, key=lambda each: each[1].get("started", 0))


def alive(content: dict[str, Any], pause: float) -> bool:
    """Say whether a sweep is under way by what it wrote last."""
    return content.get("state") == "running" and abs(time.time() - content.get("beat", 0)) < FRESH * max(pause, 1.0) + 2


# ---- for who asks


@dataclass(frozen=True)
class Status:
    """How far a recipe is, by the runs that are there and by what its sweeps say.

    Attributes:
        total: runs that the recipe asks for as it is now.
        complete: how many of them are there.
        undrawn: runs beside these, at most, that a search draws by the scores of earlier ones.
        sweeps: host, pid, seconds left (or None), slots, and whether the recipe has changed since; of those under way.
        rows: of the runs that are running or have failed: name, place, state, tries, steps done, of total, message.
        ended: how the last sweep came to its end, where none is under way: "ended", "cancelled", "halted", "died" or ""
            where none is known.
        why: it was halted.
    """

    total: int
    complete: int
    undrawn: int
    sweeps: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    ended: str
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Give it as what JSON can hold."""
        return asdict(self)


def status(
    configs: Sequence[RunConfig],
    recipe: Path,
    store: Store,
    undrawn: int = 0,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Say how far the runs of a recipe are. Reads no data, and may be asked on any machine that sees the store.

    Args:
        configs: of the recipe as it is now, as `sweeps.complete` gives them.
        recipe: its path.
        store: of the runs.
        undrawn: runs that it draws later, which nobody can look for yet.
        sleep: waits, where a clock that goes wrong makes a sweep look dead that is not.

    Raises:
        UserError: the store cannot be reached.
    """
    complete = _complete(configs, store)
    named = _name(recipe)
    under_way, others = _under_way(store, named, sleep)
    rows: dict[str, dict[str, Any]] = {}
    for content in (*others, *under_way):
        for row in content["runs"]:
            rows.pop(row["place"], None)  # what a later sweep says of it holds
            running = row["state"] == State.RUNNING and content in under_way
            if running or (row["state"] == State.FAILED and not store.has(row["place"])):
                rows[row["place"]] = {key: value for key, value in row.items() if key != "seconds"}
    sweeps = [
        {**{key: content[key] for key in ("host", "pid", "left", "slots")}, "changed": content["text"] != named["text"]}
        for content in under_way
    ]
    last = others[-1] if others and not under_way else {}
    ended = "died" if last.get("state") == "running" else last.get("state", "")
    there, why = sum(complete.values()), last.get("why", "")
    return Status(len(complete), there, undrawn, sweeps, [*rows.values()], ended, why)


def cancel(recipe: Path, store: Store, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """Ask the sweeps of a recipe to stop; they do within seconds, and complete runs stay.

    Returns:
        Who was asked: host and process. Empty where none is under way.
    """
    asked = []
    for content in _under_way(store, _name(recipe), sleep)[0]:
        store.write_note(content["name"].removesuffix(".json") + CANCEL, {"by": socket.gethostname()})
        asked.append(f"{content['host']}, process {content['pid']}")
    return asked


def _under_way(
    store: Store, named: dict[str, Any], sleep: Callable[[float], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Give the records of a recipe whose sweeps are under way, and the others."""
    found = dict(sweeps_of(store, named))
    doubtful = {name for name, each in found.items() if each["state"] == "running" and not alive(each, store.pause)}
    if doubtful:
        sleep(2.5 * store.pause)  # two clocks may differ: one that lives writes meanwhile
        for name, content in sweeps_of(store, named):
            if name in doubtful and content["beat"] != found[name]["beat"]:
                doubtful.discard(name)
                found[name] = content
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for name, content in found.items():
        parts[content["state"] != "running" or name in doubtful].append({**content, "name": name})
    return parts


def _complete(configs: Sequence[RunConfig], store: Store) -> dict[str, bool]:
    """Say of each run, by what it asks for, whether it is there, with whatever data it was made."""
    made: dict[tuple[str, str], set[str]] = {}
    found = {}
    for config in configs:
        of = config.dataset, config.method
        if of not in made:
            made[of] = {_asked(text) for text in store.settings(*of)}
        asked = _asked(to_toml(config))
        found[asked] = asked in made[of]
    return found


def _asked(text: str) -> str:
    """Hash what a config.toml asks for, whatever the data turned out to be."""
    with suppress(ValueError, UserError):  # a damaged one is no run of this recipe
        config = read_config(tomllib.loads(text))
        data = config.data.model_copy(update={"fingerprint": None})
        return config.model_copy(update={"data": data}).identity()
    return ""
