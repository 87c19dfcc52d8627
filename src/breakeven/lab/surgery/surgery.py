"""Operations on experts with their proof: made beside its place, proven against its source, and only then put there."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from breakeven.engines.inside.client import OnStep
from breakeven.errors import UserError, word_of
from breakeven.lab.bits.importance import apart, measure
from breakeven.lab.corpus import Document, blocks_of, check_enough, read_documents, sample
from breakeven.lab.facts import facts_of
from breakeven.lab.proof import prove, sweep
from breakeven.lab.surgery.experts import Squares, Surgery
from breakeven.lab.usage.watch import loads_of
from breakeven.results.lab import ExpertLayer, Experts, ExpertScores, LabCheck
from breakeven.results.store import read

Make = Callable[[Path], Surgery]


def important(
    source: Path, text: Path | None, encoding: str | None, on_step: OnStep
) -> tuple[Squares, list[Document] | None, list[str]]:
    """How much each neuron counts on a part of a text, the rest of it, to judge with, and what to say of that.

    Without a text the built-in sample is measured on, and nothing is left to judge with.
    """
    if text is None:
        blocks, judged = blocks_of(sample()), None
        on = "the built-in sample of six languages; give your own with --text"
    else:
        blocks, judged = apart(read_documents(text, encoding))
        check_enough(blocks_of(judged))
        on = f"{text}, and the loss on other blocks of it"
    seen = measure(source, blocks, on_step=on_step)
    said = [f"importance was measured on {seen.text_tokens:,} tokens of {on}", *seen.caveats()]
    return seen.mean_squares, judged, said


def proven(
    verb: str,
    words: Sequence[str],
    source: Path,
    out: Path,
    make: Make,
    *,
    text: Path | Sequence[Document] | None = None,
    encoding: str | None = None,
    scores: Path | None = None,
    caveats: Sequence[str] = (),
    budget_s: float | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Surgery:
    """Do what `make` does to a file beside `out`, prove it on `text`, and put it and its proof there, or nothing.

    `words`: the options of the command that does the same. `scores`: what the experts were chosen by. Raises UserError
    for a place that is the source's own, BreakevenError naming what did not hold.
    """
    check_out(source, out)
    documents = read_documents(text, encoding) if isinstance(text, Path) else text
    if documents is not None:  # refused before minutes are spent, not after
        check_enough(blocks_of(documents))
    sweep(out.parent)
    made = out.with_name(f".{out.stem}.{os.getpid()}.made.gguf")
    try:
        on_step("writing experts", 0.0)
        done = make(made)
        checks = []
        if done.kept is not None:
            checks.append(
                LabCheck(
                    name="experts' bytes",
                    engine="breakeven",
                    passed=True,
                    detail="every expert kept, and all other tensors, read back and compared with the source's",
                )
            )
        after = None
        if done.kept is not None and documents is not None and not done.same_function:
            after = loads_of(made, documents, on_step=on_step)
        proof = prove(
            f"experts {verb}",
            shlex.join(["breakeven", "experts", verb, word_of(source), *words, "--out", word_of(out)]),
            source,
            made,
            out,
            format=facts_of(made).format,
            text=documents,
            checks=checks,
            same_function=done.same_function,
            experts=_experts(done, scores),
            experts_after=after,
            caveats=(*caveats, *done.caveats),
            budget_s=budget_s,
            on_step=on_step,
        )
    finally:
        with contextlib.suppress(OSError):
            made.unlink(missing_ok=True)
    return replace(done, out=out, proof=proof)


def check_out(source: Path, out: Path) -> None:
    """Raise UserError for a place that no engine reads from, or the source's own."""
    if out.suffix.lower() != ".gguf":
        raise UserError(f"--out {out}: give a name that ends in .gguf, as engines expect")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserError(f"--out {out} is the model itself; choose another name")


def _experts(done: Surgery, scores: Path | None) -> Experts | None:
    """What is known of the source's experts, and where they went; None where it had none."""
    if done.kept is None:
        return None
    kept = [list(each) for each in done.kept]
    if scores is None:
        return Experts(layers=[], n_experts_per_token=done.used, kept=kept)
    said = read(scores, ExpertScores)
    layers = [
        ExpertLayer(
            layer=layer.layer,
            tokens=layer.tokens,
            # An expert that no token reached has no score; its layer's are then told by the scores' own file alone.
            score=None if layer.score is None or None in layer.score else [s for s in layer.score if s is not None],
            dead=layer.dead,
            by_language=layer.by_language,
        )
        for layer in said.layers
    ]
    return Experts(layers=layers, n_experts_per_token=said.n_experts_per_token, kept=kept)
