"""The image store: what is decoded how, what is damaged, and what a killed run leaves."""

import io
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from evenlens.data import images
from evenlens.data.images import CHUNK, digest, open_files, open_store, read_image
from evenlens.errors import UserError

RAMP = np.stack(np.broadcast_arrays(np.arange(40)[:, None] * 6, np.arange(40)[None] * 6, 128), axis=2).astype(np.uint8)


def decoded(path, size, fit="stretch"):
    return read_image(path, size, fit)[0]


def saved(path, pixels=RAMP, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize(("ending", "tolerance"), [("jpg", 12), ("png", 3), ("bmp", 3), ("webp", 25), ("tiff", 3)])
def test_every_format_is_decoded_to_the_asked_size(tmp_path, ending, tolerance):
    pixels = decoded(saved(tmp_path / f"a.{ending}", quality=95), 20)
    assert pixels.shape == (20, 20, 3)
    assert pixels.dtype == np.uint8
    wanted = RAMP.reshape(20, 2, 20, 2, 3).mean((1, 3))
    assert np.abs(pixels[2:-2, 2:-2] - wanted[2:-2, 2:-2]).mean() < tolerance


def test_an_image_that_is_not_square_is_stretched(tmp_path):
    assert decoded(saved(tmp_path / "a.png", RAMP[:10]), 24).shape == (24, 24, 3)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_short_side_keeps_the_aspect_and_cuts_both_ends(tmp_path, ending):
    wide = np.kron(RAMP, np.ones((4, 12, 1), np.uint8))  # 160 high, 480 wide
    pixels = decoded(saved(tmp_path / f"a.{ending}", wide, quality=95), 32, "short_side")
    middle = wide[:, 160:320].reshape(32, 5, 32, 5, 3).mean((1, 3))
    assert np.abs(pixels - middle)[1:-1, 1:-1].mean() < 3


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_center_crop_is_the_middle_64_of_72(tmp_path, ending):
    large = np.kron(RAMP, np.ones((18, 18, 1), np.uint8))  # 720 a side
    pixels = decoded(saved(tmp_path / f"a.{ending}", large, quality=95), 64, "center_crop")
    middle = large[40:680, 40:680].reshape(64, 10, 64, 10, 3).mean((1, 3))
    assert np.abs(pixels - middle)[1:-1, 1:-1].mean() < 3


def test_copies_of_a_file_have_one_digest_whatever_their_names_and_size(tmp_path, in_threads):
    files = [saved(tmp_path / name, RAMP // k) for name, k in (("a.png", 1), ("b.png", 2))]
    (tmp_path / "c.png").write_bytes(files[0].read_bytes())
    digests = open_files([*files, tmp_path / "c.png", tmp_path / "missing.png"], 16, "x").digests
    assert digests.tolist() == [*(digest(path.read_bytes()) for path in files), digests[0], 0]
    assert digests[0] != digests[1]
    assert open_files(files, 24, "x", fit="short_side").digests.tolist() == digests[:2].tolist()


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_one_pixel_is_enough(tmp_path, ending):
    pixels = decoded(saved(tmp_path / f"a.{ending}", np.full((1, 1, 3), 200, np.uint8)), 16)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - 200).max() <= 3


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_grey_becomes_three_equal_channels(tmp_path, ending):
    pixels = decoded(saved(tmp_path / f"a.{ending}", RAMP[..., 0]), 20)
    assert pixels.shape == (20, 20, 3)
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(RAMP).convert(mode).save(tmp_path / f"a.{ending}")
    pixels = decoded(tmp_path / f"a.{ending}", 20)
    assert pixels.shape == (20, 20, 3)
    if mode in ("RGBA", "CMYK"):
        assert np.abs(pixels.astype(int) - decoded(saved(tmp_path / "b.png"), 20)).mean() < 8


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bits_keep_their_shades(tmp_path, ending):
    deep = RAMP[..., 0].astype(np.uint16) * 256 + 17
    Image.fromarray(deep).save(tmp_path / f"deep.{ending}")
    flat = decoded(saved(tmp_path / "flat.png", RAMP[..., 0]), 20)
    assert np.abs(decoded(tmp_path / f"deep.{ending}", 20).astype(int) - flat).max() <= 1


@pytest.mark.parametrize("before_exif", [b"", b"\xff\xe2\x40\x02" + bytes(0x4000)])
def test_a_picture_taken_sideways_is_turned_upright(tmp_path, before_exif):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    path = saved(tmp_path / "a.jpg", RAMP, quality=95, exif=exif)
    data = path.read_bytes()
    path.write_bytes(data[:2] + before_exif + data[2:])  # a colour profile may stand before
    wanted = decoded(saved(tmp_path / "b.jpg", np.rot90(RAMP, -1).copy(), quality=95), 40)
    assert np.abs(decoded(path, 40).astype(int) - wanted).mean() < 4


def test_a_large_jpeg_is_decoded_at_a_smaller_scale_to_about_the_same(tmp_path):
    large = np.kron(RAMP, np.ones((10, 10, 1), np.uint8))
    scaled = decoded(saved(tmp_path / "a.jpg", large, quality=95), 40)
    exact = decoded(saved(tmp_path / "a.png", large), 40)
    assert np.abs(scaled.astype(int) - exact).mean() < 2


def broken(folder):
    """One of each way in which an image can be broken."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    png = io.BytesIO()
    Image.fromarray(RAMP).save(png, "PNG")
    jpeg = whole.getvalue()
    content = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "corrupt.jpg": jpeg[:30] + bytes(60) + jpeg[90:],
        "head_only.jpg": jpeg[:4],
        "empty.jpg": b"",
        "text.png": b"this is no picture\n",
        "truncated.png": png.getvalue()[:-40],
        "corrupt.png": png.getvalue()[:60] + b"\xff" * 40 + png.getvalue()[100:],
        "page.jpg": b"<html>404</html>",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return sorted(content)


def test_a_broken_image_raises_one_sentence_that_is_the_same_every_time(tmp_path):
    for name in broken(tmp_path):
        with pytest.raises(OSError) as error:  # noqa: PT011 - the message is what is looked at
            decoded(tmp_path / name, 16)
        message = str(error.value)
        assert message
        assert "\n" not in message
        assert "0x" not in message, "an address in memory, which would make two runs differ"


def test_an_image_of_a_billion_pixels_is_refused_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match="pixels"):
        decoded(saved(tmp_path / "a.png"), 16)


def test_a_damaged_image_is_named_and_black_and_the_others_are_there(tmp_path, in_threads):
    names = [*broken(tmp_path), "missing.jpg"]
    saved(tmp_path / "whole.jpg")
    store = open_files([tmp_path / name for name in [*names, "whole.jpg"]], 16, "x")
    assert sorted(store.damaged) == list(range(len(names)))
    assert store.damaged[names.index("empty.jpg")] == "an empty file"
    assert store.damaged[names.index("missing.jpg")] == "No such file or directory"
    assert not store.pixels[:-1].any()
    assert (store.pixels[-1] == decoded(tmp_path / "whole.jpg", 16)).all()


def test_a_store_is_made_once_and_found_again(tmp_path, in_threads, monkeypatch):
    files = [saved(tmp_path / f"{k}.png", RAMP // (k + 1)) for k in range(3)]
    first = open_files(files, 16, "x")
    monkeypatch.setattr(images, "_make_all", None)
    assert open_files(files, 16, "x").fingerprint == first.fingerprint


def test_a_changed_file_makes_a_new_store(tmp_path, in_threads):
    files = [saved(tmp_path / f"{k}.png", RAMP // (k + 1)) for k in range(3)]
    first = open_files(files, 16, "x")
    saved(files[1], 255 - RAMP)
    second = open_files(files, 16, "x")
    assert first.fingerprint != second.fingerprint
    assert (second.pixels[1] == decoded(files[1], 16)).all()
    assert (second.pixels[0] == first.pixels[0]).all()


def draw(item, size):
    """Draw image `item`; a plain function, as it runs in other processes."""
    return np.full((size, size, 3), item % 251, np.uint8), item


def interrupted_after(chunks):
    def progress(done, total):
        if done >= chunks * CHUNK:
            raise KeyboardInterrupt

    return progress


def test_a_store_that_was_interrupted_goes_on_and_has_the_same_fingerprint(cache, in_threads):
    items = list(range(4 * CHUNK + 5))
    whole = open_store(items, 8, draw, source="whole", name="x").fingerprint
    with pytest.raises(KeyboardInterrupt):
        open_store(items, 8, draw, source="parts", name="x", progress=interrupted_after(1))
    folder = next(path.parent for path in cache.glob("images/*/journal.jsonl"))
    done = (folder / "journal.jsonl").read_text()
    assert done.count("\n") == 1
    assert not (folder / "store.json").exists()

    (folder / "journal.jsonl").write_text(done + '{"start": 1024, "dam')  # killed while it wrote: half a line
    with pytest.raises(KeyboardInterrupt):
        open_store(items, 8, draw, source="parts", name="x", progress=interrupted_after(3))
    made = []
    store = open_store(items, 8, draw, source="parts", name="x", progress=lambda done, total: made.append(done))
    assert store.fingerprint == whole
    assert len(made) == 2, "what was done was done again"
    assert sorted(path.name for path in folder.iterdir()) == ["digests.i64", "lock", "pixels.u8", "store.json"]
    assert store.digests.tolist() == items


def test_a_chunk_that_the_journal_knows_and_the_disk_lost_is_made_again(cache, in_threads):
    items = list(range(3 * CHUNK))
    whole = open_store(items, 8, draw, source="whole", name="x").fingerprint
    with pytest.raises(KeyboardInterrupt):
        open_store(items, 8, draw, source="parts", name="x", progress=interrupted_after(2))
    folder = next(path.parent for path in cache.glob("images/*/journal.jsonl"))
    first = json.loads((folder / "journal.jsonl").read_text().splitlines()[0])["start"]
    pixels = np.memmap(folder / "pixels.u8", dtype=np.uint8, mode="r+", shape=(len(items), 8, 8, 3))
    pixels[first : first + CHUNK] = 0
    made = []
    store = open_store(items, 8, draw, source="parts", name="x", progress=lambda done, total: made.append(done))
    assert store.fingerprint == whole
    assert len(made) == 2, "the lost chunk, and the one that was never made"


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "store.json").write_text('{"fingerp'),
    lambda folder: (folder / "store.json").write_text("[]"),
    lambda folder: (folder / "pixels.u8").unlink(),
    lambda folder: (folder / "pixels.u8").write_bytes(b"short"),
    lambda folder: (folder / "digests.i64").unlink(),
    lambda folder: (folder / "store.json").unlink() or (folder / "journal.jsonl").write_text("nonsense\n"),
])  # fmt: skip
def test_a_damaged_store_is_made_again(cache, in_threads, damage):
    first = open_store([1, 2, 3], 8, draw, source="s", name="x")
    wanted = np.array(first.pixels)
    damage(next(cache.glob("images/x-*")))
    again = open_store([1, 2, 3], 8, draw, source="s", name="x")
    assert again.fingerprint == first.fingerprint
    assert (again.pixels == wanted).all()


def test_a_full_disk_is_noticed_before_the_first_image_and_the_same_call_succeeds_later(cache, in_threads, monkeypatch):
    def full(descriptor, start, length):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(images.os, "posix_fallocate", full)
        with pytest.raises(OSError, match="No space left"):
            open_store([1, 2], 8, draw, source="s", name="x")
    assert len(open_store([1, 2], 8, draw, source="s", name="x").pixels) == 2


class Gone:
    """An image whose making takes the process away."""

    def __call__(self, item, size):
        import os

        os._exit(9)


def test_a_process_that_is_killed_while_it_makes_images_is_one_sentence():
    with pytest.raises(UserError, match="memory runs out"):
        open_store([1], 8, Gone(), source="s", name="x")


SLOWLY = """
import sys, time
from pathlib import Path
from evenlens.data import images

def slow(path, size):
    time.sleep(0.02)
    return images.read_image(path, size)

images.CHUNK = 8
files = sorted(Path(sys.argv[1]).glob("*.png"))
print(images.open_store(files, 16, slow, source="s", name="x").fingerprint)
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_making_a_store_does_no_harm(tmp_path, cache):
    for k in range(200):
        saved(tmp_path / f"{k:03d}.png", RAMP // (k % 5 + 1))
    script = [sys.executable, "-c", SLOWLY, str(tmp_path)]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.glob("images/*/journal.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not list(cache.glob("images/*/store.json"))
    resumed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    for folder in cache.glob("images/*"):
        (folder / "store.json").write_text(json.dumps({}))
    whole = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert resumed == whole
