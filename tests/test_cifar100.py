"""CIFAR-100: its files, its classes as groups, and the sizes of Balancing Act (arXiv 2310.20673)."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS
from evenlens.datasets.cifar100 import CIFAR100, to_table
from evenlens.errors import UserError
from tests import fake

COARSE = tuple(f"kind_{number:02d}" for number in range(20))
FINE = tuple(f"class_{number:02d}" for number in range(100))


def layout(num_train, num_test):
    """A table of so many pictures of each class, in an order of their own in the files."""
    generator = np.random.default_rng(0)
    fine = {
        part: generator.permutation(np.repeat(np.arange(100), num))
        for part, num in (("train", num_train), ("test", num_test))
    }
    return to_table({part: np.stack([codes // 5, codes], axis=1) for part, codes in fine.items()}, COARSE, FINE)


def split(table, protocol="balancing-act", seed=1):
    asked = CIFAR100.protocols[protocol]
    label, group = table.column(asked.target).codes, table.column(asked.sensitive[0]).codes
    return CIFAR100(None).split(asked, table, label, group, seed)


@pytest.mark.parametrize("protocol", CIFAR100.protocols)
def test_the_published_pictures_give_the_published_sizes(protocol):
    table = layout(500, 100)
    parts = split(table, protocol)
    assert {part: int((parts == PARTS.index(part)).sum()) for part in PARTS} == {
        "train": 45_000, "tune": 0, "val": 5_000, "test": 10_000
    }  # fmt: skip
    for part, number in (("train", 450), ("val", 50), ("test", 100)):
        inside = parts == PARTS.index(part)
        assert (np.bincount(table.column("fine").codes[inside], minlength=100) == number).all()
        assert (np.bincount(table.column("coarse").codes[inside], minlength=20) == 5 * number).all()
    test = np.char.startswith(np.array(table.names), "test/")
    assert ((parts == PARTS.index("test")) == test).all()


@settings(max_examples=15, deadline=None)
@given(
    num_train=st.integers(1, 25),
    num_test=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    order=st.randoms(use_true_random=False),
)
def test_the_split_does_not_change_when_rows_are_reordered(num_train, num_test, seed, order):
    table = layout(num_train, num_test)
    parts = split(table, seed=seed)
    rows = list(range(len(table)))
    order.shuffle(rows)
    assert (split(table.select(np.array(rows)), seed=seed) == parts[rows]).all()
    assert (parts == PARTS.index("val")).sum() == 100 * (num_train // 10)


def test_another_seed_is_another_split():
    table = layout(50, 10)
    assert (split(table, seed=1) != split(table, seed=2)).sum() > 500


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fake.cifar100(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(made, tmp_path):
    """A copy that can be spoilt."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def load(folder, **settings):
    return source.load("cifar100", datasets.get("cifar100"), Data(root=folder, **settings))


@pytest.mark.parametrize(("protocol", "num_groups"), [("balancing-act", 100), ("coarse", 20)])
def test_every_picture_has_its_labels(made, in_threads, protocol, num_groups):
    splits = load(made, protocol=protocol).splits
    home = made / "cifar100/cifar-100-binary"
    fine, coarse = ((home / f"{kind}_label_names.txt").read_text().split() for kind in ("fine", "coarse"))
    assert (splits.task.num_classes, splits.task.num_groups) == (100, num_groups)
    assert splits.task.class_names == tuple(fine)
    table = CIFAR100(made / "cifar100").table(False)
    row_of = dict(zip(table.names, table.numbers["row"].tolist(), strict=True))
    rows = {part: np.fromfile(home / f"{part}.bin", np.uint8).reshape(-1, 3074) for part in ("train", "test")}
    for part in (splits.train, splits.val, splits.test):
        for row, name in enumerate(part.names):
            published = rows[name.partition("/")[0]][row_of[name]]
            assert name.split("/")[1] == fine[published[1]] == fine[part.label[row]]
            word = splits.task.group_names[part.group[row]]
            assert word == (fine[published[1]] if num_groups == 100 else coarse[published[0]])
            shown = part.pixels[part.rows[row]].numpy()
            assert (shown == published[2:].reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_classes_as_groups_lie_on_the_diagonal(made, in_threads):
    counts = load(made).splits.train.cell_counts().numpy()
    assert (counts == np.diag(np.full(100, 18))).all()


def test_any_of_the_columns_can_be_asked_for(made, in_threads):
    splits = load(made, target="coarse", sensitive=("class",)).splits
    assert ((splits.test.cell_counts() > 0).sum(1) == 5).all()
    with pytest.raises(UserError, match="a group cannot be its own label"):
        load(made, target="class")


def test_the_columns_are_as_declared_and_names_are_sorted(made):
    table = CIFAR100(made / "cifar100").table(False)
    assert tuple(table.columns) == CIFAR100.columns
    assert list(table.names) == sorted(table.names)


def test_names_as_they_were_published_are_read(folder, in_threads):
    path = folder / "cifar100/cifar-100-binary/coarse_label_names.txt"
    words = ["non-insect_invertebrates", "large_man-made_outdoor_things", "vehicles_1", "vehicles_2"]
    path.write_text("\r\n".join([*words, *path.read_text().split()[4:]]) + "\n\n")
    assert load(folder, protocol="coarse").splits.task.group_names[:4] == tuple(words)


def test_fewer_pictures_than_published_are_noted(made, in_threads):
    assert "2,000 pictures for train are here; 50,000 were published." in load(made).notes


@pytest.mark.parametrize("file", ["train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"])
def test_a_file_that_is_not_there_is_named_with_what_to_fetch(folder, file):
    (folder / "cifar100/cifar-100-binary" / file).unlink()
    with pytest.raises(UserError, match=rf"looked for cifar-100-binary/{file}\).*cifar-100-binary.tar.gz"):
        load(folder)


def test_the_pickled_layout_is_named_and_not_read(tmp_path):
    (tmp_path / "cifar100/cifar-100-python").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the Python version cifar-100-python/ is not read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("train.bin", lambda data: data[:-1], r"has 6,147,999 bytes, which are no rows of 3,074"),
        ("test.bin", lambda data: b"\x14" + data[1:], r"Row 0 of .*test.bin has the label 20, which is not below 20"),
        ("test.bin", lambda data: data[:1] + b"\x64" + data[2:], r"has the label 100, which is not below 100"),
        ("test.bin", lambda data: bytes([(data[0] + 1) % 20]) + data[1:], r"belongs to more than one coarse label"),
        ("fine_label_names.txt", lambda data: data[10:], r"fine_label_names.txt must hold 100 different names"),
        ("coarse_label_names.txt", lambda data: data.replace(b"non-a_1", b"../a"), r"must hold 20 different names"),
    ],
)
def test_a_spoilt_file_is_one_sentence(folder, file, change, words):
    path = folder / "cifar100/cifar-100-binary" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)
