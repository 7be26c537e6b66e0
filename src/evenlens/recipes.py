"""Recipes: a run's settings in which every value may be a list of alternatives, and what they expand to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evenlens.config import PHOTOGRAPH, SCALARS, RunConfig, make_config, read_toml
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    from evenlens.searching import Search

LISTED = {"data.sensitive"}  # settings that are lists by nature, not lists of alternatives
TOP = (
    "title",
    "about",
    "dataset",
    "method",
    "seed",
    "select",
    "precision",
    "base",
    "baseline",
    "search",
    "search_seed",
    "data",
    "net",
    "train",
    "view",
    "options",
)


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


def read_recipe(path: Path) -> Recipe:
    """Read a recipe: a run's settings in which every value may be a list of alternatives."""
    return expand(read_toml(path), path.stem)


def expand(content: dict[str, Any], name: str = "sweep") -> Recipe:
    """Make one configuration for each combination of a recipe's alternatives.

    Args:
        content: as read from TOML: `dataset`, `method` and `seed`, values or lists; tables `data`, `net`, `train`;
            `options.<method>` for the hyper-parameters of one method, `view.<name>` for the options of one view. A
            run's config.toml is a recipe for one run. `search` is the number of draws from each method's ranges.
        name: title where the recipe has none.

    Raises:
        UserError: something is missing or unknown.
    """
    for key in content:
        if key not in TOP:
            raise unknown("key of a recipe", key, TOP)
    for key in ("dataset", "method"):
        if not content.get(key):
            raise UserError(f"A recipe needs {key} = a name or a list of names; this one has none.")
    for key in ("data", "net", "train", "view", "options"):
        _check_table(key, content.get(key, {}))
    for key in ("title", "about", "baseline"):
        if not isinstance(content.get(key, ""), str):
            raise UserError(f"A recipe's {key} is text; this one has {key} = {content[key]!r}.")
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
    if not configs:
        raise UserError("A value of the recipe is an empty list, so that there is nothing to run: name one or more.")
    baseline = content.get("baseline", named[0])
    if baseline not in named:
        raise unknown("baseline of the recipe", baseline, named)
    said = content.get("title", name), content.get("about", ""), baseline
    if "search" not in content:
        if "search_seed" in content:
            raise UserError("A recipe's search_seed is of a search: give search = the number of draws too.")
        return Recipe(*said, configs)
    from evenlens import searching

    searches = searching.plan_searches(configs, content["search"], content.get("search_seed", 1))
    tried = sorted((draw for search in searches for draw in search.draws), key=lambda draw: draw.number)
    return Recipe(*said, [config for draw in tried for config in draw.configs], searches)


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
