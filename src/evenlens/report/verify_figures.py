"""The findings of a verification audit -> Vega-Lite figures, each with the table of what it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from evenlens.report.audit_figures import dots, label_lines
from evenlens.report.charts import COLOURS, INK, Figure, rounded, spec, tooltip
from evenlens.verification.words import share

MOST = 12  # curves that can be told apart
RIDGES = 30  # distributions of a figure
CELLS = 12  # subgroups whose matrix has room for numbers
DASHES = ([1, 0], [6, 3])
Found = Mapping[str, Any]


def defined(found: Found) -> bool:
    """Say whether a number is."""
    return found["value"] is not None


def said(found: Found) -> tuple[str, str]:
    """Write a rate and its interval."""
    if not defined(found):
        return "undefined", ""
    ends = "" if found["low"] is None else f"{share(found['low'])[:-2]} to {share(found['high'])}"
    return share(found["value"]), ends


def all_figures(content: Found, place: int) -> list[Figure]:
    """Draw everything: error rates at the chosen target, the matrix, DET curves and distributions."""
    made = [
        _rates(content, place, "fmr", "False match rate of each subgroup (FMR; ← lower is better)"),
        _rates(content, place, "fnmr", "False non-match rate of each subgroup (FNMR; ← lower is better)"),
        _matrix(content, place),
        _curves(content),
        _distributions(content, place),
    ]
    return [figure for figure in made if figure]


def _rates(content: Found, place: int, rate: str, title: str) -> Figure | None:
    known = [(group, group["at"][place]["pooled"][rate]) for group in content["groups"]]
    known = [(group, found) for group, found in known if defined(found)]
    if not known:
        return None
    many = len(known) > 16
    values: list[dict[str, Any]] = [
        {"name": label_lines(group["name"], found["n"], k, many), "group": group["name"], "rate": found["value"],
         "low": found["low"], "high": found["high"], "text": said(found)[0], "interval": said(found)[1],
         "n": f"{found['n']:,.0f}"}
        for k, (group, found) in enumerate(known)
    ]  # fmt: skip
    overall = content["all"]["at"][place]["pooled"][rate]["value"]
    level = f"{100 * content['confidence']:g} %"
    tip = tooltip(("group", "subgroup"), ("text", "rate"), ("interval", f"{level} interval"), ("n", "pairs"))
    target = share(content["targets"][place]["target"])
    description = f"{title}, {len(values)} subgroups at the pooled threshold for {target}; numbers in the table."
    caption = f"At the pooled threshold for an FMR of {target}. Lines are {level} intervals. Dashed: all pairs, "
    return Figure(
        f"verify-{rate}", title, f"{caption}{share(overall)}. The axis need not start at 0.", description,
        spec(dots(values, overall, tip, ".3~%"), description), ["subgroup", "rate", f"{level} interval", "pairs"],
        [[value[name] for name in ("group", "text", "interval", "n")] for value in values], keyed=False,
    )  # fmt: skip


def _matrix(content: Found, place: int) -> Figure | None:
    names = [group["name"] for group in content["groups"]]
    matrix = content["targets"][place]["matrix"]
    values = [
        {"one": f"{a}", "other": f"{b}", "first": names[a], "second": names[b], "rate": cell["value"],
         "text": said(cell)[0], "interval": said(cell)[1], "n": f"{cell['n'] or 0:,.0f}",
         "digits": said(cell)[0].removesuffix(" %")}
        for a, row in enumerate(matrix) for b, cell in enumerate(row) if defined(cell)
    ]  # fmt: skip
    if not any(value["one"] != value["other"] for value in values):
        return None
    axis = alt.Axis(labelLimit=170, ticks=False, domain=False, labelAngle=0)
    turned = alt.Axis(labelLimit=170, ticks=False, domain=False, labelAngle=0 if len(names) < 5 else -40)
    title = "False match rate between subgroups"
    target = share(content["targets"][place]["target"])
    description = f"{title}, {len(names)} by {len(names)}, at the pooled threshold for {target}; numbers in the table."
    highest = max(value["rate"] for value in values) or 1.0
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X("second:N", sort=names, title=None, axis=turned), y=alt.Y("first:N", sort=names, title=None, axis=axis)
    )  # fmt: skip
    colour = alt.Color(
        "rate:Q", scale=alt.Scale(domain=[0, highest], range=["#f5f7f9", "#D55E00"], interpolate="rgb"), legend=None
    )
    tip = tooltip(("first", "one"), ("second", "other"), ("text", "FMR"), ("interval", "interval"), ("n", "pairs"))
    layers = [base.mark_rect(stroke="#fff").encode(color=colour, tooltip=tip)]
    if len(names) <= CELLS:
        layers.append(base.mark_text(fontSize=12, color=INK).encode(text="digits:N"))
    chart = alt.layer(*layers).properties(height=max(120, 34 * len(names)))
    shown = [value for value in values if int(value["one"]) <= int(value["other"])]
    return Figure(
        "verify-matrix", title,
        f"FMR in % of imposter pairs with one image of either subgroup, at the pooled threshold for {target}; darker "
        "is higher. Empty: no such pairs. A subgroup with itself is on the diagonal.",
        description, spec(chart, description), ["one", "other", "FMR", "interval", "pairs"],
        [[value[name] for name in ("first", "second", "text", "interval", "n")] for value in shown], keyed=False,
    )  # fmt: skip


def _drawn(content: Found, most: int) -> list[Found]:
    """Choose the subgroups with the highest and the lowest EER, if they are too many."""
    known = [group for group in content["groups"] if defined(group["eer"])]
    if len(known) <= most:
        return known
    ranked = sorted(known, key=lambda group: group["eer"]["value"])
    kept = {group["name"] for group in (*ranked[: most // 2], *ranked[-(most - most // 2) :])}
    return [group for group in known if group["name"] in kept]


def _curves(content: Found) -> Figure | None:
    drawn = _drawn(content, MOST)
    if not drawn:
        return None
    values = [
        {"group": group["name"], "fmr": rounded_to(x), "fnmr": rounded_to(y), "text": share(x), "missed": share(y),
         "order": k}
        for group in (*drawn, content["all"])
        for k, (x, y) in enumerate(zip(group["det"]["fmr"], group["det"]["fnmr"], strict=True))
        if x > 0 and y > 0
    ]  # fmt: skip
    names = [group["name"] for group in (*drawn, content["all"])]
    colours = [COLOURS[1 + k % (len(COLOURS) - 1)] for k in range(len(drawn))] + [COLOURS[0]]
    dashes = [DASHES[min(k // (len(COLOURS) - 1), 1)] for k in range(len(drawn))] + [[2, 2]]
    legend = alt.Legend(title=None, orient="bottom", columns=4, labelLimit=220, symbolStrokeWidth=2.5)
    axis = alt.Axis(labelExpr="format(100 * datum.value, '~r') + ' %'", tickCount=6)
    tip = tooltip(("group", "subgroup"), ("text", "FMR"), ("missed", "FNMR"))
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("fmr:Q", scale=alt.Scale(type="log"), axis=axis, title="false match rate"),
            y=alt.Y("fnmr:Q", scale=alt.Scale(type="log"), axis=axis, title="false non-match rate"),
            color=alt.Color("group:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
            strokeDash=alt.StrokeDash("group:N", scale=alt.Scale(domain=names, range=dashes), legend=legend),
            order="order:O",
            tooltip=tip,
        )
        .properties(height=380)
    )
    title = "Detection error trade-off (DET) of each subgroup"
    description = f"{title}: false non-match against false match rate, {len(drawn)} subgroups; numbers in the table."
    some = "" if len(drawn) == len(content["groups"]) else f" Drawn are {len(drawn)} subgroups, the extremes by EER."
    rows = [[group["name"], *said(group["eer"]), _plain(group["d_prime"]), _plain(group["auc"], 4)]
            for group in (*content["groups"], content["all"])]  # fmt: skip
    return Figure(
        "verify-det", title,
        "Both axes are logarithmic; nearer to the lower left is better. Of all pairs, without folds; the left end of a "
        f"curve rests on single pairs.{some}",
        description, spec(chart, description), ["subgroup", "EER", "interval", "d'", "AUC"], rows, keyed=False,
    )  # fmt: skip


def rounded_to(value: float) -> float:
    """Keep six digits of a rate, however small."""
    return float(f"{value:.6g}")


def _plain(found: Found, digits: int = 2) -> str:
    return f"{found['value']:.{digits}f}" if defined(found) else "undefined"


def _distributions(content: Found, place: int) -> Figure | None:
    drawn = [group for group in _drawn(content, RIDGES) if group["scores"]["genuine"][0] is not None]
    if not drawn:
        return None
    edges = content["score_edges"]
    num = len(drawn)
    values = []
    for k, group in enumerate(drawn):
        for kind in ("genuine", "imposters"):
            shares = group["scores"][kind]
            highest = max(shares)
            for left, right, part in zip(edges, edges[1:], shares, strict=False):
                base = num - 1 - k
                values.append({"lane": f"{k} {kind}", "kind": kind, "x": rounded((left + right) / 2), "base": base,
                               "top": rounded(base + 0.9 * part / highest)})  # fmt: skip
    axis = alt.Axis(values=list(range(num)), labelExpr=_names_of(drawn), labelLimit=170, ticks=False, domain=False,
                    grid=False, labelBaseline="bottom")  # fmt: skip
    colour = alt.Color("kind:N", scale=alt.Scale(domain=["genuine", "imposters"], range=[COLOURS[1], COLOURS[2]]),
                       legend=alt.Legend(title=None, orient="top"))  # fmt: skip
    y = alt.Y("base:Q", axis=axis, title=None, scale=alt.Scale(domain=[0, num], nice=False))
    areas = (
        alt.Chart(alt.InlineData(values=values))
        .mark_area(opacity=0.55, interpolate="monotone")
        .encode(
            x=alt.X("x:Q", title="score", scale=alt.Scale(nice=False)), y=y, y2="top:Q", color=colour, detail="lane:N"
        )
    )
    threshold = content["targets"][place]["threshold"]["pooled"]
    rule = alt.Chart(alt.InlineData(values=[{"x": threshold}])).mark_rule(color=INK, strokeDash=[5, 4]).encode(x="x:Q")
    title = "Scores of genuine and imposter pairs"
    description = f"{title} within each of {num} subgroups, as distributions over the score."
    rows = [[group["name"], f"{group['genuine']:,}", f"{group['imposters']:,}", _plain(group["d_prime"])]
            for group in drawn]  # fmt: skip
    target = share(content["targets"][place]["target"])
    return Figure(
        "verify-scores", title,
        f"Each distribution is drawn to the same height. Dashed: the pooled threshold for an FMR of {target}, of all "
        "folds. Right of it pairs are accepted.",
        description, spec(alt.layer(areas, rule).properties(height=max(150, 46 * num)), description),
        ["subgroup", "genuine pairs", "imposter pairs", "d'"], rows, keyed=False,
    )  # fmt: skip


def _names_of(drawn: Sequence[Found]) -> str:
    """Write a Vega expression that gives a lane's name: text stays text."""
    import json

    names = json.dumps([" ".join(group["name"].split()) for group in reversed(drawn)])
    return f"{names}[datum.value]"
