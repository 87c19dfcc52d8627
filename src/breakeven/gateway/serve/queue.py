"""Requests that wait: for a place at a backend, or for an engine of ours to be loaded. One timer while anybody does."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

from breakeven.gateway.shared.layout import Count, Known, Load, State

if TYPE_CHECKING:
    from breakeven.gateway.serve.desk import Desk
    from breakeven.gateway.serve.forward import Forward
    from breakeven.gateway.serve.lane import Lane

LOOK_S = 0.01
"""Places that other workers free, and engines that became ready, are seen this late at most."""
TELL_S = 1.0
"""A client that waits for an engine hears this often how far it is."""


class Line:
    """Everybody of one worker who waits."""

    def __init__(self, desk: Desk) -> None:
        """Nobody waits."""
        self.desk = desk
        self._queued: set[Lane] = set()
        self._wanted: dict[Lane, dict[Forward, tuple[float, float]]] = {}
        """By engine: who waits, since when, and when it was last told how far it is."""
        self._timer: asyncio.TimerHandle | None = None

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
            lane.upstream = lane.connect(f"http://127.0.0.1:{port}/v1", self.desk.plan.limits)
        return True

    def enter(self, lane: Lane, forward: Forward, now_s: float) -> Literal["go", "wait", "full"]:
        """Ask for a place at a backend."""
        gate = lane.gate
        deadline_s = now_s + forward.policy.queue_s
        entered = gate.enter(forward, forward.ask.priority, deadline_s, now_s, lane.elsewhere(now_s))
        if entered != "go":
            for other in gate.pushed_out():
                self._out(lane, other, "others of higher priority came first")
            if entered == "wait":
                self._queued.add(lane)
                self._watch()
        return entered

    def enter_now(self, lane: Lane, forward: Forward, now_s: float) -> bool:
        """Take a place if one is free."""
        return lane.gate.enter(forward, forward.ask.priority, now_s, now_s, lane.elsewhere(now_s)) == "go"

    def left(self, lane: Lane) -> None:
        """A request ended there; the next one goes."""
        now_s = time.monotonic()
        for forward in lane.gate.leave(now_s, lane.elsewhere(now_s) if lane.gate.queued else 0):
            forward.go(lane)

    def want(self, lane: Lane, forward: Forward, now_s: float) -> bool:
        """Wait for an engine; False when it cannot come."""
        if lane.plan.local is None or lane.known(Known.STATE) == State.FAILED:
            return False
        self._wanted.setdefault(lane, {})[forward] = (now_s, now_s)
        lane.add(Load.WANTED, 1)
        self._watch()
        return True

    def unwant(self, lane: Lane, forward: Forward) -> None:
        """Wait no more."""
        if self._wanted.get(lane, {}).pop(forward, None) is not None:
            lane.add(Load.WANTED, -1)

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = self.desk.loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        for lane in list(self._queued):
            for forward in lane.gate.wake(now_s, lane.elsewhere(now_s)):
                forward.go(lane)
            for forward in lane.gate.expired(now_s):
                self._out(lane, forward, "it waited too long for a place")
            if not lane.gate.queued:
                self._queued.discard(lane)
        for lane in list(self._wanted):
            self._look_at_engine(lane, now_s)
        if self._queued or self._wanted:
            self._watch()

    def _look_at_engine(self, lane: Lane, now_s: float) -> None:
        waiting = self._wanted[lane]
        ready = self.ready(lane)
        failed = lane.known(Known.STATE) == State.FAILED
        for forward, (since_s, told_s) in list(waiting.items()):
            if ready:
                self.unwant(lane, forward)
                forward.loaded(lane)
            elif failed or now_s - since_s > self.desk.plan.maximum_wait_s:
                self.unwant(lane, forward)
                forward.not_loaded(lane, "it could not be loaded" if failed else "it was not loaded in time")
            elif now_s - told_s > TELL_S:
                waiting[forward] = (since_s, now_s)
                forward.tell_progress(lane, lane.known(Known.PROGRESS))
        if not waiting:
            del self._wanted[lane]

    def _out(self, lane: Lane, forward: Forward, why: str) -> None:
        """It lost its place in line without going."""
        lane.add(Load.QUEUED, -1)
        lane.counted(Count.SHED)
        forward.waits_at = None
        forward.refuse(503, f"no place became free: {why}", "overloaded", retry_s=1.0)
