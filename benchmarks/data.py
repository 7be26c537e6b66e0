"""Images a second of evenlens' decoding against a Pillow loop and torchvision's decoder, side by side in one run.

    python benchmarks/data.py [--images 100000] [--rounds 3] [--size 64]

JPEGs of 178 x 218 pixels, the size of CelebA's, are written to a folder that goes away afterwards. First, each way to
read one decodes the same files on one core, each in a process of its own, in turns; ratios of medians are printed.
Then all files are prepared on all cores, in two numbers, to show that memory does not grow with them; and once more
with the process killed half-way, to show that what goes on ends with the same fingerprint.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("Pillow", "torchvision", "evenlens")
ON_ONE_CORE = 4000  # files of a measurement on one core
DIFFERENT = 500  # pictures; each is written many times, as a file of its own


def write_jpegs(folder, num):
    """Write smooth colours with edges and a little noise: about as many bytes as a photograph of a face."""
    import io

    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    generator = np.random.default_rng(0)
    encoded = []
    for _ in range(DIFFERENT):
        image = Image.fromarray(generator.integers(0, 255, (7, 6, 3), dtype=np.uint8)).resize((178, 218), 3)
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            left, top = generator.integers(0, 140, 2).tolist()
            right, bottom = left + 8 + int(generator.integers(40)), top + 8 + int(generator.integers(60))
            draw.ellipse((left, top, right, bottom), fill=tuple(generator.integers(0, 255, 3).tolist()))
        noisy = np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.int16)
        noisy = noisy + generator.normal(0, 4, noisy.shape)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for k in range(num):
        (folder / f"{k:06d}.jpg").write_bytes(encoded[k % DIFFERENT])


def one_core(way, folder, size):
    """Decode on one core; give images a second."""
    files = sorted(Path(folder).iterdir())[:ON_ONE_CORE]
    if way == "Pillow":
        import numpy as np
        from PIL import Image

        def read(path):
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    elif way == "torchvision":
        import torch
        from torchvision.io import ImageReadMode, decode_image, read_file
        from torchvision.transforms.functional import resize

        torch.set_num_threads(1)

        def read(path):
            image = decode_image(read_file(str(path)), ImageReadMode.RGB)
            return resize(image, [size, size], antialias=True).permute(1, 2, 0).numpy()
    else:
        from evenlens.data.images import read_image

        def read(path):
            return read_image(path, size)[0]

    for path in files[:200]:
        read(path)
    began = time.perf_counter()
    for path in files:
        assert read(path).shape == (size, size, 3)
    print(json.dumps({"speed": len(files) / (time.perf_counter() - began)}))


def prepare(folder, num, size):
    """Make a store on all cores; give seconds, the part of the cores' time that was used, and memory."""
    import resource

    from evenlens.data.images import open_files
    from evenlens.processes import cores

    files = sorted(Path(folder).iterdir())[:num]
    began = time.perf_counter()
    store = open_files(files, size, "benchmark")
    seconds = time.perf_counter() - began
    used = os.times()
    busy = (used.user + used.system + used.children_user + used.children_system) / (seconds * cores())
    memory = {
        "parent": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "largest child": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    }
    found = {"seconds": seconds, "busy": busy, "memory": memory, "fingerprint": store.fingerprint, "cores": cores()}
    print(json.dumps(found))


def call(*words, cache):
    environment = {**os.environ, "EVENLENS_CACHE": str(cache)}
    made = subprocess.run(
        [sys.executable, __file__, *map(str, words)], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(made.stdout.splitlines()[-1])


def kill_half_way(folder, num, size, cache):
    """Kill a preparation when half of its chunks are in the journal; say how many were."""
    environment = {**os.environ, "EVENLENS_CACHE": str(cache)}
    process = subprocess.Popen(
        [sys.executable, __file__, "--prepare", str(folder), str(num), str(size)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None:
        done = sum(path.read_text().count("\n") for path in cache.glob("images/*/journal.jsonl"))
        if 256 * done >= num / 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait()
    assert not list(cache.glob("images/*/store.json")), "it was done before it could be killed"
    return 256 * done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--one-core", nargs=3, metavar=("WAY", "FOLDER", "SIZE"), help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=3, metavar=("FOLDER", "NUM", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_core:
        one_core(given.one_core[0], given.one_core[1], int(given.one_core[2]))
        return
    if given.prepare:
        prepare(given.prepare[0], int(given.prepare[1]), int(given.prepare[2]))
        return
    with tempfile.TemporaryDirectory() as place:
        folder, size = Path(place) / "jpegs", given.size
        folder.mkdir()
        write_jpegs(folder, given.images)
        speeds = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way in WAYS:
                speeds[way].append(call("--one-core", way, folder, size, cache=Path(place) / "none")["speed"])
        median = {way: statistics.median(found) for way, found in speeds.items()}
        print(f"JPEG 178 x 218 -> {size} px on one core, median of {given.rounds} rounds in turns")
        for way in WAYS:
            print(f"  {way:12} {median[way]:8,.0f} images/s   evenlens is {median['evenlens'] / median[way]:.2f} times")
        print("prepare on all cores")
        for num in (given.images // 5, given.images):
            made = call("--prepare", folder, num, size, cache=Path(place) / f"cache {num}")
            memory = ", ".join(f"{name} {kib / 1024:.0f} MiB" for name, kib in made["memory"].items())
            print(
                f"  {num:9,} images in {made['seconds']:.1f} s: {num / made['seconds'] / made['cores']:,.0f} a second "
                f"and core, {100 * made['busy']:.0f} % of {made['cores']} cores busy; {memory}"
            )
        killed = Path(place) / "killed"
        done = kill_half_way(folder, given.images, size, killed)
        again = call("--prepare", folder, given.images, size, cache=killed)
        same = "the same fingerprint" if again["fingerprint"] == made["fingerprint"] else "ANOTHER FINGERPRINT"
        print(f"  killed after {done:,}, gone on with in {again['seconds']:.1f} s: {same}")


if __name__ == "__main__":
    main()
