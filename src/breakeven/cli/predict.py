"""`breakeven predict`: step times of models on machines, without running them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    Assume,
    CpuMoe,
    Device,
    Devices,
    EngineByMachine,
    Format,
    GpuLayers,
    Kv,
    TensorSplit,
    print_json,
)
from breakeven.errors import UserError

app = typer.Typer()

EXAMPLES = """Predict decode and prefill speed of MODELs, with intervals, on this machine or one you do not have.

\b
breakeven predict olmoe-1b-7b llama-3.2-1b --machine apple-m2-pro
breakeven predict qwen3-30b-a3b qwen3-14b --machine h100-sxm --batch 1,8,32 --format fp8
breakeven predict gpt-oss-120b:MXFP4 qwen3-32b:Q4_K_M --machine rtx-3090+ddr4-3200x2:64GB --cpu-moe 27
breakeven predict my-model.gguf --machine rtx-2080 --context 512 --reserve 8192 --kv q8_0
breakeven predict olmoe-1b-7b --machine this --context 512,4096 --json
"""


@app.command(help=EXAMPLES)
def predict(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Name, hub id, config or file; with :FORMAT.")
    ],
    machine: Annotated[
        list[str] | None,
        typer.Option(help="A chip, chip+ddr5-5600x2:64GB, a file, or this; repeat it.", show_default="this"),
    ] = None,
    engine: EngineByMachine = None,
    devices: Devices = None,
    batch: Annotated[str, typer.Option(help="Sequences that decode in one step.")] = "1",
    context: Annotated[str, typer.Option(help="Tokens each has in its cache.")] = "512",
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the prompt that is read.", show_default="as --context")
    ] = None,
    reserve: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens each cache is made for: memory alone.", show_default="as --context"),
    ] = None,
    format_name: Format = None,
    kv: Kv = None,
    routing: Annotated[
        list[str] | None,
        typer.Option(help="MODEL=FILE of `breakeven trace --json`, or a gateway's experts-NAME.json; else even."),
    ] = None,
    expert_parallel: Annotated[bool, typer.Option("--expert-parallel", help="Part experts, not matrices.")] = False,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    assume: Assume = False,
    why: Annotated[bool, typer.Option("--why", help="Say which records stand behind it, and how far off.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.predict/1).")] = False,
) -> None:
    result = breakeven.predict(
        models,
        machine or ["this"],
        engine=engine,
        devices=devices,
        batches=numbers("--batch", batch),
        contexts=numbers("--context", context),
        format=format_name,
        routing=_files(routing or [], models),
        expert_parallel=expert_parallel,
        kv=kv,
        prompt=prompt,
        reserve=reserve,
        assume=assume,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        device=device,
        tensor_split=tensor_split,
    )
    if as_json:
        print_json(result)
    else:
        from rich.console import Console

        from breakeven.pages.predicted import print_prediction

        print_prediction(result, Console(), why=why)


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers parted by commas. Raises UserError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} {text}: give whole numbers from 1, parted by commas, such as 1,8,32")
    return [int(part) for part in parts]


def _files(texts: list[str], models: list[str]) -> dict[str, Path]:
    """File by model from MODEL=FILE, or FILE alone where there is one model. Raises UserError for other words."""
    found = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        name = name or (models[0] if len(models) == 1 else "")
        if name not in models:
            raise UserError(f"--routing {text}: give MODEL=FILE with a MODEL of this command ({', '.join(models)})")
        found[name] = Path(file)
    return found
