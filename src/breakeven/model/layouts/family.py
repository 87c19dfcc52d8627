"""What a family is: one of llama.cpp's architectures, and what its files can say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from breakeven.model.architecture import Gqa, Mixer, ModelSpec

GgufValue = str | bool | int | float | list[str] | list[bool] | list[int] | list[float]
"""A metadata value; a whole number is written as uint32, a list as an array of its elements' type."""


class FfnOrder(StrEnum):
    """Which layers llama.cpp expects to route in a family; the text completes "it has ..."."""

    DENSE = "no experts"
    ROUTED = "experts in every layer"
    ALIKE = "experts in all layers or in none"
    LEADING_DENSE = "dense layers before those with experts, and at least one of these"
    EVERY_STEP = "experts in every n-th layer"


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture of llama.cpp: how its files name things and what they can say.

    `gguf_architecture`: llama.cpp's name; None when Breakeven can count the family but not write files of it yet.
    `gguf_metadata(spec)`: architecture keys without the tokenizer's, e.g. `olmoe.block_count`.
    `tensor_names`: tensors that llama.cpp keeps under another stem in this family. `joined`: the stem of one that it
    stacks from several along their outputs. `split`: the stems of several equal ones that it keeps one as.
    `window_period`, `window_default`: where a file does not say which layers slide, all but the last of each period
    do, over this many positions; None: the family has no sliding layers whatever a file says.
    `ffn_order`, `mixers`: what llama.cpp expects of the layers; nothing when there is no architecture.
    `scales_embeddings`: the engine multiplies embeddings by sqrt(hidden) (Gemma).
    `routed_as`, `dense_as`: the family that has this layout with experts, or without; None: there is none.
    """

    name: str
    gguf_architecture: str | None
    gguf_metadata: Callable[[ModelSpec], dict[str, GgufValue]]
    tensor_names: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    window_period: int | None = None
    window_default: int | None = None
    ffn_order: FfnOrder = FfnOrder.DENSE
    mixers: tuple[type[Mixer], ...] = (Gqa,)
    routed_as: str | None = None
    dense_as: str | None = None
    scales_embeddings: bool = False
