"""A folder of images in, a table out, whatever lies in the folder."""

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image

from evenlens import predict, run
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.predict import predict_folder
from tests.test_images import RAMP, broken

SHORT = {"train.epochs": 1, "precision": "fp32"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests import fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("evenlens.datasets.get", lambda name, root=None: fake.Tiny)
        return run.train(make_config("tiny", "erm", SHORT), tmp_path_factory.mktemp("runs")).folder


@pytest.fixture
def photos(tmp_path):
    """One of everything that people have in a folder."""
    folder = tmp_path / "photos [red]"
    (folder / "deeper").mkdir(parents=True)
    image = Image.fromarray(RAMP)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "plain.jpg")
    image.save(folder / "UPPER.JPG", "JPEG")
    image.save(folder / "turned.jpg", exif=exif)
    image.convert("L").save(folder / "grey.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(RAMP[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    Image.fromarray(RAMP[:1, :1]).save(folder / "deeper" / "pixel.png")
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    return folder


def test_every_image_has_a_row_with_a_class_and_probabilities(model, photos, tmp_path):
    for name, read in (("a.csv", pyarrow.csv.read_csv), ("deep/er/a.parquet", pyarrow.parquet.read_table)):
        written = predict_folder(model, photos, tmp_path / name)
        table = read(tmp_path / name).to_pydict()
        assert written.num_images == 8
        assert written.unreadable == {}
        assert table["file"] == sorted(table["file"])
        assert "deeper/pixel.png" in table["file"]
        assert set(table["prediction"]) <= {"place 0", "place 1"}
        total = np.add(table["probability.place 0"], table["probability.place 1"])
        assert np.allclose(total, 1)


def test_several_batches_give_the_rows_of_one(model, photos, tmp_path, monkeypatch):
    predict_folder(model, photos, tmp_path / "one.csv")
    monkeypatch.setattr(predict, "EVALUATION_BATCH", 3)
    predict_folder(model, photos, tmp_path / "three.csv")
    one, three = (pyarrow.csv.read_csv(tmp_path / name).to_pydict() for name in ("one.csv", "three.csv"))
    assert one["file"] == three["file"]
    assert np.allclose(one["probability.place 0"], three["probability.place 0"], atol=1e-5)


def test_images_that_cannot_be_read_stop_it_and_leave_no_table(model, photos, tmp_path):
    names = broken(photos)
    with pytest.raises(
        UserError, match=rf"{len(names)} of the first 16 images cannot be read, such as .*--skip-unread"
    ):
        predict_folder(model, photos, tmp_path / "out" / "a.csv")
    assert not list(tmp_path.glob("out/*"))
    written = predict_folder(model, photos, tmp_path / "out" / "a.csv", skip_unreadable=True)
    assert written.num_images == 8
    assert sorted(written.unreadable) == names
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.csv"]


def test_a_folder_of_nothing_but_broken_images_gives_an_empty_table_when_asked(model, tmp_path):
    (tmp_path / "photos").mkdir()
    broken(tmp_path / "photos")
    predict_folder(model, tmp_path / "photos", tmp_path / "a.parquet", skip_unreadable=True)
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").num_rows == 0


@pytest.mark.parametrize(("where", "out", "words"), [
    ("nowhere", "a.csv", "There is no folder nowhere"),
    ("empty", "a.csv", "No image below empty: looked for files ending in .bmp"),
    ("photos [red]", "a.xlsx", "'a.xlsx' ends in '.xlsx': predictions are written as .csv or .parquet"),
    ("photos [red]", "a", "predictions are written as .csv or .parquet"),
    ("photos [red]", "folder.csv", "Is a directory"),
    ("photos [red]/plain.jpg", "a.csv", "There is no folder photos [red]/plain.jpg"),
])  # fmt: skip
def test_a_wrong_folder_or_table_is_one_sentence(refused, model, photos, tmp_path, where, out, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.csv").mkdir()
    assert words in refused("predict", model, where, "--out", out)
    assert not list(tmp_path.glob("**/.*.part"))


def test_a_model_that_is_not_there_is_one_sentence(refused, photos):
    assert "There is no model at nowhere" in refused("predict", "nowhere", photos)


def test_the_command_writes_the_table_and_says_what_it_left_out(command, model, photos):
    (photos / "text.png").write_text("no image")
    ended = command("predict", model, photos, "--out", "out [bold].csv", "--skip-unreadable")
    assert ended.code == 0
    assert "8 images: out [bold].csv" in ended.out
    assert "left out: text.png (no image, or a damaged one)" in ended.err


def test_a_name_that_is_no_text_does_no_harm(command, model, tmp_path):
    import os

    (tmp_path / "photos").mkdir()
    with open(os.fsencode(tmp_path / "photos") + b"/\xff.png", "wb") as file:
        Image.fromarray(RAMP).save(file, "PNG")
    assert command("predict", model, "photos").code == 0
    assert "\\xff.png" in (tmp_path / "predictions.csv").read_text()


def test_a_full_disk_is_one_sentence_and_leaves_no_table(refused, model, photos, tmp_path, monkeypatch):
    def full(table, path):
        path.write_text("half a ta")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pyarrow.csv.write_csv", full)
    assert "No space left on device" in refused("predict", model, photos)
    assert not list(tmp_path.glob("*predictions*"))
