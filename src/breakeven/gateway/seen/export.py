"""From the decision log to OpenTelemetry: every record once, from the moment on in which this begins."""

from __future__ import annotations

from pathlib import Path

from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.seen.otel import Telemetry
from breakeven.gateway.seen.read_log import Follower


class Export:
    """Raises UserError without the extra `otel`."""

    def __init__(self, plan: GatewayPlan, directory: Path) -> None:
        self._telemetry = Telemetry(plan)
        self._follower = Follower(directory)
        self._follower.skip()

    def step(self) -> None:
        """Send on what is new."""
        for record in self._follower.new():
            self._telemetry.add(record)

    def close(self) -> None:
        """The rest, and what is still on its way."""
        self.step()
        self._telemetry.close()
