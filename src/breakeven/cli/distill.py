"""`breakeven distill`: a small student of a large teacher, beside a twin without one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Full, Quiet, duration, print_json, trained_on

app = typer.Typer()


@app.command()
def distill(
    teacher: Annotated[str, typer.Argument(help="A .gguf file, or a Hugging Face model's directory.")],
    into: Annotated[
        str,
        typer.Option("--into", metavar="SHAPE|DIR", help='"dense 4x256", "moe 4x256 8/2", or a model to go on with.'),
    ],
    text: Annotated[
        Path, typer.Option("--text", metavar="FILE|DIR", help="Text to learn from: a file, or a folder a language.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory to write the student to.")],
    fits: Annotated[
        str | None,
        typer.Option("--fits", metavar="SIZE", help='Memory of its device, such as 512MB: sizes "dense" or "moe".'),
    ] = None,
    machine: Annotated[str | None, typer.Option(help="The device for --fits.", show_default="this machine")] = None,
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="TIME", help="Of a token on the device: 20ms.")
    ] = None,
    trim_vocabulary: Annotated[
        bool, typer.Option("--trim-vocabulary", help="Keep only the tokens that the text uses.")
    ] = False,
    ternary: Annotated[
        bool, typer.Option("--ternary", help="Train weights in -1, 0, 1 times a scale: two bits, held exactly.")
    ] = False,
    seconds: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="Time to train the student.", show_default="3m")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Instead: how many steps, to repeat a run.")] = None,
    twin_steps: Annotated[
        int | None, typer.Option("--twin-steps", min=1, help="Of the twin that trains as long, to repeat a run.")
    ] = None,
    teacher_tokens: Annotated[
        int | None,
        typer.Option("--teacher-tokens", min=1, help="Of the text, to the teacher.", show_default="what --for allows"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of weights and of the order of the text.")] = 0,
    batch: Annotated[int | None, typer.Option("--batch", help="Rows of a step.", show_default="4")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Learning rate.", show_default="by size")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", help="Of a row.", show_default="512")] = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Of the text, where it is not UTF-8.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Train a small student of what TEACHER finds likely, and prove what that won over a twin without teacher.

    Example: breakeven distill smollm2.gguf --into "dense 4x256" --trim-vocabulary --text text/en --out student
    """
    from rich.console import Console

    from breakeven.pages.progress import Progress

    with trained_on(out), Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        proof = breakeven.distill(
            teacher,
            into,
            text,
            out,
            fits=None if fits is None else _size(fits),
            machine=machine,
            latency_s=None if latency is None else duration(latency, "--latency"),
            trim_vocabulary=trim_vocabulary,
            ternary=ternary,
            seconds=None if seconds is None else duration(seconds, "--for"),
            steps=steps,
            twin_steps=twin_steps,
            teacher_tokens=teacher_tokens,
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
        return
    from breakeven.pages.lab import show_proof
    from breakeven.pages.lab_html import page_of_proof

    show_proof(proof, Console(), page_of_proof(proof), full=full)


def _size(text: str) -> int:
    from breakeven.errors import UserError
    from breakeven.traffic.words import parse_bytes

    try:
        return parse_bytes(text)
    except UserError as error:
        raise UserError(f"--fits: {error}") from None
