"""`breakeven experiment`: how a gateway's experiments stand, from its decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Log, print_json

SCHEMA = "breakeven.experiment/1"

app = typer.Typer(no_args_is_help=True, help="Show how a gateway's experiments stand: A/B, shadow, canary.")


@app.callback()
def experiment() -> None:
    """Experiments are described in the gateway's file; docs/experiment.md shows how."""


@app.command()
def status(
    log: Log = None,
    gateway: Annotated[
        Path | None,
        typer.Option("--gateway", help="The gateway's file: compute from its log as it is now.", metavar="FILE"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help=f"Print JSON ({SCHEMA}).")] = False,
) -> None:
    """Each experiment's verdict, arms and differences with intervals that hold at every look.

    With --log, as the running gateway saved them (every few seconds). With --gateway, computed from the log as it is
    now; both together: that file's experiments, computed from that directory. Nothing is changed.
    """
    states = breakeven.experiment.status(log, gateway)
    if as_json:
        print_json({"schema": SCHEMA, "experiments": states})
        return
    from rich.console import Console

    from breakeven.pages.gateway import print_experiments

    print_experiments(states, Console())
