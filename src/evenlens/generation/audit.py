"""Labelled images of a generator in; what it makes, by group, out: findings that a page and a JSON file can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from evenlens import __version__
from evenlens.errors import UserError
from evenlens.generation import quality
from evenlens.generation.correction import ILL, Confusion, Corrected, corrected
from evenlens.generation.distribution import (
    REPLICATES,
    Difference,
    Distribution,
    Tally,
    describe,
    difference,
    tally,
)
from evenlens.generation.labels import Faces, Labels
from evenlens.generation.quality import Features
from evenlens.generation.targets import Targets
from evenlens.metrics import Interval, wilson
from evenlens.metrics.intervals import tail

FORMAT = 1


@dataclass(frozen=True)
class Part:
    """What is found for one attribute, or for several crossed.

    Attributes:
        attributes: their names.
        found: the distribution.
        target: what the target is, in words.
        unlabelled: images that have a face, but no class.
        complete: whether the categories are all that the classifier knows.
        correction: for the classifier's errors, where these are known.
        other: the distribution of the images that it is compared with.
        change: those minus these.
    """

    attributes: tuple[str, ...]
    found: Distribution
    target: str
    unlabelled: int
    complete: bool
    correction: Corrected | None = None
    other: Distribution | None = None
    change: Difference | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give it as JSON can hold it: undefined numbers are null."""
        one, fixed, change = self.found, self.correction, self.change
        return {
            "name": one.name, "attributes": list(self.attributes), "n": one.n, "target": self.target,
            "unlabelled": self.unlabelled, "complete": self.complete,
            "categories": [self._category(k) for k in range(len(one.categories))],
            "distances": {
                name: {
                    **_numbers(number), "floor": one.floors.get(name),
                    "corrected": _numbers(fixed.distances[name]) if fixed else None,
                    "other": _numbers(self.other.distances[name]) if self.other else None,
                    "difference": _numbers(change.distances[name]) if change else None,
                }
                for name, number in one.distances.items()
            },
            "test": {name: _plain(value) for name, value in one.test._asdict().items()},
            "correction": fixed and {
                "where": fixed.confusion.where, "classes": list(fixed.confusion.classes),
                "counts": fixed.confusion.counts.tolist(), "condition": _plain(fixed.condition),
                "ill": fixed.condition >= ILL,
            },
            "comparison": change and {
                "paired": change.paired, "pairs": change.pairs, "agreement": _numbers(change.agreement),
                "n": self.other.n if self.other else 0,
            },
        }  # fmt: skip

    def _category(self, k: int) -> dict[str, Any]:
        one, fixed, change = self.found, self.correction, self.change
        return {
            "name": one.categories[k], "count": int(one.counts[k]), "target": float(one.target[k]),
            "share": _numbers(_at(one.each, k)), "together": _numbers(_at(one.together, k)),
            "mean_probability": _numbers(_at(one.mean_probability, k)) if one.mean_probability else None,
            "corrected": _numbers(_at(fixed.shares, k)) if fixed else None,
            "other": _numbers(_at(self.other.together, k)) if self.other else None,
            "difference": _numbers(_at(change.shares, k)) if change else None,
        }  # fmt: skip


@dataclass(frozen=True)
class GeneratorAudit:
    """What a generator makes, by group, as a classifier sees it.

    Attributes:
        title: for people.
        where: the labels' file.
        faces: which images were kept.
        parts: each attribute, then each combination.
        against: file and images of what it is compared with, or None.
        confidence: of every interval.
        notes: of those who read the files.
    """

    title: str
    where: str
    faces: Faces
    parts: list[Part]
    against: tuple[str, Faces] | None
    confidence: float
    notes: tuple[str, ...]

    def as_dict(self, quality: dict[str, Any] | None = None) -> dict[str, Any]:
        """Give all findings as JSON can hold them, with what `compare_features` found, if it was asked."""
        from evenlens.generation.words import caveats

        content: dict[str, Any] = {
            "format": FORMAT, "kind": "generator audit", "evenlens": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "title": self.title, "source": self.where,
            "confidence": self.confidence, "images": _images(self.faces, self.confidence),
            "parts": [part.as_dict() for part in self.parts],
            "against": self.against
            and {"source": self.against[0], "images": _images(self.against[1], self.confidence)},
            "quality": quality, "notes": list(self.notes),
        }  # fmt: skip
        return {**content, "caveats": caveats(content)}


def audit(
    labels: Labels,
    attributes: Sequence[str] = (),
    joint: Sequence[Sequence[str]] = (),
    target: Targets | None = None,
    against: Labels | None = None,
    confusions: Mapping[str, Confusion] | None = None,
    faces: str = "single",
    confidence: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
    title: str = "",
) -> GeneratorAudit:
    """Say what a generator makes, from labels that a classifier gave its images.

    Args:
        labels: as they were read, with images without a face, and with several.
        attributes: which to describe; default: all.
        joint: groups of attributes to be crossed, such as [("race", "gender")].
        target: wanted shares; default: equal ones.
        against: labels of other images: those of the same ids are compared one by one.
        confusions: the classifier's errors, by attribute.
        faces: which face of an image with several counts, as in `Labels.one_face`.
        confidence: in (0, 1), of every interval.
        replicates: of every bootstrap.
        seed: of all random numbers.
        title: for people; default: the file's name.

    Raises:
        UserError: an unknown attribute, a class that a target or a confusion matrix lacks, nothing to count, or a
            confidence that is not in (0, 1).
    """
    tail(confidence)  # checks it before anything is counted
    errors, wanted = dict(confusions or {}), target or Targets()
    groups = _asked(list(attributes or labels.attributes), joint, errors)
    used = list(dict.fromkeys(name for group in groups for name in group))
    wanted.check(used)
    classes = {name: _classes(name, labels, against, wanted, errors.get(name)) for name in used}
    wanted = wanted.among(classes)
    errors = {name: one.among(classes[name]) for name, one in errors.items()}
    whole, other = _widened(labels, classes), None if against is None else _widened(against, classes)
    kept, summary = whole.one_face(faces)
    second = None if other is None else other.one_face(faces)
    rows = None if other is None or second is None else _pairs(whole, kept, other, second[0])
    settings: dict[str, Any] = {"confidence": confidence, "replicates": replicates, "seed": seed}
    parts = []
    for group in groups:
        found, (shares, words) = tally(kept, *group), wanted.shares(group, classes)
        complete = all(labels.attribute(name).probability is not None for name in group)
        made = describe(found, shares, **settings)
        part = Part(group, made, words, int((found.codes < 0).sum()), complete)
        if len(group) == 1 and group[0] in errors:
            part = replace(part, correction=corrected(made.counts, errors[group[0]], made.target, **settings))
        if second is not None:
            compared = tally(second[0], *group)
            change = difference(found, compared, _codes(found, compared, rows), made.target, **settings)
            part = replace(part, other=describe(compared, shares, **settings), change=change)
        parts.append(part)
    notes = tuple(dict.fromkeys((*labels.notes, *(against.notes if against else ()))))
    aside = None if against is None or second is None else (against.where, second[1])
    return GeneratorAudit(title or Path(labels.where).name, labels.where, summary, parts, aside, confidence, notes)


def compare_features(
    generated: Features,
    reference: Features,
    extractor: str,
    labels: Labels | None = None,
    reference_labels: Labels | None = None,
    attribute: str | None = None,
    faces: str = "single",
    seed: int = 0,
    subsets: int = quality.SUBSETS,
) -> dict[str, Any]:
    """Compare generated with reference images by their features: all, and where labels of both are there by group.

    Args:
        generated: features of the labelled images: by their ids, or a row for each image in the order of the labels.
        reference: features of real images, or a teacher's.
        extractor: what made the features, in words.
        labels: of the generated images.
        reference_labels: of the reference images.
        attribute: which one makes the groups.
        faces: as in `audit`.
        seed: of all choices.
        subsets: for KID.

    Returns:
        what JSON can hold: all, groups, and why there are none.

    Raises:
        UserError: features that do not fit each other or the labels, or no extractor is named.
    """
    if not extractor.strip():
        raise UserError("Say what made the features with --extractor, as 'Inception-v3 pool': numbers depend on it.")
    whole = quality.compare(generated.values, reference.values, seed, subsets)
    found: dict[str, Any] = {
        "extractor": extractor.strip(), "generated": generated.where, "reference": reference.where,
        "num_generated": len(generated), "num_reference": len(reference), "num_features": generated.values.shape[1],
        "all": quality.as_dict(whole), "attribute": None, "groups": {}, "left_out": [], "why_no_groups": None,
    }  # fmt: skip
    if labels is None or reference_labels is None or attribute is None:
        return {**found, "why_no_groups": "the reference images have no labels (--against)"}
    one, two = (
        _by_group(features, labelled, attribute, faces)
        for features, labelled in ((generated, labels), (reference, reference_labels))
    )
    each, left_out = quality.by_group(one, two, seed, subsets)
    why = None if each else f"no group has {quality.FEWEST} images among both"
    groups = {name: quality.as_dict(one) for name, one in each.items()}
    return {**found, "attribute": attribute, "groups": groups, "left_out": left_out, "why_no_groups": why}


def examples(labels: Labels, attribute: str, most: int = 8, faces: str = "single") -> dict[str, list[str]]:
    """Choose images of each category to be looked at, evenly spaced in the table's order: ids by category."""
    kept, _ = labels.one_face(faces)
    one = kept.attribute(attribute)
    rows = [np.flatnonzero(one.codes == k) for k in range(len(one.classes))]
    return {
        name: [
            str(kept.ids[row]) for row in mine[np.linspace(0, len(mine) - 1, min(most, len(mine))).round().astype(int)]
        ]
        for name, mine in zip(one.classes, rows, strict=True)
    }


# ---- what these share


def _asked(
    names: Sequence[str], joint: Sequence[Sequence[str]], errors: Mapping[str, Confusion]
) -> list[tuple[str, ...]]:
    """List what is to be described, each once: attributes alone, and those that are crossed."""
    crossed = [tuple(dict.fromkeys(group)) for group in joint]
    short = next((group for group in crossed if len(group) < 2), None)
    if short is not None:
        raise UserError(f"--joint {','.join(short)} crosses nothing: name two attributes or more, as race,gender.")
    for name in errors:
        if name not in names:
            raise UserError(f"There is a confusion matrix of {name}, which is not audited: add --attribute {name}.")
    return list(dict.fromkeys([*((name,) for name in names), *crossed]))


def _classes(
    name: str, labels: Labels, against: Labels | None, target: Targets, errors: Confusion | None
) -> tuple[str, ...]:
    """List the classes that anything names, those of the labels first."""
    known = [*labels.attribute(name).classes, *(against.attribute(name).classes if against else ())]
    return tuple(dict.fromkeys([*known, *target.classes(name), *(errors.classes if errors else ())]))


def _widened(labels: Labels, classes: dict[str, tuple[str, ...]]) -> Labels:
    return replace(labels, attributes={name: labels.attribute(name).among(levels) for name, levels in classes.items()})


Rows = tuple[np.ndarray, np.ndarray]


def _pairs(whole: Labels, kept: Labels, other: Labels, other_kept: Labels) -> Rows | None:
    """Give the row of each image among the kept ones of both sets, -1 where it is not kept; None if ids differ."""
    ids = np.unique(whole.ids)
    if not np.array_equal(ids, np.unique(other.ids)):
        return None
    return _rows_of(ids, kept.ids), _rows_of(ids, other_kept.ids)


def _rows_of(wanted: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Find each wanted id among ids, which occur once: (M,) rows, -1 where it is not there."""
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], wanted).clip(0, len(ids) - 1)
    return np.where(ids[order][place] == wanted, order[place], -1)


def _codes(found: Tally, other: Tally, rows: Rows | None) -> Rows | None:
    if rows is None:
        return None
    one, two = (np.append(each.codes, -1)[place] for each, place in zip((found, other), rows, strict=True))
    return one, two


def _by_group(features: Features, labels: Labels, attribute: str, faces: str) -> dict[str, np.ndarray]:
    """Give the features of each group's images."""
    images = labels.ids[np.unique(labels.image, return_index=True)[1]]
    ids = features.ids
    if ids is None:
        if len(features) != len(images):
            raise UserError(
                f"{features.where} has {len(features):,} rows and {labels.where} {len(images):,} images: give a row "
                "for each image in the table's order, or a .safetensors file with ids in its metadata."
            )
        ids = images
    kept, _ = labels.one_face(faces)
    rows = _rows_of(kept.ids, ids)
    if not (rows >= 0).any():
        raise UserError(f"No id of {features.where} is among the labelled images of {labels.where}.")
    one = kept.attribute(attribute)
    return {name: features.values[rows[(one.codes == k) & (rows >= 0)]] for k, name in enumerate(one.classes)}


def _images(faces: Faces, confidence: float) -> dict[str, Any]:
    without, several = (
        _numbers(Interval(*(float(part) for part in wilson(count, faces.images, confidence))))
        for count in (faces.without, faces.several)
    )
    return {**faces._asdict(), "share_without": without, "share_several": several}


def _at(numbers: Interval[Any], k: int) -> Interval[float]:
    return Interval(*(float(part[k]) for part in numbers))


def _numbers(number: Interval[Any]) -> dict[str, float | None]:
    return {name: _plain(value) for name, value in number._asdict().items()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
