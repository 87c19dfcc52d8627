"""What the lab's verbs share on the command line: the options of a training, and how what was made is told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from breakeven.cli.words import duration, print_json

OutDirectory = Annotated[Path, typer.Option("--out", help="Directory to write.", metavar="DIR")]
During = Annotated[str | None, typer.Option("--for", help="Time to train: 90s, 3m.", show_default="3m", metavar="TIME")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Steps to train, in place of a time: repeats a run.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn, and of the order of the text.")]
Encoding = Annotated[str | None, typer.Option("--encoding", help="Of text that is not UTF-8: koi8-r.")]
TrainThreads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads that train.", show_default="all CPUs")
]
ProofAsJson = Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")]


def batch_of(usual: str) -> Any:
    """`--batch`, which without it is `usual`."""
    return typer.Option("--batch", min=1, help="Rows a step, at most.", show_default=usual)


def rate_of(usual: str) -> Any:
    """`--rate`, which without it is `usual`."""
    return typer.Option("--rate", help="Learning rate.", show_default=usual)


def tokens_of(usual: str, least: int = 2) -> Any:
    """`--tokens`, which without it is `usual`."""
    return typer.Option("--tokens", min=least, help="Of a row.", show_default=usual)


def seconds_of(during: str | None) -> float | None:
    """What `--for` says, None where it is not given. Raises UserError."""
    return None if during is None else duration(during, "--for")


@contextmanager
def trained_on(out: Path) -> Iterator[None]:
    """A training that is interrupted says where it lies, and how it goes on."""
    folder = out.parent / f"{out.name}.training"
    try:
        yield
    except KeyboardInterrupt:
        if folder.is_dir():
            print(f"\n{folder} holds what was trained; the same command goes on from there", file=sys.stderr)
        raise


def tell_proof(
    make: Callable[..., Any],
    *,
    full: bool,
    quiet: bool,
    json: bool,
    training: Path | None = None,
) -> None:
    """Run a verb, which is given where to tell its progress, and show each proof it gives. `training`: its --out."""
    from rich.console import Console

    from breakeven.pages.progress import Progress

    kept = nullcontext() if training is None else trained_on(training)
    with kept, Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        made = make(progress.update)
    if json:
        print_json(made)
        return
    from breakeven.pages.lab import show_proof
    from breakeven.pages.lab_html import page_of_proof

    for proof in made if isinstance(made, Sequence) else [made]:
        show_proof(proof, Console(), page_of_proof(proof), full=full)
