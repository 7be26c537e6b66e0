"""Intervals of gaps and worst cases: how rates are moved, what intervals contain, and how often that is the truth."""

from __future__ import annotations

import math
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import metrics
from evenlens.metrics import METRICS, gaps, inversion
from evenlens.metrics.gaps import Comparison
from evenlens.metrics.inversion import Rates, invert

COMPARISONS = [name for name, metric in METRICS.items() if isinstance(metric.function, Comparison)]
DIFFERENCE = Comparison((), gaps.difference)


def replicates_of(rates, images=400, num=300, seed=0):
    """Replicates (R, 1, ...) of shares, as of so many images each."""
    rates = np.asarray(rates, dtype=float)
    return np.random.default_rng(seed).binomial(images, rates, (num, 1, *rates.shape)) / images


def alike(num_groups, right=45, wrong=5):
    return np.tile(np.array([[right, wrong], [wrong, right]]), (num_groups, 1, 1))


def simulated(generator, accuracy, images):
    """A table of two labels with so many images in each cell, and these accuracies of the groups."""
    right = generator.binomial(images, np.repeat(np.array(accuracy)[:, None], 2, axis=1))
    wrong = images - right
    return np.stack([np.stack([right[:, 0], wrong[:, 0]], 1), np.stack([wrong[:, 1], right[:, 1]], 1)], 1)


# --- how rates are moved --------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.05, 0.95), min_size=2, max_size=6), st.floats(-0.5, 1))
@settings(deadline=None)
def test_rates_are_moved_until_the_gap_is_as_much_smaller_and_no_farther(levels, by):
    rates = Rates(DIFFERENCE, replicates_of([[levels]]), shares=True)
    found, moved = rates.found[0, 0, 0], rates.narrowed(by)[0, 0, 0]
    assert np.ptp(moved) == pytest.approx(min(1, max(0, np.ptp(found) - by)), abs=1e-9)
    assert (moved >= 0).all()
    assert (moved <= 1).all()
    if by >= 0:  # what lies inside stays where it is, and all others are at an end
        stays = moved == found
        assert np.isin(moved[~stays], [moved.min(), moved.max()]).all()
        if np.ptp(moved) > 1e-3:  # as much is moved up as down, each by how well it is known
            weight = 1 / rates.variance[0, 0, 0]
            assert ((moved - found) * weight).sum() == pytest.approx(0, abs=1e-3 * weight.sum())
    else:
        assert np.count_nonzero(np.abs(moved - found) > 1e-12) <= 2
        assert (np.argsort(moved)[[0, -1]] == np.lexsort((rates.variance[0, 0, 0], found))[[0, -1]]).all()


def test_of_two_rates_only_that_with_the_larger_gap_moves_where_the_largest_counts():
    columns = replicates_of([[[0.9, 0.7, 0.8]], [[0.5, 0.45, 0.4]]], images=10**6)
    largest = Rates(Comparison((), gaps.difference, of_rates="max"), columns, shares=True)
    mean = Rates(DIFFERENCE, columns, shares=True)
    for by, widths in ((0.05, [0.15, 0.1]), (0.15, [0.05, 0.05]), (-0.1, [0.3, 0.1])):
        np.testing.assert_allclose(np.ptp(largest.narrowed(by), axis=-1)[0, :, 0], widths, atol=2e-3)
        assert largest.truth(largest.narrowed(by)) == pytest.approx(0.2 - by, abs=2e-3)
    np.testing.assert_allclose(np.ptp(mean.narrowed(0.15), axis=-1)[0, :, 0], [0.05, 0], atol=2e-3)


def test_distances_from_the_rate_of_all_images_shrink_and_grow_at_the_farthest():
    columns = replicates_of([[[0.9, 0.7, 0.78, 0.8]]], images=10**6)  # the last is that of all images
    rates = Rates(Comparison((), gaps.farthest, to_overall=True), columns, shares=True)
    np.testing.assert_allclose(rates.narrowed(0.04)[0, 0, 0], [0.86, 0.74, 0.78, 0.8], atol=2e-3)
    assert rates.truth(rates.narrowed(-0.05)) == pytest.approx(0.15, abs=2e-3)
    above = Comparison((), partial(gaps.worst, higher_is_better=False), side="highest", to_overall=True)
    one_sided = Rates(above, columns, shares=True)
    np.testing.assert_allclose(one_sided.narrowed(0.05)[0, 0, 0], [0.85, 0.75, 0.79, 0.8], atol=2e-3)
    np.testing.assert_allclose(one_sided.narrowed(1)[0, 0, 0], [0.8] * 4, atol=2e-3)


def test_the_worst_rate_gets_better_with_all_that_it_meets():
    columns = replicates_of([[[0.7, 0.72, 0.9]]], images=10**6)
    lowest = Rates(METRICS["accuracy_worst"].function, columns, shares=True)
    highest = Rates(METRICS["error_rate_worst"].function, columns, shares=True)
    for rates, by, expected in (
        (lowest, 0.05, [0.75, 0.75, 0.9]),
        (highest, 0.19, [0.7, 0.71, 0.71]),
        (lowest, 5, [1, 1, 1]),
        (highest, 5, [0, 0, 0]),
    ):
        np.testing.assert_allclose(rates.shifted(by)[0, 0, 0], expected, atol=2e-3)


def test_the_end_of_one_group_alone_is_wilson_s_of_the_group_that_may_be_worst():
    columns = replicates_of([[[0.7, 0.72, 0.9]]], images=400, num=20_000)
    lowest = Rates(METRICS["accuracy_worst"].function, columns, shares=True)
    wilson = metrics.wilson(0.7 * 400, 400)
    assert lowest.of_one(0.7, 0.975, "low") == pytest.approx(wilson.low, abs=0.003)
    assert lowest.of_one(0.7, 0.975, "high") == pytest.approx(wilson.high, abs=0.003)
    highest = Rates(METRICS["error_rate_worst"].function, columns, shares=True)
    assert highest.of_one(0.9, 0.975, "high") == pytest.approx(metrics.wilson(360, 400).high, abs=0.003)
    cells = Rates(
        METRICS["worst_cell_accuracy"].function, replicates_of([[[0.9, 0.8], [0.7, 0.95]]], 400, 20_000), True
    )
    assert cells.of_one(0.7, 0.975, "low") == pytest.approx(wilson.low, abs=0.003)


def test_gaps_are_no_smaller_than_what_two_groups_are_surely_apart():
    sizes, shares = (400, 400, 20), (0.9, 0.7, 0.8)
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.binomial(n, p, 20000) / n for n, p in zip(sizes, shares, strict=True)], axis=-1)
    rates = Rates(METRICS["accuracy_difference"].function, drawn[:, None, None, None], shares=True)
    ends = [metrics.wilson(p * n, n, 1 - inversion.UNSURE / 3) for n, p in zip(sizes, shares, strict=True)]  # 3 pairs
    apart = [
        shares[i] - shares[j] - math.sqrt((shares[i] - ends[i].low) ** 2 + (ends[j].high - shares[j]) ** 2)
        for i in range(3) for j in range(3) if i != j
    ]  # fmt: skip
    assert max(apart) == apart[0] > 0.1  # of the two large groups
    assert rates.truth(rates.surely_apart()) == pytest.approx(max(apart), abs=0.003)


def test_small_groups_do_not_hide_that_two_large_ones_differ():
    large = [[[360, 40], [40, 360]], [[300, 100], [100, 300]]]
    small = [[[5, 1], [0, 6]], [[4, 1], [2, 4]], [[6, 0], [1, 5]]]
    for name in ("accuracy_difference", "equalized_odds_difference"):
        two = metrics.bootstrap(name, np.array(large))
        all_of_them = metrics.bootstrap(name, np.array([*large, *small]))
        assert two.low > 0.05
        assert all_of_them.low > 0.02
    assert metrics.bootstrap("accuracy_ratio", np.array([*large, *small])).high < 0.98


def test_rates_that_are_not_moved_err_as_their_replicates_do():
    for shares in (True, False):
        columns = replicates_of([[[0.9, 0.97, 0.8]]], images=50)
        rates = Rates(DIFFERENCE, columns, shares=shares)
        expected = np.ptp(columns[:, 0, 0, 0], axis=-1)
        np.testing.assert_allclose(rates.replicates(rates.found), expected, atol=1e-6)


# --- what the intervals contain -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [(0.9, 0.6), (0.95, 0.9, 0.7)])
def test_a_clear_gap_has_the_interval_of_a_difference_of_two_shares(accuracy):
    counts = np.array([[[a, 1000 - a], [1000 - a, a]] for a in (round(1000 * share) for share in accuracy)])
    found = metrics.bootstrap("accuracy_difference", counts, replicates=4000)
    error = math.sqrt(sum(share * (1 - share) / 2000 for share in (accuracy[0], accuracy[-1])))
    assert found.low == pytest.approx(found.value - 1.96 * error, rel=0.02)
    assert found.high == pytest.approx(found.value + 1.96 * error, rel=0.02)
    worst = metrics.bootstrap("accuracy_worst", counts, replicates=4000)
    assert worst[:3] == pytest.approx(metrics.wilson(2000 * accuracy[-1], 2000)[:3], abs=0.003)


@pytest.mark.parametrize("num_groups", [2, 4, 10])
def test_an_interval_contains_0_unless_the_gap_is_beyond_chance(num_groups):
    generator = np.random.default_rng(num_groups)
    for _ in range(25):
        counts = simulated(generator, np.linspace(0.9, 0.9 - generator.choice([0, 0.1]), num_groups), 150)
        for name in ("accuracy_difference", "equalized_odds_difference"):
            low, chance = metrics.bootstrap(name, counts).low, metrics.chance(name, counts)
            if low == 0:
                assert chance.p_value > 0.02
            elif low > 0.01:
                assert chance.p_value < 0.1


def test_groups_of_a_hundred_that_are_ten_points_apart_may_be_alike():
    generator = np.random.default_rng(0)
    found = [metrics.bootstrap("accuracy_difference", simulated(generator, [0.9] * 14, 50)) for _ in range(20)]
    assert np.mean([interval.value for interval in found]) == pytest.approx(0.1, abs=0.015)
    assert sum(interval.low == 0 for interval in found) >= 17
    assert all(interval.high < 0.3 for interval in found)


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_every_interval_contains_its_value_within_the_metric_s_range(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    num_classes, num_groups = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 4))
    counts = generator.integers(0, data.draw(st.sampled_from([2, 5, 60])), (num_groups, num_classes, num_classes))
    fixed = data.draw(st.sampled_from(["group", "none"]))
    for name, (value, low, high, _) in metrics.bootstrap_all(counts, COMPARISONS, replicates=60, fixed=fixed).items():
        lowest, highest = METRICS[name].range
        assert math.isnan(low) or lowest <= low <= value + 1e-12 <= high + 2e-12 <= highest + 1e-9, name


@given(st.data())
@settings(max_examples=4, deadline=None)
def test_renaming_groups_and_an_absent_one_change_no_more_than_the_draw(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    counts = generator.integers(20, 60, (3, 2, 2))
    order = np.array(data.draw(st.permutations(range(3))))
    wider = np.insert(counts[order], data.draw(st.integers(0, 3)), 0, axis=0)
    before, after = (metrics.bootstrap_all(table, COMPARISONS, replicates=8000) for table in (counts, wider))
    for name in COMPARISONS:
        assert after[name] == pytest.approx(before[name], abs=0.06), name


def test_a_gap_that_nothing_can_change_has_no_width():
    columns = np.full((50, 1, 1, 1, 3), 0.25)
    assert invert(DIFFERENCE, 0, columns, 0.95) == (0, 0)


# --- degenerate tables ----------------------------------------------------------------------------------------------


def all_intervals(counts, replicates=200, **more):
    """Intervals of all comparisons; none has one end only, and those that are there lie in the range."""
    found = metrics.bootstrap_all(counts, COMPARISONS, replicates, **more)
    for name, (value, low, high, _) in found.items():
        assert math.isnan(low) == math.isnan(high), name
        assert math.isnan(low) or METRICS[name].range[0] <= low <= value + 1e-9 <= high + 2e-9, name
    return found


def test_one_group_has_an_interval_of_its_worst_rate_alone():
    counts = np.array([[[45, 5], [10, 40]]])
    found = all_intervals(counts, 4000)
    defined = {name for name, interval in found.items() if not math.isnan(interval.low)}
    worst = {name for name in COMPARISONS if name.endswith("_worst") or name.startswith("worst_")}
    assert defined == worst
    wilson = metrics.wilson(85, 100)
    assert found["worst_group_accuracy"][:3] == pytest.approx((0.85, wilson.low, wilson.high), abs=0.01)


@pytest.mark.parametrize("fixed", ["group", "none"])
def test_a_group_of_one_image_says_nearly_nothing(fixed):
    counts = np.array([[[90, 10], [10, 90]], [[1, 0], [0, 0]]])
    found = all_intervals(counts, fixed=fixed)
    if fixed == "none":  # the group is absent in a third of the replicates: there is no gap
        assert math.isnan(found["accuracy_difference"].high)
    else:
        assert found["accuracy_difference"].low == 0
        assert found["accuracy_difference"].high > 0.3
        assert found["worst_group_accuracy"].low < 0.5
    assert math.isnan(found["true_positive_rate_difference"].value)


@pytest.mark.parametrize("right", [0, 1])
def test_rates_that_are_all_0_or_all_1_are_not_certain(right):
    cell = np.array([[[0, 20], [20, 0]], [[20, 0], [0, 20]]])[right]
    found = all_intervals(np.stack([cell] * 3), 1000)
    for name in ("accuracy_difference", "equalized_odds_difference", "true_positive_rate_difference"):
        assert found[name].value == found[name].low == 0
        assert 0.02 < found[name].high < 0.5
    worst = found["worst_group_accuracy"]
    wilson = metrics.wilson(40 * right, 40)
    assert worst.value == right
    assert worst.low == pytest.approx(wilson.low, abs=0.02)
    assert worst.high == pytest.approx(wilson.high, abs=0.1)


def test_a_ratio_that_is_of_zeros_wherever_groups_are_alike_has_no_interval():
    comparison = METRICS["selection_rate_ratio"].function
    columns = np.zeros((50, 1, 1, 1, 2))
    columns[0, ..., 0] = 1e-9  # a rate that is not 0, once: too seldom for a truth between the two
    columns[1, ..., 1] = 1e-9
    low, high = invert(comparison, 1.0, columns, 0.95)
    assert math.isnan(low) == math.isnan(high)


@given(st.integers(0, 10**6), st.sampled_from([2, 5, 50, 2000]), st.sampled_from(["group", "none"]))
@settings(max_examples=12, deadline=None)
def test_no_table_breaks_an_interval(seed, most, fixed):
    generator = np.random.default_rng(seed)
    num_groups, num_classes = generator.integers(1, 5), generator.integers(2, 5)
    counts = generator.integers(0, most, (num_groups, num_classes, num_classes))
    kind = generator.integers(5)
    if kind == 0:
        counts *= np.eye(num_classes, dtype=int)  # nothing is wrong
    elif kind == 1:
        counts *= 1 - np.eye(num_classes, dtype=int)  # nothing is right
    elif kind == 2:
        counts[0], counts[0, 0, 0] = 0, 1
    elif kind == 3:
        counts[:, 1:] = 0  # one class
    all_intervals(counts, int(generator.choice([1, 2, 60])), fixed=fixed)


def test_a_hundred_groups_and_classes_have_intervals():
    generator = np.random.default_rng(3)
    counts = np.zeros((100, 100, 100), dtype=np.int64)
    counts[:, range(100), range(100)] = generator.binomial(30, 0.8, (100, 100))
    counts[:, range(100), np.roll(range(100), 1)] = 30 - counts[:, range(100), range(100)]
    found = metrics.bootstrap_all(counts, ["accuracy_difference", "equalized_odds_difference"], replicates=20)
    assert found["accuracy_difference"].low == 0
    for interval in found.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1


@pytest.mark.parametrize(("shape", "seconds"), [((4, 2, 2), 0.05), ((14, 7, 7), 0.5)])
def test_an_interval_takes_no_time_to_speak_of(shape, seconds):
    counts = np.random.default_rng(4).integers(1, 300, shape)
    metrics.bootstrap("equalized_odds_difference", counts, replicates=10)
    times = []
    for _ in range(3):
        begin = time.process_time()
        metrics.bootstrap("equalized_odds_difference", counts)
        times.append(time.process_time() - begin)
    assert min(times) < seconds


def test_the_worst_rate_is_no_better_known_than_that_of_the_group_that_may_be_worst():
    counts = np.array([[[400, 100], [100, 400]], [[3, 0], [0, 3]]])  # 0.8 of a thousand, and six of six
    found = metrics.bootstrap("worst_group_accuracy", counts, replicates=4000)
    assert found.value == 0.8
    assert 0.4 < found.low <= metrics.wilson(6, 6).low
    assert found.high == pytest.approx(metrics.wilson(800, 1000).high, abs=0.01)


def test_of_many_rates_fewer_replicates_are_used(monkeypatch):
    counts = simulated(np.random.default_rng(1), [0.9, 0.8, 0.85], 300)
    whole = metrics.bootstrap("equalized_odds_difference", counts)
    monkeypatch.setattr(inversion, "CHUNK", 1)
    assert metrics.bootstrap("equalized_odds_difference", counts) != whole
    assert metrics.bootstrap("equalized_odds_difference", counts) == pytest.approx(whole, abs=0.02)


# --- how often that is the truth ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracy", "images"),
    [((0.9,) * 4, 100), ((0.9,) * 14, 50), ((0.9, 0.9, 0.9, 0.8), 100), ((0.9, 0.8), 100)],
)
def test_about_95_of_100_intervals_contain_the_truth(accuracy, images):
    generator, trials = np.random.default_rng(2), 300
    truths = {
        "accuracy_difference": accuracy[0] - accuracy[-1],
        "equalized_odds_difference": accuracy[0] - accuracy[-1],
        "accuracy_standard_deviation": float(np.std(accuracy)),
        "accuracy_ratio": accuracy[-1] / accuracy[0],
        "accuracy_difference_to_overall": max(abs(np.mean(accuracy) - np.array(accuracy))),
        "worst_group_accuracy": accuracy[-1],
    }
    covered = dict.fromkeys(truths, 0)
    for trial in range(trials):
        counts = simulated(generator, accuracy, images)
        found = metrics.bootstrap_all(counts, truths, replicates=400, seed=trial)
        for name, truth in truths.items():
            covered[name] += found[name].low - 1e-6 <= truth <= found[name].high + 1e-6
    for name, number in covered.items():
        assert 0.9 <= number / trials <= 0.995, name


@pytest.mark.slow
def test_about_95_of_100_intervals_of_what_a_smaller_model_loses_contain_the_truth():
    generator, trials, n, lost = np.random.default_rng(3), 200, 300, np.array([0.03] * 4)
    covered = {"worst_excess": 0, "spread": 0, "deviation": 0, "population_deviation": 0}
    group, label = np.repeat(np.arange(4), n), np.zeros(4 * n, dtype=int)
    for trial in range(trials):
        first = (generator.random(4 * n) > 0.9).astype(int)
        other = generator.random(4 * n)
        second = np.where(first == 0, other < (lost[group] + 0.03) / 0.9, other >= 0.3).astype(int)
        found = metrics.degradation(first, second, label, group, 2, 4, replicates=400, seed=trial)
        for field in covered:
            covered[field] += getattr(found, field).low <= 1e-9  # all groups lose alike
    for field, number in covered.items():
        assert 0.9 <= number / trials <= 0.98, field
