"""Rotary position embedding on both sides of the bridge: what a configuration says, what a GGUF says, one meaning.

transformers 5 keeps everything in `rope_parameters`; engines that read directories (mlx-lm, older ones) look for
`rope_theta` and `rope_scaling` outside of it and take their own default where they find none. A directory written
here says both, and one that says two different things is refused.

Sources: transformers' `modeling_rope_utils.py`; llama.cpp's `llama-context.cpp` and `ggml-cpu/ops.cpp` (`rope_yarn`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from breakeven.errors import NotSupportedError, UserError
from breakeven.model.readers.bounded import shown

_YARN = "factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim truncate"
_LLAMA3 = "factor low_freq_factor high_freq_factor original_max_position_embeddings"
_KEYS = {"default": "", "linear": "factor", "yarn": _YARN, "llama3": _LLAMA3}
"""What each kind of scaling is told by."""
_ALWAYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_BETA_FAST, _BETA_SLOW = 32.0, 1.0
"""llama.cpp computes with these whatever a file says: it has keys for them and reads neither."""
_LOW, _HIGH = 1.0, 4.0
"""Turns over the original context below and above which Llama 3.1 stretches a frequency fully and not at all."""
_SAME = 1e-5


@dataclass(frozen=True, slots=True)
class Rotary:
    """`kind` as transformers names it; `attention`: what cosines and sines are multiplied by."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    original: int = 0
    attention: float = 1.0
    low: float = _LOW
    high: float = _HIGH

    def written(self) -> dict[str, object]:
        """The keys of a configuration, under the old spelling and under the new one."""
        inner: dict[str, object] = {"rope_type": self.kind}
        if self.kind != "default":
            inner["factor"] = self.factor
        if self.kind in ("yarn", "llama3"):
            inner["original_max_position_embeddings"] = self.original
        if self.kind == "yarn" and not math.isclose(self.attention, _usual(self.factor), rel_tol=1e-6):
            inner["attention_factor"] = self.attention
        if self.kind == "llama3":
            inner |= {"low_freq_factor": self.low, "high_freq_factor": self.high}
        old = None if self.kind == "default" else dict(inner)
        return {"rope_theta": self.theta, "rope_scaling": old, "rope_parameters": {**inner, "rope_theta": self.theta}}

    def gguf_keys(self) -> dict[str, int | float | str]:
        """The keys of a GGUF, without its architecture's prefix."""
        keys: dict[str, int | float | str] = {"rope.freq_base": self.theta}
        if self.kind in ("linear", "yarn"):
            keys |= {"rope.scaling.type": self.kind, "rope.scaling.factor": self.factor}
        if self.kind == "yarn":
            keys["rope.scaling.original_context_length"] = self.original
            # llama.cpp multiplies by the usual factor itself.
            rest = self.attention / _usual(self.factor)
            if not math.isclose(rest, 1.0, rel_tol=1e-6):
                keys["rope.scaling.attn_factor"] = rest
        return keys

    def factors(self, pairs: int) -> NDArray[np.float32] | None:
        """What the frequency of each of `pairs` is divided by; None where by nothing."""
        return _stretch(self, pairs) if self.kind == "llama3" else None


def _usual(factor: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * math.log(factor) + 1.0


def _stretch(rotary: Rotary, pairs: int) -> NDArray[np.float32]:
    wavelengths = 2 * math.pi * rotary.theta ** (np.arange(pairs) / pairs)
    smooth = np.clip((rotary.original / wavelengths - rotary.low) / (rotary.high - rotary.low), 0.0, 1.0)
    stretched: NDArray[np.float32] = (1.0 / (smooth + (1.0 - smooth) / rotary.factor)).astype(np.float32)
    return stretched


def rotary_of_config(config: Mapping[str, object], default_theta: object, *, stretched: bool) -> Rotary:
    """Of a configuration. Raises NotSupportedError for a scaling that llama.cpp has not in the family.

    `stretched`: whether it has Llama 3.1's. Raises UserError for two statements that differ.
    """
    stated: list[Mapping[str, object]] = []
    for each in (config.get("rope_parameters") or {}, config.get("rope_scaling") or {}):
        if not isinstance(each, Mapping) or any(isinstance(value, Mapping) for value in each.values()):
            raise NotSupportedError("rope_parameters differ by layer, which llama.cpp has not in this family")
        if each:
            stated.append(each)
    told = [_told(config, each, default_theta, stretched=stretched) for each in stated or [{}]]
    if told[0] != told[-1]:
        raise UserError(
            "config.json: rope_scaling and rope_parameters say different things; engines read one or the other, so "
            "make them equal"
        )
    return told[0]


def _told(
    config: Mapping[str, object], inner: Mapping[str, object], default_theta: object, *, stretched: bool
) -> Rotary:
    """What one of the two keys says, with what stands outside of both."""
    kind = str(inner.get("rope_type") or inner.get("type") or "default")
    if kind not in _KEYS or (kind == "llama3" and not stretched):
        raise NotSupportedError(f"rotary scaling {shown(kind)}: llama.cpp does not compute it in this family")
    unknown = [
        str(key) for key, value in inner.items() if key not in {*_KEYS[kind].split(), *_ALWAYS} and value is not None
    ]
    if unknown:
        raise NotSupportedError(f"rotary scaling {kind}: key {shown(unknown[0])} is not known here")
    outside, inside = config.get("rope_theta"), inner.get("rope_theta")
    said = [each for each in (inside, outside) if each is not None]
    theta = _number("rope_theta", said[0] if said else default_theta)
    if len(said) == 2 and theta != _number("rope_theta", outside):
        raise UserError(
            f"config.json: rope_theta is {outside} and within rope_parameters {inside}; engines read one or the other, "
            "so make them equal"
        )
    for part in (inner.get("partial_rotary_factor"), config.get("partial_rotary_factor")):
        if part not in (None, 1, 1.0):
            raise NotSupportedError(f"partial_rotary_factor {shown(part)}: llama.cpp turns whole heads in this family")
    context = _number("max_position_embeddings", config.get("max_position_embeddings"))
    original = _number("original_max_position_embeddings", inner.get("original_max_position_embeddings") or context)
    if kind == "default":
        return Rotary(theta)
    if inner.get("factor") is None and kind == "yarn":
        factor = context / original
    else:
        factor = _number("the factor of rope_parameters", inner.get("factor"))
    if kind == "linear":
        return Rotary(theta, kind, factor)
    if kind == "llama3":
        low, high = (_number(f"{key}_freq_factor", inner.get(f"{key}_freq_factor")) for key in ("low", "high"))
        return Rotary(theta, kind, factor, int(original), 1.0, low, high)
    usual = {"beta_fast": _BETA_FAST, "beta_slow": _BETA_SLOW, "truncate": True}
    for key, value in usual.items():
        if inner.get(key) not in (None, value):
            raise NotSupportedError(f"yarn with {key} {shown(inner.get(key))}: llama.cpp computes with {value} always")
    return Rotary(theta, kind, factor, int(original), _attention(inner, factor))


def _attention(inner: Mapping[str, object], factor: float) -> float:
    if inner.get("attention_factor") is not None:
        return _number("attention_factor", inner["attention_factor"])
    over, under = inner.get("mscale"), inner.get("mscale_all_dim")
    if not over or not under or factor <= 1.0:
        return _usual(factor)
    over, under = _number("mscale", over), _number("mscale_all_dim", under)
    return (0.1 * over * math.log(factor) + 1.0) / (0.1 * under * math.log(factor) + 1.0)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
        raise UserError(f"config.json: {name} is {shown(value)}, a positive number is needed; fetch it again")
    return float(value)


def rotary_of_gguf(keys: Mapping[str, object], context: int, factors: NDArray[np.float32] | None) -> Rotary:
    """Of a GGUF's keys without the architecture's prefix, and its `rope_freqs`, if any.

    Raises NotSupportedError for a scaling that no configuration of the family expresses.
    """
    theta = as_typed(_number("rope.freq_base", keys.get("rope.freq_base", 10000.0)))
    kind = str(keys.get("rope.scaling.type", "linear"))
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0))
    factor = as_typed(float(factor)) if isinstance(factor, int | float) and factor else 1.0
    if kind not in ("none", "linear", "yarn"):
        raise NotSupportedError(f"rope.scaling.type {shown(kind)} is not carried to a directory")
    usual = {
        "rope.scaling.yarn_beta_fast": (_BETA_FAST,),
        "rope.scaling.yarn_beta_slow": (_BETA_SLOW,),
        "rope.scaling.yarn_ext_factor": (1.0, -1.0),
        "rope.scaling.yarn_log_multiplier": (0.0,),
        "rope.scaling.yarn_attn_factor": (1.0, _usual(factor)),
        "rope.scaling.alpha": (0.0,),
    }
    for key, values in usual.items():
        said = keys.get(key, values[0])
        if not isinstance(said, int | float) or not any(math.isclose(said, v, rel_tol=1e-5) for v in values):
            raise NotSupportedError(f"{key} {shown(said)}: llama.cpp does not read it, others do; it is not carried")
    rest = keys.get("rope.scaling.attn_factor", 1.0)
    attention = float(rest) if isinstance(rest, int | float) else 1.0
    scaled = kind == "yarn" or (kind == "linear" and factor != 1.0)
    if factors is not None and not np.allclose(factors, 1.0, rtol=_SAME):
        if scaled:
            raise NotSupportedError("rope_freqs and rope.scaling at once are not carried to a directory")
        return _stretched(theta, context, factors)
    if kind == "yarn":
        original = keys.get("rope.scaling.original_context_length", context)
        assert isinstance(original, int)
        return Rotary(theta, "yarn", factor, original, as_typed(attention * _usual(factor)))
    if not math.isclose(attention, 1.0, rel_tol=1e-6):
        raise NotSupportedError(f"rope.scaling.attn_factor {attention} without yarn is not carried to a directory")
    return Rotary(theta, "linear", factor) if scaled else Rotary(theta)


def as_typed(value: float) -> float:
    """A number that a file holds in 32 bits, as it was before."""
    return float(f"{value:.7g}")


def _stretched(theta: float, context: int, factors: NDArray[np.float32]) -> Rotary:
    """The Llama 3.1 scaling that divides by these factors."""
    for original in (8192, *(1 << n for n in range(5, 21))):
        rotary = Rotary(theta, "llama3", as_typed(float(factors.max())), original)
        if original < context and np.allclose(_stretch(rotary, len(factors)), factors, rtol=_SAME):
            return rotary
    raise NotSupportedError("its rope_freqs are not Llama 3.1's for any known original context: not carried")
