"""From a model to the `config.json` vLLM reads: one function a family, for the families that are plain in both.

Each is the inverse of its family's reader, and is held to it: what was written is read back and must be the same model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from breakeven.errors import NotSupportedError
from breakeven.spec.families import spec_from_config
from breakeven.spec.model import DenseFfn, Gqa, ModelSpec, MoeFfn

_Config = dict[str, Any]


def _llama(spec: ModelSpec) -> _Config:
    if not spec.is_moe:
        bias = _attention(spec).output_bias
        return {**_base(spec, "llama", "LlamaForCausalLM"), "attention_bias": bias, "mlp_bias": _ffn(spec).bias}
    moe = _moe(spec)
    base = _base(spec, "mixtral", "MixtralForCausalLM")
    experts = {"num_local_experts": moe.n_experts, "num_experts_per_tok": moe.n_experts_per_token}
    return {**base, **experts, "intermediate_size": moe.expert_width, "sliding_window": None}


def _qwen2(spec: ModelSpec) -> _Config:
    return {**_base(spec, "qwen2", "Qwen2ForCausalLM"), "use_sliding_window": False}


def _qwen3(spec: ModelSpec) -> _Config:
    return {**_base(spec, "qwen3", "Qwen3ForCausalLM"), "attention_bias": False, "use_sliding_window": False}


def _qwen3moe(spec: ModelSpec) -> _Config:
    moe = _moe(spec)
    dense = [i for i, layer in enumerate(spec.layers) if isinstance(layer.ffn, DenseFfn)]
    width = next((layer.ffn.width for layer in spec.layers if isinstance(layer.ffn, DenseFfn)), moe.expert_width)
    return {
        **_base(spec, "qwen3_moe", "Qwen3MoeForCausalLM"),
        "attention_bias": False,
        "intermediate_size": width,
        "moe_intermediate_size": moe.expert_width,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "norm_topk_prob": moe.normalise_weights,
        "decoder_sparse_step": 1,
        "mlp_only_layers": dense,
    }


def _olmoe(spec: ModelSpec) -> _Config:
    moe = _moe(spec)
    return {
        **_base(spec, "olmoe", "OlmoeForCausalLM"),
        "attention_bias": False,
        "intermediate_size": moe.expert_width,
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.n_experts_per_token,
        "norm_topk_prob": moe.normalise_weights,
    }


WRITERS: dict[str, Callable[[ModelSpec], _Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "olmoe": _olmoe,
}
"""Families whose models can be written, by their names in `breakeven.spec.families`."""


def config_of(spec: ModelSpec) -> _Config:
    """The Hugging Face configuration of a model. Raises NotSupportedError for a family or a layout vLLM is not given.

    The result has no dtype and no special tokens; those belong to whoever writes it down.
    """
    writer = WRITERS.get(spec.family)
    if writer is None:
        raise NotSupportedError(
            f"{spec.name}: Breakeven writes no {spec.family} model for vLLM, only {', '.join(WRITERS)}; "
            "give the directory of its config.json instead"
        )
    if not _plain(spec):
        raise NotSupportedError(_unsayable(spec))
    config = writer(spec)
    again = spec_from_config(config, spec.name, spec.source)
    if again != replace(spec, published_total_params=None):
        raise NotSupportedError(_unsayable(spec))
    return config


def _unsayable(spec: ModelSpec) -> str:
    return (
        f"{spec.name}: its layers cannot be said in vLLM's form of {spec.family}; "
        "give the directory of its config.json instead"
    )


def _plain(spec: ModelSpec) -> bool:
    """True when every layer attends alike and at most two kinds of feed-forward occur."""
    return all(isinstance(layer.attention, Gqa) for layer in spec.layers) and len({x.ffn for x in spec.layers}) <= 2


def _base(spec: ModelSpec, model_type: str, architecture: str) -> _Config:
    attention, ffn = _attention(spec), spec.layers[0].ffn
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": spec.hidden,
        "intermediate_size": ffn.width if isinstance(ffn, DenseFfn) else ffn.expert_width,
        "num_hidden_layers": len(spec.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.context,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": spec.rope.base,
        "hidden_act": "silu",
        "tie_word_embeddings": spec.tied_embeddings,
    }


def _attention(spec: ModelSpec) -> Gqa:
    attention = spec.layers[0].attention
    assert isinstance(attention, Gqa)
    return attention


def _ffn(spec: ModelSpec) -> DenseFfn:
    ffn = spec.layers[0].ffn
    assert isinstance(ffn, DenseFfn)
    return ffn


def _moe(spec: ModelSpec) -> MoeFfn:
    moe = next((layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)), None)
    if moe is None:
        raise NotSupportedError(_unsayable(spec))
    return moe
