"""The generator of Informative Drawings: its layers, its public file, and images of any size."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from evenlens import engine, views
from evenlens.errors import UserError
from evenlens.views import informative
from evenlens.views.informative import Generator, Informative

SHAPES = {
    "model0.1": (64, 3, 7, 7),
    "model1.0": (128, 64, 3, 3),
    "model1.3": (256, 128, 3, 3),
    "model2.0.conv_block.1": (256, 256, 3, 3),
    "model2.0.conv_block.5": (256, 256, 3, 3),
    "model2.1.conv_block.1": (256, 256, 3, 3),
    "model2.1.conv_block.5": (256, 256, 3, 3),
    "model2.2.conv_block.1": (256, 256, 3, 3),
    "model2.2.conv_block.5": (256, 256, 3, 3),
    "model3.0": (256, 128, 3, 3),
    "model3.3": (128, 64, 3, 3),
    "model4.1": (1, 64, 7, 7),
}  # as the published files name them, first of a transposed convolution its input


def published(blocks=3, channels=3, seed=1, scale=0.05):
    """A state dict as the authors save it, made from the table of shapes and not from the network."""
    random = torch.Generator().manual_seed(seed)
    shapes = {name: shape for name, shape in SHAPES.items() if not name.startswith("model2.")}
    shapes |= {f"model2.{i}.conv_block.{j}": (256, 256, 3, 3) for i in range(blocks) for j in (1, 5)}
    state = {}
    for name, shape in shapes.items():
        shape = (64, channels, 7, 7) if name == "model0.1" else shape
        outputs = shape[1] if name.startswith("model3") else shape[0]
        state[f"{name}.weight"] = scale * torch.randn(shape, generator=random)
        state[f"{name}.bias"] = scale * torch.randn(outputs, generator=random)
    return state


def saved(tmp_path, content, name="netG_A_latest.pth"):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def opened(path, **options):
    view = views.build("informative", views.settle("informative", {"weights": path, "size": 0, **options}))
    view.prepare()
    return view


def photo(height, width, num=1, seed=0):
    """Smooth patches and noise, as a photograph has."""
    random = torch.Generator().manual_seed(seed)
    coarse = functional.interpolate(torch.rand(num, 3, 5, 5, generator=random), (height, width), mode="bicubic")
    return (0.9 * coarse + 0.1 * torch.rand(num, 3, height, width, generator=random)).clamp(0, 1)


# ---- the network


def test_it_has_as_many_parameters_as_the_published_one():
    generator = Generator()
    assert sum(value.numel() for value in generator.parameters()) == 4_290_945
    assert not list(generator.buffers())
    assert not any(value.requires_grad for value in Informative().parameters())


def test_its_entries_are_those_of_the_public_file():
    wanted = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    wanted |= {f"{name}.bias": (shape[1] if name.startswith("model3") else shape[0],) for name, shape in SHAPES.items()}
    found = {name: tuple(value.shape) for name, value in Generator().state_dict().items()}
    assert len(found) == 24
    assert found == wanted
    assert list(found)[::2] == [f"{name}.weight" for name in SHAPES]  # and in their order


@pytest.mark.parametrize(("given", "made"), [((256, 256), (256, 256)), ((218, 178), (220, 180)),
                                             ((313, 256), (316, 256))])  # fmt: skip
def test_the_generators_size_is_rounded_up_and_the_views_is_not(given, made):
    with torch.device("meta"):  # shapes alone
        generator = Generator().to("meta")
        assert generator(torch.rand(1, 3, *given)).shape == (1, 1, *made)
        view = Informative(size=0).to("meta")
        assert view.draw(torch.rand(1, 3, *given)).shape == (1, 1, *given)


@torch.no_grad()
def test_it_computes_what_the_table_of_its_layers_says():
    state = {name: value.double() for name, value in published().items()}
    image = photo(20, 16, 2).double()

    def conv(x, name, reflect=0, stride=1, padding=0):
        x = functional.pad(x, (reflect,) * 4, mode="reflect") if reflect else x
        return functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding)

    def up(x, name):
        """Zeros between the pixels, then the kernel turned by 180 degrees."""
        weight = state[f"{name}.weight"].transpose(0, 1).flip(2, 3)
        wide = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
        wide[:, :, ::2, ::2] = x
        return functional.conv2d(wide, weight, state[f"{name}.bias"], padding=1)

    def norm(x):
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()

    x = norm(conv(image, "model0.1", reflect=3)).relu()
    for name in ("model1.0", "model1.3"):
        x = norm(conv(x, name, stride=2, padding=1)).relu()
    for i in range(3):
        inner = norm(conv(x, f"model2.{i}.conv_block.1", reflect=1)).relu()
        x = x + norm(conv(inner, f"model2.{i}.conv_block.5", reflect=1))
    for name in ("model3.0", "model3.3"):
        x = norm(up(x, name)).relu()
    wanted = 1 / (1 + torch.exp(-conv(x, "model4.1", reflect=3)))
    generator = Generator().double()
    generator.load_state_dict(state)
    assert wanted.std() > 0.05
    torch.testing.assert_close(generator(image), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(generator.train()(image), wanted, rtol=0, atol=1e-9)  # it has no running statistics


def test_fresh_weights_are_the_same_everywhere_and_leave_the_stream_alone():
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    first = Generator()
    assert torch.equal(torch.rand(1), wanted)
    second = Generator()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.model2[0].conv_block[1].weight.detach().std() == pytest.approx(0.02, rel=0.01)


# ---- drawing


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    return opened(saved(tmp_path_factory.mktemp("weights"), published()))


@pytest.mark.parametrize("size", [0, 32])
@torch.inference_mode()
def test_a_batch_of_two_equals_two_singles(view, size, monkeypatch):
    monkeypatch.setattr(view, "size", size)
    image = photo(21, 18, 2)
    singles = torch.cat([view.draw(image[:1]), view.draw(image[1:])])
    assert (singles[0] - singles[1]).abs().mean() > 0.01
    assert (view.draw(image) - singles).abs().max() < 1e-5


@torch.inference_mode()
def test_drawing_in_parts_changes_nothing(view, monkeypatch):
    image = photo(16, 20, 7)
    parts = []
    monkeypatch.setattr(
        view.generator, "forward", lambda x, draw=view.generator.forward: parts.append(len(x)) or draw(x)
    )
    whole = view.draw(image)
    monkeypatch.setattr(informative, "MOST_PIXELS", 3 * 16 * 20 + 5)
    assert (view.draw(image) - whole).abs().max() < 1e-5
    monkeypatch.setattr(informative, "MOST_PIXELS", 1)  # an image that is larger than all that is allowed
    assert (view.draw(image) - whole).abs().max() < 1e-5
    assert parts == [7, 3, 3, 1, *[1] * 7]


@pytest.mark.parametrize("height", range(1, 8))
@pytest.mark.parametrize("size", [0, 16])
@torch.inference_mode()
def test_the_smallest_images_are_drawn(view, height, size, monkeypatch):
    monkeypatch.setattr(view, "size", size)
    for width in (1, 8 - height, 13):
        drawn = view(photo(height, width, 2))
        assert drawn.shape == (2, 3, height, width)
        assert drawn.isfinite().all()
        assert drawn.min() >= 0
        assert drawn.max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [0, 32])
@torch.inference_mode()
def test_a_constant_image_is_finite(view, value, size, monkeypatch):
    monkeypatch.setattr(view, "size", size)
    assert view.draw(torch.full((1, 3, 20, 30), value)).isfinite().all()


@torch.inference_mode()
def test_a_strip_does_not_fill_the_memory(monkeypatch):
    view = Informative(size=16)
    seen = []
    monkeypatch.setattr(view.generator, "forward", lambda x: seen.append(tuple(x.shape[2:])) or x[:, :1])
    assert view.draw(torch.rand(1, 3, 1, 5000)).shape == (1, 1, 1, 5000)
    assert view.draw(torch.rand(1, 3, 10, 80)).shape == (1, 1, 10, 80)
    assert seen == [(8, 128), (16, 128)]


@pytest.mark.parametrize("num", [1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 30])
def test_reflection_is_that_of_numpy(num):
    row = torch.arange(float(num)).view(1, 1, 1, num)
    wanted = max(8, num + -num % 4)
    padded = informative._reflected(row, 3).flatten().numpy()
    assert np.array_equal(padded, np.pad(np.arange(num), (0, wanted - num), mode="reflect" if num > 1 else "edge"))


@torch.inference_mode()
def test_the_network_sees_the_image_with_a_short_side_of_256_as_pillow_makes_it(monkeypatch):
    view = Informative()
    seen = []
    monkeypatch.setattr(view.generator, "forward", lambda x: seen.append(x) or x[:, :1])
    image = photo(218, 178)
    drawn = view.draw(image)
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    wanted = np.asarray(Image.fromarray(pixels).resize((256, 313), Image.Resampling.BICUBIC))
    shown = seen[0][0, :, :313].permute(1, 2, 0).numpy() * 255
    assert seen[0].shape == (1, 3, 316, 256)
    assert np.abs(shown - wanted).mean() < 1
    assert np.array_equal(shown[-2], seen[0][0, :, 313].T.numpy() * 255)  # what is added is a reflection
    assert (drawn - image[:, :1]).abs().mean() < 0.02  # and the drawing comes back in its place


@torch.inference_mode()
def test_an_image_larger_than_the_size_is_drawn_smaller_and_comes_back(view, monkeypatch):
    monkeypatch.setattr(view, "size", 16)
    image = photo(48, 64)
    small = functional.interpolate(image, (16, 21), mode="bicubic", antialias=True).clamp(0, 1)
    monkeypatch.setattr(view, "size", 0)
    wanted = functional.interpolate(view.draw(small), (48, 64), mode="bilinear")
    monkeypatch.setattr(view, "size", 16)
    assert (view.draw(image) - wanted).abs().max() < 1e-5


# ---- the file


@torch.inference_mode()
@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {f"module.{name}": value for name, value in state.items()},
    lambda state: {"state_dict": state},
], ids=["plain", "module", "nested"])  # fmt: skip
def test_a_file_in_the_public_format_loads(tmp_path, wrap, view):
    loaded = opened(saved(tmp_path, wrap(published())))
    assert all(torch.equal(loaded.generator.state_dict()[name], value) for name, value in published().items())
    image = photo(12, 12)
    assert torch.equal(loaded.draw(image), view.draw(image))


@pytest.mark.parametrize(("blocks", "channels"), [(1, 3), (5, 3), (3, 1)])
def test_blocks_and_channels_are_found_in_the_file(tmp_path, blocks, channels):
    path = str(tmp_path / "w.safetensors")
    save_file(published(blocks, channels), path)
    settled = views.settle("informative", {"weights": path})
    assert (settled["blocks"], settled["channels"], settled["size"]) == (blocks, channels, 256)
    assert re.fullmatch("[0-9a-f]{64}", settled["sha256"])
    view = opened(path)
    assert len(view.generator.model2) == blocks
    with torch.inference_mode():
        drawn, grey = (view.draw(x) for x in (photo(8, 12), photo(8, 12).mean(1, keepdim=True).expand(-1, 3, -1, -1)))
    assert drawn.shape == (1, 1, 8, 12)
    assert not torch.equal(drawn, grey)


def test_a_network_of_grey_images_sees_luma(tmp_path):
    view = opened(saved(tmp_path, published(channels=1)))
    red = torch.zeros(1, 3, 8, 12)
    red[:, 0] = photo(8, 12)[:, 0]
    with torch.inference_mode():
        assert torch.equal(view.draw(red), view.generator(0.299 * red[:, :1])[:, :, :8])


def test_what_was_settled_builds_the_view_again_without_the_file(tmp_path):
    path = saved(tmp_path, published(2))
    settled = views.settle("informative", {"weights": path, "size": 0})
    view = views.build("informative", settled)
    view.prepare()
    (tmp_path / "netG_A_latest.pth").unlink()
    assert views.settle("informative", settled) == settled
    again = views.build("informative", settled)
    again.load_state_dict(view.state_dict())
    with torch.inference_mode():
        assert torch.equal(again(photo(9, 9)), view(photo(9, 9)))


def test_half_precision_in_the_file_is_no_matter(tmp_path):
    view = opened(saved(tmp_path, {name: value.half() for name, value in published().items()}))
    assert view.generator.model4[1].weight.dtype == torch.float32


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(("change", "said"), [
    (lambda state: {**state, "model5.0.weight": torch.zeros(3)}, r"model5\.0\.weight \(3,\) has no place"),
    (lambda state: {**state, "model1.1.running_mean": torch.zeros(128)}, r"model1\.1\.running_mean .* has no place"),
    (lambda state: {**state, "model2.7.conv_block.1.weight": torch.zeros(1)}, r"it has no model2\.3\.conv_block\.1"),
    (without("model3.3.bias"), r"it has no model3\.3\.bias; the authors offer model\.zip"),
    (without("model0.1.weight"), r"it has no model0\.1\.weight"),
    (lambda state: {**state, "model3.0.weight": torch.zeros(128, 256, 3, 3)},
     r"model3\.0\.weight is \(128, 256, 3, 3\) there, and \(256, 128, 3, 3\) is wanted"),
    (lambda state: {**state, "model4.1.weight": torch.zeros(3, 64, 7, 7)}, r"model4\.1\.weight is \(3, 64, 7, 7\)"),
    (lambda state: {**state, "model0.1.weight": torch.zeros(64, 4, 7, 7)}, r"model0\.1\.weight is \(64, 4, 7, 7\)"),
    (lambda state: {"conv1.weight": torch.zeros(3)}, r"3 blocks and 3 channels: it has no model0\.1\.weight"),
], ids=lambda value: value if isinstance(value, str) else "state")  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, change, said):
    path = saved(tmp_path, change(published()))
    with pytest.raises(UserError, match=said):
        views.settle("informative", {"weights": path})


@pytest.mark.parametrize("option", [{"blocks": 2}, {"blocks": 4}, {"channels": 1}])
def test_what_is_given_and_not_in_the_file_is_refused(tmp_path, option):
    with pytest.raises(UserError, match=r"(model2\.|model0\.1).* (has no|is wanted)|it has no model2"):
        views.settle("informative", {"weights": saved(tmp_path, published()), **option})


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(("content", "said"), [
    (pickle.dumps({"model0.1.weight": Evil()}), "is not read: it holds more than weights|is no file of weights"),
    (b"<html>Virus scan warning</html>", "is a web page, not weights"),
    (b"", "is no file of weights, or a damaged one"),
])  # fmt: skip
def test_a_file_with_code_or_nonsense_is_one_sentence(tmp_path, content, said):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=said):
        views.settle("informative", {"weights": str(tmp_path / "w.pth")})


def test_a_file_of_torch_with_code_in_it_is_not_run(tmp_path):
    path = saved(tmp_path, {**published(), "note": Evil()})
    with pytest.raises(UserError, match="is not read: it holds more than weights"):
        views.settle("informative", {"weights": path})


def test_without_weights_it_says_where_they_are():
    view = views.build("informative", views.settle("informative", {}))
    with pytest.raises(UserError, match=r"1MIdHzecxz-z0uY3ARL_R40DlKcuQxiDk.*weights=FILE\.$"):
        view.prepare()


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no file of weights at .*nowhere\.pth"):
        views.settle("informative", {"weights": str(tmp_path / "nowhere.pth")})


def test_a_file_that_changed_is_refused(tmp_path):
    path = saved(tmp_path, published())
    settled = views.settle("informative", {"weights": path})
    for sha256 in (settled["sha256"][:8], settled["sha256"].upper()):
        assert views.settle("informative", {"weights": path, "sha256": sha256}) == settled
    saved(tmp_path, published(seed=2))
    with pytest.raises(UserError, match=f"is another file than sha256={settled['sha256']} says: its own is "):
        views.build("informative", settled).prepare()
    with pytest.raises(UserError, match="is another file than sha256=01234567"):
        views.settle("informative", {"weights": path, "sha256": "01234567"})


@pytest.mark.parametrize(("options", "said"), [
    ({"blocks": -1}, "blocks=-1 is not allowed"), ({"channels": 2}, "channels=2 is not allowed: 3 for RGB"),
    ({"size": 15}, "size=15 is not allowed: from 16 to 4096"), ({"size": -1}, "size=-1"), ({"size": 5000}, "size=5000"),
    ({"sha256": "0123456789"}, "of the file that weights names"), ({"size": 2.5}, r"size=2\.5 is not allowed"),
    ({"style": "contour"}, "Unknown option of informative 'style'"),
])  # fmt: skip
def test_options_that_are_not_allowed_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        views.settle("informative", options)


# ---- shipping


@pytest.mark.parametrize("size", [0, 32])
@pytest.mark.filterwarnings("ignore")  # of the exporter's own parts
def test_it_has_a_form_in_onnx(tmp_path, size):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    view = opened(saved(tmp_path, published(1)), size=size)
    path = str(tmp_path / "view.onnx")
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.onnx.export(view, (photo(22, 18, 2),), dynamo=True, opset_version=18, input_names=["image"],
                                dynamic_shapes=batch, verbose=False)  # fmt: skip
    program.save(path, external_data=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for num in (1, 5):
        image = photo(22, 18, num, seed=num)
        with torch.inference_mode():
            wanted = view(image).numpy()
        assert np.abs(session.run(None, {"image": image.numpy()})[0] - wanted).max() < 2e-4


def test_it_runs_on_the_device_that_there_is(view):
    device = engine.start()
    image = photo(12, 12)
    with torch.inference_mode():
        assert (
            Informative(size=32).to(device)(image.to(device)).cpu() - Informative(size=32)(image)
        ).abs().max() < 5e-3
