"""`export --to litert`: a dense model as a LiteRT file for a window of so many tokens, held against transformers.

The converter traces torch in a child process (`litert_trace.py`), which also runs what it made in LiteRT's interpreter,
beside the model itself.
"""

from __future__ import annotations

import os
import shutil
import time
from importlib.util import find_spec
from pathlib import Path

import msgspec

from breakeven.engines.inside.child import Doing, Unable
from breakeven.engines.inside.client import ChildProcess, OnStep
from breakeven.engines.synthesis.write import check_room
from breakeven.errors import BreakevenError, NotSupportedError, UserError
from breakeven.lab.bridge.weights import PLACE
from breakeven.lab.corpus import sample
from breakeven.lab.facts import facts_of, sha256_of
from breakeven.lab.proof import stand
from breakeven.model.readers.hf import CONFIG
from breakeven.results.lab import Artefact, LabCheck, LabSpeed, Origin, Proof
from breakeven.stats.estimate import Estimate
from breakeven.stats.robust import level

NEEDED = ("torch", "transformers", "litert_torch", "ai_edge_litert")
MOST_KL = 1e-6
"""Mean nats a token from transformers in single precision."""
WINDOW = 128
"""Tokens of the file's one shape: a text is read with as many behind it as fill the window."""
ROUNDS = 6


class TraceWindow(msgspec.Struct, tag="trace window", frozen=True, kw_only=True):
    """Convert the model in `source` into the directory `out`, and compare both on these texts. Answered by
    `WindowTraced`."""

    source: str
    out: str
    texts: list[str]
    window: int
    rounds: int
    parent_pid: int


class WindowTraced(msgspec.Struct, tag="window traced", frozen=True, kw_only=True):
    """What came of it: the worst text's mean KL and agreement over `tokens` in all, and tokens a second by round."""

    weights: int
    kl: float
    same: float
    tokens: int
    before: list[float]
    after: list[float]


def export_litert(model: Path, out: Path, *, command: str, on_step: OnStep) -> Proof:
    """Write the dense model in the directory `model` as a LiteRT file in the directory `out`, with its tokenizer.

    Raises NotSupportedError where the converter is not installed, for a model with experts or one that it cannot
    convert, and BreakevenError when LiteRT predicts something else: then nothing is left at `out`.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotSupportedError(
            f"export --to litert needs LiteRT's converter, and {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not installed: see docs/export.md#litert, or export it --to onnx"
        )
    if not (model / CONFIG).is_file():
        raise UserError(f"{model}: --to litert takes a Hugging Face directory; `--to hf` makes one of a .gguf file")
    facts = facts_of(model)
    if facts.n_experts:
        raise NotSupportedError(
            f"{model.name} has experts, which LiteRT's converter cannot choose among while it runs; export it --to onnx"
        )
    check_room(out, round(facts.bytes * 32 / facts.bits_per_weight) + (16 << 20), PLACE)
    began, made = time.monotonic(), out.with_name(f".{out.name}.{os.getpid()}.made")
    try:
        done = _traced(model, made, on_step)
        check = _check(done)
        if not check.passed:
            raise BreakevenError(f"{out.name} was not kept: the check {check.name!r} by LiteRT failed: {check.detail}")
        proof = Proof(
            verb="export",
            command=command,
            source=Origin(
                path=str(model),
                sha256=sha256_of(model),
                bytes=facts.bytes,
                format=facts.format,
                bits_per_weight=facts.bits_per_weight,
            ),
            artefact=Artefact(
                path=str(out),
                sha256=sha256_of(made),
                bytes=sum(each.stat().st_size for each in made.iterdir()),
                format="litert",
                bits_per_weight=sum(each.stat().st_size for each in made.glob("*.tflite")) * 8 / done.weights,
            ),
            slices=[],
            checks=[check],
            speeds=[
                LabSpeed(of=of, engine=engine, what="prompt", tokens_per_s=found)
                for of, engine, rates in (
                    ("source", "transformers", done.before),
                    ("artefact", "litert", done.after),
                )
                if (found := level(rates)) is not None
            ],
            caveats=[
                f"one shape: {WINDOW} tokens at once and no memory of others; what a language loses was not measured, "
                "as it predicts what its source does"
            ],
            seconds=time.monotonic() - began,
        )
        stand(made, out, proof)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return proof


def _traced(model: Path, made: Path, on_step: OnStep) -> WindowTraced:
    replies = WindowTraced | Unable | Doing
    with ChildProcess("breakeven.lab.graph.litert_trace", model.name, replies, on_step=on_step) as child:
        asked = TraceWindow(
            source=str(model),
            out=str(made),
            texts=[document.text for document in sample()],
            window=WINDOW,
            rounds=ROUNDS,
            parent_pid=os.getpid(),
        )
        return child.ask(asked, WindowTraced)


def _check(done: WindowTraced) -> LabCheck:
    return LabCheck(
        name="same predictions",
        engine="litert",
        passed=done.kl <= MOST_KL and done.same >= 0.99,
        kl=Estimate(done.kl, None, None, done.tokens, "measured"),
        top1=Estimate(done.same, None, None, done.tokens, "measured"),
        detail=f"against transformers in F32 on {done.tokens} tokens of six languages, the worst of them; at most "
        f"{MOST_KL:g} nats a token",
    )
