"""What proves a tuned model: what was adapted, that its merge is the adapter, what changed, and who serves it.

Told by the child that trained (`tune_job`) and by what it wrote, never by what was asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from breakeven.engines.inside.client import Inside, OnStep
from breakeven.errors import NotSupportedError
from breakeven.lab.bridge.bridge import to_gguf
from breakeven.lab.bridge.weights import Checkpoint, StoredRows
from breakeven.lab.export import MOST_KL, checks_between, kl_and_top1
from breakeven.lab.training.texts import Ids
from breakeven.lab.training.work import Recipe, Trained, left_out
from breakeven.results.lab import LabCheck
from breakeven.stats.estimate import Estimate
from breakeven.stats.intervals import MIN_PAIRS, mean_interval

WITHOUT = "without the adapter"
"""Beside the ways to read an adapter: the model as it was."""
BASE_LOGITS = "base.npy"
"""What the base says of the tokens that models are compared on: (P, T, V)."""
KINDS_OF = {
    "all": ("attention", "experts", "shared experts", "feed-forward"),
    "attention": ("attention",),
    "experts": ("experts",),
}
"""What `--adapt` names, in kinds of matrices."""
_KINDS = (
    ("experts", re.compile(r"\.experts\.")),
    ("shared experts", re.compile(r"\.shared_experts?\.")),
    ("router", re.compile(r"\.(?:gate|router)\.|shared_expert_gate")),
    ("attention", re.compile(r"attn|attention")),
    ("embedding", re.compile(r"embed|wte")),
    ("head", re.compile(r"lm_head")),
    ("feed-forward", re.compile(r"mlp|moe|feed_forward|ffn")),
)
_PLAIN = "norms and biases"
_EXPERT = re.compile(r"layers\.(\d+)\..*\.experts\.(\d+)\.")
_NOT_BASE = 10 * MOST_KL
_PIECE = 1 << 16
"""Rows compared at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions:
    """What is adapted and how it is trained; exactly one of `seconds` and `steps` unless there is an `adapter`."""

    adapt: str = "all"
    experts: tuple[int, ...] = ()
    router: bool = False
    rank: int = 8
    seconds: float | None = None
    steps: int | None = None
    seed: int = 0
    batch: int = 2
    rate: float = 5e-4
    tokens: int = 256
    quantized: bool = False
    threads: int | None = None
    adapter: Path | None = None


class TuneJob(msgspec.Struct, frozen=True, kw_only=True):
    """What the child does. `rows`: a file of arrays. `adapter`: made elsewhere; else `recipe` trains one."""

    base: str
    base_name: str
    folder: str
    made: str
    rows: str
    adapt: str
    experts: list[int]
    router: bool
    rank: int
    recipe: Recipe | None
    quantized: bool = False
    adapter: str | None


class Attached(msgspec.Struct, frozen=True):
    """One kind of parameter: how many tensors and weights it has, how many are adapted, by how many trained weights.

    `idle`: those whose adapter changes nothing.
    """

    kind: str
    tensors: int
    weights: int
    adapted: int
    adapted_weights: int
    trained_weights: int
    idle: list[str]


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """How far the merged model stands from its adapter, its base and itself loaded again, in mean KL a token.

    `answers_*`: nats a token of each conversation kept apart, of the base and merged.
    """

    tokens: int
    adapter_kl: float
    adapter_top1: float
    base_kl: float
    again_kl: float
    answers_before: list[float]
    answers_after: list[float]


class TuneDone(msgspec.Struct, frozen=True, kw_only=True):
    """What the child found. `packings`: what each way to read an adapter's experts predicts, the one taken first."""

    peft: str
    attached: list[Attached]
    merged: Merged
    trained: Trained | None
    packings: dict[str, float]


def kind_of(name: str, n_dims: int) -> str:
    """What a parameter is, by its name in a directory or in transformers."""
    if n_dims < 2 or name.endswith("bias"):
        return _PLAIN
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def told_of(done: TuneDone, experts: Sequence[int]) -> list[LabCheck]:
    """What was attached, that the merge is what the adapter was, and that it loads again."""
    merged, limit = done.merged, f"{done.merged.tokens} tokens; at most {MOST_KL:g} nats a token"

    def kl(value: float) -> Estimate:
        return Estimate(value, None, None, merged.tokens, "measured")

    checks = [
        LabCheck(name="adapted", engine=f"PEFT {done.peft}", passed=True, detail=_in_words(done.attached, experts)),
        LabCheck(
            name="merged is the adapter",
            engine="transformers",
            passed=merged.adapter_kl <= MOST_KL and merged.adapter_top1 >= 0.999,
            kl=kl(merged.adapter_kl),
            detail=f"weights with the adapter beside them and in them, {limit}",
        ),
        LabCheck(
            name="loads as merged",
            engine="transformers",
            passed=merged.again_kl <= MOST_KL,
            kl=kl(merged.again_kl),
            detail=f"as saved and as it was in memory, {limit}",
        ),
        _not_base("transformers", merged.base_kl, merged.tokens),
    ]
    if done.packings:
        (best, nats), *others = done.packings.items()
        rest = ", ".join(f"{words} {each:.3f}" for words, each in others)
        detail = f"{best}: {nats:.3f} nats a token of the text; {rest}"
        checks.insert(1, LabCheck(name="experts' packing", engine=f"PEFT {done.peft}", passed=True, detail=detail))
    return checks


def doubts_of(done: TuneDone) -> list[str]:
    """What to say of an adapter none of whose readings predicts better than the model without it."""
    without = done.packings.get(WITHOUT)
    if without is None or next(iter(done.packings.values())) < without:
        return []
    return [
        "however its experts are read, the adapter predicts this text no better than the model without it: it is "
        "packed in another way, or made for another model or other text"
    ]


def _not_base(engine: str, kl: float, tokens: int) -> LabCheck:
    return LabCheck(
        name="not the base",
        engine=engine,
        passed=kl >= _NOT_BASE,
        kl=Estimate(kl, None, None, tokens, "measured"),
        detail=f"from the base to it, {tokens} tokens; at least {_NOT_BASE:g} nats a token, else train longer",
    )


def _in_words(attached: Sequence[Attached], experts: Sequence[int]) -> str:
    """What trains, what does not, and what was asked and does not."""

    def count(number: int) -> str:
        return f"{number / 1e6:.1f}M" if number >= 1e5 else f"{number:,}"

    def of(each: Attached, number: int, weights: int) -> str:
        return f"{each.kind} ({number} tensor{'' if number == 1 else 's'}, {count(weights)})"

    only = f", experts {', '.join(map(str, experts))} alone" if experts else ""
    adapted = [
        f"{of(each, each.adapted, each.adapted_weights)} by {count(each.trained_weights)}"
        for each in attached
        if each.adapted
    ]
    frozen = [of(each, each.tensors, each.weights) for each in attached if not each.adapted]
    skipped = [f"{each.kind}: {each.idle[0]}" for each in attached if each.idle]
    skipped += [f"{each.tensors - each.adapted} of {each.kind}" for each in attached if 0 < each.adapted < each.tensors]
    lists = (("adapted", adapted), ("frozen", frozen), ("skipped", skipped))
    return "; ".join(f"{word} {', '.join(each) or 'nothing'}{only if each is adapted else ''}" for word, each in lists)


def changed_of(base: Path, made: Path, done: TuneDone, experts: Sequence[int]) -> tuple[LabCheck, list[str]]:
    """That every tensor but those adapted is bit for bit what it was; and which adapted experts are too."""
    kinds = {each.kind for each in done.attached if each.adapted}
    before, after = Checkpoint(base).tensors, Checkpoint(made).tensors
    changed, same, unasked = Counter[str](), 0, list[str]()
    idle: list[str] = []
    for name, now in after.items():
        was = before.get(name)
        if was is None or was.shape != now.shape:
            unasked.append(name)
            continue
        kind, expert = kind_of(name, len(now.shape)), _EXPERT.search(name)
        asked = kind in kinds and not (experts and expert and int(expert[2]) not in experts)
        if not _same(was, now):
            changed[kind] += 1
            if asked and experts and kind == "experts" and expert is None and max(experts) < now.shape[0]:
                # A stack, expert by expert.
                asked = _same(was, now, np.setdiff1d(np.arange(now.shape[0]), experts))
            unasked += [] if asked else [name]
            continue
        same += 1
        if asked and expert and (place := f"{expert[1]}/{expert[2]}") not in idle:
            idle.append(place)
    detail = f"changed {', '.join(f'{n} of {kind}' for kind, n in changed.items()) or 'nothing'}; {same} bit for bit"
    if unasked:
        detail = (
            f"{unasked[0]} changed{f' and {len(unasked) - 1} more' if len(unasked) > 1 else ''}, and was not adapted"
        )
    said = left_out(before, after)
    if idle:
        more = f" and {len(idle) - 6} more" if len(idle) > 6 else ""
        said += [f"experts (layer/number) that no token of the text reached, as they were: {', '.join(idle[:6])}{more}"]
    passed = not unasked and bool(changed)
    return LabCheck(name="what changed", engine="breakeven", passed=passed, detail=detail), said


def _same(was: StoredRows, now: StoredRows, among: NDArray[np.int64] | None = None) -> bool:
    """Whether all rows are equal, or those `among` them."""
    places = np.arange(now.shape[0]) if among is None else among
    for begin in range(0, len(places), _PIECE):
        rows = places[begin : begin + _PIECE]
        if not np.array_equal(was.take(rows), now.take(rows)):
            return False
    return True


def answers_of(merged: Merged) -> list[LabCheck]:
    """Of conversations: how much better answers kept apart are predicted. Told, not demanded."""
    if not merged.answers_before:
        return []
    less = [a - b for a, b in zip(merged.answers_before, merged.answers_after, strict=True)]
    before, after = (float(np.mean(each)) for each in (merged.answers_before, merged.answers_after))
    detail = f"of {len(less)} conversations kept apart, in the chat template: {before:.3f} to {after:.3f} nats a token"
    if len(less) < MIN_PAIRS:
        detail += ", too few for an interval"
    else:
        mean, low, high = mean_interval(less)
        detail += f", {mean:.3f} ({low:.3f} to {high:.3f}) less"
    return [LabCheck(name="answers", engine="transformers", passed=True, detail=detail)]


def served_of(made: Path, gguf: Path, probe_PT: Ids, on_step: OnStep) -> tuple[list[LabCheck], list[str]]:
    """That llama.cpp serves what was merged, written to `gguf`, and not the base; or why it cannot be asked."""
    on_step("writing it for llama.cpp", 0.0)
    try:
        to_gguf(made, gguf, dtype="f32")
    except NotSupportedError as error:
        return [], [f"not held against llama.cpp: {error}"]
    again = gguf.with_name("again.gguf")
    checks, said = checks_between(gguf, made, again, of_gguf=False, dtype="F32", on_step=on_step)
    if not all(check.passed for check in checks):
        return checks, said
    kl: list[float] = []
    with Inside(gguf, on_step=on_step) as inside:
        for row_T, base_TV in zip(probe_PT, np.load(gguf.with_name(BASE_LOGITS), mmap_mode="r"), strict=True):
            kl += kl_and_top1(base_TV, inside.logits(row_T.tolist(), exact=True))[0].tolist()
    return [*checks, _not_base("llama.cpp", float(np.mean(kl)), len(kl))], said
