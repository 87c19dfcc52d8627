"""`breakeven models`: the catalogue, or one model in numbers."""

from __future__ import annotations

from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import print_json

SCHEMA = "breakeven.models/1"

app = typer.Typer()


@app.command()
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name of the list, a hub id, a config.json, a directory, a .gguf or a .yaml.", metavar="NAME"
        ),
    ] = None,
    assume: Annotated[
        bool, typer.Option("--assume", help="Read on past keys of a config.json that are not known.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """List the models known by name, or show one: counts, bytes by format, KV, experts, source."""
    from rich.console import Console

    from breakeven.pages.catalogue import print_detail, print_list

    if name is None:
        listed = breakeven.models()
        print_json({"schema": SCHEMA, "models": listed}) if json else print_list(listed, Console())
        return
    found = breakeven.models(name, assume=assume)
    print_json({"schema": SCHEMA, "model": found}) if json else print_detail(found, Console())
