"""The part `[expected]` of a recipe: what came out, how far off it may be, of which data, on what, and what it cost."""

from __future__ import annotations

import json
import math
import re
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field, ValidationError

from evenlens import metrics
from evenlens.config import RunConfig, Section, first_mistake
from evenlens.errors import UserError
from evenlens.files import replacing

if TYPE_CHECKING:
    from evenlens.report.summary import Row
    from evenlens.run import Run

FACTOR, LEAST = 4.0, 0.005  # of a tolerance
RULE = (
    "4 s sqrt(2 / n), at least 0.005: s is the standard deviation over the n seeds of the row, or the median of those "
    "of all rows of the task if that is larger"
)
HEAD = """\
# Written by `evenlens reproduce --record`, which replaces all that follows. A value is the mean over the seeds of a
# row; values and tolerances are in the order of `metrics`. On the same machine, with the same versions, the numbers are
# the same. Another one rounds otherwise, which changes a run no more than another seed would: hence the rule.
"""
REMEDY = "mend it, or write it anew with evenlens reproduce RECIPE --record"


class ExpectedRow(Section):
    """What is expected of one row of a table.

    Attributes:
        value: of each metric, the mean over the seeds; NaN where it is undefined, and nothing is expected.
        tolerance: of each metric, how far off the value may be, at least 0; NaN where nothing is expected.
    """

    model_config = ConfigDict(allow_inf_nan=True)

    value: list[float]
    tolerance: list[float]


class Expected(Section):
    """What a recipe is expected to give.

    Attributes:
        recorded: the day.
        device: what computed.
        precision: how it computed.
        seconds: training and validation of all runs, those that others start from too, one after another.
        step_seconds: of one step of the recipe's network on that machine, by which another is compared with it.
        megabytes: of all run folders.
        rule: how the tolerances were set.
        versions: of evenlens, python and torch.
        metrics: names, in the order of values and tolerances.
        fingerprints: of the data by question, in the order in which the recipe asks it of several images.
        values: by task and by row of its table.
    """

    recorded: str
    device: str
    precision: str
    seconds: float = Field(gt=0)
    step_seconds: float = Field(gt=0)
    megabytes: float = Field(ge=0)
    rule: str
    versions: dict[str, str]
    metrics: list[str] = Field(min_length=1)
    fingerprints: dict[str, list[str]]
    values: dict[str, dict[str, ExpectedRow]]


def check(content: object, path: Path) -> Expected:
    """Check what a recipe's [expected] says.

    Args:
        content: as read from TOML.
        path: of the recipe, for the message.

    Raises:
        UserError: it is not as `evenlens reproduce --record` writes it.
    """
    try:
        expected = Expected.model_validate(content)
    except ValidationError as error:
        place, message = first_mistake(error)
        raise UserError(f"{path}: [expected] {place} cannot be read ({message}): {REMEDY}.") from None
    for name in expected.metrics:
        metrics.get(name)
    for task, rows in expected.values.items():
        for label, row in rows.items():
            if not len(row.value) == len(row.tolerance) == len(expected.metrics):
                raise UserError(
                    f"{path}: [expected] has {len(row.value)} values and {len(row.tolerance)} tolerances of {label} "
                    f"({task}) for {len(expected.metrics)} metrics: {REMEDY}."
                )
            for value, tolerance in zip(row.value, row.tolerance, strict=True):
                if not math.isnan(value) and not 0 <= tolerance < math.inf:
                    raise UserError(
                        f"{path}: [expected] has the tolerance {tolerance} of {label} ({task}), and a tolerance is 0 "
                        f"or more: {REMEDY}."
                    )
    return expected


# ---- what is asked of which images


def question(config: RunConfig) -> str:
    """Name what a complete configuration asks, as reports do."""
    from evenlens.report import summary

    return summary.question(config.dataset, str(config.data.target), " and ".join(config.data.sensitive or ()))


def images(config: RunConfig) -> str:
    """Say which images it is asked of; a view and augmentation leave these as they are."""
    return config.data.model_dump_json(exclude={"root", "fingerprint", "view", "view_options", "augment"})


def asked(configs: Iterable[RunConfig]) -> dict[str, dict[str, str]]:
    """Give the fingerprint of all images that each question is asked of, in the order of complete configurations."""
    found: dict[str, dict[str, str]] = {}
    for config in configs:
        found.setdefault(question(config), {}).setdefault(images(config), str(config.data.fingerprint))
    return found


# ---- making a record


def check_seeds(configs: Iterable[RunConfig]) -> None:
    """Ask for two seeds or more, without which nothing says how far off a value may be.

    Raises:
        UserError: there is one.
    """
    seeds = {config.seed for config in configs}
    if len(seeds) < 2:
        raise UserError(
            f"The recipe has the seed {seeds.pop()} alone, so that nothing says how far off a value may be elsewhere: "
            "give it two or more, such as seed = [1, 2, 3]."
        )


def record(runs: Sequence[Run], tables: Mapping[str, Sequence[Row]], step_seconds: float) -> Expected:
    """Make the record of a finished sweep.

    Args:
        runs: all runs of the recipe, in its order.
        tables: rows by task; the metrics that all have are kept.
        step_seconds: of a step on the machine that made the runs.
    """
    folders = {folder.resolve() for run in runs for folder in (run.folder, *_started_from(run))}
    names = [*next(iter(tables.values()))[0].numbers]
    computed = circumstances(runs)
    size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    return Expected(
        recorded=datetime.now(UTC).date().isoformat(),
        device=computed.pop("device"),
        precision=computed.pop("precision"),
        seconds=round(sum(map(_seconds, folders)), 1),
        step_seconds=float(f"{step_seconds:.3g}"),
        megabytes=round(size / 1e6, 1),
        rule=RULE,
        versions=computed,
        metrics=names,
        fingerprints={name: [*made.values()] for name, made in asked(run.config for run in runs).items()},
        values={task: _expect(rows, names) for task, rows in tables.items()},
    )


def circumstances(runs: Iterable[Run]) -> dict[str, str]:
    """Say with which versions, on which device and how runs were computed; of several, all."""
    seen: dict[str, dict[str, None]] = {}
    for run in runs:
        told = run.environment
        for name, said in {**told["versions"], "device": told["device"], "precision": told["precision"]}.items():
            seen.setdefault(name, {})[str(said)] = None
    return {name: " and ".join(said) for name, said in seen.items()}


def _started_from(run: Run) -> list[Path]:
    from evenlens.run import Run

    direct = [folder for name in run.metrics.get("requires") or {} for folder in run.required(name) if folder.exists()]
    return [*direct, *(folder for each in direct for folder in _started_from(Run.open(each)))]


def _seconds(folder: Path) -> float:
    from evenlens.run import Run

    return sum(entry["seconds"] + entry.get("evaluation_seconds", 0.0) for entry in Run.open(folder).log)


def _expect(rows: Sequence[Row], names: Sequence[str]) -> dict[str, ExpectedRow]:
    """Set the tolerances of a task's rows, as `RULE` says."""
    made: dict[str, ExpectedRow] = {row.label: ExpectedRow(value=[], tolerance=[]) for row in rows}
    for name in names:
        spreads = {row.label: _deviation(row.numbers[name].seeds) for row in rows}
        known = [spread for spread in spreads.values() if not math.isnan(spread)]
        for row in rows:
            number = row.numbers[name]
            spread = max(spreads[row.label], statistics.median(known)) if known else math.nan
            off = max(LEAST, FACTOR * spread * math.sqrt(2 / len(number.seeds)))
            made[row.label].value.append(round(number.value, 4))
            made[row.label].tolerance.append(math.nan if math.isnan(number.value) else round(off, 4))
    return made


def _deviation(values: Sequence[float]) -> float:
    """Give the standard deviation over seeds; NaN where a value is undefined."""
    return math.nan if any(map(math.isnan, values)) else statistics.stdev(values)


# ---- writing it


def write(path: Path, expected: Expected) -> None:
    """Write a record into its recipe, in place of the one that is there.

    Raises:
        UserError: something stands behind [expected], which would be lost.
    """
    text = path.read_text(encoding="utf-8")
    rest = {key: value for key, value in tomllib.loads(text).items() if key != "expected"}
    kept = re.split(r"^(?:# Written by `evenlens reproduce --record`|\[expected\b)", text, maxsplit=1, flags=re.M)[0]
    if tomllib.loads(kept) != rest:
        raise UserError(f"{path}: its part [expected] is to be replaced, and is not the last: move it to the end.")
    with replacing(path) as part:
        part.write_text(f"{kept.rstrip()}\n\n{to_toml(expected)}", encoding="utf-8")


def to_toml(expected: Expected) -> str:
    """Write a record as the part [expected] of a recipe."""
    content: dict[str, Any] = expected.model_dump()
    parts = {"fingerprints": content.pop("fingerprints")}
    parts |= {f"values.{_key(task)}": rows for task, rows in content.pop("values").items()}
    text = f"{HEAD}[expected]\n{_lines(content)}"
    return text + "".join(f"\n[expected.{name}]\n{_lines(part)}" for name, part in parts.items())


def _lines(table: Mapping[str, Any]) -> str:
    """Write a table, each value on one line, which a library would spread over many."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {_value(part)}' for key, part in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
