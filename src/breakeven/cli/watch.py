"""`breakeven experts watch`: what a running gateway sees of its experts."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

import breakeven
from breakeven.cli.words import Full, print_json


def watch(
    url: Annotated[str, typer.Argument(metavar="URL", help="The gateway's admin page, such as http://127.0.0.1:8001.")],
    backend: Annotated[str | None, typer.Option("--backend", help="Of this backend alone.", metavar="NAME")] = None,
    key_env: Annotated[
        str, typer.Option("--key-env", help="The variable with the admin secret, or an admin key.", metavar="NAME")
    ] = "BREAKEVEN_ADMIN_SECRET",
    once: Annotated[bool, typer.Option("--once", help="One look, also on a terminal.")] = False,
    full: Full = False,
    json: Annotated[bool, typer.Option("--json", help="Print one look as JSON (breakeven.experts/1).")] = False,
) -> None:
    """Show which experts a running gateway's requests reach: load, dead and hot experts, drift, by key and language.

    On a terminal it is shown anew every five seconds, until Ctrl-C. docs/experts-serving.md says how to have a gateway
    look at its experts.

    Example: breakeven experts watch http://127.0.0.1:8001
    """
    look = partial(breakeven.experts.watch, url, backend=backend, key_env=key_env)
    if json:
        print_json(look())
        return
    from rich.console import Console

    from breakeven.pages.experts_seen import watch as show

    show(look, Console(), backend=backend, once=once, full=full)
