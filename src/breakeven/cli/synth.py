"""`breakeven synth`: write a synthetic weight file by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven

app = typer.Typer()


@app.command()
def synth(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, hub id, config.json, YAML or .gguf whose shapes to take.")
    ],
    out: Annotated[Path, typer.Option(help="File to write; a directory for MLX and vLLM.")],
    format_name: Annotated[
        str | None, typer.Option("--format", help="Weight format.", show_default="its own, else Q4_K_M; MLX4; BF16")
    ] = None,
    routing: Annotated[str, typer.Option(help="uniform, or zipf:S for a skew with exponent S.")] = "uniform",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same bytes.")] = 0,
    mtp: Annotated[bool, typer.Option("--mtp", help="With the model's drafting (MTP) blocks.")] = False,
    engine: Annotated[str, typer.Option(help="What it is for: llama.cpp, mlx or vllm.")] = "llama.cpp",
) -> None:
    """Write a GGUF with the exact tensors of MODEL and random weights: good for speed and memory only.

    Example: breakeven synth olmoe-1b-7b --format Q4_0 --routing zipf:1.2 --out olmoe.gguf
    """
    done = breakeven.synth(model, out, format=format_name, routing=routing, seed=seed, mtp=mtp, engine=engine)
    size = f"{done.size_bytes / 1e9:.2f} GB" if done.size_bytes else "no weights (vllm serve --load-format dummy)"
    typer.echo(
        f"{done.path}: {done.model}, {done.format}, {size} in {done.seconds:.1f} s; "
        "synthetic weights: speed and memory only"
    )
