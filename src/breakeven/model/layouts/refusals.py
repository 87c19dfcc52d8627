"""Why a model would not load in llama.cpp: what its architecture's loader cannot express.

A file states one layout for the whole family, where a spec can say anything of any layer; what does not fit is
refused here, before anything is written. The expectations are those of llama.cpp's `src/models/*.cpp`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import fields, replace

from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    Gqa,
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    ModelSpec,
    MoeFfn,
    Norms,
    OutputGate,
    QkNorm,
    ShortConv,
)
from breakeven.model.layouts.family import Family, FfnOrder, LayoutLimits

LLAMA_CPP_BUILD = 11549
"""The build of llama.cpp whose loader the families were read from and are tested with."""

_NAMES: dict[type, str] = {
    Gqa: "softmax attention",
    Mla: "latent attention",
    CompressedAttention: "compressed attention",
    LinearAttention: "linear attention",
    KimiDelta: "Kimi delta attention",
    Lightning: "lightning attention",
    Mamba2: "Mamba-2",
    Mamba1: "Mamba",
    ShortConv: "short convolutions",
}
_NORMS = {
    Norms.BEFORE: "a norm before each part",
    Norms.AROUND: "norms before and after each part",
    Norms.AFTER: "a norm after each part",
    Norms.PARALLEL: "one norm a layer",
}
_QK_NORMS = {
    QkNorm.NONE: "no norms on queries and keys",
    QkNorm.HEAD: "a norm on each head's queries and keys",
    QkNorm.FULL: "norms over all queries and all keys",
}
_GATES = {
    OutputGate.NONE: "no gate on what attention returns",
    OutputGate.FULL: "a full gate on what attention returns",
    OutputGate.TWIN: "a gate inside the query projection",
    OutputGate.HEAD: "a gate for each head",
}


def why_not_written(spec: ModelSpec, family: Family) -> str | None:
    """Why a file of this spec would not load in llama.cpp, None when nothing known stands against it."""
    if family.gguf_architecture is None:
        if family.name == "custom":
            return "its layout is of no architecture of llama.cpp's"
        if not family.known_to_llama_cpp:
            return f"llama.cpp build {LLAMA_CPP_BUILD} has no architecture {family.name} yet"
        return f"files of family {family.name} cannot be written yet"
    for check in (_mixers, _attention, _experts, _feed_forwards, _around):
        if (found := check(spec, family)) is not None:
            return f"llama.cpp's {family.gguf_architecture} {found}"
    more = family.limits.more
    found = more(spec) if more is not None else None
    return None if found is None else f"llama.cpp's {family.gguf_architecture} {found}"


def _mixers(spec: ModelSpec, family: Family) -> str | None:
    for layer in spec.layers:
        for a in layer.mixers:
            if not isinstance(a, family.mixers):
                allowed = " and ".join(_NAMES[kind] for kind in family.mixers)
                return f"has {allowed}, not {_NAMES[type(a)]}"
        if family.limits.side_by_side:
            if len(layer.mixers) != len(family.mixers) or {type(a) for a in layer.mixers} != set(family.mixers):
                return f"has {' and '.join(_NAMES[kind] for kind in family.mixers)} side by side in every layer"
        elif family.limits.lone_parts:
            if len(layer.mixers) + (layer.ffn is not None) != 1:
                return "has layers of one part each"
        elif len(layer.mixers) != 1:
            return "has one mixer in every layer"
        elif layer.ffn is None:
            return "has a feed-forward in every layer"
    for kind in family.mixers:
        if not any(isinstance(a, kind) for layer in spec.layers for a in layer.mixers):
            return f"has {_NAMES[kind]} in at least one layer"
    return None


def _attention(spec: ModelSpec, family: Family) -> str | None:
    found = [a for layer in spec.layers for a in layer.mixers]
    limits = family.limits
    softmax = [a for a in found if isinstance(a, Gqa)]
    windows = {a.window for a in softmax if a.window is not None}
    if windows and family.window_period is None:
        return "has no sliding layers"
    if len(windows) > 1:
        return f"has one window, not {sorted(windows)}"
    free = {"window", *limits.may_differ}
    if not _alike(tuple(getattr(a, f.name) for f in fields(a) if f.name not in free) for a in softmax):
        return "has the same heads in every layer"
    for kind in family.mixers:
        if kind is not Gqa and not _alike(_neutral(a) for a in found if isinstance(a, kind)):
            return "has the same heads in every layer"
    for a in softmax:
        if a.qk_norm not in limits.qk_norms:
            return f"has {_either(_QK_NORMS[each] for each in limits.qk_norms)}"
        if a.output_gate not in limits.gates:
            return f"has {_either(_GATES[each] for each in limits.gates)}"
        if limits.square and a.heads * a.head_dim != spec.hidden:
            return f"has heads that make up the hidden size of {spec.hidden}, not {a.heads} of {a.head_dim}"
        if limits.sinks is not None and a.sinks is not limits.sinks:
            return "has a sink for each head" if limits.sinks else "has no sinks"
    return _latent(spec, limits)


def _neutral(a: Mixer) -> Mixer:
    """A mixer without what may differ from layer to layer."""
    if isinstance(a, CompressedAttention):
        return replace(a, ratio=0, indexer=None)
    return replace(a, indexer=None) if isinstance(a, Mla) else a


def _latent(spec: ModelSpec, limits: LayoutLimits) -> str | None:
    for layer in spec.layers:
        a = layer.mixer
        if isinstance(a, Gqa | Mla) and (a.indexer is not None) is not limits.indexer:
            return "picks the positions to read in every layer" if limits.indexer else "reads every position"
    return None


def _experts(spec: ModelSpec, family: Family) -> str | None:
    limits = family.limits
    for f in _routed(spec):
        facts = (
            (limits.shared, f.shared_width > 0, "shared experts"),
            (limits.selection_bias, f.selection_bias, "a bias for choosing experts"),
            (limits.expert_bias, f.expert_bias, "biases in its experts"),
            (limits.beside, f.dense_width > 0, "a dense feed-forward beside the experts"),
            (limits.chunks, f.chunk_width > 0, "small experts beside groups of experts"),
        )
        for expected, found, what in facts:
            if expected is not None and expected is not found:
                return f"has {what}" if expected else f"has no {what.removeprefix('a ')}"
        if f.latent_width and not limits.latent:
            return "has no experts on a narrower state"
        if f.shared_width and f.shared_gate is not limits.shared_gate:
            return f"has {'a' if limits.shared_gate else 'no'} gate on its shared experts"
        if limits.shared_whole and f.shared_width != f.n_shared_experts * f.expert_width:
            return "has shared experts as wide as the routed ones"
        if f.zero_experts:
            return "has no experts that cost nothing"
        if limits.same_width and any(each.width != f.expert_width for each in _dense(spec)):
            return "has dense layers as wide as one expert"
    return None


def _feed_forwards(spec: ModelSpec, family: Family) -> str | None:
    routed, dense = _routed(spec), _dense(spec)
    both: list[MoeFfn | DenseFfn] = [*routed, *dense]
    for f in both:
        if f.gated is not family.limits.gated:
            return f"has feed-forwards of {'three matrices' if family.limits.gated else 'two matrices, without a gate'}"
    vary = family.limits.lone_parts or family.limits.per_layer is None
    kinds = [replace(f, selection_bias=False) for f in routed] if family.token_routed else routed
    if not _alike(kinds) or not (vary or _alike(dense)):
        return "has one width for dense layers and one kind of experts"
    order = [isinstance(layer.ffn, MoeFfn) for layer in spec.layers if layer.ffn is not None]
    if family.ffn_order not in _orders(order):
        return f"has {family.ffn_order.value}"
    return None


def _around(spec: ModelSpec, family: Family) -> str | None:
    limits = family.limits
    for layer in spec.layers:
        if layer.norms not in limits.norms:
            return f"has {_either(_NORMS[each] for each in limits.norms)}"
    if spec.layer_norm is not limits.layer_norm:
        return f"has {'norms with a bias' if limits.layer_norm else 'no biases in its norms'}"
    if limits.tied is not None and spec.tied_embeddings is not limits.tied:
        return "has no output head of its own" if limits.tied else "has an output head of its own"
    if limits.per_layer is not None and (spec.per_layer_embedding is not None) is not limits.per_layer:
        return f"has {'an' if limits.per_layer else 'no'} embedding for each layer"
    if spec.ngrams is not None:
        return "has no tables of n-grams"
    streams = None if spec.streams is None else "altup" if spec.streams.altup else "hyper"
    if streams != limits.streams:
        return "has one residual stream" if limits.streams is None else "has several residual streams"
    return None


def _routed(spec: ModelSpec) -> list[MoeFfn]:
    return [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]


def _dense(spec: ModelSpec) -> list[DenseFfn]:
    return [layer.ffn for layer in spec.layers if isinstance(layer.ffn, DenseFfn)]


def _orders(routes: list[bool]) -> set[FfnOrder]:
    """The orders that layers with (True) and without experts stand in."""
    n_dense = routes.count(False)
    found = set()
    if n_dense == len(routes):
        found.add(FfnOrder.DENSE)
    if n_dense == 0:
        found |= {FfnOrder.ROUTED, FfnOrder.EVERY_STEP}
    if n_dense in (0, len(routes)):
        found.add(FfnOrder.ALIKE)
    if n_dense < len(routes):
        found.add(FfnOrder.ANY)
        if all(routes[n_dense:]):
            found.add(FfnOrder.LEADING_DENSE)
        step = routes.index(True) + 1
        if all(route == ((i + 1) % step == 0) for i, route in enumerate(routes)):
            found.add(FfnOrder.EVERY_STEP)
    return found


def _alike(parts: Iterable[Hashable]) -> bool:
    return len(set(parts)) <= 1


def _either(names: Iterator[str]) -> str:
    return " or ".join(names)
