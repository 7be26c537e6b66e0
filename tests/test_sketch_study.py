"""The sketching study's own quantities, against its code's arithmetic written out."""

import numpy as np
import pytest

from evenlens import metrics
from evenlens.errors import UserError
from evenlens.metrics import sketch_study


def rows(num=500, num_classes=7, seed=0):
    generator = np.random.default_rng(seed)
    label = generator.choice(num_classes, num, p=np.array([4, 4, 4, 1, 8, 2, 5])[:num_classes] / 28)
    prediction = np.where(generator.random(num) < 0.7, label, generator.integers(num_classes, size=num))
    return prediction, label, generator.integers(2, size=num)


def as_in_the_code(prediction, label, group, num_classes, batch):
    """Loops over batches, classes and groups, with the small number that the code adds."""
    found = []
    for start in range(0, len(label), batch):
        p, y, z = (each[start : start + batch] for each in (prediction, label, group))
        spd = abs(np.mean((p == y)[z == 1]) - np.mean((p == y)[z == 0]))
        share = {}
        for what, good in (("hit", True), ("miss", False)):
            for g in (0, 1):
                total = 0.0
                for c in range(num_classes):
                    of_c = (y == c) & ((p == y) == good)
                    total += ((of_c & (z == g)).sum() + 1e-8) / (of_c.sum() + 1e-8 * (2 if what == "hit" else 1))
                share[what, g] = total / num_classes
        eod = abs(share["hit", 0] - share["hit", 1])
        found.append((spd, eod, (eod + abs(share["miss", 0] - share["miss", 1])) / 2))
    return np.mean(found, axis=0)


@pytest.mark.parametrize("batch", [32, 100, 500])
def test_of_skin_lesions_they_are_the_codes(batch):
    p, y, z = rows()
    found = sketch_study.skin_lesions(p, y, z, 7, batch)
    assert list(found) == ["SPD", "EOD", "AOD"]
    assert list(found.values()) == pytest.approx(as_in_the_code(p, y, z, 7, batch), abs=1e-6)


def test_of_three_classes_the_shares_are_those_of_the_hand_example():
    label = np.array([0, 0, 0, 1, 1, 2])
    group = np.array([0, 0, 1, 0, 1, 1])
    prediction = np.array([0, 0, 0, 1, 0, 2])
    # hits of class 0: 2 and 1; of 1: 1 and 0; of 2: 0 and 1. Misses: one of class 1 in group 1.
    found = sketch_study.skin_lesions(prediction, label, group, 3, None)
    assert found["SPD"] == pytest.approx(1 - 2 / 3)
    assert found["EOD"] == pytest.approx(abs((1 - 2) / 3 - 1 + 1) / 3)
    assert found["AOD"] == pytest.approx((1 / 9 + 1 / 3) / 2)


def test_a_model_without_an_error_has_a_gap_where_groups_differ_in_size():
    label = np.repeat(np.arange(7), 10)
    group = np.tile([0] * 8 + [1] * 2, 7)
    found = sketch_study.skin_lesions(label, label, group, 7, None)
    assert found["SPD"] == 0
    assert found["EOD"] == pytest.approx(0.6)


def test_a_batch_without_a_group_is_left_out_of_the_difference_in_accuracy():
    label, group = np.zeros(64, dtype=int), np.repeat([0, 1], [32, 32])
    group[40] = 0
    prediction = label.copy()
    prediction[41:45] = 1
    found = sketch_study.skin_lesions(prediction, label, group, 7)
    assert found["SPD"] == pytest.approx(4 / 31)  # of the second batch alone
    assert np.isnan(sketch_study.skin_lesions(label[:32], label[:32], group[:32], 7)["SPD"])


def test_of_faces_they_are_standard_metrics_by_other_names():
    p, y, z = rows(num_classes=7)
    p, y = p % 2, y % 2
    counts = metrics.count(p, y, z, 2, 2)
    found = sketch_study.faces(p, y, z)
    assert found["DP"] == pytest.approx(abs(p[z == 0].mean() - p[z == 1].mean()))
    assert found["DP"] == pytest.approx(float(metrics.get("demographic_parity_difference")(counts)))
    wanted = sum(abs(p[(y == k) & (z == 0)].mean() - p[(y == k) & (z == 1)].mean()) for k in (0, 1))
    assert found["DEO"] == pytest.approx(wanted)
    assert found["DEO"] == pytest.approx(2 * float(metrics.get("average_absolute_odds_difference")(counts)))
    assert np.isnan(sketch_study.faces(np.array([1, 0]), np.array([1, 1]), np.array([0, 1]))["DEO"])


def test_three_groups_are_refused():
    with pytest.raises(UserError, match="group has values from 0 to 2"):
        sketch_study.faces(np.array([0, 1, 1]), np.array([0, 1, 1]), np.array([0, 1, 2]))
