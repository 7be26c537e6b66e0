"""A whole study from one recipe: every stage once, small; and what a wrong recipe is told."""

import json
import pickle
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from evenlens import cli, generation_study
from evenlens.errors import UserError
from evenlens.generation import comparison_sides, read_labels, teachers
from evenlens.generation.balancing import read_chosen
from evenlens.generation.samples import Samples

RECIPES = sorted((Path(__file__).parent.parent / "recipes" / "generation").glob("*.toml"))
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
        patch.setattr(comparison_sides, "speeds", lambda *given: {})  # a second for each is long here
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
        ("[students.plain]", '[students."../../plain"]', r"cannot be called '../../plain'"),
        ("[students.plain]", '[students.fair-latents]', "cannot be called fair-latents"),
        ("conditional = true", 'conditional = "false"', "is true or false"),
        ("conditional = true", "", "add conditional = true"),
        ("seed = 2", 'seed = 2\nrun = "x"\ncrop = "half"', "judge.crop"),
        ('[teacher]\ndataset = "avatars"', "[teacher]\naddress = 5", "is a text"),
        ('[teacher]\ndataset = "avatars"', '[teacher]\ndataset = "nowhere"', "Unknown data set"),
    ],
    ids=["key", "setting", "teacher", "two judges", "nothing to balance", "few samples", "path as name", "taken name",
         "word for true", "group unasked", "crop", "address", "data set"],
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


# ---- killed, and changed


class Killed(Exception):
    """What a test ends a study with."""


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
    """A finished study of one's own."""
    monkeypatch.setenv("EVENLENS_CACHE", str(made[0].folder.parent / "cache"))
    monkeypatch.setattr(comparison_sides, "speeds", lambda *given: {})
    return shutil.copytree(made[0].folder, tmp_path / "out")


def without(folder, *names):
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("lost", "at"),
    [
        (("students", "probe.safetensors", "compare"), ("epochs", 1)),
        (("compare", "students/asked", "labels.parquet", "chosen.parquet"), ("plain: images", 64)),
    ],
    ids=["while a student learns", "while images are made"],
)
def test_a_killed_study_ends_with_the_same_numbers(made, copied, tmp_path, lost, at):
    study = generation_study.read_study(written(tmp_path, RECIPE))
    without(copied, *lost)

    def kill(what, done, total):
        if (what, done) == at:
            raise Killed

    with pytest.raises(Killed):
        generation_study.make(study, copied, kill)
    assert not (copied / "compare" / "plain").exists()
    again = generation_study.make(study, copied)
    assert again.variation == made[0].variation
    assert not [path for path in copied.rglob(".*") if path.suffix in (".partial", ".part", ".lock")]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 1\n", "seed = 3\n", "labels.parquet was made by another recipe"),
        ("count = 400", "count = 300", "holds other samples"),
        ("[balance]", "[balance]\nseed = 4", "chosen.parquet was made by another recipe"),
        ("group = 0.3", "group = 0.2", "asked holds something else"),
        ("count = 120", "count = 110", "holds other samples"),
        ('attributes = ["skin"]', 'attributes = ["smile"]', "Unknown attribute to balance"),
    ],
    ids=["classifier", "samples", "balance", "student", "comparison", "attribute"],
)
def test_what_another_recipe_made_is_refused_and_kept(copied, tmp_path, old, new, said):
    study = generation_study.read_study(written(tmp_path, RECIPE.replace(old, new, 1)))
    kept = ("labels.parquet", "chosen.parquet", "stages.json", "study.json", "students/asked/model.safetensors")
    before = {name: (copied / name).read_bytes() for name in kept}
    with pytest.raises(UserError, match=said):
        generation_study.make(study, copied)
    assert before == {name: (copied / name).read_bytes() for name in kept}


def test_labels_of_which_nothing_is_known_are_refused(copied, tmp_path):
    study = generation_study.read_study(written(tmp_path, RECIPE))
    (copied / "stages.json").unlink()
    with pytest.raises(UserError, match=r"labels\.parquet was made by another recipe"):
        generation_study.make(study, copied)
    (copied / "stages.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        generation_study.make(study, copied)


# ---- the commands

SAME = "data.size=16 data.num_train=240 data.num_val=80 data.num_test=80 data.correlation=0.5"
SMALL = "channels=4 discriminator_channels=4 batch_size=16 epochs=1 steps=2 judged=60"


def run(monkeypatch, text):
    """Run a command as a person would: its exit code and all that it says."""
    monkeypatch.setattr(sys, "argv", ["evenlens", *shlex.split(text)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code


def test_the_help_of_each_command_names_its_settings():
    for name in ("teach", "distil", "study", "sample"):
        found = CliRunner().invoke(cli.app, ["generate", name, "--help"], env={"COLUMNS": "200"})
        assert found.exit_code == 0
        assert "Examples" in found.output


def test_the_commands_make_a_teacher_and_students(made, tmp_path, monkeypatch, capsys):
    done = made[0].folder
    monkeypatch.setenv("EVENLENS_CACHE", str(done.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    network = shlex.quote(str(next((done / "runs").glob("*/*/*/model.safetensors")).parent))
    given = f"{SAME} latent_size=3 {SMALL}"
    assert not run(monkeypatch, f"generate teach avatars 'my teacher' {given}")
    assert "parameters, epoch 1 of 1" in capsys.readouterr().out
    assert "evenlens generate teach" in (tmp_path / "my teacher" / "student.html").read_text()
    whole = f"generate distil {done}/faces 'it\\''s' {SMALL} --pairs {done}/chosen.parquet --classifier {network}"
    whole = whole.replace("'it\\''s'", '"it\'s"')
    assert not run(
        monkeypatch, f"{whole} --conditional group=0.3 precision=bf16 --target 'skin=dark skin:.7,light skin:.3'"
    )
    assert "total variation" in capsys.readouterr().out
    assert teachers.load(tmp_path / "it's").labels == ("dark skin", "light skin")


WRONG = {
    "a setting": ("generate distil FACES s epoch=3", "did you mean 'epochs'"),
    "a word for a number": ("generate distil FACES s epochs=two", "epochs='two' is not allowed"),
    "no value": ("generate distil FACES s epochs", "is no setting"),
    "a weight": ("generate distil FACES s pixel=-1", "is no weight"),
    "no pairs": ("generate distil FACES s --conditional", "with --pairs"),
    "no samples": ("generate distil nowhere s", "There is no folder nowhere"),
    "a pickle as pairs": ("generate distil FACES s --pairs evil.pkl", "evil.pkl is no table"),
    "a pickle as classifier": ("generate distil FACES s --classifier evil.pkl", "evil.pkl is a pickle"),
    "a pickle as teacher": ("generate sample evil.pkl s", "evil.pkl is a pickle"),
    "a pickle under a network's name": ("generate sample evil.pt s", "is a pickle of an old kind"),
    "a pickle under a safe name": ("generate sample evil.safetensors s", "is no complete safetensors file"),
    "none": ("generate sample TEACHER s --count 0", "ask for at least one"),
    "text as number": ("generate sample TEACHER s --count two", "--count"),
    "the address again": ("generate sample TEACHER s address=x", "Unknown option of a generator"),
    "the device": ("generate sample TEACHER s device=foo", "Unknown option of a generator"),
    "a label": ("generate sample STUDENT s --only green", "Unknown label"),
    "a data set": ("generate teach nowhere s", "Unknown data set 'nowhere'"),
    "a size": ("generate teach avatars s size=16", "set data.size=16"),
    "an odd size": ("generate teach avatars s data.size=20 data.num_train=9 data.num_val=9 data.num_test=9",
                    "set data.size="),
    "diversity of nothing": (f"generate teach avatars s diversity=1 --classifier NETWORK {SAME} {SMALL}",
                             "diversity has no attribute"),
    "a recipe": ("generate study nowhere.toml --out s", "nowhere.toml"),
    "a recipe that is none": ("generate study evil.pkl --out s", "evil.pkl"),
    "a file as folder": ("generate study RECIPE --out evil.pkl", "evil.pkl is a file"),
    "a path that leads out": ("generate distil dots s", "a path with '..'"),
    "an empty folder": ("generate distil empty s", "is no folder of samples"),
    "something else": ("generate distil FACES empty epochs=1", "holds something else"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_typed_wrong_is_one_sentence_and_leaves_nothing(made, tmp_path, monkeypatch, capsys, name):
    done = made[0].folder
    monkeypatch.setenv("EVENLENS_CACHE", str(done.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    for ending in ("pkl", "pt", "safetensors"):
        (tmp_path / f"evil.{ending}").write_bytes(pickle.dumps(print))
    (tmp_path / "empty").mkdir()
    written(tmp_path, RECIPE)
    shutil.copytree(done / "faces", tmp_path / "dots", ignore=shutil.ignore_patterns("images"))
    (tmp_path / "dots" / "images").mkdir()
    table = pyarrow.parquet.read_table(tmp_path / "dots" / "samples.parquet").to_pydict()
    table["id"][2] = "../../secret.png"
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "dots" / "samples.parquet")
    before = sorted(tmp_path.iterdir())
    text, said = WRONG[name]
    places = {"FACES": done / "faces", "TEACHER": done / "teacher", "STUDENT": done / "students" / "asked",
              "RECIPE": tmp_path / "recipe.toml",
              "NETWORK": next((done / "runs").glob("*/*/*/model.safetensors")).parent}  # fmt: skip
    for key, place in places.items():
        text = text.replace(key, shlex.quote(str(place)))
    assert run(monkeypatch, text) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "cache"] == before


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_project_can_be_read(path):
    assert generation_study.read_study(path).students
