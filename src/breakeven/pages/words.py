"""Numbers and names as people read them; every report speaks through here, so that all say the same thing.

Intervals are written "low-high" in plain text. What is not known reads "not available", never 0 or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol, TypeVar

from breakeven.results.comparison import Comparison, ModelResult, NoiseRecord, Pair
from breakeven.stats.estimate import Estimate

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

NOT_AVAILABLE = "not available"
# Ratios live near 1, where two places would show an interval that misses 1 as one that touches it.
RATIO_PLACES = 3
NO_DIFFERENCE = "no difference"
SYNTHETIC_CAVEAT = "synthetic weights: speed and memory only"


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """`items` under their keys, in the order in which each key first appears."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def number(value: float, decimals: int | None = None) -> str:
    """`value` to three significant digits, or to `decimals` places; thousands separated from 10 000 on."""
    if not math.isfinite(value):
        return NOT_AVAILABLE
    places = decimals_of(value) if decimals is None else decimals
    grouping = "," if abs(value) >= 10_000 else ""
    return f"{value:{grouping}.{places}f}"


def decimals_of(value: float, half_width: float | None = None) -> int:
    """Places that show three significant digits; one more where an interval is under 0.5 % of the value either side."""
    if value == 0 or not math.isfinite(value):
        return 0
    digits = 4 if half_width is not None and half_width < 0.005 * abs(value) else 3
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 9.999 is 10.0, not 10.00
    return min(6, max(0, digits - 1 - exponent))


def interval(estimate: Estimate, scale: float = 1.0, places: int | None = None) -> str | None:
    """The interval alone, as "33.2-33.6", with as many places as `value` gives; None when there is none."""
    if estimate.low is None or estimate.high is None:
        return None
    places = _places(estimate, scale) if places is None else places
    return f"{number(estimate.low * scale, places)}-{number(estimate.high * scale, places)}"


def value(estimate: Estimate, scale: float = 1.0, places: int | None = None) -> str:
    """The value alone, with places that suit its interval; says so when it was not measured."""
    shown = number(estimate.value * scale, _places(estimate, scale) if places is None else places)
    return shown if estimate.provenance == "measured" else f"{shown} {estimate.provenance}"


def with_interval(estimate: Estimate | None, scale: float = 1.0, places: int | None = None) -> str:
    """Value and interval in one: "33.4 (33.2-33.6)"; without an interval "33.4 (no interval)"."""
    if estimate is None:
        return NOT_AVAILABLE
    return f"{value(estimate, scale, places)} ({interval(estimate, scale, places) or 'no interval'})"


def _places(estimate: Estimate, scale: float) -> int:
    if estimate.low is None or estimate.high is None:
        return decimals_of(estimate.value * scale)
    half_width = (estimate.high - estimate.low) / 2 * abs(scale)
    return decimals_of(estimate.value * scale, half_width)


_ROUNDS_UP = 0.9995
"""From here on three digits show one of the next larger unit: 999.9 M are 1.00 B, not 1000 M."""


def bytes_text(count: float | None) -> str:
    """Bytes in decimal units, as disks and models are sold: 3.93 GB."""
    if count is None:
        return NOT_AVAILABLE
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size * _ROUNDS_UP:
            return f"{number(count / size)} {unit}"
    return f"{count:.0f} B"


def count_text(count: float | None) -> str:
    """A parameter count: 6.92 B (billions), 135 M."""
    if count is None:
        return NOT_AVAILABLE
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= size * _ROUNDS_UP:
            return f"{number(count / size)} {unit}"
    return f"{count:.0f}"


def seconds_text(seconds: float | None) -> str:
    """A duration: 850 ms, 12.5 s, 3 min 20 s, 1 h 5 min."""
    if seconds is None:
        return NOT_AVAILABLE
    if seconds < 1:
        return f"{number(seconds * 1e3)} ms"
    if seconds < 100:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s".removesuffix(" 0 s")


def percent_text(share: float | None) -> str:
    """A share as a percentage to one place: 0.034 is 3.4 %, 0.02 is 2 %."""
    if share is None:
        return NOT_AVAILABLE
    shown = share * 100
    return f"{shown:.1f}".removesuffix(".0") + " %" if shown == 0 or abs(shown) >= 0.05 else "under 0.1 %"


def streams_text(streams: int) -> str:
    """ "1 stream", "4 streams"."""
    return f"{streams} stream{'' if streams == 1 else 's'}"


class _Routed(Protocol):
    """Anything that may route tokens to experts."""

    @property
    def moe(self) -> bool | None:
        """None: not told."""


class _Compared(Protocol):
    """Anything that may have a winner."""

    @property
    def winner(self) -> str | None:
        """None: no difference found."""


def kind_text(model: _Routed) -> str:
    """MoE, dense, or not available."""
    return NOT_AVAILABLE if model.moe is None else "MoE" if model.moe else "dense"


def describe(model: ModelResult) -> str:
    """The kind, format and nature of the weights of a model, as far as known: "MoE, Q4_0, synthetic weights"."""
    parts = [kind_text(model) if model.moe is not None else "", model.format or ""]
    parts.append("synthetic weights" if model.synthetic else "")
    return ", ".join(part for part in parts if part) or model.source


def winner_text(pair: _Compared) -> str:
    """Who wins a pair, or that no difference was found."""
    return NO_DIFFERENCE if pair.winner is None else pair.winner


def caveats_of(result: Comparison) -> list[str]:
    """The sentences that must stand beside the verdict; the one on synthetic weights is never left out."""
    caveats = list(result.caveats)
    if any(model.synthetic for model in result.models) and not any(
        SYNTHETIC_CAVEAT in caveat.lower() for caveat in caveats
    ):
        caveats.insert(0, SYNTHETIC_CAVEAT)
    names = tuple(model.name for model in result.models)
    return [caveat if caveat.startswith(names) else caveat[:1].upper() + caveat[1:] for caveat in caveats]


def left_out_text(pairs: Sequence[Pair]) -> list[str]:
    """What noise did to the pairs of a comparison, load by load: which were left out, and which count all the same."""
    rows = {pair.streams: pair for pair in reversed(pairs) if pair.left_out or pair.disturbed}
    loads = [rows[streams] for streams in sorted(rows)]
    left = [f"{p.left_out} with {streams_text(p.streams)} ({p.ratio.n} count)" for p in loads if p.left_out]
    kept = [f"{p.disturbed} with {streams_text(p.streams)} ({p.ratio.n} count)" for p in loads if p.disturbed]
    return [
        *([f"Pairs left out because the machine was not quiet: {', '.join(left)}."] if left else []),
        *([f"Pairs that count though it was not, for want of quiet ones: {', '.join(kept)}."] if kept else []),
    ]


def noise_text(noise: NoiseRecord) -> str:
    """One sentence on how quiet the machine was, as far as it tells."""
    parts = [f"{noise.blocks} blocks, {noise.repeated} repeated, {noise.flagged} flagged"]
    if noise.other_cpu_share is not None:
        parts.append(f"other processes used at most {percent_text(noise.other_cpu_share)} of the cores")
    if noise.steal_share is not None:
        parts.append(f"steal {percent_text(noise.steal_share)}")
    if noise.swap_bytes is not None:
        parts.append(f"swapped {bytes_text(noise.swap_bytes)}")
    if noise.clock_mhz_low is not None and noise.clock_mhz_high is not None:
        parts.append(f"clock {noise.clock_mhz_low:.0f}-{noise.clock_mhz_high:.0f} MHz")
    if noise.temperature_c_high is not None:
        parts.append(f"at most {noise.temperature_c_high:.0f} °C")
    return "; ".join(parts)
