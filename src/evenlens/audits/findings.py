"""What an audit finds: rates by group, gaps between groups, how sure each is, and what nobody should conclude."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evenlens import metrics
from evenlens.audits.rows import Rows
from evenlens.errors import UserError, unknown
from evenlens.files import write_json
from evenlens.metrics import Chance, Floats, Interval, Scores

if TYPE_CHECKING:
    from evenlens.audits.gates import Verdict

FEW = 30  # images; below it a rate of a group says little
FORMAT = 1  # of the JSON


@dataclass(frozen=True, eq=False)
class Audit:
    """How one set of predictions treats groups.

    Attributes:
        rows: the predictions.
        title: for people.
        confidence: of every interval, in (0, 1).
        minimum: groups with fewer images are left out of gaps and listed.
        other: predictions of another model on the same images, to compare with, or None.
        train_cells: (C, G) training images by label and group, for metrics that are weighted by them, or None.
        replicates: of the bootstrap.
    """

    rows: Rows
    title: str = "Audit"
    confidence: float = 0.95
    minimum: int = 0
    other: Rows | None = None
    train_cells: np.ndarray | None = None
    replicates: int = 1000

    # ---- what was counted

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each label means."""
        return self.rows.classes

    @property
    def group_names(self) -> tuple[str, ...]:
        """What each group means."""
        return self.rows.group.levels

    @cached_property
    def all_counts(self) -> np.ndarray:
        """(G, C, C) images by group, label and prediction, small groups included."""
        return metrics.count(
            self.rows.prediction, self.rows.label, self.rows.group.codes, len(self.class_names), len(self.group_names)
        )

    @cached_property
    def small(self) -> np.ndarray:
        """(G,) which groups have images, but fewer than the minimum."""
        sizes = self.all_counts.sum(axis=(1, 2))
        return (sizes > 0) & (sizes < self.minimum)

    @cached_property
    def counts(self) -> np.ndarray:
        """(G, C, C) images by group, label and prediction; groups below the minimum are empty."""
        return np.where(self.small[:, None, None], 0, self.all_counts)

    # ---- the fluent part: each gives another audit

    def by(self, *names: str) -> Audit:
        """Look at some of the sensitive columns alone: `findings.by("gender")`."""
        other = self.other.of(*names) if self.other else None
        rows, cells = self.rows.of(*names), self.train_cells
        if cells is not None:
            columns = list(self.rows.attributes)
            cells = cells.reshape(len(cells), *(len(column.levels) for column in self.rows.attributes.values()))
            cells = cells.sum(axis=tuple(k for k, name in enumerate(columns, 1) if name not in names))
            kept = [name for name in columns if name in names]
            cells = cells.transpose(0, *(1 + kept.index(name) for name in rows.attributes)).reshape(len(cells), -1)
        return replace(self, rows=rows, other=other, train_cells=cells)

    def titled(self, title: str) -> Audit:
        """Give it another title."""
        return replace(self, title=title)

    def without_small(self, minimum: int) -> Audit:
        """Leave groups with fewer images than this out of gaps."""
        return replace(self, minimum=minimum)

    def compared_with(self, other: Audit | Rows) -> Audit:
        """Compare with another model's predictions on the same images, row by row.

        Raises:
            UserError: these are not the same images: the numbers of rows, labels or groups differ.
        """
        rows = other.rows if isinstance(other, Audit) else other
        if len(rows) != len(self.rows):
            raise UserError(
                "The two models must have predicted the same images in the same order; the first has "
                f"{len(self.rows):,} rows, the second {len(rows):,}."
            )
        if set(rows.classes) - set(self.class_names):
            raise UserError(
                f"The second model's classes are {', '.join(rows.classes)}, the first one's "
                f"{', '.join(self.class_names)}."
            )
        code = np.array([self.class_names.index(name) for name in rows.classes])
        rows = replace(rows, classes=self.class_names, label=code[rows.label], prediction=code[rows.prediction])
        group = np.array(rows.group.levels)[rows.group.codes] != np.array(self.group_names)[self.rows.group.codes]
        for what, differs in (("label", rows.label != self.rows.label), ("group", group)):
            if differs.any():
                raise UserError(
                    f"The two models must have predicted the same images in the same order; row "
                    f"{int(np.flatnonzero(differs)[0]) + 1} has another {what}."
                )
        return replace(self, other=rows)

    def trained_on(self, label: Any, group: Any) -> Audit:
        """Say what the model was trained on, for metrics that are weighted by it.

        Args:
            label: (M,) true class of each training image, in the words of the audit.
            group: (M,) the sensitive column of each; or several by name.

        Raises:
            UserError: lengths differ, a column is lacking, or words are other ones.
        """
        from evenlens.audits.training import count_training

        rows, cells = count_training(self.rows, label, group)
        return replace(self, rows=rows, train_cells=cells)

    # ---- numbers

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Every metric by name; undefined is NaN. Those that need training counts are there if these are."""
        return metrics.evaluate(self.counts, self._names, self.train_cells)

    @property
    def _names(self) -> list[str]:
        known = metrics.METRICS.items()
        return [name for name, metric in known if self.train_cells is not None or not metric.needs_reference]

    @cached_property
    def intervals(self) -> dict[str, Interval[float]]:
        """Every metric with its bootstrap interval, from one set of replicates; of clusters, where there are any."""
        rows = self.rows
        if rows.cluster is not None:
            kept = ~self.small[rows.group.codes]
            return metrics.cluster_bootstrap(
                self._names, rows.prediction[kept], rows.label[kept], rows.group.codes[kept], rows.cluster[kept],
                len(self.class_names), len(self.group_names), self.replicates, self.confidence,
                train_cells=self.train_cells,
            )  # fmt: skip
        return metrics.bootstrap_all(
            self.counts, self._names, self.replicates, self.confidence, train_cells=self.train_cells
        )

    def metric(self, name: str, replicates: int | None = None) -> Interval[float]:
        """Give a metric with its interval; undefined is NaN.

        Args:
            name: of the metric; of scores too, where there are scores.
            replicates: of the bootstrap, where another number is wanted.

        Raises:
            UserError: there is no such metric, with the nearest name.
        """
        if self.rows.score is not None and name in metrics.SCORE_METRICS:
            return self.score_intervals[name]
        known = [*self._names, *(metrics.SCORE_METRICS if self.rows.score is not None else ())]
        if name not in known:
            raise unknown("metric", name, known)
        audit = self if replicates is None else replace(self, replicates=replicates)
        return audit.intervals[name]

    def by_group(self, rate: str = "accuracy") -> dict[str, Interval[float]]:
        """Give a rate of each group with its interval; for two classes, of the positive one (the second).

        The interval is Wilson's; where images are of units, of as many images as these are worth.

        Raises:
            UserError: there is no such rate, or it is one of each class of several.
        """
        intervals = self.rate_intervals(rate)
        if intervals.value.ndim > 1:
            if len(self.class_names) > 2:
                raise UserError(
                    f"'{rate}' is a rate of one class; with {len(self.class_names)} classes use 'accuracy'."
                )
            intervals = Interval(*(field[..., 1] if field.ndim > 1 else field for field in intervals))
        return {
            name: Interval(*(float(field[number]) for field in intervals))
            for number, name in enumerate(self.group_names)
        }

    def rate_intervals(self, rate: str) -> Interval[Floats]:
        """Give a rate with its intervals, (G,) or (G, C) for a rate of each class; n is the number of images."""
        plain = metrics.rate_intervals(rate, self.all_counts, self.confidence)
        rows = self.rows
        if rows.cluster is None:
            return plain
        shape = len(self.class_names), len(self.group_names)
        units = metrics.cluster_rate_intervals(
            rate, rows.prediction, rows.label, rows.group.codes, rows.cluster, *shape, self.confidence
        )
        return units._replace(n=plain.n)

    def chance(self, name: str) -> Chance:
        """Say what a metric would be by chance, if groups of these sizes were treated alike."""
        return metrics.chance(name, self.counts, self.replicates)

    @cached_property
    def score_intervals(self) -> dict[str, Interval[float]]:
        """Every metric of scores with its interval; empty without scores."""
        found = self._scores
        return metrics.score_intervals(found[0], confidence=self.confidence, clusters=found[1]) if found else {}

    @cached_property
    def group_scores(self) -> dict[str, Interval[Floats]]:
        """Every measure of scores with the intervals of all groups; empty without scores."""
        found = self._scores
        return metrics.group_score_intervals(found[0], confidence=self.confidence, clusters=found[1]) if found else {}

    @cached_property
    def _scores(self) -> tuple[Scores, np.ndarray | None] | None:
        rows = self.rows
        if rows.score is None:
            return None
        kept = ~self.small[rows.group.codes]
        scores = Scores(rows.score[kept], rows.label[kept], rows.group.codes[kept], len(self.group_names))
        return scores, None if rows.cluster is None else rows.cluster[kept]

    # ---- words and files

    def require(self, *requirements: str, judge: str = "interval") -> list[Verdict]:
        """Judge requirements such as "equalized_odds_difference<=0.1": passed, failed, or not to be decided."""
        from evenlens.audits import gates

        return [gates.judge(self, gates.parse(text), judge) for text in requirements]

    @cached_property
    def caveats(self) -> list[str]:
        """What nobody should conclude from these numbers, a sentence each."""
        from evenlens.audits.words import caveats

        return caveats(self)

    def as_dict(self) -> dict[str, Any]:
        """Give all findings as what JSON can hold; undefined is null."""
        from evenlens.audits.words import machine_readable

        return machine_readable(self)

    def to_json(self, path: Path | str) -> Path:
        """Write all findings to a JSON file; the page for people is `evenlens.write_audit`."""
        path = Path(path)
        write_json(path, self.as_dict())
        return path

    def __str__(self) -> str:
        """Give the groups and the main gaps as a small table."""
        lines = [f"{self.title}: {len(self.rows):,} predictions, {len(self.group_names)} groups"]
        for name, found in self.by_group("accuracy").items():
            lines.append(f"  {name}: accuracy {_in_words(found)}, {found.n:,.0f} images")
        for name in ("worst_group_accuracy", "equalized_odds_difference", "demographic_parity_difference"):
            lines.append(f"  {metrics.get(name).title}: {_in_words(self.metric(name))}")
        return "\n".join(lines)


def _in_words(found: Interval[float]) -> str:
    if math.isnan(found.value):
        return "undefined"
    return f"{found.value:.3f}" + ("" if math.isnan(found.low) else f" ({found.low:.3f} to {found.high:.3f})")


def marginals(audit: Audit) -> dict[str, Audit]:
    """Give the audit by each sensitive column alone, where there are several."""
    names = list(audit.rows.attributes)
    return {name: audit.by(name) for name in names} if len(names) > 1 else {}
