"""The correction for a classifier's errors: against scipy, a closed form, and a simulation whose truth is known."""

import itertools
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import scipy.optimize

from evenlens.errors import UserError
from evenlens.generation import Confusion, correct, corrected, read_confusion
from evenlens.generation.correction import ILL
from evenlens.generation.distances import uniform


def rates(num, right):
    made = np.full((num, num), (1 - right) / (num - 1))
    np.fill_diagonal(made, right)
    return made


def test_without_errors_nothing_changes():
    shares = np.random.default_rng(0).dirichlet(np.ones(6))
    np.testing.assert_allclose(correct(shares, np.eye(6)), shares, atol=1e-12)
    one = np.array([0.0, 1, 0])
    np.testing.assert_allclose(correct(one, np.eye(3)), one, atol=1e-12)


def test_the_truth_is_recovered_and_two_classes_follow_the_closed_form():
    random = np.random.default_rng(1)
    for num in (2, 4, 9):
        truth, c = random.dirichlet(np.ones(num)), random.dirichlet(np.ones(num), num) * 0.4 + 0.6 * np.eye(num)
        np.testing.assert_allclose(correct(truth @ c, c), truth, atol=1e-9)
    for first, second, said in itertools.product((0.7, 0.95), (0.8, 0.99), (0.02, 0.3, 0.6, 0.97)):
        c = np.array([[first, 1 - first], [1 - second, second]])
        p = min(1, max(0, (said - (1 - second)) / (first + second - 1)))
        np.testing.assert_allclose(correct(np.array([said, 1 - said]), c), [p, 1 - p], atol=1e-9)


def test_the_search_finds_what_scipy_finds():
    random = np.random.default_rng(2)
    at_an_end = 0
    for _ in range(30):
        num = int(random.integers(2, 8))
        c, shares = random.dirichlet(np.full(num, 0.7), num), random.dirichlet(np.full(num, 0.5))
        found = correct(shares, c)
        assert (found >= 0).all()
        assert found.sum() == pytest.approx(1)
        best = scipy.optimize.minimize(
            lambda p, c=c, shares=shares: ((p @ c - shares) ** 2).sum(), uniform(num), method="SLSQP",
            bounds=[(0, 1)] * num, constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        assert ((found @ c - shares) ** 2).sum() <= best.fun + 1e-9
        at_an_end += (found < 1e-9).any()
    assert at_an_end > 5, "no problem was hard"


def test_a_classifier_that_tells_nothing_is_no_accident():
    found = correct(np.array([0.7, 0.3]), np.full((2, 2), 0.5))
    assert found.sum() == pytest.approx(1)
    assert Confusion(("a", "b"), np.full((2, 2), 10)).condition > 1e6
    assert Confusion(("a", "b"), np.diag([10, 20])).condition == pytest.approx(1)
    assert Confusion(("a", "b"), np.array([[3, 1], [0, 0]])).condition == np.inf
    assert Confusion(tuple("abcd"), np.full((4, 4), 9) + np.diag([1] * 4)).condition > ILL


def test_intervals_of_corrected_shares_cover_the_truth_where_raw_ones_do_not():
    truth, c = np.array([0.7, 0.2, 0.1]), rates(3, 0.8)
    random, inside, raw = np.random.default_rng(3), np.zeros(3), 0
    for seed in range(80):
        counts = random.multinomial(2000, truth @ c)
        errors = Confusion(tuple("abc"), random.multinomial(150, c, 3))
        found = corrected(counts, errors, uniform(3), replicates=150, seed=seed)
        inside += (found.shares.low <= truth) & (truth <= found.shares.high)
        raw += abs(counts[0] / 2000 - 0.7) < 0.03
        assert found.distances["total_variation"].low <= found.distances["total_variation"].value
    assert (inside / 80 >= 0.88).all(), inside
    assert raw == 0


def test_fewer_labelled_images_widen_the_intervals():
    c = (1000 * rates(3, 0.8)).round().astype(int)
    counts = np.array([600, 250, 150])
    few, many = (corrected(counts, Confusion(tuple("abc"), part), uniform(3), replicates=300) for part in (c // 20, c))
    assert ((few.shares.high - few.shares.low) > 1.5 * (many.shares.high - many.shares.low)).all()


# ---- reading


@pytest.mark.parametrize("head", ["truth,prediction", "label,prediction", "race.truth,race"])
def test_errors_are_counted_from_a_table(tmp_path, head):
    (tmp_path / "c.csv").write_text(f"{head}\nB,B\nA,B\nA,A\nA,A\n")
    found = read_confusion(tmp_path / "c.csv", "race")
    assert (found.classes, found.counts.tolist()) == (("A", "B"), [[2, 1], [0, 1]])
    np.testing.assert_allclose(found.rates, [[2 / 3, 1 / 3], [0, 1]])
    moved = found.among(["B", "A"])
    assert moved.counts.tolist() == [[1, 0], [1, 2]]
    with pytest.raises(UserError, match="has no image that truly is 'C'"):
        found.among(["A", "B", "C"])
    with pytest.raises(UserError, match=r"Unknown class of .*'B'"):
        found.among(["A"])


def test_a_prediction_that_is_never_true_needs_images(tmp_path):
    (tmp_path / "c.csv").write_text("truth,prediction\nA,B\nA,A\n")
    with pytest.raises(UserError, match="no image that truly is 'B'"):
        read_confusion(tmp_path / "c.csv", "race").among(["A", "B"])


def test_errors_are_counted_from_a_runs_validation_part(tmp_path):
    task = {"class_names": ["A", "B"], "group_names": ["x"], "sensitive": ["s"], "target": "race"}
    (tmp_path / "metrics.json").write_text(json.dumps({"task": task, "train_cells": [[1], [1]]}))
    columns = {"part": ["val", "val", "test"], "label": [0, 1, 1], "prediction": [1, 1, 0], "group": [0, 0, 0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "predictions.parquet")
    assert read_confusion(tmp_path, "race").counts.tolist() == [[0, 1], [0, 1]]
    assert read_confusion(tmp_path, "race", "test").counts.tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(("text", "said"), [
    ("a,b\n1,2\n", "does not say what is true and what was predicted"),
    ("truth,prediction\nA,\n", "has 1 missing values"),
])  # fmt: skip
def test_a_table_without_errors_is_refused(tmp_path, text, said):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_confusion(tmp_path / "c.csv", "race")
    with pytest.raises(UserError, match="There is no table"):
        read_confusion(tmp_path / "nowhere.csv", "race")
