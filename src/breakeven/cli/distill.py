"""`breakeven distill`: a small student of a large teacher, beside a twin without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli import made
from breakeven.cli.words import Full, Quiet, duration

app = typer.Typer()


@app.command()
def distill(
    teacher: Annotated[str, typer.Argument(help="A .gguf file, or a Hugging Face model's directory.")],
    into: Annotated[
        str,
        typer.Option(
            "--into",
            metavar="SHAPE|DIR",
            help='"dense 4x256", "moe 4x256 8/2", "hyena 4x256", or a model to go on with.',
        ),
    ],
    text: Annotated[
        Path, typer.Option("--text", metavar="FILE|DIR", help="Text to learn from: a file, or a folder a language.")
    ],
    out: made.OutDirectory,
    fits: Annotated[
        str | None,
        typer.Option("--fits", metavar="SIZE", help='Memory of its device, such as 512MB: sizes "dense" or "moe".'),
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="Whose speed --latency means.", show_default="this machine")
    ] = None,
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="TIME", help="Of a token, with --fits: 20ms.")
    ] = None,
    trim_vocabulary: Annotated[
        bool, typer.Option("--trim-vocabulary", help="Keep only the tokens that the text uses.")
    ] = False,
    ternary: Annotated[
        bool, typer.Option("--ternary", help="Train weights in -1, 0, 1 times a scale: two bits, held exactly.")
    ] = False,
    during: made.During = None,
    steps: made.Steps = None,
    twin_steps: Annotated[
        int | None, typer.Option("--twin-steps", min=1, help="Of the twin that trains as long, to repeat a run.")
    ] = None,
    teacher_tokens: Annotated[
        int | None,
        typer.Option("--teacher-tokens", min=1, help="Of the text, to the teacher.", show_default="what --for allows"),
    ] = None,
    seed: made.Seed = 0,
    batch: Annotated[int | None, made.batch_of("4")] = None,
    rate: Annotated[float | None, made.rate_of("by size")] = None,
    tokens: Annotated[int | None, made.tokens_of("512")] = None,
    encoding: made.Encoding = None,
    threads: made.TrainThreads = None,
    full: Full = False,
    quiet: Quiet = False,
    json: made.ProofAsJson = False,
) -> None:
    """Train a small student of what TEACHER finds likely, and prove what that won over a twin without teacher.

    Example: breakeven distill smollm2.gguf --into "dense 4x256" --trim-vocabulary --text text/en --out student
    """
    made.tell_proof(
        lambda on_progress: breakeven.distill(
            teacher,
            into,
            text,
            out,
            fits=None if fits is None else _size(fits),
            machine=machine,
            latency_s=None if latency is None else duration(latency, "--latency"),
            trim_vocabulary=trim_vocabulary,
            ternary=ternary,
            seconds=made.seconds_of(during),
            steps=steps,
            twin_steps=twin_steps,
            teacher_tokens=teacher_tokens,
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


def _size(text: str) -> int:
    from breakeven.errors import UserError
    from breakeven.traffic.words import parse_bytes

    try:
        return parse_bytes(text)
    except UserError as error:
        raise UserError(f"--fits: {error}") from None
