"""What a configuration and a GGUF's keys say, carried from one to the other, or refused by name.

Whatever changes the function is known here and carried, or known and checked against what the other side computes, or
stops the conversion. A key that is left out has the default of its class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from breakeven.errors import NotSupportedError, UserError
from breakeven.lab.bridge.families import Bridge, Config, of_architecture
from breakeven.lab.bridge.rotary import Rotary, as_typed, rotary_of_gguf
from breakeven.lab.bridge.weights import FloatType, gguf_rows
from breakeven.lab.surgery.container import DenseFile
from breakeven.model.readers.bounded import shown
from breakeven.model.readers.hf import CONFIG

ROPE_FREQS = "rope_freqs.weight"
_HARMLESS_WORDS = """
architectures model_type dtype torch_dtype transformers_version use_cache initializer_range attention_dropout
hidden_dropout router_aux_loss_coef output_router_logits router_jitter_noise bos_token_id eos_token_id
pad_token_id unk_token_id sep_token_id _name_or_path name_or_path auto_map max_window_layers pretraining_tp
id2label label2id output_attentions output_hidden_states return_dict chunk_size_feed_forward is_encoder_decoder
is_decoder problem_type tokenizer_class is_llama_config transformers.js_config moe_norm_min moe_aux_loss_lambda
moe_orthogonal_loss_lambda moe_use_aux_free use_rmsnorm num_nextn_predict_layers _attn_implementation
_attn_implementation_autoset _experts_implementation vocab_size unsloth_version unsloth_fixed
"""
_HARMLESS = frozenset(_HARMLESS_WORDS.split())
"""Keys of configurations that change nothing of what is computed, or are looked at by name elsewhere."""
_READ_WORDS = """
rope_theta rope_scaling rope_parameters partial_rotary_factor hidden_act rms_norm_eps tie_word_embeddings
head_dim attention_bias mlp_bias use_bias norm_topk_prob clip_qkv sliding_window use_sliding_window layer_types
decoder_sparse_step mlp_only_layers moe_layer_end_index quantization_config
"""
_READ = frozenset(_READ_WORDS.split())
_NULL_SAYS = ("sliding_window", "num_key_value_heads")
"""Keys whose null is no gap: no window, and as many heads of keys as of queries."""


def complete(config: Config, bridge: Bridge, *, assume: bool = False) -> dict[str, object]:
    """A configuration under one spelling, with what its class in transformers fills in.

    Raises NotSupportedError for keys that change the function and are not carried (`assume`: for known ones only), and
    where llama.cpp computes something else.
    """
    if config.get("quantization_config") is not None:
        raise NotSupportedError("the weights are packed (quantization_config); give the model before it was quantized")
    for other, key in bridge.aliases.items():
        if config.get(other) is not None and config.get(key) not in (None, config[other]):
            raise UserError(
                f"config.json: {key} is {shown(config[key])} and {other} {shown(config[other])}; engines read one or "
                "the other, so make them equal"
            )
    full = {bridge.aliases.get(key, key): value for key, value in config.items() if value is not None}
    for key, value in bridge.defaults.items():
        # Two keys hold the rotary base, so what is not said is filled in where both are read.
        if full.get(key) is None and key != "rope_theta" and not (key in _NULL_SAYS and key in config):
            full[key] = value
    known = _HARMLESS | _READ | bridge.sizes.keys() | bridge.fixed.keys() | bridge.defaults.keys()
    unknown = [key for key, value in full.items() if key not in known and value not in ([], {}) and key[:1] != "_"]
    if unknown and not assume:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise NotSupportedError(
            f"config.json: key {shown(unknown[0])}{more} is not known here and could change what is computed; "
            "--assume goes on without it"
        )
    if full["hidden_act"] != "silu":
        raise NotSupportedError(f"hidden_act {shown(full['hidden_act'])}: llama.cpp computes silu here")
    for key, value in bridge.fixed.items():
        if full.get(key, value) != value:
            raise NotSupportedError(
                f"{key} {shown(full.get(key))}: llama.cpp computes {bridge.architecture} with {value}"
            )
    _check_windows(full, bridge)
    _check_layers(full, bridge)
    heads, hidden = whole(full, "num_attention_heads"), whole(full, "hidden_size")
    if not heads:
        raise UserError("config.json: num_attention_heads is 0; fetch it again")
    full["num_key_value_heads"] = full.get("num_key_value_heads") or heads
    if not full["head_dim"] or not bridge.head_dim_key:
        full["head_dim"] = hidden // heads
    return full


_GGUF_HARMLESS_WORDS = """
vocab_size rope.freq_base rope.scaling.type rope.scaling.factor rope.scaling.original_context_length
rope.scaling.attn_factor rope.scaling.finetuned rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
rope.scaling.yarn_ext_factor rope.scaling.yarn_attn_factor rope.scaling.yarn_log_multiplier rope.scaling.alpha
rope.scale_linear attention.layer_norm_rms_epsilon attention.key_length tensor_data_layout
expert_shared_feed_forward_length expert_feed_forward_length
"""
_GGUF_HARMLESS = frozenset(_GGUF_HARMLESS_WORDS.split())
"""Keys that the rotary part reads, that tensors' shapes prove, or that say nothing of the function."""


def _refuse_keys(keys: Config, bridge: Bridge, head_dim: int, context: int, *, assume: bool) -> None:
    """Raise NotSupportedError for a GGUF's key that no class of the family in transformers expresses."""
    allowed: dict[str, tuple[object, ...]] = {
        "attention.value_length": (head_dim,),
        "rope.dimension_count": (head_dim,),
        "attention.scale": (0.0, head_dim**-0.5),
        "attention.causal": (True,),
        "attention.clamp_kqv": (0.0,),
        "expert_gating_func": (0, 1),
        "expert_weights_norm": (bool(bridge.norms_chosen),),
        "expert_weights_scale": (0.0, 1.0),
        **dict.fromkeys(("expert_group_count", "expert_group_used_count", "interleave_moe_layer_step"), (0, 1)),
        **dict.fromkeys(("expert_count", "expert_used_count", "expert_shared_count", "pooling_type"), (0,)),
        **dict.fromkeys(("leading_dense_block_count", "nextn_predict_layers"), (0,)),
    }
    for key, value in keys.items():
        if key in _GGUF_HARMLESS or (key in bridge.sizes.values() and key != "interleave_moe_layer_step"):
            continue
        if key == "attention.sliding_window" and isinstance(value, int) and (value == 0 or value >= context):
            continue
        if key not in allowed and not assume:
            raise NotSupportedError(
                f"key {bridge.architecture}.{shown(key)[1:-1]} is not known here and could change what is computed; "
                "--assume goes on without it"
            )
        if value not in allowed.get(key, (value,)):
            raise NotSupportedError(
                f"{bridge.architecture}.{key} is {shown(value)}, which no {bridge.class_name} expresses; "
                "it is not carried to a directory"
            )


_MOST_COUNT = 2**31 - 1
"""GGUF keys hold 32 bits, and llama.cpp reads some of them signed."""


def whole(config: Config, key: str) -> int:
    """A count of a configuration. Raises UserError where it has none."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_COUNT:
        raise UserError(f"config.json: {key} is {shown(value)}, a whole number is needed; fetch it again")
    return value


def _check_windows(full: Config, bridge: Bridge) -> None:
    """Raise NotSupportedError for a window shorter than the context. The switch counts in classes that have it."""
    off = "use_sliding_window" in bridge.defaults and not full["use_sliding_window"]
    kinds = full.get("layer_types")
    if isinstance(kinds, Sequence) and any(kind != "full_attention" for kind in kinds):
        raise NotSupportedError("layer_types names others than full_attention: llama.cpp has no windows in this family")
    if off or full.get("sliding_window") is None:
        return
    window = whole(full, "sliding_window")
    if window < whole(full, "max_position_embeddings"):
        raise NotSupportedError(
            f"sliding_window {window} is less than the context: llama.cpp has no windows in this family, so longer "
            "texts would be read differently"
        )


def _check_layers(full: dict[str, object], bridge: Bridge) -> None:
    """Raise NotSupportedError for dense layers that llama.cpp has no place for."""
    layers = whole(full, "num_hidden_layers")
    only = full.get("mlp_only_layers") or []
    step = whole({"decoder_sparse_step": 1, **full}, "decoder_sparse_step")
    if not isinstance(only, list) or not step:
        raise UserError(f"config.json: mlp_only_layers {shown(only)}, decoder_sparse_step {step}: fetch it again")
    dense = [i for i in range(layers) if i in only or (i + 1) % step]
    if bridge.model_type == "ernie4_5_moe":
        start, step = whole(full, "moe_layer_start_index"), whole(full, "moe_layer_interval")
        end = layers - 1 if full.get("moe_layer_end_index") in (None, -1) else whole(full, "moe_layer_end_index")
        if not step:
            raise UserError("config.json: moe_layer_interval is 0; fetch it again")
        dense = [i for i in range(start, layers) if (i + 1) % step or i > end]
    if bridge.norms_chosen is not None and dense:
        leading = "only before the first one" if "leading_dense_block_count" in bridge.sizes.values() else "nowhere"
        raise NotSupportedError(
            f"layer {dense[0]} has a dense feed-forward among layers that route: llama.cpp loads such a layer of "
            f"{bridge.architecture} {leading}, so this model stays a directory"
        )


def gguf_numbers(bridge: Bridge, config: Mapping[str, object], rotary: Rotary) -> dict[str, int | float | str]:
    """Architecture keys without their prefix."""
    size, epsilon = whole(config, "head_dim"), config["rms_norm_eps"]
    if not isinstance(epsilon, int | float):
        raise UserError(f"{CONFIG}: rms_norm_eps is {shown(epsilon)}, a number is needed; fetch it again")
    keys: dict[str, int | float | str] = {name: whole(config, key) for key, name in bridge.sizes.items()}
    keys["vocab_size"] = whole(config, "vocab_size")
    keys |= dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), size)
    keys["attention.layer_norm_rms_epsilon"] = float(epsilon)
    if "moe_num_shared_experts" in bridge.sizes:
        width = whole(config, "moe_intermediate_size") * whole(config, "moe_num_shared_experts")
        keys["expert_shared_feed_forward_length"] = width
    return keys | rotary.gguf_keys()


def config_of_gguf(file: DenseFile, *, assume: bool = False) -> tuple[Bridge, dict[str, object], Rotary]:
    """A GGUF's family, its configuration under transformers' names, and its rotary embedding.

    Raises NotSupportedError for keys that no class of the family in transformers expresses (`assume`: for known ones).
    """
    keys = _own_keys(file)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    bridge = of_architecture(file.header.architecture, moe=bool(keys.get("expert_count")))
    size = keys.get("attention.key_length")
    config: dict[str, object] = {**bridge.defaults, **bridge.written}
    for key, name in bridge.sizes.items():
        said = keys.get(name, bridge.gguf_defaults.get(name))
        if key == "num_key_value_heads" and said is None:
            said = keys.get("attention.head_count")
        if isinstance(said, bool) or not isinstance(said, int):
            raise UserError(f"{file.header.path}: {name} is {shown(said)}, a whole number is needed; convert it again")
        config[key] = said
    heads, hidden = whole(config, "num_attention_heads"), whole(config, "hidden_size")
    config["head_dim"] = size = size if isinstance(size, int) else hidden // max(heads, 1)
    _refuse_keys(keys, bridge, size, whole(config, "max_position_embeddings"), assume=assume)
    if not bridge.head_dim_key and size * heads != hidden:
        raise NotSupportedError(f"heads {size} wide of {hidden // heads}: {bridge.class_name} has no place for that")
    if "moe_num_shared_experts" in bridge.sizes:
        # By the width of their tensors: converters have written other counts.
        first = tensors.get(f"blk.{whole(config, 'moe_layer_start_index')}.ffn_gate_shexp.weight")
        config["moe_num_shared_experts"] = first.dims[1] // whole(config, "moe_intermediate_size") if first else 0
    table = tensors.get("token_embd.weight")
    config["vocab_size"] = table.dims[-1] if table else 0
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    config["rms_norm_eps"] = _epsilon(keys.get("attention.layer_norm_rms_epsilon"))
    freqs = tensors.get(ROPE_FREQS)
    factors = None if freqs is None else gguf_rows(freqs).take(np.arange(freqs.dims[-1])).reshape(-1)
    if factors is not None and not bridge.stretched:
        raise NotSupportedError(f"{ROPE_FREQS} is not read by llama.cpp in this family; it is not carried")
    rotary = rotary_of_gguf(keys, whole(config, "max_position_embeddings"), factors)
    return bridge, config, rotary


def _own_keys(file: DenseFile) -> dict[str, object]:
    """The architecture's keys without their prefix; a list of equal values is one."""
    prefix = f"{file.header.architecture}."
    keys: dict[str, object] = {}
    for name, value in file.header.metadata.items():
        if not name.startswith(prefix):
            continue
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            value = value[0]
        if isinstance(value, list):
            raise NotSupportedError(f"{name} differs by layer, which no class of this family in transformers has")
        keys[name.removeprefix(prefix)] = value
    return keys


def _epsilon(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"attention.layer_norm_rms_epsilon is {shown(value)}, a number is needed; convert it again")
    return as_typed(float(value))


def hub_config(
    bridge: Bridge, config: Mapping[str, object], rotary: Rotary, into: FloatType, metadata: Mapping[str, object]
) -> dict[str, object]:
    """`config.json` of a new directory, in the spelling of the hub and in that of transformers 5."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    written: dict[str, object] = {"architectures": [bridge.class_name], "model_type": bridge.model_type}
    for key in ("bos", "eos", "pad"):
        token = metadata.get(f"tokenizer.ggml.{'padding' if key == 'pad' else key}_token_id")
        written[f"{key}_token_id"] = token if isinstance(token, int) else None
    left = {"rope_theta", "attention_bias", "mlp_bias", *(() if bridge.head_dim_key else ("head_dim",))}
    written |= {key: value for key, value in config.items() if key not in left}
    if bridge.biases:
        written |= {key: config[key] for key in ("attention_bias", "mlp_bias")}
    if "moe_layer_end_index" in written:
        written["moe_layer_end_index"] = whole(config, "num_hidden_layers") - 1
    return written | rotary.written() | {"torch_dtype": names[into.dtype], "use_cache": True}
