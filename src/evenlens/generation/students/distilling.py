"""A student in a folder: trained epoch by epoch, drawn and scored after each, and the best one kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from evenlens import __version__, engine
from evenlens.errors import UserError
from evenlens.files import replacing, write_json
from evenlens.generation.students.choosing import FIXED_SEED, Chooser
from evenlens.generation.students.nets import StudentNet
from evenlens.generation.students.settings import Settings
from evenlens.generation.students.student_file import FORMAT, INFO, WEIGHTS, read_info
from evenlens.generation.students.training import Material, Training, fixed_latents
from evenlens.model_file import bad_checkpoint, load_checkpoint, save_checkpoint
from evenlens.run import Watch, silent

if TYPE_CHECKING:
    from evenlens.generation.classifiers import FaceClassifier

CHECKPOINT, LOG, GRIDS = "checkpoint.pt", "log.jsonl", "grids"
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 0.1, 16, 1000  # images to score epochs by; nothing is learned from them
GRID, GAP, GRID_PIXELS = 8, 2, 64  # rows and columns of a grid, pixels between, and the least width of an image


@dataclass(frozen=True)
class Origin:
    """What a student was made from, as it is written down with it.

    Attributes:
        title: of the student.
        source: what was learned from, such as the samples' description.
        attribute: what can be asked for, such as "race"; "" for nothing.
        labels: names of the groups that can be asked for.
        target: wanted shares by attribute, for scoring and for the diversity term.
    """

    title: str
    source: Mapping[str, Any]
    attribute: str = ""
    labels: Sequence[str] = ()
    target: Mapping[str, Tensor] = field(default_factory=dict)


def train(
    material: Material,
    folder: Path | str,
    settings: Settings,
    origin: Origin,
    classifier: FaceClassifier | None = None,
    watch: Watch = silent,
) -> Path:
    """Train a generator into a folder; a killed training goes on after its last epoch, with the same numbers.

    Args:
        material: what is learned from; a tenth, 16 to 1,000 images, is held out to choose an epoch by.
        folder: to be written; it is there when it is complete. One that was made in the same way stays as it is.
        settings: how.
        origin: what it is made from.
        classifier: for terms that look through one, and for choosing.
        watch: told of progress.

    Raises:
        UserError: as in `Training`, something else in the folder, or another process at work on it.
    """
    folder = Path(folder)
    if origin.title == "":
        raise UserError("A student has a title: give one.")
    identity = _identity(material, settings, origin, classifier)
    if folder.exists():
        if not (folder / INFO).is_file() or read_info(folder).get("identity") != identity:
            raise UserError(f"{folder} holds something else than this would be: name another folder, or delete it.")
        return folder
    making = _Making(material, settings, origin, classifier, watch)  # which refuses what cannot be made
    partial = folder.with_name(f".{folder.name}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    lock = partial.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0):
            if (partial / "identity").is_file() and (partial / "identity").read_text() != identity:
                shutil.rmtree(partial)  # of another training
            (partial / GRIDS).mkdir(parents=True, exist_ok=True)
            (partial / "identity").write_text(identity)
            making.make(partial, identity)
            partial.replace(folder)
    except Timeout:
        raise UserError(f"Another process is training {folder} right now: wait for it, or stop it.") from None
    lock.unlink(missing_ok=True)
    return folder


def _identity(material: Material, settings: Settings, origin: Origin, classifier: FaceClassifier | None) -> str:
    content = hashlib.blake2b(np.ascontiguousarray(material.pixels).data, digest_size=8)
    for part in (material.latents, material.group):
        content.update(b"" if part is None else part.numpy().tobytes())
    content.update(b"" if material.shares is None else material.shares.tobytes())
    shares = {name: share.tolist() for name, share in origin.target.items()}
    named = [settings.model_dump(mode="json"), origin.title, origin.attribute, list(origin.labels), shares,
             classifier.fingerprint if classifier else None]  # fmt: skip
    content.update(json.dumps(named, sort_keys=True).encode())
    return content.hexdigest()


class _Making:
    """One training, in its hidden folder."""

    folder: Path

    def __init__(
        self, material: Material, settings: Settings, origin: Origin, classifier: FaceClassifier | None, watch: Watch,
    ) -> None:  # fmt: skip
        self.settings, self.origin, self.watch, self.groups = settings, origin, watch, material.groups
        device = engine.start()
        self.classifier = classifier.to(device) if classifier else None
        held = _held_out(material, settings.seed)
        learned, reference = material[np.flatnonzero(~held)], material.pixels[held]
        self.training = Training(learned, settings, device, self.classifier, origin.target)
        self.chooser = Chooser(
            reference, self.classifier, origin.target, settings.variation_weight, settings.judged, device,
            material.shares,
        )  # fmt: skip
        self.device, self.num_images = device, len(material)
        self.best: dict[str, Any] = {}
        self.kept: dict[str, Tensor] = {}  # weights of the best epoch
        self.seconds = 0.0

    def make(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self._resume()
        while self.training.epoch < self.settings.epochs:
            self.watch("epochs", self.training.epoch, self.settings.epochs)
            self._epoch()
        self.watch("epochs", self.settings.epochs, self.settings.epochs)
        self._finish(identity)

    def _epoch(self) -> None:
        began = time.perf_counter()
        losses = self.training.train_epoch()
        net, epoch = self.training.average, self.training.epoch
        scores = self.chooser.score(net)
        self.seconds += time.perf_counter() - began
        draw_grid(net, self.folder / GRIDS / f"epoch-{epoch:04d}.png", self.device)
        entry = {"epoch": epoch, **losses, **scores, "seconds": round(self.seconds, 2)}
        if not self.best or scores["score"] < self.best["score"]:
            self.best = {"epoch": epoch, **scores}
            self.kept = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
        log = [*self.log(), entry]
        with replacing(self.folder / LOG) as part:
            part.write_text("".join(json.dumps(each) + "\n" for each in log))
        # the best weights too: in a file of their own they could be of another epoch than `best` says after a kill
        save_checkpoint(self.folder / CHECKPOINT, {"training": self.training.state(), "best": self.best,
                                                   "kept": self.kept, "seconds": self.seconds})  # fmt: skip

    def log(self) -> list[dict[str, float]]:
        """Give an entry for each epoch so far."""
        path = self.folder / LOG
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines[: self.training.epoch - 1]]

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        content = load_checkpoint(path)
        try:
            self.training.restore(content["training"])
            self.best, self.kept, self.seconds = content["best"], content["kept"], content["seconds"]
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise bad_checkpoint(path, error) from None

    def _finish(self, identity: str) -> None:
        net = self.training.average
        rule = f"KID + {self.settings.variation_weight:g} x total variation" if self.origin.target else "the lowest KID"
        with replacing(self.folder / WEIGHTS) as part:
            part.write_bytes(save({name: value.contiguous() for name, value in self.kept.items()}))
        write_json(self.folder / INFO, {
            "format": FORMAT, "version": __version__, "identity": identity, "title": self.origin.title,
            "net": net.settings(), "attribute": self.origin.attribute, "labels": list(self.origin.labels),
            "levels": [dict(each) for each in self.groups], "source": dict(self.origin.source),
            "settings": self.settings.model_dump(mode="json"),
            "terms": self.training.terms, "images": self.num_images, "chosen": self.best,
            "chosen_by": {"rule": rule, "extractor": self.chooser.extractor,
                          "target": {k: v.tolist() for k, v in self.origin.target.items()}},
            "classifier": {"title": self.classifier.title, "fingerprint": self.classifier.fingerprint}
                          if self.classifier else None,
            "num_parameters": sum(each.numel() for each in net.parameters()),
            "environment": {"device": engine.describe(self.device), "torch": torch.__version__,
                            "seconds": round(self.seconds, 1)},
        })  # fmt: skip
        for name in (CHECKPOINT, "identity"):
            (self.folder / name).unlink(missing_ok=True)


def _held_out(material: Material, seed: int) -> np.ndarray:
    """Say which rows (N,) are held out; an image that is there several times is so with all its rows, or with none."""
    images = np.arange(len(material)) if material.image is None else material.image
    different = np.unique(images)
    num = min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(HELD_OUT * len(different))))
    order = np.random.default_rng(seed).permutation(len(different))
    return np.isin(images, different[order[:num]])


@torch.no_grad()
def draw_grid(net: StudentNet, path: Path, device: torch.device) -> None:
    """Draw rows of 8 images of fixed latents: 8 rows, or whole turns of a row for each label, of the same latents."""
    high = max(1, GRID // net.num_labels) * net.num_labels if net.num_labels else GRID
    rows, columns = np.divmod(np.arange(high * GRID), GRID)
    latents, _ = fixed_latents(net, GRID * GRID, FIXED_SEED)
    label = None
    if net.num_labels:
        latents = latents[torch.from_numpy(columns + GRID * (rows // net.num_labels))]
        label = torch.from_numpy(rows % net.num_labels).to(device)
    image = (net(latents.to(device), label) + 1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = image.permute(0, 2, 3, 1).cpu().numpy()
    times = -(-GRID_PIXELS // net.size)
    pixels = pixels.repeat(times, axis=1).repeat(times, axis=2)
    side = pixels.shape[1]
    sheet = np.full((high * (side + GAP) + GAP, GRID * (side + GAP) + GAP, 3), 255, dtype=np.uint8)
    for tile, row, column in zip(pixels, rows, columns, strict=True):
        top, left = GAP + row * (side + GAP), GAP + column * (side + GAP)
        sheet[top : top + side, left : left + side] = tile
    with replacing(path) as part:
        Image.fromarray(sheet).save(part, format="png")
