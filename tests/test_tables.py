"""Label tables: crossings of columns, and splits that stay put."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenlens.data.tables import PARTS, UNUSED, Column, Table, combine, position, split_by_hash, split_fingerprint
from evenlens.errors import UserError

SHARES = {"tune": 0.1, "val": 0.2, "test": 0.3}
names_of = st.lists(st.text(max_size=12), unique=True, min_size=1, max_size=40)


@given(names_of, names_of, st.integers(0, 2**40), st.randoms())
def test_adding_and_reordering_rows_never_moves_a_row(names, others, seed, shuffle):
    before = dict(zip(names, split_by_hash(names, SHARES, seed), strict=True))
    more = [*names, *(name for name in others if name not in before)]
    shuffle.shuffle(more)
    after = dict(zip(more, split_by_hash(more, SHARES, seed), strict=True))
    assert {name: after[name] for name in names} == before


@given(st.integers(0, 100))
def test_the_parts_are_disjoint_and_of_the_asked_sizes(seed):
    names = [f"{number}.jpg" for number in range(3000)]
    parts = split_by_hash(names, SHARES, seed)
    shares = np.bincount(parts, minlength=len(PARTS)) / len(names)
    assert shares.sum() == pytest.approx(1)
    for part, wanted in {**SHARES, "train": 0.4}.items():
        assert shares[PARTS.index(part)] == pytest.approx(wanted, abs=0.05)


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    names = [str(number) for number in range(200)]
    first, again, other = (split_by_hash(names, SHARES, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_positions_are_pinned():
    """Whoever changes the hash changes every published split."""
    assert position(["a.jpg", "b.jpg"], 1).tolist() == pytest.approx([0.8738375717, 0.2416352164], abs=1e-9)


def test_a_split_fingerprint_ignores_the_order_and_the_unused_rows():
    names, parts = ["a", "b", "c"], np.array([0, 2, UNUSED])
    assert split_fingerprint(names, parts) == split_fingerprint(["c", "b", "a", "d"], np.array([-1, 2, 0, -1]))
    assert split_fingerprint(names, parts) != split_fingerprint(names, np.array([0, 3, -1]))


def test_crossed_columns_count_in_mixed_radix_and_every_combination_exists():
    two = Column(("f", "m"), np.array([0, 1, 1, -1]))
    three = Column(("x", "y", "z"), np.array([2, 0, -1, 1]))
    crossed = combine([two, three])
    assert crossed.levels == ("f, x", "f, y", "f, z", "m, x", "m, y", "m, z")
    assert crossed.codes.tolist() == [2, 3, -1, -1]
    assert combine([two]).levels == two.levels


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 1000))
def test_a_crossing_is_told_apart_from_every_other(sizes, seed):
    generator = np.random.default_rng(seed)
    columns = [Column(tuple(map(str, range(size))), generator.integers(size, size=50)) for size in sizes]
    crossed = combine(columns)
    assert len(crossed.levels) == np.prod(sizes)
    for code, *parts in zip(crossed.codes, *(column.codes for column in columns), strict=True):
        assert crossed.levels[code] == ", ".join(map(str, parts))


def test_a_code_without_a_level_is_refused():
    with pytest.raises(ValueError, match="codes must lie in"):
        Column(("a", "b"), np.array([0, 2]))
    assert len(Column(("a",), np.array([], dtype=np.int64)).codes) == 0


def test_an_unknown_column_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'gender'"):
        Table(["a"], {"gender": Column(("f",), np.array([0]))}).column("gendre")


def test_rows_can_be_kept_by_mask_and_by_position():
    table = Table(["a", "b", "c"], {"x": Column(("0", "1"), np.array([0, 1, 0]))}, {"age": np.array([3, 4, 5])})
    for rows in (np.array([False, True, True]), np.array([1, 2])):
        kept = table.select(rows)
        assert kept.names == ["b", "c"]
        assert kept.column("x").codes.tolist() == [1, 0]
        assert kept.numbers["age"].tolist() == [4, 5]
