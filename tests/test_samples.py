"""Generators and folders of what they made."""

import json
import os
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from evenlens.errors import UserError
from evenlens.generation import teachers
from evenlens.generation.generator import Generator
from evenlens.generation.samples import Samples, even_labels, make_samples, read_latents
from tests.test_teachers import CPU

RED = torch.tensor([1.0, 0.0, 0.0])[:, None, None]


class Tones(Generator):
    """The first numbers of a latent are the colour; a label makes the image brighter."""

    def __init__(self, labels=(), latent_size=4, size=8, fingerprint="0" * 16, **more):
        super().__init__(
            title="tones", latent_size=latent_size, size=size, fingerprint=fingerprint, labels=labels,
            attribute="tone" if labels else "", **more,
        )  # fmt: skip
        self.drawn = 0

    def draw(self, latent, label):
        self.drawn += len(latent)
        tone = torch.sigmoid(latent[:, :3]) / 2 + (0 if label is None else label[:, None] * 0.1)
        return tone[:, :, None, None].expand(-1, -1, self.size, self.size)


# ---- a generator


def test_a_sample_is_a_float_image_in_0_to_1():
    made = Tones()
    image = made.sample(made.latents(5, 0))
    assert image.shape == (5, 3, 8, 8)
    assert image.dtype == torch.float32
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    made.draw = lambda latent, label: torch.full((1, 3, 8, 8), 1.5)
    assert float(made.sample(torch.zeros(1, 4)).max()) == 1.0


def test_latents_depend_on_the_seed_alone():
    made = Tones()
    assert torch.equal(made.latents(5, 3), made.latents(5, 3))
    assert not torch.equal(made.latents(5, 3), made.latents(5, 4))


@pytest.mark.parametrize("shape", [(2, 5), (4,), (2, 4, 1)], ids=["longer", "flat", "deep"])
def test_latents_of_another_form_are_refused(shape):
    with pytest.raises(UserError, match="tones takes latents of 4 numbers, and was given"):
        Tones().sample(torch.zeros(shape))


@pytest.mark.parametrize(
    "label",
    [torch.tensor([0]), torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0])],
    ids=["fewer", "large", "negative", "float"],
)
def test_labels_of_another_form_are_refused(label):
    with pytest.raises(UserError, match="one label for each latent, a number from 0 to 1"):
        Tones(labels=("dark", "light")).sample(torch.zeros(2, 4), label)


def test_labels_are_wanted_by_those_who_take_them_and_by_no_others():
    with pytest.raises(UserError, match="makes images of a given tone"):
        Tones(labels=("dark", "light")).sample(torch.zeros(2, 4))
    with pytest.raises(UserError, match="takes no labels"):
        Tones().sample(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    assert Tones(labels=("dark", "light")).sample(torch.zeros(2, 4), torch.tensor([0, 1])).shape == (2, 3, 8, 8)


def test_images_that_are_not_finite_or_of_another_size_are_refused():
    made = Tones()
    latent = torch.zeros(3, 4)
    latent[1, 0] = torch.nan
    with pytest.raises(UserError, match="1 of 3 images with numbers that are not finite, such as that of latent 1"):
        made.sample(latent)
    made.size, made.draw = 16, lambda latent, label: torch.zeros(len(latent), 3, 8, 8)
    with pytest.raises(UserError, match=r"made images of the shape \(3, 3, 8, 8\)"):
        made.sample(torch.zeros(3, 4))


# ---- making samples


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_samples_are_images_with_their_latents_and_how_they_were_made(tmp_path):
    made = make_samples(Tones(), tmp_path / "faces", 10, seed=3)
    again = Samples.open(tmp_path / "faces")
    assert again.ids.tolist() == [f"{row:06d}.png" for row in range(10)]
    assert np.array_equal(again.latents, Tones().latents(10, 3).numpy())
    assert (again.label, len(again), again.size) == (None, 10, 8)
    assert again.info["generator"]["fingerprint"] == "0" * 16
    assert again.info["seed"] == 3
    table = pyarrow.parquet.read_table(tmp_path / "faces" / "samples.parquet")
    assert table.column_names == ["id", "row"]
    assert table.column("row").to_pylist() == list(range(10))
    wanted = (Tones().sample(torch.from_numpy(made.latents)) * 255).round().to(torch.uint8)
    assert np.array_equal(made.pixels(), wanted.permute(0, 2, 3, 1).numpy())
    assert made.pixels(4).shape == (10, 4, 4, 3)
    some = made.select(np.array([7, 2]))
    assert some.ids.tolist() == ["000007.png", "000002.png"]
    assert np.array_equal(some.latents, made.latents[[7, 2]])
    assert some.fingerprint != made.fingerprint


def test_the_same_seed_makes_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_samples(Tones(), tmp_path / name, 70, seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")
    assert Samples.open(tmp_path / "a").fingerprint != Samples.open(tmp_path / "c").fingerprint


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    def stop(what, done, total):
        if done == 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_samples(Tones(), tmp_path / "faces", 200, watch=stop)
    assert not (tmp_path / "faces").exists()
    second = Tones()
    make_samples(second, tmp_path / "faces", 200)
    assert second.drawn == 200 - 128
    make_samples(Tones(), tmp_path / "undisturbed", 200)
    assert content(tmp_path / "faces") == content(tmp_path / "undisturbed")
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_run_of_another_generator_left_is_not_used(tmp_path):
    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_samples(Tones(fingerprint="f" * 16), tmp_path / "faces", 10, watch=stop)
    second = Tones()
    make_samples(second, tmp_path / "faces", 10)
    assert second.drawn == 10


def test_complete_samples_are_opened_and_others_refused(tmp_path):
    make_samples(Tones(settings={"shape": (1, 2)}), tmp_path / "faces", 5)
    again = Tones(settings={"shape": (1, 2)})
    make_samples(again, tmp_path / "faces", 5)
    assert again.drawn == 0
    with pytest.raises(UserError, match="holds other samples"):
        make_samples(Tones(settings={"shape": (1, 2)}), tmp_path / "faces", 6)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        make_samples(Tones(), tmp_path / "mine", 5)
    assert content(tmp_path / "mine") == {"notes.txt": b"mine"}
    with pytest.raises(UserError, match="0 images cannot be made"):
        make_samples(Tones(), tmp_path / "none")


def test_there_are_as_many_images_of_each_label(tmp_path):
    names = ("dark", "middle", "light")
    made = make_samples(Tones(labels=names), tmp_path / "faces", 31)
    assert sorted(np.bincount(made.label).tolist()) == [10, 10, 11]
    assert (made.labels, made.attribute) == (names, "tone")
    table = pyarrow.parquet.read_table(tmp_path / "faces" / "samples.parquet")
    assert table.column("label").to_pylist() == [names[label] for label in made.label]
    assert not np.array_equal(made.label, np.sort(made.label))
    latents = torch.zeros(2, 4)
    given = make_samples(Tones(labels=names), tmp_path / "two", latents=latents, label=torch.tensor([2, 2]))
    assert given.label.tolist() == [2, 2]
    assert np.array_equal(given.latents, latents.numpy())
    assert torch.equal(even_labels(9, 3, 0).bincount(), torch.tensor([3, 3, 3]))


def test_large_images_are_made_few_at_a_time(tmp_path):
    made, most = Tones(size=1024), []
    draw = made.draw
    made.draw = lambda latent, label: (most.append(len(latent)), draw(latent, label))[1]
    make_samples(made, tmp_path / "faces", 6)
    assert most == [4, 2]


# ---- opening samples


def foreign(folder, names=("b.png", "a.png", "deep/c.png"), latents="latents", images="images"):
    for number, name in enumerate(names):
        place, beside = folder / images / name, (folder / latents / name).with_suffix(".npy")
        place.parent.mkdir(parents=True, exist_ok=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(place)
        np.save(beside, np.full((1, 4), number, dtype=np.float32))
    return folder


@pytest.mark.parametrize("latents", ["latents", "latentsz", "s_latentsz"], ids=["own", "teacher", "sampled"])
def test_images_and_latents_of_other_programs_are_paired_by_name(tmp_path, latents):
    images = "s_images" if latents == "s_latentsz" else "images"
    found = Samples.open(foreign(tmp_path / "x", latents=latents, images=images))
    assert found.ids.tolist() == ["a.png", "b.png", "deep/c.png"]
    assert found.latents.tolist() == [[1.0] * 4, [0.0] * 4, [2.0] * 4]
    assert found.pixels()[:, 0, 0, 0].tolist() == [1, 0, 2]


def test_an_image_without_a_latent_and_latents_of_two_lengths_are_refused(tmp_path):
    folder = foreign(tmp_path / "x")
    np.save(folder / "latents" / "a.npy", np.zeros(5))
    with pytest.raises(UserError, match=r"different lengths \(\[4, 5\]\)"):
        Samples.open(folder)
    (folder / "latents" / "a.npy").unlink()
    with pytest.raises(UserError, match=r"a\.png has no latent"):
        Samples.open(folder)


def test_no_image_and_no_latent_is_taken_from_outside(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = foreign(tmp_path / "x")
    (folder / "images" / "a.png").unlink()
    (folder / "images" / "a.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UserError, match="link to somewhere outside"):
        Samples.open(folder)
    folder = foreign(tmp_path / "y")
    os.rename(folder / "latents", tmp_path / "elsewhere")
    (folder / "latents").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link to somewhere outside"):
        Samples.open(folder)


def table(folder, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "samples.parquet")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"id": ["../x.png"], "row": [0]}, r"a path with '\.\.'"),
        ({"id": ["/x.png"], "row": [0]}, "an absolute path"),
        ({"id": ["000000.png"], "row": [9]}, "has rows that latents.npy"),
        ({"id": ["000000.png"], "row": [-1]}, "has rows that latents.npy"),
        ({"id": ["000000.png"], "row": [0.5]}, "has rows that latents.npy"),
        ({"id": ["000000.png"], "row": [None]}, "has empty fields"),
        ({"id": ["000000.png"] * 2, "row": [0, 1]}, "names an image twice"),
        ({"id": ["000000.png"]}, "Unknown column|no column"),
    ],
    ids=["above", "absolute", "far", "negative", "fraction", "empty", "twice", "lacking"],
)
def test_a_table_that_cannot_be_is_refused(tmp_path, columns, said):
    make_samples(Tones(), tmp_path / "faces", 3)
    table(tmp_path / "faces", **columns)
    with pytest.raises(UserError, match=said):
        Samples.open(tmp_path / "faces")


def test_other_damage_is_refused(tmp_path):
    make_samples(Tones(labels=("dark", "light")), tmp_path / "faces", 2)
    table(tmp_path / "faces", id=["000000.png"], row=[0], label=["red"])
    with pytest.raises(UserError, match="has the label 'red'"):
        Samples.open(tmp_path / "faces")
    info = json.loads((tmp_path / "faces" / "samples.json").read_text())
    for text, said in ((json.dumps({**info, "format": 9}), "is in format 9"), ("[1]", "damaged"), ("{", "damaged")):
        (tmp_path / "faces" / "samples.json").write_text(text)
        with pytest.raises(UserError, match=said):
            Samples.open(tmp_path / "faces")
    with pytest.raises(UserError, match="There is no folder"):
        Samples.open(tmp_path / "none")
    with pytest.raises(UserError, match="is no folder of samples"):
        Samples.open(tmp_path)


def test_an_image_that_is_gone_is_named(tmp_path):
    made = make_samples(Tones(), tmp_path / "faces", 3)
    (made.images / "000000.png").unlink()
    with pytest.raises(UserError, match=r"000000\.png is missing"):
        made.size  # noqa: B018 - reading it is what is tested
    with pytest.raises(UserError, match=r"000000\.png cannot be read"):
        made.pixels(8)


def test_latents_are_read_and_what_is_none_is_refused(tmp_path):
    path = tmp_path / "latents.npy"
    np.save(path, np.arange(6).reshape(2, 3))
    assert read_latents(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    np.save(path, np.ones((1, 3)))
    assert read_latents(path, one=True).tolist() == [1, 1, 1]
    wrong = {
        "1, nan": np.array([[1, np.nan]]),
        "float32 has not": np.full((2, 2), 1e300),
        "flat": np.ones(3),
        "a number": np.float64(1),
        "nothing": np.ones((0, 3)),
        "words": np.array([["a"]]),
    }
    for values in wrong.values():
        np.save(path, values)
        with pytest.raises(UserError, match=r"not finite|in numbers is needed|missing or damaged"):
            read_latents(path)
    np.save(path, np.ones((2, 3)))
    with pytest.raises(UserError, match="one latent"):
        read_latents(path, one=True)


def test_a_pickle_is_no_latent(tmp_path):
    path = tmp_path / "latents.npy"
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(UserError, match="holds a pickle"):
        read_latents(path)
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(UserError, match="holds a pickle"):
        read_latents(path)
    np.savez(tmp_path / "more.npz", a=np.ones(3))
    with pytest.raises(UserError, match="an archive"):
        read_latents(tmp_path / "more.npz")
    path.write_bytes(
        b"\x93NUMPY\x01\x00v\x00" + b"{'descr':'<f4','fortran_order':False,'shape':(1000000000000,512)}".ljust(118)
    )
    with pytest.raises(UserError, match="missing or damaged"):
        read_latents(path)


# ---- a folder as a generator


def test_a_folder_gives_the_images_of_its_own_latents(tmp_path):
    made = make_samples(Tones(), tmp_path / "faces", 20)
    teacher = teachers.load(tmp_path / "faces", CPU)
    latent = teacher.latents(8, 1)
    assert torch.allclose(teacher.sample(latent), Tones().sample(latent), atol=0.51 / 255)
    assert len({each.numpy().tobytes() for each in teacher.latents(20, 0)}) == 20
    assert (teacher.latent_size, teacher.size, teacher.fingerprint) == (4, 8, made.fingerprint)


def test_a_folder_makes_nothing_new(tmp_path):
    make_samples(Tones(), tmp_path / "faces", 20)
    teacher = teachers.load(tmp_path / "faces", CPU)
    with pytest.raises(UserError, match="have no image of latent 1"):
        teacher.sample(torch.cat([teacher.latents(1, 0), torch.zeros(1, 4)]))
    with pytest.raises(UserError, match="are 20 images, and 21 are wanted"):
        teacher.latents(21, 0)
    with pytest.raises(UserError, match="takes latents of 4 numbers"):
        teacher.sample(torch.zeros(1, 5))
    make_samples(Tones(), tmp_path / "same", latents=torch.zeros(2, 4))
    with pytest.raises(UserError, match="several images of one latent"):
        teachers.load(tmp_path / "same", CPU)


# ---- the command

MODULE = """
import torch

class Tones:
    latent_size, labels, attribute, title = 4, {labels}, "tone", "tones"

    def sample(self, latent, label):
        tone = torch.sigmoid(latent[:, :3]) / 2 + (0 if label is None else label[:, None] * 0.1)
        return tone[:, :, None, None].expand(-1, -1, 8, 8)

def make(device):
    return Tones()
"""


def test_the_command_makes_samples(command, tmp_path, monkeypatch):
    (tmp_path / "tones_alone.py").write_text(MODULE.format(labels="()"))
    ended = command("generate", "sample", "tones_alone:make", "faces", "--count", 5, "--seed", 2)
    assert ended.code == 0, ended
    assert "5 images of tones: faces" in ended.out
    found = Samples.open(tmp_path / "faces")
    assert np.array_equal(found.latents, torch.randn(5, 4, generator=torch.Generator().manual_seed(2)).numpy())
    again = command("generate", "sample", "tones_alone:make", "again", "--latents", "faces")
    assert again.code == 0, again
    assert np.array_equal(Samples.open(tmp_path / "again").pixels(), found.pixels())
    third = command("generate", "sample", "faces", "third", "--latents", "faces/latents.npy")
    assert third.code == 0, third
    assert np.array_equal(Samples.open(tmp_path / "third").pixels(), found.pixels())


def test_the_command_makes_one_label_alone_or_all_evenly(command, refused, tmp_path):
    (tmp_path / "tones_labelled.py").write_text(MODULE.format(labels='("dark", "light")'))
    assert command("generate", "sample", "tones_labelled:make", "faces", "--count", 6).code == 0
    assert np.bincount(Samples.open(tmp_path / "faces").label).tolist() == [3, 3]
    assert command("generate", "sample", "tones_labelled:make", "light", "--count", 6, "--only", "light").code == 0
    assert Samples.open(tmp_path / "light").label.tolist() == [1] * 6
    assert "did you mean 'light'?" in refused("generate", "sample", "tones_labelled:make", "x", "--only", "ligth")
    assert "at least one" in refused("generate", "sample", "tones_labelled:make", "x", "--count", 0)
    assert "at least one" in refused("generate", "sample", "tones_labelled:make", "x", "--count", -1, "--only", "dark")
    assert "fails when it is called" in refused("generate", "sample", "tones_labelled:make", "x", "nothing=1")
    assert "There is no generator at" in refused("generate", "sample", "nowhere", "x")
    assert not (tmp_path / "x").exists()
