"""The command `evenlens verify`, thin: read, audit, print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from evenlens import terminal
from evenlens.errors import UserError

if TYPE_CHECKING:
    from evenlens.audits.gates import Verdict
    from evenlens.verification import Verification

SUMMARIES = {"fmr_ratio": "FMR\nmax/min", "fnmr_ratio": "FNMR\nmax/min", "fairness_discrepancy_rate": "FDR\n(1 best)",
             "garbe": "GARBE\n(0 best)", "inequity": "inequity\n(1 best)"}  # fmt: skip
MOST = 40  # rows of the table
File = Annotated[
    Path,
    typer.Argument(metavar="PAIRS", help="Table of pairs (CSV, TSV, Parquet); or embeddings (.npy, .safetensors)."),
]
Score = Annotated[
    str | None,
    typer.Option("--score", help="Column with the score; larger means more alike. Default: score, or the only one."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Another column's name: group1=race_a, id1=person_a. May be given again."),
]
Manifest = Annotated[
    Path | None,
    typer.Option("--manifest", help="Of embeddings: table with a row for each, in order (subject, groups)."),
]
Groups = Annotated[
    str | None, typer.Option("--group", help="Of embeddings: columns that make the subgroups, with commas.")
]
Imposters = Annotated[
    int | None,
    typer.Option("--imposters", help="Of embeddings: imposter pairs drawn a subgroup; default: 100,000.", min=1),
]
Within = Annotated[
    str | None, typer.Option("--within", help="Of embeddings: imposters within a subgroup (default), a column, or any.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of embeddings: seed of the draws.")]
Targets = Annotated[
    str, typer.Option("--targets", help="False match rates to set thresholds for, with commas between.")
]
At = Annotated[
    float | None,
    typer.Option("--at", help="Target of the finding and gates; default: the lowest with 30 false matches a subgroup."),
]
Criterion = Annotated[str, typer.Option("--accuracy", help="balanced, or plain.")]
Folds = Annotated[
    bool, typer.Option("--folds/--no-folds", help="Set thresholds on four folds of five, judge the fifth.")
]
Confidence = Annotated[float, typer.Option(help="Of every interval.")]
Replicates = Annotated[int, typer.Option(help="Times that subjects are drawn again, for intervals.", min=100)]
Require = Annotated[
    list[str] | None, typer.Option("--require", help='A gate, such as "fmr_ratio<=3". May be given again.')
]
Judge = Annotated[str, typer.Option(help="Judge gates by the whole interval, or by the value alone.")]
Page = Annotated[Path | None, typer.Option("--page", help="Write the page for people to this HTML file.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all findings to this JSON file.")]
Title = Annotated[str, typer.Option(help="Headline; default: the file's name.")]


def verify(
    pairs: File,
    score: Score = None,
    column: Columns = None,
    manifest: Manifest = None,
    group: Groups = None,
    imposters: Imposters = None,
    within: Within = None,
    seed: Seed = None,
    targets: Targets = "0.1,0.01,0.001,0.0001",
    at: At = None,
    accuracy: Criterion = "balanced",
    folds: Folds = True,
    confidence: Confidence = 0.95,
    replicates: Replicates = 1000,
    require: Require = None,
    judge: Judge = "interval",
    page: Page = None,
    json_out: Json = None,
    title: Title = "",
) -> None:
    """Audit a face verification system: error rates by subgroup, from pairs of images and their scores.

    A pair is accepted if its score is at least the threshold. FMR is the share of pairs of two people that are
    accepted, FNMR that of pairs of one person that are not. Columns: p1, p2, label (1 genuine, 0 imposter), group1,
    group2, score, and if known fold, id1, id2 (the subjects); the table that BFW publishes is known by its columns.

    Gates: fmr_ratio, fnmr_ratio, fairness_discrepancy_rate, garbe, inequity (each also with _own: at the subgroups'
    own thresholds), fmr_worst, fnmr_worst, eer, auc. Exit code 1 where one has failed, 3 where one is undecided.

    [bold]Examples[/bold]

      evenlens verify bfw-v0.1.5-datatable.csv --score sphereface --page verify.html

      evenlens verify faces.npy --manifest faces.csv --group gender,skin --require "fmr_ratio<=3" --at 0.001
    """
    from evenlens import verification
    from evenlens.audits import gates

    gates.check_way(judge)
    requirements = [gates.parse(text) for text in require or []]  # before anything is read
    if page and page.suffix == ".json":
        raise UserError(f"{page} would be overwritten by the JSON beside the page: name the page .html.")
    columns = {**_columns(column), **({"score": score} if score else {})}
    drawing = {"imposters": imposters, "within": within, "seed": seed}
    found = verification.verify(
        pairs, columns=columns, manifest=manifest, group=_words(group), targets=_numbers(targets), at=at,
        criterion=accuracy,  # type: ignore[arg-type]
        folds=folds, confidence=confidence, replicates=replicates, title=title,
        **{name: value for name, value in drawing.items() if value is not None},
    )  # fmt: skip
    verdicts = [_judged(found, requirement, judge) for requirement in requirements]
    _print(found)
    _print_verdicts(verdicts)
    _write(found, verdicts, json_out, page)
    code = gates.exit_code(verdicts)
    if code:
        raise typer.Exit(code)


def _write(found: Verification, verdicts: list[Verdict], json_out: Path | None, page: Path | None) -> None:
    if json_out:
        found.to_json(json_out)
    if page:
        from evenlens.report import verify_page

        verify_page.write(found.as_dict(), page, [_as_dict(verdict) for verdict in verdicts])
        terminal.out.print(f"Page: {escape(str(page.resolve()))}", soft_wrap=True)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _columns(given: list[str] | None) -> dict[str, str]:
    columns = {}
    for pair in given or []:
        role, equals, name = pair.partition("=")
        if not equals or not name:
            raise UserError(f"--column {pair} is not right: write what it is and its name, such as group1=race_a.")
        columns[role.strip()] = name.strip()
    return columns


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in _words(text)]
    except ValueError:
        raise UserError(f"--targets {text} is not right: write rates with commas between, as 0.01,0.001.") from None


def _judged(found: Verification, requirement: Any, judge: str) -> Verdict:
    """Judge a gate, and say why a ratio is undefined."""
    from evenlens.audits import gates

    audit: Any = found  # a gate asks for `metric` and `confidence` alone
    verdict = gates.judge(audit, requirement, judge)
    if math.isnan(verdict.found.value):
        why = "it is undefined: a subgroup has no such pairs, or the lowest rate found is 0"
        return replace(verdict, why=why)
    return verdict


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    content = verdict.as_dict()
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in content.items()}


# ---- what is printed


def _print(found: Verification) -> None:
    from evenlens.verification.words import share

    table = Table(
        title=f"{escape(found.title)}\nat a pooled FMR of {share(found.at)}, in %", title_justify="left",
        caption=f"dim: {100 * found.confidence:g} % intervals; own: at a threshold for each subgroup",
        caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column("subgroup", overflow="fold")
    for name in ("genuine\nimposter", "FMR", "FNMR", "FNMR\nown", "EER"):
        table.add_column(name, justify="right", no_wrap=True)
    measured, k = found.measured, found.place
    names = [*found.groups, "all pairs"]
    rates = measured.pooled.fmr.value[k, :-1]
    order = sorted(range(len(rates)), key=lambda g: (rates[g] != rates[g], -rates[g]))
    shown = [*(order[:MOST] if len(order) > MOST else range(len(rates))), len(rates)]
    for g in shown:
        if g == len(rates):
            table.add_section()
        numbers = (measured.pooled.fmr, measured.pooled.fnmr, measured.own.fnmr)
        cells = [_cell([field[k, g] for field in one], 100) for one in numbers]
        eer = _cell([field[g] for field in measured.scores.eer], 100)
        table.add_row(escape(names[g]), f"{measured.genuine[g]:,}\n{measured.imposters[g]:,}", *cells, eer)
    terminal.out.print(table)
    if len(order) > MOST:
        terminal.out.print(f"The {MOST} with the highest FMR of {len(order)} subgroups; all are in --json and --page.")
    if len(found.groups) > 1:
        _print_summaries(found)
    terminal.out.print(f"[bold]{escape(_whole(' '.join(found.finding)))}[/]")
    for caveat in found.caveats:
        terminal.out.print(f"[yellow]![/] {escape(_whole(caveat))}")


def _whole(text: str) -> str:
    """Keep a number and its % in one line."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _print_summaries(found: Verification) -> None:
    from evenlens.verification.words import share

    table = Table(title="between subgroups, at the pooled thresholds", title_justify="left", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column("target\nFMR", no_wrap=True)
    for name in SUMMARIES.values():
        table.add_column(name, justify="right", no_wrap=True)
    for target, row in zip(found.targets, found.summaries["pooled"], strict=True):
        mark = "" if found.allowed(target) else "\n[yellow]too low[/]"
        table.add_row(f"{share(target)}{mark}", *(_cell(row[name]) for name in SUMMARIES))
    terminal.out.print(table)


def _cell(found: Sequence[float], factor: float = 1) -> str:
    """Write a value and, below, the ends of its interval."""
    value, low, high = found[:3]

    def said(number: float) -> str:
        return "∞" if math.isinf(number) else f"{float(f'{factor * number:.3g}'):.6g}"

    head = "undefined" if math.isnan(value) else said(value)
    return head if math.isnan(low) else f"{head}\n[dim]{said(low)}…{said(high)}[/]"


def _print_verdicts(verdicts: list[Verdict]) -> None:
    marks = {"passed": "[green]passed[/]", "failed": "[bold red]failed[/]", "undecided": "[yellow]undecided[/]"}
    for verdict in verdicts:
        words = f"{marks[verdict.outcome]} {escape(verdict.name)}: {escape(verdict.why)}"
        terminal.out.print(words, soft_wrap=True)
