"""What a generator makes, corrected for the errors of the classifier that labelled its images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evenlens.errors import UserError, unknown
from evenlens.generation.distances import plausible
from evenlens.generation.distribution import REPLICATES
from evenlens.metrics import Counts, Floats, Interval
from evenlens.metrics.rates import divide
from evenlens.metrics.resampling import central

ILL = 10.0  # condition number from which a correction mostly amplifies noise
COLUMNS = (("{}.truth", "{}"), ("truth", "prediction"), ("label", "prediction"))


@dataclass(frozen=True)
class Confusion:
    """How often a classifier takes each class for each other, on images whose true class is known.

    Attributes:
        classes: the K classes.
        counts: (K, K) images by true class and predicted class.
        where: what they were read from, for people.
    """

    classes: tuple[str, ...]
    counts: Counts
    where: str = ""

    @property
    def rates(self) -> Floats:
        """(K, K) share of each true class that is predicted as each class; NaN for a class without images."""
        return divide(self.counts, self.counts.sum(axis=1, keepdims=True))

    @property
    def condition(self) -> float:
        """Factor by which relative errors of the observed shares may grow: 1 is best; infinite if nothing is told."""
        return float(np.linalg.cond(self.rates)) if self.counts.sum(axis=1).all() else math.inf

    def among(self, categories: Sequence[str]) -> Confusion:
        """Put the classes into the order of categories.

        Raises:
            UserError: they are not the same, or there is no labelled image of one.
        """
        sizes = dict(zip(self.classes, self.counts.sum(axis=1).tolist(), strict=True))
        lacking = [name for name in categories if not sizes.get(name)]
        if lacking:
            raise UserError(
                f"{self.where or 'The confusion matrix'} has no image that truly is '{lacking[0]}': without one it is "
                "not known what such images are taken for; add some, with the classes in the same words."
            )
        strange = [name for name in self.classes if name not in categories]
        if strange:
            raise unknown(f"class of {self.where or 'the confusion matrix'}", strange[0], categories)
        order = [self.classes.index(name) for name in categories]
        return Confusion(tuple(categories), self.counts[np.ix_(order, order)], self.where)


def read_confusion(path: Path | str, attribute: str, part: str = "val") -> Confusion:
    """Count a classifier's errors on images whose true class is known.

    Args:
        path: a table (CSV, TSV, Parquet) with a row an image, and its true and predicted class in the columns
            `<attribute>.truth` and `<attribute>`, or `truth` (or `label`) and `prediction`; or a run's folder.
        attribute: what is predicted.
        part: of a run: "val", which no one has selected for other images by, or "test".

    Raises:
        UserError: it cannot be read, has no such columns, or a value is missing.
    """
    from evenlens.audits import rows as reading
    from evenlens.data.reading import in_order, read_table

    path = Path(path)
    if path.is_dir():
        run, _ = reading.from_run(path, part)
        return confusion(run.classes, run.label, run.prediction, run.where)
    known = read_table(path).column_names
    pairs = [(truth.format(attribute), said.format(attribute)) for truth, said in COLUMNS]
    chosen = next((pair for pair in pairs if {*pair} <= {*known}), None)
    if chosen is None:
        wanted = ", or ".join(" and ".join(pair) for pair in pairs)
        raise UserError(f"{path} does not say what is true and what was predicted: it needs the columns {wanted}.")
    read = reading.read_rows(path, chosen)
    truth, said = (reading.encode(name, read[name]) for name in chosen)
    classes = tuple(in_order(list(dict.fromkeys((*truth.levels, *said.levels)))))
    codes = [np.array([classes.index(level) for level in one.levels])[one.codes] for one in (truth, said)]
    return confusion(classes, codes[0], codes[1], str(path))


def confusion(classes: Sequence[str], label: np.ndarray, prediction: np.ndarray, where: str = "") -> Confusion:
    """Count (N,) true and (N,) predicted codes of K classes."""
    num = len(classes)
    counts = np.bincount(label * num + prediction, minlength=num**2).reshape(num, num)
    return Confusion(tuple(classes), counts.astype(np.int64), where)


def correct(shares: Floats, rates: Floats) -> Floats:
    """Give the shares of true classes that explain observed shares best.

    They are the p with p >= 0 and sum 1 for which the sum of squares of C^T p - shares is least, found exactly by an
    active-set search: K is small.

    Args:
        shares: (K,) observed, summing to 1.
        rates: (K, K), C[i, j] = P(predicted j | truly i), rows summing to 1.

    Returns:
        (K,). Where C is singular, one of several that explain the shares equally well.

    Source: Forman, 2008, Quantifying counts and costs via classification (adjusted count); Bunse, 2022, On multi-class
    extensions of adjusted classify and count; Teo, Abdollahzadeh and Cheung, 2023, On measuring fairness in generative
    models, arXiv 2310.19297 (the same need, in generators). Differs from the last, whose estimate assumes a normal
    distribution of the observed shares over batches, in that nothing is assumed of them.
    """
    num = len(shares)
    hessian, wanted = rates @ rates.T, rates @ shares
    p, free = np.full(num, 1 / num), np.ones(num, dtype=bool)
    for _ in range(20 * num):
        aim, level = _stationary(hessian, wanted, free)
        if (aim >= -1e-12).all():
            p = np.maximum(aim, 0)
            slope = np.where(free, math.inf, hessian @ p - wanted - level)
            if slope.min() >= -1e-10:
                break
            free[slope.argmin()] = True  # a share that is 0 would better grow
            continue
        falling = aim < -1e-12
        step = np.where(falling, p / np.where(falling, p - aim, 1), math.inf)
        blocking = int(step.argmin())
        p = np.maximum(p + step[blocking] * (aim - p), 0)
        p[blocking], free[blocking] = 0, False
    return p / p.sum()


def _stationary(hessian: Floats, wanted: Floats, free: np.ndarray) -> tuple[Floats, float]:
    """Solve the least squares with sum 1 over the free shares, all others 0; give it and the sum's multiplier."""
    number = int(free.sum())
    system = np.zeros((number + 1, number + 1))
    system[:number, :number] = hessian[np.ix_(free, free)]
    system[number, :number] = 1
    system[:number, number] = -1
    solved = np.linalg.lstsq(system, np.append(wanted[free], 1), rcond=None)[0]
    aim = np.zeros(len(wanted))
    aim[free] = solved[:number]
    return aim, float(solved[number])


class Corrected(NamedTuple):
    """Shares without the classifier's errors, as far as those are known.

    Attributes:
        shares: (K,) with intervals; n is the number of labelled images that the errors were counted on.
        distances: of the corrected shares from the target, with intervals.
        confusion: how the classifier errs.
        condition: its condition number.
    """

    shares: Interval[Floats]
    distances: dict[str, Interval[float]]
    confusion: Confusion
    condition: float


def corrected(
    counts: Counts, errors: Confusion, target: Floats, confidence: float = 0.95, replicates: int = REPLICATES,
    seed: int = 0,
) -> Corrected:  # fmt: skip
    """Correct observed counts for the classifier's errors, with intervals for both kinds of doubt.

    In each replicate the images are drawn again, and so are the labelled images of each true class, one image spread
    evenly over its predictions being added: an error that did not occur among few images may occur among others. The
    correction assumes that the classifier errs on generated images as it does on the labelled ones.

    Args:
        counts: (K,) images by predicted class.
        errors: in the same classes, with at least one image of each.
        target: (K,) shares.
        confidence: in (0, 1).
        replicates: of the bootstrap.
        seed: of its random numbers.
    """
    generator, n = np.random.default_rng(seed), int(counts.sum())
    labelled = errors.counts.sum(axis=1)
    smoothed = (errors.counts + 1 / len(counts)) / (labelled[:, None] + 1)
    images = generator.multinomial(n, counts / n, size=replicates) / n
    rates = generator.multinomial(labelled, smoothed, size=(replicates, len(counts))) / labelled[:, None]
    value = correct(counts / n, errors.rates)
    drawn = np.stack([correct(observed, each) for observed, each in zip(images, rates, strict=True)])
    ends = [central(column, confidence) for column in drawn.T]
    low, high = (np.array(part) for part in zip(*ends, strict=True))
    shares = Interval(value, np.minimum(low, value), np.maximum(high, value), labelled.astype(np.float64))
    return Corrected(shares, plausible(value, drawn, target, n, confidence), errors, errors.condition)
