"""What every data set of the field promises, asked of each on a small copy of its publisher's layout."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import UNUSED, Table, combine
from tests import fake

OPTIONS = {"celeba": {"num": 120}, "avatars": {"num_train": 60, "num_val": 30, "num_test": 30}}
ASKED = [(name, protocol) for name in datasets.names() for protocol in datasets.get(name).protocols]
# Where the publisher's partition decides, or would cut only more images than the small copy has.
PUBLISHED = [("celeba", name) for name in datasets.get("celeba").protocols if name not in ("fairgrape", "sketch")]
every_protocol = pytest.mark.parametrize(("name", "protocol"), ASKED)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@cache
def layout(root, name):
    """Write the small copy once."""
    write = getattr(fake, datasets.get(name).home or name, None)
    assert write or name == "avatars", f"tests/fake.py has no small copy of {name}"
    return write(root) if write else root


def data_of(root, name, protocol, **more):
    return Data(root=layout(root, name), protocol=protocol, size=16, options=OPTIONS.get(name, {}), **more)


def posed(root, name, protocol, **more):
    return source.pose(name, datasets.get(name), data_of(root, name, protocol, **more))


@every_protocol
def test_it_loads_and_its_parts_share_no_image_and_no_unit(root, in_threads, name, protocol):
    loaded = source.load(name, datasets.get(name), data_of(root, name, protocol))
    splits = loaded.splits
    rows = [set(getattr(splits, part).rows.tolist()) for part in ("train", "val", "test")]
    assert all(rows)
    assert len(set.union(*rows)) == sum(map(len, rows))
    for part in ("train", "val", "test"):
        data = getattr(splits, part)
        assert (data.label >= 0).all()
        assert (data.group >= 0).all()
        assert len(data.digests) == len(data)
        assert (data.digests != 0).all()
    assert splits.task.class_names
    if protocol != "sketch-file-order":  # which follows the rows of a file, as the original did
        assert not [note for note in loaded.notes if "several parts" in note]


@every_protocol
def test_the_same_data_give_the_same_split_and_another_seed_another_one(root, name, protocol):
    first, again, other = (posed(root, name, protocol, seed=seed).parts for seed in (1, 1, 2))
    assert (first == again).all()
    if name != "avatars" and (name, protocol) not in PUBLISHED:
        assert (first != other).any(), f"{name} {protocol} does not look at the seed"


@every_protocol
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_the_split_does_not_change_when_rows_are_reordered(root, name, protocol, seed):
    _, origin, table, label, group, parts = posed(root, name, protocol)
    order = np.random.default_rng(seed).permutation(len(table))
    kind = datasets.get(name)
    again = origin.split(kind.protocols[protocol], table.select(order), label.codes[order], group.codes[order], 1)
    again = np.where((label.codes[order] < 0) | (group.codes[order] < 0), UNUSED, again)
    assert (again == parts[order]).all()


@every_protocol
def test_names_are_sorted_and_lie_below_the_folder(root, name, protocol):
    table = posed(root, name, protocol).table
    assert isinstance(table, Table)
    assert list(table.names) == sorted(set(table.names))
    assert not [path for path in table.names if path.startswith("/") or ".." in path.split("/")]


@pytest.mark.parametrize("name", datasets.names())
def test_every_column_is_there_with_levels_in_words(root, name):
    kind = datasets.get(name)
    table = posed(root, name, None).table
    assert set(kind.columns) <= set(table.columns)
    for column in kind.columns:
        levels = table.column(column).levels
        assert len(levels) >= 2
        assert all(level and isinstance(level, str) for level in levels)
    crossed = combine([table.column(column) for column in kind.columns[:2]])
    assert len(crossed.levels) == np.prod([len(table.column(column).levels) for column in kind.columns[:2]])


@pytest.mark.parametrize("name", [name for name in datasets.names() if name != "avatars"])
def test_what_is_missing_is_said_with_how_to_get_it(tmp_path, name):
    from evenlens.errors import UserError

    kind = datasets.get(name)
    with pytest.raises(UserError) as refused:
        source.load(name, kind, Data(root=tmp_path))
    assert kind.how_to_get in str(refused.value)
