"""The worker of a sweep in a fresh process: it knows the tests' data set, and fails as the seed asks it to."""

import os
import signal

import evenlens.datasets
from evenlens import run, sweeps
from evenlens.errors import UserError
from tests import fake

REFUSES, BREAKS, DIES = 102, 103, 104  # seeds
work_as_it_is = sweeps._work


def work(connection, runs, threads):
    get, train = evenlens.datasets.get, run.train
    evenlens.datasets.get = lambda name, root=None: fake.Tiny if name == "tiny" else get(name, root)

    def failing(config, *arguments):
        if config.seed == REFUSES:
            raise UserError("it cannot be.")
        if config.seed == BREAKS:
            raise RuntimeError("an error of ours")
        if config.seed == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(config, *arguments)

    run.train = failing
    work_as_it_is(connection, runs, threads)


def die_at_once(connection, runs, threads):
    os.kill(os.getpid(), signal.SIGKILL)
