"""From keys to softmax attention of each layer: grouped, latent, sliding, scored by an indexer, compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    Gqa,
    Indexer,
    Mixer,
    Mla,
    OutputGate,
    QkNorm,
)
from breakeven.model.layouts.config import HEAD_DIM, HEADS, HELP, HIDDEN, KV_HEADS, WINDOW, Config
from breakeven.model.layouts.model_class import ModelClass

ATTENDS = ("full", "indexed", "sliding", "chunked", "both")


def attention_of(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[Mixer | None]:
    """Softmax attention of each layer that has it, latent where there is a rank."""
    if not set(ATTENDS) & set(kinds):
        c.touch(*HEADS, *KV_HEADS, *HEAD_DIM, *WINDOW)
        c.touch_all(
            r"(kv|q)_lora_rank|qk_(nope_|rope_)?head_dim|v_head_dim|(use_)?(attention|qkv)_bias|attention_\w+_bias"
        )
        c.touch_all(r"use_mla$|(use_)?qk_norm")
        return [None] * len(kinds)
    indexers = _indexers(c, cls, kinds)
    if c.whole_or(0, "kv_lora_rank") and c.flag_or(True, "use_mla"):
        latent = _mla(c, cls)
        if c.values.get("kv_source_layers") == list(range(len(kinds))):
            c.touch("kv_source_layers")  # every layer caches its own
        c.touch(*HEAD_DIM, *KV_HEADS, "qk_head_dim", "attention_bias", "use_qk_norm")
        window = c.whole(*WINDOW) if "sliding" in kinds else None
        c.touch(*WINDOW)
        return [
            None
            if kind not in ATTENDS
            else replace(
                latent,
                indexer=indexer,
                window=window if kind == "sliding" else None,
                **_own_of_layer(c, i, _OWN_LATENT),  # type: ignore[arg-type]
            )
            for i, (kind, indexer) in enumerate(zip(kinds, indexers, strict=True))
        ]
    if "kv_lora_rank" not in c.values and c.has("qk_nope_head_dim") and c.flag_or(True, "use_mla"):
        raise c.missing("kv_lora_rank")
    c.touch("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "use_mla")
    found = _gqa(c, cls, kinds)
    shared = min(c.whole_or(0, "num_kv_shared_layers"), max(len(kinds) - 1, 0))
    own = len(kinds) - shared
    # Hunyuan's cross-layer attention: every so many layers share the cache of the first of them.
    factor = max(1, c.whole_or(1, "cla_share_factor")) if c.flag_or(False, "use_cla") else 1
    c.touch("cla_share_factor")
    borrows = [i >= own or i % factor != 0 for i in range(len(kinds))]
    return [
        None
        if a is None
        else replace(
            a,
            indexer=indexer,
            shares_kv=borrows[i],
            kv_matrices=not borrows[i] or (factor == 1 and cls.kv_matrices_shared),
        )
        for i, (a, indexer) in enumerate(zip(found, indexers, strict=True))
    ]


def _gqa(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[Gqa | None]:
    count = len(kinds)
    heads = c.per_layer(count, "num_attention_heads_per_layer", "num_query_heads", *HEADS)
    c.touch(*HEADS)
    kv_key = c.first(KV_HEADS)
    kv_heads = c.per_layer(count, kv_key) if kv_key else heads
    if not kv_key and c.flag_or(False, "multi_query"):
        kv_heads = [1] * count
    kv_heads = _kv_heads_of_blocks(c, kinds, heads) or kv_heads
    head_dim = head_dim_of(c, cls, max(heads))
    value_dim = c.whole_or(head_dim, "v_head_dim", "head_dim_v")
    qkv_bias, output_bias = _biases(c, cls)
    qk_norm = _qk_norm(c, cls)
    window = 0 if not {"sliding", "chunked"} & set(kinds) else _window(c, kinds)
    chunk = c.whole_or(0, "attention_chunk_size") if "chunked" in kinds else 0
    gates = _gates(c, cls, count)
    full = {
        "kv_heads": c.whole_or(0, "num_global_key_value_heads"),
        "head_dim": c.whole_or(0, "global_head_dim"),
    }
    slides = {
        "heads": c.whole_or(
            0, "swa_num_attention_heads", "num_sliding_attention_heads", "attention_other_setting.num_attention_heads"
        ),
        "kv_heads": c.whole_or(0, "swa_num_key_value_heads", "attention_other_setting.num_attention_groups"),
        "head_dim": c.whole_or(0, "swa_head_dim", "attention_other_setting.head_dim"),
        "value_head_dim": c.whole_or(0, "swa_v_head_dim"),
    }
    own_heads = c.has("num_attention_heads_per_layer")
    keys_are_values = c.flag_or(False, "attention_k_eq_v")
    sinks = {
        "sliding": c.flag_or(cls.sinks, "add_swa_attention_sink_bias"),
        "full": c.flag_or(cls.sinks, "add_full_attention_sink_bias"),
    }
    found: list[Gqa | None] = []
    for i, kind in enumerate(kinds):
        if kind not in ATTENDS:
            found.append(None)
            continue
        near = kind in ("sliding", "chunked")
        width = chunk if kind == "chunked" else window
        a = Gqa(
            heads=heads[i],
            kv_heads=kv_heads[i],
            head_dim=head_dim,
            window=width if near else None,
            qk_norm=qk_norm,
            qkv_bias=qkv_bias,
            output_bias=output_bias,
            output_gate=gates[i],
            sinks=sinks["sliding" if near else "full"],
            value_head_dim=None if value_dim == head_dim else value_dim,
            keys_are_values=keys_are_values and not near,
        )
        change = {k: v for k, v in (slides if near else full).items() if v and not (k == "heads" and own_heads)}
        if change.get("value_head_dim") == change.get("head_dim", head_dim):
            change.pop("value_head_dim", None)
        own = _own_of_layer(c, i, _OWN)
        a = replace(a, **(change | own))  # type: ignore[arg-type]
        if a.kv_heads < 1 or a.heads % a.kv_heads:
            raise UserError(
                f"{c.source}: {c.name}: layer {i} has {a.heads} heads for {a.kv_heads} key-value heads, of which each "
                "must serve as many; one of them must change"
            )
        found.append(a)
    return found


def _kv_heads_of_blocks(c: Config, kinds: Sequence[str], heads: Sequence[int]) -> list[int] | None:
    """Key-value heads of layers that `block_configs` describes one by one."""
    blocks = c.listed("block_configs", len(kinds))
    if blocks is None:
        return None
    found = []
    for block, kind, queries in zip(blocks, kinds, heads, strict=True):
        attention = cast(Mapping[str, Mapping[str, object]], block)["attention"]
        own, group = attention.get("num_key_value_heads"), attention.get("n_heads_in_group")
        if kind == "none":
            found.append(queries)
        elif isinstance(own, int) and own > 0:
            found.append(own)
        elif isinstance(group, int) and group > 0:
            found.append(queries // group)
        else:
            raise c.wrong("block_configs", "n_heads_in_group or num_key_value_heads in each layer that attends")
    return found


_OWN = {"head_dim": "head_dim", "num_key_value_heads": "kv_heads", "num_attention_heads": "heads"}
_OWN_LATENT = {
    "num_attention_heads": "heads",
    "num_key_value_heads": "",
    "kv_lora_rank": "kv_lora_rank",
    "q_lora_rank": "q_lora_rank",
    "qk_nope_head_dim": "nope_dim",
    "qk_rope_head_dim": "rope_dim",
    "v_head_dim": "value_dim",
}
"""Keys of `per_layer_config`, and what they change in a layer; "" for nothing."""


def _own_of_layer(c: Config, index: int, known: Mapping[str, str]) -> dict[str, int]:
    """What `per_layer_config` says of one layer."""
    listed = c.get("per_layer_config")
    if not isinstance(listed, Mapping):
        return {}
    own: Mapping[str, object] = {}
    for key, facts in listed.items():
        if str(key).isdigit() and int(str(key)) == index and isinstance(facts, Mapping):
            own = facts
    found = {}
    for key, value in own.items():
        if key not in known or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{c.source}: {c.name}: per_layer_config.{key} is not known and could change the layout; {HELP}"
            )
        if known[key]:
            found[known[key]] = value
    return found


def head_dim_of(c: Config, cls: ModelClass, heads: int) -> int:
    if cls.head_dim_given or c.has(*HEAD_DIM):
        return c.whole(*HEAD_DIM)
    hidden = c.whole(*HIDDEN)
    if hidden % heads:
        raise UserError(
            f"{c.source}: {c.name}: hidden_size {hidden} is no multiple of num_attention_heads {heads} "
            f"and head_dim is not given; add head_dim, or {HELP}"
        )
    return hidden // heads


def _biases(c: Config, cls: ModelClass) -> tuple[bool, bool]:
    """Biases on queries, keys and values, and on the output."""
    every = c.flag_or(False, "use_bias", "bias", "add_bias_linear")
    both = c.flag_or(cls.qkv_bias, "attention_bias", "use_attention_bias") or every
    if cls.qkv_bias and not cls.attention_bias_output and not c.has("attention_bias"):
        both = True
    qkv = c.flag_or(both, "qkv_bias", "use_qkv_bias", "add_qkv_bias", "attention_in_bias")
    if "attention_bias" in cls.idle:
        qkv = cls.qkv_bias
    default = cls.output_bias or every or (c.flag_or(False, "attention_bias") and cls.attention_bias_output)
    return qkv, c.flag_or(default, "attention_out_bias", "o_bias")


def _qk_norm(c: Config, cls: ModelClass) -> QkNorm:
    if "use_qk_norm" in cls.idle:
        return cls.qk_norm
    default = cls.qk_norm is not QkNorm.NONE
    if not c.flag_or(default, "use_qk_norm", "qk_norm", "use_qk_norms", "qk_layernorm", "use_query_key_norm"):
        return QkNorm.NONE
    kind = c.text_or("", "qk_norm_type")
    if kind and "qk_norm_type" not in cls.idle:
        return QkNorm.FULL if "layer" in kind else QkNorm.HEAD
    return cls.qk_norm if default else QkNorm.HEAD


def _window(c: Config, kinds: Sequence[str]) -> int:
    if "sliding" not in kinds:
        return 0
    key = c.first(WINDOW)
    value = c.values.get(key) if key else None
    if key and isinstance(value, list):
        wide = {w for w in value if isinstance(w, int) and w > 0}
        if len(wide) == 1:
            return int(next(iter(wide)))
        raise c.wrong(key, "one window")
    return c.whole(*WINDOW)


def _gates(c: Config, cls: ModelClass, count: int) -> list[OutputGate]:
    """The output gate of each layer."""
    listed = c.listed("gating_types", count)
    if listed is not None:
        c.touch("gating")
        return [OutputGate.HEAD if "head" in str(word) else OutputGate.FULL for word in listed]
    by_head = ("use_head_wise_attn_gate", "use_headwise_gate", "headwise_attn_output_gate")
    if c.flag_or(False, *by_head):
        return [OutputGate.HEAD] * count
    for key in ("attn_output_gate", "attention_output_gate", "gating", "use_output_gate", "mla_use_output_gate",
                "elementwise_attn_output_gate", "use_attn_gate", "use_attention_gate"):  # fmt: skip
        value = c.get(key)
        if value is True:
            return [cls.gate_of_true] * count
        if value is False:
            return [OutputGate.NONE] * count
        if isinstance(value, str):
            return [OutputGate.HEAD if "head" in value else OutputGate.FULL] * count
    return [OutputGate.NONE if cls.gate is OutputGate.HEAD and c.has(*by_head) else cls.gate] * count


def _mla(c: Config, cls: ModelClass) -> Mla:
    """Latent attention; a null or absent `q_lora_rank` means queries are projected directly."""
    gate = _gates(c, cls, 1)[0]
    return Mla(
        heads=c.whole(*HEADS),
        kv_lora_rank=c.whole("kv_lora_rank"),
        nope_dim=c.whole("qk_nope_head_dim"),
        rope_dim=_zero_allowed(c, "qk_rope_head_dim"),
        value_dim=c.whole("v_head_dim"),
        q_lora_rank=c.whole_or(0, "q_lora_rank") or None,
        output_gate=gate,
    )


def _zero_allowed(c: Config, key: str) -> int:
    if not c.has(key):
        raise c.missing(key)
    return c.whole_or(0, key)


_INDEX = {
    "top_k": ("index_topk", "indexer_budget"),
    "blocks": ("index_topk_blocks", "sparse_attention_config.sparse_topk_blocks"),
    "block": ("index_block_size", "sparse_attention_config.sparse_block_size"),
    "heads": ("index_n_heads", "indexer_n_heads", "sparse_attention_config.sparse_num_index_heads"),
    "head_dim": ("index_head_dim", "indexer_head_dim", "sparse_attention_config.sparse_index_dim"),
}


def _indexers(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[Indexer | None]:
    """The scorer of each layer that reads what it picks; layers that use another's choice have none of its weights.

    Where no word of the file tells such layers from others, all full layers have one.
    """
    count = len(kinds)
    c.touch_all(r"index(er)?_(rope|share|skip|kpool_always|local)|indexer_quant")
    if not c.has(*_INDEX["top_k"], *_INDEX["blocks"]):
        if "indexed" in kinds:
            raise c.missing(*_INDEX["top_k"])
        return [None] * count
    block = c.whole_or(1, *_INDEX["block"])
    own = Indexer(
        heads=c.whole(*_INDEX["heads"]),
        head_dim=c.whole(*_INDEX["head_dim"]),
        top_k=c.whole(*_INDEX["top_k"]) if c.has(*_INDEX["top_k"]) else c.whole(*_INDEX["blocks"]) * block,
        kv_heads=c.whole_or(1, "indexer_kv_heads"),
        every=max(1, c.whole_or(1, "index_kpool", "indexer_compress_ratio")),
        pools=c.whole_or(1, "index_kpool") > 1,
        weighs=not c.has("indexer_n_heads", *_INDEX["blocks"]),
    )
    c.touch_all(r"sparse_attention_config\.(use_sparse|sparse_(local|init|disable|score|attention))")
    shared = replace(own, owns_weights=False)
    types = c.listed("indexer_types", count)
    freq = max(1, c.whole_or(1, "index_topk_freq"))
    skip = c.whole_or(0, "index_skip_topk_offset")
    pattern = c.get("index_topk_pattern")
    if types is not None:
        found = [own if str(word) == "full" else shared for word in types]
    elif isinstance(pattern, str) and pattern:
        found = [shared if pattern[i % len(pattern)] in "Ss0" else own for i in range(count)]
    else:
        found = [own if i < skip or (i - skip + 1) % freq == 0 or freq == 1 else shared for i in range(count)]
    wanted = "indexed" if "indexed" in kinds or cls.indexed_by_word else "full"
    return [one if kind == wanted else None for one, kind in zip(found, kinds, strict=True)]


def compressed_of(c: Config, count: int) -> list[Mixer]:
    """DeepSeek-V4's attention; ratio 4 has an indexer, 128 has none, 0 is the window alone."""
    ratios = c.list_of("compress_ratios")
    if ratios is None:
        rates = c.get("compress_rates")
        listed = c.listed("layer_types", count)
        if not isinstance(rates, Mapping) or listed is None:
            raise c.missing("compress_ratios")
        ratios = [rates.get(str(word), 0) for word in listed]
    if len(ratios) < count or not all(isinstance(r, int) and r >= 0 for r in ratios):
        raise c.wrong("compress_ratios", f"a list of {count} whole numbers, and one for each drafting block")
    c.touch(*KV_HEADS, "layer_types", "qk_rope_head_dim", "compress_rates")
    plain = CompressedAttention(
        heads=c.whole(*HEADS),
        head_dim=c.whole(*HEAD_DIM),
        q_lora_rank=c.whole("q_lora_rank"),
        output_groups=c.whole("o_groups"),
        output_lora_rank=c.whole("o_lora_rank"),
        window=c.whole(*WINDOW),
    )
    indexer = Indexer(
        heads=c.whole(*_INDEX["heads"]), head_dim=c.whole(*_INDEX["head_dim"]), top_k=c.whole(*_INDEX["top_k"]), every=4
    )
    return [
        replace(plain, ratio=int(str(r)), indexer=replace(indexer, every=int(str(r))) if r == 4 else None)
        for r in ratios[:count]
    ]
