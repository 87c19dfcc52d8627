"""A small model of every layout that llama.cpp loads, made of parts as no configuration file would be needed to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from breakeven.model.architecture import (
    CompressedAttention,
    DenseFfn,
    FeedForward,
    Gating,
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
    Mtp,
    Norms,
    OutputGate,
    PerLayerEmbedding,
    QkNorm,
    Rope,
    Scales,
    ShortConv,
    Streams,
)

HIDDEN, VOCAB = 256, 1024
ATTENTION = Gqa(heads=4, kv_heads=2, head_dim=64)
NORMED = replace(ATTENTION, qk_norm=QkNorm.HEAD)
SLIDING = replace(ATTENTION, window=64)
NORMED_SLIDING = replace(NORMED, window=64)
GATED = replace(NORMED, output_gate=OutputGate.TWIN)
DENSE = DenseFfn(512)
UNGATED = DenseFfn(512, gated=False)
MOE = MoeFfn(n_experts=8, n_experts_per_token=2, expert_width=256)
SIGMOID = replace(MOE, gating=Gating.SIGMOID, selection_bias=True)
SHARED = replace(MOE, n_shared_experts=1, shared_width=256)
SIGMOID_SHARED = replace(SIGMOID, n_shared_experts=1, shared_width=256)
LATENT = Mla(heads=4, kv_lora_rank=256, nope_dim=64, rope_dim=64, value_dim=64, q_lora_rank=256)
PICKING = replace(LATENT, indexer=Indexer(heads=4, head_dim=128, top_k=32))
POOLING = Indexer(heads=4, head_dim=128, top_k=32, every=4, pools=True)
COMPRESSED = CompressedAttention(4, 256, q_lora_rank=256, output_groups=2, output_lora_rank=128, window=64)
SQRT_SHARED = replace(SIGMOID_SHARED, gating=Gating.SQRT_SOFTPLUS)
DELTA = LinearAttention(key_heads=2, value_heads=4, key_dim=64, value_dim=64)
KIMI = KimiDelta(4, 64, gate_rank=64)
MAMBA2 = Mamba2(heads=8, head_dim=64, state=64, groups=2)


def _layers(mixers: Sequence[Mixer], ffns: Sequence[FeedForward], norms: Norms = Norms.BEFORE) -> tuple[Layer, ...]:
    return tuple(Layer((mixer,), ffn, norms) for mixer, ffn in zip(mixers, ffns, strict=True))


def _model(family: str, layers: Sequence[Layer], **facts: Any) -> ModelSpec:
    facts = {"tied_embeddings": False, "context": 2048, **facts}
    return ModelSpec(f"small-{family}", family, HIDDEN, VOCAB, layers=tuple(layers), source="a test", **facts)


def _alike(family: str, mixer: Mixer, ffn: FeedForward, norms: Norms = Norms.BEFORE, **facts: Any) -> ModelSpec:
    return _model(family, _layers([mixer] * 2, [ffn] * 2, norms), **facts)


def _leading(family: str, mixer: Mixer, ffn: MoeFfn, norms: Norms = Norms.BEFORE, **facts: Any) -> ModelSpec:
    """A dense layer before two that route."""
    return _model(family, _layers([mixer] * 3, [DENSE, ffn, ffn], norms), **facts)


def _gemma4(ffns: Sequence[FeedForward], name: str, *, shared: bool = False, **facts: Any) -> ModelSpec:
    """Sliding layers with heads of another size; full ones whose keys are their values, or with shared caches."""
    slides = replace(NORMED_SLIDING, head_dim=32)
    full = replace(NORMED, kv_heads=1, keys_are_values=not shared)
    mixers = [slides, full, slides, full]
    if shared:
        mixers[2:] = [replace(a, shares_kv=True, kv_matrices=False) for a in mixers[2:]]
    spec = _model("gemma4", _layers(mixers, ffns, Norms.AROUND), tied_embeddings=True, logit_softcap=30.0, **facts)
    return replace(spec, name=name)


def _gemma3n() -> ModelSpec:
    own = [NORMED if i % 5 == 4 else NORMED_SLIDING for i in range(22)]
    mixers = [replace(a, shares_kv=i >= 20) for i, a in enumerate(own)]
    return _model(
        "gemma3n",
        _layers(mixers, [DenseFfn(256)] * 22, Norms.AROUND),
        tied_embeddings=True,
        per_layer_embedding=PerLayerEmbedding(256, VOCAB),
        streams=Streams(4, altup=True, laurel_rank=64),
    )


def _lone(family: str, ffn: FeedForward) -> ModelSpec:
    parts = (
        Layer((MAMBA2,)),
        Layer((), ffn),
        Layer((ATTENTION,)),
        Layer((), ffn),
    )
    return _model(family, parts)


_GEMMA4_MOE = replace(MOE, dense_width=512)
_MAMBA = replace(MAMBA2, heads=8)
_ONES = {"n_shared_experts": 1, "shared_width": 256}
_NEMOTRON = replace(SIGMOID_SHARED, gated=False)
_MINICPM_SCALES = Scales(embedding=12.0, residual=0.22, attention=0.0156, logit=6.0)

LAYOUTS: dict[str, ModelSpec] = {
    "llama-rope": _alike("llama", ATTENTION, DENSE, rope=Rope(500000.0, None, None, "llama3", 8.0, 512)),
    "qwen3-yarn": _alike("qwen3", NORMED, DENSE, rope=Rope(1e6, None, None, "yarn", 4.0, 512)),
    "mistral3": _alike("mistral3", ATTENTION, DENSE),
    "qwen3vl": _alike("qwen3vl", NORMED, DENSE),
    "gemma": _alike("gemma", ATTENTION, DENSE, tied_embeddings=True),
    "gemma3n": _gemma3n(),
    "gemma4": _gemma4([DENSE] * 4, "gemma4"),
    "gemma4-moe": _gemma4([_GEMMA4_MOE] * 4, "gemma4-moe"),
    "gemma4-e": _gemma4(
        [DENSE] * 2 + [DenseFfn(1024)] * 2, "gemma4-e", shared=True, per_layer_embedding=PerLayerEmbedding(64, VOCAB)
    ),
    "phi3": _alike("phi3", ATTENTION, DENSE),
    "command-r": _alike("command-r", ATTENTION, DENSE, Norms.PARALLEL, tied_embeddings=True),
    "cohere2": _model("cohere2", _layers([SLIDING, ATTENTION], [DENSE] * 2, Norms.PARALLEL), tied_embeddings=True),
    "olmo2": _alike("olmo2", replace(ATTENTION, qk_norm=QkNorm.FULL), DENSE, Norms.AFTER),
    "olmo3": _model(
        "olmo2",
        _layers([replace(a, qk_norm=QkNorm.FULL) for a in (SLIDING, SLIDING, ATTENTION)], [DENSE] * 3, Norms.AFTER),
    ),
    "exaone4": _alike("exaone4", NORMED, DENSE, Norms.AFTER),
    "smollm3": _alike("smollm3", ATTENTION, DENSE),
    "seed_oss": _alike("seed_oss", replace(ATTENTION, qkv_bias=True), DENSE),
    "apertus": _alike("apertus", NORMED, UNGATED),
    "ernie4_5": _alike("ernie4_5", ATTENTION, DENSE),
    "hunyuan-dense": _alike("hunyuan-dense", NORMED, DENSE),
    "glm4": _alike("glm4", replace(ATTENTION, qkv_bias=True), DENSE, Norms.AROUND),
    "muse-glimmer": _model(
        "muse-glimmer",
        _layers([replace(a, output_gate=OutputGate.FULL) for a in (NORMED_SLIDING, NORMED)], [DENSE] * 2, Norms.AROUND),
    ),
    "nemotron": _alike("nemotron", ATTENTION, UNGATED, layer_norm=True),
    "starcoder2": _alike(
        "starcoder2",
        replace(ATTENTION, qkv_bias=True, output_bias=True),
        replace(UNGATED, bias=True),
        layer_norm=True,
    ),
    "gptneox": _alike(
        "gptneox",
        replace(ATTENTION, qkv_bias=True, output_bias=True),
        replace(UNGATED, bias=True),
        layer_norm=True,
    ),
    "phi2": _alike(
        "phi2",
        replace(ATTENTION, qkv_bias=True, output_bias=True),
        replace(UNGATED, bias=True),
        Norms.PARALLEL,
        layer_norm=True,
        output_bias=True,
    ),
    "qwen2moe": _alike("qwen2moe", replace(ATTENTION, qkv_bias=True), replace(SHARED, shared_gate=True)),
    "qwen3vlmoe": _alike("qwen3vlmoe", NORMED, MOE),
    "deepseek2": _leading("deepseek2", LATENT, replace(SIGMOID_SHARED, n_groups=4, n_groups_used=2)),
    "deepseek32": _leading("deepseek32", PICKING, SIGMOID_SHARED),
    "glm-dsa": _leading("glm-dsa", PICKING, SIGMOID_SHARED),
    "mistral4": _leading("mistral4", LATENT, SHARED),
    "glm4moe": _leading("glm4moe", replace(NORMED, qkv_bias=True), SIGMOID_SHARED),
    "minimax-m2": _alike("minimax-m2", replace(ATTENTION, qk_norm=QkNorm.FULL), SIGMOID),
    "mimo2": _model(
        "mimo2",
        _layers(
            [
                replace(ATTENTION, kv_heads=1, value_head_dim=32),
                replace(SLIDING, value_head_dim=32, sinks=True),
                replace(SLIDING, value_head_dim=32, sinks=True),
            ],
            [DENSE, SIGMOID, SIGMOID],
        ),
    ),
    "ernie4_5-moe": _leading("ernie4_5-moe", ATTENTION, replace(SHARED, selection_bias=True)),
    "hunyuan-moe": _alike("hunyuan-moe", NORMED, SHARED),
    "bailingmoe2": _leading(
        "bailingmoe2", NORMED, replace(SIGMOID_SHARED, n_groups=4, n_groups_used=2, weights_scale=2.5)
    ),
    "dots1": _leading("dots1", replace(NORMED, kv_heads=4), replace(SIGMOID, n_shared_experts=2, shared_width=512)),
    "grovemoe": _alike("grovemoe", NORMED, replace(MOE, chunk_experts=4, chunk_width=256)),
    "smallthinker": _model(
        "smallthinker", _layers([ATTENTION, SLIDING, SLIDING], [replace(MOE, gating=Gating.SIGMOID)] * 3)
    ),
    "afmoe": _model(
        "afmoe",
        _layers(
            [replace(a, output_gate=OutputGate.FULL) for a in (NORMED_SLIDING, NORMED_SLIDING, NORMED)],
            [DENSE, SIGMOID_SHARED, SIGMOID_SHARED],
            Norms.AROUND,
        ),
    ),
    "arctic": _alike("arctic", ATTENTION, replace(MOE, dense_width=HIDDEN)),
    "dbrx": _alike("dbrx", ATTENTION, MOE),
    "laguna": _model(
        "laguna",
        _layers(
            [
                replace(a, output_gate=OutputGate.HEAD)
                for a in (NORMED, replace(NORMED_SLIDING, heads=8), replace(NORMED_SLIDING, heads=8))
            ],
            [DENSE, SIGMOID_SHARED, SIGMOID_SHARED],
        ),
    ),
    "exaone-moe": _model(
        "exaone-moe",
        _layers([NORMED_SLIDING, NORMED_SLIDING, NORMED], [DENSE, SIGMOID_SHARED, SIGMOID_SHARED]),
    ),
    "mellum": _model("mellum", _layers([NORMED_SLIDING, NORMED], [MOE] * 2)),
    "cohere2moe": _model(
        "cohere2moe",
        _layers([ATTENTION, SLIDING, SLIDING], [DENSE, *[replace(SHARED, gating=Gating.SIGMOID)] * 2], Norms.PARALLEL),
    ),
    "hy_v3": _leading("hy_v3", NORMED, SIGMOID_SHARED),
    "step35": _model(
        "step35",
        _layers(
            [
                replace(a, output_gate=OutputGate.HEAD)
                for a in (NORMED, replace(NORMED_SLIDING, heads=8), replace(NORMED_SLIDING, heads=8))
            ],
            [DENSE, SIGMOID_SHARED, SIGMOID_SHARED],
        ),
    ),
    "lfm2": _model("lfm2", _layers([ShortConv(), NORMED, ShortConv()], [DENSE] * 3), tied_embeddings=True),
    "qwen3next": _model("qwen3next", _layers([DELTA, DELTA, DELTA, GATED], [replace(SHARED, shared_gate=True)] * 4)),
    "qwen35": _model("qwen35", _layers([DELTA, DELTA, DELTA, GATED], [DENSE] * 4), tied_embeddings=True),
    "qwen35moe": _model(
        "qwen35moe",
        _layers([DELTA, GATED, DELTA, GATED], [replace(SHARED, shared_gate=True)] * 4),
        mtp=Mtp((Layer((GATED,), replace(SHARED, shared_gate=True)),)),
    ),
    "nemotron_h": _lone("nemotron_h", UNGATED),
    "nemotron_h_moe": _lone("nemotron_h_moe", _NEMOTRON),
    "nemotron-latent": replace(
        _lone("nemotron_h_moe", replace(_NEMOTRON, latent_width=256)), name="small-nemotron-latent"
    ),
    "granitehybrid": _model(
        "granitehybrid",
        _layers([MAMBA2, ATTENTION, MAMBA2], [SHARED] * 3),
        tied_embeddings=True,
        scales=_MINICPM_SCALES,
    ),
    "granitehybrid-dense": _model(
        "granitehybrid",
        _layers([MAMBA2, ATTENTION, MAMBA2], [DENSE] * 3),
        tied_embeddings=True,
        scales=_MINICPM_SCALES,
    ),
    "falcon-h1": _model("falcon-h1", [Layer((replace(MAMBA2, norm=False, groups=1), ATTENTION), DENSE)] * 2),
    "jamba": _model(
        "jamba",
        _layers(
            [Mamba1(512, 16, 16, dt_norms=True), ATTENTION, Mamba1(512, 16, 16, dt_norms=True)],
            [DenseFfn(256), MOE, DenseFfn(256)],
        ),
    ),
    "kimi-linear": _model(
        "kimi-linear",
        _layers(
            [KIMI, replace(LATENT, q_lora_rank=None), KIMI],
            [DENSE, SIGMOID_SHARED, SIGMOID_SHARED],
        ),
    ),
    "deepseek4": _model(
        "deepseek4",
        _layers(
            [COMPRESSED, replace(COMPRESSED, ratio=4, indexer=Indexer(4, 128, 64)), replace(COMPRESSED, ratio=128)],
            [replace(SQRT_SHARED, selection_bias=False), SQRT_SHARED, SQRT_SHARED],
        ),
        streams=Streams(4),
    ),
    "glm5-next": _model(
        "glm5-next",
        _layers(
            [
                KimiDelta(4, 64, gate_rank=64),
                replace(LATENT, rope_dim=0, indexer=POOLING),
                KimiDelta(4, 64, gate_rank=64),
            ],
            [DENSE, SIGMOID_SHARED, SIGMOID_SHARED],
        ),
        streams=Streams(4, joins=False),
    ),
    "bailingmoe3": _model(
        "bailingmoe3",
        _layers(
            [KimiDelta(4, 64), replace(LATENT, output_gate=OutputGate.HEAD), KimiDelta(4, 64)],
            [DENSE, SIGMOID_SHARED, SIGMOID_SHARED],
        ),
    ),
    "minimax-01": _model("minimax-01", _layers([Lightning(4, 4, 64), ATTENTION, Lightning(4, 4, 64)], [MOE] * 3)),
}

ROUTED = tuple(name for name, spec in LAYOUTS.items() if spec.is_moe)
