"""Images that are added: the old ones never move, nobody is in two parts, and doing it twice is nothing."""

import csv
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens import merging
from evenlens.config import Data
from evenlens.data import incoming, own
from evenlens.data.describing import describe
from evenlens.data.source import pose
from evenlens.data.tables import PARTS, UNUSED
from evenlens.errors import UserError
from evenlens.merging import Refused, merge
from tests import fake

TABLE = incoming.TABLE
BOTH = {"label": "smiling", "sensitive": ["gender"]}


def rows(num, start=0, **columns):
    """Rows of a table, each with the number of its image; a column may be a function of the number."""
    made = []
    for k in range(start, start + num):
        row = {"image": k, "file": f"{k}.png", "smiling": ("no", "yes")[k % 2], "gender": ("f", "m")[k // 2 % 2]}
        made.append({**row, **{name: say(k) if callable(say) else say for name, say in columns.items()}})
    return made


def lay(folder, listed, table="labels.csv", below=""):
    """A folder with a table and its images, which are no pictures: nothing here looks at them."""
    folder.mkdir(parents=True, exist_ok=True)
    header = [name for name in dict.fromkeys(key for row in listed for key in row) if name != "image"]
    with (folder / table).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, restval="")
        writer.writeheader()
        writer.writerows({name: row.get(name, "") for name in header} for row in listed)
    for row in listed:
        if row["image"] is not None:
            path = folder / below / row["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"image {row['image']}".encode())
    return folder


def made_known(folder, label="smiling", sensitive=("gender",), also=None, **named):
    """Write the description of a folder."""
    _, says = describe(folder, label, sensitive, **named)
    own.write(folder, says.model_copy(update=also or {}))
    return folder


def photos(folder, listed, **named):
    """A data set of one's own."""
    return made_known(lay(folder, listed), **named)


def there(folder):
    """What a data set holds, by the number of the image: name, part, label, group, unit."""
    found = pose(folder.name, own.kind(folder), Data(root=folder.parent))
    says = own.read(folder)
    held = {}
    for row, name in enumerate(found.table.names):
        path = folder / says.images / name
        image = int(path.read_bytes().split()[-1]) if path.is_file() else name
        part = PARTS[found.parts[row]] if found.parts[row] != UNUSED else None
        said = [(*column.levels, None)[column.codes[row]] for column in (found.label, found.group)]
        held[image] = (name, part, *said, found.table.unit_names[row])
    return held


def part_of(folder):
    return {image: part for image, (_, part, *_) in there(folder).items()}


def bytes_of(folder):
    """Every file that is no hidden one, with its content."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def column(folder, name):
    with (folder / TABLE).open(encoding="utf-8") as file:
        return [row[name] for row in csv.DictReader(file)]


# ---- what must hold whatever is added

people = st.integers(0, 5).map(lambda k: f"person {k}")
labels = st.fixed_dictionaries({"smiling": st.sampled_from(["no", "yes"]), "gender": st.sampled_from(["f", "m"])})
said_of = st.lists(labels, min_size=40, max_size=40)  # of each image, so that copies agree
piles = st.lists(st.integers(0, 39), min_size=1, max_size=15, unique=True)


def pile(images, said, who, split=None):
    listed = []
    for k, image in enumerate(images):
        row = {"image": image, "file": f"{k}.png", **said[image], **({"person": who[image]} if who else {})}
        listed.append({**row, **({"split": split[image]} if split else {})})
    return listed


@settings(max_examples=15, deadline=None)
@given(
    st.lists(piles, min_size=2, max_size=3), said_of, st.none() | st.lists(people, min_size=40, max_size=40),
    st.none() | st.lists(st.sampled_from(PARTS), min_size=40, max_size=40),
)  # fmt: skip
def test_whatever_is_added_old_rows_stay_nobody_is_in_two_parts_and_again_is_nothing(images, said, who, split):
    with tempfile.TemporaryDirectory() as below:
        folder = photos(Path(below) / "photos", pile(images[0], said, who), unit="person" if who else None)
        for number, more in enumerate(images[1:]):
            batch = lay(Path(below) / f"batch{number}", pile(more, said, who, split))
            before = there(folder)
            merge(folder, [str(batch)], new_levels=True)
            after = there(folder)
            assert {image: after[image] for image in before} == before
            assert {*after} == {*before} | {*more}
            assert all(after[image][2:4] == (said[image]["smiling"], said[image]["gender"]) for image in after)
            if who:
                parts_of = {(who[image], after[image][1]) for image in after}
                assert len(parts_of) == len({who[image] for image in after})
            held = bytes_of(folder)
            again = merge(folder, [str(batch), str(folder)], new_levels=True)
            assert not any(again.added.values())
            assert bytes_of(folder) == held


@settings(max_examples=15, deadline=None)
@given(st.lists(piles, min_size=1, max_size=3), said_of, st.lists(st.sampled_from(PARTS), min_size=40, max_size=40))
def test_an_image_has_the_part_that_it_had_and_is_there_once(images, said, split):
    with tempfile.TemporaryDirectory() as below:
        folders = [lay(Path(below) / f"{k}", pile(one, said, None, split)) for k, one in enumerate(images)]
        merge(Path(below) / "all", [str(folder) for folder in folders], **BOTH, new_levels=True)
        assert part_of(Path(below) / "all") == {image: split[image] for one in images for image in one}
        assert len(column(Path(below) / "all", "file")) == len({image for one in images for image in one})


# ---- a merge that is killed


class Killed(BaseException):
    pass


def killed_before_step(patch, number):
    """Stop before the n-th time that anything in the file system changes for good."""
    steps = itertools.count()

    def counted(change):
        def may_die(*arguments):
            if next(steps) == number:
                raise Killed
            return change(*arguments)

        return may_die

    patch.setattr(os, "link", counted(os.link))
    patch.setattr(Path, "replace", counted(Path.replace))


def in_classes(folder):
    for row in rows(12):
        (folder / row["smiling"] / row["gender"]).mkdir(parents=True, exist_ok=True)
        (folder / row["smiling"] / row["gender"] / row["file"]).write_bytes(f"image {row['image']}".encode())
    return made_known(folder)


def merged_before(folder):
    merge(folder, [str(lay(folder.parent / "first", rows(12)))], **BOTH)
    return folder


TARGETS = {
    "a table": lambda folder: photos(folder, rows(12)),
    "folders that are classes": in_classes,
    "merged before": merged_before,
    "nothing": lambda folder: folder,
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_merge_leaves_a_data_set_and_the_same_command_completes_it(target, tmp_path):
    new = rows(4, 100, smiling=lambda k: ("no", "broadly")[k % 2])  # with a level that was not there
    batch, asked = str(lay(tmp_path / "yes", new)), {"new_levels": True} | (BOTH if target == "nothing" else {})
    whole = TARGETS[target](tmp_path / "whole" / "photos")
    before = there(whole) if target != "nothing" else {}
    merge(whole, [batch], **asked)
    assert {*there(whole)} == {*before, 100, 101, 102, 103}
    for number in itertools.count():
        folder = TARGETS[target](tmp_path / f"{number}" / "photos")
        with pytest.MonkeyPatch.context() as patch:
            killed_before_step(patch, number)
            try:
                merge(folder, [batch], **asked)
            except Killed:
                killed = True
            else:
                killed = False
        if (folder / own.FILE).is_file():
            held = there(folder)
            assert {image: held[image] for image in before} == before
            assert {*held} in ({*before}, {*before, 100, 101, 102, 103})
        else:
            assert not before
        merge(folder, [batch], **asked)
        assert bytes_of(folder) == bytes_of(whole)
        assert not list(folder.rglob(".*.part"))
        if not killed:
            break
    assert number > 5


def test_what_is_refused_changes_nothing(tmp_path):
    folder = photos(tmp_path / "photos", rows(12))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    batch = lay(tmp_path / "batch", [*rows(3, 100), {"image": 103, "file": "103.png", "smiling": "", "gender": "f"}])
    with pytest.raises(Refused, match=r"^1 row cannot be taken: batch/103.png: no smiling\. .* nothing was written\.$"):
        merge(folder, [str(batch)])
    assert {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and batch not in path.parents
    } == (before)


def test_two_processes_do_not_add_to_one_data_set_at_once(tmp_path):
    folder = photos(tmp_path / "photos", rows(12))
    batch = str(lay(tmp_path / "batch", rows(3, 100)))
    with FileLock(folder / ".merging.lock"), pytest.raises(UserError, match="Another process is adding to"):
        merge(folder, [batch])
    merge(folder, [batch])
    assert not (folder / ".merging.lock").exists()


# ---- where things come from


@pytest.fixture
def field(tmp_path, monkeypatch):
    """Small copies of two data sets of the field."""
    monkeypatch.setenv("EVENLENS_DATA", str(tmp_path / "data"))
    fake.utkface(tmp_path / "data", 40)
    return fake.fairface(tmp_path / "data", 40)


def names_by_part(folder):
    found = pose(folder.name, own.kind(folder), Data(root=folder.parent))
    return {
        part: {n for n, p in zip(found.table.names, found.parts, strict=True) if p == k} for k, part in enumerate(PARTS)
    }


def test_data_sets_of_the_field_are_merged_by_name_each_image_in_its_own_part(field, tmp_path):
    done = merge(tmp_path / "faces", ["fairface", "utkface"], "gender", ["race"], new_levels=True, skip_bad=True)
    from evenlens.datasets.fairface import FairFace
    from evenlens.datasets.utkface import UTKFace

    parts = names_by_part(tmp_path / "faces")
    for name, kind, protocol in (("fairface", FairFace, "official"), ("utkface", UTKFace, "natural")):
        found = pose(name, kind, Data(root=field, protocol=protocol))
        copies = {copy for copy, _ in (*done.copies, *done.problems)}
        for number, part in enumerate(PARTS):
            own_names = {f"{name}/{n}" for n, p in zip(found.table.names, found.parts, strict=True) if p == number}
            assert own_names - copies == {n for n in parts[part] if n.startswith(f"{name}/")}
    assert own.read(tmp_path / "faces").levels["gender"] == ("Male", "Female", "male", "female")
    assert done.added["utkface"] == 40


def test_whose_the_images_are_is_carried_along(field, tmp_path):
    folder = photos(tmp_path / "photos", rows(12, gender=lambda k: ("Male", "Female")[k % 2], race="White"),
                    label="gender", sensitive=("race",), also={"licence": "mine"})  # fmt: skip
    done = merge(folder, ["fairface"], new_levels=True, skip_bad=True)
    assert done.lacking == {"fairface": ["smiling"]}
    says = own.read(folder)
    assert says.licence == "mine; FairFace: CC BY 4.0"
    assert says.caveat.startswith("FairFace: Gender, race and age are the impressions of annotators")
    merge(folder, ["fairface", "utkface"], new_levels=True, skip_bad=True)
    assert own.read(folder).licence == "mine; FairFace: CC BY 4.0; UTKFace: " + (
        "non-commercial research only; copyright stays with the owners of the images"
    )


def test_what_is_known_of_two_inputs_alike_is_said_once(tmp_path):
    for number, name in enumerate(("one", "other")):
        photos(tmp_path / name, rows(3, 10 * number), also={"citation": "us", "title": name.title()})
    merge(tmp_path / "new", [str(tmp_path / "one"), str(tmp_path / "other")], **BOTH)
    assert own.read(tmp_path / "new").citation == "One: us"


def test_a_data_set_of_the_field_may_lie_elsewhere_by_a_link(field, tmp_path):
    (field / "fairface" / "train").rename(tmp_path / "disk")
    (field / "fairface" / "train").symlink_to(tmp_path / "disk")
    assert merge(tmp_path / "faces", ["fairface"], "gender", ["race"], skip_bad=True).added["fairface"] >= 40


@pytest.mark.parametrize(("given", "said"), [
    ("fairfac", "Unknown data set 'fairfac'; did you mean 'fairface'?"),
    ("some/where", "There is no folder or table some/where"),
    ("avatars", "Avatars cannot be merged: it is no set of image files"),
    ("empty", "No image and no table in"),
    ("other", "Unknown column of labels.csv 'smiling'"),
    ("links", "0.png is a link to somewhere outside"),
    ("fairface", "FairFace is not at"),
])  # fmt: skip
def test_an_input_that_is_none_is_refused_in_a_sentence(given, said, tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLENS_DATA", str(tmp_path / "data"))
    folder = photos(tmp_path / "photos", rows(12))
    (tmp_path / "empty").mkdir()
    lay(tmp_path / "other", [{"image": 1, "file": "1.png", "smile": "no", "gender": "f"}])
    linked = lay(tmp_path / "links", rows(2, 50))
    (linked / "50.png").rename(tmp_path / "50.png")
    (linked / "50.png").symlink_to(tmp_path / "50.png")
    before = bytes_of(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        merge(folder, [given])
    assert said.removeprefix("0.png") in str(error.value)
    assert "\n" not in str(error.value)
    assert bytes_of(folder) == before


def test_a_folder_that_is_no_data_set_is_not_taken_for_a_new_one(tmp_path):
    batch = str(lay(tmp_path / "batch", rows(3)))
    mine = lay(tmp_path / "mine", rows(3, 50))
    with pytest.raises(UserError, match=r"holds 50.png, 51.png, 52.png and no dataset.toml: make it a data set"):
        merge(mine, [batch], **BOTH)
    with pytest.raises(UserError, match="is a file"):
        merge(mine / "50.png", [batch], **BOTH)


@pytest.mark.parametrize("other", [{"label": "gender"}, {"sensitive": ["smiling"]}, {"label": "age"}])
def test_what_a_data_set_is_about_stays(other, tmp_path):
    folder, batch = photos(tmp_path / "photos", rows(12)), str(lay(tmp_path / "batch", rows(3, 50)))
    with pytest.raises(UserError, match="is there, and is about smiling by gender: leave --label and --sensitive out"):
        merge(folder, [batch], **other)
    merge(folder, [batch], **BOTH)


def test_nothing_to_take_makes_no_data_set(tmp_path):
    batch = lay(tmp_path / "batch", [{"image": None, "file": "1.png", "smiling": "no", "gender": "f"}])
    with pytest.raises(UserError, match="None of the rows can be taken"):
        merge(tmp_path / "new", [str(batch)], **BOTH, skip_bad=True)
    assert not (tmp_path / "new").exists()


def test_a_data_set_is_found_by_its_name_below_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLENS_DATA", str(tmp_path / "data"))
    photos(tmp_path / "data" / "mine", rows(5))
    assert merge(tmp_path / "new", ["mine"], **BOTH).added == {"mine": 5}


# ---- files


def test_images_are_links_and_the_folder_is_whole_without_its_inputs(tmp_path):
    batch = lay(tmp_path / "batch", rows(3))
    merge(tmp_path / "new", [str(batch)], **BOTH)
    assert (tmp_path / "new/images/batch/0.png").samefile(batch / "0.png")
    held = there(tmp_path / "new")
    shutil.rmtree(batch)
    assert there(tmp_path / "new") == held


def test_where_links_cannot_be_images_are_copied(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    batch = lay(tmp_path / "batch", rows(3))
    merge(tmp_path / "new", [str(batch)], **BOTH)
    assert not (tmp_path / "new/images/batch/0.png").samefile(batch / "0.png")
    assert {*there(tmp_path / "new")} == {0, 1, 2}
    assert [path.name for path in (tmp_path / "new/images/batch").iterdir() if path.name[0] == "."] == []


def test_a_full_disk_leaves_no_half_image_and_the_same_command_goes_on(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(18, "Invalid cross-device link")

    copied = []

    def until_full(source, target):
        copied.append(source)
        Path(target).write_bytes(b"image")
        if len(copied) == 3:
            raise OSError(28, "No space left on device")
        shutil.copyfile(source, target)

    monkeypatch.setattr(os, "link", refuse)
    folder = photos(tmp_path / "photos", rows(12))
    batch = str(lay(tmp_path / "batch", rows(4, 50)))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy2", until_full)
        with pytest.raises(OSError, match="No space left"):
            merge(folder, [batch])
    assert sorted(path.name for path in (folder / "batch").iterdir()) == ["50.png", "51.png"]
    merge(folder, [batch])
    assert [there(folder)[image][0] for image in range(50, 54)] == [f"batch/{image}.png" for image in range(50, 54)]


def test_files_of_one_name_do_not_overwrite_each_other(tmp_path):
    folder = photos(tmp_path / "photos", rows(3))
    one = lay(tmp_path / "a" / "batch", rows(2, 50, file=lambda k: f"{k % 50}.png"))
    other = lay(tmp_path / "b" / "batch", rows(2, 60, file=lambda k: f"{k % 60}.png"))
    done = merge(folder, [str(one), str(other)])
    assert done.added == {"batch": 4}
    held = there(folder)
    assert {held[50][0], held[60][0]} == {"batch/0.png", "batch-2/0.png"}
    before = bytes_of(folder)
    assert not any(merge(folder, [str(other), str(one)]).added.values())
    assert bytes_of(folder) == before


def test_a_row_whose_image_was_lost_does_not_lend_its_name(tmp_path):
    folder = photos(tmp_path / "photos", rows(3, file=lambda k: f"batch/{k}.png"))
    (folder / "batch/0.png").unlink()
    merge(folder, [str(lay(tmp_path / "batch", rows(1, 50, file="0.png")))])
    assert {name for name, *_ in there(folder).values()} == {*(f"batch/{k}.png" for k in range(3)), "batch-2/0.png"}


@pytest.mark.parametrize("stem", ["~backup", 'a, "b"', "ünï cödé", ".hidden", "C:drive"])
def test_an_odd_name_of_a_folder_makes_no_odd_path(stem, tmp_path):
    merge(tmp_path / "new", [str(lay(tmp_path / stem, rows(3)))], **BOTH)
    assert {*there(tmp_path / "new")} == {0, 1, 2}


@pytest.mark.parametrize(
    "name", ["a,b.png", 'a"b.png', "a b.png", "ü.png", "#1.png", "a/b/c.png", "no\nsplit.png", "a\\b.png"]
)
def test_a_name_is_the_same_when_it_was_in_a_table_or_it_is_refused(name, tmp_path):
    (tmp_path / "batch" / "no" / "f").mkdir(parents=True)
    (tmp_path / "batch" / "no" / "f" / "1.png").write_bytes(b"image 1")
    odd = tmp_path / "batch" / "no" / "f" / name.replace("/", "-")
    odd.write_bytes(b"image 2")
    if {*name} & {*"\n\\"}:
        with pytest.raises(Refused, match="a line break or backslash in its name"):
            merge(tmp_path / "new", [str(tmp_path / "batch")], **BOTH)
    merge(tmp_path / "new", [str(tmp_path / "batch")], **BOTH, skip_bad=True)
    assert {*there(tmp_path / "new")} == ({1} if {*name} & {*"\n\\"} else {1, 2})


# ---- copies


def test_of_copies_the_one_that_was_trained_on_is_kept(tmp_path):
    listed = [{**row, "split": part} for row, part in zip(rows(4), ("test", "val", "train", "tune"), strict=True)]
    listed = [{**row, "image": 7, "smiling": "no", "gender": "f"} for row in listed]
    done = merge(tmp_path / "new", [str(lay(tmp_path / "batch", listed))], **BOTH)
    assert there(tmp_path / "new") == {7: ("batch/2.png", "train", "no", "f", "batch/2.png")}
    assert done.copies == [(f"batch/{k}.png", "batch/2.png") for k in (3, 1, 0)]


def test_of_copies_in_two_inputs_too(tmp_path):
    first = lay(tmp_path / "first", rows(2, split="test"))
    second = lay(tmp_path / "second", rows(2, split="train"))
    assert merge(tmp_path / "new", [str(first), str(second)], **BOTH).added == {"first": 0, "second": 2}
    assert part_of(tmp_path / "new") == {0: "train", 1: "train"}


def test_but_what_is_there_stays_where_it_is(tmp_path):
    folder = photos(tmp_path / "photos", rows(4, split="test"))
    done = merge(folder, [str(lay(tmp_path / "batch", rows(5, split="train")))])
    assert part_of(folder) == {**dict.fromkeys(range(4), "test"), 4: "train"}
    assert done.copies == [(f"batch/{k}.png", f"{k}.png") for k in range(4)]


def test_a_copy_with_other_labels_is_a_problem(tmp_path):
    folder = photos(tmp_path / "photos", rows(4))
    batch = lay(tmp_path / "batch", [*rows(1, 1, smiling="no", file="again.png"), *rows(1, 9)])
    with pytest.raises(Refused, match=r"batch/again.png: the same image as 1.png, with other labels"):
        merge(folder, [str(batch)])
    done = merge(folder, [str(batch)], skip_bad=True)
    assert (done.added, done.problems[0][0]) == ({"batch": 1}, "batch/again.png")
    assert there(folder)[1][2] == "yes"


def test_a_data_set_that_disagrees_with_itself_can_be_added_again(tmp_path):
    listed = [*rows(4), *rows(1, 1, smiling="no", file="again.png")]
    folder = photos(tmp_path / "photos", listed)
    done = merge(folder, [str(lay(tmp_path / "batch", listed))])
    assert (done.added, len(done.copies)) == ({"batch": 0}, 5)


# ---- who belongs together


def test_a_unit_that_is_there_draws_its_new_images_into_its_part(tmp_path):
    folder = photos(tmp_path / "photos", rows(4, person=lambda k: f"p{k}", split="val"), unit="person")
    batch = lay(tmp_path / "batch", rows(4, 50, person=lambda k: f"p{k - 48}", split="test"))
    done = merge(folder, [str(batch)])
    assert {image: part for image, part in part_of(folder).items() if image >= 50} == {
        50: "val", 51: "val", 52: "test", 53: "test"
    }  # fmt: skip
    assert done.moved == ["batch/50.png", "batch/51.png"]


def test_the_column_of_the_unit_is_found_by_its_name_in_what_is_added_later(tmp_path):
    folder = photos(tmp_path / "photos", rows(6, person=lambda k: f"p{k // 2}"), unit="person")
    for start in (60, 80):  # the second time, the first addition has already written the table anew
        merge(folder, [str(lay(tmp_path / f"batch{start}", rows(40, start, person=lambda k: f"p{k % 20}")))])
    held = there(folder)
    by_person = {}
    for _, part, _, _, person in held.values():
        by_person.setdefault(person, set()).add(part)
    assert {*by_person} == {f"p{k}" for k in range(20)}
    assert all(len(parts) == 1 for parts in by_person.values())
    assert len({*part_of(folder).values()}) == 3


def test_the_unit_of_new_tables_can_be_named(tmp_path):
    new = rows(40, who=lambda k: f"p{k % 10}", also=lambda k: f"{k % 3}")
    folder = photos(tmp_path / "described", rows(3, 90))
    merge(tmp_path / "new", [str(lay(tmp_path / "batch", new)), str(folder)], **BOTH, unit="who")
    assert len({(unit, part) for _, part, *_, unit in there(tmp_path / "new").values() if unit[0] == "p"}) == 10


def test_a_unit_that_no_input_can_have_is_refused(field, tmp_path):
    folder = photos(tmp_path / "described", rows(3, 90, who="x"))
    with pytest.raises(UserError, match=r"--unit who is for a table, and none is given: a dataset.toml says its own"):
        merge(tmp_path / "new", [str(folder), str(in_classes(tmp_path / "classes"))], **BOTH, unit="who")
    assert not (tmp_path / "new").exists()


def test_a_unit_that_is_left_out_draws_nobody(tmp_path):
    listed = rows(4, person="p", split=lambda k: ("", "test", "train", "")[k])
    folder = photos(tmp_path / "photos", listed, unit="person")
    merge(folder, [str(lay(tmp_path / "batch", rows(1, 50, person="p", split="val")))])
    assert part_of(folder) == {0: None, 1: "test", 2: "train", 3: None, 50: "train"}


def test_images_without_a_unit_are_not_one_because_their_files_have_one_name(tmp_path):
    first = lay(tmp_path / "first", [*rows(1, 1, file="a.png", person="", split="train"), *rows(1, 3, person="p")])
    second = lay(tmp_path / "second", [*rows(1, 2, file="a.png", person="", split="test"), *rows(1, 4, person="p")])
    folder = tmp_path / "new"
    merge(folder, [str(first), str(second)], **BOTH, unit="person", new_levels=True, skip_bad=True)
    assert {image: part for image, part in part_of(folder).items() if image < 3} == {1: "train", 2: "test"}


# ---- columns and levels


def test_the_order_of_levels_stays_and_new_ones_come_last(tmp_path):
    folder = photos(tmp_path / "photos", rows(4), also={"levels": {"smiling": ("yes", "no")}})
    batch = lay(tmp_path / "batch", [
        *rows(2, 50), *rows(1, 52, smiling="broadly"), *rows(1, 53, smiling="a bit"),
        {**rows(1, 54, smiling="lost")[0], "image": None},
    ])  # fmt: skip
    with pytest.raises(Refused) as refused:
        merge(folder, [str(batch)])
    assert {*refused.value.found.problems} == {
        ("batch/52.png", "unknown smiling 'broadly'"), ("batch/53.png", "unknown smiling 'a bit'"),
        ("batch/54.png", "no such file"),
    }  # fmt: skip
    merge(folder, [str(batch)], new_levels=True, skip_bad=True)
    assert own.read(folder).levels["smiling"] == ("yes", "no", "a bit", "broadly")
    assert there(folder)[52][2] == "broadly"


def test_a_level_that_no_row_has_is_not_taken(tmp_path):
    folder = photos(tmp_path / "photos", rows(4))
    batch = lay(
        tmp_path / "batch", rows(2, 50, split=lambda k: ("train", "")[k - 50], smiling=lambda k: ("no", "odd")[k - 50])
    )
    assert merge(folder, [str(batch)], new_levels=True).unused == 1
    assert own.read(folder).levels["smiling"] == ("no", "yes")


def test_rows_in_no_part_are_left_out_and_counted(tmp_path):
    batch = lay(tmp_path / "batch", rows(6, split=lambda k: "" if k < 2 else "train"))
    done = merge(tmp_path / "new", [str(batch)], **BOTH)
    assert (done.unused, done.added, done.parts) == (2, {"batch": 4}, {"train": 4, "tune": 0, "val": 0, "test": 0})


def test_a_group_that_is_not_known_stays_so(tmp_path):
    folder = photos(tmp_path / "photos", rows(4))
    merge(folder, [str(lay(tmp_path / "batch", [*rows(1, 50), *rows(1, 51, gender="")]))])
    assert there(folder)[51][3] is None


def test_a_column_that_only_some_need_may_lack_and_is_empty_then(tmp_path):
    folder = photos(tmp_path / "photos", rows(4, glasses=lambda k: f"{k % 2}", age="9"), also={"bins": {"age": (5,)}})
    done = merge(folder, [str(lay(tmp_path / "batch", rows(4, 2)))])
    assert done.lacking == {"batch": ["glasses", "age"]}
    assert column(folder, "glasses") == ["0", "1", "0", "1", "", ""]
    assert column(folder, "age") == ["9"] * 4 + [""] * 2
    assert done.copies == [("batch/2.png", "2.png"), ("batch/3.png", "3.png")]  # they agree in what both know


@pytest.mark.parametrize("lacks", ["smiling", "gender"])
def test_what_decides_who_is_compared_must_be_there(lacks, tmp_path):
    folder = photos(tmp_path / "photos", rows(4))
    listed = [{key: value for key, value in row.items() if key != lacks} for row in rows(2, 50)]
    with pytest.raises(UserError, match=f"Unknown column of labels.csv '{lacks}'"):
        merge(folder, [str(lay(tmp_path / "batch", listed))])
    lay(tmp_path / "known", [{**row, "place": f"{k}", "kind": f"{k}"} for k, row in enumerate(listed)])
    made_known(tmp_path / "known", "place", ("kind",))
    with pytest.raises(UserError, match=f"column.* '{lacks}'"):
        merge(folder, [str(tmp_path / "known")])


def test_numbers_stay_numbers_and_their_levels_those_of_the_data_set(tmp_path):
    aged = {"age": lambda k: f"{k % 7 * 10}" if k % 5 else ""}
    folder = lay(tmp_path / "photos", rows(12, **aged))
    made_known(folder, sensitive=("age",), bins={"age": (18, 40)})
    for start in (50, 70):
        merge(folder, [str(lay(tmp_path / f"batch{start}", rows(12, start, **aged)))])
    says = own.read(folder)
    assert (says.bins, "age" in says.levels) == ({"age": (18, 40)}, False)
    held = there(folder)
    for image in (1, 51, 71):
        age = image % 7 * 10
        assert held[image][3] == ("under 18" if age < 18 else "18 to 40" if age < 40 else "40 or more")
    assert held[70][3] is None
    assert column(folder, "age")[:12] == [aged["age"](int(Path(name).stem)) for name in column(folder, "file")[:12]]


def test_a_new_data_set_has_the_levels_of_numbers_of_its_first_input(tmp_path):
    first = lay(tmp_path / "first", rows(6, age=lambda k: f"{k}.5"))
    made_known(first, sensitive=("age",), bins={"age": (3,)})
    second = lay(tmp_path / "second", rows(6, 50, age=lambda k: f"{k}"))
    merge(tmp_path / "new", [str(first), str(second)], "smiling", ["age"])
    assert {group for _, _, _, group, _ in there(tmp_path / "new").values()} == {"under 3", "3 or more"}
    assert column(tmp_path / "new", "age") == [*(f"{k}.5" for k in range(6)), *map(str, range(50, 56))]


def test_words_where_numbers_are_wanted_are_refused_and_numbers_are_taken(field, tmp_path):
    words = rows(12, gender=lambda k: ("male", "female")[k % 2], age=lambda k: f"{k}")
    folder = lay(tmp_path / "photos", [{k: v for k, v in row.items() if k != "smiling"} for row in words])
    made_known(folder, "gender", ("age",), bins={"age": (30,)})
    with pytest.raises(UserError, match="fairface has words as its age, and numbers are wanted, for levels at 30"):
        merge(folder, ["fairface"])
    merge(folder, ["utkface"])
    assert {*column(folder, "age")[12:]} == {name.split("/")[-1].split("_")[0] for name in column(folder, "file")[12:]}


def test_a_persons_own_columns_keep_their_names_so_that_the_next_table_fits(tmp_path):
    def one(start):
        return rows(9, start, picture=lambda k: f"{k}.png", fold=lambda k: ("train", "val", "test")[k % 3])

    def laid(folder, start):
        lay(folder, one(start))
        listed = [{key: value for key, value in row.items() if key != "file"} for row in one(start)]
        with (folder / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [key for key in listed[0] if key != "image"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(listed)
        return folder

    folder = made_known(laid(tmp_path / "photos", 0), path="picture", split="fold")
    for start in (50, 70):
        merge(folder, [str(laid(tmp_path / f"batch{start}", start))])
    assert part_of(folder) == {
        image: ("train", "val", "test")[image % 3] for image in (*range(9), *range(50, 59), *range(70, 79))
    }
    assert (own.read(folder).path, own.read(folder).split) == ("picture", "fold")


@pytest.mark.parametrize("name", ["unit", "split_", "digest", "fold"])
def test_a_column_may_have_any_name(name, tmp_path):
    listed = [{**{k: v for k, v in row.items() if k != "gender"}, name: row["gender"]} for row in rows(8)]
    for _ in range(2):
        merge(tmp_path / "new", [str(lay(tmp_path / "batch", listed))], "smiling", [name])
        merge(tmp_path / "new", [str(lay(tmp_path / "more", [{**row, "image": 50} for row in listed[:1]]))])
    assert {group for _, _, _, group, _ in there(tmp_path / "new").values()} == {"f", "m"}


# ---- where the images of the target lie


def test_a_target_whose_images_lie_deeper_or_lack_their_ending_stays_as_it_is(tmp_path):
    folder = lay(tmp_path / "photos", rows(6), below="img")
    listed = (folder / "labels.csv").read_text().replace(".png", "")
    (folder / "labels.csv").write_text(listed)
    made_known(folder)
    assert (own.read(folder).images, own.read(folder).suffix) == ("img", ".png")
    before = there(folder)
    merge(folder, [str(lay(tmp_path / "batch", rows(3, 50)))])
    after = there(folder)
    assert {image: after[image] for image in before} == before
    assert (folder / "img/batch/50.png").is_file()
    assert (folder / "labels.csv").read_text() == listed


def test_folders_that_are_classes_can_be_added_to_and_added(tmp_path):
    folder = in_classes(tmp_path / "photos")
    before = part_of(folder)
    done = merge(folder, [str(lay(tmp_path / "no", rows(4, 50)))])  # a name that is also a class
    assert part_of(folder) | before == part_of(folder)
    assert done.added == {"no": 4}
    assert merge(tmp_path / "new", [str(folder)], **BOTH).added == {"photos": 16}


def test_folders_that_are_parts_and_classes_keep_both(tmp_path):
    folder = tmp_path / "photos"
    for row in rows(12):
        path = folder / ("train", "val", "test")[row["image"] % 3] / row["smiling"] / row["gender"] / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"image {row['image']}".encode())
    made_known(folder)
    merge(folder, [str(lay(tmp_path / "batch", rows(4, 50, split="val")))])
    assert part_of(folder) == {
        **{k: ("train", "val", "test")[k % 3] for k in range(12)}, **dict.fromkeys(range(50, 54), "val")
    }  # fmt: skip
    assert {image: said[2:4] for image, said in there(folder).items()} == {
        row["image"]: (row["smiling"], row["gender"]) for row in (*rows(12), *rows(4, 50))
    }


def test_what_already_lies_in_the_folder_is_not_placed_again(tmp_path):
    folder = photos(tmp_path / "photos", rows(6))
    merge(folder, [str(lay(folder / "batch", rows(3, 50)))])
    assert sorted(path.name for path in (folder / "batch").iterdir()) == ["50.png", "51.png", "52.png", "labels.csv"]
    assert there(folder)[50][0] == "batch/50.png"


def test_a_digest_that_somebody_spoilt_is_read_anew(tmp_path):
    folder = photos(tmp_path / "photos", rows(6))
    merge(folder, [str(lay(tmp_path / "batch", rows(3, 50)))])
    text = (folder / TABLE).read_text()
    for found in column(folder, "digest")[:2]:
        text = text.replace(found, "no digest")
    (folder / TABLE).write_text(text)
    done = merge(folder, [str(lay(tmp_path / "again", [*rows(6), *rows(1, 80)]))])
    assert (done.added, len(done.copies)) == ({"again": 1}, 6)
    assert all(len(found) == 16 for found in column(folder, "digest"))


def test_files_are_read_once(tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos", rows(6))
    merge(folder, [str(lay(tmp_path / "batch", rows(3, 50)))])
    seen = []
    merge(folder, [str(lay(tmp_path / "more", rows(4, 70)))], progress=lambda *numbers: seen.append(numbers))
    assert seen == [(4, 4)]


# ---- prefixes


def test_prefixes_say_the_part_on_request_only(tmp_path):
    words = ("train_{}.png", "val_{}.png", "TEST_{}.png", "trainer_{}.png", "{}_val_.png", "test{}.png")
    batch = lay(tmp_path / "batch", [*rows(60, file=lambda k: f"x/{words[k % 6].format(k)}"), *rows(1, 60, file="val")])
    merge(tmp_path / "asked", [str(batch)], **BOTH, prefixes=True)
    merge(tmp_path / "not", [str(batch)], **BOTH)
    by_hash = part_of(tmp_path / "not")
    said = {k: ("train", "val", "test")[k % 6] for k in range(60) if k % 6 < 3}
    assert part_of(tmp_path / "asked") == {**by_hash, **said}
    assert by_hash[60] != "val"


def test_prefixes_move_nothing_that_was_there(tmp_path):
    folder = photos(tmp_path / "photos", rows(20, file=lambda k: f"test_{k}.png"))
    before = part_of(folder)
    merge(folder, [str(lay(tmp_path / "batch", rows(3, 50, file=lambda k: f"test_{k}.png")))], prefixes=True)
    assert part_of(folder) == {**before, 50: "test", 51: "test", 52: "test"}


def test_the_split_of_what_brings_none_is_that_of_the_default_seed(tmp_path):
    folder = photos(tmp_path / "photos", rows(60))
    before = pose("photos", own.kind(folder), Data(root=tmp_path))
    merge(folder, [str(lay(tmp_path / "batch", rows(60, 100)))])
    after = pose("photos", own.kind(folder), Data(root=tmp_path, seed=2))  # the split is written down by now
    old = np.isin(np.asarray(after.table.names), np.asarray(before.table.names))
    assert (after.parts[old] == before.parts).all()
    assert merging.merge(folder, [str(tmp_path / "batch")]).parts["test"] == int((after.parts == 3).sum())
