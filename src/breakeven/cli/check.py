"""`breakeven check`: is a server slower than it was? For CI: the exit status is 1 only when the interval says so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    processes: Annotated[int | None, typer.Option(help="Client processes.", show_default="as needed")] = None,
    engine: Annotated[str, typer.Option(help="Of a model started here: llama.cpp or vllm.")] = "llama.cpp",
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="Weight format of a synthetic model.", show_default="Q4_K_M, BF16"),
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Requests an engine started here works on at once.")] = None,
    threads: Annotated[int | None, typer.Option(help="Engine threads.", show_default="all CPUs")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json, where the server cannot be asked.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for the new run.", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the summary.")] = False,
) -> int:
    from breakeven.cli import check_run, load_run

    target = None if url is None else load_run.target(url, model)
    options = load_run.options(locals())
    return check_run.run(baseline, new, target, tolerance, options, quiet=quiet, as_json=as_json)
