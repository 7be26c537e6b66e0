"""A whole run on two processes: the folder, what it says, where it goes on, and what is refused."""

import runpy
import subprocess
import sys
import time

import pytest

from evenlens import launching, run
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.run import Run
from tests import pair

SHORT = {"train.epochs": 3, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The started processes know the tests' data set."""
    monkeypatch.setattr(launching, "_member", pair.member)


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(launching, "_devices", lambda: (2, "cores", 1))


def config_of(**settings):
    return make_config("tiny", "group_dro", {**SHORT, **{key.replace("__", "."): v for key, v in settings.items()}})


def close(first, second, part):
    ours, theirs = (made.predictions(part) for made in (first, second))
    logits = [name for name in ours if name.startswith("logit.")]
    return all(abs(ours[name] - theirs[name]).max() < 1e-3 for name in logits)


def test_a_run_on_two_processes_is_the_run_on_one(tmp_path, two_devices):
    alone = run.train(config_of(), tmp_path / "one")
    told = []
    both = run.train(config_of(train__devices=2), tmp_path / "two", lambda *news: told.append(news))
    assert both.folder.relative_to(tmp_path / "two") == alone.folder.relative_to(tmp_path / "one")
    assert sorted(path.name for path in both.folder.iterdir()) == sorted(path.name for path in alone.folder.iterdir())
    assert close(alone, both, "val")
    assert close(alone, both, "test")
    assert (alone.environment["processes"], both.environment["processes"]) == (1, 2)
    assert both.environment["images_seen"] == alone.environment["images_seen"]
    assert [entry["epoch"] for entry in both.log] == [1, 2, 3]
    steps = [news[1:] for news in told if news[0] == "steps"]
    assert steps[-1] == (steps[-1][1], steps[-1][1])
    assert not list(both.folder.parent.glob(".*"))


def test_a_run_killed_on_one_process_goes_on_on_two(tmp_path, two_devices, monkeypatch):
    monkeypatch.setattr(run, "MIDDLE_SECONDS", -1.0)
    whole = run.train(config_of(), tmp_path / "whole")

    def killed(what, done, total):
        if what == "steps" and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(config_of(), tmp_path / "parts", killed)
    resumed = run.train(config_of(train__devices=2), tmp_path / "parts")
    assert len(resumed.log) == len(whole.log)
    assert resumed.log[0]["loss"] == whole.log[0]["loss"]  # what was done then is not done again
    assert close(whole, resumed, "test")


def test_more_devices_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.devices=1000 and there are"):
        run.train(config_of(train__devices=1000), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_the_processes_refuse_is_one_sentence_here(tmp_path, two_devices):
    with pytest.raises(UserError, match="they are not the images, labels or split"):
        run.train(config_of(train__devices=2, data__fingerprint="0123456789abcdef"), tmp_path)


def test_a_process_that_is_killed_ends_the_others(tmp_path, two_devices, monkeypatch):
    monkeypatch.setattr(launching, "_member", pair.member_that_dies)
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match="ended with code -9"):
        run.train(config_of(train__devices=2), tmp_path)
    assert time.monotonic() - began < 60
    assert not list(tmp_path.glob("tiny/*/[!.]*"))


def test_torchrun_starts_it_too_and_one_process_talks(tmp_path):
    words = ["train", "avatars", "erm", "train.epochs=1", "data.num_train=100", "data.num_val=80", "data.num_test=80"]
    started = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "evenlens", *words,
         "precision=fp32"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert started.returncode == 0, started.stderr
    (folder,) = tmp_path.glob("runs/avatars/erm/[!.]*")
    assert Run.open(folder).environment["processes"] == 2
    assert started.stdout.count("Kept epoch") == 1


def test_a_process_that_reads_the_main_module_runs_no_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evenlens", "train", "nothing", "nothing"])
    runpy.run_module("evenlens.__main__", run_name="__mp_main__")  # as the processes of a sweep do
    with pytest.raises(SystemExit):
        runpy.run_module("evenlens.__main__", run_name="__main__")
