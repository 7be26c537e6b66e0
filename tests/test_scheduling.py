"""Which run is made when: orders, limits and misfortunes, with workers and a clock that are made up."""

import random

import pytest

from evenlens.config import make_config
from evenlens.errors import UserError
from evenlens.scheduling import PATIENCE, Halted, Job, Schedule, State
from evenlens.workers import News, Workers


class Played(Workers):
    """Workers that say what a test has them say, at a time that it sets."""

    def __init__(self, slots=1, script=None):
        self.room, self.script = slots, script or {}
        self.now, self.started, self.stopped, self.there, self.begun = 0.0, [], [], set(), set()
        self.under_way: list[str] = []

    @property
    def slots(self):
        return self.room

    def start(self, task):
        assert task.place not in self.under_way
        assert {*task.requires} <= self.there
        self.started.append(task.place)
        self.under_way.append(task.place)

    def events(self, timeout):
        self.now += timeout
        news = []
        for place in [*self.under_way]:
            for kind in self.script.get(place, ["made"]).pop(0).split():
                if place not in self.begun:
                    self.begun.add(place)
                    news.append(News(place, "started"))
                if kind == "made":
                    self.there.add(place)
                if kind != "nothing":
                    self.under_way.remove(place)
                    self.begun.discard(place)
                    news.append(News(place, kind, seconds=10.0, message=f"{place} {kind}"))
        return news

    def stop(self, place):
        self.stopped.append(place)
        self.under_way.remove(place)

    def close(self):
        pass


def job(place, *requires, devices=1):
    return Job(place, make_config("d", place, {"train.devices": devices}), requires)


def played(*jobs, slots=1, look=lambda: False, heard=None, script=None, **given):
    workers = Played(slots, {place: [*lines] for place, lines in (script or {}).items()})
    for each in jobs:
        workers.script.setdefault(each.place, ["made"])
    told = [].append if heard is None else heard
    schedule = Schedule(jobs, workers.there.__contains__, clock=lambda: workers.now,
                        listen=lambda event: told((event.kind, event.job.place, event.left)), **given)  # fmt: skip
    schedule.work(workers, look)
    return workers, schedule


def states(schedule):
    return {place: each.state.value for place, each in schedule.jobs.items()}


# ---- order


def test_what_others_require_goes_first_and_else_who_came_first():
    workers, _ = played(job("a"), job("b", "z"), job("c"), job("z"))
    assert workers.started == ["z", "a", "b", "c"]


def test_a_chain_of_requirements_is_made_from_its_end():
    workers, schedule = played(job("a", "b"), job("b", "c"), job("c"), slots=3)
    assert workers.started == ["c", "b", "a"]
    assert {*states(schedule).values()} == {"done"}


def test_no_more_run_side_by_side_than_there_are_slots():
    most = []

    class Counting(Played):
        def events(self, timeout):
            most.append(len(self.under_way))
            return super().events(timeout)

    jobs = [job(letter) for letter in "abcdefg"]
    workers = Counting(3, {letter: ["nothing", "made"] for letter in "abcdefg"})
    Schedule(jobs, workers.there.__contains__, clock=lambda: workers.now).work(workers)
    assert max(most) == 3


def test_a_run_on_several_devices_takes_as_many_slots_and_is_not_overtaken():
    workers, _ = played(job("a"), job("two", devices=2), job("one"), slots=2, script={"a": ["nothing", "made"]})
    assert workers.started == ["a", "two", "one"]
    workers, _ = played(job("big", devices=8), job("one"), slots=2)
    assert workers.started == ["big", "one"]  # which is more than there is, and goes alone


def test_further_jobs_are_told_of_and_made_and_those_that_are_known_stay_as_they_are():
    told = []
    workers, schedule = played(job("a"), heard=told.append)
    assert schedule.over
    schedule.add([job("a"), job("c", "b"), job("b")])
    assert states(schedule) == {"a": "done", "c": "waiting", "b": "waiting"}
    workers.script |= {"b": ["made"], "c": ["made"]}
    schedule.work(workers)
    assert workers.started == ["a", "b", "c"]
    assert [place for kind, place, _ in told if kind == "waiting"] == ["a", "c", "b"]


def test_what_is_there_is_not_made():
    there = job("a")
    there.state = State.DONE
    heard = []
    schedule = Schedule([there], lambda place: True, listen=lambda event: heard.append(event.kind))
    assert schedule.over
    assert heard == ["skipped"]


def test_whatever_happens_every_run_ends_once_and_after_what_it_requires():
    """Random requirements and misfortunes; that none starts too early, or twice at once, the workers look after."""
    for seed in range(20):
        check_that_every_run_ends(seed)


def check_that_every_run_ends(seed):
    drawn = random.Random(seed)
    names = [f"run{number}" for number in range(25)]
    jobs = [job(name, *drawn.sample(names[:k], min(k, drawn.randrange(3)))) for k, name in enumerate(names)]
    drawn.shuffle(jobs)
    misfortunes = ["nothing", "died", "busy", "nothing"]
    script = {name: [*drawn.choices(misfortunes, k=drawn.randrange(3)), drawn.choice(["made", "made", "refused"])]
              for name in names}  # fmt: skip
    heard = []
    workers, schedule = played(*jobs, slots=drawn.randint(1, 4), script=script, heard=heard.append)
    ends = [place for kind, place, _ in heard if kind in ("done", "failed")]
    assert sorted(ends) == sorted(names)
    for each in jobs:
        assert (each.state is State.DONE) == (each.place in workers.there)
        wrong = any(schedule.jobs[place].state is State.FAILED for place in each.requires)
        assert each.state is State.FAILED if wrong else each.state is not State.WAITING


# ---- misfortunes


def test_a_run_that_is_refused_is_not_tried_again_and_what_starts_from_it_is_not_made():
    workers, schedule = played(job("a", "b"), job("b", "c"), job("c"), job("d"), script={"c": ["refused"]}, slots=2)
    assert workers.started == ["c", "d"]
    assert states(schedule) == {"a": "failed", "b": "failed", "c": "failed", "d": "done"}
    assert schedule.jobs["c"].message == "c refused"
    assert schedule.jobs["b"].message.startswith("it starts from d c seed 1 (")
    assert schedule.jobs["b"].message.endswith("which failed: c refused")


@pytest.mark.parametrize(("retries", "dies", "tries", "state"), [
    (2, 2, 3, "done"), (2, 3, 3, "failed"), (0, 1, 1, "failed"),
], ids=["as often as allowed", "once more", "no retry"])  # fmt: skip
def test_a_run_whose_worker_died_is_tried_again(retries, dies, tries, state):
    workers, schedule = played(job("a"), retries=retries, script={"a": ["died"] * dies + ["made"]})
    assert len(workers.started) == tries
    assert states(schedule) == {"a": state}
    assert ("the last one as a died" in schedule.jobs["a"].message) == (state == "failed")


def test_while_another_process_makes_a_run_other_work_goes_on():
    heard = []
    workers, schedule = played(job("a"), job("b"), job("c"), heard=heard.append, script={"a": ["busy", "made"]})
    assert workers.started == ["a", "b", "c", "a"]
    assert schedule.jobs["a"].tries == 1  # that somebody else was at it is no try
    assert ("elsewhere", "a", None) in [(kind, place, None) for kind, place, _ in heard]


def test_a_run_that_another_process_made_is_done_and_what_waits_for_it_goes_on():
    workers = Played(1, {"a": ["busy"] * 9, "b": ["made"]})
    schedule = Schedule([job("a"), job("b", "a")], workers.there.__contains__, clock=lambda: workers.now)

    def look():
        if workers.now > 3:
            workers.there.add("a")
        return False

    schedule.work(workers, look)
    assert states(schedule) == {"a": "done", "b": "done"}
    assert not schedule.jobs["a"].made
    assert schedule.jobs["b"].made


def test_a_run_that_takes_longer_than_the_limit_is_stopped():
    workers, schedule = played(job("a"), job("b"), time_limit=5, script={"a": ["nothing"] * 50})
    assert workers.stopped == ["a"]
    assert states(schedule) == {"a": "failed", "b": "done"}
    assert "longer than the limit of 5 s" in schedule.jobs["a"].message
    assert 5 < workers.now < 10


def test_a_run_that_was_made_and_cannot_be_seen_is_waited_for_and_then_failed():
    workers = Played(1, {"a": ["made"]})
    late = Schedule([job("a")], lambda place: workers.now > 30, clock=lambda: workers.now)
    late.work(workers)
    assert states(late) == {"a": "done"}
    workers = Played(1, {"a": ["made"]})
    never = Schedule([job("a")], lambda place: False, clock=lambda: workers.now)
    never.work(workers)
    assert states(never) == {"a": "failed"}
    assert "is not in the store" in never.jobs["a"].message
    assert PATIENCE < workers.now < PATIENCE + 5
    assert workers.started == ["a"]


def test_where_no_run_can_be_made_any_more_none_is_begun():
    with pytest.raises(Halted, match="b halt"):
        played(job("a"), job("b"), job("c"), script={"b": ["halt"]})


def test_what_is_cancelled_stops_and_what_is_done_stays():
    asked = iter([False, False, True])
    workers, schedule = played(job("a"), job("b"), job("c"), look=lambda: next(asked), script={"b": ["nothing"] * 9})
    assert states(schedule) == {"a": "done", "b": "cancelled", "c": "cancelled"}
    assert workers.stopped == ["b"]


def test_what_is_heard_of_a_run_that_was_stopped_changes_nothing():
    _, schedule = played(job("a"), time_limit=2, script={"a": ["nothing"] * 9})
    schedule._hear(News("a", "made"))
    assert states(schedule) == {"a": "failed"}


@pytest.mark.parametrize(
    ("given", "said"), [({"retries": -1}, "retries=-1"), ({"time_limit": 0}, "time-limit=0")], ids=["retries", "time"]
)
def test_limits_that_are_none_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        Schedule([], lambda place: True, **given)


# ---- time left


def test_the_time_left_is_that_of_the_median_run_over_the_slots():
    jobs = [job(letter) for letter in "abcdefgh"]
    schedule = Schedule(jobs, lambda place: True, clock=lambda: 100.0)
    assert schedule.left() is None
    for each, seconds in zip(jobs[:3], (10.0, 20.0, 90.0), strict=True):
        each.state, each.made, each.seconds = State.DONE, True, seconds
    schedule.slots = 2
    assert schedule.left() == 5 * 20 / 2
    jobs[3].state, jobs[3].began = State.RUNNING, 95.0
    assert schedule.left() == (15 + 4 * 20) / 2
    schedule.slots = 8
    assert schedule.left() == 20  # no shorter than the longest
    for each in jobs[3:]:
        each.state = State.FAILED
    assert schedule.left() == 0
