"""A teacher and its students on the same latents: what each makes by group, how alike, how good, how large, how fast.

All of them make images of the same latents; the same classifiers label them; findings come out that a page and a JSON
file can hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evenlens import __version__, engine
from evenlens.data.paths import check_inside, list_images
from evenlens.errors import UserError, unknown
from evenlens.generation import comparison_sides
from evenlens.generation.audit import audit
from evenlens.generation.comparison_sides import TEACHER, Judging, Row, Settings, Side
from evenlens.generation.comparison_words import caveats
from evenlens.generation.generator import Generator
from evenlens.generation.labels import Attribute, Labels
from evenlens.generation.quality import FEWEST
from evenlens.generation.samples import INFO, Samples, asked_labels, even_labels
from evenlens.generation.targets import Targets
from evenlens.generation.teachers.folder import Folder
from evenlens.run import Watch, silent

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

FORMAT = 1
OTHERS, REFERENCE = "teacher.others", "reference"
RESERVED = (TEACHER, OTHERS, REFERENCE, "figures")
MOST = 5  # students at once: as many can be told apart in a figure
NAME = re.compile(r"\w[\w.-]*")


class Comparison(NamedTuple):
    """What `compare` finds.

    Attributes:
        content: all findings, as JSON can hold them; undefined numbers are null.
        rows: of the grid of images.
    """

    content: dict[str, Any]
    rows: list[Row]


def compare(
    teacher: Generator,
    students: Mapping[str, Generator],
    folder: Path | str,
    judges: Sequence[FaceClassifier],
    settings: Settings | None = None,
    *,
    extractor: FaceClassifier | None = None,
    reference: Path | str | None = None,
    title: str = "Teacher and students",
    watch: Watch = silent,
) -> Comparison:
    """Have a teacher and its students make images of the same latents, and compare these.

    A killed comparison goes on with the images it has. Quality is measured against the teacher's images of other
    latents, as equal ones would flatter a student; the teacher's compared images are measured so too, as a bound.

    Args:
        teacher: what the students learnt from.
        students: by name, at most `MOST`; a name becomes a folder.
        folder: where images are kept, in `<name>/`, and labels beside them.
        judges: classifiers that label the images; each has other attributes.
        settings: how many images, which attributes, and so on.
        extractor: of the features for quality; default: the first judge.
        reference: further images for quality: samples, or any folder of images.
        title: for people.
        watch: told of progress.

    Raises:
        UserError: latents of another size, a name that is no folder's, what `audit` refuses, or too few images.
    """
    asked, network, why_not = _checked(teacher, students, judges, settings or Settings(), extractor)
    given = None if reference is None else _open_reference(Path(reference), asked.count, asked.seed)
    generators = {TEACHER: teacher, **students}
    drawn = teacher.latents(2 * asked.count, asked.seed)
    labels = {name: _labels(each, asked.count, asked.seed, asked.target) for name, each in generators.items()}
    latents, others = drawn[: asked.count], drawn[asked.count :]
    _try(generators, latents, labels)
    judging = Judging(Path(folder), judges, network, asked, watch)
    samples = {name: judging.make(name, each, latents, labels[name]) for name, each in generators.items()}
    aside = _references(teacher, others, given, judging)
    sides = {name: judging.see(name, each.images, each.ids) for name, each in samples.items()}
    qualities = comparison_sides.qualities(sides, aside, network, asked)
    speeds = comparison_sides.speeds(generators, latents, labels, asked, watch)
    found = [
        {
            "name": name, "role": TEACHER if name == TEACHER else "student", **comparison_sides.known(each),
            **comparison_sides.shares_of(sides[name], sides[TEACHER], asked),
            "pixels": None if name == TEACHER else comparison_sides.pixels_of(samples[name], samples[TEACHER], asked),
            "asked": comparison_sides.asked_of(each, samples[name], sides[name], asked),
            "quality": qualities[name],
            "diversity": comparison_sides.diversity_of(sides[name], asked), "speed": speeds.get(name),
        }
        for name, each in generators.items()
    ]  # fmt: skip
    content = {**_frame(asked, judging, teacher, title), "why_no_quality": why_not, "generators": found,
               "references": {name: str(each.images) for name, each in aside.items()}}  # fmt: skip
    for entry in found:
        entry["times"] = comparison_sides.times_of(entry, found[0])
    content["caveats"] = caveats(content)
    return Comparison(content, comparison_sides.grid(generators, latents))


def _frame(asked: Settings, judging: Judging, teacher: Generator, title: str) -> dict[str, Any]:
    """Say how generators were compared, by whom, and where."""
    return {
        "format": FORMAT, "kind": "generator comparison", "evenlens": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "title": title, "count": asked.count,
        "seed": asked.seed, "confidence": asked.confidence, "device": engine.describe(teacher.device),
        "threads": torch.get_num_threads(), "judges": [comparison_sides.of_classifier(each) for each in judging.judges],
        "extractor": judging.extractor and comparison_sides.of_classifier(judging.extractor),
    }  # fmt: skip


# ---- before anything is made


def _attributes(judges: Sequence[FaceClassifier]) -> dict[str, tuple[str, ...]]:
    """Gather what the judges know: classes by attribute."""
    if not judges:
        raise UserError("No classifier judges the images: name one with --by.")
    known: dict[str, tuple[str, ...]] = {}
    for judge in judges:
        for name, classes in judge.attributes.items():
            if name in known:
                raise UserError(
                    f"Two classifiers label {name}: give one for each attribute, so that it is clear whose."
                )
            known[name] = classes
    return known


def _checked(
    teacher: Generator, students: Mapping[str, Generator], judges: Sequence[FaceClassifier], asked: Settings,
    extractor: FaceClassifier | None,
) -> tuple[Settings, FaceClassifier | None, str]:  # fmt: skip
    """Refuse what cannot be compared, and fill in attributes and the network of the features."""
    known = _attributes(judges)
    asked = replace(asked, attributes=tuple(dict.fromkeys(asked.attributes or known)))
    for name in [*asked.attributes, *(each for group in asked.joint for each in group)]:
        if name not in known:
            raise unknown("attribute of the classifiers", name, known)
    _check_students(teacher, students)
    if asked.count < FEWEST:
        raise UserError(f"{asked.count} images are too few to be compared: make at least {FEWEST} with --count.")
    there = teacher.settings["samples"] if isinstance(teacher, Folder) else 2 * asked.count
    if 2 * asked.count > there:
        raise UserError(
            f"{teacher.title} are {there:,} images: at most half of them, --count {there // 2}, can be compared, as "
            "the others are what quality is measured against."
        )
    _rehearse(known, asked)
    return asked, *_extractor(extractor, judges)


def _check_students(teacher: Generator, students: Mapping[str, Generator]) -> None:
    if not 1 <= len(students) <= MOST:
        raise UserError(f"{len(students)} students were given: compare from 1 to {MOST} with their teacher.")
    for name, student in students.items():
        check_name(name)
        if student.latent_size != teacher.latent_size:
            raise UserError(
                f"{name} takes latents of {student.latent_size} numbers, and the teacher's have {teacher.latent_size}: "
                "a student is compared with the teacher that it learnt from, on the same latents."
            )


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a student, and of its folder."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(f"A student cannot be called '{name}': take letters, digits, '.', '_' and '-'.")


def _rehearse(known: Mapping[str, tuple[str, ...]], asked: Settings) -> None:
    """Audit made-up labels of the judges' classes, so that what an audit refuses is refused before images are made."""
    num = max(len(classes) for classes in known.values())
    made = {
        name: Attribute(classes, np.arange(num) % len(classes), np.full((num, len(classes)), 1 / len(classes)))
        for name, classes in known.items()
    }
    labels = Labels(np.arange(num).astype(str), np.zeros(num, np.int64), np.ones(num, np.int64), made)
    audit(labels, **{**asked.audit, "replicates": 2})


def _extractor(asked: FaceClassifier | None, judges: Sequence[FaceClassifier]) -> tuple[FaceClassifier | None, str]:
    """Choose whose features quality is measured by; of a judge without any, say why there is no quality."""
    network = asked or judges[0]
    try:
        network.features(torch.zeros(1, 3, network.size, network.size, device=network.device))
    except UserError as error:
        if asked is not None:
            raise
        return None, str(error)
    return network, ""


def _open_reference(path: Path, count: int, seed: int) -> tuple[Path, np.ndarray]:
    """Find the reference images, at most as many as are compared: their folder and (M,) paths below it."""
    if not path.is_dir():
        raise UserError(f"There is no folder {path}: --reference names samples, or a folder of images.")
    if (path / INFO).is_file():
        samples = Samples.open(path)
        images, ids = samples.images, samples.ids
    else:
        images, ids = path, np.array(list_images(path), dtype=str)
        check_inside(images, ids.tolist())
    if len(ids) < FEWEST:
        raise UserError(f"{path} has {len(ids)} images: at least {FEWEST} are needed as a reference.")
    chosen = np.random.default_rng(seed).choice(len(ids), min(count, len(ids)), replace=False)
    return images, ids[np.sort(chosen)]


def _labels(generator: Generator, count: int, seed: int, target: Targets) -> Tensor | None:
    """Say what a generator with labels is asked to make (N,): the target's shares of them, in random order."""
    if not generator.labels:
        return None
    shares = target.asked(generator.levels)
    return even_labels(count, len(generator.labels), seed) if shares is None else asked_labels(count, shares, seed)


def _try(generators: Mapping[str, Generator], latents: Tensor, labels: Mapping[str, Tensor | None]) -> None:
    """Make one image by each, so that one that cannot is found before thousands are made by the others."""
    for name, generator in generators.items():
        label = labels[name]
        generator.sample(latents[:1], None if label is None else label[:1])


# ---- what is compared


def _references(
    teacher: Generator, latents: Tensor, given: tuple[Path, np.ndarray] | None, judging: Judging
) -> dict[str, Side]:
    """Make and label what quality is measured against; nothing where there is no extractor."""
    if judging.extractor is None:
        return {}
    asked = judging.settings
    made = judging.make(OTHERS, teacher, latents, _labels(teacher, len(latents), asked.seed + 1, asked.target))
    found = {OTHERS: judging.see(OTHERS, made.images, made.ids)}
    return {**found, REFERENCE: judging.see(REFERENCE, *given)} if given else found


def names_of(addresses: Sequence[str]) -> list[str]:
    """Name students by their addresses' last parts, each otherwise: ["a/small", "b/small"] -> ["small", "small-2"]."""
    names: list[str] = []
    for address in addresses:
        stem = Path(address).resolve().name if Path(address).exists() else address.rstrip("/").rpartition("/")[2]
        base = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "student"
        taken, number, name = {*names, *RESERVED}, 2, base
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
