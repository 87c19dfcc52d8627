"""`breakeven report`: every number of a study again, from its event log alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    from breakeven.cli import report_run

    report_run.run(directory, out or directory, charts=charts, as_json=as_json)
