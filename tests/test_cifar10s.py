"""CIFAR-10S: its files, its two versions of a picture, and the counts of the two publications."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS, UNUSED
from evenlens.datasets.cifar10s import CHANGES, CIFAR10S, both_versions, make_image
from evenlens.errors import UserError
from tests import fake

OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EVEN = np.arange(10) % 2 == 0
# Images of each object in (colour, grey), for objects with an even number; for odd ones the other way round.
SPEC = {
    "study": {"train": (250, 4750), "val": (100, 100), "test": (900, 900)},
    "full-test": {"train": (225, 4275), "val": (25, 475), "test": (1000, 1000)},
}
SIZES = {
    "study": {"train": 50_000, "val": 2_000, "test": 18_000},
    "full-test": {"train": 45_000, "val": 5_000, "test": 20_000},
}

both = pytest.mark.parametrize("protocol", SPEC)


def layout(num_train, num_test, versions=CHANGES["grey"]):
    """A table of so many pictures of each object, in an order of their own in the files."""
    generator = np.random.default_rng(0)
    labels = {
        part: generator.permutation(np.repeat(np.arange(10), num))
        for part, num in (("train", num_train), ("test", num_test))
    }
    return both_versions(labels, OBJECTS, versions)


@pytest.fixture(scope="module")
def published():
    """As many pictures as were published."""
    return layout(5000, 1000)


def split(table, protocol, seed=1, **options):
    asked, made = CIFAR10S.protocols[protocol], CIFAR10S(Path("nowhere"), **options)
    codes = table.column("object").codes, table.column("domain").codes
    return made.split(asked, table, *codes, seed)


def cells(table, parts, part):
    """(10, 2) images of each object and version."""
    inside = parts == PARTS.index(part)
    return np.bincount(
        2 * table.column("object").codes[inside] + table.column("domain").codes[inside], minlength=20
    ).reshape(10, 2)


@both
@pytest.mark.parametrize("seed", [1, 2])
def test_the_published_pictures_give_the_published_counts(published, protocol, seed):
    parts = split(published, protocol, seed)
    for part, (colour, grey) in SPEC[protocol].items():
        expected = np.array([[colour, grey] if part == "test" or even else [grey, colour] for even in EVEN])
        assert (cells(published, parts, part) == expected).all()
        assert (parts == PARTS.index(part)).sum() == SIZES[protocol][part]


def test_an_object_given_its_version_is_as_frequent_as_published(published):
    train = cells(published, split(published, "study"), "train")
    share = train / train.sum(0)
    assert share[EVEN, 0] == pytest.approx(0.01)
    assert share[~EVEN, 0] == pytest.approx(0.19)
    assert share[EVEN, 1] == pytest.approx(0.19)
    assert share[~EVEN, 1] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("skew", "usual"),
    [(0.5, 2500), (0.57, 2850), (0.69, 3450), (0.75, 3750), (0.8, 4000), (0.875, 4375), (0.9, 4500), (0.95, 4750),
     (0.95001, 4750), (0.96, 4800), (0.975, 4875), (0.98, 4900), (0.99, 4950), (1.0, 5000)],
)  # fmt: skip
def test_every_skew_is_exact(published, skew, usual):
    train = cells(published, split(published, "study", skew=skew), "train")
    assert (train[EVEN] == [5000 - usual, usual]).all()
    assert (train[~EVEN] == [usual, 5000 - usual]).all()


def test_the_study_tests_on_the_first_900_of_each_object_in_the_order_of_the_file(published):
    parts = split(published, "study")
    for name, row, part in zip(published.names, published.numbers["row"], parts, strict=True):
        if name.startswith("test/"):
            assert PARTS[part] == ("test" if int(name.split()[0][-5:]) < 900 else "val")
            assert row < 10_000
    numbers = np.array([int(unit[-5:]) for unit in published.units])
    rows = published.numbers["row"]
    first = (published.column("domain").codes == 0) & np.char.startswith(np.array(published.names), "test/")
    for code in range(10):
        mine = np.flatnonzero(first & (published.column("object").codes == code))
        assert (np.argsort(rows[mine]) == np.argsort(numbers[mine])).all()


@both
def test_a_seed_changes_which_training_pictures_are_grey_and_nothing_of_the_test(published, protocol):
    one, two = split(published, protocol, 1), split(published, protocol, 2)
    test = np.char.startswith(np.array(published.names), "test/")
    assert (one[test] == two[test]).all()
    assert (one != two).sum() > 5000


def test_a_larger_skew_keeps_the_pictures_that_were_changed(published):
    grey = published.column("domain").codes == 1
    even = EVEN[published.column("object").codes]
    some, more = (split(published, "study", skew=skew) == PARTS.index("train") for skew in (0.75, 0.95))
    assert (more | ~some)[grey & even].all()


def test_every_change_skews_the_same_pictures():
    found = []
    for change, versions in CHANGES.items():
        table = layout(50, 20, versions)
        parts = split(table, "study", change=change)
        found.append({*zip(table.units, table.column("domain").codes.tolist(), parts.tolist(), strict=True)})
    assert all(parts == found[0] for parts in found)


@settings(max_examples=30, deadline=None)
@given(
    num_train=st.integers(1, 40),
    num_test=st.integers(1, 20),
    skew=st.floats(0.5, 1),
    seed=st.integers(0, 2**63 - 1),
    protocol=st.sampled_from(list(SPEC)),
    order=st.randoms(use_true_random=False),
)
def test_parts_are_disjoint_by_picture_and_independent_of_the_order(num_train, num_test, skew, seed, protocol, order):
    table = layout(num_train, num_test)
    parts = split(table, protocol, seed, skew=skew)
    places = {}
    for unit, part in zip(table.units, parts, strict=True):
        if part != UNUSED:
            places.setdefault(unit, []).append(PARTS[part])
    assert len(places) == 10 * (num_train + num_test)  # every picture is used
    for unit, found in places.items():
        assert found == [found[0]] * (2 if unit.startswith("test/") else 1)
        assert unit.startswith("test/") or found[0] != "test"
    rows = list(range(len(table)))
    order.shuffle(rows)
    assert (split(table.select(np.array(rows)), protocol, seed, skew=skew) == parts[rows]).all()


# Files


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return fake.cifar10(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(made, tmp_path):
    """A copy that can be spoilt."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


def load(folder, **settings):
    options = {name: settings.pop(name) for name in ("skew", "change") if name in settings}
    return source.load("cifar10s", datasets.get("cifar10s"), Data(root=folder, options=options, **settings))


def raw(folder):
    """Labels and pictures of the published files, read plainly."""
    home = folder / "cifar10/cifar-10-batches-bin"
    files = {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]}
    rows = {part: b"".join((home / file).read_bytes() for file in names) for part, names in files.items()}
    rows = {part: np.frombuffer(data, np.uint8).reshape(-1, 3073) for part, data in rows.items()}
    return {part: (values[:, 0], values[:, 1:].reshape(-1, 3, 32, 32)) for part, values in rows.items()}


@both
def test_every_picture_has_its_label_and_its_version(made, in_threads, protocol):
    splits = load(made, protocol=protocol).splits
    table = CIFAR10S(made / "cifar10").table(False)
    row_of = dict(zip(table.names, table.numbers["row"].tolist(), strict=True))
    pictures = raw(made)
    for part in (splits.train, splits.val, splits.test):
        for row, name in enumerate(part.names):
            labels, planes = pictures[name.partition("/")[0]]
            red, green, blue = planes[row_of[name]].astype(float)
            shown = part.pixels[part.rows[row]].numpy()
            assert name.split("/")[1] == OBJECTS[labels[row_of[name]]] == splits.task.class_names[part.label[row]]
            assert name.split(" ")[1] == splits.task.group_names[part.group[row]]
            if name.endswith(" colour"):
                assert (shown == np.stack([red, green, blue], axis=2)).all()
            else:
                luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R 601-2
                assert (shown == shown[:, :, :1]).all()
                assert np.abs(shown[:, :, 0] - luma).max() <= 0.51
    assert splits.task.class_names == OBJECTS
    assert splits.task.group_names == ("colour", "grey")


def test_two_versions_are_no_copies_and_a_picture_is_known_again(made, in_threads):
    study, full = load(made).splits, load(made, protocol="full-test", seed=3).splits
    for splits in (study, full):
        digests = np.concatenate([part.digests for part in (splits.train, splits.val, splits.test)])
        assert len({*digests.tolist()}) == len(digests)
    known = dict(zip(study.train.names, study.train.digests.tolist(), strict=True))
    assert all(
        known.get(name, digest) == digest for name, digest in zip(full.train.names, full.train.digests, strict=True)
    )


def test_one_store_serves_every_skew_and_seed(made, in_threads, cache):
    load(made)
    load(made, skew=0.8, seed=7, protocol="full-test")
    assert len(list((cache / "images").iterdir())) == 1
    load(made, change="centre_crop")
    assert len(list((cache / "images").iterdir())) == 2


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_leaves_the_plain_version_as_it_is(made, in_threads, change):
    splits = load(made, change=change).splits
    plain, changed = (splits.test.pixels[splits.test.rows[splits.test.group == g]].numpy() for g in (0, 1))
    grey_or_blurred = np.abs(plain.astype(int) - changed).mean((1, 2, 3))
    assert (grey_or_blurred > 10).all()
    assert splits.task.group_names == CHANGES[change]
    pictures = {image.transpose(1, 2, 0).tobytes() for image in raw(made)["test"][1]}
    assert all(image.tobytes() in pictures for image in plain)


def test_the_changes_do_what_they_say(tmp_path):
    from evenlens.data.byte_rows import Place

    planes = np.zeros((3, 32, 32), np.uint8)
    planes[:, :2], planes[:, -2:], planes[:, :, :2], planes[:, :, -2:] = 255, 255, 255, 255  # a frame of two pixels
    (tmp_path / "rows.bin").write_bytes(b"\x00" + planes.tobytes())
    place = Place(str(tmp_path / "rows.bin"), 1)
    assert make_image((place, ""), 32)[0].max() == 255
    assert make_image((place, "centre_crop"), 32)[0].max() == 0
    for side in (16, 8):
        fine = np.tile(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 2 * 255, (3, 1, 1))  # stripes of one pixel
        (tmp_path / "rows.bin").write_bytes(b"\x00" + fine.tobytes())
        blurred = make_image((place, f"low_resolution_{side}"), 32)[0]
        assert np.ptp(blurred[8:24, 8:24]) < 40
    image = Image.fromarray(np.ascontiguousarray(fine.transpose(1, 2, 0)))
    assert (make_image((place, ""), 64)[0] == np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))).all()


def test_another_size_is_made(made, in_threads):
    assert load(made, size=48).splits.train.pixels.shape[1:] == (48, 48, 3)


def test_the_columns_are_as_declared_and_names_are_sorted(made):
    table = CIFAR10S(made / "cifar10").table(False)
    assert tuple(table.columns) == CIFAR10S.columns
    assert list(table.names) == sorted(table.names)
    assert list(table.units) == [name.partition(" ")[0] for name in table.names]


def test_fewer_pictures_than_published_are_noted(made, in_threads):
    notes = load(made).notes
    assert "400 pictures for train are here; 50,000 were published." in notes
    assert "200 pictures for test are here; 10,000 were published." in notes


@pytest.mark.parametrize("skew", [0.49, 1.01, -1, float("nan")])
def test_a_skew_out_of_range_is_one_sentence(made, skew):
    with pytest.raises(UserError, match=r"skew=.* is not (in \[0.5, 1\]|allowed)"):
        load(made, skew=skew)


def test_an_unknown_change_is_answered_with_the_nearest(made):
    with pytest.raises(UserError, match=r"'gray'; did you mean 'grey'"):
        load(made, change="gray")


def test_a_group_of_another_column_is_refused(made):
    with pytest.raises(UserError, match=r"is made for data.target=object and data.sensitive=domain"):
        load(made, target="domain", sensitive=("object",))


@pytest.mark.parametrize("file", ["data_batch_3.bin", "test_batch.bin", "batches.meta.txt"])
def test_a_file_that_is_not_there_is_named_with_what_to_fetch(folder, file):
    (folder / "cifar10/cifar-10-batches-bin" / file).unlink()
    with pytest.raises(UserError, match=rf"looked for cifar-10-batches-bin/{file}\).*cifar-10-binary.tar.gz"):
        load(folder)


def test_the_pickled_layout_is_named_and_not_read(tmp_path):
    (tmp_path / "cifar10/cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(UserError, match=r"the Python version cifar-10-batches-py/ is not read\).*cifar-10-binary"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("data_batch_2.bin", lambda data: data[:-1], r"has 245,839 bytes, which are no rows of 3,073"),
        ("test_batch.bin", lambda data: b"", r"has 0 bytes, which are no rows of 3,073"),
        (
            "data_batch_1.bin",
            lambda data: b"\x0a" + data[1:],
            r"Row 0 of .*data_batch_1.bin has the label 10, .*below 10",
        ),
        ("batches.meta.txt", lambda data: data[:-10], r"batches.meta.txt must hold 10 different names"),
        ("batches.meta.txt", lambda data: data.replace(b"bird", b"cat"), r"must hold 10 different names"),
        ("batches.meta.txt", lambda data: data.replace(b"bird", b"../bird"), r"must hold 10 different names"),
        ("batches.meta.txt", lambda data: data.replace(b"bird", b"b\xffrd"), r"must hold 10 different names"),
    ],
)
def test_a_spoilt_file_is_one_sentence(folder, file, change, words):
    path = folder / "cifar10/cifar-10-batches-bin" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError, match=words) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.real
@both
def test_the_real_pictures_have_the_published_counts(protocol, real_data):
    table = CIFAR10S(Path(real_data) / "cifar10").table(False)
    assert len(table) == 120_000
    assert table.column("object").levels == OBJECTS
    parts = split(table, protocol)
    for part, (colour, grey) in SPEC[protocol].items():
        expected = np.array([[colour, grey] if part == "test" or even else [grey, colour] for even in EVEN])
        assert (cells(table, parts, part) == expected).all()
