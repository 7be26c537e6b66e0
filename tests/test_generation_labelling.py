"""Labelling: every image has a row, whatever is in the folder, and the row says what the classifier sees."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from evenlens import predict
from evenlens.errors import UserError
from evenlens.generation import audit, face_crops, face_csv, labelling, quality, read_labels, write_labels
from evenlens.generation.generator import Generator
from evenlens.generation.samples import make_samples
from tests.test_classifiers import GENDER, load, model, script, trained
from tests.test_images import broken

__all__ = ["model", "trained"]  # fixtures
NORMAL = {"attributes": GENDER, "size": 16}


def pictures(folder, num=7, size=16, seed=0):
    """Write random images: give their names."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    names = [f"{row:06d}.png" for row in range(num)]
    for name in names:
        Image.fromarray(random.integers(256, size=(size, size, 3), dtype=np.uint8)).save(folder / name)
    return names


def patches(*boxes, size=200):
    """An image with dark squares of different colours where faces would be: left, top, right and bottom of each."""
    pixels = np.full((size, size, 3), 250, np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = [10 + 40 * number, 20, 200 - 60 * number]
    return pixels


@pytest.fixture
def judge(tmp_path):
    return load(script(tmp_path / "judge.pt", about=NORMAL))


class Dark:
    """Stands for OpenCV's cascade: a face is every square of dark pixels that was drawn."""

    boxes = np.empty((0, 4))

    def detectMultiScale(self, image, step, neighbours, minSize):
        assert image.ndim == 2
        found = [b for b in self.boxes if image[int(b[1]) + 1, int(b[0]) + 1] < 200]
        return np.array(found) if found else ()


@pytest.fixture
def detector(monkeypatch):
    """Faces are where it is told they are (left, top, width, height)."""
    dark = Dark()
    monkeypatch.setattr(face_crops, "_cascade", lambda: dark)
    return dark


# ---- what the classifier sees


def test_labels_are_what_predict_says_of_the_same_images(model, tmp_path):
    for size, tolerance in ((16, 1e-6), (45, 0.01)):  # predict rounds what it resized to eight bits
        folder = tmp_path / f"of {size}"
        names = pictures(folder, 9, size)
        found = labelling.label_images(folder, names, [load(model)])
        predict.predict_folder(model, folder, tmp_path / "p.parquet")
        wanted = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
        assert found.ids.tolist() == wanted["file"]
        one = found.attributes["place"]
        for k, name in enumerate(one.classes):
            np.testing.assert_allclose(one.probability[:, k], wanted[f"probability.{name}"], atol=tolerance)
        if size == 16:
            assert [one.classes[code] for code in one.codes] == wanted["prediction"]


def test_probability_class_and_margin_follow_from_the_logits(tmp_path):
    about = {"attributes": {"gender": ["Male", "Female"], "age": ["young", "middle", "old"]}, "size": 16}
    judge = load(script(tmp_path / "five.pt", 5, about))
    names = pictures(tmp_path / "images", 6)
    found = labelling.label_images(tmp_path / "images", names, [judge])
    pixels = np.stack([np.asarray(Image.open(tmp_path / "images" / name)) for name in names])
    logits = judge.logits(torch.from_numpy(pixels / 255).permute(0, 3, 1, 2).float())
    for name, levels in about["attributes"].items():
        one, e = found.attributes[name], np.exp(logits[name].double().numpy())
        p = e / e.sum(axis=1, keepdims=True)
        assert one.classes == tuple(levels)
        np.testing.assert_allclose(one.probability, p, atol=1e-6)
        np.testing.assert_allclose(one.probability.sum(axis=1), 1, atol=1e-6)
        assert one.codes.tolist() == p.argmax(axis=1).tolist()
        for row, ordered in enumerate(sorted(p[row]) for row in range(len(p))):
            assert one.margin[row] == pytest.approx(ordered[-1] - ordered[-2], abs=1e-6)
    assert found.n_faces.tolist() == [1] * 6
    assert found.face.tolist() == [0] * 6


def test_the_batches_and_the_other_classifiers_change_nothing(model, judge, tmp_path, monkeypatch):
    names = pictures(tmp_path / "images", 7) + [f"deep/{n}" for n in pictures(tmp_path / "images" / "deep", 4, 40)]
    both = [load(model), judge]
    whole = labelling.label_images(tmp_path / "images", names, both)
    again = labelling.label_images(tmp_path / "images", names, both)
    monkeypatch.setattr(labelling, "BATCH", 3)
    monkeypatch.setattr(labelling, "MOST_PIXELS", 600)
    few = labelling.label_images(tmp_path / "images", names, both)
    alone = labelling.label_images(tmp_path / "images", names, [judge])
    back = labelling.label_images(tmp_path / "images", names[::-1], [judge])
    for name in ("place", "gender"):
        assert np.array_equal(whole.attributes[name].probability, again.attributes[name].probability)
        np.testing.assert_allclose(few.attributes[name].probability, whole.attributes[name].probability, atol=1e-5)
    wanted = whole.attributes["gender"].probability
    np.testing.assert_allclose(alone.attributes["gender"].probability, wanted, atol=1e-6)
    np.testing.assert_allclose(back.attributes["gender"].probability[::-1], wanted, atol=1e-6)


# ---- what cannot be labelled


def test_images_that_cannot_be_read_are_rows_without_a_face(judge, tmp_path):
    folder = tmp_path / "images"
    names = pictures(folder, 3)
    bad = broken(folder)
    (folder / "zero.png").write_bytes(b"")
    mixed = [names[0], *bad[:3], names[1], "zero.png", "gone.png", names[2]]
    found = labelling.label_images(folder, mixed, [judge])
    assert found.ids.tolist() == mixed
    wanted = [1, 0, 0, 0, 1, 0, 0, 1]
    assert found.n_faces.tolist() == wanted
    one = found.attributes["gender"]
    assert (one.codes >= 0).tolist() == [bool(n) for n in wanted]
    assert np.isfinite(one.probability).all(axis=1).tolist() == [bool(n) for n in wanted]
    assert np.isfinite(one.margin).tolist() == [bool(n) for n in wanted]
    problem = found.others["problem"].tolist()
    assert [each is None for each in problem] == [bool(n) for n in wanted]
    assert problem[5] == "an empty file"
    assert problem[6] == "No such file or directory"
    assert any("5 images cannot be read" in note for note in found.notes)
    alone = labelling.label_images(folder, names, [judge])
    np.testing.assert_allclose(one.probability[[0, 4, 7]], alone.attributes["gender"].probability, atol=1e-6)
    assert not any("cannot be read" in note for note in alone.notes)
    assert any("taken to be one face" in note for note in alone.notes)


def test_where_no_image_can_be_read_there_are_no_labels(judge, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "zero.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"None of the 1 images .* zero.png \(an empty file\)"):
        labelling.label_images(tmp_path / "images", ["zero.png"], [judge])


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "/etc/hostname", "link.png", "\udcff.png"])
def test_no_path_leads_out_of_the_folder(judge, tmp_path, name):
    names = pictures(tmp_path / "images", 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "images" / "link.png")
    for call in (labelling.label_images, labelling.features_of):
        with pytest.raises(UserError, match=r"must lie below|somewhere outside|is no text"):
            call(tmp_path / "images", [*names, name], [judge] if call is labelling.label_images else judge)


def test_nothing_to_do_is_refused(model, judge, tmp_path):
    names = pictures(tmp_path / "images", 2)
    with pytest.raises(UserError, match="no image to label"):
        labelling.label_images(tmp_path / "images", [], [judge])
    with pytest.raises(UserError, match="to be labelled twice"):
        labelling.label_images(tmp_path / "images", [names[0]] * 2, [judge])
    with pytest.raises(UserError, match="no folder"):
        labelling.label_images(tmp_path / "nowhere", names, [judge])
    with pytest.raises(UserError, match="at least one classifier"):
        labelling.label_images(tmp_path / "images", names, [])
    with pytest.raises(UserError, match=r"Two classifiers say gender: TorchScript \(judge.pt\) and erm on tiny"):
        labelling.label_images(tmp_path / "images", names, [judge, load(f"gender={model}")])
    with pytest.raises(UserError, match="cannot be called n_faces"):
        labelling.label_images(tmp_path / "images", names, [load(f"n_faces={model}")])
    with pytest.raises(UserError, match="cannot be called problem"):
        labelling.label_images(tmp_path / "images", names, [load(f"problem={model}")])


def test_answers_that_are_not_finite_are_refused(judge, tmp_path):
    names = pictures(tmp_path / "images", 2)
    judge.scores = lambda shown: torch.full((len(shown), 2), float("nan"))
    with pytest.raises(UserError, match=r"judge.pt\) answers with numbers that are not finite"):
        labelling.label_images(tmp_path / "images", names, [judge])


# ---- several faces


def test_every_face_that_is_found_is_a_row_the_largest_first(judge, tmp_path, detector):
    folder = tmp_path / "images"
    folder.mkdir()
    small, large = (20, 30, 60, 70), (110, 90, 190, 170)
    Image.fromarray(patches(small, large)).save(folder / "both.png")
    Image.fromarray(patches(large)).save(folder / "one.png")
    Image.fromarray(patches()).save(folder / "none.png")
    (folder / "zero.png").write_bytes(b"")
    detector.boxes = np.array([[20, 30, 40, 40], [110, 90, 80, 80]])
    found = labelling.label_images(folder, ["both.png", "none.png", "zero.png", "one.png"], [judge], detect=True)
    assert found.ids.tolist() == ["both.png", "both.png", "none.png", "zero.png", "one.png"]
    assert found.face.tolist() == [0, 1, 0, 0, 0]
    assert found.n_faces.tolist() == [2, 2, 0, 0, 1]
    assert (found.attributes["gender"].codes >= 0).tolist() == [True, True, False, False, True]
    corners = [[found.others[name][row] for name in labelling.BOX] for row in range(5)]
    assert corners == [
        ["110", "90", "190", "170"], ["20", "30", "60", "70"], [None] * 4, [None] * 4, ["110", "90", "190", "170"],
    ]  # fmt: skip
    assert [bool(each) for each in found.others["problem"]] == [False, False, False, True, False]
    chip = torch.tensor(face_crops.chip(patches(small, large), np.array(small))).permute(2, 0, 1)[None] / 255
    wanted = judge.logits(chip)["gender"].softmax(1)[0]
    np.testing.assert_allclose(found.attributes["gender"].probability[1], wanted.numpy(), atol=1e-5)
    assert "No face was found in 1 image that can be read." in found.notes
    write_labels(found, tmp_path / "labels.csv")
    read = read_labels(tmp_path / "labels.csv")
    assert read.n_faces.tolist() == [2, 2, 0, 0, 1]
    assert read.one_face()[0].ids.tolist() == ["one.png"]


def test_a_picture_of_a_face_has_a_quarter_of_its_side_around_it():
    pixels = patches((60, 80, 100, 120))
    cut = face_crops.chip(pixels, np.array([60, 80, 100, 120]))
    assert cut.shape == (300, 300, 3)
    assert (cut[60:240, 60:240] == pixels[100, 80]).all()  # 40 of 60 pixels are the face
    assert (cut[:45] == 250).all()
    assert (cut[:, -45:] == 250).all()
    corner = face_crops.chip(patches((0, 0, 40, 40)), np.array([0, 0, 40, 40]))
    assert (corner[:240, :240] == patches((0, 0, 40, 40))[0, 0]).all(), "beyond the edge its pixels are repeated"


def test_a_large_image_is_searched_in_small_and_its_boxes_are_its_own(detector):
    pixels = patches((800, 400, 1200, 800), size=1600)
    detector.boxes = np.array([[400, 200, 200, 200]])
    assert face_crops.find(pixels).tolist() == [[800, 400, 1200, 800]]
    detector.boxes = np.empty((0, 4))
    assert face_crops.find(pixels).shape == (0, 4)


def test_without_a_detector_it_is_said_what_to_install(judge, tmp_path, monkeypatch):
    names = pictures(tmp_path / "images", 1)
    monkeypatch.setattr(face_crops, "_of_thread", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"OpenCV is needed.*evenlens\[faces\]"):
        labelling.label_images(tmp_path / "images", names, [judge], detect=True)
    new = SimpleNamespace(__version__="5.0.0", __file__=str(tmp_path / "cv2.py"))
    monkeypatch.setitem(sys.modules, "cv2", new)
    with pytest.raises(UserError, match=r"OpenCV 5.0.0 has no cascade for faces"):
        labelling.label_images(tmp_path / "images", names, [judge], detect=True)


def test_opencv_finds_a_face():
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV")
    if not hasattr(cv2, "CascadeClassifier"):
        pytest.skip("needs OpenCV 4: version 5 has no cascade")
    data = pytest.importorskip("skimage.data", reason="needs a photograph that scikit-image ships")
    photograph = data.astronaut()
    boxes = face_crops.find(photograph)
    assert len(boxes) >= 1
    left, top, right, bottom = boxes[0]
    assert left < 225 < right
    assert top < 115 < bottom
    assert face_crops.find(np.full((80, 120, 3), 128, np.uint8)).shape == (0, 4)


# ---- features


def test_features_are_written_and_read_again_with_their_images(model, tmp_path):
    names = pictures(tmp_path / "images", 25)
    classifier = load(model)
    found = labelling.features_of(tmp_path / "images", names, classifier)
    assert found.values.shape == (25, 128)
    image = torch.tensor(np.asarray(Image.open(tmp_path / "images" / names[3])) / 255).permute(2, 0, 1)[None]
    np.testing.assert_allclose(found.values[3], classifier.features(image.float())[0].numpy(), atol=1e-5)
    labelling.write_features(found, tmp_path / "out" / "f.safetensors", classifier.title)
    read = quality.read_features(tmp_path / "out" / "f.safetensors")
    assert read.ids.tolist() == names
    np.testing.assert_allclose(read.values, found.values, rtol=1e-6)
    same = quality.compare(read.values, read.values)
    assert same.fid == pytest.approx(0, abs=1e-6)
    assert (same.precision, same.recall) == (1, 1)
    with pytest.raises(UserError, match=r"features are written as .safetensors"):
        labelling.write_features(found, tmp_path / "f.npy", "x")


def test_features_of_an_image_that_cannot_be_read_are_refused(model, judge, tmp_path):
    names = pictures(tmp_path / "images", 2)
    (tmp_path / "images" / "zero.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"zero.png cannot be read \(an empty file\)"):
        labelling.features_of(tmp_path / "images", [*names, "zero.png"], load(model))
    with pytest.raises(UserError, match="gives no features"):
        labelling.features_of(tmp_path / "images", names, judge)


# ---- the command


def test_the_command_labels_a_folder_and_the_audit_reads_it(command, model, tmp_path):
    pictures(tmp_path / "images", 30)
    (tmp_path / "images" / "zero.png").write_bytes(b"")
    script(tmp_path / "judge.pt", about=NORMAL)
    ended = command("generate", "label", "images", "out/labels.parquet", "--by", model, "--by", "judge.pt",
                    "--features", "out/f.safetensors")  # fmt: skip
    assert ended.code == 0, ended
    assert "30 faces in 31 images; 1 without any." in ended.out
    assert "1 image cannot be read" in ended.out
    assert "ahead of the next one" in " ".join(ended.out.split())
    found = read_labels(tmp_path / "out" / "labels.parquet")
    assert set(found.attributes) == {"place", "gender"}
    assert len(found) == 31
    assert found.others["problem"].tolist() == [None] * 30 + ["an empty file"]
    assert audit(found, ["place"]).as_dict()["parts"][0]["name"] == "place"
    assert quality.read_features(tmp_path / "out" / "f.safetensors").ids.tolist() == found.ids[:30].tolist()
    audited = command("generate", "audit", "out/labels.parquet", "--attribute", "gender", "--json", "a.json")
    assert audited.code == 0, audited
    assert json.loads((tmp_path / "a.json").read_text())["parts"][0]["name"] == "gender"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["f.safetensors", "labels.parquet"]


def test_the_command_labels_a_folder_of_samples_and_writes_the_other_form(command, judge, tmp_path):
    class Noise(Generator):
        def draw(self, latent, label):
            return latent[:, :3, None, None].sigmoid().expand(-1, 3, 8, 8)

    made = make_samples(Noise(title="noise", latent_size=4, size=8, fingerprint="0" * 16), tmp_path / "faces", 12)
    ended = command("generate", "label", "faces", "labels.csv", "--by", "judge.pt", "--prediction-csv", "fair.csv")
    assert ended.code == 0, ended
    one, other = read_labels(tmp_path / "labels.csv"), read_labels(tmp_path / "fair.csv")
    assert one.ids.tolist() == other.ids.tolist() == made.ids.tolist()
    assert one.attributes["gender"].codes.tolist() == other.attributes["gender"].codes.tolist()
    assert (tmp_path / "fair.csv").read_text().startswith(f'"{face_csv.NAME}"')


@pytest.mark.parametrize(("words", "sentence"), [
    (("nowhere", "l.csv", "--by", "judge.pt"), "There is no folder nowhere"),
    (("empty", "l.csv", "--by", "judge.pt"), "No image below empty"),
    (("images", "l.txt", "--by", "judge.pt"), "labels are written as .csv or .parquet"),
    (("images", "l.csv", "--by", "nothing"), "There is no classifier at nothing"),
    (("images", "l.csv", "--by", "judge.pt", "--by", "judge.pt"), "Two classifiers say gender"),
    (("images", "l.csv", "--by", "judge.pt", "--crop", "0"), "A crop of 0 is not allowed"),
    (("images", "l.csv", "--by", "judge.pt", "--detect", "--crop", "0.5"), "leave one of them"),
    (("images", "l.csv", "--by", "judge.pt", "--detect", "--features", "f.safetensors"), "run it twice"),
    (("images", "l.csv", "--by", "judge.pt", "--races", "5"), "choose 7 or 4"),
    (("images", "l.csv", "--by", "judge.pt", "--features", "f.npy"), "features are written as .safetensors"),
    (("images", "l.csv", "--by", "judge.pt", "--features", "f.safetensors"), "gives no features"),
    (("images", "l.csv", "--by", "skin=judge.pt", "--prediction-csv", "p.csv"), "attribute skin is not one of this"),
    (("images", "l.csv", "--by", "judge.pt", "--prediction-csv", "p.txt"), "this form is a .csv"),
], ids=["no folder", "no image", "ending", "no classifier", "twice", "crop", "crop and detect", "features and detect",
        "races", "features ending", "no features", "other attribute", "csv ending"])  # fmt: skip
def test_the_command_refuses_in_one_sentence_and_writes_nothing(refused, judge, tmp_path, words, sentence):
    pictures(tmp_path / "images", 2)
    (tmp_path / "empty").mkdir()
    assert sentence in refused("generate", "label", *words)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".csv", ".safetensors", ".txt", ".npy", ".part")]
