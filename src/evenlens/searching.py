"""Search with an equal budget: every method of a recipe gets as many draws, and validation images choose among them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from evenlens import methods, plan
from evenlens.config import RunConfig, changed, keyword_options
from evenlens.errors import UserError, unknown
from evenlens.method import Range
from evenlens.run_folder import Run, damaged
from evenlens.selecting import LAST, Rule

ATTEMPTS = 100  # at a draw that the method does not refuse
RANDOM, TPE = SAMPLERS = ("random", "tpe")
STARTUP = 5  # draws that tpe makes at random before it models the scores
DIGITS = 4  # of a drawn number: a person has to read and repeat it


Settings = dict[str, float | int]


class Draw(NamedTuple):
    """One configuration that is tried.

    Attributes:
        number: from 1; the first is the method's defaults.
        settings: what was drawn, by hyper-parameter.
        configs: complete, one a seed.
    """

    number: int
    settings: Settings
    configs: tuple[RunConfig, ...]


@dataclass(frozen=True)
class Search:
    """All that is tried for one row of the table.

    Attributes:
        method: its name.
        budget: how many draws the recipe gives each method.
        seed: of the search.
        ranges: where is looked, by hyper-parameter; empty where there is nothing to search.
        draws: as many as the budget, or the one with the defaults.
        rule: by which the draw is chosen, and the epoch of each of its runs.
        sampler: "random", or "tpe", which looks at the scores so far; `go_on` then adds draw by draw.
    """

    method: str
    budget: int
    seed: int
    ranges: dict[str, Range]
    draws: tuple[Draw, ...]
    rule: Rule
    sampler: str = RANDOM

    @property
    def undrawn(self) -> int:
        """How many runs are to come of draws that wait for the scores of earlier ones."""
        if self.sampler == RANDOM or not self.ranges:
            return 0
        return (self.budget - len(self.draws)) * len(self.draws[0].configs)


class Trial(NamedTuple):
    """What became of a draw.

    Attributes:
        draw: what was tried.
        runs: those of its runs that are complete, by seed.
        val: validation score of each.
    """

    draw: Draw
    runs: tuple[Run, ...]
    val: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean over seeds of the validation score; NaN where a seed is missing, so that it cannot be chosen."""
        return math.fsum(self.val) / len(self.val) if len(self.val) == len(self.draw.configs) else math.nan


@dataclass(frozen=True)
class Found:
    """The outcome of a search.

    Attributes:
        search: what was tried.
        trials: what became of each draw, in their order.
        chosen: the one that makes the row; None where no draw is complete.
    """

    search: Search
    trials: tuple[Trial, ...]
    chosen: Trial | None


# ---- before the runs


def plan_searches(configs: Iterable[RunConfig], budget: int, seed: int = 1, sampler: str = RANDOM) -> list[Search]:
    """Draw the configurations of every search that a recipe asks for.

    A number that is drawn is a hash of the method, the data set and what is asked of it, the seed of the search, the
    hyper-parameter and the number of the draw. So one more method, seed or draw leaves all others as they are. A draw
    that the method's constructor refuses, such as a stage longer than the run, is drawn again.

    Args:
        configs: of a recipe; those that differ in the seed of the run alone belong to one search. Hyper-parameters
            that they set are not searched.
        budget: draws for each method, at least 1; the first is the defaults.
        seed: of the search, at least 0.
        sampler: "random" makes all draws at once; "tpe" begins with the defaults, and `go_on` makes the others.

    Raises:
        UserError: a budget or seed that is none, a rule without a score, a configuration that cannot be used.
    """
    if not _whole(budget) or budget < 1:
        raise UserError(f"search={budget!r} is not allowed: give a whole number of draws for each method, 1 or more.")
    if not _whole(seed) or seed < 0:
        raise UserError(f"search_seed={seed!r} is not allowed: give a whole number, 0 or more.")
    if sampler not in SAMPLERS:
        raise unknown("search_sampler", str(sampler), SAMPLERS)
    rows: dict[str, list[RunConfig]] = {}
    for config in configs:
        rows.setdefault(config.model_copy(update={"seed": 0}).identity(), []).append(config)
    return [_plan(row, budget, seed, sampler) for row in rows.values()]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plan(row: Sequence[RunConfig], budget: int, seed: int, sampler: str) -> Search:
    first, seeds, rule = row[0], [config.seed for config in row], Rule.of(row[0].select)
    if rule.name == LAST:
        raise UserError(f"select={LAST} scores nothing, so that a search cannot choose by it: name a metric in select.")
    method = methods.get(first.method)
    ranges = {name: where for name, where in method.search.items() if name not in first.options}
    known = keyword_options(method)
    whole = {name: isinstance(known[name], int) for name in ranges}
    defaults = plan.complete(first)
    draws = [Draw(1, {}, _seeded(defaults, seeds))]
    key = (first.method, *_asked(defaults), seed)
    for number in range(2, budget + 1 if ranges and sampler == RANDOM else 2):

        def drawn(attempt: int, number: int = number) -> Settings:
            return {
                name: place(where, share(*key, name, number, attempt), whole[name]) for name, where in ranges.items()
            }

        settings, allowed = _allowed(first, drawn)
        draws.append(Draw(number, settings, _seeded(allowed, seeds)))
    return Search(first.method, budget, seed, ranges, tuple(draws), rule, sampler)


def _asked(config: RunConfig) -> tuple[Any, ...]:
    """Say what is asked of which data, of a complete configuration."""
    data = config.data
    return config.dataset, data.protocol, data.target, data.sensitive, data.seed


def _seeded(config: RunConfig, seeds: Iterable[int]) -> tuple[RunConfig, ...]:
    return tuple(config.model_copy(update={"seed": seed}) for seed in seeds)


def _allowed(config: RunConfig, drawn: Callable[[int], Settings]) -> tuple[Settings, RunConfig]:
    """Draw settings that the method takes, and complete them; `drawn` makes them by the number of the attempt."""
    for attempt in range(ATTEMPTS):
        settings = drawn(attempt)
        try:
            return settings, plan.complete(changed(config, settings))
        except UserError as error:
            refused = error
    raise UserError(f"None of {ATTEMPTS} draws from the ranges of {config.method} can be used; of the last: {refused}")


def share(*key: Any) -> float:
    """Give the number in [0, 1) that belongs to a key of what JSON can hold: the same on every machine."""
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # as many bits as a float holds, so that it stays below 1


def place(where: Range, position: float, whole: bool = False) -> float | int:
    """Give the value at a position of a range.

    Args:
        where: the range, both ends included.
        position: in [0, 1); spread evenly, it spreads the values evenly, or their logarithms.
        whole: whether the value is a whole number; each of them then has its part of the range.
    """
    low, high = (math.ceil(where.low), math.floor(where.high) + 1) if whole else (where.low, where.high)
    value = low * (high / low) ** position if where.log else low + position * (high - low)
    if whole:
        return min(int(value), int(high) - 1)
    return min(max(float(f"{value:.{DIGITS}g}"), where.low), where.high)


# ---- between the runs


def go_on(searches: Iterable[Search], runs: Iterable[Run]) -> list[Search]:
    """Add the next draw to each search whose sampler looks at the scores so far, until its budget is spent.

    A draw looks at the validation scores of the same method and task alone, and is a function of these and of the
    search's seed: one more method leaves the others as they are, and a sweep that was killed makes the same draws
    again. A draw that failed was spent for nothing.

    Args:
        searches: as `plan_searches` or this function gave them.
        runs: complete ones, of these searches and maybe others.

    Returns:
        The searches; equal to those given where there is nothing more to draw.

    Source: Bergstra et al., 2011, Algorithms for hyper-parameter optimization (NeurIPS), as optuna computes it.
    """
    return [_gone_on(each) for each in choose(searches, runs)]


def _gone_on(found: Found) -> Search:
    search = found.search
    if not search.undrawn:
        return search
    defaults, number = search.draws[0].configs[0], len(search.draws) + 1
    key = (defaults.method, *_asked(defaults), search.seed, number)
    settings, allowed = _allowed(defaults, lambda attempt: _suggested(found, share(*key, attempt)))
    seeds = [config.seed for config in search.draws[0].configs]
    return replace(search, draws=(*search.draws, Draw(number, settings, _seeded(allowed, seeds))))


def _suggested(found: Found, position: float) -> Settings:
    """Ask optuna what to try next, given all that was tried; `position` in [0, 1) stands for its seed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "search_sampler = tpe needs optuna: pip install 'evenlens[search]', or leave it out for random draws."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search, known = found.search, keyword_options(methods.get(found.search.method))
    kinds: dict[str, Any] = {
        name: optuna.distributions.IntDistribution(math.ceil(where.low), math.floor(where.high), where.log)
        if isinstance(known[name], int)
        else optuna.distributions.FloatDistribution(where.low, where.high, where.log)
        for name, where in search.ranges.items()
    }
    sampler = optuna.samplers.TPESampler(seed=int(position * 2**32), n_startup_trials=STARTUP)
    study = optuna.create_study(sampler=sampler, direction="maximize" if search.rule.prefers(1.0, 0.0) else "minimize")
    for trial in found.trials:
        settings = {**{name: trial.draw.configs[0].options[name] for name in kinds}, **trial.draw.settings}
        within = all(where.low <= settings[name] <= where.high for name, where in search.ranges.items())
        if within and not math.isnan(trial.score):  # defaults may lie outside of the ranges
            study.add_trial(optuna.trial.create_trial(params=settings, distributions=kinds, value=trial.score))
    asked = study.ask(kinds).params
    return {name: value if isinstance(value, int) else float(f"{value:.{DIGITS}g}") for name, value in asked.items()}


# ---- after the runs


def choose(searches: Iterable[Search], runs: Iterable[Run]) -> list[Found]:
    """Choose of each search the draw with the best validation score, the earlier one of equals. Reads no test number.

    Args:
        searches: as `plan_searches` gives them.
        runs: complete ones, of these searches and maybe others.
    """
    by_key = {_key(run.config): run for run in runs}
    found = []
    for search in searches:
        trials = []
        for draw in search.draws:
            there = tuple(by_key[key] for key in map(_key, draw.configs) if key in by_key)
            trials.append(Trial(draw, there, tuple(map(val_score, there))))
        chosen: Trial | None = None
        for trial in trials:
            if not math.isnan(trial.score) and (chosen is None or search.rule.prefers(trial.score, chosen.score)):
                chosen = trial
        found.append(Found(search, tuple(trials), chosen))
    return found


def chosen_runs(found: Iterable[Found]) -> list[Run]:
    """Give the runs of the chosen draws, which make the table."""
    return [run for each in found if each.chosen for run in each.chosen.runs]


def of_task(found: Iterable[Found], run: Run) -> list[Found]:
    """Give the searches whose rows belong into a table with this run; of those without a row, what asks the same."""

    def posed(config: RunConfig) -> tuple[Any, ...]:
        return config.dataset, config.data.target, config.data.sensitive, config.data.fingerprint

    def belongs(each: Found) -> bool:
        if each.chosen:
            return posed(each.chosen.runs[0].config) == posed(run.config)
        return _asked(each.search.draws[0].configs[0]) == _asked(run.config)

    return [each for each in found if belongs(each)]


def _key(config: RunConfig) -> str:
    """Tell a run by its configuration, whether its data were read yet or not, and it was written as TOML or not."""
    data = {
        "fingerprint": None,
        "options": _stated(config.data.options),
        "view_options": _stated(config.data.view_options),
    }
    changes = {"data": config.data.model_copy(update=data), "options": _stated(config.options)}
    return config.model_copy(update=changes).identity()


def _stated(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}  # TOML knows no None


def val_score(run: Run) -> float:
    """Give the score of a run by its own rule on its validation images, at the epoch that it kept."""
    name = f"val_{run.config.select}"
    kept = [entry[name] for entry in run.log if entry["epoch"] == run.metrics["selected_epoch"] and name in entry]
    if not kept:
        raise damaged(run.folder / "log.jsonl", f"it has no {name} of the kept epoch")
    return kept[0]
