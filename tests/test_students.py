"""Students: their networks, what they learn by, the training, and what is kept."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from evenlens.errors import UserError
from evenlens.generation import distillation, teachers
from evenlens.generation.balancing import Chosen
from evenlens.generation.generator import Generator
from evenlens.generation.latent_probe import LatentProbe
from evenlens.generation.samples import Samples, make_samples
from evenlens.generation.students import choosing, distilling, student_file, terms
from evenlens.generation.students.nets import Discriminator, StudentNet
from evenlens.generation.students.settings import Settings, read_settings
from evenlens.generation.students.training import Material, Training, fixed_latents
from evenlens.generation.targets import Targets
from evenlens.generation.teachers.fair_sampler import FairSampler
from evenlens.report import student_page

CPU = torch.device("cpu")
SMALL = {"channels": 8, "discriminator_channels": 8, "batch_size": 16, "judged": 64, "epochs": 2}


def num(net):
    return sum(value.numel() for value in net.parameters())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Looking:
    """A classifier that sees whether an image is bright, by its mean: light or dark."""

    title, fingerprint, size, crop, differentiable, has_features = "brightness", "0" * 16, 8, 1.0, True, True
    attributes = {"tone": ("dark", "light")}

    def to(self, device):
        return self

    def features(self, image):
        return functional.adaptive_avg_pool2d(image, 2).flatten(1)

    def logits(self, image):
        bright = 8 * (image.mean((1, 2, 3)) - 0.5)
        return {"tone": torch.stack([-bright, bright], 1)}


class Lamps(Generator):
    """A teacher whose first number says how bright the image is, four in five of them light; the others its colours."""

    def __init__(self, size=8):
        super().__init__(title="lamps", latent_size=4, size=size, fingerprint="1" * 16)

    def draw(self, latent, label):
        light = torch.where(latent[:, 0] > -0.8416, 0.75, 0.2)  # the normal distribution's fifth
        colour = 0.15 * torch.sigmoid(latent[:, 1:4]) - 0.075
        ramp = torch.linspace(-0.05, 0.05, self.size)
        return (light[:, None] + colour)[:, :, None, None] + ramp.expand(self.size, self.size)


@pytest.fixture(scope="module")
def lamps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lamps")
    return make_samples(Lamps(), folder / "faces", 512, seed=3)


@pytest.fixture(scope="module")
def chosen(lamps):
    light = lamps.pixels().mean((1, 2, 3)) > 127
    rows = np.concatenate([np.flatnonzero(light)[: (~light).sum()], np.flatnonzero(~light)])
    return Chosen(lamps.ids[rows], light[rows].astype(np.int64), ("dark", "light"), ("tone",))


# ---- networks


def test_the_published_networks_have_the_published_numbers_of_parameters():
    assert num(StudentNet()) == 13_348_611
    assert num(Discriminator()) == 11_147_201


def test_the_discriminator_gives_each_layers_output_and_one_logit():
    logit, layers = Discriminator()(torch.zeros(2, 3, 128, 128))
    assert logit.shape == (2,)
    assert [tuple(layer.shape[1:]) for layer in layers] == [
        (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)
    ]  # fmt: skip


@pytest.mark.parametrize("size", [8, 16, 64])
def test_a_student_makes_images_of_its_size_in_the_range_of_tanh(size):
    net = StudentNet(size=size, latent_size=5, channels=4, num_labels=3)
    image = net(torch.randn(4, 5, generator=seeded()), torch.tensor([0, 1, 2, 0]))
    assert image.shape == (4, 3, size, size)
    assert image.abs().max() <= 1


@pytest.mark.parametrize("size", [4, 48, 1024])
def test_a_size_that_no_student_has_is_refused(size):
    with pytest.raises(UserError, match="is one of 8, 16, 32"):
        StudentNet(size=size)


def test_a_label_changes_the_image_only_where_it_was_learned_to():
    net = StudentNet(size=8, latent_size=5, channels=4, num_labels=2).eval()
    latent = torch.randn(3, 5, generator=seeded())
    first, second = (net(latent, torch.full((3,), k)) for k in (0, 1))
    assert torch.equal(first, second)  # scales start at 1 and shifts at 0, unlike each other
    with torch.no_grad():
        net.blocks[0].first.shift.weight[1] += 1
    assert not torch.equal(net(latent, torch.ones(3, dtype=torch.long)), first)
    assert torch.equal(net(latent, torch.zeros(3, dtype=torch.long)), first)


def test_a_block_is_what_the_paper_draws():
    net = StudentNet(size=8, latent_size=3, channels=4).eval()
    block = net.blocks[0]
    x = torch.randn(2, 4, 4, 4, generator=seeded())

    def conv(layer, y, **more):
        return functional.conv2d(y, layer.weight, layer.bias, **more)

    def norm(module, y):
        return (y - module.norm.running_mean[:, None, None]) / (module.norm.running_var[:, None, None] + 1e-5).sqrt()

    def twice(y):
        return functional.interpolate(y, size=(8, 8), mode="bilinear", align_corners=False)

    y = conv(block.depth1, twice(norm(block.first, x).clamp(min=0)), padding=1, groups=4)
    y = norm(block.second, conv(block.point1, y)).clamp(min=0)
    y = conv(block.point2, conv(block.depth2, y, padding=1, groups=4))
    torch.testing.assert_close(block(x, None), y + conv(block.shortcut, twice(x)))


def test_the_discriminators_largest_gain_is_near_one():
    judge = Discriminator(size=8, channels=4)
    for _ in range(30):
        judge(torch.randn(2, 3, 8, 8, generator=seeded()))
    gain = torch.linalg.matrix_norm(judge.layers[0].weight.detach().flatten(1), 2)
    assert 0.9 < gain < 1.1


# ---- loss terms


def test_a_schedule_goes_in_a_straight_line():
    falling = terms.Schedule.read("pixel", "1->0")
    assert [falling.at(k) for k in (0, 0.25, 1)] == [1, 0.75, 0]
    assert terms.Schedule.read("features", 0.4).at(0.7) == 0.4
    assert terms.Schedule.read("x", "0 -> 3e-1").at(1) == 0.3
    assert [terms.Schedule.read("x", given).used for given in (0, "0->0", "0->1")] == [False, False, True]


@pytest.mark.parametrize("given", ["", "a", "-1", "1->", "1->0->1", True, "nan", "inf"])
def test_a_weight_that_is_none_is_refused(given):
    with pytest.raises(UserError, match="is no weight"):
        terms.Schedule.read("pixel", given)


def test_equal_images_have_no_pixel_and_no_feature_loss():
    image = torch.rand(2, 3, 8, 8, generator=seeded())
    judge = Discriminator(size=8, channels=4).eval()
    layers = judge(image)[1]
    assert terms.pixel(image, image) == 0
    assert terms.features(layers, layers) == 0


def test_features_weigh_the_last_layer_one_and_earlier_ones_a_quarter_and_less():
    random = seeded()
    made = [torch.randn(2, 3, 4, 4, generator=random) for _ in range(5)]
    wanted = [torch.randn(2, 3, 4, 4, generator=random) for _ in range(5)]
    expected = sum(
        weight * np.abs(x.numpy() - y.numpy()).mean()
        for weight, x, y in zip((1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), made, wanted, strict=True)
    )
    assert float(terms.features(made, wanted)) == pytest.approx(expected, rel=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_adversarial_losses_are_their_formulas():
    real, made = (torch.randn(9, generator=seeded(k), dtype=torch.float64) for k in (1, 2))
    r, m = real.numpy(), made.numpy()
    smooth = -np.mean(0.9 * np.log(sigmoid(r)) + 0.1 * np.log(1 - sigmoid(r))) - np.mean(np.log(1 - sigmoid(m)))
    plain = -np.mean(np.log(sigmoid(r))) - np.mean(np.log(1 - sigmoid(m)))
    hinge = np.mean(np.maximum(0, 1 - r)) + np.mean(np.maximum(0, 1 + m))
    for kind, expected in (("bce", smooth), ("non_saturating", plain), ("hinge", hinge)):
        assert float(terms.discriminating(kind, real, made)) == pytest.approx(expected)
    assert float(terms.adversarial("bce", made)) == pytest.approx(-np.mean(np.log(sigmoid(m))))
    assert float(terms.adversarial("hinge", made)) == pytest.approx(-np.mean(m))


def test_the_gradient_penalty_of_a_linear_judge_is_half_its_squared_weights():
    weight = torch.randn(3 * 4 * 4, generator=seeded())
    image = torch.rand(5, 3, 4, 4, generator=seeded()).requires_grad_()
    assert float(terms.gradient_penalty(image.flatten(1) @ weight, image)) == pytest.approx(float(weight @ weight) / 2)


def test_diversity_is_zero_where_classes_are_even_and_one_where_all_are_alike():
    even = {"race": 1e3 * torch.eye(7).repeat(3, 1), "gender": 1e3 * torch.eye(2).repeat(5, 1)}
    uniform = {"race": torch.full((7,), 1 / 7), "gender": torch.full((2,), 0.5)}
    assert float(terms.diversity(even, uniform)) == pytest.approx(0, abs=1e-6)
    alike = {name: 1e3 * torch.eye(len(share))[:1].repeat(8, 1) for name, share in uniform.items()}
    assert float(terms.diversity(alike, uniform)) == pytest.approx(1, abs=1e-6)


def test_diversity_is_the_divergence_from_the_target_by_the_logarithm_of_the_classes():
    logits = torch.randn(11, 4, generator=seeded(), dtype=torch.float64)
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    exp = np.exp(logits.numpy() / 0.5)
    own = exp / exp.sum(1, keepdims=True)
    mean, wanted = own.mean(0), target.numpy()
    expected = (np.sum(mean * np.log(mean / wanted)) - 0.2 * np.mean(np.sum(own * np.log(own), 1))) / math.log(4)
    found = terms.diversity({"a": logits}, {"a": target}, temperature=0.5, entropy=0.2)
    assert float(found) == pytest.approx(expected)


def test_the_diversity_gradient_reaches_the_generator_and_balances_what_it_makes():
    net = StudentNet(size=8, latent_size=4, channels=4)
    with torch.no_grad():
        net.last.bias.fill_(1.0)  # all light
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    latent, target = torch.randn(64, 4, generator=seeded()), {"tone": torch.tensor([0.5, 0.5])}
    shares = []
    for _ in range(60):
        logits = Looking().logits((net(latent) + 1) / 2)
        loss = terms.diversity(logits, target, entropy=0.1)
        optimizer.zero_grad()
        loss.backward()
        assert all(value.grad is not None for value in net.parameters())
        assert net.start.weight.grad.abs().sum() > 0
        optimizer.step()
        shares.append(float(logits["tone"].argmax(1).float().mean()))
    assert shares[0] > 0.95
    assert abs(shares[-1] - 0.5) < 0.15


def test_the_group_term_is_cross_entropy_with_what_was_asked_for():
    logits = {"a": torch.randn(6, 3, generator=seeded()), "b": torch.randn(6, 2, generator=seeded())}
    wanted = {"a": torch.tensor([0, 1, 2, 0, 1, 2]), "b": torch.tensor([0, 0, 0, 1, 1, 1])}
    parts = [-logits[name].log_softmax(1)[torch.arange(6), wanted[name]].mean() for name in logits]
    assert float(terms.group(logits, wanted)) == pytest.approx(float(sum(parts) / 2))


# ---- settings


def test_settings_are_checked_by_name_and_value():
    assert read_settings({"epochs": 3, "pixel": "1->0"}).epochs == 3
    for given, said in (
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs=0 is not allowed"),
        ({"kind": "wgan"}, "kind='wgan' is not allowed"),
        ({"pixel": "down"}, "pixel=down is no weight"),
        ({"size": 48}, "it is one of 8, 16"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is not allowed"),
    ):
        with pytest.raises(UserError, match=said):
            read_settings(given)


# ---- training


def linear_lessons(number=256):
    """A teacher that is linear in its latents: three say the colours, one how steeply they rise from left to right."""
    latents = torch.randn(number, 4, generator=seeded(5))
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    image = latents[:, :3, None, None] + latents[:, 3:, None, None] * ramp
    pixels = image.mul(30).add(128).clamp(0, 255).to(torch.uint8)
    return Material(pixels.permute(0, 2, 3, 1).contiguous().numpy(), latents)


def test_a_student_learns_a_linear_teacher():
    """The specification's oracle: the pixel loss falls to a tenth in 200 steps."""
    quick = {"channels": 24, "batch_size": 128, "steps": 200, "learning_rate": 2e-2, "average": 0.98, "weight_decay": 0}
    settings = Settings(**SMALL | quick, pixel=1.0, features=0.0, adversarial=0.0)
    material = linear_lessons(512)
    training = Training(material, settings, CPU)
    real = torch.from_numpy(material.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        before = float(terms.pixel(training.average(material.latents), real))
    for _ in range(2):
        training.train_epoch()
    with torch.no_grad():
        after = float(terms.pixel(training.average(material.latents), real))
    assert after < before / 10


def test_terms_follow_their_schedules_and_only_those_that_weigh_anything_are_computed():
    training = Training(linear_lessons(64), Settings(**SMALL, pixel="1->0", features=0.4, adversarial=0.3), CPU)
    first = training.train_epoch()
    assert training.terms == ["pixel", "features", "adversarial"]
    assert {"pixel", "features", "adversarial", "discriminator", "real", "made"} == set(first)
    only = Training(linear_lessons(64), Settings(**SMALL, pixel=1, features=0, adversarial=0), CPU)
    assert set(only.train_epoch()) == {"pixel"}  # without a discriminator, too


def test_only_the_generator_learns_in_its_step():
    """The original lets gradients of the generator's step gather in the discriminator."""
    training = Training(linear_lessons(64), Settings(**SMALL), CPU)
    training.train_epoch()
    assert all(not value.requires_grad for value in training.judge.parameters())
    before = {name: value.clone() for name, value in training.net.named_parameters()}
    real = torch.zeros(4, 3, 8, 8)
    training._judge_step(real, None, real + 0.5, None)
    assert all(torch.equal(before[name], value) for name, value in training.net.named_parameters())


def test_what_is_kept_is_an_average_of_the_weights_with_its_own_normalisation():
    training = Training(linear_lessons(64), Settings(**SMALL, average=0.9), CPU)
    followed = [value.clone() for value in training.net.parameters()]
    for step in range(1, 4):
        training._step(torch.arange(16), {"pixel": 1.0}, seeded(step))
        training.step += 1
        training._follow()
        decay = min(0.9, (1 + step) / (10 + step))
        followed = [
            decay * old + (1 - decay) * new for old, new in zip(followed, training.net.parameters(), strict=True)
        ]
    for expected, value in zip(followed, training.average.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    training._recalibrate()
    rows = list(training._batches(20, seeded(training.epoch)))
    starts = [training.average.start(training.latents[each]).unflatten(1, (-1, 4, 4)) for each in rows]
    expected = torch.stack([start.mean((0, 2, 3)) for start in starts]).mean(0)
    torch.testing.assert_close(training.average.blocks[0].first.norm.running_mean, expected, atol=1e-5, rtol=1e-4)


def test_a_discriminator_is_taught_with_layers_from_before_its_step():
    training = Training(linear_lessons(64), Settings(**SMALL), CPU)
    training.judge.eval()  # no step of its power iteration, which would change its weights too
    real = torch.rand(4, 3, 8, 8, generator=seeded())
    before = training.judge(real)[1]
    _, layers = training._judge_step(real, None, -real, None)
    assert all(torch.equal(one, two) for one, two in zip(before, layers, strict=True))
    assert not torch.equal(training.judge(real)[1][0], layers[0])


@pytest.mark.parametrize(
    ("change", "classifier", "said"),
    [
        ({"batch_size": 100}, None, "fewer than batch_size=100"),
        ({"diversity": 0.3}, None, "looks through a classifier"),
        ({"group": 0.3}, Looking(), "asked for a group"),
    ],
    ids=["too few", "no classifier", "no group"],
)
def test_a_training_that_lacks_something_is_refused(change, classifier, said):
    with pytest.raises(UserError, match=said):
        Training(linear_lessons(64), Settings(**SMALL | change), CPU, classifier)


def test_images_alone_need_the_adversarial_term():
    material = Material(linear_lessons(64).pixels)
    with pytest.raises(UserError, match="set adversarial=1"):
        Training(material, Settings(**SMALL, adversarial=0), CPU)
    training = Training(material, Settings(**SMALL), CPU)
    assert training.terms == ["adversarial"]
    assert math.isfinite(training.train_epoch()["adversarial"])


def test_losses_that_are_no_numbers_end_the_training():
    settings = Settings(**SMALL, learning_rate=1e4, pixel=0, features=0, adversarial=1, kind="hinge")
    training = Training(linear_lessons(64), settings, CPU)
    with torch.no_grad():
        training.net.last.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="are no numbers"):
        training.train_epoch()


# ---- choosing


def test_the_score_is_kid_and_weighted_total_variation():
    net = StudentNet(size=8, latent_size=4, channels=4).eval()
    with torch.no_grad():
        net.last.bias.fill_(3.0)
    reference = np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3), dtype=np.uint8)
    target = {"tone": torch.tensor([0.5, 0.5])}
    chooser = choosing.Chooser(reference, Looking(), target, 2.0, 64, CPU)
    found = chooser.score(net)
    assert found["variation"] == pytest.approx(0.5)  # all are light
    assert found["score"] == pytest.approx(found["kid"] + 1.0)
    plain = choosing.Chooser(reference, None, {}, 2.0, 64, CPU).score(net)
    assert set(plain) == {"kid", "score"}
    assert plain["kid"] == plain["score"] > 0


# ---- the folder


def asked(**more):
    return read_settings({**SMALL, "steps": 8, **more})


def test_a_killed_training_ends_with_the_same_numbers(tmp_path, lamps):
    settings = asked(epochs=3)
    whole = distillation.distil(lamps, tmp_path / "whole", settings)

    class Killed(Exception):
        pass

    def kill(what, done, total):
        if what == "epochs" and done == 2:
            raise Killed

    with pytest.raises(Killed):
        distillation.distil(lamps, tmp_path / "killed", settings, watch=kill)
    assert not (tmp_path / "killed").exists()
    seen = []
    again = distillation.distil(lamps, tmp_path / "killed", settings, watch=lambda what, done, total: seen.append(done))
    assert 0 not in seen[-2:]
    one, two = (teachers.load(folder) for folder in (whole, again))
    assert one.fingerprint == two.fingerprint
    logs = [[{**json.loads(line), "seconds": 0} for line in (folder / "log.jsonl").read_text().splitlines()]
            for folder in (whole, again)]  # fmt: skip
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
    assert not list(tmp_path.glob(".*"))


def test_the_epoch_with_the_lowest_score_is_kept(tmp_path, lamps, chosen):
    folder = distillation.distil(lamps, tmp_path / "s", asked(epochs=4), chosen=chosen, classifier=Looking())
    info = student_file.read_info(folder)
    scores = [json.loads(line)["score"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert info["chosen"]["epoch"] == 1 + int(np.argmin(scores))
    assert info["classifier"] == {"title": "brightness", "fingerprint": "0" * 16}
    assert len(list((folder / "grids").glob("*.png"))) == 4


def test_another_training_is_not_written_over_the_first(tmp_path, lamps):
    first = distillation.distil(lamps, tmp_path / "s", asked())
    before = (first / "model.safetensors").read_bytes()
    assert distillation.distil(lamps, tmp_path / "s", asked()) == first
    with pytest.raises(UserError, match="holds something else"):
        distillation.distil(lamps, tmp_path / "s", asked(seed=2))
    assert (first / "model.safetensors").read_bytes() == before
    assert distillation.distil(lamps, tmp_path / "t", asked(seed=2)) != first
    assert teachers.load(tmp_path / "t").fingerprint != teachers.load(first).fingerprint


def test_a_conditional_student_can_be_balanced_and_an_unconditional_one_inherits_the_bias(tmp_path, lamps, chosen):
    shared = {"steps": 240, "epochs": 2, "learning_rate": 1e-2, "pixel": 1.0, "features": 0, "adversarial": 0,
              "average": 0.9}  # fmt: skip
    light = {}
    for conditional in (False, True):
        more = {"group": 1.0, "fresh": True} if conditional else {}
        folder = distillation.distil(
            lamps, tmp_path / str(conditional), read_settings({**SMALL, **shared, **more}), chosen=chosen,
            conditional=conditional, classifier=Looking(),
        )  # fmt: skip
        student = teachers.load(folder)
        made = make_samples(student, tmp_path / f"made {conditional}", 200, seed=9)
        light[conditional] = made.pixels().mean((1, 2, 3)) > 127
        if conditional:
            assert student.labels == ("dark", "light")
            assert (light[True] == made.label).mean() > 0.97
    assert light[False].mean() > 0.65  # its training images were half and half
    assert abs(light[True].mean() - 0.5) < 0.05


def test_a_conditional_student_needs_groups(tmp_path, lamps):
    with pytest.raises(UserError, match="--pairs"):
        distillation.distil(lamps, tmp_path / "s", asked(), conditional=True)


def test_chosen_images_must_be_among_the_samples(tmp_path, lamps, chosen):
    other = Chosen(np.array(["else.png"] * 40), np.zeros(40, dtype=np.int64), ("dark",), ("tone",))
    with pytest.raises(UserError, match=r"not among the samples .* else.png"):
        distillation.distil(lamps, tmp_path / "s", asked(), chosen=other)
    assert not list(tmp_path.iterdir())


def test_a_student_is_a_teacher_too_and_says_what_it_is(tmp_path, lamps, chosen):
    folder = distillation.distil(lamps, tmp_path / "s", asked(), chosen=chosen, conditional=True)
    student = teachers.load(folder)
    assert (student.latent_size, student.size, student.attribute) == (4, 8, "tone")
    assert student.num_parameters == num(student.net)
    assert student.num_bytes == (folder / "model.safetensors").stat().st_size
    image = student.sample(torch.randn(3, 4, generator=seeded()), torch.tensor([0, 1, 0]))
    alone = student.sample(torch.randn(3, 4, generator=seeded())[:1], torch.tensor([0]))
    torch.testing.assert_close(image[:1], alone)  # evaluation mode: no batch statistics
    with pytest.raises(UserError, match="latents of 4 numbers"):
        student.sample(torch.zeros(2, 5), torch.tensor([0, 1]))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="make it again"):
        teachers.load(folder)


def test_a_generator_is_taught_from_a_data_sets_images(tmp_path, monkeypatch):
    from evenlens.config import make_config

    monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "cache"))
    data = {"data.size": 16, "data.num_train": 64, "data.num_val": 8, "data.num_test": 8}
    settings = read_settings({**SMALL, "steps": 4, "latent_size": 6})
    folder = distillation.teach(make_config("avatars", "", data), tmp_path / "teacher", settings)
    made = make_samples(teachers.load(folder), tmp_path / "faces", 5)
    assert Samples.open(made.folder).latents.shape == (5, 6)
    with pytest.raises(UserError, match=r"set data\.size="):
        distillation.teach(make_config("avatars", "", {**data, "data.size": 20}), tmp_path / "other", settings)


# ---- its page


def test_the_page_shows_curves_and_which_epoch_was_kept(tmp_path, lamps, chosen):
    folder = distillation.distil(lamps, tmp_path / "s", asked(), chosen=chosen, conditional=True, classifier=Looking(),
                                 title="<b>small</b>")  # fmt: skip
    page = student_page.write(folder).read_text()
    best = student_file.read_info(folder)["chosen"]
    assert f"Epoch {best['epoch']} of 2 was kept" in page
    assert "&lt;b&gt;small&lt;/b&gt;" in page
    assert "<b>small" not in page
    assert "dark, light" in page
    assert (folder / "curves.svg").read_text().startswith("<svg")


# ---- what goes wrong


class Scarf(Looking):
    """A classifier of two attributes, that also sees whether an image is red."""

    attributes = {"tone": ("dark", "light"), "scarf": ("no", "yes")}

    def logits(self, image):
        red = 8 * (image[:, 0] - image[:, 2]).mean((1, 2))
        return {**super().logits(image), "scarf": torch.stack([-red, red], 1)}


@pytest.fixture(scope="module")
def crossed(lamps):
    """Pairs of four groups: tone and scarf, as the classifier of both sees them."""
    image = torch.from_numpy(lamps.pixels()).permute(0, 3, 1, 2).float() / 255
    tone, scarf = (values.argmax(1).numpy() for values in Scarf().logits(image).values())
    group = 2 * tone + scarf
    rows = np.concatenate([np.flatnonzero(group == k)[:24] for k in range(4)])
    parts = (("dark", "no"), ("dark", "yes"), ("light", "no"), ("light", "yes"))
    return Chosen(lamps.ids[rows], group[rows], tuple(map(", ".join, parts)), ("tone", "scarf"), parts)


def test_a_student_of_joint_groups_is_asked_for_both_attributes(tmp_path, lamps, crossed):
    folder = distillation.distil(lamps, tmp_path / "s", asked(group=0.5), chosen=crossed, conditional=True,
                                 classifier=Scarf())  # fmt: skip
    student = teachers.load(folder)
    assert student.attribute == "tone and scarf"
    assert student.levels[1] == {"tone": "dark", "scarf": "yes"}
    target = Targets({"tone": {"dark": 0.25, "light": 0.75}})
    assert target.asked(student.levels).tolist() == pytest.approx([0.125, 0.125, 0.375, 0.375])
    assert Targets().asked(student.levels) is None
    with pytest.raises(UserError, match="wants none of what can be asked for"):
        Targets({"tone": {"dark": 0.0, "light": 0.0, "grey": 1.0}}).asked(student.levels)


def test_the_group_term_asks_each_attribute_for_its_own_class(crossed):
    groups = tuple(dict(zip(crossed.attributes, parts, strict=True)) for parts in crossed.parts)
    lessons = linear_lessons(64)
    material = Material(lessons.pixels, lessons.latents, torch.arange(64) % 4, groups)
    training = Training(material, Settings(**SMALL, group=1.0), CPU, Scarf())
    assert {name: level.tolist() for name, level in training.levels.items()} == {
        "tone": [0, 0, 1, 1], "scarf": [0, 1, 0, 1]
    }  # fmt: skip
    with pytest.raises(UserError, match="does not know scarf"):
        Training(material, Settings(**SMALL, group=1.0), CPU, Looking())


def test_a_student_is_asked_for_the_shares_of_a_target_that_is_not_uniform(tmp_path, lamps, chosen):
    target = Targets({"tone": {"dark": 0.9, "light": 0.1}})
    folder = distillation.distil(lamps, tmp_path / "s", asked(fresh=True), chosen=chosen, conditional=True,
                                 classifier=Looking(), target=target)  # fmt: skip
    assert student_file.read_info(folder)["chosen_by"]["target"] == {"tone": pytest.approx([0.9, 0.1])}
    latents, labels = fixed_latents(
        teachers.load(folder).net, 50, 0, target.asked(({"tone": "dark"}, {"tone": "light"}))
    )
    assert torch.bincount(labels).tolist() == [45, 5]
    assert len(latents) == 50
    lessons = linear_lessons(64)
    groups = ({"tone": "dark"}, {"tone": "light"})
    material = Material(lessons.pixels, lessons.latents, torch.arange(64) % 2, groups, np.array([0.9, 0.1]))
    drawn = Training(material, Settings(**SMALL), CPU)._asked(4000, seeded())
    assert float(drawn.float().mean()) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"target": {"tone": {"dark": 0.5, "green": 0.3, "light": 0.2}}, "classifier": Looking()}, "green"),
        ({"target": {"tone": {"dark": 0.5, "light": 0.5}}}, "add --classifier or --conditional"),
        ({"target": {"size": {"small": 1.0}}, "classifier": Looking()}, "attribute with a target 'size'"),
        ({"settings": {"latent_size": 9}}, "latent_size=9 is not allowed here"),
        ({"attributes": ("tone",)}, "name one with --classifier"),
    ],
    ids=["class", "nobody to ask", "attribute", "latent size", "no classifier"],
)
def test_what_a_student_cannot_be_asked_is_refused(tmp_path, lamps, more, said):
    target = Targets(more.pop("target", {}))
    settings = asked(**more.pop("settings", {}))
    with pytest.raises(UserError, match=said):
        distillation.distil(lamps, tmp_path / "s", settings, target=target, **more)
    assert not list(tmp_path.iterdir())


def test_a_classifier_that_knows_none_of_the_chosen_attributes_is_refused(tmp_path, lamps, chosen):
    other = Chosen(chosen.ids, chosen.group, chosen.groups, ("hat",))
    with pytest.raises(UserError, match="attribute of brightness 'hat'"):
        distillation.distil(lamps, tmp_path / "s", asked(), chosen=other, classifier=Looking())


def test_latents_that_are_not_normal_are_refused(tmp_path, lamps):
    odd = replace(lamps, latents=lamps.latents + 1)
    with pytest.raises(UserError, match="given standard normal numbers"):
        distillation.distil(odd, tmp_path / "s", asked())


def test_a_refused_training_leaves_nothing(tmp_path, lamps):
    with pytest.raises(UserError, match="asked for a group"):
        distillation.distil(lamps, tmp_path / "s", asked(group=0.3), classifier=Looking())
    blind = type("Blind", (Looking,), {"differentiable": False})()
    with pytest.raises(UserError, match="gives no gradient, which diversity needs"):
        distillation.distil(lamps, tmp_path / "s", asked(diversity=0.3), classifier=blind)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_half_precision_trains_and_is_kept_in_full(tmp_path, lamps, chosen):
    settings = asked(precision="bf16", gradient_penalty=1.0, kind="non_saturating", fresh=True, group=0.3)
    folder = distillation.distil(lamps, tmp_path / "s", settings, chosen=chosen, conditional=True, classifier=Looking())
    assert all(value.dtype == torch.float32 for value in teachers.load(folder).net.parameters())
    seen = []
    training = Training(linear_lessons(64), Settings(**SMALL, precision="bf16"), CPU)
    training.net.blocks[0].point1.register_forward_hook(lambda module, given, made: seen.append(made.dtype))
    training.train_epoch()
    assert set(seen) == {torch.bfloat16}


def test_a_feature_that_hardly_varies_does_not_outweigh_all_others():
    class Dead(Looking):
        def features(self, image):
            plain = functional.adaptive_avg_pool2d(image, 2).flatten(1)
            return torch.cat([plain, (image.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] - 0.6).clamp(min=0)], 1)

    reference = np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3), dtype=np.uint8)
    chooser = choosing.Chooser(reference, Dead(), {}, 1.0, 64, CPU)
    usual = np.sqrt(np.mean(np.square(chooser._seen(torch.from_numpy(reference).permute(0, 3, 1, 2) / 255)[0].numpy()
                                      .std(0))))  # fmt: skip
    assert chooser._spread[-1] == pytest.approx(0.1 * usual, rel=1e-4)
    assert (chooser._spread[:-1] > 0.5 * usual).all()


def test_without_features_mean_colours_choose_and_the_classifier_still_counts():
    reference = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    script = type("Script", (Looking,), {"has_features": False})()
    chooser = choosing.Chooser(reference, script, {"tone": torch.tensor([0.5, 0.5])}, 1.0, 64, CPU)
    assert chooser.extractor == "mean colours of 8 x 8 areas"
    assert set(chooser.score(StudentNet(size=8, latent_size=4, channels=4).eval())) == {"kid", "variation", "score"}


def test_features_that_are_no_numbers_choose_nothing():
    reference = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    odd = type("Odd", (Looking,), {"features": lambda self, image: image.flatten(1) * float("nan")})()
    with pytest.raises(UserError, match="are not finite"):
        choosing.Chooser(reference, odd, {}, 1.0, 64, CPU).score(StudentNet(size=8, latent_size=4, channels=4).eval())


def test_an_image_that_is_there_several_times_is_held_out_with_all_its_rows():
    image = np.repeat(np.arange(100), 3)
    material = Material(np.zeros((300, 8, 8, 3), np.uint8), image=image)
    held = distilling._held_out(material, 1)
    assert held.sum() == 3 * 16
    assert not set(image[held]) & set(image[~held])
    assert distilling._held_out(Material(np.zeros((40, 1, 1, 3), np.uint8)), 1).sum() == 16
    assert distilling._held_out(Material(np.zeros((20_000, 1, 1, 3), np.uint8)), 1).sum() == 1000


@pytest.mark.parametrize(("labels", "high"), [(0, 8), (2, 8), (3, 6), (7, 7), (14, 14)])
def test_a_grid_asks_each_latent_for_every_label(tmp_path, labels, high):
    net = StudentNet(size=8, latent_size=4, channels=4, num_labels=labels).eval()
    asked_for = []
    hook = net.register_forward_hook(lambda module, given, made: asked_for.append(given))
    distilling.draw_grid(net, tmp_path / "grid.png", CPU)
    hook.remove()
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (8 * 66 + 2, high * 66 + 2)
    latent, label = asked_for[0]
    if labels:
        each = {tuple(row): set() for row in latent.tolist()}
        for row, wanted in zip(latent.tolist(), label.tolist(), strict=True):
            each[tuple(row)].add(wanted)
        assert all(found == set(range(labels)) for found in each.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["net"].update(channels=10**9), lambda info: info.update(labels=["one"]),
        lambda info: info.pop("title"), lambda info: info.update(net=[]),
        lambda info: info["net"].update(latent_size=-1), lambda info: info.update(format=9),
    ],
    ids=["too large", "labels", "no title", "no net", "negative", "format"],
)  # fmt: skip
def test_a_students_description_is_not_believed(tmp_path, lamps, change):
    folder = distillation.distil(lamps, tmp_path / "s", asked(epochs=1, steps=1))
    info = json.loads((folder / "student.json").read_text())
    change(info)
    (folder / "student.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="make it again"):
        teachers.load(folder)


def test_a_damaged_student_is_no_traceback_where_it_would_be_made_again(tmp_path, lamps):
    folder = distillation.distil(lamps, tmp_path / "s", asked(epochs=1, steps=1))
    (folder / "student.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        distillation.distil(lamps, folder, asked(epochs=1, steps=1))


# ---- the cheap rival


class Halves(nn.Module):
    """A probe whose answer follows from the first number of a latent."""

    def __init__(self, shift=0.0, slope=2.0):
        super().__init__()
        self.shift, self.slope = nn.Parameter(torch.tensor(float(shift))), slope

    def forward(self, latent):
        return torch.stack([torch.zeros(len(latent)), self.slope * (latent[:, 0] - self.shift)], 1)


class Echo(Generator):
    """A teacher whose images say the first three numbers of the latent."""

    def __init__(self, **more):
        super().__init__(title="echo", latent_size=4, size=8, fingerprint="2" * 16, **more)

    def draw(self, latent, label):
        return torch.sigmoid(latent[:, :3, None, None]).expand(-1, -1, 8, 8)


def probe(shift=0.0, size=4, slope=2.0):
    return LatentProbe(("dark", "light"), ("tone",), size, None, Halves(shift, slope).requires_grad_(False))


def test_fair_latents_follow_those_of_the_group():
    sampler = FairSampler(Echo(), probe(), seed=1)
    latent = sampler.latents(4000, 5)
    for label, sign in ((0, -1), (1, 1)):
        found = sampler.sample(latent, torch.full((4000,), label))[:, 0, 0, 0].double()
        found = torch.log(found / (1 - found))
        z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        weight = torch.exp(-z * z / 2) * torch.sigmoid(sign * 2 * z)  # p(z) p(group | z)
        mean = float((z * weight).sum() / weight.sum())
        deviation = float((z * z * weight).sum() / weight.sum() - mean**2) ** 0.5
        assert float(found.mean()) == pytest.approx(mean, abs=0.06)
        assert float(found.std()) == pytest.approx(deviation, abs=0.06)


def test_fair_latents_are_always_the_same_for_a_latent_and_a_label():
    sampler = FairSampler(Echo(), probe())
    latent = sampler.latents(64, 5)
    dark, light = (sampler.sample(latent, torch.full((64,), label)) for label in (0, 1))
    assert torch.equal(dark[10:20], sampler.sample(latent[10:20], torch.zeros(10, dtype=torch.int64)))
    assert (dark != light).flatten(1).any(1).all()
    assert len(torch.unique(dark[:, :, 0, 0], dim=0)) > 60  # another latent, another image
    assert (sampler.attribute, sampler.labels) == ("tone", ("dark", "light"))


def test_another_probe_or_seed_is_another_generator():
    found = {FairSampler(Echo(), probe(shift), seed).fingerprint for shift, seed in ((0, 0), (0.5, 0), (0, 1))}
    assert len(found) == 3
    assert FairSampler(Echo(), probe()).fingerprint in found


@pytest.mark.parametrize(
    ("teacher", "given", "said"),
    [
        (Echo(), probe(size=5), "latents of 5 numbers"),
        (Echo(), probe(shift=9.0, slope=8.0), "hardly ever makes that group"),
        (Echo(attribute="tone", labels=("dark", "light")), probe(), "asked for its tone already"),
    ],
    ids=["other latents", "rare group", "labels"],
)
def test_a_teacher_that_cannot_be_sampled_fairly_is_refused(teacher, given, said):
    with pytest.raises(UserError, match=said):
        FairSampler(teacher, given)
