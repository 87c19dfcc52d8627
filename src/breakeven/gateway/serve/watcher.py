"""The process that watches: it asks engines for their numbers, steers local engines, reads the log, shows the page."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence

from breakeven.errors import BreakevenError
from breakeven.gateway.edge.server import EdgeServer
from breakeven.gateway.plan.model import GatewayPlan, Limits
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.gateway.seen.snapshot import ExperimentState, Snapshot
from breakeven.gateway.serve.desk import Rows
from breakeven.gateway.serve.loading import Loaded, load_apart
from breakeven.gateway.serve.poll import Poller
from breakeven.gateway.shared.block import Block

RECENT = 50
LOOK_S = 1.0
EXPERIMENTS_S = 2.0
SAVE_S = 10.0
ADMIN_LIMITS = Limits(body_bytes=64 * 1024, header_bytes=16 * 1024, connections=64, read_s=10.0)


def run_watcher(
    loaded: Loaded, rows: Rows, block: Block, admin: Sequence[socket.socket], read: Callable[[], GatewayPlan]
) -> int:
    """Watch until SIGTERM; returns the exit status."""
    import uvloop

    return uvloop.run(Watcher(loaded, rows, block, read).run(admin))


class Watcher:
    """What the page shows and what the workers are told comes together here."""

    def __init__(self, loaded: Loaded, rows: Rows, block: Block, read: Callable[[], GatewayPlan]) -> None:
        self.loaded, self.rows, self.block, self._read = loaded, rows, block, read
        self.recent: deque[DecisionRecord] = deque(maxlen=RECENT)
        self.experiments: list[ExperimentState] = []
        self.warnings: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    @property
    def plan(self) -> GatewayPlan:
        """The plan that is served now."""
        return self.loaded.plan

    async def run(self, admin: Sequence[socket.socket]) -> int:
        """Until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        edge = self._page() if admin else None
        if edge is not None:
            await edge.start(admin)
        self._begin()
        while not self._ending.is_set():
            if os.getppid() == 1:
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_S)
        await self._stop()
        if edge is not None:
            await edge.drain(0.5)
        return 0

    # What runs beside each other; a reload stops it all and begins anew, but for the engines.

    def _begin(self) -> None:
        plan = self.plan
        self.poller = Poller(plan, self.rows.backends, self.block)
        self._spawn(self.poller.run())
        if any(backend.local is not None for backend in plan.backends):
            from breakeven.gateway.swap.watch import Swapper

            self.swapper = Swapper(plan, self.block, self.rows.backends)
            self._spawn(self.swapper.run())
        if plan.log.directory is not None:
            self._spawn(self._follow())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._kept(work))
        self._tasks.append(task)

    async def _kept(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BreakevenError as error:
            self._warn("watcher", str(error))
        except Exception as error:  # one broken part must not blind the others
            self._warn("watcher", f"{type(error).__name__}: {error}")

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def _reload(self) -> None:
        self._spawn(self._reloaded())

    async def _reloaded(self) -> None:
        loop = asyncio.get_running_loop()
        self.loaded = await loop.run_in_executor(None, load_apart, self._read)

    def _warn(self, what: str, text: str) -> None:
        if self.warnings.get(what) != text:
            self.warnings[what] = text
            sys.stderr.write(f"breakeven: {text}\n")

    async def _follow(self) -> None:
        """The log's news: recent decisions, and experiments that go on, stop or step back."""
        from breakeven.gateway.seen.read_log import Follower, latest

        directory = self.plan.log.directory
        assert directory is not None
        self.recent.extend(latest(directory, RECENT))
        follower = Follower(directory)
        follower.skip()
        experiments = None
        if self.plan.experiments:
            from breakeven.gateway.experiment.watch import Experiments

            experiments = Experiments(self.plan, self.block, directory)
        next_s = 0.0
        while True:
            self.recent.extend(follower.new()[-RECENT:])
            if experiments is not None and time.monotonic() >= next_s:
                self.experiments = experiments.step(time.time())
                next_s = time.monotonic() + EXPERIMENTS_S
            await asyncio.sleep(LOOK_S)

    # The page.

    def _page(self) -> EdgeServer:
        from breakeven.gateway.live.admin import admin_handler
        from breakeven.gateway.seen.metrics import render

        secret = os.environ.get(self.plan.admin_secret_env) or None
        handler = admin_handler(self._state, lambda: render(self.block, self.plan, self.rows), secret)
        return EdgeServer(handler, ADMIN_LIMITS)

    def _state(self) -> Snapshot:
        from breakeven.gateway.seen.snapshot_of import snapshot

        return snapshot(
            self.plan,
            self.block,
            self.rows,
            recent=reversed(self.recent),
            experiments=self.experiments,
            warnings=list(self.warnings.values()),
        )
