"""`breakeven compare`: from nothing to a verdict on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    Assume,
    CpuMoe,
    Device,
    Engine,
    EngineFlags,
    Full,
    GpuLayers,
    Kv,
    Prompts,
    Quiet,
    Speed,
    TensorSplit,
    Threads,
    TraceFormat,
    Window,
    command,
    load_progress,
    percent,
    resumable,
)
from breakeven.cli.words import duration as duration_of
from breakeven.errors import BreakevenError, UserError

app = typer.Typer()
ROUNDS = 2

EXAMPLES = """Measure two or more models against each other on this machine and say which to run.

A MODEL is a catalogue name (`breakeven models` lists them), a hub id, a config.json, a YAML description, a .gguf file,
or a server: http://host:port/v1#name. Models that are not files get synthetic weights of their exact shapes.

\b
breakeven compare olmoe-1b-7b llama-3.2-1b
breakeven compare olmoe-1b-7b llama-3.2-1b qwen2.5-1.5b --streams 1,4 --budget 10m
breakeven compare my-model.gguf llama-3.2-1b --format Q4_0 --precision 1%
breakeven compare llama-3.2-1b:Q8_0 llama-3.2-1b:Q4_K_M --kv q8_0
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
        typer.Option(
            "--format",
            help="Weight format of synthetic models that name none (MODEL:FORMAT).",
            show_default="its own, else Q4_K_M, BF16",
        ),
    ] = None,
    kv: Kv = None,
    assume: Assume = False,
    streams: Annotated[str, typer.Option(help="Loads: requests at once, comma-separated.")] = "1,2,4,8",
    rate: Annotated[str | None, typer.Option(help="Open loop instead: requests/s, comma-separated.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Replay a trace instead (see `breakeven bench`).")] = None,
    trace_format: TraceFormat = None,
    prompts: Prompts = None,
    arrivals: Annotated[str, typer.Option(help="With --rate: constant, poisson, gamma:CV, agents.")] = "poisson",
    speed: Speed = 1.0,
    window: Window = None,
    duration: Annotated[
        str | None, typer.Option(help="Measured time a turn; of a trace, in all.", show_default="60s")
    ] = None,
    warm_up: Annotated[str | None, typer.Option(help="Same traffic before a turn, not counted.")] = None,
    rounds: Annotated[int, typer.Option(help="With --rate: turns a candidate gets at each.")] = ROUNDS,
    slo: Annotated[str | None, typer.Option(help="Under load, what a good request keeps: ttft=1s,tpot=80ms.")] = None,
    engine: Engine = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    engine_flag: EngineFlags = None,
    slots: Annotated[int | None, typer.Option(help="Under load: requests an engine works on at once.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt length in tokens.", show_default="128")] = None,
    output: Annotated[str | None, typer.Option(help="Tokens to generate per request.", show_default="64")] = None,
    precision: Annotated[str, typer.Option(help="Stop when every decode ratio is known this well.")] = "2%",
    budget: Annotated[str, typer.Option(help="Stop measuring after this long: 90s, 3m, 1h.")] = "6m",
    out: Annotated[Path | None, typer.Option(help="Directory for result, log and page.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted study.")] = False,
    seed: Annotated[int, typer.Option(help="Same seed, same weights, prompts and order.")] = 0,
    threads: Threads = None,
    charts: Annotated[bool, typer.Option("--charts", help="Also write each chart as an SVG file.")] = False,
    inside: Annotated[bool, typer.Option(help="Profile the models and trace their routing afterwards.")] = True,
    quiet: Quiet = False,
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Compare the largest prepared pair that fits here.")] = False,
) -> None:
    if trace is not None and rounds != ROUNDS:
        raise UserError(f"--rounds {rounds} repeats a --rate; a trace is played once, in turns")
    if rate is not None or trace is not None or arrivals.startswith(("steps", "ramp")):
        traffic = breakeven.Traffic(
            rate=rate,
            trace=trace,
            trace_format=trace_format,
            prompts=prompts,
            arrivals=arrivals,
            speed=speed,
            window=window,
            duration=duration,
            warm_up=warm_up,
            prompt=prompt,
            output=output,
            slo=slo,
            seed=seed,
        )
        options = breakeven.LoadOptions(
            out=out,
            resume=resume,
            engine=engine,
            gpu_layers=gpu_layers,
            cpu_moe=cpu_moe,
            device=device,
            tensor_split=tensor_split,
            engine_flags=tuple(engine_flag or ()),
            format_name=format_name,
            kv=kv,
            assume=assume,
            threads=threads,
            slots=slots,
            command=command(),
        )
        _under_load(models or [], traffic, rounds, options, quiet=quiet, full=full, as_json=as_json)
        return
    loaded = {"--trace-format": trace_format, "--window": window, "--duration": duration, "--warm-up": warm_up}
    loaded |= {"--slo": slo, "--arrivals": None if arrivals == "poisson" else arrivals}
    loaded |= {"--speed": None if speed == 1.0 else str(speed)}
    for option, value in loaded.items():
        if value is not None:
            raise UserError(f"{option} {value} is of traffic; give it with --rate or --trace, or leave it out")
    if not re.fullmatch(r"\d+(,\d+)*", streams):
        raise UserError(f"--streams {streams!r}: give whole numbers separated by commas, such as 1,2,4,8")
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    lengths = {"prompt_tokens": tokens("--prompt", prompt), "output_tokens": tokens("--output", output)}
    relative, budget_s = percent("--precision", precision, "2%"), duration_of(budget)
    from rich.console import Console

    from breakeven.pages.progress import Progress
    from breakeven.pages.saved import json_text, show

    saved: list[Path] = []
    with (
        resumable("finished blocks are kept"),
        Progress(Console(stderr=True, highlight=False), quiet=quiet or as_json) as progress,
    ):
        result = breakeven.compare(
            models or [],
            format=format_name,
            kv=kv,
            assume=assume,
            engine=engine,
            gpu_layers=gpu_layers,
            cpu_moe=cpu_moe,
            device=device,
            tensor_split=tensor_split,
            engine_flags=tuple(engine_flag or ()),
            streams=[int(part) for part in streams.split(",")],
            **{name: n for name, n in lengths.items() if n is not None},
            prompts=prompts,
            precision=relative,
            budget_s=budget_s,
            out=out,
            resume=resume,
            seed=seed,
            threads=threads,
            look_inside=inside,
            charts=charts,
            demo=demo,
            command=command(),
            on_progress=progress.update,
            on_saved=saved.append,
        )
    typer.echo(json_text(result) + "\n") if as_json else show(result, saved[0], full=full)


def _under_load(
    models: list[str],
    traffic: breakeven.Traffic,
    rounds: int,
    options: breakeven.LoadOptions,
    *,
    quiet: bool,
    full: bool,
    as_json: bool,
) -> None:
    """Candidates under the same traffic."""
    from breakeven.pages.saved import json_text, show

    saved: list[Path] = []
    with load_progress(quiet=quiet or as_json) as shown:
        study = breakeven.compare_under_load(
            models,
            traffic,
            rounds=rounds,
            options=options,
            on_state=shown.update,
            on_phase=shown.phase,
            on_saved=saved.append,
        )
    typer.echo(json_text(study)) if as_json else show(study, saved[0], full=full)
    if study.unanswered:
        raise BreakevenError(study.unanswered)


def tokens(option: str, text: str | None) -> int | None:
    """A fixed number of tokens; distributions belong to loads. Raises UserError."""
    if text is None:
        return None
    if not re.fullmatch(r"-?\d+", text.strip()):
        raise UserError(f"{option} {text!r}: give a whole number; distributions go with --rate")
    return int(text)
