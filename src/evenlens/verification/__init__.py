"""Face verification: pairs and their scores in, findings by subgroup out. Needs no network and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evenlens.errors import UserError, unknown
from evenlens.files import write_json
from evenlens.metrics.intervals import Interval, tail
from evenlens.verification.embeddings import is_embeddings, read_embeddings
from evenlens.verification.measuring import Measured, Rates, measure
from evenlens.verification.pairs import Pairs
from evenlens.verification.resampling import Subjects
from evenlens.verification.summaries import SUMMARIES, Box, intervals
from evenlens.verification.tables import read_pairs
from evenlens.verification.thresholds import Criterion, Decisions, Fitted, allowed, decide, fit

__all__ = ["Pairs", "Verification", "read_embeddings", "read_pairs", "verify"]

TARGETS = (0.1, 1e-2, 1e-3, 1e-4)
ENOUGH = 30  # errors that are to be expected where a rate is to be measured (the rule of 30)


@dataclass(frozen=True)
class Verification:
    """How a face verification system treats subgroups.

    Attributes:
        pairs: what was audited.
        targets: (F,) false match rates that thresholds were set for, falling.
        thresholds: those fitted to all pairs: to use, while rates are of those fitted without the fold.
        decided: what the thresholds of each fold decided of that fold.
        measured: all rates, with intervals.
        at: the target that the finding, the summaries and gates are about.
        criterion: what accuracy is.
        confidence: of every interval.
        replicates: of the bootstrap; 0 where pairs count as independent.
        title: headline.
    """

    pairs: Pairs
    targets: tuple[float, ...]
    thresholds: Fitted
    decided: Decisions
    measured: Measured
    at: float
    criterion: Criterion
    confidence: float
    replicates: int
    title: str

    @property
    def groups(self) -> tuple[str, ...]:
        """The subgroups, in order."""
        return self.pairs.groups

    @property
    def held_out(self) -> bool:
        """Whether thresholds were fitted to other folds than those that they were applied to."""
        return len(self.decided.by_fold) > 1

    @property
    def place(self) -> int:
        """Where the chosen target is among all."""
        return self.targets.index(self.at)

    def allowed(self, target: float) -> int:
        """Say how many imposters the pooled threshold of a target may accept where it is fitted; 0 is too few."""
        return allowed(target, self.decided.fewest)

    @cached_property
    def summaries(self) -> dict[str, list[dict[str, Interval[float]]]]:
        """Every summary at each target, at the "pooled" and at the "own" thresholds."""
        kinds = zip(("pooled", "own"), (self.measured.pooled, self.measured.own), self.measured.boxes, strict=True)
        return {name: [self._summary(rates, k, box[k]) for k in range(len(self.targets))] for name, rates, box in kinds}

    @staticmethod
    def _summary(rates: Rates, k: int, box: tuple[Box, Box]) -> dict[str, Interval[float]]:
        return intervals(rates.fmr.value[k, :-1], rates.fnmr.value[k, :-1], *box)

    @property
    def metric_names(self) -> list[str]:
        """The names that `metric` knows."""
        own = [f"{name}_own" for name in SUMMARIES]
        return [*SUMMARIES, *own, "fmr_worst", "fnmr_worst", "eer", "auc"]

    def metric(self, name: str) -> Interval[float]:
        """Give a number of the chosen target by name, with its interval; undefined is NaN.

        Args:
            name: a summary of the subgroups at the pooled threshold ("fmr_ratio", "fnmr_ratio",
                "fairness_discrepancy_rate", "garbe", "inequity") or, with "_own" behind it, at their own; "fmr_worst"
                and "fnmr_worst", the highest rate of a subgroup at the pooled threshold; "eer" and "auc" of all pairs.

        Raises:
            UserError: there is no such number.
        """
        if name not in self.metric_names:
            raise unknown("number of a verification audit", name, self.metric_names)
        if name in ("eer", "auc"):
            return Interval(*(float(field[-1]) for field in getattr(self.measured.scores, name)))
        if name.endswith("_worst"):
            rates = getattr(self.measured.pooled, name.removesuffix("_worst")).value[self.place, :-1]
            box = self.measured.boxes[0][self.place][name != "fmr_worst"]
            return Interval(float(rates.max()), float(box.low.max()), float(box.high.max()), float(len(rates)))
        return self.summaries["own" if name.endswith("_own") else "pooled"][self.place][name.removesuffix("_own")]

    @cached_property
    def finding(self) -> list[str]:
        """What was found, in words that say no more than the intervals do."""
        from evenlens.verification.words import finding

        return finding(self)

    @cached_property
    def caveats(self) -> list[str]:
        """What nobody should conclude from these numbers, a sentence each."""
        from evenlens.verification.words import caveats

        return caveats(self)

    def as_dict(self) -> dict[str, Any]:
        """Give all findings as what JSON can hold; undefined is null."""
        from evenlens.verification.words import machine_readable

        return machine_readable(self)

    def to_json(self, path: Path | str) -> Path:
        """Write all findings to a JSON file."""
        path = Path(path)
        write_json(path, self.as_dict())
        return path


def verify(
    pairs: Pairs | Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    manifest: Path | str | None = None,
    group: Sequence[str] = (),
    targets: Sequence[float] = TARGETS,
    at: float | None = None,
    criterion: Criterion = "balanced",
    folds: bool = True,
    confidence: float = 0.95,
    replicates: int = 1000,
    title: str = "",
    **drawing: Any,
) -> Verification:
    """Audit a face verification system: error rates by subgroup, at thresholds that were set on other subjects.

        evenlens.verify("pairs.csv").finding
        evenlens.verify("faces.npy", manifest="faces.csv", group=["gender", "skin"])
        evenlens.verify(Pairs.of(score, genuine, first_group, second_group))

    A pair is accepted if its score is at least the threshold. FMR is the share of imposter pairs that are accepted,
    FNMR that of genuine pairs that are not. A pair is of a subgroup if both images are; the pooled threshold is set on
    all imposter pairs. With folds, thresholds are set on all but one and applied to it. Intervals hold them fixed.

    Args:
        pairs: pairs, a table of them, or a file of embeddings.
        columns: of a table or manifest, by what they are, as `read_pairs` and `read_embeddings` know them.
        manifest: the table that says whose the embeddings are.
        group: the manifest's columns that make the subgroups.
        targets: false match rates in (0, 1).
        at: the one that the finding and gates are about; default: the lowest with 30 false matches a subgroup.
        criterion: what accuracy is: "balanced" or "plain".
        folds: False sets thresholds on the pairs that they are applied to.
        confidence: of every interval, in (0, 1).
        replicates: of the bootstrap over subjects, where these are known; else pairs count as independent.
        title: headline; default: what the pairs were read from.
        **drawing: of imposters, for embeddings: `imposters`, `within` and `seed` of `read_embeddings`.

    Raises:
        UserError: as in `read_pairs`, `read_embeddings` and `Pairs.of`, or a target, criterion or confidence that is
            none.

    Source: Robinson et al., 2020, Face recognition: too bias, or not too bias?, arXiv 2002.06483, for thresholds of
    subgroups and folds of subjects.
    """
    wanted = _targets(targets, at)
    if criterion not in ("balanced", "plain"):
        raise unknown("kind of accuracy", criterion, ("balanced", "plain"))
    tail(confidence)  # refuses what is none
    if not isinstance(pairs, Pairs):
        pairs = _read(Path(pairs), columns, manifest, group, drawing)
    decided = decide(pairs, wanted, criterion, folds)
    subjects = None if pairs.subjects is None else Subjects(pairs, replicates)
    return Verification(
        pairs, wanted, fit(pairs, np.arange(len(pairs)), wanted, criterion), decided,
        measure(pairs, decided, subjects, criterion, confidence),
        _usual(pairs, decided, wanted) if at is None else at, criterion, confidence, replicates if subjects else 0,
        title or pairs.where or "Verification",
    )  # fmt: skip


def _read(
    path: Path, columns: Mapping[str, str] | None, manifest: Path | str | None, group: Sequence[str], drawing: Any
) -> Pairs:
    if is_embeddings(path):
        if manifest is None:
            raise UserError(
                f"{path} holds embeddings: name the table that says whose they are, with --manifest and --group."
            )
        return read_embeddings(path, Path(manifest), group, columns=columns, **drawing)
    if manifest is not None or group or drawing:
        raise UserError(
            f"{path} is a table of pairs, whose groups stand in its columns group1 and group2 (--column names others); "
            "--manifest, --group, --imposters, --within and --seed are for embeddings."
        )
    return read_pairs(path, columns)


def _targets(targets: Sequence[float], at: float | None) -> tuple[float, ...]:
    wanted = sorted({float(target) for target in targets}, reverse=True)
    wrong = [target for target in wanted if not 0 < target < 1]
    if wrong or not wanted:
        what = f"{wrong[0]:g} does not" if wrong else "none is given"
        raise UserError(f"Target false match rates lie between 0 and 1, as 0.001; {what}.")
    if at is not None and at not in wanted:
        raise UserError(f"The target {at:g} is none of those asked for: {', '.join(f'{t:g}' for t in wanted)}.")
    return tuple(wanted)


def _usual(pairs: Pairs, decided: Decisions, targets: Sequence[float]) -> float:
    """Choose the lowest target at which every subgroup has enough false matches to be expected."""
    rows = decided.rows[~pairs.genuine[decided.rows]]
    sizes = np.bincount(pairs.group[rows] + 1, minlength=len(pairs.groups) + 1)[1:]
    fewest = min(sizes[sizes > 0], default=0)
    fit_for = [target for target in targets if target * fewest >= ENOUGH]
    return fit_for[-1] if fit_for else targets[0]
