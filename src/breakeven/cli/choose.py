"""`breakeven choose`: the best model for a machine, a use and its limits, and how sure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Devices, EngineByMachine, Full, print_json

app = typer.Typer()

EXAMPLES = """Find the best of all catalogued models for a machine and a use: which, in which format, where it lies.

Quality against speed against memory, Mixture-of-Experts and dense, each with its band; nothing is downloaded or run.

\b
breakeven choose
breakeven choose --machine rtx-3060+ddr4-3200x2:64GB --use code
breakeven choose --machine apple-m4-pro:48GB --use chat --languages hi,en --licence permissive
breakeven choose --machine h100-sxm --use agent --users 16 --min-speed 30
breakeven choose --machine rtx-4090+ram:64GB --use code --explain qwen3-30b-a3b:Q8_0
"""


@app.command(help=EXAMPLES)
def choose(
    machine: Annotated[str, typer.Option(help="A chip, chip+ddr5-5600x2:64GB, a file, or this.")] = "this",
    use: Annotated[str, typer.Option(help="chat, code, agent, rag, batch or translate.")] = "chat",
    users: Annotated[int, typer.Option(help="People, or requests, at once.")] = 1,
    min_speed: Annotated[
        float | None, typer.Option(help="Tokens/s that each user must get.", show_default="by use")
    ] = None,
    ttft: Annotated[
        float | None, typer.Option(help="Seconds to the first token, at most.", show_default="by use")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="All that it may take, such as 12GB.", show_default="the machine's")
    ] = None,
    languages: Annotated[str | None, typer.Option(help="Codes, such as hi,ta,en; quality counts them in.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Allowed: apache-2.0,mit or permissive.", show_default="any")
    ] = None,
    max_usd_per_month: Annotated[
        float | None, typer.Option(help="Dollars a month for the machine's rent, or for requests to an API.")
    ] = None,
    offline_only: Annotated[bool, typer.Option("--offline-only", help="Nothing behind somebody's API.")] = False,
    prompt: Annotated[int | None, typer.Option(help="Tokens read before an answer.", show_default="by use")] = None,
    output: Annotated[int | None, typer.Option(help="Tokens of an answer.", show_default="by use")] = None,
    context: Annotated[int | None, typer.Option(help="Tokens each cache holds.", show_default="by use")] = None,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Your own scores: JSON lines, lm-eval's results, an evaluation.")
    ] = None,
    engine: EngineByMachine = None,
    devices: Devices = None,
    explain: Annotated[
        str | None, typer.Option(help="Say why NAME or NAME:FORMAT is not the pick.", metavar="NAME:FORMAT")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for result and page.", show_default=False)] = None,
    full: Full = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.choose/1).")] = False,
) -> None:
    result = breakeven.choose(
        machine,
        use=use,
        users=users,
        prompt=prompt,
        output=output,
        context=context,
        min_speed=min_speed,
        ttft=ttft,
        memory=memory,
        languages=languages,
        licence=licence,
        max_usd_per_month=max_usd_per_month,
        offline_only=offline_only,
        scores=scores or (),
        engine=engine,
        devices=devices,
        explain=explain,
        out=out,
    )
    if as_json:
        print_json(result)
    else:
        from rich.console import Console

        from breakeven.pages.choose import print_choice
        from breakeven.pages.choose_html import PAGE

        print_choice(result, Console(), None if out is None else out / PAGE, full=full)
