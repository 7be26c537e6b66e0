"""Where a data set comes from, and how one becomes the four parts that a run works on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from evenlens.config import AUGMENTS, PHOTOGRAPH, Data, data_root, signature_options
from evenlens.data.downloads import Download
from evenlens.data.images import ImageStore, Progress, open_files
from evenlens.data.tables import PARTS, UNUSED, Column, Table, combine, position, split_fingerprint
from evenlens.errors import UserError, unknown

if TYPE_CHECKING:
    from evenlens.data.dataset import Splits


class Protocol(NamedTuple):
    """A named way to pose the task: target, groups and split.

    Attributes:
        summary: one sentence for people.
        target: column to predict.
        sensitive: columns whose crossing makes the groups.
        split: (table, label codes, group codes, seed) -> (N,) positions in `PARTS`, or -1 for a row not used; a
            pure function of sorted names, columns and seed.
        fixed: the split depends on target and groups, so that no others can be asked for.
    """

    summary: str
    target: str
    sensitive: tuple[str, ...]
    split: Callable[[Table, np.ndarray, np.ndarray, int], np.ndarray]
    fixed: bool = False


class Source:
    """A data set of the field. A subclass stands in its own file and says what is below; the name is the file's.

    The keyword-only arguments of a subclass's constructor are the data set's options.
    """

    title: ClassVar[str]
    citation: ClassVar[str]
    licence: ClassVar[str]
    homepage: ClassVar[str]
    caveat: ClassVar[str]  # what a reader of a result has to know about these labels
    how_to_get: ClassVar[str] = ""  # what to fetch and where to put it
    protocols: ClassVar[dict[str, Protocol]]  # the first is the default
    columns: ClassVar[tuple[str, ...]]  # of its table: what can be predicted, or make groups
    size: ClassVar[int] = 64
    augment: ClassVar[str] = "crop_flip"
    home: ClassVar[str] = ""  # folder below the data root, where it is not the data set's own name
    downloads: ClassVar[tuple[Download, ...]] = ()  # what the terms allow anybody to fetch

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: list[str] = []

    @property
    def root(self) -> Path:
        """The folder that the images' names are below."""
        return self.folder

    def table(self, skip_unreadable: bool) -> Table:
        """Read what is known about the images, sorted by name."""
        raise NotImplementedError

    def split(self, protocol: Protocol, table: Table, label: np.ndarray, group: np.ndarray, seed: int) -> np.ndarray:
        """Assign rows to parts; overridden where an option of the data set has a say in it."""
        return protocol.split(table, label, group, seed)

    def images(self, table: Table, size: int, fit: str, progress: Progress | None) -> ImageStore:
        """Open the images of all rows of the table at this size, made square as `evenlens.data.images.decode` says."""
        files = [self.root / name for name in table.names]
        return open_files(files, size, type(self).__name__.lower(), progress, fit)

    def missing(self, wanted: str) -> UserError:
        """Make the error for a file or folder that is not there."""
        return UserError(
            f"{self.title} is not at {self.folder} (looked for {wanted}). {self.how_to_get} "
            "Say where data sets are with data.root=FOLDER or the variable EVENLENS_DATA."
        )


def source_options(name: str, kind: type[Source], data: Data) -> dict[str, Any]:
    """Check a data set's options against its constructor and fill in its defaults."""
    wanted = f"setting of data or option of {name}"
    return signature_options(wanted, kind, data.options, ("folder",), also=Data.model_fields)


def make_source(name: str, kind: type[Source], data: Data) -> Source:
    """Build a data set's source with its options checked."""
    options = source_options(name, kind, data)
    return kind(data_root(data.root) / (kind.home or name), **options)


def resolve(name: str, kind: type[Source], data: Data) -> Data:
    """Fill in the data set's own defaults, so that a configuration says all that decides the numbers."""
    protocol_name = data.protocol or next(iter(kind.protocols))
    if protocol_name not in kind.protocols:
        raise unknown(f"protocol of {name}", protocol_name, kind.protocols)
    protocol = kind.protocols[protocol_name]
    target, sensitive = data.target or protocol.target, data.sensitive or protocol.sensitive
    of_group = of_the_group(target)
    for column in (*sensitive, *([] if target == GROUP else [of_group or target])):
        if column not in kind.columns:
            raise unknown(f"column of {name}", column, kind.columns)
    if not sensitive:
        raise UserError(
            f"{name} does not say whose treatment is compared: choose with data.sensitive one or more of "
            f"{', '.join(column for column in kind.columns if column != target) or 'its columns (there is no other)'}."
        )
    if len({*sensitive}) < len(sensitive):
        raise UserError(f"data.sensitive={','.join(sensitive)} names a column twice: name each once.")
    if target in sensitive:
        raise UserError(f"data.target={target} is also in data.sensitive: a group cannot be its own label.")
    posed = target if of_group is None else protocol.target  # a network that tells the groups apart, same images
    if protocol.fixed and (posed, tuple(sensitive)) != (protocol.target, protocol.sensitive):
        free = [other for other, candidate in kind.protocols.items() if not candidate.fixed]
        raise UserError(
            f"The protocol {protocol_name} of {name} is made for data.target={protocol.target} and "
            f"data.sensitive={','.join(protocol.sensitive)}"
            + (f"; for others choose data.protocol={' or '.join(free)}." if free else ", as are all of its protocols.")
        )
    augmentation = data.augment or kind.augment
    if augmentation not in AUGMENTS:
        raise unknown("augmentation", augmentation, AUGMENTS)
    return data.model_copy(
        update={
            "protocol": protocol_name,
            "target": target,
            "sensitive": tuple(sensitive),
            "size": data.size or kind.size,
            "augment": augmentation,
            "view_options": _view_options(data),
            "options": source_options(name, kind, data),
        }
    )


def _view_options(data: Data) -> dict[str, Any]:
    if data.view == PHOTOGRAPH and not data.view_options:
        return {}
    from evenlens import views  # torch, for which a summary does not wait

    return views.settle(data.view, data.view_options)


class Loaded(NamedTuple):
    """A data set that is ready, and what was noticed on the way."""

    splits: Splits
    notes: list[str]


class Posed(NamedTuple):
    """A task as a data set's table poses it, before any image is opened.

    Attributes:
        data: settings with the data set's defaults filled in.
        source: where it comes from.
        table: its N rows.
        label: what is to be predicted.
        group: whose treatment is compared.
        parts: (N,) positions in `PARTS`, or `UNUSED`.
    """

    data: Data
    source: Source
    table: Table
    label: Column
    group: Column
    parts: np.ndarray


GROUP = "group"


def of_the_group(target: str) -> str | None:
    """Say which sensitive column a target names, if it is "group.<column>"; of "group", their crossing, "".

    A network that tells the groups apart is trained on the same images as one that predicts the label.
    """
    name, _, column = target.partition(".")
    return column if name == GROUP else None


def pose(name: str, kind: type[Source], data: Data) -> Posed:
    """Read a data set's table, and choose label, groups and split as the settings say.

    Args:
        name: the data set's name.
        kind: its class.
        data: settings, resolved or not.

    Raises:
        UserError: files are missing or cannot be read, or the settings do not fit the data set.
    """
    data = resolve(name, kind, data)
    source = make_source(name, kind, data)
    table = source.table(data.skip_unreadable)
    if not len(table):
        raise source.missing("a label file that lists images")
    protocol = kind.protocols[str(data.protocol)]
    group = combine([table.column(column) for column in data.sensitive or ()])
    target = str(data.target)
    of_group = of_the_group(target)
    label = group if target == GROUP else table.column(of_group or target)
    posed = label if of_group is None else table.column(protocol.target)
    parts = source.split(protocol, table, posed.codes, group.codes, data.seed)
    parts = np.where((label.codes < 0) | (group.codes < 0), UNUSED, parts)
    if data.tune:  # by names of its own, so that the draw has nothing to do with that of the parts
        drawn = position([f"tune {unit}" for unit in table.unit_names], data.seed) < data.tune
        parts = np.where((parts == PARTS.index("train")) & drawn, PARTS.index("tune"), parts)
    return Posed(data, source, table, label, group, parts)


def load(name: str, kind: type[Source], data: Data, progress: Progress | None = None) -> Loaded:
    """Read, check, decode and split a data set.

    Args:
        name: the data set's name.
        kind: its class.
        data: settings, resolved or not.
        progress: called with (images done, N) while images are decoded or drawn for the first time.

    Raises:
        UserError: files are missing or cannot be read, or the task is none (an empty part, a single class).
    """
    from evenlens.data.ahead import where_needed  # torch, for which a summary does not wait
    from evenlens.data.dataset import FairDataset, Splits, Task, to_tensor
    from evenlens.data.drawing import draw_store

    data, source, table, label, group, parts = pose(name, kind, data)
    check_task(name, parts, label, group)  # before the images are decoded, and again without those that cannot be
    used = parts != UNUSED
    if 2 * used.sum() < len(table):  # else one store serves all protocols and seeds
        table, label, group, parts = table.select(used), label[used], group[used], parts[used]
    store = source.images(table, int(data.size or kind.size), data.fit, progress)
    store = draw_store(store, data.view, data.view_options, progress)
    parts = _without_damaged(source, store, table, parts, data.skip_unreadable)
    check_task(name, parts, label, group)
    task = Task(label.levels, group.levels, int(data.size or kind.size), str(data.target), tuple(data.sensitive or ()))
    pixels, ahead = to_tensor(store.pixels), where_needed(store.pixels)
    made = {}
    for number, part in enumerate(PARTS):
        rows = np.flatnonzero(parts == number)
        made[part] = FairDataset(
            pixels,
            to_tensor(rows),
            to_tensor(label.codes[rows]),
            to_tensor(group.codes[rows]),
            [table.names[k] for k in rows.tolist()],
            {column: values[rows] for column, values in table.columns.items()},
            task,
            store.digests[rows],
            ahead,
        )
    if not len(made["tune"]):
        made["tune"] = made["train"]
    hashed = hashlib.blake2b(digest_size=8)
    hashed.update(f"{store.fingerprint} {split_fingerprint(table.names, parts)}".encode())
    hashed.update(np.stack([label.codes, group.codes]).tobytes())
    splits = Splits(**made, fingerprint=hashed.hexdigest())
    notes = [*source.notes, *shared_units(table, parts), *_copies(splits), *_warnings(splits)]
    return Loaded(splits, notes)


def shared_units(table: Table, parts: np.ndarray) -> list[str]:
    """Say how many subjects, lesions or photographs have images in several parts."""
    if table.units is None:
        return []
    import pyarrow

    used = np.flatnonzero(parts != UNUSED)
    units = pyarrow.array(table.units, pyarrow.large_string()).dictionary_encode()
    seen = np.zeros((len(units.dictionary), len(PARTS)), dtype=bool)
    seen[units.indices.to_numpy()[used], parts[used]] = True
    several, num = int((seen.sum(axis=1) > 1).sum()), int(seen.any(axis=1).sum())
    return [f"{several:,} of {num:,} units (subjects, lesions, photographs) lie in several parts."] * bool(several)


def _copies(splits: Splits) -> list[str]:
    """Say how many images of val and test are copies of images that are trained on."""
    trained = splits.train.digests[splits.train.digests != 0]
    notes = []
    for part in ("val", "test"):
        data = getattr(splits, part)
        copies = np.flatnonzero(np.isin(data.digests, trained))
        if len(copies):
            listed = ", ".join(data.names[row] for row in copies[:3])
            notes.append(f"{part}: {len(copies):,} images are copies of training images ({listed}).")
    return notes


def _without_damaged(source: Source, store: ImageStore, table: Table, parts: np.ndarray, skip: bool) -> np.ndarray:
    damaged = [row for row in store.damaged if parts[row] != UNUSED]
    if not damaged:
        return parts
    listed = ", ".join(f"{table.names[row]} ({store.damaged[row]})" for row in damaged[:5])
    more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
    if not skip:
        raise UserError(
            f"{len(damaged)} of {len(table):,} images of {source.title} cannot be read: {listed}{more}. "
            "Replace them, or leave them out with data.skip_unreadable=true."
        )
    source.notes.append(f"{len(damaged)} images that cannot be read were left out: {listed}{more}.")
    parts = parts.copy()
    parts[damaged] = UNUSED
    return parts


def check_task(name: str, parts: np.ndarray, label: Column, group: Column) -> None:
    """Refuse what is no task: an empty part, or one with a single class or group."""
    for part in ("train", "val", "test"):
        inside = parts == PARTS.index(part)
        if not inside.any():
            raise UserError(
                f"The part '{part}' of {name} has no image: check data.protocol, data.target and data.sensitive."
            )
        classes, groups = np.unique(label.codes[inside]), np.unique(group.codes[inside])
        if len(classes) < 2:
            raise UserError(
                f"All {inside.sum():,} images of the part '{part}' of {name} have the label "
                f"'{label.levels[classes[0]]}': at least two classes are needed."
            )
        if len(groups) < 2:
            raise UserError(
                f"All {inside.sum():,} images of the part '{part}' of {name} are of the group "
                f"'{group.levels[groups[0]]}': at least two groups are needed to compare them."
            )


def _warnings(splits: Splits) -> list[str]:
    """Say which crossings of label and group are too small to conclude anything from."""
    notes = []
    cells = {part: getattr(splits, part).cell_counts().numpy() for part in ("train", "val", "test")}
    occurs = sum(cells.values()) > 0
    if occurs.mean() > 0.5:  # else most crossings cannot be, as where classes are the groups
        occurs[:] = True
    exist = np.argwhere(occurs).tolist()
    for part, counts in cells.items():
        small = sorted((int(counts[c, g]), c, g) for c, g in exist if counts[c, g] < 20)
        if small:
            task = splits.task
            listed = ", ".join(f"{task.class_names[c]} / {task.group_names[g]}: {n}" for n, c, g in small[:4])
            notes.append(f"{part}: {len(small)} of {len(exist)} cells have fewer than 20 images ({listed}).")
    return notes
