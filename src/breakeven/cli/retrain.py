"""`breakeven experts retrain`: some experts of a model trained on a text, all else as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Full, Quiet, Threads, duration, print_json, trained_on
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
    out: Annotated[Path, typer.Option("--out", help="Directory to write.", metavar="DIR")],
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Text of what must not be lost: read as much of, and judged.")
    ] = None,
    balance: Annotated[
        str | None, typer.Option("--balance", help="Keep choices even: aux (a loss) or bias (moved by the load).")
    ] = None,
    during: Annotated[
        str | None, typer.Option("--for", help="Time of training: 3m.", show_default="3m", metavar="TIME")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="So many steps instead: repeats a run exactly.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the order in which text is read.")] = 0,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Rows a step.", show_default="8")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Learning rate.", show_default="3e-4")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=8, help="Tokens a row.", show_default="256")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Of texts that are not UTF-8.")] = None,
    threads: Threads = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Train some experts on a text, with their rows of the router; every other weight stays bit for bit.

    Example: breakeven experts retrain olmoe --only 3,7 --text text/de --replay text/en --for 3m --out olmoe-de
    """
    from rich.console import Console

    from breakeven.pages.progress import Progress

    with trained_on(out), Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        proof = breakeven.experts.retrain(
            model,
            _experts(only),
            text,
            out,
            replay=replay,
            balance=balance,
            seconds=None if during is None else duration(during, "--for"),
            steps=steps,
            seed=seed,
            batch=batch,
            rate=rate,
            tokens=tokens,
            encoding=encoding,
            threads=threads,
            on_progress=progress.update,
        )
    if json:
        print_json(proof)
    else:
        from breakeven.pages.lab import show_proof
        from breakeven.pages.lab_html import page_of_proof

        show_proof(proof, Console(), page_of_proof(proof), full=full)


def _experts(text: str) -> list[int | tuple[int, int]]:
    """ "3,7" or "1:3,2:7". Raises UserError."""
    found: list[int | tuple[int, int]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d{1,6}):)?(\d{1,6})\s*", part)
        if match is None:
            raise UserError(f"--only {text}: give experts such as 3,7, or 1:3 for expert 3 of layer 1")
        found.append(int(match[2]) if match[1] is None else (int(match[1]), int(match[2])))
    return found
