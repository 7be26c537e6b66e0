"""The page of a verification audit: what it says, of hostile data too, and that it draws."""

import json

import numpy as np
import pytest

from evenlens.errors import UserError
from evenlens.report import verify_figures, verify_page
from evenlens.verification import Pairs, verify
from tests.pages import Tags, check_drawn

HOSTILE = ("</script><script>window.hacked=1</script>", "{{ 7 * 7 }} '\" <img src=x onerror=window.hacked=2>", "it's")


def content_of(groups=HOSTILE, n=1500, seed=0, cross=True, subjects=True, **options):
    generator = np.random.default_rng(seed)
    num = len(groups)
    first = generator.integers(60 * num, size=n * num)
    second = np.where(np.arange(n * num) % 2, first, generator.integers(60 * num, size=n * num))
    kept = (np.arange(n * num) % 2 == 1) | (first != second)
    kept &= (first % num == second % num) | cross
    first, second = first[kept], second[kept]
    genuine = first == second
    score = generator.normal(size=len(first)) + 3 * genuine + 0.6 * (first % num)
    names = np.array(groups)
    made = Pairs.of(score, genuine, names[first % num], names[second % num],
                    subjects=(first, second) if subjects else None)  # fmt: skip
    found = verify(made, targets=options.pop("targets", (0.1, 0.01)), replicates=100, **options)
    return json.loads(json.dumps(found.as_dict(), allow_nan=False))


def test_the_page_says_what_the_findings_say(tmp_path):
    content = content_of(title="<b>Ours</b>")
    path = verify_page.write(content, tmp_path / "out" / "v.html")
    text = path.read_text(encoding="utf-8")
    page = Tags(text)
    words = page.words.replace("\N{NO-BREAK SPACE}", " ")
    assert "<b>Ours</b>" in words
    for sentence in (*content["finding"], *content["caveats"]):
        assert " ".join(sentence.split()) in words
    for group in content["groups"]:
        rate = group["at"][0]["pooled"]["fmr"]["value"]
        assert f"{float(f'{100 * rate:.3g}'):.10g} %" in words
    assert "folds of subjects, by a hash" in words
    assert not any(tag == "img" for tag, _ in page.tags)
    assert text.count("<script") == 2
    assert not any("http" in str(value) for _, given in page.tags for name, value in given.items() if name == "src")
    again = json.loads((tmp_path / "out" / "v.json").read_text())
    assert verify_page.render(again, []) == verify_page.render(content, [])


def test_every_number_of_a_figure_stands_in_its_table():
    content = content_of()
    for figure in verify_figures.all_figures(content, 0):
        assert len(figure.rows) >= 3
        assert all(len(row) == len(figure.head) for row in figure.rows), figure.key


def test_figures_are_of_what_was_measured():
    figures = {figure.key: figure for figure in verify_figures.all_figures(content_of(cross=False), 0)}
    assert "verify-matrix" not in figures, "no pair is of two subgroups"
    assert set(figures) == {"verify-fmr", "verify-fnmr", "verify-det", "verify-scores"}
    many = content_of(tuple(f"g{k}" for k in range(14)), n=400)
    drawn = {figure.key: figure for figure in verify_figures.all_figures(many, 0)}
    assert "Drawn are 12 subgroups" in drawn["verify-det"].caption
    assert len(drawn["verify-det"].rows) == 15, "the table has all"


def test_what_is_undefined_is_said_and_drawn_by_nobody(tmp_path):
    content = content_of(("only", "lonely"), subjects=False, targets=(0.1, 1e-5))
    for group in (content["groups"][1],):
        for at in group["at"]:
            for kind in ("pooled", "own"):
                at[kind]["fmr"] = dict.fromkeys(("value", "low", "high", "n"))
    figures = {figure.key: figure for figure in verify_figures.all_figures(content, 0)}
    assert len(figures["verify-fmr"].rows) == 1
    words = Tags(verify_page.write(content, tmp_path / "v.html").read_text(encoding="utf-8")).words
    assert "undefined" in words
    assert "(not resolvable)" in words
    assert "each pair taken for independent" in words


def test_requirements_are_shown_with_what_became_of_them(tmp_path):
    verdict = {"requirement": "fmr_ratio<=2", "outcome": "failed", "why": "its 95 % interval is 3 to 4"}
    path = verify_page.write(content_of(), tmp_path / "v.html", [verdict])
    assert "✗ failed fmr_ratio<=2" in Tags(path.read_text(encoding="utf-8")).words
    kept = json.loads(path.with_suffix(".json").read_text())
    assert "✗ failed" in Tags(verify_page.write(kept, tmp_path / "w.html").read_text(encoding="utf-8")).words


def test_other_content_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the findings of a verification audit"):
        verify_page.write({"format": "other"}, tmp_path / "v.html")
    with pytest.raises(UserError, match="would be overwritten"):
        verify_page.write(content_of(), tmp_path / "v.json")
    assert not list(tmp_path.iterdir())


def test_a_ratio_without_bound_is_said_as_at_least():
    assert verify_page._ratio({"value": None, "low": 3.0, "high": None, "n": 2}) == ("undefined", "at least 3.00")
    assert verify_page._ratio({"value": 4.0, "low": 3.0, "high": 12.0, "n": 2}) == ("4.00", "3.00 to 12")
    assert verify_page._ratio({"value": None, "low": None, "high": None, "n": 2}) == ("undefined", "")


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_draws_asks_for_nothing_and_is_not_hacked(opened, tmp_path, width):
    path = verify_page.write(content_of(), tmp_path / "v.html")
    tab = opened(path, width)
    check_drawn(tab, path, 5)
    assert tab.evaluate("window.hacked") is None
