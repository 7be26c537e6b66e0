"""Images and labels that people bring: what is understood, what is refused, and what stays where it is."""

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import own
from evenlens.data.describing import describe
from evenlens.data.images import read_image
from evenlens.data.own import Description
from evenlens.data.source import load, pose
from evenlens.data.tables import PARTS, UNUSED
from evenlens.errors import UserError
from tests import fake

TOML = 'label = "smiling"\nsensitive = ["gender"]\ntable = "labels.csv"\npath = "path"\n'


def people(num=60, **more):
    """Columns of a table: each label and group in turn."""
    return {
        "path": [f"{k:03d}.jpg" for k in range(num)],
        "smiling": ["no", "yes"] * (num // 2),
        "gender": ["f", "f", "m", "m"] * (num // 4),
        **more,
    }


def write(path, columns):
    """Write columns as a table; give its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table(columns), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    return path.parent


def draw(folder, names):
    """Draw an image at each of these paths."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fake.face(number).save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    return folder


def touch(folder, names):
    """Lay out files that nobody opens."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def photos(tmp_path):
    """Make the folder of a data set with this table and these further lines of dataset.toml."""

    def make(columns, lines="", toml=TOML):
        folder = write(tmp_path / "photos" / "labels.csv", columns)
        (folder / "dataset.toml").write_text(toml + lines, encoding="utf-8")
        return folder

    return make


def posed(folder, **data):
    return pose(folder.name, own.kind(folder), Data(root=folder.parent, **data))


def refused(call, *arguments, **options):
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    message = str(error.value)
    assert message.isprintable(), "one line"
    return message


# ---- paths


@pytest.mark.parametrize(("given", "meant"), [
    ("./a/b.jpg", "a/b.jpg"),
    ("a/./b.jpg", "a/b.jpg"),
    ("a//b.jpg", "a/b.jpg"),
    ("././/./a/././/b.jpg", "a/b.jpg"),
    ("a\\b.jpg", "a/b.jpg"),
    (".\\a\\b.jpg", "a/b.jpg"),
    ("two words/Zoë, 日本.JPG", "two words/Zoë, 日本.JPG"),
    (" a.jpg ", "a.jpg"),
    ("..a/b..jpg", "..a/b..jpg"),
    (".hidden.jpg", ".hidden.jpg"),
    ("~a.jpg", "~a.jpg"),
])  # fmt: skip
def test_a_path_is_read_as_it_was_meant(photos, given, meant):
    assert posed(photos({"path": [given], "smiling": ["no"], "gender": ["f"]})).table.names == [meant]


@pytest.mark.parametrize(("path", "why"), [
    ("/etc/passwd.jpg", "an absolute path"),
    ("\\\\server\\a.jpg", "an absolute path"),
    ("C:\\photos\\a.jpg", "an absolute path"),
    ("d:a.jpg", "an absolute path"),
    ("~/a.jpg", "an absolute path"),
    ("~somebody/a.jpg", "an absolute path"),
    ("../a.jpg", "a path with '..'"),
    ("a/../../b.jpg", "a path with '..'"),
    ("a\\..\\b.jpg", "a path with '..'"),
    ("./../a.jpg", "a path with '..'"),
    ("a/..", "a path with '..'"),
])  # fmt: skip
def test_a_path_that_leads_out_of_the_folder_is_refused_before_any_is_opened(photos, path, why):
    folder = photos({"path": ["a.jpg", path, "b.jpg"], "smiling": ["no"] * 3, "gender": ["f"] * 3})
    message = refused(posed, folder)
    assert message.startswith("Row 3 of labels.csv names ")
    assert f", {why}: paths must lie below the folder" in message


def test_paths_that_lead_out_are_counted_and_a_suffix_can_lead_nowhere(photos):
    columns = people(8, path=[f"../{k}.jpg" for k in range(8)])
    assert "(and 7 more rows do so)" in refused(posed, photos(columns))
    assert "a path with '..'" in refused(posed, photos(people(8), 'suffix = "/../../a.jpg"\n'))


def test_a_path_that_no_file_can_have_is_refused(tmp_path):
    folder = write(tmp_path / "photos" / "labels.parquet", people(4, path=["a\0.jpg", "b", "c", "d"]))
    (folder / "dataset.toml").write_text(TOML.replace(".csv", ".parquet"))
    assert "Row 1 of labels.parquet names 'a\\x00.jpg', which is no path" in refused(posed, folder)


def test_a_row_without_a_path_is_refused(photos):
    assert refused(posed, photos(people(4, path=["a", "b", " ", "c"]))).startswith("Row 4 of labels.csv has no path")


@pytest.mark.parametrize("again", ["a.jpg", "./a.jpg", ".\\a.jpg", ".//a.jpg"])
def test_an_image_that_is_listed_twice_is_refused_also_where_it_is_spelt_otherwise(photos, again):
    message = refused(posed, photos(people(4, path=["a.jpg", "b.jpg", again, "b.jpg"])))
    assert "lists 2 images more than once, such as 'a.jpg': keep one row for each" in message


@pytest.mark.parametrize("content", ["path,smiling,gender\n", "path,smiling,gender"])
def test_a_table_without_rows_is_refused(photos, content):
    folder = photos(people(4))
    (folder / "labels.csv").write_text(content)
    assert "labels.csv has no image" in refused(posed, folder)


# ---- links


def with_link(folder, name, target):
    """The data set whose third image is, or lies in, a link."""
    columns = people(60)
    columns["path"][2] = name
    draw(folder, columns["path"][:2] + columns["path"][3:])
    write(folder / "labels.csv", columns)
    (folder / "dataset.toml").write_text(TOML)
    link = folder / name.partition("/")[0]
    link.symlink_to(target)
    return load(folder.name, own.kind(folder), Data(root=folder.parent, size=16, skip_unreadable=True))


@pytest.mark.parametrize("name", ["link.jpg", "linked/000.jpg"])
@pytest.mark.parametrize("absolute", [False, True])
def test_a_link_inside_the_folder_is_followed(tmp_path, in_threads, name, absolute):
    folder = tmp_path / "photos"
    target = Path("." if "/" in name else "000.jpg")
    loaded = with_link(folder, name, folder / target if absolute else target)
    assert any(name in getattr(loaded.splits, part).names for part in ("train", "val", "test"))


@pytest.mark.parametrize("name", ["link.jpg", "linked/secret.jpg"])
@pytest.mark.parametrize("how", ["absolute", "relative", "over another", "to a namesake", "to nothing"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, in_threads, name, how):
    folder, beside = tmp_path / "photos", tmp_path / "photos beside"
    draw(beside, ["secret.jpg"])
    folder.mkdir()
    target = beside if "/" in name else beside / "secret.jpg"
    if how == "relative":
        target = Path(os.path.relpath(target, folder))
    elif how == "over another":
        (folder / "step").symlink_to(target)
        target = Path("step")
    elif how == "to a namesake":
        (tmp_path / "photos2").symlink_to(target)
        target = Path("../photos2")
    elif how == "to nothing":
        target = tmp_path / "nothing"
    message = refused(with_link, folder, name, target)
    assert f"'{name}' is a link to somewhere outside" in message
    assert not list(Path(os.environ["EVENLENS_CACHE"]).rglob("*.u8")), "images were opened"


def test_a_link_to_nothing_or_to_itself_inside_the_folder_is_an_image_that_is_missing(tmp_path, in_threads):
    for name, target in (("gone", "gone.jpg"), ("loop", "link.jpg")):
        loaded = with_link(tmp_path / name, "link.jpg", target)
        assert any("link.jpg (" in note for note in loaded.notes)


# ---- columns


def test_a_table_in_any_format_and_order_is_the_same_data_set(tmp_path):
    wanted = None
    columns = people(40, age=[str(k) for k in range(40)])
    mixed = np.random.default_rng(0).permutation(40).tolist()
    for name in ("labels.csv", "labels.tsv", "labels.parquet"):
        for order in (range(40), mixed):
            folder = write(
                tmp_path / f"{name}{order[0]}" / name, {c: [v[k] for k in order] for c, v in columns.items()}
            )
            (folder / "dataset.toml").write_text(TOML.replace("labels.csv", name) + "bins.age = [18]\n")
            found = posed(folder)
            table = found.table
            one = (table.names, table.numbers["age"].tolist(), found.parts.tolist(), found.label, found.group)
            codes = [(column.levels, column.codes.tolist()) for column in one[3:]]
            wanted = wanted or (*one[:3], codes)
            assert wanted == (*one[:3], codes)
    assert wanted[0] == sorted(columns["path"])
    assert wanted[1] == list(range(40))


def test_messages_name_the_row_of_the_file_not_of_the_sorted_table(photos):
    columns = people(8, path=[f"{9 - k}.jpg" for k in range(8)], age=["1", "2", "x", *"45678"])
    assert "Row 4 of labels.csv has the age 'x'" in refused(posed, photos(columns, "bins.age = [18]\n"))
    assert "Row 4 of labels.csv has the gender 'm'" in refused(posed, photos(columns, 'levels.gender = ["f"]\n'))


def test_a_row_without_label_or_group_is_in_no_part_and_told_of(photos):
    found = posed(photos(people(8, smiling=["", "yes", "nan", "no"] * 2, gender=["f", "m", "f", ""] * 2)))
    assert found.label.levels == ("no", "yes")
    assert (found.parts != UNUSED).tolist() == [False, True, False, False] * 2
    assert found.source.notes == [
        "4 of 8 images have no smiling and are left out.", "2 of 8 images have no gender and are left out."
    ]  # fmt: skip


def test_bins_make_levels_of_numbers_that_may_be_negative_or_missing(photos):
    ages = ["-3", "17.9", "18", "39", "40", "", "nan", "1e3"]
    found = posed(photos(people(8, age=ages), "bins.age = [40, 18, 18]\n"), sensitive=("age",))
    assert found.group.levels == ("under 18", "18 to 40", "40 or more")
    assert found.group.codes.tolist() == [0, 0, 1, 1, 2, -1, -1, 2]
    assert found.table.numbers["age"].tolist() == pytest.approx(
        [-3, 17.9, 18, 39, 40, np.nan, np.nan, 1000], nan_ok=True
    )


def test_bins_that_are_close_have_names_that_differ(photos):
    column = own.binned(np.array([1234567.5, 0.1]), [1234567, 1234568, 0.25])
    assert column.levels == ("under 0.25", "0.25 to 1234567", "1234567 to 1234568", "1234568 or more")
    assert column.codes.tolist() == [2, 0]


def test_images_of_one_unit_are_in_one_part_and_each_without_a_unit_is_its_own(photos):
    units = [f"person {k % 5}" if k % 3 else "" for k in range(300)]
    found = posed(photos(people(300, person=units), 'unit = "person"\n'))
    parts = defaultdict(set)
    for unit, part in zip(units, found.parts.tolist(), strict=True):
        parts[unit].add(part)
    assert [len(parts[f"person {k}"]) for k in range(5)] == [1] * 5
    assert len(parts[""]) == 3
    assert found.table.units[0] == "000.jpg"
    assert found.table.units[1] == "person 1"


def test_a_split_column_is_followed_in_the_words_that_people_use(photos):
    words = ["train", "Training", "TUNE", "val", "valid", "Validation", "dev", "Test", "testing", "", "nan", " test "]
    found = posed(photos(people(12, part=words), 'split = "part"\n'))
    named = [PARTS[code] if code != UNUSED else "" for code in found.parts]
    assert named == ["train", "train", "tune", "val", "val", "val", "val", "test", "test", "", "", "test"]
    assert found.source.notes == ["2 of 12 images have no part and are left out."]


def test_an_unknown_part_is_refused(photos):
    message = refused(posed, photos(people(4, part=["train", "tset", "val", "test"]), 'split = "part"\n'))
    assert "labels.csv has the part 'tset': allowed are train, tune, val, test, or nothing." in message


@pytest.mark.parametrize("key", ["label", "sensitive", "columns", "bins", "split", "unit", "path"])
def test_a_column_that_the_table_does_not_have_is_refused_with_the_nearest(photos, key):
    lines = {
        "label": TOML.replace('"smiling"', '"smilign"'),
        "sensitive": TOML.replace('"gender"', '"smiling", "gendr"').replace('"smiling"\n', '"path"\n'),
        "columns": TOML + 'columns = ["gendr"]\n',
        "bins": TOML + "bins.ages = [18]\n",
        "split": TOML + 'split = "prt"\n',
        "unit": TOML + 'unit = "persn"\n',
        "path": TOML.replace('"path"', '"pth"'),
    }[key]
    message = refused(posed, photos(people(4, age=["1"] * 4, part=["train"] * 4, person=["a"] * 4), toml=lines))
    assert message.startswith("Unknown column of labels.csv ")
    assert "did you mean '" in message
    assert "\\x00" not in message


def test_a_label_with_too_many_values_is_refused(photos):
    assert "has 1,200 different values" in refused(posed, photos(people(1200, smiling=[f"v{k}" for k in range(1200)])))


# ---- what dataset.toml says


@pytest.mark.parametrize(("toml", "said"), [
    (TOML + 'sensitiv = ["a"]\n', "Unknown key of {toml} 'sensitiv'; did you mean 'sensitive'?"),
    (TOML.replace('label = "smiling"', ""), "{toml} lacks the key 'label' (label: column to predict)."),
    (TOML.replace('["gender"]', '"gender"'), "{toml}: sensitive = 'gender' is not allowed: it must be a list"),
    (TOML.replace('"smiling"', "3"), "{toml}: label = 3 is not allowed: it must be a valid string"),
    (TOML + "size = 8\n", "size = 8 is not allowed: it must be greater than or equal to 16"),
    (TOML + "bins.age = []\n", "bins.age = [] is not allowed"),
    (TOML + "bins.age = [18, nan]\n", "bins.age.1 = nan is not allowed"),
    (TOML + 'bins.age = ["young"]\n', "bins.age.0 = 'young' is not allowed"),
    (TOML + 'levels.gendre = ["f"]\n', "'levels' has 'gendre', which is in none of label, sensitive and columns"),
    (TOML + 'levels.gender = ["f", "f"]\n', "'levels' has a value of 'gender' twice"),
    (TOML + 'levels.a = ["f"]\nbins.a = [3]\n', "a column is in 'levels' and in 'bins'"),
    (TOML + 'folders = ["smiling"]\n', "the labels come from 'table' or from 'folders', not from both"),
    (TOML.replace("table", "title"), "it must have the key 'table', or 'folders'"),
    (TOML.replace('"smiling"', '"group"'), "the label cannot be called 'group'"),
    (TOML + "label = 'again'\n", "is not valid TOML"),
    ("label: smiling\n", "is not valid TOML"),
    (TOML + 'augment = "flap"\n', "Unknown augmentation 'flap'"),
    (TOML + 'images = "pictures"\n', "There is no folder {folder}/pictures, where {toml} says that the images are"),
    (TOML.replace("labels.csv", "label.csv"), "There is no table {folder}/label.csv"),
    (TOML.replace('["gender"]', "[]"), "does not say whose treatment is compared"),
    (TOML.replace('["gender"]', '["gender", "gender"]'), "names a column twice"),
    (TOML.replace('["gender"]', '["smiling"]'), "a group cannot be its own label"),
])  # fmt: skip
def test_a_mistake_in_the_description_is_one_sentence(photos, toml, said):
    folder = photos(people(4), toml=toml)
    assert said.format(toml=folder / "dataset.toml", folder=folder) in refused(posed, folder)


def test_what_is_written_is_what_is_read(tmp_path):
    says = Description(
        label="smiling", sensitive=("gender", "age"), bins={"age": (18.0, 40.5)}, levels={"gender": ("m", "f")},
        table="two words.csv", path="image, name", unit="person", split="part", images="bilder/ä", suffix=".jpg",
        title='"quoted" \\ title', size=96,
    )  # fmt: skip
    own.write(tmp_path, says)
    assert own.read(tmp_path) == says
    assert "caveat" not in (tmp_path / "dataset.toml").read_text(encoding="utf-8"), "what is usual was written"


def test_given_levels_have_their_order_and_need_not_occur(photos):
    found = posed(photos(people(8), 'levels.gender = ["x", "m", "f"]\n'))
    assert found.group.levels == ("x", "m", "f")
    assert found.group.codes.tolist() == [2, 2, 1, 1] * 2


# ---- folders as labels

CLASSES = [f"{label}/{gender}/{k}.jpg" for label in ("no", "yes") for gender in ("f", "m") for k in range(4)]


def test_folders_give_the_labels_from_the_top(tmp_path):
    folder, says = describe(touch(tmp_path / "faces", CLASSES), "smiling", ["gender"])
    assert (says.folders, says.split, says.table) == (("smiling", "gender"), None, None)
    found = pose("faces", own.kind(folder, says), Data(root=tmp_path))
    assert found.table.names == CLASSES
    assert found.label.codes.tolist() == [0] * 8 + [1] * 8
    assert found.group.codes.tolist() == ([0] * 4 + [1] * 4) * 2


def test_folders_of_parts_on_top_are_the_split(tmp_path):
    names = [f"{part}/{name}" for part in ("Train", "valid", "test") for name in CLASSES]
    folder, says = describe(touch(tmp_path / "faces", names), "smiling", ["gender"])
    assert (says.folders, says.split) == (("split", "smiling", "gender"), "split")
    found = pose("faces", own.kind(folder, says), Data(root=tmp_path))
    assert np.bincount(found.parts).tolist() == [16, 0, 16, 16]


def test_only_images_count_whatever_their_suffix_looks_like(tmp_path):
    images = ["a/1.JPG", "a/2.Jpeg", "a/x y ü.png", "b/3.tif", "b/4.WEBP"]
    others = ["a/.hidden.jpg", "a/Thumbs.db", "b/notes.txt", ".git/a.jpg", "__MACOSX/._1.jpg", "readme.txt", "a/jpg"]
    folder, says = describe(touch(tmp_path / "faces", [*images, *others]))
    assert says.label == "class"
    assert own.kind(folder, says)(folder).table(False).names == images


@pytest.mark.parametrize(("names", "said"), [
    (["a/1.jpg", "b/c/2.jpg"], "c/2.jpg lies 2 folders deep below"),
    (["a/1.jpg", "2.jpg"], "2.jpg lies in 0 folders below"),
    (["1.jpg", "2.jpg"], "0 folders below"),
    (["a/b/1.jpg"], "a/b/1.jpg lies in 2 folders below"),
    (["train/a/1.jpg", "extra/a/1.jpg"], "2 folders below"),
    (["a/1.txt"], "No image and no table in"),
    ([], "No image and no table in"),
])  # fmt: skip
def test_folders_that_are_not_one_for_each_label_are_refused(tmp_path, names, said):
    touch(tmp_path / "faces", names).mkdir(exist_ok=True)

    def read():
        folder, says = describe(tmp_path / "faces", "class")
        own.kind(folder, says)(folder).table(False)

    assert said in refused(read)


def test_an_emptied_folder_of_classes_is_refused(tmp_path):
    folder, says = describe(touch(tmp_path / "faces", ["a/1.jpg", "b/2.jpg"]))
    for path in folder.glob("*/*"):
        path.unlink()
    assert f"{folder} has no image" in refused(own.kind(folder, says)(folder).table, False)


def test_a_class_that_is_a_link_is_refused_not_passed_over(tmp_path):
    folder = touch(tmp_path / "faces", ["a/1.jpg", "b/2.jpg"])
    (folder / "c").symlink_to(folder / "b")
    assert "c in " in refused(describe, folder)
    assert "is a link, which is not followed" in refused(describe, folder)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text_are_refused_or_left_out_when_asked(tmp_path):
    folder = touch(tmp_path / "faces", ["a/1.jpg", "b/2.jpg", os.fsdecode(b"b/\xe9.jpg")])
    folder, says = describe(folder)
    message = refused(own.kind(folder, says)(folder).table, False)
    assert "1 names of files in" in message
    assert "data.skip_unreadable=true" in message
    source = own.kind(folder, says)(folder)
    assert source.table(True).names == ["a/1.jpg", "b/2.jpg"]
    assert source.notes == ["1 names of files are no text and are left out."]


@pytest.mark.parametrize("more", [{"columns": ("gendre",)}, {"unit": "gendre"}])
def test_a_column_that_no_folder_gives_is_refused_with_the_nearest(tmp_path, more):
    folder = touch(tmp_path / "faces", CLASSES)
    says = Description(label="smiling", folders=("smiling", "gender"), **more)
    message = refused(own.kind(folder, says)(folder).table, False)
    assert message == f"Unknown column of {folder} 'gendre'; did you mean 'gender'? Known: gender, smiling."


def test_options_for_tables_are_refused_for_folders(tmp_path):
    touch(tmp_path / "faces", CLASSES)
    for key in ("path", "split"):
        assert f"--{key} is for one" in refused(describe, tmp_path / "faces", "smiling", ["gender"], **{key: "x"})


# ---- what a folder or a table is


def described(target, label="smiling", sensitive=("gender",), **options):
    folder, says = describe(target, label, sensitive, **options)
    table = own.kind(folder, says)(folder).table(False)
    return says, table


@pytest.mark.parametrize(("below", "suffix", "column"), [
    ("", "", "path"),
    ("images/", "", "file"),
    ("two words/", "", "ID"),
    ("images/", ".jpg", "image_id"),
    ("", ".png", "id"),
    ("images/", "", "Foto"),
    ("images/", ".jpeg", "column 1"),
])  # fmt: skip
def test_the_images_of_a_table_are_found(tmp_path, below, suffix, column):
    columns = people(8)
    stems = columns.pop("path")
    touch(tmp_path / "photos", [f"{below}{stem}{suffix}" for stem in stems[1:]])  # the first one is missing
    touch(tmp_path / "photos", ["another/a.jpg"])
    write(tmp_path / "photos" / "labels.csv", {**columns, "" if column == "column 1" else column: stems})
    if column == "column 1":
        write(tmp_path / "photos" / "labels.csv", {"": stems, **columns})
    for target in (tmp_path / "photos", tmp_path / "photos" / "labels.csv"):
        says, table = described(target)
        assert (says.path, says.images, says.suffix) == (column, below.rstrip("/") or ".", suffix)
        assert table.names == [f"{stem}{suffix}" for stem in stems]


def test_the_column_with_files_is_taken_before_one_that_is_only_called_so(tmp_path):
    columns = people(8, name=[f"person {k}" for k in range(8)], id=["1"] * 8)
    columns["photo"] = columns.pop("path")
    touch(tmp_path / "photos", [*columns["photo"], "no.jpg", "f.jpg"])  # a label may be called as a file is
    says, _ = described(write(tmp_path / "photos" / "labels.csv", columns))
    assert (says.path, says.images, says.suffix) == ("photo", ".", "")


def test_a_column_of_long_text_or_of_paths_that_lead_out_is_no_path_and_no_fault(tmp_path):
    up, root = ["../x.jpg"] * 8, [str(tmp_path / "x.jpg")] * 8
    columns = people(8, story=["word " * 2000] * 8, up=up, root=root, zero=["/"] * 8)
    columns["photo"] = columns.pop("path")
    touch(tmp_path / "photos", [*columns["photo"], "../x.jpg"])
    assert described(write(tmp_path / "photos" / "labels.csv", columns))[0].path == "photo"


def test_where_no_column_names_images_it_is_said_what_was_looked_for(tmp_path):
    columns = people(8)
    columns["photo"] = columns.pop("path")
    message = refused(described, write(tmp_path / "photos" / "labels.csv", columns))
    assert "No column names the images (looked for file, path" in message
    assert "the columns are smiling, gender, photo; say which with --path COLUMN." in message
    assert described(tmp_path / "photos", path="photo")[0].path == "photo"


def test_a_description_without_a_path_finds_the_column_each_time(photos):
    columns = people(8, name=[f"person {k}" for k in range(8)])
    columns["photo"] = columns.pop("path")
    folder = touch(photos(columns, toml=TOML.replace('path = "path"\n', 'suffix = ".jpg"\n')), [])
    touch(folder, [f"{name}.jpg" for name in columns["photo"]])
    assert posed(folder).table.names == [f"{name}.jpg" for name in columns["photo"]]


def test_a_split_is_found_by_name_and_words_and_further_columns_are_those_with_few_values(tmp_path):
    parts = ["train", "valid", "test", ""] * 30
    columns = people(
        120, subset=[""] * 120, Partition=parts, fold=["1", "2"] * 60, hair=["brown", "black", "red"] * 40,
        one=["1"] * 120, code=[str(k) for k in range(120)],
    )  # fmt: skip
    says, _ = described(write(tmp_path / "photos" / "labels.csv", columns))
    assert says.split == "Partition"
    assert says.columns == ("fold", "hair")


def test_what_is_asked_for_is_what_is_described(tmp_path):
    columns = people(8, age=[str(k) for k in range(8)], who=["a", "b"] * 4, part=["train", "test"] * 4)
    says, table = described(
        write(tmp_path / "photos" / "labels.csv", columns), sensitive=("age",), bins={"age": (3.0,)}, unit="who",
        split="part", path="path",
    )  # fmt: skip
    assert (says.unit, says.split, says.bins, says.sensitive) == ("who", "part", {"age": (3.0,)}, ("age",))
    assert table.column("age").levels == ("under 3", "3 or more")
    assert list(table.units) == ["a", "b"] * 4


@pytest.mark.parametrize("options", [
    {"label": "smilin"}, {"sensitive": ("gendr",)}, {"path": "pth"}, {"split": "gendr"}, {"unit": "gendr"},
    {"bins": {"gendr": (1.0,)}},
])  # fmt: skip
def test_an_unknown_column_is_refused_when_it_is_asked_for(tmp_path, options):
    folder = write(tmp_path / "photos" / "labels.csv", people(8))
    assert "Unknown column of labels.csv" in refused(described, folder, **options)


def test_bins_that_are_no_numbers_are_refused(tmp_path):
    folder = write(tmp_path / "photos" / "labels.csv", people(8, age=["1"] * 8))
    assert "bins.age.0 = nan is not allowed" in refused(described, folder, bins={"age": (float("nan"),)})


def test_without_a_label_the_columns_are_listed(tmp_path):
    message = refused(describe, write(tmp_path / "photos" / "labels.csv", people(8)))
    assert message == "Say which column is to be predicted with --label: labels.csv has path, smiling, gender."


def test_of_two_tables_one_must_be_named_and_what_is_hidden_or_a_readme_is_none(tmp_path):
    folder = write(tmp_path / "photos" / "labels.csv", people(8))
    for name in ("readme.txt", "._labels.csv", ".labels.tsv", "LICENSE.TXT"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    assert described(folder)[0].table == "labels.csv"
    write(folder / "more.parquet", people(8))
    assert "holds 2 tables (labels.csv, more.parquet): name the one that is meant" in refused(described, folder)
    assert described(folder / "more.parquet")[0].table == "more.parquet"
    (folder / "list.txt").write_text((folder / "labels.csv").read_text())
    assert described(folder / "list.txt")[0].table == "list.txt"


def test_a_readme_does_not_make_a_table_of_folders(tmp_path):
    touch(tmp_path / "faces", [*CLASSES, "readme.txt", "._x.csv"])
    assert described(tmp_path / "faces")[0].folders == ("smiling", "gender")


def test_where_there_is_a_description_it_holds_and_columns_cannot_be_given_anew(photos):
    folder = photos(people(8))
    for target in (folder, folder / "dataset.toml"):
        assert describe(target) == (folder, own.read(folder))
        assert "change 'unit' there" in refused(describe, target, unit="gender")


def test_nothing_where_something_was_named_is_refused(tmp_path):
    assert "There is no folder or table" in refused(describe, tmp_path / "nothing")
    (tmp_path / "sheet.xlsx").write_bytes(b"PK")
    assert "it must end in .csv" in refused(describe, tmp_path / "sheet.xlsx", "a")


# ---- a data set like any other


def test_a_folder_with_a_description_is_a_data_set_by_name_and_by_path(photos, monkeypatch, in_threads):
    folder = draw(photos(people(60), 'title = "Photos of us"\ncaveat = "made up"\nsize = 16\n'), people(60)["path"])
    assert datasets.own_names(folder.parent) == ["photos"]
    for name in (str(folder), str(folder / "dataset.toml")):
        assert datasets.locate(name) == ("photos", folder.parent)
    assert datasets.locate("photos", folder.parent) == ("photos", folder.parent)
    monkeypatch.setenv("EVENLENS_DATA", str(folder.parent))
    assert datasets.locate("photos") == ("photos", None)
    kind = datasets.get("photos")
    assert (kind.title, kind.caveat, kind.columns) == ("Photos of us", "made up", ("smiling", "gender"))
    splits = load("photos", kind, Data()).splits
    assert splits.task.class_names == ("no", "yes")
    assert splits.task.image_size == 16
    assert sorted([*splits.train.names, *splits.val.names, *splits.test.names]) == people(60)["path"]
    shown, _ = read_image(folder / splits.val.names[0], 16)
    assert (splits.val.pixels[splits.val.rows[0]].numpy() == shown).all()


def test_a_name_that_is_not_known_is_answered_with_the_nearest_also_of_ones_own(photos):
    root = photos(people(4)).parent
    assert "did you mean 'photos'?" in refused(datasets.get, "photo", root)
    assert datasets.locate("photo", root) == ("photo", root)
    assert datasets.own_names(root / "nothing") == []


def test_a_folder_without_a_description_says_how_to_make_one(tmp_path):
    (tmp_path / "plain").mkdir()
    assert "evenlens data prepare" in refused(datasets.locate, str(tmp_path / "plain"))


@pytest.mark.parametrize("name", ["utkface", "avatars", "my photos", "a;b"])
def test_a_folder_that_cannot_be_a_name_is_refused(photos, name):
    folder = photos(people(4))
    folder = folder.rename(folder.with_name(name))
    assert "cannot be one: rename it" in refused(datasets.locate, str(folder))


# ---- what stays where it is

units = st.lists(st.sampled_from(["", "a", "b", "c", "d", "e", "f"]), min_size=8, max_size=40)


def split_of(rows, seed):
    """The part of each image of a table of (name, unit)."""
    with tempfile.TemporaryDirectory() as folder:
        columns = {"path": [row[0] for row in rows], "who": [row[1] for row in rows]}
        more = {"smiling": ["no"] * len(rows), "gender": ["f"] * len(rows)}
        write(Path(folder) / "photos" / "labels.csv", {**columns, **more})
        (Path(folder) / "photos" / "dataset.toml").write_text(TOML + 'unit = "who"\n')
        found = posed(Path(folder) / "photos", seed=seed)
        return dict(zip(found.table.names, found.parts.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(units, st.integers(0, 2**40), st.randoms(), st.integers(1, 8))
def test_a_split_stays_when_rows_are_reordered_and_added_and_keeps_units_together(units, seed, shuffle, num_before):
    rows = [(f"{k}.jpg", unit) for k, unit in enumerate(units)]
    before = split_of(rows[:num_before], seed)
    shuffle.shuffle(rows)
    after = split_of(rows, seed)
    assert {name: after[name] for name in before} == before
    assert set(after.values()) <= {0, 2, 3}
    parts = defaultdict(set)
    for name, unit in rows:
        parts[unit or name].add(after[name])
    assert all(len(found) == 1 for found in parts.values())


def test_the_split_of_a_table_is_pinned_and_has_the_shares_that_it_says():
    """Whoever changes this changes the split of every data set that somebody brought."""
    first = split_of([(f"{k}.jpg", "") for k in range(20)], 1)
    assert "".join(str(part) for part in first.values()) == "00320030033003300303"
    many = list(split_of([(f"{k}.jpg", "") for k in range(4000)], 1).values())
    assert np.bincount(many, minlength=4) / 4000 == pytest.approx([0.7, 0, 0.1, 0.2], abs=0.03)


READ_MANY = """
import json, resource, sys, time
from pathlib import Path
from evenlens.config import Data
from evenlens.data import own
from evenlens.data.source import pose

folder, began = Path(sys.argv[1]), time.perf_counter()
found = pose(folder.name, own.kind(folder), Data(root=folder.parent))
print(json.dumps({
    "rows": len(found.table),
    "parts": [int((found.parts == part).sum()) for part in range(4)],
    "first": dict(zip(found.table.names[:1000], found.parts[:1000].tolist())),
    "seconds": time.perf_counter() - began,
    "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
def test_ten_million_rows_are_read_and_split_in_minutes_and_six_gigabytes(photos):
    folder, num, step = photos(people(4)), 10_000_000, 1_000_000
    generator = np.random.default_rng(0)
    with (folder / "labels.csv").open("w") as file:
        file.write("path,smiling,gender\n")
        for block in generator.permutation(num // step).tolist():
            for k in generator.permutation(step).tolist():
                file.write(f"faces/{block:02d}/{k:08d}.jpg,{'yes' if k % 3 else 'no'},{'f' if k % 2 else 'm'}\n")
    ended = subprocess.run([sys.executable, "-c", READ_MANY, str(folder)], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    print(f"{found['seconds']:.0f} s, {found['gigabytes']:.1f} GB")
    assert found["rows"] == num
    assert np.array(found["parts"]) / num == pytest.approx([0.7, 0, 0.1, 0.2], abs=0.001)
    assert split_of([(name, "") for name in found["first"]], 1) == found["first"]
    assert found["gigabytes"] < 6
