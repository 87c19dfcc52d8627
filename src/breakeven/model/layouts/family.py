"""What a family is: one of llama.cpp's architectures, what its files say, and what its loader expects of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from breakeven.model.architecture import Gqa, Mixer, ModelSpec, Norms, OutputGate, QkNorm

GgufValue = str | bool | int | float | list[str] | list[bool] | list[int] | list[float]
"""A metadata value; a whole number is written as uint32, a list as an array of its elements' type."""


class FfnOrder(StrEnum):
    """Which layers llama.cpp expects to route in a family; the text completes "it has ..."."""

    DENSE = "no experts"
    ROUTED = "experts in every layer"
    ALIKE = "experts in all layers or in none"
    LEADING_DENSE = "dense layers before those with experts, and at least one of these"
    EVERY_STEP = "experts in every n-th layer"
    ANY = "experts in some layers"


@dataclass(frozen=True, slots=True)
class LayoutLimits:
    """What llama.cpp's loader of an architecture expects of a model beside its mixers and the order of its experts.

    True: it must be so; False: it must not; None: as the file says. `may_differ`: facts of attention that may change
    from layer to layer. `square`: queries are as wide as the hidden state. `tied`: the head is the embedding table.
    `shared_whole`: the shared experts are so many experts wide. `beside`: a dense feed-forward runs beside experts.
    `lone_parts`: layers have a mixer or a feed-forward. `side_by_side`: layers have every mixer of the family.
    `streams`: the kind of several residual streams, "altup" or "hyper". `same_width`: dense layers are as wide as one
    expert. `more`: what else would not load, as a sentence's end.
    """

    norms: tuple[Norms, ...] = (Norms.BEFORE,)
    qk_norms: tuple[QkNorm, ...] = (QkNorm.NONE,)
    gates: tuple[OutputGate, ...] = (OutputGate.NONE,)
    sinks: bool | None = False
    may_differ: tuple[str, ...] = ()
    layer_norm: bool = False
    square: bool = False
    tied: bool | None = None
    shared: bool | None = False
    shared_gate: bool = False
    shared_whole: bool = False
    selection_bias: bool | None = False
    expert_bias: bool = False
    beside: bool | None = False
    gated: bool = True
    latent: bool = False
    chunks: bool = False
    indexer: bool = False
    per_layer: bool | None = False
    streams: str | None = None
    lone_parts: bool = False
    side_by_side: bool = False
    same_width: bool = False
    mtp: bool = False
    more: Callable[[ModelSpec], str | None] | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of llama.cpp: how its files name things and what they can say.

    `gguf_architecture`: llama.cpp's name; None when Breakeven can count the family but not write files of it.
    `gguf_metadata(spec)`: architecture keys without the tokenizer's, e.g. `olmoe.block_count`.
    `tensor_names`: tensors that llama.cpp keeps under another stem in this family. `joined`: the stem of one that it
    stacks from several along their outputs. `split`: the stems of several equal ones that it keeps one as. `bare`:
    stems of tensors whose names end there, without `.weight`. `flat`: stems of columns that it keeps as vectors.
    `window_period`, `window_default`: where a file does not say which layers slide, all but the last of each period
    do (`full_first`: all but the first), over this many positions; no period: the family has no sliding layers
    whatever a file says.
    `ffn_order`, `mixers`, `limits`: what llama.cpp expects of the layers; nothing when there is no architecture.
    `rope_table`: its files may carry a table of rotary factors (`rope_freqs`); "always": they must.
    `scales_embeddings`: the engine multiplies embeddings by sqrt(hidden) (Gemma).
    `attention_as`: the dense and the routed family of a model whose layers all attend, where it is another.
    `routed_as`, `dense_as`: the family that has this layout with experts, or without; None: there is none.
    `token_routed`: a routed layer without a bias for choosing looks its experts up by token (DeepSeek-V4).
    `norms_that_scale`: files carry norms on queries and keys that the model does not have, to scale them (Muse).
    `known_to_llama_cpp`: for a family that is not written: whether llama.cpp has it.
    """

    name: str
    gguf_architecture: str | None
    gguf_metadata: Callable[[ModelSpec], dict[str, GgufValue]]
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bare: frozenset[str] = frozenset()
    flat: frozenset[str] = frozenset()
    window_period: int | None = None
    window_default: int | None = None
    full_first: bool = False
    ffn_order: FfnOrder = FfnOrder.DENSE
    mixers: tuple[type[Mixer], ...] = (Gqa,)
    limits: LayoutLimits = LayoutLimits()
    rope_table: bool | str = False
    attention_as: tuple[str, str] | None = None
    routed_as: str | None = None
    dense_as: str | None = None
    scales_embeddings: bool = False
    token_routed: bool = False
    norms_that_scale: bool = False
    known_to_llama_cpp: bool = True
