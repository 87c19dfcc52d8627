"""`breakeven compare`: from nothing to a verdict on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

EXAMPLES = """Measure two or more models against each other on this machine and say which to run.

A MODEL is a catalogue name (`breakeven models` lists them), a hub id, a config.json, a YAML description, a .gguf file,
or a server: http://host:port/v1#name. Models that are not files get synthetic weights of their exact shapes.

\b
breakeven compare olmoe-1b-7b llama-3.2-1b
breakeven compare olmoe-1b-7b llama-3.2-1b qwen2.5-1.5b --streams 1,4 --budget 10m
breakeven compare my-model.gguf llama-3.2-1b --format Q4_0 --precision 1%
breakeven compare http://localhost:8000/v1#qwen3 http://localhost:8001/v1#mixtral
breakeven compare olmoe-1b-7b olmoe-1b-7b      (a model against itself: should find no difference)

Under real traffic, with latency-load curves and where they cross:

\b
breakeven compare a.gguf b.gguf --rate 2,5,10 --slo ttft=1s,tpot=80ms
breakeven compare a.gguf b.gguf --trace conv.csv --speed 0.2 --window 0s-10m
"""


@app.command(help=EXAMPLES)
def compare(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL MODEL [MODEL...]", show_default=False)] = None,
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="Weight format of synthetic models.", show_default="Q4_K_M, BF16"),
    ] = None,
    streams: Annotated[str, typer.Option(help="Loads: requests at once, comma-separated.")] = "1,2,4,8",
    rate: Annotated[str | None, typer.Option(help="Open loop instead: requests/s, comma-separated.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay a trace instead (see `breakeven bench`).")] = None,
    arrivals: Annotated[str, typer.Option(help="With --rate: constant, poisson, gamma:CV.")] = "poisson",
    speed: Annotated[float, typer.Option(help="Of the trace: 0.5 stretches its gaps to twice the time.")] = 1.0,
    window: Annotated[str | None, typer.Option(help="Part of the trace, in its own time: 0s-10m.")] = None,
    duration: Annotated[str | None, typer.Option(help="With --rate: measured time a turn.", show_default="60s")] = None,
    warm_up: Annotated[str | None, typer.Option(help="With --rate: same traffic before a turn, not counted.")] = None,
    rounds: Annotated[int, typer.Option(help="With --rate: turns a candidate gets at each.")] = 2,
    slo: Annotated[str | None, typer.Option(help="Under load, what a good request keeps: ttft=1s,tpot=80ms.")] = None,
    engine: Annotated[str, typer.Option(help="Starts the models under load: llama.cpp or vllm.")] = "llama.cpp",
    slots: Annotated[int | None, typer.Option(help="Under load: requests an engine works on at once.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt length in tokens.", show_default="128")] = None,
    output: Annotated[str | None, typer.Option(help="Tokens to generate per request.", show_default="64")] = None,
    precision: Annotated[str, typer.Option(help="Stop when every decode ratio is known this well.")] = "2%",
    budget: Annotated[str, typer.Option(help="Stop measuring after this long: 90s, 3m, 1h.")] = "6m",
    out: Annotated[Path | None, typer.Option(help="Directory for result, log and page.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted study.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same weights, prompts and order.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Engine threads.", show_default="all CPUs")] = None,
    charts: Annotated[bool, typer.Option("--charts", help="Also write each chart as an SVG file.")] = False,
    inside: Annotated[bool, typer.Option(help="Profile the models and trace their routing afterwards.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Compare the largest prepared pair that fits here.")] = False,
) -> None:
    given = locals()
    if rate is not None or trace is not None:
        from breakeven.cli import load_run

        load_run.compare(models or [], load_run.traffic(given), load_run.options(given), given)
        return
    from breakeven.cli import compare_run

    words = compare_run.Words(
        format_name or "Q4_K_M", streams, prompt, output, precision, budget, out, resume, seed, threads, inside
    )
    compare_run.run(models or [], words, charts=charts, quiet=quiet, as_json=as_json, demo=demo)
