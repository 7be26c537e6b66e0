"""The commands for generators of images: `evenlens generate ...`, one file each."""

from __future__ import annotations

import typer

from evenlens.cli_generate import audit, balance, compare, convert, distil, label, latents, sample, study

app = typer.Typer(help="See what a generator of images makes, by group.", no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _top() -> None:
    """See what a generator of images makes, by group; balance it, and distil a smaller and fairer one."""


for command in (  # in the order of the work
    study.study,
    distil.teach,
    convert.convert,
    sample.sample,
    label.label,
    audit.audit,
    balance.balance,
    latents.latents,
    distil.distil,
    compare.compare,
):
    app.command()(command)
