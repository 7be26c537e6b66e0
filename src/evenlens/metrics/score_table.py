"""Every metric of scores by name, and how sure it is.

A metric is a measure of all images or of groups: `auroc`, `auroc_difference`. A gap is that between the groups' own
numbers. The intervals are in closed form and take little longer than a sort.

Nothing is drawn, so there is no seed, and the same scores give the same interval. `score_errors` has the variances.

- AUROC, average precision and Brier score of a group: symmetric on the logit scale, with Student's t. An interval
  reaches at least as far as Wilson's does for as many images that are all alike: a perfect ranking of ten images is
  not known to be perfect.
- Expected calibration error: chance moves bins apart, so it is too large by nature, the more so the fewer images. The
  low end takes off what chance may have added to the bins that are not clearly wrong, and is 0 for most models that
  are calibrated; the high end is that of a mean, and at least Wilson's. The interval is wider than it would have to
  be: it seldom calls a difference between groups, where there are few images.
- Differences, ratios and worst groups: the groups' intervals are combined by MOVER. The largest of many gaps is large
  by chance, so the end that claims a gap holds for all pairs of groups at once (Sidak); the other for any one pair.

Sources: those of `score_errors`; Zou and Donner, 2008 (MOVER); Sidak, 1967.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from evenlens.errors import unknown
from evenlens.metrics import gaps
from evenlens.metrics.counts import Floats
from evenlens.metrics.intervals import Interval, tail
from evenlens.metrics.score_errors import ESTIMATES, Drawn, Estimates
from evenlens.metrics.scores import Scores, auroc, average_precision, brier_score, expected_calibration_error
from evenlens.metrics.table import Direction

Reduction = Literal["pooled", "difference", "ratio", "worst"]


@dataclass(frozen=True)
class ScoreMeasure:
    """A number for each group.

    Attributes:
        name: how it is called in code and commands.
        title: how it is called in tables and figures.
        phrase: how it is called within a sentence.
        definition: one plain sentence.
        function: scores -> (G,); NaN where undefined.
        source: paper and year, or "standard".
        higher_is_better: which way is better.
        highest: highest value; the lowest is 0.
        has_ratio: whether one group's value divided by another's tells something.
    """

    name: str
    title: str
    phrase: str
    definition: str
    function: Callable[[Scores], Floats]
    source: str
    higher_is_better: bool
    highest: float = 1.0
    has_ratio: bool = True


_AVERAGED = "of more than two classes the mean over those that every group has images of and images without"

SCORE_MEASURES: dict[str, ScoreMeasure] = {
    measure.name: measure
    for measure in (
        ScoreMeasure(
            "auroc",
            "AUROC",
            "AUROC",
            f"Chance that a positive image has a higher score than a negative one, ties counting half; {_AVERAGED}.",
            auroc,
            "Hanley and McNeil, 1982",
            True,
        ),
        ScoreMeasure(
            "average_precision",
            "Average precision",
            "average precision",
            f"Mean over the positive images of the precision at their score, without interpolation; {_AVERAGED}.",
            average_precision,
            "standard",
            True,
        ),
        # Its lowest values are mostly noise: an ECE of 0.01 in 100 images and one of 0.02 in others are alike.
        ScoreMeasure(
            "expected_calibration_error",
            "Expected calibration error",
            "expected calibration error",
            "Distance between the share that is true and the mean probability that it is, averaged over bins of equal"
            " width by their images: of two classes that the positive one is true, of more that the predicted one is.",
            expected_calibration_error,
            "Guo et al., 2017 (arXiv:1706.04599)",
            False,
            has_ratio=False,
        ),
        ScoreMeasure(
            "brier_score",
            "Brier score",
            "Brier score",
            "Mean squared error of the positive probability, at most 1; of more than two classes the sum over them all,"
            " at most 2.",
            brier_score,
            "Brier, 1950",
            False,
            highest=2.0,
        ),
    )
}


@dataclass(frozen=True)
class ScoreMetric:
    """A number that is computed from scores.

    Attributes:
        name: how it is called in code and commands.
        title: how it is called in tables and figures.
        definition: one plain sentence.
        measure: what is computed for each group.
        reduction: what is made of it: "pooled" is the number of all images as if they were one group.
        source: paper and year, or "standard".
        range: lowest and highest value.
        direction: which of "higher" and "lower" is better.
    """

    name: str
    title: str
    definition: str
    measure: ScoreMeasure
    reduction: Reduction
    source: str = "standard"
    range: tuple[float, float] = (0.0, 1.0)
    direction: Direction = "higher"

    def __call__(self, scores: Scores) -> float:
        """Compute the metric; NaN where undefined.

        A difference or ratio is of the groups' own numbers, which for more than two classes are averages over the same
        classes in each group. With an undefined group it is undefined, and with fewer than two groups.
        """
        if self.reduction == "pooled":
            return float(self.measure.function(scores.pooled)[0])
        value, exists = self.measure.function(scores), scores.present
        if self.reduction == "worst":
            return float(gaps.worst(value, exists, self.measure.higher_is_better))
        return float(gaps.difference(value, exists) if self.reduction == "difference" else gaps.ratio(value, exists))


def get_score_metric(name: str) -> ScoreMetric:
    """Look a metric of scores up by name.

    Raises:
        UserError: if there is none of this name; it tells the nearest one.
    """
    if name not in SCORE_METRICS:
        raise unknown("metric of scores", name, SCORE_METRICS)
    return SCORE_METRICS[name]


def evaluate_scores(scores: Scores, names: Iterable[str] | None = None) -> dict[str, float]:
    """Compute several metrics of the same scores.

    Args:
        scores: of all images: metrics do not average over batches.
        names: which metrics; without it all.

    Returns:
        value by name; NaN where undefined.

    Raises:
        UserError: if a name is not known.
    """
    return {name: get_score_metric(name)(scores) for name in (SCORE_METRICS if names is None else names)}


def _metrics(measure: ScoreMeasure) -> list[ScoreMetric]:
    """Give a measure of all images, and of the groups its difference, its ratio if it has one, and its worst."""
    direction: Direction = "higher" if measure.higher_is_better else "lower"

    def compose(reduction: Reduction, start: str, highest: float, direction: Direction) -> ScoreMetric:
        title = f"{measure.title}, {reduction}" + (" group" if reduction == "worst" else "")
        name, definition = f"{measure.name}_{reduction}", f"{start} {measure.phrase} of the groups."
        return ScoreMetric(name, title, definition, measure, reduction, "standard", (0.0, highest), direction)

    pooled = (measure.name, measure.title, f"Of all images: {measure.definition[0].lower()}{measure.definition[1:]}")
    metrics = [
        ScoreMetric(*pooled, measure, "pooled", measure.source, (0.0, measure.highest), direction),
        compose("difference", "Largest minus smallest", measure.highest, "lower"),
        compose("worst", "Lowest" if measure.higher_is_better else "Highest", measure.highest, direction),
    ]
    if measure.has_ratio:
        metrics.insert(2, compose("ratio", "Smallest divided by largest", 1.0, "higher"))
    return metrics


SCORE_METRICS: dict[str, ScoreMetric] = {
    metric.name: metric for measure in SCORE_MEASURES.values() for metric in _metrics(measure)
}


def score_intervals(
    scores: Scores, names: Iterable[str] | None = None, confidence: float = 0.95, clusters: ArrayLike | None = None
) -> dict[str, Interval[float]]:
    """Give intervals of metrics of scores: of all images together, and of gaps between groups.

    Args:
        scores: of all images.
        names: which metrics; without it all.
        confidence: in (0, 1).
        clusters: (N,) whole numbers or names. Images that share one (those of one person, say) count as drawn
            together; without it each image is drawn by itself.

    Returns:
        value, ends and the number of images, by name; the ends are NaN where the value is.

    Raises:
        UserError: if a name is not known, the confidence is not in (0, 1) or the clusters do not fit the images.
    """
    beyond = tail(confidence)
    drawn = Drawn.of(scores, clusters)
    pooled = Drawn(scores.pooled, drawn.cluster)
    estimates: dict[tuple[str, bool], Estimates] = {}
    intervals = {}
    for metric in map(get_score_metric, SCORE_METRICS if names is None else names):
        key = metric.measure.name, metric.reduction == "pooled"
        if key not in estimates:
            estimates[key] = ESTIMATES[key[0]](pooled if key[1] else drawn)
        value = metric(scores)
        ends = (np.nan, np.nan)
        if not np.isnan(value):
            existing = estimates[key].of(scores.pooled.present if key[1] else scores.present)
            ends = _ENDS[metric.reduction](existing, beyond, metric.measure.higher_is_better)
        intervals[metric.name] = Interval(value, float(ends[0]), float(ends[1]), len(scores.label))
    return intervals


def group_score_intervals(
    scores: Scores, names: Iterable[str] | None = None, confidence: float = 0.95, clusters: ArrayLike | None = None
) -> dict[str, Interval[Floats]]:
    """Give intervals of measures of scores for each group; arguments and errors as in `score_intervals`.

    Returns:
        intervals of (G,) arrays by name of the measure, as "auroc"; NaN where undefined. n is the number of images.
    """
    beyond = tail(confidence)
    drawn = Drawn.of(scores, clusters)
    intervals = {}
    for name in SCORE_MEASURES if names is None else names:
        if name not in SCORE_MEASURES:
            raise unknown("measure of scores", name, SCORE_MEASURES)
        estimates = ESTIMATES[name](drawn)
        low, high = estimates.limits(1 - beyond)
        intervals[name] = Interval(estimates.value, low, high, scores.images.astype(np.float64))
    return intervals


# --- from groups to gaps --------------------------------------------------------------------------------------------


def _ends_pooled(estimates: Estimates, beyond: float, higher_is_better: bool) -> tuple[float, float]:
    low, high = estimates.limits(1 - beyond)
    return low[0], high[0]


def _ends_difference(estimates: Estimates, beyond: float, higher_is_better: bool) -> tuple[float, float]:
    value, excess = estimates.value, estimates.excess
    down, up = estimates.reach(1 - beyond)
    sure_down, sure_up = estimates.reach(_of_all_pairs(len(value), beyond))
    gap = value[:, None] - value
    low = gap - excess[:, None] - _combined(sure_down, sure_up, estimates.correlation)
    high = gap + excess + _combined(up, down, estimates.correlation)
    return max(0.0, _largest(low)), min(estimates.top, _largest(high))


def _ends_ratio(estimates: Estimates, beyond: float, higher_is_better: bool) -> tuple[float, float]:
    """Give the ends of smallest by largest: on a log scale it is a difference."""

    def logs(probability: float) -> tuple[Floats, Floats, Floats, Floats]:
        with np.errstate(divide="ignore", invalid="ignore"):
            value, low, high = (np.log(part) for part in (estimates.value, *estimates.limits(probability)))
            return low, high, value - low, high - value

    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.log(estimates.value)[:, None] - np.log(estimates.value)
        sure_low, sure_high, down, up = logs(_of_all_pairs(len(gap), beyond))
        least = gap - _combined(down, up, estimates.correlation)
        least = np.where(np.isfinite(least), least, sure_low[:, None] - sure_high)  # a value of 0 has no logarithm
        low, high, down, up = logs(1 - beyond)
        most = gap + _combined(up, down, estimates.correlation)
        most = np.where(np.isfinite(most), most, high[:, None] - low)
    return float(np.exp(-_largest(most))), float(np.exp(-max(0.0, _largest(least))))


def _ends_worst(estimates: Estimates, beyond: float, higher_is_better: bool) -> tuple[float, float]:
    low, high = estimates.limits(1 - beyond)
    sure_low, sure_high = estimates.limits((1 - beyond) ** (1 / len(low)))
    return (low.min(), sure_high.min()) if higher_is_better else (sure_low.max(), high.max())


def _of_all_pairs(groups: int, beyond: float) -> float:
    """Give the probability at which an end has to hold for one pair of groups to hold for all of them."""
    return (1 + (1 - 2 * beyond) ** (2 / (groups * (groups - 1)))) / 2


def _combined(first: Floats, second: Floats, correlation: Floats) -> Floats:
    """Combine how far each of two groups may be off, (G,) and (G,), to how far their difference may be, (G, G)."""
    square = first[:, None] ** 2 + second**2 - 2 * correlation * first[:, None] * second
    return np.sqrt(np.maximum(square, 0))


def _largest(value: Floats) -> float:
    """Give the largest of (G, G) numbers of two different groups."""
    return float(np.where(np.eye(len(value), dtype=np.bool_), -np.inf, value).max())


_ENDS: dict[Reduction, Callable[[Estimates, float, bool], tuple[float, float]]] = {
    "pooled": _ends_pooled,
    "difference": _ends_difference,
    "ratio": _ends_ratio,
    "worst": _ends_worst,
}
