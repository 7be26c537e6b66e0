"""The main job from Python: the same pieces as the command line, without a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evenlens import model_file, recipes, sweeps
from evenlens import run as running
from evenlens.audits import Audit, Audits
from evenlens.config import make_config
from evenlens.data.dataset import Splits
from evenlens.errors import UserError
from evenlens.method import Method
from evenlens.run import Run
from evenlens.workers import Engine, Resources


def load(dataset: str, **settings: Any) -> Splits:
    """Load a data set: decode its images once, and split it as its protocol says.

    Args:
        dataset: its name, as in `evenlens list datasets`.
        **settings: settings of `data`, or options of this data set, such as `size=32` or `protocol="natural"`.

    Returns:
        The parts `train`, `tune`, `val` and `test`.

    Raises:
        UserError: an unknown name or setting, or files that are missing or cannot be read.
    """
    config = make_config(dataset, "", {f"data.{key}": value for key, value in settings.items()})
    return running.load_data(config).splits


def train(dataset: str, method: str, *, runs: Path | str = "runs", seed: int = 1, **settings: Any) -> Run:
    """Train, select and test a method; give the run at once where it was made before.

    Args:
        dataset: name of the data set.
        method: name of the method.
        runs: folder for run folders.
        seed: of weights, order and augmentation.
        **settings: hyper-parameters of the method, and settings of the sections as dictionaries:
            `train={"epochs": 20}, data={"size": 32}`.

    Raises:
        UserError: something given cannot be used, or the loss is no number any more.
    """
    flat: dict[str, Any] = {"seed": seed}
    for key, value in settings.items():
        if key in ("data", "net", "train"):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return running.train(make_config(dataset, method, flat), runs)


def sweep(
    recipe: Path | str | dict[str, Any],
    *,
    runs: Path | str = "runs",
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
    cores: int = 1,
    memory: int | None = None,
    gpu: float | None = None,
    retries: int = 2,
    time_limit: float | None = None,
) -> list[Run]:
    """Make all runs of a recipe that are not there yet. In a script, call it below `if __name__ == "__main__":`.

    Args:
        recipe: path of a TOML file, or its content.
        runs: folder for run folders, or the address of a store that fsspec reaches, such as "s3://bucket/runs".
        jobs: runs side by side at most; default: as many as fit.
        engine: "local" for processes of this machine, "ray" for a Ray cluster.
        address: of the Ray cluster, "host:port"; default: the one that runs here, or one started for the sweep.
        cores: of each run.
        memory: bytes that a run needs at most, so that no more go side by side than fit.
        gpu: share of a GPU for each run, 0 to 1; default: a whole one where there is any.
        retries: how often a run is tried again whose process died.
        time_limit: seconds that one run may take; default: any.

    Raises:
        UserError: the recipe or an argument cannot be used, or a run failed (the others were made).
    """
    given = Engine(engine, address, jobs, Resources(cores, memory, gpu))
    read = recipes.expand(recipe) if isinstance(recipe, dict) else recipes.read_recipe(Path(recipe))
    file = None if isinstance(recipe, dict) else Path(recipe)
    read, outcome = sweeps.sweep_recipe(read, runs, engine=given, retries=retries, time_limit=time_limit, recipe=file)
    if outcome.failed:
        name, why = next(iter(outcome.failed.items()))
        raise UserError(f"{len(outcome.failed)} of {len(read.configs)} runs failed. {name}: {why}")
    return [Run.open(folder) for folder in outcome.folders]


def write_report(
    runs: Iterable[Run | Path | str], out: Path | str, *, title: str = "evenlens report", baseline: str | None = None
) -> Path:
    """Write one self-contained HTML page about runs on the same data.

    Args:
        runs: complete runs or their folders.
        out: the page's path.
        title: its headline.
        baseline: name of the method that the others are compared with.
    """
    from evenlens.report import page

    opened = [item if isinstance(item, Run) else Run.open(item) for item in runs]
    return page.write(opened, Path(out), title=title, baseline=baseline)


def write_audit(
    findings: Audit | Audits, page: Path | str, *, require: Iterable[str] = (), card: Path | str | None = None
) -> Path:
    """Write the page that an audit is handed over as.

    Args:
        findings: what `evenlens.audit` gave, of one label or several.
        page: the HTML file; `findings.to_json` writes the same content for machines.
        require: requirements to judge, such as "equalized_odds_difference<=0.1".
        card: also write a model card in Markdown to this file.
    """
    from evenlens.report import audit_page, model_card

    content = findings.as_dict()
    verdicts = [verdict.as_dict() for verdict in findings.require(*require)]
    if card:
        model_card.write(content, Path(card), verdicts)
    return audit_page.write(content, Path(page), verdicts)


def load_model(path: Path | str) -> Method:
    """Load a trained method from a run's folder or its model.safetensors: images (B, 3, H, W) in [0, 1] to logits."""
    path = Path(path)
    return model_file.load_model(path / "model.safetensors" if path.is_dir() else path)
