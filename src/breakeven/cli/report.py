"""`breakeven report`: every number of a study again, from its event log alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven

app = typer.Typer()

EXAMPLES = """Compute a study's result again from its events.jsonl, and write result and page anew.

Nothing but the log is read, so whoever has the log can check every number. Works for `compare`, `bench` and `capacity`.

\b
breakeven report results/olmoe-1b-7b-vs-llama-3.2-1b
breakeven report results/olmoe-1b-7b-vs-llama-3.2-1b --json
"""


@app.command(help=EXAMPLES)
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Write to another directory.", show_default="DIR")] = None,
    charts: Annotated[bool, typer.Option("--charts", help="Also write a comparison's charts as SVG.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result instead of the summary.")] = False,
) -> None:
    from breakeven.pages.saved import json_text, show

    study = breakeven.report(directory, out or directory, charts=charts)
    typer.echo(json_text(study)) if as_json else show(study, out or directory)
