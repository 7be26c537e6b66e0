"""The smallest network within a bound: make candidates of several sparsities, judge each on validation images, choose.

A candidate is an ordinary run of a method that compresses. What is bounded is the worst excess accuracy gap: how much
more accuracy the group that loses most has lost, from the dense network to the candidate, than all images together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from evenlens import engine, measuring, methods, metrics, sweeps
from evenlens import run as running
from evenlens.candidates import Candidate, Search, Tested, choose, judge_both, measure_of
from evenlens.config import RunConfig, keyword_options
from evenlens.data.dataset import Splits
from evenlens.errors import UserError, unknown
from evenlens.export import deployable, export_weights
from evenlens.measuring import Latency, random_images
from evenlens.method import Method
from evenlens.metrics import Interval
from evenlens.metrics.intervals import tail
from evenlens.run import Watch, silent
from evenlens.run_folder import Run
from evenlens.workers import Engine

TARGETS = ("latency", "size")
SPARSITIES = {
    "channels": (0.25, 0.375, 0.5, 0.625, 0.75, 0.875),
    "weights": (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    "2:4": (0.5,),
}
SECONDS = 3.0  # of measuring the time of each network


# ---- what is asked


def candidates_of(config: RunConfig, target: str, sparsities: Sequence[float] | None = None) -> list[RunConfig]:
    """Give the runs of a search, by rising sparsity, channels being removed unless config says otherwise.

    Args:
        config: a run of a method that compresses, without `sparsity`.
        target: "latency" or "size".
        sparsities: each above 0 and below 1; default: those in `SPARSITIES`.

    Raises:
        UserError: something in it cannot be.
    """
    _check_method(config.method)
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    if "sparsity" in config.options:
        raise UserError(
            "A search tries several sparsities: give them with --sparsity 0.3,0.5,0.7, not as a setting sparsity=..."
        )
    structure = str(config.options.get("structure", "channels"))
    if structure not in SPARSITIES:
        raise unknown(f"structure of {config.method}", structure, SPARSITIES)
    if target == "latency" and structure != "channels":
        raise UserError(
            f"structure={structure} makes nothing faster, as single weights that are 0 are computed all the same: "
            "leave it out, which removes whole channels, or choose --target size."
        )
    chosen = SPARSITIES[structure] if sparsities is None else sorted(set(sparsities))
    wrong = [each for each in chosen if not 0 < each < 1]
    if wrong or not chosen:
        given = f"{wrong[0]:g} is not" if wrong else "there is none"
        raise UserError(f"Sparsities are shares that are removed, above 0 and below 1, and {given}: try 0.3,0.5,0.7.")
    each_of = [{**config.options, "structure": structure, "sparsity": float(sparsity)} for sparsity in chosen]
    return [config.model_copy(update={"options": options}) for options in each_of]


def _check_method(name: str) -> None:
    """Refuse a method that does not make networks smaller."""
    if name in methods.names() and _compresses(methods.get(name)):
        return
    known = [each for each in methods.names() if _compresses(methods.get(each))]
    if name not in methods.names():
        raise unknown("method that makes networks smaller", name, known)
    raise UserError(f"{name} makes no network smaller: choose one of {', '.join(known)}.")


def _compresses(method: type[Method]) -> bool:
    return method.stage == "compress" and {"sparsity", "structure"} <= set(keyword_options(method))


def search(
    config: RunConfig,
    max_gap: float,
    target: str = "latency",
    sparsities: Sequence[float] | None = None,
    runs: Path | str = "runs",
    jobs: int | None = None,
    confidence: float = 0.95,
    max_drop: float = 0.05,
    listen: sweeps.Listen = sweeps.unheard,
    watch: Watch = silent,
) -> Search:
    """Find the smallest network whose worst excess accuracy gap is within a bound.

    Runs that are there are not made again, and those that were killed go on. Candidates are judged and chosen by their
    predictions of validation images alone; test predictions are read after that, of the chosen and the dense one.

    Args:
        config: a run of a method that compresses, without `sparsity`; its option `structure` is "channels" unless set.
        max_gap: the bound, at least 0 and below 1, as a share of images: 0.02 is 2 points of accuracy.
        target: what is to be small: "latency", the median time of one image on the CPU with one thread, or "size", that
            of the file of weights (compressed, where single weights are removed).
        sparsities: each above 0 and below 1; default: those in `SPARSITIES`.
        runs: folder for the runs' folders.
        jobs: runs side by side; default: as many as fit.
        confidence: of every interval, in (0, 1).
        max_drop: bound on the fall of accuracy over all images, from 0 to 1: a network that is right for nobody would
            keep any bound on gaps.
        listen: told what happens to each run.
        watch: told of the decoding of images and of measuring.

    Raises:
        UserError: something given cannot be used, or no candidate could be made.
    """
    _check_bounds(max_gap, max_drop, confidence)
    asked, runs = candidates_of(config, target, sparsities), Path(runs)
    failed: dict[str, str] = {}

    def hear(event: sweeps.Event) -> None:
        options = event.job.config.options
        if event.kind == "failed" and "sparsity" in options:  # else it is one that candidates start from
            failed[f"sparsity {options['sparsity']:g}"] = event.job.message
        listen(event)

    outcome = sweeps.sweep(asked, runs, Engine(jobs=jobs), listen=hear, watch_images=watch)
    if not outcome.folders:
        name, why = next(iter(failed.items()))
        raise UserError(f"No candidate could be made; {name}: {why}")
    made = sorted(map(Run.open, outcome.folders), key=lambda run: float(run.config.options["sparsity"]))
    splits = running.load_data(made[0].config, watch).splits
    judging = _Judging(splits, _dense_of(made[0]), max_gap, max_drop, confidence)
    costs = _costs([judging.dense, *made], watch)
    candidates = [judging.candidate(run, cost) for run, cost in zip(made, costs[1:], strict=True)]
    chosen = choose(candidates, measure_of(target, str(asked[0].options["structure"])))
    shared = made[0].config.model_copy(
        update={"options": {key: value for key, value in made[0].config.options.items() if key != "sparsity"}}
    )
    return Search(
        shared, target, max_gap, max_drop, confidence, judging.of_dense(costs[0]), candidates, chosen,
        judging.tested(chosen.folder) if chosen else None, failed, outcome.made,
    )  # fmt: skip


def _check_bounds(max_gap: float, max_drop: float, confidence: float) -> None:
    if not 0 <= max_gap < 1:
        raise UserError(
            f"max-gap={max_gap:g} is not allowed: it is a share of images, at least 0 and below 1: try 0.02."
        )
    if not 0 <= max_drop <= 1:
        raise UserError(f"max-drop={max_drop:g} is not allowed: it is a share of images, from 0 to 1: try 0.05.")
    tail(confidence)  # which refuses what is none


# ---- how candidates are judged


def _dense_of(run: Run) -> Run:
    """Open the run that one was pruned from."""
    for folder in run.required("dense"):
        if folder.is_dir():
            return Run.open(folder)
    raise UserError(f"The dense run of {run.folder} is not there: put it back, or delete this one too and try again.")


class _Right(TypedDict):
    """How often a network is right, by the names of the metrics."""

    accuracy: Interval[float]
    worst_group_accuracy: Interval[float]


class _Lost(TypedDict):
    """What a network loses, by the names of a candidate's attributes."""

    excess: Interval[float]
    worst: str
    drop: Interval[float]


class _Cost(TypedDict):
    """What a network costs, by the names of a candidate's attributes."""

    parameters: int
    parameters_nonzero: int
    bytes: int
    bytes_gzip: int
    latency: Latency


@dataclass(frozen=True)
class _Judging:
    """What candidates are judged by."""

    splits: Splits
    dense: Run
    max_gap: float
    max_drop: float
    confidence: float
    known: dict[tuple[Path, str], np.ndarray] = field(default_factory=dict)

    def candidate(self, run: Run, cost: _Cost) -> Candidate:
        """Judge a candidate on validation images."""
        lost = self._lost(run, "val")
        verdict = judge_both(lost["excess"], self.max_gap, lost["drop"], self.max_drop)
        sparsity = float(run.config.options["sparsity"])
        return Candidate(sparsity, run.folder, **cost, **self._right(run, "val"), **lost, verdict=verdict)

    def of_dense(self, cost: _Cost) -> Candidate:
        """Give the dense network as a candidate that nobody judges."""
        return Candidate(0.0, self.dense.folder, **cost, **self._right(self.dense, "val"))

    def tested(self, folder: Path) -> Tested:
        """Open the test images of the chosen run and the dense one."""
        run = Run.open(folder)
        lost = self._lost(run, "test")
        right = {"chosen": self._right(run, "test"), "dense": self._right(self.dense, "test")}
        accuracy = {who: found["accuracy"] for who, found in right.items()}
        worst_group = {who: found["worst_group_accuracy"] for who, found in right.items()}
        verdict = judge_both(lost["excess"], self.max_gap, lost["drop"], self.max_drop)
        return Tested(**lost, verdict=verdict, accuracy=accuracy, worst_group_accuracy=worst_group)

    def _lost(self, run: Run, part: str) -> _Lost:
        data, task = getattr(self.splits, part), self.splits.task
        label, group = data.label.cpu().numpy(), data.group.cpu().numpy()
        found = metrics.degradation(
            self._prediction(self.dense, part), self._prediction(run, part), label, group, task.num_classes,
            task.num_groups, confidence=self.confidence,
        )  # fmt: skip
        open_to = metrics.unseen_losses(
            self._prediction(self.dense, part), self._prediction(run, part), label, group, task.num_groups,
            confidence=self.confidence,
        )  # fmt: skip
        worst_case = float(np.fmax.reduce(open_to.excess, initial=found.worst_excess.high))
        excess = found.worst_excess._replace(high=worst_case)
        worst = task.group_names[int(np.nanargmax(found.excess.value))]
        alike = found.worst_excess.value <= 0
        return {"excess": excess, "worst": "" if alike else worst, "drop": found.drop}

    def _right(self, run: Run, part: str) -> _Right:
        data, task = getattr(self.splits, part), self.splits.task
        counts = metrics.count(
            self._prediction(run, part), data.label.cpu().numpy(), data.group.cpu().numpy(), task.num_classes,
            task.num_groups,
        )  # fmt: skip
        found = metrics.bootstrap_all(counts, ("accuracy", "worst_group_accuracy"), confidence=self.confidence)
        return {"accuracy": found["accuracy"], "worst_group_accuracy": found["worst_group_accuracy"]}

    def _prediction(self, run: Run, part: str) -> np.ndarray:
        """Give the classes (N,) that a run predicts for a part; predicted now where it was made with other data."""
        key = run.folder, part
        if key not in self.known:
            same = run.config.data.fingerprint == self.splits.fingerprint
            self.known[key] = run.predictions(part)["prediction"] if same else self._predicted(run, part)
        return self.known[key]

    def _predicted(self, run: Run, part: str) -> np.ndarray:
        device = engine.start()
        data = getattr(self.splits.near(device), part).on(device, batch_size=running.EVALUATION_BATCH)
        return running.predict(run.load_method().to(device), data).argmax(1).numpy()


def _costs(runs: Sequence[Run], watch: Watch) -> list[_Cost]:
    """Measure size and time of each network as it would be exported; their time in turns."""
    nets, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, run in enumerate(runs):
            watch("measurements", number, len(runs) + 1)
            nets.append(deployable(run.load()))
            sizes.append(measuring.file_sizes(_weights(nets[-1], Path(folder) / "weights.safetensors")))
    image = random_images(1, nets[0].task.image_size)
    with measuring.threads_of_torch(1), torch.inference_mode():
        taken = measuring.latency({str(number): partial(net, image) for number, net in enumerate(nets)}, SECONDS)
    watch("measurements", len(runs) + 1, len(runs) + 1)
    costs: list[_Cost] = []
    for number, (net, (size, packed)) in enumerate(zip(nets, sizes, strict=True)):
        weights, nonzero = measuring.count_parameters(net)
        costs.append({"parameters": weights, "parameters_nonzero": nonzero, "bytes": size, "bytes_gzip": packed,
                      "latency": taken[str(number)]})  # fmt: skip
    return costs


def _weights(method: Method, path: Path) -> Path:
    """Write a network's weights as they are exported; where it predicts with more than they are, that too."""
    from safetensors.torch import save

    try:
        export_weights(method, path)
    except UserError:
        state = {**dict(method.named_parameters()), **dict(method.named_buffers())}
        path.write_bytes(save({name: value.detach().contiguous() for name, value in state.items()}))
    return path
