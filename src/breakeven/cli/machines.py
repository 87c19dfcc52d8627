"""`breakeven machines`: the catalogue of chips, or one chip with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from breakeven.hardware.chips import Chip, chip_named, chips, read_chip
from breakeven.pages.catalogue import print_chip, print_chips

SCHEMA = "breakeven.machines/1"

app = typer.Typer()


@app.command()
def machines(
    name: Annotated[
        str | None,
        typer.Argument(help="A name of the list, or a YAML or JSON file that describes a chip.", metavar="NAME"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """List the chips known by name, or show one: memory, bandwidth, peak rates, power, prices with dates, source.

    A chip that is missing can be described in a file and named wherever a machine is asked for. The least such a file
    holds: `name: My board`, `class: sbc`, `bandwidth_gb_per_s: 34.1`; docs/machines.md gives every key.
    """
    if name is None:
        found = chips()
        _print_json({"machines": found}) if json else print_chips(found, Console())
        return
    chip = _chip(name)
    _print_json({"machine": chip}) if json else print_chip(chip, Console())


def _chip(text: str) -> Chip:
    path = Path(text).expanduser()
    return read_chip(path) if path.suffix in (".yaml", ".yml", ".json") else chip_named(text)


def _print_json(content: dict[str, object]) -> None:
    payload = {"schema": SCHEMA, **content}
    typer.echo(msgspec.json.format(msgspec.json.encode(payload), indent=2).decode())
