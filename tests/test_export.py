"""Exported files: the same predictions, really smaller, measured, refused where they would not be what they seem."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune

from evenlens import datasets, export, measuring, methods, model_file, plan, quantising, run, shipping
from evenlens.config import make_config
from evenlens.data import source
from evenlens.data.dataset import Task
from evenlens.engine import Precision
from evenlens.errors import UserError
from evenlens.method import Method
from evenlens.pruning import channels, masks
from evenlens.run_folder import Run
from evenlens.shipping import Wanted, export_run

PAIR = ("cat", "dog")


def made(backbone="small_cnn", size=32, names=PAIR, name="erm", **settings):
    """A method with random weights and running statistics, ready to predict."""
    torch.manual_seed(0)
    config = make_config("tiny", name, {"net.backbone": backbone, **settings})
    task = Task(tuple(names), ("g", "h"), size)
    method = model_file.build_method(task, config, plan.plain_methods(config, task))
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return method.eval()


def pruned(method, share=0.5):
    """Mask a share of every group of channels."""
    groups = channels.find(method.net, method.task.image_size)
    kept = {}
    for group in groups:
        kept[group.name] = torch.rand(group.channels) >= share
        kept[group.name][0] = True
    cut = channels.to_masks(groups, kept)
    masks.attach(method.net, cut)
    masks.apply(method.net, cut)
    return method


def images(size=32, num=3):
    return measuring.random_images(num, size, seed=7)


@torch.no_grad()
def logits(method, image):
    return method(image)


# ---- weights


@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_plain_weights_load_in_plain_networks(tmp_path, kind):
    method = made("resnet18", 64, ("a", "b", "c"))
    fits = export.export_weights(method, tmp_path / "w.safetensors")
    about = json.loads((tmp_path / "w.json").read_text())
    plain = (
        timm.create_model("resnet18", num_classes=3) if kind == "timm" else torchvision.models.resnet18(num_classes=3)
    )
    plain.load_state_dict(load_file(tmp_path / "w.safetensors"))
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    image = images(64)
    assert torch.allclose(logits(plain.eval(), (image - mean) / std), logits(method, image), atol=1e-5)
    assert fits.plain
    assert about["class_names"] == ["a", "b", "c"]
    assert about["image_size"] == 64
    assert about["backbone"] == "resnet18"


def test_masks_are_plain_zeros_in_a_file_of_weights(tmp_path):
    method = made("resnet18", 64)
    dense = method.net.backbone.layer1[0].conv1.weight.detach().clone()
    masks.attach(method.net, ["backbone.layer1.0.conv1.weight"])
    mask = torch.rand(64, 64, 3, 3) > 0.9
    masks.apply(method.net, {"backbone.layer1.0.conv1.weight": mask})
    assert export.export_weights(method, tmp_path / "w.safetensors").plain
    weight = load_file(tmp_path / "w.safetensors")["layer1.0.conv1.weight"]
    assert torch.equal(weight, torch.where(mask, dense, 0))
    assert masks.masks_of(method.net), "the method itself keeps its masks"


def test_a_shrunk_network_says_that_it_is_none_of_the_plain_ones(tmp_path):
    method = pruned(made("resnet18", 64))
    image = images(64)
    wanted = logits(method, image)
    fits = export.export_weights(method, tmp_path / "w.safetensors")
    about = json.loads((tmp_path / "w.json").read_text())
    state = load_file(tmp_path / "w.safetensors")
    assert not fits.plain
    assert "use --to onnx" in about["why"]
    assert about["shapes"] == {name: list(value.shape) for name, value in state.items()}
    assert len(state["conv1.weight"]) < 64
    assert torch.allclose(logits(export.deployable(method), image), wanted, atol=1e-4)


def test_weights_with_a_first_layer_for_small_images_say_so(tmp_path):
    fits = export.export_weights(made("resnet18", 32), tmp_path / "w.safetensors")
    assert not fits.plain
    assert fits.why.startswith("conv1.weight is (64, 3, 3, 3) here and (64, 3, 7, 7) in a plain resnet18")
    fits = export.export_weights(made("small_cnn", 32), tmp_path / "w.safetensors")
    assert "a network of evenlens" in fits.why


def test_exported_weights_are_weights_from_elsewhere(tmp_path):
    from evenlens import foreign, weights

    method, other = made("resnet18", 64), made("resnet18", 64, PAIR[::-1])
    export.export_weights(method, tmp_path / "w.safetensors")
    foreign.put(weights.read(tmp_path / "w.safetensors"), other.net, other.task.class_names)
    image = images(64)
    assert torch.allclose(logits(other, image), logits(method, image)[:, [1, 0]], atol=1e-6)


def test_a_method_that_is_more_than_its_network_has_no_plain_weights(tmp_path):
    for name in ("domain_independent", "reprogramming"):
        with pytest.raises(UserError, match=f"{name} predicts with more than the output of its network.*--to onnx"):
            export.export_weights(made(name=name), tmp_path / "w.safetensors")


# ---- ONNX


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A method and its ONNX file, exported while it computed in half precision."""
    method, path = made(), tmp_path_factory.mktemp("plain") / "m.onnx"
    method.net.compute_in(Precision(bfloat16=True, channels_last=True))
    export.export_onnx(method, path)
    assert method.net.precision.bfloat16, "the method itself stays as it is"
    method.net.compute_in(Precision())
    return method, path


DEPLOYS = ("domain_independent", "reprogramming", "faap", "inferred_group_thresholds")
ALIKE = ("domain_discriminative", "bias_mimicking")  # heads that are summed or cut, as those of domain_independent


@pytest.mark.parametrize("name", [*DEPLOYS, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)])
def test_onnx_predicts_what_the_method_deploys(tmp_path, name, capfd):
    method = made(name=name)
    parity = export.export_onnx(method, tmp_path / "m.onnx")
    session = measuring.Session(tmp_path / "m.onnx")
    for num in (1, 2, 7):
        image = images(num=num)
        assert np.abs(session(image.numpy()) - logits(method, image).numpy()).max() <= 1e-4
    assert parity.largest_difference <= parity.allowed
    assert "".join(capfd.readouterr()) == "", "exporting is quiet"


def test_every_method_with_a_forward_of_its_own_is_exported_above():
    own = {
        name
        for name in methods.names()
        if methods.get(name).forward is not Method.forward
        and "prediction" not in methods.get(name).needs_group
        and "dense" not in methods.get(name).requires
    }
    assert own <= {*DEPLOYS, *ALIKE}


def test_onnx_says_what_it_is(plain):
    import onnx

    file = onnx.load(plain[1])
    words = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(words["class_names"]) == list(PAIR)
    assert words["image_size"] == "32"
    assert [entry.version for entry in file.opset_import if entry.domain == ""] == [export.OPSET]
    assert file.graph.input[0].name == "image"
    assert file.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert file.graph.output[0].name == "logits"
    assert [path.name for path in plain[1].parent.iterdir()] == ["m.onnx"], "weights are in the file"


def test_half_precision_is_off_in_what_is_exported(plain):
    method, path = plain
    image = images()
    assert np.abs(measuring.Session(path)(image.numpy()) - logits(method, image).numpy()).max() <= 1e-4


def test_files_of_shrunk_networks_are_smaller_and_predict_the_same(plain, tmp_path):
    dense, path = plain
    method = pruned(made())
    wanted = logits(method, images())
    export.export_onnx(method, tmp_path / "small.onnx")
    small = export.deployable(method)
    assert np.abs(measuring.Session(tmp_path / "small.onnx")(images().numpy()) - wanted.numpy()).max() <= 1e-4
    assert measuring.file_sizes(tmp_path / "small.onnx")[0] < 0.5 * measuring.file_sizes(path)[0]
    assert measuring.multiply_adds(small, 32) < 0.5 * measuring.multiply_adds(dense, 32)
    assert measuring.count_parameters(small)[0] < 0.5 * measuring.count_parameters(dense)[0]


def test_a_method_that_predicts_with_the_group_is_refused(tmp_path):
    method = made(name="group_thresholds")
    for form in (export.export_onnx, export.export_weights):
        with pytest.raises(UserError, match="group_thresholds predicts with each image's group"):
            form(method, tmp_path / "m")
    assert not list(tmp_path.glob("m*"))


def test_what_has_no_form_in_onnx_is_one_sentence(tmp_path):
    class Odd(Method):
        def forward(self, image):
            return self.net(image) if image.mean() > 0.5 else self.net(1 - image)

    config = make_config("tiny", "erm", {})
    with pytest.raises(UserError, match=r"erm has no form in ONNX \(\w+: "):
        export.export_onnx(Odd(Task(PAIR, ("g", "h"), 32), config), tmp_path / "m.onnx")


def test_a_batch_size_that_is_written_down_for_good_is_refused(tmp_path):
    class Fixed(Method):
        def forward(self, image):
            return self.net(image) + torch.zeros(len(image), 2)

    config = make_config("tiny", "erm", {})
    with pytest.raises(
        UserError, match=r"has no form in ONNX|cannot predict with the file of erm .*Got: 1 Expected: 2"
    ):
        export.export_onnx(Fixed(Task(PAIR, ("g", "h"), 32), config), tmp_path / "m.onnx")


@pytest.mark.parametrize("shift", [1e-3, float("nan")])
def test_a_file_that_predicts_otherwise_is_refused(plain, monkeypatch, shift):
    assert export.check_parity(*plain).largest_difference < 1e-5
    call = measuring.Session.__call__
    monkeypatch.setattr(measuring.Session, "__call__", lambda self, image: call(self, image) + np.float32(shift))
    with pytest.raises(UserError, match=r"differs from torch by .* cannot be shipped"):
        export.check_parity(*plain)


def test_missing_libraries_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "NEEDED", ("onnx", "onnxscript", "nowhere_to_be_found"))
    with pytest.raises(UserError, match=r'nowhere_to_be_found is not installed: pip install "evenlens\[export\]"'):
        export.export_onnx(made(), tmp_path / "m.onnx")
    with pytest.raises(UserError, match="is not installed"):
        Wanted("onnx")
    Wanted("weights")  # which takes none of them


# ---- measuring


@pytest.mark.parametrize(("model", "wanted"), [
    (lambda: torchvision.models.resnet18(), 1_814_073_344),
    (lambda: torchvision.models.mobilenet_v2(), 300_774_272),
    (lambda: timm.create_model("vit_tiny_patch16_224"), 1_258_000_000),  # attention's products count too
])  # fmt: skip
def test_multiply_adds_are_the_known_numbers(model, wanted):
    assert measuring.multiply_adds(model().eval(), 224) == pytest.approx(wanted, rel=1e-9 if wanted % 1000 else 0.02)


def test_multiply_adds_count_an_image_once_and_leave_the_network_as_it_is():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, groups=1), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    assert measuring.multiply_adds(net, 8) == 8 * 8 * 4 * 3 * 9 + 4 * 8 * 8 * 5
    assert not net[0]._forward_hooks


def test_parameters_that_are_zero_are_told_apart():
    layer = nn.Linear(10, 3)
    prune.l1_unstructured(layer, "weight", amount=12)
    prune.remove(layer, "weight")
    assert measuring.count_parameters(layer) == (33, 21)


def test_the_compressed_size_is_that_of_gzip(tmp_path):
    import gzip

    (tmp_path / "f").write_bytes(b"evenlens" * 300_000)
    raw, packed = measuring.file_sizes(tmp_path / "f")
    assert raw == 2_400_000
    assert packed == pytest.approx(len(gzip.compress(b"evenlens" * 300_000, 6)), abs=16)


def test_time_is_taken_in_turns_without_the_warm_up():
    calls = []

    def call(name, seconds):
        def run_it():
            calls.append(name)
            time.sleep(0.05 if len(calls) <= 6 else seconds)

        return run_it

    found = measuring.latency({"a": call("a", 0.001), "b": call("b", 0.003)}, seconds=0.0, warm_up=3)
    assert calls[:6] == ["a"] * 3 + ["b"] * 3
    assert calls[6:10] == ["a", "b", "b", "a"]
    assert found["a"].rounds == measuring.LEAST_ROUNDS
    assert 1 <= found["a"].p50 <= found["a"].p90 < 50
    assert found["b"].p50 > found["a"].p50


def test_a_report_knows_accuracy_intervals_and_changes_by_group():
    task = Task(PAIR, ("g", "h", "nobody"), 32)
    label, group = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    served = measuring.Served(task, label, group)
    served.add("torch", label)
    served.add("onnx", np.array([0, 1, 1, 1]))
    found = served.as_dict("torch")
    assert found["accuracy"]["onnx"]["by_group"]["h"][:2] == [0.5, pytest.approx(0.0945, abs=1e-3)]
    assert found["accuracy"]["onnx"]["by_group"]["nobody"][:3] == [None, None, None]
    assert found["accuracy"]["onnx"]["all"][0] == 0.75
    assert found["changed"] == {"onnx": {"all": 1, "by_group": [0, 1, 0]}}
    assert np.sum(found["counts"]["onnx"]) == 4
    json.dumps(found)


# ---- a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, of which the second says that it was pruned from the first."""
    from tests import fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("evenlens.datasets.get", lambda name, root=None: fake.Tiny)
        folder = tmp_path_factory.mktemp("runs")
        dense, small = (
            run.train(make_config("tiny", "erm", {"train.epochs": epochs, "precision": "fp32"}), folder)
            for epochs in (3, 2)
        )
    content = json.loads((small.folder / "metrics.json").read_text())
    content["requires"] = {"dense": [dense.folder.relative_to(folder).as_posix()]}
    (small.folder / "metrics.json").write_text(json.dumps(content))
    return dense.folder, small.folder


@pytest.fixture(autouse=True, scope="module")
def fast():
    original = measuring.latency
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "latency", lambda calls, seconds=0.0, warm_up=1: original(calls, seconds, warm_up))
        yield


class Cut(Run):
    """A run whose method has masked channels."""

    def load(self):
        torch.manual_seed(0)
        return pruned(super().load())


@pytest.fixture(scope="module")
def shipped(runs, fast, tmp_path_factory):
    from tests import fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("evenlens.datasets.get", lambda name, root=None: fake.Tiny)
        return export_run(Cut(runs[1]), Wanted("onnx", int8=True, batch=2), tmp_path_factory.mktemp("shipped") / "out")


def test_a_pruned_run_is_exported_measured_and_asked_about_its_groups(runs, shipped):
    out, content = shipped
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "model.int8.onnx", "model.onnx"]
    assert json.loads((out / "export.json").read_text()) == content
    costs, report = content["measured"]["costs"], content["report"]
    assert set(costs) == {"before", "after", "int8"}
    assert costs["int8"]["bytes"] < costs["after"]["bytes"] < 0.6 * costs["before"]["bytes"]
    assert costs["after"]["parameters"] < 0.6 * costs["before"]["parameters"]
    assert costs["after"]["multiply_adds"] < costs["before"]["multiply_adds"]
    assert set(costs["after"]["latency"]) == {"torch", "onnxruntime"}
    assert set(costs["int8"]["latency"]) == {"onnxruntime"}
    assert (content["measured"]["batch"], content["measured"]["threads"]) == (2, 1)
    assert "1 threads" in content["measured"]["device"]
    assert list(report["accuracy"]) == ["dense", "torch", "onnx", "int8"]
    assert set(report["changed"]) == {"onnx", "int8"}
    assert report["accuracy"]["dense"]["all"][0] == pytest.approx(
        Run(runs[0]).metrics["test"]["metrics"]["accuracy"][0], abs=1e-5
    )
    assert content["onnx"]["largest_difference"] <= content["onnx"]["allowed"]
    assert content["task"]["class_names"] == ["place 0", "place 1"]
    assert content["int8"]["calibration_images"] <= 256


def test_the_file_of_an_unpruned_run_predicts_what_the_run_did(runs, tmp_path):
    _, content = export_run(Run(runs[0]), Wanted("onnx", int8=True, measure=False), tmp_path / "out")
    assert content["report"]["changed"]["onnx"]["all"] == 0
    assert content["report"]["counts"]["onnx"] == Run(runs[0]).metrics["test"]["counts"]
    assert "measured" not in content
    assert content["notes"] == []
    assert content["report"]["changed"]["int8"]["all"] <= 0.05 * content["report"]["num_images"]
    by_group = list(content["int8"]["calibration_by_group"].values())
    assert sum(by_group) == content["int8"]["calibration_images"] == 256
    assert by_group[0] == by_group[1]


def test_calibration_draws_evenly_over_the_groups():
    config = plan.complete(make_config("tiny", "erm", {"data.num": 800, "data.num_groups": 3}))
    train = source.load("tiny", datasets.get("tiny"), config.data).splits.train
    few = torch.nonzero(train.group == 2).flatten()[10:]
    kept = torch.ones(len(train), dtype=torch.bool).index_fill(0, few, False)
    train = train.select(torch.nonzero(kept).flatten())
    rows = quantising.calibration_rows(train, 60)
    assert torch.bincount(train.group[rows]).tolist() == [20, 20, 10]
    assert len(rows.unique()) == 50
    assert len(quantising.calibration_rows(train, 2)) == 2


def test_weights_of_a_run_have_times_in_torch_alone(runs, tmp_path):
    out, content = export_run(Cut(runs[1]), Wanted("weights"), tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "weights.json", "weights.safetensors"]
    assert set(content["measured"]["costs"]["after"]["latency"]) == {"torch"}
    assert set(content["measured"]["costs"]) == {"before", "after"}
    assert content["notes"] == [content["weights"]["why"]]


def test_without_its_data_a_run_is_exported_without_a_report(runs, tmp_path, monkeypatch):
    def gone(*_):
        raise UserError("There are no images.")

    def written(method, path):
        path.touch()
        return export.Parity(0.0, 1e-4)

    monkeypatch.setattr(run, "load_data", gone)
    monkeypatch.setattr(shipping, "export_onnx", written)
    _, content = export_run(Run(runs[0]), Wanted("onnx", measure=False), tmp_path / "out")
    assert "report" not in content
    assert "There are no images." in content["notes"][0]
    with pytest.raises(UserError, match=r"--int8 looks at images .* There are no images"):
        export_run(Run(runs[0]), Wanted("onnx", int8=True), tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


def test_a_dense_run_that_is_gone_is_said(runs, tmp_path):
    folder = tmp_path / "runs" / "tiny" / "erm" / runs[1].name
    shutil.copytree(runs[1], folder)
    _, content = export_run(Run(folder), Wanted("weights"), tmp_path / "out")
    assert "nothing to compare with" in content["notes"][0]
    assert set(content["measured"]["costs"]) == {"after"}


# ---- the folder


def test_a_second_export_takes_the_place_of_the_first_and_of_nothing_else(runs, tmp_path):
    small = Run(runs[0])
    wanted = Wanted("weights", measure=False)
    export_run(small, wanted, tmp_path / "out")
    export_run(small, wanted, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds other things than this run's export to onnx: .*--out"):
        export_run(small, Wanted("onnx", measure=False, report=False), tmp_path / "out")
    with pytest.raises(UserError, match="holds other things"):
        export_run(Run(runs[1]), wanted, tmp_path / "out")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things"):
        export_run(small, wanted, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export_run(small, wanted, tmp_path / "empty")
    assert not list(tmp_path.glob(".*"))


def test_what_fails_leaves_nothing_behind(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shipping, "export_weights", full)
    with pytest.raises(OSError, match="No space"):
        export_run(Run(runs[0]), Wanted("weights"), tmp_path / "a" / "out")
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize(("given", "words"), [
    ({"to": "tflite"}, "Unknown form to export to 'tflite'"),
    ({"to": "weights", "int8": True}, "--int8 quantises an ONNX file"),
    ({"to": "onnx", "batch": 0}, "--batch and --threads are at least 1"),
])  # fmt: skip
def test_what_cannot_be_wanted_is_one_sentence(given, words):
    with pytest.raises(UserError, match=words):
        Wanted(**given)


# ---- the command


@pytest.fixture
def app():
    from evenlens import cli, cli_export

    if "export" not in {entry.name or entry.callback.__name__ for entry in cli.app.registered_commands}:
        cli.app.command()(cli_export.export)
    return cli.app


def test_the_command_prints_costs_groups_and_files(app, command, runs, shipped, monkeypatch):
    asked = []
    monkeypatch.setattr(shipping, "export_run", lambda *given: asked.append(given) or shipped)
    monkeypatch.setenv("COLUMNS", "160")
    ended = command("export", runs[1], "--to", "onnx", "--int8", "--threads", "2", "--out", "there", "--no-report")
    assert ended.code == 0, ended.err
    assert asked[0][1:3] == (Wanted("onnx", int8=True, threads=2, report=False), Path("there"))
    for words in ("What it costs", "dense", "8 bits", "ONNX Runtime p90", "tint 0", "Wilson's 95 %", "x less"):
        assert words in ended.out, words
    assert "ONNX, 8 bits: " in ended.out


def test_the_command_writes_where_it_says(app, command, runs, tmp_path):
    ended = command("export", runs[1], "--to", "weights")
    assert ended.code == 0, ended.err
    file = f"export/tiny-erm-{runs[1].name}/weights.safetensors"
    assert file in ended.out
    assert (tmp_path / file).is_file()


def test_the_command_refuses_in_one_sentence(app, refused, runs, tmp_path):
    assert "Unknown form to export to 'h5'" in refused("export", runs[1], "--to", "h5")
    assert "is no run" in refused("export", "nowhere", "--to", "weights")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "full holds other things" in refused("export", runs[1], "--to", "weights", "--out", "full")
