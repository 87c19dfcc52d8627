"""Starts the gateway's processes, keeps them alive, and passes signals on. No loop, no thread: safe to fork from.

SIGTERM, SIGINT: drain, then end. SIGHUP: read the plan again; a good one gets new workers on the same sockets, and the
old ones end what they have; a bad one is reported and changes nothing. A worker that dies is replaced, and so is the
watching process; what a dead worker had under way is gone, what it counted is kept.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from breakeven.errors import BreakevenError, UserError
from breakeven.gateway.keys.budgets import budget_path, load_budgets
from breakeven.gateway.keys.windows import retire
from breakeven.gateway.plan.check import check_reload
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.serve.loading import ServedPlan, load_apart
from breakeven.gateway.serve.processes import run_watcher, run_worker, send_news
from breakeven.gateway.shared.block import Shape, SharedBlock, Slots
from breakeven.gateway.shared.layout import Global, Rows
from breakeven.gateway.swap.types import prepare
from breakeven.hardware.system import allow_many_files, wait_signal
from breakeven.wire.listen import open_sockets

assert sys.platform != "win32"  # `run` has said so

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
GENERATIONS = 3
"""Generations of workers that may be there at once: one that serves, and those that still drain."""
SPARE = 64
"""Backends, keys and models that reloads may add to what there is at the start."""
FAILED = -1
"""The generation of workers that a reload started and took back."""
HASTY_S, HASTY = 10.0, 5
"""A worker that died this often within this time is not started again at once."""
KILL_S = 5.0


@dataclass
class Child:
    """One process of ours. `worker` None: the watching one."""

    pid: int
    worker: int | None
    socket: int
    generation: int
    rows: Rows
    """Those that it writes."""


class Supervisor:
    """Everything that outlives a reload: sockets, shared memory, rows, children."""

    def __init__(self, loaded: ServedPlan, read: Callable[[], GatewayPlan], say: Callable[[str], None]) -> None:
        """Opens the sockets. `read`: how to read the plan anew. Raises UserError when a port is taken."""
        self._read, self._say = read, say
        self.loaded = loaded
        plan = self.loaded.plan
        self.sockets = open_sockets(plan.host, plan.port, plan.workers)
        self.admin: list[socket.socket] = []
        if plan.admin_port is not None:
            try:
                self.admin = open_sockets(plan.admin_host, plan.admin_port, 1)
            except UserError:
                for one in self.sockets:
                    one.close()
                raise
        keys = self.loaded.keys or ()
        rows = 1 + plan.workers * GENERATIONS
        self.block = SharedBlock(
            Shape(
                workers=rows,
                backends=2 * len(plan.backends) + SPARE,
                keys=2 * len(keys) + SPARE,
                models=2 * (len(plan.policies) + len(plan.backends)) + SPARE,
                experiments=2 * len(plan.experiments) + SPARE,
            )
        )
        shape = self.block.shape
        self._slots = {
            "backends": Slots("backends", shape.backends, self.block.clear_backend),
            "keys": Slots("keys", shape.keys, self.block.clear_key),
            "models": Slots("public models", shape.models, self.block.model_usage.clear),
            "experiments": Slots("experiments", shape.experiments, self.block.share.clear),
        }
        self.children: dict[int, Child] = {}
        self.rows = self._name(self.loaded)
        self.block.everywhere.put(0, 0, Global.STARTED_S, time.time())
        self.machine = ""
        """This machine's name among those that share limits."""
        if plan.keys is not None:
            self.machine = load_budgets(budget_path(plan.keys), self.block, keys, self.rows.keys)
        prepare(plan, self.block, self.rows.backends)
        self.news, self._heard = socket.socketpair()
        self.generation = 0
        self._deaths: list[float] = []
        self._ending = False

    @property
    def port(self) -> int:
        """Where clients connect; the one that was found free when 0 was asked for."""
        port: int = self.sockets[0].getsockname()[1]
        return port

    @property
    def admin_port(self) -> int | None:
        """Where the live page is; None: there is none."""
        return self.admin[0].getsockname()[1] if self.admin else None

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serve until told to end; returns the exit status. `on_ready` is called when every worker accepts."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        allow_many_files()  # every request under way takes two connections
        self._start_watcher()
        if not self._start_workers():
            self._end(0.0)
            raise BreakevenError("a worker could not start; its message is above")
        on_ready()
        return self._watch()

    def _watch(self) -> int:
        while True:
            number = wait_signal(SIGNALS)
            if number == signal.SIGCHLD:
                self._reap()
            elif number == signal.SIGHUP:
                self._reload()
            else:
                self._say("draining: requests under way end, new ones are refused")
                return self._end(self.loaded.plan.limits.drain_s)

    # Children.

    def _fork(self, worker: int | None, socket_at: int, run: Callable[[], int]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_DFL)
                # Whoever presses Ctrl-C tells the supervisor; it tells us.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
                status = run()
            except KeyboardInterrupt:
                status = 130
            except BreakevenError as error:
                sys.stderr.write(f"breakeven: {error}\n")
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                with suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)
        self.children[pid] = Child(pid, worker, socket_at, self.generation, self.rows)
        return pid

    def _start_watcher(self) -> None:
        # A pair of its own: one that was killed may have left half a message in it.
        self.news.close()
        self._heard.close()
        self.news, self._heard = socket.socketpair()
        self._fork(None, -1, self._run_watcher)

    def _run_watcher(self) -> int:
        self.news.close()
        _close(self.sockets)
        return run_watcher(
            self.loaded.plan, self.loaded.keys, self.rows, self.block, self.machine, self.admin, self._heard
        )

    def _start_workers(self) -> bool:
        """Start a generation of workers; whether every one of them accepts."""
        gate, told = os.pipe()
        for k in range(self.loaded.plan.workers):
            self._start_worker(k, told)
        os.close(told)
        # The pipe is at its end when every worker has closed its side, ready or dead.
        with os.fdopen(gate, "rb") as answers:
            return len(answers.read()) == self.loaded.plan.workers

    def _start_worker(self, k: int, told: int | None = None) -> None:
        taken = {child.worker for child in self.children.values()}
        worker = next((w for w in range(1, self.block.shape.workers) if w not in taken), None)
        if worker is None:
            raise UserError("too many earlier workers still drain; try again when they have ended")

        def ready() -> None:
            if told is not None:
                os.write(told, b"1")
                os.close(told)

        def run() -> int:
            # Whoever holds a socket keeps it open: held by others it would take clients that nobody serves.
            _close([*self.sockets[:k], *self.sockets[k + 1 :], *self.admin])
            return run_worker(self.loaded, self.rows, self.block, worker, self.sockets[k], ready)

        self._fork(worker, k, run)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self.children.pop(pid, None)
            if child is None:
                continue
            if child.worker is not None:
                retire(self.block, child.worker)
                self.block.retire(child.worker)
            if self._ending or child.generation != self.generation:
                continue
            self._say(f"{_what(child)} ended with status {os.waitstatus_to_exitcode(status)}; starting another")
            now_s = time.monotonic()
            self._deaths = [one for one in self._deaths if now_s - one < HASTY_S] + [now_s]
            if len(self._deaths) > HASTY:
                time.sleep(1.0)
            if child.worker is None:
                self._start_watcher()
            else:
                self._start_worker(child.socket)

    # Reloading and ending.

    def _name(self, loaded: ServedPlan) -> Rows:
        plan = loaded.plan
        models = [*(policy.model for policy in plan.policies), *(backend.name for backend in plan.backends)]
        slots, held = self._slots, [child.rows for child in self.children.values()]
        return Rows(
            slots["backends"].name(
                [backend.name for backend in plan.backends], {name for rows in held for name in rows.backends}
            ),
            slots["keys"].name(
                ["", *(entry.name for entry in loaded.keys or ())], {name for rows in held for name in rows.keys}
            ),
            slots["models"].name(models, {name for rows in held for name in rows.models}),
            slots["experiments"].name(
                [plan.name for plan in plan.experiments], {name for rows in held for name in rows.experiments}
            ),
        )

    def _reload(self) -> None:
        try:
            loaded = load_apart(self._read)()
            check_reload(self.loaded.plan, loaded.plan, str(loaded.plan.path or "the plan"))
            draining = sum(1 for child in self.children.values() if child.worker and child.generation < self.generation)
            if draining + 2 * loaded.plan.workers >= self.block.shape.workers:
                raise UserError("earlier workers still drain; reload again when they have ended")
            rows = self._name(loaded)
            prepare(loaded.plan, self.block, rows.backends)
        except BreakevenError as error:
            self._say(f"not reloaded, everything goes on as it was: {error}")
            return
        before = self.loaded, self.rows
        old = list(self.children.values())
        self.loaded, self.rows = loaded, rows
        self.generation += 1
        if not self._start_workers():
            self.loaded, self.rows = before
            for child in self.children.values():
                if child.generation == self.generation:
                    child.generation = FAILED
                    _kill(child.pid, signal.SIGTERM)
            self.generation -= 1
            self._say("not reloaded, everything goes on as it was: a worker could not start; its message is above")
            return
        self.block.everywhere.put(0, 0, Global.GENERATION, float(self.generation))
        for child in old:
            if child.worker is None:
                # Its engines go on, so it stays and hears of the new plan.
                child.generation, child.rows = self.generation, rows
                send_news(self.news, loaded.plan, loaded.keys, rows)
            else:
                os.kill(child.pid, signal.SIGTERM)
        self._say(f"reloaded: generation {self.generation}")

    def _end(self, timeout_s: float) -> int:
        self._ending = True
        _close([*self.sockets, *self.admin])
        self.block.everywhere.put(0, 0, Global.DRAINING, 1.0)
        workers = [child for child in self.children.values() if child.worker is not None]
        for child in workers:
            _kill(child.pid, signal.SIGTERM)
        self._wait([child.pid for child in workers], timeout_s + KILL_S)
        watcher = [child.pid for child in self.children.values() if child.worker is None]
        for pid in watcher:
            _kill(pid, signal.SIGTERM)
        self._wait(watcher, 4 * KILL_S)
        for pid in list(self.children):
            _kill(pid, signal.SIGKILL)
        self._reap()
        return 0

    def _wait(self, pids: list[int], timeout_s: float) -> None:
        """Until these have ended. A second SIGTERM or SIGINT cuts it short."""
        until_s = time.monotonic() + timeout_s
        while any(pid in self.children for pid in pids) and (left_s := until_s - time.monotonic()) > 0:
            got = wait_signal(SIGNALS, left_s)
            self._reap()
            if got in (signal.SIGTERM, signal.SIGINT):
                return


def _close(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        one.close()


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _what(child: Child) -> str:
    return "the watching process" if child.worker is None else f"worker {child.worker}"
