"""`breakeven check`: is a server slower than it was? For CI: the exit status is 1 only when the interval says so."""

from __future__ import annotations

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
    GpuLayers,
    Kv,
    Processes,
    Quiet,
    Slots,
    SyntheticFormat,
    TensorSplit,
    Threads,
    Tokenizer,
    command,
    load_progress,
    percent,
)
from breakeven.cli.words import target as target_of

app = typer.Typer()

EXAMPLES = """Compare a run with a saved one. Exit status 1 only when an interval says that something got worse.

BASELINE and NEW are directories that `breakeven bench` wrote, or a result.json in one. Without NEW the saved schedule
is played again, request for request, on the server or model of the saved run, or on --url.

\b
breakeven bench http://localhost:8000/v1 --model qwen3 --rate 5 --slo ttft=1s --out baseline
breakeven check baseline
breakeven check baseline --url http://staging:8000/v1#qwen3 --tolerance 10%
breakeven check baseline results/tonight --json
"""


@app.command(help=EXAMPLES)
def check(
    baseline: Annotated[Path, typer.Argument(metavar="BASELINE", show_default=False)],
    new: Annotated[Path | None, typer.Argument(metavar="NEW", show_default=False)] = None,
    url: Annotated[str | None, typer.Option(help="Run on this server: http://host:port/v1#model.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model's name at --url.")] = None,
    tolerance: Annotated[str, typer.Option(help="Differences up to this are never worse.")] = "5%",
    processes: Processes = None,
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
    out: Annotated[Path | None, typer.Option(help="Directory for the new run.", show_default=False)] = None,
    quiet: Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the summary.")] = False,
) -> int:
    where = None if url is None else target_of(url, model)
    options = breakeven.LoadOptions(
        out=out,
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
        command=command(),
    )
    share = percent("--tolerance", tolerance)
    with load_progress(quiet=quiet or as_json or new is not None) as shown:
        found = breakeven.check(
            baseline, new, url=where, tolerance=share, options=options, on_state=shown.update, on_phase=shown.phase
        )
    if as_json:
        from breakeven.pages.saved import json_text

        typer.echo(json_text(found))
    else:
        from rich.console import Console

        from breakeven.pages.load_terminal import print_check

        print_check(found, Console(highlight=False))
    return int(found.worse)
