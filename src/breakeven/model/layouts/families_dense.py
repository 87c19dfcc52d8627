"""Dense families of llama.cpp, and those that are dense or routed as the model says."""

from __future__ import annotations

from breakeven.model.architecture import Gqa, ModelSpec, Norms, OutputGate, QkNorm
from breakeven.model.layouts.family import Family, FfnOrder, GgufValue, LayoutLimits
from breakeven.model.layouts.gguf_keys import (
    layer_norm_epsilon,
    logit_scale,
    multipliers,
    rope_sections,
    says,
    window_pattern,
)

SECOND_NORM = {"ffn_norm": "post_attention_norm"}
"""The norm before the feed-forward, under the name that others give to one after attention."""
JOINED_QKV: dict[str, tuple[str, ...]] = {"attn_qkv": ("attn_q", "attn_k", "attn_v")}
_JOINED_GATE_UP: dict[str, tuple[str, ...]] = {"ffn_up": ("ffn_gate", "ffn_up")}

_GEMMA3N_ALTUP, _GEMMA3N_LAUREL, _GEMMA3N_PER_LAYER, _GEMMA3N_OWN_CACHES = 4, 64, 256, 20
"""What llama.cpp fixes for Gemma 3n: streams, rank, width of a layer's embedding, layers before caches are shared."""


def _shared_caches(spec: ModelSpec) -> int:
    return sum(isinstance(layer.mixer, Gqa) and layer.mixer.shares_kv for layer in spec.layers)


def _gemma4(spec: ModelSpec) -> dict[str, GgufValue]:
    """Sliding layers have heads of their own size, and every layer may have an embedding of its own."""
    sliding = next(
        (a for layer in spec.layers for a in layer.mixers if isinstance(a, Gqa) and a.window is not None), None
    )
    keys: dict[str, GgufValue] = {
        "embedding_length_per_layer_input": spec.per_layer_embedding.width if spec.per_layer_embedding else 0,
        "attention.shared_kv_layers": _shared_caches(spec),
    }
    if sliding is not None:
        keys |= {
            "attention.key_length_swa": sliding.head_dim,
            "attention.value_length_swa": sliding.value_dim,
            "rope.dimension_count_swa": sliding.head_dim,
        }
    return keys | window_pattern(spec)


def _gemma4_refused(spec: ModelSpec) -> str | None:
    windows = [isinstance(layer.mixer, Gqa) and layer.mixer.window is not None for layer in spec.layers]
    if all(windows) or not any(windows):
        return "has sliding and full layers"
    if any(isinstance(layer.mixer, Gqa) and layer.mixer.shares_kv for layer in spec.layers) and not all(
        isinstance(layer.mixer, Gqa) and layer.mixer.shares_kv for layer in spec.layers[-_shared_caches(spec) :]
    ):
        return "shares caches in its last layers alone"
    return None


def _gemma3n_refused(spec: ModelSpec) -> str | None:
    streams, rows = spec.streams, spec.per_layer_embedding
    if streams is not None and (streams.count, streams.laurel_rank) != (_GEMMA3N_ALTUP, _GEMMA3N_LAUREL):
        return f"has {_GEMMA3N_ALTUP} streams and a rank of {_GEMMA3N_LAUREL}"
    if rows is not None and rows.width != _GEMMA3N_PER_LAYER:
        return f"has an embedding of {_GEMMA3N_PER_LAYER} for each layer"
    shared = [isinstance(layer.mixer, Gqa) and layer.mixer.shares_kv for layer in spec.layers]
    if shared != [i >= _GEMMA3N_OWN_CACHES for i in range(len(shared))]:
        return f"shares caches in all layers after the first {_GEMMA3N_OWN_CACHES}"
    return None


_COMMAND_R_NORMED = 64
_EXAONE4_SLIDES = 64


def _command_r_refused(spec: ModelSpec) -> str | None:
    deep = len(spec.layers) >= _COMMAND_R_NORMED
    return f"has norms of another shape on queries from {_COMMAND_R_NORMED} layers on" if deep else None


def _exaone4_refused(spec: ModelSpec) -> str | None:
    slides = any(isinstance(layer.mixer, Gqa) and layer.mixer.window is not None for layer in spec.layers)
    return (
        f"has sliding layers in models of {_EXAONE4_SLIDES} layers alone"
        if (slides and len(spec.layers) != _EXAONE4_SLIDES)
        else None
    )


def _xielu(spec: ModelSpec) -> dict[str, GgufValue]:
    """Constants of Apertus's activation, as its configuration class has them."""
    count = len(spec.layers)
    return {
        "xielu.alpha_n": [0.8] * count,
        "xielu.alpha_p": [0.8] * count,
        "xielu.beta": [0.5] * count,
        "xielu.eps": [-1e-6] * count,
    }


def _parallel(_: ModelSpec) -> dict[str, GgufValue]:
    return {"use_parallel_residual": True}


_HEAD = (QkNorm.HEAD,)
_AROUND, _AFTER, _PARALLEL = (Norms.AROUND,), (Norms.AFTER,), (Norms.PARALLEL,)

DENSE_FAMILIES = (
    Family(
        "llama",
        "llama",
        says("llama"),
        ffn_order=FfnOrder.ALIKE,
        rope_table=True,
        routed_as="llama",
        dense_as="llama",
    ),
    Family("mistral3", "mistral3", says("mistral3"), rope_table=True),
    Family("qwen2", "qwen2", says("qwen2"), limits=LayoutLimits(square=True), routed_as="qwen2moe"),
    Family("qwen3", "qwen3", says("qwen3"), limits=LayoutLimits(qk_norms=_HEAD), routed_as="qwen3moe"),
    Family(
        "qwen3vl",
        "qwen3vl",
        says("qwen3vl", rope_sections),
        limits=LayoutLimits(qk_norms=_HEAD),
        routed_as="qwen3vlmoe",
    ),
    Family("gemma", "gemma", says("gemma"), limits=LayoutLimits(tied=True), scales_embeddings=True),
    Family(
        "gemma2",
        "gemma2",
        says("gemma2", window_pattern),
        window_period=2,
        window_default=4096,
        limits=LayoutLimits(norms=_AROUND, tied=True),
        scales_embeddings=True,
    ),
    Family(
        "gemma3",
        "gemma3",
        says("gemma3", window_pattern),
        window_period=6,
        limits=LayoutLimits(norms=_AROUND, qk_norms=_HEAD),
        scales_embeddings=True,
    ),
    Family(
        "gemma3n",
        "gemma3n",
        says("gemma3n", window_pattern),
        window_period=5,
        limits=LayoutLimits(
            norms=_AROUND,
            qk_norms=_HEAD,
            may_differ=("shares_kv",),
            per_layer=True,
            streams="altup",
            more=_gemma3n_refused,
        ),
        scales_embeddings=True,
    ),
    Family(
        "gemma4",
        "gemma4",
        says("gemma4", _gemma4),
        window_period=6,
        ffn_order=FfnOrder.ALIKE,
        limits=LayoutLimits(
            norms=_AROUND,
            qk_norms=_HEAD,
            may_differ=("kv_heads", "head_dim", "keys_are_values", "shares_kv", "kv_matrices"),
            beside=None,
            per_layer=None,
            more=_gemma4_refused,
        ),
        rope_table="always",
        routed_as="gemma4",
        dense_as="gemma4",
        scales_embeddings=True,
    ),
    Family("phi3", "phi3", says("phi3"), joined=JOINED_QKV | _JOINED_GATE_UP, limits=LayoutLimits(square=True)),
    Family(
        "granite",
        "granite",
        says("granite", multipliers),
        ffn_order=FfnOrder.ALIKE,
        limits=LayoutLimits(shared=None),
        rope_table=True,
        routed_as="granitemoe",
    ),
    Family(
        "command-r",
        "command-r",
        says("command-r", layer_norm_epsilon, logit_scale),
        limits=LayoutLimits(norms=_PARALLEL, square=True, tied=True, more=_command_r_refused),
    ),
    Family(
        "cohere2",
        "cohere2",
        says("cohere2", layer_norm_epsilon, logit_scale, window_pattern),
        window_period=4,
        limits=LayoutLimits(norms=_PARALLEL, square=True, tied=True),
        routed_as="cohere2moe",
    ),
    Family(
        "olmo2",
        "olmo2",
        says("olmo2", window_pattern),
        window_period=4,
        limits=LayoutLimits(norms=_AFTER, qk_norms=(QkNorm.FULL,), square=True, tied=False),
    ),
    Family(
        "exaone4",
        "exaone4",
        says("exaone4", window_pattern),
        window_period=4,
        window_default=4096,
        limits=LayoutLimits(norms=_AFTER, qk_norms=_HEAD, square=True, more=_exaone4_refused),
        rope_table=True,
        routed_as="exaone-moe",
    ),
    Family("smollm3", "smollm3", says("smollm3")),
    Family("seed_oss", "seed_oss", says("seed_oss"), tensor_names=SECOND_NORM),
    Family(
        "apertus",
        "apertus",
        says("apertus", _xielu),
        limits=LayoutLimits(qk_norms=_HEAD, tied=False, gated=False),
        rope_table=True,
    ),
    Family("ernie4_5", "ernie4_5", says("ernie4_5"), routed_as="ernie4_5-moe"),
    Family(
        "hunyuan-dense",
        "hunyuan-dense",
        says("hunyuan-dense"),
        limits=LayoutLimits(qk_norms=_HEAD),
        routed_as="hunyuan-moe",
    ),
    Family(
        "glm4", "glm4", says("glm4"), joined=_JOINED_GATE_UP, limits=LayoutLimits(norms=_AROUND), routed_as="glm4moe"
    ),
    Family(
        "muse-glimmer",
        "muse-glimmer",
        says("muse-glimmer", logit_scale, window_pattern),
        window_period=4,
        limits=LayoutLimits(norms=_AROUND, qk_norms=(QkNorm.NONE, QkNorm.HEAD), gates=(OutputGate.FULL,), tied=False),
        norms_that_scale=True,
    ),
    Family(
        "nemotron",
        "nemotron",
        says("nemotron"),
        limits=LayoutLimits(layer_norm=True, square=True, tied=False, gated=False),
    ),
    Family(
        "starcoder2", "starcoder2", says("starcoder2"), limits=LayoutLimits(layer_norm=True, square=True, gated=False)
    ),
    Family(
        "gptneox",
        "gptneox",
        says("gptneox", _parallel),
        joined=JOINED_QKV,
        limits=LayoutLimits(layer_norm=True, square=True, tied=False, gated=False),
    ),
    Family(
        "phi2",
        "phi2",
        says("phi2"),
        limits=LayoutLimits(norms=_PARALLEL, layer_norm=True, square=True, tied=False, gated=False),
    ),
)
