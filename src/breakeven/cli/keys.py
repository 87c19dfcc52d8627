"""`breakeven keys`: make, list and revoke the keys that clients of the gateway carry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import print_json

SCHEMA = "breakeven.keys/1"
app = typer.Typer(help="Make, list and revoke the keys that clients of `breakeven serve` carry.", no_args_is_help=True)
File = Annotated[Path, typer.Option("--file", help="The file of keys; a gateway's `keys` names it.")]
Json = Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")]
DEFAULT = Path("keys.json")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for; shown in logs and metrics.")],
    file: File = DEFAULT,
    models: Annotated[str, typer.Option(help="Public models it may ask for: a,b. Default: all.")] = "",
    limit: Annotated[
        list[str] | None, typer.Option(help="'1000 requests/min', '200k tokens/hour'. Repeatable.")
    ] = None,
    usd: Annotated[list[str] | None, typer.Option(help="Dollars: '5/day'. Repeatable.")] = None,
    slo: Annotated[str, typer.Option(help="What it is promised instead of the policy's: ttft=1s,tpot=50ms.")] = "",
    priority: Annotated[int, typer.Option(help="Higher goes first in a line; below 0 is shed first.")] = 0,
    expires: Annotated[str, typer.Option(help="After 30d, 12h, 90min; or on 2027-01-31 (UTC).")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="May also read the admin pages.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key and print its secret. It is shown this once: the file keeps only a digest of it."""
    secret = breakeven.keys.create(
        name,
        file,
        models=[part for one in models.split(",") if (part := one.strip())],
        limits=limit or [],
        usd=usd or [],
        slo=slo,
        priority=priority,
        expires=expires,
        admin=admin,
    )
    print_json({"schema": SCHEMA, "file": str(file), "name": name, "secret": secret}) if as_json else typer.echo(secret)
    if not as_json:
        typer.echo(f"Key {name} is in {file}. The line above is its only copy: hand it over now.", err=True)


@app.command("list")
def list_keys(file: File = DEFAULT, as_json: Json = False) -> None:
    """List keys with what they may do; no secret is stored, so none is shown."""
    from breakeven.pages.gateway import key_row, keys_table

    entries = breakeven.keys.list(file)
    if as_json:
        print_json({"schema": SCHEMA, "file": str(file), "keys": [key_row(entry) for entry in entries]})
    else:
        typer.echo(keys_table(entries))


@app.command()
def revoke(name: Annotated[str, typer.Argument(help="Its name.")], file: File = DEFAULT, as_json: Json = False) -> None:
    """Revoke a key for good; a running gateway refuses it within seconds."""
    breakeven.keys.revoke(name, file)
    if as_json:
        print_json({"schema": SCHEMA, "file": str(file), "revoked": name})
    else:
        typer.echo(f"key {name} in {file} is revoked")
