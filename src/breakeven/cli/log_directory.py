"""Where a gateway's decision log is, for the verbs that read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.errors import UserError

if TYPE_CHECKING:
    from breakeven.gateway.plan.model import GatewayPlan


def log_directory(log: Path | None, gateway: Path | None) -> tuple[Path, GatewayPlan | None]:
    """The directory given, else the one that the gateway's file names; with that file's plan, where one is given.

    Raises UserError where there is none.
    """
    plan = None
    if gateway is not None:
        from breakeven.gateway.plan.load import read_gateway

        plan = read_gateway(gateway)
        log = log or plan.log.directory
        if log is None:
            raise UserError(f"{gateway}: it keeps no decision log; set `log.directory`, or give --log DIR")
    if log is None:
        raise UserError("give --log DIR, the directory of the decision log, or --gateway FILE, the gateway's file")
    if not log.is_dir():
        raise UserError(f"{log}: no such directory; `log.directory` in the gateway's file says where its log is")
    return log, plan
