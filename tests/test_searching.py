"""Search with an equal budget: what is drawn, what is chosen by validation images alone, score against budget."""

import hashlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from evenlens import config, methods, plan, recipes, run, search_curve, searching, sweeps
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.method import Range
from evenlens.recipes import expand
from evenlens.report import page, search, summary
from evenlens.selecting import Rule
from evenlens.workers import Engine
from tests import worker
from tests.pages import Tags, check_drawn

SEARCHED, PLAIN = "group_dro", "erm"
SMALL = {"num": 400, "correlation": 0.7}


def recipe(**content):
    return {"dataset": "tiny", "method": SEARCHED, "search": 4, "data": SMALL, **content}


def drawn(*, of=SEARCHED, **content):
    """What each draw of a method is, in a recipe."""
    [found] = [each for each in expand(recipe(**content)).searches if each.method == of]
    return [draw.settings for draw in found.draws]


# ---- what is drawn


def test_one_more_method_seed_or_draw_changes_no_other_draw():
    alone = drawn()
    assert len({json.dumps(settings) for settings in alone}) == 4
    assert drawn(method=[PLAIN, "flac", SEARCHED]) == alone
    assert drawn(seed=[1, 2, 3]) == alone
    assert drawn(search=7)[:4] == alone
    assert drawn(train={"epochs": 3}) == alone
    fixed = drawn(options={SEARCHED: {"adjustment": 2.0}})
    assert fixed[1:] == [{"step_size": settings["step_size"]} for settings in alone[1:]]


def test_another_seed_of_the_search_data_set_or_question_draws_others():
    several = [drawn(), drawn(search_seed=2), drawn(dataset="avatars", data={}), drawn(data={**SMALL, "seed": 2})]
    assert len({json.dumps(settings[1]) for settings in several}) == 4


def test_another_process_draws_the_same():
    """These numbers were drawn by another process: a draw stays what it is, on every machine and in every version."""
    assert searching.share("weight", 3) == 0.79158997700762
    digest = hashlib.blake2b(b'["weight", 3]', digest_size=8).hexdigest()
    assert searching.share("weight", 3) == pytest.approx(int(digest, 16) / 2**64)
    assert drawn()[1] == {"step_size": 0.05999, "adjustment": 0.04992}


def test_the_numbers_of_a_hash_are_spread_evenly_and_below_one():
    numbers = [searching.share("weight", number) for number in range(2000)]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    assert stats.kstest(numbers, "uniform").pvalue > 0.01


@pytest.mark.parametrize(("where", "whole", "spread"), [
    (Range(-1.0, 3.0), False, stats.uniform(-1, 4)),
    (Range(0.01, 10.0, log=True), False, stats.loguniform(0.01, 10)),
    (Range(1, 20), True, None), (Range(2, 100, log=True), True, None),
], ids=["linear", "logarithmic", "whole", "whole-logarithmic"])  # fmt: skip
def test_a_value_lies_in_its_range_and_is_spread_as_it_says(where, whole, spread):
    values = [searching.place(where, searching.share("v", number), whole) for number in range(4000)]
    assert where.low <= min(values)
    assert max(values) <= where.high
    if spread:
        assert stats.kstest(values, spread.cdf).pvalue > 0.01
        return
    assert all(isinstance(value, int) for value in values)
    ends = np.arange(where.low, where.high + 2)
    wanted = np.diff(np.log(ends)) / np.log(ends[-1] / ends[0]) if where.log else np.diff(ends) / (ends[-1] - ends[0])
    counts = np.bincount(values, minlength=int(where.high) + 1)[int(where.low) :]
    assert stats.chisquare(counts, wanted * len(values)).pvalue > 0.01


@pytest.mark.parametrize("whole", [False, True], ids=["real", "whole"])
def test_the_ends_of_a_range_are_not_left(whole):
    for where in (Range(1.0, 20.0), Range(1.0, 20.0, log=True)):
        assert searching.place(where, 0.0, whole) == 1
        assert searching.place(where, 1 - 2**-53, whole) == 20


def test_every_range_of_every_method_can_be_drawn_from():
    everything = [name for name in methods.names() if methods.get(name).search]
    assert len(everything) > 20
    for name in everything:
        for where in methods.get(name).search.values():
            assert where.low < where.high
            assert where.low > 0 or not where.log


def test_the_first_draw_is_the_defaults_and_what_has_no_range_is_run_once_a_seed():
    read = expand(recipe(method=[PLAIN, SEARCHED], seed=[1, 2], search=3))
    plain, searched = read.searches
    assert [len(draw.configs) for draw in plain.draws] == [2]
    assert [len(draw.configs) for draw in searched.draws] == [2, 2, 2]
    assert searched.draws[0].settings == {}
    alone = plan.complete(make_config("tiny", SEARCHED, {f"data.{key}": value for key, value in SMALL.items()}))
    assert searched.draws[0].configs[0].identity() == alone.identity()
    assert {config.identity() for config in read.configs} == {
        config.identity() for each in read.searches for draw in each.draws for config in draw.configs
    }
    assert [config.options for config in read.configs[:4]] == [c.options for e in read.searches for c in
                                                              e.draws[0].configs]  # fmt: skip


def test_what_the_recipe_sets_is_not_searched_and_its_alternatives_are_rows_of_their_own():
    read = expand(recipe(options={SEARCHED: {"step_size": [0.01, 0.02]}}))
    assert [list(each.ranges) for each in read.searches] == [["adjustment"], ["adjustment"]]
    for each, fixed in zip(read.searches, (0.01, 0.02), strict=True):
        assert {config.options["step_size"] for draw in each.draws for config in draw.configs} == {fixed}
    assert len(expand(recipe(options={SEARCHED: {"step_size": 0.1, "adjustment": 1.0}})).configs) == 1


def test_a_draw_that_the_method_refuses_is_drawn_again():
    settings = drawn(of="jtt", method="jtt", search=12, train={"epochs": 6})
    assert {each["first_epochs"] for each in settings[1:]} <= set(range(1, 6))
    longer = drawn(of="jtt", method="jtt", search=12, train={"epochs": 30})
    same = [a == b for a, b in zip(settings, longer, strict=True)]
    assert all(kept == (each.get("first_epochs", 1) < 6) for kept, each in zip(same, longer, strict=True))


def test_ranges_that_hold_nothing_allowed_end_in_a_sentence(monkeypatch):
    monkeypatch.setattr(methods.get("jtt"), "search", {"first_epochs": Range(50, 60)})
    with pytest.raises(UserError, match=r"None of 100 draws from the ranges of jtt can be used.*give it more epochs"):
        drawn(of="jtt", method="jtt")


@pytest.mark.parametrize(("wrong", "said"), [
    ({"search": 0}, "search=0 is not allowed"), ({"search": True}, "search=True is not allowed"),
    ({"search": [2, 3]}, r"search=\[2, 3\] is not allowed"), ({"search_seed": -1}, "search_seed=-1 is not allowed"),
    ({"select": "last"}, "select=last scores nothing"), ({"method": "emr"}, "Unknown method 'emr'"),
], ids=["none", "boolean", "list", "seed", "last", "name"])  # fmt: skip
def test_a_search_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        expand(recipe(**wrong))


def test_a_seed_of_a_search_without_one_is_refused():
    content = recipe(search_seed=2)
    del content["search"]
    with pytest.raises(UserError, match="search_seed is of a search"):
        expand(content)
    content.pop("search_seed")
    assert list(expand(content).searches) == []


# ---- what is chosen


class Told:
    """A run that knows its validation score; whoever asks for anything of its test images fails the test."""

    def __init__(self, config, val, rule="unbiased_accuracy"):
        pinned = {"fingerprint": f"{config.data.seed:016x}"}
        self.config = config.model_copy(update={"data": config.data.model_copy(update=pinned)})
        self.folder = Path(config.identity())
        self.log = [{"epoch": 1, f"val_{rule}": 9.0}, {"epoch": 2, f"val_{rule}": val}]
        self.metrics = {"selected_epoch": 2}

    def predictions(self, part):
        raise AssertionError(f"the choice read {part}")


def chosen(scores, **content):
    """Number of the draw that is chosen, of scores by draw and seed; None is a run that failed."""
    [each] = expand(recipe(search=len(scores), seed=[1, 2], **content)).searches
    runs = [
        Told(config, val, each.rule.name)
        for draw, values in zip(each.draws, scores, strict=True)
        for config, val in zip(draw.configs, values, strict=True)
        if val is not None
    ]
    [found] = searching.choose([each], runs[::-1])
    return found.chosen and found.chosen.draw.number


def test_the_draw_with_the_best_mean_over_seeds_on_validation_images_is_chosen_and_no_test_number_is_read():
    assert chosen([(0.5, 0.5), (0.9, 0.0), (0.6, 0.5), (0.1, 0.2)]) == 3


def test_of_equal_draws_the_earlier_one_is_chosen():
    assert chosen([(0.5, 0.75), (0.75, 0.5), (0.25, 0.25)]) == 1


def test_where_less_is_better_the_lowest_is_chosen():
    assert chosen([(0.5, 0.5), (0.4, 0.4), (0.6, 0.6)], select="equalized_odds_difference") == 2
    assert chosen([(0.5, 0.5), (0.4, 0.4), (0.3, 0.6)], select="cross_entropy") == 2


def test_a_draw_with_a_run_that_failed_cannot_be_chosen():
    assert chosen([(0.5, 0.5), (0.9, None), (0.4, 0.4)]) == 1
    assert chosen([(None, 0.5), (0.9, None)]) is None


def test_each_task_has_its_own_searches():
    read = expand(recipe(search=2, method=[PLAIN, SEARCHED], data={**SMALL, "seed": [1, 2]}))
    runs = [
        Told(config, 0.5)
        for each in read.searches
        for draw in each.draws
        for config in draw.configs
        if (config.method, config.data.seed) != (SEARCHED, 2)  # its runs failed
    ]
    found = searching.choose(read.searches, runs)
    for seed in (1, 2):
        one = next(told for told in runs if told.config.data.seed == seed)
        here = searching.of_task(found, one)
        assert [each.search.method for each in here] == [PLAIN, SEARCHED]
        assert {each.search.draws[0].configs[0].data.seed for each in here} == {seed}
        assert [each.chosen is None for each in here] == [False, seed == 2]


def test_a_log_without_the_score_is_called_damaged(tmp_path):
    [each] = expand(recipe(search=1)).searches
    told = Told(each.draws[0].configs[0], 0.5, rule="accuracy")
    with pytest.raises(UserError, match=r"damaged .it has no val_unbiased_accuracy of the kept epoch"):
        searching.choose([each], [told])


# ---- draws that look at the scores so far


def searched_by_tpe(score, budget=12, **content):
    """What is drawn where a configuration's validation score is `score(step_size)`, until nothing more is drawn."""
    read = expand(recipe(search=budget, search_sampler="tpe", seed=[1, 2], **content))
    while True:
        runs = [Told(each, score(each.options["step_size"])) for each in read.configs if each.method == SEARCHED]
        runs += [Told(each, 0.5) for each in read.configs if each.method != SEARCHED]
        runs = [told for told in runs if told.log[1]["val_unbiased_accuracy"] is not None]
        more = recipes.go_on(read, runs)
        if more is None:
            [found] = [each for each in searching.choose(read.searches, runs) if each.search.method == SEARCHED]
            return found
        assert len(more.configs) > len(read.configs)
        read = more


def settings_of(found):
    return [trial.draw.settings for trial in found.trials]


def peak(step_size):
    """Best at a step of 0.02, which a person would not know."""
    return 1 - abs(math.log10(step_size / 0.02))


def test_tpe_spends_the_budget_and_draws_more_where_scores_were_good():
    ranges = methods.get(SEARCHED).search
    found = searched_by_tpe(peak, budget=24, options={SEARCHED: {"adjustment": 0.0}})
    assert len(found.trials) == 24
    assert settings_of(found)[0] == {}
    drawn_at = [each["step_size"] for each in settings_of(found)[1:]]
    assert all(ranges["step_size"].low <= at <= ranges["step_size"].high for at in drawn_at)
    early, late = (float(np.mean([peak(at) for at in part])) for part in (drawn_at[:6], drawn_at[-6:]))
    assert late > early


def test_tpe_draws_the_same_again_whatever_other_methods_there_are_and_others_by_another_seed_or_score():
    alone = settings_of(searched_by_tpe(peak))
    assert settings_of(searched_by_tpe(peak)) == alone
    assert settings_of(searched_by_tpe(peak, method=[PLAIN, SEARCHED, "flac"])) == alone
    assert settings_of(searched_by_tpe(peak, search_seed=2)) != alone
    flat = settings_of(searched_by_tpe(lambda step_size: step_size))
    assert flat[: searching.STARTUP] == alone[: searching.STARTUP]
    assert flat != alone


def test_tpe_goes_on_after_a_draw_that_failed():
    found = searched_by_tpe(lambda step_size: None if step_size < 0.01 else 0.5, budget=8)
    assert len(found.trials) == 8


def test_the_curve_of_draws_that_have_an_order_is_the_best_so_far(told):
    found = found_with([0.5, 0.4, 0.7, math.nan, 0.6], [0.1, 0.2, 0.3, 0.4, 0.5])
    found = replace(found, search=replace(found.search, sampler="tpe"))
    points = search_curve.curve(found)
    assert [point.val[0] for point in points] == [0.5, 0.5, 0.7, 0.7, 0.7]
    assert [point.test[0] for point in points] == [0.1, 0.1, 0.3, 0.3, 0.3]
    assert all(math.isnan(point.val[1]) for point in points)


@pytest.mark.parametrize("content", [{"search_sampler": "tpr"}, {"search_sampler": 3}], ids=["name", "number"])
def test_an_unknown_sampler_is_refused(content):
    with pytest.raises(UserError, match="search_sampler"):
        expand(recipe(**content))


@pytest.mark.slow
def test_a_sweep_makes_the_draws_of_tpe_one_after_the_other_with_the_same_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("evenlens.workers.local._work", worker.work)
    short = {"epochs": 1, "batch_size": 64}
    read = expand(recipe(search=4, search_sampler="tpe", seed=[1, 2], train=short, precision="fp32"))
    told = []
    whole, outcome = sweeps.sweep_recipe(
        read, tmp_path / "runs", engine=Engine(jobs=2), listen=lambda event: told.append((event.kind, event.job.place))
    )
    assert (len(read.configs), len(whole.configs)) == (2, 8)
    assert (outcome.made, len(outcome.folders)) == (8, 8)
    waiting = [place for kind, place in told if kind == "waiting"]
    assert len(waiting) == len({*waiting}) == 8
    assert told.index(("waiting", waiting[2])) > max(told.index(("done", place)) for place in waiting[:2])
    workers = {line.split()[1] for line in (tmp_path / "made.txt").read_text().splitlines()}
    assert len(workers) == 2
    again, outcome = sweeps.sweep_recipe(read, tmp_path / "runs")
    assert (again.configs, outcome.made) == (whole.configs, 0)


# ---- score against budget


def found_with(val, test, rule="unbiased_accuracy"):
    """A search whose draws have these scores; NaN in `val` is a draw that failed."""
    trials = [
        searching.Trial(
            searching.Draw(k + 1, {}, (None,)),
            () if math.isnan(v) else (SimpleNamespace(test=t),),
            () if math.isnan(v) else (v,),
        )
        for k, (v, t) in enumerate(zip(val, test, strict=True))
    ]
    made = searching.Search(SEARCHED, len(val), 1, {}, (), Rule.of(rule))
    return searching.Found(made, tuple(trials), trials[0])


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(search_curve, "test_score", lambda run: run.test)


def by_enumeration(val, test, budget, lower=False):
    """Try every set of draws that holds the defaults, and choose the best of each, the earlier one of equals."""
    results = []
    for others in itertools.combinations(range(1, len(val)), budget - 1):
        best = 0
        for k in others:
            if not math.isnan(val[k]) and (val[k] < val[best] if lower else val[k] > val[best]):
                best = k
        results.append((val[best], test[best]))
    return np.mean(results, axis=0)


@pytest.mark.parametrize("lower", [False, True], ids=["higher", "lower"])
def test_score_against_budget_is_the_mean_over_all_sets_of_draws(told, lower):
    val = [0.5, 0.7, 0.4, 0.7, math.nan, 0.9, 0.6]
    test = [0.45, 0.71, 0.6, 0.2, math.nan, 0.8, 0.55]
    points = search_curve.curve(
        found_with(val, test, "equalized_odds_difference" if lower else "unbiased_accuracy"), 200
    )
    assert [point.budget for point in points] == list(range(1, 8))
    for point in points:
        value = by_enumeration(val, test, point.budget, lower)
        assert (point.val[0], point.test[0]) == pytest.approx(tuple(value), abs=1e-12)
        assert point.val[1] - 1e-12 <= point.val[0] <= point.val[2] + 1e-12 or point.budget == len(val)
    best = min(val, key=lambda v: math.inf if math.isnan(v) else v) if lower else 0.9
    assert points[-1].val[0] == pytest.approx(best)
    assert points[0].val == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("num", [1, 2, 5, 12])
def test_the_best_of_m_draws_without_replacement_and_the_papers_formula_with_it(num):
    values = np.sort(np.random.default_rng(num).random(num))
    ours = search_curve.best_of(num) @ values
    for m in range(1, num + 1):
        # without: i-th order statistic is the maximum of m of num with probability C(i-1, m-1) / C(num, m)
        sets = [max(part) for part in itertools.combinations(values, m)]
        assert ours[m - 1] == pytest.approx(np.mean(sets))
        # with, as the paper has it: E = sum of v_i (P(V <= v_i)^m - P(V < v_i)^m), never more than without
        paper = sum(v * ((i / num) ** m - ((i - 1) / num) ** m) for i, v in enumerate(values, start=1))
        if num**m <= 4000:
            assert paper == pytest.approx(np.mean([max(part) for part in itertools.product(values, repeat=m)]))
        assert paper <= ours[m - 1] + 1e-12
    assert search_curve.best_of(num).sum(axis=1) == pytest.approx(1)


def test_without_replacement_is_unbiased_and_with_it_is_not():
    """The best of 3 uniform numbers is 3/4 on average; estimated from 6 of them, again and again."""
    values = np.sort(np.random.default_rng(0).random((20000, 6)), axis=1)
    m, i = 3, np.arange(1, 7)
    without = values @ search_curve.best_of(6)[m - 1]
    with_it = values @ ((i / 6) ** m - ((i - 1) / 6) ** m)
    error = 4 * without.std() / math.sqrt(len(values))
    assert without.mean() == pytest.approx(0.75, abs=error)
    assert with_it.mean() < 0.75 - error


def test_intervals_are_those_of_drawing_the_draws_anew(told):
    random = np.random.default_rng(3)
    val, test = random.random(9), random.random(9)
    points = search_curve.curve(found_with(val.tolist(), test.tolist()), 2000)
    budget, plain = 4, []
    for _ in range(2000):
        again = [0, *(1 + random.integers(8, size=8))]
        plain.append(by_enumeration(val[again], test[again], budget))
    low, high = np.percentile(plain, (2.5, 97.5), axis=0)
    point = points[budget - 1]
    assert (*point.val[1:], *point.test[1:]) == pytest.approx((low[0], high[0], low[1], high[1]), abs=0.03)


def test_a_search_whose_defaults_failed_has_no_curve_and_one_draw_has_one_point(told):
    assert search_curve.curve(found_with([math.nan, 0.5], [math.nan, 0.5])) == []
    assert search_curve.curve(found_with([0.5], [0.4])) == [search_curve.Point(1, (0.5,) * 3, (0.4,) * 3)]


# ---- all of it


TINY = """
title = "Three draws"
dataset = "avatars"
method = ["erm", "group_dro"]
seed = [1, 2]
search = 3
precision = "fp32"
data = {size = 16, num_train = 200, num_val = 80, num_test = 80}
train = {epochs = 2, batch_size = 64}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("searched")


@pytest.fixture
def searched(home, monkeypatch, in_threads):
    """A real search, made once: the recipe, its runs' folder, and the runs."""
    monkeypatch.setenv("EVENLENS_CACHE", str(home / "cache"))
    (home / "recipe.toml").write_text(TINY)
    read = recipes.read_recipe(home / "recipe.toml")
    return read, home / "runs", [run.train(config, home / "runs") for config in read.configs]


def told_as(runs, number, val, test):
    """Say that both seeds of a draw have these scores, on validation and on test images."""
    for folder in {each.folder for each in runs.trials[number - 1].runs}:
        entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**entry, "val_unbiased_accuracy": val}) + "\n" for entry in entries)
        (folder / "log.jsonl").write_text(text)
        content = json.loads((folder / "metrics.json").read_text())
        content["test"]["metrics"]["unbiased_accuracy"] = [test, test, test]
        (folder / "metrics.json").write_text(json.dumps(content))


def test_a_search_makes_each_run_once_and_again_makes_none(searched, monkeypatch):
    read, runs, made = searched
    assert len(read.configs) == len({each.folder for each in made}) == 2 + 3 * 2
    monkeypatch.setattr("evenlens.workers.Engine.start", None)
    outcome = sweeps.sweep(read.configs, runs)
    assert (outcome.made, len(outcome.folders)) == (0, 8)
    more = expand({**config.read_toml(runs.parent / "recipe.toml"), "search": 4, "method": ["group_dro", "jtt"]})
    there = searching.choose(more.searches, made)
    assert [len(trial.runs) for trial in there[0].trials] == [2, 2, 2, 0]


def test_the_scores_are_those_of_the_run_on_either_part(searched):
    _, _, made = searched
    for each in made:
        counts = np.array(each.metrics["val"]["counts"])
        cells = [counts[g, c, c] / counts[g, c].sum() for g, c in np.ndindex(counts.shape[:2]) if counts[g, c].sum()]
        assert searching.val_score(each) == pytest.approx(np.mean(cells))
        value = each.metrics["test"]["metrics"]["unbiased_accuracy"][0]
        assert search_curve.test_score(each) == pytest.approx(value, abs=1e-6)
    config = made[0].config.model_copy(update={"select": "cross_entropy"})
    seen = made[0].predictions("test")
    logits = np.stack([seen["logit.0"], seen["logit.1"]], axis=1).astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -logs[np.arange(len(logs)), seen["label"]].mean()
    assert search_curve.test_score(SimpleNamespace(
        config=config, predictions=made[0].predictions, metrics=made[0].metrics
    )) == pytest.approx(wanted, abs=1e-5)  # fmt: skip


def test_the_page_says_how_each_row_was_chosen_and_the_json_holds_every_draw(
    searched, home, command, opened, monkeypatch
):
    monkeypatch.setenv("EVENLENS_CACHE", str(home / "cache"))
    read, runs, made = searched
    before = searching.choose(read.searches, made)[1]
    told_as(before, 1, 0.5, 0.99)
    told_as(before, 2, 0.75, 0.01)
    told_as(before, 3, 0.625, 0.99)
    ended = command("sweep", home / "recipe.toml", "--runs", runs, "--page", home / "report.html")
    assert ended.code == 0, ended.err
    settings = before.trials[1].draw.settings
    assert f"group_dro: draw 2 of 3, step_size={settings['step_size']}, adjustment={settings['adjustment']}; 0.750" in (
        ended.out
    )
    assert "No test image was looked at to choose it." in ended.out
    content = json.loads((home / "report.json").read_text())
    shown = {row["method"]: {each["id"] for each in row["runs"]} for row in content["rows"]}
    assert shown["group_dro"] == {each.metrics["id"] for each in before.trials[1].runs}
    assert (content["search"]["draws"], content["search"]["seed"]) == (3, 1)
    plain, searched_row = sorted(content["search"]["rows"], key=lambda row: row["method"])
    assert (len(plain["draws"]), plain["ranges"], plain["chosen"]) == (1, {}, 1)
    assert [draw["val"] for draw in searched_row["draws"]] == [0.5, 0.75, 0.625]
    assert [draw["settings"] for draw in searched_row["draws"]] == [trial.draw.settings for trial in before.trials]
    assert searched_row["chosen"] == 2
    against = [point["val"][0] for point in searched_row["score_against_budget"]]
    assert against == pytest.approx([0.5, (0.75 + 0.625) / 2, 0.75])
    words = Tags((home / "report.html").read_text(encoding="utf-8")).words
    assert "Every method was given 3 draws: its defaults, and 2 draws from its own ranges." in words
    assert "With nothing to search, and so run once a seed: erm." in words
    tab = opened(home / "report.html")
    assert tab.locator("#chart-budget-val-0 svg").count() == 1
    check_drawn(tab, home / "report.html", tab.locator(".chart").count())


def test_a_page_without_a_search_has_no_such_section(searched, tmp_path):
    _, _, made = searched
    page.write(made[:2], tmp_path / "report.html", title="T", pictures=False)
    assert "How each row was chosen" not in Tags((tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert json.loads((tmp_path / "report.json").read_text())["search"] is None


def test_the_section_says_which_draws_failed_and_which_methods_have_no_row(searched):
    read, _, made = searched
    of_plain = [each for each in made if each.config.method == PLAIN]
    first = read.searches[1].draws[1].configs[0]
    some = [each for each in made if each.config.options != first.options or each.config.seed == 1]
    assert len(some) == len(made) - 1
    [_, found] = searching.choose(read.searches, some)
    failed = "has a run that failed or is not there: it cannot be chosen"
    assert f"Of group_dro, draw 2 {failed}." in search.sentences([found])
    none = searching.choose(read.searches, of_plain)
    no_row = f"Of group_dro, draw 1, 2, 3 {failed}, and no other is complete, so that there is no row."
    assert search.sentences(none)[-1] == no_row
    rows = page.show(summary.summarise(of_plain), None)
    assert [each.found.search.method for each in search.find(rows, none)] == [PLAIN]
    assert searching.of_task(none, of_plain[0]) == none


def test_the_figures_of_many_methods_have_their_intervals_in_the_table_alone(searched, told, monkeypatch):
    read, _, made = searched
    monkeypatch.setattr(search_curve, "test_score", lambda run: 0.5)
    found = searching.choose(read.searches, made)
    rows = page.show(summary.summarise([each for f in found for each in f.chosen.runs]), None)
    two = search.find(rows, found)
    [val, test] = search.all_figures(two)
    assert "A dashed line is a method with nothing to search." in val.caption
    assert "area" in json.dumps(val.spec["layer"])
    assert (val.head, len(val.rows)) == (["Method", "1 draw", "2 draws", "3 draws"], 2)
    assert test.title == "What the choice gives on test images"
    five = [replace_mark(two[1], letter) for letter in "ABCDE"]
    assert "area" not in json.dumps(search.budgets(five, "val", 0).spec["layer"])
    assert "Intervals stand in the table" in search.budgets(five, "val", 0).caption


def replace_mark(each, letter):
    return each._replace(mark=each.mark._replace(letter=letter), found=replace(each.found))
