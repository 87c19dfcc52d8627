"""`breakeven decide`: which of these to run, and at what load, context or precision the answer flips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Assume, Full, Quiet
from breakeven.errors import UserError, expanded

app = typer.Typer()


@app.command()
def decide(
    study: Annotated[
        Path | None, typer.Argument(help="A study file; examples/ holds seven.", show_default=False)
    ] = None,
    init: Annotated[bool, typer.Option("--init", help="Write a commented study by asking a few questions.")] = False,
    from_log: Annotated[
        list[Path] | None,
        typer.Option("--from-log", help="A gateway's decision log: decide on that traffic.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for result and page.", show_default=False)] = None,
    full: Full = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    assume: Assume = False,
    quiet: Quiet = False,
) -> None:
    """Decide between candidates for a workload, from measurements, predictions and prices.

    \b
    breakeven decide examples/bursty-small-business.yaml
    breakeven decide --init                        (asks, and writes study.yaml)
    breakeven decide study.yaml --from-log log/    (on the traffic that came)
    """
    if init:
        path = breakeven.init_study(study or Path("study.yaml"))
        typer.echo(f"Wrote {path}. Read it, then run: breakeven decide {path}")
        return
    if study is None:
        raise UserError("give a study file, such as examples/bursty-small-business.yaml, or --init to write one")
    from breakeven.pages.decision_terminal import log_summary, summary
    from breakeven.pages.saved import PAGE, RESULT, json_text

    shown = sys.stderr.isatty() and not quiet

    def on_phase(phase: str, subject: str) -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[K{phase} {subject}")
            sys.stderr.flush()

    if from_log:
        directory = out or Path("results") / f"{study.stem}-from-log"
        saved = Path("results") / study.stem / RESULT
        again = breakeven.decide_from_log(study, from_log, directory, saved=saved, on_phase=on_phase)
        said = json_text(again) if json else log_summary(again, directory / PAGE)
    else:
        # A link is named after the study that it leads to.
        directory = out or Path("results") / expanded(study).resolve().stem
        result = breakeven.decide(study, directory, assume=assume, on_phase=on_phase)
        said = json_text(result) if json else summary(result, directory / PAGE, full=full)
    if shown:
        sys.stderr.write("\r\x1b[K")
    typer.echo(said)
