"""Folders of photographs to folders of drawings: names, odd files, what is there already, what was stopped."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evenlens import sketching, views
from evenlens.errors import UserError
from evenlens.sketching import RECORD, contact_sheet, sketch_folder
from evenlens.view import View, grey
from tests.test_images import broken


class Inverse(View):
    """Ink where there is light, as much as `strength` says; it counts the batches that it drew."""

    title = "Inverse"
    batches: list = []

    def __init__(self, *, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def draw(self, image):
        self.batches.append(tuple(image.shape))
        return 1 - self.strength * grey(image)


@pytest.fixture(autouse=True)
def inverse(monkeypatch):
    """The view `inverse` exists in tests only."""
    original = views.get
    monkeypatch.setattr(views, "get", lambda name: Inverse if name == "inverse" else original(name))
    monkeypatch.setattr(Inverse, "batches", [])
    return Inverse.batches


@pytest.fixture
def source(tmp_path):
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "drawings"


def noise(height=9, width=12, seed=0, depth=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, depth), dtype=np.uint8)


def put(folder, name, pixels=None, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed=len(name)) if pixels is None else pixels).save(path, **options)
    return path


def luma(pixels):
    return pixels.astype(float) @ (0.299, 0.587, 0.114)


def drawings(target):
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file() and path.name != RECORD)


def opened(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(float)


def states(target):
    return {name: (target / name).stat().st_mtime_ns for name in drawings(target)}


# ---- what is drawn


def test_names_and_sub_folders_are_kept(source, target):
    names = [
        "a.b.jpg",
        "deep/er/c.JPEG",
        "deep/c.png",
        "ünï 😀 [red] 'x'.webp",
        "-view.bmp",
        "%d;$x&\n.tif",
        ".hidden.png",
    ]
    for name in names:
        put(source, name)
    (source / "notes.txt").write_text("no image")
    (source / "empty").mkdir()
    done = sketch_folder(source, target, "inverse")
    assert drawings(target) == sorted(
        ["a.b.png", "deep/er/c.png", "deep/c.png", "ünï 😀 [red] 'x'.png", "-view.png", "%d;$x&\n.png", ".hidden.png"]
    )
    assert (done.num_made, done.num_kept, done.unreadable) == (7, 0, {})
    assert [drawn.name for _, drawn in done.pairs] == [photo.with_suffix(".png").name for photo, _ in done.pairs]


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_no_text_is_kept(source, target):
    put(source, "a.png").rename(os.fsdecode(os.fsencode(source) + b"/\xff.png"))
    for kept in (0, 1):
        assert sketch_folder(source, target, "inverse").num_kept == kept
    assert os.listdir(os.fsencode(target)) in ([b"\xff.png", RECORD.encode()], [RECORD.encode(), b"\xff.png"])


def test_a_drawing_is_a_grey_png_of_the_images_size_black_on_white(source, target):
    pixels = {name: noise(*shape) for name, shape in {"a.png": (9, 12), "b.png": (12, 9), "c.png": (1, 1)}.items()}
    for name, content in pixels.items():
        put(source, name, content)
    sketch_folder(source, target, "inverse", {"strength": 0.5})
    for name, content in pixels.items():
        with Image.open(target / name) as drawn:
            assert (drawn.format, drawn.mode) == ("PNG", "L")
            assert np.abs(np.asarray(drawn) - (255 - 0.5 * luma(content))).max() <= 0.51


def test_images_of_one_shape_are_drawn_together_and_memory_is_bounded(source, target, inverse, monkeypatch):
    monkeypatch.setattr(sketching, "BATCH_PIXELS", 4 * 108)
    monkeypatch.setattr(sketching, "WAITING_PIXELS", 6 * 108)
    for number in range(18):
        put(source, f"{number:02}.png", noise(9 if number < 10 else 8, 12 if number < 10 else number, number))
    sketch_folder(source, target, "inverse")
    assert sum(shape[0] for shape in inverse) == 18
    assert max(shape[0] * shape[2] * shape[3] for shape in inverse) <= 4 * 108
    assert inverse.count((4, 3, 9, 12)) == 2
    for number in range(18):
        wanted = 255 - luma(noise(9 if number < 10 else 8, 12 if number < 10 else number, number))
        assert np.abs(opened(target / f"{number:02}.png") - wanted).max() <= 0.51


def test_one_image_is_drawn_into_a_folder_and_may_stand_in_it(source, target):
    path = put(source, "a.b.jpg")
    assert sketch_folder(path, target, "inverse").num_made == 1
    assert drawings(target) == ["a.b.png"]
    sketch_folder(path, source, "inverse")
    assert drawings(source) == ["a.b.jpg", "a.b.png"]
    bare = path.rename(source / "bare")
    sketch_folder(bare, target, "inverse")
    assert drawings(target) == ["a.b.png", "bare.png"]


@pytest.mark.parametrize(("shape", "size", "wanted"), [
    ((60, 80), 30, (30, 40)), ((80, 60), 30, (40, 30)), ((9, 12), 18, (18, 24)), ((30, 30), 30, (30, 30)),
    ((1, 1), 5, (5, 5)), ((1, 7), 2, (2, 14)), ((2000, 1500), 150, (200, 150)),
])  # fmt: skip
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_size_is_that_of_the_short_side(source, target, shape, size, wanted, ending):
    smooth = np.broadcast_to(np.linspace(0, 255, shape[1])[None, :, None], (*shape, 3)).astype(np.uint8)
    put(source, f"a.{ending}", smooth)
    sketch_folder(source, target, "inverse", size=size)
    drawn = opened(target / "a.png")
    assert drawn.shape == wanted
    if wanted[1] > 10:
        assert np.abs(drawn.mean(0) - np.linspace(255, 0, wanted[1])).max() < 14


def test_a_strip_that_would_fill_the_memory_is_told_of(source, target):
    put(source, "strip.png", noise(1, 3000))
    put(source, "a.png")
    done = sketch_folder(source, target, "inverse", size=512)
    assert done.unreadable == {"strip.png": "3000 x 1 pixels would become 1536000 x 512, which is too large"}
    assert drawings(target) == ["a.png"]


# ---- odd images


def sixteen(levels):
    return Image.fromarray(levels.astype(np.uint16))


RAMP = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))


def kinds():
    """Images of one dark-to-light ramp (24, 32) in every form, and what they must look like in grey."""
    rgb = np.repeat(RAMP[..., None], 3, 2)
    colour = rgb * np.array([1.0, 0.5, 0.25])
    colour = colour.astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # shown, it is turned clockwise by a quarter
    palette = Image.fromarray(RAMP).convert("P")
    sparkling = Image.fromarray(np.dstack([colour, 255 - RAMP]))
    return {
        "grey.png": (Image.fromarray(RAMP), RAMP, {}),
        "grey.jpg": (Image.fromarray(RAMP), RAMP, {"quality": 95}),
        "bit.png": (Image.fromarray(RAMP > 127), 255 * (RAMP > 127), {}),
        "palette.gif": (palette, RAMP, {}),
        "alpha.png": (sparkling, luma(colour), {}),
        "grey_alpha.png": (Image.fromarray(np.dstack([RAMP, 255 - RAMP]), "LA"), RAMP, {}),
        "sixteen.png": (sixteen(RAMP * 256.0 + 7), RAMP, {}),
        "sixteen.tif": (sixteen(RAMP * 256.0 + 7), RAMP, {}),
        "cmyk.jpg": (Image.fromarray(rgb).convert("CMYK"), RAMP, {"quality": 95}),
        "cmyk.tif": (Image.fromarray(rgb).convert("CMYK"), RAMP, {}),
        "turned.jpg": (Image.fromarray(rgb), np.rot90(RAMP, -1), {"exif": turned, "quality": 95}),
        "turned.png": (Image.fromarray(rgb), np.rot90(RAMP, -1), {"exif": turned}),
        "turned.tif": (Image.fromarray(rgb), np.rot90(RAMP, -1), {"exif": turned}),
        "pixel.png": (Image.fromarray(rgb[:1, 9:10]), RAMP[:1, 9:10], {}),
        "column.png": (Image.fromarray(rgb[:, 9:10]), RAMP[:, 9:10], {}),
        "packed.tif": (Image.fromarray(rgb), RAMP, {"compression": "tiff_lzw"}),
    }


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", list(kinds()))
def test_every_kind_of_image_is_drawn_upright_and_right(source, target, name):
    image, wanted, options = kinds()[name]
    image.save(source / name, **options)
    done = sketch_folder(source, target, "grey")
    assert not done.unreadable
    drawn = opened(target / done.pairs[0][1].name)
    assert drawn.shape == wanted.shape
    assert np.abs(drawn - wanted).max() <= (6 if name.endswith(("jpg", "gif")) else 1.01)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_of_an_animation_the_first_picture_is_drawn(source, target, name):
    first, second = (Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (40, 220))
    lossless = {"lossless": True} if name == "a.webp" else {}
    first.save(source / name, save_all=True, append_images=[second], **lossless)
    sketch_folder(source, target, "grey")
    assert np.abs(opened(target / "a.png") - 40).max() <= 1


def lone(folder):
    """Broken images, no two of which would make one drawing."""
    for name in broken(folder):
        (folder / name).rename(folder / name.replace(".png", "_png.png"))
    return sorted(path.name for path in folder.iterdir())


def test_what_cannot_be_read_is_told_of_and_the_rest_is_drawn(source, target):
    names = lone(source)
    put(source, "whole.png")
    (source / "lost.png").symlink_to(source / "nothing.png")
    (source / "loop.png").symlink_to("loop.png")
    (source / "folder.png").mkdir()
    for _ in range(2):
        done = sketch_folder(source, target, "grey")
        assert sorted(done.unreadable) == sorted([*names, "loop.png", "lost.png"])
        assert done.unreadable["empty.jpg"] == "an empty file"
        assert done.unreadable["lost.png"] == "No such file or directory"
        assert drawings(target) == ["whole.png"]
    assert done.num_kept == 1


def test_a_folder_of_nothing_but_broken_images_is_no_failure_of_the_sheet(source, target, tmp_path):
    lone(source)
    done = sketch_folder(source, target, "grey", sheet=tmp_path / "sheet.png")
    assert not done.pairs
    assert not (tmp_path / "sheet.png").exists()


# ---- links


def test_no_link_leads_out_of_the_folder(source, target, tmp_path):
    put(tmp_path / "private", "secret.png")
    put(source, "own/a.png")
    (source / "out").symlink_to(tmp_path / "private")
    (source / "stolen.png").symlink_to(tmp_path / "private" / "secret.png")
    (source / "again").symlink_to(source)
    (source / "same.png").symlink_to("own/a.png")
    done = sketch_folder(source, target, "grey")
    assert drawings(target) == ["own/a.png", "same.png"]
    assert done.unreadable == dict.fromkeys(("out", "stolen.png"), "a link that leads out of the folder")


def test_no_link_in_the_output_leads_out_of_it(source, target, tmp_path):
    put(source, "own/a.png")
    other = put(tmp_path / "other", "a.png")
    target.mkdir()
    (target / "own").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="own is a file, or a link that leads out of"):
        sketch_folder(source, target, "grey", overwrite=True)
    (target / "own").unlink()
    (target / "own").mkdir()
    (target / "own" / "a.png").symlink_to(other)
    before = other.read_bytes()
    with pytest.raises(UserError, match="is there, and was not made"):
        sketch_folder(source, target, "grey")
    sketch_folder(source, target, "grey", overwrite=True)  # takes the place of the link, and leaves what it led to
    assert other.read_bytes() == before
    assert not (target / "own" / "a.png").is_symlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_no_image(source, target):
    os.mkfifo(source / "pipe.png")
    put(source, "a.png")
    assert sketch_folder(source, target, "grey").num_made == 1


# ---- what is refused, before any work


def refused(said, *arguments, **options):
    target = arguments[1]
    before = sorted(target.rglob("*")) if target.is_dir() else None
    with pytest.raises(UserError, match=said) as error:
        sketch_folder(*arguments, **options)
    assert "\n" not in str(error.value)
    assert (sorted(target.rglob("*")) if target.is_dir() else None) == before


@pytest.mark.parametrize(("names", "said"), [
    (["a.jpg", "a.png"], r"^a\.jpg and a\.png would both be drawn to a\.png: rename one"),
    (["x/a.b.webp", "b.png", "x/a.b.bmp"], r"^x/a\.b\.bmp and x/a\.b\.webp would both be drawn to x/a\.b\.png"),
    (["a.jpg", "a.png/c.jpg"], r"^a\.jpg would be drawn to a\.png, which is the name of a folder of images"),
    (["x/a.jpg", "x/a.png/y/c.jpg"], r"^x/a\.jpg would be drawn to x/a\.png, which is the name of a folder"),
])  # fmt: skip
def test_two_images_for_one_drawing_are_refused(source, target, names, said):
    for name in names:
        put(source, name)
    refused(said, source, target, "inverse")


def test_folders_inside_each_other_are_refused(source, tmp_path, monkeypatch):
    put(source, "own/a.png")
    refused("is both input and output", source, source, "grey")
    refused("is both input and output", source, source / "own" / "..", "grey")
    refused("The output .* lies inside the input", source, source / "drawings", "grey")
    refused("The output .* lies inside the input", source, source / "own", "grey")
    refused("The input .* lies inside the output", source / "own", source, "grey")
    refused("The input .* lies inside the output", source, tmp_path, "grey")
    (tmp_path / "link").symlink_to(source)
    refused("is both input and output", source, tmp_path / "link", "grey")
    refused("lies inside the input", source, tmp_path / "link" / "new", "grey")
    monkeypatch.chdir(source)
    refused("lies inside the input", type(source)("."), type(source)("new"), "grey")
    assert sketch_folder(source, tmp_path / "photos2", "grey").num_made == 1  # a name that only begins alike


def test_places_that_are_none_are_refused(source, target, tmp_path):
    refused(r"There is no folder or image .*nowhere: name one", tmp_path / "nowhere", target, "grey")
    refused("No image below .*: looked for files ending in .bmp, .gif, ", source, target, "grey")
    photo = put(source, "a.png")
    refused("is a file, or named like an image: name a folder", source, put(tmp_path, "o.png"), "grey")
    refused("is a file, or named like an image: name a folder", photo, tmp_path / "drawing.PNG", "grey")
    refused("a.png would be replaced by its drawing", photo, source, "grey", overwrite=True)
    (target / "a.png").mkdir(parents=True)
    refused("is a folder where a drawing is to be written", source, target, "grey", overwrite=True)
    (target / "a.png").rmdir()
    put(source, "b/a.png")
    (target / "b").write_text("a file")
    refused("b is a file, or a link that leads out of", source, target, "grey", overwrite=True)


@pytest.mark.parametrize(("view", "options", "said"), [
    ("gray", {}, "Unknown view 'gray'; did you mean 'grey'"),
    ("rgb", {}, "rgb shows the photograph as it is and draws nothing: choose one of .*grey"),
    ("inverse", {"strenth": 2.0}, "Unknown option of inverse 'strenth'; did you mean 'strength'"),
    ("informative", {}, "informative draws with published weights"),
])  # fmt: skip
def test_views_that_cannot_draw_are_refused(source, target, view, options, said):
    put(source, "a.png")
    refused(said, source, target, view, options)


def test_a_sheet_in_the_wrong_place_is_refused(source, target, tmp_path):
    put(source, "a.png")
    refused("is a PNG file: give it a name that ends in .png", source, target, "grey", sheet=tmp_path / "s.jpg")
    refused("lies inside the input", source, target, "grey", sheet=source / "s.png")
    refused("has the name of a drawing", source, target, "grey", sheet=target / "a.png")
    refused("A short side of -1 pixels is not allowed", source, target, "grey", size=-1)


# ---- what is there already


def test_what_was_made_from_the_same_in_the_same_way_is_kept(source, target, inverse):
    for name in ("a.png", "b.jpg", "own/c.png"):
        put(source, name)
    sketch_folder(source, target, "inverse")
    before, drawn = states(target), len(inverse)
    done = sketch_folder(source, target, "inverse", {"strength": 1.0})
    assert (done.num_made, done.num_kept, len(done.pairs)) == (0, 3, 3)
    assert len(inverse) == drawn
    put(source, "d.png")
    (target / "b.png").unlink()
    done = sketch_folder(source, target, "inverse")
    assert (done.num_made, done.num_kept) == (2, 2)
    after = states(target)
    assert all((after[name] == before.get(name)) == (name in ("a.png", "own/c.png")) for name in after)


@pytest.mark.parametrize("change", ["options", "size", "view", "photograph"])
def test_what_was_made_otherwise_is_refused_and_overwritten_on_request(source, target, change):
    photo, wanted = noise(), "inverse"
    for name in ("a.png", "b.png"):
        put(source, name, photo)
    sketch_folder(source, target, "inverse")
    before = states(target)
    options = {"options": {"strength": 0.5}} if change == "options" else {"size": 20} if change == "size" else {}
    if change == "view":
        wanted = "grey"
    elif change == "photograph":
        put(source, "a.png", 255 - photo)
    refused("a.png is there, and was not made from this a.png with the same view and options: name another folder, or "
            "replace what is there with --overwrite", source, target, wanted, **options)  # fmt: skip
    assert states(target) == before
    done = sketch_folder(source, target, wanted, overwrite=True, **options)
    assert done.num_kept == (1 if change == "photograph" else 0)
    assert sketch_folder(source, target, wanted, **options).num_kept == 2
    sketch_folder(source, target.with_name("fresh"), wanted, **options)
    for name in drawings(target):
        assert (target / name).read_bytes() == (target.with_name("fresh") / name).read_bytes()


def test_other_files_are_left_alone(source, target):
    put(source, "a.png")
    other = put(target, "a.png").read_bytes()
    (target / "notes.txt").write_text("mine")
    refused("a.png is there, and was not made", source, target, "grey")
    assert (target / "a.png").read_bytes() == other
    assert sketch_folder(source, target, "grey", overwrite=True).num_made == 1
    assert (target / "a.png").read_bytes() != other
    assert (target / "notes.txt").read_text() == "mine"


def test_a_drawing_that_somebody_changed_is_theirs(source, target):
    put(source, "a.png")
    sketch_folder(source, target, "grey")
    (target / "a.png").write_bytes(b"something else")
    refused("a.png is there, and was not made", source, target, "grey")


@pytest.mark.parametrize("record", [
    b"", b"\xff\xfe", b"[]\n3\n{}\nnull\n", b'{"drawing": []}\n', b'{"drawing": "a.png"}',
])  # fmt: skip
def test_a_damaged_record_is_none(source, target, record, monkeypatch):
    monkeypatch.setattr(sketching, "cores", lambda: 1)  # lines in the order of names
    put(source, "a.png")
    put(source, "b.png")
    sketch_folder(source, target, "grey")
    lines = (target / RECORD).read_bytes()
    (target / RECORD).write_bytes(record)
    refused("is there, and was not made", source, target, "grey")
    (target / RECORD).write_bytes(record + b"\n" + lines[:-5])  # the last line is cut off, and its drawing not known
    refused("b.png is there, and was not made", source, target, "grey")
    (target / "b.png").unlink()
    assert sketch_folder(source, target, "grey").num_kept == 1
    assert sketch_folder(source, target, "grey").num_kept == 2


def test_the_record_says_how_it_was_drawn(source, target):
    put(source, "a.png")
    sketch_folder(source, target, "inverse", size=7)
    entries = [json.loads(line) for line in (target / RECORD).read_text().splitlines() if line]
    assert {"view": "inverse", "options": {"strength": 1.0}, "size": 7} in [entry.get("made_with") for entry in entries]


# ---- stopped


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["encode", "write", "replace"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_killed_run_leaves_whole_drawings_and_goes_on(source, target, monkeypatch, moment, overwrite):
    for number in range(30):
        put(source, f"sub{number % 3}/{number}.png", noise(9, 10 + number % 4, number))
        if overwrite:
            put(target, f"sub{number % 3}/{number}.png")
    calls = []

    def until(real):
        def call(*arguments, **options):
            calls.append(1)
            if len(calls) > 12:
                raise Killed
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(sketching, "cores", lambda: 1)
        if moment == "encode":
            patch.setattr(sketching, "_encode", until(sketching._encode))
        elif moment == "write":
            patch.setattr(type(target), "write_bytes", until(type(target).write_bytes))
        else:
            patch.setattr(type(target), "replace", until(type(target).replace))
        with pytest.raises(Killed):
            sketch_folder(source, target, "inverse", overwrite=overwrite)
    assert not list(target.rglob("*.part"))
    assert len(drawings(target)) == (30 if overwrite else 12)
    for name in drawings(target):
        assert opened(target / name).shape[0] == 9
    done = sketch_folder(source, target, "inverse", overwrite=overwrite)
    assert (done.num_kept, done.num_made) == (12, 18)
    sketch_folder(source, target.with_name("fresh"), "inverse")
    for name in drawings(target):
        assert (target / name).read_bytes() == (target.with_name("fresh") / name).read_bytes()


def test_a_disk_that_is_full_is_one_sentence(source, target, monkeypatch):
    put(source, "a.png")

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(type(target), "write_bytes", full)
        with pytest.raises(UserError, match=r"a\.png.*cannot be written \(No space left on device\): mend that or"):
            sketch_folder(source, target, "inverse")
    assert sketch_folder(source, target, "inverse").num_made == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(source, tmp_path):
    put(source, "a.png")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match=r"taken.* cannot be written \(Not a directory\)"):
        sketch_folder(source, tmp_path / "taken" / "drawings", "grey")


def test_progress_counts_what_is_kept_drawn_and_unreadable(source, target):
    for number in range(5):
        put(source, f"{number}.png")
    sketch_folder(source, target, "inverse")
    (source / "bad.jpg").write_bytes(b"")
    put(source, "new.png")
    seen = []
    sketch_folder(source, target, "inverse", watch=lambda *what: seen.append(what))
    assert seen == [("images", done, 7) for done in (5, 6, 7)]


# ---- the sheet


def test_the_sheet_shows_each_photograph_over_its_drawing(source, target, tmp_path):
    for number in range(5):
        put(source, f"{number}.png", np.full((10, 20, 3), (200, 10 * number, 0), np.uint8))
    sketch_folder(source, target, "inverse", sheet=tmp_path / "deep" / "sheet.png")
    sheet = opened(tmp_path / "deep" / "sheet.png")
    tile, gap = sketching.TILE, sketching.GAP
    assert sheet.shape == (2 * tile + 3 * gap, gap + 5 * (tile + gap), 3)
    for number in range(5):
        left = gap + number * (tile + gap)
        photo = sheet[gap + tile // 2 : gap + tile, left : left + tile]  # twice as wide as high, it stands at the foot
        drawn = sheet[2 * gap + tile : 2 * gap + tile + tile // 2, left : left + tile]
        assert np.abs(photo - (200, 10 * number, 0)).max() <= 1
        assert np.abs(drawn - (255 - 0.299 * 200 - 0.587 * 10 * number)).max() <= 1


@pytest.mark.parametrize(("num", "shown"), [(1, [0]), (3, [0, 1, 2]), (24, [*range(24)]), (47, [*range(0, 48, 2)])])
def test_the_sheet_is_evenly_spaced_over_the_names(tmp_path, num, shown):
    photos = [put(tmp_path, f"{number:03}.png", np.full((4, 4, 3), 5 * number, np.uint8)) for number in range(num)]
    contact_sheet([(photo, photo) for photo in photos], tmp_path / "sheet.png")
    sheet = opened(tmp_path / "sheet.png")
    tile, gap = sketching.TILE, sketching.GAP
    rows = range(gap + tile // 2, sheet.shape[0], 2 * tile + 3 * gap)
    seen = [int(sheet[y, gap + column * (tile + gap) + tile // 2, 0]) for y in rows for column in range(8)
            if gap + column * (tile + gap) + tile // 2 < sheet.shape[1]]  # fmt: skip
    assert [value // 5 for value in seen[: len(shown)]] == shown
    assert set(seen[len(shown) :]) <= {0xB8}


def test_the_sheet_takes_images_of_any_shape(source, target, tmp_path):
    for name, shape in {"a.png": (1, 1), "b.png": (1, 900), "c.png": (700, 2), "d.png": (400, 300)}.items():
        put(source, name, noise(*shape))
    sketch_folder(source, target, "inverse", sheet=tmp_path / "sheet.png")
    assert opened(tmp_path / "sheet.png").shape[1] == sketching.GAP + 4 * (sketching.TILE + sketching.GAP)
    done = sketch_folder(source, target, "inverse", sheet=tmp_path / "again.png")  # of what was there
    assert done.num_made == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


@pytest.mark.real
def test_every_real_face_is_drawn(real_data, target, tmp_path):
    faces = sorted((Path(real_data) / "utkface").rglob("*.jpg"))[::100]
    (tmp_path / "faces").mkdir()
    for path in faces:
        (tmp_path / "faces" / path.name).symlink_to(path)
    done = sketch_folder(tmp_path / "faces", target, "grey")
    assert len(done.unreadable) == len(faces) > 100  # links lead out of the folder
    for path in faces:
        (tmp_path / "faces" / path.name).unlink()
        (tmp_path / "faces" / path.name).write_bytes(path.read_bytes())
    assert sketch_folder(tmp_path / "faces", target, "grey").num_made == len(faces)
