"""What a view makes of a data set: drawn once, kept, and drawn anew by what is deployed."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evenlens import export, measuring, model_file, quantising, run, view_sheet, views
from evenlens.config import changed, make_config, read_config, read_toml
from evenlens.data import drawing
from evenlens.data.dataset import Batch
from evenlens.errors import UserError
from evenlens.report import page, summary, verdict
from evenlens.view import View, in_eight_bits
from tests import fake, worker

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 300, "data.correlation": 0.7}


class Dotted(View):
    """A view with a buffer that it reads from a file."""

    title = "Dotted"
    sketches = True

    def __init__(self, *, path: str = "", shade: float = 0.5) -> None:
        super().__init__()
        self.path, self.shade = path, shade
        self.register_buffer("mask", torch.zeros(16, 16))

    def prepare(self):
        with open(self.path) as file:
            self.mask.copy_(torch.tensor([float(word) for word in file.read().split()]).view(16, 16))

    def draw(self, image):
        return 1 - self.shade * self.mask * (1 - image[:, :1])


@pytest.fixture
def dotted(monkeypatch, tmp_path):
    monkeypatch.setattr(views, "get", lambda name: Dotted if name == "dotted" else original(name))
    path = tmp_path / "mask.txt"
    path.write_text(" ".join(str(k % 2) for k in range(256)))
    return path


original = views.get


def config(method="erm", **settings):
    return make_config("tiny", method, {**SHORT, "data.view": "grey", **settings})


def photographs(num=300):
    return fake.Tiny(None, num=num, correlation=0.7).pixels


def as_images(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255.0)


def test_a_data_set_seen_through_a_view_holds_its_drawings_in_eight_bits(tmp_path):
    drawn = run.load_data(config()).splits.train.pixels.numpy()
    weights = np.array([0.299, 0.587, 0.114])
    wanted = np.rint(photographs() @ weights)
    assert drawn.shape == (300, 16, 16, 3)
    assert drawn.dtype == np.uint8
    assert np.abs(drawn - wanted[..., None]).max() <= 1  # a luma that ends in one half
    assert (drawn == wanted[..., None]).mean() > 0.999


def test_pure_red_green_and_blue_are_76_150_and_29():
    pure = np.eye(3, dtype=np.uint8)[:, None, None] * np.uint8(255)
    shown = drawing.draw_pixels(views.build("grey", {}), np.broadcast_to(pure, (3, 4, 4, 3)))
    assert [np.unique(image).tolist() for image in shown] == [[76], [150], [29]]


def test_drawings_are_made_once_and_a_killed_run_goes_on(monkeypatch, tmp_path):
    made = []
    draw = drawing.draw_pixels

    def counted(view, pixels):
        if len(made) == 1 and stop:
            raise KeyboardInterrupt
        made.append(len(pixels))
        return draw(view, pixels)

    stop = True
    monkeypatch.setattr(drawing, "draw_pixels", counted)
    with pytest.raises(KeyboardInterrupt):
        run.load_data(config(**{"data.num": 600}))
    stop = False
    seen = []
    whole = run.load_data(config(**{"data.num": 600}), lambda what, done, total: seen.append((done, total)))
    assert made == [256, 256, 88]  # the first chunk was not drawn again
    assert seen == [(512, 600), (600, 600)]
    again = run.load_data(config(**{"data.num": 600}))
    assert made == [256, 256, 88]
    assert torch.equal(whole.splits.train.pixels, again.splits.train.pixels)
    assert (drawing.draw_pixels(views.build("grey", {}), photographs(600)) == again.splits.train.pixels.numpy()).all()


def test_an_option_makes_other_drawings_and_another_run(dotted):
    half, full = ({"data.view": "dotted", "view.path": str(dotted), "view.shade": shade} for shade in (0.5, 1.0))
    first, second = (run.load_data(config(**settings)).splits.train.pixels for settings in (half, full))
    assert not torch.equal(first, second)
    assert config(**half).identity() != config(**full).identity() != config().identity()


def test_what_was_looked_at_is_known_by_the_photographs(tmp_path):
    plain = run.load_data(config(**{"data.view": "rgb"})).splits
    drawn = run.load_data(config()).splits
    assert plain.fingerprint == drawn.fingerprint
    assert (plain.train.digests == drawn.train.digests).all()
    made = run.train(config(), tmp_path)
    back = run.load_data(run.of_photographs(made.config)).splits
    assert torch.equal(back.train.pixels, plain.train.pixels)


# ---- what is deployed


@pytest.mark.parametrize("method", ["erm", "domain_independent", "faap", "reprogramming", "magnitude", "hinton"])
def test_what_is_deployed_takes_photographs_and_predicts_what_was_tested(method, tmp_path):
    made = run.train(config(method, **({"sparsity": 0.3} if method == "magnitude" else {})), tmp_path)
    test = run.load_data(run.of_photographs(made.config)).splits.test
    wanted = made.predictions("test")
    logits = torch.from_numpy(np.stack([wanted[f"logit.{k}"] for k in range(2)], 1))
    with torch.inference_mode():
        found = made.load()(as_images(test.pixels[test.rows].numpy()))
        shown = views.build("grey", {})(as_images(test.pixels[test.rows].numpy()))
        unviewed = made.load_method()(in_eight_bits(shown))
        without = made.load_method()(as_images(test.pixels[test.rows].numpy()))
    assert torch.allclose(found, logits, atol=1e-4)
    assert torch.allclose(unviewed, logits, atol=1e-4)
    assert (without - logits).abs().max() > 0.02
    assert made.load().net.name == "small_cnn"


def test_a_method_that_predicts_with_the_group_does_so_behind_its_view(tmp_path):
    made = run.train(config("group_thresholds"), tmp_path)
    model = made.load()
    assert "prediction" in model.needs_group
    test = run.load_data(run.of_photographs(made.config)).splits.test
    batch = Batch(as_images(test.pixels[test.rows].numpy()), test.label, test.group, test.rows)
    with torch.inference_mode():
        assert (model.predict(batch).argmax(1).numpy() == made.predictions("test")["prediction"]).all()
    with pytest.raises(UserError, match="group_thresholds predicts with each image's group"):
        export.deployable(model)


def test_a_run_that_starts_from_another_looks_through_the_same_view(tmp_path):
    made = run.train(config("hinton"), tmp_path)
    teacher = run.Run.open(made.required("teacher")[0])
    assert teacher.config.data.view == "grey"
    with pytest.raises(UserError, match=r"teacher\.view\.shade is not allowed"):
        run.train(config("hinton", **{"teacher.view.shade": 1}), tmp_path)


def test_what_a_view_reads_from_files_is_in_the_saved_model(dotted, tmp_path):
    made = run.train(config(**{"data.view": "dotted", "view.path": str(dotted)}), tmp_path)
    wanted = made.predictions("test")
    dotted.unlink()
    model = made.load()
    assert model.view.mask.sum() == 128
    test = run.load_data(run.of_photographs(made.config)).splits.test
    with torch.inference_mode():
        logits = model(as_images(test.pixels[test.rows].numpy()))
    assert (logits.argmax(1).numpy() == wanted["prediction"]).all()
    assert model_file.load_method(made.folder / "model.safetensors").net.name == "small_cnn"


def test_the_exported_file_takes_photographs(tmp_path):
    pytest.importorskip("onnxruntime")
    made = run.train(config(), tmp_path)
    model = export.deployable(made.load())
    parity = export.export_onnx(made.load(), tmp_path / "model.onnx")
    assert parity.largest_difference <= parity.allowed
    assert isinstance(model.view, nn.Module)
    with pytest.raises(UserError, match="predicts with more than the output of its network"):
        export.export_weights(made.load(), tmp_path / "weights.safetensors")


# ---- saying which


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data.view": "gray"}, "view 'gray'.*grey"),
        ({"data.view": "grey", "view.sigma": 1}, "option of grey 'sigma'"),
        ({"data.view": "rgb", "view.sigma": 1}, "option of rgb 'sigma'"),
        ({"data.view": 3}, "data.view=3 is not allowed"),
    ],
)
def test_a_wrong_view_is_refused_before_any_work(settings, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run.train(config(**settings), tmp_path)
    assert not list(tmp_path.glob("tiny/*/*"))


def test_a_wrong_value_of_an_option_is_refused(dotted, tmp_path):
    with pytest.raises(UserError, match="dotted: shade='dark' is not allowed"):
        run.train(config(**{"data.view": "dotted", "view.shade": "dark"}), tmp_path)


def test_a_row_says_its_view_and_an_option_where_rows_differ_in_it(dotted, tmp_path):
    dots = {"data.view": "dotted", "view.path": str(dotted)}
    made = [
        run.train(config(**settings), tmp_path)
        for settings in ({"data.view": "rgb"}, {}, dots, {**dots, "view.shade": 1.0})
    ]
    labels = [row.label for row in summary.summarise(made, replicates=20)]
    assert labels == [
        "erm [data.view=rgb]",
        "erm [data.view=grey]",
        "erm [data.view=dotted, view.shade=0.5]",
        "erm [data.view=dotted, view.shade=1.0]",
    ]
    rows = summary.summarise(made, replicates=20)
    for order in (rows, rows[::-1]):
        assert summary.sort_rows(order, "erm")[0].label == "erm [data.view=rgb]"
        assert verdict.baseline_of(order, "erm") == verdict.baseline_of(order, None) == rows[0]
    command = page.command_of(made[3].config)
    assert "data.view=dotted" in command
    assert "view.shade=1.0" in command
    assert read_config(read_toml(made[3].folder / "config.toml")) == made[3].config
    assert changed(made[3].config, {"view.shade": 0.5}).data.view_options["shade"] == 0.5


def test_a_recipe_of_several_tasks_gives_a_table_and_a_page_each(command, tmp_path, monkeypatch):
    recipe = tmp_path / "views.toml"
    recipe.write_text(
        'title = "Looks"\ndataset = "tiny"\nmethod = "erm"\nselect = "last"\n'
        '[data]\nnum = 300\nview = ["rgb", "grey"]\n'
        'sensitive = [["tint"], ["tint", "half"]]\nprotocol = "crossed"\n[train]\nepochs = 1\n'
    )
    monkeypatch.setattr("evenlens.workers.local._work", worker.work)
    ended = command("sweep", recipe, "--markdown", "--page", "looks.html", "--jobs", "1")
    assert ended.code == 0, ended.err
    assert ended.out.count("| method | accuracy") == 2
    assert "### tiny, place by tint\n" in ended.out
    assert "### tiny, place by tint and half\n" in ended.out
    assert "[data.view=grey]" in ended.out
    for number in (1, 2):
        assert "Looks: tiny, place by tint" in (tmp_path / f"looks-{number}.html").read_text()
    assert "looks-2.html" in (tmp_path / "looks.html").read_text()  # what holds over all tasks


def test_a_sheet_shows_photographs_from_dark_to_light_over_their_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(view_sheet, "AT_ONCE", 7)
    part = run.load_data(config(**{"data.view": "rgb"})).splits.val
    view_sheet.write({"grey": views.build("grey", {})}, part, tmp_path / "deep" / "sheet.png")
    image = np.asarray(Image.open(tmp_path / "deep" / "sheet.png").convert("RGB")).astype(float)
    assert image.shape == (2 * 132, 132 + 8 * 132, 3)
    columns = [image[:, 132 + 132 * k : 132 + 132 * k + 128] for k in range(8)]
    photographs, drawings = ([column[top : top + 128] for column in columns] for top in (0, 132))
    middle = [photograph[32:96, 32:96] @ np.array([0.299, 0.587, 0.114]) for photograph in photographs]
    tones = [tone.mean() for tone in middle]
    assert tones == sorted(tones)
    everyone = part.pixels[part.rows].numpy()[:, 4:12, 4:12].mean((1, 2)) @ np.array([0.299, 0.587, 0.114])
    assert (tones[0], tones[-1]) == pytest.approx((everyone.min(), everyone.max()))
    for tone, drawn in zip(middle, drawings, strict=True):
        assert np.abs(drawn[32:96, 32:96, 0] - tone).max() <= 0.51
    with pytest.raises(UserError, match="is written as"):
        view_sheet.write({}, part, tmp_path / "sheet.jpg")


def test_in_eight_bits_the_network_is_quantised_and_the_drawing_is_not(tmp_path):
    onnx = pytest.importorskip("onnx")
    made = run.train(config(**{"data.view": "weber_dog"}), tmp_path)
    export.export_onnx(made.load(), tmp_path / "model.onnx")
    drawing_nodes = set(quantising.view_nodes(tmp_path / "model.onnx"))
    photographs = run.load_data(run.of_photographs(made.config)).splits
    quantising.quantise(tmp_path / "model.onnx", tmp_path / "int8.onnx", photographs.train)
    nodes = onnx.load(tmp_path / "int8.onnx").graph.node
    made_by = {output: node.op_type for node in nodes for output in node.output}
    fed = {node.name: [made_by.get(name) for name in node.input] for node in nodes}
    products = [node.name for node in nodes if node.op_type == "MatMul" and node.name in drawing_nodes]
    assert len(products) >= 5
    assert not any("DequantizeLinear" in fed[name] for name in products)
    assert sum("DequantizeLinear" in fed[node.name] for node in nodes if node.op_type == "Conv") == 4
    session = measuring.Session(tmp_path / "int8.onnx")
    images = as_images(photographs.test.pixels[photographs.test.rows].numpy())
    with torch.inference_mode():
        wanted = made.load()(images)
    assert np.abs(session(images.numpy()) - wanted.numpy()).max() < 0.1 * float(wanted.abs().max())
