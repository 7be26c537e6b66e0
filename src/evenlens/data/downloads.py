"""Fetch what may be had freely: it goes on after a break, is checked before it counts, and unpacks into its folder.

Nothing here runs unless a person asks for a download.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from evenlens.data.archives import extract
from evenlens.errors import UserError

TIMEOUT = 30.0  # seconds without a byte before a connection counts as broken
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before each further attempt; counted anew whenever bytes have come
CHUNK = 1 << 16  # bytes between two reports of progress
CHECKSUM = r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers that another attempt may better
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Progress = Callable[[int, int], None]
"""Called with (bytes that are there, bytes of the whole, as far as known)."""


class Download(NamedTuple):
    """A file that its publisher lets anybody fetch.

    Attributes:
        url: where it is; https, or http on this machine alone.
        checksum: "md5:" or "sha256:" and the hex digits, in small letters, of the whole file.
        num_bytes: its exact size, or None where it is not known.
        unpack: it is an archive, to be unpacked.
        name: of the file, where the address does not end in one.
        into: folder to unpack into, below the one where the archive is.
    """

    url: str
    checksum: str
    num_bytes: int | None
    unpack: bool = True
    name: str = ""
    into: str = ""


class _BrokenError(Exception):
    """The connection failed in a way that another attempt may better."""


def fetch(download: Download, folder: Path, progress: Progress | None = None) -> Path:
    """Fetch a file into a folder; one that is there with the right checksum is not fetched again.

    What has come is kept in `<file name>.part`, so that a call after a break or a kill goes on where it was. Only a
    file with the right checksum gets its name.

    Args:
        download: what to fetch.
        folder: where to put it; made if it is not there.
        progress: called with (bytes there, bytes of the whole) while they come.

    Returns:
        The file's path, `folder / <its name, or the last part of the address>`.

    Raises:
        UserError: there is no connection, no such file, no room, or another file than was published.
    """
    _check_address(download.url)
    name = download.name or _file_name(download.url)
    with _alone(folder, name):
        path = folder / name
        if path.is_file() and _digest(path, download.checksum) == download.checksum:
            return path
        part = folder / f"{name}.part"
        resumed = part.exists() and part.stat().st_size > 0
        found = _whole(download, part, progress)
        if found != download.checksum and resumed:  # what was there may be of another file: begin again, once
            part.unlink()
            found = _whole(download, part, progress)
        if found != download.checksum:
            part.unlink()
            raise UserError(
                f"{download.url} gave a file with the checksum {found} where {download.checksum} is expected, so it "
                f"was removed: try again, and if it stays so, fetch the file from whom you trust and put it at {path}."
            )
        part.replace(path)
        return path


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Unpack a tar (plain, gz, bz2 or xz) or a zip into a folder; where all is there in its size, nothing is done.

    Args:
        archive: the file.
        folder: where to; made if it is not there.

    Returns:
        The files, sorted.

    Raises:
        UserError: it is no archive, a damaged one, one that would write outside the folder, or too large for the
            disk; then nothing was written.
    """
    with _alone(folder, archive.name):
        return extract(archive, folder)


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock beside the file, so that two commands never write one file."""
    lock = FileLock(folder / f".{name}.lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"Another process is at {folder / name}: wait until it is done, and try again.") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from None
    try:
        yield
    finally:
        lock.release()


def _check_address(url: str, before: str | None = None) -> None:
    """Allow https, and http on this machine; a redirection keeps to the scheme that it came from."""
    parts = urlsplit(url)
    allowed = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
    if before is not None and parts.scheme != urlsplit(before).scheme:
        raise UserError(f"{before} leads on to {url}, by another scheme: this is not followed; fetch it by hand.")
    if not allowed or not parts.hostname:
        raise UserError(f"{url} is not fetched: only addresses that start with https:// are.")


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not name or name in (".", "..") or "\\" in name or "\0" in name:
        raise UserError(f"{url} does not end in the name of a file.")
    return name


def _digest(path: Path, checksum: str) -> str:
    """Give the checksum of a file, of the kind that is given."""
    if not re.fullmatch(CHECKSUM, checksum):
        raise ValueError(f"a checksum is md5: and 32 or sha256: and 64 hex digits, not {checksum!r}")
    kind = checksum.partition(":")[0]
    with path.open("rb") as file:
        return f"{kind}:{hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()}"


class _Redirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            _check_address(newurl, before=req.full_url)
        except UserError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _whole(download: Download, part: Path, progress: Progress | None) -> str:
    """Bring the part file to its full length, over as many connections as it takes, and give its checksum."""
    _check_room(download, part)
    failures, furthest = 0, part.stat().st_size if part.exists() else 0
    while True:
        try:
            _one_connection(download, part, progress)
            return _digest(part, download.checksum)
        except _BrokenError as error:
            here = part.stat().st_size if part.exists() else 0
            failures = 1 if here > furthest else failures + 1
            furthest = max(furthest, here)
            if failures > len(PAUSES):
                kept = f"; the same command goes on where this one was ({here:,} bytes are there)" if here else ""
                raise UserError(f"{download.url} cannot be fetched ({error}): check the network{kept}.") from None
            time.sleep(PAUSES[failures - 1])


def _check_room(download: Download, part: Path) -> None:
    lacking = (download.num_bytes or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if lacking > free:
        raise UserError(f"{download.url} needs {lacking:,} more bytes in {part.parent}, where {free:,} are free.")


def _one_connection(download: Download, part: Path, progress: Progress | None) -> None:
    """Ask for what is lacking and write it; the answer may also be the whole file.

    Raises:
        _BrokenError: the connection broke.
        UserError: another attempt would not help.
    """
    have = part.stat().st_size if part.exists() else 0
    if download.num_bytes is not None and have == download.num_bytes:
        return  # all of it came, and then the process was stopped
    request = urllib.request.Request(download.url, headers={"User-Agent": "evenlens"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.build_opener(_Redirections).open(request, timeout=TIMEOUT) as answer:
            start, total = _extent(answer, have)
            if start not in (0, have):
                part.unlink(missing_ok=True)
                raise _BrokenError("the server sent another piece than was asked for")
            if None not in (total, download.num_bytes) and total != download.num_bytes:
                raise UserError(
                    f"{download.url} has {total:,} bytes where {download.num_bytes:,} were published: it is another "
                    "file, or a page that asks for something; look at the address in a browser."
                )
            with _writing(part), part.open("r+b" if start else "wb") as file:
                file.seek(start)
                _copy(answer, file, start, total or download.num_bytes, progress)
    except urllib.error.HTTPError as error:
        with error:
            _refused(download.url, error, part, have)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"The certificate of {download.url} cannot be verified ({error.reason.verify_message}): check the "
                "clock and the certificates of this machine, or fetch it by hand."
            ) from None
        why = getattr(error.reason, "strerror", None) or str(error.reason)
        if isinstance(error.reason, socket.gaierror) and not have:  # no network at all: waiting would not help
            raise UserError(f"{download.url} cannot be reached ({why}): check the network.") from None
        raise _BrokenError(why) from None
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from None


def _extent(answer: Any, have: int) -> tuple[int, int | None]:
    """Give where the answer starts in the file, and how long the file is, if it says so."""
    length = answer.headers.get("Content-Length", "")
    if answer.status != 206:
        return 0, int(length) if length.isdigit() else None
    extent, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    start = extent.partition("-")[0]
    return int(start) if start.isdigit() else -1, int(total) if total.isdigit() else None


def _copy(answer: Any, file: BinaryIO, start: int, total: int | None, progress: Progress | None) -> None:
    done = start
    while total is None or done < total:
        piece = answer.read1(CHUNK)  # what has come: a connection that breaks loses nothing
        if not piece:
            break
        file.write(piece)
        done += len(piece)
        if progress:
            progress(done, max(done, total or 0))
    if total is not None and done < total:
        raise _BrokenError("the connection ended early")


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """Tell a full disk, which comes as the same kind of error as a broken connection."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"The disk of {part.parent} is full: make room, and the same command goes on where it was."
            ) from None
        if isinstance(error, PermissionError | IsADirectoryError):
            raise UserError(f"{part} cannot be written ({error.strerror}): choose another folder.") from None
        raise


def _refused(url: str, error: urllib.error.HTTPError, part: Path, have: int) -> None:
    """Sort a server's refusal: go on, try again, or give up."""
    if error.code == 416 and have:  # no such range: the part is whole already, or it is of another file
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(have):
            part.unlink()
            raise _BrokenError("the file on the server is shorter than what is here") from None
        return
    if error.code in PASSING:
        raise _BrokenError(f"the server answered {error.code} {error.reason}") from None
    raise UserError(
        f"{url} cannot be fetched: the server answered {error.code} {error.reason}; look at the address in a browser, "
        "as the publisher may have moved the file."
    ) from None
