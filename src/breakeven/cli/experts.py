"""`breakeven experts`: turn a dense weight file into a Mixture-of-Experts one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven

app = typer.Typer(no_args_is_help=True)

Source = Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="A dense GGUF of the llama architecture.")]
Out = Annotated[Path, typer.Option("--out", help="File to write.")]
Experts = Annotated[int, typer.Option("--experts", help="How many experts.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of a random router.")]


@app.command()
def split(
    model: Source,
    out: Out,
    experts: Experts = 8,
    used: Annotated[int | None, typer.Option("--used", help="Experts run per token; all unless given.")] = None,
    seed: Seed = 0,
) -> None:
    """Cut every feed-forward into experts. With all of them used the model computes what it did before.

    Example: breakeven experts split smollm2.gguf --experts 8 --out smollm2-8x.gguf
    """
    _tell(breakeven.experts.split(model, out, experts, used, seed))


@app.command()
def copy(
    model: Source,
    out: Out,
    experts: Experts = 8,
    used: Annotated[int | None, typer.Option("--used", help="Experts run per token; 2 unless given.")] = None,
    seed: Seed = 0,
) -> None:
    """Repeat every feed-forward as equal experts behind a random router: same answers, more bytes.

    Example: breakeven experts copy smollm2.gguf --experts 8 --used 2 --out smollm2-8copies.gguf
    """
    _tell(breakeven.experts.copy(model, out, experts, used, seed))


def _tell(done: breakeven.Surgery) -> None:
    if done.same_function:
        meaning = "it computes what the dense model does, up to rounding"
        if done.scale_error:
            meaning += f" (scales rounded by up to {done.scale_error:.1e}; a power of two of experts rounds none)"
    else:
        meaning = f"with {done.used} of {done.experts} used it no longer computes what the dense model does"
    typer.echo(
        f"{done.out}: {done.experts} experts {done.expert_width} wide, {done.used} a token, "
        f"{done.file_bytes / 1e9:.2f} GB; {meaning}"
    )
