"""`breakeven serve`: one OpenAI-compatible endpoint that routes each request where it is served best."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import CpuMoe, Device, GpuLayers, TensorSplit

app = typer.Typer()


@app.command()
def serve(
    what: Annotated[
        list[str] | None, typer.Argument(help="A gateway file, or models to run here side by side.", show_default=False)
    ] = None,
    from_decision: Annotated[
        Path | None, typer.Option("--from", help="A saved decision (its result.json).", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: any free one.", show_default="8000")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.", show_default="1")] = None,
    admin_port: Annotated[int | None, typer.Option(help="Port of the live page.", show_default="8001")] = None,
    kv: Annotated[
        str | None, typer.Option("--kv", help="Of models: type of keys and values.", show_default="f16")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Of models: llama.cpp, llama-server, vllm, ...", show_default="llama.cpp")
    ] = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the file.")] = False,
    emit: Annotated[
        str | None, typer.Option(help="With --from: write manifests instead: kubernetes.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --emit: a new directory.", show_default=False)] = None,
) -> None:
    """Serve models behind one endpoint, each request where it is predicted to be best.

    \b
    breakeven serve examples/gateway.yaml
    breakeven serve --from results/my-study/result.json
    breakeven serve --from results/my-study/result.json --emit kubernetes
    breakeven serve llama-3.2-1b:Q8_0 olmoe-1b-7b --kv q8_0
    """
    status = breakeven.serve(
        *(what or []),
        decision=from_decision,
        host=host,
        port=port,
        workers=workers,
        admin_port=admin_port,
        check=check,
        emit=emit,
        out=out,
        kv=kv,
        engine=engine,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        device=device,
        tensor_split=tensor_split,
    )
    sys.exit(status)
