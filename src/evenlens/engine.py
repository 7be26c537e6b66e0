"""Devices, precision and processes: what is fast on this machine. Nothing else asks which device there is."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")


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


def start(threads: int | None = None) -> torch.device:
    """Choose the device and set the process up for training.

    On Linux the C library is told to keep freed memory: giving the large blocks of activations back to the system
    and fetching them again costs a CPU run up to a third of its time.

    A process that torchrun started joins its group: see `evenlens.dividing`.
    """
    if threads:
        torch.set_num_threads(threads)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        if processes() > 1:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cuda")
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, -1)
    return torch.device("cpu")


@contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """Put the random states of the CPU and of `device` back afterwards, as torch's does with all devices there are."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):
        yield


def stop() -> None:
    """Leave the group of processes, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def processes() -> int:
    """Give how many processes train together; 1 outside of such a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def place() -> int:
    """Give the number of this process in its group. The first, 0, is the one that writes files and talks."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def agreed(value: Value) -> Value:
    """Give what the first process has; the others wait for it. What they hand in does not matter."""
    if processes() == 1:
        return value
    told: list[Value] = [value]
    distributed.broadcast_object_list(told, 0)
    return told[0]


def peak_memory(device: torch.device) -> int:
    """Give the most memory that this process used so far, in bytes: of the GPU where there is one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def describe(device: torch.device) -> str:
    """Name the device for people, and for what depends on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"
