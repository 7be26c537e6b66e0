"""Which run is made when: a small state machine, which knows nothing of processes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from evenlens.config import RunConfig
from evenlens.errors import UserError
from evenlens.workers import News, Task, Workers

PAUSE = 1.0  # seconds between two looks at what no worker tells
PATIENCE = 60.0  # seconds after which a run that was made must be seen; a shared folder may show it late


class State(StrEnum):
    """Where a run is on its way; the last three are ends."""

    WAITING = "waiting"
    RUNNING = "running"
    ELSEWHERE = "elsewhere"  # another process makes it
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDS = (State.DONE, State.FAILED, State.CANCELLED)


class Halted(UserError):
    """Something is wrong with the disk or the store, so that no run can be made any more."""


@dataclass
class Job:
    """A run of a sweep, and how far it is.

    Attributes:
        place: of its folder below the runs' folder: dataset/method/id.
        config: pinned.
        requires: places of the jobs that have to be done before.
        state: where it is.
        tries: how often a worker began it.
        made: whether this sweep made it; else it was there, or is made elsewhere.
        seconds: that it took.
        done: steps taken, of `total`.
        total: steps there are; 0 until it is known.
        began: when a worker began it, by the schedule's clock; None while it does not run.
        message: why it failed.
    """

    place: str
    config: RunConfig
    requires: tuple[str, ...] = ()
    state: State = State.WAITING
    tries: int = 0
    made: bool = False
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    began: float | None = None
    message: str = ""
    not_before: float = 0.0  # of the clock: when it may be tried again
    seen_by: float | None = None  # of the clock: until when it must be seen, once it was made

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.config.dataset} {self.config.method} seed {self.config.seed}"

    @property
    def size(self) -> int:
        """How many slots it takes."""
        return self.config.train.devices


class Event(NamedTuple):
    """News of one job, for who looks on.

    Attributes:
        kind: "waiting" or "skipped" of each as it is added; then "started", "steps", "died", "elsewhere" as often as it
            happens; and "done", "failed" or "cancelled" at its end.
        job: which, as it is now.
        left: seconds until the whole sweep is made, as far as can be told.
    """

    kind: str
    job: Job
    left: float | None = None


class Schedule:
    """The jobs of a sweep: the first that are ready go first, and before all others those that others require.

    A job is not handed out before what it requires is done, and fails where that fails. A run that raises an error
    would do so again, and is not tried again; one whose worker died is.

    Args:
        jobs: each once, with all jobs that they require.
        there: says whether the run of a place is complete.
        retries: how often a run is tried again whose worker died.
        time_limit: seconds that one try may take; None is any.
        listen: told what happens.
        clock: gives seconds.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        there: Callable[[str], bool],
        *,
        retries: int = 2,
        time_limit: float | None = None,
        listen: Callable[[Event], None] = lambda event: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if retries < 0:
            raise UserError(f"retries={retries} is not allowed: give 0 or more.")
        if time_limit is not None and not time_limit > 0:
            raise UserError(f"time-limit={time_limit:g} is not allowed: give the seconds that one run may take.")
        self.jobs: dict[str, Job] = {}
        self.wanted: set[str] = set()
        self.there, self.retries, self.time_limit = there, retries, time_limit
        self.listen, self.clock = listen, clock
        self.slots = 1
        self.add(jobs)

    def add(self, jobs: Iterable[Job]) -> None:
        """Take further jobs; those that are known stay as they are."""
        for job in [job for job in jobs if job.place not in self.jobs]:
            self.jobs[job.place] = job
            self.wanted |= {*job.requires}
            self.listen(Event("skipped" if job.state is State.DONE else "waiting", job))

    @property
    def cancelled(self) -> bool:
        """Whether somebody wanted it to stop."""
        return any(job.state is State.CANCELLED for job in self.jobs.values())

    @property
    def over(self) -> bool:
        """Whether every job has come to an end."""
        return all(job.state in ENDS for job in self.jobs.values())

    def work(self, workers: Workers, look: Callable[[], bool] = lambda: False) -> None:
        """Make all jobs.

        Args:
            workers: who makes them.
            look: called about once a second; where it says True, what is under way is cancelled.

        Raises:
            Halted: no run can be made any more; what is under way is left as it is.
        """
        looked = -math.inf
        while not self.over:
            if self.clock() - looked >= PAUSE:
                looked = self.clock()
                if look():
                    self._cancel(workers)
                    return
                self._look_around(workers)
            self._hand_out(workers)
            for news in workers.events(PAUSE):
                self._hear(news)

    def left(self) -> float | None:
        """Estimate the seconds until all jobs are made, by the median of those that this sweep made."""
        took = [job.seconds for job in self.jobs.values() if job.made]
        open_jobs = [job for job in self.jobs.values() if job.state not in (*ENDS, State.ELSEWHERE)]
        if not took or not open_jobs:
            return None if open_jobs else 0.0
        each, now = statistics.median(took), self.clock()
        rest = [max(0.0, each - (now - job.began)) if job.began is not None else each for job in open_jobs]
        return max(*rest, sum(rest) / max(1, self.slots))

    # ---- what happens to a job

    def _hand_out(self, workers: Workers) -> None:
        """Start what is ready, as far as there is room; one that needs much room is not overtaken."""
        self.slots, now = workers.slots, self.clock()
        running = [job for job in self.jobs.values() if job.state is State.RUNNING]
        free = self.slots - sum(job.size for job in running)
        for job in self._ready(now) if free > 0 else ():
            size = job.size
            if size > free and running:
                return
            job.state, job.tries, job.began, job.done, job.total = State.RUNNING, job.tries + 1, None, 0, 0
            workers.start(Task(job.place, job.config, job.requires))
            running.append(job)
            free -= size

    def _ready(self, now: float) -> list[Job]:
        def ready(job: Job) -> bool:
            open_to = job.state in (State.WAITING, State.ELSEWHERE) and job.seen_by is None and job.not_before <= now
            return open_to and all(self.jobs[place].state is State.DONE for place in job.requires)

        found = filter(ready, self.jobs.values())
        return sorted(found, key=lambda job: (job.state is State.ELSEWHERE, job.place not in self.wanted))

    def _hear(self, news: News) -> None:
        job = self.jobs[news.place]
        if job.state is not State.RUNNING:
            return
        if news.kind == "started":
            job.began = self.clock()
            self._tell("started", job)
        elif news.kind == "steps":
            job.done, job.total = news.done, news.total
            self._tell("steps", job)
        elif news.kind == "made":
            job.made, job.seconds, job.seen_by = True, news.seconds, self.clock() + PATIENCE
            if not self._arrived(job):
                self._elsewhere(job)
        elif news.kind == "busy":
            job.tries -= 1
            self._elsewhere(job)
        elif news.kind == "died":
            self._died(job, news.message)
        elif news.kind == "halt":
            raise Halted(news.message)
        else:
            self._fail(job, news.message)

    def _arrived(self, job: Job) -> bool:
        """Settle a job whose run is there."""
        if self.there(job.place):
            job.state, job.began, job.seen_by = State.DONE, None, None
            self._tell("done", job)
        return job.state is State.DONE

    def _elsewhere(self, job: Job) -> None:
        job.state, job.began, job.not_before = State.ELSEWHERE, None, self.clock() + PAUSE
        self._tell("elsewhere", job)

    def _died(self, job: Job, message: str) -> None:
        job.began = None
        if job.tries <= self.retries:
            job.state = State.WAITING
            self._tell("died", job)
        else:
            times = f"{job.tries} workers" if job.tries > 1 else "its worker"
            self._fail(
                job, f"{times} died making it, the last one as {message}; the same command goes on where it was."
            )

    def _fail(self, job: Job, message: str) -> None:
        job.state, job.began, job.message = State.FAILED, None, message
        self._tell("failed", job)
        for other in self.jobs.values():
            if job.place in other.requires and other.state not in ENDS:
                self._fail(other, f"it starts from {job.name} ({job.config.identity()}), which failed: {message}")

    def _look_around(self, workers: Workers) -> None:
        """Look at what no worker tells: runs that others make, and those that take too long."""
        now = self.clock()
        for job in self.jobs.values():
            if job.state is State.ELSEWHERE and not self._arrived(job) and job.seen_by is not None:
                if now > job.seen_by:
                    why = "it was made, and is not in the store: does its worker's machine see the same folder?"
                    self._fail(job, why)
            elif job.state is State.RUNNING and self._late(job, now):
                workers.stop(job.place)
                limit = f"the limit of {self.time_limit:g} s"
                why = f"it took longer than {limit} and was stopped; with a longer one it goes on where it was."
                self._fail(job, why)

    def _late(self, job: Job, now: float) -> bool:
        return self.time_limit is not None and job.began is not None and now - job.began > self.time_limit

    def _cancel(self, workers: Workers) -> None:
        for job in self.jobs.values():
            if job.state is State.RUNNING:
                workers.stop(job.place)
            if job.state not in ENDS:
                job.state, job.began = State.CANCELLED, None
                self._tell("cancelled", job)

    def _tell(self, kind: str, job: Job) -> None:
        self.listen(Event(kind, job, self.left()))
