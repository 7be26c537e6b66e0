"""Classifiers of faces, of whatever kind: what they look at, what their outputs are, and what is refused."""

import json
import sys
import warnings

import numpy as np
import onnx
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from evenlens import export, model_file, run
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.generation import classifiers
from evenlens.generation.face_csv import AGES, HEADS, RACES

CPU = torch.device("cpu")
GENDER = {"gender": ["Male", "Female"]}
TWO = {"gender": ["Male", "Female"], "age": ["young", "middle", "old"]}
NORMAL = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}


def load(address, *args, **options):
    return classifiers.load(address, *args, device=CPU, **options)


def photos(num=3, size=16, seed=0):
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train on the tiny data set: give the run's folder."""
    from tests import fake

    def train(method="erm", **settings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
            patch.setattr("evenlens.datasets.get", lambda name, root=None: fake.Tiny)
            config = make_config("tiny", method, {"train.epochs": 1, "precision": "fp32", **settings})
            return run.train(config, tmp_path_factory.mktemp("runs")).folder

    return train


@pytest.fixture(scope="module")
def model(trained):
    return trained()


def faces_net(seed=0):
    torch.manual_seed(seed)
    return torchvision.models.resnet34(weights=None, num_classes=18).eval()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """The published form of the network for faces, with random weights: the network, its file, and that opened."""
    net = faces_net()
    path = tmp_path_factory.mktemp("weights") / "fair.pt"
    torch.save(net.state_dict(), path)
    return net, path, load(path)


class Means(nn.Module):
    """Logits of the channels' means: what a network does, in one matrix."""

    def __init__(self, num):
        super().__init__()
        self.head = nn.Linear(3, num)
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(3.0 * num).view(num, 3).sin())
            self.head.bias.copy_(torch.arange(float(num)) / 10)

    def forward(self, image):
        return self.head(image.mean((2, 3)))


def script(path, num=2, about=None, module=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will not write such files for ever
        torch.jit.save(torch.jit.trace(module or Means(num), torch.zeros(2, 3, 8, 8)), str(path))
    if about is not None:
        path.with_suffix(".json").write_text(about if isinstance(about, str) else json.dumps(about))
    return path


def onnx_file(path, num=2, about=None, batch="batch"):
    head = Means(num).head
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight", "bias"], ["logits"], transB=1),
    ]
    values = {"axes": np.array([2, 3]), "weight": head.weight.detach().numpy(), "bias": head.bias.detach().numpy()}
    graph = helper.make_graph(
        nodes, "means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, num])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    if about is not None:
        path.with_suffix(".json").write_text(json.dumps(about))
    return path


# ---- what it looks at


@pytest.mark.parametrize(("size", "kept"), [(256, 160), (128, 80)])
def test_the_crop_made_for_256_pixels_scales_with_the_image(tmp_path, size, kept):
    found = load(script(tmp_path / "a.pt", about={"attributes": GENDER, "size": kept}), 0.625)
    image = photos(2, size)
    start = (size - kept) // 2
    assert torch.equal(found.view(image), image[:, :, start : start + kept, start : start + kept])
    assert found.crop == 0.625


def test_what_is_cut_is_resized_with_antialiasing(tmp_path):
    found = load(script(tmp_path / "a.pt", about={"attributes": GENDER, "size": 16}), 0.625)
    image = photos(2, 128)
    middle = image[:, :, 24:104, 24:104]
    wanted = functional.interpolate(middle, (16, 16), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(found.view(image), wanted)
    assert torch.equal(found.logits(image)["gender"], Means(2)(wanted))
    coarse = functional.interpolate(middle, (16, 16), mode="bilinear", align_corners=False)
    assert not torch.allclose(wanted, coarse, atol=1e-2)


def test_an_image_that_is_not_square_is_stretched_or_cut_as_the_run_was_trained(trained, model):
    image = torch.zeros(1, 3, 16, 48)
    image[..., 16:32] = 1  # the middle square
    assert load(model).view(image).mean() == pytest.approx(1 / 3, abs=0.02)
    cut = load(trained(**{"data.fit": "short_side"}))
    assert cut.view(image).min() == 1
    closer = load(trained(**{"data.fit": "center_crop"}))
    assert (closer.square, closer.crop) == (True, 8 / 9)


@pytest.mark.parametrize("crop", [0, -0.5, 1.01, float("nan")])
def test_a_crop_of_nothing_or_of_more_than_all_is_refused(model, crop):
    with pytest.raises(UserError, match="above 0 up to 1"):
        load(model, crop)


# ---- runs


def test_a_run_says_what_it_predicts_and_predicts_it(model):
    found = load(model)
    assert found.attributes == {"place": ("place 0", "place 1")}
    assert (found.size, found.crop, found.square, found.differentiable) == (16, 1.0, False, True)
    method = model_file.load_model(model / "model.safetensors")
    image = photos(5)
    assert torch.equal(found.logits(image)["place"], method(image))
    last = found.features(image)
    assert last.shape == (5, 128)
    assert torch.allclose(method.net.head(last), method(image), atol=1e-6)
    file = load(model / "model.safetensors")
    assert file.fingerprint == found.fingerprint
    assert len(found.fingerprint) == 16
    assert load(model, 0.5).fingerprint != found.fingerprint


def test_the_gradient_reaches_the_image_and_no_weight(model):
    found = load(model)
    image = photos(4, 40).requires_grad_()
    found.logits(image)["place"].softmax(1)[:, 0].sum().backward()
    assert image.grad.abs().sum() > 0
    assert image.grad.isfinite().all()
    assert all(weight.grad is None and not weight.requires_grad for weight in found.module.parameters())
    assert not any(each.training for each in found.module.modules())


def test_an_attribute_is_named_as_asked(model, tmp_path):
    assert load(f"gender={model}").attributes == {"gender": ("place 0", "place 1")}
    assert set(load(f"gender={model}").logits(photos(1))) == {"gender"}
    (tmp_path / "a=b").mkdir()
    linked = tmp_path / "a=b" / "model.safetensors"
    linked.write_bytes((model / "model.safetensors").read_bytes())
    assert set(load(linked).attributes) == {"place"}, "a path with = in it is a path"


def test_a_method_that_takes_the_group_is_refused(trained):
    with pytest.raises(UserError, match=r"group_thresholds\) predicts with each image's group.*another run"):
        load(trained("group_thresholds", **{"trained.train.epochs": 1, "data.tune": 0.2}))


def test_a_run_on_drawings_takes_photographs_and_gives_no_gradient(trained):
    found = load(trained(**{"data.view": "grey"}))
    image = photos(2)
    assert not found.differentiable
    assert found.logits(image)["place"].shape == (2, 2)
    assert found.features(image).shape == (2, 128)
    luma = (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(found.logits(image)["place"], found.logits(luma)["place"], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(found.logits(image[:, [2, 0, 1]])["place"], found.logits(image)["place"], atol=1e-3)


# ---- the published network for faces


def test_the_network_for_faces_has_its_parameters_and_says_what_torchvision_says(faces):
    net, path, found = faces
    assert sum(weight.numel() for weight in found.module.parameters()) == 21_293_906
    assert found.size == 224
    assert found.attributes == {"race": RACES, "gender": ("Male", "Female"), "age": AGES}
    image = photos(2, 224)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        wanted = net((image - mean) / std)
    logits = found.logits(image)
    for name, part in (("race", wanted[:, :7]), ("gender", wanted[:, 7:9]), ("age", wanted[:, 9:18])):
        torch.testing.assert_close(logits[name], part, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(logits[name].softmax(1).sum(1), torch.ones(2))
    assert found.features(image[:1]).shape == (1, 512)
    four = load(path, races=4)
    assert four.attributes == {"race4": HEADS["race4"][1]}
    torch.testing.assert_close(four.logits(image)["race4"], wanted[:, :4], atol=1e-4, rtol=1e-4)
    assert four.fingerprint != found.fingerprint


def test_a_name_takes_one_attribute_of_several(faces):
    _, path, found = faces
    one = load(f"gender={path}")
    assert one.attributes == {"gender": ("Male", "Female")}
    assert torch.equal(one.logits(photos(1, 64))["gender"], found.logits(photos(1, 64))["gender"])
    assert set(load(f"race4={path}").attributes) == {"race4"}
    with pytest.raises(UserError, match=r"several attributes \(race, gender, age\): name one of them"):
        load(f"skin={path}")


def test_permuting_the_rows_of_the_head_permutes_the_answers(faces, tmp_path):
    net, _, found = faces
    order = torch.cat([torch.tensor([6, 0, 1, 2, 3, 4, 5]), torch.tensor([8, 7]), torch.arange(17, 8, -1)])
    state = dict(net.state_dict())
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][order], state["fc.bias"][order]
    state = {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "model": state}, tmp_path / "permuted.pt")
    image = photos(2, 64)
    one, other = found.logits(image), load(tmp_path / "permuted.pt").logits(image)
    for name, rows in (("race", order[:7]), ("gender", order[7:9] - 7), ("age", order[9:] - 9)):
        torch.testing.assert_close(other[name], one[name][:, rows])
        assert (rows[other[name].argmax(1)] == one[name].argmax(1)).all()


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(18, 512), "fc.bias": torch.zeros(18)}, tmp_path / "small.pt")
    with pytest.raises(UserError, match=r"not known here: .* is absent there, and .*ResNet-34 for faces"):
        load(tmp_path / "small.pt")
    state = faces_net().state_dict()
    state["fc.weight"], state["fc.bias"] = torch.zeros(7, 512), torch.zeros(7)
    save_file(state, tmp_path / "seven.safetensors")
    with pytest.raises(UserError, match=r"fc.weight is \(7, 512\) there, and \(18, 512\)"):
        load(tmp_path / "seven.safetensors")


def test_a_checkpoint_with_code_in_it_is_not_opened(tmp_path):
    import os

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": Code()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"holds more than weights .*torch.save\(model.state_dict"):
        load(tmp_path / "a.pt")
    (tmp_path / "a.pkl").write_bytes((tmp_path / "a.pt").read_bytes())
    with pytest.raises(UserError, match="is a pickle, which runs code"):
        load(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


# ---- files with a description


@pytest.mark.parametrize("kind", [script, onnx_file])
def test_several_attributes_are_slices_of_one_output_in_order(tmp_path, kind):
    path = kind(tmp_path / ("a.onnx" if kind is onnx_file else "a.ts"), 5, {"attributes": TWO, "size": 8, **NORMAL})
    found = load(path)
    image = photos(3, 8)
    mean, std = (torch.tensor(NORMAL[key]).view(3, 1, 1) for key in ("mean", "std"))
    wanted = Means(5)((image - mean) / std).detach()
    logits = found.logits(image)
    torch.testing.assert_close(logits["gender"], wanted[:, :2])
    torch.testing.assert_close(logits["age"], wanted[:, 2:])
    assert found.attributes == {name: tuple(levels) for name, levels in TWO.items()}
    assert found.differentiable == (kind is script)
    with pytest.raises(UserError, match="gives no features"):
        found.features(image)
    path.with_suffix(".json").write_text(json.dumps({"attributes": TWO, "size": 9, **NORMAL}))
    assert load(path).fingerprint != found.fingerprint


def test_gradients_pass_through_a_script_with_its_normalisation(tmp_path):
    found = load(script(tmp_path / "a.pt", about={"attributes": GENDER, "size": 8, **NORMAL}))
    image = photos(2, 8).requires_grad_()
    found.logits(image)["gender"][:, 1].sum().backward()
    wanted = Means(2).head.weight[1] / torch.tensor(NORMAL["std"]) / 64
    torch.testing.assert_close(image.grad, wanted.detach().view(3, 1, 1).expand(2, 3, 8, 8))


@pytest.mark.parametrize("num", [1, 4, 5])
def test_an_onnx_file_for_a_fixed_number_of_images_gets_as_many_at_a_time(tmp_path, num):
    about = {"attributes": GENDER, "size": 8}
    free = load(onnx_file(tmp_path / "free.onnx", about=about)).logits(photos(5, 8))["gender"]
    fixed = load(onnx_file(tmp_path / "fixed.onnx", about=about, batch=num))
    if num == 1:
        assert fixed.at_once == 1
    torch.testing.assert_close(fixed.logits(photos(5, 8))["gender"], free)


def test_what_evenlens_exported_needs_no_description(model, tmp_path):
    found = load(model)
    export.export_onnx(found.module, tmp_path / "run.onnx")
    exported = load(tmp_path / "run.onnx")
    assert exported.attributes == {"place": ("place 0", "place 1")}
    assert exported.size == 16
    torch.testing.assert_close(exported.logits(photos())["place"], found.logits(photos())["place"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("about", "words"), [
    (None, 'does not say what it predicts: put a.json beside it, such as {"attributes"'),
    ("{", "is no JSON"),
    ("[1]", "holds no object"),
    ({"size": 8}, "wrong attributes"),
    ({"attributes": {"gender": ["Male"]}, "size": 8}, "at least two different classes"),
    ({"attributes": {"gender": ["a", "a"]}, "size": 8}, "at least two different classes"),
    ({"attributes": GENDER}, "wrong size"),
    ({"attributes": GENDER, "size": True}, "wrong size"),
    ({"attributes": GENDER, "size": 100_000}, "wrong size"),
    ({"attributes": GENDER, "size": 8, "std": [1, 0, 1]}, "wrong mean or std"),
    ({"attributes": GENDER, "size": 8, "mean": [1, 1]}, "wrong mean or std"),
    ({"attributes": TWO, "size": 8}, r"gives (1, 2) for one image, and 5 classes are named"),
], ids=["missing", "torn", "list", "empty", "one class", "class twice", "no size", "size yes", "huge", "std zero",
        "mean short", "too many"])  # fmt: skip
def test_a_description_that_is_wrong_is_one_sentence(tmp_path, about, words):
    path = script(tmp_path / "a.pt", about=about)
    with pytest.raises(UserError) as refused:
        load(path)
    assert words in str(refused.value)


def test_a_file_that_cannot_take_the_size_is_one_sentence(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    path = script(tmp_path / "a.pt", about={"attributes": GENDER, "size": 9}, module=module)
    with pytest.raises(UserError, match=r"cannot take images of 9 px .*mend size in a.json"):
        load(path)


@pytest.mark.parametrize(("name", "words"), [
    ("nowhere", "There is no classifier at nowhere"),
    ("gender=nowhere.pt", "There is no classifier at nowhere.pt"),
    ("gender=", "is no classifier: write NAME=ADDRESS"),
    ("empty", "There is no model at empty"),
    ("a.txt", "ends in '.txt'"),
    ("a.onnx", "is no complete ONNX file"),
    ("a.safetensors", "is no complete safetensors file"),
    ("a.pt", "is not read: it holds more than weights"),
    ("a=b.bin", "is no file of weights, or a damaged one"),
])  # fmt: skip
def test_what_is_no_classifier_is_one_sentence(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for ending in ("txt", "onnx", "safetensors", "pt"):
        (tmp_path / f"a.{ending}").write_bytes(b"\x08\x01 not what it says")
    (tmp_path / "a=b.bin").write_bytes(b"")
    with pytest.raises(UserError) as refused:
        load(name)
    assert words in str(refused.value)


def test_without_onnx_runtime_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs ONNX Runtime.*evenlens\[export\]"):
        load(onnx_file(tmp_path / "a.onnx", about={"attributes": GENDER, "size": 8}))


def test_other_numbers_of_races_are_refused(faces):
    with pytest.raises(UserError, match="choose 7 or 4"):
        load(faces[1], races=5)


def test_slices_follow_one_another():
    assert classifiers.in_order({"a": ("x", "y"), "b": ("x", "y", "z")}) == {"a": slice(0, 2), "b": slice(2, 5)}
    assert len(classifiers.FACE_ROWS) == 18
    assert classifiers.FACE_ROWS[7:9] == ("Male", "Female")
