"""ImageNet people: the official annotation, the table that is made of it, and tables that are already made."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS
from evenlens.datasets.imagenet_people import (
    ImageNetPeople,
    Synset,
    build_table,
    read_annotation,
    read_labels,
    read_synsets,
    split_fairgrape,
)
from evenlens.errors import UserError
from tests import fake

NUM, NUM_CLASSES, MALE, FEMALE = 10_215, 104, 6_590, 3_625  # of FairGRAPE's table; 30 to 105 images a class
DEMOGRAPHICS = "ImageNet demographics annotations.json"


def full_length():
    """Synsets, and images with gender by file name: the published numbers, and some of every kind to be left out."""
    generator = np.random.default_rng(0)
    sizes = np.full(NUM_CLASSES, 98)
    sizes[0], sizes[1] = 30, 105
    for k in generator.choice(np.arange(2, NUM_CLASSES), NUM - sizes.sum(), replace=False):
        sizes[k] += 1
    wnids = [f"n{9_600_000 + 11 * k:08d}" for k in range(NUM_CLASSES)]
    kind = np.repeat(np.arange(NUM_CLASSES), sizes)
    sex = generator.permutation(np.repeat(["male", "female"], [MALE, FEMALE]))
    genders = {f"{wnids[c]}_{number}.JPEG": [str(word)] for number, (c, word) in enumerate(zip(kind, sex, strict=True))}
    synsets = {wnid: Synset(f"person {k}", True, 4.0 + k % 2) for k, wnid in enumerate(wnids)}
    synsets["n10000001"] = Synset("slur", False, 5.0)
    synsets["n10000002"] = Synset("thinker", True, 3.9)
    synsets["n10000003"] = Synset("never asked", True, float("nan"))
    synsets["n10000004"] = Synset("rarity", True, 5.0)
    for wnid in ("n10000001", "n10000002", "n10000003", "n10000005"):
        genders |= {f"{wnid}_{k}.JPEG": ["male"] for k in range(50)}
    genders |= {f"n10000004_{k}.JPEG": ["female"] for k in range(9)}
    genders |= {f"{wnids[3]}_{20_000 + k}.JPEG": ["male", "female"] for k in range(20)}
    genders |= {f"{wnids[4]}_{20_000 + k}.JPEG": ["unsure"] for k in range(20)}
    genders |= {f"{wnids[5]}_{20_000 + k}.JPEG": [] for k in range(20)}
    genders |= {f"{wnids[6]}_{20_000 + k}.JPEG": ["female", "unsure"] for k in range(20)}
    return synsets, genders, sizes


def write(folder, synsets, genders):
    """Write the three official files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, column, value in (
        ("synsets_safety.csv", "safety", lambda synset: "safe" if synset.safe else "offensive"),
        ("imageability_scores.csv", "imageability score", lambda synset: synset.imageability),
    ):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["wnid", "synset", "gloss", column])
            for wnid, synset in synsets.items():
                if not (column != "safety" and np.isnan(synset.imageability)):
                    writer.writerow([wnid, f"{synset.name}, other word", 'a person; "said somebody"', value(synset)])
    entries = [{"url": url, "gender": words, "skin_color": ["dark"]} for url, words in genders.items()]
    (folder / DEMOGRAPHICS).write_text(json.dumps(entries))
    return folder


def as_fairgrape(table, path, reverse=False):
    """Write a table like the one that FairGRAPE's authors published."""
    rows = zip(table.names, table.column("class").codes, table.column("gender").codes, strict=True)
    lines = [f"{name.split('/')[1]},{name.split('/')[1]},{kind},{sex}\n" for name, kind, sex in rows]
    path.write_text("image_name,face_name_align,classes,gender\n" + "".join(lines[::-1] if reverse else lines))


@pytest.fixture(scope="module")
def table():
    synsets, genders, _ = full_length()
    return build_table(synsets, genders)


def same(left, right):
    return left.names == right.names and all(
        left.column(name).levels == right.column(name).levels
        and (left.column(name).codes == right.column(name).codes).all()
        for name in ("class", "gender")
    )


def test_the_construction_keeps_what_was_meant_to_be_kept(table):
    _, _, sizes = full_length()
    kind, gender = table.column("class"), table.column("gender")
    assert (len(table), len(kind.levels)) == (NUM, NUM_CLASSES)
    assert gender.levels == ("male", "female")
    assert np.bincount(gender.codes).tolist() == [MALE, FEMALE]
    found = np.bincount(kind.codes)
    assert found.tolist() == sizes.tolist()
    assert (found.min(), found.max()) == (30, 105)
    assert kind.levels[:2] == ("person 0", "person 1")
    assert table.names == sorted(table.names)
    assert set(table.columns) == set(ImageNetPeople.columns)


def test_the_files_of_the_annotation_give_the_same_table_and_no_warning(table, tmp_path):
    synsets, genders, _ = full_length()
    people = ImageNetPeople(write(tmp_path, synsets, genders))
    assert same(people.table(False), table)
    assert people.notes == [
        f"10,215 of {len(genders):,} annotated images have one clear gender and a class that was kept."
    ]


def test_the_published_table_gives_the_same_rows_with_and_without_the_words(table, tmp_path):
    as_fairgrape(table, tmp_path / "Imagenet.csv", reverse=True)
    people = ImageNetPeople(tmp_path)
    plain = people.table(False)
    assert plain.names == table.names
    assert plain.column("class").levels[:2] == ("n09600000", "n09600011")
    assert people.notes == ["Put synsets_safety.csv beside Imagenet.csv to see the classes in words."]
    synsets, genders, _ = full_length()
    write(tmp_path, synsets, genders)
    people = ImageNetPeople(tmp_path)
    assert same(people.table(False), table)
    assert not people.notes


def test_a_table_of_ones_own_is_read_in_words_or_in_numbers(table, tmp_path):
    kind, sex = table.column("class"), table.column("gender")
    rows = [
        (name, kind.levels[k], sex.levels[s])
        for name, k, s in zip(table.names, kind.codes.tolist(), sex.codes.tolist(), strict=True)
    ]
    (tmp_path / "labels.csv").write_text("file,class,gender\n" + "".join(",".join(row) + "\n" for row in rows[::-1]))
    own = ImageNetPeople(tmp_path).table(False)
    assert own.names == table.names
    words = [own.column("class").levels[code] for code in own.column("class").codes]
    assert words == [kind.levels[code] for code in kind.codes]
    numbers = [(name, str(k), str(s)) for name, k, s in zip(table.names, kind.codes, sex.codes, strict=True)]
    (tmp_path / "labels.csv").write_text("file,class,gender\n" + "".join(",".join(row) + "\n" for row in numbers))
    own = read_labels(tmp_path / "labels.csv", {"n09600000": "person 0"})
    assert own.column("class").levels[:2] == ("person 0", "n09600011")
    assert (own.column("class").codes == kind.codes).all()
    assert (own.column("gender").codes == sex.codes).all()


def test_the_split_has_the_published_shares_and_does_not_depend_on_where_a_file_lies(table):
    label, group = table.column("class").codes, table.column("gender").codes
    parts = split_fairgrape(table, label, group, 1)
    shares = np.bincount(parts, minlength=4) / NUM
    assert shares == pytest.approx([0.8, 0.0, 0.1, 0.1], abs=0.01)
    assert all(len(np.unique(label[parts == PARTS.index(part)])) == NUM_CLASSES for part in ("train", "val", "test"))
    assert (split_fairgrape(table, label, group, 2) != parts).any()
    order = np.random.default_rng(0).permutation(NUM)
    assert (split_fairgrape(table.select(order), label[order], group[order], 1) == parts[order]).all()
    flat = type(table)([name.rpartition("/")[2] for name in table.names], table.columns)
    assert (split_fairgrape(flat, label, group, 1) == parts).all()


WORDS = st.lists(st.sampled_from(["male", "female", "unsure"]), max_size=3)
FILES = st.builds("n{:08d}_{}.JPEG".format, st.integers(0, 4), st.integers(0, 30))


@settings(max_examples=60, deadline=None)
@given(
    genders=st.dictionaries(FILES, WORDS, max_size=60),
    safe=st.lists(st.booleans(), min_size=4, max_size=4),
    scores=st.lists(st.sampled_from([1.0, 3.99, 4.0, 5.0, float("nan")]), min_size=4, max_size=4),
    least=st.integers(1, 5),
)
def test_every_row_fulfils_every_condition_and_nothing_that_does_is_missing(genders, safe, scores, least):
    synsets = {f"n{k:08d}": Synset(f"kind {k}", safe[k], scores[k]) for k in range(4)}  # of a fifth nothing is known
    table = build_table(synsets, genders, min_images=least)
    good = {
        file
        for file, words in genders.items()
        if len(set(words)) == 1
        and words[0] != "unsure"
        and file[:9] in synsets
        and synsets[file[:9]].safe
        and synsets[file[:9]].imageability >= 4
    }
    kept = {file for file in good if sum(other[:9] == file[:9] for other in good) >= least}
    assert {name.partition("/")[2] for name in table.names} == kept
    mixed = build_table(dict(reversed(synsets.items())), dict(reversed(genders.items())), min_images=least)
    assert same(mixed, table)
    for name, kind, sex in zip(table.names, table.column("class").codes, table.column("gender").codes, strict=True):
        assert genders[name.partition("/")[2]][0] == ("male", "female")[sex]
        assert table.column("class").levels[kind] == f"kind {int(name[1:9])}"


def test_two_classes_of_the_same_word_are_told_apart():
    synsets = {"n00000001": Synset("queen", True, 5.0), "n00000002": Synset("queen", True, 5.0)}
    table = build_table(synsets, {"n00000001_1.JPEG": ["female"], "n00000002_1.JPEG": ["female"]}, min_images=1)
    assert table.column("class").levels == ("queen (n00000001)", "queen (n00000002)")


def test_an_image_that_was_annotated_twice_must_be_of_one_gender(tmp_path):
    entries = [("n00000001_1.JPEG", "Male"), ("n00000001_1.JPEG", "female"), ("n00000001_2.JPEG", " Male ")]
    (tmp_path / DEMOGRAPHICS).write_text(json.dumps([{"url": url, "gender": [word]} for url, word in entries]))
    found = read_annotation(tmp_path / DEMOGRAPHICS)
    assert found == {"n00000001_1.JPEG": {"male", "female"}, "n00000001_2.JPEG": {"male"}}
    assert len(build_table({"n00000001": Synset("one", True, 5.0)}, found, min_images=1)) == 1


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fake.imagenet_people(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(published, tmp_path):
    """A copy of the label files, without images, which can be spoilt."""
    for path in (published / "imagenet_people").glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_the_synsets_are_read_with_their_first_word(folder):
    synsets = read_synsets(folder / "synsets_safety.csv", folder / "imageability_scores.csv")
    assert synsets["n09896685"] == Synset("carpenter", True, 4.6)
    assert [synset.safe for synset in synsets.values()] == [True, True, True, False, True]
    assert synsets["n10202020"].imageability == 2.5


def test_a_copy_of_the_publishers_layout_is_loaded(published, in_threads):
    loaded = source.load("imagenet_people", datasets.get("imagenet_people"), Data(root=published, size=16))
    splits = loaded.splits
    assert splits.task.class_names == ("carpenter", "nurse", "runner")
    assert splits.task.group_names == ("male", "female")
    parts = [set(part.names) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 240
    assert any("240 labelled images are here; FairGRAPE's table has 10,215" in note for note in loaded.notes)


def test_an_empty_folder_says_what_to_get(tmp_path):
    wanted = (
        r"looked for labels.csv, or Imagenet.csv, or else synsets_safety.csv, imageability_scores.csv, ImageNet "
        r"demographics annotations.json\). With an account"
    )
    with pytest.raises(UserError, match=wanted):
        ImageNetPeople(tmp_path).table(False)


def test_the_one_file_that_is_lacking_is_named(folder):
    (folder / "imageability_scores.csv").unlink()
    with pytest.raises(UserError, match=r"or else imageability_scores.csv\)"):
        ImageNetPeople(folder).table(False)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("synsets_safety.csv", "gloss,safety", "gloss,danger", r"Unknown column of synsets_safety.csv 'safety'"),
        ("synsets_safety.csv", "n10366966", "n09896685", r"names the synset 'n09896685', twice"),
        ("synsets_safety.csv", "n10366966", "nurse", r"names the synset 'nurse', which is not like n09618880"),
        ("imageability_scores.csv", "4.6", "high", r"imageability_scores.csv has the imageability score 'high'"),
        (DEMOGRAPHICS, "[{", "{", r"annotations.json is no JSON in UTF-8"),
        (DEMOGRAPHICS, '"url"', '"link"', r"Entry 0 of .*annotations.json must have a 'url' like n09618880_1956.JPEG"),
        (DEMOGRAPHICS, "n09896685_0.JPEG", "../../n09896685_0.JPEG", r"Entry 0 of .* must have a 'url' like"),
        (DEMOGRAPHICS, '["male"]', '"male"', r"Entry \d of .* a 'gender' that is a list of words"),
        (DEMOGRAPHICS, '["male"]', "[0]", r"Entry \d of .* a 'gender' that is a list of words"),
    ],
)  # fmt: skip
def test_a_spoilt_annotation_is_one_sentence(folder, name, old, new, words):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        ImageNetPeople(folder).table(False)


@pytest.mark.parametrize("content", ["{}", "3", '"male"', "[3]", "[[]]", "", "\0", "[" * 100_000])
def test_a_file_that_is_no_annotation_is_one_sentence(folder, content):
    (folder / DEMOGRAPHICS).write_text(content)
    with pytest.raises(UserError, match=r"annotations.json (must|is no JSON)"):
        ImageNetPeople(folder).table(False)


def test_an_annotation_of_which_nothing_is_kept_says_what_is_needed(folder):
    (folder / DEMOGRAPHICS).write_text(json.dumps([{"url": "n10366966_1.JPEG", "gender": ["F"]}]))
    with pytest.raises(UserError, match=r"None of the 1 images in .* one clear gender"):
        ImageNetPeople(folder).table(False)


ROWS = ["n00000001/n00000001_1.JPEG,nurse,female", "n00000001/n00000001_2.JPEG,nurse,male", "a/b.png,cook,male"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("file,", "image,", r"Unknown column of labels.csv 'file'"),
        ("cook,male", "cook,man", r"Row 4 of labels.csv has the gender 'man': allowed are male, female"),
        ("cook,male", "cook,", r"Row 4 of .* has no gender: leave the image out"),
        ("cook,male", ",male", r"Row 4 of .* has no class: fill it in"),
        ("a/b.png", "/a/b.png", r"Row 4 of .* names the image '/a/b.png', which is not below its folder"),
        ("a/b.png", "a/../../b.png", r"Row 4 of .* which is not below its folder"),
        ("a/b.png", "C:b.png", r"Row 4 of .* which is not below its folder"),
        ("a/b.png", "", r"Row 4 of .* names the image 'None'"),
        ("a/b.png", "n00000001/n00000001_2.JPEG", r"names the image 'n00000001/n00000001_2.JPEG' twice"),
    ],
)  # fmt: skip
def test_a_spoilt_label_table_is_one_sentence(tmp_path, old, new, words):
    text = "file,class,gender\n" + "\n".join(ROWS) + "\n"
    assert old in text
    (tmp_path / "labels.csv").write_text(text)
    assert len(ImageNetPeople(tmp_path).table(False)) == 3
    (tmp_path / "labels.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        ImageNetPeople(tmp_path).table(False)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["n00000001_1.JPEG,0,0", "n00000002_1.JPEG,0,1"], r"numbers for classes, which must stand for one synset"),
        (["n00000001_1.JPEG,0,0", "n00000001_2.JPEG,1,1"], r"numbers for classes, which must stand for one synset"),
        (["n00000001_1.JPEG,0,2"], r"Row 2 of Imagenet.csv has the gender '2': allowed are"),
        (["face.jpg,0,0"], r"Row 2 of .* names the image 'face.jpg', not like n09618880_1956.JPEG"),
    ],
)
def test_a_table_of_numbers_must_agree_with_the_names_of_its_images(tmp_path, rows, words):
    lines = "".join(f"{row.split(',')[0]},{row}\n" for row in rows)
    (tmp_path / "Imagenet.csv").write_text("image_name,face_name_align,classes,gender\n" + lines)
    with pytest.raises(UserError, match=words):
        ImageNetPeople(tmp_path).table(False)


@pytest.mark.real
def test_the_real_table_has_the_published_counts(real_data):
    from pathlib import Path

    folder = Path(real_data) / "imagenet_people"
    if not folder.is_dir():
        pytest.skip("ImageNet's images of people are given out on request: put imagenet_people/ there")
    table = ImageNetPeople(folder).table(False)
    assert len(table) == NUM
    assert np.bincount(table.column("gender").codes).tolist() == [MALE, FEMALE]
    found = np.bincount(table.column("class").codes)
    assert (len(found), found.min(), found.max()) == (NUM_CLASSES, 30, 105)
