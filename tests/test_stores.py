"""Where runs are kept: a folder, or an address that fsspec reaches; whole or not there, and nothing outside of it."""

import errno
import json
import subprocess

import fsspec
import pytest

from evenlens import run, workers
from evenlens.errors import UserError
from evenlens.stores import NOTES, Remote, Store, Unreachable, open_store
from evenlens.sweeps import sweep
from evenlens.workers import News
from tests.worker import InProcess, configs_of

PLACE = "d/m/0123456789"


@pytest.fixture(autouse=True)
def memory():
    """fsspec's own memory is that of the whole process."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    return files


@pytest.fixture(params=["a folder", "a folder by its address", "memory"])
def store(request, tmp_path):
    address = {"a folder": tmp_path / "runs", "memory": "memory://bucket/runs"}
    opened = open_store(address.get(request.param, (tmp_path / "far").as_uri()))
    opened.prepare()
    return opened


def make_run(store, place=PLACE, **files):
    folder = store.folder / place
    folder.mkdir(parents=True)
    for name, text in {"config": 'dataset = "d"', "metrics": "{}", **files}.items():
        (folder / f"{name}.{'toml' if name == 'config' else 'json'}").write_text(text)
    return folder


# ---- any store


def test_a_run_that_was_put_is_there_and_can_be_fetched_elsewhere(store, monkeypatch, tmp_path):
    assert not store.has(PLACE)
    assert store.complete() == set()
    make_run(store, environment="{}")
    store.put(PLACE)
    assert store.has(PLACE)
    assert store.complete() == {PLACE}
    assert store.settings("d", "m") == ['dataset = "d"']
    assert store.settings("d", "other") == []
    if isinstance(store, Remote):
        monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "of another machine"))
    other = open_store(store.address)
    other.fetch(PLACE)
    assert {path.name for path in (other.folder / PLACE).iterdir()} == {
        "config.toml", "metrics.json", "environment.json"
    }  # fmt: skip
    other.fetch("d/m/9876543210")  # which is nowhere
    assert not (other.folder / "d/m/9876543210").exists()
    assert not list(other.folder.glob("**/.*fetched"))


def test_notes_are_read_as_they_were_written(store):
    assert store.notes() == {}
    store.write_note("a.json", {"beat": 1})
    store.write_note("a.json", {"beat": 2})
    assert store.notes() == {"a.json": {"beat": 2}}
    assert store.has_note("a.json")
    store.remove_note("a.json")
    store.remove_note("a.json")
    assert not store.has_note("a.json")


# ---- a folder


def test_a_folder_that_is_gone_is_noticed_and_not_made_anew(tmp_path):
    store = open_store(tmp_path / "runs")
    store.prepare()
    store.check()
    (tmp_path / "runs").rename(tmp_path / "gone")
    with pytest.raises(Unreachable, match="runs is gone, or cannot be seen by every worker"):
        store.check()
    with pytest.raises(OSError, match="No such file"):
        store.write_note("a.json", {})
    assert not (tmp_path / "runs").exists()


def test_what_is_under_way_is_no_complete_run(tmp_path):
    store = open_store(tmp_path)
    store.prepare()
    make_run(store, "d/m/.0123456789.partial")
    assert store.complete() == set()


# ---- an address


def test_a_run_whose_copy_was_cut_short_is_not_there_and_is_copied_again(monkeypatch):
    store = open_store("memory://bucket/runs")
    make_run(store, zzz="{}")  # which comes after metrics.json by its name
    as_it_is = type(store.files).put_file

    def full(files, here, there, *more, **named):
        if there.endswith("zzz.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        as_it_is(files, here, there, *more, **named)

    monkeypatch.setattr(type(store.files), "put_file", full)
    with pytest.raises(Unreachable, match=r"memory://bucket/runs does not answer \(OSError: .*No space left"):
        store.put(PLACE)
    assert not store.has(PLACE)
    monkeypatch.setattr(type(store.files), "put_file", as_it_is)
    store.put(PLACE)
    assert store.has(PLACE)


@pytest.mark.parametrize("name", ["/bucket/runs/d/m/0123456789/../../../../x", "/etc/passwd",
                                  "/bucket/runs/d/m/0123456789/deep/x", "/bucket/runs/d/m/0123456789/..\\x"],
                         ids=["above", "absolute", "deeper", "backslash"])  # fmt: skip
def test_a_name_that_leads_out_of_the_run_is_refused(name, monkeypatch):
    store = open_store("memory://bucket/runs")
    make_run(store)
    store.put(PLACE)
    for path in sorted((store.folder / PLACE).iterdir()):
        path.unlink()
    (store.folder / PLACE).rmdir()
    monkeypatch.setattr(type(store.files), "ls", lambda *given, **named: [{"name": name, "type": "file"}])
    with pytest.raises(UserError, match="which is no file of a run: nothing was taken"):
        store.fetch(PLACE)
    assert not any(store.folder.rglob("*.*"))


def test_a_store_that_lists_a_run_outside_is_refused(monkeypatch):
    store = open_store("memory://bucket/runs")
    monkeypatch.setattr(type(store.files), "glob", lambda *given, **named: ["/bucket/runs/../../x/metrics.json"])
    with pytest.raises(UserError, match="which is no file of a run"):
        store.complete()


def test_the_package_that_a_kind_of_store_needs_is_named(monkeypatch):
    def missing(*given, **named):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match="A store at s3:// needs one more package: Install s3fs"):
        open_store("s3://bucket/runs")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(UserError, match="nowhere://x is no address of a store"):
        open_store("nowhere://x")


# ---- sweeps into a store


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(workers.Engine, "start", lambda engine, store: InProcess(store))


def test_a_sweep_into_a_store_leaves_all_runs_there_and_fetches_what_others_start_from(here, monkeypatch, tmp_path):
    configs = configs_of(1, method="hinton")
    first = sweep(configs, "memory://bucket/runs")
    assert (len(first.folders), first.failed) == (1, {})
    store = open_store("memory://bucket/runs")
    assert len(store.complete()) == 2  # the teacher too
    monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "of another machine"))
    again = sweep(configs, "memory://bucket/runs")
    assert again.made == 0
    assert again.folders[0].is_relative_to(tmp_path / "of another machine")
    assert run.Run.open(again.folders[0]).metrics == run.Run.open(first.folders[0]).metrics
    for path in [*store.files.store]:
        if "/hinton/" in path:
            del store.files.store[path]
    monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "of a third one"))
    third = sweep(configs, "memory://bucket/runs")
    assert third.made == 1
    assert run.Run.open(third.folders[0]).metrics == run.Run.open(first.folders[0]).metrics
    made = open_store("memory://bucket/runs").folder
    teacher = next(made.glob("tiny/erm/*/environment.json"))  # it was fetched, and not made again
    assert json.loads(teacher.read_text()) == json.loads(
        next(store.folder.glob("tiny/erm/*/environment.json")).read_text()
    )


def test_a_store_that_does_not_answer_stops_the_sweep_in_one_sentence(here, monkeypatch):
    store = open_store("memory://bucket/runs")
    configs, as_it_is = configs_of(1, 2), type(store.files).put_file

    def broken(*given, **named):
        raise TimeoutError("no word")

    monkeypatch.setattr(type(store.files), "put_file", broken)
    with pytest.raises(UserError, match=r"was stopped: The store memory://bucket/runs does not answer \(TimeoutError"):
        sweep(configs, "memory://bucket/runs")
    monkeypatch.setattr(type(store.files), "put_file", as_it_is)
    outcome = sweep(configs, "memory://bucket/runs")
    assert len(outcome.folders) == 2
    assert len(store.complete()) == 2


def test_a_disk_that_is_full_stops_the_sweep_and_with_room_the_same_goes_on(here, tmp_path):
    """A real one, of less than a run."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        (disk / "ballast").write_bytes(bytes(40_000))
        with pytest.raises(UserError, match=r"The sweep was stopped: the disk is full \(.*0 of 2 runs are complete"):
            sweep(configs_of(1, 2), disk / "runs")
        assert not list(disk.glob("runs/tiny/*/[!.]*"))
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        assert len(sweep(configs_of(1, 2), disk / "runs").folders) == 2
    finally:
        subprocess.run(["umount", disk], check=True)


def test_errors_of_a_disk_are_told_from_those_of_a_run(tmp_path, monkeypatch, here):
    store = Store(tmp_path)
    store.prepare()
    task = workers.Task(PLACE, configs_of(1)[0])
    for number in (errno.EDQUOT, errno.EIO, errno.ESTALE):
        monkeypatch.setattr(run, "train", failing(OSError(number, "words")))
        assert workers.make_run(task, store, print).kind == "halt"
    for error in (OSError(errno.ENOENT, "words"), RuntimeError("words"), UserError("words")):
        monkeypatch.setattr(run, "train", failing(error))
        assert workers.make_run(task, store, print).kind == "refused"
    monkeypatch.setattr(run, "train", failing(MemoryError()))
    assert workers.make_run(task, store, print).kind == "died"
    monkeypatch.setattr(run, "train", failing(run.Busy("words")))
    assert workers.make_run(task, store, print) == News(PLACE, "busy")
    (tmp_path / NOTES).rmdir()
    assert "is gone" in workers.make_run(task, store, print).message


def failing(error):
    def train(*given, **named):
        raise error

    return train
