"""What classes share that stand in several rows of the table: one for each line of models."""

from __future__ import annotations

from dataclasses import replace

from breakeven.model.architecture import Gating, Norms, OutputGate, QkNorm
from breakeven.model.layouts.model_class import ModelClass

_HEAD, _FULL = QkNorm.HEAD, QkNorm.FULL
_SIGMOID = Gating.SIGMOID
THREE_TO_ONE = ("sliding", "sliding", "sliding", "full")
FIVE_TO_ONE = ("sliding",) * 5 + ("full",)
DELTA_THREE_TO_ONE = ("linear", "linear", "linear", "full")

LLAMA = ModelClass("llama", "llama", tied=False)
MIXTRAL = replace(LLAMA, expert_key="intermediate_size")
QWEN2 = ModelClass("qwen2", qkv_bias=True, tied=False, sliding_alone=False, rope_base=1e6)
QWEN2MOE = replace(QWEN2, family="qwen2moe", normalise=False, shared_gate=True)
QWEN3 = ModelClass(
    "qwen3", "qwen3moe", tied=False, qk_norm=_HEAD, head_dim_given=True, sliding_alone=False, rope_base=1e6
)
QWEN3NEXT = ModelClass(
    "qwen3next",
    tied=False,
    qk_norm=_HEAD,
    head_dim_given=True,
    gate=OutputGate.TWIN,
    gate_of_true=OutputGate.TWIN,
    pattern=DELTA_THREE_TO_ONE,
    delta="gated",
    shared_gate=True,
    rope_base=1e7,
)
QWEN35 = replace(QWEN3NEXT, family="qwen35", routed="qwen35moe")
QWEN4 = replace(
    QWEN3NEXT,
    family="qwen4exp",
    defaults={
        "hc_count": 4,
        "hc_lowrank": 320,
        "ple_conv_kernel_size": 4,
        "make_ngram_vocab_size_divisible_by": 128,
    },
)
GRANITE = ModelClass("granite", "granitemoe", tied=False, scaled=True)
GRANITEMOE = replace(
    GRANITE,
    family="granitemoe",
    tied=True,
    expert_key="intermediate_size",
    gating=Gating.SOFTMAX_AFTER_TOP_K,
)
GEMMA2 = ModelClass(
    "gemma2",
    tied=True,
    head_dim_given=True,
    norms=Norms.AROUND,
    pattern=("sliding", "full"),
    attention_softcap=50.0,
    logit_softcap=30.0,
)
GEMMA3 = ModelClass(
    "gemma3", tied=True, qk_norm=_HEAD, head_dim_given=True, norms=Norms.AROUND, pattern=FIVE_TO_ONE, rope_base=1e6
)
GEMMA3N = replace(
    GEMMA3, family="gemma3n", pattern=("sliding",) * 4 + ("full",), idle=("altup_correct_scale", "altup_active_idx")
)
GEMMA4 = replace(GEMMA3, family="gemma4", kv_matrices_shared=False, dense_beside=True)
GPT_OSS = ModelClass(
    "gpt-oss",
    tied=False,
    qkv_bias=True,
    output_bias=True,
    sinks=True,
    head_dim_given=True,
    pattern=("sliding", "full"),
    expert_key="intermediate_size",
    gating=Gating.SOFTMAX_AFTER_TOP_K,
    router_bias=True,
    expert_bias=True,
    rope_base=150000.0,
)
LLAMA4 = ModelClass(
    "llama4",
    tied=False,
    pattern=("chunked", "chunked", "chunked", "full"),
    expert_key="intermediate_size",
    gating=_SIGMOID,
    normalise=False,
    shared_experts=1,
    rope_base=500000.0,
    idle=("use_qk_norm",),
    defaults={"attention_chunk_size": 8192},
)
DEEPSEEK2 = ModelClass("deepseek2", tied=False, normalise=False)
DEEPSEEK3 = ModelClass("deepseek2", tied=False, gating=_SIGMOID, selection_bias=True, mtp_tables=True)
GLM_DSA = replace(
    DEEPSEEK3,
    family="glm-dsa",
    mtp_tables=False,
    defaults={"index_topk": 2048, "index_n_heads": 32, "index_head_dim": 128},
)
GLM5 = replace(GLM_DSA, family="glm5-next", delta="kimi", joins=False, defaults={})
GLM4MOE = ModelClass(
    "glm4moe",
    tied=False,
    qkv_bias=True,
    attention_bias_output=False,
    gating=_SIGMOID,
    selection_bias=True,
    mtp_tables=True,
    rope_base=1e6,
)
MIMO2 = ModelClass(
    "mimo2",
    tied=False,
    head_dim_given=True,
    pattern=FIVE_TO_ONE,
    gating=_SIGMOID,
    selection_bias=True,
    rope_base=5e6,
    mtp_dense=True,
    idle=("attention_chunk_size",),
    defaults={"add_swa_attention_sink_bias": True},
)
MINIMAX = ModelClass(
    "minimax-m2",
    tied=False,
    head_dim_given=True,
    qk_norm=_FULL,
    expert_key="intermediate_size",
    gating=_SIGMOID,
    selection_bias=True,
    rope_base=5e6,
    idle=("use_mtp", "mtp_transformer_layers", "num_mtp_modules", "attn_type_list", "qk_norm_type"),
)
LFM2 = ModelClass("lfm2", "lfm2moe", tied=True, qk_norm=_HEAD, kinds_required="layer_types", rope_base=1e6)
LFM2 = replace(
    LFM2,
    gating=_SIGMOID,
    selection_bias=True,
    stand_in=("conv", "conv", "full", "conv"),
    idle=("num_heads", "conv_dim", "conv_dim_out", "block_dim", "block_use_swiglu", "block_use_xavier_init"),
)
COHERE = ModelClass("command-r", tied=True, norms=Norms.PARALLEL)
COHERE2 = replace(COHERE, family="cohere2", pattern=THREE_TO_ONE)
OLMO2 = ModelClass("olmo2", tied=False, qk_norm=_FULL, norms=Norms.AFTER, pattern=())
EXAONE4 = ModelClass(
    "exaone4", tied=False, qk_norm=_HEAD, norms=Norms.AFTER, pattern=THREE_TO_ONE, window_optional=True
)
BAILING = ModelClass("bailingmoe2", tied=False, qk_norm=_HEAD, gating=_SIGMOID, selection_bias=True, rope_base=6e5)
NEMOTRON_H = ModelClass(
    "nemotron_h",
    "nemotron_h_moe",
    tied=False,
    gated=False,
    gating=_SIGMOID,
    selection_bias=True,
    kinds_required="hybrid_override_pattern",
)
KIMI_LINEAR = replace(
    DEEPSEEK3,
    family="kimi-linear",
    delta="kimi",
    mtp_tables=False,
    # Kimi K3's layers attend to blocks of layers before them by a vector each: a millionth of its weights.
    idle=("attn_res_block_size",),
)

GLM4 = ModelClass("glm4", tied=False, qkv_bias=True, attention_bias_output=False, norms=Norms.AROUND)
MINIMAX1 = ModelClass(
    "minimax-01", tied=False, delta="lightning", expert_key="intermediate_size", idle=("block_size", "postnorm")
)
MINIMAX3 = replace(MINIMAX, family="minimax-m3", qk_norm=_HEAD, indexed_by_word=True)
STEP3P5 = ModelClass(
    "step35",
    tied=False,
    qk_norm=_HEAD,
    gate=OutputGate.HEAD,
    gating=_SIGMOID,
    selection_bias=True,
    mtp_dense=True,
)
INKLING = ModelClass(
    tied=False,
    qk_norm=_HEAD,
    words={"hybrid": "full", "hybrid_sliding": "sliding"},
    gating=_SIGMOID,
    selection_bias=True,
    mtp_dense=True,
    left_out=("d_rel",),
    idle=(
        *("rel_extent", "conv_kernel_size", "sconv_kernel_size", "use_sconv", "use_embed_norm", "shared_expert_sink"),
        *("unpadded_vocab_size", "padded_vocab_size", "mtp_hidden_states_first", "mtp_local_layer_ids"),
        *("number_of_conv_states", "n_layers_per_attn_res_block"),
    ),
)
"""Its projections of relative positions are a percent of what a token reads; its short convolutions far less."""
MAMBA = ModelClass("mamba2", tied=True, no_ffn=True, defaults={"max_position_embeddings": 1 << 20})
"""Any length will do for a state; llama.cpp's converter writes the same."""
