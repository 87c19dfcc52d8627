"""From keys to the mixers of each layer, once its kind is known: attention, delta nets, state-space models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from breakeven.model.architecture import (
    KimiDelta,
    Lightning,
    LinearAttention,
    Mamba1,
    Mamba2,
    Mixer,
    ShortConv,
)
from breakeven.model.layouts.attention import attention_of, compressed_of, head_dim_of
from breakeven.model.layouts.config import HEAD_DIM, HEADS, HIDDEN, Config
from breakeven.model.layouts.model_class import ModelClass


def mixers_of(c: Config, cls: ModelClass, kinds: Sequence[str]) -> list[tuple[Mixer, ...]]:
    """The mixers of each layer by its kind; `mixers_of(...)[i]` is empty for a feed-forward alone."""
    count = len(kinds)
    compressed = compressed_of(c, count) if c.has("o_lora_rank") else None
    if compressed is not None:
        return [(mixer,) for mixer in compressed]
    attends = attention_of(c, cls, kinds)
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
        return Lightning(
            heads=heads,
            kv_heads=c.whole_or(heads, "num_kv_heads_for_linear_attn"),
            head_dim=head_dim_of(c, cls, heads),
            qk_norm=cls.linear_qk_norm,
        )
    raise c.missing("linear_num_value_heads", "linear_num_heads", "mamba_num_heads")


def _mamba(c: Config, cls: ModelClass) -> Mixer:
    """Mamba-2 where it has heads, else Mamba-1; the width is heads times their size, whatever `expand` says."""
    hidden = c.whole(*HIDDEN)
    state = c.whole("mamba_d_state", "ssm_state_size", "state_size", "mamba_state_size")
    kernel = c.whole_or(4, "mamba_d_conv", "conv_kernel", "mamba_conv_kernel")
    conv_bias = c.flag_or(True, "mamba_conv_bias", "use_conv_bias")
    bias = c.flag_or(False, "mamba_proj_bias", "projectors_bias", "use_bias")
    expand = c.number_or(2.0, "mamba_expand", "expand")
    heads = c.whole_or(0, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    c.touch("mamba_expand", "expand", "time_step_rank")
    # Of a model without feed-forwards the one width that is said is the mixer's.
    widths = ("mamba_d_ssm", "mamba_intermediate_size", *(("intermediate_size",) if cls.no_ffn else ()))
    inner = c.whole_or(round(expand * hidden), *widths)
    if not heads and not c.has("mamba_d_head", "mamba_head_dim", "mamba_headdim"):
        return Mamba1(
            inner=inner,
            state=state,
            dt_rank=c.whole_or(-(-hidden // 16), "mamba_dt_rank", "time_step_rank"),
            conv_kernel=kernel,
            conv_bias=conv_bias,
            bias=bias,
            dt_norms=cls.dt_norms,
        )
    head_dim = c.whole_or(0, "mamba_d_head", "mamba_head_dim", "mamba_headdim")
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
