"""Tests -> the section of a task's page, and the page that stands before the pages of several tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from evenlens import metrics
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.report import bundle, significance, significance_figures, significance_tasks
from evenlens.report.significance import Significance
from evenlens.report.significance_tasks import Overview


def section(found: Significance) -> dict[str, Any]:
    """Give what the section of a task's page is filled with."""
    return {
        "headline": significance.headline(found),
        "sentences": significance.sentences(found),
        "note": significance.NOTE,
        "against": significance.against_lines(found),
        "omnibus": significance.omnibus_lines(found),
        "doubt": significance.doubt_lines(found),
        "titles": [metrics.get(one.name).title for one in found.measures],
        "figures": significance_figures.seed_differences(found),
    }


def numbered(page: Path, number: int) -> Path:
    """Give the page of one of several tasks: `report.html` -> `report-1.html`."""
    return page.with_stem(f"{page.stem}-{number}")


def write(found: Overview, out: Path, *, title: str, about: str = "", command: str | None = None) -> Path:
    """Write the page over several tasks, and beside it the same content as JSON.

    Args:
        found: the tasks and how methods rank over them; the tasks' own pages are `numbered` in this order.
        out: the page; replaced if it is there, and never half-written.
        title: its headline.
        about: a few sentences on what this is about; empty lines part paragraphs.
        command: the command that made the runs and the pages.

    Returns:
        the page's path.

    Raises:
        UserError: the page would be the JSON file.
    """
    out = Path(out)
    if out.suffix == ".json":
        raise UserError(f"{out} would be overwritten by the JSON beside the page: name the page .html.")
    content = plain(significance_tasks.machine_readable(found, title, command))
    beside, page = json.dumps(content, indent=1, allow_nan=False), _render(found, out, title, about, command)
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, text in ((out.with_suffix(".json"), beside), (out, page)):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return out


def _render(found: Overview, out: Path, title: str, about: str, command: str | None) -> str:
    drawn = [significance_figures.critical_difference(one, found.marks) for one in found.ranked]
    return bundle.render(
        "significance_tasks.html",
        {figure.key: figure.spec for figure in drawn},
        title=title,
        about=[part.strip() for part in about.split("\n\n") if part.strip()],
        headline=significance_tasks.headline(found),
        sentences=significance_tasks.sentences(found),
        note=significance_tasks.NOTE,
        marks=found.marks,
        lines=significance_tasks.rank_lines(found),
        friedman=significance_tasks.friedman_lines(found),
        figures=drawn,
        ranked=[
            {"title": metrics.get(one.measure).title, "tasks": one.test.n, "lines": significance_tasks.place_lines(one)}
            for one in found.ranked
        ],
        pages=[
            (name, numbered(out, k).name, significance.headline(significance.find(shown)))
            for k, (name, shown) in enumerate(found.tasks.items(), start=1)
        ],
        command=command,
    )


def plain(value: Any) -> Any:
    """Turn NaN into null, wherever it stands."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
