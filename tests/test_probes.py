"""Probes: what the guesses of two of them say of each other; what one says is tested with the leakage of runs."""

import math

import numpy as np
import pytest
import torch

from evenlens import probes
from evenlens.probes import Guesses, Rows


def guesses(right, true):
    """Guesses of two groups that are right where they are said to be."""
    return Guesses(np.where(right, true, 1 - true), true, 2)


def drawn(generator, sizes, only_first, only_second, both):
    """Guesses of two probes on the same images, with the chances of each group for each outcome."""
    true = np.repeat(np.arange(2), sizes)
    chances = np.stack([only_first, only_second, both], axis=1)[true].cumsum(axis=1)
    outcome = (generator.random(len(true))[:, None] > chances).sum(axis=1)
    return guesses(np.isin(outcome, (0, 2)), true), guesses(np.isin(outcome, (1, 2)), true)


def test_the_difference_is_that_of_the_balanced_accuracies_and_its_interval_that_of_a_plain_bootstrap():
    generator = np.random.default_rng(0)
    first, second = drawn(generator, (300, 60), (0.3, 0.2), (0.1, 0.1), (0.5, 0.6))
    found = probes.difference(first, second)
    assert found.value == pytest.approx(first.balanced_accuracy().value - second.balanced_accuracy().value)
    replicates = []
    for _ in range(2000):
        recalls = []
        for group in (0, 1):
            inside = np.flatnonzero(first.true == group)
            again = generator.choice(inside, len(inside))
            recalls.append((first.guess[again] == group).mean() - (second.guess[again] == group).mean())
        replicates.append(np.mean(recalls))
    low, high = np.quantile(replicates, (0.025, 0.975))
    assert found.high - found.low == pytest.approx(high - low, rel=0.15)
    assert found.low < low + 0.02 < found.value < found.high
    assert found.n == 360
    unpaired = math.hypot(*(each.balanced_accuracy().high - each.balanced_accuracy().low for each in (first, second)))
    assert found.high - found.low < unpaired


def test_the_same_guesses_differ_by_exactly_nothing():
    first, _ = drawn(np.random.default_rng(1), (50, 50), (0.3, 0.2), (0.1, 0.1), (0.5, 0.6))
    assert probes.difference(first, first)[:3] == (0, 0, 0)


def test_a_group_that_is_always_better_told_in_ten_images_is_not_sure_to_be():
    true = np.repeat([0, 1], 10)
    found = probes.difference(guesses(true >= 0, true), guesses(true < 0, true))
    assert found.value == 1
    assert found.low < 0.99


def test_the_interval_of_a_difference_covers_the_truth():
    generator, only_first, only_second = np.random.default_rng(2), (0.25, 0.3), (0.1, 0.05)
    truth = np.mean(np.subtract(only_first, only_second))
    held = []
    for _ in range(300):
        found = probes.difference(*drawn(generator, (120, 40), only_first, only_second, (0.5, 0.5)))
        held.append(found.low <= truth <= found.high)
    assert 0.925 <= np.mean(held) <= 0.99


def test_what_is_told_is_the_mean_of_the_groups_recalls_and_groups_on_one_side_have_no_number():
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([7, 3, 5])[torch.randint(3, (900,), generator=generator)]
    inputs = torch.randn(900, 3, generator=generator) + group[:, None]
    fit = Rows(inputs[:500], group[:500], group[:500])
    judge = Rows(inputs[500:], group[500:], group[500:])
    judge = judge.keep(judge.group != 5)
    found = probes.guesses(fit, judge, "linear")
    assert found.num_groups == 2
    assert found.true.tolist() == [[3, 7].index(value) for value in judge.group.tolist()]
    recalls = [(found.guess[found.true == k] == k).mean() for k in (0, 1)]
    assert found.balanced_accuracy().value == pytest.approx(np.mean(recalls))
    assert probes.tell(fit, judge, "linear").balanced_accuracy == pytest.approx(np.mean(recalls))
    alone = probes.guesses(fit, judge.keep(judge.group == 3), "linear")
    assert all(math.isnan(part) for part in (*alone.balanced_accuracy()[:3], alone.chance))
    assert math.isnan(probes.difference(alone, alone).value)
