"""Pairs in a file: the table that a data set publishes, or one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from evenlens.data import reading
from evenlens.data.reading import row_of
from evenlens.errors import UserError, unknown
from evenlens.registry import module_names
from evenlens.verification.pairs import Mask, Pairs

ROLES = {  # of a table of pairs, and the column that has it unless another is named
    "p1": "p1", "p2": "p2", "label": "label", "group1": "group1", "group2": "group2", "score": "score",
    "fold": "fold", "id1": "id1", "id2": "id2",
}  # fmt: skip
OPTIONAL = ("p1", "p2", "fold", "id1", "id2")
YES, NO = ("1", "true", "genuine", "same"), ("0", "false", "imposter", "impostor", "different")
PICKLES = (".pkl", ".pickle", ".p", ".pt", ".pth")


def refuse_pickle(path: Path) -> None:
    """Refuse a file that may run a program when it is opened, and say what to give in its place."""
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is a pickle, which can run any program when it is opened, so it is not read: if you trust it, "
            f"make a table of it with python -c \"import pandas; pandas.read_pickle('{path}')"
            f".to_parquet('{path.with_suffix('.parquet')}')\", or with numpy.save an .npy of embeddings, and give that."
        )


def read_pairs(path: Path, columns: Mapping[str, str] | None = None) -> Pairs:
    """Read a table of pairs from CSV or Parquet: a published one by its columns, or one's own.

    One's own has the columns p1, p2 (the images), label (1 genuine, 0 imposter; also true and false, or the words),
    group1, group2, score, and if there are any fold, id1 and id2 (the subjects). Only label, groups and score must be
    there. The images are not opened.

    Args:
        path: the table.
        columns: names of columns by what they are, such as {"score": "arcface", "group1": "race_a"}. Another than a
            score makes a table one's own, whatever its columns.

    Raises:
        UserError: a pickle, no such table, a lacking column, a label that is none, or as in `Pairs.of`.
    """
    refuse_pickle(path)
    given = dict(columns or {})
    for role in given:
        if role not in ROLES:
            raise unknown("column of a table of pairs", role, ROLES)
    known = _names(path)
    published = None if set(given) - {"score"} else _published(known)
    return published(path, given.get("score")) if published else _own(path, known, given)


def _names(path: Path) -> list[str]:
    """List the columns of a table, without its rows."""
    if not path.is_file() or not reading.is_table(path) or path.suffix.lower() in (".parquet", ".pq"):
        return reading.read_table(path).column_names
    return reading.header(path)[0]


def _published(known: Sequence[str]) -> Callable[[Path, str | None], Pairs] | None:
    """Find a data set whose table of pairs has these columns; its module says which, and reads it."""
    for name in module_names("evenlens.datasets"):
        module = import_module(f"evenlens.datasets.{name}")
        columns = getattr(module, "PAIR_COLUMNS", ())
        if columns and set(columns) <= {*known}:
            return lambda path, score: _of_data_set(module, path, score)
    return None


def _of_data_set(module: Any, path: Path, score: str | None) -> Pairs:
    found = module.read_pairs(path, [score] if score else None)
    if len(found.scores) > 1:
        raise UserError(
            f"{path.name} has the scores of several systems, {', '.join(found.scores)}: name one with --score, and "
            "audit the others one by one."
        )
    (name, values) = next(iter(found.scores.items()))
    return Pairs.of(
        values,
        found.genuine,
        found.first_group,
        found.second_group,
        images=(found.first, found.second),
        subjects=(found.first_subject, found.second_subject),
        fold=found.fold,
        where=f"{path.name} ({name})",
        notes=found.of_these_data,  # Pairs.of notices the others in every table, and says what becomes of such pairs
    )


def _own(path: Path, known: Sequence[str], given: Mapping[str, str]) -> Pairs:
    names = {role: given.get(role, usual) for role, usual in ROLES.items()}
    names = {role: name for role, name in names.items() if role in given or role not in OPTIONAL or name in known}
    for one, other in (("p1", "p2"), ("id1", "id2")):
        if (one in names) != (other in names):
            has, lacks = (one, other) if one in names else (other, one)
            raise UserError(
                f"{path.name} has {has} and not {lacks}: name both sides' columns, with --column {lacks}=..., or "
                "neither."
            )
    table = reading.read_table(path, list(dict.fromkeys(names.values())))
    if not len(table):
        raise UserError(f"{path} has no rows: a table of pairs has one row for each pair.")
    for role in names:
        _check_whole(table, names[role], path.name, allowed=role == "score")
    columns = {role: table.column(name) for role, name in names.items()}
    return Pairs.of(
        reading.to_numbers(table, names["score"], path.name),
        _genuine(columns["label"], names["label"], path.name),
        columns["group1"],
        columns["group2"],
        images=(columns["p1"], columns["p2"]) if "p1" in columns else None,
        subjects=(columns["id1"], columns["id2"]) if "id1" in columns else None,
        fold=columns.get("fold"),
        where=path.name if names["score"] == "score" else f"{path.name} ({names['score']})",
    )


def _check_whole(table: Any, name: str, where: str, allowed: bool) -> None:
    """Refuse a column with gaps."""
    missing = table.column(name).is_null().to_numpy()
    if missing.any() and not allowed:
        rows = np.flatnonzero(missing)
        raise UserError(
            f"{row_of(where, int(rows[0]))} has no {name} ({len(rows):,} such rows): leave these rows out, or write "
            "what is known."
        )


def _genuine(column: Any, name: str, where: str) -> Mask:
    encoded = column.combine_chunks().dictionary_encode()
    words = [word.lower().removesuffix(".0") for word in encoded.dictionary.to_pylist()]
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    strange = [k for k, word in enumerate(words) if word not in (*YES, *NO)]
    if strange:
        row = int(np.flatnonzero(codes == strange[0])[0])
        raise UserError(
            f"{row_of(where, row)} has the {name} '{encoded.dictionary[strange[0]].as_py()}': allowed are 1 or "
            "genuine, and 0 or imposter (or true and false)."
        )
    return np.array([word in YES for word in words], dtype=bool)[codes]
