"""Verbs of the lab: what evaluates models, and what makes others of them.

Each imports what it needs when it is called.
"""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from breakeven.errors import expanded, word_of

if TYPE_CHECKING:
    from breakeven.measure.progress import ProgressState
    from breakeven.results.lab import Evaluation, Proof

P = ParamSpec("P")
R = TypeVar("R")


def paged(make: Callable[P, R]) -> Callable[P, R]:
    """`make`, after which each proof it gives has its page beside it."""

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        from breakeven.pages.lab_html import write_proof_page
        from breakeven.results.lab import Proof

        result = make(*args, **kwargs)
        for each in result if isinstance(result, list | tuple) else [result]:
            proof = each if isinstance(each, Proof) else getattr(each, "proof", None)
            if isinstance(proof, Proof):
                write_proof_page(proof)
        return result

    return made


def evaluate(
    models: Sequence[Path | str],
    text: Path | str | None = None,
    *,
    tasks: Path | str | None = None,
    against: Path | str | None = None,
    used: Sequence[int] = (),
    budget_s: float | None = None,
    encoding: str | None = None,
    threads: int | None = None,
    out: Path | str | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Evaluation:
    """How well models predict the text of a file or directory, in bits per byte by language and domain, and which share
    of the `tasks` of a file they solve.

    `models`: .gguf files, Hugging Face directories, or URLs of servers. `against`: also how far each is from this one,
    in nats a token.
    `used`: MoE models run with each of these numbers of experts a token. `budget_s`: of scoring; it reads as much of
    every language. `encoding`: of files that are not UTF-8. `out`: a file to write the result to. Raises UserError for
    text too short for an interval, tokenizers that differ where `against` is given, and models that do not fit.
    """
    import msgspec

    from breakeven.errors import expanded
    from breakeven.lab.corpus import beside_languages, read_documents
    from breakeven.lab.evaluate import evaluate
    from breakeven.lab.tasks import read_tasks
    from breakeven.results import store

    options = options_said(
        text=text,
        tasks=tasks,
        against=against,
        used=",".join(map(str, used)) or None,
        budget=budget_s,
        encoding=encoding,
        threads=threads,
    )
    result = evaluate(
        models,
        [] if text is None else read_documents(expanded(text), encoding),
        tasks=() if tasks is None else read_tasks(expanded(tasks)),
        against=against,
        used=used,
        budget_s=budget_s,
        threads=threads,
        text=None if text is None else str(text),
        command=shlex.join(["breakeven", "evaluate", *map(word_of, models), *options]),
        on_step=steps_for(on_progress),
    )
    if text is not None and (beside := beside_languages(expanded(text))):
        said = f"Not read, because they lie beside the folders of languages: {', '.join(beside)}."
        result = msgspec.structs.replace(result, caveats=[*result.caveats, said])
    if out is not None:
        from breakeven.pages.lab_html import write_page

        write_page(result, store.write(result, Path(out)))
    return result


@paged
def export(
    model: Path | str,
    to: str,
    out: Path | str,
    *,
    dtype: str | None = None,
    text: Path | str | None = None,
    encoding: str | None = None,
    budget_s: float | None = None,
    assume: bool = False,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Proof:
    """Write a model in another form at `out`, with the proof beside it that engines compute the same with it.

    `to`: gguf, of a Hugging Face directory; hf, a directory, of a .gguf file; onnx or litert, of a directory. `dtype`:
    f32, f16 or bf16 of the matrices; None: as they are stored, quantized ones in f32. `text`: a file or directory that
    quality is compared on by language, within `budget_s`. `assume`: go on past keys that are not known.
    Raises UserError for what cannot be exported so, BreakevenError naming the check that failed; then nothing is left.
    """
    from breakeven.lab.corpus import read_documents
    from breakeven.lab.export import export

    options = options_said(to=to, out=out, dtype=dtype, text=text, encoding=encoding, budget=budget_s, assume=assume)
    return export(
        expanded(model),
        to,
        expanded(out),
        command=shlex.join(["breakeven", "export", word_of(model), *options]),
        dtype=dtype,
        text=None if text is None else read_documents(expanded(text), encoding),
        budget_s=budget_s,
        assume=assume,
        on_step=steps_for(on_progress),
    )


@paged
def quantize(
    model: Path | str,
    to: Sequence[str],
    out: Path | str,
    *,
    text: Path | str | None = None,
    encoding: str | None = None,
    tokens: int | None = None,
    allow_fallback: bool = False,
    budget_s: float | None = None,
    threads: int | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Sequence[Proof]:
    """Write a GGUF in each of the formats `to`, such as "Q4_K", into the directory `out`, each beside its proof.

    `text`: what importance and the loss by language are measured on (each on blocks of its own); without it importance
    is not, and the proof only says that the file works. `tokens`: for importance at most; None: 4,096. `encoding`: of
    text that is not UTF-8. `allow_fallback`: make a file of more bits than its format says, or with experts that the
    text did not reach. `budget_s`: for judging each file. Raises UserError for what cannot be made or would not be what
    its name says, BreakevenError for a file that failed its proof.
    """
    from breakeven.lab.bits.quantize import QuantizeOptions, quantize
    from breakeven.lab.corpus import read_documents

    words = options_said(
        text=text,
        encoding=encoding,
        tokens=tokens,
        budget=budget_s,
        threads=threads,
        allow_fallback=allow_fallback,
    )
    return quantize(
        Path(model),
        to,
        Path(out),
        documents=() if text is None else read_documents(Path(text), encoding),
        options=QuantizeOptions(allow_fallback, tokens, threads, budget_s),
        words=words,
        on_step=steps_for(on_progress),
    )


_PATHS = frozenset({"text", "tasks", "against", "chat", "adapter", "replay", "scores", "out"})
_TIMES = frozenset({"budget", "latency"})


def options_said(**options: str | float | Path | None) -> list[str]:
    """Options as they stand on a command line, by name; those that are not given, or are false, are left out."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        text = str(value)
        if name in _PATHS:
            text = word_of(text)
        elif name in _TIMES and isinstance(value, int | float):
            text = f"{value:g}s"
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, text]
    return words


def steps_for(on_progress: Callable[[ProgressState], None]) -> Callable[[str, float], None]:
    """What the lab tells of its steps, as progress is told elsewhere."""
    from breakeven.measure.progress import ProgressState

    began = time.monotonic()

    def step(what: str, share: float) -> None:
        on_progress(ProgressState(what, time.monotonic() - began, share=share))

    return step
