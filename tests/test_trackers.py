"""Trackers: they say what the run's folder says, and nothing that happens to them happens to a run."""

import importlib.util
import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
from filelock import Timeout

from evenlens import following, run, trackers
from evenlens.config import make_config
from evenlens.errors import UserError

SHORT = {"train.epochs": 3, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}
WORDS = [f"{key}={value}" for key, value in SHORT.items()]
WANDB = """
    import json, os, time
    def say(*words):
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(json.dumps(words) + "\\n")
    class Run:
        def __init__(self, given):
            self.given, self.summary = given, self
        def log(self, numbers, step):
            say("log", self.given["id"], step, numbers)
        def update(self, numbers):
            say("summary", self.given["id"], numbers)
        def finish(self, exit_code):
            say("finish", self.given["id"], exit_code)
    def init(**given):
        fault = os.environ.get("FAULT")
        if fault == "raises":
            raise ConnectionError("no\\nnetwork")
        if fault == "hangs":
            time.sleep(30)
        if fault == "dies":
            os._exit(3)
        print("a library that talks")
        say("init", given)
        return Run(given)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that no tracker knows."""
    from tests import fake

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVENLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("evenlens.datasets.get", lambda name, root=None: fake.Tiny)
        return run.train(make_config("tiny", "erm", SHORT), tmp_path_factory.mktemp("runs"))


@pytest.fixture
def store(made, tmp_path):
    """A folder of runs of its own that holds that run."""
    shutil.copytree(made.folder.parents[1], tmp_path / "runs" / "tiny")
    return tmp_path / "runs"


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Stand in for wandb, here and in other processes: give what it was told."""
    (tmp_path / "libraries" / "wandb").mkdir(parents=True)
    (tmp_path / "libraries" / "wandb" / "__init__.py").write_text(textwrap.dedent(WANDB))
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "libraries")
    inherited = os.environ.get("PYTHONPATH")
    places = [str(tmp_path / "libraries"), *([inherited] if inherited else [])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(places))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls.jsonl"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "FAULT"):
        monkeypatch.delenv(name, raising=False)
    for name in trackers.QUIET:  # copy_runs sets them for good
        monkeypatch.setenv(name, trackers.QUIET[name])

    def calls(kind=None):
        path = tmp_path / "calls.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line[1:] for line in lines if line[0] == kind] if kind else [line[0] for line in lines]

    yield calls
    sys.modules.pop("wandb", None)


def only_folder(store):
    (folder,) = store.glob("tiny/erm/[!.]*")
    return folder


def as_partial(store, epochs):
    """Turn the run into one on its way."""
    folder = only_folder(store)
    partial = folder.with_name(f".{folder.name}.partial")
    folder.rename(partial)
    lines = (partial / "log.jsonl").read_text().splitlines(keepends=True)
    (partial / "log.jsonl").write_text("".join(lines[:epochs]))
    return partial


def look_once(store, known):
    ended = threading.Event()
    ended.set()
    following.follow(store, "wandb", known, ended)


# ---- what a folder says


def test_a_reading_says_what_the_folder_says(made):
    reading = trackers.read(made.folder)
    assert (reading.dataset, reading.method, reading.id) == ("tiny", "erm", made.metrics["id"])
    assert reading.log == made.log
    assert reading.kept == made.metrics["selected_epoch"]
    assert reading.title == "erm seed 1"
    assert reading.settings["train.epochs"] == 3
    assert reading.settings["data.options.num"] == 400
    assert "data.root" not in reading.settings
    expected = {}
    for part in ("val", "test"):
        for name, (value, low, high) in made.metrics[part]["metrics"].items():
            expected |= {f"{part}/{name}": value, f"{part}/{name}_low": low, f"{part}/{name}_high": high}
    assert reading.numbers == {name: value for name, value in expected.items() if value is not None}
    assert len(reading.numbers) > 50


def test_epochs_end_as_far_apart_as_the_log_says(made):
    times = trackers.read(made.folder).times
    assert times[-1] == (made.folder / "log.jsonl").stat().st_mtime
    for number in (1, 2):
        entry = made.log[number]
        assert math.isclose(
            times[number] - times[number - 1], entry["seconds"] + entry["evaluation_seconds"], abs_tol=1e-5
        )


def test_of_a_run_on_its_way_what_is_whole_is_read(store):
    partial = as_partial(store, 2)
    with (partial / "log.jsonl").open("a") as log:
        log.write('{"epoch": 3, "lo')
    reading = trackers.read(partial)
    assert [entry["epoch"] for entry in reading.log] == [1, 2]
    assert (reading.id, reading.kept, reading.numbers) == (partial.name[1:-8], 0, {})


def test_a_run_on_its_way_says_how_it_is_made(tmp_path):
    """Its settings are there before the first epoch ends."""
    seen = []

    def watch(what, done, total):
        if what == "steps" and done == 1:
            seen.extend(tmp_path.glob("tiny/erm/.*.partial/config.toml"))

    made = run.train(make_config("tiny", "erm", SHORT), tmp_path, watch)
    assert len(seen) == 1
    assert trackers.read(made.folder).settings["train.batch_size"] == 64


# ---- each tracker


def test_tensorboard_gets_curves_metrics_and_the_table_of_settings(made, store, monkeypatch):
    calls, closed = [], []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(store / "tensorboard" / "tiny" / "erm" / made.metrics["id"])

        def add_scalar(self, name, value, step, walltime=None):
            calls.append((name, value, step, walltime))

        def add_hparams(self, settings, columns, run_name, global_step):
            calls.append(("settings", settings, columns, run_name, global_step))

        def flush(self):
            pass

        def close(self):
            closed.append(True)

    library = ModuleType("torch.utils.tensorboard")
    library.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", library)
    monkeypatch.setattr(trackers, "check", lambda names: None)
    monkeypatch.setattr(os, "environ", {**os.environ})
    old = store / "tensorboard" / "tiny" / "erm" / made.metrics["id"] / "events.out.tfevents.1.here"
    old.parent.mkdir(parents=True)
    old.write_text("of an earlier time")
    trackers.copy_runs([only_folder(store)], "tensorboard")
    reading = trackers.read(only_folder(store))
    assert not old.exists()
    assert [call for call in calls if call[0] == "loss"] == [
        ("loss", entry["loss"], number, when)
        for number, (entry, when) in enumerate(zip(reading.log, reading.times, strict=True), 1)
    ]
    ((_, settings, columns, place, step),) = [call for call in calls if call[0] == "settings"]
    assert (settings, place, step) == (reading.settings, ".", reading.kept)
    bare = {call[0]: call[1] for call in calls if call[0].endswith(("_low", "_high"))}
    assert {**columns, **bare} == reading.numbers
    assert columns["test/accuracy"] == made.metrics["test"]["metrics"]["accuracy"][0]
    assert closed == [True]


@pytest.mark.parametrize(("given", "mode"), [
    ({}, "offline"), ({"WANDB_API_KEY": "k"}, "online"), ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
    ({"WANDB_MODE": "online"}, "online"),
], ids=["nothing", "key", "key but offline", "online"])  # fmt: skip
def test_wandb_asks_for_the_network_only_where_it_was_asked_to(store, told, monkeypatch, given, mode):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    trackers.copy_runs([only_folder(store)], "wandb")
    ((init,),) = told("init")
    assert init["mode"] == mode
    assert init["resume"] == ("allow" if mode == "online" else None)


def test_wandb_gets_history_and_summary(made, store, told):
    old = store / "wandb" / f"offline-run-1-{made.metrics['id']}"
    other = store / "wandb" / "offline-run-1-0123456789"
    old.mkdir(parents=True)
    other.mkdir()
    trackers.copy_runs([only_folder(store)], "wandb")
    reading = trackers.read(only_folder(store))
    ((init,),) = told("init")
    assert (init["id"], init["group"], init["name"]) == (reading.id, "tiny erm", "erm seed 1")
    assert (init["config"], init["dir"], init["project"]) == (reading.settings, str(store), "evenlens")
    assert told("log") == [[reading.id, number, entry] for number, entry in enumerate(made.log, 1)]
    assert told("summary") == [[reading.id, {**reading.numbers, "selected_epoch": reading.kept}]]
    assert told("finish") == [[reading.id, 0]]
    assert not old.exists()
    assert other.exists()


class Client:
    """Stands in for MLflow's."""

    runs, status, metrics, params = {}, {}, [], {}

    def __init__(self, tracking_uri):
        Client.address = tracking_uri

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if Client.runs else None

    def create_experiment(self, name):
        assert name == "tiny"
        return "7"

    def search_runs(self, experiments, wanted, max_results):
        assert experiments == ["7"]
        return [self._run(key) for key, tags in Client.runs.items() if wanted == f"tags.evenlens_id = '{tags}'"]

    def create_run(self, experiment, start, tags, name):
        Client.runs["made"], Client.status["made"], Client.start = tags["evenlens_id"], "RUNNING", start
        return self._run("made")

    def _run(self, key):
        epochs = [value for _, name, value, _, _ in Client.metrics if name == "epoch"]
        return SimpleNamespace(
            info=SimpleNamespace(run_id=key, status=Client.status[key]),
            data=SimpleNamespace(metrics={"epoch": float(max(epochs))} if epochs else {}),
        )

    def update_run(self, key, status):
        Client.status[key] = status

    def log_batch(self, key, metrics=(), params=()):
        Client.metrics += [(key, *metric) for metric in metrics]
        Client.params |= dict(params)

    def set_terminated(self, key, status, end):
        Client.status[key], Client.end = status, end


@pytest.fixture
def client(monkeypatch):
    library, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    library.MlflowClient = Client
    entities.Param = lambda key, value: (key, value)
    entities.Metric = lambda *fields: fields
    monkeypatch.setitem(sys.modules, "mlflow", library)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(trackers, "check", lambda names: None)
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"})
    for name, empty in (("runs", {}), ("status", {}), ("metrics", []), ("params", {})):
        monkeypatch.setattr(Client, name, empty)
    return Client


def test_mlflow_goes_on_with_a_run_that_it_has_and_leaves_a_finished_one(made, store, client):
    partial = as_partial(store, 2)
    tracker = trackers.MLflow(store, trackers.read(partial))
    tracker.copy(trackers.read(partial))
    tracker.close()
    assert client.status == {"made": "KILLED"}
    assert client.address == f"sqlite:///{store}/mlflow.db"
    (partial / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in made.log))
    partial.rename(store / "tiny" / "erm" / made.metrics["id"])
    trackers.copy_runs([only_folder(store)], "mlflow")
    reading = trackers.read(only_folder(store))
    assert client.status == {"made": "FINISHED"}
    losses = [(step, value) for _, name, value, _, step in client.metrics if name == "loss"]
    assert losses == [(number, entry["loss"]) for number, entry in enumerate(made.log, 1)]
    assert client.params == {name: str(value) for name, value in reading.settings.items()}
    final = {name: value for _, name, value, _, _ in client.metrics if "/" in name}
    assert final == reading.numbers
    assert client.end == int(1000 * reading.times[-1])
    before = [*client.metrics]
    trackers.copy_runs([only_folder(store)], "mlflow")
    assert client.metrics == before


def test_mlflow_goes_where_its_own_variable_says(made, store, client):
    os.environ["MLFLOW_TRACKING_URI"] = "http://localhost:5000"
    trackers.MLflow(store, trackers.read(made.folder))
    assert client.address == "http://localhost:5000"


# ---- following


def test_what_was_there_before_is_not_told_and_what_changes_is(made, store, told):
    before = following.stamps(store)
    assert list(before) == [str(only_folder(store))]
    look_once(store, before)
    assert told() == []
    look_once(store, {})
    assert told() == ["init", "log", "log", "log", "summary", "finish"]


def test_a_run_that_was_stopped_counts_as_stopped_and_goes_on(made, store, told):
    partial = as_partial(store, 2)
    known = following.stamps(store)
    look_once(store, known)
    assert told() == []  # another command may have left it
    look_once(store, {})
    assert told() == ["init", "log", "log", "finish"]
    assert told("finish") == [[made.metrics["id"], 1]]
    (partial / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in made.log))
    partial.rename(store / "tiny" / "erm" / made.metrics["id"])
    look_once(store, known)
    assert [step for _, step, _ in told("log")] == [1, 2, 1, 2, 3]
    assert told("finish")[-1] == [made.metrics["id"], 0]


def test_two_never_write_to_one_tracker_at_once(store, told, monkeypatch):
    monkeypatch.setattr(following, "PATIENCE", 0.1)
    monkeypatch.setattr(following, "PAUSE", 0.01)
    with trackers.lock(store, "wandb"):
        ended = threading.Event()
        timer = threading.Timer(0.3, ended.set)  # looks in vain until then, and then once with patience
        timer.start()
        with pytest.raises(Timeout):
            following.follow(store, "wandb", {}, ended)
        assert ended.is_set()
        timer.join()
        with pytest.raises(UserError, match="Another process is writing to wandb"):
            trackers.copy_runs([only_folder(store)], "wandb")
    assert told() == []
    look_once(store, {})
    assert "finish" in told()


def test_a_run_is_followed_while_it_is_made_and_is_the_same(made, tmp_path, told):
    warnings = []
    with following.following(tmp_path / "runs", ["wandb"], warnings.append):
        again = run.train(make_config("tiny", "erm", SHORT), tmp_path / "runs")
    assert warnings == []
    assert again.metrics == made.metrics
    assert told("log") == [[again.metrics["id"], number, entry] for number, entry in enumerate(again.log, 1)]
    assert told("finish") == [[again.metrics["id"], 0]]


@pytest.mark.parametrize(("fault", "said"), [
    ("raises", "ConnectionError: no network"), ("hangs", "longer than 3 s"), ("dies", "ended with code 3"),
], ids=["raises", "hangs", "dies"])  # fmt: skip
def test_a_tracker_that_fails_is_one_warning(store, told, monkeypatch, fault, said):
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setattr(following, "PATIENCE", 3.0)
    warnings = []
    folder = only_folder(store)
    hidden = folder.rename(folder.with_name("..hidden"))
    with following.following(store, ["wandb", "wandb"], warnings.append):
        hidden.rename(folder)  # a run is complete
    (warning,) = warnings
    assert said in warning
    assert "evenlens track RUNS --to wandb" in warning


def test_no_process_to_be_had_is_one_warning(store, told, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(store / "no_python"))
    warnings = []
    with following.following(store, ["wandb"], warnings.append):
        pass
    assert len(warnings) == 1


def test_what_fails_inside_still_fails(store, told):
    with pytest.raises(KeyError), following.following(store, ["wandb"], pytest.fail):
        raise KeyError


# ---- commands


def test_train_tells_a_tracker(command, told, tmp_path):
    ended = command("train", "tiny", "erm", *WORDS, "--track", "wandb")
    assert ended.code == 0
    assert told() == ["init", "log", "log", "log", "summary", "finish"]
    assert "a library that talks" not in ended.out + ended.err
    assert command("track", "runs", "--to", "wandb").code == 0
    assert len(told("init")) == 2


def test_a_tracker_that_fails_fails_track_but_not_train(command, told, monkeypatch):
    monkeypatch.setenv("FAULT", "raises")
    ended = command("train", "tiny", "erm", *WORDS, "--track", "wandb")
    assert ended.code == 0
    assert ended.err.count("ConnectionError: no network") == 1
    ended = command("track", "runs", "--to", "wandb")
    assert ended.code == 2
    assert "could not be written to wandb: ConnectionError: no network." in " ".join(ended.err.split())


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text('dataset = "tiny"\nmethod = "erm"\n')
    return "recipe.toml"


@pytest.mark.parametrize("words", [
    ("train", "tiny", "erm", *WORDS, "--track"), ("sweep", "recipe.toml", "--track"), ("track", "runs", "--to"),
], ids=["train", "sweep", "track"])  # fmt: skip
def test_a_tracker_is_refused_before_anything_is_done(refused, recipe, monkeypatch, words):
    assert "Unknown tracker 'tensorbord'; did you mean 'tensorboard'?" in refused(*words, "tensorbord")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'evenlens[track]'" in refused(*words, "mlflow")


def test_a_sweep_is_followed(command, recipe, monkeypatch, tmp_path):
    given = []

    @contextmanager
    def followed(store, names, warn):
        given.append((str(store), names))
        yield

    monkeypatch.setattr(following, "following", followed)
    monkeypatch.setattr("evenlens.cli_sweep.sweep_and_show", lambda *rest, **named: {})
    assert command("sweep", "recipe.toml", "--runs", "there", "--track", "wandb", "--track", "mlflow").code == 0
    assert given == [("there", ["wandb", "mlflow"])]


# ---- the libraries themselves, where they are installed; in a process of their own, as they warn and stay


def real(name, store):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    code = "import sys; from evenlens import cli; sys.argv[0] = 'evenlens'; cli.main()"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_"))}
    words = [sys.executable, "-c", code, "track", str(store), "--to", name]
    for _ in range(2):  # the second time changes nothing
        ended = subprocess.run(words, env=kept, capture_output=True, text=True, timeout=120, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_tensorboard_reads_what_was_written(made, store):
    real("tensorboard", store)
    code = """
        import json, sys
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        read = EventAccumulator(sys.argv[1])
        read.Reload()
        print(json.dumps({name: [(event.step, event.value) for event in read.Scalars(name)]
                          for name in ("loss", "test/accuracy", "test/accuracy_low")}))
    """
    place = store / "tensorboard" / "tiny" / "erm" / made.metrics["id"]
    words = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(place)]
    found = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert found["loss"] == [[n, pytest.approx(entry["loss"], abs=1e-6)] for n, entry in enumerate(made.log, 1)]
    value, low, _ = made.metrics["test"]["metrics"]["accuracy"]
    assert found["test/accuracy"] == [[made.metrics["selected_epoch"], pytest.approx(value, abs=1e-6)]]
    assert found["test/accuracy_low"] == [[made.metrics["selected_epoch"], pytest.approx(low, abs=1e-6)]]


def test_wandb_leaves_one_offline_run(made, store):
    real("wandb", store)
    (path,) = store.glob(f"wandb/offline-run-*/run-{made.metrics['id']}.wandb")
    content = path.read_bytes()
    assert b"val_accuracy" in content
    assert b"test/accuracy_low" in content


def test_mlflow_keeps_one_finished_run(made, store):
    real("mlflow", store)
    base = sqlite3.connect(store / "mlflow.db")
    try:
        assert base.execute("select name, status from runs").fetchall() == [("erm seed 1", "FINISHED")]
        losses = base.execute("select step, value from metrics where key = 'loss' order by step").fetchall()
        assert losses == [(number, entry["loss"]) for number, entry in enumerate(made.log, 1)]
        assert base.execute("select value from params where key = 'train.epochs'").fetchall() == [("3",)]
    finally:
        base.close()
