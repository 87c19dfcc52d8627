"""What was seen of the experts of running backends: the shape of `/admin/experts` and `breakeven experts watch --json`.

Fields are only added. docs/json-gateway.md explains each.
"""

from __future__ import annotations

from typing import Literal

import msgspec

EXPERTS_SCHEMA = "breakeven.experts/1"
Source = Literal["observed", "returned", "counted"]
"""observed: requests read again by a second look at the same weights; returned: the engine said so with its answers;
counted: the engine's own counters."""


class LayerSeen(msgspec.Struct, kw_only=True):
    """One layer that routes. `shares`: of its choices, by expert; they sum to 1. `frequencies`: of its tokens."""

    layer: int
    """As the model numbers it, dense layers counted too; where the engine counts, as that does."""
    shares: list[float]
    frequencies: list[float]
    """Share of tokens that use each expert: `shares` times the experts a token."""
    imbalance: float
    """The busiest expert's share over the mean: 1 is even."""
    entropy: float
    """Entropy of the shares over that of an even spread: 1 is even."""
    dead: list[int]
    """Experts that nothing reached where an even spread would have sent `DEAD_FROM` choices, in enough requests."""
    hot: list[int]
    """Experts above twice the mean by more than chance."""
    drift: float | None = None
    """Share of choices that would have to go elsewhere to make the last day the week before; None: no such two."""
    drift_by_chance: float | None = None
    """What that would be for traffic that had not changed."""


class GroupSeen(msgspec.Struct, kw_only=True):
    """The requests of one key, or of one language that clients told."""

    name: str
    requests: int
    tokens: int
    apart: float | None
    """Share of choices by which it differs from all others, mean over layers; None: nobody else, or too few tokens."""
    apart_by_chance: float | None


class BackendExperts(msgspec.Struct, kw_only=True):
    """What was seen of one backend."""

    backend: str
    model: str | None
    source: Source
    observe: float | None
    """Share of requests that is to be looked at; None: the engine counts."""
    n_experts: int
    n_experts_per_token: int | None
    requests: int | None
    """Looked at; None: the engine counts tokens only."""
    tokens: int
    since_s: float
    """Unix time of the first and the last of them."""
    until_s: float
    skipped: dict[str, int]
    """Requests that were to be looked at and were not, by reason."""
    cpu_s: float | None
    """CPU time that looking took, and the engine's own in the same time; None: not available."""
    engine_cpu_s: float | None
    layers: list[LayerSeen]
    keys: list[GroupSeen]
    languages: list[GroupSeen]
    imbalance: float
    """Of the worst layer."""
    worst_layer: int
    entropy: float
    """Mean over layers."""
    dead: int
    hot: int
    drift: float | None
    """Mean over layers, as is what chance would make of it."""
    drift_by_chance: float | None
    alarms: list[str]
    caveats: list[str]
    watched: dict[str, bool] = {}
    """Of what a bound is set for (`imbalance`, `drift`): whether it is passed; the alarms say so in words."""

    @property
    def cpu_share(self) -> float | None:
        """CPU time that looking took over the engine's own; None: not available."""
        return self.cpu_s / self.engine_cpu_s if self.cpu_s is not None and self.engine_cpu_s else None


class ExpertsSeen(msgspec.Struct, kw_only=True):
    """All backends whose experts are seen, at one moment."""

    schema: str = EXPERTS_SCHEMA
    version: str
    time_s: float
    backends: list[BackendExperts]
    asked: list[str] = []
    """Backends whose experts are to be seen, also those of which nothing has been seen yet."""
