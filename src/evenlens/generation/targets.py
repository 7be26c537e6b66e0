"""What shares are wanted: equal ones, given ones, or those of other labelled images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path

import numpy as np

from evenlens.errors import UserError, unknown
from evenlens.generation.distances import uniform
from evenlens.generation.distribution import tally
from evenlens.generation.labels import Labels, read_labels
from evenlens.metrics import Floats

EQUAL = "uniform"
HOW = "write --target race=White:0.5,Black:0.5 with a share for each class, --target uniform, or a table of labels"


@dataclass(frozen=True)
class Targets:
    """Wanted shares.

    Attributes:
        given: share of each class, by attribute.
        labels: other images, one face each, whose shares are wanted of attributes that are not given; None: equal ones.
    """

    given: dict[str, dict[str, float]] = field(default_factory=dict)
    labels: Labels | None = None

    def check(self, attributes: Sequence[str]) -> None:
        """Refuse shares of an attribute that is not audited, and labels that lack one that is."""
        for name in self.given:
            if name not in attributes:
                raise unknown("attribute with a target", name, attributes)
        for name in attributes:
            if self.labels is not None and name not in self.given:
                self.labels.attribute(name)

    def classes(self, name: str) -> tuple[str, ...]:
        """Give the classes of an attribute that the target names."""
        if name in self.given:
            return tuple(self.given[name])
        return self.labels.attribute(name).classes if self.labels is not None else ()

    def among(self, classes: dict[str, tuple[str, ...]]) -> Targets:
        """Put the labels' classes into an order, and refuse given shares that lack a class.

        Args:
            classes: of each attribute.
        """
        for name, shares in self.given.items():
            lacking = [level for level in classes[name] if level not in shares]
            if lacking:
                raise UserError(
                    f"The target of {name} lacks '{lacking[0]}': give each class a share, 0 where none is wanted; the "
                    f"classes are {', '.join(classes[name])}."
                )
        if self.labels is None:
            return self
        moved = {name: self.labels.attributes[name].among(levels) for name, levels in classes.items()
                 if name in self.labels.attributes}  # fmt: skip
        return replace(self, labels=replace(self.labels, attributes=moved))

    def shares(self, names: Sequence[str], classes: dict[str, tuple[str, ...]]) -> tuple[Floats | None, str]:
        """Give the shares of an attribute, or of several crossed, and say in words what they are.

        Args:
            names: of attributes; where shares are given, those of a combination are the product of its parts'.
            classes: of each attribute.

        Returns:
            (K,) or None for equal shares; and words.

        Raises:
            UserError: no image of the target has this attribute.
        """
        if self.labels is not None and not any(name in self.given for name in names):
            counts = tally(self.labels, *names).counts
            if not counts.sum():
                raise UserError(f"No image of {self.labels.where} has a class of {' and '.join(names)}: take another.")
            return counts / counts.sum(), f"the shares in {Path(self.labels.where).name} ({counts.sum():,} images)"
        if not any(name in self.given for name in names):
            return None, "equal shares"
        parts = [self._alone(name, classes[name]) for name in names]
        words = "the given shares" if len(names) == 1 else "the products of the attributes' targets"
        return reduce(lambda left, right: np.outer(left, right).ravel(), parts), words

    def asked(self, groups: Sequence[Mapping[str, str]]) -> Floats | None:
        """Give how often a generator is to be asked for each group.

        Args:
            groups: G of them: of each, the class of each attribute.

        Returns:
            (G,) summing to 1; None for equally often, which is so where nothing is said of their attributes.

        Raises:
            UserError: none of them is wanted, or a class that no group has lacks a share.
        """
        names = tuple(groups[0])
        given = {name: self.given[name] for name in names if name in self.given}
        known = self.labels is not None and all(name in given or name in self.labels.attributes for name in names)
        if not given and not known:
            return None
        mine = Targets(given, self.labels if known else None)
        classes = {name: tuple(dict.fromkeys([*(each[name] for each in groups), *mine.classes(name)]))
                   for name in names}  # fmt: skip
        shares = mine.among(classes).shares(names, classes)[0]
        if shares is None:
            return None
        places = [[classes[name].index(each[name]) for each in groups] for name in names]
        wanted = shares[np.ravel_multi_index(places, [len(classes[name]) for name in names])]
        if wanted.sum() <= 0:
            raise UserError(
                f"The target wants none of what can be asked for "
                f"({'; '.join(', '.join(each.values()) for each in groups)}): change it."
            )
        return wanted / wanted.sum()

    def _alone(self, name: str, classes: Sequence[str]) -> Floats:
        if name in self.given:
            return np.array([self.given[name][level] for level in classes])
        if self.labels is not None:
            counts = tally(self.labels, name).counts
            return counts / counts.sum()
        return uniform(len(classes))


def parse(texts: Sequence[str], attributes: Sequence[str] = (), rule: str = "single") -> Targets:
    """Read targets as people write them.

    Args:
        texts: "uniform"; "race=White:0.5,Black:0.5" for one attribute; or the path of a table of labels.
        attributes: which are audited: those that are not given are read of the table.
        rule: which face of an image with several counts, of the table.

    Raises:
        UserError: shares that are negative, no numbers or do not sum to 1 (within 0.001), a class or attribute twice,
            or two tables.
    """
    given: dict[str, dict[str, float]] = {}
    table = None
    for text in texts:
        name, equals, listed = text.partition("=")
        if text == EQUAL:
            continue
        if equals and not Path(text).is_file():
            if name in given:
                raise UserError(f"The target of {name} is given twice: leave one.")
            given[name] = check_shares(name, _pairs(text, listed))
        elif table is not None:
            raise UserError(f"{text} is a second table as target: one is enough.")
        elif not Path(text).is_file():
            raise UserError(f"The target '{text}' is no file and no list of shares: {HOW}.")
        else:
            table = text
    others = [name for name in attributes if name not in given]
    if table is None or (attributes and not others):
        return Targets(given)
    return Targets(given, read_labels(table, others).one_face(rule)[0])


def _pairs(text: str, listed: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in listed.split(","):
        level, colon, number = part.rpartition(":")
        try:
            share = float(number)
        except ValueError:
            colon = ""
        if not colon or not level.strip():
            raise UserError(f"The target '{text}' has '{part}', which is no class with its share: {HOW}.")
        if level.strip() in found:
            raise UserError(f"The target '{text}' has '{level.strip()}' twice: leave one.")
        found[level.strip()] = share
    return found


def check_shares(name: str, shares: dict[str, float]) -> dict[str, float]:
    """Give shares that sum to 1 exactly, or refuse them."""
    for level, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"The target of {name} gives '{level}' the share {share:g}: shares are from 0 to 1.")
    total = math.fsum(shares.values())
    if abs(total - 1) > 1e-3:
        raise UserError(f"The shares in the target of {name} sum to {total:g}, not to 1: mend them.")
    return {level: share / total for level, share in shares.items()}
