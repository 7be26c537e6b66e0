"""Fair latents: with a teacher whose groups are known for every latent, so that the truth is known."""

import json
import math

import numpy as np
import pytest
import torch

from evenlens.errors import UserError
from evenlens.generation import Labels, latent_probe, write_labels
from evenlens.generation.balancing import grouped
from evenlens.generation.fair_latents import check_normal, draw_latents, labelled_latents, normal_prior
from evenlens.generation.generator import Generator
from evenlens.generation.labels import Attribute
from evenlens.generation.latent_probe import Judged, LatentProbe, _Net, fit_probe
from evenlens.generation.samples import Samples, make_samples

SIZE, NOISE, SHIFT = 8, 0.1, 0.86  # four in five images are of the first group
DIRECTION = torch.linspace(-1, 1, SIZE) / torch.linspace(-1, 1, SIZE).norm()
EVEN = np.array([0.5, 0.5])
PRIOR = normal_prior(SIZE)


def group_of(latent, seed, noise=NOISE):
    """The second group where w.z + shift + logistic noise is below 0: p(second | z) = sigmoid(-(w.z + shift) / s)."""
    random = torch.rand(len(latent), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (latent @ DIRECTION + SHIFT + noise * torch.logit(random) < 0).long().numpy()


def shares_of(group):
    return np.bincount(group, minlength=2) / len(group)


def apart(shares, target=EVEN):
    return np.abs(shares - target).sum() / 2


def exact(noise=NOISE):
    """The probe that knows the truth."""
    net = _Net("linear", SIZE, 2)
    net.last.weight.data[1] = -DIRECTION / noise
    net.last.bias.data = torch.tensor([0.0, -SHIFT / noise])
    judged = Judged("linear", 1, 1, 0.0, 1.0, 0.1, 1.0, 0.5)
    return LatentProbe(("light", "dark"), ("skin",), SIZE, judged, net.eval().requires_grad_(False))


@pytest.fixture(scope="module")
def learned():
    latent = PRIOR(5000, 1)
    return fit_probe(latent.numpy(), group_of(latent, 2), ("light", "dark"), ("skin",))


@pytest.fixture(scope="module")
def ignorant():
    latent = PRIOR(3000, 1)
    shuffled = np.random.default_rng(0).permutation(group_of(latent, 2))
    return fit_probe(latent.numpy(), shuffled, ("light", "dark"), ("skin",))


# ---- with the truth for a probe


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
def test_the_groups_follow_the_target_where_the_prior_is_far_from_it(noise):
    assert apart(shares_of(group_of(PRIOR(50_000, 5), 6, noise))) == pytest.approx(0.3, abs=0.03)
    found = draw_latents(exact(noise), PRIOR, 20_000, EVEN)
    assert apart(shares_of(group_of(found.latents, 7, noise))) < 0.02
    assert apart(found.expected) < 1e-6
    assert apart(found.prior) == pytest.approx(0.3, abs=0.03)


def test_another_target_is_met_and_a_group_of_no_share_is_left_out():
    found = draw_latents(exact(), PRIOR, 20_000, np.array([0.3, 0.7]))
    np.testing.assert_allclose(shares_of(group_of(found.latents, 7)), [0.3, 0.7], atol=0.02)
    found = draw_latents(exact(0.001), PRIOR, 2000, np.array([0.0, 1.0]))
    assert shares_of(group_of(found.latents, 7, 0.001))[1] > 0.99


def test_within_a_group_latents_are_those_that_the_generator_draws():
    found = draw_latents(exact(), PRIOR, 20_000, EVEN)
    pool = PRIOR(400_000, 11)
    truth = group_of(pool, 12)
    for k in range(2):
        mine, all_of_it = found.latents[found.group == k].numpy(), pool[truth == k].numpy()
        error = all_of_it.std(axis=0) / math.sqrt(len(mine))
        assert (np.abs(mine.mean(axis=0) - all_of_it.mean(axis=0)) < 4.5 * error).all()
        np.testing.assert_allclose(np.cov(mine.T), np.cov(all_of_it.T), atol=0.06)
        along, along_all = mine @ DIRECTION.numpy(), all_of_it @ DIRECTION.numpy()
        ends = np.quantile(along_all, [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(np.searchsorted(np.sort(along), ends) / len(along), [0.05, 0.25, 0.5, 0.75, 0.95],
                                   atol=0.025)  # fmt: skip


def test_latents_are_different_in_random_order_and_as_many_for_each_group_as_is_aimed_at():
    found = draw_latents(exact(), PRIOR, 1000, EVEN, seed=3)
    assert found.latents.shape == (1000, SIZE)
    assert len(torch.unique(found.latents, dim=0)) == 1000
    assert np.abs(np.bincount(found.group) - 1000 * found.aimed).max() < 1
    assert 0.3 < found.group[:300].mean() < 0.8
    least = (found.prior / found.aimed).min()  # what rejection with the bound takes
    assert found.acceptance == pytest.approx(least, rel=0.05)


def test_the_same_seed_gives_the_same_latents_and_another_gives_others():
    one, again, other = (draw_latents(exact(), PRIOR, 500, EVEN, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.latents, again.latents)
    np.testing.assert_array_equal(one.group, again.group)
    for others in (other.latents, PRIOR(20_000, 3)):  # also of samples of the same seed
        assert len(torch.unique(torch.cat([one.latents, others]), dim=0)) == 500 + len(others)


def test_three_groups_are_evened():
    corners = torch.tensor([[1.0, 0], [-0.5, 0.8], [-0.5, -0.8]]) * 4
    net = _Net("linear", 2, 3)
    net.last.weight.data, net.last.bias.data = corners, torch.tensor([2.0, 0, -2.0])
    probe = LatentProbe(("a", "b", "c"), ("x",), 2, exact().judged, net.eval().requires_grad_(False))
    found = draw_latents(probe, normal_prior(2), 20_000, np.full(3, 1 / 3))
    random = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    made = (random > probe.probability(found.latents).cumsum(1)).sum(1).numpy()
    assert found.distance(found.prior) > 0.1
    assert found.distance(np.bincount(made, minlength=3) / 20_000) < 0.02


def test_where_the_latent_hardly_decides_the_shares_stay_short_and_that_is_expected():
    found = draw_latents(exact(3.0), PRIOR, 20_000, EVEN)
    made = shares_of(group_of(found.latents, 7, 3.0))
    assert found.aimed.tolist() == [0.0, 1.0]
    assert 0.03 < apart(found.expected) < apart(found.prior)
    np.testing.assert_allclose(made, found.expected, atol=0.015)


# ---- with a probe that has learned


def test_a_probe_learns_and_the_groups_follow_the_target(learned):
    judged = learned.judged
    assert judged.learned
    assert (judged.num_fit, judged.num_judged) == (3500, 750)
    latent = PRIOR(50_000, 21)
    truth = torch.from_numpy(group_of(latent, 22))
    best = -float(exact().probability(latent).log()[torch.arange(50_000), truth].mean())
    mine = -float(learned.probability(latent).log()[torch.arange(50_000), truth].mean())
    assert best <= mine < best + 0.02
    assert judged.loss == pytest.approx(mine, abs=0.05)
    assert judged.loss_of_shares == pytest.approx(0.5, abs=0.04)
    assert judged.accuracy > 0.93 > 0.85 > judged.accuracy_of_shares
    found = draw_latents(learned, PRIOR, 20_000, EVEN)
    assert apart(shares_of(group_of(found.latents, 7))) < 0.02


def test_a_probe_of_shuffled_groups_says_that_it_learned_nothing_and_leaves_the_shares(ignorant):
    judged = ignorant.judged
    assert not judged.learned
    assert judged.loss == pytest.approx(judged.loss_of_shares, abs=0.01)
    found = draw_latents(ignorant, PRIOR, 20_000, EVEN)
    assert apart(shares_of(group_of(found.latents, 7))) == pytest.approx(0.3, abs=0.03)
    assert apart(found.expected) == pytest.approx(apart(found.prior), abs=1e-6)
    assert apart(found.prior) == pytest.approx(0.3, abs=0.03)


def test_a_bent_boundary_is_learned_by_the_network_with_a_hidden_layer():
    latent = normal_prior(2)(6000, 1)
    probe = fit_probe(latent.numpy(), (latent.norm(dim=1) < 0.8).long().numpy(), ("far", "near"))
    assert probe.judged.kind == "mlp"
    assert probe.judged.accuracy > 0.95 > 0.8 > probe.judged.accuracy_of_shares


def test_fitting_is_the_same_for_a_seed_and_leaves_the_global_numbers_alone(quick):
    latent = PRIOR(400, 1)
    group = group_of(latent, 2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, again = (fit_probe(latent.numpy(), group, ("light", "dark"), seed=5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.judged == again.judged
    assert torch.equal(one.probability(latent), again.probability(latent))


def test_a_latent_that_never_changes_does_no_harm(quick):
    latent = PRIOR(400, 1)
    latent[:, 3] = 7.0
    probe = fit_probe(latent.numpy(), group_of(latent, 2), ("light", "dark"))
    assert probe.probability(latent).isfinite().all()


# ---- its file


def test_a_probe_is_kept_in_a_file(learned, tmp_path):
    learned.save(tmp_path / "deep" / "probe.safetensors")
    read = LatentProbe.load(tmp_path / "deep" / "probe.safetensors")
    latent = PRIOR(50, 3)
    assert torch.equal(read.probability(latent), learned.probability(latent))
    assert (read.groups, read.attributes, read.judged) == (("light", "dark"), ("skin",), learned.judged)
    assert read.probability(latent).sum(1).numpy() == pytest.approx(np.ones(50), abs=1e-12)
    with pytest.raises(UserError, match=r"written as .safetensors"):
        learned.save(tmp_path / "probe.pt")


def test_another_file_is_no_probe(learned, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(UserError, match="There is no probe"):
        LatentProbe.load(tmp_path / "nowhere.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    learned.save(tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "good.safetensors").read_bytes()[:-9])
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    for name in ("other", "cut", "pickle"):
        with pytest.raises(UserError, match="is no probe of latents, or a damaged one"):
            LatentProbe.load(tmp_path / f"{name}.safetensors")


# ---- what is refused


def test_what_cannot_be_drawn_or_fitted_is_refused():
    probe, latent = exact(), PRIOR(100, 1)
    with pytest.raises(UserError, match="0 latents for 2 groups"):
        draw_latents(probe, PRIOR, 0, EVEN)
    with pytest.raises(UserError, match="ask for at least one, and for a share of each of light, dark"):
        draw_latents(probe, PRIOR, 5, np.full(3, 1 / 3))
    with pytest.raises(UserError, match=r"fitted to latents of 8 numbers, and was given \(16384, 3\)"):
        draw_latents(probe, normal_prior(3), 5, EVEN)
    rare = exact()
    rare.net.last.bias.data = torch.tensor([60.0, 0.0])
    with pytest.raises(UserError, match="'dark' is so rare"):
        draw_latents(rare, PRIOR, 5, EVEN)
    with pytest.raises(UserError, match="There is 5 labelled images of 'b'"):
        fit_probe(latent.numpy(), (np.arange(100) < 5).astype(int), ("a", "b"))
    with pytest.raises(UserError, match="There is one group alone"):
        fit_probe(latent.numpy(), np.zeros(100, dtype=int), ("a",))


@pytest.mark.parametrize(("latents", "fine"), [
    (np.random.default_rng(0).normal(size=(300, 8)), True), (np.random.default_rng(0).normal(size=(20, 2)), True),
    (np.random.default_rng(0).uniform(size=(300, 8)), False),
    (np.random.default_rng(0).normal(0, 0.7, (300, 8)), False),
    (np.random.default_rng(0).normal(1, 1, (300, 8)), False),
], ids=["normal", "few", "uniform", "truncated", "shifted"])  # fmt: skip
def test_latents_that_are_not_normal_want_their_generator(latents, fine):
    if fine:
        check_normal(latents)
    else:
        with pytest.raises(UserError, match="name what made them with --generator"):
            check_normal(latents)


# ---- from samples, and the command


class Toy(Generator):
    """Grey images: light or dark, by the latent."""

    def __init__(self, shift=SHIFT):
        super().__init__(title="toy", latent_size=SIZE, size=2, fingerprint="0" * 16)
        self.shift = shift

    def draw(self, latent, label):
        return ((latent @ DIRECTION + self.shift) > 0).float()[:, None, None, None].expand(-1, 3, 2, 2)


def toy(device):
    return Toy()


def few(device):
    class Few(Toy):
        def latents(self, count, seed):
            raise UserError("There are 3.")

    return Few()


def labels_of(ids, codes, lost=0):
    """Labels of images, the last ones without a face."""
    codes = np.append(codes[: len(codes) - lost], np.full(lost, -1))
    skin = Attribute(("dark", "light"), codes)
    return Labels(np.asarray(ids), np.zeros(len(ids), dtype=int), (codes >= 0).astype(int), {"skin": skin})


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(latent_probe, "STEPS", 300)


@pytest.fixture
def here(tmp_path, quick):
    samples = make_samples(Toy(), tmp_path / "samples", 600)
    bright = (samples.pixels()[:, 0, 0, 0] > 0).astype(int)
    order = np.random.default_rng(0).permutation(600)
    write_labels(labels_of(samples.ids[order], bright[order], lost=20), tmp_path / "labels.parquet")
    return tmp_path


def test_each_labelled_image_gets_the_latent_of_its_own_id():
    random = np.random.default_rng(0)
    ids = np.array([f"{k:06d}.png" for k in range(50)])
    latents = random.normal(size=(50, 4)).astype(np.float32)
    codes = (latents[:, 0] > 0).astype(int)
    order = random.permutation(50)[:40]
    found = grouped(labels_of(ids[order], codes[order], lost=5), ["skin"])
    known = labelled_latents(Samples("samples", ids, latents), found)
    assert known.latents.shape == (35, 4)
    np.testing.assert_array_equal(known.group, (known.latents[:, 0] > 0).astype(int))
    assert known.groups == ("dark", "light")
    assert known.target.tolist() == [0.5, 0.5]
    with pytest.raises(UserError, match=r"1 of 40 labelled images, such as 'x.png', are not in samples"):
        labelled_latents(
            Samples("samples", ids, latents), grouped(labels_of([*ids[:39], "x.png"], codes[:40]), ["skin"])
        )
    with pytest.raises(UserError, match="was made on request, with a sex for each image"):
        labelled_latents(Samples("samples", ids, latents, codes, ("m", "f"), "sex"), found)


def test_the_command_writes_latents_that_make_even_groups(command, here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ("generate", "latents", "samples", "labels.parquet")
    ended = command(*words, "out/fair.npy", "--attribute", "skin", "--count", "2000", "--probe", "probe.safetensors")
    assert (ended.code, ended.err.strip()) == (0, "")
    latents = torch.from_numpy(np.load(here / "out" / "fair.npy"))
    assert latents.shape == (2000, SIZE)
    assert latents.dtype == torch.float32
    bright = float((Toy().sample(latents)[:, 0, 0, 0] > 0).float().mean())
    assert abs(bright - 0.5) < 0.08  # 580 labels
    found = json.loads((here / "out" / "fair.json").read_text())
    assert found["probe"]["learned"]
    assert found["count"] == 2000
    assert [one["name"] for one in found["groups"]] == ["dark", "light"]
    assert found["prior_total_variation"] == pytest.approx(0.3, abs=0.05)
    assert found["acceptance"] == found["accepted"] / found["proposed"]
    assert "held-out latents, where the shares alone have" in " ".join(ended.out.split())
    assert "of those looked at were accepted" in ended.out
    assert "learned nothing" not in ended.out
    assert LatentProbe.load(here / "probe.safetensors").groups == ("dark", "light")
    first = latents
    more = ("--attribute", "skin", "--count", "2000", "--generator", "tests.test_fair_latents:toy")
    ended = command(*words, "again.npy", *more)
    assert ended.code == 0, ended.err
    assert torch.equal(torch.from_numpy(np.load(here / "again.npy")), first)  # it draws normal numbers too


def test_the_command_says_that_nothing_was_learned(command, here):
    samples = Samples.open(here / "samples")
    codes = np.random.default_rng(4).permutation(np.arange(600) % 5 > 0).astype(int)
    write_labels(labels_of(samples.ids, codes), here / "wrong.csv")
    ended = command("generate", "latents", "samples", "wrong.csv", "fair.npy", "--attribute", "skin", "--count", "50")
    assert ended.code == 0, ended.err
    assert "The probe learned nothing that chance does not explain" in " ".join(ended.out.split())
    assert not json.loads((here / "fair.json").read_text())["probe"]["learned"]


@pytest.mark.parametrize(("words", "said"), [
    (["samples", "labels.parquet", "fair.npz", "--attribute", "skin"], "latents are written as .npy"),
    (["samples", "labels.parquet", "fair.npy", "--attribute", "skim"], "did you mean 'skin'?"),
    (["nowhere", "labels.parquet", "fair.npy", "--attribute", "skin"], "There is no folder nowhere"),
    (["samples", "labels.parquet", "fair.npy", "--attribute", "skin", "--probe", "p.pt"], "written as .safetensors"),
    (["samples", "labels.parquet", "fair.npy", "--attribute", "skin", "--generator", "gone.onnx"], "no generator at"),
    (["samples", "labels.parquet", "fair.npy", "--attribute", "skin", "--generator", "tests.test_fair_latents:few"],
     "There are no 16,384 latents to choose from (There are 3): take a generator that makes new images"),
    (["samples", "labels.parquet", "fair.npy", "--attribute", "skin", "--target", "skin=dark:.2,light:.3,blue:.5"],
     "The target wants a share of 0.5 of 'blue' (skin), and no image is in it"),
], ids=["ending", "attribute", "folder", "probe", "generator", "few", "group"])  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(refused, here, words, said):
    before = sorted(here.iterdir())
    assert said in refused("generate", "latents", *words)
    assert sorted(here.iterdir()) == before
