"""Many runs: what a recipe expands to, and that one bad run leaves the others alone."""

import sys
import textwrap
from pathlib import Path

import pytest

from evenlens import plan, run, sweeps
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.sweeps import Event, expand, sweep
from tests import worker

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}


ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.parent.name != "generation")


def recipe(**content):
    return {"dataset": "tiny", "method": "erm", **content}


# ---- recipes


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_of_the_project_names_what_there_is(path):
    read = sweeps.read_recipe(path)
    assert len({config.identity() for config in read.configs}) == len(read.configs)
    for config in {config.method: config for config in read.configs}.values():
        plan.complete(config.model_copy(update={"net": config.net.model_copy(update={"pretrained": False})}))


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


def test_the_configuration_of_a_run_is_a_recipe_for_that_run(tmp_path):
    settings = {**SHORT, "seed": 3, "step_size": 0.02, "data.root": str(tmp_path)}
    made = run.train(make_config("tiny", "group_dro", settings), tmp_path / "runs")
    read = sweeps.read_recipe(made.folder / "config.toml")
    assert [config.identity() for config in read.configs] == [made.metrics["id"]]


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


def test_options_belong_to_one_view():
    read = expand(recipe(data={"view": ["rgb", "xdog"]}, view={"xdog": {"sigma": [1.0, 2.0]}}))
    found = [(config.data.view, config.data.view_options) for config in read.configs]
    assert found == [("rgb", {}), ("xdog", {"sigma": 1.0}), ("xdog", {"sigma": 2.0})]
    alone = expand(recipe(data={"view": "xdog"}, view={"sigma": 3.0})).configs
    assert [config.data.view_options for config in alone] == [{"sigma": 3.0}]
    with pytest.raises(UserError, match="view in view of the recipe 'canny'"):
        expand(recipe(data={"view": ["rgb", "xdog"]}, view={"canny": {"low": 0.1}}))
    with pytest.raises(UserError, match="view in view of the recipe 'sigma'"):
        expand(recipe(data={"view": ["rgb", "xdog"]}, view={"sigma": 3.0}))
