"""Starts the gateway's processes, keeps them alive, and passes signals on. No loop, no thread: safe to fork from.

SIGTERM, SIGINT: drain, then end. SIGHUP: read the plan again; a good one gets new workers on the same sockets, and the
old ones end what they have; a bad one is reported and changes nothing. A process that dies or hangs is replaced; what
it had under way is gone, what it counted is kept. Where the system refuses a process the others go on, and it is tried
again. Nothing here waits without a bound: whoever started us as a service hears that we go on.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from breakeven.errors import BreakevenError, UserError
from breakeven.gateway.experts.hand import LINE_BYTES, looking_at
from breakeven.gateway.keys.budgets import budget_path, load_budgets, save_budgets
from breakeven.gateway.plan.check import check_reload
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.serve.loading import (
    NewPlan,
    PlanReading,
    Rereading,
    ServedPlan,
    only_certificates,
    renewed,
    send_news,
)
from breakeven.gateway.serve.processes import run_worker
from breakeven.gateway.serve.speech import forget_former, recall
from breakeven.gateway.serve.watcher import run_watcher
from breakeven.gateway.shared.block import Shape, SharedBlock, Slots
from breakeven.gateway.shared.layout import Global, Rows
from breakeven.gateway.swap.types import prepare
from breakeven.hardware.system import ServiceManager, allow_many_files, message_line, wait_signal
from breakeven.wire import tls

assert sys.platform != "win32"  # `run` has said so

from breakeven.gateway.serve.children import (  # noqa: E402  (it is nothing on Windows)
    LOOK_S,
    SIGNALS,
    WATCHER,
    Child,
    Children,
    Doors,
    Owed,
    all_ready,
    kill,
)

GENERATIONS = 3
"""Generations of workers that may be there at once: one that serves, and those that still drain."""
SPARE = 64
"""Backends, keys and models that reloads may add to what there is at the start."""
FAILED = -1
"""The generation of workers that a reload started and took back."""
KILL_S = 5.0
READY_S = 60.0
"""How long new workers may take until they accept."""
READ_S = 15.0
"""How long reading the file again may take, at least; four times as long as it took at the start is fine too."""
STEP_S = 0.05
"""Between two looks at whoever reads the file."""
SOON_S = 0.25
"""A missing worker's socket is closed unless it is back so soon: clients that wait in it would wait for nobody."""


class Supervisor:
    """Everything that outlives a reload: sockets, shared memory, rows, children."""

    def __init__(
        self,
        loaded: ServedPlan,
        read: Callable[[], GatewayPlan],
        say: Callable[[str], None],
        manager: ServiceManager | None = None,
        took_s: float = 0.0,
    ) -> None:
        """Opens the sockets, or takes those that `manager` passed.

        `read`: how to read the plan anew; `took_s`: how long that took. Raises UserError when a port is taken, or a
        socket that was passed opens the gateway to others without keys.
        """
        self._say = say
        self.loaded = loaded
        self._manager = manager or ServiceManager({})
        plan = self.loaded.plan
        tls.use(renewed(plan, None))
        self.doors = Doors(plan, self._manager)

        def read_apart() -> GatewayPlan:
            self.doors.leave(())
            return read()

        self._rereading = Rereading(read_apart, max(READ_S, 4.0 * took_s))
        keys = self.loaded.keys or ()
        self.block = SharedBlock(
            Shape(
                workers=1 + plan.workers * GENERATIONS,
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
        self.children = Children(self.block)
        self.rows = self._name(self.loaded)
        self.block.everywhere.put(0, 0, Global.STARTED_S, time.time())
        self.machine = ""
        """This machine's name among those that share limits."""
        if plan.keys is not None:
            self.machine = load_budgets(budget_path(plan.keys, plan.budgets), self.block, keys, self.rows.keys)
        prepare(plan, self.block, self.rows.backends)
        self.news, self._heard = socket.socketpair()
        self._looked_at, self._looks = message_line(LINE_BYTES)
        """Both ends stay here: what workers sent is there for the watching process that takes another's place."""
        self.generation = 0
        self._owed = Owed()
        self._told_s = 0.0
        self._ending = False

    def run(self, on_ready: Callable[[], None]) -> int:
        """Serve until told to end; returns the exit status. `on_ready` is called when every worker accepts."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        allow_many_files()  # every request under way takes two connections
        self._start(WATCHER)
        if not self._start_workers():
            self._end(0.0)
            raise BreakevenError("a worker could not start; its message is above")
        on_ready()
        self._manager.tell("READY=1", "STATUS=serving")
        return self._watch()

    def _watch(self) -> int:
        while True:
            number = wait_signal(SIGNALS, self._step_s())
            self._look_after()
            try:
                if number == signal.SIGHUP:
                    self._manager.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
                    self._rereading.ask()
                if (reading := self._rereading.come()) is not None:
                    self._reload(reading)
            except BreakevenError as error:
                self._not_reloaded(str(error))
            if number in (signal.SIGTERM, signal.SIGINT):
                self._say("draining: requests under way end, new ones are refused")
                return self._end(self.loaded.plan.limits.drain_s)

    def _step_s(self) -> float:
        """How long may be waited for a signal: somebody wants to hear of us, reads the file, or is tried again."""
        due_s = min(self._owed.due_s.values(), default=None)
        until_due_s = LOOK_S if due_s is None else max(0.0, due_s - time.monotonic())
        if self._rereading.under_way is not None:
            return STEP_S
        return min(LOOK_S, self._manager.watchdog_s or LOOK_S, until_due_s)

    # Children.

    def _look_after(self) -> None:
        """The dead are replaced, those that hang are killed, those that are owed are tried again."""
        now_s = time.monotonic()
        self._go_on(now_s)
        for child in self.children.kill_hung(now_s):
            self._say(f"{child.what} hangs: its heart stands still; it is killed")
        for child, status in self.children.reap():
            if not self._ending and child.generation == self.generation:
                self._replace(child, status, now_s)
        for place in [] if self._ending else self._owed.due(now_s):
            self._start(place)
        self.block.everywhere.put(0, 0, Global.MISSING, float(len(self._owed.due_s)))

    def _go_on(self, now_s: float) -> None:
        """Tell whoever started us that we do."""
        every_s = self._manager.watchdog_s
        if every_s is not None and now_s - self._told_s >= every_s:
            self._told_s = now_s
            self._manager.tell("WATCHDOG=1")

    def _replace(self, child: Child, status: int, now_s: float) -> None:
        whole = self.block.everywhere
        for column, more in ((Global.REPLACED, 1.0), (Global.HUNG, float(child.hung))):
            whole.put(0, 0, column, whole.get(0, 0, column) + more)
        wait_s = self._owed.owe(child.place, now_s - child.began_s, now_s)
        after = f" in {wait_s:.3g} s" if wait_s else ""
        self._say(f"{child.what} ended with status {status}; starting another{after}")
        self._close_door(child.place, wait_s)

    def _start(self, place: int) -> None:
        """Start the process of a place by the present plan; where that fails it is owed, and the others go on."""
        try:
            self._start_watcher() if place == WATCHER else self._start_worker(place)
        except (OSError, UserError) as error:
            wait_s = self._owed.owe(place, 0.0, time.monotonic())
            if self._owed.backoff[place].failures in (1, 2, 5) or not self._owed.backoff[place].failures % 20:
                what = "the watching process" if place == WATCHER else "a worker"
                self._say(
                    f"{what} cannot be started ({_reason(error)}); the others go on, and it is tried again in "
                    f"{wait_s:.3g} s"
                )
            self._close_door(place, wait_s)

    def _close_door(self, place: int, wait_s: float) -> None:
        """A socket that nobody will serve for a while is given up, so that its clients come to the others."""
        others = any(
            child.worker is not None and child.place != place and child.generation == self.generation
            for child in self.children.of.values()
        )
        if place != WATCHER and wait_s > SOON_S and others:
            self.doors.close(place)

    def _start_watcher(self) -> None:
        # A pair of its own: one that was killed may have left half a message in it.
        self.news.close()
        self._heard.close()
        self.news, self._heard = socket.socketpair()

        def run() -> int:
            self.news.close()
            self._looked_at.close()
            self.doors.leave(self.doors.admin)
            now = NewPlan(self.loaded.plan, self.loaded.keys, self.rows)
            return run_watcher(now, self.block, self.machine, self.doors.admin, self._heard, self._looks)

        self.children.fork(None, WATCHER, self.generation, self.rows, run)

    def _start_workers(self) -> bool:
        """Start a generation of workers; whether every one of them accepts, which is waited for within a bound."""
        workers = self.loaded.plan.workers
        try:
            gate, told = os.pipe()
        except OSError as error:
            self._say(f"a worker cannot be started ({_reason(error)})")
            return False
        try:
            for place in range(workers):
                self._start_worker(place, told)
        except (OSError, UserError) as error:
            self._say(f"a worker cannot be started ({_reason(error)})")
            os.close(gate)
            return False
        finally:
            os.close(told)

        def turn() -> float:
            self._go_on(time.monotonic())
            return self._step_s()

        return all_ready(gate, workers, READY_S, turn)

    def _start_worker(self, place: int, told: int | None = None) -> None:
        worker = self.children.free_row()
        if worker is None:
            raise UserError("too many earlier workers still drain; try again when they have ended")
        mine = self.doors.of(place)

        def ready() -> None:
            if told is not None:
                with suppress(OSError):  # nobody waits for us any more
                    os.write(told, b"1")
                os.close(told)

        def run() -> int:
            self.doors.leave(mine)
            self._looks.close()
            looked_at = self._looked_at if any(map(looking_at, self.loaded.plan.backends)) else None
            if looked_at is None:
                self._looked_at.close()
            return run_worker(self.loaded, self.rows, self.block, worker, mine, ready, looked_at)

        self.children.fork(worker, place, self.generation, self.rows, run)
        self.doors.open(place)

    # Reloading and ending.

    def _name(self, loaded: ServedPlan) -> Rows:
        plan, backends = loaded.plan, [backend.name for backend in loaded.plan.backends]
        held = [child.rows for child in self.children.of.values()]

        def rows(kind: str, names: list[str]) -> dict[str, int]:
            return self._slots[kind].name(names, {name for one in held for name in getattr(one, kind)})

        return Rows(
            rows("backends", backends),
            rows("keys", ["", *(entry.name for entry in loaded.keys or ())]),
            rows("models", [*(policy.model for policy in plan.policies), *backends]),
            rows("experiments", [plan.name for plan in plan.experiments]),
        )

    def _reload(self, reading: PlanReading) -> None:
        try:
            loaded = self._rereading.result(reading)
            check_reload(self.loaded.plan, loaded.plan, str(loaded.plan.path or "the plan"))
            draining = sum(1 for c in self.children.of.values() if c.worker and c.generation < self.generation)
            if draining + 2 * loaded.plan.workers >= self.block.shape.workers:
                raise UserError("earlier workers still drain; reload again when they have ended")
            contexts = renewed(loaded.plan, self.loaded.plan)
            if only_certificates(loaded, self.loaded):
                tls.use(contexts)
                self.children.show_anew(self.generation)
                self._say(f"reloaded: certificates alone, generation {self.generation} goes on")
                self._manager.tell("READY=1", f"STATUS=serving, generation {self.generation}")
                return
            rows = self._name(loaded)
            prepare(loaded.plan, self.block, rows.backends)
            former = forget_former(loaded.plan, self.block, rows.backends)
        except Exception as error:  # a defect of ours must not end what serves
            self._not_reloaded(str(error) if isinstance(error, BreakevenError) else f"{type(error).__name__}: {error}")
            return
        before, used = (self.loaded, self.rows), tls.use(contexts)
        old = list(self.children.of.values())
        self.loaded, self.rows = loaded, rows
        self.generation += 1
        if not self._start_workers():
            self.loaded, self.rows = before
            recall(former, self.block)
            tls.use(used)
            for child in self.children.of.values():
                if child.generation == self.generation:
                    child.generation = FAILED
                    kill(child.pid, signal.SIGTERM)
            self.generation -= 1
            for place in self._owed.due_s:
                self._close_door(place, KILL_S)
            self._not_reloaded("a worker could not start; its message is above")
            return
        for place in range(loaded.plan.workers):
            self._owed.due_s.pop(place, None)
        self.block.everywhere.put(0, 0, Global.GENERATION, float(self.generation))
        for child in old:
            if child.worker is None:
                # Its engines go on, so it stays and hears of the new plan; one that takes nothing in hangs.
                child.generation, child.rows = self.generation, rows
                try:
                    send_news(self.news, NewPlan(loaded.plan, loaded.keys, rows))
                except OSError:
                    kill(child.pid, signal.SIGKILL)
            else:
                kill(child.pid, signal.SIGTERM)
        self._say(f"reloaded: generation {self.generation}")
        self._manager.tell("READY=1", f"STATUS=serving, generation {self.generation}")

    def _not_reloaded(self, why: str) -> None:
        self._say(f"not reloaded, everything goes on as it was: {why}")
        self._manager.tell("READY=1", "STATUS=serving; the last reload was refused")

    def _end(self, timeout_s: float) -> int:
        self._ending = True
        self._rereading.give_up()
        most_us = round((timeout_s + 5 * KILL_S) * 1e6)
        self._manager.tell("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={most_us}")
        self.doors.leave(())
        self.block.everywhere.put(0, 0, Global.DRAINING, 1.0)
        for watching, most_s in ((False, timeout_s + KILL_S), (True, 4 * KILL_S)):
            pids = [child.pid for child in self.children.of.values() if (child.worker is None) == watching]
            for pid in pids:
                kill(pid, signal.SIGTERM)
            self._wait(pids, most_s)
        for pid in list(self.children.of):
            kill(pid, signal.SIGKILL)
        self._wait(list(self.children.of), LOOK_S)
        self._save_budgets()
        return 0

    def _save_budgets(self) -> None:
        """Once more, now that nobody spends: the watching process may have had no chance to."""
        plan, keys = self.loaded.plan, self.loaded.keys
        if plan.keys is None or keys is None:
            return
        try:
            save_budgets(budget_path(plan.keys, plan.budgets), self.block, keys, self.rows.keys, self.machine)
        except UserError as error:
            self._say(f"what keys spent since it was last saved is forgotten: {error}")

    def _wait(self, pids: list[int], timeout_s: float) -> None:
        """Until these have ended. A second SIGTERM or SIGINT cuts it short."""
        until_s = time.monotonic() + timeout_s
        while any(pid in self.children.of for pid in pids) and (left_s := until_s - time.monotonic()) > 0:
            got = wait_signal(SIGNALS, min(left_s, self._step_s()))
            self._look_after()
            if got in (signal.SIGTERM, signal.SIGINT):
                return


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
