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
            help="A name of the list or a part of one, a hub id, a config.json, a directory, a .gguf or a .yaml.",
            metavar="NAME",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="A line for every model; of one, every weight format.")] = False,
    kv: Annotated[str, typer.Option("--kv", help="Type of keys and values: f16, q8_0, q4_0, fp8.")] = "f16",
    assume: Annotated[
        bool, typer.Option("--assume", help="Read on past keys of a config.json that are not known.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """List the models known by name, those with a word in their names, or show one: counts, bytes, KV, experts."""
    from rich.console import Console

    from breakeven.pages.catalogue import is_part, print_detail, print_groups, print_list

    if name is None and not full and not json:
        print_groups(Console())
        return
    if name is None or is_part(name):
        listed = breakeven.models(like=name)
        print_json({"schema": SCHEMA, "models": listed}) if json else print_list(listed, Console())
        return
    found = breakeven.models(name, kv=kv, assume=assume)
    print_json({"schema": SCHEMA, "model": found}) if json else print_detail(found, Console(), full)
