"""Predictions and groups in, findings out. Needs no network and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evenlens.audits.findings import Audit
from evenlens.audits.rows import Rows, from_columns, from_frame, from_run, from_table
from evenlens.errors import UserError

__all__ = ["Audit", "Rows", "audit", "audit_file"]


def audit(
    label: Any,
    prediction: Any,
    group: Any,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
    *,
    data: Any = None,
    score: Any = None,
    cluster: Any = None,
    positive: str | None = None,
    title: str = "Audit",
    confidence: float = 0.95,
    minimum: int = 0,
) -> Audit:
    """Say how predictions treat groups: counts, rates, gaps, and how sure each is.

        evenlens.audit(label, prediction, group)
        evenlens.audit("smiling", "predicted", ["gender", "race"], data=frame)
        evenlens.audit(label, prediction, {"gender": gender, "race": race}).by("gender")

    Args:
        label: (N,) true classes, numbers or words; with `data` a column's name, and so are the next ones.
        prediction: (N,) predicted classes, from the same vocabulary.
        group: (N,) sensitive groups, numbers or words; or several columns by name, whose crossing makes the groups.
        class_names: the classes in order, where labels are numbers 0 to C - 1; default: what occurs, sorted.
        group_names: likewise for the groups of one column.
        data: a data frame of polars or pandas, a pyarrow table, or a dictionary of columns.
        score: (N,) probability of the positive class in [0, 1], for two classes.
        cluster: (N,) what an image is of, such as a person: intervals redraw whole ones.
        positive: which of two classes is the positive one; default: the second in order.
        title: for people.
        confidence: of every interval, in (0, 1).
        minimum: groups with fewer images are left out of gaps, and listed.

    Raises:
        UserError: lengths differ, there is nothing, a value is missing or no class, or names do not fit.
    """
    options: dict[str, Any] = {"positive": positive, "class_names": class_names, "group_names": group_names}
    if data is not None:
        names = [group] if isinstance(group, str) else list(group)
        rows = from_frame(data, label, prediction, names, score=score, cluster=cluster, **options)
    else:
        columns = group if isinstance(group, dict) else {"group": group}
        rows = from_columns(label, prediction, columns, score=score, cluster=cluster, **options)
    return _make(rows, title, confidence, minimum)


def audit_file(
    path: Path | str,
    label: str | None = None,
    prediction: str | None = None,
    group: Sequence[str] = (),
    *,
    score: str | None = None,
    cluster: str | None = None,
    positive: str | None = None,
    part: str = "test",
    title: str = "",
    confidence: float = 0.95,
    minimum: int = 0,
) -> Audit:
    """Audit a table of predictions (CSV, TSV, Parquet), or the predictions of a run.

    Args:
        path: the table, or a run's folder.
        label: column of true classes; not needed for a run, nor are the next two.
        prediction: column of predicted classes.
        group: sensitive columns.
        score: column with the probability of the positive class.
        cluster: column with what an image is of.
        positive: which of two classes is the positive one.
        part: of a run: "test" or "val".
        title: for people; default: the file's name.
        confidence: of every interval, in (0, 1).
        minimum: groups with fewer images are left out of gaps, and listed.

    Raises:
        UserError: it cannot be read, a column is lacking (with the nearest name), or as in `audit`.
    """
    path = Path(path)
    if path.is_dir():
        rows = from_run(path, part, group)
    else:
        if not (label and prediction and group):
            raise UserError(
                f"Say which columns of {path.name} are what: the true class (--label), the predicted one "
                "(--prediction) and who is shown (--group)."
            )
        rows = from_table(path, label, prediction, group, score=score, cluster=cluster, positive=positive)
    return _make(rows, title or path.name, confidence, minimum)


def _make(rows: Rows, title: str, confidence: float, minimum: int) -> Audit:
    if not 0 < confidence < 1:
        raise UserError(f"The confidence must lie between 0 and 1, such as 0.95; it is {confidence:g}.")
    if minimum < 0:
        raise UserError(f"The smallest group is a number of images, 0 or more; it is {minimum}.")
    return Audit(rows, title, confidence, minimum)
