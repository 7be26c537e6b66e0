"""Many runs: all are made once, and one bad run leaves the others alone."""

import sys
import textwrap

import pytest

from evenlens import run, sweeps
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.recipes import expand
from evenlens.sweeps import Event, sweep
from tests import worker

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}


def recipe(**content):
    return {"dataset": "tiny", "method": "erm", **content}


def test_jobs_below_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="jobs=0 runs nothing"):
        sweep(expand(recipe()).configs, tmp_path, jobs=0)


def test_an_unknown_name_in_one_run_is_refused_before_any_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_data", None)
    configs = [make_config("tiny", method, SHORT) for method in ("erm", "emr")]
    with pytest.raises(UserError, match="Unknown method 'emr'"):
        sweep(configs, tmp_path)


def test_a_recipe_for_other_data_is_refused_before_any_run(tmp_path):
    config = make_config("tiny", "erm", {**SHORT, "data.fingerprint": "0123456789abcdef"})
    with pytest.raises(UserError, match="they are not the images, labels or split"):
        sweep([config], tmp_path)


# ---- runs, in processes of their own


@pytest.fixture
def workers(monkeypatch):
    """Let the sweep's processes know the tests' data set."""
    monkeypatch.setattr(sweeps, "_work", worker.work)


def configs_of(*seeds):
    return [make_config("tiny", "erm", {**SHORT, "seed": seed}) for seed in seeds]


def test_all_runs_are_made_once_and_those_that_fail_or_are_killed_leave_the_others_alone(tmp_path, workers):
    events: list[Event] = []
    configs = configs_of(1, worker.REFUSES, worker.BREAKS, worker.DIES, 2, 1)
    first = sweep(configs, tmp_path, 2, events.append)
    assert first.made == 2
    assert [run.Run.open(folder).config.seed for folder in first.folders] == [1, 2]
    assert [event.kind for event in events].count("done") == 2
    why = {name.split(" (")[0]: said for name, said in first.failed.items()}
    assert why["tiny erm seed 102"] == "it cannot be."
    assert why["tiny erm seed 103"] == "RuntimeError: an error of ours"
    assert why["tiny erm seed 104"].startswith("its process ended with code -9")
    again = sweep(configs_of(1, 2), tmp_path, 2)
    assert (again.made, again.folders) == (0, first.folders)


def test_two_failures_of_one_method_and_seed_are_counted_twice(tmp_path, workers):
    configs = [
        make_config("tiny", "erm", {**SHORT, "train.epochs": epochs, "seed": worker.REFUSES}) for epochs in (1, 2)
    ]
    assert len(sweep(configs, tmp_path, 1).failed) == 2


def test_a_worker_that_dies_before_it_reads_what_it_was_handed_is_a_failure_and_no_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "_work", worker.die_at_once)
    outcome = sweep(configs_of(1, 2), tmp_path, 1)
    assert len(outcome.failed) == 2
    assert not outcome.folders


def test_the_command_shows_the_others_names_the_failed_one_and_ends_with_2(command, workers, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        textwrap.dedent(f"""
        title = "With [brackets]"
        dataset = "tiny"
        method = "erm"
        seed = [1, {worker.REFUSES}]
        precision = "fp32"
        train.epochs = 1
        data.num = 400
        data.correlation = 0.7
        """)
    )
    ended = command("sweep", "recipe.toml", "--jobs", "2", "--markdown")
    assert ended.code == 2
    assert f"failed: tiny erm seed {worker.REFUSES}" in ended.err
    assert "1 of 2 runs failed; the same command tries them again." in ended.err
    assert "| method |" in ended.out
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_sweep_in_fresh_processes_makes_the_runs_that_train_makes(tmp_path, cache):
    settings = {"train.epochs": 1, "precision": "fp32", "data.num_train": 200, "data.num_val": 80, "data.num_test": 80}
    configs = [make_config("avatars", "erm", {**settings, "seed": seed}) for seed in (1, 2)]
    outcome = sweep(configs, tmp_path / "sweep", 2)
    assert outcome.made == 2, outcome.failed
    alone = run.train(configs[0], tmp_path / "alone")
    assert run.Run.open(outcome.folders[0]).metrics["test"]["num_images"] == alone.metrics["test"]["num_images"]
    assert outcome.folders[0].name == alone.folder.name
    assert sys.modules["evenlens.sweeps"] is sweeps
