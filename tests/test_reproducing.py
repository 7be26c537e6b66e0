"""What a recipe is expected to give: written, read, priced, and held against what comes out."""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from evenlens import expected as expecting
from evenlens import recipes, reproducing, run, sweeps
from evenlens.config import read_toml
from evenlens.errors import UserError
from evenlens.report import summary

ROOT = Path(__file__).parent.parent
RECORDED = [
    *reproducing.bundled(),
    *(path for path in sorted((ROOT / "recipes").rglob("*.toml")) if "expected" in read_toml(path)),
]
TASK = "tiny, place by tint"
RECIPE = """\
# A comment that stays.
title = "Small"
dataset = "tiny"
method = ["erm", "oversampling"]
seed = [1, 2]
precision = "fp32"

[train]
epochs = 1
batch_size = 64

[data]
num = 400
correlation = 0.7
"""


def numbered(values):
    return {TASK: [
        SimpleNamespace(label=label, numbers={
            name: SimpleNamespace(seeds=seeds, value=statistics.fmean(seeds)) for name, seeds in named.items()
        })
        for label, named in values.items()
    ]}  # fmt: skip


def wanted(rows, metrics=("accuracy",), **changes):
    content = {
        "recorded": "2026-01-01", "device": "an abacus", "precision": "fp32", "seconds": 100.0, "step_seconds": 0.5,
        "megabytes": 8.0, "rule": "by hand", "versions": {"evenlens": "0", "python": "3", "torch": "2"},
        "metrics": [*metrics], "fingerprints": {TASK: ["0123456789abcdef"]}, "values": {TASK: rows}, **changes,
    }  # fmt: skip
    return expecting.check(content, Path("recipe.toml"))


@pytest.fixture
def in_process(monkeypatch):
    """Let sweeps make their runs here, where the tests' data set is known."""
    made = []

    def sweep(configs, runs, engine, *, listen, watch_images, further):
        outcome = sweeps.Outcome()
        while configs:
            for config in configs:
                before = {*runs.glob("*/*/*")}
                folder = run.train(config, runs).folder
                if folder not in outcome.folders:
                    outcome.folders.append(folder)
                made.extend({folder} - before)
            configs = further(outcome.folders)
        return outcome

    monkeypatch.setattr(sweeps, "sweep", sweep)
    return made


# ---- the file


def test_what_is_written_is_read_and_the_rest_of_the_recipe_stays(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    rows = {"erm": {"value": [0.5, math.nan], "tolerance": [0.02, math.nan]},
            'x [sparsity=0.9, path="a"]': {"value": [1e-05, 1.0], "tolerance": [0.0, 0.1]}}  # fmt: skip
    first = wanted(rows, ("accuracy", "accuracy_worst"), device='"quoted" ± é')
    expecting.write(path, first)
    assert path.read_text().startswith(RECIPE)
    assert repr(reproducing.read(path)[1]) == repr(first)  # in which NaN is like NaN
    assert reproducing.read(path)[0] == recipes.expand(read_toml(path) | {"expected": {}}, "small")
    second = wanted({"erm": {"value": [0.25], "tolerance": [0.0]}})
    expecting.write(path, second)
    assert reproducing.read(path)[1] == second
    assert path.read_text().count("# Written by") == path.read_text().count("[expected]") == 1
    assert not list(tmp_path.glob(".*"))


def test_nothing_behind_it_is_lost(tmp_path):
    path = tmp_path / "small.toml"
    expecting.write((path.write_text(RECIPE), path)[1], wanted({"erm": {"value": [0.5], "tolerance": [0.1]}}))
    text = path.read_text() + "\n[net]\nbackbone = 'resnet18'\n"
    path.write_text(text)
    with pytest.raises(UserError, match="is not the last"):
        expecting.write(path, wanted({}))
    assert path.read_text() == text


@pytest.mark.parametrize(("change", "said"), [
    ({"seconds": 0.0}, r"\[expected\] seconds cannot be read"),
    ({"device": 3}, r"\[expected\] device cannot be read"),
    ({"more": 1}, r"\[expected\] more cannot be read"),
    ({"metrics": ["acuracy"]}, "Unknown metric 'acuracy'; did you mean 'accuracy'"),
    ({"metrics": ["accuracy", "accuracy_worst"]}, "1 values and 1 tolerances of erm"),
    ({"values": {TASK: {"erm": {"value": [0.5], "tolerance": [-0.1]}}}}, "has the tolerance -0.1 of erm"),
    ({"values": {TASK: {"erm": {"value": [0.5], "tolerance": [math.nan]}}}}, "has the tolerance nan of erm"),
    ({"values": {TASK: {"erm": {"value": [0.5]}}}}, "tolerance cannot be read"),
], ids=["no time", "no text", "unknown", "metric", "too few", "negative", "undefined", "none"])  # fmt: skip
def test_a_record_that_cannot_be_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        wanted({"erm": {"value": [0.5], "tolerance": [0.1]}}, **change)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem + " in " + path.parent.name)
def test_every_record_of_the_project_is_of_its_recipe(path):
    recipe, expected = reproducing.read(path)
    questions = expecting.asked(sweeps.complete(recipe.configs))
    assert {name: len(images) for name, images in questions.items()} == {
        name: len(one) for name, one in expected.fingerprints.items()
    }
    assert {*expected.values} == {*questions}
    methods = {config.method for config in recipe.configs}
    assert {label.partition(" ")[0] for rows in expected.values.values() for label in rows} <= methods


def test_something_comes_with_the_package():
    assert [path for path in reproducing.bundled() if reproducing.read(path)[1]]
    pattern = re.search(r"^evenlens = (\[.*)$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert '"reproducible/*.toml"' in pattern[1]


# ---- tolerances


def test_a_tolerance_is_that_of_the_rule():
    """By hand: standard deviations .01, .03 and .02, their median .02."""
    rows = {
        "a": {"accuracy": [0.79, 0.8, 0.81]}, "b": {"accuracy": [0.67, 0.7, 0.73]}, "c": {"accuracy": [0.48, 0.5, 0.52]}
    }  # fmt: skip
    made = expecting._expect(numbered(rows)[TASK], ["accuracy"])
    assert [row.value for row in made.values()] == [[0.8], [0.7], [0.5]]
    off = [4 * spread * math.sqrt(2 / 3) for spread in (0.02, 0.03, 0.02)]
    assert [row.tolerance[0] for row in made.values()] == pytest.approx(off, abs=6e-5)


def test_a_tolerance_is_never_below_half_a_point_and_nothing_is_expected_of_what_is_undefined():
    rows = {"a": {"accuracy": [0.8, 0.8], "accuracy_worst": [math.nan, 0.5]},
            "b": {"accuracy": [0.7, 0.7], "accuracy_worst": [0.4, 0.6]}}  # fmt: skip
    made = expecting._expect(numbered(rows)[TASK], ["accuracy", "accuracy_worst"])
    assert [row.tolerance[0] for row in made.values()] == [expecting.LEAST] * 2
    assert math.isnan(made["a"].value[1])
    assert math.isnan(made["a"].tolerance[1])
    assert made["b"].tolerance[1] == pytest.approx(4 * math.sqrt(0.02), abs=6e-5)
    expected = wanted({label: row.model_dump() for label, row in made.items()}, ("accuracy", "accuracy_worst"))
    assert len(reproducing.compare(expected, numbered(rows))) == 3


# ---- the comparison


@pytest.mark.parametrize(("value", "tolerance", "verdict"), [
    (0.8, 0.0, "within"), (0.8, 0.1, "within"), (0.71, 0.1, "within"), (0.69, 0.1, "outside"), (0.9101, 0.1, "outside"),
])  # fmt: skip
def test_a_value_is_within_its_tolerance_or_outside(value, tolerance, verdict):
    expected = wanted({"erm": {"value": [value], "tolerance": [tolerance]}})
    [found] = reproducing.compare(expected, numbered({"erm": {"accuracy": [0.78, 0.82]}}))
    assert found.verdict == verdict
    assert bool(reproducing.complaint([found])) == (verdict != "within")


def test_what_is_wrong_is_named_with_how_far_it_is_off():
    row = {"value": [0.9], "tolerance": [0.05]}
    expected = wanted({"erm": row, "mmd": row, "mfd": row})
    found = numbered({"erm": {"accuracy": [0.7, 0.8]}, "mmd": {"accuracy": [math.nan, 0.9]}})
    values = reproducing.compare(expected, found)
    assert [value.verdict for value in values] == ["outside", "undefined", "not made"]
    assert reproducing.complaint(values) == (
        f"3 of 3 values did not come out: accuracy of erm ({TASK}) is 0.7500, 0.1000 beyond 0.9000 ± 0.0500; "
        f"accuracy of mmd ({TASK}) is undefined, expected 0.9000 ± 0.0500; "
        f"accuracy of mfd ({TASK}) is not made, expected 0.9000 ± 0.0500."
    )
    assert reproducing.compare(expected, {}) == [value._replace(found=None) for value in values]


def test_other_versions_are_told():
    told = {"versions": {"evenlens": "0", "python": "3", "torch": "9"}, "device": "an abacus", "precision": "bf16"}
    made = [SimpleNamespace(environment=told), SimpleNamespace(environment={**told, "precision": "fp32"})]
    expected = wanted({})
    assert reproducing.differences(expected, made) == [
        "torch: 2 in the record, 9 here", "precision: fp32 in the record, bf16 and fp32 here"
    ]  # fmt: skip


# ---- before the runs


def test_configurations_are_bound_to_the_data_of_the_record():
    tasks = [{"dataset": "tiny", "data": {"num": num, "view": ["rgb", "grey"]}} for num in (400, 500)]
    tasks.append({"dataset": "tiny", "data": {"sensitive": "half"}})
    recipe = recipes.expand({"method": ["erm", "mmd"], "tasks": tasks})
    prints = {TASK: ["a" * 16, "b" * 16], "tiny, place by half": ["c" * 16]}
    bound = reproducing.complete(recipe, wanted({}, fingerprints=prints))
    assert [config.data.fingerprint[0] for config in bound.configs] == [*"aaaabbbbcc"]
    del prints["tiny, place by half"]
    with pytest.raises(UserError, match=r"asks tiny, place by half, and its \[expected\] does not say of which data"):
        reproducing.complete(recipe, wanted({}, fingerprints=prints))


def test_all_data_that_are_missing_are_named_at_once():
    tasks = [{"dataset": name} for name in ("utkface", "tiny", "fairface")]
    configs = sweeps.complete(recipes.expand({"method": "erm", "tasks": tasks}).configs)
    with pytest.raises(UserError, match=r"UTKFace is not at .* Fetch .*FairFace is not at .* Fetch"):
        reproducing.check_data(configs)
    assert reproducing.check_data(configs[1:2]) == ("Tiny",)


def test_the_cost_is_that_of_the_runs_that_are_not_there_at_the_pace_of_this_machine(tmp_path, monkeypatch):
    recipe = recipes.expand({"method": "erm", "dataset": "tiny", "seed": [1, 2, 3, 4]})
    expected = wanted({})
    recipe = reproducing.complete(recipe, expected)
    run.folder_of(recipe.configs[0], tmp_path).mkdir(parents=True)
    monkeypatch.setattr(reproducing, "step_seconds", lambda config, jobs: 1.0)
    assert reproducing.cost(recipe, expected, tmp_path, 2) == (4, 0, 1, 2, ("Tiny",), 2.0, 75.0, 6.0)
    for config in recipe.configs[1:]:
        run.folder_of(config, tmp_path).mkdir()
    assert reproducing.cost(recipe, expected, tmp_path, 2)[6:] == (0, 0)


def test_a_step_is_timed_with_the_threads_of_a_worker(monkeypatch):
    import torch

    from evenlens import nets, processes

    seen = []
    timed = nets.step_seconds
    monkeypatch.setattr(processes, "cores", lambda: 6)
    monkeypatch.setattr(nets, "step_seconds", lambda *given: (seen.append(torch.get_num_threads()), timed(*given))[1])
    [config] = sweeps.complete(recipes.expand({"method": "erm", "dataset": "tiny"}).configs)
    before = torch.get_num_threads()
    assert 0 < reproducing.step_seconds(config, 3) < 60
    assert {*seen} == {2}
    assert torch.get_num_threads() == before


# ---- the command


def test_what_was_recorded_comes_out_again_and_what_did_not_is_said(command, tmp_path, in_process):
    """Record, reproduce from nothing; then expect another value, and other data."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    before = command("reproduce", path)
    assert (before.code, before.out) == (2, "")
    assert "does not say what to expect" in before.err
    assert command("reproduce", path, "--record").code == 0
    expected = reproducing.read(path)[1]
    assert expected.metrics == [*summary.COLUMNS]
    assert {*expected.values[TASK]} == {"erm", "oversampling"}
    sizes = sum(file.stat().st_size for folder in in_process for file in folder.iterdir())
    assert expected.megabytes == pytest.approx(sizes / 1e6, abs=0.06)
    logged = sum(entry["seconds"] + entry["evaluation_seconds"] for f in in_process for entry in run.Run.open(f).log)
    assert expected.seconds == pytest.approx(logged, abs=0.06)
    in_process.clear()
    again = command("reproduce", path, "--runs", "again", "--json", "out/found.json")
    assert again.code == 0, again.err
    assert len(in_process) == 4
    assert "0 of the 4 are there" in again.out
    assert "Data: Tiny." in again.out
    assert "all 10 values are within" in again.out
    assert "Computed otherwise" not in again.out
    found = json.loads((tmp_path / "out" / "found.json").read_text())
    assert found["reproduced"] is True
    assert all(abs(value["found"] - value["expected"]) < 6e-5 for value in found["values"])
    assert found["fingerprints"] == expected.fingerprints

    rows = expected.values[TASK]
    rows["erm"].value[0] += 0.5
    expecting.write(path, expected)
    wrong = command("reproduce", path, "--runs", "again", "--json", "found.json")
    assert wrong.code == 1
    assert "4 of the 4 are there" in wrong.out
    assert "1 of 10 values did not come out: accuracy of erm (tiny, place by tint) is " in " ".join(wrong.err.split())
    assert json.loads((tmp_path / "found.json").read_text())["values"][0]["verdict"] == "outside"

    in_process.clear()
    path.write_text(path.read_text().replace(expected.fingerprints[TASK][0], "0123456789abcdef"))
    other = command("reproduce", path, "--runs", "again", "--json", "other.json")
    assert other.code == 2
    assert "they are not the images, labels or split" in other.err
    assert not in_process
    assert not (tmp_path / "other.json").exists()


def test_of_a_search_that_draws_by_scores_all_draws_are_made_again(command, tmp_path, in_process):
    path = tmp_path / "small.toml"
    searched = 'method = "mfd"\nsearch = 3\nsearch_sampler = "tpe"'
    path.write_text(RECIPE.replace('method = ["erm", "oversampling"]', searched))
    assert command("reproduce", path, "--record").code == 0
    assert len(in_process) == 6
    assert len(reproducing.read(path)[1].values[TASK]) == 1
    in_process.clear()
    again = command("reproduce", path, "--runs", "again")
    assert again.code == 0, again.err
    assert len(in_process) == 6
    assert "0 of the 2 are there. Up to 4 more, which the search draws" in " ".join(again.out.split())
    assert "all 5 values are within" in again.out


@pytest.mark.parametrize(("words", "said"), [
    (["nothing"], "Unknown recipe 'nothing'"),
    (["drawn-face"], "did you mean 'drawn-faces'"),
    (["nowhere.toml"], "There is no file nowhere.toml"),
    (["--record"], "name it"),
    (["--json", "x.json"], "name it"),
    (["one.toml", "--record"], "seed 7 alone"),
    (["faces.toml", "--record"], "UTKFace is not at"),
    (["drawn-faces", "--json", "."], "is a folder"),
], ids=["unknown", "nearly", "no file", "record nothing", "no JSON", "one seed", "no data", "a folder"])  # fmt: skip
def test_what_cannot_be_reproduced_is_said_before_anything_is_run(refused, tmp_path, words, said):
    (tmp_path / "one.toml").write_text('dataset = "tiny"\nmethod = "erm"\nseed = 7\n')
    (tmp_path / "faces.toml").write_text('dataset = "utkface"\nmethod = "erm"\nseed = [1, 2]\n')
    assert said in refused("reproduce", *words)
    assert not (tmp_path / "runs").exists()


def test_without_a_name_what_there_is_is_listed_and_torch_is_not_loaded(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "other.toml").write_text("anything = 1\n")
    path = tmp_path / "recipes" / "small.toml"
    path.write_text(RECIPE.replace('"tiny"', '"avatars"'))
    expecting.write(path, wanted({"erm": {"value": [0.5], "tolerance": [0.1]}}, seconds=400.0))
    script = (
        "import sys, evenlens.cli\nsys.argv = ['evenlens', 'reproduce']\n"
        "try:\n    evenlens.cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', sorted({'torch', 'timm', 'altair'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "LOADED []" in ended.stdout, ended.stderr
    assert "drawn-faces" in ended.stdout
    lines = [line.split() for line in ended.stdout.splitlines()]
    place = lines.index(["recipes/small.toml", "4", "7", "min", "8"])
    assert lines[place + 1] == ["Avatars"]
    assert "other.toml" not in ended.stdout


@pytest.mark.slow
def test_a_recipe_is_recorded_and_reproduced_by_processes(command, tmp_path):
    path = tmp_path / "small.toml"
    few = "num_train = 200\nnum_val = 80\nnum_test = 80\n"
    head = RECIPE.partition("[data]")[0].replace('"tiny"', '"avatars"').replace(', "oversampling"', "")
    path.write_text(f"{head}[data]\nsize = 32\n{few}")
    assert command("reproduce", path, "--record").code == 0
    again = command("reproduce", path, "--runs", "again")
    assert again.code == 0, again.err
