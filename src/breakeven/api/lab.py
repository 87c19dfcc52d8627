"""Verbs of the lab: what evaluates models, and what makes others of them.

Each imports what it needs when it is called.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.errors import expanded

if TYPE_CHECKING:
    from breakeven.measure.progress import ProgressState
    from breakeven.results.lab import Evaluation, Proof


def evaluate(
    models: Sequence[Path | str],
    text: Path | str,
    *,
    against: Path | str | None = None,
    used: Sequence[int] = (),
    budget_s: float | None = None,
    encoding: str | None = None,
    threads: int | None = None,
    out: Path | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Evaluation:
    """How well models predict the text of a file or directory, in bits per byte by language and domain.

    `models`: .gguf files or Hugging Face directories. `against`: also how far each is from this one, in nats a token.
    `used`: MoE models run with each of these numbers of experts a token. `budget_s`: of scoring; it reads as much of
    every language. `encoding`: of files that are not UTF-8. `out`: a file to write the result to. Raises UserError for
    text too short for an interval, tokenizers that differ where `against` is given, and models that do not fit.
    """
    from breakeven.lab.corpus import read_documents
    from breakeven.lab.evaluate import evaluate
    from breakeven.results import store

    words = ["breakeven", "evaluate", *map(str, models), "--text", str(text)]
    options = {
        "--against": against,
        "--used": ",".join(map(str, used)) or None,
        "--budget": None if budget_s is None else f"{budget_s:g}s",
        "--encoding": encoding,
        "--threads": threads,
    }
    for option, value in options.items():
        words += [] if value is None else [option, str(value)]
    result = evaluate(
        models,
        read_documents(Path(text), encoding),
        against=against,
        used=used,
        budget_s=budget_s,
        threads=threads,
        text=str(text),
        command=shlex.join(words),
        on_step=steps_for(on_progress),
    )
    if out is not None:
        store.write(result, out)
    return result


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
    quality is compared on by language, within `budget_s`. `assume`: go on past keys and tensors that are not known.
    Raises UserError for what cannot be exported so, BreakevenError naming the check that failed; then nothing is left.
    """
    from breakeven.lab.corpus import read_documents
    from breakeven.lab.export import export

    words = ["breakeven", "export", str(model), "--to", to, "--out", str(out)]
    options = {
        "--dtype": dtype,
        "--text": text,
        "--encoding": encoding,
        "--budget": None if budget_s is None else f"{budget_s:g}s",
    }
    for option, value in options.items():
        words += [] if value is None else [option, str(value)]
    return export(
        expanded(model),
        to,
        expanded(out),
        command=shlex.join([*words, *(["--assume"] if assume else [])]),
        dtype=dtype,
        text=None if text is None else read_documents(expanded(text), encoding),
        budget_s=budget_s,
        assume=assume,
        on_step=steps_for(on_progress),
    )


def steps_for(on_progress: Callable[[ProgressState], None]) -> Callable[[str, float], None]:
    """What the lab tells of its steps, as progress is told elsewhere."""
    from breakeven.measure.progress import ProgressState

    began = time.monotonic()

    def step(what: str, share: float) -> None:
        on_progress(ProgressState(what, time.monotonic() - began, share=share))

    return step
