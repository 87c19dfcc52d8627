"""The families that the bridge carries between GGUF and a Hugging Face directory: one entry each.

An entry says how a configuration's keys are spelled in a GGUF, what each tensor is called on either side, and what
llama.cpp computes whatever a configuration says. Sources: llama.cpp's `conversion/` and `src/models/`, transformers'
`models/*/configuration_*.py` and `conversion_mapping.py` (the hub's own per-expert names).

To add one: an entry in `BRIDGES` and a toy of it in `tests/test_bridge_torch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from breakeven.errors import NotSupportedError
from breakeven.model.readers.bounded import shown

Config = Mapping[str, object]

_SIZES = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
_ATTENTION = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
}
_QK_NORMS = {"attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight"}
_DENSE = {f"ffn_{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
_EXPERTS = {f"ffn_{part}_exps.weight": f"mlp.experts.{{}}.{part}_proj.weight" for part in ("gate", "up", "down")}
_SHARED = {f"ffn_{part}_shexp.weight": f"mlp.shared_experts.{part}_proj.weight" for part in ("gate", "up", "down")}
_BIASES = {f"attn_{part}.bias": f"self_attn.{part[0]}_proj.bias" for part in ("q", "k", "v", "output")}
_DENSE_BIASES = {f"ffn_{part}.bias": f"mlp.{part}_proj.bias" for part in ("gate", "up", "down")}


@dataclass(frozen=True, slots=True)
class Bridge:
    """A family on both sides.

    `sizes`: whole numbers, configuration key to GGUF key. `fixed`: what llama.cpp computes whatever a configuration
    says, so that another value is refused. `written`: keys that a new configuration gets beside these. `layer`,
    `dense`, `moe`: tensors of every layer, of one with a dense feed-forward, of one that routes (`{}`: the expert).
    `defaults`: of the configuration class in transformers, where a key is left out.
    """

    model_type: str
    class_name: str
    architecture: str
    sizes: Mapping[str, str]
    layer: Mapping[str, str]
    dense: Mapping[str, str] = field(default_factory=dict)
    moe: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    written: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    gguf_defaults: Mapping[str, int] = field(default_factory=dict)
    """What llama.cpp takes where a GGUF lacks a whole number."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other spellings in configurations."""
    norms_chosen: bool | None = None
    """Whether weights of the chosen experts are made to sum to one; None: the family is dense."""
    biases: bool = False
    """Whether llama.cpp adds biases of attention and feed-forward."""
    interleaved: bool = False
    """Whether its GGUF keeps the rows of queries and keys in the order of rotated pairs."""
    stretched: bool = False
    """Whether llama.cpp divides rotary frequencies by the factors of Llama 3.1."""
    wide_norms: bool = False
    """Whether norms of queries and keys span all heads at once."""
    needs_output: bool = False
    """Whether llama.cpp wants an output matrix even where it is the embedding."""
    head_dim_key: bool = True
    """Whether the class in transformers reads `head_dim`."""

    @property
    def expert_width(self) -> str:
        """The key that holds the width of one expert."""
        return "moe_intermediate_size" if "moe_intermediate_size" in self.sizes else "intermediate_size"

    @property
    def expert_count(self) -> str:
        """The key that holds how many experts there are."""
        return next(key for key, name in self.sizes.items() if name == "expert_count")


_COMMON: dict[str, object] = {
    "hidden_act": "silu",
    "num_key_value_heads": None,
    "head_dim": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
}
_NO_BIASES = {"attention_bias": False, "mlp_bias": False, "use_bias": False}
_COUNTS = {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count"}

BRIDGES: tuple[Bridge, ...] = (
    Bridge(
        "llama",
        "LlamaForCausalLM",
        "llama",
        sizes=_SIZES,
        layer={**_ATTENTION, **_BIASES},
        dense={**_DENSE, **_DENSE_BIASES},
        fixed={"rope_interleaved": False},
        defaults={**_COMMON, "max_position_embeddings": 2048},
        biases=True,
        interleaved=True,
        stretched=True,
    ),
    Bridge(
        "mixtral",
        "MixtralForCausalLM",
        "llama",
        sizes={**_SIZES, "num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
        layer=_ATTENTION,
        moe={
            "ffn_gate_inp.weight": "block_sparse_moe.gate.weight",
            "ffn_gate_exps.weight": "block_sparse_moe.experts.{}.w1.weight",
            "ffn_down_exps.weight": "block_sparse_moe.experts.{}.w2.weight",
            "ffn_up_exps.weight": "block_sparse_moe.experts.{}.w3.weight",
        },
        fixed=_NO_BIASES,
        written={"sliding_window": None},
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
        },
        aliases={"num_experts": "num_local_experts"},
        norms_chosen=True,
        interleaved=True,
        stretched=True,
    ),
    Bridge(
        "qwen3",
        "Qwen3ForCausalLM",
        "qwen3",
        sizes=_SIZES,
        layer={**_ATTENTION, **_QK_NORMS},
        dense=_DENSE,
        fixed=_NO_BIASES,
        written={"use_sliding_window": False, "sliding_window": None},
        defaults={
            **_COMMON,
            "head_dim": 128,
            "num_key_value_heads": 32,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 4096,
        },
    ),
    Bridge(
        "olmoe",
        "OlmoeForCausalLM",
        "olmoe",
        sizes={**_SIZES, **_COUNTS},
        layer={**_ATTENTION, **_QK_NORMS},
        moe={"ffn_gate_inp.weight": "mlp.gate.weight", **_EXPERTS},
        fixed={**_NO_BIASES, "norm_topk_prob": False, "clip_qkv": None},
        written={"norm_topk_prob": False, "clip_qkv": None},
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "norm_topk_prob": False,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "max_position_embeddings": 4096,
        },
        aliases={"num_local_experts": "num_experts"},
        norms_chosen=False,
        wide_norms=True,
        needs_output=True,
        head_dim_key=False,
    ),
    Bridge(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "qwen3moe",
        sizes={**_SIZES, **_COUNTS, "moe_intermediate_size": "expert_feed_forward_length"},
        layer={**_ATTENTION, **_QK_NORMS},
        moe={"ffn_gate_inp.weight": "mlp.gate.weight", **_EXPERTS},
        fixed={**_NO_BIASES, "norm_topk_prob": True},
        written={
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "use_sliding_window": False,
            "sliding_window": None,
        },
        defaults={
            **_COMMON,
            "norm_topk_prob": False,
            "num_key_value_heads": 4,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "intermediate_size": 6144,
            "max_position_embeddings": 32768,
            "use_sliding_window": False,
            "sliding_window": 4096,
        },
        aliases={"num_local_experts": "num_experts"},
        norms_chosen=True,
    ),
    Bridge(
        "ernie4_5_moe",
        "Ernie4_5_MoeForCausalLM",
        "ernie4_5-moe",
        sizes={
            **_SIZES,
            "moe_num_experts": "expert_count",
            "moe_k": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length",
            "moe_num_shared_experts": "expert_shared_count",
            "moe_layer_start_index": "leading_dense_block_count",
            "moe_layer_interval": "interleave_moe_layer_step",
        },
        layer=_ATTENTION,
        dense=_DENSE,
        moe={
            "ffn_gate_inp.weight": "mlp.gate.weight",
            "exp_probs_b.bias": "mlp.moe_statics.e_score_correction_bias",
            **_EXPERTS,
            **_SHARED,
        },
        fixed=_NO_BIASES,
        written={"use_bias": False},
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
            "max_position_embeddings": 131072,
        },
        gguf_defaults={"expert_shared_count": 0, "leading_dense_block_count": 0},
        aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
        norms_chosen=True,
    ),
)
MISTRAL = replace(
    BRIDGES[0],
    model_type="mistral",
    class_name="MistralForCausalLM",
    layer=_ATTENTION,
    dense=_DENSE,
    fixed=_NO_BIASES,
    defaults={**_COMMON, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    biases=False,
)
"""Llama's with other defaults, one of them a window; read only, as its GGUF is a llama's."""
_CLASSES = {each.model_type: each for each in (*BRIDGES, MISTRAL)}


def of_config(config: Config) -> Bridge:
    """The entry of a configuration. Raises NotSupportedError naming the families there are."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _CLASSES:
        return _CLASSES[model_type]
    raise NotSupportedError(
        f"model_type {shown(model_type)} is no family that is carried between GGUF and a directory; "
        f"these are: {', '.join(_CLASSES)}"
    )


def of_architecture(architecture: str, *, moe: bool) -> Bridge:
    """The entry of a GGUF. Raises NotSupportedError naming the architectures there are."""
    found = [each for each in BRIDGES if each.architecture == architecture and (each.norms_chosen is not None) == moe]
    if found:
        return found[0]
    known = ", ".join(dict.fromkeys(each.architecture for each in BRIDGES))
    raise NotSupportedError(
        f"architecture {architecture!r} is not carried between GGUF and a directory; these are: {known}"
    )
