"""The cards of the documentation: methods, data sets, views and settings, written from the code and nowhere else.

    python -m evenlens.cards docs

writes methods.md, datasets.md and views.md into the folder, and renews the tables of settings in guide.md and
generators.md.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenlens import datasets, methods, views
from evenlens.config import SCALARS, SECTIONS, RunConfig, keyword_options, option_owners
from evenlens.data.source import Source
from evenlens.errors import UserError
from evenlens.generation.students.settings import Settings
from evenlens.method import Method, Range
from evenlens.registry import PLAIN
from evenlens.view import View

WRITTEN = "<!-- Written by `python -m evenlens.cards docs` from the classes. Change those, not this file. -->"
START, END = "<!-- {}: written by `python -m evenlens.cards docs` -->", "<!-- end of {} -->"
STAGES = {
    PLAIN: "not at all: it is what the others are compared with",
    "pre": "before training, on what is shown",
    "in": "during training",
    "post": "after training",
    "compress": "while the network is made smaller",
}


@dataclass
class Doc:
    """A class's docstring in its parts.

    Attributes:
        summary: its first paragraph.
        body: the paragraphs that say how it works.
        arguments: what each argument is.
        source: where it comes from.
        differs: what differs from there.
    """

    summary: str = ""
    body: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    source: str = ""
    differs: str = ""


def read_doc(kind: type) -> Doc:
    """Take a class's docstring apart."""
    doc = Doc()
    first, *paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    doc.summary = _joined(first)
    for paragraph in paragraphs:
        if paragraph.startswith("Args:"):
            doc.arguments = _arguments(paragraph)
        elif paragraph.startswith("Source:"):
            source, _, differs = paragraph.removeprefix("Source:").partition("\nDiffers ")
            doc.source, doc.differs = _joined(source), f"Differs {_joined(differs)}" if differs else ""
        else:
            doc.body.append(_joined(paragraph))
    for owner in option_owners(kind):
        if owner is not kind:  # it has those options too
            doc.arguments = {**read_doc(owner).arguments, **doc.arguments}
    return doc


def method_cards() -> str:
    """Write the cards of all methods."""
    head = (
        "# Methods\n\n"
        f"{WRITTEN}\n\n"
        "One card for each file in `src/evenlens/methods/`. Train one with `evenlens train DATASET NAME`; set a\n"
        "hyper-parameter with `name=value` behind it. `evenlens show NAME` prints the same on the terminal. The words\n"
        "*group* and *cell* are explained in the [guide](guide.md#glossary).\n"
    )
    kinds = {name: methods.get(name) for name in methods.names()}
    bases = dict.fromkeys(base for kind in kinds.values() for base in _shared(kind))
    cards = [_method_card(name, kind) for name, kind in kinds.items()]
    return _page(head, [*cards, *(_shared_card(base) for base in bases)])


def dataset_cards() -> str:
    """Write the cards of all data sets."""
    head = (
        "# Data sets\n\n"
        f"{WRITTEN}\n\n"
        "One card for each file in `src/evenlens/datasets/`. A protocol says what is predicted, whose treatment is\n"
        "measured and how the images are split: choose one with `data.protocol=NAME`; the first is the default.\n"
        "evenlens ships no images. Each data set lies in a folder of its name below `data.root=FOLDER`, else below\n"
        "`$EVENLENS_DATA`, else below `~/data`.\n"
    )
    return _page(head, [_dataset_card(name, datasets.get(name)) for name in datasets.names()])


def view_cards() -> str:
    """Write the cards of all views."""
    head = (
        "# Views\n\n"
        f"{WRITTEN}\n\n"
        "One card for each file in `src/evenlens/views/`: what a network is shown in place of the photograph. Any\n"
        "data set, any view and any method go together: `evenlens train DATASET METHOD data.view=NAME`, and an option\n"
        "as `view.<option>=VALUE`. What is trained on is drawn once and kept in the cache; the saved model takes\n"
        "photographs. `evenlens sketch INPUT OUTPUT --view NAME` draws a folder, and `evenlens tone-leak DATASET`\n"
        "says how much of the skin's tone is left. Drawings are black on white.\n"
    )
    return _page(head, [_view_card(name, views.get(name)) for name in views.names()])


def settings_table() -> str:
    """Write the table of a run's settings."""
    rows = []
    for key in SCALARS:
        setting = RunConfig.model_fields[key]
        rows.append((f"`{key}`", _default(setting.default), setting.description or ""))
    for section, kind in SECTIONS.items():
        for key, setting in kind.model_fields.items():
            rows.append((f"`{section}.{key}`", _default(setting.default), setting.description or ""))
    return _table(("setting", "default", "what it is"), rows)


def student_settings_table() -> str:
    """Write the table of a student's settings."""
    fields = Settings.model_fields.items()
    rows = [(f"`{key}`", _default(setting.default), setting.description or "") for key, setting in fields]
    return _table(("setting", "default", "what it is"), rows)


def with_table(page: str, name: str, table: str) -> str:
    """Put a table between its two marks in a page.

    Raises:
        UserError: the marks are not there.
    """
    before, start, rest = page.partition(START.format(name))
    _, end, after = rest.partition(END.format(name))
    if not (start and end):
        raise UserError(f"The page must hold the lines {START.format(name)} and {END.format(name)}, in this order.")
    return f"{before}{start}\n\n{table}\n\n{end}{after}"


def pages(folder: Path) -> dict[Path, str]:
    """Give what each written file of the documentation should hold.

    Args:
        folder: of the documentation, where guide.md and generators.md lie.
    """
    guide, generators = folder / "guide.md", folder / "generators.md"
    return {
        folder / "methods.md": method_cards(),
        folder / "datasets.md": dataset_cards(),
        folder / "views.md": view_cards(),
        guide: with_table(guide.read_text(encoding="utf-8"), "settings", settings_table()),
        generators: with_table(generators.read_text(encoding="utf-8"), "student settings", student_settings_table()),
    }


# ---- one card


def _method_card(name: str, kind: type[Method]) -> str:
    doc = read_doc(kind)
    facts = [("name", f"`{name}`"), ("acts", STAGES[kind.stage]), ("groups", _groups_in_words(kind.needs_group))]
    if kind.requires:
        starts = [
            f"`{key}`: {needs.method}, trained to tell the {needs.target}" for key, needs in kind.requires.items()
        ]
        facts.append(("starts from", "; ".join(starts)))
    shared = _shared(kind)
    elsewhere = {name for base in shared for name in keyword_options(base)} - _own(kind)
    own = {name: default for name, default in keyword_options(kind).items() if name not in elsewhere}
    table = _options_table(kind, own, doc) if own or not shared else ""
    more = [f"Further hyper-parameters: [those of every {base.__name__}](#{_anchor(base)})." for base in shared]
    return _card(kind.title, doc, facts, [part for part in (*doc.body, table, *more) if part])


def _shared_card(base: type[Method]) -> str:
    """Write what several methods share, once."""
    doc = read_doc(base)
    table = _options_table(base, keyword_options(base), doc)
    return "\n\n".join([f"## Every {base.__name__}", doc.summary, *doc.body, table])


def _options_table(kind: type[Method], options: dict[str, Any], doc: Doc) -> str:
    rows = [
        (f"`{name}`", _default(default), _range(kind.search.get(name)), doc.arguments[name])
        for name, default in options.items()
    ]
    return _table(("hyper-parameter", "default", "search", "what it is"), rows) if rows else "No hyper-parameters."


def _shared(kind: type) -> list[type]:
    """Give the classes whose options a method has too, and which are no method themselves."""
    bases = [owner for owner in option_owners(kind) if owner is not kind and "title" not in vars(owner)]
    return [base for base in bases if keyword_options(base)]


def _own(kind: type) -> set[str]:
    return set(inspect.signature(vars(kind)["__init__"]).parameters) if "__init__" in vars(kind) else set()


def _anchor(base: type) -> str:
    return f"every-{base.__name__.lower()}"


def _dataset_card(name: str, kind: type[Source]) -> str:
    doc = read_doc(kind)
    facts = [
        ("name", f"`{name}`"),
        ("licence", kind.licence),
        ("to know", kind.caveat),
        ("get it", kind.how_to_get),
        ("cite", kind.citation),
        ("home", f"<{kind.homepage}>"),
        ("columns", ", ".join(f"`{column}`" for column in kind.columns)),
        ("images", f"{kind.size} x {kind.size} pixels, augmented by `{kind.augment}`, unless set otherwise"),
    ]
    protocols = []
    for key, protocol in kind.protocols.items():
        groups = ", ".join(f"`{column}`" for column in protocol.sensitive)
        free = "no" if protocol.fixed else "yes"
        protocols.append((f"`{key}`", protocol.summary, f"`{protocol.target}`", groups, free))
    columns = ("protocol", "what it is", "target", "groups by", "others may be chosen")
    options = [
        (f"`data.{name}`", _default(default), doc.arguments[name]) for name, default in keyword_options(kind).items()
    ]
    tables = [_table(columns, protocols)]
    if options:
        tables.append(_table(("option", "default", "what it is"), options))
    return _card(kind.title, doc, facts, [*doc.body, *tables])


def _view_card(name: str, kind: type[View]) -> str:
    doc = read_doc(kind)
    facts = [("name", f"`{name}`"), ("draws", "lines" if kind.sketches else "no lines: tone stays")]
    rows = [(f"`view.{key}`", _default(default), doc.arguments[key]) for key, default in keyword_options(kind).items()]
    table = _table(("option", "default", "what it is"), rows) if rows else "No options."
    return _card(kind.title, doc, facts, [*doc.body, table])


def _card(title: str, doc: Doc, facts: list[tuple[str, str]], middle: list[str]) -> str:
    parts = [f"## {title}", doc.summary, _table(("", ""), facts), *middle, f"Source: {_linked(doc.source)}"]
    return "\n\n".join([*parts, _linked(doc.differs)] if doc.differs else parts)


def _groups_in_words(needs: tuple[str, ...]) -> str:
    if not needs:
        return "need not be known to train or to predict"
    known = f"must be known for {' and '.join(needs)}"
    return known if "prediction" in needs else f"{known}; to predict, none is asked for"


def _default(value: Any) -> str:
    if value is None or value == {}:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _range(search: Range | None) -> str:
    if search is None:
        return ""
    return f"{search.low:g} to {search.high:g}{', on a logarithmic scale' if search.log else ''}"


# ---- text


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())


def _arguments(paragraph: str) -> dict[str, str]:
    """Read the lines below "Args:"; a line that is indented further goes on with the one above."""
    found: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines()[1:]:
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name, text = start.groups()
            found[name] = text
        else:
            found[name] += f" {line.strip()}"
    return found


def _linked(text: str) -> str:
    text = re.sub(r"arXiv[ :](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:(10\.\S+\w)", r"[doi:\1](https://doi.org/\1)", text)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([_linked(cell).replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _page(head: str, cards: list[str]) -> str:
    return "\n\n".join([head.rstrip(), *cards]) + "\n"


def main() -> None:
    """Write the cards into the folder that is named."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "guide.md").is_file():
        sys.exit("Name the folder that holds guide.md: python -m evenlens.cards docs")
    for path, text in pages(Path(sys.argv[1])).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
