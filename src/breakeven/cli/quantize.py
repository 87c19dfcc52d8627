"""`breakeven quantize`: weights in fewer bits, each file beside what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.made import Encoding, tell_proof
from breakeven.cli.words import Full, Quiet, duration

app = typer.Typer()


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="The model; best one in F32, F16 or BF16.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT,...", help="Formats, such as Q4_K,Q2_K,TQ2_0.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write to.")],
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE|DIR",
            help="Text that importance is measured on, and the loss: a file, or a directory of a folder a language.",
        ),
    ] = None,
    encoding: Encoding = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Of the text, for importance at most.", show_default="4096")
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Make a file of more bits than its format says.")
    ] = False,
    budget: Annotated[str | None, typer.Option("--budget", metavar="TIME", help="For judging each file: 3m.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the proofs as JSON.")] = False,
) -> None:
    """Write MODEL in fewer bits a weight, and beside each file what that cost in quality, by language.

    Example: breakeven quantize smollm2.gguf --to Q4_K,Q2_K --text guide/ --out small/
    """
    tell_proof(
        lambda on_progress: breakeven.quantize(
            model,
            to.split(","),
            out,
            text=text,
            encoding=encoding,
            tokens=tokens,
            allow_fallback=allow_fallback,
            budget_s=duration(budget) if budget else None,
            threads=threads,
            on_progress=on_progress,
        ),
        full=full,
        quiet=quiet,
        json=json,
    )
