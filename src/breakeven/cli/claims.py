"""`breakeven claims`: sentences that people come with, judged."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Quiet, print_json
from breakeven.errors import UserError

app = typer.Typer()


@app.command()
def claims(
    name: Annotated[str | None, typer.Argument(help="One of the list.", metavar="NAME", show_default=False)] = None,
    run: Annotated[bool, typer.Option("--run", help="Measure NAME on this machine first; it says how long.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Records and the commands behind every number.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of all of them.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON (breakeven.claims/1).")] = False,
    quiet: Quiet = False,
) -> None:
    """List the sentences people come with and their verdicts, or show one with its evidence.

    \b
    breakeven claims
    breakeven claims ten-times
    breakeven claims arm --run                      (measures it here)
    breakeven claims --markdown > docs/claims.md
    """
    if markdown and (json or name is not None):
        raise UserError("--markdown prints the page of all claims; leave out NAME and --json")
    shown = sys.stderr.isatty() and not quiet and not run

    def on_claim(current: str) -> None:
        if shown:
            sys.stderr.write(f"\r\x1b[K{current}")
            sys.stderr.flush()

    from rich.console import Console

    from breakeven.pages.progress import Progress

    silent = quiet or json
    # The list is judged in seconds; what is measured takes minutes, and is shown as `compare` and `profile` show it.
    with Progress(Console(stderr=True, highlight=False), quiet=silent or not run) as progress:
        result = breakeven.claims(
            name,
            run=run,
            on_claim=on_claim,
            on_run=partial(typer.echo, err=True) if silent else progress.tell,
            on_progress=progress.update,
        )
    if shown:
        sys.stderr.write("\r\x1b[K")
    if json:
        print_json(result)
        return
    from breakeven.pages.claims import markdown as page
    from breakeven.pages.claims import print_claim, print_claims
    from breakeven.pages.terminal import say_on

    console = Console(highlight=False)
    if markdown:
        typer.echo(page(result), nl=False)
    elif name is None:
        print_claims(result, say_on(console), console.width)
    else:
        print_claim(result.claims[0], say_on(console), full=full)
