"""Metrics: counts -> rates -> gaps, by name, with intervals.

Every threshold metric is arithmetic on one table of counts, (group, label, prediction). Importing loads numpy alone.
"""

from evenlens.metrics.counts import Counts, Floats, count
from evenlens.metrics.gaps import difference, over_classes, over_groups, present, ratio, standard_deviation, worst
from evenlens.metrics.intervals import Interval, rate_intervals, seed_interval, t_quantile, wilson
from evenlens.metrics.rates import RATES, Rate
from evenlens.metrics.resampling import bootstrap, bootstrap_all, joint_bootstrap, resample
from evenlens.metrics.table import METRICS, Metric, evaluate, get

__all__ = [
    "METRICS",
    "RATES",
    "Counts",
    "Floats",
    "Interval",
    "Metric",
    "Rate",
    "bootstrap",
    "bootstrap_all",
    "count",
    "difference",
    "evaluate",
    "get",
    "joint_bootstrap",
    "over_classes",
    "over_groups",
    "present",
    "rate_intervals",
    "ratio",
    "resample",
    "seed_interval",
    "standard_deviation",
    "t_quantile",
    "wilson",
    "worst",
]
