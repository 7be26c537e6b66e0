"""The rules by which an epoch is kept."""

import math

import numpy as np
import pytest
import torch

from evenlens import metrics, run
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.selecting import Rule

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.0, 3.0]])
LABEL = torch.tensor([0, 1, 1, 0])
GROUP = torch.tensor([0, 0, 1, 1])
COUNTS = metrics.count(LOGITS.argmax(1).numpy(), LABEL.numpy(), GROUP.numpy(), 2, 2)
CELLS = np.ones((2, 2), dtype=np.int64)


def cross_entropy():
    total = 0.0
    for logits, label in zip(LOGITS.tolist(), LABEL.tolist(), strict=True):
        total -= math.log(math.exp(logits[label]) / sum(math.exp(value) for value in logits))
    return total / 4


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("accuracy", 0.5),
        ("cross_entropy", cross_entropy()),
        ("cross_entropy+accuracy_difference", cross_entropy() + 1.0),
        ("cross_entropy+0.5*accuracy_difference", cross_entropy() + 0.5),
        ("cross_entropy+demographic_parity_difference", cross_entropy()),  # one of two is selected in each group
    ],
)
def test_a_score_is_the_metric_the_error_or_their_sum(name, wanted):
    assert Rule.of(name).score(LOGITS, LABEL, COUNTS, CELLS) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("accuracy", False),
        ("equalized_odds_difference", True),
        ("cross_entropy", True),
        ("cross_entropy+2*accuracy_difference", True),
        ("last", True),
    ],
)
def test_less_is_better_where_it_is_an_error_or_a_gap(name, kept):
    assert Rule.of(name).prefers(0.2, 0.3) == kept
    assert Rule.of(name).prefers(0.3, 0.3) == (name == "last")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acuracy", "rule to select by 'acuracy'.*accuracy"),
        ("cross_entropy+acuracy_difference", "accuracy_difference"),
        ("cross_entropy+accuracy", "of which more is better"),
        ("cross_entropy+", "rule to select by"),
        ("cross_entropy+-1*accuracy_difference", "rule to select by"),
    ],
)
def test_what_is_no_rule_is_refused(name, said):
    with pytest.raises(UserError, match=said):
        Rule.of(name)


def test_a_gap_that_is_undefined_is_refused_by_the_rules_name():
    only = metrics.count(np.array([0, 1]), np.array([0, 1]), np.array([0, 0]), 2, 2)
    with pytest.raises(UserError, match=r"select=cross_entropy\+2\*accuracy_difference is undefined"):
        Rule.of("cross_entropy+2*accuracy_difference").measured(only, CELLS)


@pytest.mark.parametrize("select", ["cross_entropy", "cross_entropy+demographic_parity_difference"])
def test_a_run_keeps_the_epoch_with_the_lowest_sum(select, tmp_path):
    settings = {"train.epochs": 4, "train.batch_size": 64, "precision": "fp32", "data.num": 300, "select": select,
                "train.learning_rate": 0.02}  # fmt: skip
    made = run.train(make_config("tiny", "erm", settings), tmp_path)
    scores = [entry[f"val_{select}"] for entry in made.log]
    assert made.metrics["selected_epoch"] == 1 + scores.index(min(scores))
    assert len({*scores}) == 4
    columns = made.predictions("val")
    logits = torch.from_numpy(np.stack([columns["logit.0"], columns["logit.1"]], 1))
    again = torch.nn.functional.cross_entropy(logits, torch.from_numpy(columns["label"])).item()
    if "+" in select:
        selected = [columns["prediction"][columns["group"] == group].mean() for group in range(2)]
        again += abs(selected[0] - selected[1])
    assert min(scores) == pytest.approx(again, abs=1e-5)
