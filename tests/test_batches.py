"""Orders in which rows are visited: what each promises about how often."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenlens.data.batches import balanced, shuffled, take_per_cell, weighted


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_shuffled_visits_each_row_once_in_another_order():
    rows = torch.arange(5, 105)
    visited = shuffled(rows, seeded())
    assert not torch.equal(visited, rows)
    assert torch.equal(visited.sort().values, rows)
    assert len(shuffled(rows[:0], seeded())) == 0


def test_weighted_draws_in_proportion_and_never_what_weighs_nothing():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    counts = torch.bincount(weighted(weights, 20_000, seeded()), minlength=6)
    assert counts[weights == 0].sum() == 0
    assert torch.allclose(counts / 20_000, weights / 10, atol=0.02)


def test_weighted_takes_more_rows_than_torch_multinomial_can():
    weights = torch.ones(2**24 + 2)
    assert weighted(weights, 5, seeded()).max() < len(weights)


def test_balanced_makes_every_cell_that_has_rows_equally_likely():
    cell = torch.tensor([0] * 900 + [2] * 90 + [5] * 10)
    counts = torch.bincount(cell[balanced(cell, seeded()).repeat(1)], minlength=6)
    assert len(balanced(cell, seeded())) == len(cell)
    assert counts[[1, 3, 4]].sum() == 0
    assert torch.allclose(counts[[0, 2, 5]] / 1000, torch.full((3,), 1 / 3), atol=0.06)


@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=60), st.lists(st.integers(0, 90), min_size=4, max_size=4),
    st.integers(0, 99),
)  # fmt: skip
def test_a_quota_is_met_in_every_cell_and_no_row_is_ahead_of_another_by_more_than_one(cells, quota, seed):
    cell, quota = torch.tensor(cells, dtype=torch.long), torch.tensor(quota)
    taken = take_per_cell(cell, quota, seeded(seed))
    assert torch.equal(taken, taken.sort().values)
    times = torch.bincount(taken, minlength=len(cell))
    for number in range(4):
        inside = times[cell == number]
        if len(inside):
            assert inside.sum() == quota[number]
            assert inside.max() - inside.min() <= 1


def test_without_replacement_every_row_of_a_cell_is_equally_likely():
    cell, quota = torch.zeros(10, dtype=torch.long), torch.tensor([3])
    counts = sum(torch.bincount(take_per_cell(cell, quota, seeded(seed)), minlength=10) for seed in range(500))
    assert counts.float().div(500).sub(0.3).abs().max() < 0.08


@pytest.mark.parametrize("draw", [
    lambda g: shuffled(torch.arange(50), g),
    lambda g: weighted(torch.rand(50, generator=seeded()), 30, g),
    lambda g: balanced(torch.arange(50) % 3, g),
    lambda g: take_per_cell(torch.arange(50) % 3, torch.tensor([4, 4, 4]), g),
])  # fmt: skip
def test_the_same_seed_gives_the_same_order_and_another_seed_another(draw):
    assert torch.equal(draw(seeded(1)), draw(seeded(1)))
    assert not torch.equal(draw(seeded(1)), draw(seeded(2)))
