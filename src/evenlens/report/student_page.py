"""A trained generator's folder -> one self-contained HTML page: curves, images, and which epoch was kept and why."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.generation.students.distilling import GRIDS, LOG
from evenlens.generation.students.student_file import read_info
from evenlens.report import bundle
from evenlens.report.charts import COLOURS, Figure, spec, tooltip

PAGE, CURVES = "student.html", "curves.svg"
SCORES = {"score": "score", "kid": "KID", "variation": "total variation"}
SAID = {"real": "of real images", "made": "of made images"}
MOST_TICKS = 10  # of the epochs
Json = Mapping[str, Any]


def write(folder: Path, command: str = "") -> Path:
    """Write `student.html` and `curves.svg` into the folder of a trained generator.

    Args:
        folder: as `evenlens generate distil` or `teach` wrote it.
        command: how it was made, if that is known.

    Returns:
        the page's path.

    Raises:
        UserError: the folder is damaged.
    """
    import vl_convert

    info = read_info(folder)
    try:
        log = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
        grid = (folder / GRIDS / f"epoch-{info['chosen']['epoch']:04d}.png").read_bytes()
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{folder} is damaged ({error}): train it again.") from None
    figures = _figures(info, log)
    page = bundle.render(
        "student.html", {figure.key: figure.spec for figure in figures},
        title=info["title"], headline=headline(info), sentences=sentences(info), figures=figures,
        grid=f"data:image/png;base64,{base64.b64encode(grid).decode()}", grid_words=_grid_words(info),
        settings=[(name, str(value)) for name, value in info["settings"].items() if value is not None],
        known=_known(info), command=command,
    )  # fmt: skip
    curves = vl_convert.vegalite_to_svg({**figures[0].spec, "width": 640})
    for path, text in ((folder / CURVES, curves), (folder / PAGE, page)):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    return folder / PAGE


def headline(info: Json) -> str:
    """Say in a sentence what was kept."""
    best = info["chosen"]
    kept = f"Epoch {best['epoch']} of {info['settings']['epochs']} was kept, with a KID of {best['kid']:.3f}"
    if "variation" not in best:
        return f"{kept} to images that were held out."
    return f"{kept} and a total variation of {best['variation']:.3f} to the target on fixed latents."


def sentences(info: Json) -> list[str]:
    """Say how it was chosen, what it learned by, and what that does not show."""
    said = [
        f"It has {info['num_parameters']:,} parameters and makes images of {info['net']['size']} pixels from latents "
        f"of {info['net']['latent_size']} numbers. It learned by the terms {', '.join(info['terms'])} from "
        f"{info['images']:,} images, a tenth of them, at least 16 and at most 1,000, "
        "held out to choose the epoch by.",
        f"The rule of choice is {info['chosen_by']['rule']}; the features are {info['chosen_by']['extractor']}, "
        "brought to mean 0 and variance 1.",
    ]
    if info["labels"]:
        said.append(f"It is asked for {info['attribute']} with each latent: {', '.join(info['labels'])}.")
    if info["classifier"]:
        said.append(
            "The classifier that it learned from or was chosen by must not judge it: what deceives that one looks like "
            "success. Compare it with evenlens generate compare and another classifier."
        )
    return said


def _grid_words(info: Json) -> str:
    if not info["labels"]:
        return "64 images of fixed latents, of the epoch that was kept."
    return (
        "Images of fixed latents, of the epoch that was kept: columns by latent; rows in turns "
        f"{', '.join(info['labels'])}. Each latent is asked for every one of them."
    )


def _figures(info: Json, log: Sequence[Json]) -> list[Figure]:
    losses = [name for name in (*info["terms"], "discriminator") if name in log[0]]
    parts = [
        ("losses", "Losses", losses, "mean over an epoch",
         "Each term as it is before its weight. Those of a generator and of its discriminator need not fall: each is "
         "measured against the other."),
        ("choice", "What the epoch was chosen by", [name for name in SCORES if name in log[0]], "lower is better",
         f"The lowest score was kept, that of epoch {info['chosen']['epoch']}."),
        ("said", "What the discriminator said", [name for name in SAID if name in log[0]], "mean logit",
         "Above 0: taken for real. Far apart, and the generator learns little."),
    ]  # fmt: skip
    return [_figure(*part, log) for part in parts if part[2]]


def _figure(key: str, title: str, names: Sequence[str], unit: str, caption: str, log: Sequence[Json]) -> Figure:
    words = {**{name: name for name in names}, **SCORES, **SAID}
    values = [{"epoch": entry["epoch"], "what": words[name], "value": round(entry[name], 5)}
              for entry in log for name in names if name in entry]  # fmt: skip
    shown = [words[name] for name in names]
    description = f"{title} by epoch, {len(log)} epochs: {', '.join(shown)}. Numbers in the table."
    colour = alt.Color("what:N", sort=shown, scale=alt.Scale(domain=shown, range=list(COLOURS[: len(shown)])))
    epochs = [entry["epoch"] for entry in log]
    ticks = epochs[:: -(-len(epochs) // MOST_TICKS)]
    x = alt.X("epoch:Q", axis=alt.Axis(values=ticks, format="d", grid=False)).scale(nice=False)
    chart = (
        alt.Chart(alt.InlineData(values=values))
        .mark_line(point={"size": 28})
        .encode(
            x=x, y=alt.Y("value:Q", title=unit, axis=alt.Axis(tickCount=6)), color=colour.title(None),
            tooltip=tooltip(("what", "what"), ("epoch", "epoch"), ("value", "value")),
        )
        .properties(height=240)
    )  # fmt: skip
    rows = [[str(entry["epoch"]), *(f"{entry[name]:.4f}" for name in names)] for entry in log]
    return Figure(key, title, caption, description, spec(chart, description), ["epoch", *shown], rows, keyed=False)


def _known(info: Json) -> list[tuple[str, str]]:
    source, machine = info["source"], info["environment"]
    rows = [
        ("Learned from", source.get("dataset") or (source.get("samples") or {}).get("generator", {}).get("title", ""))
    ]
    if info["classifier"]:
        rows.append(("Classifier", f"{info['classifier']['title']} ({info['classifier']['fingerprint']})"))
    return [*rows, ("Time", f"{machine['seconds']:,.0f} s on {machine['device']}, torch {machine['torch']}"),
            ("Written by", f"evenlens {info['version']}")]  # fmt: skip
