"""A comparison of generators -> one self-contained HTML page, its figures as files, and the findings as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evenlens.files import replacing, write_json
from evenlens.generation import comparison_words as said
from evenlens.generation.comparing import Comparison
from evenlens.generation.comparison_sides import Row
from evenlens.generation.words import DISTANCE_WORDS, QUALITY_WORDS, level, percent, spread
from evenlens.report import bundle, comparison_figures

PAGE, FINDINGS, FIGURES = "compare.html", "compare.json", "figures"
Json = Mapping[str, Any]


class Cell(NamedTuple):
    """A number in a table: what is shown, what is sorted by, and what is small below it."""

    text: str
    value: float | str = ""
    small: str = ""


class Table(NamedTuple):
    """A table of the page: the first cell of each row is its name."""

    caption: str
    head: list[str]
    rows: list[list[Cell]]


def write(found: Comparison, folder: Path, command: str = "") -> Path:
    """Write the page, the findings, and the figures into a folder; what is there is replaced, each file whole.

    Args:
        found: as `compare` gives it.
        folder: gets `compare.html`, `compare.json` and `figures/`.
        command: that made it, if it is known.

    Returns:
        the page's path.
    """
    folder = Path(folder)
    figures = _figures(found.content)
    files = comparison_figures.write(figures, found.content, found.rows, folder / FIGURES)
    content = {**found.content, "figures": [f"{FIGURES}/{name}" for name in files], "command": command or None}
    write_json(folder / FINDINGS, content)
    with replacing(folder / PAGE) as part:
        part.write_text(render(content, found.rows), encoding="utf-8")
    return folder / PAGE


def _figures(content: Json) -> list[Any]:
    return [comparison_figures.shares(content, number) for number in range(len(content["generators"][0]["parts"]))]


def render(content: Json, rows: Sequence[Row] = ()) -> str:
    """Fill the template.

    Args:
        content: the findings; `command` too, if it is known.
        rows: of the grid; none where images may not be shown.
    """
    figures = _figures(content)
    parts = [_part(content, number, figure) for number, figure in enumerate(figures)]
    contents = [("main", "Finding"), *([("grid", "Images")] if rows else [])]
    contents += [*((part["aim"], part["name"]) for part in parts), ("alike", "Likeness")]
    contents += [("quality", "Quality")] if content["extractor"] else []
    contents += [("cost", "Size and speed"), ("reading", "How to read it"), ("data", "Data"),
                 ("repeat", "How to repeat it")]  # fmt: skip
    return bundle.render(
        "comparison.html", {figure.key: figure.spec for figure in figures}, title=content["title"],
        meta=f"{content['count']:,} images of each, made of the same latents; {level(content)} intervals",
        contents=contents, headline=said.headline(content), warnings=said.warnings(content),
        sentences=said.sentences(content), caveats=content["caveats"], reading=said.reading(content),
        strips=[(row.name, comparison_figures.uri(comparison_figures.strip(row.pixels))) for row in rows],
        num_latents=len(rows[0].pixels) if rows else 0, parts=parts, alike=_alike(content), asked=_asked(content),
        quality=_quality(content), diversity=_diversity(content), cost=_cost(content), known=_known(content),
        meanings=said.meanings(), quality_meanings=[(title, text) for title, _, text in QUALITY_WORDS.values()],
        extractor=content["extractor"] and content["extractor"]["title"], command=content.get("command"),
    )  # fmt: skip


# ---- shares


def _part(content: Json, number: int, figure: Any) -> dict[str, Any]:
    sides = content["generators"]
    name, target = sides[0]["parts"][number]["name"], sides[0]["parts"][number]["target"]
    return {
        "aim": f"part-{number}", "name": name, "figure": figure, "sentences": said.part_sentences(content, number),
        "files": [f"{comparison_figures.stems(content)[number]}.{kind}" for kind in comparison_figures.FORMATS],
        "categories": _categories(sides, number, f"Categories of {name}; the target is {target}"),
        "distances": _distances(sides, number, f"How far {name} is from its target; ↓ nearer is lower, ↑ is higher"),
    }  # fmt: skip


def _categories(sides: Sequence[Json], number: int, caption: str) -> Table:
    corrected = bool(sides[0]["parts"][number]["categories"][0]["corrected"])
    head = [sides[0]["parts"][number]["name"], "Target"]
    for each in sides:
        head += [each["name"], *([f"{each['name']}, corrected"] if corrected else [])]
    head += [f"{each['name']} less teacher, points" for each in sides[1:]]
    rows = []
    for k, first in enumerate(sides[0]["parts"][number]["categories"]):
        entries = [each["parts"][number]["categories"][k] for each in sides]
        row = [Cell(first["name"]), Cell(percent(first["target"]), first["target"])]
        for entry in entries:
            row.append(_percent({**entry["together"], "value": entry["share"]["value"]}))
            row += [_percent(entry["corrected"])] if corrected else []
        rows.append([*row, *(_points(entry["difference"]) for entry in entries[1:])])
    return Table(caption, head, rows)


def _distances(sides: Sequence[Json], number: int, caption: str) -> Table:
    head = ["Generator", *(f"{title} {direction}" for title, direction, _ in DISTANCE_WORDS.values())]
    rows = []
    for each in sides:
        found = each["parts"][number]["distances"]
        rows.append([Cell(each["name"]), *(_number(found[key]) for key in DISTANCE_WORDS)])
        floors = [found[key]["floor"] for key in DISTANCE_WORDS]
        rows.append([Cell(f"{each['name']}, by chance"), *(Cell("" if x is None else f"{x:.4f}") for x in floors)])
        for kind, words in (("corrected", "corrected"), ("difference", "less teacher")):
            if found["total_variation"][kind] and (kind == "corrected" or each["role"] == "student"):
                numbers = [_number(found[key][kind]) for key in DISTANCE_WORDS]
                rows.append([Cell(f"{each['name']}, {words}"), *numbers])
    return Table(caption, head, rows)


# ---- likeness, quality, variety


def _alike(content: Json) -> Table:
    names = [part["name"] for part in said.teacher(content)["parts"]]
    rows = [
        [Cell(each["name"]), *(_percent(part["comparison"]["agreement"]) for part in each["parts"]),
         _number(each["pixels"])]
        for each in said.students(content)
    ]  # fmt: skip
    head = ["Student", *(f"Same {name} ↑" for name in names), "Pixel difference ↓"]
    return Table("Students beside the teacher at the same latents", head, rows)


def _asked(content: Json) -> list[Table]:
    found = []
    for each in content["generators"]:
        one = each["asked"]
        if one is None:
            continue
        rows = []
        for name, counts in zip(one["names"], one["counts"], strict=True):
            rows.append([Cell(name), *(Cell(f"{n:,}", n) for n in counts), _percent(one["labels"][name])])
        caption = f"{each['name']}: {one['attribute']} that was asked for (rows) and seen (columns), images"
        found.append(Table(caption, ["asked ↓ seen →", *one["classes"], "Seen as asked ↑"], rows))
    return found


def _quality(content: Json) -> list[tuple[Table, Table | None, str]]:
    """Lay out quality against each reference: of all images, of each group, and which groups are left out."""
    found = []
    head = ["n", *(f"{title} {direction}" for title, direction, _ in QUALITY_WORDS.values())]
    for name in content["references"]:
        rows, grouped, left_out = [], [], []
        for each in content["generators"]:
            one = each["quality"][name]
            rows.append([Cell(each["name"]), *_measured(one["all"])])
            grouped += [[Cell(group), Cell(each["name"]), *_measured(of)] for group, of in one["groups"].items()]
            left_out += [f"{each['name']}: {', '.join(one['left_out'])}"] if one["left_out"] else []
        grouped.sort(key=lambda row: row[0].text)  # the generators of a group beside each other
        attribute = content["generators"][0]["quality"][name]["attribute"]
        groups = Table(f"Against {said.AGAINST[name]}, by {attribute}",
                       [attribute, "Generator", *head], grouped) if grouped else None  # fmt: skip
        found.append((Table(f"Against {said.AGAINST[name]}", ["Generator", *head], rows), groups, "; ".join(left_out)))
    return found


def _measured(one: Json) -> list[Cell]:
    cells = [
        Cell("undefined") if one[key] is None else Cell(_signed(f"{one[key]:.4f}"), one[key]) for key in QUALITY_WORDS
    ]
    if one["kid_sd"] is not None:
        place = list(QUALITY_WORDS).index("kid")
        cells[place] = cells[place]._replace(small=f"± {one['kid_sd']:.4f} over subsets")
    return [Cell(f"{one['n']:,}", one["n"]), *cells]


def _diversity(content: Json) -> Table | None:
    first = said.teacher(content)["diversity"]
    if first is None:
        return None
    groups = list(first["groups"])
    head = ["Generator", "Vendi score ↑", "Distance, all", "Within groups", "Across groups", *groups]
    rows = []
    for each in content["generators"]:
        one = each["diversity"]
        values = [one["vendi"], one["all"], one["within"], one["across"], *(one["groups"][name] for name in groups)]
        rows.append([Cell(each["name"]), *(Cell("undefined") if v is None else Cell(f"{v:.3f}", v) for v in values)])
    return Table(f"Variety of {first['n']:,} images of each: Vendi score, and mean distance of two images' features, "
                 f"by {first['attribute']}", head, rows)  # fmt: skip


# ---- size and speed


def _cost(content: Json) -> Table:
    head = ["Generator", "Image", "Parameters", "File", *(f"Time an image, {words}" for words in said.SPEEDS.values())]
    return Table("Size, and median time in turns", head, [_costs(each) for each in content["generators"]])


def _costs(each: Json) -> list[Cell]:
    times, speed = each["times"], each["speed"]
    own = each["role"] == "teacher"

    def beside(key: str, more: str, less: str) -> str:
        return "" if own or not times[key] else said.compared(times[key], more, less)

    count, size = each["num_parameters"], each["num_bytes"]
    cells = [
        Cell(each["name"]), Cell(f"{each['size']} px", each["size"]),
        Cell(f"{count:,}" if count else "not known", count or "", beside("num_parameters", "fewer", "more")),
        Cell(f"{size / 1e6:,.1f} MB" if size else "not known", size or "", beside("num_bytes", "smaller", "larger")),
    ]  # fmt: skip
    for batch in said.SPEEDS:
        ms = speed and speed[batch]["ms"]
        text = "not run" if ms is None else f"{said.milliseconds(ms)} ms"
        cells.append(Cell(text, ms or "", beside(f"speed_{batch}", "faster", "slower")))
    return cells


# ---- what was compared


def _known(content: Json) -> list[tuple[str, str]]:
    rows = []
    for each in content["generators"]:
        settings = "".join(f", {name} {value}" for name, value in each["settings"].items())
        asked = f"; asked for {each['attribute']}: {', '.join(each['labels'])}" if each["labels"] else ""
        rows.append((each["name"], f"{each['title']}, fingerprint {each['fingerprint']}{settings}{asked}"))
    for judge in content["judges"]:
        rows.append(
            ("Judge", f"{judge['title']}, fingerprint {judge['fingerprint']}: {', '.join(judge['attributes'])}")
        )
    if content["extractor"]:
        rows.append(("Features", f"{content['extractor']['title']}, fingerprint {content['extractor']['fingerprint']}"))
    rows += [("Reference", f"{said.AGAINST[name]}: {where}") for name, where in content["references"].items()]
    rows.append(("Computed on", _device(content)))
    return [*rows, ("Written", f"{content['created']} by evenlens {content['evenlens']}")]


def _device(content: Json) -> str:
    named = content["device"].endswith("threads")
    return str(content["device"]) if named else f"{content['device']}, {content['threads']} threads of the CPU"


def _percent(number: Json | None) -> Cell:
    if not number or number["value"] is None:
        return Cell("undefined")
    return Cell(percent(number["value"]), number["value"], spread(number))


def _points(number: Json) -> Cell:
    ends = f"{said.points(number['low'])} to {said.points(number['high'])}"
    return Cell(said.points(number["value"]), number["value"], ends)


def _number(number: Json | None) -> Cell:
    if not number or number["value"] is None:
        return Cell("undefined")
    ends = "" if number["low"] is None else f"{number['low']:.4f} to {number['high']:.4f}"
    return Cell(_signed(f"{number['value']:.4f}"), number["value"], _signed(ends))


def _signed(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
