"""`breakeven machines`: the catalogue of chips, one chip with its source, or a machine that is described."""

from __future__ import annotations

from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import print_json
from breakeven.errors import UserError

SCHEMA = "breakeven.machines/1"

app = typer.Typer()


@app.command()
def machines(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name of the list, parts joined by +, or a YAML or JSON file that describes yours.",
            metavar="NAME",
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Without a name: a line for every chip.")] = False,
    json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """List the chips known by name, or show one: memory, bandwidth, peak rates, power, prices with dates, source.

    A whole machine is its parts joined by +, such as `rtx-3090+ddr4-3200x2:64GB`. A chip that is missing can be
    described in a file and named wherever a machine is asked for. The least such a file holds: `name: My board`,
    `class: sbc`, `bandwidth_gb_per_s: 34.1`; docs/machines.md gives every key.
    """
    from rich.console import Console

    from breakeven.pages.chips import print_chip, print_chip_names, print_chips, print_machine

    if name is not None and full:
        raise UserError(f"--full gives the list a line for every chip; leave it out to read of {name}")
    if name is None:
        found = breakeven.machines()
        if json:
            print_json({"schema": SCHEMA, "machines": found})
        else:
            (print_chips if full else print_chip_names)(found, Console())
        return
    one = breakeven.machines(name)
    if json:
        print_json({"schema": SCHEMA, "machine": one})
    elif isinstance(one, breakeven.Machine):
        print_machine(one, Console())
    else:
        print_chip(one, Console())
