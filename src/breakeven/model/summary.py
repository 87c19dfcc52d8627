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
    Layer,
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
    mtp_params,
    params_by_group,
    state_bytes,
    total_params,
)
from breakeven.model.catalogue import CatalogueEntry, Counterpart, ModelFacts, counterparts
from breakeven.model.formats.named import FORMATS, GPU_FORMATS, OWN, default_format, kv_element_bytes, label
from breakeven.model.layouts.registry import family_of
from breakeven.model.tensors import TensorGroup

LISTED_FORMAT = "Q4_K_M"
"""The format a list of models shows the size in."""
CONTEXTS = (1024, 8192, 32768, 131072)
"""Contexts at which the cache of one sequence is given, besides the model's own limit."""
SIZE_CLASSES = (("up to 3 B", 3e9), ("3 to 10 B", 10e9), ("10 to 40 B", 40e9), ("40 to 150 B", 150e9))
"""Groups of the list, each with the total up to which a model belongs to it; larger ones are `LARGEST`."""
LARGEST = "over 150 B"


@dataclass(frozen=True, slots=True)
class ExpertCounts:
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
    """One line of the list. `llama_cpp`: the architecture's name there, None when no file of it can be written yet.

    `hybrid`: some layers mix tokens without softmax attention. `total_params` leaves out `mtp_params`, the blocks that
    draft further tokens; so does `published_total_params`, whose `published_source` says whose figure it is.
    `native_format`: of the published weights where it is not a 16-bit one.
    """

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
    experts: ExpertCounts | None
    listed_bytes: int
    kv_bytes_per_token: float
    source: str
    hybrid: bool = False
    size_class: str = LARGEST
    mtp_params: int = 0
    published_source: str | None = None
    native_format: str | None = None
    licence: str | None = None
    native_kv: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A model in one weight format, `label` as people see it.

    `decode_bytes`: weight bytes one decode step of one sequence reads.
    """

    format: str
    total_bytes: int
    decode_bytes: float
    by_group: dict[TensorGroup, int]
    label: str


@dataclass(frozen=True, slots=True)
class Cached:
    """The cache of one sequence: keys and values at a context, and what attention over it costs a token."""

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
class Published:
    """What a publisher says of a model beyond its shapes. `also`: further names of the same shapes. `date`: of creation
    on the hub. `towers`: for other senses, not counted. `active_params` as published: some leave out embedding or head.
    `base`: which of its ids are known to be base models, not taught to chat.
    """

    also: tuple[str, ...]
    date: str | None
    languages: tuple[str, ...]
    towers: tuple[str, ...]
    active_params: int | None
    active_source: str | None
    note: str | None
    base: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Detail:
    """What there is to say about one model. `facts`: as published, None where the model is not the catalogue's.

    `compare_with`: models of the other kind to compare it with.
    """

    summary: Summary
    params_by_group: dict[TensorGroup, int]
    formats: tuple[Stored, ...]
    contexts: tuple[Cached, ...]
    state_bytes: float
    layer_kinds: tuple[LayerKind, ...]
    facts: Published | None = None
    compare_with: tuple[Counterpart, ...] = ()
    kv_type: str = "f16"


def size_class(total: float) -> str:
    """The group of the list for a model of so many parameters."""
    return next((name for name, most in SIZE_CLASSES if total <= most), LARGEST)


def summarise(name: str, spec: ModelSpec, facts: ModelFacts | None = None) -> Summary:
    """The list's line for a model called `name`; `facts` where it is the catalogue's."""
    total = total_params(spec)
    return Summary(
        name=name,
        hub_id=spec.name,
        kind="MoE" if spec.is_moe else "dense",
        family=spec.family,
        llama_cpp=family_of(spec).gguf_architecture,
        total_params=total,
        active_params=active_params(spec),
        published_total_params=spec.published_total_params,
        n_layers=len(spec.layers),
        context=spec.context,
        experts=_experts(spec),
        listed_bytes=sum(bytes_by_group(spec, LISTED_FORMAT).values()),
        kv_bytes_per_token=kv_bytes_per_token(spec),
        source=spec.source,
        hybrid=any(_is_hybrid(layer) for layer in spec.layers),
        size_class=size_class(total),
        mtp_params=mtp_params(spec),
        published_source=facts.total_source if facts else None,
        native_format=native_format(spec),
        licence=facts.licence if facts else None,
        native_kv=spec.kv_cache,
    )


def native_format(spec: ModelSpec) -> str | None:
    """The weight format a model is published in, in words; None for 16 bits and where nothing says."""
    if spec.quantization is None:
        return None
    experts = f", experts {spec.quantization.experts}" if spec.quantization.experts else ""
    return spec.quantization.format_name.replace("MXFP4_BF16", "MXFP4") + experts


def _is_hybrid(layer: Layer) -> bool:
    return any(not isinstance(mixer, Gqa | Mla | CompressedAttention) for mixer in layer.mixers)


def detail(
    name: str, spec: ModelSpec, entry: CatalogueEntry | None = None, kv: str = "f16", asked: str | None = None
) -> Detail:
    """Everything for a model called `name`; `entry` where it is the catalogue's, `kv` the type of keys and values.

    The first format is the file's own, or the one a model was published in where that is not a 16-bit one; then comes
    the one `asked` for by name. Raises UserError for an unknown type.
    """
    element = kv_element_bytes(kv)
    contexts = [context for context in CONTEXTS if context < spec.context] + [spec.context]
    return Detail(
        summary=summarise(name, spec, entry.facts if entry else None),
        params_by_group=params_by_group(spec),
        formats=tuple(_formats(spec, asked)),
        contexts=tuple(_cached(spec, context, element) for context in contexts),
        state_bytes=state_bytes(spec),
        layer_kinds=tuple(_layer_kinds(spec)),
        facts=_published(entry.facts) if entry else None,
        compare_with=counterparts(entry) if entry else (),
        kv_type=kv.strip().lower(),
    )


def _published(facts: ModelFacts) -> Published:
    return Published(
        also=facts.also,
        date=facts.date,
        languages=facts.languages,
        towers=facts.towers,
        active_params=facts.active,
        active_source=facts.active_source,
        note=facts.note,
        base=facts.base,
    )


def _formats(spec: ModelSpec, asked: str | None) -> Iterator[Stored]:
    first = default_format(spec, "vllm")
    if first != "BF16":
        yield _stored(spec, first, f"{label(spec, first)} ({'this file' if first == OWN else 'published'})")
    if asked is not None and (asked != first or first == "BF16"):
        yield _stored(spec, asked, f"{label(spec, asked)} (asked for)")
    for name in (*FORMATS, *GPU_FORMATS):
        if name != asked and (name != first or first == "BF16"):
            yield _stored(spec, name, name)


def _stored(spec: ModelSpec, name: str, shown: str) -> Stored:
    by_group = bytes_by_group(spec, name)
    return Stored(name, sum(by_group.values()), decode_bytes(spec, name, 1), by_group, shown)


def _cached(spec: ModelSpec, context: int, element_bytes: float) -> Cached:
    return Cached(
        context=context,
        kv_bytes=kv_bytes(spec, context, element_bytes),
        decode_flops=flops_per_token(spec, context, Phase.DECODE),
        prefill_flops=flops_per_token(spec, context, Phase.PREFILL),
    )


def _experts(spec: ModelSpec) -> ExpertCounts | None:
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    if not routed:
        return None
    first = routed[0]
    sizes = first.n_experts, first.n_experts_per_token
    return ExpertCounts(
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
