"""From keys to what stands in each layer: which kind of mixer, by a list, a pattern, a period or the class.

A layer's kind is one of a few words, whatever the file calls it: `full` and `sliding` attention (`chunked`: in blocks),
`indexed` (it reads what a scorer picks), `linear` (a delta net or fixed decay), `mamba`, `conv`, `both` (attention and
Mamba side by side), `none`, and `experts` or `dense` for a feed-forward alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from breakeven.errors import UserError
from breakeven.model.layouts.config import HEADS, HELP, WINDOW, Config
from breakeven.model.layouts.model_class import ModelClass

_WORDS = {
    "full": ("full_attention", "attention", "full", "global", "global_attention", "attn", "*", "G", "A"),
    "indexed": ("indexed_attention", "deepseek_sparse_attention", "sparse_attention", "minimax_m3_sparse"),
    "sliding": ("sliding_attention", "sliding", "local", "local_attention", "sliding_window", "L", "S", "swa"),
    "chunked": ("chunked_attention",),
    "linear": ("linear_attention", "linear", "kda", "gated_delta_net", "gdn", "lightning", "lightning_attention"),
    "mamba": ("mamba", "mamba2", "mamba1", "ssm", "M"),
    "conv": ("conv", "short_conv", "shortconv"),
    "experts": ("moe", "E"),
    "dense": ("mlp", "-"),
    "none": ("no_op", "none", "skip"),
    "compressed": ("compressed_sparse_attention", "heavily_compressed_attention"),
}  # fmt: skip
_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}

ONE_PART = ("experts", "dense")
"""Kinds of layers that are a feed-forward alone; beside them, those with a mixer have no feed-forward."""


def kinds_of(c: Config, cls: ModelClass, count: int) -> list[str]:
    """What each of `count` layers mixes tokens with; raises UserError for a word that is not known."""
    for rule in (_block_configs, _listed, _lettered, _by_index, _by_period, _by_window):
        found = rule(c, cls, count)
        if found is not None:
            if rule is not _by_window:
                _idle(c, found)
            return found
    if cls.kinds_required:
        if not (c.assume and cls.stand_in):
            raise c.missing(cls.kinds_required)
        c.assumed.append(cls.kinds_required)
        return [cls.stand_in[i % len(cls.stand_in)] for i in range(count)]
    return [_plain_kind(c, cls)] * count


def kinds_in_letters(c: Config, key: str) -> list[str] | None:
    """A pattern of one letter a layer (`hybrid_override_pattern`), None when it is absent."""
    text = c.text_or("", key)
    return [_kind(c, key, letter) for letter in text if letter != "|"] or None


def _kind(c: Config, key: str, word: object) -> str:
    found = _KINDS.get(str(word))
    if found is None:
        raise UserError(
            f"{c.source}: {c.name}: {key} names a kind of layer, {str(word)[:40]!r}, that is not known; {HELP}"
        )
    return found


def _block_configs(c: Config, cls: ModelClass, count: int) -> list[str] | None:
    """Layers described one by one (Nemotron-NAS): attention, or none."""
    blocks = c.listed("block_configs", count)
    if blocks is None:
        return None
    found = []
    for block in blocks:
        attention = block.get("attention") if isinstance(block, Mapping) else None
        if not isinstance(attention, Mapping):
            raise c.wrong("block_configs", "an object with attention and ffn for each layer")
        if attention.get("replace_with_linear") or attention.get("mamba") or attention.get("llama4"):
            raise UserError(
                f"{c.source}: {c.name}: block_configs replaces attention by a part that is not known here; {HELP}"
            )
        found.append("none" if attention.get("no_op") else "full")
    return found


def _listed(c: Config, cls: ModelClass, count: int) -> list[str] | None:
    for key in ("layer_types", "layers_block_type", "layers_type", "block_types"):
        listed = c.listed(key, count)
        if listed is not None:
            c.touch_all(
                r"local_layer_ids|full_attention_interval|global_attn_every|.*sliding_window_pattern|full_attn_idxs|.*_layer_pattern"
            )
            c.touch_all(r"attn_layer_(period|offset|indices)|layer_group_size|attn_type_list|hybrid_override_pattern")
            c.touch_all(r"linear_attn_config\.(kda_layers|full_attn_layers|kda_layer_index_base)|kda_layer")
            kinds = [cls.words.get(str(word)) or _kind(c, key, word) for word in listed]
            if "sliding" in kinds and not any(k in c.values for k in WINDOW) and c.flag_or(True, "use_sliding_window"):
                raise c.missing(*WINDOW)
            return kinds if _windowed(c) else ["full" if k == "sliding" else k for k in kinds]
    return None


def _lettered(c: Config, cls: ModelClass, count: int) -> list[str] | None:
    letters = kinds_in_letters(c, "hybrid_override_pattern")
    if letters is None:
        return None
    if len(letters) != count:
        raise c.length("hybrid_override_pattern", len(letters), count)
    return letters


def _by_index(c: Config, cls: ModelClass, count: int) -> list[str] | None:
    """Layers named by their numbers."""
    full = c.indices("linear_attn_config.full_attn_layers")
    linear = c.indices("linear_attn_config.kda_layers")
    if full is not None or linear is not None:
        first = c.whole_or(1, "linear_attn_config.kda_layer_index_base", "kda_layer_index_base")
        attends = {i + first for i in range(count)} - set(linear) if linear is not None else set(full or ())
        return ["full" if i + first in attends else "linear" for i in range(count)]
    if (near := c.indices("local_layer_ids")) is not None:
        return ["sliding" if i in near else "full" for i in range(count)]
    for key, other in (("full_attn_idxs", "conv"), ("attn_layer_indices", "mamba")):
        indices = c.indices(key)
        if indices is not None:
            return ["full" if i in indices else other for i in range(count)]
    flags = c.listed("attn_type_list", count) if "attn_type_list" not in cls.idle else None
    if flags is not None:
        return ["full" if flag else "linear" for flag in flags]
    chosen = c.listed("sparse_attention_config.sparse_attention_freq", count)
    if chosen is not None:
        return ["indexed" if flag else "full" for flag in chosen]
    pattern = c.listed("hybrid_layer_pattern", count)
    return None if pattern is None else ["sliding" if flag else "full" for flag in pattern]


def _by_period(c: Config, cls: ModelClass, count: int) -> list[str] | None:
    """One layer of attention in so many."""
    if (every := c.whole_or(0, "attn_layer_period")) > 0:
        offset = c.whole_or(0, "attn_layer_offset")
        return ["full" if i % every == offset else "mamba" for i in range(count)]
    if (every := c.whole_or(0, "layer_group_size")) > 0:
        # Layers beyond the last whole group attend too.
        whole = count // every * every
        return ["full" if (i + 1) % every == 0 or i >= whole else "linear" for i in range(count)]
    if (every := c.whole_or(0, "full_attention_interval")) > 0:
        return ["linear" if (i + 1) % every else "full" for i in range(count)]
    return None


def _by_window(c: Config, cls: ModelClass, count: int) -> list[str] | None:
    """Sliding and full attention in turn, as a number, a string or the class says."""
    if c.flag_or(False, "alternate_sliding_window"):
        return ["full" if i % 2 else "sliding" for i in range(count)]
    turn: Sequence[str] | None = None
    for key in ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers", "swa_period"):
        value = c.get(key)
        if isinstance(value, str):
            turn = turn or [_kind(c, key, letter) for letter in value]
        elif value is not None:
            every = c.whole(key)
            turn = turn or ["sliding"] * (every - 1) + ["full"]
    if turn is None and not cls.pattern:
        return None
    turn = turn or cls.pattern
    if any(kind in ("sliding", "chunked") for kind in turn) and not _windowed(c) and not c.has("attention_chunk_size"):
        if "sliding_window" not in c.values and not cls.window_optional:
            raise c.missing(*WINDOW)
        return None
    found = [turn[i % len(turn)] for i in range(count)]
    return ["full", *found[1:]] if cls.first_full else found


def _plain_kind(c: Config, cls: ModelClass) -> str:
    if cls.parallel_mamba:
        return "both"
    if _windowed(c) and cls.sliding_alone and not cls.no_window:
        return "sliding"
    if not c.has(*HEADS) and c.has("state_size", "mamba_d_state", "ssm_state_size"):
        return "mamba"
    return "full"


def _windowed(c: Config) -> bool:
    """Whether the file has a window that is in use."""
    used = c.flag_or(True, "use_sliding_window")
    key = c.first(WINDOW)
    value = None if key is None else c.values[key]
    # Some files say 0 or -1 for none.
    return used and key is not None and not (isinstance(value, int) and value <= 0)


def _idle(c: Config, kinds: Sequence[str]) -> None:
    """Keys of parts that no layer has say nothing, once a list of layers has said so."""
    if not {"mamba", "both"} & set(kinds):
        c.touch_all(r"mamba_|ssm_|time_step|conv_kernel$|expand$|n_groups$|chunk_size$|use_conv_bias$|state_size$")
    if "linear" not in kinds:
        c.touch_all(r"linear_|kda_|short_conv_kernel_size")
    if "conv" not in kinds:
        c.touch_all(r"conv_L_cache|conv_bias|conv_dim")
    if "sliding" not in kinds:
        c.touch_all(r"swa_|sliding_|attention_other_setting")
