"""The section on what the network was shown: there where tone was measured, with the numbers of the runs."""

import json
import math
from dataclasses import replace

import pytest

from evenlens.metrics import Interval
from evenlens.report import page, summary, views
from evenlens.run import Run
from evenlens.tone_leak import SHARES, Probe, ToneLeak
from tests.pages import Tags, check_drawn
from tests.test_page import EVEN, OTHER, PLAIN, THIRD, hostile, make

__all__ = ["hostile"]
HOSTILE = "<img src=x onerror=window.hacked=9>"


def interval(value, half=0.02):
    return Interval(value, value - half, value + half, 240)


def leak(half=0.01, ratio=1.1, grey=0.8, drawing=0.61, left_out=(), chance=0.5):
    shares = {str(share): interval(half, 0.002) for share in SHARES}
    several = tuple(
        Probe(name, interval(grey + more), interval(drawing + more), interval(grey - drawing), chance)
        for name, more in (("linear", 0), ("mlp", 0.05))
    )
    return ToneLeak(
        shares, shares, interval(0.2), interval(0.2), interval(ratio, 0.1), several, interval(-0.25), left_out
    )


def shown_to(run, view, found, **options):
    """Say in a run's folder that its network was shown a view."""
    toml = (run.folder / "config.toml").read_text()
    more = f'view = "{view}"\n'
    assert 'view = "rgb"\n' in toml
    toml = toml.replace('view = "rgb"\n', more)
    toml = toml.replace(
        "[data.view_options]\n", "[data.view_options]\n" + "".join(f"{k} = {v}\n" for k, v in options.items())
    )
    (run.folder / "config.toml").write_text(toml)
    content = json.loads((run.folder / "metrics.json").read_text())
    if found:
        content["tone_leak"] = found.as_dict()
    (run.folder / "metrics.json").write_text(json.dumps(content))
    return Run.open(run.folder)


def found_in(runs):
    return views.find(page.show(summary.summarise(runs), None))


def written(runs, tmp_path):
    path = page.write(runs, tmp_path / "report.html", title="T", pictures=False)
    return Tags(path.read_text(encoding="utf-8")).words, json.loads((tmp_path / "report.json").read_text())


def test_a_page_of_photographs_has_no_such_section(tmp_path):
    runs = [make(tmp_path, PLAIN, **EVEN), shown_to(make(tmp_path, OTHER, **EVEN), "grey", None)]
    words, content = written(runs, tmp_path)
    assert "What the network was shown" not in words
    assert content["views"] is None


def test_the_row_of_a_view_has_its_numbers_and_what_may_be_said(tmp_path):
    measured = leak(ratio=1.8, left_out=("tint 7",))
    runs = [make(tmp_path, PLAIN, **EVEN), shown_to(make(tmp_path, OTHER, **EVEN), "grey", measured)]
    [line] = views.lines(found_in(runs))
    assert line.title == "Greyscale"
    assert line.letters == "B"
    assert line.cells[0] == ("0.010", "0.008 to 0.012", "passed", "passed")
    assert line.cells[1] == ("1.80", "1.70 to 1.90", "not passed", "failed")
    assert line.cells[2] == ("80.0", "78.0 to 82.0", "", "")
    assert line.cells[3] == ("61.0", "59.0 to 63.0", "", "")
    assert line.cells[4] == ("19.00", "17.00 to 21.00", "not clear", "undecided")
    minus = "\N{MINUS SIGN}"
    assert line.cells[5][:2] == (f"{minus}0.25", f"{minus}0.27 to {minus}0.23")
    assert line.words == (
        "Passed: exposure. Not passed: ink. Not clear: probe. The drawings still tell something of the group. "
        "Group “tint 7” is left out, having training or validation images alone."
    )
    words, content = written(runs, tmp_path)
    assert "What the network was shown" in words
    assert line.words in words
    [read] = content["views"]
    assert (read["view"], read["rows"], read["options"]) == ("grey", ["B"], {})
    assert read["verdicts"] == measured.verdicts
    assert ToneLeak.from_dict(read) == measured


def test_rows_of_the_same_view_are_one_line_and_options_that_differ_are_named(tmp_path):
    first = [shown_to(make(tmp_path, PLAIN, seed=seed, **EVEN), "grey", leak(), gain=1.5) for seed in (1, 2)]
    runs = [
        *first,
        shown_to(make(tmp_path, OTHER, **EVEN), "grey", leak(), gain=1.5),
        shown_to(make(tmp_path, THIRD, **EVEN), "grey", leak(ratio=1.3), gain=2.0),
    ]
    found = found_in(runs)
    assert [(one.title, one.letters) for one in found] == [
        ("Greyscale [gain=1.5]", ["A", "B"]),
        ("Greyscale [gain=2.0]", ["C"]),
    ]
    assert [one.leak.ink_ratio.value for one in found] == [1.1, 1.3]


def test_the_figure_has_a_point_for_each_probe_and_a_line_for_chance(tmp_path):
    runs = [shown_to(make(tmp_path, PLAIN, **EVEN), "grey", leak(chance=0.25))]
    [figure] = views.all_figures(found_in(runs))
    assert figure.rows == [
        ["Greyscale", "grey", "linear probe", "80.0 %", "78.0 to 82.0 %"],
        ["Greyscale", "drawing", "linear probe", "61.0 %", "59.0 to 63.0 %"],
        ["Greyscale", "grey", "one hidden layer", "85.0 %", "83.0 to 87.0 %"],
        ["Greyscale", "drawing", "one hidden layer", "66.0 %", "64.0 to 68.0 %"],
    ]
    data = [figure.spec["datasets"][layer["data"]["name"]] for layer in figure.spec["layer"]]
    assert data[0] == [{"value": 0.25}]
    assert [value["high"] for value in data[1]] == pytest.approx([0.82, 0.63, 0.87, 0.68])


def test_undefined_is_said_and_a_probe_without_numbers_is_not_drawn(tmp_path):
    nothing = Interval(math.nan, math.nan, math.nan, 0)
    empty = tuple(Probe(name, nothing, nothing, nothing, math.nan) for name in ("linear", "mlp"))
    measured = replace(leak(), ink_ratio=nothing, probes=empty)
    runs = [shown_to(make(tmp_path, PLAIN, **EVEN), "a_view_of_tomorrow", measured)]
    found = found_in(runs)
    assert views.all_figures(found) == []
    [line] = views.lines(found)
    assert line.title == "a_view_of_tomorrow"
    assert line.cells[1][:3] == ("undefined", "", "")
    assert line.words == "Passed: exposure. Undefined: ink and probe."
    words, content = written(runs, tmp_path)
    assert line.words in words
    assert " nan " not in words
    assert content["views"][0]["ink_ratio"]["value"] is None


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_draws_and_hostile_names_stay_names(tmp_path, hostile, opened, width):
    measured = leak(left_out=(HOSTILE,))
    runs = [
        shown_to(make(tmp_path, PLAIN, num=1500), "grey", leak(ratio=3, drawing=0.8)),
        shown_to(make(tmp_path, OTHER, num=1500), "a_view", measured, size=2),
    ]
    path = page.write(runs, tmp_path / "report.html", title="T", pictures=False)
    tags = Tags(path.read_text(encoding="utf-8"))
    assert HOSTILE in tags.words
    tab = opened(path, width)
    assert tab.locator("#chart-tone-leak svg").count() == 1
    check_drawn(tab, path, tab.locator(".chart").count())
    assert tab.evaluate("window.hacked") is None
    ids = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
