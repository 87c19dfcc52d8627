"""`breakeven tune`: adapters trained or brought along, merged, and proven to be what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Full, Quiet, Threads, duration, print_json, trained_on

app = typer.Typer()


@app.command()
def tune(
    model: Annotated[Path, typer.Argument(help="A .gguf file, or a Hugging Face model's directory.")],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.", metavar="DIR")],
    text: Annotated[Path | None, typer.Option("--text", help="File or directory to learn.", metavar="FILE|DIR")] = None,
    chat: Annotated[
        Path | None, typer.Option("--chat", help="Conversations to learn the answers of.", metavar="FILE.jsonl")
    ] = None,
    adapt: Annotated[str, typer.Option(help="all, attention, experts, or some: experts:3,7.")] = "all",
    router: Annotated[str, typer.Option(help="frozen, or train.")] = "frozen",
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="Merge and prove this instead: made elsewhere.", metavar="DIR")
    ] = None,
    rank: Annotated[int, typer.Option(help="Of adapters.")] = 8,
    seconds: Annotated[str | None, typer.Option("--for", help="Time to train: 3m.", show_default="3m")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps to train, in place of a time: repeats a run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of adapters and the order of the text.")] = 0,
    batch: Annotated[int, typer.Option(help="Rows a step, at most.")] = 2,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 5e-4,
    tokens: Annotated[int, typer.Option(help="Of a row.")] = 256,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Of texts that are not UTF-8.")] = None,
    threads: Threads = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")] = False,
) -> None:
    """Train adapters on MODEL, merge them, and leave the result only if engines serve it and not MODEL.

    Example: breakeven tune smollm2.gguf --text text/de --for 3m --out german
    """
    from rich.console import Console

    from breakeven.pages.progress import Progress

    with trained_on(out), Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        proof = breakeven.tune(
            model,
            out,
            text=text,
            chat=chat,
            adapt=adapt,
            router=router,
            adapter=adapter,
            rank=rank,
            seconds=None if seconds is None else duration(seconds, "--for"),
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
