"""How well what a model gives away tells the group: fresh discriminators, fitted on one part and judged on another."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from evenlens import engine
from evenlens import run as running
from evenlens.data.dataset import FairDataset
from evenlens.errors import unknown
from evenlens.files import write_json
from evenlens.methods._input_repair import features_and_logits
from evenlens.probes import DISCRIMINATORS, Rows, Told, tell
from evenlens.run import Run, Watch, silent

OF = ("logits", "features")
PARTS = ("test", "val")


@dataclass(frozen=True)
class Leakage:
    """What a run gives away of the group.

    Attributes:
        of: "logits" or "features".
        part: which images it was judged on.
        told: one entry for each discriminator, over all images and within each label.
    """

    of: str
    part: str
    told: list[Told]

    def write_json(self, path: Path) -> None:
        """Write it as JSON; undefined is null."""
        content = asdict(self)
        for entry in content["told"]:
            entry |= {key: None for key, value in entry.items() if value != value}
        write_json(path, content)


def measure(run: Run, of: str = "logits", part: str = "test", seed: int = 0, watch: Watch = silent) -> Leakage:
    """Fit fresh discriminators to tell the group from what a run's model gives, and judge them on other images.

    That no adversary of the training could tell the group says little: it may have been weak. A linear one and one
    with a hidden layer are fitted here, every group counting alike: over all images, which is what demographic parity
    is about, and within each label, which is what equalized odds are about.

    Args:
        run: a complete run.
        of: "logits", which are read from its predictions, or "features", which the head is shown; these need the
            images.
        part: "test": fitted on the validation images, judged on those of the test; "val": one half of the
            validation images each, so that the test stays closed.
        seed: of the discriminators, and of the halves.
        watch: told of progress.

    Raises:
        UserError: an unknown word, or the images are not there or are others.
    """
    if of not in OF:
        raise unknown("thing to look for the group in", of, OF)
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    task = run.metrics["task"]
    rows = _features(run, part, watch) if of == "features" else {name: _logits(run, name) for name in {"val", part}}
    fit, judge = rows["val"], rows[part]
    if part == "val":
        drawn = torch.randperm(len(fit.group), generator=torch.Generator().manual_seed(seed))
        half = torch.zeros(len(drawn), dtype=torch.bool)
        half[drawn[: len(drawn) // 2]] = True
        fit, judge = fit.keep(half), judge.keep(~half)
    told = []
    for label, name in enumerate(["", *task["class_names"]], start=-1):
        learned, judged = (each if label < 0 else each.keep(each.label == label) for each in (fit, judge))
        told += [tell(learned, judged, discriminator, seed, name) for discriminator in DISCRIMINATORS]
    return Leakage(of, part, told)


def _logits(run: Run, part: str) -> Rows:
    columns = run.predictions(part)
    names = sorted((name for name in columns if name.startswith("logit.")), key=lambda name: int(name[6:]))
    logits = np.stack([columns[name] for name in names], axis=1).astype(np.float32)
    label, group = (torch.from_numpy(columns[name].astype(np.int64)) for name in ("label", "group"))
    return Rows(torch.from_numpy(logits), label, group)


def _features(run: Run, part: str, watch: Watch) -> dict[str, Rows]:
    """Compute what the head of a run's network is shown, of the same images."""
    splits = running.load_data(run.config, watch).splits
    running.pin(run.config, splits)
    device = engine.start()
    method = run.load_method().to(device)
    found = {}
    for name in {"val", part}:
        data: FairDataset = getattr(splits, name).on(device, batch_size=running.EVALUATION_BATCH)
        seen = 0
        features = []
        with torch.inference_mode():
            for batch in replace(data, tick=None).in_order():
                features.append(features_and_logits(method, batch.image)[0].float().cpu())
                seen += len(batch.label)
                watch(f"features of {name}", seen, len(data))
        found[name] = Rows(torch.cat(features), data.label.cpu(), data.group.cpu())
    return found
