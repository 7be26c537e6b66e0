"""What a data set is to everything that trains, repairs or measures: images, labels, groups, parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evenlens.data import augment as augmentations
from evenlens.data.ahead import ReadAhead
from evenlens.data.batches import shuffled
from evenlens.data.tables import PARTS, Column


class Batch(NamedTuple):
    """B examples on the device that works on them.

    Attributes:
        image: (B, 3, H, W) float in [0, 1]; normalising is the network's business.
        label: (B,) int64 in [0, C).
        group: (B,) int64 in [0, G), the sensitive group.
        index: (B,) int64, the rows within the part: the key to masks, weights, caches and attributes.
    """

    image: Tensor
    label: Tensor
    group: Tensor
    index: Tensor  # type: ignore[assignment]  # a field in place of tuple.index


@dataclass(frozen=True)
class Task:
    """What is to be predicted, for whom: all that is needed to build a network again from a file.

    Attributes:
        class_names: what each of the C labels means.
        group_names: what each of the G groups means.
        image_size: height and width in pixels.
        target: name of the predicted column.
        sensitive: names of the columns whose crossing makes the groups.
    """

    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    image_size: int
    target: str = "label"
    sensitive: tuple[str, ...] = ("group",)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.group_names)

    @property
    def num_cells(self) -> int:
        """C * G."""
        return self.num_classes * self.num_groups

    def cell(self, label: Tensor, group: Tensor) -> Tensor:
        """Number the crossings of label and group: label * G + group. The only place that does."""
        return label * self.num_groups + group

    def as_dict(self) -> dict[str, Any]:
        """Give the fields as what JSON can hold."""
        return {
            "class_names": list(self.class_names),
            "group_names": list(self.group_names),
            "image_size": self.image_size,
            "target": self.target,
            "sensitive": list(self.sensitive),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Task:
        """Build a task from what `as_dict` gave."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


@dataclass(frozen=True)
class FairDataset:
    """One part of a data set: rows of an image store with their label, group and attributes.

    `on` binds it to a device, a batch size and a generator; a bound part gives batches.

    Attributes:
        pixels: (M, H, W, 3) uint8, the whole store.
        rows: (N,) int64, which images of the store these are.
        label: (N,) int64 in [0, C).
        group: (N,) int64 in [0, G).
        names: the N file names.
        attributes: further columns of the same N rows, by name.
        task: what is predicted, for whom.
        digests: (N,) int64, equal for copies of one file, whatever their names; empty where nobody asks.
        ahead: reads `pixels` for batches, where they lie in a file that is larger than memory.
    """

    pixels: Tensor
    rows: Tensor
    label: Tensor
    group: Tensor
    names: Sequence[str]
    attributes: dict[str, Column]
    task: Task
    digests: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ahead: ReadAhead | None = None
    batch_size: int = 256
    augment: str = "none"
    memory_format: torch.memory_format = torch.contiguous_format
    generator: torch.Generator = field(default_factory=torch.Generator)
    tick: Callable[[int], None] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cell(self) -> Tensor:
        """(N,) number of the crossing of label and group."""
        return self.task.cell(self.label, self.group)

    def cell_counts(self) -> Tensor:
        """(C, G) how many rows each crossing of label and group has."""
        counts = torch.bincount(self.cell, minlength=self.task.num_cells)
        return counts.view(self.task.num_classes, self.task.num_groups)

    def select(self, index: Tensor) -> FairDataset:
        """Keep these rows of the part, in this order."""
        picked = index.cpu().numpy()
        return replace(
            self,
            rows=self.rows[index],
            label=self.label[index],
            group=self.group[index],
            names=[self.names[k] for k in picked],
            attributes={name: column[picked] for name, column in self.attributes.items()},
            digests=self.digests[picked] if len(self.digests) else self.digests,
        )

    def on(
        self,
        device: torch.device,
        *,
        batch_size: int,
        augment: str = "none",
        memory_format: torch.memory_format = torch.contiguous_format,
        seed: int = 0,
        tick: Callable[[int], None] | None = None,
    ) -> FairDataset:
        """Bind the part to a device, on which its batches will be.

        Args:
            device: where batches are wanted.
            batch_size: B.
            augment: name of the augmentation (see `evenlens.data.augment`).
            memory_format: of the images of a batch.
            seed: of the generator that orders and augments; on the CPU, so that every device sees the same.
            tick: called after each batch with its size; a progress bar, say.
        """
        augmentations.get(augment)
        return replace(
            self,
            label=self.label.to(device),
            group=self.group.to(device),
            batch_size=batch_size,
            augment=augment,
            memory_format=memory_format,
            generator=torch.Generator().manual_seed(seed),
            tick=tick,
        )

    def batches(self, order: Tensor | None = None, augment: str | None = None) -> Iterator[Batch]:
        """Go once through `order`, B rows at a time; the last batch may be smaller.

        Args:
            order: (R,) rows of this part, on the CPU, repeats allowed; default: each once, shuffled.
            augment: another augmentation than the bound one.
        """
        if order is None:
            order = shuffled(torch.arange(len(self)), self.generator)
        change, device = augmentations.get(augment or self.augment), self.label.device
        chunks = list(order.split(self.batch_size))
        if len(chunks) > 1 and len(chunks[-1]) == 1:  # batch norm cannot train on one image alone
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for index, (pixels, rows) in zip(chunks, self._images(chunks), strict=True):
            image = change(pixels, rows, self.generator)
            image = image.to(device, torch.float32, non_blocking=True, memory_format=self.memory_format)
            here = index.to(device, non_blocking=True)
            yield Batch(image.div_(255.0), self.label[here], self.group[here], here)
            if self.tick:
                self.tick(len(index))

    def _images(self, chunks: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Give pixels, and which of their rows they are, beside them, for each chunk of rows of this part."""
        rows = [self.rows[index] for index in chunks]
        if self.ahead is None:
            return ((self.pixels, here.to(self.pixels.device, non_blocking=True)) for here in rows)
        return ((images, torch.arange(len(images))) for images in self.ahead.read(rows))

    def in_order(self) -> Iterator[Batch]:
        """Go through all rows in their order, not augmented: for measuring."""
        return self.batches(torch.arange(len(self)), "none")


class Splits(NamedTuple):
    """The four parts of a data set. A method fits on `train` and may tune on `tune`; it never sees the others.

    Attributes:
        train: what a method learns from.
        tune: what a method may fit a second stage on; where the protocol sets none aside, the training images.
        val: what the runner selects on.
        test: opened once, at the end.
        fingerprint: 16 hex digits of a hash over pixels, labels, groups and split.
    """

    train: FairDataset
    tune: FairDataset
    val: FairDataset
    test: FairDataset
    fingerprint: str

    @property
    def task(self) -> Task:
        """What is predicted, for whom."""
        return self.train.task

    def near(self, device: torch.device) -> Splits:
        """Move the images to a GPU once for all parts, where they fit; else they stay in their file."""
        pixels, ahead = self.train.pixels, self.train.ahead
        if device.type == "cuda" and pixels.numel() < 0.4 * torch.cuda.mem_get_info(device)[0]:
            pixels, ahead = pixels.to(device), None
        parts = {name: replace(getattr(self, name), pixels=pixels, ahead=ahead) for name in PARTS}
        return self._replace(**parts)


def to_tensor(values: np.ndarray) -> Tensor:
    """Wrap an array without a copy; a read-only map stays a read-only map, as nothing here writes to it."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)
