"""What local engines need, what they are asked for, what can be done with them, and how they stand before any starts.

Apart from the rest, which needs the engines: the supervisor and the scheduler do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from breakeven.errors import UserError
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Known, State


@dataclass(frozen=True, slots=True)
class EngineNeed:
    """What one engine takes: bytes of memory, seconds to load (a guess until measured). `pinned`: never unloaded."""

    name: str
    bytes: int
    load_s: float
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What one engine is asked for. `waiting`: requests that need it loaded. `service_s`: mean seconds a request."""

    waiting: int = 0
    oldest_wait_s: float = 0.0
    in_flight: int = 0
    service_s: float = 5.0

    @property
    def asked(self) -> bool:
        """Anybody wants it now."""
        return self.waiting > 0 or self.in_flight > 0


@dataclass(frozen=True, slots=True)
class StartEngine:
    """Start this engine; its memory is free."""

    name: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Send it no new requests; those it has may end."""

    name: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Send it requests again: nobody waits for its memory any more."""

    name: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Stop it; it has no requests."""

    name: str


Effect = StartEngine | Drain | Resume | Unload


def check_budget(engines: Sequence[EngineNeed], budget_bytes: int) -> None:
    """Raise UserError, with the numbers, unless what is pinned fits and every other engine fits beside it."""
    pinned = [need for need in engines if need.pinned]
    held = sum(need.bytes for need in pinned)
    room = f"local engines may use {budget_bytes / 1e9:.1f} GB together"
    if held > budget_bytes:
        names = ", ".join(f"{need.name} {need.bytes / 1e9:.1f} GB" for need in pinned)
        raise UserError(f"pinned engines need {held / 1e9:.1f} GB ({names}) and {room}; pin fewer, or smaller formats")
    for need in engines:
        if not need.pinned and need.bytes > budget_bytes - held:
            beside = f" beside the pinned {held / 1e9:.1f} GB" if held else ""
            raise UserError(
                f"{need.name} needs {need.bytes / 1e9:.1f} GB{beside} and {room}; "
                "give it a smaller format or context, fewer slots, or raise memory"
            )


def prepare(plan: GatewayPlan, block: SharedBlock, rows: Mapping[str, int]) -> None:
    """Nobody has been asked yet, and no local engine that is not there yet may look ready. `rows`: by backend."""
    for backend in plan.backends:
        row = rows[backend.name]
        if not block.known.get(0, row, Known.POLLED_S):
            block.known.put(0, row, Known.UP, -1.0)
        if backend.local is None:
            for column in (Known.STATE, Known.PROGRESS, Known.LOAD_S, Known.PORT):
                block.known.put(0, row, column, 0.0)
        elif not block.known.get(0, row, Known.PORT):
            block.known.put(0, row, Known.STATE, State.UNLOADED)
