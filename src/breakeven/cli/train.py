"""`breakeven train`: dense, MoE and hybrid models, equal in one number, on the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.made import Steps, TrainThreads, seconds_of, trained_on
from breakeven.cli.words import Full, Quiet, print_json

app = typer.Typer()


@app.command()
def train(
    study: Annotated[Path, typer.Argument(help="A study file: which models, equal in what, on which text.")],
    during: Annotated[
        str | None, typer.Option("--for", help="Time of all trainings together.", show_default="10m", metavar="TIME")
    ] = None,
    steps: Steps = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory to write.", show_default="as the study", metavar="DIR")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The first seed.", show_default="the study's")] = None,
    threads: TrainThreads = None,
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

    place = study.with_suffix("") if out is None else out
    with trained_on(place), Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        result = breakeven.train(
            study,
            out=out,
            seconds=seconds_of(during),
            steps=steps,
            seed=seed,
            threads=threads,
            on_progress=progress.update,
        )
    if json:
        print_json(result)
    else:
        from breakeven.pages.training import page_of_study, show_study

        show_study(result, Console(), page_of_study(place), full=full)
