"""Reading ahead: the same rows to the bit, asked for before their turn, where the store is larger than memory."""

import dataclasses
import gc
import os
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evenlens import run
from evenlens.config import make_config
from evenlens.data import ahead, augment
from evenlens.data.ahead import ReadAhead, where_needed
from evenlens.data.batches import balanced
from evenlens.data.dataset import FairDataset, Task, to_tensor
from tests import fake

SIZE = 6  # 108 bytes an image


def mapped(path, num=200):
    np.random.default_rng(0).integers(0, 256, (num, SIZE, SIZE, 3), dtype=np.uint8).tofile(path)
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(num, SIZE, SIZE, 3))


@pytest.fixture
def pixels(tmp_path):
    return mapped(tmp_path / "pixels.u8")


@pytest.mark.parametrize(("window", "piece"), [(1, 1 << 20), (3000, 50), (1 << 20, 1 << 20)],
                         ids=["a batch a window", "several batches", "all at once"])  # fmt: skip
def test_rows_are_those_of_the_map_in_any_order_with_repeats(pixels, monkeypatch, window, piece):
    monkeypatch.setattr(ahead, "WINDOW", window)
    monkeypatch.setattr(ahead, "PIECE", piece)
    batches = list(torch.randint(200, (107,), generator=torch.Generator().manual_seed(0)).split(10))
    read = list(ReadAhead(pixels).read(batches))
    assert [len(images) for images in read] == [10] * 10 + [7]
    assert all((images.numpy() == pixels[rows.numpy()]).all() for images, rows in zip(read, batches, strict=True))


def test_no_batches_and_a_batch_of_nothing_are_read_as_such(pixels):
    assert list(ReadAhead(pixels).read([])) == []
    (nothing,) = ReadAhead(pixels).read([torch.arange(0)])
    assert nothing.shape == (0, SIZE, SIZE, 3)


def test_the_disk_is_asked_for_a_window_in_the_files_order_before_any_of_it_is_read(pixels, monkeypatch):
    size, did = pixels[0].nbytes, []
    original = os.preadv

    def advise(file, start, length, advice):
        if advice == os.POSIX_FADV_WILLNEED:
            time.sleep(0.002)  # a disk that has enough to do
            did.append(("ask", start // size))
            assert length == size

    def read(file, buffers, start):
        did.append(("read", start // size))
        return original(file, buffers, start)

    reader = ReadAhead(pixels)
    monkeypatch.setattr(ahead.os, "posix_fadvise", advise)
    monkeypatch.setattr(ahead.os, "preadv", read)
    monkeypatch.setattr(ahead, "WINDOW", 8 * size)  # two batches
    batches = [torch.tensor(rows) for rows in ([9, 3, 3, 7], [1, 8, 2, 4], [30, 20, 40, 10], [0, 5, 6, 11], [50])]
    for _ in reader.read(batches):
        pass
    asked = [row for kind, row in did if kind == "ask"]
    assert asked == [1, 2, 3, 4, 7, 8, 9, 0, 5, 6, 10, 11, 20, 30, 40, 50]
    assert [row for kind, row in did if kind == "read"] == torch.cat(batches).tolist()
    for window in (batches[:2], batches[2:4], batches[4:]):
        rows = set(torch.cat(window).tolist())
        last_asked = max(place for place, (kind, row) in enumerate(did) if kind == "ask" and row in rows)
        assert last_asked < min(place for place, (kind, row) in enumerate(did) if kind == "read" and row in rows)


def test_a_large_image_is_asked_for_whole_in_small_pieces(pixels, monkeypatch):
    asked, reader = [], ReadAhead(pixels)
    monkeypatch.setattr(ahead, "PIECE", 50)
    monkeypatch.setattr(ahead.os, "posix_fadvise", lambda file, start, length, advice: asked.append((start, length)))
    next(reader.read([torch.tensor([3])]))
    assert asked == [(324, 50), (374, 50), (424, 50)]  # of 108 bytes; what lies behind is no harm


def test_who_stops_early_has_had_no_more_than_two_windows_asked_for_and_leaves_nothing_running(pixels, monkeypatch):
    asked = []
    reader = ReadAhead(pixels)
    monkeypatch.setattr(ahead, "WINDOW", 1)
    monkeypatch.setattr(ahead.os, "posix_fadvise", lambda file, start, length, advice: asked.append(start))
    before = threading.enumerate()
    reading = reader.read(list(torch.arange(200).split(10)))
    next(reading)
    reading.close()
    for thread in {*threading.enumerate()} - {*before}:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert len(asked) == 20


def test_the_file_is_closed_when_nobody_reads_it_any_more(pixels):
    reader = ReadAhead(pixels)
    next(reader.read([torch.arange(5)]))
    file = reader.file
    del reader
    gc.collect()
    assert file.closed


def test_a_store_that_became_shorter_is_an_error_and_not_other_pixels(pixels):
    reader = ReadAhead(pixels)
    os.truncate(pixels.filename, 150 * pixels[0].nbytes + 5)
    reading = reader.read([torch.arange(150), torch.tensor([150])])
    assert (next(reading).numpy() == pixels[:150]).all()
    with pytest.raises(OSError, match="ends before its image 150"):
        next(reading)


def part_of(pixels, reader):
    label = torch.arange(len(pixels)) % 2
    task = Task(("no", "yes"), ("a", "b"), SIZE)
    rows = torch.arange(len(pixels)).flip(0)[:150]  # a part has other numbers for its rows than the store
    names = [""] * 150
    return FairDataset(to_tensor(pixels), rows, label[:150], label[:150], names, {}, task, ahead=reader)


@pytest.mark.parametrize("name", augment.AUGMENTS)
def test_batches_are_the_same_to_the_bit_whatever_the_order_and_augmentation(pixels, name, monkeypatch):
    monkeypatch.setattr(ahead, "WINDOW", 2000)
    found = []
    for reader in (None, ReadAhead(pixels)):
        part = part_of(pixels, reader).on(torch.device("cpu"), batch_size=16, augment=name, seed=3)
        streams = [part.batches(), part.batches(balanced(part.cell, part.generator)), part.in_order()]
        two = zip(part.batches(), part.batches(torch.randint(150, (160,), generator=part.generator)), strict=True)
        found.append([*(batch for stream in streams for batch in stream), *(batch for pair in two for batch in pair)])
    plain, read = found
    assert len(plain) == len(read) == 10 * 5
    for one, other in zip(plain, read, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Filed(fake.Tiny):
    """The data of `Tiny`, in a file, as images that were decoded lie."""

    def images(self, *arguments):
        store = super().images(*arguments)
        path = self.root / "pixels.u8"
        path.parent.mkdir(parents=True, exist_ok=True)
        store.pixels.tofile(path)
        return dataclasses.replace(store, pixels=np.memmap(path, dtype=np.uint8, mode="r", shape=store.pixels.shape))


@pytest.mark.parametrize("method", ["erm", "bias_contrastive"])
def test_a_run_on_a_store_that_is_larger_than_memory_ends_with_the_same_weights(tmp_path, monkeypatch, method):
    monkeypatch.setattr("evenlens.datasets.get", lambda name, root=None: Filed)
    settings = {"train.epochs": 1, "train.batch_size": 64, "precision": "fp32", "data.num": 300, "data.root": tmp_path}
    made, read = {}, []
    monkeypatch.setattr(
        ReadAhead, "read", lambda self, batches, read_=ReadAhead.read: read.append(1) or read_(self, batches)
    )
    for room in (1 << 40, 1):
        monkeypatch.setattr(ahead, "memory", lambda room=room: room)
        made[room] = run.train(make_config("tiny", method, settings), tmp_path / str(room))
        assert bool(read) == (room == 1)
    plain, small = (load_file(one.folder / "model.safetensors") for one in made.values())
    assert plain.keys() == small.keys()
    assert all(torch.equal(plain[name], small[name]) for name in plain)
    tables = [(one.folder / "predictions.parquet").read_bytes() for one in made.values()]
    assert tables[0] == tables[1]


def test_only_a_file_that_is_larger_than_half_of_the_memory_is_read_ahead(pixels, monkeypatch):
    monkeypatch.setattr(ahead, "memory", lambda: 2 * pixels.nbytes)
    assert where_needed(pixels) is None
    monkeypatch.setattr(ahead, "memory", lambda: 2 * pixels.nbytes - 2)
    assert isinstance(where_needed(pixels), ReadAhead)
    assert where_needed(np.array(pixels)) is None, "it lies in memory already"
    monkeypatch.setattr(ahead.sys, "platform", "darwin")
    assert where_needed(pixels) is None
