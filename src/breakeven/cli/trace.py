"""`breakeven trace`: which experts a text is routed to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import GpuLayers, InsideCpuMoe, InsideDevice, InsideEngine, InsideTensorSplit, Quiet
from breakeven.errors import UserError

app = typer.Typer()


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="A .gguf file, or a model to synthesise (Q4_K_M).")],
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="A text file; repeat it to compare texts.", show_default=False)
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts, as for `breakeven bench`.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Cut each text here.")] = 2048,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    engine: InsideEngine = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: InsideCpuMoe = None,
    device: InsideDevice = None,
    tensor_split: InsideTensorSplit = None,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run texts through MODEL and show how its experts are used: balance, dead experts, experts per step.

    Example: breakeven trace olmoe.gguf --text english.txt --text code.py
    """
    if not text and prompts is None:
        raise UserError("no text to trace: give at least one with --text FILE, or --prompts FILE")
    from rich.console import Console

    from breakeven.pages.progress import Progress

    with Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        summary = breakeven.trace(
            model,
            text or [],
            prompts=prompts,
            threads=threads,
            max_tokens=max_tokens,
            engine=engine,
            gpu_layers=gpu_layers,
            cpu_moe=cpu_moe,
            device=device,
            tensor_split=tensor_split,
            on_progress=progress.update,
        )
    if json:
        import msgspec

        typer.echo(msgspec.json.encode(summary).decode())
    else:
        from breakeven.pages.inside import show_trace

        show_trace(summary, Console())
