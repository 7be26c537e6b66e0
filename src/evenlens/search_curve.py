"""Score against budget: what a person would have got of a search who could afford fewer draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from evenlens.errors import UserError
from evenlens.run_folder import Run
from evenlens.searching import RANDOM, Found
from evenlens.selecting import Rule

LEVEL = (2.5, 97.5)  # percentiles of a 95 % interval


class Point(NamedTuple):
    """What a budget is expected to give: the best validation score and the test score of that choice, with intervals.

    Attributes:
        budget: draws.
        val: value, low and high.
        test: value, low and high.
    """

    budget: int
    val: tuple[float, float, float]
    test: tuple[float, float, float]


def test_score(run: Run) -> float:
    """Give the score of a run by its own rule on its test images; NaN where it is undefined there. Chooses nothing."""
    import torch

    seen = run.predictions("test")
    logits = np.stack([seen[f"logit.{c}"] for c in range(len(run.metrics["task"]["class_names"]))], axis=1)
    counts, cells = np.array(run.metrics["test"]["counts"]), np.array(run.metrics["train_cells"])
    label = torch.from_numpy(seen["label"].astype(np.int64))
    try:
        return Rule.of(run.config.select).score(torch.from_numpy(logits.astype(np.float32)), label, counts, cells)
    except UserError:  # a label or group that the rule needs has no test image
        return math.nan


def curve(found: Found, replicates: int = 1000) -> list[Point]:
    """Give the score against the budget of a search; empty where the defaults could not be run.

    At budget n a person would have had the defaults and n - 1 of the M random draws. The expectation over these
    subsets has a closed form: with the random draws sorted from worst to best, the i-th is the best of m of them
    with probability C(i-1, m-1) / C(M, m). Where it does not beat the defaults, these stay. Intervals, of 95 %, draw
    the random draws anew, with the seeds and images as they are; towards the full budget they are too narrow above,
    as no sample holds anything better than the best that was seen.

    Args:
        found: the search. A draw that failed is one that was spent for nothing. Draws that look at earlier scores
            have no other order than theirs: of them the best so far is given, without intervals.
        replicates: samples of the bootstrap.

    Source: Dodge et al., 2019, Show your work: improved reporting of experimental results, arXiv 1909.03004.
    Differs from the paper: draws without replacement, as theirs are biased downwards (Tang et al., 2020, arXiv
    2004.13705), and the defaults are always among them.
    """
    val = np.array([trial.score for trial in found.trials])
    if np.isnan(val[0]):
        return []
    tested = [math.nan if math.isnan(t.score) else float(np.mean([*map(test_score, t.runs)])) for t in found.trials]
    scores = np.array([val, tested]).T
    prefers, first = found.search.rule.prefers, val[0]
    if found.search.sampler != RANDOM:
        return _best_so_far(scores.tolist(), prefers)
    better = np.array([not math.isnan(score) and prefers(score, first) for score in val[1:].tolist()], dtype=bool)
    kept = np.where(better[:, None], scores[1:], scores[0])
    sign = 1.0 if prefers(1.0, 0.0) else -1.0
    order = np.lexsort((-np.arange(len(kept)), sign * kept[:, 0]))  # the best last; of equals the earlier one
    num, weights = len(kept), best_of(len(kept))
    points = [Point(1, *((float(score),) * 3 for score in scores[0]))]
    drawn = np.random.default_rng(0).integers(num, size=(replicates, num)) if num else np.zeros((replicates, 0), int)
    values = weights @ kept[order]  # (budgets, 2)
    samples = np.einsum("bi,rij->brj", weights, kept[order][np.sort(drawn, axis=1)])
    low, high = np.percentile(samples, LEVEL, axis=1)
    for k in range(num):
        val_at, test_at = ((float(values[k, j]), float(low[k, j]), float(high[k, j])) for j in (0, 1))
        points.append(Point(k + 2, val_at, test_at))
    return points


def _best_so_far(scores: list[list[float]], prefers: Callable[[float, float], bool]) -> list[Point]:
    points, best = [], scores[0]
    for number, score in enumerate(scores, start=1):
        if not math.isnan(score[0]) and prefers(score[0], best[0]):
            best = score
        val, test = ((value, math.nan, math.nan) for value in best)
        points.append(Point(number, val, test))
    return points


def best_of(num: int) -> np.ndarray:
    """Give the probability (num, num) that the i-th worst of `num` draws is the best of m of them, without replacement.

    Rows are m = 1 to num, columns i = 1 to num: C(i-1, m-1) / C(num, m).
    """
    table = [[math.comb(i - 1, m - 1) / math.comb(num, m) for i in range(1, num + 1)] for m in range(1, num + 1)]
    return np.array(table, dtype=float).reshape(num, num)
