"""`breakeven bench`: one endpoint, or one model started here, under real traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    Arrivals,
    Assume,
    Chat,
    Concurrency,
    CpuMoe,
    Device,
    Engine,
    EngineFlags,
    Full,
    GpuLayers,
    Kv,
    ModelName,
    Output,
    Processes,
    Prompt,
    Prompts,
    Quiet,
    Rate,
    Ray,
    SloOption,
    Slots,
    Speed,
    SyntheticFormat,
    TensorSplit,
    Think,
    Tokenizer,
    Trace,
    TraceFormat,
    Turns,
    WarmUp,
    Window,
    command,
    load_progress,
)
from breakeven.cli.words import target as target_of

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
breakeven bench my-model.gguf --concurrency 4 --prompts questions.jsonl
"""


@app.command(help=EXAMPLES)
def bench(
    target: Annotated[str, typer.Argument(metavar="TARGET", show_default=False)],
    model: ModelName = None,
    rate: Rate = None,
    concurrency: Concurrency = None,
    trace: Trace = None,
    trace_format: TraceFormat = None,
    prompts: Prompts = None,
    arrivals: Arrivals = "poisson",
    speed: Speed = 1.0,
    window: Window = None,
    duration: Annotated[str | None, typer.Option(help="Measured time a load.", show_default="60s")] = None,
    requests: Annotated[int | None, typer.Option(help="Measured requests a load.", show_default=False)] = None,
    warm_up: WarmUp = None,
    prompt: Prompt = None,
    output: Output = None,
    turns: Turns = 1,
    think: Think = "0s",
    sharing: Annotated[bool, typer.Option("--sharing", help="Let the trace's prefixes be shared, caches on.")] = False,
    languages: Annotated[str, typer.Option(help="Of the prompts, comma-separated: en,de,zh.")] = "",
    chat: Chat = False,
    stream: Annotated[bool, typer.Option(help="Stream the answers; without, there is no TTFT.")] = True,
    slo: SloOption = None,
    rounds: Annotated[int, typer.Option(help="Repeat every load with fresh arrivals.")] = 1,
    processes: Processes = None,
    ray: Ray = None,
    engine: Engine = None,
    gpu_layers: GpuLayers = None,
    cpu_moe: CpuMoe = None,
    device: Device = None,
    tensor_split: TensorSplit = None,
    engine_flag: EngineFlags = None,
    format_name: SyntheticFormat = None,
    kv: Kv = None,
    assume: Assume = False,
    slots: Slots = None,
    tokenizer: Tokenizer = None,
    seed: Annotated[int, typer.Option(help="Same seed, same schedule.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory for result, log and page.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    quiet: Quiet = False,
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")] = False,
) -> None:
    where = target_of(target, model)
    traffic = breakeven.Traffic(
        rate=rate,
        concurrency=concurrency,
        trace=trace,
        trace_format=trace_format,
        prompts=prompts,
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
        languages=languages,
        chat=chat,
        stream=stream,
        slo=slo,
        seed=seed,
    )
    options = breakeven.LoadOptions(
        out=out,
        resume=resume,
        processes=processes,
        engine=engine,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        device=device,
        tensor_split=tensor_split,
        engine_flags=tuple(engine_flag or ()),
        format_name=format_name,
        kv=kv,
        assume=assume,
        slots=slots,
        tokenizer=tokenizer,
        ray_address=ray,
        command=command(),
    )
    from breakeven.errors import BreakevenError
    from breakeven.pages.saved import json_text, show

    saved: list[Path] = []
    with load_progress(quiet=quiet or as_json) as shown:
        study = breakeven.bench(
            where,
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
