"""`breakeven tune`: adapters trained or brought along, merged, and proven to be what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli import made
from breakeven.cli.words import Full, Quiet
from breakeven.errors import UserError

app = typer.Typer()


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="A .gguf file, or a Hugging Face model's directory.")],
    out: made.OutDirectory,
    text: Annotated[Path | None, typer.Option("--text", help="File or directory to learn.", metavar="FILE|DIR")] = None,
    chat: Annotated[
        Path | None, typer.Option("--chat", help="Conversations to learn the answers of.", metavar="FILE.jsonl")
    ] = None,
    adapt: Annotated[str, typer.Option(help="all, attention, experts, or some: experts:3,7.")] = "all",
    router: Annotated[str, typer.Option(help="frozen, or train.")] = "frozen",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Merge and prove this instead: made elsewhere.", metavar="DIR")
    ] = None,
    emit: Annotated[
        str | None, typer.Option("--emit", help="Write the recipe for it instead: needs --steps.", metavar="axolotl")
    ] = None,
    rank: Annotated[int, typer.Option(help="Of adapters.")] = 8,
    quantized: Annotated[
        bool, typer.Option("--quantized", help="Train beside the base in 4 bits (QLoRA; dense models).")
    ] = False,
    during: made.During = None,
    steps: made.Steps = None,
    seed: made.Seed = 0,
    batch: Annotated[int, made.batch_of("2")] = 2,
    rate: Annotated[float, made.rate_of("5e-4")] = 5e-4,
    tokens: Annotated[int, made.tokens_of("256")] = 256,
    encoding: made.Encoding = None,
    threads: made.TrainThreads = None,
    full: Full = False,
    quiet: Quiet = False,
    json: made.ProofAsJson = False,
) -> None:
    """Train adapters on MODEL, merge them, and leave the result only if engines serve it and not MODEL.

    Example: breakeven tune smollm2.gguf --text text/de --for 3m --out german
    """
    if emit is not None:
        given = {"--adapter": adapter, "--for": during, "--threads": threads, "--quantized": quantized or None}
        given["--json"] = json or None
        if emit != "axolotl":
            raise UserError(f"--emit {emit}: give axolotl")
        if steps is None or router != "frozen" or any(value is not None for value in given.values()):
            raise UserError(
                "--emit axolotl: give --steps, for how fast it will be is not known here, and leave out --router "
                f"train, {', '.join(given)}"
            )
        commands = breakeven.tune_elsewhere(
            model,
            out,
            steps,
            text=text,
            chat=chat,
            adapt=adapt,
            rank=rank,
            seed=seed,
            batch=batch,
            rate=rate,
            tokens=tokens,
            encoding=encoding,
        )
        typer.echo(f"{out}: written for axolotl. Where there is a GPU, then anywhere:")
        for command in commands:
            typer.echo(f"  {command}")
        return
    made.tell_proof(
        lambda on_progress: breakeven.tune(
            model,
            out,
            text=text,
            chat=chat,
            adapt=adapt,
            router=router,
            adapter=adapter,
            rank=rank,
            quantized=quantized,
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
