"""Shares, distances and their intervals: published values, formulas written out plainly, and coverage."""

import math
import re

import numpy as np
import pytest
import scipy.stats

from evenlens.errors import UserError
from evenlens.generation import distances, goodman
from evenlens.generation.distances import DISTANCES, beyond, chi_square, noise_floors, uniform
from evenlens.generation.distribution import Tally, describe, difference, tally
from evenlens.generation.labels import Attribute, Labels

# Shares as published, and what follows after normalising: KL in nats, total variation, 1 - evenness.
PUBLISHED = {
    "teacher4": ([0.73, 0.052, 0.164, 0.047], (0.563, 0.485, 0.406)),
    "student4": ([0.447, 0.126, 0.275, 0.150], (0.125, 0.224, 0.090)),
    "teacher7": ([0.66, 0.044, 0.099, 0.107, 0.037, 0.022, 0.022], (0.780, 0.525, 0.401)),
    "student7": ([0.317, 0.086, 0.273, 0.148, 0.095, 0.047, 0.033], (0.253, 0.310, 0.130)),
}


def some(counts, name="race"):
    codes = np.repeat(np.arange(len(counts)), counts)
    return Tally(name, tuple(f"c{k}" for k in range(len(counts))), codes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shares_have_the_published_distances(name):
    shares, expected = PUBLISHED[name]
    p = np.array(shares) / sum(shares)
    found = distances(p, uniform(len(p)))
    got = (float(found["kl"]), float(found["total_variation"]), 1 - float(found["evenness"]))
    assert got == pytest.approx(expected, abs=0.01)
    assert float(found["kl"]) == pytest.approx(got[2] * math.log(len(p)), abs=1e-12)


def test_distances_are_their_formulas():
    random = np.random.default_rng(0)
    p, t = random.dirichlet(np.ones(5), 20), random.dirichlet(np.ones(5))
    found = distances(p, t)
    for k, row in enumerate(p):
        middle = [(a + b) / 2 for a, b in zip(row, t, strict=True)]
        assert found["total_variation"][k] == pytest.approx(sum(abs(a - b) for a, b in zip(row, t, strict=True)) / 2)
        assert found["kl"][k] == pytest.approx(scipy.stats.entropy(row, t))
        js = (scipy.stats.entropy(row, middle) + scipy.stats.entropy(t, middle)) / 2
        assert found["js"][k] == pytest.approx(js)
        assert found["l2"][k] == pytest.approx(math.dist(row, t))
        assert found["evenness"][k] == pytest.approx(-sum(a * math.log(a) for a in row) / math.log(5))
        assert found["min_max_ratio"][k] == pytest.approx(min(row) / max(row))


def test_distances_at_their_ends():
    met = distances(uniform(4), uniform(4))
    assert [float(met[name]) for name in DISTANCES] == pytest.approx([0, 0, 0, 0, 1, 1], abs=1e-12)
    one = distances(np.array([1.0, 0, 0]), np.array([0.5, 0.5, 0]))
    assert float(one["evenness"]) == float(one["min_max_ratio"]) == 0
    assert float(one["kl"]) == pytest.approx(math.log(2))
    apart = distances(np.array([1.0, 0]), np.array([0.0, 1]))
    assert (float(apart["total_variation"]), float(apart["js"])) == pytest.approx((1, math.log(2)))
    assert math.isnan(apart["kl"])


def test_noise_floors_are_the_published_ones_and_what_a_simulation_gives():
    floors = noise_floors(uniform(7), 5000)
    assert floors["kl"] == pytest.approx(6e-4, rel=1e-9)
    assert floors["total_variation"] == pytest.approx(0.0138, abs=5e-5)
    t = np.array([0.5, 0.3, 0.15, 0.05])
    drawn = distances(np.random.default_rng(1).multinomial(2000, t, 20_000) / 2000, t)
    for name, expected in noise_floors(t, 2000).items():
        assert float(drawn[name].mean()) == pytest.approx(expected, rel=0.03)


def test_the_chi_square_test_agrees_with_scipy():
    random = np.random.default_rng(2)
    for num in (2, 3, 7, 18, 126):
        t = random.dirichlet(np.full(num, 5.0))
        for share in (t, random.dirichlet(np.full(num, 5.0))):
            counts = random.multinomial(3000, share)
            found = chi_square(counts, t)
            expected = scipy.stats.chisquare(counts, t * counts.sum())
            assert found.statistic == pytest.approx(expected.statistic)
            assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
            assert found.effect == pytest.approx(math.sqrt(expected.statistic / 3000))
            g = scipy.stats.power_divergence(counts, t * counts.sum(), lambda_="log-likelihood")
            assert found.g == pytest.approx(g.statistic)
    for degrees in (1, 2, 3, 8, 99, 2000):
        for x in (0.0, 0.01, 1.0, degrees, 3 * degrees, 5000.0):
            assert beyond(x, degrees) == pytest.approx(scipy.stats.chi2.sf(x, degrees), rel=1e-8, abs=1e-290)


def test_a_category_of_which_the_target_has_none():
    t = np.array([0.5, 0.5, 0])
    assert math.isnan(chi_square(np.array([5, 5, 1]), t).p_value)
    without = chi_square(np.array([60, 40, 0]), t)
    assert (without.degrees, without.statistic) == (1, pytest.approx(4.0))
    found = describe(some([5, 5, 1]), t)
    assert math.isnan(found.distances["kl"].value)
    assert math.isnan(found.distances["kl"].low)
    assert found.distances["total_variation"].value == pytest.approx(1 / 11)


def test_goodmans_intervals_are_the_formula_and_hold_together():
    counts = np.array([330, 140, 25, 5])
    found, n = goodman(counts, 0.9), counts.sum()
    a = scipy.stats.chi2.ppf(1 - 0.1 / 4, 1)
    for k, count in enumerate(counts):
        root = math.sqrt(a * (a + 4 * count * (n - count) / n))
        assert found.low[k] == pytest.approx((a + 2 * count - root) / (2 * (n + a)))
        assert found.high[k] == pytest.approx((a + 2 * count + root) / (2 * (n + a)))
    t = np.array([0.4, 0.3, 0.2, 0.1])
    drawn = np.random.default_rng(3).multinomial(400, t, 4000)
    each = goodman(drawn)
    share = ((each.low <= t) & (t <= each.high)).all(axis=1).mean()
    assert share == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("t", [
    PUBLISHED["teacher4"][0], PUBLISHED["student7"][0], [1, 1, 1, 1], [0.27, 0.25, 0.25, 0.23],
    np.linspace(0.8, 1.2, 18),
], ids=["teacher", "student", "uniform", "nearly", "nearly, of 18"])  # fmt: skip
def test_intervals_of_distances_cover_the_truth(t):
    truth = np.array(t) / sum(t)
    target = uniform(len(truth))
    true = distances(truth, target)
    random, inside = np.random.default_rng(4), dict.fromkeys(DISTANCES, 0)
    for seed in range(80):
        found = describe(some(random.multinomial(1000, truth)), None, replicates=200, seed=seed).distances
        for name in DISTANCES:
            inside[name] += found[name].low - 1e-9 <= float(true[name]) <= found[name].high + 1e-9
    for name in ("total_variation", "kl", "js", "l2", "evenness"):
        assert inside[name] / 80 >= 0.87, (name, inside)  # a percentile interval of the last: 0.35


def test_a_target_that_is_met_lies_in_the_interval_and_one_that_is_not_does_not():
    met, missed = describe(some([260, 240, 255, 245])), describe(some([700, 100, 100, 100]))
    for name, (ideal, _) in DISTANCES.items():
        assert met.distances[name].low <= ideal <= met.distances[name].high
        assert not missed.distances[name].low <= ideal <= missed.distances[name].high
    given = describe(some([700, 100, 100, 100]), np.array([0.7, 0.1, 0.1, 0.1]))
    assert given.distances["total_variation"][:2] == pytest.approx((0, 0))
    assert given.distances["evenness"].high < 1, "evenness knows no other target than equal shares"


def test_what_cannot_be_told_is_refused():
    with pytest.raises(UserError, match="no image has a category"):
        describe(some([0, 0]))
    with pytest.raises(UserError, match="'c0' is its only category"):
        describe(some([5]))
    with pytest.raises(UserError, match="A confidence lies between"):
        describe(some([5, 5]), confidence=1.5)


def test_crossed_attributes_and_mean_probabilities():
    race, gender = np.array([0, 0, 1, 2, -1]), np.array([0, 1, 1, 1, 0])
    probability = np.array([[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0, 1, 0], [0.1, 0.1, 0.8], [np.nan] * 3])
    labels = Labels(
        np.array(list("abcde")), np.zeros(5, dtype=int), np.ones(5, dtype=int),
        {"race": Attribute(("x", "y", "z"), race, probability), "gender": Attribute(("m", "f"), gender)},
    )  # fmt: skip
    both = tally(labels, "race", "gender")
    assert both.name == "race x gender"
    assert both.categories == ("x, m", "x, f", "y, m", "y, f", "z, m", "z, f")
    assert both.counts.tolist() == [1, 1, 0, 1, 0, 1]
    assert both.probability is None
    mean = describe(tally(labels, "race")).mean_probability
    np.testing.assert_allclose(mean.value, [1.5 / 4, 1.4 / 4, 1.1 / 4])
    assert (mean.low <= mean.value).all()
    assert (mean.value <= mean.high).all()
    assert mean.n[0] == 4
    assert describe(tally(labels, "gender")).mean_probability is None
    wide = labels.attribute("race").among(("y", "w", "x", "z"))
    assert wide.codes.tolist() == [2, 2, 0, 3, -1]
    np.testing.assert_array_equal(wide.probability[:4, [2, 0, 3]], probability[:4])
    assert (wide.probability[:4, 1] == 0).all()
    assert np.isnan(wide.probability[4]).all()


# ---- two generators


def test_pairs_narrow_a_difference_and_what_has_no_partner_counts():
    random = np.random.default_rng(5)
    one = random.choice(3, 3000, p=[0.6, 0.3, 0.1])
    changed = random.random(3000) < 0.05
    two = np.where(changed, 2, one)
    first, other = some([0, 0, 0]), some([0, 0, 0])
    first, other = (Tally("race", first.categories, codes) for codes in (one, two))
    paired = difference(first, other, (one, two), uniform(3))
    alone = difference(first, other, None, uniform(3))
    assert (paired.paired, paired.pairs, alone.paired) == (True, 3000, False)
    assert paired.agreement.value == pytest.approx((one == two).mean())
    assert math.isnan(alone.agreement.value)
    for name in DISTANCES:
        near, far = paired.distances[name], alone.distances[name]
        assert near.value == far.value
        assert near.low <= near.value <= near.high
    width = [made.distances["total_variation"].high - made.distances["total_variation"].low for made in (paired, alone)]
    assert width[0] < 0.5 * width[1]
    np.testing.assert_allclose(paired.shares.value, np.bincount(two) / 3000 - np.bincount(one) / 3000)
    missing = np.where(random.random(3000) < 0.3, -1, two)
    lacking = Tally("race", first.categories, missing)
    found = difference(first, lacking, (one, missing), uniform(3))
    assert found.pairs == (missing >= 0).sum()
    assert (found.shares.low < found.shares.value).all()
    assert (found.shares.value < found.shares.high).all()
    np.testing.assert_allclose(
        found.shares.value, np.bincount(missing[missing >= 0]) / (missing >= 0).sum() - np.bincount(one) / 3000
    )


def test_the_interval_of_a_difference_covers_the_truth():
    p, q, random, inside = np.array([0.6, 0.3, 0.1]), np.array([0.5, 0.3, 0.2]), np.random.default_rng(6), 0
    truth = float(distances(q, uniform(3))["total_variation"] - distances(p, uniform(3))["total_variation"])
    for seed in range(200):
        one, two = some(random.multinomial(800, p)), some(random.multinomial(800, q))
        found = difference(one, two, None, uniform(3), replicates=300, seed=seed).distances["total_variation"]
        inside += found.low <= truth <= found.high
    assert 0.9 <= inside / 200 <= 0.99


def test_the_same_seed_gives_the_same_numbers():
    assert repr(describe(some([50, 30]))) == repr(describe(some([50, 30])))
    assert re.search("low", repr(describe(some([50, 30]), seed=1))) is not None
    assert describe(some([50, 30]), seed=1).distances["kl"] != describe(some([50, 30])).distances["kl"]
