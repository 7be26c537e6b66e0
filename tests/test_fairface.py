"""FairFace: its label files, and every crossing of its columns."""

import itertools

import pytest

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.datasets.fairface import LEVELS, FairFace
from evenlens.errors import UserError
from tests import fake


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fake.fairface(tmp_path_factory.mktemp("data"), num=400)


@pytest.fixture
def folder(published, tmp_path):
    """A copy whose label files can be spoilt."""
    import shutil

    shutil.copytree(published, tmp_path / "data")
    return tmp_path / "data"


def load(folder, **settings):
    return source.load("fairface", datasets.get("fairface"), Data(root=folder, size=16, **settings))


def edit(folder, old, new, part="train"):
    path = folder / "fairface" / f"fairface_label_{part}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("target", LEVELS)
def test_every_column_can_be_predicted_and_every_crossing_of_the_others_exists(published, in_threads, target):
    others = [name for name in LEVELS if name != target]
    for sensitive in itertools.chain(itertools.permutations(others, 1), itertools.permutations(others, 2)):
        splits = load(published, target=target, sensitive=sensitive).splits
        task = splits.task
        assert task.class_names == LEVELS[target]
        assert task.group_names == tuple(", ".join(part) for part in itertools.product(*(LEVELS[s] for s in sensitive)))
        assert splits.train.cell_counts().shape == (task.num_classes, task.num_groups)
        for name, group in zip(splits.test.names[:20], splits.test.group.tolist(), strict=False):
            row = splits.test.names.index(name)
            words = [LEVELS[s][splits.test.attributes[s].codes[row]] for s in sensitive]
            assert task.group_names[group] == ", ".join(words)


def test_the_published_val_part_is_the_test_part(published, in_threads):
    splits = load(published).splits
    assert len(splits.test) == 133
    assert all(name.startswith("val/") for name in splits.test.names)
    assert all(name.startswith("train/") for name in [*splits.train.names, *splits.val.names])
    assert len(splits.train) + len(splits.val) == 400
    assert not set(splits.train.names) & set(splits.val.names)


def test_the_columns_are_as_declared(published):
    assert set(FairFace(published / "fairface").table(False).columns) == set(FairFace.columns)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",East Asian,", ",Martian,", r"has the race 'Martian', which is not one of White, Black"),
        ("file,age,gender,race", "file,years,gender,race", r"lacks the column age"),
        (",", ";", r"lacks the column age: .* commas"),
        (",", "\t", r"lacks the column age"),
        ("train/2.jpg", "train/1.jpg", r"names 'train/1.jpg', twice"),
        ("train/2.jpg", "../2.jpg", r"'../2.jpg', which is no image of train/"),
        ("train/2.jpg", "val/2.jpg", r"which is no image of train/"),
        ("train/2.jpg,", "train/2.jpg\n", r"which is no image of train/"),
    ],
)
def test_a_spoilt_label_file_is_one_sentence(folder, old, new, words):
    edit(folder, old, new)
    with pytest.raises(UserError, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"file,age,gender,race\ntrain/\xe9.jpg,0-2,Male,White\n", "file,age".encode("utf-16")]
)
def test_another_encoding_is_one_sentence(folder, content):
    (folder / "fairface/fairface_label_val.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"fairface_label_val.csv is no CSV file in UTF-8"):
        load(folder)


def test_a_byte_order_mark_does_no_harm(folder, in_threads):
    path = folder / "fairface/fairface_label_train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load(folder).splits.train) > 300


@pytest.mark.parametrize("content", ["", "file,age,gender,race\n"])
def test_an_empty_label_file_is_one_sentence(folder, content):
    for part in ("train", "val"):
        (folder / f"fairface/fairface_label_{part}.csv").write_text(content)
    with pytest.raises(UserError, match=r"lacks the column age|looked for a label file that lists images"):
        load(folder)


def test_a_label_file_that_is_not_there_is_named_with_what_to_fetch(folder):
    (folder / "fairface/fairface_label_val.csv").unlink()
    with pytest.raises(UserError, match=r"looked for fairface_label_val.csv.*Fetch the images.*data.root=FOLDER"):
        load(folder)


def test_an_image_that_is_listed_and_not_there_is_named_and_left_out_only_when_asked(folder, in_threads):
    (folder / "fairface/train/7.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 533 images .*train/7.jpg \(No such file"):
        load(folder)
    loaded = load(folder, skip_unreadable=True)
    assert any("train/7.jpg" in note for note in loaded.notes)
    assert "train/7.jpg" not in [*loaded.splits.train.names, *loaded.splits.val.names]


@pytest.mark.real
def test_the_real_label_files_are_read(real_data):
    from pathlib import Path

    table = FairFace(Path(real_data) / "fairface").table(False)
    assert len(table) in (97_698, 25_000)  # all of it, or the part that is kept beside these tests
