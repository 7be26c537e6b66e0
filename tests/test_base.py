"""Going on from a run: what it learned is there at the start, and what it was trained on is never tested on."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from evenlens import methods, nets, recipes, run
from evenlens.config import Net, make_config
from evenlens.data import own
from evenlens.data.dataset import Task
from evenlens.data.describing import describe
from evenlens.errors import UserError
from evenlens.merging import merge
from evenlens.method import Method, Needs
from evenlens.run_folder import Run
from tests import fake

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "select": "last"}
TINY = {**SHORT, "data.num": 300, "data.correlation": 0.5}
OWN = {**SHORT, "data.size": 16, "data.augment": "none"}

pytestmark = pytest.mark.usefixtures("in_threads")


def tiny(runs, method="erm", **settings):
    return run.train(make_config("tiny", method, {**TINY, **settings}), runs)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run to go on from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("evenlens.datasets.get", lambda name, root=None: fake.Tiny)
        return tiny(tmp_path_factory.mktemp("made"))


def lay(folder, images, part=lambda k: ("train", "train", "val", "test")[k // 4 % 4], smiling=("no", "yes")):
    """A data set of one's own: an image for each number, whose label, group and part follow from its place."""
    folder.mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "smiling", "gender", "split"])
        for place, image in enumerate(images):
            fake.face(image).resize((16, 16)).save(folder / f"{place}.png")
            writer.writerow([f"{place}.png", smiling[place % 2], ("f", "m")[place // 2 % 2], part(place)])
    own.write(folder, describe(folder, "smiling", ("gender",))[1])
    return folder


def trained(folder, runs, **settings):
    return run.train(make_config(str(folder), "erm", {**OWN, **settings}), runs)


# ---- what is taken over


def tasks(*words, size=16, groups=("f", "m")):
    return Task(words, groups, size, "smiling", ("gender",))


def network(task, seed, **settings):
    torch.manual_seed(seed)
    return nets.build(Net(**settings), task)


def test_the_network_goes_on_from_where_the_base_ended(base, tmp_path):
    made = tiny(tmp_path, base=str(base.folder), **{"train.learning_rate": 1e-12})
    then, now = (dict(found.load().net.named_parameters()) for found in (base, made))
    assert all(torch.allclose(then[name], now[name], atol=1e-6) for name in then)
    other = dict(tiny(tmp_path, **{"train.learning_rate": 1e-12}).load().net.named_parameters())
    assert not torch.allclose(then["head.weight"], other["head.weight"], atol=1e-3)


def test_classes_are_matched_by_their_names_whatever_their_order():
    old, new = tasks("no", "yes", "broadly"), tasks("yes", "a bit", "no")
    trained, fresh, twin = network(old, 1), network(new, 2), network(new, 2)
    nets.go_on_from(fresh, new, trained, old)
    for row, source in ((0, trained.head.weight[1]), (1, twin.head.weight[1]), (2, trained.head.weight[0])):
        assert torch.equal(fresh.head.weight[row], source)
    assert fresh.head.bias.tolist() == [trained.head.bias[1], twin.head.bias[1], trained.head.bias[0]]
    for name, value in trained.backbone.state_dict().items():
        assert torch.equal(fresh.backbone.state_dict()[name], value)


def test_a_head_of_another_kind_is_taken_over_for_the_same_task_alone():
    old, new = tasks("no", "yes"), tasks("no", "yes", groups=("f", "m", "x"))
    trained = nets.build(Net(), old, num_outputs=4)
    same, other = nets.build(Net(), old, num_outputs=4), nets.build(Net(), new, num_outputs=6)
    before = other.head.weight.clone()
    nets.go_on_from(same, old, trained, old)
    nets.go_on_from(other, new, trained, old)
    assert torch.equal(same.head.weight, trained.head.weight)
    assert torch.equal(other.head.weight, before)
    assert torch.equal(other.backbone[0].weight, trained.backbone[0].weight)


def test_the_base_itself_stays_as_it_is():
    task = tasks("no", "yes")
    trained, fresh = network(task, 1), network(task, 2)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    nets.go_on_from(fresh, task, trained, task)
    with torch.no_grad():
        fresh.head.weight += 1
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize(("other", "size"), [
    ({"backbone": "resnet18"}, 16), ({"backbone": "resnet18", "stem": "standard"}, 64), ({"backbone": "resnet34"}, 64),
])  # fmt: skip
def test_a_network_of_another_shape_is_refused_and_stays_as_it_is(other, size):
    task, small = tasks("no", "yes", size=size), tasks("no", "yes", size=32)
    trained = network(small, 1, **({"backbone": "resnet18"} if size == 64 else {}))
    fresh = network(task, 2, **other)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(
        UserError, match=r"The network to go on from is a .* for images of 32 px and this one a .*"
    ) as no:
        nets.go_on_from(fresh, task, trained, small)
    assert "choose the same net.backbone, net.stem and data.size" in str(no.value)
    assert "\n" not in str(no.value)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_a_network_of_the_same_shape_by_another_name_is_another():
    task = tasks("no", "yes")
    trained, fresh = network(task, 1), network(task, 2)
    trained.name = "other"
    with pytest.raises(UserError, match="is a other for images of 16 px and this one a small_cnn"):
        nets.go_on_from(fresh, task, trained, task)


def test_another_size_is_no_other_shape_where_the_network_takes_any():
    trained, fresh = network(tasks("no", "yes"), 1), network(tasks("no", "yes", size=24), 2)
    nets.go_on_from(fresh, tasks("no", "yes", size=24), trained, tasks("no", "yes"))
    assert torch.equal(fresh.head.weight, trained.head.weight)


def test_a_base_of_another_backbone_is_refused_in_a_sentence(base, refused):
    said = refused("train", "tiny", "erm", *(f"{k}={v}" for k, v in TINY.items()), f"base={base.folder}",
                   "net.backbone=resnet18")  # fmt: skip
    assert "is a small_cnn for images of 16 px and this one a resnet18 for 16 px" in said


# ---- which run it is


def test_a_run_is_the_same_however_its_base_is_written(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base.folder.parent)
    name = base.folder.name
    ways = [
        base.folder,
        f"{base.folder}/",
        name,
        f"{name}/",
        f"./{name}",
        f"../erm/{name}",
        os.path.relpath(base.folder),
    ]
    ids = {make_config("tiny", "erm", {**TINY, "base": str(way)}).identity() for way in ways}
    assert len(ids) == 1
    assert make_config("tiny", "erm", TINY).identity() not in ids


def test_another_base_makes_another_run(base, tmp_path):
    second = tiny(tmp_path, base=str(base.folder))
    third = tiny(tmp_path, base=str(second.folder))
    assert len({base.folder.name, second.folder.name, third.folder.name}) == 3
    assert third.config.base == str(second.folder)


def test_a_killed_run_with_a_base_goes_on_to_the_same_numbers(base, tmp_path):
    class Killed(Exception):
        pass

    def watch(what, done, total):
        if what == "steps" and done > total // 2:
            raise Killed

    settings = make_config("tiny", "erm", {**TINY, "base": str(base.folder), "train.epochs": 2})
    with pytest.raises(Killed):
        run.train(settings, tmp_path / "parts", watch)
    assert not list(tmp_path.glob("parts/tiny/erm/[!.]*"))
    resumed, whole = run.train(settings, tmp_path / "parts"), run.train(settings, tmp_path / "whole")
    assert resumed.metrics == whole.metrics
    assert [entry["loss"] for entry in resumed.log] == [entry["loss"] for entry in whole.log]


def test_a_sweep_goes_on_from_a_base_and_from_several(base):
    read = recipes.expand({"dataset": "tiny", "method": "erm", "base": [str(base.folder), "other"]})
    assert [config.base for config in read.configs] == [str(base.folder), "other"]


def test_the_configuration_of_a_run_with_a_base_is_a_recipe_for_it(base, tmp_path):
    made = tiny(tmp_path, base=str(base.folder))
    (again,) = recipes.read_recipe(made.folder / "config.toml").configs
    assert again.identity() == made.config.identity()


# ---- what may be tested


def seen(folder, part):
    return {*folder.images()["file"][folder.images()["part"] == part]}


def test_a_run_writes_down_what_it_was_made_with(base):
    splits = run.load_data(make_config("tiny", "erm", TINY)).splits
    for part in ("train", "val", "test"):
        assert seen(base, part) == {*getattr(splits, part).names}
    images = base.images()
    assert {*images["part"]} == {"train", "val", "test"}
    assert (images["digest"] != 0).all()


def test_the_same_split_is_allowed_and_what_the_base_learned_is_handed_on(base, tmp_path):
    second = tiny(tmp_path, base=str(base.folder))
    third = tiny(tmp_path, base=str(second.folder), seed=3)
    for made in (second, third):
        assert seen(made, "base") == seen(base, "train")


def test_another_split_is_refused(base, refused):
    said = refused("train", "tiny", "erm", *(f"{k}={v}" for k, v in TINY.items()), f"base={base.folder}", "data.seed=2")
    assert f" images of the part 'test' were in the training of {base.folder} (" in said
    assert said.endswith("as evenlens data merge makes it, or another run.")
    assert not Path("runs").exists()


def test_added_images_are_trained_on_and_tested_on_with_the_old_ones_where_they_were(tmp_path):
    folder = lay(tmp_path / "photos", range(32))
    first = trained(folder, tmp_path / "runs")
    merge(folder, [str(lay(tmp_path / "more", range(28, 60)))])
    second = trained(folder, tmp_path / "runs", base=str(first.folder))
    for part in ("train", "val", "test"):
        assert seen(first, part) < seen(second, part)
    assert seen(second, "base") == seen(first, "train")
    third = trained(folder, tmp_path / "runs", base=str(second.folder))
    assert seen(third, "base") == seen(second, "train")


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_copy_of_a_trained_image_is_found_by_its_content_in_another_data_set(part, tmp_path):
    first = trained(lay(tmp_path / "photos", range(16)), tmp_path / "runs")
    place = {"val": 8, "test": 12}[part]  # of a row of that part
    images = list(range(100, 116))
    images[place] = 3  # which is a training image of the first
    other = lay(tmp_path / "others", images)
    with pytest.raises(UserError) as error:
        trained(other, tmp_path / "runs", base=str(first.folder))
    assert f"1 of the 4 images of the part '{part}' were in the training of {first.folder} ({place}.png)" in str(
        error.value
    )
    assert not (tmp_path / "runs" / "others").exists()
    assert trained(lay(tmp_path / "fine", range(100, 116)), tmp_path / "runs", base=str(first.folder))


def test_an_image_that_any_run_before_was_trained_on_is_refused_too(tmp_path):
    last = None
    for start in (0, 100, 200):
        folder = lay(tmp_path / f"from {start}".replace(" ", "_"), range(start, start + 16))
        last = trained(folder, tmp_path / "runs", **({"base": str(last.folder)} if last else {}))
    for image in (3, 103, 203):
        images = [*range(300, 312), image, *range(313, 316)]
        with pytest.raises(UserError, match=r"1 of the 4 images of the part 'test' .* training of .*from_200"):
            trained(lay(tmp_path / f"{image}" / "from_200", images), tmp_path / "runs", base=str(last.folder))


def test_copies_that_a_data_set_has_in_its_own_parts_stop_nobody(tmp_path):
    images = list(range(32))
    images[12] = 3  # in test and in train
    folder = lay(tmp_path / "photos", images)
    made = [trained(folder, tmp_path / "runs")]
    assert any("test: 1 images are copies of training images" in note for note in made[0].metrics["notes"])
    for _ in range(2):
        made.append(trained(folder, tmp_path / "runs", base=str(made[-1].folder)))
    merge(folder, [str(lay(tmp_path / "more", range(50, 66)))])
    for _ in range(2):
        made.append(trained(folder, tmp_path / "runs", base=str(made[-1].folder)))
    assert len({run.folder for run in made}) == 5


def test_a_held_out_name_with_the_content_of_a_trained_image_is_refused(tmp_path):
    folder = lay(tmp_path / "photos", range(16))
    first = trained(folder, tmp_path / "runs")
    shutil.copyfile(folder / "3.png", folder / "12.png")
    with pytest.raises(UserError, match=r"1 of the 4 images of the part 'test' .* \(12.png\)"):
        trained(folder, tmp_path / "runs", base=str(first.folder))


def test_but_in_another_data_set_such_copies_are_nobodys_excuse(tmp_path):
    first = trained(lay(tmp_path / "photos", [*range(12), 3, *range(13, 16)]), tmp_path / "runs")
    shutil.copytree(tmp_path / "photos", tmp_path / "pictures")
    with pytest.raises(UserError, match=r"1 of the 4 images of the part 'test' .* \(12.png\)"):
        trained(tmp_path / "pictures", tmp_path / "runs", base=str(first.folder))


def test_another_data_set_of_the_same_name_is_another(tmp_path):
    first = trained(lay(tmp_path / "a" / "photos", range(16)), tmp_path / "runs")
    other = lay(tmp_path / "b" / "photos", range(16), part=lambda k: ("test", "val", "train", "train")[k // 4 % 4])
    with pytest.raises(UserError, match=r"4 of the 4 images of the part 'test'"):
        trained(other, tmp_path / "runs", base=str(first.folder))


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda folder: (folder / "images.parquet").unlink(), "does not say which images it was trained on"),
    (lambda folder: (folder / "images.parquet").write_bytes(b"half"), "images.parquet is damaged"),
    (lambda folder: (folder / "metrics.json").unlink(), "is no run: a run's folder holds config.toml and metrics.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "There is no model at"),
])  # fmt: skip
def test_a_base_that_lacks_something_is_refused_in_a_sentence(spoil, said, base, refused, tmp_path):
    spoil(shutil.copytree(base.folder, tmp_path / "old"))
    assert said in refused("train", "tiny", "erm", *(f"{k}={v}" for k, v in TINY.items()), "base=old")


def test_a_base_that_is_not_there_is_refused_in_a_sentence(refused):
    assert "runs/nowhere is no run" in refused(
        "train", "tiny", "erm", *(f"{k}={v}" for k, v in TINY.items()), "base=runs/nowhere"
    )


# ---- runs that a method requires


class Student(Method):
    """Learn from a teacher.

    Args:
        weight: of the teacher's word.
    """

    title = "Student (nobody, 2026)"
    requires = {"teacher": Needs("erm")}

    def __init__(self, task, config, teacher: nn.Module, *, weight: float = 1.0):
        super().__init__(task, config)
        self.teacher, self.weight = teacher, weight

    def loss(self, batch):
        taught = functional.mse_loss(self.net(batch.image), self.teacher(batch.image))
        return super().loss(batch) + self.weight * taught


@pytest.fixture
def student(monkeypatch):
    original = methods.get
    monkeypatch.setattr(methods, "get", lambda name: Student if name == "student" else original(name))


def test_a_required_run_that_is_named_is_looked_at_too(student, base, tmp_path):
    made = tiny(tmp_path, "student", teacher=str(base.folder))
    assert seen(made, "base") == seen(base, "train")
    with pytest.raises(UserError, match=r"of the part 'test' were in the training of"):
        tiny(tmp_path, "student", teacher=str(base.folder), **{"data.seed": 2})


def test_a_required_run_that_is_made_for_it_needs_no_look(student, tmp_path):
    made = tiny(tmp_path, "student")
    assert "base" not in made.images()["part"]


def test_base_and_required_run_are_both_handed_on(student, base, tmp_path):
    first = trained(lay(tmp_path / "photos", range(16)), tmp_path / "runs")
    made = tiny(tmp_path, "student", teacher=str(first.folder), base=str(base.folder), **{"data.size": 16})
    handed_on = made.images()["digest"][made.images()["part"] == "base"]
    for source in (first, base):
        assert np.isin(source.images()["digest"][source.images()["part"] == "train"], handed_on).all()
    assert isinstance(made, Run)
