"""`breakeven cost`: what a request costs at a load, and at which load the cheaper candidate changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EXAMPLES = """Price MODELs at one or more loads: $/request, $/Mtok, replicas, energy, and every break-even load.

MODEL runs on --machine, or on its own: qwen3-30b-a3b@h100-sxm. Prices are of one replica, which is a whole machine;
without one, the catalogue's newest hourly price is taken and named. Nothing is measured: see `breakeven capacity`.

\b
breakeven cost llama-3.1-8b qwen3-30b-a3b --machine h100-sxm --format fp8 --rate 1,10,100 --slo ttft=1s,tpot=50ms
breakeven cost olmoe-1b-7b llama-3.2-1b --machine apple-m2-pro --own 1400,4,0.30 --rate 0.1,1
breakeven cost qwen3-14b@rtx-4090 --usd-per-hour 0.45 --api hosted=0.10,0.40 --prompt 2000 --output 300
breakeven cost gemma-3-12b --machine rtx-5090 --own 4000,3,0.30,80,500 --score gemma-3-12b=0.62 --what-if --json
"""


@app.command(help=EXAMPLES)
def cost(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", show_default=False)] = None,
    machine: Annotated[str, typer.Option(help="A chip's name, a profile or chip file, or this.")] = "this",
    engine: Annotated[str | None, typer.Option(help="llama.cpp or vllm.", show_default="by machine")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices of one replica.", show_default="1")] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Weight format.", show_default="Q4_K_M, or BF16 with vllm")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Requests/s: 1,10,100.", show_default="around the capacity")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="Rent of one replica.", show_default="catalogue")] = None,
    own: Annotated[
        str | None,
        typer.Option(help="DOLLARS,YEARS,DOLLARS_PER_KWH[,IDLE_W,BUSY_W] of a replica you buy.", show_default=False),
    ] = None,
    api: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]IN,OUT[,CACHED], dollars per million tokens; repeat it.", show_default=False),
    ] = None,
    slo: Annotated[str, typer.Option(help="Capacity keeps this: ttft=1s,tpot=80ms,itl=,e2e=.")] = "",
    share: Annotated[str, typer.Option(help="Share of requests that must keep it.")] = "90%",
    prompt: Annotated[str | None, typer.Option(help="Tokens: 512, lognormal:1155,900.", show_default="512")] = None,
    output: Annotated[str | None, typer.Option(help="Tokens, as for --prompt.", show_default="128")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson, constant or gamma:CV.")] = "poisson",
    trace: Annotated[Path | None, typer.Option(help="Take arrivals and lengths from a trace.")] = None,
    turns: Annotated[int, typer.Option(help="Requests of a conversation; each counts in --rate.")] = 1,
    think: Annotated[str, typer.Option(help="Between an answer and the next turn.")] = "0s",
    cached: Annotated[str, typer.Option(help="Share of prompts an API bills as cached.")] = "0%",
    score: Annotated[list[str] | None, typer.Option(help="MODEL=0.62: share of tasks it solves.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Published scores to take without --score.", show_default="first that covers all")
    ] = None,
    answer: Annotated[list[str] | None, typer.Option(help="MODEL=400: mean tokens of its answers.")] = None,
    what_if: Annotated[bool, typer.Option("--what-if", help="Precision, devices, speculation, price.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same traffic.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.cost/1).")] = False,
) -> None:
    from breakeven.cli.cost_run import run

    run(models or [], locals(), as_json=as_json)
