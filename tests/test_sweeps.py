"""Many runs: what a recipe expands to, and that one bad run leaves the others alone."""

import os
import signal
import sys
import textwrap

import pytest

from evenlens import run, sweeps
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.sweeps import Event, expand, sweep

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}


def recipe(**content):
    return {"dataset": "tiny", "method": "erm", **content}


# ---- recipes


def test_every_list_is_a_list_of_alternatives_and_all_are_combined():
    read = expand(recipe(method=["erm", "group_dro"], seed=[1, 2, 3], train={"epochs": [1, 2], "batch_size": 8}))
    assert len(read.configs) == 12
    assert len({config.identity() for config in read.configs}) == 12
    assert read.baseline == "erm"
    assert {config.train.batch_size for config in read.configs} == {8}


def test_options_belong_to_one_method():
    read = expand(recipe(method=["erm", "group_dro"], options={"group_dro": {"step_size": [0.1, 0.2]}}))
    assert [(config.method, config.options) for config in read.configs] == [
        ("erm", {}), ("group_dro", {"step_size": 0.1}), ("group_dro", {"step_size": 0.2})
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "wanted"), [
    ("tint", [("tint",)]), (["a", "b"], [("a", "b")]), ([["a"], ["a", "b"]], [("a",), ("a", "b")]),
])  # fmt: skip
def test_sensitive_columns_are_a_list_by_nature(value, wanted):
    assert [config.data.sensitive for config in expand(recipe(data={"sensitive": value})).configs] == wanted


def test_jobs_below_one_are_refused(tmp_path):
    with pytest.raises(UserError, match="jobs=0 runs nothing"):
        sweep(expand(recipe()).configs, tmp_path, jobs=0)


def test_an_unknown_name_in_one_run_is_refused_before_any_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_data", None)
    configs = [make_config("tiny", method, SHORT) for method in ("erm", "emr")]
    with pytest.raises(UserError, match="Unknown method 'emr'"):
        sweep(configs, tmp_path)


# ---- runs, in processes that are forked, so that they know the tests' data set


@pytest.fixture
def forked(monkeypatch):
    import multiprocessing

    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(sweeps.multiprocessing, "get_context", lambda kind: context)


def failing(monkeypatch, how, seed):
    """Let the run of one seed fail in its worker."""
    original = run.train

    def train(config, *arguments):
        if config.seed == seed:
            how()
        return original(config, *arguments)

    monkeypatch.setattr(run, "train", train)


def refuse():
    raise UserError("it cannot be.")


def break_off():
    raise RuntimeError("an error of ours")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


CONFIGS = [make_config("tiny", "erm", {**SHORT, "seed": seed}) for seed in (1, 2, 3)]


def test_all_runs_are_made_and_the_second_time_none(tmp_path, forked):
    events: list[Event] = []
    first = sweep([*CONFIGS, CONFIGS[0]], tmp_path, 2, events.append)
    assert (first.made, first.failed) == (3, {})
    assert [folder.exists() for folder in first.folders] == [True] * 3
    assert [event.kind for event in events if event.kind != "steps"].count("done") == 3
    again = sweep(CONFIGS, tmp_path, 2)
    assert (again.made, again.folders) == (0, first.folders)
    assert run.Run.open(first.folders[1]).config.seed == 2


@pytest.mark.parametrize(("how", "said"), [
    (refuse, "it cannot be."), (break_off, "RuntimeError: an error of ours"), (die, "its process ended with code -9"),
])  # fmt: skip
def test_one_run_that_fails_or_is_killed_leaves_the_others_alone(tmp_path, forked, monkeypatch, how, said):
    failing(monkeypatch, how, seed=2)
    outcome = sweep(CONFIGS, tmp_path, 2)
    assert outcome.made == 2
    assert len(outcome.folders) == 2
    ((name, why),) = outcome.failed.items()
    assert name.startswith("tiny erm seed 2 (")
    assert why.startswith(said)


def test_two_failures_of_one_method_and_seed_are_counted_twice(tmp_path, forked, monkeypatch):
    failing(monkeypatch, refuse, seed=1)
    configs = [make_config("tiny", "erm", {**SHORT, "train.epochs": epochs}) for epochs in (1, 2)]
    assert len(sweep(configs, tmp_path, 2).failed) == 2


def test_a_worker_that_dies_before_it_reads_what_it_was_handed_is_a_failure_and_no_crash(tmp_path, forked, monkeypatch):
    monkeypatch.setattr(sweeps, "_work", lambda *arguments: die())
    outcome = sweep(CONFIGS, tmp_path, 2)
    assert len(outcome.failed) == 3
    assert not outcome.folders


def test_the_command_shows_the_others_names_the_failed_one_and_ends_with_2(command, forked, monkeypatch, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        textwrap.dedent("""
        title = "With [brackets]"
        dataset = "tiny"
        method = "erm"
        seed = [1, 2]
        precision = "fp32"
        train.epochs = 1
        data.num = 400
        data.correlation = 0.7
        """)
    )
    with monkeypatch.context() as patch:
        failing(patch, refuse, seed=2)
        ended = command("sweep", "recipe.toml", "--jobs", "2")
    assert ended.code == 2
    assert "failed: tiny erm seed 2" in ended.err
    assert "1 of 2 runs failed; the same command tries them again." in ended.err
    assert "With [brackets]" in ended.out
    assert "Traceback" not in ended.err
    ended = command("sweep", "recipe.toml", "--jobs", "2", "--markdown")
    assert ended.code == 0
    assert "| method |" in ended.out


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
