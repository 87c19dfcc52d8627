"""Models from a few words: "dense 4x256" is 4 layers of width 256, "moe 4x256 8/2" has 8 experts, 2 a token.

They are Qwen3's and Qwen3-MoE's classes, which every engine runs. Every matrix has rows that 256 divides, so that every
weight format fits. Counts are exact: those of the same description that `predict` and `decide` read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from breakeven.errors import UserError, one_line, printable
from breakeven.lab.bridge.families import of_config
from breakeven.lab.bridge.rotary import Rotary
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import total_params
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.tensors import TensorGroup, tensors

STEP = 256
"""Every width is a multiple of it: the largest block of llama.cpp's formats."""
WIDEST = 32
"""Times the hidden width, of a feed-forward."""
KINDS = ("dense", "moe", "hybrid")
HELP = "such as dense 4x256, moe 8/2 or hybrid 4x256x512 8/2"
_STUDENTS = "dense", "moe"
_HEAD_DIM = 64
_WIDER = 3
"""A feed-forward over the hidden width, where nobody says; of experts what a token passes of them together."""
_THETA = 10_000.0
_MOST_LAYERS, _MOST_HIDDEN, _MOST_EXPERTS = 128, 16_384, 512
_WORDS = re.compile(
    r"(?P<kind>dense|moe|hybrid)"
    r"(?: (?P<layers>\d{1,9}) ?x ?(?P<hidden>\d{1,9})(?: ?x ?(?P<width>\d{1,9}))?)?"
    r"(?: (?P<experts>\d{1,9}) ?/ ?(?P<used>\d{1,9}))?(?: every (?P<every>\d{1,9}))?"
)
_LADDER_EXPERTS = (8, 2)
TERNARY_BYTES = 66 / STEP
"""Of a weight in TQ2_0."""
_EIGHT_BITS_BYTES = 34 / 32


@dataclass(frozen=True, slots=True)
class ArmWish:
    """A model to train as it was asked for; None: whatever makes it match, or is usual.

    `width` of dense feed-forwards, `expert_width` of one expert; every `every`-th layer of a hybrid routes.
    """

    kind: str
    layers: int | None = None
    hidden: int | None = None
    width: int | None = None
    experts: int = 0
    used: int = 0
    expert_width: int | None = None
    every: int = 2


@dataclass(frozen=True, slots=True)
class ArmShape:
    """A whole model to train but its vocabulary. `experts` 0: dense; `every`: which layers route (1: all)."""

    layers: int
    hidden: int
    width: int
    experts: int = 0
    used: int = 0
    expert_width: int = 0
    every: int = 1

    @property
    def heads(self) -> int:
        """Of queries; half as many of keys."""
        return self.hidden // _HEAD_DIM

    @property
    def routed(self) -> tuple[int, ...]:
        """Layers that route, from 0."""
        return tuple(i for i in range(self.layers) if self.experts and (i + 1) % self.every == 0)

    @property
    def kind(self) -> Literal["dense", "moe", "hybrid"]:
        """dense, moe or hybrid."""
        return "dense" if not self.experts else "moe" if self.every == 1 else "hybrid"

    @property
    def words(self) -> str:
        """As it is asked for, with its width: "moe 4x256x512 8/2"."""
        said = f"{self.kind} {self.layers}x{self.hidden}x{self.expert_width or self.width}"
        said += f" {self.experts}/{self.used}" if self.experts else ""
        return f"{said} every {self.every}" if self.every > 2 else said


def wish_of(words: str, place: str) -> ArmWish:
    """A shape from words: KIND, LAYERSxHIDDEN or LAYERSxHIDDENxWIDTH, EXPERTS/USED, "every N" of a hybrid.

    WIDTH is that of an expert where there are any. Raises UserError that begins with `place`.
    """
    found = _WORDS.fullmatch(" ".join(words.lower().split()))
    if found is None:
        raise UserError(f"{place}: found {one_line(words, 80)!r}, it must be KIND LAYERSxHIDDEN EXPERTS/USED, {HELP}")
    if found["every"] is not None and found["kind"] != "hybrid":
        raise UserError(f"{place}: every: it must be left out; say hybrid where not all layers route")
    number = {key: int(value) for key, value in found.groupdict().items() if key != "kind" and value is not None}
    routes = found["kind"] != "dense"
    return checked(
        ArmWish(
            kind=found["kind"],
            layers=number.get("layers"),
            hidden=number.get("hidden"),
            width=None if routes else number.get("width"),
            experts=number.get("experts", 0),
            used=number.get("used", 0),
            expert_width=number.get("width") if routes else None,
            every=number.get("every", 2),
        ),
        place,
    )


def checked(wish: ArmWish, place: str) -> ArmWish:
    """`wish`, where a model can be so at all. Raises UserError that begins with `place`."""

    def wrong(key: str, found: object, right: str) -> UserError:
        return UserError(f"{place}: {key}: found {found}, it must be {right}")

    if wish.kind not in KINDS:
        raise wrong("kind", repr(printable(wish.kind)), f"one of {', '.join(KINDS)}")
    for key, value, most in (
        ("hidden", wish.hidden, _MOST_HIDDEN),
        ("width", wish.width, WIDEST * _MOST_HIDDEN),
        ("expert_width", wish.expert_width, WIDEST * _MOST_HIDDEN),
    ):
        if value is not None and (value % STEP or not STEP <= value <= most):
            near = max(STEP, min(most, round(value / STEP) * STEP))
            raise wrong(key, value, f"a multiple of {STEP}, such as {near}: no weight format with blocks fits others")
    if wish.layers is not None and not 1 <= wish.layers <= _MOST_LAYERS:
        raise wrong("layers", wish.layers, f"1 to {_MOST_LAYERS}")
    if wish.kind == "dense":
        if found := wish.experts or wish.used or wish.expert_width:
            raise wrong("experts", found, "left out: a dense model has none; or say moe")
        return wish
    if not 2 <= wish.experts <= _MOST_EXPERTS:
        raise wrong("experts", wish.experts, f"2 to {_MOST_EXPERTS}, with how many a token uses: 8/2")
    if not 2 <= wish.used <= wish.experts:
        # Weights of the chosen sum to one: that of one alone is always one, whatever its router says.
        raise wrong("used", wish.used, f"2 to its {wish.experts} experts; with one, its router learns nothing")
    if wish.kind == "moe" and wish.width is not None:
        raise wrong("width", wish.width, "left out where every layer routes; expert_width is that of an expert")
    if wish.kind == "hybrid" and not 2 <= wish.every <= (wish.layers or _MOST_LAYERS):
        raise wrong("every", wish.every, "2 or more, and at most the layers: every second layer routes")
    return wish


def whole(wish: ArmWish, place: str, who: str = "the arm that others are matched to") -> ArmShape:
    """The shape of `who`, that nothing is solved for; what is not said of its widths is as usual.

    Raises UserError that begins with `place` where it lacks layers or hidden.
    """
    if wish.layers is None or wish.hidden is None:
        experts = f" {wish.experts}/{wish.used}" if wish.experts else ""
        raise UserError(f"{place}: {who} needs its size, LAYERSxHIDDEN, such as {wish.kind} 4x256{experts}")
    # A token passes about the weights that it would pass in a dense model.
    expert = max(STEP, round(_WIDER * wish.hidden / max(1, wish.used) / STEP) * STEP)
    return shape_of(wish, wish.layers, wish.hidden, wish.width or usual_width(wish.hidden), wish.expert_width or expert)


def usual_width(hidden: int) -> int:
    """Of a dense feed-forward, where nobody says."""
    return _WIDER * hidden


def shape_of(wish: ArmWish, layers: int, hidden: int, width: int, expert_width: int) -> ArmShape:
    """What of these its kind has."""
    if wish.kind == "dense":
        return ArmShape(layers, hidden, width)
    every = 1 if wish.kind == "moe" else wish.every
    # What no layer has counts nothing; the configuration wants a number all the same.
    width = usual_width(hidden) if wish.kind == "moe" else width
    return ArmShape(layers, hidden, width, wish.experts, wish.used, expert_width, every)


def student_shape(text: str) -> ArmShape | str:
    """A shape, or only its kind ("dense" or "moe") where sizes are left to be found.

    Raises UserError for what is none, and for widths and experts that no file of that size could hold.
    """
    kind, *sizes = text.lower().split() or [""]
    if kind not in _STUDENTS:
        raise UserError(
            f'--into {one_line(text, 80)!r}: give a shape such as "dense 4x256" or "moe 4x256 8/2", or a model\'s '
            "directory"
        )
    return whole(wish_of(text, "--into"), "--into", "a student") if sizes else kind


def config_of(shape: ArmShape, vocabulary: int, positions: int, tokens: Mapping[str, object]) -> dict[str, object]:
    """`config.json`, whole as its class reads it: qwen3 where nothing routes, else qwen3_moe.

    `positions`: the longest sequence; `tokens`: ids of special tokens, by key.
    """
    bridge = of_config({"model_type": "qwen3_moe" if shape.experts else "qwen3"})
    config: dict[str, object] = {
        "architectures": [bridge.class_name],
        "model_type": bridge.model_type,
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": max(1, shape.heads // 2),
        "head_dim": _HEAD_DIM,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "attention_bias": False,
        # Of a small model most weights are its vocabulary's: one table, read twice.
        "tie_word_embeddings": True,
        **bridge.written,
    }
    if shape.experts:
        config |= {
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.used,
            "moe_intermediate_size": shape.expert_width,
            "mlp_only_layers": [i for i in range(shape.layers) if i not in shape.routed],
        }
    config |= {**Rotary(_THETA).written(), **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))}
    return config | {**tokens, "torch_dtype": "float32", "use_cache": True}


@lru_cache(maxsize=4096)
def spec_of(shape: ArmShape, vocabulary: int, positions: int) -> ModelSpec:
    """Its description, with exact counts; these do not depend on `positions`."""
    return spec_from_config(config_of(shape, vocabulary, positions, {}), shape.words, shape.words)


def weight_bytes(spec: ModelSpec, *, ternary: bool) -> float:
    """Of the file it becomes: in F32, or with matrices of two bits and an embedding of eight."""
    if not ternary:
        return 4.0 * total_params(spec)
    around = (TensorGroup.EMBEDDING, TensorGroup.OUTPUT_HEAD)
    total = 0.0
    for tensor in tensors(spec):
        matrix = len(tensor.shape) > 1 and tensor.group is not TensorGroup.ROUTER
        each = 4.0 if not matrix else _EIGHT_BITS_BYTES if tensor.group in around else TERNARY_BYTES
        total += each * tensor.params
    return total


def ladder(kind: str) -> list[ArmShape]:
    """Shapes of a kind from small to large, among which one that fits is looked for."""
    experts, used = _LADDER_EXPERTS if kind == "moe" else (0, 0)
    return [
        whole(ArmWish(kind, depth * width // STEP, width, experts=experts, used=used), "--into")
        for width in range(STEP, 10 * STEP + 1, STEP)
        for depth in (2, 3, 4)
    ]


def largest_that_fits(
    kind: str, vocab: int, positions: int, why_not: Sequence[Callable[[ModelSpec], str | None]]
) -> ArmShape:
    """The largest shape of `ladder` that nothing in `why_not` speaks against.

    Raises UserError with the reason against the smallest where none is left.
    """
    counted = sorted(
        ((total_params(spec := spec_of(each, vocab, positions)), each, spec) for each in ladder(kind)), key=_size
    )
    reason = ""
    for _, shape, spec in reversed(counted):
        reason = next((found for check in why_not if (found := check(spec)) is not None), "")
        if not reason:
            return shape
    raise UserError(f"not even {counted[0][1].words} fits: {reason}; allow more, or trim the vocabulary")


def _size(counted: tuple[int, ArmShape, ModelSpec]) -> int:
    return counted[0]
