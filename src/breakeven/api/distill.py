"""Teaching a small model by a large one, with what a device's memory and speed allow it to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.api.lab import options_said, paged, steps_for
from breakeven.api.training import check_sizes, time_or_steps
from breakeven.errors import UserError, expanded, word_of

if TYPE_CHECKING:
    from breakeven.lab.training.student import Fits
    from breakeven.measure.progress import ProgressState
    from breakeven.model.architecture import ModelSpec
    from breakeven.results.lab import Proof

_TIMED_AS = "F16"
"""Format in which a student's step is predicted: there are no constants for F32."""


@paged
def distill(
    teacher: Path | str,
    into: str,
    text: Path | str,
    out: Path | str,
    *,
    fits: int | None = None,
    machine: str | None = None,
    latency_s: float | None = None,
    trim_vocabulary: bool = False,
    ternary: bool = False,
    seconds: float | None = None,
    steps: int | None = None,
    twin_steps: int | None = None,
    teacher_tokens: int | None = None,
    seed: int = 0,
    batch: int | None = None,
    rate: float | None = None,
    tokens: int | None = None,
    encoding: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[ProgressState], None] = lambda state: None,
) -> Proof:
    """Train a student at the directory `out` of what `teacher` finds likely after each token of `text`.

    `into`: "dense 4x256", "moe 4x256 8/2", a model's directory, or "dense" and "moe" alone where `fits` finds the size:
    bytes of memory, and a token in `latency_s` on `machine` (None: this one). `trim_vocabulary`: only the tokens that
    the text uses. `ternary`: matrices of -1, 0 and 1 times a scale. `seconds` or `steps` (neither: three minutes) of
    training the student; its proof says how far a twin stands behind that never saw the teacher, after as many tokens
    and after as long. `twin_steps`, `teacher_tokens`: what a repetition is told. Raises UserError for what cannot be
    distilled so, among it a teacher that is no better than a plain student; then nothing is left.
    """
    from breakeven.lab.corpus import read_documents
    from breakeven.lab.training.distill import distill as made
    from breakeven.lab.training.distill_proof import BATCH, TOKENS, DistillOptions

    seconds, steps = time_or_steps(seconds, steps)
    check_sizes(batch=batch, rate=rate, tokens=tokens, twin_steps=twin_steps, teacher_tokens=teacher_tokens)
    if latency_s is not None and fits is None:
        raise UserError("--latency says more of what --fits asks; give --fits SIZE, such as 512MB, too")
    if machine is not None and latency_s is None:
        raise UserError("--machine is where a token must be fast enough; give --latency TIME, such as 20ms, too")
    words = ["breakeven", "distill", word_of(teacher)]
    words += options_said(
        text=text,
        encoding=encoding,
        fits=fits,
        machine=machine,
        latency=latency_s,
        tokens=tokens,
        rate=rate,
        seed=seed or None,
        threads=threads,
        out=out,
        trim_vocabulary=trim_vocabulary,
        ternary=ternary,
    )
    return made(
        teacher,
        into,
        read_documents(expanded(text), encoding),
        expanded(out),
        words=words,
        options=DistillOptions(
            seconds=seconds,
            steps=steps,
            twin_steps=twin_steps,
            teacher_tokens=teacher_tokens,
            seed=seed,
            batch=batch or BATCH,
            rate=rate,
            tokens=tokens or TOKENS,
            threads=threads,
            trim_vocabulary=trim_vocabulary,
            ternary=ternary,
        ),
        fits=None if fits is None else _fits(fits, machine, latency_s),
        on_step=steps_for(on_progress),
    )


def _fits(size: int, machine: str | None, latency_s: float | None) -> Fits:
    """What memory of `size` bytes holds beside llama.cpp itself, and how fast it must be on `machine`."""
    from breakeven.engines.memory import beside_weights_bytes

    def why_not(spec: ModelSpec, weight_bytes: float) -> str | None:
        need = weight_bytes + beside_weights_bytes(spec, spec.context, 1)
        if need > size:
            return f"needs {need / 1e6:,.0f} MB ({weight_bytes / 1e6:,.0f} of weights), more than {size / 1e6:,.0f} MB"
        return None if latency_s is None else _too_slow(spec, machine or "this", latency_s)

    return why_not


def _too_slow(spec: ModelSpec, machine: str, latency_s: float) -> str | None:
    from breakeven.forecast.asked import LLAMA_CPP, AskedModel, model_on, profiles_for

    asked = AskedModel(spec.name, spec, _TIMED_AS)
    model = model_on(asked, profiles_for([asked], machine, LLAMA_CPP)[0])
    step_s = float(model.step_s(1, spec.context))
    if step_s <= latency_s:
        return None
    return f"takes {step_s * 1e3:.1f} ms a token on {machine}, more than {latency_s * 1e3:.1f} ms"
