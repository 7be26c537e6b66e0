"""An audit's findings -> one self-contained HTML page that an engineer can hand to a manager and an auditor.

It is made of the findings' JSON alone, so that it can be made again of that file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.report import audit_figures, audit_tables, audit_words, bundle
from evenlens.report.audit_content import Content, Group, gaps

OUTCOMES = {"passed": "✓ passed", "failed": "✗ failed", "undecided": "? undecided"}


def write(content: Mapping[str, Any], path: Path, verdicts: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the page, and beside it what it was made of as JSON (`audit.html` and `audit.json`).

    Args:
        content: the findings, as `Audit.as_dict` gives them, `Audit.to_json` writes them, or a page has them beside it.
        path: the page; replaced if it is there, and never half-written.
        verdicts: what became of requirements, as `Verdict.as_dict` gives it; default: those in the content.

    Returns:
        the page's path.

    Raises:
        UserError: these are not the findings of an audit, or the page would be the JSON file.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise UserError(f"{path} would be overwritten by the JSON beside the page: name the page .html.")
    required = [dict(verdict) for verdict in verdicts or content.get("requirements", ())]
    page = render(Content.of(content), required)
    beside = json.dumps({**content, **({"requirements": required} if required else {})}, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    for out, text in ((path.with_suffix(".json"), beside), (path, page)):
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8")
    return path


def render(content: Content, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Fill the template."""
    by_group = audit_figures.by_group(content)
    against_chance = audit_figures.against_chance(content, content.main, "gaps", "Gaps between groups, and chance")
    columns = [_column(content, number, name) for number, name in enumerate(content["marginals"])]
    compared = _compared(content)
    of_scores = audit_figures.scores(content) if content["scores"] else None
    figures = [*by_group, against_chance, *(column["figure"] for column in columns), of_scores,
               *(compared["figures"] if compared else [])]  # fmt: skip
    return bundle.render(
        "audit.html",
        {figure.key: figure.spec for figure in figures if figure},
        title=content["title"],
        content=content,
        raw=content.raw,
        headline=audit_words.headline(content),
        sentences=audit_words.sentences(content, verdicts),
        verdicts=[(verdict, OUTCOMES[verdict["outcome"]]) for verdict in verdicts],
        group_head=audit_tables.group_head(content),
        group_lines=audit_tables.group_lines(content, content.groups, told_apart=True),
        by_group=by_group,
        gap_lines=audit_tables.gap_lines(content, list(content.main.values())),
        gap_figure=against_chance,
        other_numbers=audit_tables.other_numbers(content),
        columns=columns,
        score_figure=of_scores,
        score_numbers=audit_tables.score_numbers(content),
        compared=compared,
        count_lines=audit_tables.count_lines(content) if len(content.classes) == 2 else [],
        matrices=audit_tables.matrices(content),
        confusions=audit_tables.confusions(content),
        meanings=audit_tables.meanings(content),
        reading=audit_words.reading(content),
        known=known(content),
    )


def _column(content: Content, number: int, name: str) -> dict[str, Any]:
    """Gather what is shown of one sensitive column alone."""
    entry = content["marginals"][name]
    of_column = gaps(entry["gaps"], content.clusters is not None)
    return {
        "name": name,
        "figure": audit_figures.marginal(content, number, name),
        "lines": audit_tables.group_lines(content, [Group.of(level) for level in entry["groups"]]),
        "gaps": audit_tables.gap_lines(content, list(of_column.values())),
    }


def _compared(content: Content) -> dict[str, Any] | None:
    """Gather what is shown of a second model."""
    if not content["comparison"]:
        return None
    return {
        "source": content["comparison"]["source"],
        "figures": [audit_figures.differences(content), audit_figures.changes(content)],
        "lines": audit_tables.changed_lines(content),
        "uneven": audit_tables.uneven(content),
    }


def _groups(content: Content) -> str:
    number, compared, crossed = len(content.groups), len(content.counted), len(content["sensitive"])
    said = f"{number:,}" + (f", the crossing of {crossed} columns" if crossed > 1 else "")
    return said if number == compared else f"{said}; {compared:,} are compared"


def known(content: Content) -> list[tuple[str, str]]:
    """List what is known of the data and of how the findings were made, as (what, value)."""
    sensitive = content["sensitive"]
    minimum, left = content["minimum_group_size"], [group.name for group in content.groups if group.excluded]
    rows = [
        ("Source", content["source"]),
        ("Images", f"{content['rows']:,}" + (f", of {content.clusters:,} units" if content.clusters else "")),
        ("Classes", "; ".join(content.classes)),
        ("Positive class", content.positive or "none: there are more than two"),
        *((f"Column {name}", "; ".join(levels)) for name, levels in sensitive.items()),
        ("Groups", _groups(content)),
        ("Left out", f"Groups with fewer than {minimum:,} images: {'; '.join(left) or 'none'}" if minimum else ""),
        ("Second model", content["comparison"]["source"] if content["comparison"] else ""),
        ("Made", f"{content.created}, with evenlens {content['evenlens']}"),
        ("Confidence", f"{content.level}, of each interval by itself"),
        ("Replicates", f"{content['replicates']:,}, of the bootstrap and of chance, from a fixed seed"),
    ]  # fmt: skip
    return [(what, said) for what, said in rows if said]
