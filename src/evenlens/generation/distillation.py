"""Distil a student from samples of a teacher, or teach a generator from a data set's images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from evenlens.config import RunConfig
from evenlens.errors import UserError, unknown
from evenlens.generation.balancing import Chosen
from evenlens.generation.fair_latents import check_normal
from evenlens.generation.samples import Samples
from evenlens.generation.students import distilling
from evenlens.generation.students.nets import SIZES
from evenlens.generation.students.settings import Settings
from evenlens.generation.students.training import Material
from evenlens.generation.targets import Targets
from evenlens.run import Watch, load_data, silent

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

GROUP_TITLE = " and "  # between the attributes that are asked for


def distil(
    samples: Samples,
    folder: Path | str,
    settings: Settings,
    *,
    chosen: Chosen | None = None,
    conditional: bool = False,
    classifier: FaceClassifier | None = None,
    attributes: Sequence[str] = (),
    target: Targets | None = None,
    title: str = "",
    watch: Watch = silent,
) -> Path:
    """Train a small generator to make what a teacher makes of the same latents.

    A student that is only shown balanced pairs still makes what the teacher's latents say: of fresh latents it inherits
    the bias. A conditional one is asked for a group with each latent, and makes as many of each as it is asked for.

    Args:
        samples: what the teacher made.
        folder: to be written, see `distilling.train`.
        settings: how.
        chosen: which of the samples, and their groups; default: all.
        conditional: whether it is asked for the group; it needs `chosen`.
        classifier: for the terms that look through one, and for choosing the epoch. Another one should judge the
            student, as it may learn what deceives this one.
        attributes: of which the shares are scored; default: those of `chosen`, else all that the classifier knows.
        target: wanted shares, by which epochs are scored and a conditional student is asked; default: equal ones.
        title: of the student; default: from what it is.
        watch: told of progress.

    Raises:
        UserError: chosen images that are not among the samples, an attribute that the classifier does not know, latents
            that are not normal, a target that nothing asks for or of unknown classes, and what `Training` refuses.

    Source: after Chang and Lu, 2020, arXiv 2009.13829, and the code of fair GAN distillation that follows it.
    """
    if conditional and chosen is None:
        raise UserError("A conditional student is told each image's group: name a table of chosen images with --pairs.")
    asked = chosen if conditional else None
    rows = np.arange(len(samples)) if chosen is None else _rows(samples, chosen)
    names, size = _attributes(chosen, classifier, attributes), settings.size or samples.size
    wanted = _checked(target or Targets(), [*names, *(asked.attributes if asked else ())])
    if size not in SIZES:
        raise UserError(f"The samples have {size} pixels: set size= one of {', '.join(map(str, SIZES))}.")
    _check_latents(samples, settings)
    groups = tuple(dict(zip(asked.attributes, parts, strict=True)) for parts in asked.parts) if asked else ()
    shares = _shares(classifier, names, wanted)
    some = samples.select(rows)
    material = Material(
        np.ascontiguousarray(some.pixels(size, watch)), torch.from_numpy(some.latents),
        torch.from_numpy(asked.group) if asked else None, groups, wanted.asked(groups) if asked else None, rows,
    )  # fmt: skip
    kind = "conditional student" if conditional else "student"
    origin = distilling.Origin(
        title or f"{kind} of {samples.info.get('generator', {}).get('title', samples.folder.name)}",
        {"samples": samples.info, "fingerprint": samples.fingerprint, "chosen": len(rows),
         "attributes": list(chosen.attributes) if chosen else []},
        GROUP_TITLE.join(asked.attributes) if asked else "", asked.groups if asked else (), shares,
    )  # fmt: skip
    return distilling.train(material, folder, settings, origin, classifier, watch)


def teach(
    config: RunConfig,
    folder: Path | str,
    settings: Settings,
    *,
    classifier: FaceClassifier | None = None,
    watch: Watch = silent,
) -> Path:
    """Train a generator from a data set's training images, as a teacher of one's own.

    Args:
        config: names the data set and its settings; its method is not used.
        folder: to be written, see `distilling.train`.
        settings: how; terms that need a teacher's images are not used.
        classifier: whose features choose the epoch; default: mean colours.
        watch: told of progress.

    Raises:
        UserError: what loading the data and `Training` refuse, or images of a size that no student has.
    """
    if settings.size is not None:
        raise UserError(f"size={settings.size} is a student's: set data.size={settings.size}.")
    splits = load_data(config, watch).splits
    pixels = splits.train.pixels[splits.train.rows].numpy()
    if pixels.shape[1] not in SIZES:
        raise UserError(
            f"The images have {pixels.shape[1]} pixels: set data.size= one of {', '.join(map(str, SIZES))}."
        )
    source = {"dataset": config.dataset, "data": config.data.model_dump(mode="json", exclude={"root"}),
              "fingerprint": splits.fingerprint}  # fmt: skip
    origin = distilling.Origin(f"generator of {config.dataset}", source)
    return distilling.train(Material(pixels), folder, settings, origin, classifier, watch)


def _rows(samples: Samples, chosen: Chosen) -> np.ndarray:
    place = {name: row for row, name in enumerate(samples.ids.tolist())}
    lacking = [name for name in chosen.ids.tolist() if name not in place]
    if lacking:
        raise UserError(
            f"{len(lacking):,} of {len(chosen):,} chosen images are not among the samples in {samples.folder}, such as "
            f"{lacking[0]}: choose from the labels of these samples."
        )
    return np.array([place[name] for name in chosen.ids.tolist()], dtype=np.int64)


def _check_latents(samples: Samples, settings: Settings) -> None:
    length = samples.latents.shape[1]
    if "latent_size" in settings.model_fields_set and settings.latent_size != length:
        raise UserError(
            f"latent_size={settings.latent_size} is not allowed here: a student takes the samples' latents, of "
            f"{length} numbers; leave it out."
        )
    try:
        check_normal(samples.latents)
    except UserError as error:
        why = str(error).partition(", so")[0]
        raise UserError(
            f"{why}; a student is given standard normal numbers: sample its teacher by such latents, or by what they "
            "are made from."
        ) from None


def _checked(target: Targets, names: Sequence[str]) -> Targets:
    """Refuse a target that nothing here asks for."""
    if not names and (target.given or target.labels is not None):
        raise UserError("A target is asked of images by a classifier or a group: add --classifier or --conditional.")
    target.check(names)
    return target


def _attributes(chosen: Chosen | None, classifier: FaceClassifier | None, given: Sequence[str]) -> list[str]:
    if classifier is None:
        if given:
            raise UserError(f"The shares of {given[0]} can be scored by a classifier only: name one with --classifier.")
        return []
    there = chosen.attributes if chosen else tuple(classifier.attributes)
    names = list(given) or [name for name in there if name in classifier.attributes]
    for name in names or there:
        if name not in classifier.attributes:
            raise unknown(f"attribute of {classifier.title}", name, classifier.attributes)
    return names


def _shares(classifier: FaceClassifier | None, names: Sequence[str], target: Targets) -> dict[str, Tensor]:
    if classifier is None:
        return {}
    classes = {name: classifier.attributes[name] for name in names}
    for name, known in classes.items():
        strange = [level for level in target.classes(name) if level not in known]
        if strange:
            raise unknown(f"{name} of {classifier.title} with a target", strange[0], known)
    mine = Targets({name: part for name, part in target.given.items() if name in classes}, target.labels)
    wanted = mine.among(classes)
    found: dict[str, Any] = {name: wanted.shares([name], classes)[0] for name in names}
    return {
        name: torch.full((len(classes[name]),), 1 / len(classes[name])) if share is None else torch.tensor(share)
        for name, share in found.items()
    }
