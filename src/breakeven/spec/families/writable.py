"""What llama.cpp can express: one layout a family, where a spec can say anything of any layer."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace

from breakeven.spec.families.base import Family, FfnOrder
from breakeven.spec.model import DenseFfn, Gqa, LinearAttention, Mla, ModelSpec, MoeFfn, ShortConv

_NAMES: dict[type, str] = {
    Gqa: "softmax attention",
    Mla: "latent attention",
    LinearAttention: "linear attention",
    ShortConv: "short convolutions",
}


def why_not_written(spec: ModelSpec, family: Family) -> str | None:
    """Why a file of this spec would not load in llama.cpp, None when nothing known stands against it."""
    if family.gguf_architecture is None:
        return f"files of family {family.name} cannot be written yet"
    return _attention(spec, family) or _feed_forward(spec, family)


def _attention(spec: ModelSpec, family: Family) -> str | None:
    found = [layer.attention for layer in spec.layers]
    for a in found:
        if not isinstance(a, family.attention):
            allowed = " and ".join(_NAMES[kind] for kind in family.attention)
            return f"llama.cpp's {family.gguf_architecture} has {allowed}, not {_NAMES[type(a)]}"
    softmax = [a for a in found if isinstance(a, Gqa)]
    windows = {a.window for a in softmax if a.window is not None}
    if windows and family.window_period is None:
        return f"llama.cpp's {family.gguf_architecture} has no sliding layers"
    if len(windows) > 1:
        return f"llama.cpp's {family.gguf_architecture} has one window, not {sorted(windows)}"
    if not _alike(replace(a, window=None) for a in softmax) or not _alike(a for a in found if not isinstance(a, Gqa)):
        return f"llama.cpp's {family.gguf_architecture} has the same heads in every layer"
    return None


def _feed_forward(spec: ModelSpec, family: Family) -> str | None:
    routed = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoeFfn)]
    dense = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, DenseFfn)]
    if not _alike(routed) or not _alike(dense):
        return f"llama.cpp's {family.gguf_architecture} has one width for dense layers and one kind of experts"
    order = [isinstance(layer.ffn, MoeFfn) for layer in spec.layers]
    if family.ffn_order not in _orders(order):
        return f"llama.cpp's {family.gguf_architecture} has {family.ffn_order.value}"
    return None


def _orders(routes: list[bool]) -> set[FfnOrder]:
    """The orders that layers with (True) and without experts stand in."""
    n_dense = routes.count(False)
    found = set()
    if n_dense == len(routes):
        found.add(FfnOrder.DENSE)
    if n_dense == 0:
        found |= {FfnOrder.ROUTED, FfnOrder.EVERY_STEP}
    if n_dense in (0, len(routes)):
        found.add(FfnOrder.ALIKE)
    if n_dense < len(routes):
        if all(routes[n_dense:]):
            found.add(FfnOrder.LEADING_DENSE)
        step = routes.index(True) + 1
        if all(route == ((i + 1) % step == 0) for i, route in enumerate(routes)):
            found.add(FfnOrder.EVERY_STEP)
    return found


def _alike(parts: Iterable[Hashable]) -> bool:
    return len(set(parts)) <= 1
