"""Balanced sampling: exact counts, chance by the seed alone, and what is refused."""

import json

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenlens.errors import UserError
from evenlens.generation import Labels, read_labels, targets, write_labels
from evenlens.generation.balancing import Chosen, balance, largest, quotas, read_chosen, write_chosen
from evenlens.generation.labels import Attribute

SKINS, SEXES = ("light", "dark", "brown"), ("m", "f")


def labelled(counts, lost=5, several=0, probability=True, margin=None, where="made.csv"):
    """Images by skin, all of the first first; then some without a face, and some with two faces."""
    codes = np.repeat(np.arange(len(counts)), counts)
    n = len(codes)
    ids = [f"{k:06d}.png" for k in range(n + lost)] + [f"two{k // 2}.png" for k in range(2 * several)]
    face = np.concatenate([np.zeros(n + lost, dtype=int), np.arange(2 * several) % 2])
    n_faces = np.concatenate([np.ones(n, dtype=int), np.zeros(lost, dtype=int), np.full(2 * several, 2)])
    codes = np.concatenate([codes, np.full(lost, -1), np.arange(2 * several) % 2])
    sure = np.where(n_faces[:, None] > 0, 0.1 / (len(counts) - 1), np.nan).repeat(len(counts), 1)
    sure[codes >= 0, codes[codes >= 0]] = 0.9
    skin = Attribute(SKINS[: len(counts)], codes, sure if probability else None, margin)
    sex = Attribute(SEXES, np.where(codes < 0, -1, np.arange(len(codes)) % 2))
    return Labels(np.array(ids), face, n_faces, {"skin": skin, "sex": sex}, {}, where)


def shares(**given):
    return targets.Targets({"skin": given})


def counted(found):
    return dict(zip(*np.unique(found.chosen.group, return_counts=True), strict=True))


# ---- the choice


def test_each_group_has_exactly_as_many_images_as_the_scarcest():
    labels = labelled([700, 90, 210])
    found = balance(labels, ["skin"])
    chosen = found.chosen
    assert chosen.groups == ("brown", "dark", "light")
    assert counted(found) == {0: 90, 1: 90, 2: 90}
    assert len(set(chosen.ids.tolist())) == 270
    truth = dict(zip(labels.ids.tolist(), labels.attributes["skin"].codes.tolist(), strict=True))
    assert [SKINS[truth[name]] for name in chosen.ids.tolist()] == [chosen.groups[k] for k in chosen.group]
    assert [(one.name, one.available, one.quota, one.drawn, one.different, one.effective) for one in found.groups] == [
        ("light", 700, 90, 90, 90, 90.0), ("dark", 90, 90, 90, 90, 90.0), ("brown", 210, 90, 90, 90, 90.0)
    ]  # fmt: skip
    assert found.faces[:4] == (1005, 5, 0, 1000)
    assert found.yielded == 270 / 1005


def test_the_seed_decides_and_neither_the_first_nor_all_of_one_kind_come_first():
    labels = labelled([2000, 100])
    one, again, other = (balance(labels, ["skin"], seed=seed).chosen for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.ids, again.ids)
    np.testing.assert_array_equal(one.group, again.group)
    light = [{*each.ids[each.group == 1].tolist()} for each in (one, other)]
    assert len(light[0] & light[1]) < 30  # 100 of 2000 by chance share 5
    assert len(light[0] & {*labels.ids[:100].tolist()}) < 30
    assert 30 < (one.group[:100] == 1).sum() < 70
    mean = np.mean([float(name[:6]) for name in light[0]])
    assert abs(mean - 1000) < 4 * 577 / 10


def test_rows_in_another_order_and_rows_of_others_change_nothing():
    labels = labelled([300, 60, 90])
    order = np.random.default_rng(0).permutation(len(labels))
    one, two = (balance(each, ["skin"], seed=1).chosen for each in (labels, labels.select(order)))
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.group, two.group)
    fewer = balance(labels, ["skin"], total=90, seed=1).chosen
    assert {*fewer.ids.tolist()} < {*one.ids.tolist()}


def test_combinations_of_attributes_are_balanced():
    found = balance(labelled([400, 61]), ["skin", "sex"])
    assert [(one.name, one.available) for one in found.groups] == [
        ("light, m", 200), ("light, f", 200), ("dark, m", 31), ("dark, f", 30)
    ]  # fmt: skip
    assert counted(found) == {0: 30, 1: 30, 2: 30, 3: 30}
    assert found.chosen.attributes == ("skin", "sex")
    assert found.chosen.classes[found.chosen.groups.index("dark, f")] == ("dark", "f")


def test_given_shares_are_drawn_and_a_share_of_nought_is_left_out():
    found = balance(labelled([700, 90, 210]), ["skin"], shares(light=0.7, dark=0.3, brown=0))
    assert [one.drawn for one in found.groups] == [210, 90, 0]
    assert found.chosen.groups == ("dark", "light")
    product = balance(labelled([400, 61]), ["skin", "sex"], shares(light=0.8, dark=0.2))
    assert [one.target for one in product.groups] == [0.4, 0.4, 0.1, 0.1]
    assert [one.drawn for one in product.groups] == [120, 120, 30, 30]


def test_another_table_is_a_target(tmp_path):
    write_labels(labelled([60, 30, 10]), tmp_path / "wanted.csv")
    wanted = targets.parse([str(tmp_path / "wanted.csv")], ["skin"])
    found = balance(labelled([700, 90, 210]), ["skin"], wanted, total=100)
    assert {one.name: one.drawn for one in found.groups} == {"light": 60, "dark": 30, "brown": 10}


def test_with_replacement_each_image_of_a_small_group_is_drawn_as_often_as_the_others_or_once_more():
    found = balance(labelled([500, 40, 60]), ["skin"], total=450, replace=True)
    dark = found.groups[1]
    times = np.unique(found.chosen.ids[found.chosen.group == found.chosen.groups.index("dark")], return_counts=True)[1]
    assert [one.drawn for one in found.groups] == [150, 150, 150]
    assert np.bincount(times).tolist() == [0, 0, 0, 10, 30]  # 150 = 30 x 4 + 10 x 3
    assert dark.different == 40
    assert dark.effective == pytest.approx(150**2 / (30 * 16 + 10 * 9))
    assert (found.groups[0].different, found.groups[0].effective) == (150, 150.0)


def test_an_unsure_image_is_dropped_by_its_margin_on_every_attribute_used():
    labels = labelled([100, 50], lost=0)
    skin, sex = labels.attributes["skin"], labels.attributes["sex"]
    skin.probability[:20] = [0.55, 0.45]
    unsure = np.full(150, 0.9)
    unsure[100:110] = 0.1
    labels = Labels(
        labels.ids, labels.face, labels.n_faces, {"skin": skin, "sex": Attribute(SEXES, sex.codes, None, unsure)}
    )
    alone = balance(labels, ["skin"], min_margin=0.2)
    assert [(one.available, one.dropped) for one in alone.groups] == [(80, 20), (50, 0)]
    both = balance(labels, ["skin", "sex"], min_margin=0.2)
    assert [(one.available, one.dropped) for one in both.groups] == [(40, 10), (40, 10), (20, 5), (20, 5)]
    assert not {*alone.chosen.ids.tolist()} & {*labels.ids[:20].tolist()}
    at = balance(labels, ["skin"], min_margin=0.0999)  # 0.55 - 0.45
    assert at.as_dict()["dropped"] == 0


def test_one_face_an_image_counts():
    labels = labelled([30, 20], several=15)
    single = balance(labels, ["skin"])
    assert single.faces[1:5] == (5, 15, 50, 30)
    assert counted(single) == {0: 20, 1: 20}
    assert not [name for name in single.chosen.ids.tolist() if name.startswith("two")]
    first = balance(labels, ["skin"], faces="first")
    assert [one.available for one in first.groups] == [45, 20]
    assert len(set(first.chosen.ids.tolist())) == 40


# ---- quotas


@pytest.mark.parametrize(("wanted", "total", "made"), [
    ([0.5, 0.3, 0.2], 10, [5, 3, 2]), ([1 / 3] * 3, 10, [4, 3, 3]), ([0.46, 0.34, 0.2], 10, [5, 3, 2]),
    ([0.7, 0.3], 100, [70, 30]), ([1, 0], 3, [3, 0]), ([0.999, 0.001], 5, [5, 0]), ([1 / 7] * 7, 7, [1] * 7),
], ids=["whole", "thirds", "remainders", "seventy", "one", "tiny", "sevenths"])  # fmt: skip
def test_quotas_are_those_of_the_largest_remainders(wanted, total, made):
    assert quotas(np.array(wanted), total).tolist() == made


def test_of_equal_remainders_the_group_with_more_images_gets_the_odd_one():
    assert quotas(np.full(3, 1 / 3), 31, np.array([10, 90, 20])).tolist() == [10, 11, 10]
    found = balance(labelled([90, 10, 20]), ["skin"], total=31)
    assert [one.drawn for one in found.groups] == [11, 10, 10]


cells = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 50)), min_size=1, max_size=8).filter(
    lambda drawn: any(weight for _, weight in drawn)
)


@settings(max_examples=300, deadline=None)
@given(cells, st.integers(0, 5000))
def test_quotas_add_up_and_the_largest_total_fits_and_one_group_has_no_room_for_more(drawn, total):
    available, weights = (np.array(part) for part in zip(*drawn, strict=True))
    wanted = weights / weights.sum()
    made = quotas(wanted, total, available)
    assert made.sum() == total
    assert (np.abs(made - wanted * total) < 1).all()
    assert (made[wanted == 0] == 0).all()
    most = largest(wanted, available)
    assert most >= 1
    assert (quotas(wanted, most, available) <= available).all()
    assert ((most + 1) * wanted > available).any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=3), st.integers(0, 200), st.integers(0, 9), st.booleans())
def test_no_group_gives_more_than_it_has_without_replacement(counts, total, seed, replace):
    labels = labelled(counts, lost=0, probability=False)
    if not replace and (quotas(np.full(len(counts), 1 / len(counts)), total, np.array(counts)) > counts).any():
        with pytest.raises(UserError, match="too few"):
            balance(labels, ["skin"], total=total, seed=seed)
        return
    found = balance(labels, ["skin"], total=total, seed=seed, replace=replace)
    assert len(found.chosen) == (total or len(counts) * min(counts))
    for one in found.groups:
        times = np.unique(found.chosen.ids[found.chosen.group == _place(found.chosen, one.name)], return_counts=True)[1]
        assert one.drawn == one.quota == times.sum()
        assert one.different == len(times) <= one.available
        assert len(times) == 0 or times.max() - times.min() <= 1
        assert one.different == min(one.quota, one.available)


def _place(chosen, name):
    return chosen.groups.index(name) if name in chosen.groups else -1


# ---- what is refused


@pytest.mark.parametrize(("options", "said"), [
    ({"total": 400}, "133 images of 'dark' are wanted and there are 90, 43 too few (2 groups are short): ask for "
                     "--total 270 or less, draw images several times with --replace"),
    ({"total": -1}, "A total of -1"),
    ({"min_margin": -0.1}, "a margin of -0.1"),
    ({"min_margin": float("nan")}, "a margin of nan"),
    ({"min_margin": 0.95}, "no image with a margin of 0.95 is in it (nor in 2 more groups that it wants)"),
    ({"faces": "largest"}, "Unknown rule"),
    ({"target": shares(light=0.5, dark=0.5)}, "The target of skin lacks 'brown'"),
    ({"target": shares(light=0.2, dark=0.2, brown=0.2, blue=0.4)},
     "The target wants a share of 0.4 of 'blue' (skin), and no image is in it: label more samples"),
    ({"target": targets.Targets({"skn": {"a": 1.0}})}, "did you mean 'skin'?"),
], ids=["total", "negative", "margin", "nan", "unsure", "rule", "lacking", "empty", "unknown"])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_sentence(options, said):
    with pytest.raises(UserError) as refused:
        balance(labelled([700, 90, 100]), ["skin"], **options)
    assert said in str(refused.value)


@pytest.mark.parametrize(("attributes", "said"), [
    ([], "name an attribute"), (["skim"], "did you mean 'skin'?"),
], ids=["none", "unknown"])  # fmt: skip
def test_attributes_that_are_not_there_are_refused(attributes, said):
    with pytest.raises(UserError, match=said.replace("?", r"\?")):
        balance(labelled([7, 9]), attributes)


def test_zero_faces_margins_that_are_not_known_and_paths_out_of_the_folder_are_refused():
    with pytest.raises(UserError, match=r"No image of made.csv is left with one face"):
        balance(labelled([0, 0]), ["skin"])
    with pytest.raises(UserError, match="neither margins nor probabilities of sex"):
        balance(labelled([7, 9]), ["sex"], min_margin=0.1)
    labels = labelled([7, 9])
    labels.ids[3] = "../a.png"
    with pytest.raises(UserError, match=r"Row 5 of made.csv names '../a.png', a path with '..'"):
        balance(labels, ["skin"])


# ---- the table


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_what_is_written_is_read_again(tmp_path, ending):
    path = tmp_path / "deep" / f"chosen.{ending}"
    made = balance(labelled([50, 20, 30]), ["skin", "sex"], total=120, replace=True).chosen
    write_chosen(made, path)
    read = read_chosen(path)
    np.testing.assert_array_equal(read.ids, made.ids)
    np.testing.assert_array_equal(read.group, made.group)
    assert (read.groups, read.attributes, read.classes) == (made.groups, made.attributes, made.classes)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_choice_made_by_hand_is_written_with_the_classes_that_its_groups_name(tmp_path):
    path = tmp_path / "chosen.parquet"
    group = np.array([0, 1, 1])
    write_chosen(Chosen(np.array(["a.png", "b.png", "b.png"]), group, ("dark, f", "light, m"), ("skin", "sex")), path)
    assert pyarrow.parquet.read_table(path).to_pydict() == {
        "id": ["a.png", "b.png", "b.png"], "group": ["dark, f", "light, m", "light, m"],
        "skin": ["dark", "light", "light"], "sex": ["f", "m", "m"],
    }  # fmt: skip
    write_chosen(Chosen(np.array(["a.png", "b.png", "b.png"]), group, ("x, y", "z"), ("skin",)), path)
    assert read_chosen(path).groups == ("x, y", "z")


@pytest.mark.parametrize(("text", "said"), [
    ("id,skin\na,x\n", "Unknown column of chosen.csv 'group'"),
    ("name,group,skin\na,x,x\n", "Unknown column of chosen.csv 'id'"),
    ("id,group\na,x\n", "says no attribute: beside id and group it needs a column"),
    ("id,group,skin\n", "has no rows"),
    ("id,group,skin\na,x,x\n,x,x\n", "Row 3 of chosen.csv has no id"),
    ("id,group,skin\na,,x\n", "Row 2 of chosen.csv has no group"),
    ("id,group,skin\na,x,\n", "Row 2 of chosen.csv has no skin"),
    ("id,group,skin\na,x,x\n../b,x,x\n", "Row 3 of chosen.csv names '../b', a path with '..'"),
    ("id,group,skin\n/etc/b,x,x\n", "an absolute path"),
    ("id,group,skin\na,x,x\nb,y,y\nc,x,y\n", "Row 4 of chosen.csv has the skin 'y', and another row of the group 'x'"),
], ids=["group", "id", "attribute", "rows", "noid", "nogroup", "noskin", "dots", "absolute", "contrary"])  # fmt: skip
def test_a_table_that_names_no_choice_is_refused(tmp_path, text, said):
    (tmp_path / "chosen.csv").write_text(text)
    with pytest.raises(UserError) as refused:
        read_chosen(tmp_path / "chosen.csv")
    assert said in str(refused.value)


# ---- the command


def test_the_command_says_what_was_there_and_what_was_drawn(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    write_labels(labelled([700, 90, 210], several=4), tmp_path / "labels.parquet")
    ended = command("generate", "balance", "labels.parquet", "chosen.parquet", "--attribute", "skin", "--min-margin",
                    ".2", "--json", "b.json")  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.split("dark")[1].split()[:6] == ["33.3", "90", "0", "90", "90", "90"]
    said = " ".join(ended.out.split())
    assert "1,009 images, of them 5 without a face, 4 with several (rule: single), 0 without a class." in said
    assert "270 drawn, 26.8 % of the images." in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    found = json.loads((tmp_path / "b.json").read_text())
    assert (found["drawn"], found["different"], found["yield"]) == (270, 270, 270 / 1009)
    assert len(read_chosen(tmp_path / "chosen.parquet")) == 270
    assert read_labels(tmp_path / "chosen.parquet", ["skin"]).attributes["skin"].classes == ("brown", "dark", "light")


def test_the_command_draws_again_where_it_is_told_to(command, tmp_path):
    write_labels(labelled([700, 90, 210]), tmp_path / "labels.csv")
    words = ["--attribute", "skin", "--target", "skin=light:.2,dark:.6,brown:.2", "--total", "1000", "--replace"]
    assert command("generate", "balance", "labels.csv", "chosen.csv", *words).code == 0
    read = read_chosen(tmp_path / "chosen.csv")
    assert np.bincount(read.group).tolist() == [200, 600, 200]


@pytest.mark.parametrize(("words", "said"), [
    (["labels.csv", "chosen.npy", "--attribute", "skin"], "chosen images are written as .parquet or .csv"),
    (["nowhere.csv", "chosen.csv", "--attribute", "skin"], "There is no table nowhere.csv"),
    (["labels.csv", "chosen.csv", "--attribute", "skim"], "did you mean 'skin'?"),
    (["labels.csv", "chosen.csv", "--attribute", "skin", "--total", "2000"], "too few"),
    (["labels.csv", "chosen.csv", "--attribute", "skin", "--target", "skin=light:2"], "shares are from 0 to 1"),
], ids=["ending", "table", "attribute", "total", "share"])  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(refused, tmp_path, words, said):
    write_labels(labelled([700, 90, 210]), tmp_path / "labels.csv")
    before = sorted(tmp_path.iterdir())
    assert said in refused("generate", "balance", *words, "--json", "b.json")
    assert sorted(tmp_path.iterdir()) == before
