"""`breakeven cost`: what a request costs at a load, and at which load the cheaper candidate changes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    Assume,
    CpuMoe,
    Device,
    EngineByMachine,
    Format,
    Full,
    GpuLayers,
    Kv,
    TensorSplit,
    TraceFormat,
    print_json,
)
from breakeven.errors import UserError

app = typer.Typer()

OWN = "dollars, years, dollars per kWh and, if known, idle and busy watts: 1400,4,0.30 or 1400,4,0.30,15,60"
API = "dollars per million tokens in and out and, if billed apart, cached: hosted=0.10,0.40 or hosted=0.10,0.40,0.025"

EXAMPLES = """Price MODELs at one or more loads: $/request, $/Mtok, replicas, energy, and every break-even load.

MODEL runs on --machine, or on its own, perhaps in its own format: qwen3-30b-a3b:Q8_0@rtx-5090. Prices are of one
replica, which is a whole machine; without one, the catalogue's newest hourly price is taken and named. Nothing is
measured: see `breakeven capacity`.

\b
breakeven cost llama-3.1-8b qwen3-30b-a3b --machine h100-sxm --format fp8 --rate 1,10,100 --slo ttft=1s,tpot=50ms
breakeven cost olmoe-1b-7b llama-3.2-1b --machine apple-m2-pro --own 1400,4,0.30 --rate 0.1,1
breakeven cost qwen3-14b@rtx-4090 --usd-per-hour 0.45 --api hosted=0.10,0.40 --prompt 2000 --output 300
breakeven cost gemma-3-12b --machine rtx-5090 --own 4000,3,0.30,80,500 --score gemma-3-12b=0.62 --what-if --json
"""


@app.command(help=EXAMPLES)
def cost(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...", show_default=False)] = None,
    machine: Annotated[str, typer.Option(help="A chip, chip+ddr5-5600x2:64GB, a file, or this.")] = "this",
    engine: EngineByMachine = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices of one replica.", show_default="1")] = None,
    format_name: Format = None,
    kv: Kv = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    assume: Assume = False,
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
    trace_format: TraceFormat = None,
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
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.cost/1).")] = False,
) -> None:
    from breakeven.traffic.words import parse_rates, traffic_of
    from breakeven.traffic.workload import Slo, parse_slo

    if arrivals.startswith("agents"):
        raise UserError("--arrivals agents is for load, not for prices; give --turns, --prompt and --cached instead")
    rates = None if rate is None else parse_rates(rate)
    traffic = traffic_of(
        breakeven.Traffic(
            rate=None if trace is not None else "1",
            arrivals=arrivals,
            trace=trace,
            trace_format=trace_format,
            prompt=prompt,
            output=output,
            turns=turns,
            think=think,
            seed=seed,
        )
    )
    for note in traffic.notes:
        typer.echo(note, err=True)
    options = breakeven.CostOptions(
        workload=traffic.workloads[0],
        trace=traffic.trace,
        machine=machine,
        engine=engine,
        devices=devices,
        format_name=format_name,
        kv=kv,
        placement=breakeven.placement_of(gpu_layers, cpu_moe, device, tensor_split),
        assume=assume,
        pricing=_pricing(usd_per_hour, own),
        apis=dict(_api(text) for text in api or ()),
        rates=rates,
        slo=parse_slo(slo) if slo else Slo(),
        good_share=_share_above_0("--share", share),
        cached_share=_share("--cached", cached),
        scores=_by_name("--score", score or ()),
        benchmark=benchmark,
        answers=_by_name("--answer", answer or ()),
        changes=what_if,
    )
    result = breakeven.cost(models or [], options)
    if as_json:
        print_json(result)
    else:
        from rich.console import Console

        from breakeven.pages.predicted import print_cost

        print_cost(result, Console(), full=full)


def _pricing(usd_per_hour: float | None, own: str | None) -> breakeven.Own | breakeven.Rented | None:
    if usd_per_hour is not None and own is not None:
        raise UserError("--usd-per-hour and --own are two prices of one machine; give one of them")
    if usd_per_hour is not None:
        return breakeven.Rented(usd_per_hour=usd_per_hour)
    if own is None:
        return None
    numbers = _numbers("--own", own, (3, 5), OWN)
    idle_w, busy_w = numbers[3:] if len(numbers) == 5 else (None, None)
    return breakeven.Own(usd=numbers[0], life_years=numbers[1], usd_per_kwh=numbers[2], idle_w=idle_w, busy_w=busy_w)


def _api(text: str) -> tuple[str, breakeven.Api]:
    name, equals, prices = text.rpartition("=")
    if equals and not name.strip():
        raise UserError(f"--api {text!r}: give a name before =, as {API}")
    numbers = _numbers("--api", prices, (2, 3), API)
    cached = numbers[2] if len(numbers) == 3 else None
    api = breakeven.Api(usd_per_mtok_input=numbers[0], usd_per_mtok_output=numbers[1], usd_per_mtok_cached_input=cached)
    return name.strip() or "api", api


def _numbers(option: str, text: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts or not all(0 <= number < math.inf for number in found):
        raise UserError(f"{option} {text!r}: give {form}")
    return found


def _by_name(option: str, texts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", number):
            raise UserError(f"{option} {text!r}: give a candidate and its number, such as {option} olmoe-1b-7b=0.62")
        found[name] = float(number)
    return found


def _share_above_0(option: str, text: str) -> float:
    found = _share(option, text)
    if not found > 0:
        raise UserError(f"{option} {text!r}: give a share above 0% and up to 100%")
    return found


def _share(option: str, text: str) -> float:
    from breakeven.traffic.words import option_share

    return option_share(option, text, "a percentage from 0% to 100%", most=1.0)
