"""A comparison of generators -> figures: shares of teacher and students beside each other, and a grid of images.

The same Vega-Lite stands on the page and in files as PNG, SVG and PDF.
"""

from __future__ import annotations

import base64
import copy
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evenlens.files import replacing
from evenlens.generation.comparison_sides import Row
from evenlens.generation.words import level, percent, spread
from evenlens.report.charts import COLOURS, INK, Figure, spec, tooltip
from evenlens.report.generation_figures import plain

# The teacher is grey. Students are tints that people with any kind of colour vision can tell apart, for dark ink.
TINTS = ("#b9c0c8", "#7fb2d6", "#e8a26b", "#66c2a0", "#e6d05c", "#a48a6c")
MOST = 70  # categories of a figure; the tables have all
ROOMY = 12  # categories up to which bars are wide
CELL, GAP, NAME = 96, 4, 220  # pixels of the grid: an image, between two, and the names beside them
WIDTH = 760  # of a figure in a file
FORMATS = ("png", "svg", "pdf")
Json = Mapping[str, Any]


def shares(content: Json, number: int) -> Figure:
    """Draw the share of each category for teacher and students as bars with intervals, and the target as a line.

    Args:
        content: the findings.
        number: which attribute or combination.
    """
    sides = content["generators"]
    part = sides[0]["parts"][number]
    rows = _farthest([each["parts"][number]["categories"] for each in sides])
    names = [each["name"] for each in sides]
    values = [
        _value(content, each["parts"][number]["categories"][k], each["name"], place)
        for place, k in enumerate(rows)
        for each in sides
    ]
    first = part["categories"]
    targets = [{"lane": _lane(first[k]["name"], place), "target": round(first[k]["target"], 5),
                "name": plain(first[k]["name"]), "text": percent(first[k]["target"])}
               for place, k in enumerate(rows)]  # fmt: skip
    away = [
        f"{each['name']} {percent(each['parts'][number]['distances']['total_variation']['value'])}" for each in sides
    ]
    description = (
        f"Shares of {len(rows)} categories of {part['name']} in the images of {', '.join(names)}; the target is "
        f"{part['target']}. Total variation from it: {', '.join(away)}. Numbers in the table."
    )
    return Figure(
        f"shares-{number}", f"How often each category of {part['name']} occurs",
        _caption(content, part, len(rows)), description, spec(_chart(values, targets, names, len(rows)), description),
        [part["name"], "generator", "share", f"{level(content)} interval", "target"],
        [[v["name"], v["generator"], v["text"], v["interval"], v["target"]] for v in values], keyed=False,
    )  # fmt: skip


def _farthest(sides: Sequence[Sequence[Json]]) -> list[int]:
    """Choose the categories that are farthest from their target for any generator, in their order."""
    apart = np.array([[abs(entry["share"]["value"] - entry["target"]) for entry in each] for each in sides]).max(axis=0)
    return sorted(np.argsort(-apart, kind="stable")[:MOST].tolist())


def _lane(name: str, place: int) -> str:
    """Name a lane; the number keeps equal names apart, and is not shown."""
    return f"{plain(name)}\n{place}"


def _value(content: Json, entry: Json, generator: str, place: int) -> dict[str, Any]:
    low, high = (entry["together"][end] for end in ("low", "high"))
    return {
        "lane": _lane(entry["name"], place), "name": plain(entry["name"]), "generator": generator,
        "share": round(entry["share"]["value"], 5), "low": low and round(low, 5), "high": high and round(high, 5),
        "text": percent(entry["share"]["value"]), "interval": spread(entry["together"]),
        "target": percent(entry["target"]),
    }  # fmt: skip


def _chart(values: list[dict[str, Any]], targets: list[dict[str, Any]], names: list[str], num: int) -> Any:
    lane = len(names) * (18 if num <= ROOMY else 10) + 8
    axis = alt.Axis(labelExpr="split(datum.label, '\\n')[0]", labelLimit=230, ticks=False, domain=False, grid=False)
    y = alt.Y("lane:N", sort=None, title=None, axis=axis, scale=alt.Scale(paddingInner=0.2, paddingOuter=0.1))
    x = alt.X("share:Q", scale=alt.Scale(zero=True, nice=True)).axis(format="%", tickCount=6).title("share of images")
    offset = alt.YOffset("generator:N", sort=names, scale=alt.Scale(domain=names))
    long = max(map(len, names)) > 24
    legend = alt.Legend(title=None, orient="top", direction="vertical" if long else "horizontal", labelLimit=500,
                        labelFontSize=12, columns=1 if long else 3)  # fmt: skip
    scale = alt.Scale(domain=names, range=list(TINTS[: len(names)]))
    tip = tooltip(("name", "category"), ("generator", "generator"), ("text", "share"), ("interval", "interval"),
                  ("target", "target"))  # fmt: skip
    base = alt.Chart(alt.InlineData(values=values)).encode(y=y, yOffset=offset)
    return alt.layer(
        base.mark_bar().encode(x=x, color=alt.Color("generator:N", scale=scale, legend=legend), tooltip=tip),
        base.mark_rule(strokeWidth=1.6 if num <= ROOMY else 1.1, color=INK).encode(
            x=alt.X("low:Q").title("share of images"), x2="high:Q"
        ),
        alt.Chart(alt.InlineData(values=targets))
        .mark_tick(color=COLOURS[4], thickness=2.5, size=0.85 * lane, orient="vertical")
        .encode(y=y, x="target:Q", tooltip=tooltip(("name", "category"), ("text", "target"))),
    ).properties(height=max(60, num * lane))


def _caption(content: Json, part: Json, drawn: int) -> str:
    said = (
        f"Purple lines: the target, {part['target']}. Black lines: {level(content)} intervals, which hold together for "
        "each generator."
    )
    if drawn < len(part["categories"]):
        said += (
            f" Drawn are the {drawn} of {len(part['categories'])} categories that are farthest from their target; the "
            "table has all."
        )
    return said


# ---- files


def write(figures: Sequence[Figure], content: Json, rows: Sequence[Row], folder: Path) -> list[str]:
    """Write figures as PNG, SVG and PDF, and the grid of images as PNG: file names below the folder.

    Args:
        figures: one for each part of the findings, in their order.
        content: the findings.
        rows: of the grid.
        folder: made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure, stem in zip(figures, stems(content), strict=True):
        for kind, made in exported(figure).items():
            written.append(f"{stem}.{kind}")
            with replacing(folder / written[-1]) as path:
                path.write_bytes(made)
    with replacing(folder / "grid.png") as path:
        grid(rows).save(path, format="png")
    return [*written, "grid.png"]


def stems(content: Json) -> list[str]:
    """Name the file of each attribute or combination, each otherwise: "race x gender" -> "race-x-gender"."""
    found: list[str] = []
    for part in content["generators"][0]["parts"]:
        stem = re.sub(r"[^\w.-]+", "-", part["name"]).strip("-.")[:80] or "part"
        found.append(stem if stem not in (*found, "grid") else f"{stem}-{len(found) + 1}")
    return found


def exported(figure: Figure) -> dict[str, bytes]:
    """Give a figure as files, by format: on white, with its title, and of a fixed width."""
    import vl_convert

    chart = copy.deepcopy(figure.spec)
    chart["width"], chart["background"], chart["padding"] = WIDTH, "white", 12
    chart["config"]["font"] = "Liberation Sans, Arial, Helvetica, sans-serif"
    sentences = [f"{text.rstrip('.')}." for text in figure.caption.split(". ")]
    chart["title"] = {
        "text": figure.title, "subtitle": sentences, "anchor": "start", "fontSize": 15, "subtitleFontSize": 12,
        "subtitleColor": INK, "offset": 10, "frame": "bounds",
    }  # fmt: skip
    drawn = vl_convert.vegalite_to_svg(chart, allowed_base_urls=[])
    return {"png": vl_convert.svg_to_png(drawn, scale=2), "svg": drawn.encode(), "pdf": vl_convert.svg_to_pdf(drawn)}


# ---- the grid of images


def strip(pixels: np.ndarray) -> Image.Image:
    """Put images (N, H, W, 3) uint8 side by side, each `CELL` pixels high."""
    count = len(pixels)
    made = Image.new("RGB", (count * (CELL + GAP) - GAP, CELL), "white")
    for k, each in enumerate(pixels):
        made.paste(Image.fromarray(each).resize((CELL, CELL), Image.Resampling.BICUBIC), (k * (CELL + GAP), 0))
    return made


def grid(rows: Sequence[Row]) -> Image.Image:
    """Put what generators make of the same latents into rows, with their names: latents are the columns."""
    strips = [strip(row.pixels) for row in rows]
    made = Image.new("RGB", (NAME + max(each.width for each in strips), len(rows) * (CELL + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(made), ImageFont.load_default(14)
    for k, (row, each) in enumerate(zip(rows, strips, strict=True)):
        top = k * (CELL + GAP)
        made.paste(each, (NAME, top))
        pen.text((6, top + CELL // 2), _fitting(row.name, font), fill=INK, font=font, anchor="lm")
    return made


def _fitting(name: str, font: Any) -> str:
    """Break a name into lines that fit beside the images, four at most."""
    lines = [""]
    for character in plain(name):
        if font.getlength(lines[-1] + character) > NAME - 14:
            lines.append("")
        lines[-1] += character
    if len(lines) > 4:
        lines = [*lines[:3], f"{lines[3][:-1]}…"]
    return "\n".join(line.strip() for line in lines)


def uri(image: Image.Image) -> str:
    """Write an image so that it can stand in a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
