"""What is found of one generator in a comparison: shares, likeness to the teacher, quality, variety, size and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evenlens.generation import comparison_numbers, labelling, quality
from evenlens.generation.audit import audit, compare_features
from evenlens.generation.correction import Confusion
from evenlens.generation.distribution import REPLICATES
from evenlens.generation.generator import Generator
from evenlens.generation.labels import Labels, write_labels
from evenlens.generation.quality import Features
from evenlens.generation.samples import Samples, make_samples
from evenlens.generation.targets import Targets
from evenlens.generation.teachers.folder import Folder
from evenlens.measuring import latency
from evenlens.metrics import Floats
from evenlens.run import Watch

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

TEACHER = "teacher"
COLUMNS = 8  # latents in the grid of images
BATCHES = (1, 32)  # images made at once where time is measured
DIVERSE = 500  # images of which variety is measured


@dataclass(frozen=True)
class Settings:
    """How generators are compared.

    Attributes:
        count: images of each.
        seed: of the latents, and of all random numbers.
        attributes: to be described; none: all that the judges know. Quality is by the first.
        joint: groups of attributes to be crossed.
        target: wanted shares, which generators with labels are asked to make; default: equal ones.
        confusions: the judges' errors, by attribute.
        detect: look for faces in the images, and label these; default: each image is taken to be one face.
        faces: which face of an image with several counts, as in `Labels.one_face`.
        confidence: of every interval.
        replicates: of every bootstrap.
        subsets: of KID.
        seconds: spent on the time of each generator, at each size of batch.
    """

    count: int = 2000
    seed: int = 0
    attributes: tuple[str, ...] = ()
    joint: Sequence[Sequence[str]] = ()
    target: Targets = field(default_factory=Targets)
    confusions: Mapping[str, Confusion] = field(default_factory=dict)
    detect: bool = False
    faces: str = "single"
    confidence: float = 0.95
    replicates: int = REPLICATES
    subsets: int = quality.SUBSETS
    seconds: float = 1.0

    @property
    def audit(self) -> dict[str, Any]:
        """The arguments of `audit`."""
        return {"attributes": self.attributes, "joint": self.joint, "target": self.target,
                "confusions": self.confusions, "faces": self.faces, "confidence": self.confidence,
                "replicates": self.replicates, "seed": self.seed}  # fmt: skip


class Row(NamedTuple):
    """A row of the grid: what one generator makes of the first latents.

    Attributes:
        name: of the generator, and the label that it was asked for.
        pixels: (COLUMNS, H, W, 3) uint8.
    """

    name: str
    pixels: np.ndarray


@dataclass(frozen=True)
class Side:
    """Images of one generator, or of a reference, labelled.

    Attributes:
        name: whose they are.
        images: folder that they lie in.
        ids: (N,) their paths below it.
        labels: of their faces.
        features: of those that can be read; None where no network gives any.
    """

    name: str
    images: Path
    ids: np.ndarray
    labels: Labels
    features: Features | None

    @property
    def seen(self) -> Features:
        """The features, where there are some."""
        if self.features is None:
            raise ValueError(f"{self.name} has no features")
        return self.features

    @property
    def seen_ids(self) -> np.ndarray:
        """(M,) the image of each row of the features."""
        return self.ids if self.seen.ids is None else self.seen.ids


@dataclass(frozen=True)
class Judging:
    """Who labels images, what of it is counted, and how; the same for all generators."""

    folder: Path
    judges: Sequence[FaceClassifier]
    extractor: FaceClassifier | None
    settings: Settings
    watch: Watch

    def make(self, name: str, generator: Generator, latents: Tensor, label: Tensor | None) -> Samples:
        """Make images of these latents, or open those that were made before."""
        watch = named(self.watch, name)
        return make_samples(generator, self.folder / name, 0, self.settings.seed, latents, label, watch)

    def see(self, name: str, images: Path, ids: np.ndarray) -> Side:
        """Label images, keep the labels in the folder, and take the images' features."""
        path = self.folder / f"{name}.labels.parquet"
        watch = named(self.watch, name)
        detect = self.settings.detect
        labels = labelling.label_images(images, ids.tolist(), self.judges, detect=detect, watch=watch)
        labels = replace(labels, where=str(path))
        write_labels(labels, path)
        features = None
        if self.extractor is not None:
            readable = ids if detect else labels.ids[labels.n_faces > 0]
            features = labelling.features_of(images, readable.tolist(), self.extractor, watch)
        return Side(name, images, ids, labels, features)


def known(generator: Generator) -> dict[str, Any]:
    """Say what a generator is, as JSON can hold it."""
    trained_with = (getattr(generator, "info", None) or {}).get("classifier") or {}
    return {
        "title": generator.title, "fingerprint": generator.fingerprint, "attribute": generator.attribute,
        "labels": list(generator.labels), "size": generator.size, "latent_size": generator.latent_size,
        "num_parameters": generator.num_parameters, "num_bytes": generator.num_bytes,
        "settings": {name: value if isinstance(value, str | int | float | bool | None) else str(value)
                     for name, value in generator.settings.items()},
        "folder": isinstance(generator, Folder), "trained_with": trained_with.get("fingerprint"),
    }  # fmt: skip


def of_classifier(classifier: FaceClassifier) -> dict[str, Any]:
    """Say what a classifier is, as JSON can hold it."""
    return {"title": classifier.title, "fingerprint": classifier.fingerprint, "size": classifier.size,
            "crop": classifier.crop, "attributes": list(classifier.attributes)}  # fmt: skip


def shares_of(side: Side, teacher: Side, settings: Settings) -> dict[str, Any]:
    """Audit one generator; of a student each part has the teacher as `other`, and student less teacher."""
    found = audit(side.labels, **settings.audit)
    if side.name != TEACHER:
        beside = audit(teacher.labels, against=side.labels, **settings.audit)
        parts = [
            replace(mine, other=its.found, change=its.change)
            for mine, its in zip(found.parts, beside.parts, strict=True)
        ]
        found = replace(found, parts=parts)
    made = found.as_dict()
    return {"images": made["images"], "parts": made["parts"], "notes": made["notes"]}


def pixels_of(one: Samples, teacher: Samples, settings: Settings) -> dict[str, Any]:
    """Compare pixels at the same latent, at the smaller one's size."""
    size = min(one.size, teacher.size)
    found = comparison_numbers.pixel_difference(one.pixels(size), teacher.pixels(size), settings.confidence)
    return {**comparison_numbers.plain(found), "size": size}


def asked_of(generator: Generator, samples: Samples, side: Side, settings: Settings) -> dict[str, Any] | None:
    """Compare what was asked for with what is seen, where a judge knows it by the same names."""
    name = generator.attribute
    if samples.label is None or name not in side.labels.attributes:
        return None
    kept = side.labels.one_face(settings.faces)[0]
    classes = kept.attribute(name).classes
    if not set(generator.labels) <= set(classes):
        return None
    seen = comparison_numbers.codes_of(kept, name, samples.ids)
    found = comparison_numbers.asked_and_seen(samples.label, generator.labels, seen, classes, settings.confidence)
    return {"attribute": name, **found}


def qualities(
    sides: Mapping[str, Side], references: Mapping[str, Side], network: FaceClassifier | None, settings: Settings
) -> dict[str, dict[str, Any]]:
    """Compare the features of each generator with those of each reference, overall and by the first attribute.

    All groups of all generators are compared at the same n, so that every two numbers compare; a group of which a
    generator made fewer than `FEWEST` images is left out for it.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in sides}
    if network is None:
        return found
    attribute = settings.attributes[0]
    grouped = {name: _by_group(side, attribute, settings) for name, side in sides.items()}
    for name, other in references.items():
        real = _by_group(other, attribute, settings)
        sizes = [min(len(part), len(real[group])) for each in grouped.values() for group, part in each.items()]
        n = min((size for size in sizes if size >= quality.FEWEST), default=0)
        for side, groups in grouped.items():
            whole = compare_features(sides[side].seen, other.seen, network.title, seed=settings.seed,
                                     subsets=settings.subsets)  # fmt: skip
            cut = {group: part[:n] for group, part in groups.items()}
            each, left_out = quality.by_group(cut, real, settings.seed, settings.subsets)
            why = None if each else f"no group has {quality.FEWEST} images among both"
            found[side][name] = {**whole, "attribute": attribute, "left_out": left_out, "why_no_groups": why,
                                 "groups": {group: quality.as_dict(one) for group, one in each.items()}}  # fmt: skip
    return found


def _by_group(side: Side, attribute: str, settings: Settings) -> dict[str, Floats]:
    kept = side.labels.one_face(settings.faces)[0]
    codes = comparison_numbers.codes_of(kept, attribute, side.seen_ids)
    return {name: side.seen.values[codes == k] for k, name in enumerate(kept.attribute(attribute).classes)}


def diversity_of(side: Side, settings: Settings) -> dict[str, Any] | None:
    """Measure how varied images are, of the same latents for every generator."""
    if side.features is None:
        return None
    values = side.features.values
    rows = np.sort(np.random.default_rng(settings.seed).permutation(len(values))[: min(DIVERSE, settings.count)])
    name = settings.attributes[0]
    kept = side.labels.one_face(settings.faces)[0]
    codes = comparison_numbers.codes_of(kept, name, side.seen_ids[rows])
    distances = comparison_numbers.spread(values[rows], codes, kept.attribute(name).classes)
    return {"n": len(rows), "attribute": name, "vendi": comparison_numbers.vendi(values[rows]), **distances}


def speeds(
    generators: Mapping[str, Generator], latents: Tensor, labels: Mapping[str, Tensor | None], settings: Settings,
    watch: Watch,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Time generators in turns: median milliseconds an image, by the size of the batch. Folders make no images."""
    running = {name: each for name, each in generators.items() if not isinstance(each, Folder)}
    found: dict[str, dict[str, Any]] = {name: {} for name in running}
    for place, batch in enumerate(BATCHES):
        watch("time", place, len(BATCHES))
        size = min(batch, len(latents))
        calls = {}
        for name, each in running.items():
            label = labels[name]
            calls[name] = partial(each.sample, latents[:size], None if label is None else label[:size])
        for name, one in latency(calls, settings.seconds, warm_up=2).items():
            found[name][str(batch)] = {"ms": one.p50 / size, "ms_90": one.p90 / size, "rounds": one.rounds}
    watch("time", len(BATCHES), len(BATCHES))
    return found


def times_of(entry: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float | None]:
    """Say how many times smaller and faster than the teacher it is; None where that is not known."""

    def ratio(large: float, small: float) -> float | None:
        return large / small if large and small else None

    found = {key: ratio(teacher[key], entry[key]) for key in ("num_parameters", "num_bytes")}
    for batch in map(str, BATCHES):
        known = teacher["speed"] and entry["speed"]
        found[f"speed_{batch}"] = ratio(teacher["speed"][batch]["ms"], entry["speed"][batch]["ms"]) if known else None
    return found


def grid(generators: Mapping[str, Generator], latents: Tensor) -> list[Row]:
    """Make the first latents' images by each generator, and for each label of those that take some."""
    first = latents[:COLUMNS]
    rows = []
    for name, generator in generators.items():
        for k, label in enumerate(generator.labels or ("",)):
            asked = torch.full((len(first),), k) if generator.labels else None
            image = generator.sample(first, asked)
            pixels = (image * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            rows.append(Row(f"{name}: {label}" if label else name, pixels))
    return rows


def named(watch: Watch, name: str) -> Watch:
    """Have progress say whose it is."""
    return lambda what, done, total: watch(f"{name}: {what}", done, total)
