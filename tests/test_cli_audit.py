"""The command `evenlens audit`: what it prints and writes, and how it ends."""

import json

import numpy as np
import pytest

from tests.test_audits import FRAME

COLUMNS = ("--label", "smiling", "--prediction", "predicted", "--group", "gender,race")


@pytest.fixture
def table(tmp_path):
    import pyarrow
    import pyarrow.csv

    pyarrow.csv.write_csv(pyarrow.table(FRAME), tmp_path / "predictions.csv")
    return "predictions.csv"


def test_groups_gaps_and_caveats_are_printed(command, table):
    ended = command("audit", table, *COLUMNS)
    assert ended.code == 0
    for words in ("female, A", "Equalized odds difference", "by chance", "Each image counts as independent"):
        assert words in ended.out


def test_everything_is_written_where_it_was_asked_for(command, table, tmp_path):
    ended = command(
        "audit", table, *COLUMNS, "--score", "score", "--cluster", "person", "--json", "out/f.json", "--out",
        "out/a.html", "--card", "out/card.md", "--junit", "out/j.xml", "--markdown", "out/s.md", "--require",
        "accuracy>=0.01",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    content = json.loads((tmp_path / "out/f.json").read_text())
    assert content["scores"]
    assert "<html" in (tmp_path / "out/a.html").read_text()
    assert "Model card" in (tmp_path / "out/card.md").read_text()
    assert "testsuite" in (tmp_path / "out/j.xml").read_text()
    before = (tmp_path / "out/s.md").read_text()
    command("audit", table, *COLUMNS, "--markdown", "out/s.md")
    assert (tmp_path / "out/s.md").read_text().startswith(before), "a summary is added to what other steps wrote"


@pytest.mark.parametrize(
    ("requirement", "code", "word"),
    [
        ("accuracy>=0.5", 0, "passed"),
        ("accuracy>=0.99", 1, "failed"),
        ("equalized_odds_difference<=0.1", 3, "undecided"),
    ],
)
def test_gates_decide_how_it_ends(command, table, requirement, code, word):
    ended = command("audit", table, *COLUMNS, "--require", requirement)
    assert ended.code == code
    assert word in ended.out


def test_another_model_on_the_same_images_is_compared(command, table, tmp_path):
    import pyarrow
    import pyarrow.csv

    pyarrow.csv.write_csv(pyarrow.table({**FRAME, "predicted": FRAME["smiling"]}), tmp_path / "other.csv")
    ended = command("audit", table, *COLUMNS, "--compare", "other.csv", "--json", "f.json")
    assert ended.code == 0
    comparison = json.loads((tmp_path / "f.json").read_text())["comparison"]
    assert comparison["differences"]["accuracy"]["low"] > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.csv", *COLUMNS], "There is no table nothing.csv"),
        (["predictions.csv"], "--label"),
        (["predictions.csv", *COLUMNS[:4], "--group", "gendre"], "did you mean 'gender'"),
        (["predictions.csv", *COLUMNS, "--require", "accuracy"], "is no requirement"),
        (["predictions.csv", *COLUMNS, "--require", "acuracy>1"], "did you mean 'accuracy'"),
        (["predictions.csv", *COLUMNS, "--judge", "eye"], "interval"),
        (["predictions.csv", *COLUMNS, "--confidence", "95"], "between 0 and 1"),
        (["predictions.csv", "--label", "smiling", "--prediction", "score", "--group", "race"], "score"),
        (["empty.csv", *COLUMNS], "must name the columns"),
        (["cut.parquet", *COLUMNS], "is damaged"),
        (["predictions.csv", *COLUMNS, "--positive", "perhaps"], "Unknown class"),
    ],
)
def test_what_cannot_be_audited_is_one_sentence(refused, table, tmp_path, words, sentence):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "empty.csv").write_text("")
    pyarrow.parquet.write_table(pyarrow.table(FRAME), tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-40])
    assert sentence in refused("audit", *words, "--json", "f.json")
    assert not (tmp_path / "f.json").exists()


def test_five_thousand_groups_are_one_sentence(refused, tmp_path):
    rows = [f"{k % 2},{k % 2},g{k}\n" for k in range(5000)]
    (tmp_path / "p.csv").write_text("y,p,g\n" + "".join(rows))
    assert "5,000 groups" in refused("audit", "p.csv", "--label", "y", "--prediction", "p", "--group", "g")


def test_names_are_text_in_the_terminal(command, tmp_path):
    half = np.tile([0, 1], 30)
    rows = "".join(f"{y},{y},[red]{'ab'[k % 2]}\n" for k, y in enumerate(half))
    (tmp_path / "p.csv").write_text(f"y,p,g\n{rows}")
    assert "[red]a" in command("audit", "p.csv", "--label", "y", "--prediction", "p", "--group", "g").out


RESULTS = """algorithm,race,gender,acc,n
plain,A,f,0.90,500
plain,A,m,0.90,500
plain,B,f,0.60,20
plain,B,m,0.92,400
better,A,f,0.88,500
better,A,m,0.88,500
better,B,f,0.60,20
"""


def test_a_table_of_results_is_looked_through(command, tmp_path):
    (tmp_path / "results.csv").write_text(RESULTS)
    words = ("--column", "group=race,gender", "--baseline", "plain", "--json", "lint.json")
    ended = command("lint", "results.csv", *words)
    codes = {finding["code"] for finding in json.loads((tmp_path / "lint.json").read_text())}
    assert {"L002", "L008"} <= codes, ended
    assert all(code in ended.out for code in codes)
    assert ended.code == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--column", "group"], "is not right"),
        (["--column", "groups=race"], "group"),
        (["--baseline", "plane"], "did you mean 'plain'"),
    ],
)
def test_a_table_that_cannot_be_looked_through_is_one_sentence(refused, tmp_path, words, sentence):
    (tmp_path / "results.csv").write_text(RESULTS)
    assert sentence in refused("lint", "results.csv", *words)
