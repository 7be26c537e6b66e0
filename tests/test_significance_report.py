"""What a report says of significance: in words, in tables, over tasks, and of repeats; and that its figures draw."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from evenlens import metrics, sweeps
from evenlens.errors import UserError
from evenlens.report import figures, page, significance, significance_page, significance_tasks, summary
from evenlens.report.figures import Shown
from evenlens.report.summary import Number, Row
from tests import test_page
from tests.pages import Tags, check_drawn
from tests.test_page import OTHER, PLAIN, THIRD, make

GAP, WORST, ACCURACY = "equalized_odds_difference", "worst_cell_accuracy", "accuracy"
NAMES = {PLAIN: "ERM (Vapnik, 1991)", OTHER: "Group DRO (Sagawa et al., 2020)", THIRD: "Upweighting"}


def number(values):
    apart = metrics.seed_interval(values)
    mean = float(np.mean(values))
    return Number(mean, mean - 0.01, mean + 0.01, tuple(values), apart.low, apart.high, apart.low, apart.high)


def run(seed, values):
    tested = {name: [None if math.isnan(value) else value] for name, value in values.items()}
    return SimpleNamespace(config=SimpleNamespace(seed=seed), metrics={"test": {"metrics": tested}})


def row(method, seeds, again=()):
    """A row from {seed: gap} or {seed: (gap, worst, accuracy)}; `again` are repeats of its first run likewise."""
    full = {seed: given if isinstance(given, tuple) else (given, 0.5, 0.7) for seed, given in seeds.items()}
    numbers = {name: number([values[k] for values in full.values()]) for k, name in enumerate((GAP, WORST, ACCURACY))}
    numbers["accuracy_equality_difference"] = numbers["worst_group_accuracy"] = numbers[GAP]
    runs = tuple(run(seed, dict(zip((GAP, WORST, ACCURACY), values, strict=True))) for seed, values in full.items())
    repeats = [()] * len(runs)
    repeats[0] = tuple(run(0, dict(zip((GAP, WORST, ACCURACY), values, strict=True))) for values in again)
    return Row(method, NAMES.get(method, method), method, runs, numbers, np.zeros((1, 1, 1)), 1.0, tuple(repeats))


def shown(*rows):
    return Shown(rows, figures.marks(rows), rows[0], None, GAP, WORST)


def spread(mean, *of_seeds, first=1):
    return {seed: mean + off for seed, off in enumerate(of_seeds, start=first)}


def found_of(*rows):
    return significance.find(shown(*rows))


# ---- the headline


def test_that_no_method_is_better_is_the_headline():
    found = found_of(row(PLAIN, spread(0.4, 0, 0.05, -0.05)), row(OTHER, spread(0.38, 0.06, -0.02, 0)))
    assert significance.headline(found) == "No method is significantly better than ERM (A)."
    said = " ".join(significance.sentences(found))
    # of three measures, two are the same in all seeds of both: they have a p-value of 1, and count
    assert "Three comparisons with the baseline over three seeds" in said
    assert "corrected together by the Holm method" in said
    reach = metrics.t_quantile(1 - 0.05 / 6, 2) / math.sqrt(3)
    assert f"{reach:.1f} times its spread" in said
    assert "may be there all the same" in said


@pytest.mark.parametrize(
    ("seeds", "said"),
    [(1, "with one seed"), (2, "with two seeds")],
    ids=["one seed", "two seeds"],
)
def test_what_cannot_be_said_is_the_headline(seeds, said):
    offs = [0, 0.01][:seeds]
    found = found_of(row(PLAIN, spread(0.4, *offs)), row(OTHER, spread(0.1, *offs)))
    assert significance.headline(found) == (
        f"Whether a method is better than ERM (A) cannot be said {said}: a test over seeds needs three at least."
    )
    assert {line.words for line in significance.against_lines(found)} == {"too few seeds"}
    assert {line.g for line in significance.against_lines(found)} == {"undefined"}
    assert all("fewer than three seeds of ERM (A) and Group DRO (B)" in line.words
               for line in significance.omnibus_lines(found))  # fmt: skip


def test_seeds_that_are_not_shared_are_named():
    found = found_of(row(PLAIN, spread(0.4, 0, 0.1, 0.2)), row(OTHER, spread(0.4, 0, 0.1, 0.3, first=3)))
    assert "cannot be said with one shared seed:" in significance.headline(found)


def test_differences_without_spread_are_not_called_significant():
    found = found_of(row(PLAIN, spread(0.4, 0, 0.1, 0.2)), row(OTHER, {1: (0.1, 0.4, 0.6), 2: (0.2, 0.4, 0.6),
                                                                     3: (0.3, 0.4, 0.6)}))  # fmt: skip
    assert "each difference is the same for every seed" in significance.headline(found)
    assert {line.words for line in significance.against_lines(found)} == {"no spread to test by"}


def test_a_better_and_a_worse_method_are_named_with_their_measure():
    seeds = (0, 0.002, -0.002, 0.001, -0.001)
    found = found_of(
        row(PLAIN, spread(0.4, *seeds)),
        row(OTHER, spread(0.1, 0.001, 0, -0.001, 0.002, 0)),
        row(THIRD, spread(0.6, 0.001, 0, -0.001, 0.002, 0)),
    )
    assert significance.headline(found) == (
        "Significantly better than ERM (A): Group DRO (B) by equalized odds difference."
    )
    assert "Significantly worse: Upweighting (C) by equalized odds difference." in significance.sentences(found)
    better, _, _, worse, _, _ = significance.against_lines(found)
    assert (better.words, better.tag, better.superiority) == ("significantly better", "passed", "100 %")
    assert (worse.words, worse.tag, worse.superiority) == ("significantly worse", "failed", "0 %")


def test_a_higher_accuracy_is_better_and_a_higher_gap_is_not():
    plain = {seed: (0.2 + seed / 1000, 0.5, 0.6 + seed / 1000) for seed in range(5)}
    other = {seed: (0.2, 0.5, 0.9 + seed % 2 / 1000) for seed in range(5)}
    found = found_of(row(PLAIN, plain), row(OTHER, other))
    assert significance.headline(found) == "Significantly better than ERM (A): Group DRO (B) by accuracy."


def test_a_method_without_seeds_enough_is_named_beside_those_that_have():
    found = found_of(
        row(PLAIN, spread(0.4, 0, 0.05, -0.05)), row(OTHER, spread(0.4, 0, 0.01, -0.03)), row(THIRD, spread(0.3, 0))
    )
    assert significance.headline(found) == (
        "No method is significantly better than ERM (A). Of Upweighting (C) it cannot be said: too few seeds, or none "
        "that both have."
    )


def test_one_method_is_compared_with_nothing():
    found = found_of(row(PLAIN, spread(0.4, 0, 0.05, -0.05)))
    assert significance.headline(found) == "One method was measured, ERM (A), so nothing is compared."
    assert significance.against_lines(found) == []


# ---- numbers


def test_p_values_are_corrected_over_all_methods_and_measures():
    generator = np.random.default_rng(0)
    rows = [row(method, {seed: tuple(generator.uniform(0.2, 0.6, 3)) for seed in range(4)})
            for method in (PLAIN, OTHER, THIRD)]  # fmt: skip
    found = found_of(*rows)
    raw = [item.test.p_value for item in found.against]
    assert len(raw) == 6
    assert [item.corrected for item in found.against] == pytest.approx(metrics.holm(raw).tolist())
    assert max(item.corrected for item in found.against) > max(raw)
    of_measures = [one.omnibus.p_value for one in found.measures]
    assert [one.corrected for one in found.measures] == pytest.approx(metrics.holm(of_measures).tolist())
    wide, alone = found.against[0].test, metrics.seed_interval(
        np.subtract(rows[1].numbers[GAP].seeds, rows[0].numbers[GAP].seeds), 1 - 0.05 / 6)  # fmt: skip
    assert (wide.low, wide.high) == pytest.approx((alone.low, alone.high))


def test_seeds_are_paired_by_number_not_by_place():
    found = found_of(row(PLAIN, {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.9}), row(OTHER, {2: 0.25, 3: 0.4, 5: 0.0, 4: 0.97}))
    assert found.against[0].test.difference == pytest.approx(0.04)
    assert found.against[0].test.n == 3


def test_many_methods_with_few_seeds_are_warned_of():
    rows = [row(f"method {k}", spread(0.4, 0, 0.01 * k, 0.02)) for k in range(11)]
    assert any("more than ten methods" in text for text in significance.sentences(found_of(*rows)))
    assert not any("more than ten methods" in text for text in significance.sentences(found_of(*rows[:10])))


# ---- repeats


def test_what_repeats_differ_by_is_a_floor_for_differences():
    again = [(0.43, 0.5, 0.7)]
    found = found_of(row(PLAIN, spread(0.4, 0, 0.05, -0.05), again), row(OTHER, spread(0.38, 0.06, -0.02, 0)))
    floor = found.measures[0].floor
    assert floor.largest == pytest.approx(0.03)
    first = found.against[0]
    assert first.below_floor == (abs(first.test.difference) < floor.limit / math.sqrt(3))
    assert first.below_floor
    said = " ".join(significance.sentences(found))
    assert "One run repeated another with the same seed and settings. These differ all the same" in said
    assert "equalized odds difference 3.00 points at most" in said
    assert "Within what repeats differ by: Group DRO (B) by equalized odds difference." in said
    assert not found.against[1].below_floor


def test_equal_repeats_and_no_repeats_are_told_apart():
    plain, other = spread(0.4, 0, 0.05, -0.05), row(OTHER, spread(0.38, 0.06, -0.02, 0))
    same = found_of(row(PLAIN, plain, [(0.4, 0.5, 0.7)]), other)
    assert "The numbers were the same" in significance.sentences(same)[-1]
    assert "No run was repeated" in significance.sentences(found_of(row(PLAIN, plain), other))[-1]


def ended(made, when):
    """Write down when a run ended."""
    path = made.folder / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"finished": when}))
    return type(made).open(made.folder)


def test_a_run_of_the_same_seed_in_another_store_is_a_repeat_and_no_further_seed(tmp_path):
    first, again = (ended(make(tmp_path / store, num=300), store) for store in ("one", "two"))
    second = ended(make(tmp_path / "one", seed=2, num=300), "one")
    assert first.config.identity() == again.config.identity()
    [found] = summary.summarise([first, second, again])
    assert [run.config.seed for run in found.runs] == [1, 2]
    assert [len(others) for others in found.repeats] == [1, 0]
    assert len(found.numbers[ACCURACY].seeds) == 2
    [alone] = summary.summarise([first, second])
    assert found.numbers == alone.numbers


def test_a_run_that_is_named_twice_is_no_repeat(tmp_path):
    made = ended(make(tmp_path, num=300), "now")
    [found] = summary.summarise([made, type(made).open(made.folder)])
    assert len(found.runs) == 1
    assert found.repeats == ((),)


# ---- the section of a page


@pytest.fixture(scope="module")
def three_seeds(tmp_path_factory):
    """Three methods with three seeds, made once: the second one has a smaller gap in each."""
    store = tmp_path_factory.mktemp("store")
    wrong = {PLAIN: (0.05, 0.45), OTHER: (0.2, 0.2), THIRD: (0.05, 0.45)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(store / "cache"))
        patch.setattr("evenlens.datasets.get", lambda name, *root: test_page.fake.Tiny)
        return [make(store, method, seed, of, num=600, correlation=0.0)
                for method, of in wrong.items() for seed in (1, 2, 3)]  # fmt: skip


def test_the_page_says_what_is_more_than_chance(three_seeds, tmp_path):
    written = page.write(three_seeds, tmp_path / "r.html", title="T", baseline=PLAIN, pictures=False)
    words = Tags(written.read_text(encoding="utf-8")).words
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["significance"]
    assert "What is more than chance" in words
    assert content["headline"] in words
    assert len(content["comparisons"]) == 6
    assert [one["metric"] for one in content["measures"]] == [GAP, WORST, ACCURACY]
    for part in ("p, corrected", "Hedges g", "Alexander-Govern", "Test images and seeds, apart"):
        assert part in words
    assert 0 <= content["measures"][0]["alexander_govern"]["p_value"] <= 1


def test_the_table_as_markdown_has_as_many_cells_in_each_line():
    found = found_of(row(PLAIN, spread(0.4, 0, 0.05, -0.05)), row(OTHER, spread(0.38, 0.06, -0.02, 0)))
    said, blank, *table = significance.to_markdown(found).splitlines()
    assert said.startswith("**No method is significantly better than ERM (A).**")
    assert blank == ""
    assert {line.count("|") for line in table} == {9}
    assert len(table) == 5


# ---- over tasks


def tasks(number, effects, seed=0):
    """Tasks in which methods have gaps of their own: effect by method, and noise."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (number, len(effects)))
    return {
        f"task {k}": shown(
            *(
                row(method, {1: (0.4 + effect + off, 0.5 - off, 0.7 - off)})
                for (method, effect), off in zip(effects.items(), noise[k], strict=True)
            )
        )
        for k in range(number)
    }


CLEAR = {PLAIN: 0.0, "a": -0.3, "b": -0.15, "c": -0.07, "d": -0.06}


def test_a_method_that_ranks_better_in_every_task_is_named():
    found = significance_tasks.compare(tasks(8, CLEAR))
    assert significance_tasks.headline(found).startswith(
        "Ranked significantly better than ERM (A) over eight tasks: a (B) by equalized odds difference"
    )
    gap = found.ranked[0]
    assert gap.test.average[1] == 1
    assert gap.placed.shape == (8, 5)
    assert [mark.title for mark in found.marks][:3] == [NAMES[PLAIN], "a", "b"]
    corrected = metrics.holm([one.against.p_value for one in found.ranked])
    assert np.array([one.against_corrected for one in found.ranked]) == pytest.approx(corrected, nan_ok=True)
    assert [one.corrected for one in found.ranked] == pytest.approx(
        metrics.holm([one.test.p_value for one in found.ranked]).tolist()
    )


def test_that_no_method_ranks_better_is_the_headline():
    found = significance_tasks.compare(tasks(6, dict.fromkeys(CLEAR, 0.0), seed=1))
    assert significance_tasks.headline(found) == "No method ranks significantly better than ERM (A) over six tasks."
    assert any("Holm" in text for text in significance_tasks.sentences(found))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: tasks(3, CLEAR), "cannot be said with three tasks: a test over tasks needs four at least"),
        (lambda: tasks(5, {PLAIN: 0, "a": -1}), "cannot be said of two methods: ranks are tested among three at least"),
        (lambda: tasks(1, CLEAR), "Nothing is ranked"),
        (lambda: {"x": shown(row(PLAIN, {1: 0.1})), "y": shown(row(OTHER, {1: 0.1}))}, "Nothing is ranked"),
    ],
    ids=["three tasks", "two methods", "one task", "nothing in common"],
)
def test_what_cannot_be_ranked_is_said(made, said, tmp_path):
    found = significance_tasks.compare(made())
    assert said in significance_tasks.headline(found)
    assert said in significance_tasks.to_markdown(found)
    assert (
        said in Tags(significance_page.write(found, tmp_path / "o.html", title="T").read_text(encoding="utf-8")).words
    )


def test_methods_that_a_task_has_not_and_undefined_measures_are_left_out_and_named():
    made = tasks(5, CLEAR)
    made["more"] = shown(*(row(method, {1: (0.4, math.nan, 0.7)}) for method in (*CLEAR, "e")))
    found = significance_tasks.compare(made)
    assert found.left_out == ["e"]
    by_measure = {one.measure: one for one in found.ranked}
    assert by_measure[ACCURACY].test.n == 6
    said = " ".join(significance_tasks.sentences(found))
    assert "Left out, because a task has none: e." in said
    if WORST in by_measure:
        assert "Left out by worst-cell accuracy, which is undefined there: more." in said


def test_the_page_over_tasks_holds_its_numbers_and_links(tmp_path):
    found = significance_tasks.compare(tasks(5, CLEAR))
    written = significance_page.write(found, tmp_path / "over.html", title="T", command="evenlens sweep x")
    tags = Tags(written.read_text(encoding="utf-8"))
    assert [a["href"] for tag, a in tags.tags if tag == "a" and a["href"].startswith("over")] == [
        f"over-{k}.html" for k in range(1, 6)
    ]
    content = json.loads((tmp_path / "over.json").read_text(encoding="utf-8"))
    assert content["headline"] in tags.words
    assert content["measures"][0]["critical_difference"] == pytest.approx(2.728 * math.sqrt(5 * 6 / 30), abs=0.001)
    assert content["measures"][0]["z"][0] is None
    with pytest.raises(UserError, match=r"name the page \.html"):
        significance_page.write(found, tmp_path / "over.json", title="T")


@pytest.mark.page
@pytest.mark.parametrize("width", [1280, 400], ids=["wide", "narrow"])
def test_the_diagrams_over_tasks_draw(opened, tmp_path, width):
    found = significance_tasks.compare(tasks(8, CLEAR | {'<script>"x"</script>': 0.3}))
    written = significance_page.write(found, tmp_path / "over.html", title="T")
    check_drawn(opened(written, width), written, 3)
    scripts = [tag for tag, _ in Tags(written.read_text(encoding="utf-8")).tags if tag == "script"]
    assert len(scripts) == 2, "a method's title became an element"


# ---- commands


SHORT = ("train.epochs=1", "data.num=300")


def test_a_report_of_several_tasks_has_a_page_each_and_one_over_all(command, tmp_path):
    for correlation in (0.5, 0.7):
        for method in (PLAIN, THIRD):
            command("train", "tiny", method, *SHORT, f"data.correlation={correlation}", "--runs", "made")
    said = command("report", "made", "--no-pictures")
    assert said.code == 0, said.err
    assert {path.name for path in tmp_path.glob("report*")} == {
        f"report{number}.{ending}" for number in ("", "-1", "-2") for ending in ("html", "json")
    }
    assert "cannot be said with two tasks" in " ".join(said.out.split())


def test_a_sweep_says_what_is_more_than_chance(command, tmp_path, monkeypatch):
    folders = [made.folder for method in (PLAIN, THIRD) for sensitive in ("tint", "half")
               for made in [make(tmp_path / "runs", method, sensitive=[sensitive])]]  # fmt: skip
    monkeypatch.setattr(
        sweeps, "sweep", lambda *given, **named: sweeps.Outcome(folders, {})
    )  # the runs are there already
    (tmp_path / "r.toml").write_text(f'dataset = "tiny"\nmethod = ["{PLAIN}", "{THIRD}"]\n')
    said = command("sweep", "r.toml", "--markdown", "--page", "r.html")
    assert said.code == 0, said.err
    assert said.out.count("cannot be said with one seed") == 2
    assert "### All tasks" in said.out
    assert {path.name for path in tmp_path.glob("*.html")} == {"r.html", "r-1.html", "r-2.html"}
