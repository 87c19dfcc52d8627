"""`breakeven train`: dense, MoE and hybrid models, equal in one number, on the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Full, Quiet, print_json

app = typer.Typer()


@app.command()
def train(
    study: Annotated[Path, typer.Argument(help="A study file: which models, equal in what, on which text.")],
    for_: Annotated[
        str | None, typer.Option("--for", help="Time of all trainings together.", show_default="10m", metavar="TIME")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each training, in place of --for: repeats a study exactly.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory to write.", show_default="as the study", metavar="DIR")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.", show_default="the study's")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that train.", show_default="all CPUs")] = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train models that are equal in active weights (or all, or operations, or time) on the same tokens, and say which
    learned more, how surely, and how evenly experts were used.

    Example: breakeven train matched.yaml --for 10m
    """
    from rich.console import Console

    from breakeven.pages.progress import Progress
    from breakeven.traffic.words import option_seconds

    place = study.with_suffix("") if out is None else out
    with Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        try:
            result = breakeven.train(
                study,
                out=out,
                seconds=None if for_ is None else option_seconds("--for", for_, "a time such as 90s, 3m or 1h"),
                steps=steps,
                seed=seed,
                threads=threads,
                on_progress=progress.update,
            )
        except KeyboardInterrupt:
            print(f"\nwhat was trained is kept in {place}.training; the same command goes on with it", file=sys.stderr)
            raise
    if json:
        print_json(result)
    else:
        from breakeven.pages.training import page_of_study, show_study

        show_study(result, Console(), page_of_study(place), full=full)
