"""`breakeven bench`: one endpoint, or one model started here, under real traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EXAMPLES = """Measure one endpoint under load: delays, throughput, goodput, and what the client itself could drive.

TARGET is a server (http://host:port/v1 with --model, or http://host:port/v1#model) or a model to start here (a .gguf
file, a catalogue name, a hub id). Give one kind of load: --rate, --concurrency or --trace.

\b
breakeven bench http://localhost:8000/v1 --model qwen3 --rate 2,5,10 --slo ttft=1s,tpot=80ms
breakeven bench http://localhost:8000/v1 --model qwen3 --concurrency 1,8,32 --duration 60s
breakeven bench http://localhost:8000/v1 --model qwen3 --rate 5 --arrivals gamma:3 --prompt lognormal:1155,900
breakeven bench http://localhost:8000/v1 --model qwen3 --trace conv.csv --speed 0.5 --window 0s-10m
breakeven bench my-model.gguf --concurrency 4 --requests 200 --json
"""


@app.command(help=EXAMPLES)
def bench(
    target: Annotated[str, typer.Argument(metavar="TARGET", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", help="The model's name at the server.")] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop: requests/s, comma-separated.")] = None,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: requests at once, comma-separated.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay a trace: Azure, Mooncake, GuideLLM, AIPerf, CSV.")] = None,
    arrivals: Annotated[
        str, typer.Option(help="constant, poisson, gamma:CV, steps:2x30s,5x30s or ramp:1-10.")
    ] = "poisson",
    speed: Annotated[float, typer.Option(help="Of the trace: 0.5 stretches its gaps to twice the time.")] = 1.0,
    window: Annotated[str | None, typer.Option(help="Part of the trace, in its own time: 0s-10m.")] = None,
    duration: Annotated[str | None, typer.Option(help="Measured time a load.", show_default="60s")] = None,
    requests: Annotated[int | None, typer.Option(help="Measured requests a load.", show_default=False)] = None,
    warm_up: Annotated[str | None, typer.Option(help="Same traffic before, never counted.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Tokens: 512, uniform:64-512, lognormal:1155,900.")] = None,
    output: Annotated[str | None, typer.Option(help="Tokens, as for --prompt.")] = None,
    turns: Annotated[int, typer.Option(help="Turns of a conversation; the context grows.")] = 1,
    think: Annotated[str, typer.Option(help="Pause before the next turn, or of a stream.")] = "0s",
    sharing: Annotated[bool, typer.Option("--sharing", help="Let the trace's prefixes be shared, caches on.")] = False,
    languages: Annotated[str, typer.Option(help="Of the prompts, comma-separated: en,de,zh.")] = "",
    chat: Annotated[bool, typer.Option("--chat", help="Use /v1/chat/completions.")] = False,
    stream: Annotated[bool, typer.Option(help="Stream the answers; without, there is no TTFT.")] = True,
    slo: Annotated[str | None, typer.Option(help="What a good request keeps: ttft=1s,tpot=80ms,itl=,e2e=.")] = None,
    rounds: Annotated[int, typer.Option(help="Repeat every load with fresh arrivals.")] = 1,
    processes: Annotated[int | None, typer.Option(help="Client processes.", show_default="as needed")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="Make the load on a Ray cluster: its address.")] = None,
    engine: Annotated[str, typer.Option(help="Starts TARGET where it is a model: llama.cpp or vllm.")] = "llama.cpp",
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="Weight format of a synthetic model.", show_default="Q4_K_M, BF16"),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Requests an engine started here works on at once.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, where the server cannot be asked.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same schedule.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory for result, log and page.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")] = False,
) -> None:
    words = locals()
    from breakeven.cli import load_run

    load_run.bench(load_run.target(target, model), load_run.traffic(words), load_run.options(words), words)
