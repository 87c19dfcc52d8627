"""`breakeven calibrate`: measure this machine once, so that any model can be predicted on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    CpuMoe,
    Device,
    Engine,
    EngineFlags,
    GpuLayers,
    Kv,
    Quiet,
    TensorSplit,
    duration,
    resumable,
)

app = typer.Typer()

EXAMPLES = """Run a few small synthetic models here and fit what `breakeven predict --machine this` needs.

It takes about ten minutes, writes a profile, and tells how far off predictions are on probes the fit had not seen.

\b
breakeven calibrate
breakeven calibrate --format Q8_0 --budget 5m
breakeven calibrate --engine vllm --out here.json
breakeven calibrate --engine llama-server --gpu-layers all
breakeven calibrate http://localhost:8080/v1#my-model --shape qwen3-30b-a3b:Q4_K_M
breakeven calibrate --list
"""


@app.command(help=EXAMPLES)
def calibrate(
    urls: Annotated[
        list[str] | None, typer.Argument(metavar="[URL]...", help="Servers of known shape to measure instead.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="Model that the URL serves, for each URL in order.")
    ] = None,
    engine: Engine = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    engine_flag: EngineFlags = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Weight format of the probes.", show_default="Q4_K_M, BF16")
    ] = None,
    kv: Kv = None,
    budget: Annotated[str, typer.Option(help="Time to spend; the first four probes run whatever it is.")] = "10m",
    out: Annotated[
        Path | None, typer.Option(help="File of the profile.", show_default="where --machine this finds it")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the engine.", show_default="one a core")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.calibrate/1).")] = False,
    list_only: Annotated[bool, typer.Option("--list", help="Show the probes and loads, and run nothing.")] = False,
) -> None:
    from rich.console import Console

    from breakeven.pages.calibration import calibration_json, calibration_lines, plan_lines
    from breakeven.pages.progress import Progress

    options = breakeven.CalibrateOptions(
        engine,
        format_name,
        duration(budget),
        out,
        resume,
        threads,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        device=device,
        tensor_split=tensor_split,
        engine_flags=tuple(engine_flag or ()),
        urls=tuple(urls or ()),
        shapes=tuple(shape or ()),
        kv=kv,
    )
    if list_only:
        typer.echo("\n".join(plan_lines(options)))
        return
    with (
        resumable("finished blocks are kept"),
        Progress(Console(stderr=True, highlight=False), quiet=quiet or as_json) as progress,
    ):
        found = breakeven.calibrate(options, progress.update)
    typer.echo(calibration_json(found).decode() if as_json else "\n".join(calibration_lines(found)))
