"""`breakeven profile`: where a model's time goes."""

from __future__ import annotations

from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import GpuLayers, InsideCpuMoe, InsideDevice, InsideEngine, InsideTensorSplit, Quiet

app = typer.Typer()


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A .gguf file, or a model to synthesise (Q4_K_M).")],
    prompt: Annotated[int, typer.Option(min=1, help="Prompt length in tokens.")] = 128,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to time; 32 decode and 4 prefill unless given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    engine: InsideEngine = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: InsideCpuMoe = None,
    device: InsideDevice = None,
    tensor_split: InsideTensorSplit = None,
    quiet: Quiet = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time the parts of MODEL's decode and prefill steps: attention, router, experts, head and the rest.

    Example: breakeven profile olmoe.gguf --prompt 256
    """
    from rich.console import Console

    from breakeven.pages.progress import Progress

    with Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        summary = breakeven.profile(
            model,
            prompt_tokens=prompt,
            steps=steps,
            threads=threads,
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
        from breakeven.pages.inside import show_profile

        show_profile(summary, Console())
