"""`breakeven capacity`: how many requests a second, and how many people at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EXAMPLES = """Find how much traffic one endpoint or model carries within a service level: requests/s, and users at once.

TARGET is a server (http://host:port/v1 with --model, or http://host:port/v1#model) or a model to start here (a .gguf
file, a catalogue name, a hub id). A user is somebody who reads an answer for a while (--think) and asks again.

\b
breakeven capacity http://localhost:8000/v1 --model qwen3 --slo ttft=1s,tpot=80ms
breakeven capacity http://localhost:8000/v1#qwen3 --slo e2e=10s --think 30s --only users
breakeven capacity my-model.gguf --slo ttft=2s,tpot=200ms --prompt 512 --output 128 --budget 20m
breakeven capacity llama-3.2-1b --slo ttft=1s --share 95% --precision 5% --only rate --json
"""


@app.command(help=EXAMPLES)
def capacity(
    target: Annotated[str, typer.Argument(metavar="TARGET", show_default=False)],
    slo: Annotated[str, typer.Option(help="What a good request keeps: ttft=1s,tpot=80ms,itl=,e2e=.")],
    model: Annotated[str | None, typer.Option("--model", help="The model's name at the server.")] = None,
    only: Annotated[str | None, typer.Option(help="Search only one: rate or users.", show_default="both")] = None,
    share: Annotated[str, typer.Option(help="Share of requests that must be good.")] = "90%",
    confidence: Annotated[str, typer.Option(help="How sure the limits must be.")] = "95%",
    precision: Annotated[str, typer.Option(help="How near to the limit to go.")] = "10%",
    think: Annotated[str, typer.Option(help="What a user waits between an answer and the next request.")] = "10s",
    prompt: Annotated[str, typer.Option(help="Tokens: 512, uniform:64-512, lognormal:1155,900.")] = "512",
    output: Annotated[str, typer.Option(help="Tokens, as for --prompt.")] = "128",
    chat: Annotated[bool, typer.Option("--chat", help="Use /v1/chat/completions.")] = False,
    max_users: Annotated[int, typer.Option(help="Never try more users than this.")] = 4096,
    max_rate: Annotated[
        float | None, typer.Option(help="Never try a higher rate, requests/s.", show_default="what the client drives")
    ] = None,
    budget: Annotated[str, typer.Option(help="Stop measuring after about this long: 90s, 10m, 1h.")] = "10m",
    processes: Annotated[int | None, typer.Option(help="Client processes.", show_default="as needed")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="Make the load on a Ray cluster: its address.")] = None,
    engine: Annotated[str, typer.Option(help="Starts TARGET where it is a model: llama.cpp or vllm.")] = "llama.cpp",
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="Weight format of a synthetic model.", show_default="Q4_K_M, BF16"),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Requests an engine started here works on at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads.", show_default="all CPUs")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, where the server cannot be asked.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same schedules.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory for result and log.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")] = False,
) -> None:
    from breakeven.cli import capacity_run, load_run

    search = capacity_run.search_of(locals())
    where = load_run.target(target, model)
    capacity_run.run(where, slo, search, load_run.options(locals()), quiet=quiet, as_json=as_json)
