"""From keys to the feed-forward of each layer: which layers route, and what experts and dense ones are made of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from breakeven.errors import UserError
from breakeven.model.architecture import DenseFfn, FeedForward, Gating, MoeFfn
from breakeven.model.layouts.config import (
    DENSE_WIDTH,
    EXPERT_WIDTH,
    EXPERTS,
    HELP,
    HIDDEN,
    SHARED_EXPERTS,
    SHARED_WIDTH,
    TOP_K,
    WIDTH,
    Config,
    harmless,
)
from breakeven.model.layouts.model_class import ModelClass

_UNGATED = ("relu2", "xielu", "relu_squared")
"""Activations of feed-forwards that have no gate matrix, where the class does not say."""

_GATED = ("silu", "swish", "swiglu", "swigluoai", "geglu")

_ROUTED_KEYS = (
    r"moe_|moe\.|num_experts|n_routed|num_local_experts|n_shared_experts|num_shared_expert|shared_(expert_)?intermediate"
    r"|first_k_dense|decoder_sparse_step|mlp_only_layers|expert_|experts_per|top_k_experts|num_dense_layers|router_"
    r"|interleave_moe|n_group$|num_expert|shared_expert|use_(expert|routing)_bias|enable_moe|zero_expert"
)

_OF_EXPERTS = re.compile(r"(.*_)?experts?(_.*)?$|moe_(intermediate|ffn_hidden)_size$|top_k_experts$|moe_(top)?_?k$")


def ffns_of(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[FeedForward | None]:
    """The feed-forward of each layer, None where it has none."""
    count = len(kinds)
    alone = any(kind in ("experts", "dense") for kind in kinds)
    n_experts = _n_experts(c, cls)
    blocks = _of_blocks(c, count, _gated(c, cls))
    if blocks is not None:
        c.touch(*WIDTH)
        c.touch_all(_ROUTED_KEYS)
        return blocks
    if alone:
        routes = [kind == "experts" for kind in kinds]
        has = [kind in ("experts", "dense") for kind in kinds]
    else:
        routes = order_of(c, count) if n_experts else [False] * count
        none = cls.no_ffn or not c.flag_or(True, "mamba_use_mlp")
        has = [not none and kind != "none" for kind in kinds]
    gated = _gated(c, cls)
    dense: list[DenseFfn | None] = [None] * count
    if not all(routes) and any(h and not r for h, r in zip(has, routes, strict=True)):
        dense = list(_dense(c, cls, count, gated, routed=n_experts > 0))
    experts: list[MoeFfn | None] = [None] * count
    if any(routes):
        experts = list(_experts(c, cls, count, gated))
    else:
        c.touch_all(_ROUTED_KEYS)
    c.touch(*WIDTH, *DENSE_WIDTH)
    return [None if not h else experts[i] if r else dense[i] for i, (h, r) in enumerate(zip(has, routes, strict=True))]


def _of_blocks(c: Config, count: int, gated: bool) -> list[FeedForward | None] | None:
    """Feed-forwards of layers that `block_configs` describes one by one (Nemotron-NAS): a width, or a multiple."""
    blocks = c.listed("block_configs", count)
    if blocks is None:
        return None
    hidden = c.whole(*HIDDEN)
    found: list[FeedForward | None] = []
    for block in blocks:
        facts = block.get("ffn") if isinstance(block, Mapping) else None
        if not isinstance(facts, Mapping) or facts.get("replace_with_linear") or facts.get("moe"):
            raise c.wrong("block_configs", "an object with a dense ffn, or none, for each layer")
        width, factor = facts.get("intermediate_size"), facts.get("ffn_mult")
        if facts.get("no_op"):
            found.append(None)
        elif isinstance(width, int) and width > 0:
            found.append(DenseFfn(width, gated=gated))
        elif isinstance(factor, int | float) and 0 < factor < 1000:
            # Two thirds, as a gated feed-forward has three matrices; then up to a multiple of 256.
            found.append(DenseFfn(-(-int(2 * factor * hidden / 3) // 256) * 256, gated=gated))
        else:
            raise c.wrong("block_configs", "an ffn with ffn_mult or intermediate_size in each layer")
    return found


def _n_experts(c: Config, cls: ModelClass) -> int:
    if cls.dense_only or not c.flag_or(True, "enable_moe_block"):
        c.touch(*EXPERTS)
        return 0
    if not any(key in c.values for key in EXPERTS) and _announces_experts(c):
        raise c.missing(*EXPERTS)
    return c.whole_or(0, *EXPERTS)


def _announces_experts(c: Config) -> bool:
    """Whether the file has a size or a count of experts although it does not say how many there are."""
    own = any(_of_experts(key, value) for key, value in c.values.items() if key in c.own)
    return own or c.flag_or(False, "enable_moe_block")


def _of_experts(key: str, value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_of_experts(str(inner), fact) for inner, fact in value.items())
    return isinstance(value, int) and value > 1 and _OF_EXPERTS.match(key) is not None and not harmless(key)


def _gated(c: Config, cls: ModelClass) -> bool:
    act = c.text_or("", "mlp_hidden_act", "hidden_act", "hidden_activation", "activation_function", "hidden_func")
    if cls.gated is not None:
        return cls.gated
    if c.stranger and act and act not in (*_UNGATED, *_GATED):
        raise UserError(
            f"{c.source}: {c.name}: the tensor layout of model_type {c.stranger[:60]!r} is not known here, and its "
            f"hidden_act {act[:40]!r} does not tell whether feed-forwards have a gate matrix; {HELP}"
        )
    return act not in _UNGATED


def order_of(c: Config, count: int) -> list[bool]:
    """Which layers route, by whichever of the many spellings the file has; a list beats a rule."""
    listed = _order_listed(c, count)
    if listed is not None:
        c.touch_all(
            r"first_(last_)?k_dense|dense_mlp_idx|num_dense_layers|decoder_sparse_step|mlp_only_layers|moe_layer(_freq|_interval)"
            r"|interleave_moe_layer_step|moe_layer_(start|end)_index|moe_layer_num_skipped|expert_layer_|n_dense_layers"
        )
        return listed
    rules: list[list[bool]] = []
    every = range(count)
    first = c.whole_or(
        0,
        "first_k_dense_replace",
        "first_last_k_dense_replace",
        "num_dense_layers",
        "n_dense_layers",
        "moe.first_k_dense_replace",
        "moe_layer_num_skipped",
        "dense_mlp_idx",
    )
    rules.append([i >= first for i in every])
    freq = max(1, c.whole_or(1, "moe_layer_freq", "moe_layer_frequency", "moe_every_n_layer", "moe.route_every_n"))
    rules.append([i % freq == 0 for i in every])
    step = c.whole_or(1, "decoder_sparse_step", "interleave_moe_layer_step")
    if step < 1:
        key = "decoder_sparse_step" if c.has("decoder_sparse_step") else "interleave_moe_layer_step"
        if key == "decoder_sparse_step":
            raise UserError(f"{c.source}: {c.name}: {key} is {step}, it must be 1 or more")
        step = 1
    never = set(c.indices("mlp_only_layers") or ())
    rules.append([(i + 1) % step == 0 and i not in never for i in every])
    if c.has("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"):
        start = c.whole_or(0, "moe_layer_start_index")
        end = c.whole_or(count - 1, "moe_layer_end_index") if c.get("moe_layer_end_index") != -1 else count - 1
        interval = max(1, c.whole_or(1, "moe_layer_interval"))
        rules.append([start <= i <= end and (i + 1) % interval == 0 for i in every])
    if c.has("expert_layer_period"):
        period, offset = max(1, c.whole("expert_layer_period")), c.whole_or(0, "expert_layer_offset")
        rules.append([i % period == offset for i in every])
    return [all(found) for found in zip(*rules, strict=True)]


def _order_listed(c: Config, count: int) -> list[bool] | None:
    words = c.listed("mlp_layer_types", count)
    if words is not None:
        known = {"dense": False, "sparse": True, "moe": True, "hash_moe": True, "mlp": False}
        if any(str(word) not in known for word in words):
            raise c.wrong("mlp_layer_types", "'dense' or 'sparse' in each layer")
        return [known[str(word)] for word in words]
    for key in ("moe_layer_freq", "is_moe_layer", "moe_layer_pattern"):
        if isinstance(c.values.get(key), list):
            return [bool(flag) for flag in c.listed(key, count) or ()]
    for key in ("moe_layers_enum", "moe_layers", "moe_layer_indices"):
        value = c.get(key)
        if isinstance(value, str):
            value = [int(part) for part in value.split(",") if part.strip().isdecimal()]
        if isinstance(value, list | tuple) and value:
            return [i in value for i in range(count)]
    return None


def _dense(c: Config, cls: ModelClass, count: int, gated: bool, *, routed: bool) -> list[DenseFfn]:
    bias = c.flag_or(cls.mlp_bias, "mlp_bias", "use_mlp_bias") or c.flag_or(False, "use_bias")
    if not routed and cls.family == "granitehybrid" and c.has("shared_intermediate_size"):
        # Without experts the "shared" feed-forward is the only one.
        widths = c.per_layer(count, "shared_intermediate_size")
    else:
        widths = c.per_layer(count, *DENSE_WIDTH, *WIDTH)
    if c.flag_or("block_auto_adjust_ff_dim" in cls.defaults, "block_auto_adjust_ff_dim"):
        wide = c.whole_or(widths[0], "block_ff_dim")
        factor = c.number_or(1.0, "block_ffn_dim_multiplier")
        step = max(1, c.whole_or(256, "block_multiple_of"))
        widths = [-(-int(factor * int(2 * wide / 3)) // step) * step] * count
    else:
        c.touch_all("block_(ff|multiple|ffn)")
    doubled = c.whole_or(0, "num_kv_shared_layers") if c.flag_or(False, "use_double_wide_mlp") else 0
    return [
        DenseFfn(width=w * (2 if i >= count - doubled else 1), bias=bias, gated=gated) for i, w in enumerate(widths)
    ]


def _experts(c: Config, cls: ModelClass, count: int, gated: bool) -> list[MoeFfn]:
    n_experts = c.whole(*EXPERTS)
    used = c.per_layer(count, *TOP_K)
    if max(used) > n_experts:
        raise UserError(
            f"{c.source}: {c.name}: {max(used)} experts a token out of {n_experts}; it cannot use more than it has"
        )
    keys: tuple[str, ...] = (cls.expert_key,) if cls.expert_key else EXPERT_WIDTH
    if cls.expert_key:
        c.touch(*EXPERT_WIDTH)
    elif not c.has(*EXPERT_WIDTH) and cls.family in ("custom", "llama"):
        # With no width of their own, experts are as wide as the file's one width.
        keys = WIDTH
    widths = c.per_layer(count, *keys)
    shared, n_shared = _shared(c, cls, widths)
    gating = _gating(c, cls)
    groups = c.whole_or(1, "n_group", "num_expert_group", "num_expert_groups", "moe.num_expert_groups")
    first = MoeFfn(
        n_experts=n_experts,
        n_experts_per_token=used[0],
        expert_width=widths[0],
        n_shared_experts=n_shared,
        shared_gate=bool(shared[0]) and cls.shared_gate,
        dense_width=_beside(c, cls),
        router_bias=c.flag_or(cls.router_bias, "router_bias", "moe_router_bias"),
        selection_bias=_selection_bias(c, cls, gating),
        expert_bias=cls.expert_bias or c.flag_or(False, "expert_bias"),
        gating=gating,
        normalise_weights=c.flag_or(cls.normalise, "norm_topk_prob", "moe_renormalize", "route_norm"),
        weights_scale=c.number_or(
            1.0,
            "routed_scaling_factor",
            "route_scale",
            "router_scaling_factor",
            "moe_routed_scaling_factor",
            "moe_router_scaling_factor",
            "moe.routed_scale",
        ),
        n_groups=max(1, groups),
        n_groups_used=max(1, c.whole_or(1, "topk_group", "num_limited_groups", "moe.num_expert_groups_per_tok")),
        gated=gated,
        latent_width=c.whole_or(0, "moe_latent_size", "routed_expert_hidden_size", *filter(None, (cls.latent_key,))),
        latent_norm=c.flag_or(False, "latent_moe_use_norm"),
        zero_experts=c.whole_or(0, "zero_expert_num"),
    )
    # DeepSeek-V4's first layers choose experts by a table of tokens, with nothing to bias.
    hashed = c.whole_or(0, "num_hash_layers")
    words = c.list_of("mlp_layer_types") or ()
    by_table = {i for i in range(count) if i < hashed or (i < len(words) and words[i] == "hash_moe")}
    return [
        replace(
            first,
            n_experts_per_token=used[i],
            expert_width=widths[i],
            shared_width=shared[i],
            selection_bias=first.selection_bias and i not in by_table,
        )
        for i in range(count)
    ]


def _shared(c: Config, cls: ModelClass, widths: Sequence[int]) -> tuple[list[int], int]:
    """Width of the shared experts together in each layer, and how many they are."""
    count = len(widths)
    wide = c.first(SHARED_WIDTH)
    numbers = c.per_layer(count, *SHARED_EXPERTS, default=0) if c.has(*SHARED_EXPERTS) else [cls.shared_experts] * count
    if wide is not None:
        given = c.whole_or(0, wide)
        n = numbers[0] or (1 if given else 0)
        each = n if wide == "shared_experts_intermediate_size" else 1
        return [given * each] * count, n if given else 0
    return [n * w for n, w in zip(numbers, widths, strict=True)], numbers[0]


def _beside(c: Config, cls: ModelClass) -> int:
    """Width of a dense feed-forward in the layers that route."""
    if cls.dense_beside:
        return c.whole(*WIDTH)
    return 0


def _gating(c: Config, cls: ModelClass) -> Gating:
    words = {
        "softmax": Gating.SOFTMAX,
        "sigmoid": Gating.SIGMOID,
        "sqrtsoftplus": Gating.SQRT_SOFTPLUS,
        "sqrt_softplus": Gating.SQRT_SOFTPLUS,
    }
    keys = ("scoring_func", "score_func", "score_function", "moe_router_activation_func", "expert_selection_fn")
    word = c.text_or("", *keys)
    found = words.get(word, cls.gating)
    if found is Gating.SOFTMAX and cls.gating is Gating.SOFTMAX_AFTER_TOP_K:
        return cls.gating
    return found


def _selection_bias(c: Config, cls: ModelClass, gating: Gating) -> bool:
    """A bias used to choose experts, not to weight them; routers by softmax have none unless they say so."""
    default = cls.selection_bias
    if c.has("topk_method"):
        default = c.text_or("", "topk_method") == "noaux_tc"
    elif cls.selection_bias and gating is Gating.SOFTMAX and cls.gating is Gating.SIGMOID:
        default = False
    return c.flag_or(
        default,
        "use_expert_bias",
        "use_routing_bias",
        "moe_router_enable_expert_bias",
        "use_moe_router_bias",
        "moe_use_aux_free",
        "use_router_bias",
    )
