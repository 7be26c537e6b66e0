"""Images a second from a store several times larger than the memory that the process may use.

    python benchmarks/larger_than_memory.py FOLDER [--store 8192] [--memory 1500] [--rounds 2] [--seconds 8]

FOLDER is on the disk that is measured, and keeps the store for another time; delete it afterwards. Pixels are random
bytes. Compared are the map left to page faults (as it is, and where the system is told not to read what lies around),
evenlens' reading ahead, and two formats of the field, where they are installed (pip install litdata webdataset):
litdata's chunks, shuffled over all of them, and webdataset's tar files, shuffled by file and then in a buffer of 5,000.
The first three read any order, here uniformly random; a streaming format an order of its own. Each measurement is a
process of its own in a control group with little memory (which takes root), on files that are not in the system's
cache, for some seconds: the batches alone, augmented as evenlens does it, and with a training step of the small CNN on
each. The ways take turns.
"""

import argparse
import importlib.util
import json
import mmap
import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

BATCH, SHARD, STREAMED = 256, 64 << 20, 80_000  # images; bytes of a chunk; images in each streaming format
WAYS = ("map", "map, no read-around", "ahead", "litdata", "litdata, workers", "webdataset", "webdataset, workers")
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))  # version 1, version 2


@contextmanager
def limited(mib):
    """Make a control group with a limit of memory; give the file that a process writes its number to, or nothing."""
    top = next((top for top in GROUPS if (top / "cgroup.procs").exists()), GROUPS[1])
    group = top / "evenlens-benchmark"
    try:
        group.mkdir(exist_ok=True)
        name = "memory.limit_in_bytes" if top == GROUPS[0] else "memory.max"
        (group / name).write_text(str(mib << 20))
    except OSError as error:
        print(f"no limit of memory could be set ({error}): choose a store that is larger than the machine's")
        yield ""
        return
    try:
        yield str(group / "cgroup.procs")
    finally:
        group.rmdir()


def make_store(path, num_bytes):
    if path.exists() and path.stat().st_size == num_bytes:
        return
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, num_bytes, SHARD):
            file.write(generator.bytes(min(SHARD, num_bytes - start)))
        os.fsync(file.fileno())


def forget(path):
    """Have the system drop files from its cache."""
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if each.is_file():
            file = os.open(each, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


def disk(path):
    """Measure the disk alone: one request at a time."""
    forget(path)
    file, size = os.open(path, os.O_RDONLY), path.stat().st_size
    began = time.perf_counter()
    in_order = sum(len(os.pread(file, 1 << 20, start)) for start in range(0, 512 << 20, 1 << 20))
    sequential = in_order / (time.perf_counter() - began) / 1e6
    forget(path)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    draws, began, done = random.Random(0), time.perf_counter(), 0
    while time.perf_counter() - began < 2:
        os.pread(file, 16 << 10, draws.randrange(size >> 14) << 14)
        done += 1
    os.close(file)
    print(f"disk, one request at a time: {sequential:,.0f} MB/s in order, {done / 2:,.0f} times 16 KiB/s anywhere")


def row_of(arguments):
    path, row, size = arguments
    return {"image": np.memmap(path, np.uint8, "r", offset=row * size**2 * 3, shape=(size, size, 3)).copy()}


def write_streams(folder, path, size):
    """Write the first images of the store in both formats, where they are installed and not there yet."""
    rows = [(str(path), row, size) for row in range(STREAMED)]
    if importlib.util.find_spec("litdata") and not (folder / "litdata" / "index.json").exists():
        import litdata

        litdata.optimize(row_of, rows, str(folder / "litdata"), chunk_bytes=SHARD, num_workers=1)
    if importlib.util.find_spec("webdataset") and not (folder / "webdataset").exists():
        import webdataset

        (folder / "webdataset").mkdir()
        with webdataset.ShardWriter(str(folder / "webdataset" / "%04d.tar"), maxsize=SHARD, verbose=0) as writer:
            for row in rows:
                writer.write({"__key__": f"{row[1]:07d}", "bin": row_of(row)["image"].tobytes()})


def part_of(way, path, size):
    import torch

    from evenlens.data.ahead import ReadAhead
    from evenlens.data.dataset import FairDataset, Task, to_tensor

    num = path.stat().st_size // (size * size * 3)
    pixels = np.memmap(path, np.uint8, "r", shape=(num, size, size, 3))
    label, task = torch.arange(num) % 2, Task(("0", "1"), ("a", "b"), size)
    ahead = ReadAhead(pixels) if way == "ahead" else None
    if "no read-around" in way:
        pixels.base.madvise(mmap.MADV_RANDOM)
    return FairDataset(to_tensor(pixels), torch.arange(num), label, label, range(num), {}, task, ahead=ahead)


def streamed(way, folder, size):
    """Give batches (B, H, W, 3) uint8 of a streaming format, over and over."""
    import torch

    workers = len(os.sched_getaffinity(0)) if "workers" in way else 0
    if way.startswith("litdata"):
        import litdata

        loader = litdata.StreamingDataLoader(
            litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, drop_last=True),
            batch_size=BATCH,
            num_workers=workers,
        )
        while True:
            yield from (torch.as_tensor(batch["image"]) for batch in loader)
    import webdataset

    shards = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    decode = lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8).view(size, size, 3)  # noqa: E731
    data = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(5000)
    data = data.to_tuple("bin").map_tuple(decode).batched(BATCH, partial=False)
    while True:
        yield from (batch[0] for batch in torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers))


def batches_of(way, folder, size, part):
    """Give training batches without end."""
    import torch

    from evenlens.data import augment
    from evenlens.data.dataset import Batch

    if way.startswith(("map", "ahead")):
        while True:
            yield from part.batches()
    rows = torch.arange(BATCH)
    for images in streamed(way, folder, size):
        image = augment.crop_flip(images, rows, part.generator).to(torch.float32, memory_format=part.memory_format)
        yield Batch(image.div_(255.0), part.label[:BATCH], part.group[:BATCH], rows)


def resident():
    """Give MiB of this process: all that is resident, its share of what is shared, and what is its own."""
    entries = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    found = {words[0]: int(words[1]) / 1024 for words in entries}
    own = found["Private_Clean:"] + found["Private_Dirty:"]
    return [round(value) for value in (found["Rss:"], found["Pss:"], own)]


def measure(way, folder, path, size, seconds, with_step):
    import torch

    from evenlens import engine
    from evenlens.config import RunConfig
    from evenlens.method import Method

    device = engine.start()
    part = part_of(way, path, size).on(device, batch_size=BATCH, augment="crop_flip")
    content = {"dataset": "", "method": "", "net": {"backbone": "small_cnn"}, "train": {"batch_size": BATCH}}
    method = Method(part.task, RunConfig.model_validate({**content, "precision": "fp32"}))
    method.prepare(part, part)
    torch.manual_seed(0)
    done, memory, began = 0, [], 0.0
    for batch in batches_of(way, folder, size, part):
        if with_step:
            method.step(batch)
        if not began:  # the first one starts workers, and threads
            began = time.perf_counter()
            continue
        done += len(batch.image)
        passed = time.perf_counter() - began
        if passed > seconds * (len(memory) + 1) / 4:
            memory.append(resident())
        if passed > seconds:
            break
    print(json.dumps({"speed": done / passed, "memory": memory}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--store", type=int, default=8192, help="MiB")
    parser.add_argument("--memory", type=int, default=1500, help="MiB")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    path = given.folder / "pixels.u8"
    if given.one:
        way, step, group = given.one
        if group:
            Path(group).write_text(str(os.getpid()))
        measure(way, given.folder, path, given.size, given.seconds, step == "step")
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    make_store(path, given.store << 20)
    disk(path)
    write_streams(given.folder, path, given.size)
    ways = [
        way for way in given.ways if way.startswith(("map", "ahead")) or (given.folder / way.partition(",")[0]).exists()
    ]
    print(f"{given.size} px, store of {given.store:,} MiB, {given.memory:,} MiB of memory, {os.cpu_count()} cores")
    with limited(given.memory) as group:
        for step in ("alone", "step"):
            for _ in range(given.rounds):
                for way in ways:
                    forget(given.folder)
                    command = [sys.executable, __file__, *sys.argv[1:], "--one", way, step, group]
                    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                    found = json.loads(made.splitlines()[-1])
                    print(f"  {step:5} {way:20} {found['speed']:8,.0f} images/s   RSS, PSS, own: {found['memory']}")


if __name__ == "__main__":
    main()
