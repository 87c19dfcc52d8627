"""`breakeven export`: a model in another form, with the proof that it is the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.made import Encoding, ProofAsJson, tell_proof
from breakeven.cli.words import Assume, Full, Quiet, duration

app = typer.Typer()


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A .gguf file, or a Hugging Face model's directory.")],
    to: Annotated[str, typer.Option("--to", help="gguf (of a directory), hf (of a file), onnx or litert.")],
    out: Annotated[Path, typer.Option("--out", help="File or directory to write.", metavar="PATH")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="f32, f16 or bf16.", show_default="as stored; quantized: f32")
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", help="Compare quality on this file or directory.", metavar="FILE|DIR")
    ] = None,
    encoding: Encoding = None,
    budget: Annotated[str | None, typer.Option(help="Time for comparing quality on --text: 3m.")] = None,
    assume: Assume = False,
    full: Full = False,
    quiet: Quiet = False,
    json: ProofAsJson = False,
) -> None:
    """Write MODEL in another form, and leave it standing only if engines compute the same with it.

    Example: breakeven export smollm2.gguf --to hf --out smollm2
    """
    tell_proof(
        lambda on_progress: breakeven.export(
            model,
            to,
            out,
            dtype=dtype,
            text=text,
            encoding=encoding,
            budget_s=None if budget is None else duration(budget),
            assume=assume,
            on_progress=on_progress,
        ),
        full=full,
        quiet=quiet,
        json=json,
    )
