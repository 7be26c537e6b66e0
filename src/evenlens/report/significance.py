"""Rows -> what of their differences is more than chance over seeds, and how sure each number is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from evenlens import metrics, statistics
from evenlens.report.figures import Shown
from evenlens.report.summary import Number, Row
from evenlens.report.wording import NUMBERS, counted, listed, p_value, points
from evenlens.run import Run
from evenlens.statistics import MIN_SEEDS, Omnibus, PairedTest, Repeatability

LEVEL = 0.05
# Beyond so many methods, fewer than five seeds make the Alexander-Govern test reject too often.
MOST_METHODS, MANY_SEEDS = 10, 5


@dataclass(frozen=True)
class Measure:
    """A metric by which methods are compared.

    Attributes:
        name: of the metric.
        omnibus: whether the methods differ at all.
        corrected: its p-value, corrected for the number of measures.
        why: why there is no such test; empty where there is one.
        floor: how far repeats of one run lie apart; None where nothing was repeated.
    """

    name: str
    omnibus: Omnibus
    corrected: float
    why: str
    floor: Repeatability | None


@dataclass(frozen=True)
class Against:
    """A method against the baseline, by one measure.

    Attributes:
        row: the method.
        measure: name of the metric.
        test: method minus baseline over the shared seeds; the intervals of all comparisons hold together.
        corrected: the p-value, corrected for the number of comparisons of all methods and measures.
        g: Hedges' g, of method minus baseline.
        superiority: how likely a seed of the method is better than one of the baseline.
        below_floor: whether the difference is one that repeats of the same run have too.
    """

    row: Row
    measure: str
    test: PairedTest
    corrected: float
    g: float
    superiority: float
    below_floor: bool

    @property
    def sign(self) -> int:
        """1 where the method is significantly better, -1 where it is significantly worse, else 0."""
        if not self.corrected < LEVEL:
            return 0
        return 1 if (self.test.difference > 0) == higher_is_better(self.measure) else -1


@dataclass(frozen=True)
class Significance:
    """All tests over seeds of a page.

    Attributes:
        shown: the rows.
        measures: the gap, the worst served and the accuracy, as far as they are defined.
        against: by method, then by measure.
    """

    shown: Shown
    measures: list[Measure]
    against: list[Against]

    @property
    def tested(self) -> list[Against]:
        """The comparisons that have a p-value."""
        return [item for item in self.against if not math.isnan(item.test.p_value)]


def find(shown: Shown) -> Significance:
    """Make all tests over seeds."""
    names = [name for name in (shown.gap, shown.level, "accuracy") if name]
    omnibus = [_omnibus(shown, name) for name in names]
    corrected = metrics.holm([test.p_value for test, _ in omnibus])
    measures = [
        Measure(name, test, float(p), why, floor_of(shown.rows, name))
        for name, (test, why), p in zip(names, omnibus, corrected, strict=True)
    ]
    return Significance(shown, measures, _against(shown, measures))


def higher_is_better(name: str) -> bool:
    """Say which way a metric goes."""
    return metrics.get(name).direction == "higher"


def floor_of(rows: Sequence[Row], name: str) -> Repeatability | None:
    """Give how far repeats of one run lie apart by a metric."""
    return statistics.repeatability(
        [
            [_value(run, name) for run in (first, *others)]
            for row in rows
            for first, others in zip(row.runs, row.repeats, strict=True)
        ]
    )


def _value(run: Run, name: str) -> float:
    value = run.metrics["test"]["metrics"][name][0]
    return math.nan if value is None else float(value)


def _omnibus(shown: Shown, name: str) -> tuple[Omnibus, str]:
    if len(shown.rows) < 2:
        return Omnibus(math.nan, 0, math.nan), "One method cannot differ."
    samples = [row.numbers[name].seeds for row in shown.rows]
    test = statistics.alexander_govern(samples)
    few = [shown.name(row) for row, sample in zip(shown.rows, samples, strict=True) if len(sample) < MIN_SEEDS]
    if few:
        return test, f"Cannot be said: fewer than {NUMBERS[MIN_SEEDS]} seeds of {listed(few)}."
    same = [shown.name(row) for row, sample in zip(shown.rows, samples, strict=True)
            if not statistics.has_spread(sample)]  # fmt: skip
    return test, f"Cannot be said: no spread over the seeds of {listed(same)}." if same else ""


def _against(shown: Shown, measures: Sequence[Measure]) -> list[Against]:
    others = [row for row in shown.rows if row is not shown.baseline]
    pairs = [(row, measure) for row in others for measure in measures]
    confidence = 1 - LEVEL / max(1, len(pairs))  # of the intervals, so that all hold together
    tests = [statistics.paired_test(*_shared(row, shown.baseline, one.name), confidence) for row, one in pairs]
    corrected = metrics.holm([test.p_value for test in tests])
    made = []
    for (row, one), test, p in zip(pairs, tests, corrected, strict=True):
        values, base = row.numbers[one.name].seeds, shown.baseline.numbers[one.name].seeds
        limit = one.floor.of_means(min(len(values), len(base))) if one.floor else 0.0
        made.append(
            Against(
                row, one.name, test, float(p), statistics.hedges_g(values, base),
                statistics.superiority(values, base, higher_is_better(one.name)), abs(test.difference) < limit,
            )
        )  # fmt: skip
    return made


def _shared(row: Row, baseline: Row, name: str) -> tuple[list[float], list[float]]:
    """Give the values of both for the seeds that both have."""
    new, old = (
        {run.config.seed: value for run, value in zip(one.runs, one.numbers[name].seeds, strict=True)}
        for one in (row, baseline)
    )
    seeds = [seed for seed in new if seed in old]
    return [new[seed] for seed in seeds], [old[seed] for seed in seeds]


# ---- in words


def headline(found: Significance) -> str:
    """Say in a sentence or two which methods are more than by chance better than the baseline."""
    shown, base = found.shown, found.shown.name(found.shown.baseline)
    if not found.against:
        return f"One method was measured, {base}, so nothing is compared."
    if not found.tested:
        return f"Whether a method is better than {base} cannot be said{_why_untested(found)}"
    better = _named(found, 1)
    untested = [shown.name(row) for row in shown.rows if row is not shown.baseline
                and not any(item.row is row for item in found.tested)]  # fmt: skip
    rest = f" Of {listed(untested)} it cannot be said: too few seeds, or none that both have." if untested else ""
    if not better:
        return f"No method is significantly better than {base}.{rest}"
    return f"Significantly better than {base}: {better}.{rest}"


def _why_untested(found: Significance) -> str:
    most = max(item.test.n for item in found.against)
    if most < MIN_SEEDS:
        shared = "shared " if most < found.shown.most_seeds else ""
        return f" with {counted(most, f'{shared}seed')}: a test over seeds needs {NUMBERS[MIN_SEEDS]} at least."
    return ": each difference is the same for every seed, so that nothing says how far it moves."


def _named(found: Significance, sign: int) -> str:
    """Name the methods that are significantly better, or worse, and by what."""
    names: dict[str, list[str]] = {}
    for item in found.against:
        if item.sign == sign:
            names.setdefault(found.shown.name(item.row), []).append(metrics.get(item.measure).title.lower())
    return "; ".join(f"{name} by {listed(measures)}" for name, measures in names.items())


def sentences(found: Significance) -> list[str]:
    """Say what was tested, what could have been found, and what repeats say."""
    said = []
    if found.tested:
        n, number = min(item.test.n for item in found.tested), len(found.tested)
        seeds = counted(n, "seed") if n == max(i.test.n for i in found.tested) else f"at least {counted(n, 'seed')}"
        reach = metrics.t_quantile(1 - LEVEL / (2 * number), n - 1) / math.sqrt(n)
        worse = _named(found, -1)
        said += [f"Significantly worse: {worse}."] if worse else []
        said += [
            f"{counted(number, 'comparison').capitalize()} with the baseline over {seeds}, by the paired t test, seed "
            f"by seed{', corrected together by the Holm method' if number > 1 else ''}: of 100 such tables in which no "
            "method differs, at most 5 call any difference significant.",
            f"With {counted(number, 'comparison')} over {counted(n, 'seed')}, a difference is first found where its "
            f"mean is {reach:.1f} times its spread over the seeds: one that is not found may be there all the same.",
        ]  # fmt: skip
    if len(found.shown.rows) > MOST_METHODS and found.shown.most_seeds < MANY_SEEDS:
        said.append(
            f"With more than {NUMBERS[MOST_METHODS]} methods and fewer than {NUMBERS[MANY_SEEDS]} seeds, the "
            "Alexander-Govern test finds a difference where there is none in 6 to 10 of 100 cases, not in 5."
        )
    return [*said, *floor_sentences(found)]


def floor_sentences(found: Significance) -> list[str]:
    """Say how far the same run, made again, lies from itself."""
    if not any(measure.floor for measure in found.measures):
        return [
            "No run was repeated with the same seed and settings, so how far numbers move for no reason at all is not "
            "known. On one machine they should not move; runs of two machines, each in a folder of its own, would show."
        ]
    parts = [
        f"{metrics.get(one.name).title.lower()} {100 * one.floor.largest:.2f} points at most, standard deviation "
        f"{100 * one.floor.deviation:.2f}"
        for one in found.measures
        if one.floor
    ]
    number = sum(len(others) for row in found.shown.rows for others in row.repeats)
    said = f"{counted(number, 'run').capitalize()} repeated another with the same seed and settings. "
    if all(one.floor.deviation == 0 for one in found.measures if one.floor):
        return [f"{said}The numbers were the same: nothing but seeds and methods moved them."]
    below = [f"{found.shown.name(item.row)} by {metrics.get(item.measure).title.lower()}"
             for item in found.against if item.below_floor]  # fmt: skip
    said += f"These differ all the same: {'; '.join(parts)}. No difference of methods can be known better than that."
    return [said, *([f"Within what repeats differ by: {'; '.join(below)}."] if below else [])]


NOTE = (
    "These tests ask whether other seeds of the training would say the same of these test images; whether other images "
    "would, the table under Finding asks. Intervals of differences hold for all comparisons together (Bonferroni): a "
    "little wider than the Holm correction needs. Hedges g: difference in standard deviations over seeds, corrected "
    "for few seeds. Chance to be better: of a seed of the method against one of the baseline; 50 % is no difference (A "
    "of Vargha and Delaney)."
)


# ---- tables


class OmnibusLine(NamedTuple):
    """A measure's row in the table of Alexander-Govern tests."""

    measure: str
    statistic: str
    degrees: str
    p: str
    corrected: str
    words: str


class AgainstLine(NamedTuple):
    """A method's row, by one measure, in the table of comparisons."""

    letter: str
    title: str
    measure: str
    difference: str
    interval: str
    p: str
    corrected: str
    g: str
    superiority: str
    seeds: str
    words: str
    tag: str


class DoubtLine(NamedTuple):
    """A method's row in the table of what moves each number: for each measure value, images, seeds, both."""

    letter: str
    title: str
    cells: list[tuple[str, str, str, str]]


def omnibus_lines(found: Significance) -> list[OmnibusLine]:
    """Fill the table of Alexander-Govern tests."""
    lines = []
    for one in found.measures:
        value, degrees, p = one.omnibus
        words = one.why or ("The methods differ." if one.corrected < LEVEL else "No difference is shown.")
        statistic = "undefined" if math.isnan(value) else f"{value:.2f}"
        lines.append(
            OmnibusLine(metrics.get(one.name).title, statistic, str(degrees), p_value(p), p_value(one.corrected), words)
        )
    return lines


def against_lines(found: Significance) -> list[AgainstLine]:
    """Fill the table of comparisons with the baseline."""
    lines = []
    for item in found.against:
        mark, test = found.shown.mark(item.row), item.test
        words = {1: "significantly better", -1: "significantly worse", 0: "not significant"}[item.sign]
        if math.isnan(test.p_value):
            words = "too few seeds" if test.n < MIN_SEEDS else "no spread to test by"
        lines.append(
            AgainstLine(
                mark.letter, mark.title, metrics.get(item.measure).title, points(test.difference),
                _within(test),
                p_value(test.p_value), p_value(item.corrected), signed(item.g),
                "undefined" if math.isnan(item.superiority) else f"{100 * item.superiority:.0f} %", str(test.n),
                words + (", within what repeats differ by" if item.below_floor else ""),
                {1: "passed", -1: "failed", 0: ""}[item.sign],
            )
        )  # fmt: skip
    return lines


def _within(test: PairedTest) -> str:
    """Write the interval of a difference; two shares never differ by more than 100 points."""
    return "no interval" if math.isnan(test.low) else f"{points(max(-1, test.low))} to {points(min(1, test.high))}"


def doubt_lines(found: Significance) -> list[DoubtLine]:
    """Fill the table of what moves each number: test images, seeds, and both together."""
    return [
        DoubtLine(mark.letter, mark.title, [_doubt(row.numbers[one.name], one.name) for one in found.measures])
        for row, mark in zip(found.shown.rows, found.shown.marks, strict=True)
    ]


def _doubt(number: Number, name: str) -> tuple[str, str, str, str]:
    lowest, highest = metrics.get(name).range

    def span(low: float, high: float) -> str:
        if math.isnan(low):
            return "undefined"
        return f"{100 * max(lowest, low):.1f} to {100 * min(highest, high):.1f}"

    value = "undefined" if math.isnan(number.value) else f"{100 * number.value:.1f}"
    images = span(number.low, number.high)
    if len(number.seeds) < MIN_SEEDS:
        return value, images, "too few seeds", "too few seeds"
    return value, images, span(number.seed_low, number.seed_high), span(number.both_low, number.both_high)


def signed(value: float) -> str:
    """Write an effect size with its sign."""
    return "undefined" if math.isnan(value) else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def to_markdown(found: Significance) -> str:
    """Write finding and comparisons as Markdown."""
    lines = [f"**{headline(found)}** {' '.join(sentences(found))}"]
    if found.against:
        head = ("method", "measure", "difference, points", "p", "p, Holm", "Hedges g", "chance to be better", "")
        lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [
            f"| {' | '.join((one.title, one.measure, f'{one.difference} ({one.interval})', *one[5:9], one.words))} |"
            for one in against_lines(found)
        ]
    return "\n".join(lines)


def machine_readable(found: Significance) -> dict[str, Any]:
    """Give what the section says as JSON can hold it, save that NaN has to become null."""
    return {
        "headline": headline(found),
        "sentences": sentences(found),
        "level": LEVEL,
        "measures": [
            {
                "metric": one.name,
                "alexander_govern": one.omnibus._asdict() | {"p_holm": one.corrected, "undefined_because": one.why},
                "repeats": one.floor._asdict() if one.floor else None,
            }
            for one in found.measures
        ],
        "comparisons": [
            {"row": found.shown.mark(item.row).letter, "metric": item.measure, **item.test._asdict(),
             "p_holm": item.corrected, "hedges_g": item.g, "superiority": item.superiority,
             "below_floor": item.below_floor, "significant": item.sign != 0}
            for item in found.against
        ],
    }  # fmt: skip
