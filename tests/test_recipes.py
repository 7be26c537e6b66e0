"""Recipes: what they expand to, and what is refused."""

from pathlib import Path

import pytest

from evenlens import plan, recipes, run
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.recipes import expand

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}


ROOT = Path(__file__).parent.parent
RECIPES = sorted(path for path in (ROOT / "recipes").rglob("*.toml") if path.parent.name != "generation")


def recipe(**content):
    return {"dataset": "tiny", "method": "erm", **content}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_of_the_project_names_what_there_is(path):
    read = recipes.read_recipe(path)
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


def test_the_configuration_of_a_run_is_a_recipe_for_that_run(tmp_path):
    settings = {**SHORT, "seed": 3, "step_size": 0.02, "data.root": str(tmp_path)}
    made = run.train(make_config("tiny", "group_dro", settings), tmp_path / "runs")
    read = recipes.read_recipe(made.folder / "config.toml")
    assert [config.identity() for config in read.configs] == [made.metrics["id"]]


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
