"""The command `evenlens verify`: what it prints and writes, and how it ends."""

import json

import numpy as np
import pyarrow
import pyarrow.csv
import pytest

from tests.test_verification_pairs import faces, published


@pytest.fixture
def table(tmp_path):
    """Two subgroups of which the second has many more false matches."""
    generator = np.random.default_rng(0)
    group = np.repeat(["young", "old"], 4000)
    label = np.tile([1, 0], 4000)
    score = generator.normal(size=8000) + 3.5 * label + (1 - label) * (group == "old")
    columns = {"label": label, "group1": group, "group2": group, "score": score}
    pyarrow.csv.write_csv(pyarrow.table(columns), tmp_path / "pairs.csv")
    return "pairs.csv"


def test_the_table_fits_80_columns_and_says_what_was_found(command, table, monkeypatch):
    monkeypatch.setattr("evenlens.terminal.out.width", 80, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("verify", table)
    assert ended.code == 0, ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    said = " ".join(ended.out.replace("\N{NO-BREAK SPACE}", " ").split())
    for words in ("young", "all pairs", "GARBE", "the subgroups' FMR differ, from", "(old)", "same pairs that they are",
                  "no subjects are named"):  # fmt: skip
        assert words in said, words


def test_everything_is_written_where_it_was_asked_for(command, table, tmp_path):
    ended = command("verify", table, "--json", "out/f.json", "--page", "out/v.html", "--targets", "0.1,0.01", "--at",
                    "0.1", "--title", "Ours", "--require", "fmr_ratio>=1.5")  # fmt: skip
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "out/f.json").read_text())
    assert content["title"] == "Ours"
    assert [row["target"] for row in content["targets"]] == [0.1, 0.01]
    assert content["at"] == 0.1
    assert content["groups"][0]["at"][0]["own"]["fmr"]["value"] == pytest.approx(0.1)
    assert "<html" in (tmp_path / "out/v.html").read_text()
    assert json.loads((tmp_path / "out/v.json").read_text())["requirements"][0]["outcome"] == "passed"


@pytest.mark.parametrize(
    ("requirement", "code", "word"),
    [
        ("fmr_ratio<=1.5", 1, "failed"),
        ("fmr_ratio<=100", 0, "passed"),
        ("fnmr_ratio<=1.2", 3, "undecided"),
        ("fairness_discrepancy_rate>=0.5", 0, "passed"),
        ("fnmr_ratio_own>=1.01", 0, "passed"),
    ],
)
def test_gates_decide_how_it_ends(command, table, requirement, code, word):
    ended = command("verify", table, "--at", "0.1", "--require", requirement)
    assert ended.code == code, ended.out
    assert word in ended.out


def test_an_undefined_ratio_passes_no_gate(command, tmp_path):
    score = np.concatenate([np.linspace(0, 0.3, 300), np.linspace(0.7, 1, 300)])
    group = np.tile(["a", "b"], 300)
    columns = {"label": (score > 0.5).astype(int), "group1": group, "group2": group, "score": score}
    pyarrow.csv.write_csv(pyarrow.table(columns), tmp_path / "pairs.csv")
    for judge in ("interval", "value"):
        ended = command("verify", "pairs.csv", "--require", "fnmr_ratio<=5", "--judge", judge, "--page", "v.html")
        assert ended.code == 3
        assert "the lowest rate found is 0" in " ".join(ended.out.split())


def test_the_published_table_is_audited_on_folds_of_subjects(command, tmp_path):
    published(tmp_path, ("vgg16", "sphereface"))
    ended = command("verify", "bfw.csv", "--score", "sphereface", "--replicates", "100", "--json", "f.json")
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["folds"] == {"number": 5, "by": "table"}
    assert content["subjects"] == 80
    assert len(content["targets"][0]["threshold"]["by_fold"]) == 5
    assert command("verify", "bfw.csv", "--score", "sphereface", "--replicates", "100", "--no-folds").code == 0


def test_embeddings_are_audited(command, tmp_path):
    faces(tmp_path)
    ended = command("verify", "faces.npy", "--manifest", "faces.csv", "--group", "gender,skin", "--imposters", "200",
                    "--within", "gender", "--seed", "3", "--replicates", "100", "--targets", "0.1")  # fmt: skip
    assert ended.code == 0, ended.err
    assert "seed 3" in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.csv",), "There is no table none.csv"),
        (("pairs.csv", "--score", "arcface"), "Unknown column of pairs.csv 'arcface'"),
        (("pairs.csv", "--column", "group1"), "write what it is and its name"),
        (("pairs.csv", "--targets", "0.1,low"), "write rates with commas"),
        (("pairs.csv", "--targets", "2"), "between 0 and 1, as 0.001; 2 does not"),
        (("pairs.csv", "--at", "0.5"), "none of those asked for"),
        (("pairs.csv", "--accuracy", "best"), "Unknown kind of accuracy"),
        (("pairs.csv", "--require", "fmr<=x"), "is no requirement"),
        (("pairs.csv", "--require", "fmr_rati<=2"), "did you mean 'fmr_ratio'"),
        (("pairs.csv", "--judge", "eye"), "judged by 'interval' or 'value'"),
        (("pairs.csv", "--manifest", "m.csv"), "are for embeddings"),
        (("pairs.csv", "--page", "v.json"), "name the page .html"),
        (("pairs.pkl",), "is a pickle"),
        (("faces.npy",), "name the table that says whose they are"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(refused, table, words, said, tmp_path):
    assert said in refused("verify", *words)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["pairs.csv"]


def test_help_teaches_with_examples(command):
    ended = command("verify", "--help")
    assert ended.out.partition("Arguments")[0].count("  evenlens verify ") == 2
    assert "GATES" in ended.out.upper()
