"""`breakeven decide`: which of these to run, and at what load, context or precision the answer flips."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Decide between candidates for a workload, from measurements, predictions and prices.

    \b
    breakeven decide examples/bursty-small-business.yaml
    breakeven decide --init                        (asks, and writes study.yaml)
    breakeven decide study.yaml --from-log log/    (on the traffic that came)
    """
    from breakeven.answer.decide import decide as run
    from breakeven.answer.study.load import read_study
    from breakeven.errors import UserError
    from breakeven.pages.decision_files import save_decision, summary
    from breakeven.results.store import encode

    if init:
        from breakeven.answer.study.init import ask

        path = ask(study or Path("study.yaml"))
        typer.echo(f"Wrote {path}. Read it, then run: breakeven decide {path}")
        return
    if study is None:
        raise UserError("give a study file, such as examples/bursty-small-business.yaml, or --init to write one")
    shown = sys.stderr.isatty() and not quiet

    def on_phase(phase: str, subject: str) -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[K{phase} {subject}")
            sys.stderr.flush()

    if from_log:
        from breakeven.cli.decide_log import run_from_log

        said = run_from_log(study, from_log, out, json, on_phase)
        if shown:
            sys.stderr.write("\r\x1b[K")
        typer.echo(said)
        return
    plan = read_study(study)
    result = run(plan, on_phase)
    if shown:
        sys.stderr.write("\r\x1b[K")
    directory = save_decision(result, out or Path("results") / plan.path.stem)
    typer.echo(encode(result).decode().rstrip() if json else summary(result, directory))
