"""`breakeven report`: every number of a study again, from its event log alone; the lab's results and their pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven

app = typer.Typer()

EXAMPLES = """Compute a study's result again from its events.jsonl, and write result and page anew.

Nothing but the log is read, so whoever has the log can check every number. Works for `compare`, `bench` and `capacity`.
Given the JSON of an evaluation, a proof or experts' scores, it shows that and writes its page beside it.

\b
breakeven report results/olmoe-1b-7b-vs-llama-3.2-1b
breakeven report results/olmoe-1b-7b-vs-llama-3.2-1b --json
breakeven report smollm2-Q4_K.proof.json --speed results/compare-1
"""


@app.command(help=EXAMPLES)
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR|FILE.json", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Write to another directory.", show_default="DIR")] = None,
    speed: Annotated[
        Path | None, typer.Option(help="Of the lab's results: a saved comparison of the same files.", metavar="DIR")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print all of it, not one screen.")] = False,
    charts: Annotated[bool, typer.Option("--charts", help="Also write a comparison's charts as SVG.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result instead of the summary.")] = False,
) -> None:
    from breakeven.pages.lab_html import LabResult
    from breakeven.pages.saved import json_text, lab_file, show, show_lab

    data = lab_file(directory)
    to = out or (directory if data is None else data.parent)
    study = breakeven.report(directory, to, charts=charts, speed=speed)
    if as_json:
        typer.echo(json_text(study))
    elif isinstance(study, LabResult):
        assert data is not None, "results of the lab are files"
        show_lab(study, to / data.name, full=full)
    else:
        show(study, to, full=full)
