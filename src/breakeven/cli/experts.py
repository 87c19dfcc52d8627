"""`breakeven experts`: make experts of a dense weight file; look at, drop, sort, add, merge, train those of others."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import breakeven
from breakeven.cli.retrain import retrain
from breakeven.cli.watch import watch
from breakeven.cli.words import Full, Quiet, Threads, duration, print_json
from breakeven.errors import UserError

app = typer.Typer(no_args_is_help=True)
app.command()(retrain)
app.command()(watch)

Dense = Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="A dense GGUF of the llama architecture.")]
Moe = Annotated[Path, typer.Argument(metavar="MODEL.gguf", help="A Mixture-of-Experts GGUF.")]
Out = Annotated[Path, typer.Option("--out", help="File to write; its proof is written beside it.")]
Experts = Annotated[int, typer.Option("--experts", help="How many experts.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of a random router.")]
Scores = Annotated[Path | None, typer.Option("--scores", help="What `breakeven experts score` wrote of this file.")]
By = Annotated[str, typer.Option("--by", help="score, or load: the tokens each expert saw.")]
Used = Annotated[int | None, typer.Option("--used", help="Experts run per token; as before unless given.")]
Text = Annotated[
    Path | None,
    typer.Option("--text", help="What to prove it on: a file, or a folder with one folder a language."),
]
Encoding = Annotated[str | None, typer.Option("--encoding", help="Of the text, where it is not UTF-8: koi8-r.")]
Budget = Annotated[str | None, typer.Option("--budget", help="Time for the proof, such as 3m.")]
Json = Annotated[bool, typer.Option("--json", help="Print the proof as JSON.")]


@app.command()
def split(
    model: Dense,
    out: Out,
    experts: Experts = 8,
    used: Annotated[int | None, typer.Option("--used", help="Experts run per token; all unless given.")] = None,
    seed: Seed = 0,
    by: Annotated[
        str | None, typer.Option("--by", help="importance: sort neurons first, so that the last expert is the coldest.")
    ] = None,
    down: Annotated[
        str | None, typer.Option("--down", help="With --by: the format of down, its own unless given.")
    ] = None,
    text: Text = None,
    encoding: Encoding = None,
    budget: Budget = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Cut every feed-forward into experts. With all of them used the model computes what it did before.

    Example: breakeven experts split smollm2.gguf --experts 8 --out smollm2-8x.gguf
    """
    _tell(
        lambda told: breakeven.experts.split(
            model,
            out,
            experts,
            used,
            seed,
            by=by,
            down=down,
            text=text,
            encoding=encoding,
            budget_s=_seconds(budget),
            on_progress=told,
        ),
        full=full,
        quiet=quiet,
        json=json,
    )


@app.command()
def copy(
    model: Dense,
    out: Out,
    experts: Experts = 8,
    used: Annotated[int | None, typer.Option("--used", help="Experts run per token; 2 unless given.")] = None,
    seed: Seed = 0,
    text: Text = None,
    encoding: Encoding = None,
    budget: Budget = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Repeat every feed-forward as equal experts behind a random router: same answers, more bytes.

    Example: breakeven experts copy smollm2.gguf --experts 8 --used 2 --out smollm2-8copies.gguf
    """
    _tell(
        lambda told: breakeven.experts.copy(
            model, out, experts, used, seed, text=text, encoding=encoding, budget_s=_seconds(budget), on_progress=told
        ),
        full=full,
        quiet=quiet,
        json=json,
    )


@app.command()
def prune(
    model: Moe,
    out: Out,
    keep: Annotated[int, typer.Option("--keep", help="Experts to keep in every layer.")],
    scores: Scores = None,
    by: By = "score",
    first: Annotated[
        bool, typer.Option("--first", help="Keep the first ones: the best after order, or after split --by importance.")
    ] = False,
    used: Used = None,
    text: Text = None,
    encoding: Encoding = None,
    budget: Budget = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Drop the least useful experts of every layer. The others' bytes are kept as they are.

    Example: breakeven experts prune olmoe.gguf --keep 48 --scores score.json --text guide --out olmoe-48.gguf
    """
    _tell(
        lambda told: breakeven.experts.prune(
            model,
            out,
            keep,
            scores,
            by=by,
            first=first,
            used=used,
            text=text,
            encoding=encoding,
            budget_s=_seconds(budget),
            on_progress=told,
        ),
        full=full,
        quiet=quiet,
        json=json,
    )


@app.command()
def order(
    model: Moe,
    out: Out,
    scores: Annotated[
        Path, typer.Option("--scores", help="What `breakeven experts score` or `load` wrote of this file.")
    ],
    by: By = "score",
    text: Text = None,
    encoding: Encoding = None,
    budget: Budget = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Sort the experts of every layer, the best or busiest first. The model computes what it did before.

    Example: breakeven experts order olmoe.gguf --scores score.json --by load --out olmoe-hot-first.gguf
    """
    _tell(
        lambda told: breakeven.experts.order(
            model, out, scores, by=by, text=text, encoding=encoding, budget_s=_seconds(budget), on_progress=told
        ),
        full=full,
        quiet=quiet,
        json=json,
    )


@app.command()
def add(
    model: Moe,
    out: Out,
    copies: Annotated[str, typer.Option("--copies", help="EXPERT:COUNT, comma-separated: 3:1,7:2.")],
    text: Text = None,
    encoding: Encoding = None,
    budget: Budget = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Put copies of experts behind the last one, in every layer; never chosen where the family has a bias for that.

    Example: breakeven experts add glm.gguf --copies 3:1 --out glm-more.gguf
    """
    pairs = _pairs("--copies", copies)
    counts = {expert: sum(count for one, count in pairs if one == expert) for expert, _ in pairs}
    _tell(
        lambda told: breakeven.experts.add(
            model, out, counts, text=text, encoding=encoding, budget_s=_seconds(budget), on_progress=told
        ),
        full=full,
        quiet=quiet,
        json=json,
    )


@app.command()
def merge(
    model: Moe,
    out: Out,
    pairs: Annotated[str, typer.Option("--pairs", help="Two experts, comma-separated: 2:5,0:7.")],
    scores: Scores = None,
    used: Used = None,
    text: Text = None,
    encoding: Encoding = None,
    budget: Budget = None,
    full: Full = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Average two experts into one, in every layer. Second choice: prune usually loses less.

    Example: breakeven experts merge olmoe.gguf --pairs 2:5 --scores score.json --out olmoe-63.gguf
    """
    _tell(
        lambda told: breakeven.experts.merge(
            model,
            out,
            _pairs("--pairs", pairs),
            scores,
            used=used,
            text=text,
            encoding=encoding,
            budget_s=_seconds(budget),
            on_progress=told,
        ),
        full=full,
        quiet=quiet,
        json=json,
    )


Watched = Annotated[Path, typer.Argument(metavar="MODEL", help="A Mixture-of-Experts GGUF or Hugging Face directory.")]
Read = Annotated[Path, typer.Option("--text", help="What to run through it: a file, or a folder with one a language.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command()
def load(
    model: Watched,
    text: Read,
    encoding: Encoding = None,
    threads: Threads = None,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the result here, as JSON.")] = None,
    full: Full = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Show how a text loads MODEL's experts, by layer and language: shares, dead experts, pairs.

    Example: breakeven experts load olmoe.gguf --text texts/
    """
    _show(
        lambda told: breakeven.experts.load(model, text, encoding=encoding, threads=threads, out=out, on_progress=told),
        out,
        full=full,
        quiet=quiet,
        json=json,
    )


@app.command()
def score(
    model: Watched,
    text: Read,
    out: Annotated[Path | None, typer.Option("--out", help="Write the scores here, for prune and order.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", help="Time for switching experts off one by one: 3m.", show_default="2m")
    ] = None,
    encoding: Encoding = None,
    threads: Threads = None,
    full: Full = False,
    quiet: Quiet = False,
    json: AsJson = False,
) -> None:
    """Say what each of MODEL's experts gives, and what each language loses without it.

    Example: breakeven experts score olmoe.gguf --text texts/ --out score.json
    """
    _show(
        lambda told: breakeven.experts.score(
            model, text, budget_s=_seconds(budget), encoding=encoding, threads=threads, out=out, on_progress=told
        ),
        out,
        full=full,
        quiet=quiet,
        json=json,
    )


def _show(run: Callable[..., Any], out: Path | None, *, full: bool, quiet: bool, json: bool) -> None:
    """Run a verb that looks, and show what it saw."""
    from rich.console import Console

    from breakeven.pages.lab import show_experts
    from breakeven.pages.progress import Progress

    with Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        scores = run(progress.update)
    if json:
        print_json(scores)
    else:
        show_experts(scores, Console(), None if out is None else out.with_suffix(".html"), full=full)


def _seconds(budget: str | None) -> float | None:
    return None if budget is None else duration(budget)


def _pairs(option: str, text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6}):(\d{1,6})\s*", part)
        if match is None:
            raise UserError(f"{option} {text}: give numbers such as 3:1 or 3:1,7:2")
        found.append((int(match[1]), int(match[2])))
    return found


def _tell(run: Callable[..., breakeven.Surgery], *, full: bool, quiet: bool, json: bool) -> None:
    """Run a verb, which is given where to tell its progress, and say what came of it."""
    from rich.console import Console

    from breakeven.pages.progress import Progress

    with Progress(Console(stderr=True, highlight=False), quiet=quiet or json) as progress:
        done = run(progress.update)
    if json:
        print_json(done.proof)
        return
    typer.echo(
        f"{done.out}: {done.experts} experts {done.expert_width} wide, {done.used} a token, "
        f"{done.file_bytes / 1e9:.2f} GB; {_meaning(done)}"
    )
    if done.proof is not None:
        from breakeven.pages.lab import show_proof
        from breakeven.pages.lab_html import page_of_proof

        show_proof(done.proof, Console(), page_of_proof(done.proof), full=full)


def _meaning(done: breakeven.Surgery) -> str:
    if not done.same_function:
        return "it no longer computes what its source does"
    meaning = "it computes what its source does, up to rounding"
    if done.scale_error:
        meaning += f" (scales rounded by up to {done.scale_error:.1e}; a power of two of experts rounds none)"
    return meaning
