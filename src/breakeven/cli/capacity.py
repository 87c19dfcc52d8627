"""`breakeven capacity`: how many requests a second, and how many people at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import (
    Assume,
    Chat,
    CpuMoe,
    Device,
    Engine,
    EngineFlags,
    Full,
    GpuLayers,
    Kv,
    ModelName,
    Processes,
    Prompts,
    Quiet,
    Ray,
    Slots,
    SyntheticFormat,
    TensorSplit,
    Threads,
    Tokenizer,
    command,
    load_progress,
    percent,
    resumable,
)
from breakeven.cli.words import target as target_of
from breakeven.errors import UserError

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
    model: ModelName = None,
    only: Annotated[str | None, typer.Option(help="Search only one: rate or users.", show_default="both")] = None,
    share: Annotated[str, typer.Option(help="Share of requests that must be good.")] = "90%",
    confidence: Annotated[str, typer.Option(help="How sure the limits must be.")] = "95%",
    precision: Annotated[str, typer.Option(help="How near to the limit to go.")] = "10%",
    think: Annotated[str, typer.Option(help="What a user waits between an answer and the next request.")] = "10s",
    prompt: Annotated[
        str | None, typer.Option(help="Tokens: 512, uniform:64-512, lognormal:1155,900.", show_default="512")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Tokens, as for --prompt.", show_default="128")] = None,
    prompts: Prompts = None,
    chat: Chat = False,
    max_users: Annotated[int, typer.Option(help="Never try more users than this.")] = 4096,
    max_rate: Annotated[
        float | None, typer.Option(help="Never try a higher rate, requests/s.", show_default="what the client drives")
    ] = None,
    budget: Annotated[str, typer.Option(help="Stop measuring after about this long: 90s, 10m, 1h.")] = "10m",
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
    threads: Threads = None,
    tokenizer: Tokenizer = None,
    seed: Annotated[int, typer.Option(help="Same seed, same schedules.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Directory for result and log.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search.")] = False,
    quiet: Quiet = False,
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")] = False,
) -> None:
    from breakeven.traffic.words import DEFAULT_OUTPUT, DEFAULT_PROMPT, option_seconds, parse_length

    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")
    if prompts is not None and prompt is not None:
        raise UserError("--prompt makes prompts up, and --prompts brings them; leave one of them out")
    answers = output or (DEFAULT_OUTPUT if prompts is None else None)
    search = breakeven.CapacityOptions(
        prompt=parse_length(prompt or DEFAULT_PROMPT),
        output=None if answers is None else parse_length(answers),
        prompts=prompts,
        chat=chat,
        think_s=option_seconds("--think", think),
        target_share=percent("--share", share),
        confidence=percent("--confidence", confidence),
        precision=percent("--precision", precision),
        budget_s=option_seconds("--budget", budget),
        axes=breakeven.CapacityOptions.axes_of(only),
        most_users=max_users,
        highest_rate=max_rate,
        seed=seed,
    )
    where = target_of(target, model)
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
        threads=threads,
        slots=slots,
        tokenizer=tokenizer,
        ray_address=ray,
        command=command(),
    )
    from breakeven.pages.saved import json_text, show

    saved: list[Path] = []
    with resumable("what was found is in result.json"), load_progress(quiet=quiet or as_json) as shown:
        study = breakeven.capacity(
            where,
            slo,
            search,
            options=options,
            on_state=shown.update,
            on_phase=shown.phase,
            on_saved=saved.append,
        )
    typer.echo(json_text(study)) if as_json else show(study, saved[0], full=full)
