"""Pairs from embeddings: all genuine ones, and imposters drawn from each subgroup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evenlens.data import reading
from evenlens.data.tables import Column, combine
from evenlens.errors import UserError, unknown
from evenlens.metrics.counts import Floats
from evenlens.verification.pairs import Codes, Pairs, stratified
from evenlens.verification.tables import refuse_pickle

SUFFIXES = (".npy", ".safetensors")
ROLES = {"subject": "subject", "fold": "fold"}
IMPOSTERS = 100_000
BLOCK = 1 << 15  # pairs that are compared at a time


def is_embeddings(path: Path) -> bool:
    """Say whether a file's name ends like that of embeddings."""
    return path.suffix.lower() in SUFFIXES


def read_embeddings(
    path: Path,
    manifest: Path,
    groups: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    imposters: int = IMPOSTERS,
    within: str = "subgroup",
    seed: int = 0,
) -> Pairs:
    """Make pairs of embeddings and score them by their cosine.

    Every two images of a subject are a genuine pair. Imposter pairs are drawn at random without repetition, as many
    of each subgroup, and in each fold as many: both subjects of a pair are in one fold.

    Args:
        path: .npy or .safetensors that holds one array (N, D) of floats.
        manifest: a table with one row for each embedding, in their order: the subject, the group columns and perhaps
            a fold. Files that it names are not opened.
        groups: the columns whose crossing makes the subgroups.
        columns: names of the columns "subject" and "fold", where they are others.
        imposters: how many imposter pairs a subgroup, by that of the first image; fewer where there are no more.
        within: of whom: "subgroup" (both images of one), a column (both have the same value), or "any".
        seed: of the draws.

    Raises:
        UserError: a file that cannot be read or does not fit the other, an embedding that is zero or not finite, a
            subject in two folds, too few subjects, or as in `Pairs.of`.
    """
    given, where = dict(columns or {}), manifest.name
    for role in given:
        if role not in ROLES:
            raise unknown("column of a manifest", role, ROLES)
    names = {role: given.get(role, usual) for role, usual in ROLES.items()}
    unit = normalised(_array(path), path.name)
    table = reading.read_table(manifest)
    chosen = [*groups, names["subject"], *([within] if within not in ("subgroup", "any") else [])]
    reading.check_columns(table.column_names, chosen, where)
    _check_fit(path.name, len(unit), where, len(table), groups)
    group = combine([_whole(table, name, where) for name in groups])
    subject = _whole(table, names["subject"], where, many=True)
    scope = {"subgroup": group.codes, "any": np.zeros(len(unit), dtype=np.int64)}
    block = scope[within] if within in scope else _whole(table, within, where).codes
    fold = _folds(table, names["fold"], "fold" in given, subject, group.codes, where)
    generator = np.random.default_rng(seed)
    same = genuine_pairs(subject.codes)
    other = imposter_pairs(subject.codes, group.codes, block, fold, imposters, generator)
    pairs = np.concatenate([same, other])
    return Pairs.of(
        cosines(unit, pairs),
        np.arange(len(pairs)) < len(same),
        group[pairs[:, 0]],
        group[pairs[:, 1]],
        subjects=(subject[pairs[:, 0]], subject[pairs[:, 1]]),
        fold=None if fold is None else Column(tuple(map(str, range(int(fold.max()) + 1))), fold[pairs[:, 0]]),
        where=f"{path.name} with {where}",
        notes=_told(imposters, within, group, other, seed),
    )


def _check_fit(name: str, embeddings: int, where: str, rows: int, groups: Sequence[str]) -> None:
    if rows != embeddings:
        raise UserError(
            f"{name} has {embeddings:,} embeddings and {where} {rows:,} rows: write a row for each, in the same order."
        )
    if not groups:
        raise UserError(f"Name the columns of {where} that make the subgroups, such as --group gender,ethnicity.")


def _told(imposters: int, within: str, group: Column, other: Codes, seed: int) -> list[str]:
    counts = np.bincount(group.codes[other[:, 0]], minlength=len(group.levels))
    scope = {"subgroup": "of one subgroup", "any": "of any two subjects"}.get(within, f"with the same {within}")
    notes = [
        f"All genuine pairs of the embeddings were made, and imposter pairs {scope} drawn at random (seed {seed}), "
        f"{imposters:,} a subgroup where there are as many."
    ]
    few = [f"{name} ({n:,})" for name, n in zip(group.levels, counts, strict=True) if n < imposters]
    if few:
        notes.append(f"Fewer imposter pairs could be made of {', '.join(few[:4])}{' and others' * (len(few) > 4)}.")
    return notes


def _array(path: Path) -> Floats:
    """Read the one array of a file."""
    refuse_pickle(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}: name embeddings that end in {' or '.join(SUFFIXES)}.")
    if path.suffix.lower() == ".npy":
        try:
            found = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            why = "it holds a pickle, which could run any program" if "allow_pickle" in str(error) else "it is damaged"
            raise UserError(f"{path} is not read ({why}): save a float32 array (N, D) with numpy.save.") from None
    else:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is not read ({str(error)[:100]}): save one float32 tensor (N, D).") from None
        if len(tensors) != 1:
            raise UserError(f"{path} holds {len(tensors)} tensors, {', '.join(tensors)}: save the embeddings alone.")
        (found,) = tensors.values()
    if found.ndim != 2 or found.dtype.kind != "f":
        raise UserError(f"{path} holds {found.dtype} of shape {found.shape}: embeddings are floats (N, D).")
    return found


def normalised(embeddings: Floats, where: str = "") -> Floats:
    """Give embeddings (N, D) the length 1, as float32.

    Raises:
        UserError: one is zero, NaN or infinite.
    """
    scale = np.abs(embeddings).max(axis=1, initial=0)
    bad = np.flatnonzero(~np.isfinite(scale) | (scale == 0))
    if len(bad):
        what = "zero" if scale[bad[0]] == 0 else "not finite"
        raise UserError(
            f"Embedding {bad[0] + 1:,} of {where or 'the array'} is {what} ({len(bad):,} such): leave these images "
            "out, of the manifest too."
        )
    unit = (embeddings / scale[:, None]).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit


def cosines(unit: Floats, pairs: Codes) -> Floats:
    """Give the cosine of each pair (P, 2) of rows of `unit` (N, D), a block at a time: (P,) float64."""
    score = np.empty(len(pairs))
    for start in range(0, len(pairs), BLOCK):
        first, second = pairs[start : start + BLOCK].T
        score[start : start + BLOCK] = np.einsum("nd,nd->n", unit[first], unit[second])
    return score


def genuine_pairs(subject: Codes) -> Codes:
    """List every two images of one subject: (P, 2) positions, the smaller first."""
    order = np.argsort(subject, kind="stable")
    _, start, size = np.unique(subject[order], return_index=True, return_counts=True)
    made = [np.zeros((0, 2), dtype=np.int64)]
    for number in np.unique(size):
        inside = np.stack(np.triu_indices(number, 1), axis=1)
        made.append((start[size == number, None, None] + inside).reshape(-1, 2))
    return order[np.concatenate(made)]


def imposter_pairs(
    subject: Codes, group: Codes, block: Codes, fold: Codes | None, number: int, generator: np.random.Generator
) -> Codes:
    """Draw pairs of images of two subjects, none twice: `number` of each group, as many in each fold.

    Args:
        subject: (N,).
        group: (N,) of the first image.
        block: (N,) both images are of one block.
        fold: (N,) both images are of one fold; None where there are none.
        number: of pairs a group; fewer where there are no more.
        generator: where random numbers come from.

    Returns:
        (P, 2) positions.
    """
    fold = np.zeros_like(group) if fold is None else fold
    num_folds = int(fold.max(initial=0)) + 1
    made = [np.zeros((0, 2), dtype=np.int64)]
    for g in np.unique(group):
        for f in range(num_folds):
            wanted = number // num_folds + (f < number % num_folds)
            blocks = np.unique(block[(group == g) & (fold == f)])
            for part in blocks:
                inside = np.flatnonzero((block == part) & (fold == f))
                first = inside[group[inside] == g]
                made.append(_draw(first, inside, subject, group, -(-wanted // len(blocks)), generator))
    return np.concatenate(made)


def _draw(
    first: Codes, second: Codes, subject: Codes, group: Codes, wanted: int, generator: np.random.Generator
) -> Codes:
    """Draw different pairs of an image of `first` and one of `second`, of two subjects.

    A pair of two groups could be drawn for either: it is for the lower one if the sum of its positions is even, and
    for the other if not, so that none is drawn twice.
    """
    num = len(second)
    if len(first) * num <= 4 * wanted:
        low, high = (side.ravel() for side in np.meshgrid(first, second, indexing="ij"))
        found = _unlike(low, high, subject, group)
        return found[generator.permutation(len(found))[:wanted]]
    found = np.zeros((0, 2), dtype=np.int64)
    for _ in range(64):
        if len(found) >= wanted:
            break
        size = 2 * (wanted - len(found)) + 64
        more = _unlike(generator.choice(first, size), generator.choice(second, size), subject, group)
        both = np.concatenate([found, more])
        _, kept = np.unique(both[:, 0] * len(subject) + both[:, 1], return_index=True)
        found = both[np.sort(kept)]
    return found[:wanted]


def _unlike(first: Codes, second: Codes, subject: Codes, group: Codes) -> Codes:
    """Keep pairs of two subjects, in one order, and those of two groups for one of these."""
    same = group[first] == group[second]
    mine = (group[first] < group[second]) == ((first + second) % 2 == 0)
    kept = (subject[first] != subject[second]) & np.where(same, True, mine)
    first, second, same = first[kept], second[kept], same[kept]
    swapped = same & (first > second)
    pairs = np.stack([np.where(swapped, second, first), np.where(swapped, first, second)], axis=1)
    _, place = np.unique(pairs[:, 0] * len(subject) + pairs[:, 1], return_index=True)
    return pairs[np.sort(place)]


def _whole(table: Any, name: str, where: str, many: bool = False) -> Column:
    """Make a column of levels, refusing gaps; `many` lifts the limit on the number of levels."""
    levels = None
    if many:
        import pyarrow.compute as compute

        levels = sorted(compute.unique(table.column(name).drop_null()).to_pylist())
    column = reading.to_column(table, name, levels, where)
    missing = np.flatnonzero(column.codes < 0)
    if len(missing):
        raise UserError(
            f"{reading.row_of(where, int(missing[0]))} has no {name} ({len(missing):,} such rows): leave these images "
            "out, of the embeddings too."
        )
    return column


def _folds(table: Any, name: str, named: bool, subject: Column, group: Codes, where: str) -> Codes | None:
    """Give the fold of each image: of the manifest's column, or by a hash of its subject."""
    of_subject = np.zeros(len(subject.levels), dtype=np.int64)
    if named or name in table.column_names:
        fold = _whole(table, name, where).codes
        of_subject[subject.codes] = fold
        wrong = np.flatnonzero(of_subject[subject.codes] != fold)
        if len(wrong):
            raise UserError(
                f"Subject {subject.levels[subject.codes[wrong[0]]]} of {where} is in two folds: all images of a "
                "subject belong into one."
            )
        return fold
    of_group = np.zeros(len(subject.levels), dtype=np.int64)
    of_group[subject.codes] = group
    sizes = np.bincount(of_group)
    if (sizes[sizes > 0] < 10).any():  # a fold needs two subjects for an imposter pair
        return None
    return stratified(subject.levels, of_group)[subject.codes]
