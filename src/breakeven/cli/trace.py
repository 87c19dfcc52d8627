"""`breakeven trace`: which experts a text is routed to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven

app = typer.Typer()


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="A .gguf file, or a model to synthesise (Q4_K_M).")],
    text: Annotated[list[Path], typer.Option("--text", help="A text file; repeat it to compare texts.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Cut each text here.")] = 2048,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run texts through MODEL and show how its experts are used: balance, dead experts, experts per step.

    Example: breakeven trace olmoe.gguf --text english.txt --text code.py
    """
    summary = breakeven.trace(model, text, threads=threads, max_tokens=max_tokens)
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(summary).decode())
    else:
        from rich.console import Console

        from breakeven.pages.inside import show_trace

        show_trace(summary, Console())
