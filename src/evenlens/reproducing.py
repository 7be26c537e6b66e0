"""A recipe and the numbers that it is expected to give: what they cost, and whether they came out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evenlens import expected as expecting
from evenlens.config import RunConfig, read_toml
from evenlens.errors import UserError, unknown
from evenlens.expected import Expected
from evenlens.recipes import Recipe, expand

if TYPE_CHECKING:
    from evenlens.report.summary import Row
    from evenlens.run import Run

BUNDLED = Path(__file__).with_name("reproducible")
ROUNDING = 5e-5  # of values that are kept to four digits
NAMED = 8  # values that a complaint names, at most


class Value(NamedTuple):
    """One expected number and what came out.

    Attributes:
        task: as the report names it.
        row: of its table.
        metric: its name.
        expected: the number.
        tolerance: how far off it may be.
        found: what came out; NaN where it is undefined, None where there is no such row.
    """

    task: str
    row: str
    metric: str
    expected: float
    tolerance: float
    found: float | None

    @property
    def verdict(self) -> str:
        """One of "within", "outside", "undefined" and "not made"."""
        if self.found is None:
            return "not made"
        if math.isnan(self.found):
            return "undefined"
        return "within" if abs(self.found - self.expected) <= self.tolerance + ROUNDING else "outside"

    def __str__(self) -> str:
        """Say it as a part of a sentence."""
        what, wanted = f"{self.metric} of {self.row} ({self.task})", f"{self.expected:.4f} ± {self.tolerance:.4f}"
        if self.found is None or math.isnan(self.found):
            return f"{what} is {self.verdict}, expected {wanted}"
        beyond = abs(self.found - self.expected) - self.tolerance
        return f"{what} is {self.found:.4f}, {beyond:.4f} beyond {wanted}"


class Cost(NamedTuple):
    """What it takes to make the runs of a recipe.

    Attributes:
        runs: how many it has.
        undrawn: how many more, at most, a search draws by their scores.
        there: how many of the runs are complete; of those that are not drawn yet it is not known.
        jobs: runs side by side.
        data: titles of the data sets.
        pace: how many times as long as on the machine of the record a step takes here; 1 where nothing is to be made.
        seconds: on this machine, estimated.
        megabytes: of the run folders that are to come.
    """

    runs: int
    undrawn: int
    there: int
    jobs: int
    data: tuple[str, ...]
    pace: float
    seconds: float
    megabytes: float


def bundled() -> list[Path]:
    """Give the recipes that come with the package."""
    return sorted(BUNDLED.glob("*.toml"))


def known() -> dict[str, Path]:
    """Give what can be reproduced by name: what comes with the package, and what is below the folder recipes here."""
    here = [path for path in sorted(Path("recipes").rglob("*.toml")) if "expected" in read_toml(path)]
    return {**{path.stem: path for path in bundled()}, **{str(path): path for path in here}}


def find(name: str) -> Path:
    """Give the recipe of a name: that of one that comes with the package, or a path.

    Raises:
        UserError: there is none of this name.
    """
    if name.endswith(".toml"):
        return Path(name)
    named = {path.stem: path for path in bundled()}
    if name not in named:
        raise unknown("recipe", name, [*named, "PATH/TO/RECIPE.toml"])
    return named[name]


def read(path: Path) -> tuple[Recipe, Expected | None]:
    """Read a recipe, and what is expected of it; None where it does not say.

    Raises:
        UserError: it is no recipe, or its part [expected] cannot be read.
    """
    content = read_toml(path)
    expected = expecting.check(content["expected"], path) if "expected" in content else None
    return expand(content, path.stem), expected


# ---- before the runs


def complete(recipe: Recipe, expected: Expected | None) -> Recipe:
    """Complete the configurations of a recipe, and bind them to the data of the record, so that others are refused.

    Raises:
        UserError: a configuration cannot be used, or asks what the record has not.
    """
    from evenlens import sweeps

    configs = sweeps.complete(recipe.configs)
    if expected is None:
        return recipe._replace(configs=configs)
    fingerprints: dict[tuple[str, str], str] = {}
    for question, asked in expecting.asked(configs).items():
        recorded = expected.fingerprints.get(question, [])
        if len(recorded) != len(asked):
            raise UserError(
                f"The recipe asks {question}, and its [expected] does not say of which data: it was changed since. "
                "Write that anew with evenlens reproduce RECIPE --record."
            )
        fingerprints |= {(question, images): one for images, one in zip(asked, recorded, strict=True)}
    pinned = []
    for config in configs:
        one = fingerprints[expecting.question(config), expecting.images(config)]
        data = config.data.model_copy(update={"fingerprint": config.data.fingerprint or one})
        pinned.append(config.model_copy(update={"data": data}))
    return recipe._replace(configs=pinned)


def check_data(configs: Iterable[RunConfig]) -> tuple[str, ...]:
    """Read the label tables of all data that are needed, and no image yet.

    Args:
        configs: complete ones.

    Returns:
        the titles of the data sets.

    Raises:
        UserError: data are missing, with how to get them, all in one message; or cannot be used.
    """
    from evenlens import datasets
    from evenlens.data import source

    titles: dict[str, str] = {}
    why: dict[str, str] = {}
    for config in {expecting.images(config) + config.dataset: config for config in configs}.values():
        kind = datasets.get(config.dataset, config.data.root)
        titles[config.dataset] = kind.title
        try:
            source.pose(config.dataset, kind, config.data)
        except UserError as error:
            why[config.dataset] = str(error)
    if why:
        raise UserError(" ".join(why.values()))
    return tuple(titles.values())


def cost(recipe: Recipe, expected: Expected, runs: Path, jobs: int | None = None) -> Cost:
    """Say what it takes to make the runs that are not there yet, after a look at the data and at this machine.

    Args:
        recipe: as `complete` gives it.
        expected: the record, whose time is scaled by how long a step takes here and there.
        runs: folder for the runs' folders.
        jobs: runs side by side; default: as a sweep has them.

    Raises:
        UserError: data are missing.
    """
    from evenlens import run

    configs, undrawn = recipe.configs, recipe.undrawn
    data = check_data(configs)
    there = sum(run.folder_of(config, runs).exists() for config in configs)
    left = len(configs) - there + undrawn
    jobs = max(1, min(side_by_side(runs, jobs), left))
    pace = step_seconds(configs[0], jobs) / expected.step_seconds if left else 1.0
    share = left / (len(configs) + undrawn)
    seconds, megabytes = expected.seconds * share * pace / jobs, expected.megabytes * share
    return Cost(len(configs), undrawn, there, jobs, data, pace, seconds, megabytes)


def side_by_side(runs: Path, jobs: int | None) -> int:
    """Give how many runs a sweep makes side by side here."""
    from evenlens.stores import open_store
    from evenlens.workers import Engine

    workers = Engine(jobs=jobs).start(open_store(runs))
    try:
        return workers.slots
    finally:
        workers.close()


def step_seconds(config: RunConfig, jobs: int) -> float:
    """Time forward and backward of a run's network here, with the threads of one of `jobs` workers: the best of some.

    Args:
        config: a complete one.
        jobs: runs side by side, at least 1.
    """
    import torch

    from evenlens import engine, nets
    from evenlens.data.dataset import Task
    from evenlens.processes import cores

    size, batch, threads = int(config.data.size or 0), config.train.batch_size, torch.get_num_threads()
    try:
        device = engine.start(max(1, cores() // jobs))
        net = nets.build(config.net.model_copy(update={"pretrained": False}), Task(("0", "1"), ("0", "1"), size))
        precision = nets.choose_precision(config.precision, net, size, batch, device)
        return min(nets.step_seconds(precision, net, size, batch, device) for _ in range(3))
    finally:
        torch.set_num_threads(threads)


# ---- after the runs


def tables(recipe: Recipe, runs: Sequence[Run], names: Sequence[str]) -> dict[str, list[Row]]:
    """Give the rows of each task's table by the task's name in reports; of a search, those of the chosen draws.

    Args:
        recipe: what was run, with all draws of its searches.
        runs: complete ones, of this recipe.
        names: metrics of the table; their intervals are none, as nobody looks at these here.
    """
    from evenlens import searching
    from evenlens.report import summary

    if recipe.searches:
        runs = searching.chosen_runs(searching.choose(recipe.searches, runs))
    return {task: summary.summarise(made, names, replicates=2) for task, made in summary.by_task(runs).items()}


def compare(expected: Expected, found: Mapping[str, Sequence[Row]]) -> list[Value]:
    """Hold what came out against what is expected.

    Args:
        expected: of the recipe.
        found: as `tables` gives them, with the expected metrics.
    """
    values = []
    for task, rows in expected.values.items():
        made = {row.label: row for row in found.get(task, ())}
        for label, row in rows.items():
            for name, value, tolerance in zip(expected.metrics, row.value, row.tolerance, strict=True):
                if not math.isnan(value):
                    number = made[label].numbers[name].value if label in made else None
                    values.append(Value(task, label, name, value, tolerance, number))
    return values


def complaint(values: Sequence[Value]) -> str:
    """Say what did not come out, and by how much; empty where everything did."""
    wrong = [str(value) for value in values if value.verdict != "within"]
    if not wrong:
        return ""
    more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return f"{len(wrong)} of {len(values)} values did not come out: {'; '.join(wrong[:NAMED])}{more}."


def differences(expected: Expected, runs: Iterable[Run]) -> list[str]:
    """Say in what runs were computed otherwise than those of the record."""
    recorded = {**expected.versions, "device": expected.device, "precision": expected.precision}
    return [
        f"{name}: {recorded.get(name, 'not said')} in the record, {here} here"
        for name, here in expecting.circumstances(runs).items()
        if recorded.get(name) != here
    ]


def as_dict(
    name: str, spent: Cost, expected: Expected, values: Sequence[Value], runs: Sequence[Run]
) -> dict[str, object]:
    """Give a comparison as JSON can hold it; undefined is null.

    Args:
        name: the recipe, as it was named.
        spent: as it was said before.
        expected: of the recipe.
        values: as `compare` gives them.
        runs: those that were compared.
    """

    def number(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else round(value, 6)

    return {
        "recipe": name,
        "reproduced": not complaint(values),
        "complaint": complaint(values),
        "recorded": expected.model_dump(include={"recorded", "device", "precision", "versions", "rule"}),
        "computed": expecting.circumstances(runs),
        "differences": differences(expected, runs),
        "fingerprints": expected.fingerprints,
        "cost": spent._asdict(),
        "values": [{**value._asdict(), "found": number(value.found), "verdict": value.verdict} for value in values],
    }
