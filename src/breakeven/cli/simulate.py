"""`breakeven simulate`: how an engine would answer traffic, without running it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    Arrivals,
    Assume,
    Concurrency,
    CpuMoe,
    Device,
    Devices,
    EngineByMachine,
    Format,
    Full,
    GpuLayers,
    Kv,
    Output,
    Prompt,
    Rate,
    SloOption,
    Speed,
    TensorSplit,
    Think,
    Trace,
    TraceFormat,
    Turns,
    WarmUp,
    Window,
    print_json,
)
from breakeven.errors import UserError

app = typer.Typer()

EXAMPLES = """Simulate traffic through an engine's continuous batching: every percentile, goodput, queue and memory.

Give one kind of load: --rate, --concurrency, --trace, or --schedule, a file that a run wrote.

\b
breakeven simulate qwen3-30b-a3b --machine h100-sxm --format fp8 --rate 5,20,50 --slo ttft=1s,tpot=80ms
breakeven simulate llama-3.1-8b --machine l40s --trace conv.csv --replicas 2 --json
breakeven simulate olmoe-1b-7b --machine this --concurrency 4 --prompt 512 --output 128
breakeven simulate llama-3.1-8b --machine h100-sxm --rate 50 --autoscale 1-4 --start-up 90s
"""


@app.command(help=EXAMPLES)
def simulate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name, hub id, config or file; with :FORMAT.")],
    machine: Annotated[str, typer.Option(help="A chip, chip+ddr5-5600x2:64GB, a file, or this.")] = "this",
    engine: EngineByMachine = None,
    devices: Devices = None,
    format_name: Format = None,
    kv: Kv = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    assume: Assume = False,
    rate: Rate = None,
    concurrency: Concurrency = None,
    trace: Trace = None,
    trace_format: TraceFormat = None,
    schedule: Annotated[Path | None, typer.Option(help="A schedule file that a run wrote.")] = None,
    arrivals: Arrivals = "poisson",
    speed: Speed = 1.0,
    window: Window = None,
    duration: Annotated[str | None, typer.Option(help="Of arrivals.", show_default="10m")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests a load.", show_default=False)] = None,
    warm_up: WarmUp = None,
    prompt: Prompt = None,
    output: Output = None,
    turns: Turns = 1,
    think: Think = "0s",
    sharing: Annotated[bool, typer.Option("--sharing", help="Prompts share the prefixes the trace says.")] = False,
    slo: SloOption = None,
    replicas: Annotated[int, typer.Option(min=1, help="Machines that serve the model.")] = 1,
    balancing: Annotated[str, typer.Option(help="round_robin, least_loaded, random or gateway.")] = "least_loaded",
    autoscale: Annotated[str | None, typer.Option(help="Instead of --replicas: 1-4.", show_default=False)] = None,
    per_replica: Annotated[int, typer.Option(help="Requests in flight that ask for one more replica.")] = 16,
    start_up: Annotated[str, typer.Option(help="Until a new replica answers.")] = "60s",
    slots: Annotated[int | None, typer.Option(help="Sequences in a step.", show_default="by engine")] = None,
    step_tokens: Annotated[int | None, typer.Option(help="Tokens in a step.", show_default="by engine")] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Room for keys and values.", show_default="what fits")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same traffic.")] = 0,
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.simulate/1).")] = False,
) -> None:
    traffic = breakeven.Traffic(
        rate=rate,
        concurrency=concurrency,
        trace=trace,
        trace_format=trace_format,
        arrivals=arrivals,
        speed=speed,
        window=window,
        duration=duration,
        requests=requests,
        warm_up=warm_up,
        prompt=prompt,
        output=output,
        turns=turns,
        think=think,
        sharing=sharing,
        slo=slo,
        seed=seed,
    )
    fleet = breakeven.Fleet(replicas=replicas, balancing=balancing, seed=seed)
    if autoscale is not None:
        scale = _scale(autoscale, per_replica, start_up)
        fleet = breakeven.Fleet(balancing=balancing, autoscale=scale, seed=seed)
    study = breakeven.simulate(
        model,
        traffic,
        schedule=schedule,
        machine=machine,
        engine=engine,
        devices=devices,
        format=format_name,
        fleet=fleet,
        slots=slots,
        step_tokens=step_tokens,
        kv_tokens=kv_tokens,
        kv=kv,
        assume=assume,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        device=device,
        tensor_split=tensor_split,
    )
    if as_json:
        print_json(study)
    else:
        from rich.console import Console

        from breakeven.pages.predicted import print_simulation

        print_simulation(study, Console(), full=full)


def _scale(text: str, per_replica: int, start_up: str) -> breakeven.Autoscale:
    from breakeven.traffic.words import parse_duration

    match = re.fullmatch(r"(\d+)-(\d+)", text.strip())
    if match is None:
        raise UserError(f"--autoscale {text!r}: give the fewest and the most replicas, such as 1-4")
    start_s = parse_duration(start_up)
    return breakeven.Autoscale(least=int(match[1]), most=int(match[2]), per_replica=per_replica, start_s=start_s)
