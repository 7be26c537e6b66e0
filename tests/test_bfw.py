"""BFW: its eight folders, parts that share no subject, and the table of pairs."""

import csv
import shutil
import time
from itertools import combinations

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS, Column, Table
from evenlens.datasets import bfw
from evenlens.datasets.bfw import BAD_IMAGES, BFW, ETHNICITIES, GENDERS, INITIALS, SUBGROUPS, read_pairs
from evenlens.errors import UserError
from tests import fake


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fake.bfw(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(published, tmp_path):
    """A copy that can be changed."""
    shutil.copytree(published, tmp_path / "data")
    return tmp_path / "data"


def load(folder, **settings):
    return source.load("bfw", datasets.get("bfw"), Data(root=folder, size=16, **settings))


def table_of(folder):
    found = BFW(folder / "bfw")
    return found, found.table(False)


def parts_of(table, seed=1):
    return BFW.protocols["subjects"].split(table, table.column("gender").codes, table.column("ethnicity").codes, seed)


def in_memory(subjects=100, num=25):
    """The table of a data set of this size, without images."""
    units = [f"{subgroup}/n{k:06d}" for subgroup in SUBGROUPS for k in range(subjects) for _ in range(num)]
    codes = np.repeat(np.arange(8), subjects * num)
    names = [f"{unit}/{k % num:04d}_01.jpg" for k, unit in enumerate(units)]
    columns = {"gender": Column(GENDERS, codes % 2), "ethnicity": Column(ETHNICITIES, codes // 2)}
    return Table(names, columns, units=units)


# Images


def test_subgroups_are_read_from_the_folders(published):
    found, table = table_of(published)
    assert len(table) == 240
    assert list(table.names) == sorted(table.names)
    for k, name in enumerate(table.names):
        subgroup, subject, _ = name.split("/")
        said = (table.column(name).levels[table.column(name).codes[k]] for name in ("ethnicity", "gender"))
        assert "{}_{}s".format(*said) == subgroup
        assert table.units[k] == f"{subgroup}/{subject}"
    assert set(table.columns) == set(BFW.columns)
    assert found.notes == ["240 images are here; 20,000 were published, 3 of them wrong."]


def test_of_each_subgroups_100_subjects_70_train_10_select_and_20_test():
    table = in_memory()
    parts, units = parts_of(table), np.array(table.units)
    for subgroup in SUBGROUPS:
        inside = np.char.startswith(units, f"{subgroup}/")
        for part, num in (("train", 70), ("val", 10), ("test", 20)):
            assert len({*units[inside & (parts == PARTS.index(part))]}) == num
    assert [(parts == PARTS.index(part)).sum() for part in ("train", "val", "test")] == [14_000, 2000, 4000]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(160)), seed=st.integers(0, 2**63 - 1))
def test_parts_share_no_subject_and_do_not_depend_on_the_order_of_the_rows(order, seed):
    table = in_memory(10, 2)
    parts = parts_of(table, seed)
    for unit in set(table.units):
        assert len({int(part) for part, name in zip(parts, table.units, strict=True) if name == unit}) == 1
    order = np.array(order)
    assert (parts_of(table.select(order), seed) == parts[order]).all()


@pytest.mark.parametrize("asked", [{}, {"target": "ethnicity", "sensitive": ("gender",)}])
def test_the_protocol_loads_with_parts_that_share_no_subject(published, in_threads, asked):
    splits = load(published, **asked).splits
    inside = [{name.rpartition("/")[0] for name in part.names} for part in (splits.train, splits.val, splits.test)]
    assert list(map(len, inside)) == [56, 8, 16]
    assert len(set.union(*inside)) == 80


@pytest.mark.parametrize("between", ["bfw-cropped-aligned", "Users/somebody/bfw/bfw-cropped-aligned"])
def test_folders_in_between_give_the_same_split(folder, published, between, in_threads):
    home = folder / "bfw"
    (home / between).mkdir(parents=True)
    for subgroup in SUBGROUPS:
        (home / subgroup).rename(home / between / subgroup)
    one, other = load(folder).splits, load(published).splits
    for part in ("train", "val", "test"):
        assert [name.removeprefix(f"{between}/") for name in getattr(one, part).names] == getattr(other, part).names


def test_two_folders_of_images_are_one_too_many(folder):
    for name in ("cropped", "uncropped"):
        (folder / "bfw" / name / "asian_males").mkdir(parents=True)
    for subgroup in SUBGROUPS:
        shutil.rmtree(folder / "bfw" / subgroup)
    with pytest.raises(UserError, match=r"Both .*/cropped and .*/uncropped hold images of BFW"):
        table_of(folder)


def test_images_that_are_known_to_be_wrong_are_left_out_and_other_files_are_none(folder):
    for image in BAD_IMAGES:
        path = folder / "bfw" / image
        path.parent.mkdir(exist_ok=True)
        fake.face(0).save(path)
    (folder / "bfw/asian_males/n001000/Thumbs.db").write_bytes(b"")
    (folder / "bfw/asian_males/.DS_Store").write_bytes(b"")
    found, table = table_of(folder)
    assert len(table) == 240
    for image in BAD_IMAGES:
        assert any(image.rpartition("/")[0] in note and "known to be wrong" in note for note in found.notes)


def test_a_lacking_subgroup_is_noted_and_an_empty_folder_says_what_to_fetch(folder):
    shutil.rmtree(folder / "bfw/white_males")
    found, table = table_of(folder)
    assert len(table) == 210
    assert "The folder white_males is not here." in found.notes
    shutil.rmtree(folder / "bfw")
    (folder / "bfw/elsewhere").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"looked for folders asian_females, .*Ask for the face crops.*data.root=FOLDER"
    ):
        table_of(folder)


# Pairs


def pair(first, second, fold=1, **other):
    """One row of the table, as its publisher writes it."""
    row = {"fold": fold, "p1": first, "p2": second}
    subjects = [image.rpartition("/")[0] for image in (first, second)]
    row["label"] = int(subjects[0] == subjects[1])
    for side, subject in zip("12", subjects, strict=True):
        subgroup = subject.partition("/")[0]
        initials = INITIALS[SUBGROUPS.index(subgroup)]
        row |= {f"id{side}": 7, f"att{side}": subgroup, f"a{side}": initials}
        row |= {f"g{side}": initials[1], f"e{side}": initials[0]}
    return row | {"vgg16": 0.25, "sphereface": -0.5} | other


def image(subgroup, subject, k=0):
    return f"{subgroup}/n{subject:06d}/{k:04d}_01.jpg"


def genuine(subgroup, subject, fold, num=3):
    return [
        pair(image(subgroup, subject, a), image(subgroup, subject, b), fold) for a, b in combinations(range(num), 2)
    ]


def written(tmp_path, rows, name="pairs.csv"):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def rows():
    """Three genuine pairs a subgroup and fold, imposters within it, and two across."""
    made = []
    for fold in range(1, 6):
        for code, subgroup in enumerate(SUBGROUPS):
            own, other = 100 * code + 10 * fold, 100 * code + 10 * fold + 1
            made += genuine(subgroup, own, fold)
            made += [pair(image(subgroup, own, k), image(subgroup, other), fold) for k in range(2 + (code == 0))]
    made.append(pair(image("white_females", 610), image("asian_males", 110), 1))
    made.append(pair(image("black_females", 220), image("black_males", 320), 2))
    return made


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet"])
def test_pairs_say_what_the_table_says(tmp_path, rows, name):
    pairs = read_pairs(written(tmp_path, rows, name))
    assert len(pairs) == len(rows)
    assert list(pairs.scores) == ["vgg16", "sphereface"]
    assert (pairs.scores["sphereface"] == -0.5).all()
    assert pairs.fold.tolist() == [row["fold"] for row in rows]
    assert pairs.genuine.tolist() == [bool(row["label"]) for row in rows]
    for k, row in enumerate(rows):
        for side, image, subject, group in (
            ("1", pairs.first, pairs.first_subject, pairs.first_group),
            ("2", pairs.second, pairs.second_subject, pairs.second_group),
        ):
            assert image.levels[image.codes[k]] == row[f"p{side}"]
            assert subject.levels[subject.codes[k]] == row[f"p{side}"].rpartition("/")[0]
            assert group.levels[group.codes[k]].replace(" ", "_") + "s" == row[f"att{side}"]
    assert pairs.first.levels == pairs.second.levels
    assert pairs.first_subject.levels == pairs.second_subject.levels
    assert len(pairs.notes) == 1
    assert "120 genuine and 87 imposter pairs are here; 240,000 (in version 0.1.5 242,519)" in pairs.notes[0]


def test_pairs_are_counted_by_fold_subgroups_and_label(tmp_path, rows):
    counts = read_pairs(written(tmp_path, rows)).counts()
    assert counts.shape == (5, 8, 8, 2)
    assert counts.sum() == len(rows)
    assert (counts[..., 1].sum((1, 2)) == 24).all()
    assert counts[..., 0].sum((1, 2)).tolist() == [18, 18, 17, 17, 17]
    assert (counts[..., 1] == 3 * np.eye(8, dtype=int)).all()
    within = np.diagonal(counts[..., 0].sum(0))
    assert within.tolist() == [15, *[10] * 7]
    asian_male, black_female, black_male, white_female = (
        SUBGROUPS.index(name) for name in ("asian_males", "black_females", "black_males", "white_females")
    )
    assert counts[0, white_female, asian_male, 0] == counts[1, black_female, black_male, 0] == 1
    assert counts[..., 0].sum() == within.sum() + 2


def test_the_published_counts_agree_with_each_other():
    assert bfw.PAPER_GENUINE == 8 * 100 * (25 * 24 // 2) == 8 * 30_000
    assert bfw.PAPER_GENUINE + bfw.PAPER_IMPOSTER == 921_379
    assert sum(bfw.IMPOSTER_BY_SUBGROUP.values()) == sum(bfw.V015_IMPOSTER_BY_FOLD) == bfw.PAPER_IMPOSTER
    assert sum(bfw.V015_GENUINE_BY_FOLD) == 242_519
    assert tuple(bfw.IMPOSTER_BY_SUBGROUP) == INITIALS


def test_what_a_published_table_should_not_show_is_noted(tmp_path, rows):
    rows += genuine("asian_females", 10, 4)[:1]  # a subject of fold 1, and a pair that is there already
    rows.append(pair(image("indian_males", 510), image("indian_males", 510), 1))
    rows.append(pair(image("white_males", 710), image("white_males", 711), 1, label=1))
    rows.append(pair(BAD_IMAGES[0], image("asian_females", 20), 2))
    notes = "\n".join(read_pairs(written(tmp_path, rows)).notes)
    assert "1 of 81 subjects are in more than one fold" in notes
    assert "fifth: asian_females/n000010." in notes
    assert "2 pairs repeat two images" in notes
    assert "1 pairs compare an image with itself" in notes
    assert "1 pairs have a label that contradicts the subjects" in notes
    assert "1 pairs show one of the images known to be wrong" in notes


def test_a_reversed_pair_is_a_repetition(tmp_path, rows):
    rows.append(rows[0] | {"p1": rows[0]["p2"], "p2": rows[0]["p1"]})
    assert any("1 pairs repeat two images" in note for note in read_pairs(written(tmp_path, rows)).notes)


def test_row_numbers_and_words_are_no_scores_and_gaps_are_noted(tmp_path, rows):
    for k, row in enumerate(rows):
        row |= {"": k, "remark": "fine", "mine": "" if k == 3 else 0.5}
    pairs = read_pairs(written(tmp_path, rows))
    assert list(pairs.scores) == ["vgg16", "sphereface", "mine"]
    assert np.flatnonzero(np.isnan(pairs.scores["mine"])).tolist() == [3]
    assert any("remark" in note and "no score" in note for note in pairs.notes)
    assert any(f"1 of {len(rows)} pairs have no score in mine" in note for note in pairs.notes)
    assert list(read_pairs(tmp_path / "pairs.csv", ["mine"]).scores) == ["mine"]
    with pytest.raises(UserError, match=r"has the remark 'fine', which is no number"):
        read_pairs(tmp_path / "pairs.csv", ["remark"])
    with pytest.raises(UserError, match=r"'arcface'"):
        read_pairs(tmp_path / "pairs.csv", ["arcface"])


def test_numbers_that_pandas_wrote_with_a_point_are_whole(tmp_path, rows):
    for row in rows:
        row |= {"fold": float(row["fold"]), "label": float(row["label"])}
    assert set(read_pairs(written(tmp_path, rows)).fold.tolist()) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fold": 6}, r"Row 2 of pairs.csv has the fold '6'.*: allowed are 1, 2, 3, 4, 5"),
        ({"fold": ""}, r"Row 2 of pairs.csv has no fold"),
        ({"label": 2}, r"has the label '2'.*: allowed are 0, 1"),
        ({"label": ""}, r"Row 2 of pairs.csv has no label"),
        (
            {"p1": "n000010/0000_01.jpg"},
            r"Row 2 .* has the image 'n000010/0000_01.jpg', which is not like asian_females",
        ),
        ({"p2": "green_males/n000010/0000_01.jpg"}, r"Row 2 .* the first folder must be one of asian_females, asian_m"),
        ({"p2": "asian_males/../0000_01.jpg"}, r"which is not like"),
        ({"p2": "/asian_males/n000010/0000_01.jpg"}, r"which is not like"),
        ({"p1": ""}, r"Row 2 .* has the image ''"),
        (
            {"att1": "asian_males"},
            r"1 rows of pairs.csv contradict themselves: in row 2, att1 is asian_males, where p1 is",
        ),
        ({"att2": "martians"}, r"has the att2 'martians'"),
        ({"a2": "WM"}, r"in row 2, a2 is WM, where p2 is in asian_females/"),
        ({"g1": "M"}, r"in row 2, g1 is M"),
        ({"e2": "W"}, r"in row 2, e2 is W"),
        ({"e1": ""}, r"in row 2, e1 is nothing"),
    ],
)
def test_a_spoilt_row_is_one_sentence(tmp_path, rows, change, words):
    rows[0] |= change
    with pytest.raises(UserError, match=words) as error:
        read_pairs(written(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_a_table_that_is_none_is_one_sentence(tmp_path, rows):
    (tmp_path / "bfw-v0.1.5-datatable.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a pickle, .*read_pickle.*to_parquet.*bfw-v0.1.5-datatable.parquet"):
        read_pairs(tmp_path / "bfw-v0.1.5-datatable.pkl")
    with pytest.raises(UserError, match=r"There is no table .*none.csv"):
        read_pairs(tmp_path / "none.csv")
    path = written(tmp_path, rows)
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"has no rows"):
        read_pairs(path)
    for name, words in (("att1", r"'att1'"), ("label", r"'label'")):
        lacking = written(tmp_path, [{key: value for key, value in row.items() if key != name} for row in rows])
        with pytest.raises(UserError, match=words):
            read_pairs(lacking)
    without = written(tmp_path, [{k: v for k, v in row.items() if k not in ("vgg16", "sphereface")} for row in rows])
    with pytest.raises(UserError, match=r"has no column of scores"):
        read_pairs(without)


@pytest.mark.slow
def test_a_table_as_long_as_the_published_one_takes_seconds(tmp_path):
    generator = np.random.default_rng(0)
    images = np.array([image(subgroup, 100 * k + s, i) for k, subgroup in enumerate(SUBGROUPS)
                       for s in range(100) for i in range(25)])  # fmt: skip
    within = np.array([(a, b) for a, b in combinations(range(25), 2)])
    same = (25 * np.arange(800)[:, None, None] + within).reshape(-1, 2)
    subgroup = np.repeat(np.arange(8), list(bfw.IMPOSTER_BY_SUBGROUP.values()))
    subject = 100 * subgroup + generator.integers(100, size=len(subgroup))
    other = 100 * subgroup + (subject % 100 // 20 * 20 + (subject + generator.integers(1, 20, size=len(subgroup))) % 20)
    different = np.stack([subject, other], 1) * 25 + generator.integers(25, size=(len(subgroup), 2))
    sides = np.concatenate([same, different])
    initials, names = np.array(INITIALS), np.array(SUBGROUPS)
    columns = {"fold": sides[:, 0] // 25 % 100 // 20 + 1, "p1": images[sides[:, 0]], "p2": images[sides[:, 1]]}
    columns["label"] = np.repeat([1, 0], [len(same), len(different)])
    for side in (0, 1):
        code = sides[:, side] // 2500
        columns |= {f"att{side + 1}": names[code], f"a{side + 1}": initials[code]}
    columns |= {name: generator.random(len(sides)) for name in ("vgg16", "resnet50", "senet50", "sphereface")}
    pyarrow.csv.write_csv(pyarrow.table(columns), tmp_path / "pairs.csv")
    start = time.perf_counter()
    pairs = read_pairs(tmp_path / "pairs.csv")
    assert time.perf_counter() - start < 30  # about 3 on two cores
    assert len(pairs) == 921_379
    counts = pairs.counts()
    assert counts[..., 1].sum((0, 2)).tolist() == [30_000] * 8
    assert counts[..., 0].sum((0, 2)).tolist() == [*bfw.IMPOSTER_BY_SUBGROUP.values()]
    assert not any("fold" in note or "published" in note or "label" in note for note in pairs.notes)
