"""Tests of significance: what is more than chance over seeds, over tasks, and over repeats of the same run.

Intervals of a single number are in `metrics`. Importing loads numpy alone.
"""

from evenlens.statistics.repeats import Repeatability, repeatability
from evenlens.statistics.seeds import (
    MIN_SEEDS,
    Omnibus,
    PairedTest,
    alexander_govern,
    has_spread,
    hedges_g,
    paired_test,
    superiority,
)
from evenlens.statistics.tasks import (
    MIN_METHODS,
    MIN_TASKS,
    Friedman,
    RankTest,
    against_baseline,
    cliques,
    critical_difference,
    friedman,
    ranks,
)

__all__ = [
    "MIN_METHODS",
    "MIN_SEEDS",
    "MIN_TASKS",
    "Friedman",
    "Omnibus",
    "PairedTest",
    "RankTest",
    "Repeatability",
    "against_baseline",
    "alexander_govern",
    "cliques",
    "critical_difference",
    "friedman",
    "has_spread",
    "hedges_g",
    "paired_test",
    "ranks",
    "repeatability",
    "superiority",
]
