"""Runs on a Ray cluster: the same runs, and the same care for those that go wrong."""

import os
import signal
import sys
import types
from pathlib import Path

import pytest

from evenlens import run, stores
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.sweeps import sweep
from evenlens.workers import Engine, Resources, Task, ray_cluster
from tests import worker
from tests.worker import configs_of


def test_without_ray_its_name_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'evenlens\[ray\]'"):
        sweep(configs_of(1), tmp_path, Engine("ray"))


@pytest.mark.parametrize(("address", "said"), [
    ("127.0.0.1:1", r"No Ray cluster answers at 127.0.0.1:1 \(Connection refused\): start one with ray start"),
    ("somewhere", "address=somewhere is none of a Ray cluster: give host:port"),
    ("ray://head:10001", "address=ray://head:10001 is none of a Ray cluster"),
], ids=["nobody", "no port", "client"])  # fmt: skip
def test_an_address_that_does_not_answer_is_refused(tmp_path, address, said):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=said):
        sweep(configs_of(1), tmp_path / "runs", Engine("ray", address))
    assert not (tmp_path / "runs").exists()


# ---- what is asked of Ray, by one that is made up


class Pretended:
    """As much of Ray as it takes to see what is asked of it."""

    def __init__(self, *machines):
        self.machines, self.asked, self.cancelled = machines, [], []
        self.util = types.SimpleNamespace(scheduling_strategies=types.SimpleNamespace(
            NodeAffinitySchedulingStrategy=lambda node, soft: None))  # fmt: skip

    def nodes(self):
        return [{"Alive": alive, "Resources": there} for alive, there in self.machines]

    def is_initialized(self):
        return True

    def get_runtime_context(self):
        return types.SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, *given, **named):
        return self if given else lambda function: self

    def options(self, **named):
        self.asked.append({name: named[name] for name in ("num_cpus", "num_gpus", "memory") if name in named})
        return types.SimpleNamespace(
            remote=lambda *given: types.SimpleNamespace(
                take=types.SimpleNamespace(remote=lambda: None)) if not given else len(self.asked)
        )  # fmt: skip

    def wait(self, refs, num_returns, timeout):
        return [], refs

    def cancel(self, ref, force):
        self.cancelled.append((ref, force))


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    def start(resources, *machines, jobs=None):
        ray = Pretended(*machines)
        monkeypatch.setitem(sys.modules, "ray", ray)
        return ray, ray_cluster.RayWorkers(Engine("ray", None, jobs, resources), stores.open_store(tmp_path))

    return start


SMALL, LARGE = {"CPU": 4.0, "memory": 8e9}, {"CPU": 16.0, "GPU": 2.0, "memory": 64e9}


@pytest.mark.parametrize(("resources", "machines", "slots"), [
    (Resources(), [(True, SMALL)], 4),
    (Resources(3), [(True, SMALL), (True, SMALL)], 2),
    (Resources(1, 3 * 10**9), [(True, SMALL)], 2),
    (Resources(), [(True, SMALL), (True, LARGE)], 2),
    (Resources(gpu=0.25), [(True, LARGE)], 8),
    (Resources(gpu=0), [(True, LARGE), (True, SMALL)], 20),
    (Resources(), [(True, SMALL), (False, SMALL)], 4),
], ids=["cores", "each machine alone", "memory", "GPUs", "shares", "no GPU", "a dead machine"])  # fmt: skip
def test_as_many_go_side_by_side_as_fit_on_the_machines_that_are_there(pretended, resources, machines, slots):
    assert pretended(resources, *machines)[1].slots == slots
    assert pretended(resources, *machines, jobs=1)[1].slots == 1


def test_a_run_asks_for_what_it_needs_and_one_on_several_devices_for_as_many_times_that(pretended):
    ray, workers = pretended(Resources(2, 10**9, 0.5), (True, LARGE))
    for devices in (1, 2, 3):
        workers.start(Task(f"run{devices}", make_config("d", "m", {"train.devices": devices})))
    assert ray.asked[1:] == [
        {"num_cpus": 2, "num_gpus": 0.5, "memory": 10**9},
        {"num_cpus": 4, "num_gpus": 1.0, "memory": 2 * 10**9},
        {"num_cpus": 6, "num_gpus": 2, "memory": 3 * 10**9},  # Ray knows no one and a half
    ]
    workers.stop("run2")
    assert ray.cancelled == [(3, True)]


def test_a_run_for_which_no_machine_is_large_enough_is_refused(pretended):
    _, workers = pretended(Resources(2), (True, SMALL), (True, SMALL))
    workers.start(Task("run", make_config("d", "m", {"train.devices": 3})))
    (news,) = workers.events(0)
    assert (news.kind, news.place) == ("refused", "run")
    assert "it asks for CPU=6 on one machine, and no machine of the cluster has that" in news.message


def test_a_machine_with_another_evenlens_makes_no_run():
    made = ray_cluster._make(("d/m/1", {}, ()), "runs", 1, "0.0.1", {}, ".", None)
    assert made[1] == "refused"
    assert "has evenlens 0.1.0, and the sweep 0.0.1: install the same one there." in made[-1]


# ---- a cluster


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two cores on this machine, which belongs to this process, so that several sweeps use it."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setattr(ray_cluster, "_make", worker.make_on_ray)
    with monkeypatch.context() as patch:
        patch.setattr(ray_cluster, "cores", lambda: 2)
        ray_cluster._connect(ray, Engine("ray"))
    yield
    ray.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of Ray itself, as it starts
def test_a_cluster_makes_the_runs_that_one_process_makes_whatever_happens_to_its_workers(tmp_path, cluster):
    """All in one, as a cluster takes its time to start."""
    runs, seeds = tmp_path / "runs", [*range(1, 9)]
    killed = []
    import ray

    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)  # nobody goes before

    def kill(event):
        if event.kind == "done" and event.job.config.seed == 2 and not killed:
            killed.append(int((tmp_path / "made.txt").read_text().split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    outcome = sweep(configs_of(*seeds, worker.BREAKS), runs, Engine("ray"), listen=kill)
    assert killed
    assert [*outcome.failed.values()] == ["RuntimeError: an error of ours"]
    assert (outcome.made, len(outcome.folders)) == (8, 8)
    made = [line.split()[0] for line in (tmp_path / "made.txt").read_text().splitlines()]
    assert len(made) == len({*made})
    assert {*made} <= {folder.name for folder in outcome.folders}
    hung = sweep(configs_of(worker.HANGS, worker.DIES), runs, Engine("ray"), retries=0, time_limit=8)
    why = {name.split(" (")[0]: said for name, said in hung.failed.items()}
    assert "longer than the limit of 8 s" in why[f"tiny erm seed {worker.HANGS}"]
    assert "its worker died making it, the last one as Ray lost it" in why[f"tiny erm seed {worker.DIES}"]
    for config in configs_of(1, 2, 3):
        alone = run.train(config, tmp_path / "alone")
        twin = runs / "tiny" / "erm" / alone.folder.name
        assert (twin / "metrics.json").read_bytes() == (alone.folder / "metrics.json").read_bytes()
