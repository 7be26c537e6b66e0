"""The command `sketch`, typed well and badly."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from evenlens import sketching
from tests.test_informative import published


def put(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(path.name))
    Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8) if pixels is None else pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "b.jpg", "own/c.png"):
        put(tmp_path / "photos" / name)
    return tmp_path / "photos"


def drawings(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_folder_is_drawn_and_the_same_command_draws_nothing_again(command, photos, tmp_path):
    words = ["sketch", "photos", "my [red] drawings", "--view", "grey"]
    ended = command(*words)
    assert (ended.code, ended.err.strip(), ended.out) == (0, "", "3 drawn: my [red] drawings\n")
    assert drawings(tmp_path / "my [red] drawings") == ["a.png", "b.png", "own/c.png"]
    assert command(*words).out == "0 drawn, 3 were there: my [red] drawings\n"
    put(photos / "d.png")
    assert command(*words).out == "1 drawn, 3 were there: my [red] drawings\n"


def test_one_image_is_drawn_at_a_size_with_its_sheet(command, photos, tmp_path):
    ended = command("sketch", "photos/a.png", "drawings", "--view", "grey", "--size", "18", "--sheet", "s.png")
    assert ended.out == "1 drawn: drawings\nSheet: s.png\n"
    with Image.open(tmp_path / "drawings" / "a.png") as drawn, Image.open(tmp_path / "s.png") as sheet:
        assert (drawn.size, drawn.mode) == ((24, 18), "L")
        assert sheet.size == (172, 338)


def test_what_cannot_be_read_is_listed_and_no_error_on_request(command, photos, tmp_path):
    for number in range(25):
        (photos / f"bad{number:02} [red].jpg").write_bytes(b"")
    ended = command("sketch", "photos", "drawings", "--view", "grey")
    assert ended.code == 2
    lines = ended.err.strip().splitlines()
    assert lines[0] == "left out: bad00 [red].jpg (an empty file)"
    assert lines[-2] == "left out: 5 more"
    assert lines[-1] == (
        "Error: 25 of 28 images cannot be read: mend or remove them, or accept that with --skip-unreadable; the others "
        "are drawn."
    )
    assert len(lines) == 22
    assert drawings(tmp_path / "drawings") == ["a.png", "b.png", "own/c.png"]
    again = command("sketch", "photos", "drawings", "--view", "grey", "--skip-unreadable")
    assert again.code == 0
    assert again.err.strip().splitlines() == lines[:-1]
    assert again.out == "0 drawn, 3 were there: drawings\n"


@pytest.mark.parametrize(("words", "said"), [
    (["photos"], "Missing argument"),
    (["nowhere", "drawings"], "There is no folder or image nowhere: name one that holds images."),
    (["photos", "photos"], "photos is both input and output: name another folder"),
    (["photos", "photos/new"], "The output photos/new lies inside the input photos"),
    (["photos/own", "photos"], "The input photos/own lies inside the output photos"),
    (["photos", "drawings.png"], "drawings.png is a file, or named like an image: name a folder"),
    (["photos", "drawings", "--view", "gray"], "Unknown view 'gray'; did you mean 'grey'?"),
    (["photos", "drawings", "--view", "rgb"], "rgb shows the photograph as it is and draws nothing"),
    (["photos", "drawings", "sigma=2"], "Unknown option of grey 'sigma'"),
    (["photos", "drawings", "sigma"], "'sigma' is no setting: write key=value"),
    (["photos", "drawings", "--weights", "w.pth"], "Unknown option of grey 'weights'"),
    (["photos", "drawings", "weights=a", "--weights", "b"], "--weights and weights= are both given: leave one."),
    (["photos", "drawings", "--size", "0"], "--size 0 is not allowed: the short side in pixels, at least 1."),
    (["photos", "drawings", "--size", "big"], "Invalid value for '--size'"),
    (["photos", "drawings", "--sheet", "sheet.jpg"], "The contact sheet sheet.jpg is a PNG file"),
    (["photos", "drawings", "--sheet", "photos/s.png"], "The contact sheet photos/s.png lies inside the input photos"),
    (["photos", "drawings", "--view", "informative"], "informative draws with published weights: get them"),
    (["photos", "drawings", "--view", "informative", "--weights", "w.pth"], "There is no file of weights at w.pth"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_a_mistake_is_one_sentence_and_nothing_is_written(refused, photos, tmp_path, words, said):
    words = words if "--view" in words else [*words, "--view", "grey"]
    before = sorted(tmp_path.rglob("*"))
    assert said in refused("sketch", *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_collisions_and_strangers_are_one_sentence(command, refused, photos, tmp_path):
    put(photos / "a.jpg")
    said = refused("sketch", "photos", "drawings", "--view", "grey")
    assert "a.jpg and a.png would both be drawn to a.png: rename one, or draw them apart." in said
    (photos / "a.jpg").unlink()
    put(tmp_path / "drawings" / "b.png")
    said = refused("sketch", "photos", "drawings", "--view", "grey")
    assert "drawings/b.png is there, and was not made from this b.jpg with the same view and options" in said
    assert drawings(tmp_path / "drawings") == ["b.png"]
    assert command("sketch", "photos", "drawings", "--view", "grey", "--overwrite").out == "3 drawn: drawings\n"


def test_a_network_draws_with_its_weights_and_its_drawings_are_known_again(command, photos, tmp_path, refused):
    torch.save(published(1), tmp_path / "w.pth")
    words = ["sketch", "photos", "drawings", "size=16", "--view", "informative", "--weights", "w.pth"]
    ended = command(*words)
    assert (ended.code, ended.out) == (0, "3 drawn: drawings\n"), ended.err
    with Image.open(tmp_path / "drawings" / "a.png") as drawn:
        assert drawn.size == (12, 9)
        assert len(drawn.getcolors()) > 10
    assert command(*words[:-2], "weights=w.pth").out == "0 drawn, 3 were there: drawings\n"
    torch.save(published(1, seed=2), tmp_path / "w.pth")
    assert "was not made from this a.png with the same view and options" in refused(*words)


def test_help_shows_examples_and_loads_no_torch():
    script = (
        "import sys, evenlens.cli\nsys.argv = ['evenlens', 'sketch', '--help']\n"
        "try:\n    evenlens.cli.main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', sorted({'torch', 'PIL', 'kornia', 'timm'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60).stdout
    assert "LOADED []" in shown
    assert "evenlens sketch photos drawings --view xdog sigma=2 --sheet sheet.png" in shown
    assert "weber_dog" in shown


def test_ctrl_c_is_code_130_and_the_same_command_goes_on(command, photos, tmp_path, monkeypatch):
    def interrupted(drawn):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sketching, "_encode", interrupted)
        assert command("sketch", "photos", "drawings", "--view", "grey").code == 130
    assert drawings(tmp_path / "drawings") == []
    assert command("sketch", "photos", "drawings", "--view", "grey").out == "3 drawn: drawings\n"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_really_killed_goes_on(command, tmp_path, how):
    for number in range(3000):
        put(tmp_path / "photos" / f"{number}.png", np.full((60, 50 + number % 40, 3), number % 256, np.uint8))
    process = subprocess.Popen(
        [sys.executable, "-c", "from evenlens.cli import main; main()", "sketch", "photos", "drawings", "--view=grey"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    record = tmp_path / "drawings" / sketching.RECORD
    deadline = time.monotonic() + 60
    while not record.exists() or record.stat().st_size < 40_000:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.killpg(process.pid, how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    assert "Traceback" not in err
    there = drawings(tmp_path / "drawings")
    assert 0 < len(there) < 3000
    for name in there:
        with Image.open(tmp_path / "drawings" / name) as drawn:
            drawn.load()
    assert command("sketch", "photos", "drawings", "--view", "grey").out == (
        f"{3000 - len(there):,} drawn, {len(there):,} were there: drawings\n"
    )
    assert len({json.loads(line).get("drawing") for line in record.read_text().splitlines() if line}) == 3001
