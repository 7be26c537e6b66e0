"""Metrics of scores: against other libraries and plain loops, what must not change a number, and sound intervals."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from evenlens import metrics
from evenlens.errors import UserError
from evenlens.metrics import SCORE_MEASURES, SCORE_METRICS, Scores, score_errors
from evenlens.metrics.score_errors import ESTIMATES, Drawn

RANKED = ("auroc", "average_precision")
OF_PAIRS = [name for name in SCORE_METRICS if name.endswith(("_difference", "_ratio"))]


def some(generator, size=60, num_groups=3, levels=8, num_classes=2):
    """Images in which every group has every label, and many have the same score."""
    group, label = (axis.ravel() for axis in np.indices((num_groups, num_classes)))
    group = np.concatenate([group, generator.integers(0, num_groups, size)])
    label = np.concatenate([label, generator.integers(0, num_classes, size)])
    if num_classes == 2:
        score = generator.integers(0, levels + 1, len(label)) / levels
    else:
        weight = generator.integers(1, levels, (len(label), num_classes))
        score = weight / weight.sum(axis=1, keepdims=True)
    return score, label, group


def sharper(generator, label, group, lift):
    """Probabilities that a normal score with the lift of the group makes out of a balanced label."""
    lift = np.asarray(lift)[group]
    seen = generator.normal(lift * label, 1)
    return 1 / (1 + np.exp(-lift * (seen - lift / 2)))


def per_group(name, scores):
    return SCORE_MEASURES[name].function(scores)


def every_value(scores):
    parts = [[*metrics.evaluate_scores(scores).values()], *(per_group(name, scores) for name in SCORE_MEASURES)]
    return np.concatenate(parts)


def every_interval(scores, **arguments):
    intervals = metrics.score_intervals(scores, **arguments) | {
        f"{name} of groups": interval for name, interval in metrics.group_score_intervals(scores, **arguments).items()
    }
    return np.concatenate([np.ravel(part) for interval in intervals.values() for part in interval])


# --- values ---------------------------------------------------------------------------------------------------------


@sklearn.config_context(skip_parameter_validation=True, assume_finite=True)
def test_values_agree_with_scikit_learn_under_heavy_ties():
    generator = np.random.default_rng(0)
    for trial in range(400):
        levels = (1, 2, 3, 5, 20, 10**6)[trial % 6]
        score, label, group = some(generator, int(generator.integers(0, 60)), 1 + trial % 3, levels)
        scores = Scores(score, label, group, 1 + trial % 3)
        measured = {name: [*per_group(name, scores), SCORE_METRICS[name](scores)] for name in SCORE_MEASURES}
        everyone = np.ones(len(label), dtype=bool)
        for index, rows in enumerate([*(group == g for g in range(scores.num_groups)), everyone]):
            pair = label[rows], score[rows]
            expected = {
                "auroc": sklearn_metrics.roc_auc_score(*pair),
                "average_precision": sklearn_metrics.average_precision_score(*pair),
                "brier_score": sklearn_metrics.brier_score_loss(*pair),
            }
            assert {name: measured[name][index] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_values_of_many_classes_agree_with_scikit_learn():
    generator = np.random.default_rng(1)
    for trial in range(60):
        num_classes = 3 + trial % 3
        score, label, group = some(generator, 80, 2, 5, num_classes)
        scores = Scores(score, label, group, 2)
        for g in range(2):
            true, given = label[group == g], score[group == g]
            one_hot = np.eye(num_classes)[true]
            expected = [
                sklearn_metrics.roc_auc_score(one_hot, given, average="macro"),
                sklearn_metrics.average_precision_score(one_hot, given, average="macro"),
                ((given - one_hot) ** 2).sum(axis=1).mean(),
            ]
            measured = [per_group(name, scores)[g] for name in ("auroc", "average_precision", "brier_score")]
            assert measured == pytest.approx(expected, abs=1e-12)


def plain_calibration_error(confidence, true, bins):
    error = 0.0
    for b in range(bins):
        rows = [
            i for i, value in enumerate(confidence) if b / bins < value <= (b + 1) / bins or (b == 0 and value == 0)
        ]
        if rows:
            share = sum(true[i] for i in rows) / len(rows)
            expected = sum(confidence[i] for i in rows) / len(rows)
            error += len(rows) / len(confidence) * abs(share - expected)
    return error


def test_the_calibration_error_agrees_with_a_plain_loop():
    generator = np.random.default_rng(2)
    for trial in range(150):
        bins, num_classes = (15, 1, 10, 7)[trial % 4], (2, 4)[trial % 2]
        score, label, group = some(generator, 40, 2, 15, num_classes)  # on the edges of bins, too
        scores = Scores(score, label, group, 2, bins)
        if num_classes == 2:
            confidence, true = score, label == 1
        else:
            confidence, true = score.max(axis=1), score.argmax(axis=1) == label
        for g in range(2):
            expected = plain_calibration_error(confidence[group == g], true[group == g], bins)
            assert per_group("expected_calibration_error", scores)[g] == pytest.approx(expected, abs=1e-12)
        expected = plain_calibration_error(confidence, true, bins)
        assert SCORE_METRICS["expected_calibration_error"](scores) == pytest.approx(expected, abs=1e-12)


def test_a_small_table_by_hand():
    scores = Scores([0.1, 0.4, 0.4, 0.8, 0.5, 0.5], [0, 0, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1], 2)
    assert per_group("auroc", scores) == pytest.approx([3.5 / 4, 0.5])
    assert per_group("average_precision", scores) == pytest.approx([(1 + 2 / 3) / 2, 0.5])
    assert per_group("brier_score", scores) == pytest.approx([(0.01 + 0.16 + 0.36 + 0.04) / 4, 0.25])
    assert per_group("expected_calibration_error", scores) == pytest.approx([(0.1 + 0.2 + 0.2) / 4, 0])
    assert metrics.evaluate_scores(scores, ["auroc_difference", "auroc_ratio", "auroc_worst", "brier_score_worst"]) == {
        "auroc_difference": pytest.approx(0.375),
        "auroc_ratio": pytest.approx(0.5 / 0.875),
        "auroc_worst": 0.5,
        "brier_score_worst": 0.25,
    }


def test_every_metric_of_groups_is_its_measure_reduced():
    plain = {
        "difference": lambda values, highest: max(values) - min(values),
        "ratio": lambda values, highest: min(values) / max(values),
        "worst": lambda values, highest: min(values) if highest else max(values),
    }
    generator = np.random.default_rng(3)
    for trial in range(40):
        scores = Scores(*some(generator, 50, 2 + trial % 3, 7, 2 + trial % 2), 2 + trial % 3)
        for metric in SCORE_METRICS.values():
            if metric.reduction != "pooled":
                values = per_group(metric.measure.name, scores).tolist()
                expected = plain[metric.reduction](values, metric.measure.higher_is_better)
                assert metric(scores) == pytest.approx(expected, abs=1e-12)


def test_groups_are_compared_by_the_classes_that_all_of_them_have():
    label = np.array([0, 1, 2, 0, 1, 0, 1, 0, 1, 1])  # the second group has no image of class 2
    group = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    score = np.random.default_rng(4).dirichlet([1, 1, 1], len(label))
    scores = Scores(score, label, group, 3)
    for g in range(2):
        rows = group == g
        expected = [sklearn_metrics.roc_auc_score(label[rows] == c, score[rows, c]) for c in (0, 1)]
        assert per_group("auroc", scores)[g] == pytest.approx(np.mean(expected), abs=1e-12)
    every = [sklearn_metrics.roc_auc_score(label == c, score[:, c]) for c in range(3)]
    assert SCORE_METRICS["auroc"](scores) == pytest.approx(np.mean(every), abs=1e-12)

    label[group == 1] = 1  # now it has one class alone: undefined, and the first group goes by all of its own
    scores = Scores(score, label, group, 3)
    expected = [sklearn_metrics.roc_auc_score(label[:5] == c, score[:5, c]) for c in range(3)]
    np.testing.assert_allclose(per_group("auroc", scores), [np.mean(expected), np.nan, np.nan], atol=1e-12)


def test_groups_without_a_class_in_common_cannot_be_compared():
    score = np.random.default_rng(5).dirichlet([1, 1, 1, 1], 8)
    scores = Scores(score, [0, 1, 0, 1, 2, 3, 2, 3], [0, 0, 0, 0, 1, 1, 1, 1], 2)
    assert np.isnan(per_group("auroc", scores)).all()
    assert not np.isnan(SCORE_METRICS["auroc"](scores))
    assert np.isnan(every_interval(scores)).any()


# --- what must not change a number, and what is undefined -----------------------------------------------------------


@st.composite
def tables(draw, num_classes=2):
    num_groups = draw(st.integers(1, 4))
    size = draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**32))
    generator = np.random.default_rng(seed)
    score, label, group = some(generator, size, num_groups, draw(st.integers(2, 20)), num_classes)
    keep = generator.random(len(label)) < 0.8
    return score[keep], label[keep], group[keep], num_groups


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_and_the_names_of_groups_change_nothing(data):
    score, label, group, num_groups = data.draw(tables(data.draw(st.sampled_from([2, 3]))))
    scores = Scores(score, label, group, num_groups)
    order = data.draw(st.permutations(range(len(label)))) if len(label) else []
    shuffled = Scores(score[order], label[order], group[order], num_groups)
    np.testing.assert_allclose(every_value(shuffled), every_value(scores), atol=1e-12)
    np.testing.assert_allclose(every_interval(shuffled), every_interval(scores), atol=1e-6)

    name = np.array(data.draw(st.permutations(range(num_groups))))
    renamed = Scores(score, label, name[group], num_groups)
    for measure in SCORE_MEASURES:
        np.testing.assert_allclose(per_group(measure, renamed)[name], per_group(measure, scores), atol=1e-12)
    ours, theirs = metrics.score_intervals(scores), metrics.score_intervals(renamed)
    np.testing.assert_allclose([*theirs.values()], [*ours.values()], atol=1e-6)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_an_absent_group_changes_nothing(data):
    score, label, group, num_groups = data.draw(tables())
    absent = data.draw(st.integers(0, num_groups))
    with_absent = Scores(score, label, group + (group >= absent), num_groups + 1)
    without = Scores(score, label, group, num_groups)
    np.testing.assert_equal(metrics.evaluate_scores(with_absent), metrics.evaluate_scores(without))
    np.testing.assert_equal(metrics.score_intervals(with_absent), metrics.score_intervals(without))
    ours, theirs = metrics.group_score_intervals(without), metrics.group_score_intervals(with_absent)
    for name, interval in theirs.items():
        assert all(np.isnan(part[absent]) for part in interval[:3])
        assert interval.n[absent] == 0
        np.testing.assert_equal([np.delete(part, absent) for part in interval], [*ours[name]])


@given(tables())
@settings(max_examples=40, deadline=None)
def test_with_one_group_its_numbers_are_those_of_all_and_there_is_no_gap(table):
    score, label, _, _ = table
    scores = Scores(score, label, np.zeros_like(label), 1)
    values, intervals = metrics.evaluate_scores(scores), metrics.score_intervals(scores)
    for name in SCORE_MEASURES:
        np.testing.assert_equal([values[name], values[f"{name}_worst"]], [per_group(name, scores)[0]] * 2)
        np.testing.assert_allclose(intervals[f"{name}_worst"], intervals[name])
    assert all(math.isnan(part) for name in OF_PAIRS for part in intervals[name][:3])


@given(tables(), st.sampled_from([np.square, np.sqrt, lambda score: score / 2 + 0.25, lambda score: np.sin(score)]))
@settings(max_examples=40, deadline=None)
def test_what_keeps_the_order_of_scores_leaves_rankings_alone(table, change):
    score, label, group, num_groups = table
    scores, changed = Scores(score, label, group, num_groups), Scores(change(score), label, group, num_groups)
    names = [name for name in SCORE_METRICS if name.startswith(RANKED)]
    np.testing.assert_equal(metrics.score_intervals(changed, names), metrics.score_intervals(scores, names))
    for name in RANKED:
        np.testing.assert_equal(per_group(name, changed), per_group(name, scores))


def test_exchanging_the_classes_keeps_everything_but_average_precision():
    score, label, group = some(np.random.default_rng(6), 100, 3, 16)
    ours, theirs = Scores(score, label, group, 3), Scores(1 - score, 1 - label, group, 3, bins=15)
    names = [name for name in SCORE_METRICS if name.startswith(("auroc", "brier"))]
    ours, theirs = metrics.score_intervals(ours, names), metrics.score_intervals(theirs, names)
    np.testing.assert_allclose([*theirs.values()], [*ours.values()], atol=1e-12)


def test_two_columns_are_as_good_as_one():
    score, label, group = some(np.random.default_rng(7))
    table = Scores(np.stack([1 - score, score], axis=1), label, group, 3)
    np.testing.assert_array_equal(every_interval(table), every_interval(Scores(score, label, group, 3)))


@pytest.mark.parametrize("only", [0, 1])
def test_a_group_without_positive_or_negative_images_is_undefined_and_so_is_the_gap(only):
    scores = Scores([0.2, 0.7, 0.6, 0.3], [0, 1, only, only], [0, 0, 1, 1], 3)
    intervals = metrics.score_intervals(scores)
    for name in RANKED:
        np.testing.assert_equal(per_group(name, scores), [1.0, np.nan, np.nan])
        for kind in ("difference", "ratio", "worst"):
            assert all(math.isnan(part) for part in intervals[f"{name}_{kind}"][:3])
        assert intervals[name].low <= intervals[name].value <= intervals[name].high
        low, high = metrics.group_score_intervals(scores, [name])[name][1:3]
        assert low[0] < high[0] == 1
        assert np.isnan([low[1:], high[1:]]).all()
    assert not math.isnan(intervals["brier_score_difference"].low)


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_no_images_have_no_values(shape):
    scores = Scores(np.zeros(shape), [], [], 2)
    assert np.isnan([*metrics.evaluate_scores(scores).values()]).all()
    assert all(math.isnan(interval.low) and interval.n == 0 for interval in metrics.score_intervals(scores).values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 1.5], [0, 1], [0, 0], 1), "between 0 and 1; row 1 has 1.5"),
        (([0.5, -0.1], [0, 1], [0, 0], 1), "between 0 and 1; row 1 has -0.1"),
        (([np.nan, 0.1], [0, 1], [0, 0], 1), "between 0 and 1; row 0 has nan"),
        (([[0.5, 0.5, np.nan]], [0], [0], 1), "between 0 and 1; row 0 has nan"),
        (([[0.5, 0.3, 0.19]], [0], [0], 1), "must add up to 1; those of row 0 make 0.99"),
        (([[0.5], [0.4]], [0, 1], [0, 0], 1), "two classes or more; it is float64 of shape"),
        ((0.5, [0], [0], 1), "one row of numbers"),
        ((["a"], [0], [0], 1), "one row of numbers"),
        (([0.5], [2], [0], 1), "label must lie between 0 and 1; row 0 has 2"),
        (([0.5], [0.5], [0], 1), "label must be one row of whole numbers"),
        (([0.5], [1], [1], 1), "group must lie between 0 and 0; row 0 has 1"),
        (([0.5, 0.5], [1], [0], 1), "equally long; they have 2, 1, 1 rows"),
        (([0.5], [1], [0], 0), "one group and one bin at least, not 0 and 15"),
        (([0.5], [1], [0], 1, 0), "one group and one bin at least, not 1 and 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        Scores(*arguments)


def test_what_can_be_scored_is_taken_as_it_comes():
    expected = every_value(Scores([0.25, 0.5, 1.0, 0.0], [0, 1, 1, 0], [0, 1, 0, 1], 2))
    half = np.array([0.25, 0.5, 1.0, -0.0], dtype=np.float16)
    taken = Scores(half, np.array([0, 1, 1, 0], dtype=bool), np.array([0, 1, 0, 1], dtype=np.uint8), 2)
    np.testing.assert_array_equal(every_value(taken), expected)
    assert Scores([0, 1, 1], [0, 1, 1], [0, 0, 0], 1).score.dtype == np.float64
    assert Scores([[0.3333, 0.3333, 0.3333]], [0], [0], 1).score.shape == (1, 3)


def test_what_is_not_known_is_refused_with_what_is():
    scores = Scores([0.5, 0.5], [0, 1], [0, 0], 1)
    with pytest.raises(UserError, match=r"'auroc_gap'.*did you mean"):
        metrics.evaluate_scores(scores, ["auroc_gap"])
    with pytest.raises(UserError, match="Unknown measure of scores 'auroc_worst'; did you mean 'auroc'"):
        metrics.group_score_intervals(scores, ["auroc_worst"])
    with pytest.raises(UserError, match="confidence"):
        metrics.score_intervals(scores, confidence=95)
    for clusters in ([0.5, 1.5], [1], [[1, 2]]):
        with pytest.raises(UserError, match="cluster must be"):
            metrics.score_intervals(scores, clusters=clusters)


def test_every_metric_of_scores_is_described():
    for name, metric in SCORE_METRICS.items():
        assert metric.name == name
        assert metric.definition.endswith(".")
        assert metric.source
        assert metric.title[0].isupper()
        assert metric.direction in ("higher", "lower")
        assert 0 == metric.range[0] < metric.range[1] <= 2
        assert name not in metrics.METRICS
    assert "expected_calibration_error_ratio" not in SCORE_METRICS


def test_importing_loads_numpy_alone():
    code = (
        "import sys, evenlens.metrics.score_table; print(*{'torch', 'scipy', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# --- how far values may be off --------------------------------------------------------------------------------------


def test_the_variance_of_the_auroc_is_that_of_delong():
    generator = np.random.default_rng(8)
    for levels in (4, 1000):
        score, label, group = some(generator, 80, 2, levels)
        variance = ESTIMATES["auroc"](Drawn.of(Scores(score, label, group, 2), None)).variance
        for g in range(2):
            positive, negative = score[(label == 1) & (group == g)], score[(label == 0) & (group == g)]
            wins = (positive[:, None] > negative) + (positive[:, None] == negative) / 2
            expected = wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
            assert variance[g] == pytest.approx(expected, rel=1e-10)


def weighted(name, score, label, weight):
    if name == "auroc":
        return sklearn_metrics.roc_auc_score(label, score, sample_weight=weight)
    if name == "average_precision":
        return sklearn_metrics.average_precision_score(label, score, sample_weight=weight)
    return sklearn_metrics.brier_score_loss(label, score, sample_weight=weight)


@pytest.mark.parametrize("levels", [5, 10**6])
@pytest.mark.parametrize("name", ["auroc", "average_precision", "brier_score"])
def test_variances_are_made_of_what_a_small_change_of_weight_does(name, levels):
    score, label, group = some(np.random.default_rng(9), 50, 1, levels)
    clusters = np.arange(len(label)) // 3
    change = []
    for i in range(len(label)):
        values = []
        for step in (1e-5, -1e-5):
            weight = np.ones(len(label))
            weight[i] += step
            values.append(weighted(name, score, label, weight))
        change.append((values[0] - values[1]) / 2e-5)
    change = np.array(change)
    sizes = [np.sum(label == 0), np.sum(label == 1)]
    if name == "auroc":
        expected = sum(n / (n - 1) * (change[label == side] ** 2).sum() for side, n in enumerate(sizes))
    else:
        n = sizes[1] if name == "average_precision" else len(label)
        expected = n / (n - 1) * (change**2).sum()
    scores = Scores(score, label, group, 1)
    assert ESTIMATES[name](Drawn.of(scores, None)).variance[0] == pytest.approx(expected, rel=1e-5)
    of_clusters = ESTIMATES[name](Drawn.of(scores, clusters)).variance[0]
    assert of_clusters == pytest.approx((np.bincount(clusters, change) ** 2).sum(), rel=0.15)  # but for n / (n - 1)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("clustered", [False, True])
def test_errors_and_correlations_are_those_of_a_plain_bootstrap(num_classes, clustered):
    generator = np.random.default_rng(10)
    size = 600
    person = generator.integers(0, 120, size) if clustered else np.arange(size)
    label, group = generator.integers(0, num_classes, 600)[person], generator.integers(0, 2, size)
    ease = generator.normal(0, 1, (600, num_classes))[person]  # a person's images are alike, in both groups
    lead = np.eye(num_classes)[label] + ease + generator.normal(0, 0.5, (size, num_classes))
    score = np.exp(lead) / np.exp(lead).sum(axis=1, keepdims=True)
    names = ("auroc", "average_precision", "brier_score")
    drawn = Drawn.of(Scores(score, label, group, 2), person if clustered else None)
    people = [np.flatnonzero(person == p) for p in np.unique(person)]
    values = []
    for _ in range(400):
        rows = np.concatenate([people[p] for p in generator.integers(0, len(people), len(people))])
        again = Scores(score[rows], label[rows], group[rows], 2)
        values.append([per_group(name, again) for name in names])
    values = np.array(values)
    for index, name in enumerate(names):
        estimates = ESTIMATES[name](drawn)
        np.testing.assert_allclose(np.sqrt(estimates.variance), values[:, index].std(axis=0), rtol=0.17)
        correlation = np.corrcoef(values[:, index].T)[0, 1]
        assert estimates.correlation[0, 1] == pytest.approx(correlation, abs=0.15)
        assert (estimates.correlation[0, 1] > 0.2) == clustered


def test_the_covariance_of_bins_is_that_of_plain_sums():
    generator = np.random.default_rng(11)
    score, label, group = some(generator, 200, 2, 20)
    for clusters in (None, generator.integers(0, 40, len(label))):
        scores = Scores(score, label, group, 2, bins=4)
        measured = Drawn.of(scores, clusters).bin_covariance
        for g in range(2):
            rows = group == g
            units = np.arange(rows.sum()) if clusters is None else clusters[rows]
            cell = np.maximum(np.ceil(score[rows] * 4).astype(int) - 1, 0)
            share = np.eye(4)[cell] * (label - score)[rows][:, None]
            share = (share - share.mean(axis=0)) / rows.sum()
            sums = np.array([share[units == unit].sum(axis=0) for unit in np.unique(units)])
            np.testing.assert_allclose(measured[g], sums.T @ sums, atol=1e-15)


@given(tables(), st.sampled_from(["numbers", "names"]))
@settings(max_examples=30, deadline=None)
def test_images_that_are_clusters_of_their_own_are_images(table, kind):
    score, label, group, num_groups = table
    scores = Scores(score, label, group, num_groups)
    clusters = 7 - 3 * np.arange(len(label)) if kind == "numbers" else [f"person {i}" for i in range(len(label))]
    np.testing.assert_allclose(every_interval(scores, clusters=clusters), every_interval(scores), atol=1e-7)


def test_copies_of_images_tell_nothing_if_they_are_known_to_be_copies():
    score, label, group = some(np.random.default_rng(12), 100, 2)
    names = [name for name in SCORE_METRICS if not name.startswith("expected")]
    once = metrics.score_intervals(Scores(score, label, group, 2), names)
    copies = Scores(np.tile(score, 3), np.tile(label, 3), np.tile(group, 3), 2)
    thrice = metrics.score_intervals(copies, names, clusters=np.tile(np.arange(len(label)), 3))
    fooled = metrics.score_intervals(copies, names)
    for name in names:
        assert thrice[name][:3] == pytest.approx(once[name][:3], abs=1e-7)
        assert fooled[name].high - fooled[name].low < once[name].high - once[name].low


def test_groups_of_the_same_people_differ_by_less_than_groups_of_others():
    generator = np.random.default_rng(13)
    label, group = generator.integers(0, 2, 800), np.zeros(800, dtype=int)
    score = sharper(generator, label, group, [1.5])
    scores = Scores(np.tile(score, 2), np.tile(label, 2), np.repeat([0, 1], 800), 2)
    same = metrics.score_intervals(scores, clusters=np.tile(np.arange(800), 2))
    others = metrics.score_intervals(scores, clusters=np.arange(1600))
    for name in ("auroc_difference", "average_precision_difference", "brier_score_difference"):
        assert same[name].high < others[name].high / 5


def test_a_ranking_that_is_thinned_out_has_the_same_value_and_nearly_the_same_variance(monkeypatch):
    generator = np.random.default_rng(14)
    label, group = generator.integers(0, 2, 40_000), generator.integers(0, 3, 40_000) // 2 * 2
    scores = Scores(sharper(generator, label, group, [1, 1, 2.5]), label, group, 3)
    exact = metrics.group_score_intervals(scores, RANKED)
    monkeypatch.setattr(score_errors, "LONG", 1000)
    coarse = metrics.group_score_intervals(scores, RANKED)
    assert len(Drawn.of(scores, None).rankings[0].group) <= 2 * score_errors.TIES
    for name in RANKED:
        np.testing.assert_array_equal(coarse[name].value, exact[name].value)
        np.testing.assert_allclose(coarse[name].low, exact[name].low, rtol=1e-5)
        np.testing.assert_allclose(coarse[name].high, exact[name].high, rtol=1e-5)


# --- intervals ------------------------------------------------------------------------------------------------------


@given(tables(), st.sampled_from([0.5, 0.95, 0.999]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_intervals_hold_their_value_and_stay_in_range(table, confidence, clustered):
    score, label, group, num_groups = table
    scores = Scores(score, label, group, num_groups)
    clusters = np.arange(len(label)) // 4 if clustered else None
    values = metrics.evaluate_scores(scores)
    for name, interval in metrics.score_intervals(scores, None, confidence, clusters).items():
        np.testing.assert_equal(interval.value, values[name])
        assert interval.n == len(label)
        if math.isnan(interval.value):
            assert math.isnan(interval.low)
            assert math.isnan(interval.high)
        else:
            lowest, highest = 0, 1
            assert lowest <= interval.low <= interval.value + 1e-12
            assert interval.value - 1e-12 <= interval.high <= highest


def test_more_confidence_makes_intervals_wider_and_more_images_narrower():
    generator = np.random.default_rng(15)
    label, group = generator.integers(0, 2, 8000), generator.integers(0, 3, 8000)
    score = sharper(generator, label, group, [0.8, 1.2, 2]) ** 1.5
    every, some_of = Scores(score, label, group, 3), Scores(score[:500], label[:500], group[:500], 3)
    of_all, of_some = metrics.score_intervals(every), metrics.score_intervals(some_of)
    sure = metrics.score_intervals(every, confidence=0.99)
    for name in SCORE_METRICS:
        assert of_all[name].high - of_all[name].low < of_some[name].high - of_some[name].low
        assert sure[name].low <= of_all[name].low
        assert sure[name].high > of_all[name].high


def test_a_perfect_or_constant_model_is_not_known_to_be_one():
    label, group = np.tile([0, 1], 10), np.repeat([0, 1], 10)
    perfect = metrics.score_intervals(Scores(label, label, group, 2))
    assert perfect["auroc"][:3] == pytest.approx((1, 1 - 0.305, 1), abs=1e-3)  # t of 19: 2.093; t^2 / (10 + t^2)
    assert perfect["brier_score"][:3] == pytest.approx((0, 0, 0.180), abs=1e-3)
    assert perfect["expected_calibration_error"].high > 0.15
    for name in ("auroc_difference", "average_precision_difference", "brier_score_difference"):
        assert perfect[name].low == 0
        assert perfect[name].high > 0.3
    assert perfect["auroc_ratio"].low < 0.7
    assert math.isnan(perfect["brier_score_ratio"].low)  # 0 / 0
    constant = metrics.score_intervals(Scores(np.full(20, 0.5), label, group, 2))
    assert constant["auroc"].low < 0.4
    assert constant["auroc"].high > 0.6


def test_a_ratio_with_a_perfect_group_has_an_interval():
    generator = np.random.default_rng(16)
    label, group = np.tile([0, 1], 40), np.repeat([0, 1], 40)
    score = np.where(group == 0, label, generator.random(80))
    ratio = metrics.score_intervals(Scores(score, label, group, 2))["brier_score_ratio"]  # of 0 by something
    assert ratio.value == ratio.low == 0
    assert 0.2 < ratio.high < 0.8


def test_the_calibration_error_of_a_small_group_is_not_taken_for_its_own():
    generator = np.random.default_rng(17)
    group = (np.arange(5300) < 300).astype(int)
    score = generator.random(5300)
    label = (generator.random(5300) < score).astype(int)  # calibrated, both
    scores = Scores(score, label, group, 2)
    value, low, _, _ = metrics.score_intervals(scores)["expected_calibration_error_difference"]
    assert value > 0.04
    assert low == 0
    wrong = metrics.score_intervals(Scores(np.where(group == 1, score**3, score), label, group, 2))
    assert wrong["expected_calibration_error_difference"].low > 0.02


def covered(interval, truth):
    return (interval.low - 1e-12 <= truth) & (truth <= interval.high + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 500])
@pytest.mark.parametrize("lift", [(1.2, 1.2), (0.6, 2.0)])
def test_intervals_cover_what_they_say(size, lift):
    generator = np.random.default_rng(size)
    group = np.repeat([0, 1], size)
    everyone = 400_000
    label = np.tile([0, 1], everyone)
    whole = np.repeat([0, 1], everyone)
    truth = Scores(sharper(generator, label, whole, lift), label, whole, 2)
    auroc = np.array([0.5 * (1 + math.erf(part / 2)) for part in lift])
    brier, precision = per_group("brier_score", truth), per_group("average_precision", truth)
    hits = []
    for _ in range(2000):
        label = generator.integers(0, 2, 2 * size)
        scores = Scores(sharper(generator, label, group, lift), label, group, 2)
        groups = metrics.group_score_intervals(scores)
        gap = metrics.score_intervals(scores, ["auroc_difference"])["auroc_difference"]
        hit = [covered(groups[name], true) for name, true in (("auroc", auroc), ("brier_score", brier))]
        hit.append(covered(groups["average_precision"], precision))
        hit.append(groups["expected_calibration_error"].low == 0)  # all are calibrated
        hits.append([*np.concatenate(hit), covered(gap, abs(auroc[0] - auroc[1]))])
    share = np.mean(hits, axis=0)
    assert (share > 0.92).all(), share
    assert (share[[0, 1, 2, 3, 8]] < 0.98).all(), share  # average precision and calibration may cover more
