"""One worker: an edge, a desk, a log. It serves until it is told to end, and then ends what it has begun."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from breakeven.gateway.keys.store import follow
from breakeven.gateway.seen.log import DecisionLog
from breakeven.gateway.serve.desk import Desk, Front
from breakeven.gateway.serve.loading import Loaded
from breakeven.gateway.shared.block import Block
from breakeven.gateway.shared.layout import Rows
from breakeven.wire.server.server import EdgeServer

TELL_S = 0.5
WHOLE_COLLECTION = 60
"""Turns of `TELL_S` between two looks at everything that could be a circle."""
PID, DROPPED, CONNECTIONS, UNDER_WAY = range(4)
"""Columns of the block's `worker` grid."""


def run_worker(
    loaded: Loaded, rows: Rows, block: Block, worker: int, listening: socket.socket, ready: Callable[[], None]
) -> int:
    """Serve on `listening` until SIGTERM; returns the exit status. `ready` is called once it accepts."""
    import uvloop

    # What the supervisor loaded lives as long as we do: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    # Requests leave no circles behind; what else does is collected between them, in `_serve`.
    gc.disable()
    return uvloop.run(_serve(loaded, rows, block, worker, listening, ready))


async def _serve(
    loaded: Loaded, rows: Rows, block: Block, worker: int, listening: socket.socket, ready: Callable[[], None]
) -> int:
    plan = loaded.plan
    log = None if plan.log.directory is None else DecisionLog(plan.log.directory, worker, plan.log)
    desk = Desk(plan, loaded.speeds, rows, block, worker, loaded.keys, log)
    edge = EdgeServer(Front(desk).handle, plan.limits)
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    supervisor = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    turn = 0
    seen = (0, 0, 0)
    if plan.keys is not None and desk.keys is not None:
        # The keys are as old as the plan: some may have been revoked before this worker took another's place.
        seen = follow(desk.keys, plan.keys, seen)
    await edge.start([listening])
    block.worker.put(worker, 0, PID, os.getpid())
    ready()
    while not ending.is_set():
        _tell(desk, edge, block, worker)
        if plan.keys is not None and desk.keys is not None:
            seen = follow(desk.keys, plan.keys, seen)
        turn += 1
        gc.collect(2 if turn % WHOLE_COLLECTION == 0 else 0)
        if os.getppid() != supervisor:
            sys.stderr.write("breakeven: the supervisor is gone; this worker ends\n")
            break
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), TELL_S)
    desk.draining = True
    desk.arms.cancel()
    cut = await edge.drain(plan.limits.drain_s)
    for lane in desk.lanes:
        if lane.upstream is not None:
            await lane.upstream.close()
    if log is not None:
        log.close()
    _tell(desk, edge, block, worker)
    return 1 if cut else 0


def _tell(desk: Desk, edge: EdgeServer, block: Block, worker: int) -> None:
    """Numbers for the watching process that need not be exact to the moment."""
    if desk.log is not None:
        block.worker.put(worker, 0, DROPPED, desk.log.dropped)
    block.worker.put(worker, 0, CONNECTIONS, edge.connections)
    block.worker.put(worker, 0, UNDER_WAY, edge.under_way)
