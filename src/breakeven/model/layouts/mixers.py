"""From keys to the mixers of each layer, once its kind is known: what each is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.model.architecture import (
    CompressedAttention,
    Gqa,
    Indexer,
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    Mla,
    OutputGate,
    QkNorm,
    ShortConv,
)
from breakeven.model.layouts.classes import ModelClass
from breakeven.model.layouts.config import HEAD_DIM, HEADS, HELP, HIDDEN, KV_HEADS, WINDOW, Config


def mixers_of(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[tuple[Mixer, ...]]:
    """The mixers of each layer by its kind; `mixers_of(...)[i]` is empty for a feed-forward alone."""
    count = len(kinds)
    compressed = _compressed(c, count) if c.has("o_lora_rank") else None
    if compressed is not None:
        return [(mixer,) for mixer in compressed]
    attends = _attention(c, cls, kinds)
    others: dict[str, Mixer] = {}
    for kind, read in _OTHERS.items():
        if kind in kinds or (kind == "mamba" and "both" in kinds):
            others[kind] = read(c, cls)
    found: list[tuple[Mixer, ...]] = []
    for kind, attention in zip(kinds, attends, strict=True):
        match kind:
            case "both":
                assert attention is not None
                found.append((attention, others["mamba"]))
            case "mamba" | "linear" | "conv":
                found.append((others[kind],))
            case _:
                found.append((attention,) if attention is not None else ())
    return found


_ATTENDS = ("full", "sliding", "chunked", "both")


def _attention(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[Mixer | None]:
    """Softmax attention of each layer that has it, latent where there is a rank."""
    if not set(_ATTENDS) & set(kinds):
        return [None] * len(kinds)
    indexers = _indexers(c, len(kinds))
    if c.whole_or(0, "kv_lora_rank") and c.flag_or(True, "use_mla"):
        latent = _mla(c, cls)
        c.touch(*HEAD_DIM, *KV_HEADS, "qk_head_dim", "attention_bias", "use_qk_norm", *WINDOW)
        return [
            replace(latent, indexer=indexer) if kind in _ATTENDS else None
            for kind, indexer in zip(kinds, indexers, strict=True)
        ]
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
    head_dim = _head_dim(c, cls, max(heads))
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
        "heads": c.whole_or(0, "swa_num_attention_heads", "attention_other_setting.num_attention_heads"),
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
        if kind not in _ATTENDS:
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
        own = _own_of_layer(c, i)
        found.append(replace(a, **(change | own)))  # type: ignore[arg-type]
    return found


def _own_of_layer(c: Config, index: int) -> dict[str, int]:
    """What `per_layer_config` says of one layer."""
    listed = c.get("per_layer_config")
    if not isinstance(listed, Mapping):
        return {}
    own: Mapping[str, object] = {}
    for key, facts in listed.items():
        if str(key).isdigit() and int(str(key)) == index and isinstance(facts, Mapping):
            own = facts
    known = {"head_dim": "head_dim", "num_key_value_heads": "kv_heads", "num_attention_heads": "heads"}
    found = {}
    for key, value in own.items():
        if key not in known or not isinstance(value, int) or value < 1:
            raise UserError(
                f"{c.source}: {c.name}: per_layer_config.{key} is not known and could change the layout; {HELP}"
            )
        found[known[key]] = value
    return found


def _head_dim(c: Config, cls: ModelClass, heads: int) -> int:
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
    if c.flag_or(False, "use_head_wise_attn_gate", "use_headwise_gate", "headwise_attn_output_gate"):
        return [OutputGate.HEAD] * count
    for key in ("attn_output_gate", "attention_output_gate", "gating", "use_output_gate", "mla_use_output_gate",
                "elementwise_attn_output_gate", "use_attn_gate"):  # fmt: skip
        value = c.get(key)
        if value is True:
            return [cls.gate_of_true] * count
        if value is False:
            return [OutputGate.NONE] * count
        if isinstance(value, str):
            return [OutputGate.HEAD if "head" in value else OutputGate.FULL] * count
    return [cls.gate] * count


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
    "top_k": ("index_topk", "indexer_budget", "sparse_attention_config.sparse_topk_blocks"),
    "heads": ("index_n_heads", "indexer_n_heads", "sparse_attention_config.sparse_num_index_heads"),
    "head_dim": ("index_head_dim", "indexer_head_dim", "sparse_attention_config.sparse_index_dim"),
}


def _indexers(c: Config, count: int) -> list[Indexer | None]:
    """The scorer of each layer; layers that use another's choice have none of its weights."""
    c.touch_all(r"index(er)?_(rope|share|skip|kpool_always)|indexer_quant")
    if not c.has(*_INDEX["top_k"]):
        c.touch_all(r"index_|indexer_")
        return [None] * count
    own = Indexer(
        heads=c.whole(*_INDEX["heads"]),
        head_dim=c.whole(*_INDEX["head_dim"]),
        top_k=c.whole(*_INDEX["top_k"]),
        kv_heads=c.whole_or(1, "indexer_kv_heads"),
        every=max(1, c.whole_or(1, "index_kpool", "indexer_compress_ratio")),
        pools=c.whole_or(1, "index_kpool") > 1,
        weighs=not c.has("indexer_n_heads"),
    )
    shared = replace(own, owns_weights=False)
    types = c.listed("indexer_types", count)
    freq = max(1, c.whole_or(1, "index_topk_freq"))
    skip = c.whole_or(0, "index_skip_topk_offset")
    pattern = c.get("index_topk_pattern")
    if types is not None:
        return [own if str(word) == "full" else shared for word in types]
    if isinstance(pattern, str):
        return [shared if pattern[i % len(pattern)] in "Ss0" else own for i in range(count)]
    return [own if i < skip or (i - skip + 1) % freq == 0 or freq == 1 else shared for i in range(count)]


def _compressed(c: Config, count: int) -> list[Mixer]:
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


def _linear(c: Config, cls: ModelClass) -> Mixer:
    """A gated delta net, Kimi's, fixed decay, or Mamba-2 by another word, as the keys that stand there say."""
    c.touch("output_gate_type")
    if c.has("linear_num_value_heads"):
        return LinearAttention(
            key_heads=c.whole("linear_num_key_heads"),
            value_heads=c.whole("linear_num_value_heads"),
            key_dim=c.whole("linear_key_head_dim"),
            value_dim=c.whole("linear_value_head_dim"),
            conv_kernel=c.whole_or(4, "linear_conv_kernel_dim"),
        )
    if cls.delta == "gated":
        raise c.missing("linear_num_value_heads")
    if c.has("linear_attn_config.num_heads", "linear_num_heads") or cls.delta == "kimi":
        head_dim = c.whole("linear_attn_config.head_dim", "linear_head_dim", *HEAD_DIM)
        full_rank = c.flag_or(cls.full_rank_gate, "linear_attn_config.use_full_rank_gate", "kda_full_rank_gate")
        return KimiDelta(
            heads=c.whole("linear_attn_config.num_heads", "linear_num_heads", *HEADS),
            head_dim=head_dim,
            conv_kernel=c.whole_or(
                4, "linear_attn_config.short_conv_kernel_size", "linear_conv_kernel_dim", "short_conv_kernel_size"
            ),
            gate_rank=None if full_rank else head_dim,
        )
    if c.has("mamba_num_heads", "mamba_n_heads"):
        return _mamba(c, cls)
    if cls.delta == "lightning":
        heads = c.whole(*HEADS)
        return Lightning(heads=heads, kv_heads=heads, head_dim=_head_dim(c, cls, heads), qk_norm=cls.linear_qk_norm)
    raise UserError(
        f"{c.source}: {c.name}: its linear layers have no linear_num_value_heads or linear_num_heads; {HELP}"
    )


def _mamba(c: Config, cls: ModelClass) -> Mixer:
    """Mamba-2 where it has heads, else Mamba-1; the width is heads times their size, whatever `expand` says."""
    hidden = c.whole(*HIDDEN)
    state = c.whole("mamba_d_state", "ssm_state_size", "state_size", "mamba_state_size")
    kernel = c.whole_or(4, "mamba_d_conv", "conv_kernel", "mamba_conv_kernel")
    conv_bias = c.flag_or(True, "mamba_conv_bias", "use_conv_bias")
    bias = c.flag_or(False, "mamba_proj_bias", "projectors_bias", "use_bias")
    expand = c.number_or(2.0, "mamba_expand", "expand")
    heads = c.whole_or(0, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads")
    c.touch("mamba_expand", "expand", "time_step_rank")
    inner = c.whole_or(round(expand * hidden), "mamba_d_ssm", "mamba_intermediate_size")
    if not heads and not c.has("mamba_d_head", "mamba_head_dim"):
        return Mamba1(
            inner=inner,
            state=state,
            dt_rank=c.whole_or(-(-hidden // 16), "mamba_dt_rank", "time_step_rank"),
            conv_kernel=kernel,
            conv_bias=conv_bias,
            bias=bias,
            dt_norms=cls.dt_norms,
        )
    head_dim = c.whole_or(0, "mamba_d_head", "mamba_head_dim")
    if heads and not head_dim:
        head_dim = inner // heads
    return Mamba2(
        heads=heads or inner // head_dim,
        head_dim=head_dim,
        state=state,
        groups=c.whole_or(1, "mamba_n_groups", "n_groups", "mamba_num_groups", "mamba_ngroups"),
        conv_kernel=kernel,
        conv_bias=conv_bias,
        norm=c.flag_or(cls.mamba_norm, "mamba_rms_norm"),
        bias=bias,
    )


def _conv(c: Config, cls: ModelClass) -> Mixer:
    return ShortConv(kernel=c.whole_or(3, "conv_L_cache"), bias=c.flag_or(False, "conv_bias"))


_OTHERS: dict[str, Callable[[Config, ModelClass], Mixer]] = {"linear": _linear, "mamba": _mamba, "conv": _conv}
