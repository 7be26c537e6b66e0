"""The command `generate audit`, typed well and badly."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from evenlens.generation import write_labels
from tests.test_generation_page import labels

SAVED = np.save


@pytest.fixture
def here(tmp_path):
    write_labels(labels([60, 30, 10], ("A", "B", "C")), tmp_path / "teacher.parquet")
    write_labels(labels([40, 30, 30], ("A", "B", "C"), seed=1), tmp_path / "student.csv")
    truth = "ABC" * 20
    said = truth[:-6] + "BCABCA"
    rows = "".join(f"{a},{b}\n" for a, b in zip(truth, said, strict=True))
    (tmp_path / "labelled.csv").write_text(f"truth,prediction\n{rows}")
    random = np.random.default_rng(0)
    SAVED(tmp_path / "a.npy", random.normal(size=(110, 4)))
    SAVED(tmp_path / "b.npy", random.normal(size=(110, 4)))
    (tmp_path / "photos").mkdir()
    for name in labels([60, 30, 10]).ids.tolist():
        Image.new("RGB", (8, 8), "teal").save(tmp_path / "photos" / name)
    return tmp_path


def test_everything_at_once_is_printed_and_written(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = command(
        "generate", "audit", "teacher.parquet", "--attribute", "race", "--joint", "race,sex", "--target",
        "race=A:.4,B:.3,C:.3", "--against", "student.csv", "--confusion", "labelled.csv", "--features", "a.npy",
        "--reference", "b.npy", "--extractor", "my [red] net", "--images", "photos", "--json", "out/a.json", "--page",
        "out/a.html", "--title", "my [bold] generator",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert max(len(line.rstrip()) for line in ended.out.splitlines() if not line.startswith("Page")) <= 80
    text = " ".join(ended.out.split())
    for said in ("100 of 110 images are counted", "corrected", "To meet the target, the given shares, 20.0 %",
                 "by my [red] net (4 numbers an image)", "the categories are apparent attributes"):  # fmt: skip
        assert said.lower() in text.lower()
    content = json.loads((here / "out" / "a.json").read_text())
    assert [part["name"] for part in content["parts"]] == ["race", "race x sex"]
    assert content["command"].startswith("evenlens generate audit teacher.parquet --attribute race")
    assert content["parts"][0]["comparison"]["pairs"] == 100
    page = (here / "out" / "a.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 24
    assert "my [bold] generator" in page
    assert {path.name for path in (here / "out").iterdir()} == {"a.json", "a.html"}


def test_without_options_every_attribute_is_audited_against_equal_shares(command, here):
    ended = command("generate", "audit", "student.csv")
    assert ended.code == 0, ended.err
    assert "race: 100 images" in ended.out
    assert sorted(path.name for path in here.iterdir() if path.name != "cache") == [
        "a.npy", "b.npy", "labelled.csv", "photos", "student.csv", "teacher.parquet"
    ]  # fmt: skip


def test_columns_that_are_named_need_no_probabilities_in_any_table(command, here):
    words = ["--attribute", "sex", "--joint", "race,sex", "--target", "teacher.parquet", "--against", "teacher.parquet"]
    ended = command("generate", "audit", "student.csv", *words, "--json", "a.json")
    assert ended.code == 0, ended.err
    assert [part["name"] for part in json.loads((here / "a.json").read_text())["parts"]] == ["sex", "race x sex"]


def test_another_table_is_a_target(command, here):
    ended = command("generate", "audit", "student.csv", "--target", "teacher.parquet", "--json", "a.json")
    assert ended.code == 0, ended.err
    part = json.loads((here / "a.json").read_text())["parts"][0]
    assert [entry["target"] for entry in part["categories"]] == [0.6, 0.3, 0.1]


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere.csv"], "There is no table nowhere.csv"),
    (["--attribute", "rase"], "did you mean 'race'?"),
    (["--joint", "race"], "crosses nothing"),
    (["--target", "race=A:.5,B:.5"], "The target of race lacks 'C': give each class a share"),
    (["--target", "race=A:-.5,B:1,C:.5"], "gives 'A' the share -0.5: shares are from 0 to 1"),
    (["--target", "race=A:nan,B:1,C:0"], "gives 'A' the share nan"),
    (["--target", "race=A:.5,B:.3,C:.3"], "sum to 1.1, not to 1"),
    (["--target", "race=A:.5,B:.5,B:0"], "has 'B' twice"),
    (["--target", "race=A,B"], "has 'A', which is no class with its share"),
    (["--target", "rase=A:1"], "did you mean 'race'?"),
    (["--target", "even"], "The target 'even' is no file and no list of shares"),
    (["--target", "race=A:.4,B:.3,C:.3", "--target", "race=A:.4,B:.3,C:.3"], "is given twice"),
    (["--attribute", "race", "--attribute", "sex", "--confusion", "labelled.csv"],
     "is of one of race, sex: write race=labelled.csv"),
    (["--attribute", "race", "--confusion", "nowhere"], "There is no table nowhere"),
    (["--confusion", "rase=labelled.csv"], "did you mean 'race'?"),
    (["--attribute", "race", "--confusion", "few.csv"], "has no image that truly is 'C'"),
    (["--features", "a.npy"], "belong together"),
    (["--features", "a.npy", "--reference", "b.npy"], "Say what made the features with --extractor"),
    (["--features", "evil.npy", "--reference", "b.npy", "--extractor", "x"], "it holds a pickle"),
    (["--features", "a.npy", "--reference", "nan.npy", "--extractor", "x"], "Row 3 of nan.npy holds a number that is"),
    (["--faces", "largest"], "Unknown rule for images with several faces 'largest'"),
    (["--images", "photos"], "--images is for the page"),
    (["--images", "nowhere", "--page", "p.html"], "There is no folder nowhere"),
    (["--page", "p.json"], "name the page .html"),
    (["--confidence", "2"], "A confidence lies between 0 and 1, as 0.95; 2.0 does not."),
    (["--against", "nobody.csv"], "is left with one face"),
])  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(refused, here, words, said):
    (here / "few.csv").write_text("truth,prediction\nA,A\nB,B\n")
    (here / "nobody.csv").write_text("id,n_faces,race,race.probability.A,sex,sex.probability.m\na,0,,,,\n")
    SAVED(here / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    SAVED(here / "nan.npy", np.array([[0.0] * 4, [0.0] * 4, [np.nan] * 4]))
    before = sorted(here.rglob("*"))
    first = [] if words[0].endswith(".csv") else ["teacher.parquet"]
    more = [] if "--page" in words or words[0] == "--images" else ["--page", "p.html"]
    assert said in refused("generate", "audit", *first, *words, *more, "--json", "out.json")
    assert sorted(here.rglob("*")) == before


def test_ids_that_lead_out_of_the_folder_are_refused(refused, here):
    (here / "labels.csv").write_text("id,race\n0001.png,A\n../secret.png,B\n")
    said = refused("generate", "audit", "labels.csv", "--images", "photos", "--page", "p.html")
    assert "Row 3 of labels.csv names '../secret.png', a path with '..'" in said
    assert not (here / "p.html").exists()


def test_help_teaches_and_loads_no_torch():
    script = (
        "import sys, evenlens.cli\nsys.argv = ['evenlens', 'generate', 'audit', '--help']\n"
        "try:\n    evenlens.cli.main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({'torch', 'PIL', 'altair', 'pyarrow'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    assert "LOADED []" in shown
    assert "evenlens generate audit student.csv --against teacher.csv" in shown
    assert "apparent attributes" in shown


def test_an_audit_with_all_but_a_page_loads_no_torch(here):
    script = (
        "import sys, evenlens.cli\nsys.argv = ['evenlens', 'generate', 'audit', 'student.csv', '--json', 'x.json']\n"
        "try:\n    evenlens.cli.main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({'torch', 'scipy', 'altair'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=here)
    assert "LOADED []" in ended.stdout, ended.stderr
