"""The tone-leak test: each number against a plain computation, verdicts on data whose truth is known, the command."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from evenlens import probes, tone_leak, views
from evenlens.data.dataset import FairDataset, Splits, Task
from evenlens.errors import UserError
from evenlens.metrics import Interval
from evenlens.probes import Rows
from evenlens.tone_leak import NO, UNCLEAR, UNDEFINED, UNKNOWN, YES, Probe, ToneLeak, measure
from evenlens.view import View, in_eight_bits

SIZE = 16
NUMBERS = {"train": 500, "val": 240}


class Copy(View):
    """Show the luma."""

    title = "copy"

    def draw(self, image):
        return (0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2])[:, None]


class Edges(Copy):
    """Draw where the luma changes by more than a tenth of itself from one row or column to the next."""

    def draw(self, image):
        grey = super().draw(image)
        down = (grey - grey.roll(1, 2)).abs() / (grey + 1e-3)
        return (1 - torch.maximum(down, (grey - grey.roll(1, 3)).abs() / (grey + 1e-3))).clamp(0, 1)


class Blank(Copy):
    """Draw nothing."""

    def draw(self, image):
        return torch.ones_like(image[:, :1])


class Dark(Copy):
    """Fill what is darker than a half, as a plain threshold does to dark skin."""

    def draw(self, image):
        return (super().draw(image) > 0.5).float()


def bright(group, generator):
    """Groups are brightness; the same faint bars are on all."""
    level = np.array([0.3, 0.55])[group] + generator.uniform(-0.1, 0.1, len(group))
    bars = np.where(np.arange(SIZE) // 2 % 2, 1.2, 1.0)[None, :, None, None]
    return level[:, None, None, None] * bars * generator.normal(1, 0.02, (len(group), SIZE, SIZE, 3))


def shaped(group, generator):
    """Groups are where a square is; brightness is anything."""
    images = np.ones((len(group), SIZE, SIZE, 3)) * generator.uniform(0.3, 0.6, len(group))[:, None, None, None]
    images[group == 0, 3:7, 3:7] *= 1.6
    images[group == 1, 9:13, 9:13] *= 1.6
    return images * generator.normal(1, 0.02, images.shape)


def data(paint=bright, numbers=NUMBERS, seed=0, num_groups=2, groups=None):
    """Four parts of painted images."""
    generator = np.random.default_rng(seed)
    total = sum(numbers.values())
    group = generator.integers(num_groups, size=total) if groups is None else groups
    pixels = torch.from_numpy((255 * paint(group, generator).clip(0, 1)).round().astype(np.uint8))
    task = Task(("0", "1"), tuple(f"group {k}" for k in range(num_groups)), SIZE)
    group = torch.from_numpy(group)
    cuts = np.cumsum([0, *numbers.values()])
    parts = {}
    for name, start, stop in zip(numbers, cuts, cuts[1:], strict=False):
        rows = torch.arange(start, stop)
        files = [f"{row}.png" for row in rows]
        parts[name] = FairDataset(pixels, rows, torch.zeros(len(rows), dtype=torch.int64), group[rows], files, {}, task)
    return Splits(parts["train"], parts["train"], parts["val"], None, "f")


def images_of(part):
    return part.pixels[part.rows].permute(0, 3, 1, 2).float() / 255


def kept(view, part):
    return in_eight_bits(view(images_of(part)))[:, 0].double().numpy()


def tones(splits, view):
    """The same parts with what the view shows in place of the photographs."""
    shown = (255 * view(splits.train.pixels.permute(0, 3, 1, 2).float() / 255)).round().to(torch.uint8)
    shown = shown.permute(0, 2, 3, 1).contiguous()
    train, val = (replace(part, pixels=shown) for part in (splits.train, splits.val))
    return splits._replace(train=train, tune=train, val=val)


@pytest.fixture(scope="module")
def photographs():
    return data()


@pytest.fixture(scope="module")
def measured(photographs):
    return measure(Edges(), photographs)


# ---- each number, computed plainly


def test_exposure_is_the_mean_change_of_the_drawing_and_of_grey(photographs, measured):
    images = images_of(photographs.val)
    for share in (0.9, 0.8, 0.7, 0.6, 0.5):
        for view, found in ((Edges(), measured.exposure), (Copy(), measured.exposure_of_grey)):
            changes = []
            for image in images:
                pair = view(torch.stack([image, share * image])).numpy()
                changes.append(np.abs(pair[1] - pair[0]).mean())
            value, low, high, n = found[str(share)]
            half = 1.9699 * np.std(changes, ddof=1) / math.sqrt(len(changes))  # t of 239 degrees
            assert value == pytest.approx(np.mean(changes), abs=1e-6)
            assert (low, high) == pytest.approx((max(0, value - half), value + half), abs=1e-5)
            assert n == NUMBERS["val"]
    assert set(measured.exposure) == set(measured.exposure_of_grey) == {"0.9", "0.8", "0.7", "0.6", "0.5"}


def test_ink_is_that_of_the_middle_of_the_darkest_and_lightest_tenth(photographs, measured):
    luma, ink = [], []
    for grey, drawing in zip(kept(Copy(), photographs.val), kept(Edges(), photographs.val), strict=True):
        luma.append(grey[4:12, 4:12].mean())
        ink.append((1 - drawing)[4:12, 4:12].mean())
    order = np.argsort(luma)
    dark, light = np.array(ink)[order[:24]], np.array(ink)[order[-24:]]
    assert measured.ink_darkest.value == pytest.approx(dark.mean(), abs=1e-6)
    assert measured.ink_lightest.value == pytest.approx(light.mean(), abs=1e-6)
    value, low, high, n = measured.ink_ratio
    assert value == pytest.approx(dark.mean() / light.mean(), abs=1e-5)
    generator, ratios = np.random.default_rng(5), []
    for _ in range(1000):
        again = generator.integers(240, size=240)
        ranked = again[np.argsort(np.array(luma)[again])]
        ratios.append(np.array(ink)[ranked[:24]].mean() / np.array(ink)[ranked[-24:]].mean())
    assert (low, high) == pytest.approx(tuple(np.quantile(ratios, (0.025, 0.975))), rel=0.02)
    assert n == 240


def test_probes_see_the_means_of_64_fields_of_grey_and_of_the_drawing(photographs, measured):
    def rows(view, part):
        fields = kept(view, part).reshape(-1, 8, SIZE // 8, 8, SIZE // 8).mean(axis=(2, 4)).reshape(-1, 64)
        return Rows(torch.from_numpy(fields).float(), part.label, part.group)

    for probe in measured.probes:
        guessed = []
        for view, found in ((Copy(), probe.grey), (Edges(), probe.drawing)):
            told = probes.guesses(*(rows(view, part) for part in (photographs.train, photographs.val)),
                                  probe.discriminator)  # fmt: skip
            recalls = [(told.guess[told.true == k] == k).mean() for k in (0, 1)]
            assert found.value == pytest.approx(np.mean(recalls), abs=0.01)
            assert found.low < found.value <= found.high
            guessed.append(np.mean(recalls))
        assert probe.difference.value == pytest.approx(guessed[0] - guessed[1], abs=0.01)
        assert probe.difference.value == pytest.approx(probe.grey.value - probe.drawing.value)
        assert probe.chance == 0.5
    assert [probe.discriminator for probe in measured.probes] == ["linear", "mlp"]


def test_correlation_is_that_of_both_after_a_blur_of_12_pixels_of_256(photographs, measured):
    sigma = 12 * SIZE / 256
    found = []
    for image in images_of(photographs.val):
        pair = [view(image[None])[0, 0].double().numpy() for view in (Copy(), Edges())]
        low = [gaussian_filter(one, sigma, mode="mirror", truncate=4.0).ravel() for one in pair]
        found.append(np.corrcoef(*low)[0, 1])
    assert measured.correlation.value == pytest.approx(np.mean(found), abs=1e-3)
    assert measured.correlation.low < measured.correlation.value < measured.correlation.high


def test_of_many_images_few_are_looked_at_and_the_test_part_is_not_opened(photographs, monkeypatch):
    monkeypatch.setattr(tone_leak, "MOST", 200)
    monkeypatch.setattr(tone_leak, "FEW", 50)
    seen = []
    found = measure(Edges(), photographs, watch=lambda what, done, total: seen.append((done, total)))  # test is None
    assert found.linear.grey.n == found.ink_ratio.n == 200
    assert found.half.n == 50
    assert seen[-1] == (450, 450)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    other = measure(Edges(), photographs, seed=1)
    assert other.half != found.half
    assert measure(Edges(), photographs, seed=1) == other


def test_drawings_that_are_there_already_give_the_same_numbers(photographs, measured):
    assert measure(Edges(), photographs, tones(photographs, Edges())) == measured
    with pytest.raises(UserError, match="not of the same images and split"):
        measure(Edges(), photographs, tones(photographs, Edges())._replace(fingerprint="g"))


# ---- data whose truth is known


def test_groups_that_are_brightness_are_not_told_from_a_view_that_draws_edges(measured):
    assert measured.linear.grey.value > 0.95
    assert measured.linear.difference.low > 0
    assert measured.verdicts == dict.fromkeys(("exposure", "ink", "probe"), YES)


def test_a_view_that_draws_nothing_is_at_chance_and_has_no_ratio_and_no_correlation(photographs):
    found = measure(Blank(), photographs)
    assert found.linear.drawing.value == pytest.approx(0.5)
    assert found.linear.difference.low > 0.4
    assert found.ink_darkest.value == 0
    assert math.isnan(found.ink_ratio.value)
    assert math.isnan(found.correlation.value)
    assert found.correlation.n == 0
    assert found.verdicts == {"exposure": YES, "ink": UNDEFINED, "probe": YES}
    assert "hardly any ink" in found.words[1]
    assert not any("nan" in sentence for sentence in found.words)


def test_groups_that_are_shapes_are_told_from_edges_too_and_the_probe_is_not_passed():
    found = measure(Edges(), data(shaped))
    assert found.linear.grey.value > 0.95
    assert found.linear.drawing.value > 0.95
    assert found.verdicts["probe"] == NO
    assert found.verdicts["exposure"] == YES


def test_grey_passes_nothing_and_differs_from_itself_by_exactly_nothing(photographs):
    for view in (Copy(), views.build("grey", {}), views.build("rgb", {})):
        found = measure(view, photographs)
        assert found.verdicts == dict.fromkeys(("exposure", "ink", "probe"), NO)
        assert [tuple(probe.difference[:3]) for probe in found.probes] == [(0, 0, 0)] * 2
        assert found.exposure == found.exposure_of_grey
        assert found.correlation.value == pytest.approx(1)


def test_ink_on_dark_images_alone_is_a_ratio_that_is_finite_and_not_passed(photographs):
    found = measure(Dark(), photographs)
    assert found.ink_lightest.value == 0
    assert found.ink_ratio.value == pytest.approx(255 * found.ink_darkest.value)
    assert found.verdicts["ink"] == NO
    json.dumps(found.as_dict(), allow_nan=False)


def test_where_grey_does_not_tell_the_groups_nothing_is_clear():
    groups = np.random.default_rng(3).integers(2, size=740)
    plain = data(lambda group, generator: bright(generator.integers(2, size=len(group)), generator), groups=groups)
    found = measure(Copy(), plain)
    assert found.verdicts["probe"] == UNCLEAR
    assert "Grey itself does not tell the groups" in found.words[2]


def test_a_group_on_one_side_is_left_out_and_never_lets_a_view_pass():
    groups = np.random.default_rng(0).integers(2, size=740)
    groups[:20] = 2
    paint = lambda group, generator: bright(group % 2, generator)  # noqa: E731
    found = measure(Edges(), data(paint, groups=groups, num_groups=3))
    assert found.left_out == ("group 2",)
    assert found.linear.chance == 0.5
    assert found.linear.difference.low > 0
    assert found.verdicts["probe"] == UNCLEAR
    assert "Group “group 2” is left out" in found.words[2]
    groups[:500], groups[500:] = 0, 1
    found = measure(Edges(), data(groups=groups))
    assert found.verdicts["probe"] == UNDEFINED
    assert all(math.isnan(part) for part in (*found.linear.difference[:3], found.linear.chance))
    assert "not two groups" in found.words[2]


def test_too_few_images_are_undefined_and_never_passed():
    found = measure(Edges(), data(numbers={"train": 30, "val": 1}))
    assert found.verdicts == dict.fromkeys(("exposure", "ink", "probe"), UNDEFINED)
    assert measure(Edges(), data(numbers={"train": 30, "val": 39})).ink_ratio == UNKNOWN


# ---- verdicts and intervals


def made(half=(0.01, 0.009, 0.011), ratio=(1.1, 0.9, 1.2), grey=(0.8, 0.75, 0.85), drawing=(0.6, 0.51, 0.7),
         difference=(0.2, 0.1, 0.3), left_out=()):  # fmt: skip
    shares = {str(share): Interval(*half, 9) for share in tone_leak.SHARES}
    linear = Probe("linear", Interval(*grey, 9), Interval(*drawing, 9), Interval(*difference, 9), 0.5)
    return ToneLeak(shares, shares, UNKNOWN, UNKNOWN, Interval(*ratio, 9), (linear,), UNKNOWN, left_out)


@pytest.mark.parametrize(
    ("name", "settings", "verdict"),
    [
        ("exposure", {"half": (0.02, 0.01, 0.03)}, YES),
        ("exposure", {"half": (0.02, 0.01, 0.031)}, UNCLEAR),
        ("exposure", {"half": (0.04, 0.031, 0.05)}, NO),
        ("exposure", {"half": (0.02, math.nan, math.nan)}, UNDEFINED),
        ("ink", {"ratio": (1.0, 0.7, 1.5)}, YES),
        ("ink", {"ratio": (1.0, 0.6, 1.2)}, UNCLEAR),
        ("ink", {"ratio": (1.0, 0.9, 1.6)}, UNCLEAR),
        ("ink", {"ratio": (2.0, 1.51, 3.0)}, NO),
        ("ink", {"ratio": (0.5, 0.4, 0.6)}, NO),
        ("probe", {}, YES),
        ("probe", {"left_out": ("x",)}, UNCLEAR),
        ("probe", {"difference": (0.0, 0.0, 0.0)}, NO),
        ("probe", {"difference": (0.01, -0.02, 0.04)}, NO),
        ("probe", {"difference": (0.05, -0.02, 0.12)}, UNCLEAR),
        ("probe", {"difference": (-0.1, -0.2, -0.05)}, NO),
        ("probe", {"difference": (0.0, 0.0, 0.0), "drawing": (0.52, 0.49, 0.55)}, UNCLEAR),
        ("probe", {"grey": (0.52, 0.49, 0.55)}, UNCLEAR),
        ("probe", {"grey": (0.52, 0.49, 0.55), "difference": (-0.1, -0.2, -0.05)}, NO),
        ("probe", {"difference": (math.nan,) * 3}, UNDEFINED),
    ],
)
def test_a_verdict_says_no_more_than_the_interval(name, settings, verdict):
    found = made(**settings)
    assert found.verdicts[name] == verdict
    said = next(sentence for sentence in found.words if sentence.startswith(name.capitalize()))
    assert said.startswith(f"{name.capitalize()} {tone_leak.SAID[verdict]}: ")


def test_what_may_be_overlooked_is_said():
    assert made().remark == "The drawings still tell something of the group."
    assert made(drawing=(0.6, 0.5, 0.7)).remark == ""
    silent = {"grey": (0.52, 0.49, 0.55)}
    assert made(**silent).remark == "Grey itself does not tell the groups, and the drawings do."
    assert made(**silent, drawing=(0.5, 0.4, 0.6)).remark.endswith("nothing can be hidden.")
    assert made(drawing=(0.6, 0.5, 0.7), left_out=("x", "y")).remark.startswith("2 groups are left out")
    assert made().remark in made().words[2]


def test_json_holds_all_of_it_and_undefined_is_null(measured, photographs):
    for found in (measured, measure(Blank(), photographs), made(half=(0.02, math.nan, math.nan))):
        content = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        again = ToneLeak.from_dict(content)
        assert again.as_dict() == found.as_dict()
        assert again.words == found.words
    assert content["exposure"]["0.5"] == {"value": 0.02, "low": None, "high": None, "n": 9}
    assert ToneLeak.from_dict(measured.as_dict()) == measured


def test_the_interval_of_the_ratio_covers_the_truth():
    generator = np.random.default_rng(0)

    def sample(n):
        luma = torch.from_numpy(generator.random(n))
        ink = 0.3 - 0.1 * luma + torch.from_numpy(generator.uniform(-0.1, 0.1, n))
        return tone_leak._Seen(luma, luma, luma, luma, ink)

    truth = (0.3 - 0.1 * 0.05) / (0.3 - 0.1 * 0.95)
    held = []
    for _ in range(200):
        _, _, (_, low, high, _) = tone_leak._ink(sample(400), 0)
        held.append(low <= truth <= high)
    assert 0.91 <= np.mean(held) <= 0.99


# ---- the command


def test_the_command_prints_a_table_that_is_not_wide_and_writes_json(command, tmp_path, monkeypatch):
    monkeypatch.setattr(views, "names", lambda: ["grey", "rgb"])  # those that this file knows
    place = tmp_path / "new" / "told.json"
    ended = command("tone-leak", "tiny", "--json", place, "data.num=900")
    assert ended.code == 0, ended
    assert max(len(line) for line in ended.out.splitlines()) <= 80
    assert "Exposure not passed: in half the light" in ended.out
    assert "is tint told from the drawing?" in ended.out
    content = json.loads(place.read_text())
    assert content["dataset"] == "tiny"
    assert content["group_names"] == ["tint 0", "tint 1"]
    [only] = content["views"]
    assert (only["view"], only["options"]) == ("grey", {})
    assert only["tone_leak"]["verdicts"] == dict.fromkeys(("exposure", "ink", "probe"), NO)
    assert only["tone_leak"]["probes"][0]["difference"]["value"] == 0


class Sharp(Edges):
    """Draw edges, harder or softer."""

    def __init__(self, *, gain=1.0):
        super().__init__()
        self.gain = gain

    def draw(self, image):
        return (1 - self.gain * (1 - super().draw(image))).clamp(0, 1)


class Learned(Edges):
    """Draw with weights."""

    def prepare(self):
        raise AssertionError("its weights were read")


@pytest.fixture
def known(monkeypatch):
    """Three views, one of which needs weights."""
    kinds = {"sharp": Sharp, "learned": Learned, "grey": views.get("grey"), "rgb": views.get("rgb")}
    original = views.get
    monkeypatch.setattr(views, "names", lambda: sorted(kinds))
    monkeypatch.setattr(views, "get", lambda name: kinds.get(name) or original(name))


def test_without_names_all_views_that_need_no_weights_are_measured_and_images_are_loaded_once(
    command, known, tmp_path, monkeypatch
):
    from evenlens import run

    calls = []
    monkeypatch.setattr(
        run, "load_data", lambda config, watch, real=run.load_data: calls.append(config) or real(config, watch)
    )
    ended = command("tone-leak", "tiny", "--json", tmp_path / "told.json")
    assert ended.code == 0, ended
    assert [each["view"] for each in json.loads((tmp_path / "told.json").read_text())["views"]] == ["grey", "sharp"]
    assert len(calls) == 1
    assert calls[0].data.view == "rgb"


def test_options_of_one_view_count(command, known, tmp_path):
    found = []
    for gain in (1, 3):
        ended = command("tone-leak", "tiny", "--view", "sharp", "--view", "sharp", f"view.gain={gain}",
                        "--json", tmp_path / "told.json")  # fmt: skip
        assert ended.code == 0, ended
        [one] = json.loads((tmp_path / "told.json").read_text())["views"]
        assert one["options"] == {"gain": gain}
        found.append(ToneLeak.from_dict(one["tone_leak"]).ink_darkest.value)
    assert found[1] > 1.2 * found[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--view", "shrp"], "Unknown view 'shrp'; did you mean 'sharp'?"),
        (["--view", "rgb"], "rgb is the photograph"),
        (["view.gain=2"], "view.gain is an option of one view, and 2 are tested"),
        (["--view", "sharp", "--view", "grey", "view.gain=2"], "name one with --view"),
        (["--view", "sharp", "view.gian=2"], "did you mean 'gain'?"),
        (["data.view=sharp"], "name views with --view"),
        (["train.epochs=2"], "Unknown setting of tone-leak 'train.epochs'"),
        (["data.sise=2"], "did you mean 'size'?"),
        (["data.num_groups=1"], "at least two groups"),
    ],
)
def test_what_cannot_be_tested_is_one_sentence(refused, known, words, sentence):
    said = refused("tone-leak", "tiny", *words)
    assert sentence in said


def test_the_help_has_an_example(command):
    ended = command("tone-leak", "--help")
    assert ended.code == 0
    assert "evenlens tone-leak utkface" in ended.out
