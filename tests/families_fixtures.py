"""One small configuration for every family that can be written, and what the published tables count."""

from __future__ import annotations

from breakeven.model.architecture import ModelSpec
from breakeven.model.layouts.derive import spec_from_config

_BASE: dict[str, object] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 320,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_MOE: dict[str, object] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA: dict[str, object] = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
SMALL: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama"},
    "mixtral": {"model_type": "mixtral", **_MOE},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32},
    "qwen3moe": {"model_type": "qwen3_moe", **_MOE},
    "olmoe": {"model_type": "olmoe", **_MOE, "num_key_value_heads": 4},
    "gemma2": {"model_type": "gemma2", "sliding_window": 512, "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 512, "num_hidden_layers": 7, "tie_word_embeddings": True},
    "granite": {"model_type": "granite", "attention_multiplier": 0.015625, "embedding_multiplier": 12.0},
    "granitemoe": {"model_type": "granitemoe", "attention_multiplier": 0.015625, **_MOE},
    "granitemoeshared": {
        "model_type": "granitemoeshared",
        "shared_intermediate_size": 48,
        "attention_multiplier": 0.5,
        **_MOE,
    },
    "phimoe": {"model_type": "phimoe", **_MOE},
    "deepseek-v3": {"model_type": "deepseek_v3", "q_lora_rank": 48, "routed_scaling_factor": 2.5, **_MLA, **_MOE},
    "deepseek-v2-lite": {"model_type": "deepseek_v2", "q_lora_rank": None, **_MLA, **_MOE},
    "gpt-oss": {"model_type": "gpt_oss", "sliding_window": 128, **_MOE},
    "llama4": {"model_type": "llama4_text", "interleave_moe_layer_step": 2, "intermediate_size_mlp": 128, **_MOE},
    "lfm2moe": {
        "model_type": "lfm2_moe",
        "num_dense_layers": 2,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        **_MOE,
    },
}


def small_config(key: str) -> dict[str, object]:
    """A complete configuration of this family."""
    return {**_BASE, **SMALL[key]}


def small_spec(key: str) -> ModelSpec:
    """The model of `small_config`."""
    return spec_from_config(small_config(key), key, "test")


EXACT = {
    "olmoe-1b-7b": 6_919_161_856,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "gemma-2-2b": 2_614_341_888,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v2-lite": 15_706_484_224,
}
"""Weights of the released checkpoints to the last one, as their hub pages and loaders report them."""

COUNTED_B = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.552,
    "llama-3.1-405b": 405.849,
    "llama-4-scout-17b-16e": 107.769,
    "llama-4-maverick-17b-128e": 400.711,
    "qwen3-0.6b": 0.596,
    "qwen3-1.7b": 1.72,
    "qwen3-8b": 8.19,
    "qwen3-32b": 32.761,
    "qwen3-30b-a3b": 30.532,
    "qwen3-235b-a22b": 235.093,
    "qwen3-coder-480b-a35b": 480.154,
    "qwen3.5-27b": 26.893,
    "qwen3.5-35b-a3b": 34.659,
    "qwen3.5-122b-a10b": 122.109,
    "qwen3.5-397b-a17b": 396.343,
    "deepseek-v3": 671.025,
    "deepseek-v3.2": 671.025,
    "mixtral-8x7b": 46.703,
    "mixtral-8x22b": 140.62,
    "gpt-oss-20b": 20.908,
    "gpt-oss-120b": 116.789,
    "kimi-k2": 1026.407,
    "kimi-k2.5": 1026.407,
    "minimax-m2.5": 228.689,
    "glm-5": 743.179,
    "mimo-v2-flash": 308.779,
    "gemma-4-26b-a4b": 25.232,
    "gemma-4-31b": 30.696,
    "deepseek-v2-lite": 15.706,
    "mistral-nemo": 12.247,
    "qwen3-14b": 14.768,
    "qwen2.5-7b": 7.615,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213,
    "gemma-2-2b": 2.614,
    "gemma-2-9b": 9.241,
    "gemma-2-27b": 27.226,
    "gemma-3-1b": 1.0,
    "mistral-7b": 7.248,
    "smollm2-135m": 0.134,
    "smollm2-360m": 0.362,
    "olmoe-1b-7b": 6.919,
    "granite-3.1-1b-a400m": 1.335,
    "granite-3.1-3b-a800m": 3.299,
    "lfm2-8b-a1b": 8.34,
    "glm-4.5-air": 106.851,
    "glm-4.5": 352.796,
    "qwen3-next-80b-a3b": 79.673,
    "moonlight-16b-a3b": 15.96,
    "phi-3.5-moe": 41.872,
    "qwen3-4b": 4.022,
    "mistral-small-3.1-24b": 23.572,
    "mistral-small-4-119b": 118.972,
}
"""Billions, as counted from each published configuration by the table the catalogue was made from; rounded there."""
