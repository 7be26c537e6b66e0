"""The findings of a verification audit -> one self-contained HTML page, made of their JSON alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.report import bundle
from evenlens.report.audit_page import OUTCOMES
from evenlens.report.verify_figures import Found, all_figures, defined, said
from evenlens.verification.words import FORMAT, share, times

SUMMARIES = {
    "fmr_ratio": ("FMR, highest / lowest", "Largest FMR of a subgroup divided by the smallest; 1 is best."),
    "fnmr_ratio": ("FNMR, highest / lowest", "Largest FNMR of a subgroup divided by the smallest; 1 is best."),
    "fairness_discrepancy_rate": (
        "Fairness discrepancy rate ↑",
        "1 less the mean of the largest differences of FMR and of FNMR; 1 is best. "
        "At low targets it is nearly all FNMR. De Freitas Pereira and Marcel, 2021.",
    ),
    "garbe": ("GARBE ↓", "Mean of the Gini coefficients of FMR and FNMR; 0 is best. Howard et al., 2022."),
    "inequity": ("Inequity rate ↓", "Square root of the product of both ratios; 1 is best. Grother, 2021."),
}


class Cell(NamedTuple):
    """What stands in a cell: a number and what is small below it."""

    value: str
    small: str = ""


def write(content: Found, path: Path, verdicts: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the page, and beside it the JSON that it was made of (`verify.html` and `verify.json`).

    Args:
        content: the findings, as `Verification.as_dict` gives them or their JSON file has them.
        path: the page; replaced if it is there, and never half-written.
        verdicts: what became of requirements; default: those in the content.

    Raises:
        UserError: these are not the findings of a verification audit, or the page would be the JSON file.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise UserError(f"{path} would be overwritten by the JSON beside the page: name the page .html.")
    if content.get("format") != FORMAT:
        raise UserError("These are not the findings of a verification audit: give what evenlens verify --json wrote.")
    required = [dict(verdict) for verdict in verdicts or content.get("requirements", ())]
    page = render(content, required)
    beside = json.dumps({**content, **({"requirements": required} if required else {})}, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    for out, text in ((path.with_suffix(".json"), beside), (path, page)):
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8")
    return path


def render(content: Found, verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Fill the template."""
    place = [target["target"] for target in content["targets"]].index(content["at"])
    figures = all_figures(content, place)
    return bundle.render(
        "verify.html",
        {figure.key: figure.spec for figure in figures},
        content=content,
        title=content["title"],
        target=share(content["at"]),
        level=f"{100 * content['confidence']:g} %",
        meta=_meta(content),
        verdicts=[(verdict, OUTCOMES[verdict["outcome"]]) for verdict in verdicts],
        groups=[_group(group, place) for group in (*content["groups"], content["all"])],
        summaries=SUMMARIES,
        summary_lines=[_summaries(target, kind) for target in content["targets"] for kind in ("pooled", "own")],
        by_target=[(share(target["target"]), _by_target(content, k)) for k, target in enumerate(content["targets"])],
        thresholds=_thresholds(content),
        figures=figures,
    )


def _meta(content: Found) -> str:
    subjects = "" if content["subjects"] is None else f" of {content['subjects']:,} subjects"
    return (
        f"{content['source'] or 'Pairs'}: {content['genuine']:,} genuine and {content['imposters']:,} imposter "
        f"pairs{subjects}, {len(content['groups'])} subgroups. Made {content['created'][:10]}."
    )


def _rate(found: Found) -> Cell:
    return Cell(*said(found))


def _number(found: Found, digits: int) -> Cell:
    if not defined(found):
        return Cell("undefined")
    ends = "" if found["low"] is None else f"{found['low']:.{digits}f} to {found['high']:.{digits}f}"
    return Cell(f"{found['value']:.{digits}f}", ends)


def _group(group: Found, place: int) -> tuple[str, list[Cell]]:
    """Give the line of a subgroup at the chosen target."""
    at = group["at"][place]
    pairs = Cell(f"{group['genuine']:,}", f"{group['imposters']:,} imposters")
    people = Cell("" if group["subjects"] is None else f"{group['subjects']:,}")
    scores = [_rate(group["eer"]), _number(group["d_prime"], 2), _number(group["auc"], 4)]
    return group["name"], [people, pairs, _rate(at["pooled"]["fmr"]), _rate(at["pooled"]["fnmr"]), *scores]


def _summaries(target: Found, kind: str) -> tuple[str, str, list[Cell]]:
    found = target["summaries"][kind]
    ratios = ("fmr_ratio", "fnmr_ratio", "inequity")
    cells = [_ratio(found[name]) if name in ratios else _number(found[name], 3) for name in SUMMARIES]
    note = "" if target["resolvable"] else " (not resolvable)"
    return share(target["target"]) + note, "pooled" if kind == "pooled" else "its own", cells


def _ratio(found: Found) -> Cell:
    """Write a ratio, of which the upper end may be without bound."""
    value = "undefined" if found["value"] is None else times(found["value"])
    if found["low"] is None:
        return Cell(value)
    high = math.inf if found["high"] is None else found["high"]
    return Cell(
        value, f"at least {times(found['low'])}" if math.isinf(high) else f"{times(found['low'])} to {times(high)}"
    )


def _by_target(content: Found, k: int) -> list[tuple[str, list[Cell]]]:
    """Give the lines of all subgroups at a target: at the pooled and at their own thresholds."""
    lines = []
    for group in (*content["groups"], content["all"]):
        at = group["at"][k]
        cells = []
        for kind in ("pooled", "own"):
            if kind not in at:
                cells += [Cell("")] * 4
                continue
            rates = at[kind]
            change = rates["deviation"]["value"]
            deviation = Cell("undefined" if change is None else f"{100 * change:+.0f} %".replace("-", "\N{MINUS SIGN}"))
            cells += [_with_folds(rates, "fmr"), deviation, _with_folds(rates, "fnmr"), _rate(rates["tar"])]
        lines.append((group["name"], cells))
    return lines


def _with_folds(rates: Found, name: str) -> Cell:
    value, ends = said(rates[name])
    folds = rates["over_folds"].get(name, {})
    if folds.get("sd") is None:
        return Cell(value, ends)
    return Cell(value, f"{ends}; folds {share(folds['mean'])[:-2]} ± {share(folds['sd'])}")


def _thresholds(content: Found) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Give the thresholds of all pairs: a row for the pooled one and for each subgroup."""
    head = [*(f"FMR {share(target['target'])}" for target in content["targets"]), "best accuracy"]
    pooled = [
        *(target["threshold"]["pooled"] for target in content["targets"]),
        content["accuracy_threshold"]["pooled"],
    ]
    rows = [("pooled", pooled), *((group["name"], group["own_thresholds"]) for group in content["groups"])]
    return head, [(name, ["undefined" if v is None else f"{v:.6g}" for v in values]) for name, values in rows]
