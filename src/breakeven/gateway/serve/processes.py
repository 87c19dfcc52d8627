"""A worker: one of the processes that serve. And the heart that every process of the gateway has.

A worker is an edge, a desk and a log. It serves until it is told to end, and then ends what it has begun.

A heart is a timer of the process's own loop that writes the time into the shared block. The supervisor kills, and
replaces, whose heart stands still: whoever was stopped, or goes round in a circle.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence

from breakeven.errors import UserError, complain
from breakeven.gateway.experts.hand import Handing
from breakeven.gateway.keys.store import follow
from breakeven.gateway.seen.log import DecisionLog
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.serve.front import Front
from breakeven.gateway.serve.loading import ServedPlan
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Process, Rows
from breakeven.hardware.system import HANGUP
from breakeven.wire import tls
from breakeven.wire.server import HttpServer

TELL_S = 0.5
BEAT_S = 0.5
WHOLE_COLLECTION = 60
"""Turns of `TELL_S` between two looks at everything that could be a circle."""


def beat(block: SharedBlock, row: int) -> None:
    """Now, and again and again by the loop's own timer: it turns. `row`: the worker's, 0 for the watching process."""
    block.worker.put(row, 0, Process.BEAT_NS, time.monotonic_ns())
    asyncio.get_running_loop().call_later(BEAT_S, beat, block, row)


def run_worker(
    loaded: ServedPlan,
    rows: Rows,
    block: SharedBlock,
    worker: int,
    listening: Sequence[socket.socket],
    ready: Callable[[], None],
    looked_at: socket.socket | None = None,
) -> int:
    """Serve on `listening` until SIGTERM; returns the exit status. `ready` is called once it accepts.

    `looked_at`: where requests go whose experts are looked at; None: nobody's are.
    """
    import uvloop

    # What the supervisor loaded lives as long as we do: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    # Requests leave no circles behind; what else does is collected between them, in `_serve`.
    gc.disable()
    return uvloop.run(_serve(loaded, rows, block, worker, listening, ready, looked_at))


async def _serve(
    loaded: ServedPlan,
    rows: Rows,
    block: SharedBlock,
    worker: int,
    listening: Sequence[socket.socket],
    ready: Callable[[], None],
    looked_at: socket.socket | None,
) -> int:
    plan = loaded.plan
    log = None if plan.log.directory is None else DecisionLog(plan.log.directory, worker, plan.log)
    handing = None if looked_at is None else Handing(looked_at)
    desk = Desk(plan, loaded.speeds, rows, block, worker, loaded.keys, log, handing)
    front = Front(desk)
    edge = HttpServer(front.handle, plan.limits, front.judge, front.shared_with)
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    supervisor = os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.add_signal_handler(HANGUP, _show_anew, desk, edge)
    turn = 0
    seen = (0, 0, 0)
    if plan.keys is not None and desk.keys is not None:
        # The keys are as old as the plan: some may have been revoked before this worker took another's place.
        seen = follow(desk.keys, plan.keys, seen)
    await edge.start(listening, tls.server_tls(plan.tls_files) if plan.tls_files else None)
    block.worker.put(worker, 0, Process.PID, os.getpid())
    beat(block, worker)
    ready()
    while not ending.is_set():
        _tell(desk, edge, block, worker)
        if plan.keys is not None and desk.keys is not None:
            seen = follow(desk.keys, plan.keys, seen)
        turn += 1
        gc.collect(2 if turn % WHOLE_COLLECTION == 0 else 0)
        if os.getppid() != supervisor:
            complain("the supervisor is gone; this worker ends")
            break
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), TELL_S)
    desk.draining = True
    desk.arms.cancel()
    cut = await edge.drain(plan.limits.drain_s)
    for lane in desk.lanes:
        if lane.upstream is not None:
            await lane.upstream.close()
    if log is not None:
        # A disk that hangs must not stop the heart; where there is no room for a thread it has to.
        try:
            await asyncio.to_thread(log.close)
        except RuntimeError:
            log.close()
    _tell(desk, edge, block, worker)
    return 1 if cut else 0


def _show_anew(desk: Desk, edge: HttpServer) -> None:
    """Certificates from their files, which the supervisor found good just now, for connections from now on."""
    plan = desk.plan
    try:
        if plan.tls_files is not None:
            edge.tls = tls.new_server_tls(plan.tls_files)
        for lane in desk.lanes:
            if lane.upstream is not None and lane.plan.tls_files != tls.SYSTEMS:
                lane.upstream.renew(tls.new_client_tls(lane.plan.tls_files))
    except UserError as error:
        complain(f"certificates stay as they were: {error}")


def _tell(desk: Desk, edge: HttpServer, block: SharedBlock, worker: int) -> None:
    """Numbers for the watching process that need not be exact to the moment."""
    if desk.log is not None:
        desk.log.tend()
        block.worker.put(worker, 0, Process.DROPPED, desk.log.dropped)
    if desk.handing is not None:
        desk.handing.tell()
    block.worker.put(worker, 0, Process.CONNECTIONS, edge.connections)
    block.worker.put(worker, 0, Process.UNDER_WAY, edge.under_way)
