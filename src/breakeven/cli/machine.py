"""`breakeven machine`: this machine as an engine sees it."""

from __future__ import annotations

from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import print_json

SCHEMA = "breakeven.machine/1"

app = typer.Typer()


@app.command()
def machine(json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.machine/1).")] = False) -> None:
    """Describe this machine: CPU, cores and memory this process may use, caches, instruction sets, GPUs."""
    spec = breakeven.machine()
    if json:
        import msgspec

        print_json({"schema": SCHEMA, **msgspec.to_builtins(spec)})
        return
    from breakeven.pages.catalogue import machine_lines

    typer.echo("\n".join(machine_lines(spec)))
