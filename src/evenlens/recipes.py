"""Recipes: a run's settings in which every value may be a list of alternatives, and what they expand to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evenlens.config import PHOTOGRAPH, SCALARS, RunConfig, make_config, read_toml
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    from evenlens.run_folder import Run
    from evenlens.searching import Search

LISTED = {"data.sensitive"}  # settings that are lists by nature, not lists of alternatives
TOP = (
    "title",
    "about",
    "dataset",
    "tasks",
    "method",
    "seed",
    "select",
    "precision",
    "base",
    "baseline",
    "search",
    "search_seed",
    "search_sampler",
    "data",
    "net",
    "train",
    "view",
    "options",
    "expected",  # what came out, which `evenlens.reproducing` reads
)
OF_A_TASK = ("data", "net", "train", "view")  # tables that a task has over the recipe's own


class Recipe(NamedTuple):
    """What a recipe file says.

    Attributes:
        title: headline of the report.
        about: what the result means and what not, in the recipe's own words.
        baseline: the method that the others are compared with; the first one if not said.
        configs: one a run.
        searches: what is tried for each row of the table; empty where the recipe asks for no search.
    """

    title: str
    about: str
    baseline: str
    configs: list[RunConfig]
    searches: Sequence[Search] = ()

    @property
    def undrawn(self) -> int:
        """How many more runs its searches draw at most, when they know the scores of these."""
        return sum(search.undrawn for search in self.searches)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe: a run's settings in which every value may be a list of alternatives."""
    return expand(read_toml(path), path.stem)


def expand(content: dict[str, Any], name: str = "sweep") -> Recipe:
    """Make one configuration for each combination of a recipe's alternatives.

    Args:
        content: as read from TOML: `dataset`, `method` and `seed`, values or lists; tables `data`, `net`, `train`;
            `options.<method>` for the hyper-parameters of one method, `view.<name>` for the options of one view. A
            run's config.toml is a recipe for one run. `search` is the number of draws from each method's ranges.
            `tasks`, a list of tables, asks several questions: the settings in each go over the recipe's own, and
            everything is combined with each.
        name: title where the recipe has none.

    Raises:
        UserError: something is missing or unknown.
    """
    for key in content:
        if key not in TOP:
            raise unknown("key of a recipe", key, TOP)
    for key in (*OF_A_TASK, "options"):
        _check_table(key, content.get(key, {}))
    for key in ("title", "about", "baseline"):
        if not isinstance(content.get(key, ""), str):
            raise UserError(f"A recipe's {key} is text; this one has {key} = {content[key]!r}.")
    configs = [config for posed in _posed(content) for config in _alternatives(posed)]
    if not configs:
        raise UserError("A value of the recipe is an empty list, so that there is nothing to run: name one or more.")
    named = _listed(content["method"])
    baseline = content.get("baseline", named[0])
    if baseline not in named:
        raise unknown("baseline of the recipe", baseline, named)
    said = content.get("title", name), content.get("about", ""), baseline
    if "search" not in content:
        for key in ("search_seed", "search_sampler"):
            if key in content:
                raise UserError(f"A recipe's {key} is of a search: give search = the number of draws too.")
        return Recipe(*said, configs)
    from evenlens import searching

    sampler = content.get("search_sampler", searching.RANDOM)
    searches = searching.plan_searches(configs, content["search"], content.get("search_seed", 1), sampler)
    return Recipe(*said, _tried(searches), searches)


def go_on(recipe: Recipe, runs: Sequence[Run]) -> Recipe | None:
    """Give a recipe with the next draws of a search that looks at the scores so far; None where all are drawn.

    Args:
        recipe: whose runs were made.
        runs: those that are complete.
    """
    from evenlens import searching

    searches = searching.go_on(recipe.searches, runs)
    drawn = any(len(new.draws) > len(old.draws) for new, old in zip(searches, recipe.searches, strict=True))
    return recipe._replace(configs=_tried(searches), searches=searches) if drawn else None


def _tried(searches: Sequence[Search]) -> list[RunConfig]:
    """Give all configurations of searches, the first draw of every method first."""
    tried = sorted((draw for search in searches for draw in search.draws), key=lambda draw: draw.number)
    return [config for draw in tried for config in draw.configs]


def _posed(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Make of a recipe over several tasks one recipe for each."""
    tasks = content.get("tasks", [{}])
    if not isinstance(tasks, list) or not tasks or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"A recipe's tasks are tables, each begun by a line [[tasks]]; this one has tasks = {tasks!r}.")
    posed = []
    for number, task in enumerate(tasks, start=1):
        for key in task:
            if key not in ("dataset", *OF_A_TASK):
                raise unknown("key of a task of the recipe", key, ("dataset", *OF_A_TASK))
        if "dataset" in task and "dataset" in content:
            raise UserError(f"The recipe names a dataset, and its task {number} another: name it in one place.")
        over = {}
        for key in (key for key in OF_A_TASK if key in task):
            _check_table(f"tasks.{key}", task[key])
            over[key] = {**content.get(key, {}), **task[key]}
        posed.append({**content, **task, **over})
    return posed


def _alternatives(content: dict[str, Any]) -> list[RunConfig]:
    """Give the configurations of one task."""
    for key in ("dataset", "method"):
        if not content.get(key):
            raise UserError(f"A recipe needs {key} = a name or a list of names; this one has none.")
    choices: dict[str, list[Any]] = {key: _listed(content[key]) for key in SCALARS if key in content}
    for section in ("data", "net", "train"):
        for key, value in content.get(section, {}).items():
            setting = f"{section}.{key}"
            choices[setting] = (
                [value]
                if setting in LISTED and not any(isinstance(part, list) for part in _listed(value))
                else _listed(value)
            )
    named, shown = _listed(content["method"]), choices.pop("data.view", [PHOTOGRAPH])
    options = _options_of("method", "options", content["method"], named, content)
    drawing = _options_of("view", "view", shown[0] if len(shown) == 1 else shown, shown, content)
    configs = []
    for dataset, method, view in itertools.product(_listed(content["dataset"]), named, shown):
        own = {key: _listed(value) for key, value in options.get(method, {}).items()}
        own |= {f"view.{key}": _listed(value) for key, value in drawing.get(view, {}).items()}
        combined = _combinations({**choices, "data.view": [view], **own})
        configs += [make_config(dataset, method, settings) for settings in combined]
    return configs


def _options_of(kind: str, key: str, given: Any, named: list[Any], content: dict[str, Any]) -> dict[str, Any]:
    """Read the options of each method or view by its name; of a single one they may stand alone."""
    options = content.get(key, {})
    if isinstance(given, str) and not any(isinstance(value, dict) for value in options.values()):
        options = {given: options}  # as in a run's config.toml
    for name in options:
        if name not in named:
            raise unknown(f"{kind} in {key} of the recipe", name, named)
        _check_table(f"{key}.{name}", options[name])
    return options


def _check_table(name: str, content: object) -> None:
    if not isinstance(content, dict):
        raise UserError(f"A recipe's {name} is a table of settings, [{name}]; this one has {name} = {content!r}.")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _combinations(choices: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))
