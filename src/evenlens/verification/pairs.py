"""Pairs of images with their scores, checked: what a verification audit is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evenlens.audits.rows import encode
from evenlens.data.reading import in_order
from evenlens.data.tables import Column, position
from evenlens.errors import UserError
from evenlens.metrics.counts import Floats

Codes = NDArray[np.int64]
Mask = NDArray[np.bool_]

NUM_FOLDS = 5
MOST_GROUPS = 100  # subgroups: each is compared with each


@dataclass(frozen=True)
class Pairs:
    """N pairs of images, as `Pairs.of` checks them.

    Attributes:
        score: (N,) float64; larger means more alike.
        genuine: (N,) bool, both images are of one subject.
        first_group: (N,) subgroup of the first image, in [0, G).
        second_group: (N,) subgroup of the second image.
        groups: the G subgroups in words.
        subjects: (N, 2) subject of either image, in [0, S); None where they are not known.
        folds: (N, 2) fold of either image; None where there are none.
        folds_by: where folds come from, "table" or "subjects"; empty where there are none.
        where: what they were read from, for people.
        notes: what was noticed while reading, a sentence each.
    """

    score: Floats
    genuine: Mask
    first_group: Codes
    second_group: Codes
    groups: tuple[str, ...]
    subjects: Codes | None = None
    folds: Codes | None = None
    folds_by: str = ""
    where: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.score)

    @property
    def group(self) -> Codes:
        """The subgroup of each pair: that of both images, or -1 where they are of two."""
        return np.where(self.first_group == self.second_group, self.first_group, -1)

    @property
    def num_folds(self) -> int:
        """How many folds there are."""
        return 0 if self.folds is None else int(self.folds.max()) + 1

    @classmethod
    def of(
        cls,
        score: Any,
        genuine: Any,
        first_group: Any,
        second_group: Any,
        *,
        images: tuple[Any, Any] | None = None,
        subjects: tuple[Any, Any] | None = None,
        fold: Any = None,
        where: str = "",
        notes: Sequence[str] = (),
    ) -> Pairs:
        """Check pairs, and leave out those that cannot be judged: without a score, repeated, of an image with itself.

        Columns may be lists, arrays, tensors, or columns of polars, pandas or pyarrow.

        Args:
            score: (N,) numbers; larger means more alike. NaN is a pair without a score.
            genuine: (N,) bool, both images are of one subject.
            first_group: (N,) subgroup of the first image.
            second_group: (N,) subgroup of the second image.
            images: (N,) the first and the second image, by which repeated pairs are found.
            subjects: (N,) the subjects of the first and the second image.
            fold: (N,) fold of each pair; default: of subjects, if these are known, by a hash of their names.
            where: what they were read from.
            notes: what was noticed before.

        Raises:
            UserError: lengths differ, a group or subject is missing, a score is infinite, one pair has two labels,
                there are no genuine or no imposter pairs, or too many subgroups.
        """
        values = _numbers(score)
        label = np.asarray(genuine, dtype=bool)
        levels, *group = joint("group", first_group, second_group)
        names, people = (), None
        if subjects is not None:
            names, *sides = joint("subject", *subjects)
            people = np.stack(sides, axis=1)
        parts = None if fold is None else encode("fold", fold).codes.astype(np.int64)
        shown = None if images is None else np.stack(joint("image", *images)[1:], axis=1)
        lengths = {len(part) for part in (values, label, *group, people, parts, shown) if part is not None}
        if len(lengths) > 1:
            raise UserError(f"All columns of pairs must be of one length; these are of {sorted(lengths)}.")
        kept, found = _kept(values, label, shown)
        made = cls(values[kept], label[kept], group[0][kept], group[1][kept], levels, where=where)
        people = None if people is None else people[kept]
        made = _only_present(made)
        _check(made)
        folds, by, more = _folds(made, people, names, None if parts is None else parts[kept])
        return cls(
            made.score, made.genuine, made.first_group, made.second_group, made.groups, people, folds, by, where,
            (*notes, *found, *_contradictions(made.genuine, people), *more),
        )  # fmt: skip


def joint(name: str, first: Any, second: Any) -> tuple[Any, Codes, Codes]:
    """Number the values of two columns by the same levels: (levels, first codes, second codes)."""
    one, two = encode(f"{name}1", first), encode(f"{name}2", second)
    levels = one.levels
    if one.levels != two.levels:
        levels = tuple(in_order(list(dict.fromkeys((*one.levels, *two.levels)))))
        code = {level: number for number, level in enumerate(levels)}
        one, two = (
            Column(levels, np.array([code[level] for level in side.levels], dtype=np.int64)[side.codes])
            for side in (one, two)
        )
    return levels, one.codes.astype(np.int64), two.codes.astype(np.int64)


def _numbers(score: Any) -> Floats:
    try:
        values = np.asarray(score, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError("The scores must be numbers, one for each pair; larger means more alike.") from None
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise UserError(
            f"{len(infinite):,} scores are infinite, the first in pair {infinite[0] + 1:,}: write a finite number, or "
            "nothing where no score could be made."
        )
    return values


def _kept(score: Floats, genuine: Mask, images: Codes | None) -> tuple[Mask, list[str]]:
    """Say which pairs are judged, and in words which are not."""
    notes = []
    kept = ~np.isnan(score)
    if not kept.all():
        notes.append(
            f"{np.count_nonzero(~kept):,} of {len(kept):,} pairs have no score "
            f"({np.count_nonzero(~kept & genuine):,} genuine) and are left out: the rates are of pairs that the "
            "system could compare."
        )
    if images is None:
        return kept, notes
    itself = images[:, 0] == images[:, 1]
    if itself.any():
        notes.append(f"{np.count_nonzero(itself):,} pairs compare an image with itself and are left out.")
    low, high = np.minimum(images[:, 0], images[:, 1]), np.maximum(images[:, 0], images[:, 1])
    key = low * (int(high.max(initial=0)) + 1) + high
    _, first, number = np.unique(key, return_index=True, return_inverse=True)
    against = np.flatnonzero(genuine != genuine[first][number])
    if len(against):
        row = int(against[0])
        raise UserError(
            f"Pairs {int(first[number[row]]) + 1:,} and {row + 1:,} compare the same two images, once as genuine and "
            f"once as imposter ({len(against):,} such pairs): mend the label of one."
        )
    again = np.ones(len(score), dtype=bool)
    again[first] = False
    if again.any():
        notes.append(
            f"{np.count_nonzero(again):,} pairs repeat two images that an earlier row has, in this or the other "
            "order, and are left out: a pair counts once."
        )
    return kept & ~itself & ~again, notes


def _only_present(pairs: Pairs) -> Pairs:
    """Leave out subgroups that no pair is of."""
    both = np.stack([pairs.first_group, pairs.second_group])
    present, codes = np.unique(both, return_inverse=True)
    first, second = codes.reshape(both.shape).astype(np.int64)
    return Pairs(
        pairs.score, pairs.genuine, first, second, tuple(pairs.groups[k] for k in present), where=pairs.where
    )  # fmt: skip


def _check(pairs: Pairs) -> None:
    num = int(np.count_nonzero(pairs.genuine))
    if not num or num == len(pairs):
        lacking = "imposter" if num else "genuine"
        raise UserError(
            f"{pairs.where or 'The table'} has no {lacking} pair with a score, of {len(pairs):,} pairs: verification "
            "needs pairs of one subject (label 1) and of two (label 0)."
        )
    if len(pairs.groups) > MOST_GROUPS:
        raise UserError(
            f"There are {len(pairs.groups):,} subgroups, such as '{pairs.groups[0]}': at most {MOST_GROUPS} can be "
            "compared; choose a column with fewer values."
        )


def _contradictions(genuine: Mask, subjects: Codes | None) -> list[str]:
    if subjects is None:
        return []
    against = int(np.count_nonzero(genuine != (subjects[:, 0] == subjects[:, 1])))
    return [f"{against:,} pairs have a label that contradicts their subjects; the label is believed."] * bool(against)


# ---- folds


def _folds(
    pairs: Pairs, people: Codes | None, names: Sequence[str], fold: Codes | None
) -> tuple[Codes | None, str, list[str]]:
    """Give the fold of either image, where folds come from, and what there is to say of them."""
    if fold is not None:
        present, codes = np.unique(fold, return_inverse=True)
        if len(present) < 2:
            return None, "", ["All pairs are in one fold, which is the same as none."]
        codes = codes.astype(np.int64)
        return np.stack([codes, codes], axis=1), "table", _in_several(codes, people, names)
    if people is None:
        return None, "", []
    of_subject = folds_of_subjects(pairs, people, names)
    folds = of_subject[people]
    if _enough(pairs.genuine, folds):
        return folds, "subjects", []
    return None, "", ["The subjects are too few for five folds that each hold genuine and imposter pairs."]


def folds_of_subjects(pairs: Pairs, people: Codes, names: Sequence[str]) -> Codes:
    """Place each subject in one of five folds by a hash of its name, as many of each subgroup in each: (S,)."""
    group = np.zeros(len(names), dtype=np.int64)
    group[people[:, 1]] = pairs.second_group
    group[people[:, 0]] = pairs.first_group
    return stratified(names, group)


def stratified(names: Sequence[str], group: Codes) -> Codes:
    """Rank names by their hash within each group, and deal them out over the folds: (S,) in [0, 5)."""
    order = np.lexsort((position(names, 0), group))
    start = np.searchsorted(group[order], group[order])
    folds = np.empty(len(names), dtype=np.int64)
    folds[order] = (np.arange(len(names)) - start) % NUM_FOLDS
    return folds


def _enough(genuine: Mask, folds: Codes) -> bool:
    """Say whether every fold has genuine and imposter pairs of its own."""
    inside = folds[:, 0] == folds[:, 1]
    counts = np.bincount(2 * folds[inside, 0] + genuine[inside], minlength=2 * NUM_FOLDS)
    return bool(counts.all())


def _in_several(fold: Codes, people: Codes | None, names: Sequence[str]) -> list[str]:
    if people is None:
        return ["Whether a subject is in two folds cannot be told, as the table names no subjects."]
    seen = np.zeros((len(names), int(fold.max()) + 1), dtype=bool)
    for side in (0, 1):
        seen[people[:, side], fold] = True
    several = np.flatnonzero(seen.sum(axis=1) > 1)
    if not len(several):
        return []
    return [
        f"{len(several):,} of {len(names):,} subjects are in more than one fold, such as {names[several[0]]}: "
        "thresholds have seen subjects on whom they are measured."
    ]
