"""`export --to onnx`: a model as one ONNX graph that keeps what it has read, for texts of any length.

torch traces the graph in a child process (`onnx_trace.py`); ONNX Runtime runs it there, as one of the models in
lock-step (`onnx_scorer.py`), so that it is evaluated, proven and timed as any other model is.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np

from breakeven.engines.inside.child import Doing, Unable
from breakeven.engines.inside.client import ChildProcess, OnStep
from breakeven.engines.synthesis.write import check_room
from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.weights import PLACE
from breakeven.lab.corpus import Document, sample
from breakeven.lab.facts import batch_that_fits, facts_of
from breakeven.lab.lockstep import BATCH, Lockstep, Scored
from breakeven.lab.proof import prove
from breakeven.model.readers.hf import CONFIG
from breakeven.results.lab import LabCheck, LabSpeed, Proof
from breakeven.stats.estimate import Estimate
from breakeven.stats.robust import level

NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
MOST_KL = 1e-6
"""Mean nats a token between ONNX Runtime and transformers, both in single precision."""
LENGTHS = (2, 3, 8, 65, 300)
"""Tokens that the graph is held against transformers with: it was traced with few, and must take any."""
ROUNDS, PROMPT_TOKENS, ANSWER_TOKENS = 6, 128, 16

Carry = Callable[[Path], tuple[list[LabCheck], list[str]]]
"""Writes a model as a directory at this place; the checks that it is the same one, and notes."""


class TraceGraph(msgspec.Struct, tag="trace graph", frozen=True, kw_only=True):
    """Write the model in `source` as a graph into `out`. Answered by `GraphTraced`."""

    source: str
    out: str
    parent_pid: int


class GraphTraced(msgspec.Struct, tag="traced", frozen=True, kw_only=True):
    """`cached`: the graph takes and gives keys and values; else it reads the whole text for each token."""

    cached: bool
    notes: list[str]


def export(
    model: Path,
    to: str,
    out: Path,
    *,
    command: str,
    text: Sequence[Document] | None = None,
    budget_s: float | None = None,
    carry: Carry | None = None,
    on_step: OnStep = lambda what, share: None,
) -> Proof:
    """Write `model`, a Hugging Face directory or a GGUF of a family that is carried, as an ONNX directory at `out`.

    `carry` writes a GGUF as a directory and checks it. The proof holds its loss on `text`, that it computes what
    transformers does at any length, and how fast it runs beside its source. Raises UserError, NotSupportedError for a
    form or a model that cannot be written so, and BreakevenError naming the check that failed: then nothing is left at
    `out`.
    """
    if to == "litert":
        if text is not None:
            raise UserError("--to litert: a window of 128 tokens cannot be scored on a text; leave out --text")
        from breakeven.lab.graph.litert import export_litert

        return export_litert(model, out, command=command, on_step=on_step)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NotSupportedError(
            f"export --to onnx needs {', '.join(missing)}, not installed here: install the extra `lab` (1.5 GB; how: "
            "docs/lab.md)"
        )
    _check_source(model, out)
    carried, made = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("carried", "made"))
    checks: list[LabCheck] = []
    notes: list[str] = []
    speeds: list[LabSpeed] = []
    try:
        directory = model
        if not model.is_dir():
            directory = carried
            checks, notes = (carry or _no_carrier)(carried)
        # What is not the same model as a directory need not be traced: `prove` refuses it.
        if all(check.passed for check in checks):
            notes += to_onnx(directory, made, on_step=on_step)
            check, speeds = held_against(model, directory, made, on_step=on_step)
            checks.append(check)
        return prove(
            "export",
            command,
            model,
            made,
            out,
            format="onnx",
            text=text,
            checks=checks,
            # llama.cpp rounds a GGUF's activations and ONNX Runtime does not: only a directory is the same to 1e-6.
            same_function=model.is_dir(),
            speeds=speeds,
            caveats=notes,
            budget_s=budget_s,
            on_step=on_step,
        )
    finally:
        for path in (carried, made):
            shutil.rmtree(path, ignore_errors=True)


def _check_source(model: Path, out: Path) -> None:
    """Raise UserError for what is no model, or where the disk has no room for it in F32; twice where it is carried."""
    if model.is_dir() and not (model / CONFIG).is_file():
        raise UserError(f"{model}: holds no {CONFIG}; give a Hugging Face model's directory or a .gguf file")
    facts, copies = facts_of(model), 1 if model.is_dir() else 2
    check_room(out, round(facts.bytes * 32 / facts.bits_per_weight) * copies + (16 << 20), PLACE)


def _no_carrier(directory: Path) -> tuple[list[LabCheck], list[str]]:
    raise UserError(f"{directory.name}: only a Hugging Face directory is traced; `--to hf` makes one of a .gguf file")


def to_onnx(directory: Path, out: Path, *, on_step: OnStep = lambda what, share: None) -> list[str]:
    """Write the model in `directory` as a graph, with its tokenizer, into the new directory `out`; what must be known.

    Raises NotSupportedError for a model that cannot be traced, EngineError when the process died.
    """
    on_step("tracing the graph", 0.0)
    with ChildProcess(
        "breakeven.lab.graph.onnx_trace", directory.name, GraphTraced | Unable | Doing, on_step=on_step
    ) as child:
        asked = TraceGraph(source=str(directory), out=str(out), parent_pid=os.getpid())
        traced = child.ask(asked, GraphTraced)
    plain = "its graph keeps no keys and values: it reads the whole text again for each token of an answer"
    return [*traced.notes, *([] if traced.cached else [plain])]


def held_against(
    source: Path, directory: Path, graph: Path, *, timed: bool = True, on_step: OnStep = lambda what, share: None
) -> tuple[LabCheck, list[LabSpeed]]:
    """Whether ONNX Runtime predicts what transformers does of `directory`, for texts of several lengths and token by
    token; and how fast the graph and `source`, a directory or a GGUF, read and answer, taking turns."""
    models = [Scored(directory), Scored(graph), *([] if source == directory else [Scored(source)])]
    batch = batch_that_fits([facts_of(each.path) for each in models], max(LENGTHS) + ANSWER_TOKENS, BATCH, small=False)
    with Lockstep(models, on_step=on_step, batch=batch) as lock:
        check = _any_length(lock)
        return check, _speeds(lock, len(models) - 1 if len(models) > 2 else 0) if timed and check.passed else []


def _any_length(lock: Lockstep) -> LabCheck:
    worst, same, count = 0.0, 1.0, 0
    tokens = _tokens(lock, 0)
    room = min((each.n_positions for each in lock.loaded if each.n_positions), default=len(tokens))
    lengths = [length for length in LENGTHS if length <= min(room, len(tokens))]
    for length in lengths:
        scores = lock.score(tokens[:length], [(0, 1)], only=[0, 1])
        worst, same = max(worst, float(np.mean(scores.kl[0]))), min(same, float(np.mean(scores.agree[0])))
        count += length - 1
    answers = [lock.generate(model, tokens[:4], ANSWER_TOKENS) for model in (0, 1)]
    return LabCheck(
        name="any length",
        engine="onnxruntime",
        passed=worst <= MOST_KL and same >= 0.99 and answers[0] == answers[1],
        kl=Estimate(worst, None, None, count, "measured"),
        top1=Estimate(same, None, None, count, "measured"),
        detail=f"against transformers in F32 with {', '.join(map(str, lengths))} tokens, the worst of them; at most "
        f"{MOST_KL:g} nats a token, and {ANSWER_TOKENS} greedy tokens equal",
    )


def _tokens(lock: Lockstep, model: int) -> list[int]:
    return lock.tokenize(model, "\n".join(document.text for document in sample()))


def _speeds(lock: Lockstep, source: int) -> list[LabSpeed]:
    """Of the loaded models `source` and 1, the graph: one sequence, taking turns for a few seconds."""
    found: dict[tuple[int, str], list[float]] = {}
    tokens = {model: _tokens(lock, model)[:PROMPT_TOKENS] for model in (source, 1)}
    # The first round warms both and does not count.
    for round_number in range(ROUNDS + 1):
        for model in (source, 1) if round_number % 2 else (1, source):
            reading = lock.score(tokens[model], only=[model]).seconds[0]
            began = time.perf_counter()
            ids = lock.generate(model, tokens[model][:1], ANSWER_TOKENS)
            answering = time.perf_counter() - began
            if round_number:
                found.setdefault((model, "prompt"), []).append((len(tokens[model]) - 1) / reading)
                if ids:
                    found.setdefault((model, "answer"), []).append(len(ids) / answering)
    return [
        LabSpeed(
            of="artefact" if model == 1 else "source",
            engine=lock.loaded[model].engine,
            what=what,
            tokens_per_s=told,
        )
        for (model, what), rates in found.items()
        if (told := level(rates)) is not None
    ]
