"""`breakeven experts retrain`: some experts of a model trained on a text, all else as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli import made
from breakeven.cli.words import Full, Quiet
from breakeven.errors import UserError


def retrain(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A Mixture-of-Experts GGUF or Hugging Face directory.")
    ],
    only: Annotated[
        str, typer.Option("--only", help="Experts, comma-separated: 3,7 of every layer, 1:3 of layer 1 alone.")
    ],
    text: Annotated[
        Path, typer.Option("--text", help="What they should serve: a file, or a folder with one a language.")
    ],
    out: made.OutDirectory,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Text of what must not be lost: read as much of, and judged.")
    ] = None,
    balance: Annotated[
        str | None, typer.Option("--balance", help="Keep choices even: aux (a loss) or bias (moved by the load).")
    ] = None,
    during: made.During = None,
    steps: made.Steps = None,
    seed: made.Seed = 0,
    batch: Annotated[int | None, made.batch_of("8")] = None,
    rate: Annotated[float | None, made.rate_of("3e-4")] = None,
    tokens: Annotated[int | None, made.tokens_of("256", least=8)] = None,
    encoding: made.Encoding = None,
    threads: made.TrainThreads = None,
    full: Full = False,
    quiet: Quiet = False,
    json: made.ProofAsJson = False,
) -> None:
    """Train some experts on a text, with their rows of the router; every other weight stays bit for bit.

    Example: breakeven experts retrain olmoe --only 3,7 --text text/de --replay text/en --for 3m --out olmoe-de
    """
    made.tell_proof(
        lambda on_progress: breakeven.experts.retrain(
            model,
            _experts(only),
            text,
            out,
            replay=replay,
            balance=balance,
            seconds=made.seconds_of(during),
            steps=steps,
            seed=seed,
            batch=batch,
            rate=rate,
            tokens=tokens,
            encoding=encoding,
            threads=threads,
            on_progress=on_progress,
        ),
        full=full,
        quiet=quiet,
        json=json,
        training=out,
    )


def _experts(text: str) -> list[int | tuple[int, int]]:
    """ "3,7" or "1:3,2:7". Raises UserError."""
    found: list[int | tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,6}):)?(\d{1,6})\s*", part)
        if match is None:
            raise UserError(f"--only {text}: give experts such as 3,7, or 1:3 for expert 3 of layer 1")
        found.append(int(match[2]) if match[1] is None else (int(match[1]), int(match[2])))
    return found
