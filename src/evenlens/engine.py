"""Devices and precision: what is fast on this machine. Nothing else asks which device there is."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from evenlens.data.images import cache_folder

if TYPE_CHECKING:
    from evenlens.nets import Classifier


@dataclass(frozen=True)
class Precision:
    """How a network computes.

    Attributes:
        bfloat16: run convolutions and products in bfloat16; weights, losses and updates stay in float32.
        channels_last: keep the channels of a pixel side by side in memory.
    """

    bfloat16: bool = False
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of image batches and convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        return ("bf16" if self.bfloat16 else "fp32") + (", channels last" if self.channels_last else "")


CHOICES = {
    "fp32": [Precision(), Precision(channels_last=True)],
    "bf16": [Precision(bfloat16=True), Precision(bfloat16=True, channels_last=True)],
}
CHOICES["auto"] = CHOICES["fp32"] + CHOICES["bf16"]


def start(threads: int | None = None) -> torch.device:
    """Choose the device and set the process up for training.

    On Linux the C library is told to keep freed memory: giving the large blocks of activations back to the system
    and fetching them again costs a CPU run up to a third of its time.
    """
    if threads:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        return torch.device("cuda")
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, -1)
    return torch.device("cpu")


def choose_precision(wanted: str, net: Classifier, image_size: int, batch_size: int, device: torch.device) -> Precision:
    """Take the fastest way to compute that is allowed, by timing a few training steps of this network.

    What was found is kept in the cache by network, size, device, threads and versions, so that all runs of a
    comparison compute alike, and only the first one measures.
    """
    choices = CHOICES[wanted]
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    threads, batch_size = torch.get_num_threads(), min(batch_size, 64)
    key = f"{net.name} {image_size} px, batch {batch_size}, {wanted}, {machine}, {threads} threads, {torch.__version__}"
    path = cache_folder() / "precision.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        seconds = [_step_seconds(choice, net, image_size, batch_size, device) for choice in choices]
        known[key] = seconds.index(min(seconds))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(known, indent=1))
        part.replace(path)
    return choices[known[key]]


def _step_seconds(
    precision: Precision, net: Classifier, image_size: int, batch_size: int, device: torch.device
) -> float:
    from copy import deepcopy

    trial = deepcopy(net).to(device).train()
    trial.compute_in(precision)
    with torch.random.fork_rng():
        image = torch.rand(batch_size, 3, image_size, image_size).to(device, memory_format=precision.memory_format)
        best = float("inf")
        for _ in range(4):  # the first one warms up
            begin = time.perf_counter()
            loss = functional.cross_entropy(trial(image), torch.zeros(batch_size, dtype=torch.long, device=device))
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - begin)
    return best


def peak_memory(device: torch.device) -> int:
    """Give the most memory that this process used so far, in bytes: of the GPU where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
