"""How sure a rate of pairs is: against a plain loop, and how often the truth is covered where pairs share subjects."""

import math

import numpy as np
import pytest

from evenlens import metrics
from evenlens.verification import Pairs, verify
from evenlens.verification.resampling import Subjects, number_intervals, share_intervals


def pairs_of_subjects(seed=0, subjects=8, images=3, groups=2, share=0.0, threshold=None):
    """All pairs of some subjects' images; a part of the variance is the subjects', of both kinds of pairs."""
    generator = np.random.default_rng(seed)
    subject = np.repeat(np.arange(groups * subjects), images)
    group = subject // subjects
    first, second = np.triu_indices(len(subject), 1)
    kept = group[first] == group[second]
    first, second = first[kept], second[kept]
    effect = generator.normal(size=groups * subjects) * math.sqrt(share / 2)
    noise = generator.normal(size=len(first)) * math.sqrt(1 - share)
    genuine = subject[first] == subject[second]
    score = effect[subject[first]] + effect[subject[second]] + noise + 2 * genuine
    return Pairs.of(score, genuine, group[first], group[second], subjects=(subject[first], subject[second]))


def test_replicates_are_those_of_a_plain_loop():
    pairs = pairs_of_subjects()
    drawn = Subjects(pairs, replicates=40)
    rows = np.flatnonzero(np.random.default_rng(1).random(len(pairs)) < 0.8)
    columns = np.random.default_rng(2).random((len(rows), 2))
    found = drawn.means(rows, columns)
    for b in range(40):
        total, sums = 0.0, np.zeros(2)
        for row, column in zip(rows, columns, strict=True):
            one, other = pairs.subjects[row]
            weight = drawn.times[one, b] * (1 if one == other else drawn.times[other, b])
            total += weight
            sums += weight * column
        np.testing.assert_allclose(found[b], sums / total)


def test_each_subgroup_keeps_its_number_of_subjects():
    pairs = pairs_of_subjects(subjects=7, groups=3)
    times = Subjects(pairs, replicates=50).times
    for g in range(3):
        assert (times[7 * g : 7 * (g + 1)].sum(axis=0) == 7).all()
    assert times.std() > 0.8
    assert (Subjects(pairs, 50).times == times).all(), "the same seed"
    assert (Subjects(pairs, 50, seed=1).times != times).any()


def test_independent_pairs_are_no_surer_for_their_subjects_and_at_most_thrice_as_uncertain():
    pairs = pairs_of_subjects(subjects=30, images=2)
    columns = np.random.default_rng(0).random((len(pairs), 1))
    alone = math.sqrt(columns.var() / len(pairs))
    found = Subjects(pairs).deviation([(np.arange(len(pairs)), columns)])
    assert 1.2 * alone < found[0] < 1.1 * math.sqrt(3) * alone


def test_shares_of_independent_pairs_have_wilsons_interval():
    found = share_intervals(np.array([0.1, 0.0]), np.array([200.0, 50.0]), None, None)
    wilson = metrics.wilson([20, 0], [200, 50])
    np.testing.assert_allclose(found.low, [wilson.low[0], 0])
    np.testing.assert_allclose(found.high, wilson.high)


def test_a_design_effect_makes_pairs_worth_less_and_none_makes_them_worth_more():
    plain = math.sqrt(0.1 * 0.9 / 1000)
    value, n, many = np.full((1, 3), 0.1), np.full((1, 3), 1000.0), np.full((1, 3), 10**6)
    found = share_intervals(value, n, np.array([[plain, 2 * plain, plain / 2]]), many)
    expected = metrics.wilson([100, 25, 100], [1000, 250, 1000])
    np.testing.assert_allclose(found.low[0], expected.low, rtol=1e-4)
    np.testing.assert_allclose(found.high[0], expected.high, rtol=1e-4)
    few = share_intervals(value, n, np.full((1, 3), plain), np.full((1, 3), 5))
    assert (few.high - few.low > 1.3 * (found.high - found.low)[0, 0]).all(), "Student's t"


def test_where_nothing_was_accepted_the_largest_design_effect_of_the_others_is_taken():
    plain = math.sqrt(0.1 * 0.9 / 1000)
    found = share_intervals(np.array([[0.1, 0.0]]), np.full((1, 2), 1000.0), np.array([[3 * plain, 0]]),
                            np.full((1, 2), 10**6))  # fmt: skip
    assert found.high[0, 1] == pytest.approx(float(metrics.wilson(0, 1000 / 9).high), rel=1e-4)
    alone = share_intervals(np.array([[0.0]]), np.array([[1000.0]]), np.array([[0.0]]), np.array([[20]]))
    assert alone.high[0, 0] > float(metrics.wilson(0, 10).high), "two subjects are worth one pair"


def test_undefined_has_no_ends():
    for deviation, people in ((None, None), (np.array([math.nan]), np.array([0]))):
        found = share_intervals(np.array([math.nan]), np.array([0.0]), deviation, people)
        assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(number_intervals(np.array([math.nan]), np.array([math.nan]), np.array([0])).low).all()


def test_intervals_over_subjects_cover_where_those_over_pairs_do_not():
    """Forty subjects with four images; a third of what pairs differ in is whose they are."""
    threshold, target, share = 1.0, 0.15866, 0.3
    covered = {"subjects": 0, "pairs": 0}
    trials = 120
    for seed in range(trials):
        pairs = pairs_of_subjects(seed, subjects=40, images=4, groups=1, share=share)
        rows = np.flatnonzero(~pairs.genuine)
        accepted = (pairs.score[rows] >= threshold)[:, None].astype(float)
        value, n = accepted.mean(axis=0), np.array([float(len(rows))])
        spread = Subjects(pairs, 300).deviation([(rows, accepted)])
        for kind, found in (("subjects", share_intervals(value, n, spread, np.array([40]))),
                            ("pairs", share_intervals(value, n, None, None))):  # fmt: skip
            covered[kind] += bool(found.low[0] <= target <= found.high[0])
    assert covered["subjects"] >= 0.9 * trials
    assert covered["pairs"] < 0.4 * trials


def test_an_audit_of_pairs_that_share_subjects_is_less_sure_of_everything():
    pairs = pairs_of_subjects(0, subjects=20, images=6, share=0.7)
    alone = Pairs.of(pairs.score, pairs.genuine, pairs.first_group, pairs.second_group)
    ours, theirs = (verify(one, targets=(0.1,), folds=False, replicates=400).measured for one in (pairs, alone))
    for name in ("eer", "auc", "d_prime"):
        mine, other = (getattr(one.scores, name) for one in (ours, theirs))
        np.testing.assert_allclose(mine.value, other.value)
        assert (mine.high - mine.low > 1.1 * (other.high - other.low)).all(), name
    assert (np.ptp(ours.pooled.fmr[1:3], axis=0) > 1.2 * np.ptp(theirs.pooled.fmr[1:3], axis=0))[0].all()
