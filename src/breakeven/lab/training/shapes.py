"""Students from a few words: "dense 4x256" is 4 layers of width 256, "moe 4x256 8/2" has 8 experts, 2 a token.

They are Qwen3's and Qwen3-MoE's classes, which every engine runs. Every matrix has rows that 256 divides, so that every
weight format fits. Counts are exact: those of the same description that `predict` and `decide` read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from breakeven.errors import UserError, one_line
from breakeven.lab.bridge.families import of_config
from breakeven.lab.bridge.rotary import Rotary
from breakeven.model.architecture import ModelSpec
from breakeven.model.arithmetic import total_params
from breakeven.model.layouts.derive import spec_from_config
from breakeven.model.tensors import TensorGroup, tensors

STEP = 256
"""Weights that the formats of two and three bits pack together: widths are multiples of it."""
HEAD = 64
_WIDER = 3
"""A feed-forward over the width."""
_THETA = 10_000.0
_MOST_LAYERS, _MOST_WIDTH, _MOST_EXPERTS = 128, 16_384, 512
_FORM = re.compile(r"(dense|moe)(?:\s+(\d+)\s*x\s*(\d+)(?:\s+(\d+)\s*/\s*(\d+))?)?", re.IGNORECASE)
_EXAMPLES = '"dense 4x256", "moe 4x256 8/2"'
_LADDER_EXPERTS = (8, 2)
TERNARY_BYTES = 66 / STEP
"""Of a weight in TQ2_0."""
_EIGHT_BITS_BYTES = 34 / 32


@dataclass(frozen=True, slots=True)
class StudentShape:
    """What a student looks like. `n_experts` 0: dense."""

    layers: int
    width: int
    n_experts: int = 0
    n_used: int = 0

    @property
    def words(self) -> str:
        """As it is asked for."""
        kind = f"moe {self.layers}x{self.width} {self.n_experts}/{self.n_used}"
        return kind if self.n_experts else f"dense {self.layers}x{self.width}"


def parse_shape(text: str) -> StudentShape | str:
    """A shape, or only its kind ("dense" or "moe") where sizes are left to be found.

    Raises UserError for what is none, and for widths and experts that no file of that size could hold.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise UserError(f"--into {one_line(text, 80)!r}: give a shape such as {_EXAMPLES}, or a model's directory")
    kind, layers, width, experts, used = found.groups()
    moe = kind.lower() == "moe"
    if layers is None:
        return kind.lower()
    if moe != (experts is not None):
        need = "how many experts, and how many a token: " if moe else "no experts where it is dense: "
        raise UserError(f"--into {text!r}: say {need}{_EXAMPLES}")
    shape = StudentShape(int(layers), int(width), int(experts or 0), int(used or 0))
    _check(shape, text)
    return shape


def _check(shape: StudentShape, text: str) -> None:
    if shape.width % STEP or not 0 < shape.width <= _MOST_WIDTH:
        near = min(max(STEP, round(shape.width / STEP) * STEP), _MOST_WIDTH)
        raise UserError(
            f"--into {text!r}: a width of {shape.width} is no multiple of {STEP}, so formats of two to six bits could "
            f"not hold it; give {near}"
        )
    if not 0 < shape.layers <= _MOST_LAYERS:
        raise UserError(f"--into {text!r}: give 1 to {_MOST_LAYERS} layers")
    if shape.n_experts and not (2 <= shape.n_experts <= _MOST_EXPERTS and 2 <= shape.n_used <= shape.n_experts):
        raise UserError(
            f"--into {text!r}: {shape.n_used} of {shape.n_experts} experts a token cannot be; give 2 to "
            f"{_MOST_EXPERTS} experts, and of them 2 or more a token: the router of one alone learns nothing"
        )


def config_of(shape: StudentShape, vocab: int, positions: int, tokens: Mapping[str, object]) -> dict[str, object]:
    """`config.json` of a student, whole as its class reads it. `tokens`: ids of special tokens, by key."""
    bridge = of_config({"model_type": "qwen3_moe" if shape.n_experts else "qwen3"})
    heads = shape.width // HEAD
    config: dict[str, object] = {
        "architectures": [bridge.class_name],
        "model_type": bridge.model_type,
        "vocab_size": vocab,
        "hidden_size": shape.width,
        "intermediate_size": _WIDER * shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": HEAD,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "attention_bias": False,
        # Of a small student most weights are its vocabulary's: one table, read twice.
        "tie_word_embeddings": True,
    }
    if shape.n_experts:
        # A token passes about the weights that it would pass in a dense student.
        width = max(STEP, round(_WIDER * shape.width / shape.n_used / STEP) * STEP)
        config |= {
            "num_experts": shape.n_experts,
            "num_experts_per_tok": shape.n_used,
            "moe_intermediate_size": width,
        }
    config |= {**bridge.written, **Rotary(_THETA).written(), **dict.fromkeys(("bos_token_id", "pad_token_id"))}
    return config | {"eos_token_id": None, **tokens, "torch_dtype": "float32", "use_cache": True}


def spec_of(shape: StudentShape, vocab: int, positions: int) -> ModelSpec:
    """Its description, with exact counts."""
    return spec_from_config(config_of(shape, vocab, positions, {}), shape.words, "--into")


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


def ladder(kind: str) -> list[StudentShape]:
    """Shapes of a kind from small to large, among which one that fits is looked for."""
    experts = _LADDER_EXPERTS if kind == "moe" else (0, 0)
    return [
        StudentShape(depth * width // STEP, width, *experts)
        for width in range(STEP, 10 * STEP + 1, STEP)
        for depth in (2, 3, 4)
    ]


def largest_that_fits(
    kind: str, vocab: int, positions: int, why_not: Sequence[Callable[[ModelSpec], str | None]]
) -> StudentShape:
    """The largest shape of `ladder` that nothing in `why_not` speaks against.

    Raises UserError with the reason against the smallest where none is left.
    """
    shapes = ladder(kind)
    counted = sorted(
        ((total_params(spec := spec_of(each, vocab, positions)), each, spec) for each in shapes), key=_size
    )
    reason = ""
    for _, shape, spec in reversed(counted):
        reason = next((found for check in why_not if (found := check(spec)) is not None), "")
        if not reason:
            return shape
    raise UserError(f"not even {counted[0][1].words} fits: {reason}; allow more, or trim the vocabulary")


def _size(counted: tuple[int, StudentShape, ModelSpec]) -> int:
    return counted[0]
