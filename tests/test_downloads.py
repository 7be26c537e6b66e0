"""Downloads: they survive a bad connection, and trust neither the server nor the archive."""

import hashlib
import http.server
import io
import os
import stat
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock

from evenlens import datasets
from evenlens.data import archives, downloads
from evenlens.data.downloads import Download, fetch, unpack
from evenlens.errors import UserError

CONTENT = bytes(range(256)) * 1000
LENGTH = len(CONTENT)


class Server(http.server.ThreadingHTTPServer):
    """A publisher on this machine, whose behaviour a test sets.

    `answers` are used up one a request, and say how: "whole", "cut" (half of what was asked for, then the connection
    is closed), "silent" (half, then nothing), "shifted" (another piece than was asked for), "nameless" (a piece that
    does not say which), or a status to refuse with.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.lengths, self.answers, self.asked = CONTENT, True, True, [], []
        self.location = None
        self.ended = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data/file.bin"

    def handle_error(self, request, client_address):
        pass  # a client that hung up


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        answer = server.answers.pop(0) if server.answers else "whole"
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            self.end_headers()
            return
        if isinstance(answer, int):
            self.send_error(answer)
            return
        if wanted and server.ranges and start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        start += 1 if answer == "shifted" else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start and answer != "nameless":
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if answer in ("whole", "shifted", "nameless") else body[: len(body) // 2])
        self.wfile.flush()
        if answer == "silent":
            server.ended.wait(10)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "PAUSES", (0.0, 0.0, 0.0))
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.ended.set()
    running.shutdown()
    thread.join()
    running.server_close()


def checksum(content=CONTENT, kind="sha256"):
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


def published(server, num_bytes=LENGTH, **changes):
    return Download(server.url, changes.pop("checksum", checksum()), num_bytes, **changes)


def left(folder):
    """What is in a folder, but for locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("kind", ["md5", "sha256"])
@pytest.mark.parametrize("num_bytes", [len(CONTENT), None])
@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_is_fetched_whole_with_its_progress(server, tmp_path, kind, num_bytes, lengths):
    server.lengths, seen = lengths, []
    path = fetch(
        published(server, num_bytes, checksum=checksum(kind=kind)), tmp_path / "new", lambda *n: seen.append(n)
    )
    assert path == tmp_path / "new/file.bin"
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == ["file.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
    fetch(published(server), tmp_path)
    fetch(published(server), tmp_path)
    assert len(server.asked) == 1


def test_a_file_of_this_name_with_another_content_is_replaced_only_by_the_right_one(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"half a download by hand")
    server.answers = [404]
    with pytest.raises(UserError):
        fetch(published(server), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"half a download by hand"
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_a_connection_that_breaks_goes_on_where_it_was(server, tmp_path):
    server.answers = ["cut", "cut"]
    seen = []
    assert fetch(published(server), tmp_path, lambda *n: seen.append(n)).read_bytes() == CONTENT
    half, most = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert server.asked == [None, f"bytes={half}-", f"bytes={most}-"]
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_a_killed_download_goes_on_where_it_was(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize(("num_bytes", "asked"), [(len(CONTENT), []), (None, [f"bytes={len(CONTENT)}-"])])
def test_a_download_that_was_killed_when_all_was_there_fetches_nothing(server, tmp_path, num_bytes, asked):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(published(server, num_bytes), tmp_path).read_bytes() == CONTENT
    assert server.asked == asked


def test_a_server_that_falls_silent_is_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    server.answers, begun = ["silent"], time.monotonic()
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert time.monotonic() - begun < 5
    assert server.asked == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_server_without_ranges_is_asked_for_the_whole_again(server, tmp_path):
    server.ranges, server.answers = False, ["cut"]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("old", [b"x" * 1000, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 7)])
@pytest.mark.parametrize("num_bytes", [len(CONTENT), None])
def test_what_is_left_of_another_file_is_thrown_away(server, tmp_path, old, num_bytes):
    (tmp_path / "file.bin.part").write_bytes(old)
    assert fetch(published(server, num_bytes), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("answers", [["shifted"], ["nameless"] * 5])
def test_a_piece_that_was_not_asked_for_is_thrown_away(server, tmp_path, answers):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    server.answers = answers
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(server, tmp_path, status):
    server.answers = [status, status]
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_a_connection_that_keeps_breaking_is_given_up_and_what_came_is_kept(server, tmp_path):
    server.ranges, server.answers = False, ["cut"] * 20
    with pytest.raises(UserError, match=r"cannot be fetched \(the connection ended early\).*goes on .*128,000 bytes"):
        fetch(published(server), tmp_path)
    assert len(server.asked) == 4  # one for the start, and one for each pause
    assert left(tmp_path) == ["file.bin.part"]


def test_attempts_are_counted_anew_when_bytes_have_come(server, tmp_path):
    server.answers = ["cut"] * 10
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 11


def test_pauses_grow(server, tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(downloads, "PAUSES", (1.0, 2.0, 4.0))
    monkeypatch.setattr(time, "sleep", slept.append)
    server.answers = [503] * 4
    with pytest.raises(UserError, match="answered 503"):
        fetch(published(server), tmp_path)
    assert slept == [1.0, 2.0, 4.0]


def test_another_checksum_is_one_sentence_with_both_and_the_file_is_removed(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(UserError) as error:
        fetch(published(server), tmp_path)
    assert checksum() in str(error.value)
    assert checksum(CONTENT[::-1]) in str(error.value)
    assert "\n" not in str(error.value)
    assert left(tmp_path) == []


def test_another_length_is_refused_before_it_is_fetched(server, tmp_path):
    server.content = b"<html>please accept our terms</html>"
    with pytest.raises(UserError, match=r"has 36 bytes where 256,000 were published"):
        fetch(published(server), tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_file_that_is_not_there_is_one_sentence_at_once(server, tmp_path, status):
    server.answers = [status]
    with pytest.raises(UserError, match=rf"the server answered {status} .*in a browser"):
        fetch(published(server), tmp_path)
    assert len(server.asked) == 1
    assert left(tmp_path) == []


def test_no_connection_is_one_sentence(server, tmp_path):
    with pytest.raises(UserError, match=r"cannot be fetched \(Connection refused\): check the network\.$"):
        fetch(Download("http://127.0.0.1:1/file.bin", checksum(), None), tmp_path)


def test_an_unknown_name_is_one_sentence_at_once_unless_something_has_come(server, tmp_path, monkeypatch):
    import socket

    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)

    def nobody(*arguments, **named):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    download = Download("https://example.org/file.bin", checksum(), None)
    with pytest.raises(
        UserError, match=r"cannot be reached \(Temporary failure in name resolution\): check the network"
    ):
        fetch(download, tmp_path)
    assert not slept
    (tmp_path / "file.bin.part").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"cannot be fetched \(Temporary .*goes on where this one was \(1 bytes are there"
    ):
        fetch(download, tmp_path)
    assert len(slept) == 3


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/file.bin",
        "ftp://example.org/file.bin",
        "file:///etc/hostname",
        "https:///file.bin",
        "http://localhost.example.org/file.bin",
        "file.bin",
    ],
)
def test_only_https_is_fetched(url, tmp_path):
    with pytest.raises(UserError, match=r"only addresses that start with https://"):
        fetch(Download(url, checksum(), None), tmp_path)


@pytest.mark.parametrize("end", ["", "..", "%2e%2e", "a%5cb"])
def test_an_address_that_ends_in_no_file_is_refused(end, tmp_path):
    with pytest.raises(UserError, match=r"does not end in the name of a file"):
        fetch(Download(f"https://example.org/data/{end}", checksum(), None), tmp_path)


def test_a_redirection_is_followed_within_the_scheme_alone(server, tmp_path):
    for location, words in (
        ("https://example.org/file.bin", "by another scheme"),
        ("ftp://example.org/file.bin", "by another scheme"),
        ("http://example.org/file.bin", "only addresses that start with https"),
        ("file:///etc/hostname", "cannot be fetched: the server answered 302"),
    ):
        server.location = location
        with pytest.raises(UserError, match=words):
            fetch(published(server), tmp_path)
    other = Server()
    thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.location = other.url
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(published(server), tmp_path).read_bytes() == CONTENT
    other.shutdown()
    thread.join()
    other.server_close()
    assert other.asked == ["bytes=1000-"]


def test_a_full_disk_is_one_sentence_before_and_in_the_middle(server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"needs \d[\d,]+ more bytes in .*where [\d,]+ are free"):
        fetch(published(server, 2**62), tmp_path)
    assert not server.asked

    def full(*arguments):
        raise OSError(28, "No space left on device")

    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    monkeypatch.setattr(downloads, "_copy", full)
    with pytest.raises(UserError, match=r"The disk of .* is full: make room, .*goes on where it was"):
        fetch(published(server), tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:1000]


def test_two_commands_do_not_write_one_file(server, tmp_path):
    with FileLock(tmp_path / ".file.bin.lock"), pytest.raises(UserError, match="Another process"):
        fetch(published(server), tmp_path)


def test_a_folder_that_cannot_be_written_is_one_sentence(server, tmp_path):
    (tmp_path / "taken").write_text("")
    for folder in (tmp_path / "taken", tmp_path / "taken/below"):
        with pytest.raises(UserError, match=r"cannot be written .*choose another folder"):
            fetch(published(server), folder)


@pytest.mark.parametrize("name", datasets.names())
def test_what_data_sets_name_can_be_asked_for(name):
    import re

    for download in datasets.get(name).downloads:
        downloads._check_address(download.url)
        assert downloads._file_name(download.url)
        assert re.fullmatch(downloads.CHECKSUM, download.checksum)
        assert download.num_bytes is None or download.num_bytes > 0


# Archives


def tar(path, *members, mode="w"):
    """Write a tar of (name, content or TarInfo changes)."""
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                for key, value in content.items():
                    setattr(info, key, value)
                archive.addfile(info)
    return path


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


GOOD = (("set/labels.txt", b"1\n"), ("./set/images/1.png", b"one"), ("set/images/2.png", b""))
FOLDER = {"type": tarfile.DIRTYPE, "mode": 0o755}


def link(target, kind=tarfile.SYMTYPE):
    return {"type": kind, "linkname": target}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_an_archive_is_unpacked_and_told_by_its_content(tmp_path, mode):
    archive = tmp_path / "anything"
    if mode == "zip":
        zipped(archive, *GOOD)
    else:
        tar(archive, ("set", FOLDER), *GOOD, mode=mode)
    files = unpack(archive, tmp_path / "out")
    assert files == [tmp_path / "out/set" / name for name in ("images/1.png", "images/2.png", "labels.txt")]
    assert [path.read_bytes() for path in files] == [b"one", b"", b"1\n"]
    assert left(tmp_path / "out") == ["1.png", "2.png", "labels.txt"]


def test_unpacking_again_changes_nothing_and_mends_what_is_lacking(tmp_path):
    archive, out = zipped(tmp_path / "a.zip", *GOOD), tmp_path / "out"
    files = unpack(archive, out)
    (out / "mine.txt").write_text("mine")
    before = [path.stat().st_ino for path in files]
    assert unpack(archive, out) == files
    assert [path.stat().st_ino for path in files] == before
    (out / "set/labels.txt").write_bytes(b"cut, or written half by somebody else")
    (out / "set/images/1.png").unlink()
    assert unpack(archive, out) == files
    assert [path.read_bytes() for path in files] == [b"one", b"", b"1\n"]
    assert (out / "mine.txt").read_text() == "mine"


def test_what_a_killed_command_left_does_no_harm(tmp_path):
    archive, out = tar(tmp_path / "a.tar", *GOOD), tmp_path / "out"
    (out / ".a.tar.unpacking/set").mkdir(parents=True)
    (out / ".a.tar.unpacking/set/labels.txt").write_text("half")
    unpack(archive, out)
    assert (out / "set/labels.txt").read_bytes() == b"1\n"
    assert left(out) == ["1.png", "2.png", "labels.txt"]


def test_links_inside_are_kept(tmp_path):
    members = (*GOOD, ("set/images/first", link("1.png")), ("set/up", link("images/../labels.txt")))
    members = (*members, ("set/same", link("set/images/1.png", tarfile.LNKTYPE)))
    out = tmp_path / "out"
    files = unpack(tar(tmp_path / "a.tar", *members), out)
    assert (out / "set/images/first").read_bytes() == (out / "set/same").read_bytes() == b"one"
    assert (out / "set/up").read_bytes() == b"1\n"
    assert unpack(tmp_path / "a.tar", out) == files


EVIL_TARS = {
    "above": [("../evil", b"x")],
    "above in the middle": [("set/../../evil", b"x")],
    "above by a backslash": [("set\\..\\..\\evil", b"x")],
    "absolute": [("/tmp/evil", b"x")],
    "absolute on Windows": [("C:\\evil", b"x")],
    "folder above": [("../evil", FOLDER)],
    "link out": [("out", link("../../elsewhere"))],
    "link out from below": [("a/b/out", link("../../../elsewhere"))],
    "absolute link": [("out", link("/etc"))],
    "absolute hard link": [("out", link("/etc/hostname", tarfile.LNKTYPE))],
    "hard link out": [("out", link("../elsewhere", tarfile.LNKTYPE))],
    "file through a link": [("out", link("set")), ("out/evil", b"x")],
    "file through a later link": [("out/evil", b"x"), ("out", link("set"))],
    "link through a link": [("a/b/c/here", link("../../..")), ("a/b/c/out", link("here/../elsewhere"))],
    "character device": [("device", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})],
    "block device": [("device", {"type": tarfile.BLKTYPE, "devmajor": 8, "devminor": 0})],
    "pipe": [("pipe", {"type": tarfile.FIFOTYPE})],
}


@pytest.mark.parametrize("members", EVIL_TARS.values(), ids=EVIL_TARS)
def test_an_evil_tar_is_refused_with_nothing_written(tmp_path, members):
    archive = tar(tmp_path / "a.tar", *GOOD, *members)
    refuse(archive, r"holds (a path that leads out|a link out|a device).*nothing of it was unpacked")


def zip_entry(name, kind=0, flags=0):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o644) << 16
    info.flag_bits |= flags
    return info


EVIL_ZIPS = {
    "above": "../evil",
    "above in the middle": "set/../../evil",
    "above by a backslash": "..\\evil",
    "absolute": "/tmp/evil",
    "link": zip_entry("out", stat.S_IFLNK),
    "device": zip_entry("device", stat.S_IFCHR),
}


@pytest.mark.parametrize("entry", EVIL_ZIPS.values(), ids=EVIL_ZIPS)
def test_an_evil_zip_is_refused_with_nothing_written(tmp_path, entry):
    archive = zipped(tmp_path / "a.zip", *GOOD, (entry, b"/etc/hostname"))
    refuse(archive, r"holds (a path that leads out|a link|a device).*nothing of it was unpacked")


def refuse(archive, words):
    """Unpacking says so in one sentence, and leaves nothing anywhere."""
    out = archive.parent / "below" / "out"
    with pytest.raises(UserError, match=words) as error:
        unpack(archive, out)
    assert "\n" not in str(error.value)
    assert left(archive.parent) == [archive.name]
    assert [path.name for path in out.iterdir() if path.suffix != ".lock"] == []
    assert not Path("/tmp/evil").exists()


def test_a_zip_with_a_password_is_one_sentence(tmp_path):
    archive = zipped(tmp_path / "a.zip", *GOOD)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the table of contents
    archive.write_bytes(content)
    refuse(archive, "holds a file with a password")


@pytest.mark.parametrize("write", [tar, zipped])
def test_an_archive_larger_than_the_disk_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, write):
    import shutil

    archive = write(tmp_path / "a", ("zeros", bytes(10**6)), ("more", bytes(10**6)))
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1_500_000))
    refuse(archive, r"holds more than 2,000,000 bytes, and 1,500,000 are free")


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>please log in</html>", bytes(10_240), b"\x1f\x8b\x08" + bytes(100), b"PK\x05\x06" + bytes(18)],
)
def test_what_is_no_archive_is_one_sentence(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    refuse(tmp_path / "a", r"is neither a tar nor a zip|is damaged|holds no file")


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *((kind, how) for kind in ("w:gz", "w:bz2", "w:xz", "zip") for how in ("cut", "flipped")),
        ("w", "cut"),  # without compression there is no checksum of the contents
    ],
)
def test_a_damaged_archive_leaves_nothing(tmp_path, kind, how):
    members = [(name, os.urandom(50_000)) for name in ("one", "two")]
    archive = tmp_path / "a"
    if kind == "zip":
        zipped(archive, *members)
    else:
        tar(archive, *members, mode=kind)
    content = bytearray(archive.read_bytes())
    if how == "cut":
        content = content[:60_000]
    else:
        content[30_000] ^= 255
    archive.write_bytes(content)
    refuse(archive, r"is neither a tar nor a zip|is damaged")


def test_a_file_that_stands_in_the_way_is_one_sentence(tmp_path):
    archive, out = tar(tmp_path / "a.tar", *GOOD), tmp_path / "out"
    out.mkdir()
    (out / "set").write_text("mine")
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, out)
    assert left(out) == ["set"]


def test_the_checks_do_without_the_second_guard(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SECOND_GUARD", {"filter": "fully_trusted"})
    refuse(tar(tmp_path / "a.tar", *GOOD, ("out", link("../../elsewhere"))), "a link out of the folder")


def test_a_file_may_have_a_name_of_its_own(server, tmp_path):
    checksum = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
    path = fetch(Download(f"{server.url}?format=original", checksum, LENGTH, unpack=False, name="table.csv"), tmp_path)
    assert path == tmp_path / "table.csv"
    assert path.read_bytes() == CONTENT
