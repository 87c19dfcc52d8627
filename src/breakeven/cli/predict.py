"""`breakeven predict`: step times of models on machines, without running them."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()

EXAMPLES = """Predict decode and prefill speed of MODELs, with intervals, on this machine or one you do not have.

\b
breakeven predict olmoe-1b-7b llama-3.2-1b --machine apple-m2-pro
breakeven predict qwen3-30b-a3b qwen3-14b --machine h100-sxm --batch 1,8,32 --format fp8
breakeven predict olmoe-1b-7b --machine this --context 512,4096 --json
"""


@app.command(help=EXAMPLES)
def predict(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Catalogue name, hub id, config or file.")],
    machine: Annotated[
        list[str] | None,
        typer.Option(help="A chip's name, a profile or chip file, or this; repeat it.", show_default="this"),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="llama.cpp or vllm.", show_default="by machine")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices that share a model.", show_default="1")] = None,
    batch: Annotated[str, typer.Option(help="Sequences that decode in one step.")] = "1",
    context: Annotated[str, typer.Option(help="Tokens each has in its cache; also the prompt's length.")] = "512",
    format_name: Annotated[
        str | None, typer.Option("--format", help="Weight format.", show_default="Q4_K_M, or BF16 with vllm")
    ] = None,
    routing: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=FILE, what `breakeven trace --json` printed; without it routing is taken as even."),
    ] = None,
    expert_parallel: Annotated[bool, typer.Option("--expert-parallel", help="Part experts, not matrices.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.predict/1).")] = False,
) -> None:
    import msgspec
    from rich.console import Console

    from breakeven.cli.predict_run import numbers, routings
    from breakeven.forecast.predict import predict as run
    from breakeven.pages.predicted import print_prediction

    result = run(
        models,
        machine or ["this"],
        engine=engine,
        devices=devices,
        batches=numbers("--batch", batch),
        contexts=numbers("--context", context),
        format_name=format_name,
        frequencies=routings(routing or [], models),
        expert_parallel=expert_parallel,
    )
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        print_prediction(result, Console())
