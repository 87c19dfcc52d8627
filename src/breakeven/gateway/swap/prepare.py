"""What the supervisor does for local engines before workers start. Apart from the rest, which needs the engines."""

from __future__ import annotations

from collections.abc import Mapping

from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Known, State


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
