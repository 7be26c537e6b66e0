"""A method that starts from trained networks: the runner finds or makes them, and the saved model stands alone."""

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional

from evenlens import methods, run
from evenlens.config import make_config
from evenlens.method import Method, Needs


class Student(Method):
    """Learn from a teacher, and look away from what tells the groups apart.

    Args:
        weight: of the teacher's word.
    """

    title = "Student (nobody, 2026)"
    requires = {"teacher": Needs("erm"), "group_net": Needs("erm", target="group")}

    def __init__(self, task, config, teacher: nn.Module, group_net: nn.Module, *, weight: float = 1.0):
        super().__init__(task, config)
        self.teacher, self.group_net, self.weight = teacher, group_net, weight

    def forward(self, image):
        return self.net(image) + 0.1 * self.teacher(image)

    def loss(self, batch):
        assert self.group_net(batch.image).shape == (len(batch.label), self.task.num_groups)
        taught = functional.mse_loss(self.net(batch.image), self.teacher(batch.image))
        return super().loss(batch) + self.weight * taught


@pytest.fixture(autouse=True)
def student(monkeypatch):
    original = methods.get
    monkeypatch.setattr(methods, "get", lambda name: Student if name == "student" else original(name))


SETTINGS = {"train.epochs": 1, "precision": "fp32", "data.num_groups": 3, "data.correlation": 0.3}


def test_required_runs_are_made_once_on_the_same_data_and_seed(tmp_path):
    made = run.train(make_config("tiny", "student", {**SETTINGS, "seed": 4}), tmp_path)
    teachers = [run.Run.open(folder) for folder in (tmp_path / "tiny" / "erm").iterdir() if folder.name[0] != "."]
    assert {(r.config.data.target, r.config.seed) for r in teachers} == {("place", 4), ("group", 4)}
    assert {r.environment["images_seen"] for r in teachers} == {made.environment["images_seen"]}
    times = {r.folder: (r.folder / "metrics.json").stat().st_mtime_ns for r in teachers}
    run.train(make_config("tiny", "student", {**SETTINGS, "seed": 4, "weight": 2.0}), tmp_path)
    assert {folder: (folder / "metrics.json").stat().st_mtime_ns for folder in times} == times
    assert len(list((tmp_path / "tiny" / "erm").iterdir())) == 2


def test_the_saved_model_needs_none_of_the_runs_it_started_from(tmp_path):
    made = run.train(make_config("tiny", "student", SETTINGS), tmp_path)
    image = torch.rand(3, 3, 16, 16)
    before = made.load()(image)
    shutil.rmtree(tmp_path / "tiny" / "erm")
    assert torch.equal(made.load()(image), before)


def test_a_required_run_can_be_replaced_by_any_other(tmp_path):
    other = run.train(make_config("tiny", "upweighting", SETTINGS), tmp_path)
    made = run.train(make_config("tiny", "student", {**SETTINGS, "teacher": str(other.folder)}), tmp_path)
    assert torch.equal(made.load().teacher.head.weight, other.load().net.head.weight)


def test_what_is_required_stays_frozen(tmp_path):
    made = run.train(make_config("tiny", "student", SETTINGS), tmp_path)
    loaded = made.load()
    for folder in (tmp_path / "tiny" / "erm").iterdir():
        source = run.Run.open(folder)
        twin = loaded.teacher if source.config.data.target == "place" else loaded.group_net
        for name, value in source.load().net.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value)
