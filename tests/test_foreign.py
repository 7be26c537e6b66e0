"""Weights from elsewhere: read without running code, put where they belong, rows found by name."""

import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from evenlens import foreign, nets, run
from evenlens.config import Net, make_config
from evenlens.data.dataset import Task
from evenlens.datasets.fairface import LEVELS
from evenlens.engine import Precision
from evenlens.errors import UserError
from evenlens.foreign import FACE_ROWS, find_rows, put
from evenlens.nets import build
from evenlens.weights import read

FACES = ("East Asian", "Indian", "Black", "White", "Middle Eastern", "Latino_Hispanic", "Southeast Asian")
PAIR = ("cat", "dog")


def net_for(backbone, names=PAIR, size=64, **settings):
    return build(Net(backbone=backbone, **settings), Task(tuple(names), ("g", "h"), size))


def saved(tmp_path, content, name="weights.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def settled(model):
    """A network of torchvision with random weights, running statistics too, ready to predict."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.1, generator=generator)
    return model.eval()


@torch.no_grad()
def predicted(model, image):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return model((image - mean) / std)


# ---- networks


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("efficientnet_b0", "efficientnet_b0"),
    ],
)
@torch.no_grad()
def test_torchvisions_weights_predict_what_they_predict_in_torchvision(tmp_path, theirs, ours):
    torch.manual_seed(0)
    model = settled(torchvision.models.get_model(theirs, weights=None, num_classes=2))
    net = net_for(ours).eval()
    notes = put(read(saved(tmp_path, model.state_dict())), net, PAIR)
    image = torch.rand(3, 3, 64, 64)
    wanted = predicted(model, image)
    assert (net(image) - wanted).abs().max() <= 1e-4 * max(1, wanted.abs().max())
    assert any("matched by their order" in note for note in notes) == (theirs != ours or "resnet" not in ours)
    assert any("in their order, as cat, dog" in note for note in notes)


def test_every_network_that_is_matched_by_order_is_compared_above():
    assert set(foreign.BY_ORDER) == {"mobilenetv2_100", "efficientnet_b0"}


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3, "args": {"lr": 0.1}},
    lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
], ids=["plain", "nested", "module", "compiled", "old"])  # fmt: skip
def test_wrapped_checkpoints_of_timm_load(tmp_path, wrap):
    model = timm.create_model("resnet18", num_classes=2)
    net = net_for("resnet18").eval()
    put(read(saved(tmp_path, wrap(model.state_dict()))), net, PAIR)
    image = torch.rand(2, 3, 64, 64)
    assert torch.allclose(net(image), predicted(model.eval(), image), atol=1e-5)


def test_a_safetensors_file_says_its_classes(tmp_path):
    model = timm.create_model("resnet18", num_classes=2)
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"class_names": '["dog", "cat"]'})
    net = net_for("resnet18")
    put(read(tmp_path / "w.safetensors"), net, PAIR)
    assert torch.equal(net.head.weight, model.fc.weight[[1, 0]])
    assert torch.equal(net.head.bias, model.fc.bias[[1, 0]])
    put(read(tmp_path / "w.safetensors"), net, PAIR, classes=PAIR)  # what is said goes first
    assert torch.equal(net.head.weight, model.fc.weight)


def test_a_new_head_keeps_its_fresh_weights(tmp_path):
    state = timm.create_model("resnet18", num_classes=5).state_dict()
    net = net_for("resnet18")
    fresh = net.head.weight.clone()
    notes = put(read(saved(tmp_path, state)), net, PAIR, head="new")
    assert torch.equal(net.head.weight, fresh)
    assert torch.equal(net.backbone.conv1.weight, state["conv1.weight"])
    assert "base=RUN" in notes[-1]
    del state["fc.weight"], state["fc.bias"]
    put(read(saved(tmp_path, state)), net, PAIR, head="new")  # features alone


# ---- rows


def test_rows_of_the_published_network_for_faces_are_found_by_name():
    assert find_rows(("Male", "Female"), FACE_ROWS, "it") == [7, 8]
    assert find_rows(FACES, FACE_ROWS, "it") == [3, 5, 1, 0, 6, 2, 4]
    assert find_rows(("female", " latino hispanic", "EAST_ASIAN", "70+"), FACE_ROWS, "it") == [8, 2, 3, 17]
    assert len(FACE_ROWS) == 18


def test_every_class_of_the_data_set_has_a_row():
    assert find_rows(LEVELS["race"], FACE_ROWS, "it") == list(range(7))
    assert find_rows(LEVELS["gender"], FACE_ROWS, "it") == [7, 8]
    assert find_rows(LEVELS["age"], FACE_ROWS, "it") == list(range(9, 18))


def test_the_network_with_18_outputs_becomes_one_of_seven_races(tmp_path):
    model = settled(torchvision.models.resnet34(weights=None, num_classes=18))
    net = net_for("resnet34", FACES).eval()
    notes = put(read(saved(tmp_path, model.state_dict())), net, FACES)
    image = torch.rand(2, 3, 64, 64)
    assert torch.allclose(net(image), predicted(model, image)[:, [3, 5, 1, 0, 6, 2, 4]], atol=1e-4)
    assert "rows 3, 5, 1, 0, 6, 2, 4 of 18" in notes[0]


# ---- what is refused


class Code:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (
        ("a.pt", lambda path: torch.save({"state_dict": Code()}, path)),
        ("b.pt", lambda path: path.write_bytes(pickle.dumps({"conv1.weight": Code()}))),
        ("c.pt", lambda path: torch.save(nn.Linear(2, 2), path)),
    ):
        write(tmp_path / name)
        with pytest.raises(UserError, match=r"would run what is in the file.*torch.save\(model.state_dict"):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "words"), [
    (b"", "is no file of weights, or a damaged one"),
    (b"no weights", "is not read|is no file of weights"),
    ({"epoch": 3}, "holds no weights by name: a state_dict is wanted"),
    ([torch.zeros(2)], "holds no weights by name"),
    ({}, "holds no weights by name"),
])  # fmt: skip
def test_what_holds_no_weights_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "w.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=words):
        read(path)


def test_a_missing_or_cut_off_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no file of weights at .*gone\.pt"):
        read(tmp_path / "gone.pt")
    save_file({"a": torch.zeros(100)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match="no complete safetensors file"):
        read(tmp_path / "w.safetensors")


@pytest.mark.parametrize(("change", "names", "more", "words"), [
    (lambda s: s.pop("layer1.0.conv1.weight"), PAIR, {}, "it has no layer1.0.conv1.weight"),
    (lambda s: s.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}), PAIR, {},
     r"conv1.weight is \(64, 3, 3, 3\) there and \(64, 3, 7, 7\) here"),
    (lambda s: s.update({"extra.weight": torch.zeros(3)}), PAIR, {}, r"extra.weight \(3,\) has no place here"),
    (lambda s: s.pop("fc.weight") is s.pop("fc.bias"), PAIR, {}, "has no last layer: set head=new"),
    (lambda s: None, ("a", "b", "c"), {}, r"has 2 outputs and here are 3 classes \(a, b, c\)"),
    (lambda s: None, PAIR, {"classes": ("cat", "bird")}, "Unknown class of .* 'dog'"),
    (lambda s: None, PAIR, {"classes": ("cat", "Cat")}, "has several outputs called cat"),
    (lambda s: None, PAIR, {"classes": ("cat", "dog", "bird")}, "has 2 outputs, and 3 classes are named"),
    (lambda s: s.update({"fc.weight": torch.zeros(18, 512), "fc.bias": torch.zeros(18)}), ("Male", "Other"), {},
     "Unknown class of .* 'Other'"),
    (lambda s: None, PAIR, {"head": "old"}, "Unknown kind of head 'old'"),
])  # fmt: skip
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, change, names, more, words):
    state = timm.create_model("resnet18", num_classes=2).state_dict()
    change(state)
    net = net_for("resnet18", names)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=words):
        put(read(saved(tmp_path, state)), net, names, **more)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_another_network_matched_by_order_is_refused_by_its_first_entry_that_differs(tmp_path):
    state = torchvision.models.mobilenet_v2(weights=None, width_mult=0.5).state_dict()
    with pytest.raises(UserError, match=r"features.0.0.weight is \(16, 3, 3, 3\) and stands where conv_stem.weight"):
        put(read(saved(tmp_path, state)), net_for("mobilenetv2_100"), PAIR)


def test_a_network_made_for_small_images_does_not_take_the_large_first_layer(tmp_path):
    state = timm.create_model("resnet18", num_classes=2).state_dict()
    with pytest.raises(UserError, match=r"conv1.weight is .* net.stem=standard"):
        put(read(saved(tmp_path, state)), net_for("resnet18", size=32), PAIR)


# ---- as a method


SHORT = {"precision": "fp32", "data.num": 120, "train.epochs": 1, "net.backbone": "resnet18", "net.stem": "standard"}


@pytest.fixture(autouse=True)
def no_trial_steps(monkeypatch):
    monkeypatch.setattr(nets, "choose_precision", lambda *_: Precision())


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    return saved(tmp_path, timm.create_model("resnet18", num_classes=2).state_dict())


def test_a_run_is_the_file_and_needs_it_no_more(tmp_path, weights):
    made = run.train(make_config("tiny", "foreign", {**SHORT, "weights": str(weights)}), tmp_path / "runs")
    state = torch.load(weights, weights_only=True)
    sha = read(weights).sha256
    weights.unlink()
    method = made.load()
    assert torch.equal(method.net.backbone.conv1.weight, state["conv1.weight"])
    assert torch.equal(method.net.head.weight, state["fc.weight"])
    assert len(made.log) == 1
    assert any(sha in note for note in made.metrics["notes"])


def test_another_file_of_the_same_name_is_refused_where_its_hash_is_given(tmp_path, weights):
    sha = read(weights).sha256
    good, bad = ({**SHORT, "weights": str(weights), "sha256": word} for word in (sha[:12].upper(), "0" * 12))
    assert run.train(make_config("tiny", "foreign", good), tmp_path / "runs").folder.exists()
    with pytest.raises(UserError, match=f"another file than sha256=000000000000 says: its own is {sha}"):
        run.train(make_config("tiny", "foreign", bad), tmp_path / "runs")
    assert make_config("tiny", "foreign", good).identity() != make_config("tiny", "foreign", bad).identity()


@pytest.mark.parametrize(("settings", "words"), [
    ({"head": "old"}, "Unknown head of foreign 'old'"),
    ({"sha256": "1234"}, "at least 8 hex digits"),
    ({"sha256": "123456789"}, "of the file that weights names"),
    ({"weights": "gone.pt"}, "no file of weights at gone.pt"),
    ({"weights": "a.pt", "sha256": "12345678", "base": "nowhere"}, "nowhere is no run|weights and base are both given"),
])  # fmt: skip
def test_wrong_options_are_one_sentence(tmp_path, settings, words):
    with pytest.raises(UserError, match=words):
        run.train(make_config("tiny", "foreign", {**SHORT, **settings}), tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*/*/[!.]*"))


def test_it_is_not_taken_for_the_baseline():
    from evenlens.registry import PLAIN, describe

    assert describe("evenlens.methods")["foreign"]["stage"] != PLAIN


def test_a_web_page_saved_in_place_of_weights_is_called_one(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("\n<!DOCTYPE html><html><title>Virus scan warning</title></html>")
    with pytest.raises(UserError, match="is a web page, not weights"):
        read(path)
