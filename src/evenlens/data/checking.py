"""Look at a data set before anything is trained on it: how many of whom, and what is wrong with the images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np

from evenlens.config import Data
from evenlens.data import own, paths
from evenlens.data.images import Progress
from evenlens.data.source import Posed, Source, check_task, pose, shared_units
from evenlens.data.tables import PARTS, UNUSED
from evenlens.errors import UserError

TOO_SMALL = 100  # images of a cell below which the 95 % interval of a rate may be wider than ten points each way


@dataclass
class Summary:
    """How many images of each label and group are in each part.

    Attributes:
        title: of the data set.
        target: the predicted column.
        sensitive: the columns whose crossing makes the groups.
        class_names: of the C labels.
        group_names: of the G groups.
        counts: (C, G) numbers of images by part; parts without an image are not there.
        unused: images that the protocol leaves out, or whose label or group is not known.
        notes: what was noticed while reading.
        warnings: what makes a conclusion unsafe.
    """

    title: str
    target: str
    sensitive: tuple[str, ...]
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    counts: dict[str, np.ndarray]
    unused: int
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Give the same as what JSON can hold."""
        return {**vars(self), "counts": {part: counts.tolist() for part, counts in self.counts.items()}}


@dataclass
class Findings:
    """What a check found.

    Attributes:
        summary: the counts.
        problems: what must be mended before training, each a sentence.
        warnings: what a person should know.
        num_images: how many images were read.
    """

    summary: Summary
    problems: list[str]
    warnings: list[str]
    num_images: int

    def as_dict(self) -> dict[str, Any]:
        """Give the same as what JSON can hold."""
        return {**vars(self), "summary": self.summary.as_dict()}


def summarise(name: str, kind: type[Source], data: Data) -> Summary:
    """Count a data set's images by part, label and group. Opens no image.

    Args:
        name: the data set's name.
        kind: its class.
        data: settings, resolved or not.

    Raises:
        UserError: the table is missing or cannot be read, or the settings do not fit.
    """
    return _summarise(pose(name, kind, data))


def _summarise(posed: Posed) -> Summary:
    num_classes, num_groups = len(posed.label.levels), len(posed.group.levels)
    counts = {}
    for number, part in enumerate(PARTS):
        inside = posed.parts == number
        if inside.any():
            cell = posed.label.codes[inside] * num_groups + posed.group.codes[inside]
            counts[part] = np.bincount(cell, minlength=num_classes * num_groups).reshape(num_classes, num_groups)
    summary = Summary(
        posed.source.title,
        str(posed.data.target),
        tuple(posed.data.sensitive or ()),
        posed.label.levels,
        posed.group.levels,
        counts,
        int((posed.parts == UNUSED).sum()),
        list(posed.source.notes),
    )
    summary.warnings = [*shared_units(posed.table, posed.parts), *_unsafe(summary)]
    return summary


def _unsafe(summary: Summary) -> list[str]:
    """Say which parts lack a level, and where a cell is too small to conclude anything from."""
    warnings = [f"There is no {part} part." for part in ("train", "val", "test") if part not in summary.counts]
    for part, counts in summary.counts.items():
        for what, names, present in (
            (summary.target, summary.class_names, counts.sum(1)),
            (", ".join(summary.sensitive), summary.group_names, counts.sum(0)),
        ):
            absent = [name for name, number in zip(names, present, strict=True) if not number]
            if absent:
                warnings.append(f"{part}: no image of {what} {_listed([repr(name) for name in absent])}.")
        small = counts[(counts > 0) & (counts < TOO_SMALL)]
        if len(small) and part != "train":
            number = int(small.min())
            label, group = np.argwhere(counts == number)[0].tolist()
            warnings.append(
                f"{part}: {len(small)} of {np.count_nonzero(counts)} cells have fewer than {TOO_SMALL} "
                f"images; the smallest is {summary.class_names[label]} / {summary.group_names[group]} with {number}, "
                f"where the 95 % interval of a rate reaches up to {100 * _half_width(number):.0f} points each way."
            )
    return warnings


def _half_width(num: int) -> float:
    """Half of the widest Wilson interval at 95 % of a rate over `num` images, that around one half."""
    z = 1.959964
    return z / (2 * sqrt(num + z * z))


def check(name: str, kind: type[Source], data: Data, images: bool = True, progress: Progress | None = None) -> Findings:
    """Read a data set's table and every image, and say what is wrong. What is decoded is there for training.

    Args:
        name: the data set's name.
        kind: its class.
        data: settings, resolved or not.
        images: open the images too.
        progress: called with (images done, N).

    Raises:
        UserError: the table cannot be read at all.
    """
    posed = pose(name, kind, data)
    summary = _summarise(posed)
    problems: list[str] = []
    warnings = [*summary.notes, *summary.warnings]
    if images:
        store = posed.source.images(posed.table, int(posed.data.size or kind.size), posed.data.fit, progress)
        missed = {row: why for row, why in store.damaged.items() if posed.parts[row] != UNUSED}
        (warnings if posed.data.skip_unreadable else problems).extend(_damaged(posed.table.names, missed))
        if len(missed) < len(store.damaged):
            warnings.append(f"{len(store.damaged) - len(missed):,} images that are in no part cannot be read.")
        warnings += _copies(posed, store.digests)
        posed.parts[[*missed]] = UNUSED
    problems += _no_task(name, posed)
    warnings += _strays(posed)
    return Findings(summary, problems, warnings, len(posed.table) if images else 0)


def _damaged(names: Sequence[str], damaged: dict[int, str]) -> list[str]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row, why in damaged.items():
        by_reason[why].append(names[row])
    return [f"{len(found):,} images cannot be read ({why}): {_listed(found)}." for why, found in by_reason.items()]


def _no_task(name: str, posed: Posed) -> list[str]:
    """Say what training would refuse: a part without an image, a single class, a single group."""
    try:
        check_task(name, posed.parts, posed.label, posed.group)
    except UserError as error:
        return [str(error)]
    return []


def _copies(posed: Posed, digests: np.ndarray) -> list[str]:
    """Find images of the parts that are there more than once: with other labels, across parts, or simply again."""
    order = np.argsort(digests, kind="stable")
    order = order[(digests[order] != 0) & (posed.parts[order] != UNUSED)]
    same = np.flatnonzero(digests[order][1:] == digests[order][:-1])
    first, again = order[same], order[same + 1]
    label, group, parts, names = posed.label.codes, posed.group.codes, posed.parts, posed.table.names
    torn = (label[first] != label[again]) | (group[first] != group[again])
    across = parts[first] != parts[again]

    def told(what: str, which: np.ndarray) -> list[str]:
        pairs = sorted(f"{names[a]} = {names[b]}" for a, b in zip(first[which], again[which], strict=True))
        return [f"{len(pairs):,} images are copies of others {what}: {_listed(pairs)}."] if pairs else []

    return [
        *told("with another label or group", torn),
        *told("in another part", across),
        *told("in the same part", ~across & ~torn),
    ]


def _strays(posed: Posed) -> list[str]:
    """Count images in the folder of a data set of one's own that its table does not name."""
    if not isinstance(posed.source, own.OwnSource):
        return []
    strays = sorted({*paths.list_images(posed.source.root)} - {*posed.table.names})
    return [f"{len(strays):,} images in {posed.source.root} are in no row: {_listed(strays)}."] if strays else []


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
