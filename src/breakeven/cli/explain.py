"""`breakeven explain`: why a request went where it went, from the gateway's decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Log, print_json

app = typer.Typer()


@app.command()
def explain(
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="The answer's header x-breakeven-request-id.")
    ],
    log: Log = None,
    gateway: Annotated[
        Path | None, typer.Option("--gateway", help="The gateway's file, which says where its log is.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.explain/1).")] = False,
) -> None:
    """Say why a request went where it went: what was asked, what each backend was predicted to give, what happened.

    The policy's rules are applied again to the numbers in the log, and what they give is told.
    """
    found = breakeven.explain(request_id, log, gateway)
    print_json(found) if as_json else typer.echo(found.text)
