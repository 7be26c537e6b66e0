"""The words around the code: cards are those of the classes, examples run, commands parse, links lead somewhere."""

import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

import evenlens
from evenlens import cards, cli_sweep, generation_study, metrics, plan, recipes, registry, reproducing
from evenlens.cli import app
from evenlens.config import make_config, parse_overrides
from evenlens.data import own
from evenlens.datasets.avatars import Avatars
from evenlens.generation.students.settings import read_settings

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
FILE_OF_A_METHOD = re.compile(r"# src/evenlens/methods/(\w+)\.py\n")
EXTERNAL = ("http://", "https://", "mailto:")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text, language):
    """The fenced blocks of a language, without the indentation of a list that they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def prose(text):
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def example_methods(tmp_path):
    """The methods that the pages write out, as files in a folder where methods are looked for."""
    folder = tmp_path / "methods"
    folder.mkdir()
    names = []
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            if found := FILE_OF_A_METHOD.match(block):
                (folder / f"{found[1]}.py").write_text(block, encoding="utf-8")
                names.append(found[1])
    places = importlib.import_module("evenlens.methods").__path__
    places.append(str(folder))
    importlib.invalidate_caches()
    yield names
    places.remove(str(folder))
    evenlens.methods.get.cache_clear()
    for name in names:
        sys.modules.pop(f"evenlens.methods.{name}", None)


# ---- cards


@pytest.mark.parametrize("path", sorted(cards.pages(ROOT / "docs")), ids=lambda path: path.name)
def test_the_cards_are_those_of_the_classes(path):
    assert path.read_text(encoding="utf-8") == cards.pages(ROOT / "docs")[path], "run: python -m evenlens.cards docs"


@pytest.mark.parametrize(
    ("package", "page"), [("evenlens.methods", "methods.md"), ("evenlens.datasets", "datasets.md")]
)
def test_every_method_and_data_set_has_one_card(package, page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| name \| `(\w+)` \|$", text, re.MULTILINE)) == registry.module_names(package)


def test_a_guide_without_marks_for_the_settings_is_refused():
    with pytest.raises(evenlens.UserError, match="must hold the lines"):
        cards.with_table("# Guide\n", "settings", "")


# ---- examples


def test_python_examples_run(tmp_path, monkeypatch, example_methods, capsys):
    """On drawings as the examples name them, but fewer; a page's examples go on from each other."""
    fewer = {"num_train": 160, "num_val": 80, "num_test": 80}
    monkeypatch.setattr(Avatars.__init__, "__kwdefaults__", {**Avatars.__init__.__kwdefaults__, **fewer})
    monkeypatch.chdir(tmp_path)
    num_run = 0
    for page in PAGES:
        names = {"__name__": page.stem}
        for number, block in enumerate(blocks(page.read_text(encoding="utf-8"), "python"), 1):
            if FILE_OF_A_METHOD.match(block):
                continue
            exec(compile(block, f"{page.name}, example {number}", "exec"), names)
            num_run += 1
    assert num_run >= 6
    assert "False" not in capsys.readouterr().out.splitlines(), (
        "an example that compares two things found them different"
    )
    assert example_methods
    for name in example_methods:
        made = evenlens.train("avatars", name, train={"epochs": 1})
        assert made.log[0]["loss"] > 0


def test_the_numbers_in_comments_are_those_that_are_printed(capsys):
    seen = 0
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            if "findings = evenlens.audit(\n    label=" not in block and 'evenlens.audit(["' not in block:
                continue
            exec(block, {"evenlens": evenlens})
            printed = capsys.readouterr().out.splitlines()
            said = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
            assert len(said) == len(printed)
            for words, line in zip(said, printed, strict=True):
                for number in re.findall(r"\bnan\b|\b\d\.\d\b", words):
                    assert number in line
                    seen += 1
    assert seen >= 5


@every_page
def test_recipes_can_be_read(page):
    for block in blocks(page.read_text(encoding="utf-8"), "toml"):
        content = tomllib.loads(block)
        if "method" not in content:
            assert own.Description.model_validate(content)  # of a data set of one's own
            continue
        for config in recipes.expand(content).configs:
            plan.complete(config)


# ---- commands


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The data set of the reader's own that the pages speak of."""
    (tmp_path / "photos").mkdir()
    own.write(tmp_path / "photos", own.Description(label="smiling", sensitive=("gender", "race"), table="labels.csv"))
    monkeypatch.setenv("EVENLENS_DATA", str(tmp_path))


def commands(text):
    """What a reader may type: in sentences, where a command's name may stand alone, and in blocks."""
    inline = re.findall(r"(?<!`)`((?:evenlens|make) [^`\n]+)`", prose(text))
    shell = [line.strip() for block in blocks(text, "sh") for line in block.splitlines()]
    return [(shlex.split(line), line in inline) for line in [*inline, *shell]]


@every_page
def test_commands_are_understood(page, example_methods, photos):
    group = typer.main.get_command(app)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for (program, name, *rest), inline in commands(page.read_text(encoding="utf-8")):
        if program == "make":
            assert name in targets
        if program != "evenlens" or name == "--help":
            continue
        assert name in group.commands, f"there is no command 'evenlens {name}'"
        command = group.commands[name]
        if isinstance(command, typer.core.TyperGroup):
            if not rest and inline:
                continue
            if cli_sweep.MAKE in command.commands and rest[0] not in command.commands:
                rest = [cli_sweep.MAKE, *rest]
            name, *rest = rest
            assert name in command.commands, f"there is no command '{name}' in evenlens {command.name}"
            command = command.commands[name]
        if rest != ["--help"] and (rest or not inline):
            check_what_is_named(name, command.make_context(name, rest).params)


def check_what_is_named(command, given):
    """Look up what a command names; a word in capitals stands for any."""
    if command == "train" and not given["method"].isupper() and not given["dataset"].isupper():
        settings = [pair for pair in given["settings"] or [] if not pair.endswith(("/ID", "=RUN"))]  # of the reader's
        plan.complete(make_config(given["dataset"], given["method"], parse_overrides(settings)))
    elif command in (cli_sweep.MAKE, "status", "cancel") and not {"ID", "RECIPE"} & {*Path(given["recipe"]).parts}:
        for config in recipes.read_recipe(ROOT / given["recipe"]).configs:
            plan.complete(config)
    elif command == "reproduce" and (given["name"] or "")[:1].islower():
        assert reproducing.read(ROOT / reproducing.find(given["name"]))[1], "it does not say what to expect"
    elif command == "study":
        generation_study.read_study(ROOT / given["recipe"])
    elif command in ("distil", "teach"):
        own = [pair for pair in given["settings"] or [] if not pair.startswith("data.")]
        read_settings(parse_overrides(own))
    elif command == "list":
        assert given["what"] in (None, "methods", "datasets", "views", "metrics", "settings")
    elif command in ("sketch", "tone-leak"):
        named = given["view"] if isinstance(given["view"], list | tuple) else [given["view"]]
        assert {name for name in named if name and not name.isupper()} <= {*registry.module_names("evenlens.views")}
    elif command == "show" and not given["name"].isupper() and "/" not in given["name"]:
        places = ("evenlens.methods", "evenlens.datasets", "evenlens.views")
        assert given["name"] in [*metrics.METRICS, *(name for place in places for name in registry.module_names(place))]


def test_a_command_that_is_wrong_is_noticed():
    with pytest.raises(evenlens.UserError, match="did you mean"):
        check_what_is_named("train", {"dataset": "avatars", "method": "group_dor", "settings": []})


# ---- links


def anchors(text):
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if link.startswith(EXTERNAL):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"


@every_page
def test_files_that_are_named_exist(page):
    text = prose(page.read_text(encoding="utf-8"))
    for name in re.findall(r"`((?:src|tests|docs|recipes|benchmarks|\.ci)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), f"{name} is named, and is not there"
