"""`breakeven models`: the catalogue, or one model in numbers."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer
from rich.console import Console

from breakeven.model.catalogue import entries, lookup, names
from breakeven.model.resolve import resolve_spec
from breakeven.model.summary import Detail, detail, summarise
from breakeven.pages.catalogue import print_detail, print_list

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
    json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """List the models known by name, or show one: counts, bytes by format, KV, experts, source."""
    if name is None:
        listed = [summarise(known, lookup(known)) for known in names()]
        _print_json({"models": listed}) if json else print_list(listed, Console())
        return
    found = _detail(name)
    _print_json({"model": found}) if json else print_detail(found, Console())


def _detail(text: str) -> Detail:
    spec = resolve_spec(text)
    # A file may carry a catalogued model's name and other shapes; only the very same model gets the short name.
    same = (entry.name for entry in entries() if entry.hub_id == spec.name and lookup(entry.name) == spec)
    return detail(next(same, spec.name), spec)


def _print_json(content: dict[str, object]) -> None:
    payload = {"schema": SCHEMA, **content}
    typer.echo(msgspec.json.format(msgspec.json.encode(payload), indent=2).decode())
