"""Unpack an archive into a folder: nothing is written before all of it is known to stay inside."""

from __future__ import annotations

import errno
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from evenlens.errors import UserError

DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, ValueError)
# The checks below refuse all that this filter does, and more; it came with Python 3.11.4.
SECOND_GUARD: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


class _Entry(NamedTuple):
    """What an archive says about one of its members.

    Attributes:
        name: as written in the archive.
        kind: "file", "folder", "link" or what else it is, in words.
        num_bytes: how long the file will be.
        target: what a link points at, from the archive's root where it starts with a slash.
    """

    name: str
    kind: str
    num_bytes: int = 0
    target: str = ""


def extract(archive: Path, folder: Path) -> list[Path]:
    """Unpack a tar or a zip; where every file is there in its size already, nothing is done.

    Args:
        archive: a tar (plain, gz, bz2 or xz) or a zip, told by its content.
        folder: where to.

    Returns:
        The files, sorted.

    Raises:
        UserError: it is no archive, a damaged one, one that would write outside the folder or holds anything but
            files and folders and links between them, or too large for the disk. Then no file was written.
    """
    try:
        with _open(archive) as opened:
            entries = _tar_entries(opened) if isinstance(opened, tarfile.TarFile) else _zip_entries(opened)
            sizes = _checked(entries, archive, shutil.disk_usage(folder).free)
            if not all(_is_there(folder / name, num_bytes) for name, num_bytes in sizes.items()):
                _write(opened, list(sizes), folder, folder / f".{archive.name}.unpacking")
    except (*DAMAGE, OSError) as error:
        number = getattr(error, "errno", None)  # decompressors raise OSError without one
        if number == errno.ENOSPC:
            raise UserError(f"The disk of {folder} is full: make room, and unpack {archive} again.") from None
        if number is not None:
            raise UserError(f"{archive} cannot be unpacked in {folder} ({error}).") from None
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{archive} is damaged ({why}): remove it and fetch it again.") from None
    return sorted(folder / name for name in sizes)


def _open(archive: Path) -> tarfile.TarFile | zipfile.ZipFile:
    try:
        return tarfile.open(archive, "r:*")
    except tarfile.ReadError:
        if zipfile.is_zipfile(archive):
            return zipfile.ZipFile(archive)
        raise UserError(
            f"{archive} is neither a tar nor a zip, or a damaged one: remove it and fetch it again."
        ) from None


def _tar_entries(tar: tarfile.TarFile) -> Iterator[_Entry]:
    for member in tar:
        if member.isreg():
            yield _Entry(member.name, "file", member.size)
        elif member.isdir():
            yield _Entry(member.name, "folder")
        elif member.issym() and not member.linkname.startswith("/"):
            yield _Entry(member.name, "link", target=f"/{PurePosixPath(member.name).parent}/{member.linkname}")
        elif member.islnk() and not member.linkname.startswith("/"):
            yield _Entry(member.name, "link", target=f"/{member.linkname}")
        else:
            yield _Entry(member.name, "a link out of the folder" if member.issym() or member.islnk() else "a device")
    while tar.fileobj and tar.fileobj.read(1 << 16):  # what is compressed has its checksum at the very end
        pass


def _zip_entries(opened: zipfile.ZipFile) -> Iterator[_Entry]:
    for member in opened.infolist():
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.flag_bits & 1:
            yield _Entry(member.filename, "a file with a password")
        elif member.is_dir():
            yield _Entry(member.filename, "folder")
        elif kind in (0, stat.S_IFREG):
            yield _Entry(member.filename, "file", member.file_size)
        else:
            yield _Entry(member.filename, "a link" if kind == stat.S_IFLNK else "a device")


def _checked(entries: Iterator[_Entry], archive: Path, free: int) -> dict[str, int | None]:
    """Refuse what must not be written; give every file's name and size, and every link's name and None."""
    sizes: dict[str, int | None] = {}
    links: dict[tuple[str, ...], str] = {}
    folders: set[tuple[str, ...]] = set()
    needed = 0
    for entry in entries:
        parts = tuple(part for part in re.split(r"[/\\]", entry.name) if part not in ("", "."))
        if entry.name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", entry.name) or ".." in parts:
            raise _unsafe(archive, f"a path that leads out of the folder, {entry.name!r}")
        if entry.kind not in ("file", "folder", "link"):
            raise _unsafe(archive, f"{entry.kind}, {entry.name!r}")
        needed += entry.num_bytes
        if needed > free:
            raise UserError(f"{archive} holds more than {needed:,} bytes, and {free:,} are free on its disk.")
        folders.update(parts[:length] for length in range(1, len(parts)))
        if entry.kind == "link":
            links[parts] = entry.target
        if entry.kind != "folder" and parts:
            sizes["/".join(parts)] = entry.num_bytes if entry.kind == "file" else None
    if not sizes:
        raise UserError(f"{archive} holds no file: remove it and fetch it again.")
    for parts, target in links.items():
        if parts in folders or not _stays_inside(target, links):
            raise _unsafe(archive, f"a link out of the folder, '{'/'.join(parts)}'")
    return sizes


def _stays_inside(target: str, links: dict[tuple[str, ...], str]) -> bool:
    """Follow a link's target from the archive's root; one that goes through another link is not followed."""
    place: list[str] = []
    for part in target.split("/"):
        if part in ("", "."):
            continue
        if tuple(place) in links or (part == ".." and not place):
            return False
        if part == "..":
            place.pop()
        else:
            place.append(part)
    return True


def _unsafe(archive: Path, what: str) -> UserError:
    return UserError(f"{archive} holds {what}, so nothing of it was unpacked: fetch it from whom you trust.")


def _is_there(path: Path, num_bytes: int | None) -> bool:
    if num_bytes is None:
        return os.path.lexists(path)
    return path.is_file() and path.stat().st_size == num_bytes


def _write(opened: tarfile.TarFile | zipfile.ZipFile, names: list[str], folder: Path, staging: Path) -> None:
    """Unpack beside, and move file by file, so that no half a file ever has its name."""
    shutil.rmtree(staging, ignore_errors=True)  # of a command that was killed
    staging.mkdir()
    try:
        if isinstance(opened, tarfile.TarFile):
            opened.extractall(staging, **SECOND_GUARD)
        else:
            opened.extractall(staging)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
