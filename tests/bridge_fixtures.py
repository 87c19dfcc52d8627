"""Small models as Hugging Face directories, of every family that the bridge carries, and a byte tokenizer for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from breakeven.engines.synthesis.write import byte_alphabet

VOCAB = 320
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "ernie4_5_moe": "Ernie4_5_MoeForCausalLM",
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_SIZES, "attention_bias": True, "mlp_bias": True},
    "mixtral": {**_SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
    "qwen3": {**_SIZES, "head_dim": 32, "tie_word_embeddings": True},
    "olmoe": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "qwen3_moe": {
        **_SIZES,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "ernie4_5_moe": {
        **_SIZES,
        "num_hidden_layers": 3,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
    },
}
"""What differs from the usual where a family can: biases, wide heads, a tied head, dense leading layers."""


def write_byte_tokenizer(directory: Path) -> None:
    """tokenizer.json and its configuration: a token for every byte, some pairs, one special token."""
    alphabet = byte_alphabet()
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    end = "<|end|>"
    vocabulary[end] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "r"), ("i", "n"), ("Ġ", "a"), ("o", "n"), ("d", "e")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": 256, "content": end, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            | {"special": True}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }
    (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "chat_template": "{{ messages }}"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
