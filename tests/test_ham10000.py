"""HAM10000: its table and folders, the sketch protocol's counts, and a stratified draw like scikit-learn's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from evenlens import datasets
from evenlens.config import Data
from evenlens.data import source
from evenlens.data.tables import PARTS, UNUSED, Column, Table
from evenlens.datasets.ham10000 import DIAGNOSES, FIRST, HAM10000, LAST, stratified_draw
from evenlens.errors import UserError
from tests import fake

NUM_DX = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}
NUM_TEST_DX = {"nv": 876, "bkl": 86, "mel": 46, "bcc": 35, "akiec": 30, "vasc": 13, "df": 8}
# Of the sketch protocol's test part: male and female, 60 or older and under 60, lighter and darker.
PUBLISHED_GROUPS = {"sex": [575, 519], "age60": [331, 763], "tone": [515, 579]}
GROUPS_BY_IMAGE_ID = {"sex": [596, 498], "age60": [332, 762], "tone": [534, 560]}  # drawn from rows in another order
HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,ita"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return fake.ham10000(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folder(published, tmp_path):
    """A copy whose files can be spoilt."""
    shutil.copytree(published, tmp_path / "data")
    return tmp_path / "data"


def load(folder, **settings):
    return source.load("ham10000", datasets.get("ham10000"), Data(root=folder, size=16, **settings))


def read(folder):
    return HAM10000(folder / "ham10000").table(False)


def parts_of(table, protocol, target="malignant", sensitive="sex", seed=1):
    split = HAM10000.protocols[protocol].split
    return split(table, table.column(target).codes, table.column(sensitive).codes, seed)


def per_level(column, rows):
    return np.bincount(column.codes[rows], minlength=len(column.levels)).tolist()


# The draw


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(2, 60), min_size=2, max_size=8),
    share=st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.77]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_stratified_draw_is_that_of_scikit_learn(counts, share, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    num = int(np.ceil(share * len(labels)))
    if min(num, len(labels) - num) < len(counts):
        return  # which scikit-learn refuses
    _, theirs = train_test_split(np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels)
    assert stratified_draw(labels, share, seed).tolist() == sorted(theirs.tolist())


def test_the_stratified_draw_settles_equal_remainders_as_scikit_learn_does():
    labels = np.repeat(np.arange(5), 7)  # 1.4 of each
    for seed in range(30):
        _, theirs = train_test_split(np.arange(35), test_size=0.2, random_state=seed, stratify=labels)
        assert stratified_draw(labels, 0.2, seed).tolist() == sorted(theirs.tolist())


def test_a_class_of_one_and_a_large_seed_do_no_harm():
    drawn = stratified_draw(np.array([0] * 9 + [1]), 0.2, 2**63 - 1)
    assert len(drawn) == 2
    assert len({*drawn.tolist()}) == 2


# A table as long as the published one


# Of each class, in the published table: lesions with one image, further lesions and their images, and images whose sex
# or age is not known (all of other lesions).
CELLS = {
    "nv": (4376, 981, 2274, 55), "mel": (230, 383, 881, 2), "bkl": (432, 286, 657, 10), "bcc": (175, 152, 339, 0),
    "akiec": (151, 77, 176, 0), "vasc": (64, 34, 78, 0), "df": (39, 34, 76, 0),
}  # fmt: skip


def full_table(folder, shuffled=False):
    """Write a table with the published number of each class, sex and age, and of lesions; who has what is made up."""
    generator = np.random.default_rng(0)
    dx, lesion, known = [], [], []
    for name, (single, several, images, unknown) in CELLS.items():
        of_class = [f"{name}_{k}" for k in range(single + several)]
        lesions = of_class[:single] + [of_class[single + k % several] for k in range(images)]
        lesion += [*lesions, *(f"unknown_{name}_{k}" for k in range(unknown))]
        dx += [name] * (len(lesions) + unknown)
        known += [True] * len(lesions) + [False] * unknown
    order, known = generator.permutation(len(dx)), np.array(known)
    sex, age = np.empty(len(dx), dtype="U7"), np.empty(len(dx), dtype="U4")
    sex[known] = generator.permutation(np.repeat(["male", "female"], [5400, 4548]))
    sex[~known] = np.repeat(["male", "female", "unknown"], [6, 4, 57])
    age[known] = generator.permutation(np.repeat(["60.0", "55.0"], [3599, 9948 - 3599]))
    age[~known] = np.repeat(["", "65.0", "5.0"], [57, 3, 7])
    ids = generator.permutation([k for k in range(24_306, 34_321) if f"ISIC_{k:07d}" not in (FIRST, LAST)])
    names = [FIRST, *(f"ISIC_{k:07d}" for k in ids), LAST]
    tone = generator.normal(29, 7, size=len(dx))
    rows = [
        f"{lesion[k]},{name},{dx[k]},histo,{age[k]},{sex[k]},back,{tone[k]:.3f}"
        for name, k in zip(names, order, strict=True)
    ]
    if shuffled:
        rows = [rows[k] for k in generator.permutation(len(rows))]
    (folder / "HAM10000_images").mkdir(parents=True)
    (folder / "HAM10000_metadata.csv").write_text("\n".join([HEADER, *rows]))
    found = HAM10000(folder)
    return found, found.table(False)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return full_table(tmp_path_factory.mktemp("full") / "ham10000")


def test_the_sketch_protocol_has_the_published_number_of_rows_and_lesions(full):
    found, table = full
    assert not found.notes
    assert len(table) == 10_015
    assert [(table.column(name).codes < 0).sum() for name in ("sex", "age60", "age_band")] == [57, 57, 57]
    parts = parts_of(table, "sketch")
    used = parts != UNUSED
    lesions = np.array(table.unit_names)
    assert used.sum() == 9948
    assert len({*lesions[used]}) == 7414
    test = parts == PARTS.index("test")
    assert (test.sum(), (used & ~test).sum()) == (1094, 8854)
    _, counts = np.unique(lesions[used], return_counts=True)
    assert (counts == 1).sum() == 5467
    assert not {*lesions[test]} & {*lesions[used & ~test]}
    assert not {*lesions[parts == PARTS.index("val")]} & {*lesions[parts == PARTS.index("train")]}
    assert (parts == PARTS.index("val")).sum() == pytest.approx(885, abs=90)
    assert dict(zip(DIAGNOSES, per_level(table.column("dx"), test), strict=True)) == NUM_TEST_DX


def test_the_published_number_of_each_class_sex_and_age(full):
    _, table = full
    assert dict(zip(DIAGNOSES, per_level(table.column("dx"), slice(None)), strict=True)) == NUM_DX
    malignant = NUM_DX["mel"] + NUM_DX["bcc"] + NUM_DX["akiec"]
    assert per_level(table.column("malignant"), slice(None)) == [10_015 - malignant, malignant]
    sex, age = table.column("sex").codes, table.column("age60").codes
    assert per_level(table.column("sex"), sex >= 0) == [5406, 4552]
    assert per_level(table.column("age60"), age >= 0) == [3602, 6356]


@pytest.mark.parametrize("seed", [1, 5])
def test_the_sketch_protocol_draws_what_scikit_learn_draws_from_the_rows_of_the_file(full, seed):
    import pandas

    found, table = full
    frame = pandas.read_csv(found.folder / "HAM10000_metadata.csv")
    frame = frame[frame.sex.isin(["male", "female"]) & frame.age.notna()]
    single = frame[frame.groupby("lesion_id").image_id.transform("count") == 1]
    classes = single.dx.map({dx: number for number, dx in enumerate(DIAGNOSES)})
    _, theirs = train_test_split(single, test_size=0.2, random_state=seed, stratify=classes)
    parts = parts_of(table, "sketch", seed=seed)
    ours = [name.removeprefix("HAM10000_images/")[:-4] for name in np.array(table.names)[parts == PARTS.index("test")]]
    assert ours == sorted(theirs.image_id)


def test_the_sketch_protocol_does_not_depend_on_what_is_asked_for(full):
    _, table = full
    assert (parts_of(table, "sketch") == parts_of(table, "sketch", "dx", "tone")).all()


def test_rows_in_another_order_than_the_publishers_are_drawn_by_image_id_and_it_is_said(tmp_path):
    first, one = full_table(tmp_path / "one", shuffled=True)
    text = (tmp_path / "one/HAM10000_metadata.csv").read_text().splitlines()
    (tmp_path / "one/HAM10000_metadata.csv").write_text("\n".join([text[0], *text[:0:-1]]))
    other = first.table(False)
    assert (parts_of(one, "sketch") == parts_of(other, "sketch")).all()
    codes = one.column("dx").codes
    first.split(HAM10000.protocols["lesions"], one, codes, one.column("sex").codes, 1)
    assert not first.notes
    first.split(HAM10000.protocols["sketch"], one, codes, one.column("sex").codes, 1)
    assert len(first.notes) == 1
    assert "publisher's order of rows" in first.notes[0]


def test_no_lesion_lies_in_two_parts_and_each_cell_gives_its_share(full):
    _, table = full
    parts = parts_of(table, "lesions", "dx", "age60")
    lesions = np.array(table.unit_names)
    inside = [{*lesions[parts == PARTS.index(part)]} for part in ("train", "val", "test")]
    assert sum(map(len, inside)) == len(set.union(*inside))
    age = table.column("age60").codes
    assert set.union(*inside) == {*lesions[age >= 0]}
    first = np.unique(lesions, return_index=True)[1]  # of each lesion, the image with the lowest id
    dx, age = table.column("dx").codes[first], table.column("age60").codes[first]
    for cell in [(y, g) for y in range(7) for g in range(2)]:
        rows = first[(dx == cell[0]) & (age == cell[1])]
        for part, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            assert abs((parts[rows] == PARTS.index(part)).sum() - share * len(rows)) <= 1.5


@settings(max_examples=30, deadline=None)
@given(data=st.data(), protocol=st.sampled_from([*HAM10000.protocols]), seed=st.integers(0, 2**63 - 1))
def test_parts_share_no_lesion_and_do_not_depend_on_the_order_of_the_rows(data, protocol, seed):
    lesions = data.draw(st.lists(st.integers(0, 25), min_size=40, max_size=40))
    sex = data.draw(st.lists(st.integers(-1, 1), min_size=40, max_size=40))
    names = [f"HAM10000_images/ISIC_{k:07d}.jpg" for k in range(40)]
    columns = {
        "dx": Column(tuple(DIAGNOSES), np.array(lesions) % 7),
        "malignant": Column(("benign", "malignant"), np.array(lesions) % 2),
        "sex": Column(("male", "female"), np.array(sex)),
        "age60": Column(("60 or older", "under 60"), np.array(sex[::-1])),
    }
    table = Table(names, columns, {"order": np.arange(40.0)}, [f"HAM_{k}" for k in lesions])
    if protocol == "sketch" and not single_lesions(table):
        return
    parts = parts_of(table, protocol, seed=seed)
    for lesion in set(table.units):
        assert len({int(part) for part, unit in zip(parts, table.units, strict=True) if unit == lesion} - {UNUSED}) <= 1
    order = np.array(data.draw(st.permutations(range(40))))
    assert (parts_of(table.select(order), protocol, seed=seed) == parts[order]).all()


def single_lesions(table):
    known = (table.column("sex").codes >= 0) & (table.column("age60").codes >= 0)
    _, counts = np.unique(np.array(table.units)[known], return_counts=True)
    return (counts == 1).sum()


# The files


@pytest.mark.parametrize("protocol", HAM10000.protocols)
@pytest.mark.parametrize("asked", [{}, {"target": "dx", "sensitive": ("tone",)}, {"sensitive": ("sex", "age60")}])
def test_every_protocol_loads_with_parts_that_share_no_lesion(published, in_threads, protocol, asked):
    loaded = load(published, protocol=protocol, **asked)
    splits, table = loaded.splits, read(published)
    lesion = dict(zip(table.names, table.units, strict=True))
    inside = [{lesion[name] for name in part.names} for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, inside)) == len(set.union(*inside))
    assert any("400 images are listed here; 10,015 were published" in note for note in loaded.notes)
    assert ("publisher's order" in " ".join(loaded.notes)) == (protocol == "sketch")


def test_the_columns_say_what_the_table_says(published):
    table = read(published)
    assert set(table.columns) == set(HAM10000.columns)
    lines = (published / "ham10000/HAM10000_metadata.csv").read_text().splitlines()[1:]
    rows = {line.split(",")[1]: line.split(",") for line in lines}
    for k, name in enumerate(table.names):
        lesion, _, dx, _, age, sex, site, ita = rows[Path(name).stem]
        said = {name: column.levels[column.codes[k]] if column.codes[k] >= 0 else None
                for name, column in table.columns.items()}  # fmt: skip
        assert table.units[k] == lesion
        assert f"({dx})" in said["dx"]
        assert said["malignant"] == ("malignant" if dx in ("mel", "bcc", "akiec") else "benign")
        assert said["sex"] == (None if sex == "unknown" else sex)
        assert said["localization"] == (None if site == "unknown" else site)
        assert said["age60"] == (None if not age else "60 or older" if int(age) >= 60 else "under 60")
        assert said["tone"].startswith("darker" if int(float(ita)) < 32 else "lighter")


@pytest.mark.parametrize(
    ("ita", "tone", "band"),
    [("-30", "darker", "dark"), ("-29.9", "darker", "brown"), ("10", "darker", "brown"), ("10.1", "darker", "tan"),
     ("28", "darker", "tan"), ("28.1", "darker", "intermediate"), ("31.99", "darker", "intermediate"),
     ("32", "lighter", "intermediate"), ("41", "lighter", "intermediate"), ("41.1", "lighter", "light"),
     ("55", "lighter", "light"), ("55.1", "lighter", "very light"), ("", None, None)],
)  # fmt: skip
def test_tones_on_an_edge(tmp_path, ita, tone, band):
    table = small(tmp_path, f"HAM_1,ISIC_1,nv,histo,50,male,back,{ita}")
    for name, word in (("tone", tone), ("tone_band", band)):
        column = table.column(name)
        assert (column.codes[0] < 0) if word is None else column.levels[column.codes[0]].split(" (")[0] == word


@pytest.mark.parametrize(
    ("age", "age60", "band"),
    [("0.0", "under 60", "under 30"), ("29", "under 60", "under 30"), ("30.0", "under 60", "30-39"),
     ("55", "under 60", "50-59"), ("60", "60 or older", "60-69"), ("70", "60 or older", "70 or older")],
)  # fmt: skip
def test_ages_on_an_edge(tmp_path, age, age60, band):
    table = small(tmp_path, f"HAM_1,ISIC_1,nv,histo,{age},male,back,30")
    assert [table.column(name).levels[table.column(name).codes[0]] for name in ("age60", "age_band")] == [age60, band]


def small(tmp_path, *rows):
    folder = tmp_path / "ham10000"
    (folder / "HAM10000_images").mkdir(parents=True)
    (folder / "HAM10000_metadata.csv").write_text("\n".join([HEADER, *rows]))
    return HAM10000(folder).table(False)


def test_a_table_without_tone_says_how_to_add_it_and_answers_all_else(tmp_path, in_threads):
    root = fake.ham10000(tmp_path, num=200, ita=False)
    loaded = load(root)
    assert any("has no column ita" in note and "Add a column ita" in note for note in loaded.notes)
    for asked in ({"target": "tone"}, {"sensitive": ("tone_band",)}, {"sensitive": ("sex", "tone")}):
        with pytest.raises(UserError, match=r"no column ita, so tone and tone_band are not known. Add a column ita"):
            load(root, **asked)


def test_the_dataverse_table_with_tabs_and_quotes_is_the_same(folder, published):
    path = folder / "ham10000/HAM10000_metadata.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    quoted = [[f'"{word}"' if k not in (4, 7) else word for k, word in enumerate(line)] for line in lines]
    path.with_suffix(".tab").write_text("\n".join("\t".join(line) for line in quoted))
    path.unlink()
    one, other = read(folder), read(published)
    assert one.names == other.names
    assert all((one.column(name).codes == other.column(name).codes).all() for name in HAM10000.columns)


@pytest.mark.parametrize("name", ["HAM10000_images", "ISIC2018_Task3_Training_Input"])
def test_images_in_one_folder_give_the_same_split(folder, published, name, in_threads):
    home = folder / "ham10000"
    (home / name).mkdir()
    for path in home.glob("HAM10000_images_part_*/*.jpg"):
        path.rename(home / name / path.name)
    for protocol in HAM10000.protocols:
        one, other = load(folder, protocol=protocol).splits, load(published, protocol=protocol).splits
        for part in ("train", "val", "test"):
            found, wanted = ([Path(name).name for name in getattr(s, part).names] for s in (one, other))
            assert found == wanted
    assert all(path.startswith(f"{name}/") for path in read(folder).names)


def test_an_image_in_no_folder_is_named_and_left_out_only_when_asked(folder, in_threads):
    (folder / "ham10000/HAM10000_images_part_2/ISIC_0024700.jpg").unlink()
    table = read(folder)
    assert len(table) == 400
    assert "HAM10000_images_part_1/ISIC_0024700.jpg" in table.names
    with pytest.raises(UserError, match=r"1 of 400 images .*ISIC_0024700.jpg \(No such file"):
        load(folder, protocol="lesions", target="dx", sensitive=("tone",))
    loaded = load(folder, protocol="lesions", target="dx", sensitive=("tone",), skip_unreadable=True)
    assert any("ISIC_0024700.jpg" in note for note in loaded.notes)


def test_what_is_not_there_is_named_with_what_to_fetch(folder):
    home = folder / "ham10000"
    for path in home.glob("HAM10000_images_part_*"):
        path.rename(home / f"x{path.name[-1]}")
    with pytest.raises(UserError, match=r"looked for a folder HAM10000_images, .*ISIC2018_Task3_Training_Input"):
        read(folder)
    (home / "HAM10000_metadata.csv").rename(home / "HAM10000_metadata")
    with pytest.raises(UserError, match=r"rename it to HAM10000_metadata.csv"):
        read(folder)
    (home / "HAM10000_metadata").unlink()
    with pytest.raises(
        UserError, match=r"looked for HAM10000_metadata.csv or .*\.tab.*Fetch .*DBW86T.*data.root=FOLDER"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("HAM_1,ISIC_1,wart,histo,50,male,back,30", r"has the dx 'wart'.*: allowed are akiec, bcc"),
        ("HAM_1,ISIC_1,,histo,50,male,back,30", r"Row 2 .* has no dx"),
        ("HAM_1,ISIC_1,nv,histo,50,man,back,30", r"has the sex 'man': allowed are male, female, unknown"),
        ("HAM_1,ISIC_1,nv,histo,50,male,soul,30", r"has the localization 'soul': allowed are abdomen"),
        ("HAM_1,ISIC_1,nv,histo,old,male,back,30", r"has the age 'old', which is no number"),
        ("HAM_1,ISIC_1,nv,histo,-5,male,back,30", r"Row 2 of .* has the age -5, which is not between 0 and 120"),
        ("HAM_1,ISIC_1,nv,histo,50,male,back,300", r"has the ita 300, which is not between -90 and 90"),
        ("HAM_1,../ISIC_1,nv,histo,50,male,back,30", r"has the image_id '../ISIC_1': it must be like ISIC_0024306"),
        ("HAM_1,/ISIC_1,nv,histo,50,male,back,30", r"has the image_id '/ISIC_1'"),
        ("HAM_1,,nv,histo,50,male,back,30", r"Row 2 of .* has the image_id ''"),
        (",ISIC_1,nv,histo,50,male,back,30", r"Row 2 of .* has no lesion_id"),
        ("HAM_1,ISIC_1,nv,histo,50,male,back,30\nHAM_2,ISIC_1,nv,histo,50,male,back,30", r"names .* ISIC_1 twice"),
        ("HAM_1,ISIC_1,nv", r"has \d+ fields and the header"),
    ],
)
def test_a_spoilt_table_is_one_sentence(tmp_path, row, words):
    with pytest.raises(UserError, match=words) as error:
        small(tmp_path, row)
    assert "\n" not in str(error.value)


def test_a_lacking_column_is_named(folder):
    path = folder / "ham10000/HAM10000_metadata.csv"
    path.write_text(path.read_text().replace("lesion_id,", "lesion,"))
    with pytest.raises(UserError, match=r"lesion_id.*did you mean 'lesion'"):
        read(folder)


def test_further_columns_do_no_harm(folder, published):
    path = folder / "ham10000/HAM10000_metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{lines[0]},dataset", *(f"{line},vidir_modern" for line in lines[1:])]))
    assert read(folder).names == read(published).names


# The real table


@pytest.fixture
def real(real_data):
    found = HAM10000(Path(real_data) / "ham10000")
    if not found.folder.is_dir():
        pytest.skip("the folder with real images has no ham10000/")
    return found, found.table(False)


@pytest.mark.real
def test_the_real_table_has_the_published_number_of_each_class_sex_and_age(real):
    found, table = real
    assert not found.notes
    assert dict(zip(DIAGNOSES, per_level(table.column("dx"), slice(None)), strict=True)) == NUM_DX
    assert [(table.column(name).codes < 0).sum() for name in ("sex", "age60", "tone")] == [57, 57, 0]
    assert len({*table.unit_names}) == 7470
    known = (table.column("sex").codes >= 0) & (table.column("age60").codes >= 0)
    for name, share in (("sex", 0.457), ("age60", 0.638), ("tone", 0.639)):  # of the ones
        assert table.column(name).codes[known].mean() == pytest.approx(share, abs=0.0005)


@pytest.mark.real
def test_the_real_table_gives_the_sketch_protocols_counts(real):
    found, table = real
    parts = parts_of(table, "sketch", "dx")
    used, test = parts != UNUSED, parts == PARTS.index("test")
    lesions = np.array(table.unit_names)
    assert (used.sum(), len({*lesions[used]})) == (9948, 7414)
    assert (test.sum(), (used & ~test).sum()) == (1094, 8854)
    assert (np.unique(lesions[used], return_counts=True)[1] == 1).sum() == 5467
    assert dict(zip(DIAGNOSES, per_level(table.column("dx"), test), strict=True)) == NUM_TEST_DX
    # The groups depend on which images were drawn, so on the order of rows, which a copy may have changed.
    expected = PUBLISHED_GROUPS if found.as_published else GROUPS_BY_IMAGE_ID
    assert {name: per_level(table.column(name), test) for name in expected} == expected


@pytest.mark.real
def test_the_real_lesions_give_70_10_20(real):
    _, table = real
    for target, sensitive in (("malignant", "sex"), ("dx", "tone")):
        parts = parts_of(table, "lesions", target, sensitive)
        used = parts[parts != UNUSED]
        shares = [(used == PARTS.index(part)).mean() for part in ("train", "val", "test")]
        assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
