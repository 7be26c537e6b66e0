"""Images a second of evenlens' training loop against a plain PyTorch loop, side by side in one run.

    python benchmarks/training.py [--rounds 3] [--networks small_cnn resnet18]

The plain loop is what a careful person writes: a DataLoader with the better of no workers and one a core, torchvision's
transforms on each image, the same network, optimiser, batch and augmentation, float32. Each measurement is a process of
its own, and the loops take turns, so that a busy machine slows all of them. Ratios of medians are printed; trust
them, not the images a second.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

IMAGES, SIZE, BATCH = {"small_cnn": 12_800, "resnet18": 1_280}, 32, 128
LOOPS = ("plain, 0 workers", "plain, workers", "evenlens, fp32", "evenlens, auto")


def pixels_of(num):
    import numpy as np

    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8), generator.integers(0, 2, num)


def plain(network, num, workers):
    import torch
    from PIL import Image
    from torch.nn import functional
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Images(Dataset):
        def __init__(self):
            self.pixels, self.label = pixels_of(num)
            self.transform = transforms.Compose(
                [
                    transforms.RandomCrop(SIZE, padding=SIZE // 8, padding_mode="reflect"),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
                ]
            )

        def __len__(self):
            return num

        def __getitem__(self, k):
            return self.transform(Image.fromarray(self.pixels[k])), int(self.label[k])

    torch.manual_seed(0)
    net = torch.nn.Sequential(*parts_of(network)).train()
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=1e-4)
    loader = DataLoader(Images(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def epoch():
        for image, label in loader:
            loss = functional.cross_entropy(net(image), label)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    return {"seconds": timed(epoch, network)}


def parts_of(network):
    classifier = classifier_of(network)
    return classifier.backbone, classifier.head


def classifier_of(network):
    from evenlens.config import Net
    from evenlens.data.dataset import Task
    from evenlens.nets import build

    return build(Net(backbone=network), Task(("0", "1"), ("a", "b"), SIZE))


def timed(epoch, network):
    """The best of some epochs after one that warms up."""
    epoch()
    seconds = []
    for _ in range(4 if network == "small_cnn" else 1):
        begin = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def ours(network, num, precision):
    import torch

    from evenlens import engine, nets
    from evenlens.config import RunConfig
    from evenlens.data.dataset import FairDataset, Task
    from evenlens.method import Method

    device = engine.start()
    pixels, label = (torch.from_numpy(array) for array in pixels_of(num))
    task = Task(("0", "1"), ("a", "b"), SIZE)
    part = FairDataset(pixels, torch.arange(num), label, label, [""] * num, {}, task)
    content = {"dataset": "", "method": "", "net": {"backbone": network}, "train": {"batch_size": BATCH, "epochs": 50}}
    method = Method(task, RunConfig.model_validate(content))
    chosen = nets.choose_precision(precision, method.net, SIZE, BATCH, device)
    method.net.compute_in(chosen)
    train = part.on(device, batch_size=BATCH, augment="crop_flip", memory_format=chosen.memory_format)
    method.prepare(train, train)
    seconds = timed(lambda: method.train_epoch(train), network)
    inside, step = 0.0, method.step

    def watched(batch):
        nonlocal inside
        begin = time.perf_counter()
        result = step(batch)
        inside += time.perf_counter() - begin
        return result

    method.step = watched  # on a CPU a step returns when it is done, so its time is the network's and the optimiser's
    begin = time.perf_counter()
    method.train_epoch(train)
    outside = 1 - inside / (time.perf_counter() - begin)
    return {"seconds": seconds, "outside": outside, "precision": str(chosen)}


def measure(network, loop):
    num = IMAGES[network]
    if loop.startswith("plain"):
        return plain(network, num, 0 if "0" in loop else len(os.sched_getaffinity(0)))
    return ours(network, num, loop.split(", ")[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(IMAGES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    table = {}
    for network in arguments.networks:
        found = {loop: [] for loop in LOOPS}
        for _ in range(arguments.rounds):
            for loop in LOOPS:
                command = [sys.executable, __file__, "--one", network, loop]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[loop].append(json.loads(output.splitlines()[-1]))
        seconds = {loop: statistics.median(entry["seconds"] for entry in entries) for loop, entries in found.items()}
        best_plain = min(seconds[loop] for loop in LOOPS[:2])
        print(f"\n{network}, {SIZE} px, batch {BATCH}, {len(os.sched_getaffinity(0))} cores")
        for loop in LOOPS:
            speed, ratio = IMAGES[network] / seconds[loop], best_plain / seconds[loop]
            print(f"  {loop:18s} {speed:8,.0f} images/s   {ratio:5.2f} x the plain loop")
        shares = {}
        for loop in LOOPS[2:]:
            shares[loop] = statistics.median(entry["outside"] for entry in found[loop])
            print(f"  {loop}: {shares[loop]:.1%} of the time outside the network; {found[loop][-1]['precision']}")
        table[network] = {
            "seconds": seconds,
            "ratio": {k: best_plain / v for k, v in seconds.items()},
            "outside": shares,
        }
    print("\n" + json.dumps(table))


if __name__ == "__main__":
    main()
