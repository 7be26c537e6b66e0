"""Where runs are kept: a folder, which may be shared, or what fsspec reaches by an address, such as s3://bucket/runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from evenlens.data.images import cache_folder
from evenlens.errors import UserError
from evenlens.files import replacing

NOTES = ".sweeps"  # folder of what sweeps say of themselves
PART = ".part"  # at the end of the name of a file that is not yet whole
LAST = "metrics.json"  # of a run's files: where it is, the run is complete


class Unreachable(UserError):
    """The store was there, and is not any more."""


def open_store(address: Path | str) -> Store:
    """Open the store of runs at a path or an address.

    Args:
        address: a folder, which need not be there yet, or an address with "://" in it.

    Raises:
        UserError: no such kind of address, or the package that knows it is missing.
    """
    return Remote(str(address)) if "://" in str(address) else Store(Path(address))


class Store:
    """A folder of runs, on this machine or shared by several.

    Attributes:
        folder: where runs are made and read.
        address: what `open_store` opens it by, in any process.
        pause: seconds after which it is worth to look again what others left here.
    """

    pause = 1.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser()
        self.address = str(self.folder.absolute())

    def prepare(self) -> None:
        """Make the store ready for a sweep, with the mark by which a worker knows that it sees the same one."""
        (self.folder / NOTES).mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Look whether it can be seen from here.

        Raises:
            Unreachable: it cannot.
        """
        if not (self.folder / NOTES).is_dir():
            raise Unreachable(
                f"{self.folder} is gone, or cannot be seen by every worker: put it back, or share it; the same command "
                "goes on."
            )

    def complete(self) -> set[str]:
        """Give the places of all complete runs: dataset/method/id."""
        return {path.relative_to(self.folder).as_posix() for path in self.folder.glob("[!.]*/*/[!.]*")}

    def has(self, place: str) -> bool:
        """Say whether a run is complete."""
        return (self.folder / place).exists()

    def fetch(self, place: str) -> None:
        """Get a complete run into `folder`, if it is not there; one that is not complete is left."""

    def put(self, place: str) -> None:
        """Keep a complete run of `folder`."""

    def settings(self, dataset: str, method: str) -> list[str]:
        """Give the config.toml of all complete runs of a method."""
        found = []
        for path in self.folder.glob(f"{dataset}/{method}/[!.]*/config.toml"):
            with suppress(OSError):
                found.append(path.read_text(encoding="utf-8"))
        return found

    # ---- what sweeps say of themselves

    def write_note(self, name: str, content: dict[str, Any]) -> None:
        """Write a note in one piece; the place for notes is not made anew, as it would hide that the store is gone."""
        with replacing(self.folder / NOTES / name) as part:
            part.write_text(json.dumps(content), encoding="utf-8")

    def has_note(self, name: str) -> bool:
        """Say whether there is a note of this name."""
        return (self.folder / NOTES / name).exists()

    def remove_note(self, name: str) -> None:
        """Take a note away; one that is not there does no harm."""
        (self.folder / NOTES / name).unlink(missing_ok=True)

    def notes(self) -> dict[str, dict[str, Any]]:
        """Read all notes by name; what is no JSON object is left out."""
        texts = {}
        for path in (self.folder / NOTES).glob("[!.]*"):
            with suppress(OSError):
                texts[path.name] = path.read_bytes()
        return _objects(texts)


class Remote(Store):
    """Runs at an address that fsspec reaches: made and read in a folder of the cache, copied up when they are complete.

    A run is there if and only if its metrics.json is, which is copied last.
    """

    pause = 5.0

    def __init__(self, address: str) -> None:
        import fsspec.core

        self.address = address.rstrip("/")
        kind = address.partition("://")[0]
        try:
            self.files, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise UserError(f"A store at {kind}:// needs one more package: {' '.join(str(error).split())}.") from None
        except ValueError as error:
            raise UserError(
                f"{address} is no address of a store ({error}): give a folder, or an address such as s3://bucket/runs."
            ) from None
        self.root = str(root).rstrip("/")
        name = hashlib.blake2b(self.address.encode(), digest_size=5).hexdigest()
        self.folder = cache_folder().expanduser().absolute() / "stores" / name

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Say in one sentence that the store does not answer; each kind has errors of its own."""
        try:
            self.files.invalidate_cache()  # others write there too
            yield
        except UserError:
            raise
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise Unreachable(f"The store {self.address} does not answer ({said}); the same command goes on.") from None

    def prepare(self) -> None:
        """Make the local folder; the store needs nothing."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def check(self) -> None:
        """Nothing to see before something is asked for."""

    def complete(self) -> set[str]:
        """Give the places of all complete runs: dataset/method/id."""
        with self._asked():
            found = self.files.glob(f"{self.root}/*/*/*/{LAST}")
        return {self._below(name, 4).parent.as_posix() for name in map(str, found)}

    def has(self, place: str) -> bool:
        """Say whether a run is complete."""
        return self._exists(f"{place}/{LAST}")

    def fetch(self, place: str) -> None:
        """Get a complete run into `folder`, if it is not there; one that is not complete is left."""
        target = self.folder / place
        if target.exists() or not self.has(place):
            return
        part = target.with_name(f".{target.name}.{os.getpid()}.fetched")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            with self._asked():
                for entry in self.files.ls(f"{self.root}/{place}", detail=True):
                    name = str(entry["name"])
                    if entry["type"] == "file" and not name.endswith(PART):
                        self.files.get_file(name, str(part / self._below(name, 4).name))
            with suppress(OSError):  # another process has fetched it meanwhile
                part.replace(target)
            if not target.exists():
                raise Unreachable(f"{target} cannot be written: make room there; the same command goes on.")
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def put(self, place: str) -> None:
        """Keep a complete run of `folder`."""
        if self.has(place):
            return
        names = sorted(path.name for path in (self.folder / place).iterdir() if path.is_file())
        names.sort(key=lambda name: name == LAST)
        with self._asked():
            self.files.makedirs(f"{self.root}/{place}", exist_ok=True)
            for name in names:
                there = f"{self.root}/{place}/{name}"
                if name == LAST:  # whole or not there, where writing is no single step
                    self.files.put_file(str(self.folder / place / name), f"{there}{PART}")
                    self.files.mv(f"{there}{PART}", there)
                else:
                    self.files.put_file(str(self.folder / place / name), there)

    def settings(self, dataset: str, method: str) -> list[str]:
        """Give the config.toml of all complete runs of a method."""
        with self._asked():
            complete = self.files.glob(f"{self.root}/{dataset}/{method}/*/{LAST}")
            names = [f"{str(name).rpartition('/')[0]}/config.toml" for name in complete]
            found = self.files.cat(names) if names else {}
        return [content.decode() for content in found.values()]

    def write_note(self, name: str, content: dict[str, Any]) -> None:
        """Write a note in one piece."""
        with self._asked():
            self.files.makedirs(f"{self.root}/{NOTES}", exist_ok=True)
            self.files.pipe_file(f"{self.root}/{NOTES}/{name}", json.dumps(content).encode())

    def has_note(self, name: str) -> bool:
        """Say whether there is a note of this name."""
        return self._exists(f"{NOTES}/{name}")

    def remove_note(self, name: str) -> None:
        """Take a note away; one that is not there does no harm."""
        if self.has_note(name):
            with self._asked():
                self.files.rm_file(f"{self.root}/{NOTES}/{name}")

    def notes(self) -> dict[str, dict[str, Any]]:
        """Read all notes by name; what is no JSON object is left out."""
        with self._asked():
            names = self.files.glob(f"{self.root}/{NOTES}/*")
            found = self.files.cat(names) if names else {}
        return _objects({PurePosixPath(name).name: content for name, content in found.items()})

    def _exists(self, place: str) -> bool:
        with self._asked():
            try:
                self.files.info(f"{self.root}/{place}")
            except FileNotFoundError:
                return False
            return True

    def _below(self, name: str, depth: int) -> PurePosixPath:
        """Give the place below the store of a name that it lists, which must lie so many folders deep, and inside."""
        root = self.root.lstrip("/")
        place = PurePosixPath(name.lstrip("/").removeprefix(f"{root}/"))
        named = not place.is_absolute() and not {"..", "."} & {*place.parts} and "\\" not in name
        if not named or len(place.parts) != depth or not name.lstrip("/").startswith(f"{root}/"):
            raise UserError(f"The store {self.address} lists {name!r}, which is no file of a run: nothing was taken.")
        return place


def _objects(texts: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, text in texts.items():
        with suppress(ValueError):
            content = json.loads(text)
            if isinstance(content, dict):
                found[name] = content
    return found
