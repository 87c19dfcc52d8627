"""`breakeven explain`: why a request went where it went, from the gateway's decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SCHEMA = "breakeven.explain/1"

app = typer.Typer()


@app.command()
def explain(
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="The answer's header x-breakeven-request-id.")
    ],
    log: Annotated[Path | None, typer.Option("--log", help="The decision log's directory.", metavar="DIR")] = None,
    gateway: Annotated[
        Path | None, typer.Option("--gateway", help="The gateway's file, which says where its log is.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """Say why a request went where it went: what was asked, what each backend was predicted to give, what happened.

    The policy's rules are applied again to the numbers in the log, and what they give is told.
    """
    import msgspec

    from breakeven.cli.log_directory import log_directory
    from breakeven.errors import UserError
    from breakeven.gateway.route.replay import chosen, could_choose
    from breakeven.gateway.route.replay import explain as words
    from breakeven.gateway.seen.read_log import find

    directory, _ = log_directory(log, gateway)
    record = find(directory, request_id)
    if record is None:
        raise UserError(
            f"{directory} holds no request {request_id}; it is written when the request ends, and old files are "
            "removed (`log.keep`)"
        )
    if as_json:
        content = {
            "schema": SCHEMA,
            "chosen": chosen(record),
            "could_choose": could_choose(record),
            "text": words(record),
            "record": record,
        }
        typer.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
    else:
        typer.echo(words(record))
