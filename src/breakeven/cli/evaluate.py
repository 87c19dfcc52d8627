"""`breakeven evaluate`: how well models predict a text, by language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Full, Quiet, duration, numbers, print_json

app = typer.Typer()


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=".gguf files, model directories, URLs.")],
    text: Annotated[
        Path | None, typer.Option("--text", help="A text, or a directory with a folder for each language.")
    ] = None,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="A JSON lines file of questions with answers.")] = None,
    against: Annotated[str | None, typer.Option(help="Also how far each is from this model.")] = None,
    used: Annotated[str | None, typer.Option(help="Experts a token to run MoE models with: 8,6,4.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for scoring: 3m.", show_default="all of the text")] = None,
    encoding: Annotated[str | None, typer.Option(help="Of files that are not UTF-8: koi8-r.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the result here, as JSON.")] = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say how well each MODEL predicts a text, in bits per byte by language, and how far it is from another.

    Example: breakeven evaluate small-q4.gguf small-q2.gguf --against small-f32.gguf --text texts/
    """
    from rich.console import Console

    from breakeven.pages.lab import show_evaluation
    from breakeven.pages.progress import Progress

    with Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        result = breakeven.evaluate(
            models,
            text,
            tasks=tasks,
            against=against,
            used=numbers("--used", used) if used else (),
            budget_s=duration(budget) if budget else None,
            encoding=encoding,
            threads=threads,
            out=out,
            on_progress=progress.update,
        )
    if json:
        print_json(result)
    else:
        show_evaluation(result, Console(), None if out is None else out.with_suffix(".html"), full=full)
