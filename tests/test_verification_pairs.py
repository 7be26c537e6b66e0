"""Pairs from tables and embeddings: what is read, what is left out, and what is refused in one sentence."""

import pickle

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest

from evenlens.datasets.bfw import INITIALS, SUBGROUPS
from evenlens.errors import UserError
from evenlens.verification import Pairs, read_embeddings, read_pairs, verify
from evenlens.verification.embeddings import genuine_pairs, imposter_pairs, normalised

ROWS = {
    "p1": ["a", "a", "b", "c", "a", "d"], "p2": ["b", "c", "c", "d", "d", "b"], "label": [1, 0, 0, 1, 0, 0],
    "group1": ["x", "x", "x", "y", "x", "y"], "group2": ["x", "y", "y", "y", "y", "x"],
    "score": [0.9, 0.1, 0.2, 0.8, 0.3, 0.4],
}  # fmt: skip


def written(tmp_path, rows=ROWS, name="pairs.csv", **more):
    table = pyarrow.table({**rows, **more})
    path = tmp_path / name
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.parquet"])
@pytest.mark.parametrize(
    "labels", [[1, 0, 0, 1, 0, 0], ["true", "false"] * 3, ["Genuine", "imposter", "impostor"] * 2, [1.0, 0.0] * 3]
)
def test_a_table_of_ones_own_is_read_as_it_is(tmp_path, name, labels):
    pairs = read_pairs(written(tmp_path, name=name, label=labels))
    assert pairs.score.tolist() == ROWS["score"]
    assert pairs.genuine.tolist() == [str(label).lower() in ("1", "1.0", "true", "genuine") for label in labels]
    assert pairs.groups == ("x", "y")
    assert pairs.group.tolist() == [0, -1, -1, 1, -1, -1]
    assert (pairs.subjects, pairs.folds, pairs.notes) == (None, None, ())


def test_columns_may_have_other_names_and_images_need_not_be_named(tmp_path):
    rows = {"same": ROWS["label"], "race_a": ROWS["group1"], "race_b": ROWS["group2"], "arcface": ROWS["score"],
            "part": ["1", "2"] * 3, "person": list("AABCAD"), "other": list("ACCCDB")}  # fmt: skip
    columns = {"label": "same", "group1": "race_a", "group2": "race_b", "score": "arcface", "fold": "part",
               "id1": "person", "id2": "other"}  # fmt: skip
    pairs = read_pairs(written(tmp_path, rows), columns)
    assert pairs.score.tolist() == ROWS["score"]
    assert pairs.folds[:, 0].tolist() == [0, 1] * 3
    assert len(np.unique(pairs.subjects)) == 4
    assert pairs.where == "pairs.csv (arcface)"
    assert any("more than one fold" in note for note in pairs.notes)
    with pytest.raises(UserError, match="did you mean 'group1'"):
        read_pairs(written(tmp_path, rows), {"gruop1": "race_a"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": [1, 0, 2, 1, 0, 0]}, "Row 4 of pairs.csv has the label '2'"),
        ({"group1": ["x", None, "x", "y", "x", "y"]}, "Row 3 of pairs.csv has no group1"),
        ({"score": [0.9, "inf", 0.2, 0.8, 0.3, 0.4]}, "1 scores are infinite, the first in pair 2"),
        ({"score": [0.9, "high", 0.2, 0.8, 0.3, 0.4]}, "which is no number"),
        ({"label": [1] * 6}, "has no imposter pair"),
        ({"label": [0] * 6}, "has no genuine pair"),
        ({"p2": ["b", "c", "c", "d", "d", "a"], "p1": ["a", "a", "b", "c", "a", "b"], "label": [1, 0, 0, 1, 0, 0]},
         "Pairs 1 and 6 compare the same two images, once as genuine and once as imposter"),
        ({"id1": list("AABCAD")}, "has id1 and not id2"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_in_a_sentence(tmp_path, change, words):
    change = {name: [None if v is None else str(v) for v in values] for name, values in change.items()}
    with pytest.raises(UserError, match=words):
        read_pairs(written(tmp_path, **change))


def test_lacking_columns_and_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="'score'"):
        read_pairs(written(tmp_path, {name: values for name, values in ROWS.items() if name != "score"}))
    with pytest.raises(UserError, match="There is no table"):
        read_pairs(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no rows"):
        read_pairs(written(tmp_path, {name: [] for name in ROWS}))
    groups = [f"g{k}" for k in range(202)]
    with pytest.raises(UserError, match="at most 100 can be compared"):
        Pairs.of(np.arange(101), np.arange(101) < 50, groups[:101], groups[101:])


def test_a_pickle_is_never_opened(tmp_path):
    for name in ("pairs.pkl", "faces.npy"):
        path = tmp_path / name
        if name.endswith("npy"):
            np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
            with pytest.raises(UserError, match="pickle, which could run any program"):
                read_embeddings(path, path, ["g"])
        else:
            path.write_bytes(pickle.dumps([1]))
            with pytest.raises(UserError, match=r"to_parquet\('.*pairs.parquet'\)"):
                verify(path)


def test_pairs_without_a_score_or_repeated_are_left_out_and_said(tmp_path):
    rows = {name: [*values, values[0], values[1]] for name, values in ROWS.items()}
    rows["p1"], rows["p2"] = [*ROWS["p1"], "b", "a"], [*ROWS["p2"], "a", "a"]
    rows["score"] = [0.9, None, 0.2, 0.8, 0.3, 0.4, 0.9, 1.0]
    pairs = read_pairs(written(tmp_path, rows))
    assert pairs.score.tolist() == [0.9, 0.2, 0.8, 0.3, 0.4]
    said = " ".join(pairs.notes)
    assert "1 of 8 pairs have no score (0 genuine)" in said
    assert "1 pairs repeat two images" in said
    assert "1 pairs compare an image with itself" in said


def test_labels_against_the_subjects_are_said(tmp_path):
    pairs = read_pairs(written(tmp_path, id1=list("AAAAAA"), id2=list("ABCAAB")))
    assert any("1 pairs have a label that contradicts" in note for note in pairs.notes)


def test_folds_of_subjects_share_none_and_are_the_same_whatever_the_order():
    generator = np.random.default_rng(0)
    first, second = generator.integers(100, size=(2, 6000))
    second[:2000] = first[:2000]
    kept = (first != second) | (np.arange(6000) < 2000)
    first, second = first[kept], second[kept]
    score, group = generator.normal(size=len(first)), [f"g{k}" for k in range(2)]
    groups = [np.array(group)[side % 2] for side in (first, second)]
    names = [np.array([f"person {k}" for k in range(100)])[side] for side in (first, second)]
    pairs = Pairs.of(score, first == second, *groups, subjects=tuple(names))
    of_subject = {int(s): set() for s in np.unique(pairs.subjects)}
    for side in (0, 1):
        for subject, fold in zip(pairs.subjects[:, side], pairs.folds[:, side], strict=True):
            of_subject[int(subject)].add(int(fold))
    assert all(len(folds) == 1 for folds in of_subject.values())
    assert np.bincount([next(iter(folds)) for folds in of_subject.values()]).tolist() == [20] * 5
    back = Pairs.of(score[::-1], (first == second)[::-1], *(g[::-1] for g in groups),
                    subjects=tuple(name[::-1] for name in names))  # fmt: skip
    assert (back.folds[::-1] == pairs.folds).all()
    found = verify(pairs, targets=(0.1,), replicates=100)
    assert found.held_out
    inside = pairs.folds[:, 0] == pairs.folds[:, 1]
    assert len(found.decided.rows) == inside.sum()
    assert any("pairs of two folds serve to set thresholds alone" in caveat for caveat in found.caveats)


# ---- the published table


def published(tmp_path, scores=("sphereface",), num=40):
    generator = np.random.default_rng(0)
    rows = []
    for k, name in enumerate(SUBGROUPS):
        for fold in range(1, 6):
            for pair in range(num):
                one = 100 * k + 2 * fold
                other = one if pair % 2 else one + 1
                initials = INITIALS[k]
                row = {"fold": fold, "p1": f"{name}/n{one:06d}/{pair:04d}_01.jpg",
                       "p2": f"{name}/n{other:06d}/{pair + 500:04d}_01.jpg", "label": pair % 2}  # fmt: skip
                for side in "12":
                    row |= {f"att{side}": name, f"a{side}": initials}
                rows.append(row | {score: generator.normal() + 3 * (pair % 2) for score in scores})
    path = tmp_path / "bfw.csv"
    pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), path)
    return path


def test_the_table_that_a_data_set_publishes_is_known_by_its_columns(tmp_path):
    pairs = read_pairs(published(tmp_path))
    assert pairs.groups[0] == "asian female"
    assert len(pairs.groups) == 8
    assert pairs.folds_by == "table"
    assert pairs.num_folds == 5
    assert len(np.unique(pairs.subjects)) == 80
    assert pairs.where == "bfw.csv (sphereface)"
    own = read_pairs(tmp_path / "bfw.csv", {"group1": "att1", "group2": "att2", "score": "sphereface"})
    assert own.groups == SUBGROUPS
    assert own.subjects is None


def test_several_systems_are_audited_one_by_one(tmp_path):
    path = published(tmp_path, ("vgg16", "sphereface"))
    with pytest.raises(UserError, match="several systems, vgg16, sphereface: name one with --score"):
        read_pairs(path)
    assert read_pairs(path, {"score": "vgg16"}).where == "bfw.csv (vgg16)"


# ---- embeddings


def faces(tmp_path, subjects=24, images=4, seed=0, **more):
    generator = np.random.default_rng(seed)
    centre = generator.normal(size=(subjects, 16))
    subject = np.repeat(np.arange(subjects), images)
    embeddings = (centre[subject] + 0.4 * generator.normal(size=(len(subject), 16))).astype(np.float32)
    np.save(tmp_path / "faces.npy", embeddings)
    manifest = {"file": [f"../../etc/{k}.jpg" for k in range(len(subject))],
                "subject": [f"s{k}" for k in subject], "gender": ["f" if k % 2 else "m" for k in subject],
                "skin": ["d" if k % 4 < 2 else "l" for k in subject]} | more  # fmt: skip
    pyarrow.csv.write_csv(pyarrow.table(manifest), tmp_path / "faces.csv")
    return embeddings, subject


def read(tmp_path, groups=("gender", "skin"), **options):
    return read_embeddings(tmp_path / "faces.npy", tmp_path / "faces.csv", list(groups), **options)


def test_embeddings_give_all_genuine_pairs_and_cosines(tmp_path):
    embeddings, subject = faces(tmp_path)
    pairs = read(tmp_path, imposters=50)
    assert pairs.genuine.sum() == 24 * 6
    assert len(pairs.groups) == 4
    assert (pairs.group >= 0).all()
    assert [(~pairs.genuine & (pairs.group == g)).sum() for g in range(4)] == [50] * 4
    rows = genuine_pairs(subject)
    expected = {(a, b) for a in range(96) for b in range(a + 1, 96) if subject[a] == subject[b]}
    assert {tuple(row) for row in rows.tolist()} == expected
    a, b = rows[3]
    cosine = embeddings[a] @ embeddings[b] / np.linalg.norm(embeddings[a]) / np.linalg.norm(embeddings[b])
    assert pairs.score[3] == pytest.approx(cosine, rel=1e-5)
    assert (np.abs(pairs.score) <= 1 + 1e-6).all()
    again, other = read(tmp_path, imposters=50), read(tmp_path, imposters=50, seed=1)
    assert (again.score == pairs.score).all()
    assert (other.score != pairs.score).any()


@pytest.mark.parametrize("number", [3, 60, 10**6])
@pytest.mark.parametrize("scope", ["subgroup", "wider", "any"])
def test_imposters_are_of_two_subjects_in_one_block_and_fold_and_never_twice(number, scope):
    generator = np.random.default_rng(0)
    subject = np.repeat(np.arange(40), 3)
    group, fold = subject % 4, subject // 4 % 2
    block = {"subgroup": group, "wider": group % 2, "any": np.zeros_like(group)}[scope]
    pairs = imposter_pairs(subject, group, block, fold, number, generator)
    first, second = pairs.T
    assert (subject[first] != subject[second]).all()
    assert (block[first] == block[second]).all()
    assert (fold[first] == fold[second]).all()
    assert len({tuple(sorted(pair)) for pair in pairs.tolist()}) == len(pairs)
    every = sum(
        subject[a] != subject[b] and block[a] == block[b] and fold[a] == fold[b]
        for a in range(120) for b in range(a + 1, 120)
    )  # fmt: skip
    assert len(pairs) == min(4 * number, every)


def test_folds_of_a_manifest_are_kept_and_subjects_lie_in_one(tmp_path):
    subject = np.repeat(np.arange(24), 4)
    faces(tmp_path, fold=(subject // 4 % 3 + 1).tolist())
    pairs = read(tmp_path, ["gender"], imposters=100)
    assert pairs.num_folds == 3
    faces(tmp_path, fold=(np.arange(96) % 3).tolist())
    with pytest.raises(UserError, match=r"Subject s0 of faces.csv is in two folds"):
        read(tmp_path, ["gender"])


def test_imposters_may_be_of_a_column_or_of_anybody(tmp_path):
    faces(tmp_path)
    by_gender = read(tmp_path, within="gender", imposters=200)
    cross = by_gender.group < 0
    assert cross.any()
    names = by_gender.groups
    for a, b in zip(by_gender.first_group[cross], by_gender.second_group[cross], strict=True):
        assert names[a].split(",")[0] == names[b].split(",")[0]
    assert (read(tmp_path, within="any", imposters=200).group < 0).mean() > cross.mean()
    with pytest.raises(UserError, match=r"Unknown column of faces.csv 'gendre'; did you mean 'gender'"):
        read(tmp_path, within="gendre")


def test_safetensors_are_read_and_what_does_not_fit_is_refused(tmp_path):
    from safetensors.numpy import save_file

    embeddings, _ = faces(tmp_path)
    save_file({"x": embeddings}, tmp_path / "faces.safetensors")
    both = [verify(tmp_path / f"faces.{kind}", manifest=tmp_path / "faces.csv", group=["gender"], replicates=100,
                   imposters=100).pairs.score for kind in ("npy", "safetensors")]  # fmt: skip
    assert (both[0] == both[1]).all()
    save_file({"x": embeddings, "y": embeddings}, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="holds 2 tensors"):
        read_embeddings(tmp_path / "two.safetensors", tmp_path / "faces.csv", ["gender"])
    np.save(tmp_path / "short.npy", embeddings[:5])
    with pytest.raises(UserError, match=r"has 5 embeddings and faces.csv 96 rows"):
        read_embeddings(tmp_path / "short.npy", tmp_path / "faces.csv", ["gender"])
    np.save(tmp_path / "flat.npy", embeddings[0])
    with pytest.raises(UserError, match=r"holds float32 of shape \(16,\)"):
        read_embeddings(tmp_path / "flat.npy", tmp_path / "faces.csv", ["gender"])
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="is not read"):
        read_embeddings(tmp_path / "broken.safetensors", tmp_path / "faces.csv", ["gender"])


@pytest.mark.parametrize(("value", "words"), [(np.nan, "is not finite"), (np.inf, "is not finite"), (0, "is zero")])
def test_embeddings_that_say_nothing_are_refused(value, words):
    embeddings = np.ones((3, 4), dtype=np.float32)
    assert np.linalg.norm(normalised(embeddings * 1e30), axis=1) == pytest.approx(1)
    embeddings[1] = value
    with pytest.raises(UserError, match=f"Embedding 2 .*{words}"):
        normalised(embeddings)


def test_options_that_do_not_belong_together_are_refused(tmp_path):
    faces(tmp_path)
    with pytest.raises(UserError, match="--manifest and --group"):
        verify(tmp_path / "faces.npy")
    with pytest.raises(UserError, match="Name the columns"):
        verify(tmp_path / "faces.npy", manifest=tmp_path / "faces.csv")
    with pytest.raises(UserError, match="are for embeddings"):
        verify(written(tmp_path), group=["x"])
