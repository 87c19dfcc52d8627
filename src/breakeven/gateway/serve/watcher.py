"""The process that watches: it asks engines for their numbers, steers local ones, reads the log and shows the page.

Each of these is a part of its own (`parts`). It forks nothing and reads no file of the operator's itself but that of
the keys, because it holds engines and threads: it hears of a new plan by one message through a pair of sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from breakeven.errors import UserError, complain
from breakeven.gateway.experts.hand import drop
from breakeven.gateway.experts.report import ExpertsSeen
from breakeven.gateway.keys.budgets import budget_path, save_budgets
from breakeven.gateway.keys.entry import Keys
from breakeven.gateway.keys.machines import SharedWindows
from breakeven.gateway.keys.store import follow
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.plan.reach import value_of
from breakeven.gateway.seen.record import DecisionRecord
from breakeven.gateway.seen.snapshot import ExperimentState, Snapshot, snapshot
from breakeven.gateway.serve.loading import NewPlan, next_news
from breakeven.gateway.serve.parts import PartsKeeper
from breakeven.gateway.serve.poll import Poller
from breakeven.gateway.serve.processes import beat
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Global, Known, Process, State
from breakeven.hardware.system import HANGUP
from breakeven.version import __version__
from breakeven.wire import tls
from breakeven.wire.server import HttpServer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from breakeven.gateway.experts.watch import ExpertsWatch
    from breakeven.gateway.swap.effects import EngineLoaded
    from breakeven.gateway.swap.watch import Swapper

RECENT = 50
LOOK_S = 1.0
EXPERIMENTS_S = 2.0
SAVE_S = 10.0
CERTIFICATE_S = 3600.0
CLOSE_S = 10.0
"""For what may wait for a network or a disk at the end."""
ADMIN_LIMITS = Limits(
    body_bytes=4 * 1024, header_bytes=16 * 1024, connections=64, read_s=10.0, unasked_s=5.0, idle_s=30.0
)


def run_watcher(
    now: NewPlan,
    block: SharedBlock,
    machine: str,
    admin: Sequence[socket.socket],
    news: socket.socket,
    looks: socket.socket,
) -> int:
    """Watch until SIGTERM; returns the exit status.

    `news`: where new plans come from; `looks`: where workers send requests whose experts are looked at.
    """
    import uvloop

    return uvloop.run(Watcher(now, block, machine, looks).run(admin, news))


class Watcher:
    """What the page shows and what the workers are told comes together here."""

    def __init__(self, now: NewPlan, block: SharedBlock, machine: str, looks: socket.socket) -> None:
        """Nothing runs yet. `machine`: this machine's name among those that share limits."""
        self.now, self.block, self.machine = now, block, machine
        self.recent: list[DecisionRecord] = []
        """By time of arrival."""
        self.experiments: list[ExperimentState] = []
        self.warnings: dict[str, str] = {}
        self.parts = PartsKeeper()
        self.poller = Poller(now.plan, now.rows.backends, block)
        self.swapper: Swapper | None = None
        self.looking: ExpertsWatch | None = None
        self._looks = looks
        self._shared: SharedWindows | None = None
        self._shown: ssl.SSLContext | None = None
        """What clients are shown, as far as this process knows."""
        self._keys = Keys(())
        self._ending = asyncio.Event()
        self._status = 0

    async def run(self, admin: Sequence[socket.socket], news: socket.socket) -> int:
        """Until SIGTERM; then its exit status, above 0 when it cannot go on and another must take its place."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._ending.set)
        loop.add_signal_handler(HANGUP, self._show_anew)
        beat(self.block, 0)
        if admin:
            self.parts.start("page", lambda: self._show(admin))
        news.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=news)
        self._begin()
        hearing = loop.create_task(self._hear(reader))
        supervisor = os.getppid()
        while not self._ending.is_set() and os.getppid() == supervisor:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_S)
            if not self.parts.runs("experts"):
                drop(self._looks)  # of workers that still drain
        hearing.cancel()
        if os.getppid() != supervisor:
            await self._outlast_workers()
        self._save_at_the_end()
        await self.parts.stop()
        writer.close()
        return self._status

    async def _outlast_workers(self) -> None:
        """The supervisor was killed: what workers still end is spent as well, and nobody else is left to save it."""
        until_s = time.monotonic() + self.now.plan.limits.drain_s + CLOSE_S
        rows = range(1, self.block.shape.workers)
        while time.monotonic() < until_s and not self._ending.is_set():
            if not any(_lives(int(self.block.worker.get(row, 0, Process.PID))) for row in rows):
                return
            await asyncio.sleep(0.1)

    # What runs beside each other. A reload stops it all and begins anew, but for the engines and the page, which go on.

    def _begin(self) -> None:
        plan, keys, rows = self.now
        start = self.parts.start
        self.poller = Poller(plan, rows.backends, self.block, on_experts=self._counted)
        start("poller", self.poller.run)
        if any(backend.experts is not None for backend in plan.backends):
            start("experts", self._look_at_experts)
        if plan.log.directory is not None:
            start("decisions", self._follow)
            if plan.experiments:
                start("experiments", self._judge)
            if plan.otel:
                start("telemetry", self._export)
        if not plan.experiments:
            self.experiments = []
        self._shown = None
        if plan.tls is not None:
            start("certificate", self._watch_certificate)
        self._keys = Keys(keys or ())
        if plan.keys is not None and keys is not None:
            path = plan.keys
            start("keys", lambda: self._follow_keys(path))
            start("budgets", self._save_budgets, SAVE_S)
            if plan.redis is not None:
                start("redis", self._share_limits)
        if self.swapper is not None:
            try:
                self.swapper.replan(plan, rows.backends)
                self._warn("engines", "")
            except Exception as error:
                self._warn("engines", str(error))
        elif not self.parts.runs("engines") and any(backend.local is not None for backend in plan.backends):
            start("engines", self._run_engines)

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                self.now = await next_news(reader)
                tls.use({})  # those it was forked with are of the plan before
                await self.parts.stop(but=("page", "engines"))
                self._begin()
        except Exception as error:
            # Deaf to reloads it is of no use: the supervisor starts another, by the newest plan.
            if os.getppid() != 1 and not isinstance(error, asyncio.IncompleteReadError):
                complain(f"the watching process missed a reload ({type(error).__name__}: {error}); another takes over")
            self._status = 1
            self._ending.set()

    def _show_anew(self) -> None:
        """Certificates changed, and nothing else: backends are asked by new connections."""
        tls.use({})
        self.poller.renewals += 1
        self._look_at_certificate(anew=True)

    def _look_at_certificate(self, *, anew: bool) -> None:
        files = self.now.plan.tls_files
        if anew:
            with contextlib.suppress(UserError):  # what is shown stays what it was
                self._shown = tls.server_tls(files) if files is not None else None
        self._warn("certificate", "" if self._shown is None else tls.what_to_do(self._shown, time.time()))

    async def _watch_certificate(self) -> None:
        """Clients that refuse it come without a warning of their own."""
        while True:
            self._look_at_certificate(anew=self._shown is None)
            await asyncio.sleep(CERTIFICATE_S)

    def _warn(self, what: str, text: str) -> None:
        """Say it once and show it until it is taken back by an empty text."""
        if not text:
            self.warnings.pop(what, None)
        elif self.warnings.get(what) != text:
            self.warnings[what] = text
            complain(text)

    # The parts.

    async def _run_engines(self) -> None:
        from breakeven.gateway.swap.watch import Swapper

        self.swapper = Swapper(self.now.plan, self.block, self.now.rows.backends)
        try:
            await self.swapper.run()
        finally:
            self.swapper = None
            # They have been stopped: until somebody steers again nobody may be sent to them.
            for backend in self.now.plan.backends:
                if backend.local is not None:
                    row = self.now.rows.backends[backend.name]
                    self.block.known.put(0, row, Known.STATE, State.UNLOADED)
                    self.block.known.put(0, row, Known.PORT, 0.0)

    async def _look_at_experts(self) -> None:
        """Which experts requests reach, of those that are looked at or counted."""
        from breakeven.gateway.experts.watch import ExpertsWatch

        def engine_of(name: str) -> EngineLoaded | None:
            return None if self.swapper is None else self.swapper.engines.get(name)

        self.looking = ExpertsWatch(self.now.plan, self._looks, engine_of=engine_of, key_of=self.block.engine_key)
        try:
            await self.looking.run()
        finally:
            self.looking = None

    def _counted(self, backend: str, layers: Sequence[int], choices_LE: NDArray[np.int64], tokens: int) -> None:
        if self.looking is not None:
            self.looking.counted(backend, layers, choices_LE, tokens)

    def experts_seen(self) -> ExpertsSeen:
        """What was seen of them, of all backends."""
        now_s = time.time()
        if (looking := self.looking) is None:
            return ExpertsSeen(version=__version__, time_s=now_s, backends=[])
        return ExpertsSeen(version=__version__, time_s=now_s, backends=looking.report(now_s), asked=looking.asked)

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
            wrong = f"the file of keys cannot be used, so keys stay but for those it revokes: {wrong}"
        elif "keys" in self.warnings:
            complain("the file of keys can be used again")
        self._warn("keys", wrong)

    async def _save_budgets(self) -> None:
        """Spending outlives a restart, less the last seconds before a crash."""
        while True:
            self._save()
            await asyncio.sleep(SAVE_S)

    def _save(self) -> None:
        plan, keys, rows = self.now
        if plan.keys is not None and keys is not None:
            save_budgets(budget_path(plan.keys, plan.budgets), self.block, keys, rows.keys, self.machine)

    def _save_at_the_end(self) -> None:
        try:
            self._save()
        except UserError as error:
            complain(str(error))

    async def _share_limits(self) -> None:
        plan, keys, rows = self.now
        assert plan.redis is not None
        shared = self._shared = SharedWindows(
            plan.redis, self.block, self.machine, lambda text: self._warn("redis", text)
        )
        shared.know(keys or (), rows.keys)
        try:
            await shared.run()
        finally:
            self._shared = None

    async def _follow(self) -> None:
        """The log's news: recent decisions."""
        from breakeven.gateway.seen.read_log import latest

        directory = self.now.plan.log.directory
        assert directory is not None
        while True:
            # The ends of the files: reading all of a busy log each second would cost as much as serving.
            self.recent = latest(directory, RECENT)
            await asyncio.sleep(LOOK_S)

    async def _judge(self) -> None:
        """Experiments go on, stop or step back by what the log says."""
        from breakeven.gateway.experiment.watch import Experiments

        plan, _, rows = self.now
        experiments = Experiments(plan, self.block, plan.log.directory, rows.experiments)
        try:
            while True:
                self.experiments = experiments.step(time.time())
                await asyncio.sleep(EXPERIMENTS_S)
        finally:
            experiments.save()

    async def _export(self) -> None:
        """Traces and metrics for OpenTelemetry."""
        from breakeven.gateway.seen.otel import Export

        plan = self.now.plan
        assert plan.log.directory is not None
        export = Export(plan, plan.log.directory)
        try:
            while True:
                export.step()
                await asyncio.sleep(LOOK_S)
        finally:
            # It waits for a network: not on the loop, and not for ever.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.to_thread(export.close), CLOSE_S)

    # The page.

    async def _show(self, admin: Sequence[socket.socket]) -> None:
        edge = self._page()
        # Copies: the server closes what it is given, and the page may have to be opened again.
        await edge.start([one.dup() for one in admin])
        try:
            await asyncio.Event().wait()
        finally:
            await edge.drain(0.5)

    def _page(self) -> HttpServer:
        from breakeven.gateway.live.admin import admin_handler, takes_body
        from breakeven.gateway.seen.metrics import render

        secret = value_of(self.now.plan.admin_secret_env) or None
        handler = admin_handler(
            self._state,
            lambda: render(self.block, self.now.plan, self.now.rows, self.parts.states(), self.experts_seen()),
            secret,
            experts=self.experts_seen,
            admits=self._admits,
        )
        return HttpServer(handler, ADMIN_LIMITS, takes_body)

    def _admits(self, authorization: bytes | None) -> bool:
        """Whether a key of the gateway's own may read the page as well."""
        entry = self._keys.find(authorization, None)
        return entry is not None and entry.admin

    def _state(self) -> Snapshot:
        if self._shared is not None and not self._shared.away:
            self._warn("redis", "")
        redis = [] if self._shared is None else self._shared.troubles.values()
        warnings = [*self.warnings.values(), *redis, *self.parts.warnings(), *self.poller.troubles.values()]
        if self.swapper is not None:
            warnings += self.swapper.warnings
        if self.looking is not None:
            warnings += [*self.looking.alarms(), *self.looking.troubles()]
        plan, _, rows = self.now
        return snapshot(
            plan,
            self.block,
            rows,
            recent=reversed(self.recent),
            experiments=self.experiments,
            expert_load=self.poller.expert_load,
            experts=self.experts_seen(),
            warnings=warnings,
            parts=self.parts.states(),
        )


def _lives(pid: int) -> bool:
    if pid == 0:
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
