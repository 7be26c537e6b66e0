"""A run's model on its way out: exported, quantised, measured before and after, asked how it serves each group."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evenlens import __version__, engine, measuring, quantising
from evenlens import run as running
from evenlens.data.dataset import Splits
from evenlens.errors import UserError, unknown
from evenlens.export import deployable, export_onnx, export_weights
from evenlens.measuring import Cost, Served, Session, random_images
from evenlens.method import Method
from evenlens.processes import cores
from evenlens.run import Watch, silent
from evenlens.run_folder import Run

FORMAT = 1  # of export.json
FORMS = {"weights": "weights.safetensors", "onnx": "model.onnx"}
INT8 = "model.int8.onnx"
SIDECAR, SUMMARY = "weights.json", "export.json"


@dataclass(frozen=True)
class Wanted:
    """How a run is to be exported.

    Attributes:
        to: "weights" or "onnx".
        int8: also quantise the ONNX file.
        batch: images a prediction, while time is measured.
        threads: to predict with, while time is measured.
        measure: file sizes, parameters, multiply-adds and time.
        report: how exact the exported file is in each group.
    """

    to: str
    int8: bool = False
    batch: int = 1
    threads: int = 1
    measure: bool = True
    report: bool = True

    def __post_init__(self) -> None:
        if self.to not in FORMS:
            raise unknown("form to export to", self.to, FORMS)
        if self.int8 and self.to != "onnx":
            raise UserError(f"--int8 quantises an ONNX file: it goes with --to onnx, not with --to {self.to}.")
        if min(self.batch, self.threads) < 1:
            raise UserError(f"--batch and --threads are at least 1; they are {self.batch} and {self.threads}.")
        if self.to == "onnx":
            measuring.check_installed()


def default_folder(run: Run) -> Path:
    """Name the folder that a run is exported to, unless another is given."""
    return Path("export") / f"{Path(run.config.dataset).name}-{run.config.method}-{run.config.identity()}"


def export_run(run: Run, wanted: Wanted, out: Path | None = None, watch: Watch = silent) -> tuple[Path, dict[str, Any]]:
    """Export a run's model, measure it, and ask the exported file how it serves each group.

    Args:
        run: complete.
        wanted: the form, and what is measured.
        out: the folder; default: `default_folder`. It is there when all went well, and not before.
        watch: told of progress.

    Returns:
        the folder, and what its export.json says.

    Raises:
        UserError: it cannot be exported in this form, its data are needed and not there, or the folder holds other
            things.
    """
    out = out or default_folder(run)
    with _folder(out, run, wanted.to) as part:
        content = _Exporting(run, wanted, part, watch).make()
        (part / SUMMARY).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return out, content


@contextmanager
def _folder(out: Path, run: Run, to: str) -> Iterator[Path]:
    """Give a hidden folder beside `out`, which takes its place when all went well, and is removed when not."""
    _refuse_other_things(out, run, to)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        _refuse_other_things(out, run, to)
        if out.exists():
            shutil.rmtree(out)
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_other_things(out: Path, run: Run, to: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        there = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        ours = {FORMS[to], INT8, SIDECAR, SUMMARY}
        same = (there["run"], there["to"]) == (run.config.identity(), to) and {p.name for p in out.iterdir()} <= ours
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise UserError(f"{out} holds other things than this run's export to {to}: name another folder with --out.")


@dataclass
class _Exporting:
    """A run on its way out."""

    run: Run
    wanted: Wanted
    folder: Path
    watch: Watch
    notes: list[str] = field(default_factory=list)

    def make(self) -> dict[str, Any]:
        """Write the files, and give what export.json says."""
        run, wanted = self.run, self.wanted
        splits = self._splits()
        self.method = deployable(run.load())
        self.dense = self._dense()
        path = self.folder / FORMS[wanted.to]
        task = self.method.task
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": __version__,
            "run": run.config.identity(),
            "dataset": run.config.dataset,
            "method": run.config.method,
            "to": wanted.to,
            "files": {"model": path.name},
            "task": task.as_dict(),
            "input": f"float32 images (batch, 3, {task.image_size}, {task.image_size}), RGB in [0, 1]",
        }
        self.watch("steps", 0, 3)
        if wanted.to == "onnx":
            content["onnx"] = asdict(export_onnx(self.method, path))
        else:
            fits = export_weights(self.method, path)
            content["files"]["about"] = path.with_suffix(".json").name
            content["weights"] = asdict(fits)
            self.notes += [fits.why] if fits.why else []
        if wanted.int8 and splits:
            content["files"]["int8"] = INT8
            content["int8"] = quantising.quantise(path, self.folder / INT8, splits.train)
        self.watch("steps", 1, 3)
        if wanted.measure:
            content["measured"] = self._measured(path)
        self.watch("steps", 2, 3)
        if wanted.to == "onnx" and wanted.report and splits:
            content["report"] = self._report(path, splits)
        self.watch("steps", 3, 3)
        return {**content, "notes": self.notes}

    def _splits(self) -> Splits | None:
        """Load the run's data where they are asked for; where they are not there, only quantising cannot do without."""
        if self.wanted.to != "onnx" or not (self.wanted.int8 or self.wanted.report):
            return None
        try:
            splits = running.load_data(running.of_photographs(self.run.config), self.watch).splits
            running.pin(self.run.config, splits)
            return splits
        except UserError as error:
            if self.wanted.int8:
                raise UserError(f"--int8 looks at images that the run was trained on. {error}") from None
            self.notes.append(f"How the file serves each group was not measured. {error}")
            return None

    def _dense(self) -> Run | None:
        """Find the run that this one was pruned from."""
        for folder in self.run.required("dense"):
            if folder.is_dir():
                return Run.open(folder)
            name = "/".join(folder.parts[-3:])
            self.notes.append(f"The dense run, {name}, is not there, so that there is nothing to compare with.")
        return None

    def _measured(self, path: Path) -> dict[str, Any]:
        """Measure all forms in one process, in turns."""
        wanted, size = self.wanted, self.method.task.image_size
        image = random_images(wanted.batch, size)
        nets: dict[str, Method] = {"after": self.method}
        files = {"after": path}
        before = self.folder / f"before.{path.name}"
        if self.dense:
            nets["before"], files["before"] = deployable(self.dense.load()), before
            (export_onnx if wanted.to == "onnx" else export_weights)(nets["before"], before)
        if (self.folder / INT8).exists():
            files["int8"] = self.folder / INT8
        with measuring.threads_of_torch(wanted.threads), torch.inference_mode():
            calls: dict[tuple[str, str], Any] = {(form, "torch"): partial(net, image) for form, net in nets.items()}
            if wanted.to == "onnx":
                for form, file in files.items():
                    calls[form, "onnxruntime"] = partial(Session(file, wanted.threads), image.numpy())
            named = measuring.latency({"/".join(key): call for key, call in calls.items()})
            device = engine.describe(torch.device("cpu"))
        costs = {}
        for form, file in files.items():
            times = {by: named[f"{form}/{by}"] for one, by in calls if one == form}
            cost = Cost(*measuring.file_sizes(file), times)
            if form in nets:
                all_of_them, nonzero = measuring.count_parameters(nets[form])
                cost = replace(cost, parameters=all_of_them, parameters_nonzero=nonzero,
                               multiply_adds=measuring.multiply_adds(nets[form], size))  # fmt: skip
            costs[form] = cost.as_dict()
        for leftover in (before, before.with_suffix(".json")):
            leftover.unlink(missing_ok=True)
        versions = {"torch": torch.__version__}
        if wanted.to == "onnx":
            import onnxruntime

            versions["onnxruntime"] = onnxruntime.__version__
        stated = {"batch": wanted.batch, "threads": wanted.threads, "device": device, "precision": "fp32"}
        return {**stated, "image_size": size, "versions": versions, "costs": costs}

    def _report(self, path: Path, splits: Splits) -> dict[str, Any]:
        """Let the exported files predict the test images, and compare with what torch predicted."""
        test = splits.test
        served = Served(splits.task, test.label.cpu().numpy(), test.group.cpu().numpy())
        if self.dense:
            there = self.dense.predictions("test")
            if there["file"].tolist() == list(test.names):
                served.add("dense", there["prediction"])
            else:
                self.notes.append("The dense run was tested on other images, so that its accuracy is not shown.")
        served.add("torch", self.run.predictions("test")["prediction"])
        files = {"onnx": path, "int8": self.folder / INT8}
        for name, file in files.items():
            if file.exists():
                seen = _Seen(self.watch, f"test images, {name}", len(test))
                served.add(name, Session(file, cores()).predict(test, seen))
        return {"part": "test", **served.as_dict("torch")}


class _Seen:
    """Tells a watch how many images are done."""

    def __init__(self, watch: Watch, what: str, total: int) -> None:
        self.watch, self.what, self.total, self.done = watch, what, total, 0

    def __call__(self, num: int) -> None:
        self.done += num
        self.watch(self.what, self.done, self.total)
