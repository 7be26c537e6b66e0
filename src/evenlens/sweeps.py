"""Many runs: skip what is done, make the rest side by side, what others start from first.

A run's folder exists if and only if the run is complete, and it is named by a hash of its settings. So a sweep that
was killed, cancelled or changed goes on with the same command, and two of them on one store share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenlens import plan, recipes, run
from evenlens.config import RunConfig
from evenlens.errors import UserError
from evenlens.recipes import Recipe
from evenlens.run_folder import Run
from evenlens.scheduling import Event, Halted, Job, Schedule, State
from evenlens.stores import Store, Unreachable, open_store
from evenlens.sweep_records import Record
from evenlens.workers import Engine

Listen = Callable[[Event], None]
Further = Callable[[Sequence[Path]], Sequence[RunConfig]]


def unheard(event: Event) -> None:
    """Listen to nothing."""


def no_further(folders: Sequence[Path]) -> Sequence[RunConfig]:
    """Ask for no more runs."""
    return ()


@dataclass
class Outcome:
    """What became of a sweep.

    Attributes:
        folders: of the complete runs, in the order of the configurations.
        failed: why a run was not made, by its description.
        made: how many of them were made now; the others were there.
    """

    folders: list[Path] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    made: int = 0


def sweep(
    configs: Sequence[RunConfig],
    runs: Path | str,
    engine: Engine = Engine(),  # noqa: B008  it is frozen
    *,
    retries: int = 2,
    time_limit: float | None = None,
    recipe: Path | None = None,
    listen: Listen = unheard,
    watch_images: run.Watch = run.silent,
    further: Further = no_further,
) -> Outcome:
    """Make all runs that are not there yet, and those that they start from, each in a process of its own.

    A run that fails does not stop the others.

    Args:
        configs: what to run.
        runs: folder for the runs' folders, or the address of a store.
        engine: what makes them.
        retries: how often a run is tried again whose worker died, as for want of memory.
        time_limit: seconds that one run may take; None is any.
        recipe: where the configurations stand, by which `sweep_records` finds this sweep.
        listen: told what happens to each run.
        watch_images: told of the decoding of images, which is done first.
        further: asked for more configurations when all runs have come to an end, until it gives none; it gets the
            folders of those that are complete.

    Raises:
        UserError: something given cannot be used; or the sweep was cancelled, or the disk or the store failed it: what
            is complete stays, and the same goes on.
    """
    store = open_store(runs)
    planned = _Plan(store.complete(), watch_images)
    asked = planned.all_of(complete(configs, planned.known))
    schedule = Schedule(planned.jobs.values(), store.has, retries=retries, time_limit=time_limit, listen=listen)
    jobs = schedule.jobs

    def there() -> list[Path]:
        for place in asked:
            store.fetch(place)
        return [store.folder / place for place in asked if jobs[place].state is State.DONE]

    def ask() -> None:
        while schedule.over and not schedule.cancelled and (more := further(there())):
            places = planned.all_of(complete(more, planned.known))
            asked.extend(place for place in places if place not in asked)
            schedule.add(planned.jobs.values())

    ask()
    if not schedule.over:
        _work(schedule, store, engine, recipe, ask)
    return Outcome(
        there(),
        {_named(jobs[place]): jobs[place].message for place in asked if jobs[place].state is State.FAILED},
        sum(jobs[place].made for place in asked),
    )


def sweep_recipe(read: Recipe, runs: Path | str, **how: Any) -> tuple[Recipe, Outcome]:
    """Make all runs of a recipe; of a search that looks at the scores so far, one draw after the other.

    Args:
        read: the recipe.
        runs: folder for the runs' folders, or the address of a store.
        **how: as `sweep` takes it.

    Returns:
        The recipe with all draws of its searches, and what became of the runs.

    Raises:
        UserError: as `sweep` does.
    """

    def further(folders: Sequence[Path]) -> Sequence[RunConfig]:
        nonlocal read
        grown = recipes.go_on(read, [Run.open(folder) for folder in folders])
        if grown is None:
            return ()
        read = grown
        return grown.configs

    outcome = sweep(read.configs, runs, **how, further=further)
    return read, outcome


def complete(configs: Iterable[RunConfig], known: dict[str, RunConfig] | None = None) -> list[RunConfig]:
    """Check and complete configurations, once for those that differ in the seed alone. Reads no data.

    Args:
        configs: what to complete.
        known: keeps what was completed, for the next call.

    Raises:
        UserError: an unknown name, or a value that is not allowed.
    """
    known, found = {} if known is None else known, []
    for config in configs:
        key = config.model_copy(update={"seed": 0}).model_dump_json()
        if key not in known:
            known[key] = plan.complete(config)
        found.append(known[key].model_copy(update={"seed": config.seed}))
    return found


class _Plan:
    """The jobs of a sweep: each run once, with those that it starts from, as far as they are not there."""

    def __init__(self, there: set[str], watch: run.Watch) -> None:
        self.there, self.watch = there, watch
        self.jobs: dict[str, Job] = {}
        self.fingerprints: dict[str, str | None] = {}
        self.known: dict[str, RunConfig] = {}

    def all_of(self, configs: Sequence[RunConfig]) -> list[str]:
        """Add jobs for complete configurations, and give their places, each once."""
        return list(dict.fromkeys(self._place(self._pinned(config)) for config in configs))

    def _pinned(self, config: RunConfig) -> RunConfig:
        """Write the data's fingerprint into a configuration; each data set is read once."""
        key = _data_of(config)
        if key not in self.fingerprints:
            pinned = run.pin(config, run.load_data(config, self.watch).splits)
            self.fingerprints |= dict.fromkeys((key, _data_of(pinned)), pinned.data.fingerprint)
        data = config.data.model_copy(update={"fingerprint": self.fingerprints[key]})
        return config.model_copy(update={"data": data})

    def _place(self, config: RunConfig) -> str:
        place = f"{config.dataset}/{config.method}/{config.identity()}"
        if place not in self.jobs:
            job = Job(place, config, state=State.DONE if place in self.there else State.WAITING)
            if job.state is State.WAITING:
                job.requires = tuple(dict.fromkeys(self.all_of(complete(plan.required_configs(config), self.known))))
            self.jobs[place] = job
        return place


def _data_of(config: RunConfig) -> str:
    return f"{config.dataset} {config.data.model_dump_json()}"


def _work(schedule: Schedule, store: Store, engine: Engine, recipe: Path | None, ask: Callable[[], None]) -> None:
    """Make what is to be made, ask for more, and keep a record of it beside the runs."""
    state, why = "cancelled", ""
    with closing(engine.start(store)) as workers:  # which refuses what cannot be, before anything is written
        store.prepare()
        record = Record(store, recipe)
        try:
            while not schedule.over:
                schedule.work(workers, lambda: record.look(schedule))
                ask()
            state = "cancelled" if schedule.cancelled else "ended"
        except (Halted, Unreachable, OSError) as error:
            state, why = "halted", str(error)
        finally:
            record.close(schedule, state, why)
    there = sum(job.state is State.DONE for job in schedule.jobs.values())
    so_far = f"{there} of {len(schedule.jobs)} runs are complete and stay; the same command makes the rest."
    if state == "halted":
        raise UserError(f"The sweep was stopped: {why.rstrip('.')}. {so_far}")
    if state == "cancelled":
        raise UserError(f"The sweep was cancelled. {so_far}")


def _named(job: Job) -> str:
    return f"{job.name} ({job.config.identity()})"
