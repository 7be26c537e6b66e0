"""Workers for tests: they know the tests' data set, and fail as a run's seed asks them to.

Run as a module, it sweeps in a process of its own: `python -m tests.worker RUNS SEED...`.
"""

import errno
import os
import signal
import sys
import time
from pathlib import Path

import evenlens.datasets
from evenlens import run, workers
from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.workers import Engine, News, Workers, local, ray_cluster
from tests import fake

SHORT = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 400, "data.correlation": 0.7}
REFUSES, BREAKS, DIES, HANGS, FILLS, VANISHES = 102, 103, 104, 105, 106, 107  # seeds
MENDED = "mended"  # a file beside the runs, with which all goes well
work_as_it_is, make_as_it_is = local._work, ray_cluster._make
train_as_it_is = run.train


def configs_of(*seeds, method="erm", **settings):
    return [make_config("tiny", method, {**SHORT, "seed": seed, **settings}) for seed in seeds]


def train(config, runs, *arguments, **named):
    """Train, or fail; and write down who made the run."""
    if not (Path(runs).parent / MENDED).exists():
        fail(config.seed, Path(runs))
    there = run.folder_of(config, Path(runs)).exists()
    made = train_as_it_is(config, runs, *arguments, **named)
    if there:
        return made
    with (Path(runs).parent / "made.txt").open("a") as log:
        log.write(f"{made.folder.name} {os.getpid()}\n")
    return made


def fail(seed, runs):
    if seed == REFUSES:
        raise UserError("it cannot be.")
    if seed == BREAKS:
        raise RuntimeError("an error of ours")
    if seed == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == HANGS:
        time.sleep(1000)
    if seed == FILLS:
        raise OSError(errno.ENOSPC, "No space left on device", str(runs))
    if seed == VANISHES:
        runs.rename(runs.with_name("gone"))


def know_tiny():
    get = evenlens.datasets.get
    evenlens.datasets.get = lambda name, root=None: fake.Tiny if name == "tiny" else get(name, root)
    run.train = train


def work(connection, address, threads, gpus):
    know_tiny()
    work_as_it_is(connection, address, 1, gpus)


def die_at_once(connection, address, threads, gpus):
    os.kill(os.getpid(), signal.SIGKILL)


def make_on_ray(*given):
    if run.train is not train:
        know_tiny()
    return make_as_it_is(*given)


class InProcess(Workers):
    """No process but this one."""

    slots = 1

    def __init__(self, store):
        self.store, self.news, self.stopped = store, [], []
        workers._data.clear()

    def start(self, task):
        self.news += [News(task.place, "started"), workers.make_run(task, self.store, self.news.append)]

    def events(self, timeout):
        news, self.news = self.news, []
        return news

    def stop(self, place):
        self.stopped.append(place)

    def close(self):
        pass


def main():
    from evenlens.sweeps import sweep

    know_tiny()
    local._work = work
    outcome = sweep(configs_of(*map(int, sys.argv[2:])), Path(sys.argv[1]), Engine(jobs=2))
    print(len(outcome.folders), outcome.made, *outcome.failed.values())


if __name__ == "__main__":
    main()
