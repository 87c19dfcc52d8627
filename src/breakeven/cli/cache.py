"""`breakeven cache`: the synthetic weight files kept on this machine."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer

import breakeven

app = typer.Typer(help="List or delete the synthetic weight files Breakeven keeps.", no_args_is_help=True)


@app.command("list")
def list_files(as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False) -> None:
    """List the cached weight files, most recently used first."""
    found = breakeven.cache.list()
    if as_json:
        import msgspec

        files = [{"path": str(e.path), "size_bytes": e.size_bytes, "used_at": _stamp(e.used_at_s)} for e in found]
        typer.echo(msgspec.json.encode({"schema": "breakeven.cache/1", "files": files}).decode())
        return
    for entry in found:
        typer.echo(f"{entry.size_bytes / 1e9:8.2f} GB  {_stamp(entry.used_at_s)}  {entry.path.name}")
    typer.echo(
        f"{sum(e.size_bytes for e in found) / 1e9:8.2f} GB in {len(found)} files under {breakeven.cache.directory()}"
    )


@app.command()
def prune(
    unused_days: Annotated[float, typer.Option(min=0, help="Delete only files not used for so many days.")] = 0,
) -> None:
    """Delete cached weight files; they are written again when needed."""
    gone = breakeven.cache.prune(unused_days)
    typer.echo(f"deleted {len(gone)} files, {sum(e.size_bytes for e in gone) / 1e9:.2f} GB")


def _stamp(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
