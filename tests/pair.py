"""Two processes that train together, for tests: each does what it is sent, the first tells what came out."""

import multiprocessing
import os
import signal
import socket
import traceback
import warnings

import torch

from evenlens import launching
from evenlens.method import Method


def start():
    """Start two processes; give a function that has them call `module:function` with arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    group = [context.Process(target=_serve, args=(place, port, pipes[place][1]), daemon=True) for place in range(2)]
    for process in group:
        process.start()

    def call(function, *arguments):
        for ours, _ in pipes:
            ours.send((function, arguments))
        for ours, _ in pipes:
            if not ours.poll(120):
                raise TimeoutError("a process does not answer")
        found = [ours.recv() for ours, _ in pipes]
        for kind, value in found:
            if kind == "failed":
                raise RuntimeError(value)
        return [value for _, value in found]

    def stop():
        for process in group:
            process.kill()
            process.join()

    return call, stop


def _serve(place, port, connection):
    os.environ |= {"RANK": str(place), "LOCAL_RANK": str(place), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("error")
    from evenlens import engine

    know_tiny()
    torch.set_num_threads(1)
    engine.start()
    while True:
        function, arguments = connection.recv()
        try:
            connection.send(("done", function(*arguments)))
        except BaseException:
            connection.send(("failed", traceback.format_exc()))


def know_tiny():
    """Let this process know the tests' data set."""
    import evenlens.datasets
    from tests import fake

    get = evenlens.datasets.get
    evenlens.datasets.get = lambda name, root=None: fake.Tiny if name == "tiny" else get(name, root)


member_as_it_is = launching._member


def member(*given):
    """One of the processes of `evenlens.launching`."""
    know_tiny()
    member_as_it_is(*given)


def member_that_dies(place, *given):
    """The second one is killed in its first step."""
    if place == 1:
        Method.step = lambda self, batch: os.kill(os.getpid(), signal.SIGKILL)
    member(place, *given)
