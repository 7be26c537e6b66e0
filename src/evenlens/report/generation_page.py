"""An audit of a generator -> one self-contained HTML page: what it makes, by group, and examples to look at.

It is made of the findings' JSON alone, so that it can be made again of that file; examples come from their images.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.generation import words
from evenlens.report import bundle, generation_figures
from evenlens.report.charts import share

PIXELS = 112  # of a shown image's longer edge
Json = Mapping[str, Any]


class Cell(NamedTuple):
    """A number in a table: what is shown, what is sorted by, and its interval below it."""

    text: str
    value: float | str
    small: str = ""


class Picture(NamedTuple):
    """An example."""

    uri: str
    name: str


class Sheet(NamedTuple):
    """Examples of each category of an attribute."""

    attribute: str
    categories: dict[str, list[Picture]]


# ---- examples


def check_ids(ids: np.ndarray, where: str) -> None:
    """Refuse ids that lead out of the folder of images, before any is opened.

    Raises:
        UserError: naming the first one.
    """
    import pyarrow

    from evenlens.data.paths import check_paths

    check_paths(pyarrow.chunked_array([pyarrow.array(ids, pyarrow.large_string())]), where)


def sheet(attribute: str, chosen: Mapping[str, Sequence[str]], folder: Path) -> Sheet:
    """Read examples, small enough to stand in a page.

    Args:
        attribute: whose categories they are of.
        chosen: ids by category: paths below the folder, with or without the ending.
        folder: of the images.

    Raises:
        UserError: there is no such image, it is damaged, or a link leads out of the folder.
    """
    return Sheet(attribute, {name: [_picture(each, folder) for each in ids] for name, ids in chosen.items()})


def _picture(name: str, folder: Path) -> Picture:
    from evenlens.data.images import upright
    from evenlens.data.paths import IMAGE_SUFFIXES, check_inside

    found = next((f"{name}{end}" for end in ("", *IMAGE_SUFFIXES) if (folder / f"{name}{end}").is_file()), None)
    if found is None:
        raise UserError(f"There is no image {name} in {folder}: ids must be the images' paths below it.")
    check_inside(folder, [found])
    try:
        image = upright((folder / found).read_bytes(), PIXELS)
    except OSError as error:
        raise UserError(f"The image {found} in {folder} cannot be read ({error}): mend or remove it.") from None
    image.thumbnail((PIXELS, PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return Picture(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}", name)


# ---- the page


def write(content: Json, path: Path, sheets: Sequence[Sheet] = ()) -> Path:
    """Write the page, and beside it what it was made of as JSON (`audit.html` and `audit.json`).

    Args:
        content: as `GeneratorAudit.as_dict` gives it; `command` too, if it is known.
        path: the page; replaced if it is there, and never half-written.
        sheets: examples, if images may be shown.

    Returns:
        the page's path.

    Raises:
        UserError: the page would be the JSON file.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise UserError(f"{path} would be overwritten by the JSON beside the page: name the page .html.")
    page, beside = render(content, sheets), json.dumps(content, indent=1, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    for out, text in ((path.with_suffix(".json"), beside), (path, page)):
        with replacing(out) as part:
            part.write_text(text, encoding="utf-8")
    return path


def render(content: Json, sheets: Sequence[Sheet] = ()) -> str:
    """Fill the template."""
    figures = [generation_figures.shares(content, number) for number in range(len(content["parts"]))]
    parts = [_part(content, part, number, figures[number]) for number, part in enumerate(content["parts"])]
    contents = [("main", "Finding"), *((part["aim"], part["name"]) for part in parts)]
    contents += [("quality", "Quality")] if content["quality"] else []
    contents += [("examples", "Examples")] if sheets else []
    contents += [("reading", "How to read it"), ("data", "Data"), ("repeat", "How to repeat it")]
    return bundle.render(
        "generation.html",
        {figure.key: figure.spec for figure in figures},
        title=content["title"],
        meta=f"What a generator makes, by group, as a classifier labelled its images; {words.level(content)} intervals",
        contents=contents,
        headline=words.headline(content),
        sentences=[words.faces(content), words.APPARENT],
        parts=parts,
        quality=_quality(content),
        sheets=sheets,
        caveats=[text for text in content["caveats"] if text != words.APPARENT],
        reading=words.reading(content),
        meanings=[(title, text) for title, _, text in words.DISTANCE_WORDS.values()],
        known=_known(content),
        command=content.get("command"),
    )


def _part(content: Json, part: Json, number: int, figure: Any) -> dict[str, Any]:
    """Gather what is shown of an attribute or a combination."""
    keys = [("Corrected", "corrected"), ("Against", "other"), ("Difference, points", "difference")]
    first, far = part["categories"][0], part["distances"]["total_variation"]
    more = [("Mean probability", "mean_probability"), *keys]
    shown = [(title, key) for title, key in more if first[key]]
    distant = [(title, key) for title, key in keys if far[key]]
    lines = [
        [Cell(entry["name"], entry["name"]), Cell(f"{entry['count']:,}", entry["count"]),
         _percent({**entry["together"], "value": entry["share"]["value"]}),
         Cell(words.percent(entry["target"]), entry["target"]),
         *(_points(entry[key]) if key == "difference" else _percent(entry[key]) for _, key in shown)]
        for entry in part["categories"]
    ]  # fmt: skip
    rows = [
        [Cell(f"{title} {direction}", title), _number(part["distances"][name]),
         Cell("" if part["distances"][name]["floor"] is None else f"{part['distances'][name]['floor']:.4f}", ""),
         *(_number(part["distances"][name][key]) for _, key in distant)]
        for name, (title, direction, _) in words.DISTANCE_WORDS.items()
    ]  # fmt: skip
    return {
        "aim": f"part-{number}", "name": part["name"], "sentences": words.sentences(content, part), "figure": figure,
        "head": [part["name"], "Images", "Share", "Target", *(title for title, _ in shown)], "lines": lines,
        "distance_head": ["Distance from the target", "Value", "By chance",
                          *(title.partition(",")[0] for title, _ in distant)],
        "distances": rows, "test": words.chi_square_words(part["test"]), "matrix": _matrix(part["correction"]),
        "n": f"{part['n']:,}", "target": part["target"],
    }  # fmt: skip


def _percent(number: Json | None) -> Cell:
    if not number or number["value"] is None:
        return Cell("undefined", "")
    return Cell(words.percent(number["value"]), number["value"], words.spread(number))


def _points(number: Json) -> Cell:
    value, low, high = (_signed(f"{100 * number[key]:+.1f}") for key in ("value", "low", "high"))
    return Cell(value, number["value"], f"{low} to {high}")


def _number(number: Json | None) -> Cell:
    if not number or number["value"] is None:
        return Cell("undefined", "")
    ends = "" if number["low"] is None else f"{number['low']:.4f} to {number['high']:.4f}"
    return Cell(_signed(f"{number['value']:.4f}"), number["value"], _signed(ends))


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _matrix(correction: Json | None) -> dict[str, Any] | None:
    """Lay out how the classifier errs."""
    if not correction:
        return None
    names, counts = correction["classes"], correction["counts"]
    condition = correction["condition"]
    return {
        "names": names, "where": correction["where"],
        "condition": "without limit" if condition is None else f"{condition:.2f}", "ill": correction["ill"],
        "rows": [(name, sum(row), [share(n, sum(row), i == j) for j, n in enumerate(row)])
                 for i, (name, row) in enumerate(zip(names, counts, strict=True))],
    }  # fmt: skip


def _quality(content: Json) -> dict[str, Any] | None:
    found = content["quality"]
    if not found:
        return None

    def cells(one: Json) -> list[Cell]:
        made = {key: Cell("undefined", "") if one[key] is None else Cell(_signed(f"{one[key]:.4f}"), one[key])
                for key in words.QUALITY_WORDS}  # fmt: skip
        if one["kid_sd"] is not None:
            made["kid"] = made["kid"]._replace(small=f"± {one['kid_sd']:.4f} over subsets")
        return [Cell(f"{one['n']:,}", one["n"]), *made.values()]

    groups = found["groups"]
    worst = ""
    if len(groups) > 1:
        name = max(groups, key=lambda each: groups[each]["kid"])
        worst = (
            f"The largest KID is that of “{name}”. All groups have the same n, so they compare; but differences within "
            "the spread over subsets may be chance."
        )
    return {
        "sentence": words.quality_sentence(content), "extractor": found["extractor"], "attribute": found["attribute"],
        "head": ["n", *(f"{title} {direction}" for title, direction, _ in words.QUALITY_WORDS.values())],
        "rows": [("all images", cells(found["all"])), *((name, cells(one)) for name, one in groups.items())],
        "meanings": [(title, text) for title, _, text in words.QUALITY_WORDS.values()], "worst": worst,
        "why_no_groups": found["why_no_groups"], "left_out": ", ".join(found["left_out"]),
    }  # fmt: skip


def _known(content: Json) -> list[tuple[str, str]]:
    rows = [("Labels", content["source"]), ("Images", words.faces(content))]
    if content["against"]:
        other = content["against"]
        rows.append(("Against", f"{other['source']}: {words.faces(other)}"))
    rows += [
        (f"Errors of {part['name']}", part["correction"]["where"]) for part in content["parts"] if part["correction"]
    ]
    if content["quality"]:
        rows.append(("Features", f"{content['quality']['generated']}, against {content['quality']['reference']}"))
    return [*rows, ("Written", f"{content['created']} by evenlens {content['evenlens']}")]
