"""Commands, typed well and badly."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evenlens
from evenlens import registry
from tests import fake
from tests.test_images import broken

SHORT = ["train.epochs=1", "precision=fp32", "data.num=400", "data.correlation=0.7"]


def python(*words, **options):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, **options)


# ---- the quick ones stay quick


@pytest.mark.parametrize("words", [
    [], ["--help"], ["--version"], ["list"], ["list", "metrics"], ["list", "settings"], ["show", "accuracy"],
    ["train", "--help"], ["show", "nothing"],
])  # fmt: skip
def test_what_needs_no_network_does_not_wait_for_torch(words):
    script = (
        "import sys, evenlens.cli\n"
        f"sys.argv = ['evenlens', *{words!r}]\n"
        "try:\n    evenlens.cli.main()\n"
        "except SystemExit:\n    pass\n"
        "print('LOADED', sorted({'torch', 'torchvision', 'timm', 'altair', 'pandas'} & set(sys.modules)))"
    )
    assert "LOADED []" in python("-c", script).stdout


def test_importing_the_package_takes_less_than_half_a_second_and_no_torch():
    script = (
        "import sys, time\nbegin = time.process_time()\nimport evenlens\nevenlens.UserError\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules, time.process_time() - begin)"
    )
    torch, numpy, seconds = python("-c", script).stdout.split()
    assert (torch, numpy) == ("False", "False")
    assert float(seconds) < 0.5


def test_an_audit_does_not_wait_for_torch():
    script = "import sys, evenlens\nevenlens.audit([0, 1], [0, 1], [0, 1]).metrics\nprint('torch' in sys.modules)"
    assert python("-c", script).stdout.strip() == "False"


@pytest.mark.parametrize("words", [["train"], ["sweep"], ["demo"], ["report"], ["list"], ["show"], ["predict"]])
def test_every_command_has_help(command, words):
    ended = command(*words, "--help")
    assert ended.code == 0
    assert "Usage" in ended.out


def test_without_arguments_the_help_is_shown(command):
    ended = command()
    assert "Usage" in ended.out + ended.err
    assert "evenlens demo" in ended.out + ended.err


def test_the_version_is_the_packages(command):
    assert command("--version").out.strip() == f"evenlens {evenlens.__version__}"


@pytest.mark.parametrize("kind", ["methods", "datasets"])
def test_every_name_is_listed_and_can_be_shown(command, kind):
    listed = command("list", kind).out
    for name in registry.module_names(f"evenlens.{kind}"):
        assert name in listed
        ended = command("show", name)
        assert ended.code == 0
        assert f"({name})" in ended.out


def test_every_setting_and_metric_is_listed(command):
    from evenlens import metrics
    from evenlens.config import SETTINGS

    settings, named = (command("list", what).out for what in ("settings", "metrics"))
    assert all(setting in settings for setting in SETTINGS)
    assert all(name[:20] in named for name in metrics.METRICS)


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "tinny", "erm"], "Unknown data set 'tinny'"),
        (["train", "utkfac", "erm"], "Unknown data set 'utkfac'; did you mean 'utkface'? Known: avatars, "),
        (["train", "tiny", "emr"], "Unknown method 'emr'; did you mean 'erm'?"),
        (["train", "tiny", "erm", "epochs=3"], "did you mean 'train.epochs'?"),
        (
            ["train", "tiny", "group_dro", "step_sice=3"],
            "Unknown option of group_dro 'step_sice'; did you mean 'step_siz",
        ),
        (["train", "tiny", "group_dro", "step_size=fast"], "group_dro: step_size='fast' is not allowed"),
        (["train", "tiny", "erm", "train.epoch=3"], "Unknown setting of train 'epoch'; did you mean 'epochs'?"),
        (["train", "tiny", "erm", "trane.epochs=3"], "Unknown section 'trane'; did you mean 'train'?"),
        (["train", "tiny", "erm", "train.epochs=0"], "train.epochs=0 is not allowed: it must be greater than or equal"),
        (["train", "tiny", "erm", "train.epochs=true"], "train.epochs=True is not allowed"),
        (["train", "tiny", "erm", "train.epochs"], "'train.epochs' is no setting: write key=value"),
        (["train", "tiny", "erm", "=3"], "'=3' is no setting"),
        (["train", "tiny", "erm", "--seed", "-1"], "seed=-1 is not allowed"),
        (["train", "tiny", "erm", "--seed", "one"], "Invalid value for '--seed'"),
        (["train", "tiny", "erm", "--sead", "1"], "No such option: --sead"),
        (["train", "tiny"], "Missing argument"),
        (["trian", "tiny", "erm"], "No such command 'trian'"),
        (["train", "tiny", "erm", "select=acuracy"], "Unknown rule to select by 'acuracy'; did you mean 'accuracy'?"),
        (["train", "tiny", "erm", "net.backbone=resnet_18"], "Unknown backbone 'resnet_18'; did you mean 'resnet18'?"),
        (["train", "tiny", "erm", "data.augment=flop"], "Unknown augmentation 'flop'; did you mean 'flip'?"),
        (["train", "tiny", "erm", "data.protocol=mad"], "Unknown protocol of tiny 'mad'; did you mean 'made'?"),
        (["train", "tiny", "erm", "data.target=[red]"], "Unknown column of tiny '[red]'."),
        (["train", "tiny", "erm", "data.target=tint"], "a group cannot be its own label"),
        (["train", "avatars", "erm", "data.correlation=2"], "correlation is 2, but must be from 0.5"),
        (["train", "utkface", "erm", "data.root=no [bold]where"], "UTKFace is not at no [bold]where/utkface"),
        (["list", "method"], "Unknown kind of thing to list 'method'; did you mean 'methods'?"),
        (
            ["show", "group_dor"],
            "Unknown method, data set, view, metric or run folder 'group_dor'; did you mean 'group_dro'?",
        ),
        (["show", "."], ". is no run: a run's folder holds config.toml and metrics.json"),
        (["show", "x" * 300], "File name too long"),
        (["report", "nowhere [red]"], "There is no folder nowhere [red]"),
        (["report", "."], "No complete run below ."),
        (["report"], "Missing argument"),
        (["sweep", "nowhere.toml"], "There is no file nowhere.toml"),
        (["sweep", "."], "Is a directory"),
        (["demo", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_exit_code_2(refused, words, said, tmp_path):
    assert said in refused(*words)
    assert not list(tmp_path.glob("runs/**/*"))


@pytest.mark.parametrize(("content", "said"), [
    ("method = 'erm'", "A recipe needs dataset ="),
    ("dataset = 'tiny'", "A recipe needs method ="),
    ("dataset = 'tiny'\nmethod = 'erm'\nepochs = 3", "Unknown key of a recipe 'epochs'"),
    ("dataset = 'tiny'\nmethod = 'emr'", "Unknown method 'emr'; did you mean 'erm'?"),
    ("dataset = 'tiny'\nmethod = 'erm'\ntrain.epoch = 3", "Unknown setting of train 'epoch'"),
    ("dataset = 'tiny'\nmethod = 'erm'\nseed = []", "A value of the recipe is an empty list"),
    ("dataset = 'tiny'\nmethod = 'erm'\ntrain = 3", "A recipe's train is a table of settings, [train]"),
    ("dataset = 'tiny'\nmethod = ['erm', 'group_dro']\n[options]\nerm = 3", "A recipe's options.erm is a table"),
    ("dataset = 'tiny'\nmethod = 'erm'\n[options.flac]\nx = 3", "Unknown method in options of the recipe 'flac'"),
    ("dataset = 'tiny'\nmethod = 'erm'\nbaseline = 'emr'", "Unknown baseline of the recipe 'emr'"),
    ("dataset = 'tiny'\nmethod = 'erm'\ntitle = 3", "A recipe's title is text"),
    ("dataset = 3\nmethod = 'erm'", "dataset=3 is not allowed"),
    ("dataset = 'tiny'\nmethod = 'erm'\ndata.sensitive = 3", "data.sensitive.*=3 is not allowed"),
    ("dataset = ", "is not valid TOML"),
])  # fmt: skip
def test_a_wrong_recipe_is_one_sentence(refused, tmp_path, content, said):
    (tmp_path / "recipe [red].toml").write_text(content)
    assert re.search(said if ".*" in said else re.escape(said), refused("sweep", "recipe [red].toml"))


def test_broken_images_are_refused_and_left_out_and_noted_when_asked(command, refused, tmp_path):
    folder = fake.utkface(tmp_path, num=160) / "utkface" / "UTKFace"
    (tmp_path / "broken").mkdir()
    names = broken(tmp_path / "broken")
    for number, name in enumerate(names):
        (tmp_path / "broken" / name).rename(folder / f"30_0_1_2018{number:013d}.jpg")
    words = ["train", "utkface", "erm", "data.root=.", "data.protocol=natural", "data.size=16", "data.sensitive=white"]
    words += ["train.epochs=1", "precision=fp32", "select=last"]
    assert f"{len(names)} of 168 images of UTKFace cannot be read" in refused(*words)
    ended = command(*words, "data.skip_unreadable=true")
    assert ended.code == 0, ended.err
    assert "8 images that cannot be read were left out" in ended.out
    metrics = next(tmp_path.glob("runs/utkface/erm/*/metrics.json")).read_text()
    assert "8 images that cannot be read were left out" in metrics


def test_a_loss_that_is_no_number_is_one_sentence(refused):
    said = refused("train", "tiny", "erm", *SHORT, "train.epochs=2", "train.learning_rate=1e30")
    assert "finite" in said
    assert "smaller train.learning_rate" in said


def test_a_full_disk_is_one_sentence_and_the_same_command_succeeds_later(command, refused, monkeypatch):
    from evenlens import model_file

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(model_file, "save_checkpoint", full)
        said = refused("train", "tiny", "erm", *SHORT)
    assert "No space left on device at runs/tiny/erm/" in said
    assert "EVENLENS_CACHE" in said
    assert command("train", "tiny", "erm", *SHORT).code == 0


@pytest.mark.parametrize("option", ["--runs", "EVENLENS_CACHE"])
def test_a_folder_that_cannot_be_written_is_one_sentence(refused, tmp_path, monkeypatch, option):
    (tmp_path / "taken").write_text("a file, where a folder is wanted")
    if option == "--runs":
        said = refused("train", "tiny", "erm", *SHORT, "--runs", "taken")
    else:
        monkeypatch.setenv("EVENLENS_CACHE", str(tmp_path / "taken" / "cache"))
        said = refused("train", "tiny", "erm", *SHORT, "precision=auto")
    assert "at taken" in said or "taken/cache" in said


@pytest.mark.skipif(os.getuid() != 0, reason="mounting wants root; elsewhere a folder without rights is the same error")
def test_a_read_only_disk_is_one_sentence(refused, tmp_path):
    (tmp_path / "disk").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "none", str(tmp_path / "disk")])
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        assert "Read-only file system at disk/runs" in refused("train", "tiny", "erm", *SHORT, "--runs", "disk/runs")
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


# ---- what is made


def test_a_run_is_made_shown_and_opened_again_and_its_path_is_printed_as_it_is(command):
    words = ["train", "tiny", "erm", *SHORT, "--runs", "my [red] runs.partial"]
    first, again = command(*words), command(*words)
    assert first.code == 0, first.err
    assert first.out == again.out
    assert "my [red] runs.partial/tiny/erm" in first.out.replace("\n", "")
    folder = next(Path("my [red] runs.partial").glob("tiny/erm/*"))
    assert command("show", folder).out == first.out


@pytest.mark.parametrize(("name", "content"), [
    ("metrics.json", '{"format": 999, "version": "9.9"}'), ("metrics.json", '{"form'), ("config.toml", "seed = "),
])  # fmt: skip
def test_a_damaged_run_is_one_sentence_to_show_and_report(command, refused, tmp_path, name, content):
    command("train", "tiny", "erm", *SHORT, "--runs", "made")
    folder = next(tmp_path.glob("made/tiny/erm/*"))
    (folder / name).write_text(content)
    for said in (refused("show", folder), refused("report", "made")):
        assert folder.name in said


def test_runs_that_are_not_complete_are_not_reported(refused, tmp_path):
    partial = tmp_path / "made" / "tiny" / "erm" / ".0123456789.partial"
    partial.mkdir(parents=True)
    (partial / "metrics.json").write_text("{}")
    assert "No complete run below made" in refused("report", "made")


def test_runs_on_different_data_are_not_reported_on_one_page(command, tmp_path):
    for correlation in (0.6, 0.7):
        command("train", "tiny", "erm", *SHORT, f"data.correlation={correlation}", "--runs", "made")
    said = command("report", "made")
    assert said.code == 0
    assert {path.name for path in tmp_path.glob("*.html")} == {"report.html", "report-1.html", "report-2.html"}


# ---- stopped


def test_ctrl_c_is_one_sentence_and_code_130(command, monkeypatch):
    from evenlens import run

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    ended = command("train", "tiny", "erm")
    assert ended.code == 130
    assert ended.err.strip() == "Stopped. The same command goes on from what is finished."


def test_an_output_that_is_cut_off_is_no_error():
    script = f"{sys.executable} -c 'from evenlens.cli import main; main()' list metrics | head -n 1"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert "Traceback" not in ended.stderr


def test_a_terminal_that_knows_no_arrows_does_no_harm(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ended = python("-c", "from evenlens.cli import main; main()", "show", "fairface")
    assert "K\\xe4rkk\\xe4inen" in ended.stdout
    assert ended.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["train", "avatars", "erm", "train.epochs=200", "data.num_train=2000"],
    ["sweep", "recipe.toml", "--jobs", "2"],
])  # fmt: skip
@pytest.mark.parametrize("moment", ["images", "steps"])
def test_ctrl_c_to_all_processes_is_one_sentence(tmp_path, cache, words, moment):
    (tmp_path / "recipe.toml").write_text(
        "dataset = 'avatars'\nmethod = ['erm', 'oversampling']\ntrain.epochs = 200\ndata.num_train = 2000\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from evenlens.cli import main; main()", *words],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    sign = "images/*/journal.jsonl" if moment == "images" else "*/avatars/*/.*.partial/checkpoint.pt"
    place = cache if moment == "images" else tmp_path
    deadline = time.monotonic() + 90
    while not any(path.stat().st_size for path in place.glob(sign)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("Stopped.")
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/avatars/*/[!.]*"))
