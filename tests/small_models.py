"""Configurations of every family that can be synthesised, small enough for a test."""

from __future__ import annotations

from typing import Any

from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts.derive import spec_from_config

BASE: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": 8, "num_experts_per_tok": 2}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0156,
    "logits_scaling": 6.0,
    "tie_word_embeddings": True,
}
GEMMA: dict[str, Any] = {"sliding_window": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3"},
    "qwen3moe": {
        "model_type": "qwen3_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "olmoe": {
        "model_type": "olmoe",
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 256,
    },
    "mixtral": {"model_type": "mixtral", **LOCAL_EXPERTS},
    "gemma2": {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **GEMMA},
    "gemma3": {"model_type": "gemma3_text", "sliding_window_pattern": 2, **GEMMA},
    "granite": {"model_type": "granite", **GRANITE},
    "granitemoe": {"model_type": "granitemoe", **LOCAL_EXPERTS, **GRANITE},
    "phimoe": {"model_type": "phimoe", "attention_bias": True, "lm_head_bias": True, **LOCAL_EXPERTS},
    "deepseek2": {
        "model_type": "deepseek_v2",
        "num_key_value_heads": 4,
        "kv_lora_rank": 256,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 2,
        "moe_intermediate_size": 256,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
    },
    "gpt-oss": {
        "model_type": "gpt_oss",
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        **LOCAL_EXPERTS,
    },
    "llama4": {
        "model_type": "llama4_text",
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "intermediate_size": 256,
        "intermediate_size_mlp": 512,
    },
    "lfm2moe": {
        "model_type": "lfm2_moe",
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "num_dense_layers": 1,
        "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    },
}
"""llama4 interleaves dense and MoE layers; lfm2moe interleaves convolutions and attention too."""

MOE = ("qwen3moe", "olmoe", "mixtral", "granitemoe", "phimoe", "deepseek2", "gpt-oss", "llama4", "lfm2moe")


def small(name: str, **changes: Any) -> ModelSpec:
    """The small model of a family."""
    return spec_from_config({**BASE, **CONFIGS[name], **changes}, f"small-{name}", "a test")
