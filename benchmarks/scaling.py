"""What a sweep costs beside its runs, what a second worker brings, and what memory a worker needs of mapped images.

    python benchmarks/scaling.py [--only overhead speed memory kills] [--engines local ray] [--rounds 3] [--runs 200]

overhead: many tiny runs with two workers; wall time x workers less the seconds of the runs themselves, for each run.
speed: 24 runs with one and with two workers of one thread, in turns; the time from the first run's begin to the last
one's end, and all of it with the start of Ray and the workers. memory: the most that a worker has of its own
(Anonymous), and with what it sees of files (Pss and Private), by smaps_rollup, while it trains on mapped images of 0.1
to 1 GB; pages of a file that it looked at count to the latter two, and are taken back by the system when memory is
short. kills: a worker, and then the sweep itself, are killed with signal 9 in the middle; the sweep is repeated, and
its runs are counted and held against undisturbed ones.
Needs two cores to itself.
"""

import argparse
import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TINY = {"train.epochs": 1, "precision": "fp32", "data.num_train": 200, "data.num_val": 80, "data.num_test": 80}
LARGER, NUM = {"train.epochs": 2, "precision": "fp32"}, 24
GIGABYTES, SIZE, STEPS = (0.1, 0.5, 1.0), 64, 30


def configs_of(dataset, settings, num):
    from evenlens.config import make_config

    return [make_config(dataset, "erm", {**settings, "seed": seed}) for seed in range(1, num + 1)]


def swept(dataset, settings, num, engine, jobs, runs):
    """Sweep in this process, one thread a worker; give what it took."""
    import evenlens.workers.local
    import evenlens.workers.ray_cluster
    from evenlens.sweeps import sweep
    from evenlens.workers import Engine

    evenlens.workers.local.cores = evenlens.workers.ray_cluster.cores = lambda: jobs
    seconds, moments = [], []

    def listen(event):
        if event.kind == "started":
            moments.append(time.perf_counter())
        if event.kind == "done":
            moments.append(time.perf_counter())
            seconds.append(event.job.seconds)

    began = time.perf_counter()
    with largest_memory() if dataset != "avatars" else contextlib.nullcontext({}) as memory:
        outcome = sweep(configs_of(dataset, settings, num), runs, Engine(engine, jobs=jobs), listen=listen)
    wall = time.perf_counter() - began
    assert outcome.made == num, outcome.failed
    return {"wall": wall, "making": moments[-1] - moments[0], "seconds": sum(seconds), **memory}


@contextlib.contextmanager
def largest_memory():
    """Look at the workers' memory every tenth of a second: the most that one of them had, in megabytes."""
    found, ended = {"Pss": 0.0, "Private": 0.0, "Anonymous": 0.0}, threading.Event()

    def look():
        while not ended.wait(0.1):
            for pid in workers_of(os.getpid()):
                with contextlib.suppress(OSError):
                    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                    has = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
                    has["Private"] = has["Private_Clean"] + has["Private_Dirty"]
                    for name in found:
                        found[name] = max(found[name], has[name])

    thread = threading.Thread(target=look)
    thread.start()
    yield found
    ended.set()
    thread.join()


def workers_of(pid):
    """Find the workers among all processes below one: those that were spawned, or that Ray gave a task's name."""
    below, found, parents = {pid}, [], {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    for _ in range(6):
        below |= {child for child, parent in parents.items() if parent in below}
    for child in below - {pid}:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in words or words.startswith((b"ray::avatars/", b"ray::mapped", b"ray::_make")):
                found.append(child)
    return found


def in_a_process(home, *words):
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", *map(str, words)]
    return json.loads(subprocess.run(command, env=env_of(home), check=True, stdout=subprocess.PIPE).stdout)


def env_of(home):
    return {**os.environ, "EVENLENS_CACHE": str(home / "cache"), "EVENLENS_DATA": str(home), "OMP_NUM_THREADS": "1"}


# ---- what is measured


def overhead(home, engines, rounds, num):
    for engine in engines:
        each = []
        for number in range(rounds):
            took = in_a_process(home, "avatars", json.dumps(TINY), num, engine, 2, home / f"overhead-{engine}-{number}")
            each.append((2 * took["wall"] - took["seconds"]) / num)
            print(f"  {engine}: {num} runs in {took['wall']:.1f} s, {took['seconds'] / num:.2f} s each", flush=True)
        print(f"overhead, {engine}: {statistics.median(each):.3f} s a run ({', '.join(f'{s:.3f}' for s in each)})")


def speed(home, engines, rounds):
    for engine in engines:
        took = {1: [], 2: []}
        for number in range(rounds):
            for jobs in (1, 2):
                place = home / f"speed-{engine}-{jobs}-{number}"
                took[jobs].append(in_a_process(home, "avatars", json.dumps(LARGER), NUM, engine, jobs, place))
        for what in ("making", "wall"):
            ratios = [one[what] / two[what] for one, two in zip(took[1], took[2], strict=True)]
            times = ", ".join(f"{one[what]:.1f} / {two[what]:.1f}" for one, two in zip(took[1], took[2], strict=True))
            median = statistics.median(ratios)
            print(f"speed-up of 2 workers over 1, {engine}, {what}: {median:.2f} (seconds {times})", flush=True)


def memory(home, engines):
    for gigabytes in GIGABYTES:
        name = mapped(home, gigabytes)
        settings = {"train.epochs": 1, "train.steps": STEPS, "precision": "fp32", "data.size": SIZE}
        for engine in engines:
            took = in_a_process(home, name, json.dumps(settings), 4, engine, 2, home / f"memory-{engine}-{gigabytes}")
            said = ", ".join(f"{what} {took[what]:.0f} MB" for what in ("Pss", "Private", "Anonymous"))
            print(f"memory of a worker, {engine}, {gigabytes:g} GB mapped: {said}", flush=True)


def mapped(home, gigabytes):
    """Lay out a data set of that many bytes: few pictures under many names."""
    import numpy as np
    from PIL import Image

    from evenlens.data import own

    name = f"mapped{round(10 * gigabytes)}"
    folder, generator, rows = home / name, np.random.default_rng(0), []
    folder.mkdir()
    for k in range(round(gigabytes * 1e9 / (3 * SIZE * SIZE))):
        path = folder / f"{k:06d}.jpg"
        if k < 500:
            noise = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((SIZE, SIZE)).save(path)
        else:
            path.hardlink_to(folder / f"{k % 500:06d}.jpg")
        part = {0: "val", 1: "test"}.get(k // 500, "train")
        rows.append([path.name, f"label {k % 2}", f"group {k // 2 % 2}", part])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label", "group", "split"], *rows])
    own.write(folder, own.Description(label="label", sensitive=("group",), table="labels.csv", split="split"))
    return name


def kills(home, engines, num):
    """Kill a worker and the sweep; repeat it; count."""
    whole = ("avatars", json.dumps(TINY), num)
    in_a_process(home, *whole, "local", 2, home / "undisturbed")
    for engine in engines:
        runs = home / f"kills-{engine}"
        command = [sys.executable, __file__, "--one", *map(str, (*whole, engine, 2, runs))]
        driver = subprocess.Popen(command, env=env_of(home), stdout=subprocess.DEVNULL)
        made = dict.fromkeys(wait_for(runs, num // 4))
        victim = workers_of(driver.pid)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(runs, num // 2)
        workers = workers_of(driver.pid)
        driver.kill()
        driver.wait()
        left, until = [victim, *workers], time.monotonic() + 20
        while left and time.monotonic() < until:
            left = [pid for pid in left if not has_ended(pid)]
            time.sleep(0.1)
        before = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/*/[!.]*/metrics.json")}
        in_a_process(home, *whole, engine, 2, runs, "--again")
        after = {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/*/[!.]*/metrics.json")}
        again = sum(after[name] != before[name] for name in before)
        same = sum(
            (home / "undisturbed" / path.relative_to(runs)).read_bytes() == path.read_bytes()
            for path in runs.glob("*/*/[!.]*/metrics.json")
        )
        print(
            f"kills, {engine}: {len(made)} runs were there when a worker was killed and {len(before)} when the sweep "
            f"was; processes left: {len(left)}; after the repeat {len(after)} of {num}, {again} made twice, {same} as "
            "undisturbed",
            flush=True,
        )


def has_ended(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def wait_for(runs, num):
    while len(there := [path.name for path in runs.glob("*/*/[!.]*")]) < num:
        time.sleep(0.05)
    return there


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["overhead", "speed", "memory", "kills"])
    parser.add_argument("--engines", nargs="+", default=["local", "ray"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=200)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for settings in (TINY, LARGER):  # the faces are drawn once
            in_a_process(home, "avatars", json.dumps({**settings, "train.epochs": 1}), 1, "local", 1, home / "first")
        if "overhead" in asked.only:
            overhead(home, asked.engines, asked.rounds, asked.runs)
        if "speed" in asked.only:
            speed(home, asked.engines, asked.rounds)
        if "memory" in asked.only:
            memory(home, asked.engines)
        if "kills" in asked.only:
            kills(home, asked.engines, asked.runs)


def one(dataset, settings, num, engine, jobs, runs, *again):
    if again:
        import evenlens.sweeps as sweeps
        from evenlens.workers import Engine

        configs = configs_of(dataset, json.loads(settings), int(num))
        outcome = sweeps.sweep(configs, Path(runs), Engine(engine, jobs=int(jobs)))
        assert len(outcome.folders) == int(num), outcome.failed
        return {}
    return swept(dataset, json.loads(settings), int(num), engine, int(jobs), Path(runs))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*sys.argv[2:])))
    else:
        main()
