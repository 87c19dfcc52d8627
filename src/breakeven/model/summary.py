"""One model in numbers, as `breakeven models` shows it: facts and arithmetic, nothing measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gqa,
    Indexer,
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    ShortConv,
)
from breakeven.model.arithmetic import (
    Phase,
    active_params,
    batch_touching,
    bytes_by_group,
    decode_bytes,
    flops_per_token,
    kv_bytes,
    kv_bytes_per_token,
    params_by_group,
    state_bytes,
    total_params,
)
from breakeven.model.formats.gguf import FORMATS
from breakeven.model.formats.gpu import GPU_FORMATS
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import TensorGroup

LISTED_FORMAT = "Q4_K_M"
"""The format a list of models shows the size in."""
CONTEXTS = (1024, 8192, 32768, 131072)
"""Contexts at which the cache of one sequence is given, besides the model's own limit."""


@dataclass(frozen=True, slots=True)
class Experts:
    """How the layers that route do it. `batch_half` and `batch_ninety`: sequences in a decode step at which uniform
    routing touches 50 % and 90 % of the experts."""

    layers: int
    n_experts: int
    n_experts_per_token: int
    expert_width: int
    shared_width: int
    batch_half: float
    batch_ninety: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the list. `llama_cpp`: the architecture's name there, None when no file of it can be written yet."""

    name: str
    hub_id: str
    kind: str
    family: str
    llama_cpp: str | None
    total_params: int
    active_params: int
    published_total_params: int | None
    n_layers: int
    context: int
    experts: Experts | None
    listed_bytes: int
    kv_bytes_per_token: float
    source: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in one weight format. `decode_bytes`: weight bytes one decode step of one sequence reads."""

    format: str
    total_bytes: int
    decode_bytes: float
    by_group: dict[TensorGroup, int]


@dataclass(frozen=True, slots=True)
class Cached:
    """The cache of one sequence: keys and values (F16) at a context, and what attention over it costs a token."""

    context: int
    kv_bytes: float
    decode_flops: float
    prefill_flops: float


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Layers of equal shape."""

    layers: int
    attention: str
    ffn: str


@dataclass(frozen=True, slots=True)
class Detail:
    """What there is to say about one model."""

    summary: Summary
    params_by_group: dict[TensorGroup, int]
    formats: tuple[Stored, ...]
    contexts: tuple[Cached, ...]
    state_bytes: float
    layer_kinds: tuple[LayerKind, ...]


def summarise(name: str, spec: ModelSpec) -> Summary:
    """The list's line for a model called `name`."""
    return Summary(
        name=name,
        hub_id=spec.name,
        kind="MoE" if spec.is_moe else "dense",
        family=spec.family,
        llama_cpp=family_of(spec).gguf_architecture,
        total_params=total_params(spec),
        active_params=active_params(spec),
        published_total_params=spec.published_total_params,
        n_layers=len(spec.layers),
        context=spec.context,
        experts=_experts(spec),
        listed_bytes=sum(bytes_by_group(spec, LISTED_FORMAT).values()),
        kv_bytes_per_token=kv_bytes_per_token(spec),
        source=spec.source,
    )


def detail(name: str, spec: ModelSpec) -> Detail:
    """Everything for a model called `name`."""
    contexts = [context for context in CONTEXTS if context < spec.context] + [spec.context]
    return Detail(
        summary=summarise(name, spec),
        params_by_group=params_by_group(spec),
        formats=tuple(_stored(spec, name) for name in (*FORMATS, *GPU_FORMATS)),
        contexts=tuple(_cached(spec, context) for context in contexts),
        state_bytes=state_bytes(spec),
        layer_kinds=tuple(_layer_kinds(spec)),
    )


def _stored(spec: ModelSpec, name: str) -> Stored:
    by_group = bytes_by_group(spec, name)
    return Stored(name, sum(by_group.values()), decode_bytes(spec, name, 1), by_group)


def _cached(spec: ModelSpec, context: int) -> Cached:
    return Cached(
        context=context,
        kv_bytes=kv_bytes(spec, context),
        decode_flops=flops_per_token(spec, context, Phase.DECODE),
        prefill_flops=flops_per_token(spec, context, Phase.PREFILL),
    )


def _experts(spec: ModelSpec) -> Experts | None:
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    if not routed:
        return None
    first = routed[0]
    sizes = first.n_experts, first.n_experts_per_token
    return Experts(
        layers=len(routed),
        n_experts=first.n_experts,
        n_experts_per_token=first.n_experts_per_token,
        expert_width=first.expert_width,
        shared_width=first.shared_width,
        batch_half=batch_touching(*sizes, 0.5),
        batch_ninety=batch_touching(*sizes, 0.9),
    )


def _layer_kinds(spec: ModelSpec) -> Iterator[LayerKind]:
    counts: dict[tuple[str, str], int] = {}
    for layer in spec.layers:
        mixers = " beside ".join(_mixer_words(mixer) for mixer in layer.mixers) or "no mixer"
        kind = mixers, "no feed-forward" if layer.ffn is None else _ffn_words(layer.ffn)
        counts[kind] = counts.get(kind, 0) + 1
    for (attention, ffn), count in counts.items():
        yield LayerKind(count, attention, ffn)


def _mixer_words(mixer: Mixer) -> str:
    match mixer:
        case Gqa() as a:
            window = "" if a.window is None else f", window {a.window}"
            shared = ", keys and values of another layer" if a.shares_kv else ""
            sparse = _indexer_words(a.indexer)
            return f"attention, {a.heads} heads on {a.kv_heads} of {a.head_dim}{window}{shared}{sparse}"
        case Mla() as a:
            sparse = _indexer_words(a.indexer)
            return f"latent attention, {a.heads} heads on {a.kv_lora_rank} + {a.rope_dim}{sparse}"
        case CompressedAttention() as a:
            far = f", older tokens {a.ratio} to one" if a.ratio else ""
            return f"compressed attention, {a.heads} heads on one of {a.head_dim}, window {a.window}{far}"
        case LinearAttention() as a:
            return f"linear attention, {a.value_heads} states of {a.key_dim} x {a.value_dim}"
        case KimiDelta() as a:
            return f"Kimi delta attention, {a.heads} states of {a.head_dim} x {a.head_dim}"
        case Lightning() as a:
            return f"linear attention with fixed decay, {a.heads} states of {a.head_dim} x {a.head_dim}"
        case Mamba2() as a:
            return f"Mamba-2, {a.heads} heads of {a.head_dim} x {a.state}"
        case Mamba1() as a:
            return f"Mamba, {a.inner} x {a.state}"
        case ShortConv() as a:
            return f"short convolution over {a.kernel}"


def _indexer_words(indexer: Indexer | None) -> str:
    return "" if indexer is None else f", reads {indexer.top_k} positions"


def _ffn_words(ffn: FeedForward) -> str:
    if isinstance(ffn, DenseFfn):
        return f"dense {ffn.width}{'' if ffn.gated else ', no gate'}"
    shared = f" + {ffn.shared_width} shared" if ffn.shared_width else ""
    beside = f" + dense {ffn.dense_width}" if ffn.dense_width else ""
    latent = f" on {ffn.latent_width}" if ffn.latent_width else ""
    plain = "" if ffn.gated else ", no gate"
    return f"{ffn.n_experts_per_token} of {ffn.n_experts} experts of {ffn.expert_width}{latent}{shared}{beside}{plain}"
