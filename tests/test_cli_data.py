"""`evenlens data`, typed well and badly."""

import inspect
import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from evenlens import cli_data, datasets
from evenlens.data import downloads, own
from evenlens.data.downloads import Download
from evenlens.datasets.cifar100 import CIFAR100
from tests import fake, test_merging
from tests.test_base import lay
from tests.test_downloads import checksum, server  # noqa: F401 - a fixture
from tests.test_merging import bytes_of, part_of, photos, rows

COMMANDS = {found.callback.__name__: found.callback for found in cli_data.app.registered_commands}
ASKED = ("--label", "smiling", "--sensitive", "gender")


def left(folder):
    """Every file below a folder, but for the cache."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}


# ---- help


def test_the_commands_are_these(command):
    assert [*COMMANDS] == ["check", "prepare", "summary", "add", "merge", "download"]
    said = command("data").out + command("data", "--help").out
    assert all(re.search(rf"^│ {name} ", said, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_and_breaks_no_line_of_its_own(name, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    said = [line.rstrip() for line in command("data", name, "--help").out.splitlines()]
    _, _, rest = inspect.getdoc(COMMANDS[name]).partition("\n\n")
    for line in re.sub(r"\[/?bold\]", "", rest).splitlines():
        assert f" {line}".rstrip() in said
    examples = [line.strip() for line in rest.splitlines() if line.startswith("  evenlens ")]
    assert any(example.startswith(f"evenlens data {name} ") for example in examples)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_a_command_that_parses(name, command, monkeypatch):
    monkeypatch.setattr(CIFAR100, "downloads", ())
    for example in re.findall(rf"^ +(evenlens data {name} .*)$", inspect.getdoc(COMMANDS[name]), re.MULTILINE):
        ended = command(*example.split()[1:])
        assert ended.code == 2  # there are no such data here
        assert "No such option" not in ended.err
        assert "Missing argument" not in ended.err


# ---- what is refused


@pytest.mark.parametrize(("words", "said"), [
    (["check"], "Missing argument"),
    (["chek", "photos"], "No such command 'chek'"),
    (["check", "utkfac"], "Unknown data set 'utkfac'; did you mean 'utkface'?"),
    (["check", "some/where"], "There is no folder or table some/where"),
    (["check", "utkface", "--unit", "person"], "utkface knows its own columns"),
    (["check", "utkface"], "UTKFace is not at"),
    (["check", "photos", "--unit", "person"], "change 'unit' there"),
    (["check", "photos", "--bins", "age"], "--bins age is not right: write a column and rising numbers"),
    (["check", "photos", "--bins", "=3"], "--bins =3 is not right"),
    (["check", "photos", "--size", "8"], "data.size=8 is not allowed"),
    (["check", "photos", "--size", "big"], "Invalid value for '--size'"),
    (["check", "photos", "--fit", "strech"], "data.fit='strech' is not allowed"),
    (["check", "photos", "data.sede=3"], "'sede'"),
    (["check", "photos", "train.epoch=3"], "did you mean 'epochs'?"),
    (["check", "photos", "smiling"], "'smiling' is no setting"),
    (["summary", "photos", "--label", "smilling"], "Unknown column of photos 'smilling'; did you mean 'smiling'?"),
    (["summary", "photos", "--plot", "counts.docx"], "counts.docx"),
    (["prepare", "bare"], "Say which column is to be predicted with --label"),
    (["prepare", "bare", "--label", "smiling"], "does not say whose treatment is compared"),
    (["add", "photos"], "Missing argument"),
    (["add", "bare", "photos"], "bare has no dataset.toml: make one with evenlens data prepare"),
    (["add", "photos", "nothing"], "Unknown data set 'nothing'"),
    (["add", "photos", "bare", "--unit", "persom"], "Unknown column of labels.csv 'persom'"),
    (["add", "photos", "other"], "cannot be taken: other/50.png: unknown smiling 'broadly'"),
    (["merge", "new", "bare"], "Say which column is to be predicted with --label"),
    (["merge", "new", "bare", "--label", "smile"], "Unknown column of labels.csv 'smile'; did you mean 'smiling'?"),
    (["merge", "photos", "bare", "--label", "gender"], "photos is there, and is about smiling by gender"),
    (["merge", "bare", "photos", *ASKED], "and no dataset.toml: make it a data set"),
    (["merge", "new", "avatars", *ASKED], "Avatars cannot be merged"),
    (["download"], "Missing argument"),
    (["download", "cifar10"], "Unknown data set 'cifar10'; did you mean 'cifar10"),
    (["download", "utkface"], "UTKFace cannot be fetched for you (non-commercial research only; "),
])  # fmt: skip
def test_what_is_refused_is_said_in_a_sentence_and_leaves_nothing(words, said, refused, tmp_path):
    photos(tmp_path / "photos", rows(12))
    test_merging.lay(tmp_path / "bare", rows(4, 20))
    test_merging.lay(tmp_path / "other", rows(1, 50, smiling="broadly"))
    before = left(tmp_path)
    assert said in refused("data", *words)
    assert left(tmp_path) == before
    assert not (tmp_path / "new").exists()


# ---- look, decode


def test_a_folder_is_checked_prepared_and_counted(command, tmp_path):
    folder = lay(tmp_path / "photos", range(48))
    (folder / own.FILE).unlink()
    checked = command("data", "check", "photos", *ASKED, "--size", 16, "--json", "found.json")
    assert (checked.code, checked.err.strip()) == (0, "")
    assert "Nothing has to be mended." in checked.out
    found = json.loads(Path("found.json").read_text())
    assert (found["problems"], found["num_images"], found["summary"]["unused"]) == ([], 48, 0)
    assert not (folder / own.FILE).exists()

    prepared = command("data", "prepare", "photos", *ASKED, "--size", 16)
    assert prepared.code == 0
    assert "Decoded before." in prepared.out
    assert f"Now: evenlens train {folder} METHOD\n" in prepared.out
    assert own.read(folder).size == 16

    counted = command("data", "summary", "photos", "--plot", "counts.svg", "--json", "deep/counts.json")
    assert (counted.code, counted.err.strip()) == (0, "")
    assert Path("counts.svg").read_text().startswith("<svg")
    assert (
        sum(sum(map(sum, part)) for part in json.loads(Path("deep/counts.json").read_text())["counts"].values()) == 48
    )


def test_prepare_says_with_which_settings_its_images_are_used(command, tmp_path):
    folder = lay(tmp_path / "photos", range(48))
    (folder / own.FILE).unlink()
    said = command("data", "prepare", "photos", *ASKED, "--size", 16, "--fit", "short_side", "data.seed=3").out
    then = re.search(r"Now: evenlens (train .*) METHOD (.*)$", said, re.MULTILINE)
    assert then[2] == "data.fit=short_side data.seed=3"
    stores = [*tmp_path.glob("cache/images/*")]
    short = ["train.epochs=1", "precision=fp32", "select=last"]
    assert command(*then[1].split(), "erm", *then[2].split(), *short).code == 0
    assert [*tmp_path.glob("cache/images/*")] == stores


def test_what_somebody_wrote_into_a_description_stays(command, tmp_path):
    folder = lay(tmp_path / "photos", range(48))
    (folder / own.FILE).write_text(f"{(folder / own.FILE).read_text()}\n# faces of our own\n")
    written = (folder / own.FILE).read_bytes()
    assert "48 images in" in command("data", "prepare", "photos", "--size", 16).out.replace("\n", " ")
    assert (folder / own.FILE).read_bytes() == written


def test_check_says_what_must_be_mended_and_ends_with_2(refused, tmp_path):
    folder = lay(tmp_path / "photos", range(48))
    (folder / "3.png").write_bytes(b"no image")
    (folder / "5.png").unlink()
    before = left(tmp_path)
    said = refused("data", "check", "photos", "--json", "found.json")
    assert said.startswith("Error: 2 problems.")
    assert "3.png" in said
    assert "5.png" in said
    assert len(json.loads(Path("found.json").read_text())["problems"]) == 2
    assert left(tmp_path) == before | {tmp_path / "found.json": Path("found.json").read_bytes()}


def test_check_reads_no_image_where_it_shall_not(command, tmp_path):
    folder = lay(tmp_path / "photos", range(48))
    (folder / "3.png").write_bytes(b"no image")
    assert command("data", "check", "photos", "--no-images").code == 0


def test_a_data_set_of_the_field_is_counted_by_its_name(command, tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLENS_DATA", str(fake.fairface(tmp_path / "data", 60)))
    said = command("data", "summary", "fairface", "--json", "counts.json")
    assert said.code == 0
    assert json.loads(Path("counts.json").read_text())["target"] == "gender"
    assert "FairFace: gender by race" in said.out


# ---- add, merge


def test_images_are_added_and_training_goes_on_from_a_run(command, tmp_path):
    folder = lay(tmp_path / "photos", range(32))
    lay(tmp_path / "batch", range(28, 60))
    short = ["train.epochs=1", "precision=fp32", "select=last", "data.size=16"]
    assert command("train", "photos", "erm", *short).code == 0
    (first,) = Path("runs/photos/erm").iterdir()
    before = part_of_names(folder)
    added = command("data", "add", "photos", "batch", "--json", "added.json")
    assert (added.code, added.err.strip()) == (0, "")
    assert "batch: 28 added" in added.out
    assert "4 copies left out: batch/0.png = 28.png; " in added.out
    assert "photos: 32 kept; now 28 train, 16 val, 16 test." in added.out
    told = json.loads(Path("added.json").read_text())
    assert (told["folder"], told["added"], told["kept"], len(told["copies"])) == ("photos", {"batch": 28}, 32, 4)
    assert {name: part for name, part in part_of_names(folder).items() if name in before} == before
    assert command("train", "photos", "erm", f"base={first}/", *short).code == 0
    held = bytes_of(folder)
    again = command("data", "add", "photos", "batch")
    assert "batch: 0 added" in again.out
    assert bytes_of(folder) == held


def part_of_names(folder):
    found = test_merging.names_by_part(folder)
    return {name: part for part, names in found.items() for name in names}


def test_a_data_set_can_be_added_to_by_its_name(command, tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLENS_DATA", str(tmp_path / "data"))
    folder = photos(tmp_path / "data" / "photos", rows(12))
    test_merging.lay(tmp_path / "batch", rows(4, 20))
    assert f"{folder}: 12 kept" in command("data", "add", "photos", "batch").out
    assert {20, 21, 22, 23} < {*part_of(folder)}


def test_several_become_one_and_repeating_it_changes_nothing(command, tmp_path):
    photos(tmp_path / "one", rows(6))
    test_merging.lay(tmp_path / "two", rows(6, 4, smiling=lambda k: ("no", "broadly")[k % 2], gender="f"))
    words = ["data", "merge", "faces", "one", "two/labels.csv", *ASKED]
    ended = command(*words, "--new-levels", "--skip-bad")
    assert (ended.code, ended.err.strip()) == (0, "")
    assert "one: 6 added" in ended.out
    assert "labels: 4 added" in ended.out
    assert "1 copies left out: labels/4.png = one/4.png" in ended.out
    assert "1 rows left out: labels/5.png: the same image as one/5.png, with other labels" in ended.out
    held = bytes_of(tmp_path / "faces")
    assert command(*words, "--skip-bad").code == 0
    assert bytes_of(tmp_path / "faces") == held


def test_everything_that_was_noticed_is_told(command, tmp_path):
    photos(tmp_path / "photos", rows(12, person=lambda k: f"p{k}", glasses=lambda k: f"{k % 2}"), unit="person")
    batch = rows(8, 20, person="p1", split=lambda k: ("train", "val", "test", "")[k % 4])
    test_merging.lay(tmp_path / "batch", batch)
    said = command("data", "add", "photos", "batch").out
    assert "batch has no glasses: left empty" in said
    assert "2 left out: they are in no part where they come from" in said
    assert re.search(r"\d kept with their unit: batch/\d\d.png", said)


def test_rows_that_cannot_be_taken_are_all_in_the_json_file(refused, command, tmp_path):
    folder = photos(tmp_path / "photos", rows(12))
    listed = [*rows(5, 20, smiling="broadly"), {**rows(1, 30)[0], "image": None}]
    test_merging.lay(tmp_path / "batch", listed)
    before = bytes_of(folder)
    said = refused("data", "add", "photos", "batch", "--json", "found.json")
    assert "6 rows cannot be taken: " in said
    assert "(and 3 more)" in said
    assert "--skip-bad" in said
    assert "--new-levels" in said
    problems = json.loads(Path("found.json").read_text())["problems"]
    assert sorted(name for name, _ in problems) == [f"batch/{k}.png" for k in (20, 21, 22, 23, 24, 30)]
    assert bytes_of(folder) == before
    assert "batch: 5 added" in command("data", "add", "photos", "batch", "--new-levels", "--skip-bad").out


@pytest.mark.parametrize("words", [[], ["--prefixes"]])
def test_prefixes_are_honoured_on_request(words, command, tmp_path):
    test_merging.lay(tmp_path / "batch", rows(40, file=lambda k: f"test_{k}.png"))
    command("data", "merge", "faces", "batch", *ASKED, *words)
    assert ({*part_of(tmp_path / "faces").values()} == {"test"}) == bool(words)


def test_the_unit_of_new_tables_is_named_by_an_option(command, tmp_path):
    test_merging.lay(tmp_path / "batch", rows(40, who=lambda k: f"p{k % 5}"))
    command("data", "merge", "faces", "batch", *ASKED, "--unit", "who")
    assert len({(k % 5, part) for k, part in part_of(tmp_path / "faces").items()}) == 5


# ---- fetch


@pytest.fixture
def published(server, tmp_path, monkeypatch):  # noqa: F811 - a fixture
    """CIFAR-100, small and made up, as its publisher packs it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(fake.cifar100(tmp_path / "publisher") / "cifar100" / "cifar-100-binary", "cifar-100-binary")
    server.content = packed.getvalue()
    url = server.url.replace("file.bin", "cifar-100-binary.tar.gz")
    wanted = Download(url, checksum(server.content), len(server.content))
    monkeypatch.setattr(CIFAR100, "downloads", (wanted,))
    return server


def test_what_may_be_fetched_is_fetched_and_is_a_data_set_then(published, command, tmp_path):
    ended = command("data", "download", "cifar100", "--root", "data")
    assert (ended.code, ended.err.strip()) == (0, "")
    assert "cifar-100-binary.tar.gz: complete." in ended.out
    assert f"Terms: {CIFAR100.licence}. Please cite {CIFAR100.citation}." in ended.out.replace("\n", " ")
    assert command("data", "summary", "cifar100", "data.root=data").code == 0
    assert command("data", "download", "cifar100", "--root", "data").code == 0
    assert len(published.asked) == 1


def test_a_download_that_broke_off_goes_on(published, command, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("EVENLENS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(downloads, "PAUSES", ())
    published.answers = ["cut"]
    assert "the same command goes on where this one was" in refused("data", "download", "cifar100")
    assert command("data", "download", "cifar100").code == 0
    assert published.asked == [None, f"bytes={len(published.content) // 2}-"]


def test_another_file_than_was_published_is_refused(published, refused, tmp_path):
    published.content = bytes(len(published.content))
    assert "gave a file with the checksum" in refused("data", "download", "cifar100", "--root", "data")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("name", [name for name in datasets.names() if not datasets.get(name).downloads])
def test_for_what_may_not_be_fetched_it_says_what_to_fetch_and_where_to_put_it(name, refused, tmp_path):
    kind = datasets.get(name)
    said = refused("data", "download", name, "--root", "data")
    assert kind.how_to_get in said
    assert kind.licence in said
    assert not (tmp_path / "data").exists()
