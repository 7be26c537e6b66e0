"""The StyleGAN2 generator against a slow one written out from its description, and what is refused of its files."""

import io
import json
import math
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evenlens.errors import UserError
from evenlens.generation import teachers
from evenlens.generation.teachers import _nvidia, converting, stylegan2
from evenlens.generation.teachers.stylegan2 import Config, StyleGAN2Net

CPU = torch.device("cpu")
SMALL = Config((12, 8, 6), z_dim=10, w_dim=9, num_layers=3)  # 16 px


def network(config=SMALL, seed=0):
    """Random weights, with none of those zero that a fresh network has at zero."""
    torch.manual_seed(seed)
    net = StyleGAN2Net(config).eval().requires_grad_(False)
    for name, value in net.state_dict().items():
        if name.endswith(("bias", "noise_strength", "w_avg")):
            value.add_(0.3 * torch.randn_like(value))
    return net


# ---- the formulas, written out in float64 with loops


def dense(x, state, name, rate=1.0):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return x @ (weight * rate / math.sqrt(weight.shape[1])).T + bias * rate


def lrelu(x):
    return np.where(x >= 0, x, 0.2 * x) * math.sqrt(2)


def normed(x):
    return x / np.sqrt((x**2).mean() + 1e-8)


def correlate(x, weight, padding):
    """Every sum of a convolution one by one: x (C, H, W), weight (O, C, k, k)."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    k = weight.shape[2]
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    out = np.zeros((weight.shape[0], height, width))
    for row in range(height):
        for column in range(width):
            out[:, row, column] = np.einsum("cij,ocij->o", x[:, row : row + k, column : column + k], weight)
    return out


def spread(x, weight):
    """A transposed convolution of stride 2 without padding: each pixel paints its kernel."""
    _, height, width = x.shape
    out = np.zeros((weight.shape[0], 2 * height + 1, 2 * width + 1))
    for row in range(height):
        for column in range(width):
            out[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] += np.einsum(
                "c,ocij->oij", x[:, row, column], weight
            )
    return out


FIR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def filtered(x, before, after):
    x = np.pad(x, ((0, 0), (before, after), (before, after)))
    return np.stack([correlate(channel[None], 4 * FIR[None, None], 0)[0] for channel in x])


def modulated(weight, style):
    scaled = weight * style[None, :, None, None]
    return scaled / np.sqrt((scaled**2).sum((1, 2, 3)) + 1e-8)[:, None, None, None]


def layer(x, w, state, name, up):
    weight = modulated(state[f"{name}.weight"], dense(w, state, f"{name}.affine"))
    x = filtered(spread(x, weight), 1, 1) if up else correlate(x, weight, 1)
    x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
    return lrelu(x + state[f"{name}.bias"][:, None, None])


def plain(state, config, z, label=None, truncation=1.0):
    state = {name: value.double().numpy() for name, value in state.items()}
    w = normed(z)
    if label is not None:
        w = np.concatenate([w, normed(dense(np.eye(config.c_dim)[label], state, "mapping.embed"))])
    for number in range(config.num_layers):
        w = lrelu(dense(w, state, f"mapping.fc{number}", 0.01))
    w = state["mapping.w_avg"] + truncation * (w - state["mapping.w_avg"])
    x, image = state["synthesis.b4.const"], None
    for level in range(len(config.channels)):
        name = f"synthesis.b{4 * 2**level}"
        if level:
            x = layer(x, w, state, f"{name}.conv0", up=True)
        x = layer(x, w, state, f"{name}.conv1", up=False)
        style = dense(w, state, f"{name}.torgb.affine") / math.sqrt(x.shape[0])
        colours = correlate(x, state[f"{name}.torgb.weight"] * style[None, :, None, None], 0)
        colours = colours + state[f"{name}.torgb.bias"][:, None, None]
        if image is not None:
            put_between = np.zeros((3, 2 * image.shape[1], 2 * image.shape[2]))
            put_between[:, ::2, ::2] = image
            colours = colours + filtered(put_between, 2, 1)
        image = colours
    return image


@pytest.mark.parametrize("truncation", [1.0, 0.7, 0.0], ids=["none", "some", "all"])
def test_images_are_those_of_the_formulas_written_out(truncation):
    net = network()
    latent = torch.randn(2, 10, generator=torch.Generator().manual_seed(5))
    found = net(latent, truncation=truncation)
    for row in range(2):
        wanted = plain(net.state_dict(), SMALL, latent[row].double().numpy(), truncation=truncation)
        assert np.abs(found[row].double().numpy() - wanted).max() < 1e-5
    assert found.shape == (2, 3, 16, 16)
    alike = torch.allclose(found[0], found[1], rtol=0, atol=1e-6)  # a CPU may round the rows of a batch otherwise
    assert alike == (truncation == 0)


def test_a_class_enters_beside_the_latent():
    config = Config((6, 4), z_dim=5, w_dim=7, c_dim=3, num_layers=2)
    net = network(config)
    latent = torch.randn(1, 5).expand(3, 5)
    found = net(latent, torch.arange(3))
    for label in range(3):
        wanted = plain(net.state_dict(), config, latent[0].double().numpy(), label)
        assert np.abs(found[label].double().numpy() - wanted).max() < 1e-5
    assert not torch.allclose(found[0], found[1])


def test_the_network_at_1024_pixels_has_as_many_parameters_as_the_authors():
    config = Config.standard(1024)
    assert config.channels == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    with torch.device("meta"):
        net = StyleGAN2Net(config)
    count = {name: sum(value.numel() for value in part.parameters()) for name, part in net.named_children()}
    assert count["mapping"] == 2_101_248
    assert sum(count.values()) == 30_370_060


def test_tensors_are_called_as_in_the_authors_files():
    wanted = {"mapping.w_avg", "synthesis.b4.const"}
    wanted |= {f"mapping.fc{number}.{kind}" for number in range(3) for kind in ("weight", "bias")}
    for size, convolutions in ((4, ["conv1"]), (8, ["conv0", "conv1"]), (16, ["conv0", "conv1"])):
        for name in convolutions:
            ends = ("weight", "bias", "noise_const", "noise_strength", "affine.weight", "affine.bias")
            wanted |= {f"synthesis.b{size}.{name}.{end}" for end in ends}
        wanted |= {f"synthesis.b{size}.torgb.{end}" for end in ("weight", "bias", "affine.weight", "affine.bias")}
    assert set(network().state_dict()) == wanted


# ---- files


def test_what_is_written_is_read_again(tmp_path):
    net = network()
    stylegan2.write(tmp_path / "net.safetensors", net)
    made = teachers.load(tmp_path / "net.safetensors", CPU)
    latent = made.latents(3, 0)
    assert torch.equal(made.sample(latent), ((net(latent) + 1) / 2).clamp(0, 1))
    assert (made.latent_size, made.size, made.labels) == (10, 16, ())
    assert made.settings == {"truncation": 1.0}
    assert made.num_parameters == sum(value.numel() for value in net.parameters())
    assert made.num_bytes == (tmp_path / "net.safetensors").stat().st_size


def test_truncation_is_written_down_and_changes_the_fingerprint(tmp_path):
    stylegan2.write(tmp_path / "net.safetensors", network())
    one, half = (teachers.load(tmp_path / "net.safetensors", CPU, truncation=value) for value in (1, 0.5))
    assert half.settings == {"truncation": 0.5}
    assert one.fingerprint != half.fingerprint
    assert not torch.equal(one.sample(one.latents(1, 0)), half.sample(one.latents(1, 0)))


def test_a_file_without_a_form_or_with_filters_is_read_too(tmp_path):
    net = network()
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file({**state, "synthesis.b8.resample_filter": torch.zeros(4, 4)}, tmp_path / "plain.safetensors")
    assert stylegan2.read(tmp_path / "plain.safetensors").config == SMALL


def test_classes_have_names(tmp_path):
    stylegan2.write(tmp_path / "net.safetensors", network(Config((6, 4), 5, 7, 2, 2)))
    made = teachers.load(tmp_path / "net.safetensors", CPU, labels=["Black", "White"], attribute="race")
    assert (made.labels, made.attribute) == (("Black", "White"), "race")
    assert made.sample(made.latents(2, 0), torch.tensor([0, 1])).shape == (2, 3, 8, 8)
    assert teachers.load(tmp_path / "net.safetensors", CPU).labels == ("0", "1")
    with pytest.raises(UserError, match="3 labels were named, and the generator takes 2"):
        teachers.load(tmp_path / "net.safetensors", CPU, labels=["a", "b", "c"])


def wrong(state, kind):
    key = "synthesis.b8.conv0.weight"
    if kind == "missing":
        del state[key]
    elif kind == "added":
        state["synthesis.b8.conv7.weight"] = torch.zeros(1)
    elif kind == "shape":
        state[key] = state[key][:-1].contiguous()
    elif kind == "nan":
        state[key].fill_(math.nan)
    elif kind == "other":
        state = {"layer.weight": torch.zeros(2, 2)}
    return state


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "synthesis.b8.conv0.weight is missing"),
        ("added", "synthesis.b8.conv7.weight belongs to no StyleGAN2"),
        ("shape", r"synthesis.b8.conv0.weight is \(7, 12, 3, 3\), where \(8, 12, 3, 3\) is wanted"),
        ("nan", "synthesis.b8.conv0.weight holds numbers that are no floats, or not finite"),
        ("other", "there is no usable"),
    ],
    ids=["missing", "added", "shape", "nan", "other"],
)
def test_other_tensors_are_refused_by_name(tmp_path, kind, said):
    state = wrong({name: value.contiguous() for name, value in network().state_dict().items()}, kind)
    save_file(state, tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=said):
        teachers.load(tmp_path / "net.safetensors", CPU)


def test_a_form_that_does_not_fit_and_a_damaged_file_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    state = {name: value.contiguous() for name, value in network().state_dict().items()}
    save_file(state, path, metadata={"config": json.dumps({"z_dim": 11})})
    with pytest.raises(UserError, match="does not fit its tensors"):
        teachers.load(path, CPU)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="no complete safetensors file"):
        teachers.load(path, CPU)


@pytest.mark.parametrize("given", [1.5, -0.1, "a", True, math.nan], ids=["large", "negative", "word", "bool", "nan"])
def test_a_truncation_outside_of_0_to_1_is_refused(tmp_path, given):
    stylegan2.write(tmp_path / "net.safetensors", network())
    with pytest.raises(UserError, match="it lies from 0 to 1"):
        teachers.load(tmp_path / "net.safetensors", CPU, truncation=given)


# ---- pickles, laid out as StyleGAN2-ADA writes them


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the stand-in is for writing only")


class Persistent:
    """Pickled as `torch_utils.persistence` does: a function, and the state beside source text."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        meta = EasyDict(type="class", version=6, module_src=SOURCE, class_name="Part", state=self.state)
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,), None


class EasyDict(dict):
    pass


SOURCE = "open('executed', 'w').close()\nclass Part: pass\n"
EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@pytest.fixture
def nvidia(monkeypatch):
    """Modules of the names that such a pickle is written with."""
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["torch_utils.persistence"], "_reconstruct_persistent_obj",
                        _reconstruct_persistent_obj, raising=False)  # fmt: skip
    monkeypatch.setattr(sys.modules["dnnlib.util"], "EasyDict", EasyDict, raising=False)


def part(module):
    own = OrderedDict((name, torch.nn.Parameter(value)) for name, value in module._parameters.items())
    buffers = OrderedDict(module._buffers)
    if isinstance(module, stylegan2.Layer):
        buffers["resample_filter"] = torch.zeros(4, 4)
    inner = OrderedDict((name, part(each)) for name, each in module._modules.items())
    more = {"training": False, "_init_kwargs": EasyDict(c_dim=0, mean=np.float32(2)), "list": np.arange(3)}
    return Persistent({"_parameters": own, "_buffers": buffers, "_modules": inner, **more})


def network_pickle(path, net, protocol=4, **others):
    content = {"G": None, "G_ema": part(net), "training_set_kwargs": EasyDict(size=torch.Size([3])), **others}
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4], ids=["old", "new"])
def test_a_network_pickle_becomes_weights_without_running_its_source(tmp_path, nvidia, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    net = network()
    path = network_pickle(tmp_path / "net.pkl", net, protocol)
    found = _nvidia.convert(path, tmp_path / "net.safetensors")
    assert (found["z_dim"], found["num_parameters"]) == (10, sum(value.numel() for value in net.parameters()))
    made = load_file(tmp_path / "net.safetensors")
    assert set(made) == set(net.state_dict())
    assert all(torch.equal(made[name], value) for name, value in net.state_dict().items())
    assert not (tmp_path / "executed").exists()


def test_the_command_converts_in_a_process_of_its_own(tmp_path, nvidia, command):
    path = network_pickle(tmp_path / "net.pkl", network())
    ended = command("generate", "convert", path, "net.safetensors", "--trust-pickle")
    assert ended.code == 0, ended
    assert "StyleGAN2 of 16 px, latents of 10, " in ended.out
    assert teachers.load(tmp_path / "net.safetensors", CPU).sample(torch.zeros(1, 10)).shape == (1, 3, 16, 16)
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.glob(".*part"))


def test_without_trust_no_pickle_is_opened(tmp_path, nvidia, refused, monkeypatch):
    path = network_pickle(tmp_path / "net.pkl", network())
    monkeypatch.setattr(converting.subprocess, "run", None)
    assert "--trust-pickle" in refused("generate", "convert", path, "net.safetensors")
    said = refused("generate", "sample", path, "faces")
    assert "is a pickle" in said
    assert "generate convert" in said
    assert not (tmp_path / "net.safetensors").exists()


class Hostile:
    def __init__(self, function, *words):
        self.function, self.words = function, words

    def __reduce__(self):
        return self.function, self.words


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Hostile(exec, "open('executed', 'w')"), "builtins.exec"),
        (Hostile(__import__, "os"), "builtins.__import__"),
        (Hostile(torch.load, "x"), "torch.serialization.load"),
        (Hostile(torch.hub.load, "x"), "torch.hub.load"),
        (Hostile(getattr, torch, "load"), "builtins.getattr"),
        (pickle.PickleBuffer, "PickleBuffer"),
    ],
    ids=["exec", "import", "torchload", "hub", "getattr", "class"],
)
def test_other_names_in_a_pickle_are_refused_by_name(tmp_path, content, said):
    if isinstance(content, Hostile) and content.function is getattr:
        content.words = ("x", "load")
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"G_ema": content}, 4))
    with pytest.raises(UserError, match=f"it uses .*{said}"):
        _nvidia.convert(tmp_path / "net.pkl", tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


def test_a_pickle_inside_of_a_storage_is_not_opened(tmp_path):
    nested = io.BytesIO()
    torch.save(Hostile(exec, "raise SystemExit"), nested, _use_new_zipfile_serialization=False)
    hostile = Hostile(torch.storage._load_from_bytes, nested.getvalue())
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"G_ema": hostile}, 4))
    with pytest.raises(UserError, match="damaged or no pickle"):
        _nvidia.convert(tmp_path / "net.pkl", tmp_path / "net.safetensors")


def test_other_pickles_are_refused(tmp_path):
    old = b"cdnnlib.tflib.network\nNetwork\n."
    for content, said in [
        (old, "TensorFlow era"),
        (pickle.dumps({"a": 1}), "no G_ema"),
        (b"\x80\x04}", "damaged or no pickle"),
        (b"", "damaged or no pickle"),
    ]:
        (tmp_path / "net.pkl").write_bytes(content)
        with pytest.raises(UserError, match=said):
            _nvidia.convert(tmp_path / "net.pkl", tmp_path / "net.safetensors")


def test_the_process_may_neither_connect_nor_start_programs():
    for event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        with pytest.raises(UserError, match=event):
            _nvidia._guard(event, ())
    assert _nvidia._guard("open", ("x",)) is None


def test_what_goes_wrong_with_the_process_is_said(tmp_path, monkeypatch):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04}.")
    target = tmp_path / "net.safetensors"

    def convert(seconds=60.0):
        return converting.convert(tmp_path / "net.pkl", target, True, seconds)

    with pytest.raises(UserError, match="took more than 0 seconds"):
        convert(0.001)
    monkeypatch.setattr(converting, "READER", "evenlens.no_such_module")
    with pytest.raises(UserError, match="ended with code 1"):
        convert()
    assert not list(tmp_path.glob(".net*"))
    target.touch()
    with pytest.raises(UserError, match="name a new file"):
        convert()
    with pytest.raises(UserError, match="There is no pickle"):
        converting.convert(tmp_path / "none.pkl", tmp_path / "b.safetensors", True)
