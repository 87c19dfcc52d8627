"""`breakeven simulate`: how an engine would answer traffic, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Catalogue name, hub id, config or file.")],
    machine: Annotated[str, typer.Option(help="A chip's name, a profile or chip file, or this.")] = "this",
    engine: Annotated[str | None, typer.Option(help="llama.cpp or vllm.", show_default="by machine")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices that share a model.", show_default="1")] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", help="Weight format.", show_default="Q4_K_M, or BF16 with vllm")
    ] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop: requests/s, comma-separated.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: requests at once, comma-separated.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A trace: Azure, Mooncake, GuideLLM, AIPerf, CSV.")] = None,
    schedule: Annotated[Path | None, typer.Option(help="A schedule file that a run wrote.")] = None,
    arrivals: Annotated[
        str, typer.Option(help="constant, poisson, gamma:CV, steps:2x30s,5x30s or ramp:1-10.")
    ] = "poisson",
    speed: Annotated[float, typer.Option(help="Of the trace: 0.5 stretches its gaps to twice the time.")] = 1.0,
    window: Annotated[str | None, typer.Option(help="Part of the trace, in its own time: 0s-10m.")] = None,
    duration: Annotated[str | None, typer.Option(help="Of arrivals.", show_default="10m")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests a load.", show_default=False)] = None,
    warm_up: Annotated[str | None, typer.Option(help="Same traffic before, never counted.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Tokens: 512, uniform:64-512, lognormal:1155,900.")] = None,
    output: Annotated[str | None, typer.Option(help="Tokens, as for --prompt.")] = None,
    turns: Annotated[int, typer.Option(help="Turns of a conversation; the context grows.")] = 1,
    think: Annotated[str, typer.Option(help="Pause before the next turn, or of a stream.")] = "0s",
    sharing: Annotated[bool, typer.Option("--sharing", help="Prompts share the prefixes the trace says.")] = False,
    slo: Annotated[str | None, typer.Option(help="What a good request keeps: ttft=1s,tpot=80ms,itl=,e2e=.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="Machines that serve the model.")] = 1,
    balancing: Annotated[str, typer.Option(help="round_robin, least_loaded or random.")] = "least_loaded",
    autoscale: Annotated[str | None, typer.Option(help="Instead of --replicas: 1-4.", show_default=False)] = None,
    per_replica: Annotated[int, typer.Option(help="Requests in flight that ask for one more replica.")] = 16,
    start_up: Annotated[str, typer.Option(help="Until a new replica answers.")] = "60s",
    slots: Annotated[int | None, typer.Option(help="Sequences in a step.", show_default="by engine")] = None,
    step_tokens: Annotated[int | None, typer.Option(help="Tokens in a step.", show_default="by engine")] = None,
    kv_tokens: Annotated[int | None, typer.Option(help="Room for keys and values.", show_default="what fits")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same traffic.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.simulate/1).")] = False,
) -> None:
    from breakeven.cli import simulate_run

    simulate_run.run(model, locals(), as_json=as_json)
