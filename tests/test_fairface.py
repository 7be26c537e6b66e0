"""FairFace: its label files, and every crossing of its columns."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS, UNUSED, Column, Table
from evenlens.datasets.fairface import LEVELS, PUBLISHED, FairFace
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
        (",East Asian,", ",Martian,", r"fairface_label_train.csv has the race 'Martian': allowed are White, Black"),
        (",East Asian,", ",,", r"Row \d+ of fairface_label_train.csv has no race"),
        ("file,age,gender,race", "file,years,gender,race", r"lacks the column age \(it has file, years"),
        ("file,age,gender,race", "file,age,race,race", r"has the column 'race' twice"),
        ("train/2.jpg", "train/1.jpg", r"names 'train/1.jpg', twice"),
        ("train/2.jpg", "../2.jpg", r"'../2.jpg', which is no image of train/"),
        ("train/2.jpg", "val/2.jpg", r"which is no image of train/"),
        ("train/2.jpg", "/2.jpg", r"'/2.jpg', which is no image of train/"),
        ("train/2.jpg,", ",", r"names '', which is no image of train/"),
        ("train/2.jpg,", "train/2.jpg\n", r"has \d+ fields and the header"),
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
    with pytest.raises(UserError, match=r"fairface_label_val.csv is not UTF-8"):
        load(folder)


def test_a_byte_order_mark_does_no_harm(folder, in_threads):
    path = folder / "fairface/fairface_label_train.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load(folder).splits.train) > 300


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_another_delimiter_does_no_harm(folder, published, delimiter):
    edit(folder, ",", delimiter)
    read, wanted = (FairFace(root / "fairface").table(False) for root in (folder, published))
    assert read.names == wanted.names
    assert all((read.column(name).codes == wanted.column(name).codes).all() for name in LEVELS)


@pytest.mark.parametrize("content", ["", "file,age,gender,race\n"])
def test_an_empty_label_file_is_one_sentence(folder, content):
    for part in ("train", "val"):
        (folder / f"fairface/fairface_label_{part}.csv").write_text(content)
    with pytest.raises(UserError, match=r"is empty: it must name|looked for a label file that lists images"):
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


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Label files as long as the published ones, with photographs of one to four faces, and no images."""
    folder = tmp_path_factory.mktemp("full") / "fairface"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, num in PUBLISHED.items():
        photograph = np.sort(generator.integers(num // 2, size=num))
        levels = {name: generator.choice(LEVELS[name], size=num) for name in ("age", "gender", "race")}
        with (folder / f"fairface_label_{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", *levels, "service_test", "image_name"])
            for k in range(num):
                row = [values[k] for values in levels.values()]
                writer.writerow([f"{part}/{k + 1}.jpg", *row, "True", f"{part}_photo_{photograph[k]}.jpg"])
    return FairFace(folder)


def parts_of(table, protocol, seed=1):
    asked = FairFace.protocols[protocol]
    return asked.split(table, table.column("gender").codes, table.column("race").codes, seed)


def share(parts, part, of=None):
    used = (parts != UNUSED) if of is None else of
    return float((parts[used] == PARTS.index(part)).mean())


def test_the_published_label_files_have_97_698_rows_of_which_10_954_are_the_test_part(full):
    table = full.table(False)
    assert len(table) == 97_698 == 86_744 + 10_954
    assert not full.notes
    assert list(table.names) == sorted(table.names)
    parts = parts_of(table, "official")
    assert (parts == PARTS.index("test")).sum() == 10_954
    assert (parts != PARTS.index("test")).sum() == 86_744
    assert (parts == PARTS.index("val")).sum() == pytest.approx(8674, abs=500)


@pytest.mark.parametrize("protocol", ["fairgrape", "imbalanced"])
def test_both_published_parts_are_pooled_and_split_80_10_10(full, protocol):
    table = full.table(False)
    parts = parts_of(table, protocol)
    for held_out in (True, False):
        rows = (np.char.startswith(np.array(table.names), "val/") == held_out) & (parts != UNUSED)
        assert share(parts, "train", rows) == pytest.approx(0.8, abs=0.03)
        assert share(parts, "val", rows) == pytest.approx(0.1, abs=0.02)
        assert share(parts, "test", rows) == pytest.approx(0.1, abs=0.02)


def test_imbalanced_keeps_all_white_faces_and_a_fifth_of_each_other_race(full):
    table = full.table(False)
    parts, all_of_them = parts_of(table, "imbalanced"), parts_of(table, "fairgrape")
    assert (all_of_them != UNUSED).all()
    for code, race in enumerate(LEVELS["race"]):
        kept = (parts != UNUSED)[table.column("race").codes == code].mean()
        assert kept == 1 if race == "White" else kept == pytest.approx(0.2, abs=0.02)
    assert (parts[parts != UNUSED] == all_of_them[parts != UNUSED]).all()


@pytest.mark.parametrize("protocol", ["fairgrape", "imbalanced"])
def test_faces_of_one_photograph_lie_in_one_part(full, protocol):
    table = full.table(False)
    parts = parts_of(table, protocol)
    used = parts != UNUSED
    _, photograph = np.unique(np.array(table.unit_names)[used], return_inverse=True)
    lowest, highest = np.full(photograph.max() + 1, 9), np.full(photograph.max() + 1, -1)
    np.minimum.at(lowest, photograph, parts[used])
    np.maximum.at(highest, photograph, parts[used])
    assert (lowest == highest).all()
    assert len(lowest) < used.sum() * 0.95, "no photograph has two faces: nothing was tested"


def test_selection_and_training_share_no_photograph_in_the_official_protocol(full):
    table = full.table(False)
    parts, units = parts_of(table, "official"), np.array(table.unit_names)
    assert not {*units[parts == PARTS.index("train")]} & {*units[parts == PARTS.index("val")]}


def test_a_face_without_a_photograph_is_its_own(folder):
    path = folder / "fairface/fairface_label_train.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ",image_name", *(line + "," for line in lines[1:3]),
                               *(line + ",one.jpg" for line in lines[3:])]))  # fmt: skip
    table = FairFace(folder / "fairface").table(False)
    units = dict(zip(table.names, table.units, strict=True))
    assert units["train/1.jpg"] == "train/1.jpg"
    assert units["train/9.jpg"] == "one.jpg"
    assert units["val/1.jpg"] == "val/1.jpg"


def test_without_photographs_there_are_no_units(published):
    assert FairFace(published / "fairface").table(False).units is None


def test_four_races_join_the_two_asian_ones_and_leave_two_out(full):
    table = full.table(False)
    race, race4 = table.column("race"), table.column("race4")
    joined = {"White": "White", "Black": "Black", "East Asian": "Asian", "Southeast Asian": "Asian", "Indian": "Indian"}
    for code, name in enumerate(race.levels):
        found = {race4.levels[k] if k >= 0 else None for k in race4.codes[race.codes == code]}
        assert found == {joined.get(name)}


@pytest.mark.parametrize("protocol", FairFace.protocols)
def test_every_protocol_trains_on_race_crossed_with_gender(published, in_threads, protocol):
    splits = load(published, protocol=protocol, target="age", sensitive=("race4", "gender")).splits
    assert splits.task.num_groups == 8
    names = [name for part in (splits.train, splits.val, splits.test) for name in part.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("protocol", FairFace.protocols)
@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(50)), seed=st.integers(0, 2**63 - 1))
def test_no_split_depends_on_the_order_of_the_rows(protocol, order, seed):
    names = [f"{'val' if k % 5 == 0 else 'train'}/{k}.jpg" for k in range(50)]
    columns = {"gender": Column(LEVELS["gender"], np.arange(50) % 2), "race": Column(LEVELS["race"], np.arange(50) % 7)}
    table = Table(names, columns, units=[f"{k // 2}.jpg" for k in range(50)])
    order = np.array(order)
    assert (parts_of(table.select(order), protocol, seed) == parts_of(table, protocol, seed)[order]).all()


@pytest.mark.real
def test_the_real_label_files_are_read(real_data):
    table = FairFace(Path(real_data) / "fairface").table(False)
    assert len(table) in (97_698, 25_000)  # all of it, or the part that is kept beside these tests
    parts = parts_of(table, "official")
    expected = {97_698: (86_744, 10_954), 25_000: (20_000, 5000)}[len(table)]
    assert ((parts != PARTS.index("test")).sum(), (parts == PARTS.index("test")).sum()) == expected
    assert np.bincount(parts_of(table, "fairgrape"))[[0, 2, 3]] / len(table) == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
