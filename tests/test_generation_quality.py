"""FID, KID, precision and recall on features whose answers are known."""

import json
import pickle

import numpy as np
import pytest
import safetensors.numpy
import scipy.linalg

from evenlens.errors import UserError
from evenlens.generation import compare, read_features
from evenlens.generation.audit import compare_features
from evenlens.generation.labels import Attribute, Labels
from evenlens.generation.quality import Features, by_group, frechet_distance, kernel_distance, neighbourhoods


def normal(n, seed, num=6):
    return np.random.default_rng(seed).normal(size=(n, num))


def whitened(values):
    """The same with mean exactly 0 and covariance exactly the identity."""
    centred = values - values.mean(0)
    return centred @ np.linalg.inv(np.linalg.cholesky(np.cov(centred, rowvar=False))).T


def test_the_frechet_distance_of_normal_features_has_its_closed_form():
    x, y = whitened(normal(500, 0)), whitened(normal(500, 1))
    shift = np.arange(6) / 3
    assert frechet_distance(x + shift, y) == pytest.approx((shift**2).sum())
    scale = np.array([0.5, 1, 2, 3, 1, 1])  # of independent features: the sum of (sd - sd)^2
    assert frechet_distance(x * scale + shift, y) == pytest.approx((shift**2).sum() + ((scale - 1) ** 2).sum())
    mixed = x @ np.random.default_rng(2).normal(size=(6, 6)), y @ np.random.default_rng(3).normal(size=(6, 6))
    one, two = (np.cov(part, rowvar=False) for part in mixed)
    expected = np.trace(one + two - 2 * scipy.linalg.sqrtm(one @ two).real)
    expected += ((mixed[0].mean(0) - mixed[1].mean(0)) ** 2).sum()
    assert frechet_distance(*mixed) == pytest.approx(expected)
    assert frechet_distance(*mixed) == pytest.approx(frechet_distance(*mixed[::-1]))


def test_identical_sets_are_alike_in_everything():
    x = 0.1 * normal(300, 4)
    found = compare(x, x.copy())
    assert found.n == 300
    assert found.fid == pytest.approx(0, abs=1e-9)
    assert abs(found.kid) < 1e-3
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    few = normal(10, 4, num=40)  # fewer images than features
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_one_good_image_again_and_again_is_precise_and_recalls_nothing():
    real = normal(400, 5)
    collapsed = np.repeat(real[:1], 400, axis=0)
    found = compare(collapsed, real)
    assert found.precision > 0.99
    assert found.recall < 0.02
    assert found.coverage < 0.05
    swapped = compare(real, collapsed)
    assert swapped.precision < 0.02
    assert swapped.recall > 0.99


def test_neighbourhoods_are_their_definition_written_out():
    made, real = normal(60, 6, 3) * 1.3, normal(50, 7, 3)

    def radius(points, k, i):
        return sorted(np.linalg.norm(points - points[i], axis=1))[k]  # the first is itself

    def inside(point, points, k):
        return [np.linalg.norm(point - other) <= radius(points, k, i) for i, other in enumerate(points)]

    precision, recall, density, coverage = neighbourhoods(made, real)
    assert precision == np.mean([any(inside(point, real, 3)) for point in made])
    assert recall == np.mean([any(inside(point, made, 3)) for point in real])
    balls = np.array([inside(point, real, 5) for point in made])
    assert density == pytest.approx(balls.sum() / (5 * 60))
    assert coverage == balls.any(axis=0).mean()
    assert 0 < recall < 1
    assert 0 < precision < 1


def test_blocks_change_nothing(monkeypatch):
    made, real = normal(70, 8), normal(90, 9)
    whole = neighbourhoods(made, real)
    monkeypatch.setattr("evenlens.generation.quality.BLOCK", 16)
    assert neighbourhoods(made, real) == whole


def test_the_kernel_distance_is_its_formula_and_without_bias():
    x, y = normal(12, 10, 4), normal(12, 11, 4) + 0.5
    within = sum((a @ b / 4 + 1) ** 3 for p in (x, y) for i, a in enumerate(p) for j, b in enumerate(p) if i != j)
    across = np.mean([(a @ b / 4 + 1) ** 3 for a in x for b in y])
    value, spread = kernel_distance(x, y, subsets=3, size=50)
    assert value == pytest.approx(within / (12 * 11) - 2 * across)
    assert spread == pytest.approx(0, abs=1e-12)
    alike = [kernel_distance(normal(100, 2 * s), normal(100, 2 * s + 1), 1)[0] for s in range(100)]
    assert min(alike) < 0 < max(alike)
    assert abs(np.mean(alike)) < 3 * np.std(alike) / 10
    assert kernel_distance(normal(500, 1), normal(500, 2) + 1, 20, 100)[1] > 0


def test_the_same_number_of_images_is_taken_of_both_by_a_seed():
    one, two = normal(80, 12), normal(200, 13)
    assert compare(one, two).n == 80
    assert compare(one, two) == compare(one, two)
    assert compare(one, two).fid != compare(one, two, seed=1).fid


@pytest.mark.parametrize(("one", "two", "said"), [
    (normal(30, 0, 3), normal(30, 0, 4), "have 3 features and reference images 4"),
    (normal(5, 0), normal(30, 0), "more than 5 images of each kind; there are 5"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(one, two, said):
    with pytest.raises(UserError, match=said):
        compare(one, two)


def test_groups_are_compared_at_equal_n_and_small_ones_left_out():
    made = {"a": normal(100, 1), "b": normal(60, 2) + 2, "c": normal(10, 3), "d": normal(90, 3)}
    real = {"a": normal(300, 4), "b": normal(40, 5), "c": normal(90, 6)}
    found, left_out = by_group(made, real, subsets=5)
    assert {name: one.n for name, one in found.items()} == {"a": 40, "b": 40}
    assert left_out == ["c", "d"]
    assert found["b"].fid > found["a"].fid
    assert by_group({"c": normal(3, 1)}, {"c": normal(3, 1)}) == ({}, ["c"])


# ---- files


def test_features_are_read_and_their_ids(tmp_path):
    values = normal(7, 0).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    ids = json.dumps([f"{k}.png" for k in range(7)])
    safetensors.numpy.save_file({"features": values}, tmp_path / "a.safetensors", {"ids": ids})
    np.testing.assert_array_equal(read_features(tmp_path / "a.npy").values, values)
    read = read_features(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read.values, values)
    assert read.ids.tolist() == json.loads(ids)


class Evil:
    def __reduce__(self):
        return (open, ("hacked", "w"))


def test_a_pickle_is_refused_under_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("f.npy", "f.safetensors", "f.pkl", "f.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(UserError) as refused:
            read_features(tmp_path / name)
        assert "\n" not in str(refused.value)
    np.save(tmp_path / "object.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="holds a pickle, which may run code"):
        read_features(tmp_path / "object.npy")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(("values", "said"), [
    (np.array([[1.0, np.nan], [1, 2]]), "Row 1 of .* not finite"),
    (np.array([[1.0, 2], [np.inf, 2]]), "Row 2 of .* not finite"),
    (np.zeros(5), "have the shape"),
    (np.zeros((0, 3)), "have the shape"),
    (np.array([["a"]]), "have the shape"),
])  # fmt: skip
def test_features_that_are_no_numbers_are_refused(tmp_path, values, said):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(UserError, match=said):
        read_features(tmp_path / "a.npy")


def test_damaged_files_and_ids_that_do_not_fit_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00")
    with pytest.raises(UserError, match="damaged"):
        read_features(tmp_path / "a.npy")
    with pytest.raises(UserError, match="There is no file of features"):
        read_features(tmp_path / "b.npy")
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": normal(3, 0), "b": normal(3, 0)}, path)
    with pytest.raises(UserError, match="holds 2 tensors"):
        read_features(path)
    for ids in ('["a"]', '["a", "a", "b"]', "no json"):
        safetensors.numpy.save_file({"a": normal(3, 0)}, path, {"ids": ids})
        with pytest.raises(UserError):
            read_features(path)


# ---- by the groups of labels


def labelled(n, ids=None):
    codes = np.arange(n) % 2
    ids = np.array([f"{k}" for k in range(n)]) if ids is None else ids
    return Labels(ids, np.zeros(n, dtype=int), np.ones(n, dtype=int), {"race": Attribute(("x", "y"), codes)}, where="l")


def test_ids_pair_features_with_labels_whatever_their_order():
    values = normal(80, 14) + 4 * (np.arange(80) % 2)[:, None]
    order = np.random.default_rng(0).permutation(80)
    real = Features(values + 0.1, None, "r.npy")
    plain = compare_features(Features(values), real, "pool", labelled(80), labelled(80), "race", subsets=5)
    moved = Features(values[order], labelled(80).ids[order])
    shuffled = compare_features(moved, real, "pool", labelled(80), labelled(80), "race", subsets=5)
    assert plain["groups"] == shuffled["groups"]
    assert {name: one["n"] for name, one in plain["groups"].items()} == {"x": 40, "y": 40}
    assert plain["groups"]["x"]["fid"] < 1
    alone = compare_features(Features(values), real, "pool")
    assert (alone["groups"], alone["why_no_groups"]) == ({}, "the reference images have no labels (--against)")
    with pytest.raises(UserError, match="has 80 rows and l 79 images"):
        compare_features(Features(values), real, "pool", labelled(79), labelled(80), "race")
    with pytest.raises(UserError, match="No id of"):
        compare_features(
            moved, real, "pool", labelled(80, np.array([f"z{k}" for k in range(80)])), labelled(80), "race"
        )
    with pytest.raises(UserError, match="--extractor"):
        compare_features(Features(values), real, "  ")
