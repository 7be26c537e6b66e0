"""What a gap would be by chance: the golden value, exact small cases, and what must not change."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import metrics
from evenlens.errors import UserError
from evenlens.metrics import METRICS, patterns
from evenlens.metrics.chance import exchanged


def alike(num_groups, right=45, wrong=5):
    """Groups of which each has the same table."""
    return np.tile(np.array([[right, wrong], [wrong, right]]), (num_groups, 1, 1))


def every_exchange(counts, within_labels):
    """The tables of all ways to hand out the predictions anew, each as often as it occurs, plainly."""
    rows = [(g, y, p) for g, y, p in np.ndindex(counts.shape) for _ in range(counts[g, y, p])]
    classes = [[row for row in rows if not within_labels or row[1] == y] for y in range(counts.shape[1])]
    for orders in itertools.product(*(itertools.permutations(members) for members in classes)):
        table = np.zeros_like(counts)
        for members, order in zip(classes, orders, strict=True):
            for (g, y, _), (_, _, p) in zip(members, order, strict=True):
                table[g, y, p] += 1
        yield table


def test_fourteen_groups_of_equal_accuracy_are_ten_points_apart_by_chance():
    found = metrics.chance("accuracy_difference", alike(14))
    assert found.expected == pytest.approx(0.10, abs=0.01)
    assert 0.12 < found.high < 0.17
    assert found.p_value == 1  # the groups are exactly alike: nothing is less apart
    assert found.n == 1400


def test_tables_are_drawn_as_often_as_exchanging_predictions_gives_them():
    counts = np.array([[[2, 1], [0, 2]], [[0, 1], [1, 0]]])
    for within_labels in (True, False):
        if within_labels:
            expected = Counter(table.tobytes() for table in every_exchange(counts, True))
        else:
            pooled = np.zeros_like(counts)
            pooled[:, 0] = counts.sum(axis=1)
            expected = Counter(table.tobytes() for table in every_exchange(pooled, True))
        tables = np.concatenate([*exchanged(counts, 20_000, np.random.default_rng(0), within_labels)])
        drawn = Counter(table.tobytes() for table in tables)
        assert drawn.keys() == expected.keys()
        for table, number in expected.items():
            assert drawn[table] / 20_000 == pytest.approx(number / expected.total(), abs=0.02)


@pytest.mark.parametrize("name", ["accuracy_difference", "equal_opportunity_difference", "worst_group_accuracy"])
def test_the_p_value_of_a_few_images_is_that_of_all_exchanges(name):
    counts = np.array([[[2, 0], [0, 2]], [[1, 1], [1, 1]]])
    metric, found = METRICS[name], metrics.chance(name, counts, replicates=20_000)
    values = np.array([metric(table) for table in every_exchange(counts, within_labels=True)])
    as_bad = values <= metric(counts) + 1e-9 if metric.direction == "higher" else values >= metric(counts) - 1e-9
    assert found.p_value == pytest.approx(as_bad.mean(), abs=0.015)
    assert found.expected == pytest.approx(values.mean(), abs=0.01)


def test_the_p_value_of_a_selection_rate_is_fisher_s_exact_one():
    counts = np.array([[[3, 5], [1, 6]], [[4, 2], [5, 4]]])
    selected, images = counts[:, :, 1].sum(axis=1), counts.sum(axis=(1, 2))
    gap = abs(selected[0] / images[0] - selected[1] / images[1])
    total, of_first = math.comb(images.sum(), selected.sum()), 0
    for k in range(min(images[0], selected.sum()) + 1):
        other = selected.sum() - k
        if other <= images[1] and abs(k / images[0] - other / images[1]) >= gap - 1e-12:
            of_first += math.comb(images[0], k) * math.comb(images[1], other)
    for name in ("demographic_parity_difference", "selection_rate_difference"):
        found = metrics.chance(name, counts, replicates=20_000)
        assert found.p_value == pytest.approx(of_first / total, abs=0.01)


@pytest.mark.parametrize("within_labels", [True, False])
def test_exchanging_keeps_the_images_of_a_group_and_the_predictions_of_a_label(within_labels):
    counts = np.random.default_rng(1).integers(0, 9, (4, 3, 3))
    counts[2] = 0
    tables = np.concatenate([*exchanged(counts, 50, np.random.default_rng(2), within_labels)])
    assert tables.shape == (50, 4, 3, 3)
    assert (tables >= 0).all()
    if within_labels:
        np.testing.assert_array_equal(tables.sum(axis=3), np.broadcast_to(counts.sum(axis=2), (50, 4, 3)))
        np.testing.assert_array_equal(tables.sum(axis=1), np.broadcast_to(counts.sum(axis=0), (50, 3, 3)))
    else:
        np.testing.assert_array_equal(tables.sum(axis=(2, 3)), np.broadcast_to(counts.sum(axis=(1, 2)), (50, 4)))
        np.testing.assert_array_equal(tables.sum(axis=(1, 2)), np.broadcast_to(counts.sum(axis=(0, 1)), (50, 3)))


def test_what_a_metric_declares_to_look_at_is_what_it_looks_at():
    generator = np.random.default_rng(3)
    counts, train = generator.integers(1, 30, (3, 4, 4)), generator.integers(1, 9, (4, 3))
    relabelled = np.zeros_like(counts)
    relabelled[:, 0] = counts.sum(axis=1)  # the same predictions; every label is the first
    for name, metric in METRICS.items():
        if not metric.needs_labels:
            assert metric(relabelled) == pytest.approx(metric(counts)), name
        else:
            assert metric(relabelled, train) != pytest.approx(metric(counts, train), abs=1e-9), name


def test_a_real_gap_is_beyond_chance_and_equal_groups_are_not():
    apart = np.array([[[95, 5], [5, 95]], [[80, 20], [20, 80]]])
    found = metrics.chance("equalized_odds_difference", apart)
    assert metrics.get("equalized_odds_difference")(apart) > found.high > found.expected
    assert found.p_value < 0.01
    ratio, equal = metrics.chance("accuracy_ratio", apart), metrics.chance("accuracy_ratio", alike(2))
    assert ratio.p_value < 0.01 < equal.p_value
    assert metrics.get("accuracy_ratio")(apart) < ratio.high < ratio.expected <= 1  # of a ratio less is worse


def test_a_metric_that_no_exchange_changes_has_a_p_value_of_1():
    for name in ("accuracy", "balanced_accuracy", "worst_class_accuracy"):
        found = metrics.chance(name, alike(3))
        assert (found.expected, found.p_value) == (pytest.approx(0.9), 1)


@pytest.mark.parametrize("name", ["accuracy_difference", "disparate_impact"])
def test_p_values_of_groups_that_are_treated_alike_are_below_a_twentieth_once_in_twenty(name):
    generator, below = np.random.default_rng(4), 0
    for trial in range(300):
        images = generator.multinomial(60, [0.35, 0.15, 0.1, 0.4], size=3).reshape(3, 2, 2)
        below += metrics.chance(name, images, replicates=199, seed=trial).p_value <= 0.05
    assert below / 300 <= 0.08


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_renaming_the_groups_and_an_absent_one_change_no_more_than_the_draw(data):
    generator = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    counts = generator.integers(3, 20, (3, 2, 2))
    order = data.draw(st.permutations(range(3)))
    wider = np.insert(counts[list(order)], data.draw(st.integers(0, 3)), 0, axis=0)
    for name in ("equalized_odds_difference", "demographic_parity_difference", "accuracy_worst"):
        before, after = metrics.chance(name, counts), metrics.chance(name, wider)
        assert after.expected == pytest.approx(before.expected, abs=0.02)
        assert after.p_value == pytest.approx(before.p_value, abs=0.08)
        assert after.n == before.n


def test_chance_repeats_itself_in_small_pieces_too(monkeypatch):
    counts = np.random.default_rng(5).integers(1, 20, (3, 2, 2))
    found = metrics.chance("accuracy_difference", counts, seed=3)
    assert found == metrics.chance(METRICS["accuracy_difference"], counts, seed=3)
    assert found != metrics.chance("accuracy_difference", counts, seed=4)
    monkeypatch.setattr(patterns, "CHUNK", 100 * counts.size)
    assert metrics.chance("accuracy_difference", counts, seed=3).expected == pytest.approx(found.expected, abs=0.02)


def test_metrics_that_need_training_cells_get_them():
    counts, train = np.random.default_rng(6).integers(1, 20, (2, 2, 2)), np.array([[9, 1], [1, 9]])
    found = metrics.chance("bias_conflict_accuracy", counts, train_cells=train)
    assert 0 < found.p_value <= 1
    with pytest.raises(UserError, match="none were given"):
        metrics.chance("bias_conflict_accuracy", counts)


def test_what_was_not_observed_has_no_chance():
    for counts in (np.array([[[5, 5], [0, 0]], [[5, 5], [5, 5]]]), np.zeros((2, 2, 2), dtype=int), alike(1)):
        found = metrics.chance("true_positive_rate_difference", counts)
        assert np.isnan(found[:3]).all()
        assert found.n == counts.sum()
    seldom = np.array([[[50, 1], [1, 0]], [[50, 0], [0, 1]]])  # often one group is never predicted positive
    assert np.isnan(metrics.chance("precision_difference", seldom)[:3]).all()


def test_what_chance_cannot_use_is_refused():
    with pytest.raises(UserError, match="did you mean 'accuracy_difference'"):
        metrics.chance("accuracy_differences", alike(2))
    with pytest.raises(UserError, match="at least one replicate"):
        metrics.chance("accuracy_difference", alike(2), replicates=0)


def test_a_thousand_tables_take_no_time_to_speak_of():
    generator = np.random.default_rng(7)
    for shape, seconds in (((4, 2, 2), 0.1), ((14, 10, 10), 1.0)):
        counts = generator.integers(1, 100, shape)
        begin = time.process_time()
        metrics.chance("equalized_odds_difference", counts)
        assert time.process_time() - begin < seconds
