"""The page and the command of a comparison: what they say, figures as files, hostile names, and use by all."""

import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from evenlens.generation import classifiers, teachers
from evenlens.generation import comparison_words as words
from evenlens.generation.comparing import compare
from evenlens.generation.comparison_sides import Row, Settings
from evenlens.generation.words import spread
from evenlens.report import comparison_figures, comparison_page
from tests.pages import Tags, check_drawn
from tests.test_comparing import JUDGE, QUICK, RACES, Judge, Paint

HOSTILE = (
    "<script>window.hacked=1</script>",
    '</script><img src=x onerror=window.hacked=2>"',
    "{{ 7 * 7 }}\nx \u2028 y",
)
LONG = "a-student-with-a-name-that-is-much-longer-than-others"
TITLE = "</title><script>window.hacked=3</script>"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A comparison of hostile classes, a hostile title, and a student that is judged by its own trainer."""
    folder = tmp_path_factory.mktemp("page")
    judge = Judge(attributes={"race": HOSTILE, "sex": ("f", "m")})
    judge.title = "<u>judge</u>"
    students = {"plain": Paint(0.5, trained_with=JUDGE), LONG: Paint(1.0, HOSTILE), "third": Paint(0.8)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(folder / "cache"))
        settings = Settings(60, joint=[("race", "sex")], **QUICK)
        return compare(Paint(), students, folder / "out", [judge], settings, title=TITLE)


@pytest.fixture(scope="module")
def page(found, tmp_path_factory):
    return comparison_page.write(
        found, tmp_path_factory.mktemp("written"), "evenlens '<script>window.hacked=5</script>'"
    )


def test_every_share_stands_in_a_table_with_its_interval(found, page):
    said = Tags(page.read_text(encoding="utf-8")).words
    for each in found.content["generators"]:
        for part in each["parts"]:
            for entry in part["categories"]:
                assert spread(entry["together"]).replace(" %", "\N{NO-BREAK SPACE}%") in page.read_text(
                    encoding="utf-8"
                )
            assert f"{part['distances']['kl']['value']:.4f}" in said
    assert "a generated face has none" in said
    assert f"{found.content['generators'][1]['quality']['teacher.others']['all']['fid']:.4f}" in said


def test_the_findings_lie_beside_the_page_with_the_command(found, page):
    content = json.loads((page.parent / "compare.json").read_text(encoding="utf-8"))
    assert {**found.content, "figures": content["figures"], "command": content["command"]} == content
    assert sorted(content["figures"]) == sorted(f"figures/{path.name}" for path in (page.parent / "figures").iterdir())
    assert sorted(path.name for path in page.parent.iterdir()) == ["compare.html", "compare.json", "figures"]
    assert comparison_page.render(content, found.rows) == page.read_text(encoding="utf-8")


def test_a_student_that_its_own_trainer_judges_is_warned_about_before_all_else(page):
    said = Tags(page.read_text(encoding="utf-8")).words
    assert said.index("Warning: “plain” was trained with the classifier that judges it") < said.index(
        "By race, the teacher"
    )


def test_hostile_names_stay_text(page):
    tags = Tags(page.read_text(encoding="utf-8"))
    assert [tag for tag, _ in tags.tags].count("script") == 2
    assert not any("onerror" in attributes for _, attributes in tags.tags)
    assert "49" not in tags.words.split()
    assert HOSTILE[0] in tags.words
    assert TITLE in tags.words


def test_figures_are_files_of_three_kinds_that_ask_for_nothing(page):
    folder = page.parent / "figures"
    assert sorted(path.stem for path in folder.glob("*.pdf")) == ["race", "race-x-sex", "sex"]
    assert all(path.read_bytes().startswith(b"%PDF-") for path in folder.glob("*.pdf"))
    for path in folder.glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert "<script" not in text
        assert "href" not in text
        assert LONG in text
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 300
    text = (folder / "sex.svg").read_text(encoding="utf-8")
    assert "Purple lines: the target, equal shares." in text


def test_a_figure_has_a_bar_for_each_generator_and_category(found):
    figure = comparison_figures.shares(found.content, 0)
    assert len(figure.rows) == 4 * 3
    assert [row[1] for row in figure.rows[:4]] == ["teacher", "plain", LONG, "third"]
    colours = figure.spec["layer"][0]["encoding"]["color"]["scale"]
    assert colours["domain"] == ["teacher", "plain", LONG, "third"]
    assert len(set(colours["range"])) == 4
    entry = found.content["generators"][1]["parts"][0]["categories"][2]
    (values,) = (part for part in figure.spec["datasets"].values() if "share" in part[0])
    drawn = values[2 * 4 + 1]
    assert drawn["share"] == pytest.approx(entry["share"]["value"], abs=1e-5)
    assert (drawn["low"], drawn["high"]) == pytest.approx(
        (entry["together"]["low"], entry["together"]["high"]), abs=1e-5
    )


def test_a_figure_of_very_many_categories_draws_the_farthest(found):
    def entry(k, share):
        return {"name": f"c{k}", "share": {"value": share}, "target": 0.01, "together": {"low": None, "high": None}}

    content = json.loads(json.dumps(found.content))
    for each in content["generators"]:
        each["parts"][0]["categories"] = [entry(k, 0.01 if k < 30 else 0.02) for k in range(100)]
    content["generators"][2]["parts"][0]["categories"][3]["share"]["value"] = 0.5
    figure = comparison_figures.shares(content, 0)
    assert "Drawn are the 70 of 100 categories" in figure.caption
    assert list(dict.fromkeys(row[0] for row in figure.rows))[:2] == ["c3", "c30"]


def test_files_of_figures_never_have_the_same_name():
    parts = [{"name": name} for name in ("a b", "a-b", "../..", "grid", "", "..\\x")]
    stems = comparison_figures.stems({"generators": [{"parts": parts}]})
    assert len(set(stems)) == 6
    assert all(re.fullmatch(r"\w[\w.-]*", stem) for stem in stems)
    assert "grid" not in stems


def test_the_grid_has_a_row_for_each_name_and_a_column_for_each_latent():
    pixels = np.zeros((3, 4, 4, 3), np.uint8) + np.array([0, 120, 240], np.uint8)[:, None, None, None]
    made = np.asarray(comparison_figures.grid([Row("teacher", pixels), Row(HOSTILE[1] * 5, 255 - pixels)]))
    cell = comparison_figures.CELL + comparison_figures.GAP
    middle = [comparison_figures.NAME + k * cell + 40 for k in range(3)]
    assert made[40, middle, 0].tolist() == [0, 120, 240]
    assert made[40 + cell, middle, 0].tolist() == [255, 135, 15]
    assert len(made) == 2 * cell - comparison_figures.GAP
    shown = comparison_figures.uri(comparison_figures.strip(pixels))
    assert shown.startswith("data:image/jpeg;base64,")


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_drawn_in_chromium_and_asks_for_nothing(page, opened, width):
    tab = opened(page, width)
    check_drawn(tab, page, 3)
    assert tab.evaluate("window.hacked") is None
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 700)")
    assert tab.evaluate("document.images.length") == 1 + 1 + 3 + 1
    assert tab.evaluate("document.querySelectorAll('h1').length") == 1


# ---- the command


@pytest.fixture
def fakes(monkeypatch):
    """Addresses of generators and classifiers that exist here only."""
    made = {
        "big": Paint(),
        "plain": Paint(0.5, trained_with=JUDGE),
        "fair": Paint(1.0, RACES),
        "other": Paint(latent_size=3),
    }
    monkeypatch.setattr(teachers, "load", lambda address: made[address])
    monkeypatch.setattr(classifiers, "load", lambda address, crop: Judge(address[:1] * 16))
    monkeypatch.setenv("COLUMNS", "80")
    torch.set_num_threads(1)


def test_the_command_prints_within_80_columns_and_writes_all(command, fakes, tmp_path):
    ended = command(
        "generate", "compare", "big", "plain", "fair", "--out", "out", "--by", "a", "--count", 40, "--attribute",
        "race", "--joint", "race,sex", "--target", "race=dark:.4,middle:.3,light:.3", "--title", "my [bold] students",
    )  # fmt: skip
    assert (ended.code, ended.err.strip()) == (0, "")
    lines = [line.rstrip() for line in ended.out.splitlines() if not line.startswith("Page")]
    assert max(map(len, lines)) <= 80
    text = " ".join(ended.out.split())
    for said in ("WARNING: “plain” was trained with", "By race, the teacher is", "quality against the teacher's images",
                 "size and speed", "race x sex: how far from", "not identities"):  # fmt: skip
        assert said in text
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["title"] == "my [bold] students"
    assert content["command"].startswith("evenlens generate compare big plain fair --out out")
    assert [each["name"] for each in content["generators"]] == ["teacher", "plain", "fair"]
    assert content["generators"][2]["parts"][0]["categories"][0]["count"] == 16
    with Image.open(io.BytesIO((tmp_path / "out" / "figures" / "race.png").read_bytes())) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["other", "--out", "out", "--by", "a"], "other takes latents of 3 numbers, and the teacher's have 4"),
        (["plain", "--out", "file", "--by", "a"], "file is a file: --out names a folder"),
        (["plain", "--out", "out", "--by", "a", "--by", "b"], "Two classifiers label race"),
        (["plain", "--out", "out", "--by", "a", "--target", "x"], "'x' is no file and no list of shares"),
        (["plain", "--out", "out", "--by", "a", "--count", "3"], "3 images are too few"),
        (["plain", "--out", "out", "--by", "a", "--attribute", "rase"], "did you mean 'race'"),
    ],
    ids=["latent size", "file as folder", "two judges", "bad target", "few images", "unknown attribute"],
)
def test_what_is_typed_badly_is_refused_in_a_sentence(command, fakes, tmp_path, typed, said):
    (tmp_path / "file").write_text("")
    ended = command("generate", "compare", "big", *typed)
    assert ended.code == 2
    assert said in " ".join(ended.err.split())
    assert not (tmp_path / "out").exists()


def test_a_difference_is_only_called_clear_if_its_interval_says_so():
    assert words.nearer({"low": -0.2, "high": -0.1}) == "clearly nearer"
    assert words.nearer({"low": 0.1, "high": 0.2}) == "clearly farther"
    assert words.nearer({"low": -0.1, "high": 0.2}) == "not clearly nearer or farther"
    assert words.nearer({"low": None, "high": None}) == "not known which is nearer"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
