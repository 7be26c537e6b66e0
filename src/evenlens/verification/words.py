"""What a verification audit says in words and in JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from evenlens import __version__
from evenlens.metrics.intervals import Interval
from evenlens.verification.thresholds import allowed

if TYPE_CHECKING:
    from evenlens.verification import Verification

FORMAT = "evenlens.verification/1"
MOST = 4  # names in a sentence


def share(value: float) -> str:
    """Write a rate in percent with three digits, down to what 1e-6 needs: 0.00104 -> "0.104 %"."""
    if math.isnan(value):
        return "undefined"
    return f"{float(f'{100 * value:.3g}'):.10g} %" if value else "0 %"


def times(value: float) -> str:
    """Write a ratio."""
    if math.isnan(value):
        return "undefined"
    return "unbounded" if math.isinf(value) else f"{value:.2f}" if value < 10 else f"{value:.3g}"


def finding(audit: Verification) -> list[str]:
    """Say how the subgroups are treated at the chosen target: of each rate whether it is sure to differ."""
    if len(audit.groups) < 2:
        return [f"All pairs are of one subgroup, {audit.groups[0]}: there is nothing that it could be compared with."]
    lead = f"At the pooled threshold for a false match rate (FMR) of {share(audit.at)}"
    found = [_compared(audit, "pooled", "fmr", f"{lead}, the subgroups' FMR", "highest")]
    if not audit.allowed(audit.at):
        found.insert(0, f"An FMR of {share(audit.at)} is not resolvable with so few imposter pairs.")
    found.append(_compared(audit, "pooled", "fnmr", "There, their false non-match rates (FNMR)", "highest"))
    found.append(_compared(audit, "own", "fnmr", "With a threshold for each subgroup, their FNMR", "highest"))
    return found


def _compared(audit: Verification, kind: str, rate: str, lead: str, most: str) -> str:
    ratio = audit.summaries[kind][audit.place][f"{rate}_ratio"]
    rates = getattr(getattr(audit.measured, kind), rate).value[audit.place, :-1]
    if math.isnan(ratio.low):
        lacking = [name for name, value in zip(audit.groups, rates, strict=True) if math.isnan(value)]
        return f"{lead} cannot be compared: nothing is known of {_listed(lacking)}."
    low, high = int(np.argmin(rates)), int(np.argmax(rates))
    extremes = f"{share(rates[low])} ({audit.groups[low]}) to {share(rates[high])} ({audit.groups[high]})"
    if ratio.low <= 1:
        return f"{lead} are found from {extremes}, which may be chance, as all are compared at once."
    level = f"{100 * audit.confidence:g} % interval"
    if math.isnan(ratio.value) or math.isinf(ratio.high):
        return f"{lead} differ, from {extremes}: the {most} is at least {times(ratio.low)} times the lowest ({level})."
    ends = f"{times(ratio.low)} to {times(ratio.high)}"
    return f"{lead} differ, from {extremes}: {times(ratio.value)} times as high ({level} {ends})."


def caveats(audit: Verification) -> list[str]:
    """Say what nobody should conclude, a sentence each."""
    pairs, found = audit.pairs, list(audit.pairs.notes)
    counts = {"genuine": audit.measured.genuine[:-1], "imposter": audit.measured.imposters[:-1]}
    for kind, sizes in counts.items():
        absent = [name for name, n in zip(audit.groups, sizes, strict=True) if not n]
        if absent:
            found.append(
                f"No {kind} pair is within {_listed(absent)}: its rates are undefined, and so are summaries over all "
                "subgroups. Leave the subgroup out, or add such pairs."
            )
    found += _resolution(audit)
    across = int(np.count_nonzero(pairs.group < 0))
    if across:
        found.append(
            f"{across:,} pairs are of two subgroups: they count for the pooled threshold and in the matrix, and for no "
            "subgroup's rates."
        )
    found.append(_of_folds(audit))
    people = audit.measured.subjects
    if people is None:
        found.append(
            "Each pair counts as independent, as no subjects are named. Pairs share faces, so the intervals are too "
            "narrow; name the subjects' columns (id1, id2)."
        )
    else:
        found.append(
            f"Intervals draw the {people[-1]:,} subjects again ({audit.replicates:,} times), with the thresholds held "
            "fixed: how thresholds would vary with other subjects is not in them."
        )
    found.append(
        "Summaries of subgroups have the ends that all subgroups' intervals together allow: these are wider than need "
        "be, and call no subgroups different where chance would do."
    )
    found.append("Subgroups are as labelled, which is not what people say of themselves.")
    found.append(
        "Rates are of pairs like these: other cameras, ages, places and ways of choosing imposters have others. The "
        "imposters here do not try to pass for somebody."
    )
    return found


def _resolution(audit: Verification) -> list[str]:
    """Say which targets the imposters are too few for."""
    found, sizes = [], audit.measured.pooled.fmr.n[0, :-1]
    for target in audit.targets:
        if not audit.allowed(target):
            found.append(
                f"A false match rate of {share(target)} is not resolvable: thresholds are fitted to "
                f"{audit.decided.fewest:,} imposter pairs, of which none may be accepted then."
            )
            continue
        part = (len(audit.decided.by_fold) - 1) / len(audit.decided.by_fold) if audit.held_out else 1
        none = [name for name, n in zip(audit.groups, sizes, strict=True) if n and not allowed(target, int(part * n))]
        few = [name for name, n in zip(audit.groups, sizes, strict=True) if n and target * n < 30]
        if none:
            found.append(f"Their own thresholds for {share(target)} are not resolvable for {_listed(none)}.")
        if few:
            found.append(
                f"At {share(target)}, fewer than 30 false matches are to be expected of {_listed(few)} (rule of 30): "
                "their FMR is known roughly at best."
            )
    return found


def _of_folds(audit: Verification) -> str:
    pairs, num = audit.pairs, len(audit.decided.by_fold)
    rest = "EER, AUC, d' and the curves are of all pairs."
    if not audit.held_out:
        return (
            f"Thresholds were set on the same pairs that they are judged on, so rates look better than they are. {rest}"
        )
    said = (
        f"Each of the {num} folds is judged at thresholds set on the other {num - 1}; rates are of all these together."
    )
    if pairs.folds_by == "subjects":
        left = len(pairs) - len(audit.decided.rows)
        said += (
            f" Folds are of subjects, by a hash of their names: {left:,} pairs of two folds serve to set thresholds "
            "alone."
        )
    return f"{said} {rest}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more


# ---- for machines


def machine_readable(audit: Verification) -> dict[str, Any]:
    """Give all findings as what JSON can hold; undefined is null, and so is an end that is infinite."""
    pairs, measured = audit.pairs, audit.measured
    return {
        "format": FORMAT,
        "evenlens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "title": audit.title,
        "source": pairs.where,
        "pairs": len(pairs),
        "genuine": int(measured.genuine[-1]),
        "imposters": int(measured.imposters[-1]),
        "across_subgroups": int(np.count_nonzero(pairs.group < 0)),
        "decided": len(audit.decided.rows),
        "subjects": None if measured.subjects is None else int(measured.subjects[-1]),
        "folds": {"number": len(audit.decided.by_fold) if audit.held_out else 0,
                  "by": pairs.folds_by if audit.held_out else ""},
        "confidence": audit.confidence,
        "replicates": audit.replicates,
        "thresholds_fixed_in_intervals": True,
        "criterion": audit.criterion,
        "at": audit.at,
        "finding": audit.finding,
        "caveats": audit.caveats,
        "targets": [_target(audit, k) for k in range(len(audit.targets))],
        "accuracy_threshold": _thresholds(audit, len(audit.targets)),
        "groups": [_group(audit, k) for k in range(len(audit.groups))],
        "all": _group(audit, len(audit.groups)),
        "score_edges": measured.scores.edges.tolist(),
    }  # fmt: skip


def number(value: float) -> float | None:
    """Give a number, or null."""
    return float(value) if math.isfinite(value) else None


def entry(found: Interval[Any], *place: int) -> dict[str, float | None]:
    """Give one number of an interval with its ends."""
    return {key: number(field[place] if place else field) for key, field in found._asdict().items()}


def _thresholds(audit: Verification, k: int) -> dict[str, Any]:
    return {
        "pooled": number(audit.thresholds.pooled[k]),
        "by_fold": [number(fitted.pooled[k]) for fitted in audit.decided.by_fold] if audit.held_out else [],
    }


def _target(audit: Verification, k: int) -> dict[str, Any]:
    target = audit.targets[k]
    num = len(audit.groups)
    matrix = [[entry(audit.measured.matrix, k, a, b) for b in range(num)] for a in range(num)]
    summaries = {
        kind: {name: entry(found) for name, found in rows[k].items()} for kind, rows in audit.summaries.items()
    }
    return {
        "target": target,
        "threshold": _thresholds(audit, k),
        "imposters_allowed": audit.allowed(target),
        "resolvable": audit.allowed(target) > 0,
        "summaries": summaries,
        "matrix": matrix,
    }


def _group(audit: Verification, k: int) -> dict[str, Any]:
    measured, scores = audit.measured, audit.measured.scores
    own = k < len(audit.groups)
    kinds = ("pooled", "own") if own else ("pooled",)
    return {
        "name": audit.groups[k] if own else "all pairs",
        "genuine": int(measured.genuine[k]),
        "imposters": int(measured.imposters[k]),
        "subjects": None if measured.subjects is None else int(measured.subjects[k]),
        "eer": entry(scores.eer, k),
        "auc": entry(scores.auc, k),
        "d_prime": entry(scores.d_prime, k),
        "accuracy": {"pooled": entry(scores.accuracy, 0, k), "own": entry(scores.accuracy, 1, k)},
        "own_thresholds": [number(value) for value in audit.thresholds.own[k]] if own else [],
        "at": [
            {"target": target, **{kind: _rates(audit, kind, f, k) for kind in kinds}}
            for f, target in enumerate(audit.targets)
        ],
        "det": {"fmr": scores.det[k][0].tolist(), "fnmr": scores.det[k][1].tolist()},
        "scores": {"genuine": [*map(number, scores.genuine[k])], "imposters": [*map(number, scores.imposters[k])]},
    }  # fmt: skip


def _rates(audit: Verification, kind: str, f: int, k: int) -> dict[str, Any]:
    rates, target = getattr(audit.measured, kind), audit.targets[f]
    fmr, fnmr = (Interval._make(float(field[f, k]) for field in found) for found in (rates.fmr, rates.fnmr))
    folds = {
        name: {part: number(getattr(rates, f"{name}_{part}")[f, k]) for part in ("mean", "sd")}
        for name in (("fmr", "fnmr") if audit.held_out else ())
    }
    return {
        "fmr": entry(fmr),
        "fnmr": entry(fnmr),
        "tar": entry(Interval(1 - fnmr.value, 1 - fnmr.high, 1 - fnmr.low, fnmr.n)),
        "deviation": entry(Interval._make([*((value - target) / target for value in fmr[:3]), fmr.n])),
        "over_folds": folds,
    }
