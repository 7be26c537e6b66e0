"""A teacher beside its students: the same latents, formulas by hand, what is refused before anything is made."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evenlens.errors import UserError
from evenlens.generation import Confusion, Targets, comparing, read_labels
from evenlens.generation import comparison_numbers as numbers
from evenlens.generation import comparison_words as words
from evenlens.generation.classifiers import FaceClassifier, Outputs
from evenlens.generation.comparing import compare, names_of
from evenlens.generation.comparison_sides import Settings
from evenlens.generation.generator import Generator
from evenlens.generation.samples import Samples, make_samples
from evenlens.generation.teachers.folder import Folder
from evenlens.metrics import wilson

RACES, SEXES = ("dark", "middle", "light"), ("f", "m")
QUICK = {"replicates": 50, "subsets": 3, "seconds": 0.0}
JUDGE, OTHER = "a" * 16, "b" * 16


class Paint(Generator):
    """Red is the race and green the sex: of the latent, to a power that biases it, or as it is asked."""

    def __init__(self, power=0.4, labels=(), size=8, latent_size=4, title="paint", trained_with=None, broken=False):
        super().__init__(
            title=title, latent_size=latent_size, size=size, fingerprint=f"{round(100 * power):016x}",
            labels=labels, attribute="race" if labels else "", num_parameters=round(1000 * power), num_bytes=4000,
        )  # fmt: skip
        self.power, self.broken, self.calls = power, broken, 0
        self.info = {"classifier": trained_with and {"fingerprint": trained_with}}

    def draw(self, latent, label):
        self.calls += 1
        place = torch.special.ndtr(latent[:, :2])
        red = place[:, 0] ** self.power if label is None else (label + 0.5) / len(self.labels)
        colour = torch.stack([red, place[:, 1], torch.full_like(red, torch.nan if self.broken else 0.5)], 1)
        return colour[:, :, None, None].expand(-1, 3, self.size, self.size)


class Judge(FaceClassifier):
    """Sees thirds of red and halves of green; of its features the first two are red and green."""

    def __init__(self, fingerprint=JUDGE, deep=True, attributes=None):
        known = attributes or {"race": RACES, "sex": SEXES}
        rows = {"race": slice(0, 3), "sex": slice(3, 5)}
        super().__init__("a judge", fingerprint, Outputs(known, {name: rows[name] for name in known}, 8))
        self.has_features = deep

    def scores(self, shown):
        red, green = shown.mean((2, 3))[:, :2].T
        near = [-((red - middle) ** 2) for middle in (1 / 6, 0.5, 5 / 6)]
        return 300 * torch.stack([*near, -((green - 0.25) ** 2), -((green - 0.75) ** 2)], 1)

    def deep(self, shown):
        return shown.mean((2, 3)) if self.has_features else super().deep(shown)


def compared(folder, students=None, judges=None, teacher=None, count=60, **options):
    outside = {name: options.pop(name) for name in ("extractor", "reference") if name in options}
    students = {"copy": Paint()} if students is None else students
    settings = Settings(count=count, **{**QUICK, **options})
    found = compare(teacher or Paint(), students, folder, judges or [Judge()], settings, **outside)
    assert json.loads(json.dumps(found.content, allow_nan=False)) == found.content
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A teacher, its exact copy, and a student that makes the race that it is asked for."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(folder.parent / "cache"))
        students = {"copy": Paint(trained_with=OTHER), "asked": Paint(1.0, RACES, size=16)}
        return folder, compared(folder, students, count=200, joint=[("race", "sex")])


def by_name(found):
    return {each["name"]: each for each in found.content["generators"]}


# ---- numbers by hand


@pytest.mark.parametrize(("num", "length"), [(6, 20), (20, 6)], ids=["few images", "few features"])
def test_the_vendi_score_is_exp_of_the_entropy_of_the_cosines(num, length):
    x = np.random.default_rng(0).normal(size=(num, length))
    unit = x / np.sqrt((x**2).sum(1))[:, None]
    values = np.linalg.eigvalsh(unit @ unit.T / num)
    values = values[values > 1e-12]
    assert numbers.vendi(x) == pytest.approx(np.exp(-np.sum(values * np.log(values))))


def test_images_that_are_all_alike_count_once_and_those_at_right_angles_all():
    assert numbers.vendi(np.tile([1.0, 2, 3], (10, 1))) == pytest.approx(1)
    assert numbers.vendi(7 * np.eye(5)) == pytest.approx(5)
    assert numbers.vendi(np.repeat(np.eye(2), 3, axis=0)) == pytest.approx(2)
    assert np.isfinite(numbers.vendi(np.zeros((3, 2))))


def test_distances_within_and_across_groups_are_means_over_pairs():
    points, codes = np.array([[0.0], [1], [10], [12], [100]]), np.array([0, 0, 1, 1, -1])
    found = numbers.spread(points, codes, ("a", "b", "none"))
    assert found["groups"] == {"a": pytest.approx(1), "b": pytest.approx(2), "none": None}
    assert found["within"] == pytest.approx((1 + 2) / 2)
    assert found["across"] == pytest.approx((10 + 12 + 9 + 11) / 4)
    assert found["all"] == pytest.approx(np.mean([1, 10, 12, 100, 9, 11, 99, 2, 90, 88]))
    assert numbers.spread(points[:1], codes[:1], ("a",))["within"] is None


def test_pixels_differ_by_the_mean_of_their_absolute_differences():
    one = np.random.default_rng(0).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    other = np.random.default_rng(1).integers(0, 256, (300, 4, 4, 3), dtype=np.uint8)
    each = np.abs(one.astype(float) - other).mean((1, 2, 3)) / 255
    found = numbers.pixel_difference(one, other)
    assert found.value == pytest.approx(each.mean())
    assert found.high - found.value == pytest.approx(1.959964 * each.std(ddof=1) / np.sqrt(300), rel=1e-5)
    assert numbers.pixel_difference(one, one)[:3] == (0, 0, 0)
    assert numbers.pixel_difference(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)).value == 1


def test_what_was_asked_is_counted_against_what_is_seen():
    asked, seen = np.array([0, 0, 0, 1, 1, 1]), np.array([2, 2, 0, 1, -1, 0])
    found = numbers.asked_and_seen(asked, ("x", "y"), seen, ("z", "y", "x"))
    assert found["counts"] == [[1, 0, 2], [1, 1, 0]]
    assert found["agreement"] == numbers.plain(wilson(3, 5))
    assert found["labels"]["x"] == numbers.plain(wilson(2, 3))
    assert found["labels"]["y"]["value"] == 0.5
    empty = numbers.asked_and_seen(asked[:1], ("x", "y"), np.array([-1]), ("y", "x"))
    assert empty["agreement"]["value"] is None


# ---- a whole comparison


def test_all_generators_get_the_same_latents_and_quality_has_others(whole):
    folder, found = whole
    opened = {name: Samples.open(folder / name) for name in ("teacher", "copy", "asked", "teacher.others")}
    for name in ("copy", "asked"):
        assert np.array_equal(opened[name].latents, opened["teacher"].latents)
        assert np.array_equal(opened[name].ids, opened["teacher"].ids)
    latents = {each.tobytes() for each in opened["teacher"].latents}
    assert not latents & {each.tobytes() for each in opened["teacher.others"].latents}
    assert len(opened["teacher.others"]) == 200
    assert np.array_equal(np.bincount(opened["asked"].label), [67, 67, 66])
    assert all(each["images"]["kept"] == 200 for each in found.content["generators"])


def test_shares_and_distances_are_those_of_the_labels_that_were_written(whole):
    folder, found = whole
    for name, each in by_name(found).items():
        codes = read_labels(folder / f"{name}.labels.parquet").attribute("race").codes
        shares = np.bincount(codes, minlength=3) / 200
        part = each["parts"][0]
        assert [entry["share"]["value"] for entry in part["categories"]] == pytest.approx(shares)
        assert part["distances"]["total_variation"]["value"] == pytest.approx(np.abs(shares - 1 / 3).sum() / 2)
    assert [part["name"] for part in each["parts"]] == ["race", "sex", "race x sex"]


def test_red_is_seen_as_often_as_the_latents_say(whole):
    folder, found = whole
    red = torch.special.ndtr(torch.from_numpy(Samples.open(folder / "teacher").latents[:, 0])) ** 0.4
    expected = np.bincount((np.round(255 * red.numpy()) / 255 * 3).astype(int).clip(0, 2), minlength=3)
    part = by_name(found)["teacher"]["parts"][0]
    assert [entry["count"] for entry in part["categories"]] == pytest.approx(expected, abs=2)  # red may be on an edge
    assert part["distances"]["total_variation"]["value"] > 0.25


def test_a_copy_is_the_teacher_in_all_things(whole):
    copy, teacher = by_name(whole[1])["copy"], by_name(whole[1])["teacher"]
    assert copy["pixels"]["value"] == 0
    for part in copy["parts"]:
        assert part["comparison"]["paired"]
        assert part["comparison"]["agreement"]["value"] == 1
        assert part["distances"]["total_variation"]["difference"] == {"value": 0, "low": 0, "high": 0, "n": 200}
    assert copy["quality"] == {
        name: {**each, "generated": copy["quality"][name]["generated"]} for name, each in teacher["quality"].items()
    }
    assert copy["diversity"] == teacher["diversity"]
    assert copy["asked"] is None
    assert "not clearly nearer or farther" in words.headline(whole[1].content)


def test_a_student_that_makes_what_it_is_asked_is_even_and_agrees_with_the_asking(whole):
    asked, teacher = (by_name(whole[1])[name] for name in ("asked", "teacher"))
    part = asked["parts"][0]
    assert part["distances"]["total_variation"]["value"] <= 0.005
    change = part["distances"]["total_variation"]["difference"]
    away = [each["parts"][0]["distances"]["total_variation"]["value"] for each in (asked, teacher)]
    assert change["value"] == pytest.approx(away[0] - away[1])
    assert change["high"] < 0
    assert asked["asked"]["agreement"]["value"] == 1
    assert np.trace(asked["asked"]["counts"]) == 200
    agreement = part["comparison"]["agreement"]
    codes = [read_labels(whole[0] / f"{name}.labels.parquet").attribute("race").codes for name in ("asked", "teacher")]
    assert agreement == numbers.plain(wilson((codes[0] == codes[1]).sum(), 200))
    assert asked["pixels"]["size"] == 8  # the smaller one's
    assert 0 < asked["pixels"]["value"] < 1
    assert "“asked” 0.3 % (clearly nearer)" in words.headline(whole[1].content)


def test_groups_of_all_generators_are_compared_at_one_n(whole):
    sides = by_name(whole[1])
    groups = {(name, group): one for name, each in sides.items()
              for group, one in each["quality"]["teacher.others"]["groups"].items()}  # fmt: skip
    assert len({one["n"] for one in groups.values()}) == 1
    assert ("asked", "light") in groups
    assert sides["teacher"]["quality"]["teacher.others"]["all"]["n"] == 200
    assert sides["teacher"]["quality"]["teacher.others"]["extractor"] == "a judge"


def test_size_and_speed_are_set_against_the_teacher(whole):
    asked = by_name(whole[1])["asked"]
    assert asked["times"]["num_parameters"] == pytest.approx(400 / 1000)
    assert asked["times"]["num_bytes"] == 1
    assert asked["speed"]["32"]["rounds"] >= 10
    ratio = by_name(whole[1])["teacher"]["speed"]["1"]["ms"] / asked["speed"]["1"]["ms"]
    assert asked["times"]["speed_1"] == pytest.approx(ratio)
    assert words.compared(2.0, "fewer", "more") == "2.0 times fewer"
    assert words.compared(0.4, "fewer", "more") == "2.5 times more"
    assert words.compared(1.01, "fewer", "more", "as many") == "about as many"


def test_the_grid_shows_the_first_latents_once_for_each_label(whole):
    folder, found = whole
    assert [row.name for row in found.rows] == ["teacher", "copy", "asked: dark", "asked: middle", "asked: light"]
    assert np.array_equal(found.rows[0].pixels, Samples.open(folder / "teacher").pixels()[:8])
    assert [round(row.pixels[..., 0].mean()) for row in found.rows[2:]] == [round(255 * k / 6) for k in (1, 3, 5)]


# ---- options


def test_a_killed_comparison_goes_on_with_its_images_and_another_one_is_refused(tmp_path):
    teacher = Paint()
    first = compared(tmp_path / "out", teacher=teacher).content
    begun = teacher.calls
    again = compared(tmp_path / "out", teacher=teacher).content
    fresh = teacher.calls - begun
    assert fresh < begun  # what is left are the trial, the times and the grid
    assert [each["parts"] for each in again["generators"]] == [each["parts"] for each in first["generators"]]
    with pytest.raises(UserError, match="holds other samples"):
        compared(tmp_path / "out", seed=1)


def test_students_with_labels_are_asked_for_the_shares_of_the_target(tmp_path):
    target = Targets({"race": {"dark": 0.5, "middle": 0.31, "light": 0.19}})
    found = compared(tmp_path / "out", {"asked": Paint(1.0, RACES)}, count=50, target=target, attributes=("race",))
    assert np.bincount(Samples.open(tmp_path / "out" / "asked").label).tolist() == [25, 16, 9]
    assert by_name(found)["asked"]["parts"][0]["target"] == "the given shares"
    two = Targets({"race": {"dark": 0.25, "middle": 0.25, "light": 0.5}})
    quota = comparing._labels(Paint(1.0, ("light", "dark")), 30, 0, two)
    assert torch.bincount(quota).tolist() == [20, 10]
    with pytest.raises(UserError, match="The target wants none of what"):
        comparing._labels(Paint(1.0, ("dark",)), 30, 0, Targets({"race": {"dark": 0.0, "light": 1.0}}))


def test_a_folder_teacher_is_compared_by_half_of_its_images_and_has_no_time(tmp_path):
    made = make_samples(Paint(), tmp_path / "made", 60)
    teacher = Folder(made, torch.device("cpu"))
    found = compared(tmp_path / "out", teacher=teacher, count=30)
    assert by_name(found)["teacher"]["speed"] is None
    assert by_name(found)["copy"]["times"]["speed_1"] is None
    assert by_name(found)["copy"]["pixels"]["value"] == 0
    assert any("The teacher is a folder of images" in text for text in found.content["caveats"])
    with pytest.raises(UserError, match="at most half of them, --count 30,"):
        compared(tmp_path / "more", teacher=teacher, count=31)
    assert not (tmp_path / "more").exists()


def test_a_reference_folder_is_compared_too(tmp_path):
    (tmp_path / "real" / "in").mkdir(parents=True)
    for k in range(40):
        Image.new("RGB", (12, 12), (6 * k, 255 - 6 * k, 99)).save(tmp_path / "real" / "in" / f"{k}.png")
    found = compared(tmp_path / "out", reference=tmp_path / "real", count=25)
    for each in found.content["generators"]:
        assert each["quality"]["reference"]["all"]["n"] == 25
        assert each["quality"]["reference"]["all"]["fid"] > each["quality"]["teacher.others"]["all"]["fid"]
    samples = make_samples(Paint(0.8), tmp_path / "samples", 30)
    found = compared(tmp_path / "again", reference=samples.folder)
    assert by_name(found)["copy"]["quality"]["reference"]["all"]["n"] == 30


def test_corrected_shares_stand_beside_the_raw_ones(tmp_path):
    errors = Confusion(RACES, np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8]]) * 10, "labelled.csv")
    found = compared(tmp_path / "out", confusions={"race": errors})
    part = by_name(found)["copy"]["parts"][0]
    raw = np.array([entry["share"]["value"] for entry in part["categories"]])
    fixed = np.array([entry["corrected"]["value"] for entry in part["categories"]])
    closed = np.linalg.solve(np.array([[8, 1, 1], [1, 8, 1], [1, 1, 8]]).T / 10, raw)
    if (closed >= 0).all():
        assert fixed == pytest.approx(closed, abs=1e-6)
    assert fixed.sum() == pytest.approx(1)
    assert np.abs(fixed - 1 / 3).sum() > np.abs(raw - 1 / 3).sum()  # errors make shares look more even


def test_a_student_that_is_judged_by_its_own_trainer_is_warned_about(whole):
    content = json.loads(json.dumps(whole[1].content))
    judge, copy = content["judges"][0], content["generators"][1]
    assert (copy["trained_with"], content["generators"][2]["trained_with"], judge["fingerprint"]) == (
        OTHER,
        None,
        JUDGE,
    )
    assert words.warnings(content) == []
    assert any("For asked no classifier of the training is on record" in text for text in content["caveats"])
    judge["fingerprint"] = OTHER
    (warning,) = words.warnings(content)
    assert "“copy” was trained with the classifier that judges it here (a judge)" in warning
    judge["fingerprint"], content["extractor"]["fingerprint"] = "c" * 16, OTHER
    (flattered,) = words.warnings(content)
    assert "“copy” was trained with the network that quality is measured by" in flattered


def test_without_features_there_is_no_quality_and_the_reason_is_told(tmp_path):
    content = compared(tmp_path / "out", judges=[Judge(deep=False)]).content
    assert content["extractor"] is None
    assert all(each["quality"] == {} and each["diversity"] is None for each in content["generators"])
    assert any("Quality was not measured: a judge gives no features" in text for text in content["caveats"])
    assert not (tmp_path / "out" / "teacher.others").exists()
    with pytest.raises(UserError, match="gives no features"):
        compared(tmp_path / "b", extractor=Judge(deep=False))
    found = compared(tmp_path / "c", judges=[Judge(deep=False)], extractor=Judge(OTHER)).content
    assert found["extractor"]["fingerprint"] == OTHER


def test_an_attribute_that_the_judge_names_otherwise_is_not_said_to_be_missed(tmp_path):
    found = compared(tmp_path / "out", {"asked": Paint(1.0, ("pale", "tan"))})
    assert by_name(found)["asked"]["asked"] is None


# ---- what is refused, before anything is made


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"students": {"s": Paint(latent_size=5)}}, "s takes latents of 5 numbers, and the teacher's have 4"),
        ({"students": {}}, "0 students were given: compare from 1 to 5"),
        ({"students": {f"s{k}": Paint() for k in range(6)}}, "6 students were given"),
        ({"students": {"../s": Paint()}}, "cannot be called '../s'"),
        ({"students": {"figures": Paint()}}, "cannot be called 'figures'"),
        ({"students": {"s": Paint(broken=True)}}, "numbers that are not finite"),
        ({"count": 19}, "19 images are too few"),
        ({"attributes": ("rase",)}, "Unknown attribute of the classifiers 'rase'; did you mean 'race'"),
        ({"joint": [("race", "age")]}, "Unknown attribute of the classifiers 'age'"),
        ({"joint": [("race",)]}, "--joint race crosses nothing"),
        ({"target": Targets({"race": {"dark": 1.0}})}, "The target of race lacks"),
        ({"confidence": 1.5}, "confidence"),
        ({"faces": "best"}, "rule for images with several faces"),
        ({"judges": [Judge(), Judge(OTHER)]}, "Two classifiers label race"),
        ({"reference": "nowhere"}, "There is no folder nowhere"),
        ({"reference": "."}, "at least 20 are needed"),
    ],
    ids=["latent size", "no student", "six students", "path as name", "reserved name", "not finite", "few images",
         "unknown attribute", "unknown in joint", "joint of one", "target lacks a class", "confidence", "face rule",
         "attribute twice", "no reference", "small reference"],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_made(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        compared(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_students_are_named_by_their_folders_each_otherwise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    given = ["a/small", "b/small", "teacher", "my_module:make", "x.onnx", "here/.", "..."]
    names = names_of([*given[:5], given[5]])
    assert names == ["small", "small-2", "teacher-2", "my_module-make", "x.onnx", "here"]
    assert all(comparing.NAME.fullmatch(name) for name in names_of(["...", "-", "~"]))
