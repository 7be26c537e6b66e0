"""Many runs: all are made once, whatever happens to one of them, to a worker, to the sweep itself or to the disk."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from evenlens import run, scheduling, stores, sweep_records, sweeps, workers
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.recipes import read_recipe
from evenlens.scheduling import Event
from evenlens.sweeps import sweep
from evenlens.workers import Engine, Resources, local
from tests import worker
from tests.worker import SHORT, InProcess, configs_of


@pytest.mark.parametrize(("given", "said"), [
    ({"jobs": 0}, "jobs=0 runs nothing"),
    ({"name": "rey"}, "Unknown engine 'rey'; did you mean 'ray'?"),
    ({"address": "here:1"}, "address=here:1 is of a Ray cluster"),
], ids=["jobs", "engine", "address"])  # fmt: skip
def test_an_engine_that_is_none_is_refused(given, said):
    with pytest.raises(UserError, match=said):
        Engine(**given)


@pytest.mark.parametrize(("given", "said"), [
    ({"cores": 0}, "cores=0"), ({"memory": 0}, "memory=0"), ({"gpu": 1.5}, "gpu=1.5"), ({"gpu": -1.0}, "gpu=-1"),
], ids=["cores", "memory", "two GPUs", "less than none"])  # fmt: skip
def test_resources_that_are_none_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        Resources(**given)


def test_as_many_go_side_by_side_as_fit(monkeypatch):
    monkeypatch.setattr(local, "cores", lambda: 8)
    monkeypatch.setattr(local, "memory", lambda: 10 * 10**9)
    monkeypatch.setattr(local, "_gpus", lambda: [])
    fitting = [local.fitting(Engine(resources=Resources(*given))) for given in [(), (3,), (1, 4 * 10**9)]]
    assert fitting == [8, 2, 2]
    assert local.fitting(Engine(jobs=20)) == 20
    with pytest.raises(UserError, match=r"cores=9 for a run is more than this machine has \(8 cores\)"):
        local.fitting(Engine(resources=Resources(9)))
    with pytest.raises(UserError, match="memory=11GB for a run"):
        local.fitting(Engine(resources=Resources(1, 11 * 10**9)))
    with pytest.raises(UserError, match=r"gpu=0.5 asks for a share of a GPU, and none is seen"):
        local.fitting(Engine(resources=Resources(gpu=0.5)))
    monkeypatch.setattr(local, "_gpus", lambda: ["0", "1"])
    gpus = [local.fitting(Engine(resources=Resources(gpu=share))) for share in (None, 0.5, 0.3, 0)]
    assert gpus == [2, 4, 6, 8]


def test_a_process_sees_the_gpus_of_its_units_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "_gpus", lambda: ["2", "5"])
    four = local.LocalWorkers(Engine(jobs=4, resources=Resources(gpu=0.5)), stores.open_store(tmp_path))
    assert [four._visible((unit,)) for unit in range(4)] == ["2", "5", "2", "5"]
    assert four._visible((0, 1)) == "2,5"
    assert local.LocalWorkers(Engine(resources=Resources(gpu=0)), stores.open_store(tmp_path))._visible((0,)) == ""


def test_an_unknown_name_in_one_run_is_refused_before_any_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_data", None)
    configs = [make_config("tiny", method, SHORT) for method in ("erm", "emr")]
    with pytest.raises(UserError, match="Unknown method 'emr'"):
        sweep(configs, tmp_path)


def test_a_recipe_for_other_data_is_refused_before_any_run(tmp_path):
    config = make_config("tiny", "erm", {**SHORT, "data.fingerprint": "0123456789abcdef"})
    with pytest.raises(UserError, match="they are not the images, labels or split"):
        sweep([config], tmp_path)


# ---- runs, in this process


@pytest.fixture
def here(monkeypatch):
    """Make runs in this process, and lose no time."""
    monkeypatch.setattr(workers.Engine, "start", lambda engine, store: InProcess(store))
    monkeypatch.setattr(scheduling, "PAUSE", 0.0)
    monkeypatch.setattr(stores.Store, "pause", 0.0)


def kinds(events, kind):
    return [event.job.config.method for event in events if event.kind == kind]


def test_what_others_start_from_is_made_first_and_once(here, tmp_path):
    events: list[Event] = []
    configs = [config for method in ("hinton", "flac", "mfd") for config in configs_of(1, method=method)]
    outcome = sweep(configs, tmp_path / "runs", listen=events.append)
    assert outcome.failed == {}
    assert (outcome.made, len(outcome.folders)) == (3, 3)
    assert kinds(events, "done") == ["erm", "erm", "hinton", "flac", "mfd"]  # for the label and for the group
    made = [path.parent.parent.name for path in tmp_path.glob("runs/*/*/*/metrics.json")]
    assert Counter(made) == {"erm": 2, "hinton": 1, "flac": 1, "mfd": 1}
    events.clear()
    assert sweep(configs, tmp_path / "runs", listen=events.append).made == 0
    assert [event.kind for event in events] == ["skipped"] * 3


def test_the_runs_that_one_starts_from_are_those_that_train_makes(here, tmp_path):
    for method in ("flac", "softcon"):  # a network for each group column, and one for all
        config = configs_of(1, method=method, **{"data.protocol": "crossed", "data.sensitive": ("tint", "half")})[0]
        run.train(config, tmp_path / "alone")
        sweep([config], tmp_path / "sweep")
        places = [{path.relative_to(home) for path in (tmp_path / home.name).glob("*/*/[!.]*")}
                  for home in (tmp_path / "alone", tmp_path / "sweep")]  # fmt: skip
        assert places[0] == places[1]


def test_data_and_settings_are_read_once_for_all_seeds(here, tmp_path, monkeypatch):
    counted = Counter()

    def counting(what, name):
        as_it_is = getattr(what, name)
        monkeypatch.setattr(what, name, lambda *given, **named: (counted.update([name]), as_it_is(*given, **named))[1])

    counting(sweeps.plan, "complete")
    counting(run, "load_data")
    sweep(configs_of(1, 2, 3, 4), tmp_path)
    assert counted == {"complete": 1, "load_data": 2}  # once to plan, and once where runs are made


def test_a_run_that_fails_is_named_and_the_others_are_made(here, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train", worker.train)
    seeds = (1, worker.REFUSES, worker.BREAKS, 2)
    outcome = sweep(configs_of(*seeds), tmp_path / "runs")
    assert [run.Run.open(folder).config.seed for folder in outcome.folders] == [1, 2]
    assert {name.split(" (")[0]: why for name, why in outcome.failed.items()} == {
        "tiny erm seed 102": "it cannot be.",
        "tiny erm seed 103": "RuntimeError: an error of ours",
    }
    (tmp_path / worker.MENDED).touch()
    again = sweep(configs_of(*seeds), tmp_path / "runs")
    assert (again.made, again.failed) == (2, {})


def test_what_starts_from_a_run_that_fails_says_so(here, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train", worker.train)
    outcome = sweep(configs_of(worker.REFUSES, method="hinton"), tmp_path / "runs")
    (why,) = outcome.failed.values()
    assert why.startswith("it starts from tiny erm seed 102 (")
    assert why.endswith("which failed: it cannot be.")


@pytest.mark.parametrize(("seed", "said"), [
    (worker.FILLS, r"was stopped: the disk is full .*1 of 3 runs are complete and stay"),
    (worker.VANISHES, r"was stopped: .*runs is gone, or cannot be seen by every worker"),
], ids=["full disk", "vanished store"])  # fmt: skip
def test_a_disk_or_store_that_fails_ends_the_sweep_and_mended_it_goes_on(here, tmp_path, monkeypatch, seed, said):
    monkeypatch.setattr(run, "train", worker.train)
    with pytest.raises(UserError, match=said):
        sweep(configs_of(1, seed, 2), tmp_path / "runs")
    made = (tmp_path / "made.txt").read_text()
    if seed == worker.VANISHES:
        for path in sorted((tmp_path / "runs").rglob("*"), reverse=True):  # what was made where the store was
            path.rmdir() if path.is_dir() else path.unlink()
        (tmp_path / "runs").rmdir()
        (tmp_path / "gone").rename(tmp_path / "runs")
    (tmp_path / worker.MENDED).touch()
    outcome = sweep(configs_of(1, seed, 2), tmp_path / "runs")
    assert (outcome.made, len(outcome.folders)) == (2, 3)
    first = made.split()[0]
    assert (tmp_path / "made.txt").read_text().split().count(first) == 1


# ---- what a sweep says of itself


def recipe_file(path, seeds, epochs=1):
    lines = ['dataset = "tiny"', 'method = "erm"', f"seed = {seeds}", 'precision = "fp32"', f"train.epochs = {epochs}",
             "train.batch_size = 64", "data.num = 400", "data.correlation = 0.7"]  # fmt: skip
    path.write_text("\n".join(lines))
    return path


def status_of(path, runs):
    configs = sweeps.complete(read_recipe(path).configs)
    return sweep_records.status(configs, path, stores.open_store(runs), sleep=lambda seconds: None)


def test_a_recipe_that_is_changed_half_way_goes_on_as_it_is_now(here, tmp_path, monkeypatch):
    path, runs = recipe_file(tmp_path / "recipe.toml", [1, 2, 3, 4]), tmp_path / "runs"
    seen = []

    def change(event):
        if event.kind == "done" and event.job.config.seed == 2:
            recipe_file(path, [2, 3, 7, 8, 9])
            seen.append(status_of(path, runs))

    sweep(read_recipe(path).configs, runs, recipe=path, listen=change)
    (half,) = seen
    assert (half.complete, half.total) == (1, 5)  # of those that it asks for now
    assert [each["changed"] for each in half.sweeps] == [True]
    after = status_of(path, runs)
    assert (after.complete, after.total, after.sweeps, after.ended) == (2, 5, [], "ended")
    outcome = sweep(read_recipe(path).configs, runs, recipe=path)
    assert (outcome.made, len(outcome.folders)) == (3, 5)
    assert (status_of(path, runs).complete, len([*runs.glob("tiny/erm/[!.]*")])) == (5, 7)


def test_the_status_names_what_runs_and_what_failed_and_who_makes_it(here, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train", worker.train)
    path, runs = recipe_file(tmp_path / "recipe.toml", [1, worker.REFUSES, 2, 3]), tmp_path / "runs"
    seen = []
    sweep(read_recipe(path).configs, runs, recipe=path,
          listen=lambda event: seen.append(status_of(path, runs)) if event.kind == "started" else None)  # fmt: skip
    running = seen[-1]
    assert running.sweeps[0]["pid"] == os.getpid()
    assert running.sweeps[0]["left"] > 0
    assert (running.rows[0]["name"], running.rows[0]["state"]) == ("tiny erm seed 102", "failed")
    after = status_of(path, runs)
    assert [(row["name"], row["message"]) for row in after.rows] == [("tiny erm seed 102", "it cannot be.")]
    assert json.loads(json.dumps(after.as_dict()))["total"] == 4
    (tmp_path / worker.MENDED).touch()
    sweep(read_recipe(path).configs, runs, recipe=path)
    assert (status_of(path, runs).rows, len([*(runs / stores.NOTES).iterdir()])) == ([], 1)


def test_a_sweep_that_was_killed_is_told_from_one_whose_clock_is_wrong(here, tmp_path):
    path, runs = recipe_file(tmp_path / "recipe.toml", [1]), tmp_path / "runs"
    sweep(read_recipe(path).configs, runs, recipe=path)
    store = stores.open_store(runs)
    ((name, content),) = store.notes().items()
    store.write_note(name, {**content, "state": "running", "beat": time.time() - 1000})
    assert status_of(path, runs).ended == "died"

    def beat(seconds):
        store.write_note(name, {**content, "state": "running", "beat": time.time() - 999})

    configs = sweeps.complete(read_recipe(path).configs)
    assert len(sweep_records.status(configs, path, store, sleep=beat).sweeps) == 1


def test_of_a_search_that_draws_by_scores_it_is_said_that_there_is_more_to_come(tmp_path, command):
    path = recipe_file(tmp_path / "recipe.toml", [1, 2, 3])
    text = path.read_text().replace('"erm"', '["erm", "mfd"]')
    path.write_text(f'{text}\nsearch = 5\nsearch_sampler = "tpe"\n')
    found = command("sweep", "status", path, "--json", "status.json")  # ERM has nothing to search
    assert (
        "0 of 6 runs are complete. Up to 12 more, which the search draws by their scores, are not counted."
        in " ".join(found.out.split())
    )
    assert json.loads((tmp_path / "status.json").read_text())["undrawn"] == 12


def test_what_is_cancelled_stops_and_the_same_goes_on(here, tmp_path, command):
    path, runs = recipe_file(tmp_path / "recipe.toml", [1, 2, 3, 4]), tmp_path / "runs"
    said = []

    def stop(event):
        if event.kind == "done" and event.job.config.seed == 2:
            said.append(command("sweep", "cancel", path, "--runs", runs).out)

    with pytest.raises(
        UserError, match=r"The sweep was cancelled\. 2 of 4 runs are complete and stay; the same command"
    ):
        sweep(read_recipe(path).configs, runs, recipe=path, listen=stop)
    assert f"process {os.getpid()} to stop" in " ".join(said[0].split())
    shown = command("sweep", "status", path, "--runs", runs, "--json", "status.json")
    assert "2 of 4 runs are complete." in shown.out
    assert "the last one was cancelled" in shown.out
    assert json.loads((tmp_path / "status.json").read_text())["complete"] == 2
    assert "No sweep of" in command("sweep", "cancel", path, "--runs", runs).out
    assert sweep(read_recipe(path).configs, runs, recipe=path).made == 2


def test_the_status_of_what_was_never_swept_is_nothing(tmp_path, command):
    recipe_file(tmp_path / "recipe.toml", [1])
    ended = command("sweep", "status", "recipe.toml")
    assert (ended.code, ended.out.strip()) == (0, "0 of 1 runs are complete.")
    assert not (tmp_path / "runs").exists()


# ---- the command


@pytest.mark.parametrize(("words", "said"), [
    (["--engine", "rey"], "Unknown engine 'rey'"),
    (["--time-limit", "2 days"], "--time-limit 2 days is not right: write a number with its unit, s or m or h."),
    (["--time-limit", "0s"], "--time-limit 0s is not right"),
    (["--memory", "4"], "--memory 4 is not right: write a number with its unit, MB or GB."),
    (["--cores", "1000"], "cores=1000 for a run is more than this machine has"),
    (["--gpu", "2"], "gpu=2 is not allowed"),
    (["--runs", "nowhere://x"], "nowhere://x is no address of a store"),
], ids=["engine", "days", "no time", "no unit", "cores", "gpu", "store"])  # fmt: skip
def test_what_cannot_be_is_refused(refused, tmp_path, words, said):
    recipe_file(tmp_path / "recipe.toml", [1])
    assert said in refused("sweep", "recipe.toml", *words)


def test_the_help_teaches_the_recipe_and_shows_the_other_two(command):
    shown = command("sweep", "--help").out
    for words in ("RECIPE [OPTIONS]", "seed = [1, 2, 3]", "--time-limit", "How the runs are made", "status", "cancel"):
        assert words in shown
    assert "make " not in shown.partition("Commands")[2]
    for name in ("status", "cancel"):
        assert f"evenlens sweep {name} recipe.toml" in command("sweep", name, "--help").out


# ---- runs, in processes of their own


@pytest.fixture
def processes(monkeypatch):
    """Let the sweep's processes know the tests' data set."""
    monkeypatch.setattr(local, "_work", worker.work)


def test_the_command_names_what_failed_and_shows_the_others(command, processes, tmp_path, monkeypatch):
    """One that hangs, one that cannot be and one whose process dies, in one sweep, as each process takes its time."""
    recipe_file(tmp_path / "recipe.toml", [worker.HANGS, 1, worker.REFUSES, worker.DIES])
    words = ["sweep", "recipe.toml", "--jobs", "2", "--markdown", "--retries", "1", "--time-limit", "25s"]
    ended = command(*words)
    assert ended.code == 2
    said = " ".join(ended.err.split())
    assert f"failed: tiny erm seed {worker.REFUSES} (" in said
    assert "2 workers died making it, the last one as it was killed by signal 9 (often for want of memory)" in said
    assert "it took longer than the limit of 25 s and was stopped" in said
    assert "3 of 4 runs failed; the same command tries them again." in said
    assert "| method |" in ended.out
    assert "Traceback" not in ended.err
    (tmp_path / worker.MENDED).touch()
    monkeypatch.setattr(workers.Engine, "start", lambda engine, store: InProcess(store))
    assert command(*words).code == 0


def test_a_worker_that_dies_before_it_reads_what_it_was_handed_is_a_failure_and_no_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_work", worker.die_at_once)
    outcome = sweep(configs_of(1), tmp_path, Engine(jobs=1), retries=0)
    assert [why.startswith("its worker died making it") for why in outcome.failed.values()] == [True]
    assert not outcome.folders


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(what, seconds=60.0):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def made(tmp_path):
    """Who made which run, as the workers wrote it down; they do it after the folder is there, and may die before."""
    log = tmp_path / "made.txt"
    return Counter(line.split()[0] for line in log.read_text().splitlines()) if log.exists() else Counter()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_whoever_is_killed_all_runs_are_made_once_with_the_numbers_of_undisturbed_ones(tmp_path, here):
    """Of two sweeps at once on one store, a worker of one is killed in the middle, and then that sweep itself."""
    seeds, runs = [*range(1, 13)], tmp_path / "runs"
    command = [sys.executable, "-m", "tests.worker", str(runs), *map(str, seeds)]
    driver = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
    killed: list[int] = []

    def kill(event):
        if event.kind == "done" and not killed:
            killed.extend(children(driver.pid))
            os.kill(killed[0], signal.SIGKILL)
            wait_for(lambda: sum(made(tmp_path).values()) >= 5)
            killed.extend(children(driver.pid))
            driver.kill()
            driver.wait()
            wait_for(lambda: not any(map(alive, killed)), 10)  # workers end with their sweep
            assert len([*runs.glob("tiny/erm/[!.]*")]) < len(seeds)

    try:
        wait_for(lambda: sum(made(tmp_path).values()) >= 2)
        outcome = sweep(configs_of(*reversed(seeds)), runs, listen=kill)
    finally:
        driver.kill()
        driver.wait()
    assert len(killed) >= 2
    assert (len(outcome.folders), outcome.failed) == (len(seeds), {})
    assert max(made(tmp_path).values()) == 1
    assert sweep(configs_of(*seeds), runs).made == 0
    for folder in sweep(configs_of(*seeds), tmp_path / "undisturbed").folders:
        twin = runs / "tiny" / "erm" / folder.name
        assert (twin / "metrics.json").read_bytes() == (folder / "metrics.json").read_bytes()


@pytest.mark.slow
def test_a_sweep_in_fresh_processes_makes_the_runs_that_train_makes(tmp_path, cache):
    settings = {"train.epochs": 1, "precision": "fp32", "data.num_train": 200, "data.num_val": 80, "data.num_test": 80}
    configs = [make_config("avatars", "erm", {**settings, "seed": seed}) for seed in (1, 2)]
    outcome = sweep(configs, tmp_path / "sweep", Engine(jobs=2))
    assert outcome.made == 2, outcome.failed
    alone = run.train(configs[0], tmp_path / "alone")
    assert run.Run.open(outcome.folders[0]).metrics["test"]["num_images"] == alone.metrics["test"]["num_images"]
    assert outcome.folders[0].name == alone.folder.name
    assert sys.modules["evenlens.sweeps"] is sweeps
