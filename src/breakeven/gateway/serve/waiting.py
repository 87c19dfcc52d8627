"""Everybody of one worker who waits: for a place at a backend, or for an engine of ours to be loaded."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.serve.lane import Lane, Waiter
from breakeven.gateway.shared.layout import Known, State, UnderWay
from breakeven.wire.bounds import Lookout

LOOK_S = 0.01
"""Places that other workers free, and engines that became ready, are seen this late at most."""
AWAY_S = 1.0
"""What a look may be late; beyond, this process was away, and that time is taken from nobody's patience."""
TELL_S = 1.0
"""A client that waits for an engine hears this often how far it is."""


class WaitingLine:
    """Everybody of one worker who waits. One timer while anybody does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, maximum_wait_s: float) -> None:
        """Nobody waits. `maximum_wait_s`: for an engine."""
        self._loop, self._limits, self._maximum_wait_s = loop, limits, maximum_wait_s
        self._queued: set[Lane] = set()
        self._wanted: dict[Lane, dict[Waiter, tuple[float, float]]] = {}
        """By engine: who waits, since when, and when it was last told how far it is."""
        self._timer: asyncio.TimerHandle | None = None
        self._lookout = Lookout()

    def ready(self, lane: Lane) -> bool:
        """Whether it can be asked. An engine of ours gets its client here, at the port it came up at."""
        if lane.plan.local is None:
            return True
        if lane.known(Known.STATE) != State.READY:
            return False
        port = int(lane.known(Known.PORT))
        if port <= 0:
            return False
        if lane.port != port:
            lane.port = port
            lane.upstream = lane.connect(f"http://127.0.0.1:{port}/v1", self._limits)
        return True

    def enter(
        self, lane: Lane, waiter: Waiter, priority: int, deadline_s: float, now_s: float, key: int = 0
    ) -> Literal["go", "wait", "full"]:
        """Ask for a place at a backend. `key`: the row of the key that asks."""
        gate = lane.gate
        elsewhere = lane.elsewhere(now_s)
        entered = gate.enter(waiter, priority, deadline_s, now_s, elsewhere, key % lane.key_columns, lane.ahead)
        if entered != "go":
            for other in gate.pushed_out():
                other.no_place(lane, "others came first who have a higher priority or fewer requests here")
            if entered == "wait":
                self._queued.add(lane)
                lane.tell_claim()
                self._watch()
        return entered

    def enter_now(self, lane: Lane, waiter: Waiter, priority: int, now_s: float, key: int = 0) -> bool:
        """Take a place if one is free."""
        elsewhere = lane.elsewhere(now_s)
        return lane.gate.enter(waiter, priority, now_s, now_s, elsewhere, key % lane.key_columns, lane.ahead) == "go"

    def left(self, lane: Lane, waiter: Waiter) -> None:
        """A request ended there; the next one goes."""
        now_s, gate = time.monotonic(), lane.gate
        elsewhere = lane.elsewhere(now_s) if gate.queued else 0
        for other in gate.leave(waiter, now_s, elsewhere, lane.ahead):
            other.go(lane)

    def want(self, lane: Lane, waiter: Waiter, now_s: float) -> bool:
        """Wait for an engine; False when it cannot come."""
        if lane.plan.local is None or lane.known(Known.STATE) == State.FAILED:
            return False
        self._wanted.setdefault(lane, {})[waiter] = (now_s, now_s)
        lane.add(UnderWay.WANTED, 1)
        self._watch()
        return True

    def unwant(self, lane: Lane, waiter: Waiter) -> None:
        """Wait no more."""
        if self._wanted.get(lane, {}).pop(waiter, None) is not None:
            lane.add(UnderWay.WANTED, -1)

    def _watch(self) -> None:
        if self._timer is None:
            self._lookout.due_in(LOOK_S, AWAY_S)
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        if away_ns := self._lookout.away_ns(time.monotonic_ns()):
            self._excuse(away_ns / 1e9)
        for lane in list(self._queued):
            elsewhere = lane.elsewhere(now_s)
            for waiter in lane.gate.wake(now_s, elsewhere, lane.ahead):
                waiter.go(lane)
            for waiter in lane.gate.expired(now_s):
                waiter.no_place(lane, "it waited too long for a place")
            lane.tell_claim()
            if not lane.gate.queued:
                self._queued.discard(lane)
        for lane in list(self._wanted):
            self._look_at_engine(lane, now_s)
        if self._queued or self._wanted:
            self._watch()

    def _excuse(self, away_s: float) -> None:
        """Places that became free meanwhile are seen as soon as the sockets are read."""
        for lane in self._queued:
            lane.gate.excuse(away_s)
        for waiting in self._wanted.values():
            for waiter, (since_s, told_s) in waiting.items():
                waiting[waiter] = (since_s + away_s, told_s)

    def _look_at_engine(self, lane: Lane, now_s: float) -> None:
        waiting = self._wanted[lane]
        ready = self.ready(lane)
        failed = lane.known(Known.STATE) == State.FAILED
        for waiter, (since_s, told_s) in list(waiting.items()):
            if ready:
                self.unwant(lane, waiter)
                waiter.loaded(lane)
            elif failed or now_s - since_s > self._maximum_wait_s:
                self.unwant(lane, waiter)
                waiter.not_loaded(lane, "it could not be loaded" if failed else "it was not loaded in time")
            elif now_s - told_s > TELL_S:
                waiting[waiter] = (since_s, now_s)
                waiter.tell_progress(lane, lane.known(Known.PROGRESS))
        if not waiting:
            del self._wanted[lane]
