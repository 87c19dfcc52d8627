"""`breakeven profile`: where a model's time goes."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A .gguf file, or a model to synthesise in Q4_K_M.")],
    prompt: Annotated[int, typer.Option(min=1, help="Prompt length in tokens.")] = 128,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to time; 32 decode and 4 prefill unless given.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time the parts of MODEL's decode and prefill steps: attention, router, experts, head and the rest.

    Example: breakeven profile olmoe.gguf --prompt 256
    """
    import msgspec
    from rich.console import Console

    from breakeven.engines.inside.client import profile as run
    from breakeven.engines.inside.summary import ProfileSummary
    from breakeven.engines.start import gguf_of
    from breakeven.pages.inside import show_profile

    path = gguf_of(model)
    summary = ProfileSummary(
        profiles=[
            run(path, phase=phase, prompt_tokens=prompt, steps=steps, threads=threads)
            for phase in ("decode", "prefill")
        ]
    )
    if json:
        typer.echo(msgspec.json.encode(summary).decode())
    else:
        show_profile(summary, Console())
