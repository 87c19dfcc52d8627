"""Families of llama.cpp that route in some or all of their layers, all with softmax attention over cached keys."""

from __future__ import annotations

from breakeven.model.architecture import Gqa, ModelSpec, MoeFfn, Norms, OutputGate, QkNorm
from breakeven.model.layouts.families_dense import JOINED_QKV, SECOND_NORM
from breakeven.model.layouts.family import Family, FfnOrder, GgufValue, LayoutLimits
from breakeven.model.layouts.gguf_keys import (
    layer_norm_epsilon,
    leading_dense,
    logit_scale,
    moe_step,
    multipliers,
    rope_sections,
    says,
    window_pattern,
)


def first_routed(spec: ModelSpec) -> MoeFfn:
    """The experts of the first layer that routes; callers know that there is one."""
    return next(layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn))


def _every_layer(_: ModelSpec) -> dict[str, GgufValue]:
    return {"interleave_moe_layer_step": 1}


def _shared_each(spec: ModelSpec) -> dict[str, GgufValue]:
    """The width of one shared expert, where others give that of all together."""
    f = first_routed(spec)
    return {"expert_shared_feed_forward_length": f.shared_width // max(1, f.n_shared_experts)}


def _shared_of_old(spec: ModelSpec) -> dict[str, GgufValue]:
    """Gpt-neox-like files of Arctic give the experts' width as the feed-forward's."""
    return {"feed_forward_length": first_routed(spec).expert_width}


def _groves(spec: ModelSpec) -> dict[str, GgufValue]:
    f = first_routed(spec)
    return {
        "expert_chunk_feed_forward_length": f.chunk_width,
        "experts_per_group": f.n_experts // max(1, f.chunk_experts),
        "expert_group_scale": 0.05,
    }


def _clamped(_: ModelSpec) -> dict[str, GgufValue]:
    return {"attention.clamp_kqv": 8.0}


def _cohere2moe(spec: ModelSpec) -> dict[str, GgufValue]:
    """Its loader takes the norm for one that keeps the mean when it is told the other's epsilon."""
    return layer_norm_epsilon(spec) | logit_scale(spec) | leading_dense(spec) | window_pattern(spec)


def _dots1_refused(spec: ModelSpec) -> str | None:
    shares = any(isinstance(layer.mixer, Gqa) and layer.mixer.kv_heads != layer.mixer.heads for layer in spec.layers)
    return "has a key head for every query head" if shares else None


def _arctic_refused(spec: ModelSpec) -> str | None:
    wrong = any(isinstance(layer.ffn, MoeFfn) and layer.ffn.dense_width != spec.hidden for layer in spec.layers)
    return "has a dense feed-forward as wide as the hidden state beside the experts" if wrong else None


def _one_shared(spec: ModelSpec) -> str | None:
    wrong = any(
        isinstance(layer.ffn, MoeFfn) and layer.ffn.shared_width != layer.ffn.expert_width for layer in spec.layers
    )
    return "has one shared expert, as wide as the routed ones" if wrong else None


_HEAD = (QkNorm.HEAD,)

MOE_FAMILIES = (
    Family(
        "qwen2moe",
        "qwen2moe",
        says("qwen2moe"),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(square=True, tied=False, shared=True, shared_gate=True),
        dense_as="qwen2",
    ),
    Family(
        "qwen3moe",
        "qwen3moe",
        says("qwen3moe"),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=_HEAD),
        dense_as="qwen3",
    ),
    Family(
        "qwen3vlmoe",
        "qwen3vlmoe",
        says("qwen3vlmoe", rope_sections),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=_HEAD),
        dense_as="qwen3vl",
    ),
    Family(
        "olmoe",
        "olmoe",
        says("olmoe"),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=(QkNorm.FULL,), tied=False),
    ),
    Family(
        "phimoe",
        "phimoe",
        says("phimoe"),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(layer_norm=True, square=True, tied=False),
    ),
    Family(
        "granitemoe",
        "granitemoe",
        says("granitemoe", multipliers),
        ffn_order=FfnOrder.ALIKE,
        limits=LayoutLimits(shared=None),
        rope_table=True,
        dense_as="granite",
    ),
    Family(
        "gpt-oss",
        "gpt-oss",
        says("gpt-oss", window_pattern),
        tensor_names=SECOND_NORM,
        window_period=2,
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(sinks=True, expert_bias=True, tied=False),
    ),
    Family(
        "llama4",
        "llama4",
        says("llama4", window_pattern, moe_step),
        window_period=4,
        # Positions an attention chunk holds; llama.cpp fixes it for this architecture.
        window_default=8192,
        ffn_order=FfnOrder.EVERY_STEP,
        limits=LayoutLimits(shared=True, more=_one_shared),
        rope_table=True,
    ),
    Family(
        "glm4moe",
        "glm4moe",
        says("glm4moe", leading_dense),
        tensor_names=SECOND_NORM,
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(
            qk_norms=(QkNorm.NONE, QkNorm.HEAD), shared=None, shared_whole=True, selection_bias=True, mtp=True
        ),
        dense_as="glm4",
    ),
    Family(
        "minimax-m2",
        "minimax-m2",
        says("minimax-m2"),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=(QkNorm.FULL,), tied=False, selection_bias=True),
    ),
    Family(
        "mimo2",
        "mimo2",
        says("mimo2", window_pattern),
        window_period=6,
        ffn_order=FfnOrder.ANY,
        limits=LayoutLimits(sinks=None, may_differ=("kv_heads", "sinks"), tied=False, selection_bias=None, mtp=True),
    ),
    Family(
        "ernie4_5-moe",
        "ernie4_5-moe",
        says("ernie4_5-moe", leading_dense, _every_layer),
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(shared=None, selection_bias=None),
        dense_as="ernie4_5",
    ),
    Family(
        "hunyuan-moe",
        "hunyuan-moe",
        says("hunyuan-moe"),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=_HEAD, shared=True),
        dense_as="hunyuan-dense",
    ),
    Family(
        "bailingmoe2",
        "bailingmoe2",
        says("bailingmoe2", leading_dense, _shared_each),
        joined=JOINED_QKV,
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(qk_norms=_HEAD, square=True, tied=False, shared=True, selection_bias=None),
    ),
    Family(
        "dots1",
        "dots1",
        says("dots1", leading_dense),
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(
            qk_norms=_HEAD, tied=False, shared=True, shared_whole=True, selection_bias=None, more=_dots1_refused
        ),
    ),
    Family(
        "grovemoe",
        "grovemoe",
        says("grovemoe", _groves),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=_HEAD, chunks=True),
    ),
    Family(
        "smallthinker",
        "smallthinker",
        says("smallthinker", window_pattern),
        window_period=4,
        window_default=4096,
        full_first=True,
        ffn_order=FfnOrder.ROUTED,
    ),
    Family(
        "afmoe",
        "afmoe",
        says("afmoe", leading_dense, window_pattern),
        window_period=4,
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(
            norms=(Norms.AROUND,),
            qk_norms=_HEAD,
            gates=(OutputGate.FULL,),
            shared=None,
            shared_whole=True,
            selection_bias=True,
        ),
        scales_embeddings=True,
    ),
    Family(
        "arctic",
        "arctic",
        says("arctic", _shared_of_old),
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(square=True, beside=True, more=_arctic_refused),
    ),
    Family(
        "dbrx",
        "dbrx",
        says("dbrx", layer_norm_epsilon, _clamped),
        tensor_names={"ffn_norm": "attn_output_norm"},
        joined=JOINED_QKV,
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(square=True, tied=False),
    ),
    Family(
        "laguna",
        "laguna",
        says("laguna", leading_dense, window_pattern),
        window_period=4,
        full_first=True,
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(
            qk_norms=_HEAD,
            gates=(OutputGate.HEAD, OutputGate.FULL),
            may_differ=("heads", "kv_heads"),
            shared=True,
            selection_bias=True,
        ),
    ),
    Family(
        "exaone-moe",
        "exaone-moe",
        says("exaone-moe", leading_dense, window_pattern),
        window_period=4,
        window_default=128,
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(qk_norms=_HEAD, tied=False, shared=True, selection_bias=None),
        rope_table=True,
        dense_as="exaone4",
    ),
    Family(
        "mellum",
        "mellum",
        says("mellum", window_pattern),
        window_period=4,
        ffn_order=FfnOrder.ROUTED,
        limits=LayoutLimits(qk_norms=_HEAD, tied=False),
    ),
    Family(
        "cohere2moe",
        "cohere2moe",
        says("cohere2moe", _cohere2moe),
        window_period=4,
        full_first=True,
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(norms=(Norms.PARALLEL,), shared=None, mtp=True),
        dense_as="cohere2",
    ),
    Family(
        "hy_v3",
        "hy_v3",
        says("hy_v3", leading_dense),
        bare=frozenset({"exp_probs_b"}),
        ffn_order=FfnOrder.LEADING_DENSE,
        limits=LayoutLimits(qk_norms=_HEAD, shared=None, selection_bias=None, mtp=True),
    ),
    Family(
        "step35",
        "step35",
        says("step35", window_pattern),
        window_period=4,
        ffn_order=FfnOrder.ANY,
        limits=LayoutLimits(
            qk_norms=(QkNorm.NONE, QkNorm.HEAD),
            gates=(OutputGate.NONE, OutputGate.HEAD),
            may_differ=("heads", "kv_heads"),
            tied=False,
            shared=None,
            selection_bias=None,
            mtp=True,
        ),
    ),
)
