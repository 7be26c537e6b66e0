"""A whole study of fair generation from one recipe: classifiers, teacher, audit, balance, students, comparison.

Each stage is a file or folder of its own, and what is there already is not made again: a killed study goes on. What was
made from something else, by another recipe, is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field, ValidationError

from evenlens import datasets, generation, recipes, run
from evenlens.config import RunConfig, Section, first_mistake, make_config, read_toml
from evenlens.errors import UserError, unknown
from evenlens.files import write_json
from evenlens.generation import (
    balancing,
    classifiers,
    comparing,
    comparison_sides,
    distillation,
    fair_latents,
    labelling,
    latent_probe,
    teachers,
)
from evenlens.generation.classifiers import FaceClassifier
from evenlens.generation.generator import Generator
from evenlens.generation.labels import Labels
from evenlens.generation.samples import Samples, make_samples
from evenlens.generation.students.settings import TEACHING, read_settings
from evenlens.generation.students.settings import Settings as StudentSettings
from evenlens.generation.targets import Targets
from evenlens.generation.teachers.fair_sampler import FairSampler
from evenlens.report import comparison_page, generation_page, student_page
from evenlens.run import Watch, silent

FAIR = "fair-latents"  # the teacher, with latents that are chosen by group
STAGES = "stages.json"  # what each file was made from
S = TypeVar("S", bound=Section)
Tell = Callable[[str], None]
"""Called with a sentence about what was found."""


class Made(Section):
    """Samples of the teacher."""

    count: int = Field(6000, ge=100)
    seed: int = Field(1, ge=0)


class Labeller(Section):
    """A classifier that is there."""

    run: str = Field(min_length=1)
    crop: float = Field(1.0, gt=0, le=1)
    races: Literal[7, 4] = 7


class Balance(Section):
    """How samples are balanced."""

    attributes: list[str] = Field(min_length=1)
    min_margin: float = Field(0.0, ge=0, le=1)
    total: int = Field(0, ge=0)
    seed: int = Field(0, ge=0)


class Compare(Section):
    """How teacher and students are compared."""

    count: int = Field(2000, ge=100)
    seed: int = Field(2, ge=0)


class Study(Section):
    """A recipe. Tables of settings are checked where they are used, before anything is made.

    Attributes:
        title: for people.
        about: what it shows.
        classifier: what labels samples, and what students learn from: a run, or how to make one.
        judge: the other one, that no student has learned from.
        teacher: a generator's address, or a data set and settings to teach one with.
        samples: of the teacher.
        balance: of the samples.
        students: by name: settings, and whether it is asked for the group.
        fair_latents: whether the teacher with chosen latents is compared, too.
        compare: how.
    """

    title: str = "Fair generation"
    about: str = ""
    classifier: dict[str, Any]
    judge: dict[str, Any]
    teacher: dict[str, Any]
    samples: Made = Made()
    balance: Balance
    students: dict[str, dict[str, Any]] = Field(min_length=1, max_length=4)
    fair_latents: bool = True
    compare: Compare = Compare()


class Outcome(NamedTuple):
    """What a study made.

    Attributes:
        folder: of it all.
        page: the comparison.
        variation: total variation to the target of each generator, by attribute and name, as the judge sees it.
        seconds: of each stage.
    """

    folder: Path
    page: Path
    variation: dict[str, dict[str, float]]
    seconds: dict[str, float]


def read_study(path: Path) -> Study:
    """Read a recipe.

    Raises:
        UserError: no such file, an unknown key, or something that is missing.
    """
    study = _read(Study, read_toml(path), path)
    for name, given in study.students.items():
        place = f"students.{name}"
        comparing.check_name(name)
        if name == FAIR:
            raise UserError(f"{path}: a student cannot be called {FAIR}, as the teacher with chosen latents is.")
        conditional = given.get("conditional", False)
        if not isinstance(conditional, bool):
            raise UserError(f"{path}: '{place}.conditional' is true or false, and {conditional!r} was given.")
        settings = read_settings({key: value for key, value in given.items() if key != "conditional"})
        if settings.used("group") and not conditional:
            raise UserError(f"{path}: '{place}.group' is for a student that is asked for one: add conditional = true.")
    for name in ("classifier", "judge"):
        _check_network(path, name, getattr(study, name))
    _check_teacher(path, study.teacher)
    return study


def _read(kind: type[S], content: Mapping[str, Any], path: Path, place: str = "") -> S:
    """Check a table of the recipe by name and value."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        where, message = first_mistake(error)
        raise UserError(f"{path}: '{place}{where}' cannot be used: {message}.") from None


def _check_network(path: Path, name: str, given: Mapping[str, Any]) -> None:
    if "run" in given:
        _read(Labeller, given, path, f"{name}.")
    elif len(recipes.expand(dict(given)).configs) != 1:
        raise UserError(f"{path}: {name} must be one run; give one value for each setting.")


def _check_teacher(path: Path, given: Mapping[str, Any]) -> None:
    if ("address" in given) == ("dataset" in given):
        raise UserError(f"{path}: the teacher is either an address, or a data set to teach it with.")
    if not isinstance(given.get("address", given.get("dataset")), str) or not isinstance(given.get("data", {}), dict):
        raise UserError(f"{path}: the teacher's address or dataset is a text, and its data a table.")
    if "dataset" in given:
        config, _ = _taught(given)
        datasets.get(config.dataset, config.data.root)


def _taught(given: Mapping[str, Any]) -> tuple[RunConfig, StudentSettings]:
    """Read how a teacher is taught: which images, and the settings of the training."""
    own = {key: value for key, value in given.items() if key not in ("dataset", "data")}
    data = {f"data.{key}": value for key, value in given.get("data", {}).items()}
    return make_config(given["dataset"], "", data), read_settings({**TEACHING, **own})


def make(study: Study, folder: Path | str, watch: Watch = silent, tell: Tell = lambda text: None) -> Outcome:
    """Make all stages that are not there yet.

    Args:
        study: as `read_study` gives it.
        folder: for everything that is made.
        watch: told of progress.
        tell: told what was found.

    Raises:
        UserError: what the stages refuse.
    """
    return _Making(study, Path(folder), watch, tell).make()


class _Making:
    """One study under way."""

    def __init__(self, study: Study, folder: Path, watch: Watch, tell: Tell) -> None:
        self.study, self.folder, self.watch, self.tell = study, folder, watch, tell
        self.seconds: dict[str, float] = {}

    def make(self) -> Outcome:
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: name a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        classifier, judge = (self._timed(name, self._network, name) for name in ("classifier", "judge"))
        if classifier.fingerprint == judge.fingerprint:
            raise UserError("The judge is the classifier itself: a student that deceives it would look balanced.")
        for name in self.study.balance.attributes:
            for one in (classifier, judge):
                if name not in one.attributes:
                    raise unknown(f"attribute to balance of {one.title}", name, one.attributes)
        teacher = self._timed("teacher", self._teacher)
        if teacher.labels and self.study.fair_latents:
            raise UserError(
                f"{teacher.title} takes labels, so its latents alone say no group: set fair_latents = false."
            )
        samples = self._timed("samples", self._samples, teacher)
        source = {"samples": samples.fingerprint, "classifier": classifier.fingerprint}
        labels = self._timed("labels", self._labels, samples, classifier, source)
        self._timed("audit", self._audit, labels, samples)
        chosen = self._timed("balance", self._balance, labels, source)
        fair = (
            {FAIR: self._timed(FAIR, self._fair, teacher, samples, labels, source)} if self.study.fair_latents else {}
        )
        students = {
            name: self._timed(name, self._student, name, samples, chosen, classifier) for name in self.study.students
        }
        return self._timed("compare", self._compare, teacher, {**fair, **students}, judge)

    def _timed(self, name: str, make: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        made = make(*given)
        self.seconds[name] = round(time.perf_counter() - began, 1)
        return made

    def _is_made(self, path: Path, source: Mapping[str, Any]) -> bool:
        """Say whether a file is there, made from the same; write down what it is made from before it is made."""
        stages = self.folder / STAGES
        try:
            known = json.loads(stages.read_text(encoding="utf-8")) if stages.is_file() else {}
            was = known.get(path.name)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{stages} is damaged ({error}): delete it and {path}.") from None
        if path.is_file():
            if was != source:
                raise UserError(f"{path} was made by another recipe: name another folder with --out, or delete it.")
            return True
        write_json(stages, {**known, path.name: source})
        return False

    def _network(self, name: str) -> FaceClassifier:
        given = dict(getattr(self.study, name))
        if "run" in given:
            return classifiers.load(str(given.pop("run")), **given)
        made = run.train(recipes.expand(given).configs[0], self.folder / "runs", self.watch)
        found = classifiers.load(str(made.folder))
        accuracy = made.metrics["test"]["metrics"]["accuracy"][0]
        said = f", right about {100 * accuracy:.1f} % of test images"
        self.tell(f"{name}: {found.title}{said}")
        return found

    def _teacher(self) -> Generator:
        given = dict(self.study.teacher)
        if "address" in given:
            return teachers.load(given.pop("address"), **given)
        config, settings = _taught(given)
        folder = distillation.teach(config, self.folder / "teacher", settings, watch=self.watch)
        student_page.write(folder)
        return teachers.load(folder)

    def _samples(self, teacher: Generator) -> Samples:
        return make_samples(
            teacher, self.folder / "faces", self.study.samples.count, self.study.samples.seed, watch=self.watch
        )

    def _labels(self, samples: Samples, classifier: FaceClassifier, source: Mapping[str, Any]) -> Labels:
        path = self.folder / "labels.parquet"
        if not self._is_made(path, source):
            found = labelling.label_images(samples.images, samples.ids.tolist(), [classifier], watch=self.watch)
            generation.write_labels(found, path)
        return generation.read_labels(path, list(classifier.attributes))

    def _audit(self, labels: Labels, samples: Samples) -> None:
        names = self.study.balance.attributes
        joint = [names] if len(names) > 1 else []
        found = generation.audit(labels, names, joint, title=f"{self.study.title}: the teacher")
        sheets = [generation_page.sheet(name, generation.examples(labels, name), samples.images) for name in names]
        generation_page.write(found.as_dict(), self.folder / "audit.html", sheets)
        for part in found.parts:
            first = part.found
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in
                               zip(first.categories, (first.counts / first.n).tolist(), strict=True))  # fmt: skip
            self.tell(f"teacher, {first.name}: {shares}")

    def _balance(self, labels: Labels, source: Mapping[str, Any]) -> balancing.Chosen:
        asked, path = self.study.balance, self.folder / "chosen.parquet"
        self._is_made(path, {**source, "balance": asked.model_dump()})
        made = balancing.balance(
            labels, asked.attributes, total=asked.total, seed=asked.seed, min_margin=asked.min_margin
        )
        balancing.write_chosen(made.chosen, path)
        write_json(path.with_suffix(".json"), made.as_dict())
        self.tell(f"balanced: {len(made.chosen):,} pairs, {100 * made.yielded:.1f} % of the samples")
        return balancing.read_chosen(path)

    def _student(self, name: str, samples: Samples, chosen: balancing.Chosen, classifier: FaceClassifier) -> Generator:
        given = dict(self.study.students[name])
        conditional = bool(given.pop("conditional", False))
        folder = distillation.distil(
            samples, self.folder / "students" / name, read_settings(given), chosen=chosen, conditional=conditional,
            classifier=classifier, title=name, watch=self.watch,
        )  # fmt: skip
        student_page.write(folder)
        return teachers.load(folder)

    def _fair(self, teacher: Generator, samples: Samples, labels: Labels, source: Mapping[str, Any]) -> Generator:
        path, names = self.folder / "probe.safetensors", self.study.balance.attributes
        if not self._is_made(path, {**source, "attributes": names}):
            known = fair_latents.labelled_latents(samples, balancing.grouped(labels, names))
            latent_probe.fit_probe(known.latents, known.group, known.groups, names, watch=self.watch).save(path)
        return FairSampler(teacher, latent_probe.LatentProbe.load(path))

    def _compare(self, teacher: Generator, students: Mapping[str, Generator], judge: FaceClassifier) -> Outcome:
        names, asked = self.study.balance.attributes, self.study.compare
        settings = comparison_sides.Settings(
            asked.count, asked.seed, tuple(names), [names] if len(names) > 1 else [], Targets()
        )
        out = self.folder / "compare"
        found = comparing.compare(teacher, students, out, [judge], settings, title=self.study.title, watch=self.watch)
        page = comparison_page.write(found, out)
        variation = {
            part["name"]: {each["name"]: each["parts"][number]["distances"]["total_variation"]["value"]
                           for each in found.content["generators"]}
            for number, part in enumerate(found.content["generators"][0]["parts"])
        }  # fmt: skip
        content = {"variation": variation, "seconds": self.seconds, "torch": torch.__version__,
                   "recipe": self.study.model_dump(mode="json")}  # fmt: skip
        write_json(self.folder / "study.json", content)
        return Outcome(self.folder, page, variation, self.seconds)
