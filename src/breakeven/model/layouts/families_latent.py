"""Families of llama.cpp with compressed caches: latent attention, alone or between linear layers, and V4's entries."""

from __future__ import annotations

from breakeven.model.architecture import CompressedAttention, KimiDelta, Mla, ModelSpec, MoeFfn, OutputGate
from breakeven.model.layouts.family import Family, FfnOrder, GgufValue, LayoutLimits
from breakeven.model.layouts.gguf_keys import hyper_connections, indexer, leading_dense, says, streams


def _deepseek2_refused(spec: ModelSpec) -> str | None:
    ranked = any(isinstance(layer.mixer, Mla) and layer.mixer.q_lora_rank for layer in spec.layers)
    if len(spec.layers) in (26, 27) and ranked:
        return f"projects queries directly in models of {len(spec.layers)} layers"
    return None


def _ranked(spec: ModelSpec) -> str | None:
    direct = any(isinstance(layer.mixer, Mla) and layer.mixer.q_lora_rank is None for layer in spec.layers)
    return "projects queries through a low rank" if direct else None


def _deepseek4_refused(spec: ModelSpec) -> str | None:
    ratios = {layer.mixer.ratio for layer in spec.layers if isinstance(layer.mixer, CompressedAttention)}
    if ratios - {0, 4, 128}:
        return f"compresses 4 or 128 tokens to an entry, not {max(ratios - {0, 4, 128})}"
    hashed = [isinstance(layer.ffn, MoeFfn) and not layer.ffn.selection_bias for layer in spec.layers]
    if any(hashed[hashed.count(True) :]):
        return "routes by token in its first layers alone"
    parts = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, CompressedAttention)]
    if any(a.indexer is not None and a.indexer.head_dim == a.head_dim for a in parts):
        # It would take the attention's own cache for the scorer's, and divide by zero.
        return "has a scorer with heads of another size than attention's"
    if spec.streams is not None and spec.streams.count != 4:
        return "has four residual streams"
    return None


def _bounded_gates(_: ModelSpec) -> dict[str, GgufValue]:
    """The decay's gate is kept above a bound, in Ling 3.0 as its configuration class has it."""
    return {"kda.safe_gate": True, "kda.gate_lower_bound": -5.0}


def _bailing3_refused(spec: ModelSpec) -> str | None:
    parts = [a for layer in spec.layers for a in layer.mixers]
    if len({a.heads for a in parts if isinstance(a, Mla | KimiDelta)}) > 1:
        return "has as many heads in latent as in linear layers"
    if any(isinstance(a, KimiDelta) and a.gate_rank is not None for a in parts):
        return "projects decays and gates in full"
    if any(isinstance(a, Mla) and a.output_gate is not OutputGate.HEAD for a in parts):
        return "has a gate for each head of latent attention"
    return None


def _kimi_refused(spec: ModelSpec) -> str | None:
    parts = [a for layer in spec.layers for a in layer.mixers]
    if len({a.heads for a in parts if isinstance(a, Mla | KimiDelta)}) > 1:
        return "has as many heads in latent as in linear layers"
    if any(isinstance(a, KimiDelta) and a.gate_rank != a.head_dim for a in parts):
        return "projects decays and gates through one head's size"
    return None


def _glm5_next_refused(spec: ModelSpec) -> str | None:
    parts = [a for layer in spec.layers for a in layer.mixers if isinstance(a, Mla)]
    if any(a.rope_dim for a in parts):
        return "has no rotary part in its latent attention"
    if any(a.indexer is not None and not (a.indexer.pools and a.indexer.every > 1) for a in parts):
        return "has a scorer whose keys are pooled"
    if spec.streams is not None and (spec.streams.joins or spec.streams.count != 4):
        return "has four residual streams that are summed before the head"
    return _kimi_refused(spec)


_MLA = LayoutLimits(shared=True, shared_whole=True, selection_bias=None, mtp=True, more=_ranked)
_DSA = LayoutLimits(shared=True, shared_whole=True, selection_bias=None, indexer=True, mtp=True, more=_ranked)

LATENT_FAMILIES = (
    Family(
        "deepseek2",
        "deepseek2",
        says("deepseek2", leading_dense),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla,),
        limits=LayoutLimits(shared=True, shared_whole=True, selection_bias=None, mtp=True, more=_deepseek2_refused),
    ),
    Family(
        "mistral4",
        "mistral4",
        says("mistral4", leading_dense),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla,),
        limits=_MLA,
    ),
    Family(
        "deepseek32",
        "deepseek32",
        says("deepseek32", leading_dense, indexer),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla,),
        limits=_DSA,
    ),
    Family(
        "glm-dsa",
        "glm-dsa",
        says("glm-dsa", leading_dense, indexer),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla,),
        limits=_DSA,
    ),
    Family(
        "deepseek4",
        "deepseek4",
        says("deepseek4", streams),
        ffn_order=FfnOrder.ROUTED,
        mixers=(CompressedAttention,),
        limits=LayoutLimits(
            tied=False,
            shared=True,
            shared_whole=True,
            selection_bias=None,
            streams="hyper",
            more=_deepseek4_refused,
        ),
        token_routed=True,
    ),
    Family(
        "kimi-linear",
        "kimi-linear",
        says("kimi-linear", leading_dense),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla, KimiDelta),
        limits=LayoutLimits(tied=False, shared=None, shared_whole=True, selection_bias=True, more=_kimi_refused),
    ),
    Family(
        "bailingmoe3",
        "bailingmoe3",
        says("bailingmoe3", leading_dense, _bounded_gates),
        tensor_names={"ssm_f": "ssm_f_a", "ssm_g": "ssm_g_a"},
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla, KimiDelta),
        limits=LayoutLimits(shared=True, selection_bias=True, more=_bailing3_refused),
    ),
    Family(
        "glm5-next",
        "glm5-next",
        says("glm5-next", leading_dense, indexer, hyper_connections),
        flat=frozenset({"ssm_a"}),
        ffn_order=FfnOrder.LEADING_DENSE,
        mixers=(Mla, KimiDelta),
        limits=LayoutLimits(
            tied=False,
            shared=True,
            shared_whole=True,
            selection_bias=True,
            indexer=True,
            streams="hyper",
            more=_glm5_next_refused,
        ),
    ),
)
