"""Runs -> one self-contained HTML page that an engineer can hand to a manager and an auditor."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenlens import __version__, datasets, metrics
from evenlens.config import SCALARS, SECTIONS, RunConfig, parse_value
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.report import (
    bundle,
    compression,
    compression_figures,
    compression_words,
    figures,
    images,
    search,
    significance,
    significance_page,
    summary,
    tables,
    verdict,
    views,
)
from evenlens.report.compression import Compressed
from evenlens.report.figures import Shown
from evenlens.report.summary import Row
from evenlens.run import Run
from evenlens.searching import Found

FORMAT = 1  # of the JSON beside the page


def write(
    runs: Sequence[Run],
    out: Path,
    *,
    title: str,
    about: str = "",
    baseline: str | None = None,
    command: str | None = None,
    rows: Sequence[Row] | None = None,
    pictures: bool = True,
    found: Sequence[Found] = (),
) -> Path:
    """Write the page, and beside it the same content as JSON (`report.html` and `report.json`).

    Args:
        runs: complete runs on the same data.
        out: the page; replaced if it is there, and never half-written.
        title: its headline.
        about: a few sentences on what this is about; empty lines part paragraphs.
        baseline: name of the method that the others are compared with; default: the first that knows no groups.
        command: the command that made the runs and the page.
        rows: the runs as `summary.summarise` gives them, where the caller has them already; kept in this order.
        pictures: show test images that are predicted wrong; whoever gets the page then gets these images.
        found: the searches that chose these runs.

    Returns:
        the page's path.

    Raises:
        UserError: the runs do not belong into one table, or the baseline is none of their methods.
    """
    out = Path(out)
    if out.suffix == ".json":
        raise UserError(f"{out} would be overwritten by the JSON beside the page: name the page .html.")
    shown = show(rows or summary.summarise(runs), baseline, sort=rows is None)
    comparisons = verdict.compare(shown.rows, shown.baseline, shown.gap, shown.level)
    compressed = compression.find(shown)
    searched, tested = search.find(shown, found), significance.find(shown)
    sections = {**search.section(searched, found), "significance": significance_page.section(tested)}
    page = render(shown, comparisons, compressed, title, about, command, pictures, sections)
    content = machine_readable(shown, comparisons, compressed, title, about, command)
    content["search"] = search.machine_readable(searched, found)
    content["significance"] = _plain(significance.machine_readable(tested))
    beside = json.dumps(content, indent=1, allow_nan=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out.with_suffix(".json"), beside), (out, page)):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return out


def show(rows: Sequence[Row], baseline: str | None, sort: bool = True) -> Shown:
    """Choose baseline, best method and gap, and give each row its mark."""
    rows = list(rows)
    first = verdict.baseline_of(rows, baseline)
    if sort:
        rows = sorted(summary.sort_rows(rows, first.method), key=lambda row: row is not first)
    gap, level = verdict.first_defined(verdict.GAPS, rows), verdict.first_defined(verdict.LEVELS, rows)
    return Shown(rows, figures.marks(rows), first, verdict.best_of(rows, first, level), gap, level)


# ---- the page


def render(
    shown: Shown,
    comparisons: Sequence[verdict.Comparison],
    compressed: Sequence[Compressed],
    title: str,
    about: str,
    command: str | None,
    pictures: bool,
    sections: dict[str, Any],
) -> str:
    """Fill the template."""
    drawn = figures.all_figures(shown)
    of_compressed = compression_figures.all_figures(shown, compressed)
    viewed = views.find(shown)
    of_views = views.all_figures(viewed)
    runs = [(run, mark) for row, mark in zip(shown.rows, shown.marks, strict=True) for run in row.runs]
    every = [*drawn, *of_compressed, *of_views, *sections["search_figures"], *sections["significance"]["figures"]]
    return bundle.render(
        "page.html",
        {figure.key: figure.spec for figure in every},
        title=title,
        about=[part.strip() for part in about.split("\n\n") if part.strip()],
        shown=shown,
        task=shown.task,
        num_images=f"{shown.baseline.runs[0].metrics['test']['num_images']:,}",
        seeds=verdict.seeds_in_words(shown.rows),
        headline=verdict.headline(comparisons, shown.baseline, shown.gap, shown.name),
        sentences=verdict.baseline_sentences(shown.baseline, shown.name(shown.baseline), shown.gap),
        gap=metrics.get(shown.gap) if shown.gap else None,
        level=metrics.get(shown.level) if shown.level else None,
        against=tables.against(shown, comparisons),
        best=shown.mark(shown.best) if shown.best else None,
        columns=tables.columns(),
        lines=tables.lines(shown),
        undefined=tables.UNDEFINED,
        compressed=compression_words.items(compressed),
        compression_figures=of_compressed,
        viewed=views.lines(viewed),
        view_figures=of_views,
        **sections,
        figures=drawn,
        confusion=tables.confusion(shown),
        **_pictures(shown, pictures),
        card=_card(shown.baseline.runs[0]),
        cell_counts=tables.cell_counts(shown),
        limits=verdict.limits(shown.rows, shown.baseline, len(comparisons)),
        command=command,
        commands=[command_of(run.config) for run, _ in runs],
        environment_head=tables.ENVIRONMENT,
        environment=[tables.environment(run, mark) for run, mark in runs],
        configs=[_config(run, mark.letter) for run, mark in runs],
    )  # fmt: skip


def _pictures(shown: Shown, wanted: bool) -> dict[str, Any]:
    worst = verdict.groups(shown.baseline)[0]
    if not wanted:
        return {"worst_group": worst.name, "sheets": [], "no_sheets": "The images were left out on request."}
    rows = [shown.baseline, *([shown.best] if shown.best else [])]
    sheets, why = images.sheets(rows, worst.group)
    return {"worst_group": worst.name, "sheets": sheets, "no_sheets": why}


def _config(run: Run, letter: str) -> tuple[str, str, str]:
    text = (run.folder / "config.toml").read_text(encoding="utf-8")
    return f"{letter} {run.config.method}, seed {run.config.seed}", run.metrics["id"], text


def _card(run: Run) -> dict[str, Any]:
    """Gather what is known of the data; a data set that this evenlens does not have is known by its name alone."""
    config, measured = run.config, run.metrics
    card: dict[str, Any] = {
        "name": config.dataset,
        "protocol": config.data.protocol or "",
        "notes": measured["notes"],
        "fingerprint": config.data.fingerprint or "",
        "known": [],
        "homepage": "",
        "protocol_summary": "",
    }
    try:
        kind = datasets.get(config.dataset, config.data.root)
    except UserError:
        return card
    protocol = kind.protocols.get(card["protocol"])
    known = [("Source", kind.citation), ("Licence", kind.licence), ("To know", kind.caveat)]
    safe = kind.homepage if kind.homepage.startswith(("https://", "http://")) else ""
    summary_of = protocol.summary if protocol else ""
    return card | {"name": kind.title, "known": known, "homepage": safe, "protocol_summary": summary_of}


# ---- how to repeat a run


def command_of(config: RunConfig) -> str:
    """Write the command that makes this run again, with every setting that is not its default."""
    settings = {key: getattr(config, key) for key in SCALARS if key != "seed"} | dict(config.options)
    for section in SECTIONS:
        values = getattr(config, section).model_dump(mode="json")
        settings |= {f"data.{key}": value for key, value in values.pop("options", {}).items()}
        settings |= {f"view.{key}": value for key, value in values.pop("view_options", {}).items()}
        settings |= {f"{section}.{key}": value for key, value in values.items()}
    defaults = {key: field.default for key, field in RunConfig.model_fields.items()}
    for section, kind in SECTIONS.items():
        defaults |= {f"{section}.{key}": field.default for key, field in kind.model_fields.items()}
    given = [
        shlex.quote(f"{key}={_value(value)}")
        for key, value in settings.items()
        if value is not None and (key not in defaults or value != defaults[key])
    ]
    return " ".join(
        ["evenlens train", shlex.quote(config.dataset), shlex.quote(config.method), f"--seed {config.seed}", *given]
    )


def _value(value: Any) -> str:
    """Write a value so that `parse_value` reads it: plain where it can be, else as TOML."""
    if isinstance(value, str):
        return value if parse_value(value) == value else json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        plain = ",".join(str(part) for part in value)
        return (
            plain
            if len(value) > 1 and parse_value(plain) == list(value)
            else json.dumps(list(value), ensure_ascii=False)
        )
    return str(value)


# ---- the same for machines


def machine_readable(
    shown: Shown,
    comparisons: Sequence[verdict.Comparison],
    compressed: Sequence[Compressed],
    title: str,
    about: str,
    command: str | None,
) -> dict[str, Any]:
    """Give the page's content as what JSON can hold; undefined is null."""
    first = shown.baseline.runs[0]
    front = figures.pareto_front(
        [(row.numbers["accuracy"].value, row.numbers[shown.gap].value) for row in shown.rows] if shown.gap else []
    )
    return {
        "format": FORMAT,
        "version": __version__,
        "title": title,
        "about": about,
        "command": command,
        "dataset": first.config.dataset,
        "fingerprint": first.config.data.fingerprint,
        "task": shown.task,
        "num_test_images": first.metrics["test"]["num_images"],
        "train_cells": first.metrics["train_cells"],
        "notes": first.metrics["notes"],
        "baseline": shown.mark(shown.baseline).letter,
        "best": shown.mark(shown.best).letter if shown.best else None,
        "gap": shown.gap,
        "pareto_front": [shown.marks[k].letter for k in front],
        "rows": [_machine_row(row, mark.letter) for row, mark in zip(shown.rows, shown.marks, strict=True)],
        "comparisons": [_machine_comparison(shown, item) for item in comparisons],
        "compression": _plain(compression_words.machine_readable(compressed)),
        "views": views.machine_readable(views.find(shown)),
    }


def _machine_comparison(shown: Shown, item: verdict.Comparison) -> dict[str, Any]:
    return {
        "row": shown.mark(item.row).letter,
        "words": verdict.in_words(item, shown.gap, shown.level),
        "changes": {name: _plain(vars(c) | {"clear": c.sign != 0}) for name, c in item.changes.items()},
    }


def _machine_row(row: Row, letter: str) -> dict[str, Any]:
    return {
        "letter": letter,
        "method": row.method,
        "title": row.title,
        "seconds": row.seconds,
        "numbers": {name: _plain(vars(number)) for name, number in row.numbers.items()},
        "counts": row.counts.tolist(),
        "groups": [_plain(vars(served)) for served in verdict.groups(row)],
        "cells": [_plain(vars(served)) for served in verdict.cells(row)],
        "runs": [
            {
                "id": run.metrics["id"],
                "seed": run.config.seed,
                "command": command_of(run.config),
                "config": run.config.model_dump(mode="json"),
                "selected_epoch": run.metrics["selected_epoch"],
                "environment": run.environment,
            }
            for run in row.runs
        ],
    }


def _plain(value: Any) -> Any:
    """Turn what a dataclass holds into JSON; NaN into null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
