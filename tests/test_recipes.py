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


# ---- several tasks


def test_what_a_task_says_goes_over_what_the_recipe_says():
    read = expand({
        "method": ["erm", "group_dro"], "seed": [1, 2], "data": {"size": 32, "target": "place"}, "train": {"epochs": 3},
        "tasks": [
            {"dataset": "tiny", "data": {"sensitive": ["tint", "half"]}},
            {"dataset": "tiny", "data": {"size": 16, "view": "xdog", "num": 90}, "train": {"batch_size": 8},
             "view": {"sigma": 1.0}},
        ],
    })  # fmt: skip
    assert len(read.configs) == 8
    first, second = read.configs[0], read.configs[4]
    assert [config.method for config in read.configs] == ["erm", "erm", "group_dro", "group_dro"] * 2
    assert (first.data.size, first.data.target, first.data.sensitive) == (32, "place", ("tint", "half"))
    assert (second.data.size, second.data.target, second.data.sensitive) == (16, "place", None)
    assert (first.data.view, second.data.view, second.data.view_options) == ("rgb", "xdog", {"sigma": 1.0})
    assert (first.data.options, second.data.options) == ({}, {"num": 90})
    assert (first.train.epochs, first.train.batch_size) == (3, 128)
    assert (second.train.epochs, second.train.batch_size) == (3, 8)


def test_one_task_is_the_recipe_without_a_list_of_tasks():
    task = {"dataset": "tiny", "data": {"size": 16}, "net": {"stem": "small"}}
    assert expand({"method": "erm", "tasks": [task]}).configs == expand({"method": "erm", **task}).configs


def test_tasks_may_share_a_data_set_that_the_recipe_names():
    read = expand(recipe(tasks=[{"data": {"sensitive": "tint"}}, {"data": {"sensitive": "half"}}]))
    assert [config.data.sensitive for config in read.configs] == [("tint",), ("half",)]


def test_every_task_is_searched_with_the_same_budget():
    read = expand({"method": "group_dro", "search": 3, "seed": [1, 2], "tasks": [
        {"dataset": "tiny"}, {"dataset": "tiny", "data": {"protocol": "crossed"}}
    ]})  # fmt: skip
    assert [len(search.draws) for search in read.searches] == [3, 3]
    assert len(read.configs) == 12


@pytest.mark.parametrize(("content", "said"), [
    ({"tasks": []}, "tasks are tables"),
    ({"tasks": {"dataset": "tiny"}}, "tasks are tables"),
    ({"tasks": ["tiny"]}, "tasks are tables"),
    ({"tasks": [{"dataset": "tiny", "method": "erm"}]}, "Unknown key of a task of the recipe 'method'"),
    ({"tasks": [{"dataset": "tiny", "data": 3}]}, "tasks.data is a table"),
    ({"tasks": [{"dataset": "tiny"}, {}]}, "A recipe needs dataset"),
    ({"tasks": [{"dataset": "tiny"}], "dataset": "tiny"}, "its task 1 another"),
    ({"tasks": [{"dataset": []}]}, "A recipe needs dataset"),
], ids=["none", "a table", "a name", "a method", "no table", "no data set", "two data sets", "empty"])  # fmt: skip
def test_tasks_that_are_none_are_refused(content, said):
    with pytest.raises(UserError, match=said):
        expand({"method": "erm", **content})


def test_what_is_expected_is_no_setting():
    assert expand(recipe(expected={"anything": 1})).configs == expand(recipe()).configs
