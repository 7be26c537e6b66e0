"""Runs -> rows of a table: one row a method, each number with its intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evenlens import metrics
from evenlens.config import PHOTOGRAPH, RunConfig
from evenlens.errors import UserError
from evenlens.registry import describe
from evenlens.run import Run

SHOWN = (
    "accuracy",
    "worst_group_accuracy",
    "worst_cell_accuracy",
    "unbiased_accuracy",
    "bias_conflict_accuracy",
    "demographic_parity_difference",
    "equalized_odds_difference",
    "equal_opportunity_difference",
    "average_absolute_odds_difference",
    "accuracy_equality_difference",
    "balanced_accuracy",
)


@dataclass(frozen=True)
class Number:
    """A metric's mean over the seeds of a method.

    Attributes:
        value: the mean; NaN if it is undefined for a seed.
        low: lower end of the 95 % interval over test images, drawn anew for all seeds together.
        high: its upper end.
        seeds: the value of each seed.
        seed_low: lower end of Student's 95 % interval over the seeds; NaN for a single one.
        seed_high: its upper end.
        both_low: lower end of the 95 % interval over images and seeds together; NaN for a single seed.
        both_high: its upper end.
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    seed_low: float
    seed_high: float
    both_low: float
    both_high: float


@dataclass(frozen=True)
class Row:
    """All seeds of one method with one configuration.

    Attributes:
        method: its name.
        title: what a wide table calls it: name, source, and what tells it from others of the same method.
        label: what a narrow one calls it: the method's name, and the same.
        runs: its runs, by seed.
        numbers: by metric.
        counts: (G, C, C) test counts, added over the seeds.
        seconds: mean training time.
        repeats: for each of the runs, others with the same seed and settings: no more seeds, but what chance is left.
    """

    method: str
    title: str
    label: str
    runs: tuple[Run, ...]
    numbers: dict[str, Number]
    counts: np.ndarray
    seconds: float
    repeats: tuple[tuple[Run, ...], ...] = ()

    @property
    def on_photographs(self) -> bool:
        """Whether its networks were shown the photographs themselves."""
        return self.runs[0].config.data.view == PHOTOGRAPH


def question(dataset: str, target: str, sensitive: str) -> str:
    """Name what is asked of which data set; of several sensitive columns "gender and race"."""
    return f"{dataset}, {target} by {sensitive}"


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Part runs into those that one table can hold, which predict the same on the same images, by what that is."""
    parted: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        task, data = run.metrics["task"], run.config.data
        posed = (run.config.dataset, task["target"], " and ".join(task["sensitive"]), str(data.fingerprint))
        parted.setdefault(posed, []).append(run)
    names = [question(*posed[:3]) for posed in parted]
    told_apart = [  # the same question of other images
        f"{name} ({posed[-1]})" if names.count(name) > 1 else name for name, posed in zip(names, parted, strict=True)
    ]
    return dict(zip(told_apart, parted.values(), strict=True))


def summarise(runs: Iterable[Run], names: Sequence[str] = SHOWN, replicates: int = 1000) -> list[Row]:
    """Gather runs by what they were, apart from the seed; runs of the same seed too are repeats, not more seeds.

    Raises:
        UserError: the runs predict different things, or on different images, so that no table can hold them.
    """
    grouped: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.config.seed):
        grouped.setdefault(run.config.model_copy(update={"seed": 0}).identity(), []).append(run)
    if not grouped:
        raise UserError("There is no run to report: name run folders, or a folder that holds some.")
    first = next(iter(grouped.values()))[0]
    for group in grouped.values():
        if (group[0].metrics["task"], group[0].config.data.fingerprint) != (
            first.metrics["task"],
            first.config.data.fingerprint,
        ):
            raise UserError(
                f"{first.folder} and {group[0].folder} were made on different data or tasks: report them apart."
            )
    titles = _titles([group[0].config for group in grouped.values()])
    return [_row(group, *title, names, replicates) for group, title in zip(grouped.values(), titles, strict=True)]


def _repeated(runs: Iterable[Run]) -> list[list[Run]]:
    """Part the runs of a row by seed; a folder that is named twice, or copied, is no repeat."""
    by_seed: dict[int, list[Run]] = {}
    for run in runs:
        same = by_seed.setdefault(run.config.seed, [])
        if all(run.environment != other.environment for other in same):  # it says when, and how long a run took
            same.append(run)
    return list(by_seed.values())


def _titles(configs: list[RunConfig]) -> list[tuple[str, str]]:
    """Give each row its title and its label."""
    cards = describe("evenlens.methods")
    flat = [
        {f"{section}{key}": value for section, part in _sections(config) for key, value in part.items()}
        for config in configs
    ]
    titles = []
    for config, settings in zip(configs, flat, strict=True):
        same = [other for twin, other in zip(configs, flat, strict=True) if twin.method == config.method]
        varied = [f"{key}={value}" for key, value in settings.items() if any(other.get(key) != value for other in same)]
        drawn = [other for other in configs if (other.method, other.data.view) == (config.method, config.data.view)]
        varied += [
            f"view.{key}={value}"
            for key, value in config.data.view_options.items()
            if any(other.data.view_options.get(key) != value for other in drawn)
        ]
        suffix = f" [{', '.join(varied)}]" if varied else ""
        titles.append((cards.get(config.method, {}).get("title", config.method) + suffix, config.method + suffix))
    return titles


def _sections(config: RunConfig) -> list[tuple[str, dict]]:
    return [
        ("", {"select": config.select, "precision": config.precision, **config.options}),
        *(
            (f"{name}.", getattr(config, name).model_dump(mode="json", exclude={"root", "view_options"}))
            for name in ("data", "net", "train")
        ),
    ]


def _row(made: list[Run], title: str, label: str, names: Sequence[str], replicates: int) -> Row:
    repeats = _repeated(made)
    runs = [same[0] for same in repeats]
    task, train_cells = runs[0].metrics["task"], np.array(runs[0].metrics["train_cells"])
    tables = [run.predictions("test") for run in runs]
    predicted = np.stack([table["prediction"] for table in tables])
    patterns = metrics.Patterns.of(
        predicted, tables[0]["label"], tables[0]["group"], len(task["class_names"]), len(task["group_names"]), "group"
    )
    known = [metrics.get(name) for name in names]
    numbers = {}
    for name, (images, both) in zip(
        names, metrics.run_intervals(known, patterns, replicates, train_cells=train_cells), strict=True
    ):
        seeds = [run.metrics["test"]["metrics"][name][0] for run in runs]
        values = [np.nan if value is None else value for value in seeds]
        apart = metrics.seed_interval(values)
        numbers[name] = Number(
            images.value, images.low, images.high, tuple(values), apart.low, apart.high, both.low, both.high
        )
    counts = np.sum([run.metrics["test"]["counts"] for run in runs], axis=0)
    seconds = float(np.mean([run.environment["seconds_training"] for run in runs]))
    more = tuple(tuple(same[1:]) for same in repeats)
    return Row(runs[0].config.method, title, label, tuple(runs), numbers, counts, seconds, more)


def sort_rows(rows: list[Row], baseline: str | None) -> list[Row]:
    """Put the baseline first, of it what looks at photographs, then the best worst cell first."""

    def place(row: Row) -> tuple[bool, bool, float]:
        ours = row.method == baseline
        worst = np.nan_to_num(row.numbers["worst_cell_accuracy"].value, nan=-1)
        return not ours, ours and not row.on_photographs, -float(worst)

    return sorted(rows, key=place)


COLUMNS = {
    "accuracy": "accuracy",
    "worst_group_accuracy": "worst group",
    "worst_cell_accuracy": "worst cell",
    "equalized_odds_difference": "odds gap",
    "demographic_parity_difference": "parity gap",
}
"""What a narrow table shows, with the short name of each."""


def to_markdown(rows: Sequence[Row]) -> str:
    """Write the narrow table as Markdown: the mean, and its 95 % interval over test images."""
    arrows = {"higher": "↑", "lower": "↓"}
    head = [f"{short} {arrows[metrics.get(name).direction]}" for name, short in COLUMNS.items()]
    lines = [f"| method | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    for row in rows:
        numbers = [row.numbers[name] for name in COLUMNS]
        cells = [f"{n.value:.3f} ({n.low:.3f} to {n.high:.3f})" if n.value == n.value else "undefined" for n in numbers]
        lines.append(f"| {row.title} | {' | '.join(cells)} |")
    return "\n".join(lines)
