"""A whole study from one recipe: every stage once, small; and what a wrong recipe is told."""

import json

import pytest

from evenlens import generation_study
from evenlens.errors import UserError
from evenlens.generation import read_labels, teachers
from evenlens.generation.balancing import read_chosen
from evenlens.generation.samples import Samples

NETWORK = """
dataset = "avatars"
method = "erm"
seed = {seed}
data.size = 16
data.target = "skin"
data.sensitive = "smiling"
data.num_train = 240
data.num_val = 80
data.num_test = 80
data.dark_share = 0.5
data.correlation = 0.5
train.epochs = 3
"""
STUDENT = """
channels = 4
discriminator_channels = 4
batch_size = 16
epochs = 2
steps = 6
judged = 60
"""
RECIPE = f"""
title = "small"
[classifier]{NETWORK.format(seed=1)}
[judge]{NETWORK.format(seed=2)}
[teacher]
dataset = "avatars"
data.size = 16
data.num_train = 240
data.num_val = 80
data.num_test = 80
data.correlation = 0.5
latent_size = 6
{STUDENT.replace("steps = 6", "steps = 60")}
learning_rate = 3e-3
[samples]
count = 400
[balance]
attributes = ["skin"]
[students.plain]{STUDENT}
[students.asked]
conditional = true
group = 0.3
{STUDENT}
[compare]
count = 120
"""


def written(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(folder / "cache"))
        told = []
        study = generation_study.read_study(written(folder, RECIPE))
        done = generation_study.make(study, folder / "out", tell=told.append)
        before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("*.safetensors")}
        again = generation_study.make(study, folder / "out")
    return done, again, before, told


def test_a_study_makes_every_stage(made):
    done, _, _, told = made
    samples = Samples.open(done.folder / "faces")
    labels = read_labels(done.folder / "labels.parquet")
    chosen = read_chosen(done.folder / "chosen.parquet")
    assert len(samples) == len(labels) == 400
    assert sorted(labels.ids.tolist()) == samples.ids.tolist()
    assert (chosen.group == 0).sum() == (chosen.group == 1).sum() > 0
    student = teachers.load(done.folder / "students" / "asked")
    assert student.labels == ("dark skin", "light skin")
    assert student.info["classifier"]["fingerprint"] != ""
    for page in ("audit.html", "teacher/student.html", "students/plain/student.html", "compare/compare.html"):
        assert (done.folder / page).stat().st_size > 10_000
    assert any(text.startswith("teacher, skin: light skin") for text in told)


def test_it_says_how_far_each_generator_is_from_the_target(made):
    done, *_ = made
    (found,) = done.variation.values()
    assert set(found) == {"teacher", "fair-latents", "plain", "asked"}
    assert all(0 <= value <= 1 for value in found.values())
    content = json.loads((done.folder / "study.json").read_text())
    assert content["variation"] == done.variation
    assert content["recipe"]["samples"] == {"count": 400, "seed": 1}


def test_what_is_there_is_not_made_again(made):
    done, again, before, _ = made
    assert before == {path: path.stat().st_mtime_ns for path in done.folder.rglob("*.safetensors")}
    assert again.variation == done.variation


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "small"', "tittle = 1", "tittle"),
        ("[students.plain]", "[students.plain]\nepochen = 3", "did you mean 'epochs'"),
        ("[teacher]", '[teacher]\naddress = "x.onnx"', "either an address, or a data set"),
        ("seed = 2", "seed = [2, 3]", "judge must be one run"),
        ('attributes = ["skin"]', "attributes = []", "balance.attributes"),
        ("count = 400", "count = 4", "samples.count"),
    ],
    ids=["key", "setting", "teacher", "two judges", "nothing to balance", "few samples"],
)  # fmt: skip
def test_a_wrong_recipe_is_refused_before_anything_is_made(tmp_path, old, new, said):
    assert old in RECIPE
    with pytest.raises(UserError, match=said):
        generation_study.read_study(written(tmp_path, RECIPE.replace(old, new, 1)))


def test_the_judge_must_be_another_network(tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "cache"))
    study = generation_study.read_study(written(tmp_path, RECIPE.replace("seed = 2", "seed = 1")))
    with pytest.raises(UserError, match="is the classifier itself"):
        generation_study.make(study, tmp_path / "out")
