"""The two kinds of process that the supervisor starts: workers that serve, and one that watches.

A worker is an edge, a desk and a log. It serves until it is told to end, and then ends what it has begun.

The watching process asks engines for their numbers, steers local engines, reads the log and shows the page. It forks
nothing and reads no file of the operator's itself, because it holds engines and threads: it hears of a new plan by one
message through a pair of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from breakeven.errors import BreakevenError
from breakeven.gateway.keys.budgets import budget_path, save_budgets
from breakeven.gateway.keys.entry import KeyEntry, Keys
from breakeven.gateway.keys.machines import SharedWindows
from breakeven.gateway.keys.store import follow
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.seen.log import DecisionLog
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.gateway.seen.snapshot import ExperimentState, Snapshot, snapshot
from breakeven.gateway.serve.desk import Desk
from breakeven.gateway.serve.front import Front
from breakeven.gateway.serve.loading import ServedPlan
from breakeven.gateway.serve.poll import Poller
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Global, Process, Rows
from breakeven.wire.server import HttpServer

if TYPE_CHECKING:
    from breakeven.gateway.swap.watch import Swapper

TELL_S = 0.5
WHOLE_COLLECTION = 60
"""Turns of `TELL_S` between two looks at everything that could be a circle."""
RECENT = 50
LOOK_S = 1.0
EXPERIMENTS_S = 2.0
SAVE_S = 10.0
_LENGTH = 8
ADMIN_LIMITS = Limits(
    body_bytes=4 * 1024, header_bytes=16 * 1024, connections=64, read_s=10.0, unasked_s=5.0, idle_s=30.0
)


def run_worker(
    loaded: ServedPlan, rows: Rows, block: SharedBlock, worker: int, listening: socket.socket, ready: Callable[[], None]
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
    loaded: ServedPlan, rows: Rows, block: SharedBlock, worker: int, listening: socket.socket, ready: Callable[[], None]
) -> int:
    plan = loaded.plan
    log = None if plan.log.directory is None else DecisionLog(plan.log.directory, worker, plan.log)
    desk = Desk(plan, loaded.speeds, rows, block, worker, loaded.keys, log)
    front = Front(desk)
    edge = HttpServer(front.handle, plan.limits, front.judge)
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
    block.worker.put(worker, 0, Process.PID, os.getpid())
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
        with contextlib.suppress(TimeoutError):
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


def _tell(desk: Desk, edge: HttpServer, block: SharedBlock, worker: int) -> None:
    """Numbers for the watching process that need not be exact to the moment."""
    if desk.log is not None:
        block.worker.put(worker, 0, Process.DROPPED, desk.log.dropped)
    block.worker.put(worker, 0, Process.CONNECTIONS, edge.connections)
    block.worker.put(worker, 0, Process.UNDER_WAY, edge.under_way)


class NewPlan(NamedTuple):
    """A plan that is served from now on."""

    plan: GatewayPlan
    keys: tuple[KeyEntry, ...] | None
    rows: Rows


def send_news(to: socket.socket, plan: GatewayPlan, keys: tuple[KeyEntry, ...] | None, rows: Rows) -> None:
    """Tell the watching process. It may take its time: what is sent waits in the socket."""
    said = pickle.dumps(NewPlan(plan, keys, rows))
    to.sendall(len(said).to_bytes(_LENGTH, "big") + said)


async def next_news(reader: asyncio.StreamReader) -> NewPlan:
    """Wait for the next plan."""
    length = int.from_bytes(await reader.readexactly(_LENGTH), "big")
    news: NewPlan = pickle.loads(await reader.readexactly(length))
    return news


def run_watcher(
    plan: GatewayPlan,
    keys: tuple[KeyEntry, ...] | None,
    rows: Rows,
    block: SharedBlock,
    machine: str,
    admin: Sequence[socket.socket],
    news: socket.socket,
) -> int:
    """Watch until SIGTERM; returns the exit status. `news`: where new plans come from."""
    import uvloop

    return uvloop.run(Watcher(NewPlan(plan, keys, rows), block, machine).run(admin, news))


class Watcher:
    """What the page shows and what the workers are told comes together here."""

    def __init__(self, now: NewPlan, block: SharedBlock, machine: str) -> None:
        """Nothing runs yet. `machine`: this machine's name among those that share limits."""
        self.now, self.block, self.machine = now, block, machine
        self.recent: list[DecisionRecord] = []
        """By time of arrival."""
        self.experiments: list[ExperimentState] = []
        self.warnings: dict[str, str] = {}
        self.poller = Poller(now.plan, now.rows.backends, block)
        self.swapper: Swapper | None = None
        self._keys = Keys(())
        self._engines: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    async def run(self, admin: Sequence[socket.socket], news: socket.socket) -> int:
        """Until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        edge = self._page() if admin else None
        if edge is not None:
            await edge.start(admin)
        news.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=news)
        self._begin()
        hearing = loop.create_task(self._hear(reader))
        supervisor = os.getppid()
        while not self._ending.is_set():
            if os.getppid() != supervisor:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_S)
        hearing.cancel()
        await self._stop()
        if self._engines is not None:
            self._engines.cancel()
            await asyncio.gather(self._engines, return_exceptions=True)
        if edge is not None:
            await edge.drain(0.5)
        writer.close()
        return 0

    # What runs beside each other. A reload stops it all and begins anew, but for the engines, which go on.

    def _begin(self) -> None:
        plan, keys, rows = self.now
        self.poller = Poller(plan, rows.backends, self.block)
        self._spawn(self.poller.run())
        if plan.log.directory is not None:
            self._spawn(self._follow())
        self._keys = Keys(keys or ())
        if plan.keys is not None and keys is not None:
            self._spawn(self._follow_keys(plan.keys))
            self._spawn(self._save_budgets())
            if plan.redis is not None:
                self._spawn(self._share_limits())
        if self.swapper is not None:
            try:
                self.swapper.replan(plan, rows.backends)
            except BreakevenError as error:
                self._warn("engines", str(error))
        elif any(backend.local is not None for backend in plan.backends):
            self._engines = asyncio.get_running_loop().create_task(self._kept("engines", self._run_engines()))

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while True:
            self.now = await next_news(reader)
            await self._stop()
            self._begin()

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        name = getattr(work, "__qualname__", "watcher")
        self._tasks.append(asyncio.get_running_loop().create_task(self._kept(name, work)))

    async def _kept(self, name: str, work: Coroutine[object, object, None]) -> None:
        """One broken part must not blind the others."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BreakevenError as error:
            self._warn(name, str(error))
        except Exception as error:
            self._warn(name, f"{name} stopped: {type(error).__name__}: {error}")

    def _warn(self, what: str, text: str) -> None:
        if self.warnings.get(what) != text:
            self.warnings[what] = text
            sys.stderr.write(f"breakeven: {text}\n")

    # The parts.

    async def _run_engines(self) -> None:
        from breakeven.gateway.swap.watch import Swapper

        self.swapper = Swapper(self.now.plan, self.block, self.now.rows.backends)
        await self.swapper.run()

    async def _follow_keys(self, path: Path) -> None:
        """What is revoked does not open the page any more either."""
        seen = (-1, 0, 0)  # no file's, so that one that is gone is told as well
        while True:
            seen = follow(self._keys, path, seen, self._tell_keys)
            await asyncio.sleep(LOOK_S)

    def _tell_keys(self, wrong: str) -> None:
        """What is wrong with the file of keys, where it is seen: standard error, the page, a metric."""
        self.block.everywhere.put(0, 0, Global.KEYS_UNUSABLE, 1.0 if wrong else 0.0)
        if wrong:
            self._warn("keys", f"the file of keys cannot be used, so keys stay but for those it revokes: {wrong}")
        elif self.warnings.pop("keys", None) is not None:
            sys.stderr.write("breakeven: the file of keys can be used again\n")

    async def _save_budgets(self) -> None:
        """Spending outlives a restart, less the last seconds before a crash."""
        plan, keys, rows = self.now
        assert plan.keys is not None
        assert keys is not None
        path = budget_path(plan.keys)
        try:
            while True:
                await asyncio.sleep(SAVE_S)
                save_budgets(path, self.block, keys, rows.keys, self.machine)
        finally:
            save_budgets(path, self.block, keys, rows.keys, self.machine)

    async def _share_limits(self) -> None:
        plan, keys, rows = self.now
        assert plan.redis is not None
        shared = SharedWindows(plan.redis, self.block, self.machine, lambda text: self._warn("redis", text))
        shared.know(keys or (), rows.keys)
        await shared.run()

    async def _follow(self) -> None:
        """The log's news: recent decisions, telemetry, and experiments that go on, stop or step back."""
        from breakeven.gateway.seen.read_log import latest

        plan, _, rows = self.now
        directory = plan.log.directory
        assert directory is not None
        experiments = None
        if plan.experiments:
            from breakeven.gateway.experiment.watch import Experiments

            experiments = Experiments(plan, self.block, directory, rows.experiments)
        export = None
        if plan.otel:
            from breakeven.gateway.seen.otel import Export

            export = Export(plan, directory)
        next_s = 0.0
        try:
            while True:
                # The ends of the files: reading all of a busy log each second would cost as much as serving.
                self.recent = latest(directory, RECENT)
                if export is not None:
                    export.step()
                if experiments is not None and time.monotonic() >= next_s:
                    self.experiments = experiments.step(time.time())
                    next_s = time.monotonic() + EXPERIMENTS_S
                await asyncio.sleep(LOOK_S)
        finally:
            if experiments is not None:
                experiments.save()
            if export is not None:
                export.close()

    # The page.

    def _page(self) -> HttpServer:
        from breakeven.gateway.live.admin import admin_handler, takes_body
        from breakeven.gateway.seen.metrics import render

        secret = os.environ.get(self.now.plan.admin_secret_env) or None
        handler = admin_handler(
            self._state, lambda: render(self.block, self.now.plan, self.now.rows), secret, admits=self._admits
        )
        return HttpServer(handler, ADMIN_LIMITS, takes_body)

    def _admits(self, authorization: bytes | None) -> bool:
        """Whether a key of the gateway's own may read the page as well."""
        entry = self._keys.find(authorization, None)
        return entry is not None and entry.admin

    def _state(self) -> Snapshot:
        warnings = list(self.warnings.values())
        if self.swapper is not None:
            warnings += self.swapper.warnings
        plan, _, rows = self.now
        return snapshot(
            plan,
            self.block,
            rows,
            recent=reversed(self.recent),
            experiments=self.experiments,
            expert_load=self.poller.expert_load,
            warnings=warnings,
        )
