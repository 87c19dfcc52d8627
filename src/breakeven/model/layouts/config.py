"""A configuration whose every key is accounted for: found under any of its names, used, harmless, or named.

A Hugging Face `config.json` (or Mistral's `params.json`) says one fact in several ways; `Config` finds it under any of
them and remembers what was asked for. What nobody asked for and what could change a tensor is then named, so that a
layout that is not known is never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from breakeven.errors import UserError
from breakeven.model.readers.bounded import MOST_LAYERS, MOST_WHOLE, shown

MOST_NUMBER = 1e100

HELP = "see docs/models-yaml.md to describe the model by hand"

LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
HIDDEN = ("hidden_size", "dim", "n_embd", "d_model", "model_dim")
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "model_max_length",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "seq_length",
    "n_ctx",
)
HEADS = ("num_attention_heads", "n_heads", "n_head")
KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_attention_groups", "num_kv_heads", "multi_query_group_num")
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels")
WIDTH = ("intermediate_size", "hidden_dim", "ffn_hidden_size", "ffn_dim", "n_inner")
DENSE_WIDTH = ("intermediate_size_mlp", "dense_intermediate_size", "prefix_dense_intermediate_size")
TIED = ("tie_word_embeddings", "tie_embedding", "tied_embeddings")
WINDOW = ("sliding_window", "sliding_window_size", "window_size", "attention_window_size")
EXPERTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "moe.num_experts",
    "num_routed_experts",
)
TOP_K = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "num_selected_experts",
    "moe.num_experts_per_tok",
)
EXPERT_WIDTH = (
    "moe_intermediate_size",
    "expert_intermediate_size",
    "moe_ffn_hidden_size",
    "expert_ffn_hidden_size",
    "moe.expert_hidden_dim",
)
SHARED_EXPERTS = (
    "n_shared_experts",
    "num_shared_experts",
    "num_shared_expert",
    "moe_num_shared_experts",
    "moe.num_shared_experts",
)
SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "share_expert_dim",
    "shared_experts_intermediate_size",
    "shared_expert_dim",
)
EPSILON = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "layernorm_epsilon", "norm_epsilon")

TEXT = ("text_config", "llm_config", "language_config", "thinker_config")
_OF_THE_WHOLE = frozenset(
    (*CONTEXT, *TIED, "vocab_size", "is_encoder_decoder", "encoder_layers", "num_encoder_layers", "encoder")
)
"""What may stand outside a language model's own part."""
_NESTED = (
    "linear_attn_config",
    "moe",
    "mtp",
    "sparse_attention_config",
    "attention_other_setting",
    "rope_parameters",
    "yarn",
)
"""Objects whose keys are facts too; they are known as `object.key`."""


class Config:
    """A configuration with its name and source, so that every complaint can say where it looked.

    Multimodal models keep the language model under `text_config`; that part is read, with the outer values filling
    what it leaves out or leaves null: of a part that says how many layers it has, only what is of the whole model, for
    the rest is of towers and what joins them. `defaults`: what the model's class says where the file names no key.
    """

    def __init__(self, values: Mapping[str, object], name: str, source: str) -> None:
        parts = text_parts(values)
        merged: dict[str, object] = {}
        for part in parts:
            if any(part.get(key) is not None for key in LAYERS):
                merged = {k: v for k, v in merged.items() if k in _OF_THE_WHOLE}
            merged |= {k: v for k, v in part.items() if v is not None or k not in merged}
        # Whether the head is tied is for the whole model to say, where both say it.
        merged |= {key: values[key] for key in TIED if values.get(key) is not None}
        self.values = _flat(merged)
        # What stands outside the language model's part belongs to towers, unless it is a fact that is asked for.
        self.own = frozenset(_flat(parts[-1]))
        self.name = name
        self.source = source
        self._used: set[str] = set()
        self.assume = False
        self.assumed: list[str] = []
        self.stranger = ""

    def fill(self, defaults: Mapping[str, object]) -> None:
        """Take a class's own values for keys that the file does not have; a key that is null stays absent."""
        self.values = {**defaults, **self.values}

    def get(self, key: str) -> object:
        """A key's value, None when it is absent or null; it counts as used."""
        self._used.add(key)
        return self.values.get(key)

    def touch(self, *keys: str) -> None:
        """Count keys as used: their part is known to be absent, or another key has said the same."""
        self._used.update(keys)

    def touch_all(self, pattern: str) -> None:
        """As `touch`, for every key whose name begins like the regular expression."""
        self._used.update(key for key in self.values if re.match(pattern, key))

    def first(self, keys: Sequence[str]) -> str | None:
        """The first of `keys` that is there and not null; all of them count as used."""
        found = [key for key in keys if self.get(key) is not None]
        return found[0] if found else None

    def has(self, *keys: str) -> bool:
        """True when any of `keys` is there and not null."""
        return self.first(keys) is not None

    def whole(self, *keys: str) -> int:
        """The first of `keys` as a positive whole number; raises UserError when none is there or it is not one."""
        key = self.first(keys)
        if key is None:
            raise self.missing(*keys)
        return self._whole(key)

    def whole_or(self, default: int, *keys: str) -> int:
        """As `whole`, but `default` when none is there; zero is allowed."""
        key = self.first(keys)
        return default if key is None else self._whole(key, least=0)

    def number_or(self, default: float, *keys: str) -> float:
        """The first of `keys` as a number."""
        key = self.first(keys)
        if key is None:
            return default
        value = self.values[key]
        # Neither infinite nor not a number, which JSON in Python's dialect may say.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST_NUMBER:
            raise self.wrong(key, "a number")
        return float(value)

    def flag_or(self, default: bool, *keys: str) -> bool:
        """The first of `keys` as true or false."""
        key = self.first(keys)
        if key is None:
            return default
        value = self.values[key]
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text_or(self, default: str, *keys: str) -> str:
        """The first of `keys` as a string."""
        key = self.first(keys)
        value = None if key is None else self.values[key]
        return value if isinstance(value, str) else default

    def list_of(self, key: str) -> Sequence[object] | None:
        """`key` as a list, None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise self.wrong(key, "a list")
        return cast(Sequence[object], value)

    def per_layer(self, count: int, *keys: str, default: int | None = None) -> list[int]:
        """The first of `keys` for each of `count` layers: one number, or a list of them (zero allowed in a list)."""
        key = self.first(keys)
        if key is None:
            if default is None:
                raise self.missing(*keys)
            return [default] * count
        value = self.values[key]
        if not isinstance(value, list | tuple) or count < 1:
            return [self._whole(key, least=1 if default is None else 0)] * count
        if len(value) != count:
            raise self.length(key, len(value), count)
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= MOST_WHOLE for n in value):
            raise self.wrong(key, "whole numbers, zero or more")
        return [cast(int, n) for n in value]

    def listed(self, key: str, count: int) -> list[object] | None:
        """`key` as a list with an entry for each of `count` layers; further entries belong to drafting blocks."""
        found = self.list_of(key)
        if found is None:
            return None
        if len(found) != count and not (len(found) > count and self.has("num_nextn_predict_layers")):
            raise self.length(key, len(found), count)
        return list(found)[:count]

    def inside(self, key: str) -> dict[str, object] | None:
        """The facts of an object, whether it is kept whole or by its keys; None when it is absent."""
        value = self.get(key)
        if isinstance(value, Mapping):
            return dict(value)
        found = {k.removeprefix(f"{key}."): v for k, v in self.values.items() if k.startswith(f"{key}.")}
        return found or None

    def missing(self, *keys: str) -> UserError:
        """An error that names a fact that is not there."""
        others = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
        if self.stranger:
            return UserError(
                f"{self.source}: {self.name}: the tensor layout of model_type {self.stranger[:60]!r} is not known "
                f"here, and its keys do not say {keys[0]}{others}; add it, or {HELP}"
            )
        return UserError(f"{self.source}: {self.name} does not say {keys[0]}{others}; add it, or {HELP}")

    def length(self, key: str, found: int, count: int) -> UserError:
        """An error for a list that does not have an entry a layer."""
        return UserError(
            f"{self.source}: {self.name}: {key} names {found} layers, num_hidden_layers says {count}; "
            "one of them must change"
        )

    def wrong(self, key: str, right: str) -> UserError:
        """An error that shows a value and says what it must be."""
        return UserError(f"{self.source}: {self.name}: {key} is {shown(self.values[key])}, it must be {right}")

    def unknown(self, count: int) -> list[str]:
        """Keys that nobody used, that are not known to be harmless, and that could change a tensor."""
        return sorted(
            key
            for key, value in self.values.items()
            if key in self.own
            and key not in self._used
            and not any(key.startswith(f"{used}.") for used in self._used)
            and not harmless(key)
            and speaks(key, value, count)
        )

    def indices(self, key: str) -> list[int] | None:
        """`key` as numbers of layers, None when absent."""
        found = self.list_of(key)
        if found is None:
            return None
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in found):
            raise self.wrong(key, "whole numbers, one for each such layer")
        return [cast(int, i) for i in found]

    def _whole(self, key: str, least: int = 1) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(key, "a positive whole number" if least else "a whole number, zero or more")
        most = MOST_LAYERS if key in LAYERS else MOST_WHOLE
        if value > most:
            raise self.wrong(key, f"at most {most:,}")
        return value


def text_parts(values: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The file, and the language model's part within it, from the outside in."""
    parts = [values]
    while inner := [part for key in TEXT if isinstance(part := parts[-1].get(key), Mapping)]:
        parts.append(cast(Mapping[str, object], inner[0]))
    return parts


def _flat(values: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        if key in _NESTED and isinstance(value, Mapping):
            found |= {f"{key}.{inner}": fact for inner, fact in value.items()}
        else:
            found[key] = value
    return found


_SHAPE = re.compile(
    r"size|dim|rank|num|head|layer|expert|width|interval|pattern|bias|norm|gat(e|ing)|kernel|state|group|vocab|hidden"
    r"|latent|table|embed|ffn|mlp|block|freq|period|offset|every|share|proj|tie|window|stream|conv|count|^n_|channels"
    r"|dense|sparse|depth|rnn|recurrent|loop|memory|slot|adapter|lora|expan|ratio"
)
"""Parts of names that say something of a shape."""
_SHAPE_OF_NUMBER = re.compile(r"size|dim|width|expan|ffn_mult|mlp_ratio|rank")
"""Those that a broken number can mean; other broken numbers are scales."""


def speaks(key: str, value: object, count: int) -> bool:
    """Whether a key that is not known could change the tensors of a model of `count` layers."""
    named = _SHAPE.search(key) is not None
    match value:
        case None | False | "" | 0:
            return False
        case True:
            return True
        case int():
            return value > 1 or (named and value > 0)
        case float():
            return _SHAPE_OF_NUMBER.search(key) is not None
        case str():
            return named
        case list() | tuple():
            return bool(value) and (named or len(value) == count)
        case Mapping():
            return any(speaks(f"{key}.{inner}", fact, count) for inner, fact in value.items() if not harmless(inner))
        case _:
            return False


_HARMLESS = re.compile(
    "|".join(
        (
            # What the file is, who made it, and how it is loaded.
            r"^_|^architectures$|^auto_map$|^model_type$|^base_model_type$|^transformers_version$|dtype|^version$",
            r"^(name|title|license|language|processor_class|tokenizer_class|config_class|custom_pipelines|pipeline_tag)",
            r"^quantization|^quant_|^kv_cache_|_quant(ization)?_|^compression_config|^expert_dtype$|^fp8|^unsloth",
            r"^attn_implementation$|^use_(flash|fa|sdpa|kernels|mamba_kernels|cache|triton|fused|torch)|^_attn|flash",
            r"^(is_decoder|is_encoder_decoder|add_cross_attention|cross_attention_hidden_size|tie_encoder_decoder)$",
            r"^use_return_dict$|^return_|^output_(hidden|attentions|router|scores|dict)|^torchscript$|^(pruned_heads)$",
            # Tokens, classes, generation.
            r"token_(id|index)|^(bos|eos|pad|unk|sep|cls|mask|decoder_start|forced)_|tokenizer|special_token|soft_tokens",
            r"^(id2label|label2id|num_labels|problem_type|finetuning_task|task_specific_params|summary_|classifier_)",
            r"^(temperature|top_k|top_p|typical_p|num_beams|num_beam_groups|diversity_penalty|length_penalty)$",
            r"repetition_penalty|^no_repeat|_length_penalty|^(max_length|min_length|max_new|do_sample|early_stopping)",
            r"^(bad_words|begin_suppress|suppress|exponential_decay|num_return_sequences|remove_invalid|chunk_size_feed)",
            r"^num_logits_to_keep$|^logits_to_keep$|^seed$|^org_vocab_size$|^pad_vocab|^chat_template",
            # Training and numbers that are drawn once.
            r"dropout|drop_rate|_pdrop$|initializ|^init_|_init(_|$)|^embd_init|^mup_|_loss|aux_loss|z_loss|^loss_|jitter",
            r"gradient|train|^pretraining_tp$|^(optimizer|learning_rate|warmup)|parallel_size$|_parallel$|^parallelism",
            r"^(ep_size|tp_size|pp_size|expert_parallel|expert_model_parallel)$|load_balanc|^seq_aux$|router_bias_update",
            r"^moe\.(expert_parallel|expert_model_parallel)$|update_rate|^rescale_|^residual_in_fp32$|^(ff|attn)_?(out)?_scale$",
            # Positions: they turn what is there.
            r"(rope|rotary)(?!.*(head_dim|heads|rank)$)|^position_embedding_(type|base|xdrope)$|alibi|^use_pos|^mla_use_nope|^use_nope|^nope_|^yarn|mscale",
            r"^original_max_position|^initial_context|^max_window_layers$|^llama_4_scaling|attn_temperature|^floor_scale",
            r"^attn_scale|^use_logn_attn|^use_dynamic_ntk|^long_factor|^short_factor|^max_position|^max_seq|length_extrap",
            # Functions and scales without weights.
            r"(^|_)act$|activation|_func(tion)?$|^act_|swiglu|_limit$|_clip|clamp|_multipliers?$|_scal(e|ing|ar|es)$|_scale_",
            r"scaling|softcap|_cap$|_alpha$|_beta$|_eps$|epsilon|^temperature|_coeff?$|_coef_|_threshold$|_weight_scale",
            r"^use_bidirectional|causal(?!.*(kernel|conv|dim|size))|^use_gemma_norm$|^use_associative_scan|fp32_combine|shared_expert_overlap|allow_neg_eigval|^scale_(emb|depth)",
            r"^dim_model_base$|_(alpha|beta)_factor$|_multiplier_init$|sink_init$|^att_impl|^need_fp32|^yarn_only|^norm_expert_weight",
            r"^attention_method|^scoring_|^score_|_selection_fn$|combination_strategy",
            r"^(norm_topk_prob|moe_renormalize|route_norm|norm_head|topk_method|expert_selection|router_dtype)",
            r"^topk_group|group_limited|use_grouped_topk|num_limited_groups|num_expert_group|^n_group$",
            r"^(moe_)?router_(?!enable|latent|dim|hidden|bias|mlp|num|n_|rank|size|inter|layers)|^moe_(token_dispatcher|permute|layer_fused|backend|impl)",
            r"activation_sparsity|interleave$|sinkhorn|^hc_eps|lower_bound|safe_gate|always_select|_impl$|_backend$|_mode$",
            r"^(mamba_)?chunk_size$|^mamba_(chunk|ssm_|hidden|dt_|norm_before)|^time_step_(min|max|floor|limit)|_cache_dtype",
            r"^use_mamba(_kernels|py)|^ssm_(cfg|multip)|^attention_window_prefill|max_cache|cache_implementation|^use_swiglu",
            # Other senses.
            r"vision|visual|audio|image|video|speech|^mm_|multimodal|^vit_|anyres|^pool_type|projector|pixel|spatial_merge",
            r"^(deepstack|perceiver|boi|eoi|boa|eoa|img|patch_|vq_|codec|tts_|talker|thinker|resampler)",
        )
    )
)
"""Keys that change no tensor of a language model, or only say again what tensors are made of."""


_MEASURE = re.compile(r"(^|_)(dims?|ranks?|heads|experts|width|(hidden|intermediate|memory)_size|layers)$")
_MEASURE_OF_NOTHING = re.compile(
    r"vision|visual|audio|image|video|speech|^mm_|^vit_|^(tts|talker|thinker|codec|vq)_|pixel|projector|deepstack"
    r"|^max_window_layers$|^no_rope_layers$|^(rotary|rope)_dim$|mscale|^cross_attention_hidden_size$|_dt_rank$|^_"
)
"""What ends like a size is one, whatever stands before it, but for towers and a few that are known."""


def harmless(key: str) -> bool:
    """Whether a key is known to change no tensor."""
    if _MEASURE.search(key) and not _MEASURE_OF_NOTHING.search(key):
        return False
    return _HARMLESS.search(key) is not None
