"""One run: find what it requires, fit, select on val, open test once, write the folder.

A run's folder exists if and only if the run is complete. Until then it is a hidden folder beside it, from which a
killed run goes on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from evenlens import __version__, datasets, dividing, engine, methods, metrics, model_file, nets, tone_leak
from evenlens.config import PHOTOGRAPH, RunConfig, to_toml
from evenlens.data import source
from evenlens.data.dataset import FairDataset, Splits, Task
from evenlens.data.source import Loaded
from evenlens.errors import UserError
from evenlens.files import replacing
from evenlens.method import Diverged, Log, Method, Middle
from evenlens.plan import complete, located, named_runs, required_config, started_from, targets_of
from evenlens.run_folder import FORMAT, Run, measure, refuse_seen, write_images, write_predictions
from evenlens.selecting import LAST, Rule

EVALUATION_BATCH = 512
MIDDLE_SECONDS = 300.0  # after which a long epoch is saved in its middle


class Busy(UserError):
    """Another process is making the run right now."""


Watch = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""


def silent(what: str, done: int, total: int) -> None:
    """Watch nothing."""


def load_data(config: RunConfig, watch: Watch = silent) -> Loaded:
    """Load the data of a run, decoding the images if this is the first time."""
    config = located(config)
    kind = datasets.get(config.dataset, config.data.root)
    return source.load(config.dataset, kind, config.data, lambda done, total: watch("images", done, total))


def of_photographs(config: RunConfig) -> RunConfig:
    """Give a run's configuration for the photographs that its view was shown; their fingerprint is the same."""
    data = config.data.model_copy(update={"view": PHOTOGRAPH, "view_options": {}})
    return config.model_copy(update={"data": data})


def pin(config: RunConfig, splits: Splits) -> RunConfig:
    """Write the data's fingerprint into the configuration, so that other data make another run."""
    wanted = config.data.fingerprint
    if wanted and wanted != splits.fingerprint:
        raise UserError(
            f"The data of {config.dataset} have the fingerprint {splits.fingerprint} and the configuration asks for "
            f"{wanted}: they are not the images, labels or split that it was made with."
        )
    return config.model_copy(update={"data": config.data.model_copy(update={"fingerprint": splits.fingerprint})})


def folder_of(config: RunConfig, runs: Path) -> Path:
    """Give the folder of a pinned configuration."""
    return runs / config.dataset / config.method / config.identity()


def train(
    config: RunConfig,
    runs: Path | str = "runs",
    watch: Watch = silent,
    loaded: Loaded | None = None,
    wait: bool = False,
) -> Run:
    """Make a run, or open it where it was made before; one that was killed goes on where it was saved last.

    With `train.devices` above 1 it starts as many processes, unless it is one of several already (of torchrun, say).

    Args:
        config: what to run.
        runs: folder for the runs' folders.
        watch: told of progress.
        loaded: the data, where the caller has them already.
        wait: if another process is making it, wait until it has.

    Raises:
        UserError: something given cannot be used, or the loss is no number any more.
        Busy: another process is making it, and `wait` is False.
    """
    runs = Path(runs)
    config = complete(config)
    if config.train.devices > engine.processes() == 1:
        from evenlens import launching  # which calls this function in each process

        return Run.open(launching.train(config, runs, watch, wait))
    engine.start()
    loaded = loaded or load_data(config, watch)
    config = pin(config, loaded.splits)
    folder = folder_of(config, runs)
    if not engine.agreed(folder.exists()):
        val = loaded.splits.val  # with right predictions: said before training where no prediction could help
        right = metrics.count(val.label, val.label, val.group, *_shape(val.task))
        Rule.of(config.select).measured(right, loaded.splits.train.cell_counts().numpy())
        for run in started_from(config):
            refuse_seen(run, config.dataset, loaded.splits)
        partial = folder.with_name(f".{folder.name}.partial")
        with _claimed(folder, partial, wait) as ours:
            if ours:
                _Making(config, runs, partial, loaded, watch).make()
                if engine.place() == 0:
                    partial.replace(folder)
        engine.agreed(None)  # until the first process is done with the folder
    return Run.open(folder)


@contextmanager
def _claimed(folder: Path, partial: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a run, the first process for all, and say whether it is still to be made."""
    lock, ours = FileLock(partial.with_suffix(".lock"), timeout=-1 if wait else 0), None
    if engine.place() == 0:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire()
            ours = not folder.exists()
    try:
        ours = engine.agreed(ours)
        if ours is None:
            raise Busy(f"Another process is making {folder} right now: wait for it, or stop it.")
        if ours and engine.place() == 0:
            partial.mkdir(exist_ok=True)
        yield ours
        if engine.place() == 0:
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def required_runs(config: RunConfig, runs: Path, loaded: Loaded, watch: Watch) -> dict[str, list[Run]]:
    """Find or make the runs that a method starts from: same data and seed, and network, unless set otherwise."""
    found: dict[str, list[Run]] = {}
    for name, needs in methods.get(config.method).requires.items():
        if name in config.options:
            made = [Run.open(folder) for folder in named_runs(config.options[name])]
        else:
            configs = [required_config(config, name, target) for target in targets_of(config, needs)]
            same = loaded if needs.target == "label" else None
            made = [train(each, runs, watch, same, wait=True) for each in configs]
        if len(made) != 1 and needs.target != "each":
            raise UserError(f"{config.method}: {name} is one run; {len(made)} were given.")
        found[name] = made
    return found


def load_required(config: RunConfig, found: dict[str, list[Run]]) -> dict[str, model_file.Required]:
    """Load what `required_runs` found, as a method's constructor takes it."""
    each = {name for name, needs in methods.get(config.method).requires.items() if needs.target == "each"}
    loaded = {name: [run.load_method() for run in made] for name, made in found.items()}
    return {name: nn.ModuleList(made) if name in each else made[0] for name, made in loaded.items()}


def path_from(runs: Path, folder: Path) -> str:
    """Name a run's folder by its place below the runs' folder; one that lies elsewhere by its whole path."""
    here, place = runs.resolve(), folder.resolve()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else str(place)


def predict(method: Method, part: FairDataset) -> Tensor:
    """Give the logits (N, C) of all rows of a bound part, in their order, on the CPU."""
    training = method.training
    method.eval()
    with torch.inference_mode():
        logits = torch.cat([method.predict(batch) for batch in part.in_order()]).float().cpu()
    method.train(training)
    return logits


def counts_of(logits: Tensor, part: FairDataset) -> np.ndarray:
    """Count (group, label, prediction) of a part: (G, C, C)."""
    prediction = logits.argmax(1).numpy()
    return metrics.count(prediction, part.label.cpu().numpy(), part.group.cpu().numpy(), *_shape(part.task))


def _shape(task: Task) -> tuple[int, int]:
    return task.num_classes, task.num_groups


@dataclass
class _Making:
    """A run on its way: what `offer` needs to know."""

    config: RunConfig
    runs: Path
    partial: Path
    loaded: Loaded
    watch: Watch
    images_seen: int = 0
    steps: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)

    def make(self) -> None:
        """Do all of it, leaving the finished files in the partial folder."""
        config, self.first = self.config, engine.place() == 0
        if self.first:
            if shutil.disk_usage(self.partial).free < 1 << 20:
                raise OSError(28, "No space left on device", str(self.partial))
            (self.partial / "config.toml").write_text(to_toml(config))  # at once, for who looks on
        self.device = engine.start()
        splits = self.loaded.splits.near(self.device)
        required = required_runs(config, self.runs, self.loaded, self.watch)
        self.required = {name: [path_from(self.runs, run.folder) for run in made] for name, made in required.items()}
        methods_by_name = load_required(config, required)
        torch.manual_seed(config.seed)
        self.method = model_file.build_method(splits.task, config, methods_by_name)
        self.method.stepped = self._stepped
        self.deployed = model_file.deployed_names(self.method)  # what `prepare` adds serves training only
        if config.base:
            base = started_from(config)[0].load_method()
            nets.go_on_from(self.method.net, splits.task, base.net, base.task)
        precision = engine.Precision(**engine.agreed(self._choose_precision() if self.first else {}))
        for net in self.method.modules():
            if isinstance(net, nets.Classifier):
                net.compute_in(precision)
        self.method.to(self.device)
        bind: dict[str, Any] = {"memory_format": precision.memory_format, "seed": config.seed}
        bind["batch_size"] = config.train.batch_size
        self.train = splits.train.on(self.device, augment=str(config.data.augment), tick=self._count_images, **bind)
        tune = splits.tune.on(self.device, **bind)
        self.val = splits.val.on(self.device, **{**bind, "batch_size": EVALUATION_BATCH})
        self.epoch_began = self.saved = time.perf_counter()
        with dividing.divided():
            dividing.keep_alike(self.method)
            self.method.prepare(self.train, tune)
            self._restore()
            self.method.fit(self.train, tune, self.offer)
            if not self.best:
                raise UserError(f"{config.method} ended without ever being complete: give it more epochs.")
            self.method.load_state_dict(self.best["state"], strict=False)
            self.method.eval()
            test = splits.test.on(self.device, **{**bind, "batch_size": EVALUATION_BATCH})
            logits = predict(self.method, test)
            review = self.method.review(self.train)  # which may have something to note
        if self.first:
            self._write({"val": (self.val, self.best["logits"]), "test": (test, logits)}, precision, review)

    def _choose_precision(self) -> dict[str, bool]:
        path, train = self.partial / "precision.json", self.config.train
        if path.exists():
            return dict(json.loads(path.read_text()))  # a run that goes on computes as it began
        size = self.loaded.splits.task.image_size
        chosen = nets.choose_precision(self.config.precision, self.method.net, size, train.batch_size, self.device)
        with replacing(path) as part:
            part.write_text(json.dumps(vars(chosen)))
        return vars(chosen)

    def _count_images(self, num: int) -> None:
        self.images_seen += num

    def _stepped(self) -> None:
        train = self.config.train
        steps = train.steps or train.epochs * self.method.epoch_steps(self.train)
        self.steps += 1
        self.watch("steps", min(self.steps, steps), steps)
        if self.first and self.method.history and time.perf_counter() - self.saved > MIDDLE_SECONDS:
            state = {**self._state(), "history": self.method.history}
            model_file.save_checkpoint(self.partial / "middle.pt", state)
            self.saved = time.perf_counter()

    def offer(self, log: Log) -> None:
        """Log an epoch, score the method if it is complete, keep it if it is the best so far, save."""
        dividing.keep_alike(self.method)
        trained = time.perf_counter()
        entry = {"epoch": len(self.log) + 1, **log, "seconds": round(trained - self.epoch_began, 3)}
        if self.method.complete:
            logits = predict(self.method, self.val)
            if not logits.isfinite().all():
                raise Diverged(
                    f"After epoch {entry['epoch']} the network's output is not finite: a smaller train.learning_rate "
                    "or precision=fp32 may help."
                )
            counts = counts_of(logits, self.val)
            rule, cells = Rule.of(self.config.select), self.loaded.splits.train.cell_counts().numpy()
            entry["val_accuracy"] = float(metrics.get("accuracy")(counts))
            value = rule.score(logits, self.val.label.cpu(), counts, cells)
            if rule.name != LAST:
                entry[f"val_{rule.name}"] = value
            if not self.best or rule.prefers(value, self.best["score"]):
                state = model_file.pick(self.method, self.deployed)
                self.best = {"score": value, "epoch": entry["epoch"], "logits": logits, "state": state}
            entry["evaluation_seconds"] = round(time.perf_counter() - trained, 3)
        self.log.append(entry)
        if self.first:
            model_file.save_checkpoint(self.partial / "checkpoint.pt", self._state())
            (self.partial / "middle.pt").unlink(missing_ok=True)
            self._write_log()
        self.epoch_began = self.saved = time.perf_counter()

    def _write_log(self) -> None:
        (self.partial / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.log))

    def _state(self) -> dict[str, Any]:
        return {
            "method": self.method.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.method.optimisers],
            "generator": self.train.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "images_seen": self.images_seen,
            "steps": self.steps,
            "log": self.log,
            "best": self.best,
        }

    def _restore(self) -> None:
        """Go back to the end of the last whole epoch, and from there on to where its successor was saved."""
        path, middle = self.partial / "checkpoint.pt", self.partial / "middle.pt"
        if path.exists():
            self._go_on_from(path, model_file.load_checkpoint(path))
        if middle.exists():
            state = model_file.load_checkpoint(middle)
            if len(state.get("log", [])) == len(self.log):  # else it is of an epoch that was finished since
                self.method.middle = Middle(state["history"], lambda: self._go_on_from(middle, state))

    def _go_on_from(self, path: Path, state: dict[str, Any]) -> None:
        try:
            self._put_back(state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise model_file.bad_checkpoint(path, error) from None

    def _put_back(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        for optimiser, saved in zip(self.method.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.train.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])
        self.images_seen, self.steps = state["images_seen"], state["steps"]
        self.log, self.best = state["log"], state["best"]

    def _write(
        self, parts: dict[str, tuple[FairDataset, Tensor]], precision: engine.Precision, review: dict[str, Any]
    ) -> None:
        config, splits = self.config, self.loaded.splits
        train_cells = splits.train.cell_counts().numpy()
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": __version__,
            "id": config.identity(),
            "task": splits.task.as_dict(),
            "selected_epoch": self.best["epoch"],
            "train_cells": train_cells.tolist(),
            "notes": [*self.loaded.notes, *self.method.notes],
            "needs_group": list(self.method.needs_group),
            "requires": self.required,
            "review": review,
        }
        for name, (part, logits) in parts.items():
            counts = counts_of(logits, part)
            content[name] = {
                "num_images": len(part),
                "counts": counts.tolist(),
                "metrics": measure(counts, train_cells),
            }
        if leak := self._tone_leak():
            content["tone_leak"] = leak.as_dict()
        self._write_log()  # a run that was killed while writing it, after its last epoch, writes it here
        (self.partial / "metrics.json").write_text(json.dumps(content, indent=1))
        (self.partial / "environment.json").write_text(json.dumps(self._environment(precision), indent=1))
        write_predictions(self.partial / "predictions.parquet", parts)
        write_images(self.partial / "images.parquet", splits, started_from(config))
        state = {**self.best["state"], **model_file.view_state(config)}
        model_file.save_model(self.partial / "model.safetensors", model_file.describe(self.method), state)
        for leftover in ("checkpoint.pt", "middle.pt", "precision.json"):
            (self.partial / leftover).unlink(missing_ok=True)

    def _tone_leak(self) -> tone_leak.ToneLeak | None:
        """Measure what a sketch that was trained on lets through of tone; test images are not looked at."""
        view = model_file.build_view(self.config)
        if view is None or not view.sketches:
            return None
        view.prepare()
        photographs = load_data(of_photographs(self.config)).splits
        return tone_leak.measure(view, photographs, self.loaded.splits, watch=self.watch)

    def _environment(self, precision: engine.Precision) -> dict[str, Any]:
        return {
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {"evenlens": __version__, "python": platform.python_version(), "torch": torch.__version__},
            "device": engine.describe(self.device),
            "processes": engine.processes(),
            "precision": str(precision),
            "seconds_training": round(sum(entry["seconds"] for entry in self.log), 3),
            "peak_memory_bytes": engine.peak_memory(self.device),
            "images_seen": self.images_seen,
            "parameters": sum(weight.numel() for weight in self.method.net.parameters()),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
        }
