"""A look at a data set before training: how many of whom, what is wrong, and the figure."""

import json
import re
import shutil

import numpy as np
import pytest

from evenlens.config import Data
from evenlens.data import own
from evenlens.data.checking import Summary, check, summarise
from evenlens.data.describing import describe
from evenlens.data.source import load
from evenlens.data.tables import PARTS
from evenlens.errors import UserError
from evenlens.report import counts
from tests import fake
from tests.test_images import broken
from tests.test_own import draw, people, touch, write

NUM = 48
SPLIT = ["train"] * 24 + ["val"] * 12 + ["test"] * 12


@pytest.fixture
def photos(tmp_path):
    """Make a folder of images and a table that says their parts."""

    def make(**changes):
        columns = {**people(NUM, split=SPLIT), **changes}
        folder = draw(tmp_path / "photos", people(NUM)["path"])
        return write(folder / "labels.csv", columns)

    return make


def checked(folder, label="smiling", sensitive=("gender",), images=True, **data):
    folder, says = describe(folder, label, sensitive)
    return check(folder.name, own.kind(folder, says), Data(root=folder.parent, size=16, **data), images)


def counted(folder, label="smiling", sensitive=("gender",), **data):
    folder, says = describe(folder, label, sensitive)
    return summarise(folder.name, own.kind(folder, says), Data(root=folder.parent, **data))


# ---- what is counted


def test_images_are_counted_by_part_label_and_group_without_opening_any(tmp_path):
    columns = people(16, split=["train"] * 8 + ["tune"] * 2 + ["val"] * 2 + ["test"] * 3 + [""])
    columns["gender"][0] = ""
    found = counted(write(touch(tmp_path / "photos", columns["path"]) / "labels.csv", columns))
    assert (found.target, found.sensitive) == ("smiling", ("gender",))
    assert (found.class_names, found.group_names) == (("no", "yes"), ("f", "m"))
    assert {part: table.tolist() for part, table in found.counts.items()} == {
        "train": [[1, 2], [2, 2]], "tune": [[1, 0], [1, 0]], "val": [[0, 1], [0, 1]], "test": [[1, 1], [1, 0]]
    }  # fmt: skip
    assert found.unused == 2
    assert sum(table.sum() for table in found.counts.values()) + found.unused == 16
    assert found.notes == [
        "1 of 16 images have no gender and are left out.", "1 of 16 images have no split and are left out."
    ]  # fmt: skip


def test_a_lacking_part_level_and_small_cell_are_warned_of(tmp_path):
    columns = people(1200, split=["train"] * 800 + ["test"] * 400)
    columns["gender"] = [("m" if k % 4 > 1 else "f") if k < 800 else "f" for k in range(1200)]
    found = counted(write(touch(tmp_path / "photos", columns["path"][:1]) / "labels.csv", columns))
    assert found.warnings == ["There is no val part.", "test: no image of gender 'm'."]
    columns["gender"][-24:] = ["m"] * 24
    columns["smiling"][-24:] = ["yes"] * 24
    found = counted(write(tmp_path / "photos" / "labels.csv", columns))
    assert found.warnings == [
        "There is no val part.",
        "test: 1 of 3 cells have fewer than 100 images; the smallest is yes / m with 24, where the 95 % interval of a "
        "rate reaches up to 19 points each way.",
    ]


@pytest.mark.parametrize("number", [2, 10, 24, 98])
def test_the_points_that_are_told_are_half_the_widest_interval_that_the_metrics_give(tmp_path, number):
    from evenlens.metrics import rate_intervals

    small = people(800, split=["test"] * 800, smiling=["yes"] * number + ["no"] * (800 - number), gender=["f"] * 800)
    found = counted(write(touch(tmp_path / "photos", small["path"][:1]) / "labels.csv", small))
    told = next(int(text[1]) for text in (re.search(r"up to (\d+) points", line) for line in found.warnings) if text)
    widths = []
    for right in range(number + 1):
        interval = rate_intervals("accuracy", np.array([[[right, number - right], [0, 0]]]))
        widths.append(float((interval[2][0] - interval[1][0]) / 2))
    assert told == pytest.approx(100 * max(widths), abs=0.51)


def test_a_summary_is_json(photos):
    found = counted(photos())
    assert json.loads(json.dumps(found.as_dict()))["counts"]["test"] == found.counts["test"].tolist()
    text = json.loads(json.dumps(checked(photos(), images=False).as_dict()))
    assert text["summary"]["class_names"] == ["no", "yes"]
    assert text["num_images"] == 0


def test_a_thousand_labels_by_a_thousand_groups_are_counted_at_once(tmp_path):
    columns = people(1000, split=["test"] * 1000, smiling=[f"a{k}" for k in range(1000)])
    columns["gender"] = [f"b{k}" for k in range(1000)]
    found = counted(write(touch(tmp_path / "photos", columns["path"][:1]) / "labels.csv", columns))
    assert found.counts["test"].shape == (1000, 1000)
    assert any("test: 1000 of 1000 cells have fewer than 100 images" in warning for warning in found.warnings)


# ---- what is found


def test_where_nothing_is_wrong_nothing_is_said_and_what_was_decoded_is_there_for_training(
    photos, in_threads, monkeypatch
):
    folder = photos()
    found = checked(folder)
    assert found.problems == []
    assert found.num_images == NUM
    assert found.warnings == found.summary.warnings
    monkeypatch.setattr("evenlens.data.images._make_all", None)
    assert load("photos", own.kind(*describe(folder, "smiling", ("gender",))), Data(root=folder.parent, size=16)).splits


def test_damaged_and_missing_images_are_problems_by_their_reason(photos, tmp_path, in_threads):
    names = people(NUM)["path"]
    folder = photos()
    (tmp_path / "broken").mkdir()
    for name, bad in zip(names, broken(tmp_path / "broken"), strict=False):
        shutil.copy(tmp_path / "broken" / bad, folder / name)
    (folder / names[20]).unlink()
    (folder / names[21]).unlink()
    (folder / names[22]).write_bytes(b"")
    found = checked(folder)
    assert f"2 images cannot be read (No such file or directory): {names[20]}, {names[21]}." in found.problems
    assert any(re.match(r"2 images cannot be read \(an empty file\): ", problem) for problem in found.problems)
    assert sum(int(problem.partition(" ")[0]) for problem in found.problems) == 11
    assert not any("copies" in warning for warning in found.warnings), "what is missing is no copy"
    skipped = checked(folder, skip_unreadable=True)
    assert skipped.problems == []
    assert {*found.problems} <= {*skipped.warnings}


def test_a_damaged_image_that_is_in_no_part_is_no_problem(photos, in_threads):
    folder = photos(smiling=["", "no", "yes", ""] + ["no", "yes"] * 22)
    (folder / "000.jpg").unlink()
    found = checked(folder)
    assert found.problems == []
    assert "1 images that are in no part cannot be read." in found.warnings


@pytest.mark.parametrize(("changes", "said"), [
    ({"smiling": ["no"] * NUM}, "All 24 images of the part 'train' of photos have the label 'no'"),
    ({"gender": ["f"] * NUM}, "All 24 images of the part 'train' of photos are of the group 'f'"),
    ({"split": ["train"] * 24 + ["test"] * 24}, "The part 'val' of photos has no image"),
    ({"split": ["test"] * NUM}, "The part 'train' of photos has no image"),
])  # fmt: skip
def test_what_training_would_refuse_is_a_problem_already_here(photos, in_threads, changes, said):
    folder = photos(**changes)
    for images in (True, False):
        assert any(said in problem for problem in checked(folder, images=images).problems)
    with pytest.raises(UserError) as error:
        load("photos", own.kind(*describe(folder, "smiling", ("gender",))), Data(root=folder.parent, size=16))
    assert said in str(error.value)


def test_a_part_that_only_has_damaged_images_is_a_problem_also_where_these_are_left_out(photos, in_threads):
    folder = photos()
    for name, part in zip(people(NUM)["path"], SPLIT, strict=True):
        if part == "val":
            (folder / name).write_bytes(b"")
    problems = checked(folder, skip_unreadable=True).problems
    assert len(problems) == 1
    assert "The part 'val' of photos has no image" in problems[0]


def copies(folder, pairs):
    for one, other in pairs:
        shutil.copy(folder / f"{one:03d}.jpg", folder / f"{other:03d}.jpg")
    return [warning for warning in checked(folder).warnings if "copies" in warning]


def test_copies_are_told_apart_by_what_they_spoil(photos, in_threads):
    assert copies(photos(), [(0, 4), (8, 28), (9, 41), (1, 2), (5, 7)]) == [
        "2 images are copies of others with another label or group: 001.jpg = 002.jpg, 005.jpg = 007.jpg.",
        "2 images are copies of others in another part: 008.jpg = 028.jpg, 009.jpg = 041.jpg.",
        "1 images are copies of others in the same part: 000.jpg = 004.jpg.",
    ]


def test_a_copy_with_another_label_in_another_part_spoils_both(photos, in_threads):
    assert copies(photos(), [(0, 25)]) == [
        "1 images are copies of others with another label or group: 000.jpg = 025.jpg.",
        "1 images are copies of others in another part: 000.jpg = 025.jpg.",
    ]


def test_a_copy_that_is_not_used_hides_none_between_parts_and_is_not_told_of(photos, in_threads):
    unused = {"split": [*SPLIT[:4], "", *SPLIT[5:44], "", *SPLIT[45:]]}
    assert copies(photos(**unused), [(0, 4), (0, 28), (8, 44)]) == [
        "1 images are copies of others in another part: 000.jpg = 028.jpg."
    ]


def test_many_copies_are_counted_and_a_few_named(photos, in_threads):
    told = copies(photos(), [(0, 4 * k) for k in range(1, 6)] + [(1, 4 * k + 1) for k in range(1, 6)])
    assert len(told) == 1
    assert re.match(r"10 images are copies of others in the same part: (\d{3}.jpg = \d{3}.jpg, ){4}", told[0])
    assert told[0].endswith(" and 5 more.")


def test_images_that_no_row_names_are_counted_in_folders_below_too(photos, in_threads):
    folder = draw(photos(), ["more/one.png", "two.JPG"])
    touch(folder, ["notes.txt", ".hidden.jpg", ".thumbs/three.jpg"])
    assert f"2 images in {folder} are in no row: more/one.png, two.JPG." in checked(folder, images=False).warnings
    listed = photos(path=[f".//{name}" for name in people(NUM)["path"]])
    assert any("2 images in" in warning for warning in checked(listed, images=False).warnings)


def test_units_in_several_parts_are_warned_of(photos):
    folder = photos(person=["a", "b", "c", ""] * 12)
    folder, says = describe(folder, "smiling", ("gender",), unit="person")
    found = summarise("photos", own.kind(folder, says), Data(root=folder.parent))
    assert "3 of 15 units (subjects, lesions, photographs) lie in several parts." in found.warnings


def test_a_data_set_of_the_field_is_checked_too(in_threads):
    found = check("tiny", fake.Tiny, Data())
    assert found.problems == []
    assert found.summary.class_names == ("place 0", "place 1")
    assert sum(table.sum() for table in found.summary.counts.values()) == 600


# ---- the figure


def summary(classes=("no", "yes"), groups=("f", "m"), parts=("train", "val", "test"), title="Photos"):
    counts = {part: np.arange(len(classes) * len(groups)).reshape(len(classes), len(groups)) for part in parts}
    return Summary(title, "smiling", ("gender",), classes, groups, counts, 0)


def test_the_figure_holds_every_count(tmp_path):
    drawn = counts.chart(summary()).to_dict()
    values = {(row["part"], row["label"], row["group"]): row["images"] for row in drawn["data"]["values"]}
    assert len(values) == 3 * 2 * 2
    assert values["val", "yes", "f"] == 2
    counts.save(summary(), tmp_path / "deep" / "a.svg")
    text = (tmp_path / "deep" / "a.svg").read_text()
    for word in ("Photos: images by part", "train", "val", "test", "gender", "smiling", "yes", "no"):
        assert word in text


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<svg"), ("a.PNG", b"\x89PNG"), ("a b.html", b"<!DOCTYPE")])
@pytest.mark.parametrize(
    "shown", [summary(), summary(parts=()), summary((), ()), summary(tuple("abcdefghi"), ("日本",))]
)
def test_a_figure_is_drawn_in_every_format_whatever_there_is(tmp_path, name, start, shown):
    counts.save(shown, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]


def test_the_figure_as_a_page_needs_no_network_and_runs_nothing_that_a_table_says(tmp_path):
    evil = "</script><script>alert(1)</script>"
    counts.save(summary((evil, "<b>"), ("f", evil), title=evil), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert evil not in text
    assert "<b>" not in text
    assert not re.findall(r"""(?:src|href)=["']https?:""", text)
    assert json.dumps(evil).replace("<", "\\u003c") in text


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"its name must end in .svg, .png, .html"):
        counts.save(summary(), tmp_path / "a.pdf")
    assert not list(tmp_path.glob("*.pdf"))


def test_parts_are_in_the_order_in_which_they_are_used(photos):
    assert list(counted(photos(split=SPLIT[::-1])).counts) == [part for part in PARTS if part != "tune"]
