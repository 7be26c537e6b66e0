"""CelebA: label files, the counts of the empirical study (arXiv 2401.03695), and the balanced samples."""

import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS, UNUSED, Column, Table
from evenlens.datasets.celeba import ATTRIBUTES, CelebA
from evenlens.errors import UserError
from tests import fake

CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # (label, Male)
# The study's table for Blond_Hair, cells in this order, and the total.
OFFICIAL = {
    "train": [71_629, 66_874, 22_880, 1_387, 162_770],
    "val": [8_535, 8_276, 2_874, 182, 19_867],
    "test": [9_767, 7_535, 2_480, 180, 19_962],
}
STUDY_TRAIN = [2_000, 66_874, 22_880, 1_387, 93_141]
# What follows from the length of the study's lists: 153,986 after cutting women with black hair to 10,000, and 111,823
# after cutting women who do not smile and men who do to 10,000 each.
WOMEN_WITH_BLACK_HAIR = 162_770 - 153_986 + 10_000
AGAINST_THE_GRAIN = 162_770 - 111_823 + 20_000


def write_labels(folder, values, partition, identity=None):
    """Write the text files as they are published: values (N, 40) of 0 and 1, in the order of the images."""
    num = len(values)
    numbers = np.arange(1, num + 1)
    names = np.full((num, 10), ord("0"), dtype=np.uint8)
    names[:, 6:] = np.frombuffer(b".jpg", dtype=np.uint8)
    for place in range(6):
        names[:, 5 - place] += (numbers // 10**place % 10).astype(np.uint8)
    signs = np.frombuffer(b" -1  1", dtype=np.uint8).reshape(2, 3)[values].reshape(num, -1)
    line = np.full((num, 1), ord("\n"), dtype=np.uint8)
    header = f"{num}\n{' '.join(ATTRIBUTES)} \n".encode()
    (folder / "list_attr_celeba.txt").write_bytes(header + np.hstack([names, signs, line]).tobytes())
    digit = np.stack([np.full(num, ord(" ")), partition + ord("0")], axis=1).astype(np.uint8)
    (folder / "list_eval_partition.txt").write_bytes(np.hstack([names, digit, line]).tobytes())
    if identity is not None:
        people = "".join(f"{k:06d}.jpg {person}\n" for k, person in zip(numbers.tolist(), identity, strict=True))
        (folder / "identity_CelebA.txt").write_text(people)
    (folder / "img_align_celeba").mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Label files of full length with the published number of every cell, and no images."""
    folder = tmp_path_factory.mktemp("data") / "celeba"
    folder.mkdir()
    generator = np.random.default_rng(0)
    attribute = {name: number for number, name in enumerate(ATTRIBUTES)}
    values = np.zeros((202_599, 40), dtype=np.int64)
    values[:, attribute["Pale_Skin"]] = generator.random(202_599) < 0.043
    start = 0
    for cells in OFFICIAL.values():
        cell = generator.permutation(np.repeat(np.arange(4), cells[:4]))
        values[start : start + len(cell), attribute["Blond_Hair"]] = cell // 2
        values[start : start + len(cell), attribute["Male"]] = cell % 2
        start += len(cell)
    partition = np.repeat([0, 1, 2], [cells[4] for cells in OFFICIAL.values()])
    male, train = values[:, attribute["Male"]] == 1, partition == 0
    values[generator.permutation(np.flatnonzero(~male & train))[:WOMEN_WITH_BLACK_HAIR], attribute["Black_Hair"]] = 1
    values[male & ~train, attribute["Black_Hair"]] = 1
    values[:, attribute["Smiling"]] = ~male
    values[generator.permutation(np.flatnonzero(~male & train))[:40_000], attribute["Smiling"]] = 0
    values[generator.permutation(np.flatnonzero(male & train))[: AGAINST_THE_GRAIN - 40_000], attribute["Smiling"]] = 1
    values[generator.permutation(np.flatnonzero(male & ~train))[:9_000], attribute["Smiling"]] = 1
    write_labels(folder, values, partition, generator.integers(1, 10_178, size=202_599).tolist())
    return folder


@pytest.fixture(scope="module")
def table(full):
    return CelebA(full).table(False)


def parts_of(table, protocol, seed=1, target=None, sensitive=None, **options):
    celeba = CelebA(None, **options)
    asked = CelebA.protocols[protocol]
    label = table.column(target or asked.target).codes
    group = table.column(sensitive or asked.sensitive[0]).codes
    return celeba.split(asked, table, label, group, seed), label, group, celeba.notes


def counts(parts, label, group):
    found = {}
    for part in ("train", "val", "test"):
        inside = parts == PARTS.index(part)
        cells = [int((inside & (label == y) & (group == b)).sum()) for y, b in CELLS]
        found[part] = [*cells, int(inside.sum())]
    return found


def test_a_table_of_full_length_is_read_without_a_note(full, table):
    celeba = CelebA(full)
    assert celeba.table(False).names[:2] == ["000001.jpg", "000002.jpg"]
    assert len(table) == 202_599
    assert not celeba.notes
    assert set(table.columns) == set(CelebA.columns)
    assert len(CelebA.columns) == 40


def test_the_official_partition_has_the_published_counts(table):
    parts, _, group, _ = parts_of(table, "official", target="Blond_Hair")
    assert counts(parts, table.column("Blond_Hair").codes, group) == OFFICIAL


@pytest.mark.parametrize("seed", [1, 2])
def test_the_study_keeps_two_thousand_women_without_blond_hair_and_all_others(table, seed):
    parts, label, group, notes = parts_of(table, "study-blond", seed)
    assert counts(parts, label, group) == {**OFFICIAL, "train": STUDY_TRAIN}
    train = parts == PARTS.index("train")
    assert len({table.names[row] for row in np.flatnonzero(train)}) == 93_141
    drawn = np.flatnonzero(train & (label == 0) & (group == 0))
    assert drawn.mean() == pytest.approx(162_770 / 2, rel=0.05)  # from all of them, not from the start of the file
    assert not notes


def test_the_skew_of_the_study_is_the_published_one(table):
    parts, label, group, _ = parts_of(table, "study-blond")
    n = np.array(counts(parts, label, group)["train"][:4]).reshape(2, 2)
    assert (n / n.sum(axis=1, keepdims=True)).round(3).tolist() == [[0.029, 0.971], [0.943, 0.057]]
    assert (n / n.sum(axis=0, keepdims=True)).T.round(3).tolist() == [[0.080, 0.920], [0.980, 0.020]]


def test_another_seed_draws_others_and_leaves_the_rest_alone(table):
    first, label, group, _ = parts_of(table, "study-blond", 1)
    second, *_ = parts_of(table, "study-blond", 2)
    changed = first != second
    assert changed.sum() > 3_000
    assert ((label == 0) & (group == 0))[changed].all()
    assert set(first[changed]) == {PARTS.index("train"), UNUSED}


@pytest.mark.parametrize(
    ("protocol", "total", "cut"),
    [
        ("study-makeup", 162_770, {}),
        ("study-black-hair", 153_986, {(1, 0): 10_000}),
        ("study-smiling", 111_823, {(0, 0): 10_000, (1, 1): 10_000}),
    ],
)
def test_the_other_targets_of_the_study_have_as_many_images_as_its_lists(table, protocol, total, cut):
    parts, label, group, notes = parts_of(table, protocol)
    found = counts(parts, label, group)
    assert found["train"][4] == total
    for cell, number in cut.items():
        assert found["train"][CELLS.index(cell)] == number
    assert (found["val"][4], found["test"][4]) == (19_867, 19_962)
    assert not notes


def test_a_copy_in_which_a_cell_is_smaller_than_what_is_kept_is_noted():
    _, _, _, notes = parts_of(made_up(range(200)), "study-blond")
    assert len(notes) == 1
    assert "of 2,000 training images of the cell 'not blond hair, female' are here" in notes[0]


def test_fairgrape_pools_all_images_and_keeps_a_person_in_one_part(table):
    parts, _, _, notes = parts_of(table, "fairgrape", target="Young")
    shares = np.bincount(parts, minlength=4) / len(parts)
    assert shares == pytest.approx([0.8, 0.0, 0.1, 0.1], abs=0.01)
    seen = {}
    for unit, part in zip(table.units, parts.tolist(), strict=True):
        assert seen.setdefault(unit, part) == part
    assert not notes
    official = table.numbers["partition"]
    assert all(len(np.unique(official[parts == PARTS.index(part)])) == 3 for part in ("train", "val", "test"))


def test_fairgrape_splits_image_by_image_where_nobody_is_known_and_says_so(table):
    unknown = Table(table.names, table.columns, table.numbers)
    parts, _, _, notes = parts_of(unknown, "fairgrape")
    people = {}
    for unit, part in zip(table.units, parts.tolist(), strict=True):
        people.setdefault(unit, set()).add(part)
    assert sum(len(found) > 1 for found in people.values()) > 5_000
    assert "images of one person may be in several parts" in notes[0]


@pytest.mark.parametrize("protocol", ["sketch", "sketch-file-order"])
@pytest.mark.parametrize("sensitive", ["Male", "Black_Hair", "Pale_Skin"])
def test_a_balanced_sample_has_the_published_size_and_halves(table, protocol, sensitive):
    parts, label, group, _ = parts_of(table, protocol, sensitive=sensitive)
    for part, number in (("train", 7_000), ("val", 1_500), ("test", 1_500)):
        inside = parts == PARTS.index(part)
        assert np.bincount(group[inside]).tolist() == [number // 2, number // 2]
        if protocol == "sketch":
            assert (table.numbers["partition"][inside] == ("train", "val", "test").index(part)).all()
    assert (parts != UNUSED).sum() == 10_000
    assert len(np.unique(label[parts != UNUSED])) == 2  # not balanced over labels, but neither is missing


def test_the_file_order_fills_each_group_from_the_start_and_shares_no_image(table):
    parts, _, group, notes = parts_of(table, "sketch-file-order")
    for code in (0, 1):
        of_group = parts[group == code]
        assert of_group[:5_000].tolist() == [0] * 3_500 + [2] * 750 + [3] * 750
        assert (of_group[5_000:] == UNUSED).all()
    assert "images of one person are in several parts" in notes[0]


@pytest.mark.parametrize("protocol", ["sketch", "sketch-file-order"])
def test_the_size_of_a_balanced_sample_is_an_option(table, protocol):
    parts, *_ = parts_of(table, protocol, num=30)
    assert [(parts == PARTS.index(part)).sum() for part in ("train", "val", "test")] == [20, 4, 6]


def test_the_sample_of_another_seed_is_another_and_the_file_order_has_no_seed(table):
    assert (parts_of(table, "sketch", 1)[0] != parts_of(table, "sketch", 2)[0]).any()
    assert (parts_of(table, "sketch-file-order", 1)[0] == parts_of(table, "sketch-file-order", 2)[0]).all()


@pytest.mark.parametrize("num", [0, 18, 31, -100])
def test_a_sample_that_cannot_be_halved_or_is_too_small_is_refused(num):
    with pytest.raises(UserError, match=rf"data.num={num} is not allowed: it must be even.*at least 20"):
        CelebA(None, num=num)


def test_a_group_with_too_few_images_is_named_with_the_number_that_would_do(table):
    with pytest.raises(
        UserError, match=r"part of CelebA has [\d,]+ images of the group 'pale skin', .*=100000 takes"
    ) as error:
        parts_of(table, "sketch", sensitive="Pale_Skin", num=100_000)
    most = int(str(error.value).split("lower data.num to ")[1].split()[0])
    assert (parts_of(table, "sketch", sensitive="Pale_Skin", num=most)[0] != UNUSED).sum() == most
    with pytest.raises(UserError, match=rf"lower data.num to {most} or less"):
        parts_of(table, "sketch", sensitive="Pale_Skin", num=most + 2)
    with pytest.raises(
        UserError, match=r"CelebA has [\d,]+ images of the group 'pale skin', and data.num=30000 takes 15,000"
    ):
        parts_of(table, "sketch-file-order", sensitive="Pale_Skin", num=30_000)


def test_a_group_with_hardly_any_image_calls_for_another_attribute():
    few = made_up(range(15))
    with pytest.raises(UserError, match=r"choose another attribute in data.sensitive"):
        parts_of(few, "sketch")


@pytest.mark.parametrize("protocol", ["sketch", "sketch-file-order"])
@pytest.mark.parametrize(("sensitive", "num"), [(("Bald",), 1), (("Male", "Smiling"), 4)])
def test_a_balanced_sample_needs_two_groups(full, protocol, sensitive, num):
    # no image of the made-up table is bald
    with pytest.raises(UserError, match=rf"balances two groups, and data.sensitive makes {num}: name one attribute"):
        source.load(
            "celeba",
            datasets.get("celeba"),
            Data(root=full.parent, protocol=protocol, target="Young", sensitive=sensitive),
        )


def made_up(numbers):
    """A small table whose labels depend on the number of an image alone, as does who is shown."""
    numbers = np.array(numbers)
    bits = np.random.default_rng(5).integers(2, size=(1_000, 40))[numbers]
    part = np.random.default_rng(6).choice(3, 1_000, p=[0.6, 0.2, 0.2])[numbers]
    columns = {name: Column(words, bits[:, k]) for k, (name, words) in enumerate(ATTRIBUTES.items())}
    units = [str(number // 3) for number in numbers.tolist()]
    return Table([f"{number:06d}.jpg" for number in numbers.tolist()], columns, {"partition": part}, units)


@pytest.mark.parametrize("protocol", CelebA.protocols)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(300)), seed=st.integers(0, 5))
def test_a_split_does_not_change_when_rows_are_reordered(protocol, order, seed):
    straight, *_ = parts_of(made_up(range(300)), protocol, seed, num=40)
    mixed, *_ = parts_of(made_up(order), protocol, seed, num=40)
    assert (mixed == straight[np.array(order)]).all()


@settings(max_examples=20, deadline=None)
@given(numbers=st.sets(st.integers(0, 999), min_size=5, max_size=300), seed=st.integers(0, 5))
def test_whatever_images_there_are_fairgrape_keeps_a_person_in_one_part(numbers, seed):
    table = made_up(sorted(numbers))
    parts, *_ = parts_of(table, "fairgrape", seed)
    assert len({*zip(table.units, parts.tolist(), strict=True)}) == len({*table.units})


# --- the publisher's files ---


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fake.celeba(tmp_path_factory.mktemp("data"), num=400)


@pytest.fixture
def folder(published, tmp_path):
    """A copy whose label files can be spoilt; its folder of images is empty."""
    shutil.copytree(published / "celeba", tmp_path / "celeba", ignore=shutil.ignore_patterns("*.jpg"))
    return tmp_path / "celeba"


def equal(left, right):
    return (
        left.names == right.names
        and left.units == right.units
        and (left.numbers["partition"] == right.numbers["partition"]).all()
        and all(left.columns[name].levels == right.columns[name].levels for name in ATTRIBUTES)
        and all((left.columns[name].codes == right.columns[name].codes).all() for name in ATTRIBUTES)
    )


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def to_csv(folder):
    """Turn the text files into the widely used CSV files."""
    for name, header in (("list_attr_celeba", None), ("list_eval_partition", "image_id,partition")):
        path = folder / f"{name}.txt"
        lines = path.read_text().splitlines()
        if header is None:
            header, lines = "image_id," + ",".join(lines[1].split()), lines[2:]
        rows = "".join(",".join(line.split()) + "\n" for line in lines)
        (folder / f"{name}.csv").write_text(f"{header}\n{rows}")
        path.unlink()


def test_the_words_and_values_are_those_of_the_file(folder):
    table = CelebA(folder).table(False)
    lines = (folder / "list_attr_celeba.txt").read_text().splitlines()
    for name, column in table.columns.items():
        place = lines[1].split().index(name) + 1
        assert column.codes.tolist() == [int(line.split()[place] == "1") for line in lines[2:]]
    assert table.column("Male").levels == ("female", "male")
    assert table.column("Blond_Hair").levels == ("not blond hair", "blond hair")
    assert all(", " not in word for words in ATTRIBUTES.values() for word in words)
    assert table.units[0] == (folder / "identity_CelebA.txt").read_text().split()[1]


def test_csv_files_give_the_same_table(folder):
    before = CelebA(folder).table(False)
    to_csv(folder)
    assert equal(CelebA(folder).table(False), before)


def test_the_folders_of_the_original_download_are_found(folder):
    before = CelebA(folder).table(False)
    for place, names in {
        "Anno": ["list_attr_celeba.txt", "identity_CelebA.txt"],
        "Eval": ["list_eval_partition.txt"],
        "Img": ["img_align_celeba"],
    }.items():
        (folder / place).mkdir()
        for name in names:
            (folder / name).rename(folder / place / name)
    assert equal(CelebA(folder).table(False), before)


def test_the_order_and_line_ends_of_the_rows_do_not_matter(folder):
    before = CelebA(folder).table(False)
    for name, head in (("list_attr_celeba.txt", 2), ("list_eval_partition.txt", 0), ("identity_CelebA.txt", 0)):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_bytes("\r\n".join(lines[:head] + lines[head:][::-1]).encode())
    assert equal(CelebA(folder).table(False), before)


@pytest.mark.parametrize("nested", ["img_align_celeba/img_align_celeba", "Img/img_align_celeba"])
def test_images_are_found_wherever_their_folder_lies(published, tmp_path, in_threads, nested):
    shutil.copytree(published / "celeba", tmp_path / "celeba")
    (tmp_path / "celeba/img_align_celeba").rename(tmp_path / "images")
    (tmp_path / "celeba" / nested).parent.mkdir()
    (tmp_path / "images").rename(tmp_path / "celeba" / nested)
    kind = datasets.get("celeba")
    moved = source.load("celeba", kind, Data(root=tmp_path, size=16)).splits
    assert moved.fingerprint == source.load("celeba", kind, Data(root=published, size=16)).splits.fingerprint


@pytest.mark.parametrize("protocol", CelebA.protocols)
def test_every_protocol_gives_disjoint_parts(published, in_threads, protocol):
    options = {"num": 40} if protocol.startswith("sketch") else {}
    loaded = source.load(
        "celeba", datasets.get("celeba"), Data(root=published, protocol=protocol, size=16, options=options)
    )
    parts = [set(part.names) for part in (loaded.splits.train, loaded.splits.val, loaded.splits.test)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == (40 if options else 400)
    assert loaded.splits.task.group_names == ("female", "male")
    assert any("400 labelled images are here; 202,599 were published" in note for note in loaded.notes)


@pytest.mark.parametrize("gone", ["list_attr_celeba.txt", "list_eval_partition.txt", "img_align_celeba"])
def test_what_is_not_there_is_named_and_no_more(folder, gone):
    path = folder / gone
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=rf"looked for (the folder )?{gone}\).*Agree to the terms") as error:
        CelebA(folder).table(False)
    assert " and " not in str(error.value).split("looked for")[1].split(")")[0]


def test_an_empty_folder_names_all_that_is_needed(tmp_path):
    wanted = r"looked for list_attr_celeba.txt and list_eval_partition.txt and the folder img_align_celeba\)"
    with pytest.raises(UserError, match=wanted):
        CelebA(tmp_path).table(False)


def test_the_identities_can_be_missing(folder):
    (folder / "identity_CelebA.txt").unlink()
    assert CelebA(folder).table(False).units is None


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("list_attr_celeba.txt", "400\n", "401\n", r"begins with '401' and lists 400 images: put it there"),
        ("list_attr_celeba.txt", " Male ", " Mole ", r"Unknown column of list_attr_celeba.txt 'Male'; .* 'Mole'"),
        ("list_attr_celeba.txt", " Male ", " ", r"list_attr_celeba.txt cannot be read \(.*Expected 40 columns, got 41"),
        ("list_attr_celeba.txt", " -1", " 0", r"list_attr_celeba.txt has the \w+ '0' for \d+.jpg: allowed are -1 and"),
        ("list_attr_celeba.txt", "000007.jpg", "000008.jpg", r"names the image '000008.jpg' twice"),
        ("list_attr_celeba.txt", "000007.jpg", "../007.jpg", r"names the image '../007.jpg', which is not like 000001"),
        ("list_attr_celeba.txt", "000007.jpg", "/etc/passwd", r"names the image '/etc/passwd', which is not like"),
        ("list_eval_partition.txt", "000007.jpg 0", "000007.jpg 3", r"has the partition '3' for 000007.jpg: allowed"),
        ("list_eval_partition.txt", "000007.jpg 0\n", "", r"not about the same images: 000007.jpg is in one of them"),
        ("list_eval_partition.txt", "000007.jpg", "000907.jpg", r"not about the same images: 000007.jpg"),
        ("list_eval_partition.txt", "000007.jpg 0", "000007.jpg", r"list_eval_partition.txt cannot be read"),
        ("identity_CelebA.txt", "000007.jpg", "000907.jpg", r"identity_CelebA.txt and .* are not about the same"),
    ],
)  # fmt: skip
def test_a_spoilt_label_file_is_one_sentence(folder, name, old, new, words):
    edit(folder / name, old, new)
    with pytest.raises(UserError, match=words):
        CelebA(folder).table(False)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("image_id,", "file,", r"Unknown column of list_attr_celeba.csv 'image_id'"),
        (",-1", ",2", r"list_attr_celeba.csv has the \w+ '2' for \d+.jpg: allowed are -1 and"),
        (",-1", ",", r"list_attr_celeba.csv has the \w+ 'None' for 0000\d\d.jpg: allowed"),
        ("000007.jpg", "..\\7.jpg", r"which is not like 000001.jpg"),
    ],
)
def test_a_spoilt_csv_file_is_one_sentence(folder, old, new, words):
    to_csv(folder)
    edit(folder / "list_attr_celeba.csv", old, new)
    with pytest.raises(UserError, match=words):
        CelebA(folder).table(False)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"0\n\n", b"\xff\xfe\x00", b"3\nMale\n\xff -1\n", b"\x89PNG\r\n\x1a\n"]
)
def test_a_file_that_is_no_label_file_is_one_sentence(folder, content):
    for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            CelebA(folder).table(False)
        (folder / name).write_bytes(before)


@pytest.mark.real
def test_the_real_label_files_have_the_published_counts(real_data):
    from pathlib import Path

    folder = Path(real_data) / "celeba"
    if not folder.is_dir():
        pytest.skip("CelebA may not be passed on: put celeba/ into the folder with real images")
    table = CelebA(folder).table(False)
    parts, label, group, notes = parts_of(table, "study-blond")
    assert counts(parts, label, group) == {**OFFICIAL, "train": STUDY_TRAIN}
    for protocol, total in (("study-makeup", 162_770), ("study-black-hair", 153_986), ("study-smiling", 111_823)):
        assert (parts_of(table, protocol)[0] == PARTS.index("train")).sum() == total
    assert not notes
