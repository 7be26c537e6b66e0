"""Predictions from anywhere: what is counted, and what is refused."""

import numpy as np
import pytest

import evenlens
from evenlens.errors import UserError

LABEL = [0, 0, 1, 1, 0, 1]
PREDICTION = [0, 1, 1, 1, 0, 0]
GROUP = ["a", "a", "a", "b", "b", "b"]


def test_predictions_are_counted_by_group_and_label():
    findings = evenlens.audit(LABEL, PREDICTION, GROUP)
    assert findings.group_names == ("a", "b")
    assert findings.class_names == ("0", "1")
    assert findings.counts.tolist() == [[[1, 1], [0, 1]], [[1, 0], [1, 1]]]
    assert findings.metrics["accuracy"] == pytest.approx(4 / 6)
    assert findings.by_group()["a"].value == pytest.approx(2 / 3)
    assert findings.metric("demographic_parity_difference").value == pytest.approx(1 / 3)


def test_words_numbers_and_tensors_are_all_good():
    import torch

    words = np.array(["no", "yes"])
    for label, prediction in (
        (words[LABEL], words[PREDICTION]),
        (words[LABEL].tolist(), words[PREDICTION].tolist()),
        (words[LABEL].astype(object), words[PREDICTION].astype(object)),
        (torch.tensor(LABEL), torch.tensor(PREDICTION)),
        (np.array(LABEL) == 1, np.array(PREDICTION) == 1),
        (np.array(LABEL, float), np.array(PREDICTION, float)),
    ):
        found = evenlens.audit(label, prediction, GROUP)
        assert found.counts.tolist() == evenlens.audit(LABEL, PREDICTION, GROUP).counts.tolist()


def test_given_names_keep_their_order_and_those_that_do_not_occur():
    findings = evenlens.audit(LABEL, PREDICTION, [2, 2, 2, 0, 0, 0], ["no", "yes", "maybe"], ["x", "y", "z"])
    assert findings.counts.shape == (3, 3, 3)
    assert findings.group_names == ("x", "y", "z")
    assert np.isnan(findings.by_group()["y"].value)


@pytest.mark.parametrize(
    ("label", "prediction", "group", "words"),
    [
        (LABEL[:5], PREDICTION, GROUP, "lists of one length"),
        ([], [], [], "not empty"),
        (1, 1, 1, "lists of one length"),
        ([[0, 1]], [[0, 1]], [[0, 1]], "lists of one length"),
        ([0.0, float("nan"), 1], [0, 1, 1], [0, 0, 1], "column label has 1 missing values"),
        ([0, 1, 1], [0, 1, 1], ["a", None, None], "column group has 2 missing values"),
        (["a", "b", float("nan")], ["a", "b", "a"], np.array(["a", "b", np.nan], object), "group has 1 missing"),
        (LABEL, [0.1, 0.9, 0.8, 0.7, 0.2, 0.4], GROUP, "column prediction holds 0.1: give the predicted class"),
        ([1, 1], [1, 1], [0, 1], "All labels and predictions are '1'"),
    ],
)
def test_what_cannot_be_counted_is_refused(label, prediction, group, words):
    with pytest.raises(UserError, match=words) as error:
        evenlens.audit(label, prediction, group)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"class_names": ["no"]}, "class values must be whole numbers from 0 to 0"),
        ({"class_names": "ny"}, "class names must be a list of different names"),
        ({"class_names": ["no", "no"]}, "class names must be a list of different names"),
        ({"group_names": ["x", "y"]}, "group values must be whole numbers from 0 to 1"),
        ({"class_names": []}, "class values must be whole numbers"),
    ],
)
def test_names_that_do_not_fit_are_refused(names, words):
    with pytest.raises(UserError, match=words):
        evenlens.audit(LABEL, PREDICTION, GROUP, **names)


def test_one_group_alone_has_rates_and_no_gaps():
    findings = evenlens.audit(LABEL, PREDICTION, ["a"] * 6)
    assert findings.by_group()["a"].value == pytest.approx(4 / 6)
    assert np.isnan(findings.metrics["demographic_parity_difference"])


def test_a_metric_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'accuracy'"):
        evenlens.audit(LABEL, PREDICTION, GROUP).metric("acuracy")
