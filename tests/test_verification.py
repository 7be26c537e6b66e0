"""The audit of face verification: thresholds, rates and summaries against their formulas and known truths."""

import json
import math
import runpy
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve

from evenlens.errors import UserError
from evenlens.metrics import wilson
from evenlens.verification import Pairs, rates, summaries, verify
from evenlens.verification.summaries import Box
from evenlens.verification.thresholds import Cuts, allowed, at_false_match_rate, of_best_accuracy

TIES = st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.1 + 1e-17, 0.3, 0.5, 1e300]), min_size=1, max_size=60)


def normal_pairs(genuine_means, imposter_means, n=4000, seed=0, fold=True, **more):
    """Pairs within subgroups, whose scores are normal with variance 1."""
    generator = np.random.default_rng(seed)
    groups = len(genuine_means)
    genuine = np.tile(np.arange(2 * n) < n, groups)
    group = np.repeat(np.arange(groups), 2 * n)
    means = np.where(genuine, np.repeat(genuine_means, 2 * n), np.repeat(imposter_means, 2 * n))
    score = means + generator.normal(size=len(group))
    folds = generator.integers(5, size=len(group)) if fold else None
    return Pairs.of(score, genuine, group, group, fold=folds, **more)


# ---- thresholds


@settings(max_examples=300, deadline=None)
@given(scores=TIES, target=st.sampled_from([0.5, 0.3, 0.29, 0.1, 0.07, 0.01, 1e-4]))
def test_a_threshold_accepts_no_more_than_the_floor_and_none_lower_does(scores, target):
    scores = np.array(scores)
    (threshold,) = at_false_match_rate(scores, [target])
    most = math.floor(round(target * len(scores), 9))
    assert (scores >= threshold).sum() <= most
    lower = np.nextafter(threshold, -np.inf)
    assert (scores >= lower).sum() > most, "the smallest such number"


def test_the_floor_is_that_of_the_number_that_was_written():
    assert math.floor(0.29 * 100) == 28
    assert allowed(0.29, 100) == 29
    assert [allowed(f, 10_000) for f in (0.1, 1e-4, 9.9e-5)] == [1000, 1, 0]


def test_without_ties_exactly_the_floor_is_accepted():
    scores = np.random.default_rng(0).normal(size=1234)
    for target, threshold in zip((0.1, 0.01, 1e-3), at_false_match_rate(scores, (0.1, 0.01, 1e-3)), strict=True):
        assert (scores >= threshold).sum() == int(target * 1234)
    assert np.isnan(at_false_match_rate(np.zeros(0), [0.1])).all()


@settings(max_examples=200, deadline=None)
@given(data=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.35, 0.5]), st.booleans()), min_size=2, max_size=30),
       criterion=st.sampled_from(["balanced", "plain"]))  # fmt: skip
def test_the_threshold_of_best_accuracy_is_the_best_of_all_and_of_equal_ones_the_last(data, criterion):
    score, genuine = np.array([s for s, _ in data]), np.array([g for _, g in data])
    found = of_best_accuracy(score, genuine, criterion)
    if genuine.all() or not genuine.any():
        assert math.isnan(found)
        return
    levels = np.unique(score)
    candidates = [levels[0], *((levels[1:] + levels[:-1]) / 2), np.nextafter(levels[-1], 9)]

    def accuracy(threshold):
        right = (score >= threshold) == genuine
        return (right[genuine].mean() + right[~genuine].mean()) / 2 if criterion == "balanced" else right.mean()

    best = max(map(accuracy, candidates))
    assert accuracy(found) == pytest.approx(best)
    assert found == pytest.approx(max(c for c in candidates if accuracy(c) > best - 1e-12))


# ---- numbers without a threshold


def test_rates_agree_with_scikit_learn_at_every_threshold():
    generator = np.random.default_rng(1)
    genuine = generator.random(500) < 0.4
    score = np.round(generator.normal(size=500) + genuine, 1)  # many ties
    cuts = Cuts.of(score, genuine)
    fpr, tpr, _ = roc_curve(genuine, score, drop_intermediate=False)
    ours = {(a / cuts.imposters, 1 - b / cuts.genuine)
            for a, b in zip(cuts.imposters_above, cuts.genuine_below, strict=True)}  # fmt: skip
    theirs = set(zip(fpr, tpr, strict=True))
    assert len(ours) == len(theirs)
    np.testing.assert_allclose(sorted(ours), sorted(theirs))
    assert rates.area_under_curve(score[genuine], score[~genuine]).value == pytest.approx(roc_auc_score(genuine, score))
    across = [k for k in range(len(fpr)) if 1 - tpr[k] <= fpr[k]][0]  # noqa: RUF015  the first of them
    (x0, y0), (x1, y1) = ((fpr[k], 1 - tpr[k]) for k in (across - 1, across))
    part = (y0 - x0) / ((y0 - x0) + (x1 - y1))
    assert rates.equal_error_rate(cuts).value == pytest.approx(x0 + part * (x1 - x0))


def test_normal_scores_have_their_analytic_numbers():
    generator = np.random.default_rng(0)
    genuine, imposters = 3 + generator.normal(size=40_000), generator.normal(size=40_000)
    cuts = Cuts.of(np.concatenate([genuine, imposters]), np.arange(80_000) < 40_000)
    assert rates.equal_error_rate(cuts).value == pytest.approx(norm.sf(1.5), abs=0.003)
    assert rates.area_under_curve(genuine, imposters).value == pytest.approx(norm.cdf(3 / math.sqrt(2)), abs=0.002)
    assert rates.d_prime(genuine, imposters).value == pytest.approx(3, abs=0.03)
    assert rates.d_prime(-genuine, -imposters).value == rates.d_prime(genuine, imposters).value


def test_d_prime_is_the_formula():
    genuine, imposters = np.array([1.0, 2.0, 4.0]), np.array([0.0, 1.0])
    by_hand = abs(7 / 3 - 0.5) / math.sqrt((np.var([1, 2, 4]) + 0.25) / 2)
    assert rates.d_prime(genuine, imposters).value == pytest.approx(by_hand)
    assert math.isnan(rates.d_prime(np.ones(3), np.zeros(3)).value)


def test_influences_are_what_leaving_a_little_weight_off_a_pair_does():
    generator = np.random.default_rng(3)
    genuine, imposters = 1 + generator.normal(size=30), generator.normal(size=40)

    def weighted(weight):
        mean = np.average(genuine, weights=weight)
        variance = np.average((genuine - mean) ** 2, weights=weight)
        return abs(mean - imposters.mean()) / math.sqrt((variance + imposters.var()) / 2)

    influence = rates.d_prime(genuine, imposters).genuine
    weight = np.ones(30)
    weight[7] += 1e-6
    slope = (weighted(weight) - weighted(np.ones(30))) / 1e-6 * 30
    assert influence[7] - influence.mean() == pytest.approx(slope, rel=1e-3)


def test_a_det_curve_is_of_the_pairs_and_from_one_end_to_the_other():
    score, genuine = np.random.default_rng(2).normal(size=5000), np.arange(5000) < 2000
    cuts = Cuts.of(score, genuine)
    fmr, fnmr = rates.det_curve(cuts)
    assert len(fmr) <= 82
    assert (fmr[0], fnmr[0], fmr[-1], fnmr[-1]) == (1, 0, 0, 1)
    assert (np.diff(fmr) <= 0).all()
    assert (np.diff(fnmr) >= 0).all()
    points = set(zip(cuts.imposters_above / 3000, cuts.genuine_below / 2000, strict=True))
    assert set(zip(fmr, fnmr, strict=True)) <= points
    assert (fmr[fmr > 0]).min() == pytest.approx(1 / 3000), "the smallest rate is there"


# ---- summaries


def test_summaries_worked_by_hand():
    fmr, fnmr = np.array([0.01, 0.02, 0.04]), np.array([0.1, 0.1, 0.4])
    found = summaries.summarise(fmr, fnmr)
    assert found["fmr_ratio"] == pytest.approx(4)
    assert found["fnmr_ratio"] == pytest.approx(4)
    assert found["fairness_discrepancy_rate"] == pytest.approx(1 - (0.5 * 0.03 + 0.5 * 0.3))
    # Gini: over all ordered pairs, |differences| sum to 2 (.01 + .03 + .02) = .12; 3/2 * .12 / (2 * 9 * .07 / 3)
    assert summaries.gini(fmr) == pytest.approx(1.5 * 0.12 / (18 * 0.07 / 3))
    assert summaries.gini(fnmr) == pytest.approx(1.5 * 1.2 / (18 * 0.2))
    assert found["garbe"] == pytest.approx(0.5 * 0.18 / 0.42 + 0.5 * 0.5 * 1)
    assert found["inequity"] == pytest.approx(4)
    assert summaries.gini(np.array([0.0, 0.0, 1.0])) == pytest.approx(1), "all in one group is 1, by the correction"


def test_summaries_are_undefined_where_a_denominator_is_0():
    found = summaries.summarise(np.array([0.0, 0.1]), np.array([0.2, 0.2]))
    assert math.isnan(found["fmr_ratio"])
    assert math.isnan(found["inequity"])
    assert found["fnmr_ratio"] == 1
    assert found["fairness_discrepancy_rate"] == pytest.approx(0.95)
    assert all(math.isnan(value) for value in summaries.summarise(np.array([0.1]), np.array([0.1])).values())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0, 0.3)), min_size=2, max_size=6), st.integers(0, 10**6))
def test_the_ends_of_a_summary_hold_all_rates_within_the_boxes(boxes, seed):
    low = np.array([low for low, _ in boxes])
    high = np.array([low + more for low, more in boxes])
    box = Box(low, high)
    ends = summaries.bounds(box, Box(low / 2, high / 2))
    generator = np.random.default_rng(seed)
    inside = [low + generator.random(len(low)) * (high - low) for _ in range(20)]
    inside += [np.array(corner) for corner in product(*zip(low, high, strict=True))]
    inside += [np.clip(level, low, high) for level in (*low, *high)]
    for fmr in inside:
        for name, value in summaries.summarise(fmr, fmr / 2).items():
            assert ends[name][0] - 1e-9 <= value <= ends[name][1] + 1e-9, name
    gini_ends = summaries._gini_ends(box)
    assert gini_ends[0] == pytest.approx(min(float(summaries.gini(np.clip(c, low, high))) for c in (*low, *high)))


def test_of_many_groups_the_search_finds_the_most_uneven_corner(monkeypatch):
    generator = np.random.default_rng(0)
    for _ in range(20):
        low = generator.random(9)
        box = Box(low, low + generator.random(9))
        every = summaries._gini_ends(box)
        monkeypatch.setattr(summaries, "ALL_CORNERS", 2)
        assert summaries._gini_ends(box) == pytest.approx(every, rel=0.01)
        monkeypatch.undo()


def test_boxes_that_overlap_call_nothing_different():
    box = Box(np.array([0.1, 0.15, 0.12]), np.array([0.2, 0.3, 0.25]))
    ends = summaries.bounds(box, box)
    assert ends["fmr_ratio"] == (1.0, pytest.approx(3))
    assert ends["fairness_discrepancy_rate"][1] == 1
    assert ends["garbe"][0] == pytest.approx(0)
    assert ends["inequity"][0] == 1


# ---- whole audits


def test_rates_of_known_scores_lie_in_their_intervals():
    means = ([3, 3.2, 3.5], [0, 0.2, -0.3])
    found = verify(normal_pairs(*means, n=6000), targets=(0.1, 0.01))
    for k, target in enumerate(found.targets):
        for g in range(3):
            thresholds = [fitted.pooled[k] for fitted in found.decided.by_fold]
            fmr = np.mean([norm.sf(t - means[1][g]) for t in thresholds])
            fnmr = np.mean([norm.cdf(t - means[0][g]) for t in thresholds])
            for rates_, truth in ((found.measured.pooled.fmr, fmr), (found.measured.pooled.fnmr, fnmr)):
                assert rates_.low[k, g] < truth < rates_.high[k, g]
                assert rates_.value[k, g] == pytest.approx(truth, abs=0.02)
            own = np.mean([norm.sf(fitted.own[g, k] - means[1][g]) for fitted in found.decided.by_fold])
            assert own == pytest.approx(target, rel=0.15)
            low, high = (getattr(found.measured.own.fmr, end)[k, g] for end in ("low", "high"))
            assert low < own < high
    eer = [norm.sf((a - b) / 2) for a, b in zip(*means, strict=True)]
    assert all(found.measured.scores.eer.low[:-1] < eer)
    assert all(found.measured.scores.eer.high[:-1] > eer)
    d_prime = np.subtract(*means)
    assert all(found.measured.scores.d_prime.low[:-1] < d_prime)
    assert all(found.measured.scores.d_prime.high[:-1] > d_prime)


def test_held_out_rates_are_those_of_a_plain_loop():
    pairs = normal_pairs([2, 2.5], [0, 0.4], n=300)
    found = verify(pairs, targets=(0.1, 0.01))
    fold, group = pairs.folds[:, 0], pairs.group
    wrong = {(kind, k, g): [] for kind in ("pooled", "own") for k in range(2) for g in range(2)}
    for f in range(5):
        for k, target in enumerate((0.1, 0.01)):
            for g in range(2):
                for kind, seen in (("pooled", ~pairs.genuine & (fold != f)),
                                   ("own", ~pairs.genuine & (fold != f) & (group == g))):  # fmt: skip
                    ordered = np.sort(pairs.score[seen])[::-1]
                    threshold = np.nextafter(ordered[int(target * len(ordered))], np.inf)
                    mine = ~pairs.genuine & (fold == f) & (group == g)
                    wrong[kind, k, g].append(pairs.score[mine] >= threshold)
    for (kind, k, g), parts in wrong.items():
        measured = getattr(found.measured, kind)
        assert measured.fmr.value[k, g] == pytest.approx(np.concatenate(parts).mean())
        assert measured.fmr_mean[k, g] == pytest.approx(np.mean([part.mean() for part in parts]))
        assert measured.fmr_sd[k, g] == pytest.approx(np.std([part.mean() for part in parts], ddof=1))


def test_a_score_at_the_threshold_is_accepted():
    threshold = np.nextafter(8.0, np.inf)
    score = np.concatenate([np.arange(10.0), [threshold, 8.0]])
    found = verify(Pairs.of(score, np.arange(12) >= 10, ["g"] * 12, ["g"] * 12), targets=(0.1,))
    assert found.thresholds.pooled[0] == threshold
    assert found.measured.pooled.fnmr.value[0].tolist() == [0.5, 0.5]


def test_the_boxes_of_summaries_hold_for_all_subgroups_at_once():
    found = verify(normal_pairs([3, 3, 3], [0, 0, 0], n=800, fold=False), targets=(0.1,))
    fmr, fnmr = found.measured.boxes[0][0]
    for box, rate in ((fmr, found.measured.pooled.fmr), (fnmr, found.measured.pooled.fnmr)):
        together = wilson(rate.value[0, :-1] * rate.n[0, :-1], rate.n[0, :-1], 1 - 0.05 / 6)
        np.testing.assert_allclose(box.low, together.low)
        np.testing.assert_allclose(box.high, together.high)


def test_thresholds_of_subgroups_bring_the_deviation_to_0_in_sample():
    found = verify(normal_pairs([3, 3, 3], [0, 0.5, -0.5], fold=False), targets=(0.1, 0.01))
    assert not found.held_out
    np.testing.assert_allclose(found.measured.own.fmr.value[:-1, :-1], [[0.1] * 3, [0.01] * 3])
    assert abs(found.measured.pooled.fmr.value[1, 1] / 0.01 - 1) > 0.5
    deviations = [group["at"][1]["own"]["deviation"]["value"] for group in found.as_dict()["groups"]]
    np.testing.assert_allclose(deviations, 0, atol=1e-9)
    assert any("same pairs that they are judged on" in caveat for caveat in found.caveats)


def test_groups_with_the_same_scores_are_treated_the_same_exactly():
    generator = np.random.default_rng(0)
    genuine = np.arange(2000) < 1000
    score = generator.normal(size=2000) + 2 * genuine
    group = np.repeat([0, 1, 2], 2000)
    found = verify(Pairs.of(np.tile(score, 3), np.tile(genuine, 3), group, group), targets=(0.1, 0.01))
    for kind in ("pooled", "own"):
        for row in found.summaries[kind]:
            assert [
                row[name].value
                for name in ("fmr_ratio", "fnmr_ratio", "fairness_discrepancy_rate", "garbe", "inequity")
            ] == [
                1,
                1,
                1,
                0,
                1,
            ]
            assert row["fmr_ratio"].low == 1
    assert "may be chance" in found.finding[0]


def test_groups_that_are_alike_have_ratios_near_1_and_are_not_called_different():
    differ = 0
    for seed in range(20):
        found = verify(normal_pairs([3] * 4, [0] * 4, n=1000, seed=seed), targets=(0.1,))
        row = found.summaries["pooled"][0]
        assert row["fmr_ratio"].value < 1.6
        assert row["fairness_discrepancy_rate"].value > 0.95
        differ += row["fmr_ratio"].low > 1
    assert differ <= 2


def test_a_real_difference_is_said_with_its_size():
    found = verify(normal_pairs([3, 3], [0, 1], n=4000), targets=(0.1, 0.01))
    assert found.at == 0.01
    assert "the subgroups' FMR differ" in found.finding[0]
    ratio = found.metric("fmr_ratio")
    assert 1 < ratio.low < ratio.value < ratio.high
    truth = norm.sf(found.thresholds.pooled[1] - 1) / norm.sf(found.thresholds.pooled[1])
    assert ratio.low < truth < ratio.high
    assert found.metric("fmr_worst").value == found.measured.pooled.fmr.value[1, 1]


def test_pairs_of_two_subgroups_have_their_own_cells():
    generator = np.random.default_rng(0)
    first, second = generator.integers(3, size=(2, 6000))
    genuine = (generator.random(6000) < 0.5) & (first == second)
    score = generator.normal(size=6000) + 3 * genuine + (first == second)
    pairs = Pairs.of(score, genuine, first, second)
    found = verify(pairs, targets=(0.1,))
    threshold = found.thresholds.pooled[0]
    matrix = found.measured.matrix
    for a, b in product(range(3), repeat=2):
        cell = ~genuine & (((first == a) & (second == b)) | ((first == b) & (second == a)))
        assert matrix.value[0, a, b] == pytest.approx((score[cell] >= threshold).mean())
        assert matrix.n[0, a, b] == cell.sum()
        assert matrix.low[0, a, b] < matrix.value[0, a, b] < matrix.high[0, a, b]
    assert found.measured.imposters.tolist() == [
        *(int((~genuine & (first == g) & (second == g)).sum()) for g in range(3)), int((~genuine).sum())
    ]  # fmt: skip
    assert any("of two subgroups" in caveat for caveat in found.caveats)


# ---- what cannot be measured


def test_a_target_that_is_too_low_is_said_to_be_not_resolvable():
    found = verify(normal_pairs([3, 3], [0, 0], n=200), targets=(0.1, 1e-3))
    assert [row["resolvable"] for row in found.as_dict()["targets"]] == [True, False]
    assert any("0.1 % is not resolvable" in caveat for caveat in found.caveats)
    low = verify(normal_pairs([3, 3], [0, 0], n=200), targets=(0.1, 1e-3), at=1e-3)
    assert "not resolvable" in low.finding[0]
    assert any("rule of 30" in caveat for caveat in verify(normal_pairs([3, 3], [0, 0], n=250)).caveats)


@pytest.mark.parametrize("lacking", ["imposter", "genuine"])
def test_a_subgroup_without_one_kind_of_pair_is_undefined_and_not_fair(lacking):
    pairs = normal_pairs([3, 3, 3], [0, 0, 0], n=300, fold=False)
    kept = ~((pairs.group == 2) & (pairs.genuine == (lacking == "genuine")))
    found = verify(Pairs.of(pairs.score[kept], pairs.genuine[kept], pairs.group[kept], pairs.group[kept]))
    rate = "fmr" if lacking == "imposter" else "fnmr"
    assert math.isnan(getattr(found.measured.pooled, rate).value[0, 2])
    assert math.isnan(found.metric(f"{rate}_ratio").value)
    assert math.isnan(found.metric(f"{rate}_worst").value)
    assert math.isnan(found.metric("fairness_discrepancy_rate").value)
    assert math.isnan(found.measured.scores.eer.value[2])
    assert any(f"No {lacking} pair is within 2" in caveat for caveat in found.caveats)
    assert any("nothing is known of 2" in sentence for sentence in found.finding)
    json.dumps(found.as_dict(), allow_nan=False)


def test_one_subgroup_has_rates_and_nothing_to_be_compared_with():
    found = verify(normal_pairs([3], [0], n=500))
    assert "nothing that it could be compared with" in found.finding[0]
    assert found.measured.pooled.fmr.value[0, 0] == pytest.approx(0.1, abs=0.03)
    assert math.isnan(found.metric("fmr_ratio").value)


def test_perfect_separation_is_not_known_to_be_perfect():
    score = np.concatenate([np.linspace(0, 0.3, 300), np.linspace(0.7, 1, 300)])
    group = np.tile([0, 1], 300)
    found = verify(Pairs.of(score, score > 0.5, group, group), targets=(0.1,))
    assert found.measured.scores.eer.value.tolist() == [0, 0, 0]
    assert (found.measured.scores.eer.high > 0.01).all()
    assert found.measured.scores.auc.value.tolist() == [1, 1, 1]
    assert (found.measured.scores.auc.low < 1).all()
    fnmr = found.summaries["pooled"][0]["fnmr_ratio"]
    assert math.isnan(fnmr.value)
    assert (fnmr.low, fnmr.high) == (1, math.inf)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": (0.1, 1.0)}, "between 0 and 1"),
        ({"targets": ()}, "none is given"),
        ({"at": 0.5}, "none of those asked for"),
        ({"criterion": "best"}, "Unknown kind of accuracy"),
        ({"confidence": 95}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(options, words):
    with pytest.raises(UserError, match=words):
        verify(normal_pairs([3], [0], n=50), **options)


@pytest.mark.slow
def test_a_table_as_large_as_the_published_one_takes_seconds_and_gives_the_rates_that_were_put_in(tmp_path):
    bench = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "verification.py"))
    assert bench["write_table"](tmp_path / "pairs.csv") == 921_379
    began = time.perf_counter()
    content = verify(tmp_path / "pairs.csv").as_dict()
    assert time.perf_counter() - began < 60  # about 10 on two quiet cores
    held, number = bench["check"](content)
    assert held["fmr"] >= number - 3
    assert held["fnmr"] >= number - 4, "targets share pairs: one subgroup that is off by chance is off at several"


def test_an_unknown_number_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'fmr_ratio'"):
        verify(normal_pairs([3], [0], n=50)).metric("fmr_rato")
