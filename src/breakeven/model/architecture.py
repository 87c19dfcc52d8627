"""What a model is: its layers, one by one, and the tables beside them; nothing about how it is run.

A layer is made of parts: mixers, which move information between tokens (attention of a kind, a state-space model, a
convolution), and a feed-forward. Most layers have one of each; some have two mixers side by side (Falcon-H1), some
only a mixer or only a feed-forward (Nemotron-H). A hybrid is a model whose layers differ, so every layer carries its
own parts.

Shapes only: parts are in `parts`, names of tensors in `tensors`, weight formats in `formats`, arithmetic on both in
`arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass

from breakeven.errors import printable
from breakeven.model.parts import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gating,
    Gqa,
    Indexer,
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    MoeFfn,
    Norms,
    OutputGate,
    QkNorm,
    ShortConv,
)

__all__ = [
    "CompressedAttention",
    "DenseFfn",
    "FeedForward",
    "FileTensors",
    "Gating",
    "Gqa",
    "Indexer",
    "KimiDelta",
    "Layer",
    "Lightning",
    "LinearAttention",
    "Mamba1",
    "Mamba2",
    "Mixer",
    "Mla",
    "ModelSpec",
    "MoeFfn",
    "Mtp",
    "NgramTable",
    "Norms",
    "OutputGate",
    "PerLayerEmbedding",
    "QkNorm",
    "Quantization",
    "Rope",
    "Scales",
    "ShortConv",
    "StoredTensor",
    "Streams",
]


@dataclass(frozen=True, slots=True)
class Layer:
    """One block: its mixers (usually one; none; two side by side) and its feed-forward (or none)."""

    mixers: tuple[Mixer, ...]
    ffn: FeedForward | None = None
    norms: Norms = Norms.BEFORE

    @property
    def mixer(self) -> Mixer | None:
        """The layer's first mixer, None when it has none."""
        return self.mixers[0] if self.mixers else None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: base frequency and how many of a head's dimensions turn (None: all).

    `window_base`: the base of sliding layers where it is another. `scaling` and `factor`: `linear` or `yarn` stretched
    by so much from `original_context`.
    """

    base: float = 10000.0
    dimensions: int | None = None
    window_base: float | None = None
    scaling: str | None = None
    factor: float = 1.0
    original_context: int | None = None


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """A second embedding table with a row of `layers * width` for each of `vocab` tokens, read by row (Gemma 3n, 4)."""

    width: int
    vocab: int


@dataclass(frozen=True, slots=True)
class NgramTable:
    """Tables of hashed n-grams, `rows` of `width` in all, read by row; `layers` (from 0) use what is read.

    Each of those layers has a key and a value projection of `joined` elements (all heads' rows together) and a
    convolution over `kernel` tokens of each residual stream.
    """

    rows: int
    width: int
    joined: int
    layers: tuple[int, ...]
    kernel: int = 4


@dataclass(frozen=True, slots=True)
class Streams:
    """Several residual streams beside each other.

    Hyper-connections (DeepSeek-V4): `count` streams mixed before and after each part, `low_rank` where the mixing goes
    through one, `joins` with weights of its own before the head. AltUp (Gemma 3n): `altup`, with a low-rank residual of
    `laurel_rank`.
    """

    count: int
    low_rank: int = 0
    joins: bool = True
    altup: bool = False
    laurel_rank: int = 0


@dataclass(frozen=True, slots=True)
class Mtp:
    """Blocks that draft the tokens after the next: in the file's bytes, run only when drafting is asked for.

    `embedding`, `head`: each block brings an embedding table, an output head, of its own.
    """

    layers: tuple[Layer, ...]
    embedding: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True)
class Scales:
    """Granite's four multipliers."""

    embedding: float = 1.0
    residual: float = 1.0
    attention: float = 1.0
    logit: float = 1.0


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a weight file: `shape` in numpy order, slowest first; `type_name` as ggml names it."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class FileTensors:
    """The tensors of the file a model was read from, as they are. `label`: the file's own word for its mixture.

    Two are the same only when they are one object, so that a model stays quick to compare.
    """

    label: str
    tensors: tuple[StoredTensor, ...]


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint is published: a weight format by name, and what its configuration leaves in 16 bits.

    `kept`: names or patterns of modules as the configuration spells them; `re:` marks a regular expression.
    `experts`: the routed experts' format where it is another (DeepSeek-V4). `others`: modules by such patterns, each
    with the format it is stored in where that is another.
    """

    format_name: str
    kept: tuple[str, ...] = ()
    experts: str | None = None
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """An architecture. `family` names an entry of `breakeven.model.layouts.registry.FAMILIES`.

    `stored`: the file's own tensors when it was read from one; `quantization`: as published, when it says;
    `kv_cache`: the type of keys and values that its checkpoint asks for.
    `assumed`: keys that were passed over because the user said so.
    """

    name: str
    family: str
    hidden: int
    vocab: int
    context: int
    tied_embeddings: bool
    layers: tuple[Layer, ...]
    source: str
    rope: Rope = Rope()
    norm_epsilon: float = 1e-5
    layer_norm: bool = False
    """LayerNorm with a bias (Phi-3.5-MoE) where other families use RMSNorm."""
    output_bias: bool = False
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    scales: Scales | None = None
    published_total_params: int | None = None
    per_layer_embedding: PerLayerEmbedding | None = None
    ngrams: NgramTable | None = None
    streams: Streams | None = None
    mtp: Mtp | None = None
    stored: FileTensors | None = None
    quantization: Quantization | None = None
    kv_cache: str | None = None
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """A file may call itself anything; what it says is printed in many places and must not drive a terminal."""
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "source", printable(self.source))

    @property
    def is_moe(self) -> bool:
        """True when any layer routes."""
        return any(isinstance(layer.ffn, MoeFfn) for layer in self.layers)
