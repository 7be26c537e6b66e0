"""Several labels of the same images: one audit of each, on the same rows and groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenlens import __version__
from evenlens.audits.findings import FORMAT, Audit
from evenlens.audits.rows import Rows, check_roles, encode, from_columns
from evenlens.errors import UserError, unknown
from evenlens.files import write_json
from evenlens.metrics import Interval

if TYPE_CHECKING:
    from evenlens.audits.gates import Verdict


@dataclass(frozen=True, eq=False)
class Audits:
    """One audit of each label, with the face of a single one: what is asked is answered for each label.

    Attributes:
        labels: the audit of each label, by the label's name.
        title: for people.
    """

    labels: dict[str, Audit]
    title: str = "Audit"

    def __getitem__(self, label: str) -> Audit:
        """Give the audit of one label."""
        if label not in self.labels:
            raise unknown("label", label, self.labels)
        return self.labels[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    # ---- the fluent part: each gives other audits

    def _each(self, change: Callable[[str, Audit], Audit]) -> Audits:
        return replace(self, labels={name: change(name, audit) for name, audit in self.labels.items()})

    def by(self, *names: str) -> Audits:
        """Look at some of the sensitive columns alone."""
        return self._each(lambda _, audit: audit.by(*names))

    def without_small(self, minimum: int) -> Audits:
        """Leave groups with fewer images than this out of gaps."""
        return self._each(lambda _, audit: audit.without_small(minimum))

    def compared_with(self, other: Audits) -> Audits:
        """Compare with another model's predictions of the same labels on the same images, row by row.

        Raises:
            UserError: it has other labels, or these are not the same images.
        """
        if not isinstance(other, Audits):
            raise UserError(f"The second model must have predicted all labels: {', '.join(self)}.")
        return self._each(lambda name, audit: audit.compared_with(other[name]))

    def trained_on(self, label: Mapping[str, Any], group: Any) -> Audits:
        """Weigh by training images, as `Audit.trained_on` does; their labels are given by name."""
        missing = [name for name in self if name not in label]
        if missing:
            raise unknown("label of the training images", missing[0], label)
        return self._each(lambda name, audit: audit.trained_on(label[name], group))

    # ---- numbers

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean of each metric over the labels; NaN where it is undefined for one of them.

        It has no interval: the labels are of the same images, so that their intervals do not combine.
        """
        known = [audit.metrics for audit in self.labels.values()]
        return {name: math.fsum(found[name] for found in known) / len(known) for name in known[0]}

    def metric(self, name: str, replicates: int | None = None) -> dict[str, Interval[float]]:
        """Give a metric of each label with its interval, as `Audit.metric` does."""
        return {label: audit.metric(name, replicates) for label, audit in self.labels.items()}

    def by_group(self, rate: str = "accuracy") -> dict[str, dict[str, Interval[float]]]:
        """Give a rate of each group with its interval, by label, as `Audit.by_group` does."""
        return {label: audit.by_group(rate) for label, audit in self.labels.items()}

    # ---- words and files

    def require(self, *requirements: str, judge: str = "interval") -> list[Verdict]:
        """Judge requirements of every label: each verdict names its label."""
        return [
            replace(verdict, label=label)
            for label, audit in self.labels.items()
            for verdict in audit.require(*requirements, judge=judge)
        ]

    @cached_property
    def caveats(self) -> list[str]:
        """What nobody should conclude: what holds for all labels once, then what holds for one, after its name."""
        return told_once({name: audit.caveats for name, audit in self.labels.items()})

    def as_dict(self) -> dict[str, Any]:
        """Give all findings as what JSON can hold: under `labels` those of each, as `Audit.as_dict` gives them."""
        return {
            "format": FORMAT,
            "evenlens": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "title": self.title,
            "means": {name: None if math.isnan(value) else value for name, value in self.means.items()},
            "labels": {name: audit.as_dict() for name, audit in self.labels.items()},
        }

    def to_json(self, path: Path | str) -> Path:
        """Write all findings to a JSON file; the page for people is `evenlens.write_audit`."""
        path = Path(path)
        write_json(path, self.as_dict())
        return path

    def __str__(self) -> str:
        """Give the groups and the main gaps of each label as small tables."""
        return "\n".join(str(audit) for audit in self.labels.values())


def told_once(said: Mapping[str, Sequence[str]]) -> list[str]:
    """Gather sentences about several labels: those of all labels once, the others after their label's name."""
    shared = shared_by_all(said.values())
    own = [f"{name}: {text}" for name, texts in said.items() for text in texts if text not in shared]
    return [*own, *shared]


def shared_by_all(said: Any) -> list[str]:
    """Give the sentences that stand in every list, in the order of the first."""
    first, *others = said
    return [text for text in first if all(text in other for other in others)]


# ---- labels and predictions in pairs


def rows_of_each(
    labels: Mapping[str, Any],
    predictions: Mapping[str, Any],
    group: Mapping[str, Any],
    *,
    scores: Mapping[str, Any] | None = None,
    positives: Mapping[str, str] | None = None,
    cluster: Any = None,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    where: str = "",
) -> dict[str, Rows]:
    """Make the rows of each label; groups and clusters are read once.

    Args:
        labels: (N,) true classes of each label, by its name.
        predictions: (N,) predicted classes of each label, by the same names.
        group: (N,) values of each sensitive column, by name.
        scores: (N,) probability of the positive class of a label, by its name, where there are any.
        positives: the positive class of a label, by its name.
        cluster: (N,) what an image is of.
        class_names: as in `from_columns`, for all labels.
        group_names: as in `from_columns`.
        where: what it was read from.

    Raises:
        UserError: the names differ, or as in `from_columns`, after the label's name where there are several.
    """
    if not labels or set(labels) != set(predictions):
        raise UserError(
            f"Each label needs its prediction: labels are {', '.join(labels) or 'none'}, predictions are for "
            f"{', '.join(predictions) or 'none'}."
        )
    attributes = {name: encode(name, values) for name, values in group.items()}
    units = None if cluster is None else encode("cluster", cluster)
    made: dict[str, Rows] = {}
    for name in labels:
        try:
            made[name] = from_columns(
                labels[name], predictions[name], attributes, score=(scores or {}).get(name), cluster=units,
                positive=(positives or {}).get(name), class_names=class_names, group_names=group_names, where=where,
            )  # fmt: skip
        except UserError as error:
            raise (UserError(f"Label '{name}': {error}") if len(labels) > 1 else error) from None
    return made


def paired(labels: Sequence[str], given: str | Sequence[str] | None, what: str) -> dict[str, str]:
    """Give each label the name that stands at its place among others.

    Args:
        labels: names of the labels.
        given: as many names, in the same order; or none.
        what: those are, for messages.

    Raises:
        UserError: there are more of the one than of the other, or a label is named twice.
    """
    names = [given] if isinstance(given, str) else list(given or ())
    doubled = next((name for name in labels if list(labels).count(name) > 1), None)
    if doubled:
        raise UserError(f"The label '{doubled}' is named twice: name each once.")
    if names and len(names) != len(labels):
        raise UserError(
            f"Labels and {what} go in pairs: named are {len(labels)} labels ({', '.join(labels)}) and {len(names)} "
            f"{what} ({', '.join(names)}); name as many, in the same order."
        )
    return dict(zip(labels, names, strict=False))


@dataclass(frozen=True)
class Columns:
    """Names of the columns of one label or several, in pairs.

    Attributes:
        prediction: column with the predicted class, by label.
        score: column with the score, by label; empty without scores.
        positive: the positive class, by label; empty where it is the second.
    """

    prediction: dict[str, str]
    score: dict[str, str]
    positive: dict[str, str]

    @classmethod
    def of(cls, label: Sequence[str], prediction: Any, score: Any, positive: Any, group: Sequence[str]) -> Columns:
        """Pair names up; one positive class is that of all labels.

        Raises:
            UserError: there are more of the one than of the other, or a column has two parts to play.
        """
        if not label or not prediction:
            raise UserError("Name the columns with the labels and those with their predictions, one for each label.")
        predictions = paired(label, prediction, "predictions")
        check_roles(list(predictions), list(predictions.values()), group)
        words = [positive] * len(label) if isinstance(positive, str) else positive
        return cls(predictions, paired(label, score, "scores"), paired(label, words, "positive classes"))

    def used(self, group: Sequence[str], cluster: str | None) -> list[str]:
        """List every column that is to be read."""
        more = [cluster] if cluster else []
        return [*self.prediction, *self.prediction.values(), *self.score.values(), *group, *more]

    def rows(self, data: Any, group: Sequence[str], cluster: str | None = None, **options: Any) -> dict[str, Rows]:
        """Make the rows of each label of a data frame or a dictionary of columns.

        Args:
            data: anything with named columns.
            group: sensitive columns.
            cluster: column with what an image is of.
            **options: as in `rows_of_each`.

        Raises:
            UserError: a column is lacking (with the nearest name), or as in `rows_of_each`.
        """
        listed: Any = getattr(data, "column_names", None)  # pyarrow
        listed = getattr(data, "columns", data) if listed is None else listed  # pandas, polars; a dictionary
        known = [str(name) for name in listed]
        for name in self.used(group, cluster):
            if name not in known:
                raise unknown("column", name, known)
        return rows_of_each(
            {name: data[name] for name in self.prediction},
            {name: data[column] for name, column in self.prediction.items()},
            {name: data[name] for name in group},
            scores={name: data[column] for name, column in self.score.items()},
            positives=self.positive,
            cluster=data[cluster] if cluster else None,
            **options,
        )
