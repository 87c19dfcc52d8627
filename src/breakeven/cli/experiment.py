"""`breakeven experiment`: how a gateway's experiments stand, from its decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SCHEMA = "breakeven.experiment/1"

app = typer.Typer(no_args_is_help=True, help="Show how a gateway's experiments stand: A/B, shadow, canary.")


@app.callback()
def experiment() -> None:
    """Experiments are described in the gateway's file; docs/experiment.md shows how."""


@app.command()
def status(
    log: Annotated[Path | None, typer.Option("--log", help="The decision log's directory.", metavar="DIR")] = None,
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
    import msgspec

    from breakeven.cli.log_directory import log_directory
    from breakeven.gateway.experiment.watch import status as states_of

    states = states_of(*log_directory(log, gateway))
    if as_json:
        content = msgspec.json.encode({"schema": SCHEMA, "experiments": states})
        typer.echo(msgspec.json.format(content, indent=2).decode())
        return
    from rich.console import Console

    from breakeven.pages.experiments import print_experiments

    print_experiments(states, Console())
