"""`breakeven trace`: which experts a text is routed to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="A .gguf file, or a model to synthesise in Q4_K_M.")],
    text: Annotated[list[Path], typer.Option("--text", help="A text file; repeat it to compare texts.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Cut each text here.")] = 2048,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all cores unless given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run texts through MODEL and show how its experts are used: balance, dead experts, experts per step.

    Example: breakeven trace olmoe.gguf --text english.txt --text code.py
    """
    import msgspec
    from rich.console import Console

    from breakeven.engines.inside.client import trace as run
    from breakeven.engines.inside.summary import summarise
    from breakeven.engines.start import gguf_of
    from breakeven.pages.inside import show_trace

    path = gguf_of(model)
    summary = summarise(run(path, _texts(text), threads=threads, max_tokens=max_tokens))
    if json:
        typer.echo(msgspec.json.encode(summary).decode())
    else:
        show_trace(summary, Console())


def _texts(paths: list[Path]) -> dict[str, str]:
    """Label to text; a label is the file's name, or its whole path where two files share a name."""
    from breakeven.errors import UserError

    names = [path.name for path in paths]
    texts: dict[str, str] = {}
    for path in paths:
        label = path.name if names.count(path.name) == 1 else str(path)
        if label in texts:
            raise UserError(f"{path} is given twice; give each text once")
        try:
            texts[label] = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a text file") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is not UTF-8 text; convert it or give another") from None
    return texts
