"""Where evenlens says something else than fairlearn, on purpose: the table in the guide, held against both."""

import math

import pytest
from fairlearn import metrics as fairlearn

import evenlens


def both(name, label, prediction, group):
    theirs = getattr(fairlearn, name)(label, prediction, sensitive_features=group)
    return theirs, evenlens.audit(label, prediction, group).metrics[name]


def test_a_group_without_a_positive_example_is_undefined_and_not_apart():
    case = [1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0], list("aaabbb")
    for name in ("equal_opportunity_difference", "equalized_odds_difference"):
        theirs, ours = both(name, *case)
        assert theirs == 0.5
        assert math.isnan(ours)


def test_no_positive_example_at_all_is_undefined_and_not_equal():
    theirs, ours = both("equal_opportunity_difference", [0, 0, 0, 0], [0, 1, 0, 0], list("aabb"))
    assert theirs == 0.0
    assert math.isnan(ours)


def test_one_group_has_no_gap_which_is_not_a_gap_of_nothing():
    theirs, ours = both("demographic_parity_difference", [0, 1], [0, 1], ["a", "a"])
    assert theirs == 0.0
    assert math.isnan(ours)


def test_three_classes_are_each_held_against_the_rest():
    label, prediction, group = [0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 2, 2], list("aaabbb")
    with pytest.raises(ValueError, match="pos_label"):
        fairlearn.equalized_odds_difference(label, prediction, sensitive_features=group)
    # For class 0 nothing differs; for 1 the true positive rate (1 and 0), for 2 as well.
    assert evenlens.audit(label, prediction, group).metrics["equalized_odds_difference"] == pytest.approx(2 / 3)


def test_words_have_a_positive_class():
    theirs, ours = both("demographic_parity_difference", ["n", "y", "n", "y"], ["n", "y", "y", "y"], list("aabb"))
    assert theirs == 0.0, "no word is 1, so nobody is selected"
    assert ours == pytest.approx(0.5)
