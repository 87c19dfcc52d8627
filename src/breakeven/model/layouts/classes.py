"""What keys cannot tell: the facts that a model's class decides, by `model_type`.

Everything else is read from keys. A `model_type` that is not here is read from its keys alone, as most models are:
RMSNorm before each part, no norms on queries and keys, no biases.
"""

from __future__ import annotations

from dataclasses import replace

from breakeven.model.architecture import Gating, Norms, OutputGate, QkNorm
from breakeven.model.layouts.model_class import ModelClass

_HEAD, _FULL = QkNorm.HEAD, QkNorm.FULL
_SIGMOID = Gating.SIGMOID
_3_TO_1 = ("sliding", "sliding", "sliding", "full")
_5_TO_1 = ("sliding",) * 5 + ("full",)
_DELTA_3_TO_1 = ("linear", "linear", "linear", "full")

_llama = ModelClass("llama", "llama", tied=False)
_mixtral = replace(_llama, expert_key="intermediate_size")
_qwen2 = ModelClass("qwen2", qkv_bias=True, tied=False, sliding_alone=False, rope_base=1e6)
_qwen2moe = replace(_qwen2, family="qwen2moe", normalise=False, shared_gate=True)
_qwen3 = ModelClass(
    "qwen3", "qwen3moe", tied=False, qk_norm=_HEAD, head_dim_given=True, sliding_alone=False, rope_base=1e6
)
_qwen3next = ModelClass(
    "qwen3next",
    tied=False,
    qk_norm=_HEAD,
    head_dim_given=True,
    gate=OutputGate.TWIN,
    gate_of_true=OutputGate.TWIN,
    pattern=_DELTA_3_TO_1,
    delta="gated",
    shared_gate=True,
    rope_base=1e7,
)
_qwen35 = replace(_qwen3next, family="qwen35", routed="qwen35moe")
_qwen4 = replace(
    _qwen3next,
    family="qwen4exp",
    defaults={
        "hc_count": 4,
        "hc_lowrank": 320,
        "ple_conv_kernel_size": 4,
        "make_ngram_vocab_size_divisible_by": 128,
    },
)
_granite = ModelClass("granite", "granitemoe", tied=False, scaled=True)
_granitemoe = replace(
    _granite,
    family="granitemoe",
    tied=True,
    expert_key="intermediate_size",
    gating=Gating.SOFTMAX_AFTER_TOP_K,
)
_gemma2 = ModelClass(
    "gemma2",
    tied=True,
    head_dim_given=True,
    norms=Norms.AROUND,
    pattern=("sliding", "full"),
    attention_softcap=50.0,
    logit_softcap=30.0,
)
_gemma3 = ModelClass(
    "gemma3", tied=True, qk_norm=_HEAD, head_dim_given=True, norms=Norms.AROUND, pattern=_5_TO_1, rope_base=1e6
)
_gemma3n = replace(
    _gemma3, family="gemma3n", pattern=("sliding",) * 4 + ("full",), idle=("altup_correct_scale", "altup_active_idx")
)
_gemma4 = replace(_gemma3, family="gemma4", kv_matrices_shared=False, dense_beside=True)
_gpt_oss = ModelClass(
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
_llama4 = ModelClass(
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
_deepseek2 = ModelClass("deepseek2", tied=False, normalise=False)
_deepseek3 = ModelClass("deepseek2", tied=False, gating=_SIGMOID, selection_bias=True, mtp_tables=True)
_glm_dsa = replace(
    _deepseek3,
    family="glm-dsa",
    mtp_tables=False,
    defaults={"index_topk": 2048, "index_n_heads": 32, "index_head_dim": 128},
)
_glm5 = replace(_glm_dsa, family="glm5-next", delta="kimi", joins=False, defaults={})
_glm4moe = ModelClass(
    "glm4moe",
    tied=False,
    qkv_bias=True,
    attention_bias_output=False,
    gating=_SIGMOID,
    selection_bias=True,
    mtp_tables=True,
    rope_base=1e6,
)
_mimo2 = ModelClass(
    "mimo2",
    tied=False,
    head_dim_given=True,
    pattern=_5_TO_1,
    gating=_SIGMOID,
    selection_bias=True,
    rope_base=5e6,
    idle=("attention_chunk_size",),
    defaults={"add_swa_attention_sink_bias": True},
)
_minimax = ModelClass(
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
_lfm2 = ModelClass("lfm2", "lfm2moe", tied=True, qk_norm=_HEAD, kinds_required="layer_types", rope_base=1e6)
_lfm2 = replace(
    _lfm2,
    gating=_SIGMOID,
    selection_bias=True,
    stand_in=("conv", "conv", "full", "conv"),
    idle=("num_heads", "conv_dim", "conv_dim_out", "block_dim", "block_use_swiglu", "block_use_xavier_init"),
)
_cohere = ModelClass("command-r", tied=True, norms=Norms.PARALLEL)
_cohere2 = replace(_cohere, family="cohere2", pattern=_3_TO_1)
_olmo2 = ModelClass("olmo2", tied=False, qk_norm=_FULL, norms=Norms.AFTER, pattern=())
_exaone4 = ModelClass("exaone4", tied=False, qk_norm=_HEAD, norms=Norms.AFTER, pattern=_3_TO_1, window_optional=True)
_bailing = ModelClass("bailingmoe2", tied=False, qk_norm=_HEAD, gating=_SIGMOID, selection_bias=True, rope_base=6e5)
_nemotron_h = ModelClass(
    "nemotron_h",
    "nemotron_h_moe",
    tied=False,
    gated=False,
    gating=_SIGMOID,
    selection_bias=True,
    kinds_required="hybrid_override_pattern",
)
_kimi_linear = replace(
    _deepseek3,
    family="kimi-linear",
    delta="kimi",
    mtp_tables=False,
    # Kimi K3's layers attend to blocks of layers before them by a vector each: a millionth of its weights.
    idle=("attn_res_block_size",),
)

_glm4 = ModelClass("glm4", tied=False, qkv_bias=True, attention_bias_output=False, norms=Norms.AROUND)
_minimax1 = ModelClass(
    "minimax-01", tied=False, delta="lightning", expert_key="intermediate_size", idle=("block_size", "postnorm")
)
_minimax3 = replace(_minimax, family="minimax-m3", qk_norm=_HEAD, indexed_by_word=True)
_step3p5 = ModelClass("step35", tied=False, qk_norm=_HEAD, gating=_SIGMOID, selection_bias=True)
_mamba = ModelClass("mamba2", tied=True, no_ffn=True, defaults={"max_position_embeddings": 1 << 20})
"""Any length will do for a state; llama.cpp's converter writes the same."""

CLASSES: dict[str, ModelClass] = {
    **dict.fromkeys(("llama", "mistral", "mistral3", "ministral3", "cwm"), _llama),
    "mixtral": _mixtral,
    "ministral": replace(_llama, pattern=_3_TO_1),
    "smollm3": ModelClass("smollm3", tied=True, sliding_alone=False),
    "seed_oss": ModelClass("seed_oss", tied=False, qkv_bias=True, attention_bias_output=False),
    "phi3": ModelClass("phi3", tied=False),
    "phimoe": ModelClass(
        "phimoe",
        tied=False,
        qkv_bias=True,
        output_bias=True,
        layer_norm=True,
        lm_head_bias=True,
        expert_key="intermediate_size",
        no_window=True,
    ),
    **dict.fromkeys(("qwen2", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _qwen2),
    "qwen2_moe": _qwen2moe,
    **dict.fromkeys(("qwen3", "qwen3_vl", "qwen3_vl_text"), replace(_qwen3, dense_only=True)),
    **dict.fromkeys(
        ("qwen3_moe", "qwen3_vl_moe", "qwen3_vl_moe_text"),
        replace(_qwen3, family="qwen3moe", routed="qwen3moe", head_dim_given=False),
    ),
    "qwen3_next": _qwen3next,
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _qwen35),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _qwen4),
    "olmo2": _olmo2,
    "olmo3": replace(_olmo2, family="olmo2", pattern=_3_TO_1),
    "olmo_hybrid": replace(_olmo2, family="olmo-hybrid", own_norms=Norms.BEFORE, pattern=_DELTA_3_TO_1, delta="gated"),
    "olmoe": ModelClass("olmoe", tied=False, qk_norm=_FULL, expert_key="intermediate_size", normalise=False),
    "flex_olmo": replace(_olmo2, family="flexolmo", expert_key="intermediate_size", normalise=False),
    "granite": _granite,
    **dict.fromkeys(("granitemoe", "granitemoeshared"), _granitemoe),
    "granitemoehybrid": replace(_granitemoe, family="granitehybrid", routed="granitehybrid"),
    "gemma": ModelClass("gemma", tied=True, head_dim_given=True),
    "gemma2": _gemma2,
    **dict.fromkeys(("gemma3", "gemma3_text"), _gemma3),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), _gemma3n),
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _gemma4),
    "gpt_oss": _gpt_oss,
    **dict.fromkeys(("llama4", "llama4_text"), _llama4),
    "deepseek_v2": _deepseek2,
    **dict.fromkeys(("deepseek_v3", "kimi_k2", "kimi_k25"), _deepseek3),
    "deepseek_v32": replace(
        _deepseek3,
        family="deepseek32",
        defaults={"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128},
    ),
    **dict.fromkeys(
        ("deepseek_v4", "deepseek_ref"),
        ModelClass("deepseek4", tied=False, gating=Gating.SQRT_SOFTPLUS, selection_bias=True),
    ),
    "glm_moe_dsa": _glm_dsa,
    "glm4_moe_lite": replace(_deepseek3, mtp_tables=True),
    **dict.fromkeys(
        ("glm5_next", "glm5_next_text"), replace(_glm_dsa, family="glm5-next", delta="kimi", joins=False, defaults={})
    ),
    "mistral_large_3": replace(_deepseek2, normalise=True),
    "mistral4": replace(_deepseek2, family="mistral4", normalise=True),
    "sarvam_mla": replace(_deepseek3, family="sarvam", mtp_tables=False),
    "kimi_linear": _kimi_linear,
    "bailing_hybrid": replace(_kimi_linear, family="bailingmoe3", gate=OutputGate.HEAD, full_rank_gate=True),
    **dict.fromkeys(("bailing_moe", "bailing_moe_v2"), _bailing),
    "sarvam_moe": _bailing,
    **dict.fromkeys(("glm4_moe", "glm4v_moe", "glm4v_moe_text"), _glm4moe),
    "solar_open": replace(_glm4moe, family="glm4moe", qkv_bias=False),
    "dots1": ModelClass("dots1", tied=False, qk_norm=_HEAD, gating=_SIGMOID, selection_bias=True),
    **dict.fromkeys(("mimo_v2_flash", "mimo_v2"), _mimo2),
    "minimax_m2": _minimax,
    **dict.fromkeys(("lfm2", "lfm2_moe"), _lfm2),
    "cohere": _cohere,
    "cohere2": _cohere2,
    **dict.fromkeys(
        ("cohere2_moe", "cohere2_vision"),
        replace(_cohere2, family="cohere2moe", expert_key="intermediate_size", gating=_SIGMOID),
    ),
    "exaone4": _exaone4,
    "exaone_moe": replace(
        _exaone4, family="exaone-moe", norms=Norms.BEFORE, gating=_SIGMOID, selection_bias=True, mtp_dense=True
    ),
    "ernie4_5": ModelClass("ernie4_5", tied=True, head_dim_given=True),
    "ernie4_5_moe": ModelClass("ernie4_5-moe", tied=True, selection_bias=True),
    "hunyuan_v1_dense": ModelClass("hunyuan-dense", tied=True, qk_norm=_HEAD),
    **dict.fromkeys(
        ("hunyuan_v1_moe", "hunyuan"),
        ModelClass("hunyuan-moe", tied=True, qk_norm=_HEAD, idle=("use_mixed_mlp_moe", "dense_list")),
    ),
    "hy_v3": ModelClass("hy_v3", tied=False, qk_norm=_HEAD, gating=_SIGMOID, selection_bias=True),
    "afmoe": ModelClass(
        "afmoe",
        tied=False,
        qk_norm=_HEAD,
        gate=OutputGate.FULL,
        norms=Norms.AROUND,
        pattern=_3_TO_1,
        gating=_SIGMOID,
        selection_bias=True,
    ),
    "laguna": ModelClass(
        "laguna",
        tied=False,
        qk_norm=_HEAD,
        sliding_alone=False,
        gate=OutputGate.FULL,
        gate_of_true=OutputGate.HEAD,
        gating=_SIGMOID,
        selection_bias=True,
    ),
    **dict.fromkeys(
        ("muse_glimmer", "muse_glimmer_text"),
        ModelClass(
            "muse-glimmer",
            tied=False,
            gate=OutputGate.FULL,
            norms=Norms.AROUND,
            pattern=_3_TO_1,
            defaults={"max_position_embeddings": 131072},
        ),
    ),
    "mellum": ModelClass("mellum", tied=False, qk_norm=_HEAD, sliding_alone=False),
    "apertus": ModelClass("apertus", tied=False, qk_norm=_HEAD, gated=False),
    "nemotron_h": _nemotron_h,
    **dict.fromkeys(("glm4v", "glm4v_text", "glm46v_text"), _glm4),
    "glm": replace(_glm4, family="chatglm", norms=Norms.BEFORE),
    "glm4": _glm4,
    "bitnet": ModelClass("bitnet", tied=True, gated=True),
    "axk1": replace(_deepseek3, mtp_tables=False),
    "longcat_flash": ModelClass("longcat", tied=False, double=True, selection_bias=True),
    "lfm3": replace(_lfm2, family="lfm3", routed=None, gate_of_true=OutputGate.HEAD),
    **dict.fromkeys(("minimax", "minimax_text_01", "minimax_m1"), _minimax1),
    **dict.fromkeys(("minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"), _minimax3),
    "bailing_moe_linear": replace(_bailing, family="bailing-linear", delta="lightning", linear_qk_norm=_HEAD),
    **dict.fromkeys(("dots3_note", "dots3_note_text"), replace(_deepseek3, family="dots3", gate=OutputGate.HEAD)),
    "hy_v4": replace(_deepseek3, family="hy-v4", gate=OutputGate.FULL, mtp_tables=False),
    "hyperclovax": ModelClass("hyperclovax", tied=False, scaled=True),
    "granite_swa": replace(_granite, tied=True, sinks=True, family="granite-swa", routed=None),
    "granitemoe_swa": replace(_granitemoe, sinks=True, family="granite-swa", routed=None),
    "flint": replace(_qwen2moe, family="flint", qkv_bias=False, qk_norm=_HEAD, sinks=True, shared_gate=False),
    "lara_mini": replace(_qwen3next, family="lara", gate=OutputGate.NONE, shared_gate=False),
    "kolibri1": ModelClass(
        "kolibri", tied=False, qk_norm=_HEAD, norms=Norms.AROUND, gating=_SIGMOID, selection_bias=True
    ),
    "mimo": replace(_qwen2, family="mimo"),
    **dict.fromkeys(("step3p5", "step3p7"), _step3p5),
    "minicpm3": ModelClass("minicpm3", tied=True),
    "nemotron": replace(_llama, family="nemotron", routed=None, gated=False, layer_norm=True),
    **dict.fromkeys(("nemotron-nas", "nemotron_nas", "deci"), ModelClass("deci", tied=False)),
    "stablelm": ModelClass("stablelm", tied=False, layer_norm=True),
    "starcoder2": ModelClass(
        "starcoder2", tied=True, layer_norm=True, gated=False, qkv_bias=True, output_bias=True, mlp_bias=True
    ),
    "phi": ModelClass(
        "phi2",
        tied=False,
        layer_norm=True,
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        lm_head_bias=True,
        norms=Norms.PARALLEL,
    ),
    "gpt_neox": ModelClass(
        "gptneox",
        tied=False,
        layer_norm=True,
        gated=False,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        idle=("use_parallel_residual",),
    ),
    "jais2": ModelClass("jais2", tied=False, layer_norm=True),
    "vaultgemma": replace(_gemma2, norms=Norms.BEFORE, family="vaultgemma"),
    "bamba": ModelClass("bamba", tied=False, pattern=("mamba",)),
    **dict.fromkeys(("mamba", "falcon_mamba"), replace(_mamba, family="mamba")),
    "mamba2": _mamba,
    "jamba": ModelClass("jamba", tied=False, expert_key="intermediate_size", normalise=False, dt_norms=True),
    "falcon_h1": ModelClass("falcon-h1", tied=False, parallel_mamba=True, mamba_norm=False),
}
"""Classes by `model_type`. To add one: a row here, and only for what its keys do not say."""

REFUSED = {
    "jetmoe": "its attention is a mixture of experts",
    "zamba": "layers share one attention block",
    "zamba2": "layers share one attention block",
    "rwkv": "its mixer is not known here",
    "xlstm": "its mixer is not known here",
    "recurrent_gemma": "its recurrent blocks are not known here",
    "arctic": "its dense residual is not known here",
    "blt": "it has encoders of bytes beside the model",
    "zaya": "its convolutional attention is not known here",
}
"""Classes whose keys do not tell that they differ, and what they differ in."""
