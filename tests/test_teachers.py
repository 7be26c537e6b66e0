"""Generators from elsewhere: ONNX, TorchScript, torch.export, functions, diffusion models; and hostile files."""

import importlib.machinery
import json
import sys
import types
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from evenlens import measuring
from evenlens.errors import UserError
from evenlens.generation import teachers

CPU = torch.device("cpu")


class Net(nn.Module):
    """A small generator: latents (B, 6), and labels as `labelled` says, to images (B, 3, 4, 4) in [-1, 1]."""

    def __init__(self, labelled=""):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.classes, self.labelled = nn.Linear(6, 48), nn.Embedding(3, 6), labelled

    def forward(self, latent, label=None):
        if label is not None:
            latent = latent + (label @ self.classes.weight if self.labelled == "one_hot" else self.classes(label))
        return torch.tanh(self.first(latent)).view(-1, 3, 4, 4)


def example(labelled, count=2):
    label = {"": None, "one_hot": torch.eye(3)[:count], "number": torch.arange(count)}[labelled]
    return (torch.zeros(count, 6),) if label is None else (torch.zeros(count, 6), label)


def wanted(net, latent, label=None):
    given = torch.eye(3)[label] if net.labelled == "one_hot" else label
    with torch.no_grad():
        return ((net(latent, given) if label is not None else net(latent)) + 1) / 2


def export_onnx(path, labelled="", fixed=0):
    """Write the same network by hand: exporting takes seconds."""
    import onnx

    net = Net(labelled).eval()
    weights = {"weight": net.first.weight.T, "bias": net.first.bias, "classes": net.classes.weight}
    arrays = {name: each.detach().numpy() for name, each in weights.items()} | {"form": np.array([-1, 3, 4, 4])}
    batch, node = fixed or "batch", onnx.helper.make_node
    inputs, nodes, latent = [value("latent", [batch, 6])], [], "latent"
    if labelled:
        one_hot = labelled == "one_hot"
        inputs.append(value("label", [batch, 3]) if one_hot else value("label", [batch], 7))
        look_up = ("MatMul", ["label", "classes"]) if one_hot else ("Gather", ["classes", "label"])
        nodes, latent = [node(*look_up, ["class"]), node("Add", ["latent", "class"], ["both"])], "both"
    nodes += [node("Gemm", [latent, "weight", "bias"], ["x"]), node("Tanh", ["x"], ["y"])]
    nodes += [node("Reshape", ["y", "form"], ["image"])]
    tensors = [onnx.numpy_helper.from_array(each, name) for name, each in arrays.items()]
    onnx.save(onnx_model(inputs, nodes, [value("image", None)], tensors), path)
    return net


def export_pt2(path, labelled="", fixed=0):
    net, args = Net(labelled).eval(), example(labelled, fixed or 2)
    shapes = None if fixed else tuple({0: torch.export.Dim("batch")} for _ in args)
    with measuring.quiet():
        torch.export.save(torch.export.export(net, args, dynamic_shapes=shapes), path)
    return net


def export_script(path, labelled="", fixed=0):
    net = Net(labelled).eval()
    with measuring.quiet():
        torch.jit.trace(net, example(labelled)).save(str(path))
    return net


EXPORTS = {"onnx": export_onnx, "pt2": export_pt2, "ts": export_script}
OPTIONS = {"onnx": {}, "pt2": {}, "ts": {"latent": 6}}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("labelled", ["", "number", "one_hot"], ids=["plain", "number", "onehot"])
def test_a_file_makes_what_its_network_makes(tmp_path, kind, labelled):
    net = EXPORTS[kind](tmp_path / f"net.{kind}", labelled)
    options = dict(OPTIONS[kind])
    if labelled and not (kind == "onnx" and labelled == "one_hot"):
        options["labels"] = ["a", "b", "c"]
    if kind == "ts" and labelled == "one_hot":
        options["one_hot"] = True
    made = teachers.load(tmp_path / f"net.{kind}", CPU, **options)
    latent, label = made.latents(5, 0), torch.tensor([0, 2, 1, 1, 0]) if labelled else None
    assert torch.allclose(made.sample(latent, label), wanted(net, latent, label), atol=1e-6)
    assert (made.latent_size, made.size, len(made.labels)) == (6, 4, 3 if labelled else 0)
    assert made.attribute == ("class" if labelled else "")
    assert made.num_parameters >= 6 * 48 + 48
    assert made.num_bytes == (tmp_path / f"net.{kind}").stat().st_size
    assert made.settings == {"range": "symmetric"}
    unit = teachers.load(tmp_path / f"net.{kind}", CPU, **options)
    assert unit.fingerprint == made.fingerprint


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
@pytest.mark.parametrize("fixed", [1, 3], ids=["one", "three"])
def test_a_file_of_a_fixed_batch_is_called_as_often_as_needed(tmp_path, kind, fixed):
    net = EXPORTS[kind](tmp_path / f"net.{kind}", "one_hot", fixed)
    made = teachers.load(tmp_path / f"net.{kind}", CPU, labels=["a", "b", "c"])
    latent, label = made.latents(4, 0), torch.tensor([0, 2, 1, 1])
    assert torch.allclose(made.sample(latent, label), wanted(net, latent, label), atol=1e-6)


@pytest.mark.parametrize("kind", EXPORTS)
def test_options_of_a_file_are_checked(tmp_path, kind):
    EXPORTS[kind](tmp_path / f"net.{kind}")
    for options, said in [
        ({"range": "unti"}, "did you mean 'unit'"),
        ({"rnage": "unit"}, "did you mean 'range'"),
        ({"latent": 7}, "7"),
        ({"latent": -1}, "whole number"),
        ({"labels": 3}, "no labels|labels"),
        ({"labels": ["a", "a"]}, "not all different|no labels"),
        ({"range": "unit"}, "range=symmetric"),
    ]:
        with pytest.raises(UserError, match=said):
            teachers.load(tmp_path / f"net.{kind}", CPU, **{**OPTIONS[kind], **options})


# ---- ONNX


def onnx_model(inputs, nodes, outputs, initializers=()):
    import onnx

    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    return model


def value(name, shape, kind=1):
    import onnx

    return onnx.helper.make_tensor_value_info(name, kind, shape)


def reshaped(shape, latent_shape):
    """A model that only gives its latents another form."""
    import onnx

    form = onnx.numpy_helper.from_array(np.array(shape, dtype=np.int64), "form")
    node = onnx.helper.make_node("Reshape", ["z", "form"], ["image"])
    return onnx_model([value("z", latent_shape)], [node], [value("image", None)], [form])


def test_latents_may_have_two_more_dimensions_and_images_be_in_0_to_1(tmp_path):
    import onnx

    onnx.save(reshaped([-1, 3, 2, 2], ["n", 12, 1, 1]), tmp_path / "net.onnx")
    made = teachers.load(tmp_path / "net.onnx", CPU, range="symmetric")
    latent = torch.rand(3, 12)
    assert torch.allclose(made.sample(latent), (latent.view(3, 3, 2, 2) + 1) / 2)
    assert made.size == 2


def test_a_length_that_the_file_does_not_say_is_asked_for(tmp_path):
    import onnx

    onnx.save(reshaped([-1, 3, 2, 2], ["n", "d"]), tmp_path / "net.onnx")
    with pytest.raises(UserError, match="say it, as latent=512"):
        teachers.load(tmp_path / "net.onnx", CPU)
    assert teachers.load(tmp_path / "net.onnx", CPU, latent=12).latent_size == 12
    with pytest.raises(UserError, match="fails on one latent of 13 numbers"):
        teachers.load(tmp_path / "net.onnx", CPU, latent=13)


def test_other_inputs_and_outputs_are_refused(tmp_path):
    import onnx

    path = tmp_path / "net.onnx"
    cases = [
        (reshaped([-1, 2, 2, 3], ["n", 12]), r"made \(1, 2, 2, 3\) of float32 of one latent"),
        (reshaped([-1, 3, 1, 4], ["n", 12]), r"made \(1, 3, 1, 4\)"),
        (reshaped([-1, 3, 2, 2], ["n", 3, 4]), "the first input of a generator are latents"),
        (
            onnx_model(
                [value("z", ["n", 12], 11)],
                [onnx.helper.make_node("Identity", ["z"], ["o"])],
                [value("o", ["n", 12], 11)],
            ),
            "z .* of double",
        ),
        (
            onnx_model(
                [value(name, ["n", 12]) for name in "abc"],
                [onnx.helper.make_node("Sum", list("abc"), ["o"])],
                [value("o", ["n", 12])],
            ),
            "after the latents a generator takes nothing, or labels",
        ),
        (
            onnx_model(
                [value("z", ["n", 12])],
                [onnx.helper.make_node("Theirs", ["z"], ["o"], domain="theirs")],
                [value("o", ["n", 12])],
            ),
            "ONNX Runtime cannot open",
        ),
    ]
    for model, said in cases:
        onnx.save(model, path)
        with pytest.raises(UserError, match=said):
            teachers.load(path, CPU)
    path.write_bytes(b"no network")
    with pytest.raises(UserError, match=r"damaged or no ONNX file|cannot open"):
        teachers.load(path, CPU)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "deep/weights.bin", "..", "link.bin", "gone.bin"],
                         ids=["above", "absolute", "below", "dots", "link", "gone"])  # fmt: skip
def test_weights_that_are_not_beside_the_file_are_refused(tmp_path, place):
    import onnx

    model = reshaped([-1, 3, 2, 2], ["n", 12])
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.external_data[0].value = place
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="takes weights from"):
        teachers.load(tmp_path / "net.onnx", CPU)


def test_weights_beside_the_file_are_read_and_change_the_fingerprint(tmp_path):
    import onnx

    found = []
    for shift in (0.0, 0.5):
        weights = onnx.numpy_helper.from_array(np.full((1, 3, 16, 16), shift, np.float32), "shift")
        form = onnx.numpy_helper.from_array(np.array([-1, 3, 1, 1], dtype=np.int64), "form")
        nodes = [onnx.helper.make_node("Reshape", ["z", "form"], ["x"]),
                 onnx.helper.make_node("Add", ["x", "shift"], ["image"])]  # fmt: skip
        model = onnx_model([value("z", ["n", 3])], nodes, [value("image", None)], [form, weights])
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=100)
        assert (tmp_path / "w.bin").is_file()
        made = teachers.load(tmp_path / "net.onnx", CPU)
        assert torch.allclose(made.sample(torch.zeros(1, 3)), torch.full((1, 3, 16, 16), (shift + 1) / 2))
        found.append(made.fingerprint)
        assert made.num_bytes == sum((tmp_path / name).stat().st_size for name in ("net.onnx", "w.bin"))
        (tmp_path / "w.bin").unlink()
    assert found[0] != found[1]


def test_without_onnx_runtime_it_is_said_what_to_install(tmp_path, monkeypatch):
    export_onnx(tmp_path / "net.onnx")
    monkeypatch.setattr(measuring.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "evenlens\[export\]"'):
        teachers.load(tmp_path / "net.onnx", CPU)


def test_noise_that_is_drawn_anew_is_refused(tmp_path):
    import onnx

    node = onnx.helper.make_node("RandomNormalLike", ["z"], ["image"])
    latent = value("z", ["n", 3, 1, 1])
    onnx.save(onnx_model([latent], [node], [value("image", ["n", 3, 1, 1])]), tmp_path / "net.onnx")
    with pytest.raises(UserError, match="another image each time of the same latent"):
        teachers.load(tmp_path / "net.onnx", CPU)


# ---- torch


def test_a_pickle_is_refused_with_the_safe_way(tmp_path):
    torch.save(Net(), tmp_path / "module.pt")
    torch.save(Net().state_dict(), tmp_path / "state.pt")
    torch.save(Net(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("module.pt", "state.pt", "old.pt"):
        with pytest.raises(UserError, match=r"is a pickle.*torch\.onnx\.export"):
            teachers.load(tmp_path / name, CPU)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="damaged, or no such file"):
        teachers.load(tmp_path / "text.pt", CPU)


def rewritten(source, target, change):
    """Copy an archive, with some parts changed or added."""
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return target


def test_torchscript_is_read_without_a_warning_and_a_pickle_in_it_is_not_run(tmp_path):
    export_script(tmp_path / "net.ts")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert teachers.load(tmp_path / "net.ts", CPU, latent=6).size == 4
    with pytest.raises(UserError, match="does not say how long its latents are: say it, latent=512"):
        teachers.load(tmp_path / "net.ts", CPU)
    with pytest.raises(UserError, match="fails on one latent of 5 numbers"):
        teachers.load(tmp_path / "net.ts", CPU, latent=5)
    hostile = f"cbuiltins\neval\n(S\"open({str(tmp_path / 'executed')!r}, 'w')\"\ntR.".encode()

    def change(parts):
        parts["net/data.pkl"] = hostile

    with pytest.raises(UserError, match="cannot be opened as TorchScript"):
        teachers.load(rewritten(tmp_path / "net.ts", tmp_path / "bad.ts", change), CPU, latent=6)
    assert not (tmp_path / "executed").exists()


def test_torchscript_that_writes_files_is_refused(tmp_path):
    class Writer(nn.Module):
        def forward(self, latent):
            torch.save(latent, "executed")
            return latent.view(-1, 3, 2, 2)

    with measuring.quiet():
        torch.jit.script(Writer()).save(str(tmp_path / "net.ts"))
    with pytest.raises(UserError, match=r"uses torch\.save, which reads or writes files"):
        teachers.load(tmp_path / "net.ts", CPU, latent=12)


MODEL = "models/model.json"


def in_model(change):
    def changed(parts):
        name = next(name for name in parts if name.endswith(MODEL))
        model = json.loads(parts[name])
        change(model, model["graph_module"]["graph"])
        parts[name] = json.dumps(model).encode()

    return changed


def set_size(text):
    def change(model, graph):
        sizes = next(iter(graph["tensor_values"].values()))["sizes"]
        sizes[0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    return in_model(change)


def set_target(text):
    return in_model(lambda model, graph: graph["nodes"][0].update(target=text))


def add_part(name, data=b"x"):
    return lambda parts: parts.update({f"net/{name}": data})


def set_pickled(parts):
    name = next(name for name in parts if name.endswith("weights_config.json"))
    config = json.loads(parts[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    parts[name] = json.dumps(config).encode()


RUNS = "__import__('os').system('touch executed')"
HOSTILE = {
    "size": (set_size(RUNS), "the size"),
    "attribute": (set_size("Integer(1).__class__"), "the size"),
    "symbol": (set_size("Symbol('s1', positive=True, integer=eval)"), "the size"),
    "operation": (set_target("torch.os.system"), "the operation 'torch.os.system'"),
    "hub": (set_target("torch.hub.load"), "the operation"),
    "read": (set_target("torch.ops.aten.from_file.default"), "the operation"),
    "dunder": (set_target("torch.ops.aten.add.Tensor.__class__"), "the operation"),
    "extension": (set_target("#pkg:op"), "the operation"),
    "name": (in_model(lambda model, graph: graph["nodes"][0].update(name=f"x={RUNS}")), "as name"),
    "pickled": (set_pickled, "a pickle"),
    "compiled": (add_part("data/aotinductor/model/model.so"), "the part data/aotinductor"),
    "weights": (add_part("data/weights/model.pt"), "the part data/weights/model.pt"),
    "constants": (add_part("data/constants/opaque_obj_0"), "the part data/constants/opaque_obj_0"),
    "tree": (in_model(lambda model, graph: model["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "theirs.Type", "context": "null", "children_spec": []}]')), "arguments in"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_exported_program_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    export_pt2(tmp_path / "net.pt2")
    change, said = HOSTILE[kind]
    with pytest.raises(UserError, match=said):
        teachers.load(rewritten(tmp_path / "net.pt2", tmp_path / "bad.pt2", change), CPU)
    assert not (tmp_path / "executed").exists()


def test_remarks_guards_and_example_inputs_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = export_pt2(tmp_path / "net.pt2")

    def change(parts):
        in_model(lambda model, graph: model.update(guards_code=[RUNS]))(parts)
        in_model(lambda model, graph: graph["nodes"][0]["metadata"].update(stack_trace=RUNS))(parts)
        parts[next(name for name in parts if "sample_inputs" in name)] = f'cbuiltins\neval\n(S"{RUNS}"\ntR.'.encode()

    made = teachers.load(rewritten(tmp_path / "net.pt2", tmp_path / "more.pt2", change), CPU)
    latent = made.latents(3, 0)
    assert torch.allclose(made.sample(latent), wanted(net, latent), atol=1e-6)
    assert not (tmp_path / "executed").exists()


def test_a_convolutional_generator_goes_through_export(tmp_path):
    """What real generators are made of is allowed: sizes that depend on the batch, constants, convolutions."""
    net = nn.Sequential(
        nn.Linear(6, 4 * 16), nn.Unflatten(1, (4, 4, 4)), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 8, 3, padding=1), nn.PixelShuffle(2),
        nn.ConvTranspose2d(2, 3, 4, 2, 1), nn.Tanh(),
    ).eval()  # fmt: skip
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with measuring.quiet(), torch.no_grad():
        torch.export.save(torch.export.export(net, (torch.zeros(2, 6),), dynamic_shapes=shapes), tmp_path / "net.pt2")
    made = teachers.load(tmp_path / "net.pt2", CPU)
    latent = made.latents(3, 0)
    with torch.no_grad():
        assert torch.allclose(made.sample(latent), (net(latent) + 1) / 2, atol=1e-5)
    assert made.size == 32


# ---- a function


def entry(tmp_path, monkeypatch, name, text):
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    return name


GOOD = """
import torch
class Made:
    latent_size = 5
    def __init__(self, low): self.low = low
    def sample(self, latent, label): return latent[:, :3, None, None].sigmoid().expand(-1, -1, 4, 4) + self.low
def make(device, low=0.0): return Made(low)
def broken(device): raise RuntimeError("no such file")
def nothing(device): return 7
NUMBER = 3
"""


def test_a_function_in_the_working_directory_gives_a_generator(tmp_path, monkeypatch):
    name = entry(tmp_path, monkeypatch, "own_generator", GOOD)
    made = teachers.load(f"{name}:make", CPU)
    latent = made.latents(2, 0)
    assert torch.allclose(made.sample(latent)[:, :, 0, 0], latent[:, :3].sigmoid())
    other = teachers.load(f"{name}:make", CPU, low=0.1)
    assert other.settings == {"options": {"low": "0.1"}}
    assert other.fingerprint != made.fingerprint
    assert str(tmp_path) not in sys.path
    for word, said in [
        ("mkae", "did you mean 'make'"),
        ("NUMBER", "Unknown function"),
        ("broken", "fails when it is called .*no such file"),
        ("nothing", "gave int, which is no generator"),
        ("", "names no function"),
    ]:
        with pytest.raises(UserError, match=said):
            teachers.load(f"{name}:{word}", CPU)
    with pytest.raises(UserError, match=r"with -0\.\d+, and \[0, 1\] is allowed|with -1\.\d+"):
        teachers.load(f"{name}:make", CPU, low=-1.5)


def test_a_function_may_give_a_generator_of_evenlens(tmp_path, monkeypatch):
    text = (
        "from evenlens.generation.generator import Generator\n"
        "def make(device): return Generator(title='x', latent_size=2, size=4, fingerprint='0' * 16)\n"
    )
    name = entry(tmp_path, monkeypatch, "own_subclass", text)
    assert teachers.load(f"{name}:make", CPU).title == "x"


def test_modules_that_cannot_be_imported_are_named(tmp_path, monkeypatch):
    entry(tmp_path, monkeypatch, "own_needing", "import no_such_library\n")
    entry(tmp_path, monkeypatch, "own_failing", "1 / 0\n")
    for address, said in [
        ("no_such_module:make", "no file or module no_such_module here"),
        ("own_needing:make", "needs no_such_library"),
        ("own_failing:make", "cannot be imported .*ZeroDivisionError"),
        ("../own_failing:make", "names no function"),
    ]:
        with pytest.raises(UserError, match=said):
            teachers.load(address, CPU)


# ---- diffusers


class FakeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.config = SimpleNamespace(sample_size=4, in_channels=3, num_class_embeds=None)

    def forward(self, image, step):
        return SimpleNamespace(sample=image * self.scale)


class FakeScheduler:
    def set_timesteps(self, steps, device):
        self.timesteps = torch.arange(steps).flip(0)

    def step(self, noise, step, image, eta):
        assert eta == 0.0
        return SimpleNamespace(prev_sample=image - 0.1 * noise)


@pytest.fixture
def diffusers(monkeypatch):
    module, asked = types.ModuleType("diffusers"), []
    module.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)

    def give(made):
        def from_pretrained(**words):
            asked.append(words)
            return made

        return SimpleNamespace(from_pretrained=from_pretrained)

    module.UNet2DModel, module.DDIMScheduler, module.asked = give(FakeNet()), give(FakeScheduler()), asked
    monkeypatch.setitem(sys.modules, "diffusers", module)
    return module


@pytest.fixture
def pipeline(tmp_path):
    for name in ("unet", "scheduler"):
        (tmp_path / "ddpm" / name).mkdir(parents=True)
    (tmp_path / "ddpm" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    (tmp_path / "ddpm" / "unet" / "config.json").write_text("{}")
    (tmp_path / "ddpm" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    (tmp_path / "ddpm" / "scheduler" / "scheduler_config.json").write_text("{}")
    return tmp_path / "ddpm"


def test_a_diffusion_model_makes_one_image_of_a_latent(diffusers, pipeline):
    made = teachers.load(f"diffusers:{pipeline}", CPU, steps=3)
    latent = made.latents(2, 0)
    assert made.latent_size == 48
    wanted = (latent.view(2, 3, 4, 4) * 0.95**3 + 1) / 2
    assert torch.allclose(made.sample(latent), wanted.clamp(0, 1), atol=1e-6)
    assert torch.equal(made.sample(latent), made.sample(latent))
    assert made.settings == {"steps": 3}
    assert made.fingerprint != teachers.load(f"diffusers:{pipeline}", CPU).fingerprint
    assert all(words["local_files_only"] for words in diffusers.asked)
    assert diffusers.asked[0]["use_safetensors"]


def test_other_pipelines_are_refused(diffusers, pipeline):
    def refuse(said, **options):
        with pytest.raises(UserError, match=said):
            teachers.load(f"diffusers:{pipeline}", CPU, **options)

    refuse("steps=0 is not allowed", steps=0)
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").rename(pipeline / "unet" / "model.bin")
    refuse("a .bin is a pickle")
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    refuse("is a StableDiffusionPipeline, and DDPMPipeline and DDIMPipeline are supported")
    (pipeline / "model_index.json").write_text("[")
    refuse("is damaged")
    (pipeline / "model_index.json").unlink()
    refuse("There is no pipeline")


def test_without_diffusers_it_is_said_what_to_install(pipeline, monkeypatch):
    from evenlens.generation.teachers import diffusers_pipeline

    monkeypatch.setattr(diffusers_pipeline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"evenlens\[diffusers\]"):
        teachers.load(f"diffusers:{pipeline}", CPU)


# ---- addresses


def test_what_is_no_generator_is_refused(tmp_path):
    (tmp_path / "net.bin").write_bytes(b"x")
    (tmp_path / "net.pkl").write_bytes(b"x")
    for name, said in [
        ("net.bin", "ends in '.bin': a generator is"),
        ("net.pkl", "is a pickle, which runs code.*--trust-pickle"),
        ("none.onnx", "There is no generator at"),
        ("", "is no folder of samples"),
    ]:
        with pytest.raises(UserError, match=said):
            teachers.load(tmp_path / name, CPU)
