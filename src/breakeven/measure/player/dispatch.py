"""Plays a schedule, or a worker's part of it, on one event loop: every request at its due time, come what may.

Open loop: nothing an answer does can hold a request back, and there is no cap on how many are in flight; one that
comes late is sent at once and keeps its scheduled due time, so that lateness is measured rather than hidden. Closed
loop: `concurrency` streams, each sending its next request when the one before is answered and thought about.

What it refuses to know: bytes on the wire, files, and other processes.
"""

from __future__ import annotations

import asyncio
import heapq
import time

import msgspec
import numpy as np

from breakeven.measure.events import RequestDone
from breakeven.measure.player.clocks import Alarm
from breakeven.measure.player.job import Job, followers, lost_request
from breakeven.measure.player.tally import FLUSH_S, Recorder
from breakeven.measure.pool import Call, Pool, Recording
from breakeven.traffic.schedule import DEPENDS

LOOK_AHEAD = 8
"""Bodies made before their requests are due. One takes tens of microseconds; more than a few only cost memory."""
BURST = 16
"""Late requests sent before bytes that have arrived are looked at again: their times matter as much."""
FAILED_PAUSE_NS = 200_000_000
"""In a closed loop, after a failure: a dead endpoint refuses in microseconds, and nobody retries that fast."""
CANCEL_GRACE_S = 5.0

UNFINISHED = "unfinished when the run ended"
INTERRUPTED = "the run was interrupted"
FAILED = "the run failed"
BROKEN_OFF = "not sent: an earlier turn of its conversation failed"


class Player:
    """Plays one job. Make it on the loop, then await `play` once."""

    def __init__(self, job: Job, pool: Pool, recorder: Recorder) -> None:
        schedule, arrivals = job.schedule, job.schedule.workload.arrivals
        self._job, self._pool, self._recorder, self._schedule = job, pool, recorder, schedule
        self._loop = asyncio.get_running_loop()
        self._alarm = Alarm(self._loop, self._fire)
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._open: dict[int, Recording | None] = {}
        self._later: list[tuple[int, int]] = []
        """Heap of (due_ns, index): requests that an answer has made due."""
        self._bodies: dict[int, bytes] = {}
        self._wanted: dict[int, None] = {}
        """Bodies to make next, in order."""
        self._building = False
        self._detail: str | None = None
        """Why everything was cancelled, once it was."""
        self._last_due_ns = self._armed_ns = 0
        self._start_ns = self._warm_until_ns = self._stop_ns = 0
        self._after_N = followers(schedule)
        self._sessions = int(schedule.session_N.max(initial=-1)) + 1
        rows_R = job.rows()
        due_R = schedule.due_ns_N[rows_R]
        self._timed_T = rows_R[due_R != DEPENDS]
        self._next_timed = self._next_built = 0
        self._closed = arrivals.is_closed
        self._streams = job.share(arrivals.concurrency or 0) if self._closed else 0
        waits_N = np.zeros(len(schedule), dtype=np.bool_)
        waits_N[self._after_N[self._after_N >= 0]] = True
        self._units_U = rows_R[~waits_N[rows_R]]
        """Closed loop: what a free stream takes up, single requests or first turns of conversations."""
        self._next_unit = 0
        requests = schedule.workload.requests
        self._left: int | None = job.share(requests) if self._closed and requests is not None else None
        """Measured requests a closed loop may still make due."""

    async def play(self, start_ns: int) -> None:
        """Play from `start_ns` until all is answered, or `drain_s` after the last request was due.

        Raises whatever went wrong in this process; what the server does is recorded, never raised.
        """
        workload = self._schedule.workload
        self._start_ns = start_ns
        self._warm_until_ns = start_ns + round(workload.warm_up_s * 1e9)
        if self._closed and workload.duration_s is not None:
            self._stop_ns = self._warm_until_ns + round(workload.duration_s * 1e9)
        for _ in range(self._streams if len(self._units_U) else 0):
            self._take_unit(start_ns)
        self._look_ahead()
        self._tick()
        self._arm()
        try:
            await self._over
        finally:
            self._alarm.close()
            self._detail = self._detail or FAILED
            for exchange in list(self._open.values()):  # empty but after a failure of ours
                if exchange is not None:
                    exchange.cancel()
            self._recorder.flush()

    def cancel(self, detail: str) -> None:
        """Send nothing more and end everything in flight as "cancelled", saying why."""
        if self._detail is not None or self._over.done():
            return
        self._detail = detail
        self._loop.call_later(CANCEL_GRACE_S, self._finish)
        for exchange in list(self._open.values()):
            if exchange is not None:
                exchange.cancel()
        self._check_over()

    # When the next request is due

    def _next_due_ns(self) -> int | None:
        """When the next known request is due; None when none is known."""
        due_ns = self._later[0][0] if self._later else None
        if self._next_timed < len(self._timed_T):
            timed_ns = self._start_ns + int(self._schedule.due_ns_N[self._timed_T[self._next_timed]])
            due_ns = timed_ns if due_ns is None else min(due_ns, timed_ns)
        return due_ns

    def _pop(self, due_ns: int) -> int:
        """Index of the request that is due at `due_ns`, the earliest known."""
        if self._later and self._later[0][0] == due_ns:
            return heapq.heappop(self._later)[1]
        self._next_timed += 1
        return int(self._timed_T[self._next_timed - 1])

    def _arm(self) -> None:
        due_ns = self._next_due_ns()
        if due_ns is not None and due_ns != self._armed_ns and self._detail is None and not self._over.done():
            self._armed_ns = due_ns
            self._alarm.set(due_ns)

    def _fire(self) -> None:
        """Send what is due; on with it after other callbacks when much is."""
        self._armed_ns = 0
        if self._detail is not None or self._over.done():
            return
        try:
            now_ns = time.monotonic_ns()
            for _ in range(BURST):
                due_ns = self._next_due_ns()
                if due_ns is None or due_ns > now_ns:
                    self._look_ahead()
                    self._arm()
                    self._check_over()
                    return
                self._send(self._pop(due_ns), due_ns)
            self._loop.call_soon(self._fire)
        except Exception as error:
            self._fail(error)

    # One request

    def _send(self, index: int, due_ns: int) -> None:
        call = self._call(index, due_ns)
        self._last_due_ns = max(self._last_due_ns, due_ns)
        self._open[index] = None
        self._recorder.begun(index, due_ns)
        exchange = self._pool.start(call, self._done)
        if index in self._open:
            self._open[index] = exchange
        if (following := self._following(index)) is not None:
            self._want(following)

    def _call(self, index: int, due_ns: int) -> Call:
        bodies, planned = self._job.bodies, self._schedule.row(index)
        session = planned.session
        if session is not None:
            # Beyond the last row conversations repeat in shape, but are new ones.
            session += index // len(self._schedule) * self._sessions
        self._wanted.pop(index, None)
        body = self._bodies.pop(index, None)
        return Call(
            block=self._job.block,
            index=index,
            path=bodies.path,
            body=bodies.body(index) if body is None else body,
            prompt_tokens=bodies.prompt_tokens(index),
            max_tokens=bodies.max_tokens(index),
            stream=self._schedule.workload.stream,
            ignore_eos=bodies.ignore_eos,
            due_ns=due_ns,
            warm=due_ns < self._warm_until_ns if self._closed else planned.warm,
            session=session,
            turn=planned.turn,
            worker=self._job.worker,
        )

    def _done(self, done: RequestDone) -> None:
        """A request is over, well or not. Called by the pool."""
        try:
            self._open.pop(done.stream, None)
            if self._detail is not None and done.error == "cancelled":
                done = msgspec.structs.replace(done, detail=self._detail)
            self._recorder.done(done)
            self._go_on(done)
            self._check_over()
        except Exception as error:
            self._fail(error)

    def _go_on(self, done: RequestDone) -> None:
        """Make due what waited for this answer."""
        following = self._following(done.stream)
        if following is not None and done.error is not None:
            self._break_off(following, done)
            following = None
        if self._detail is not None:
            return
        if following is not None:
            due_ns = done.done_ns + self._think_ns(following)
            if self._may_be_due(due_ns):
                self._become_due(following, due_ns)
        elif self._closed:
            pause_ns = FAILED_PAUSE_NS if done.error is not None else 0
            self._take_unit(done.done_ns, pause_ns)
        self._arm()

    def _break_off(self, index: int | None, failed: RequestDone) -> None:
        """Record the turns that can never come as cancelled, rather than to drop them."""
        if self._detail is not None and self._detail != UNFINISHED:
            return
        while index is not None:
            call, at_ns = self._call(index, failed.done_ns), failed.done_ns
            detail = self._detail or BROKEN_OFF
            self._recorder.never_sent(lost_request(call, self._job.backend.model, detail, due_ns=at_ns, now_ns=at_ns))
            index = self._following(index)

    # What follows

    def _following(self, index: int) -> int | None:
        n = len(self._schedule)
        after = int(self._after_N[index % n])
        return None if after < 0 else index - index % n + after

    def _think_ns(self, index: int) -> int:
        return int(self._schedule.think_ns_N[index % len(self._schedule)])

    def _take_unit(self, free_ns: int, pause_ns: int = 0) -> None:
        """A stream of the closed loop became free at `free_ns`: let it take the next request up after thinking."""
        index = self._unit(self._next_unit)
        # Nobody has anything to think about before the first answer.
        think_ns = self._think_ns(index) if free_ns > self._start_ns else 0
        due_ns = free_ns + max(think_ns, pause_ns)
        if self._may_be_due(due_ns):
            self._next_unit += 1
            self._become_due(index, due_ns)

    def _unit(self, number: int) -> int:
        lap, place = divmod(number, len(self._units_U))
        return lap * len(self._schedule) + int(self._units_U[place])

    def _may_be_due(self, due_ns: int) -> bool:
        """Whether a closed loop may still make a request due then; an open one always may."""
        if not self._closed:
            return True
        if self._stop_ns and due_ns >= self._stop_ns:
            return False
        if self._left is not None and due_ns >= self._warm_until_ns:
            if self._left == 0:
                return False
            self._left -= 1
        return True

    def _become_due(self, index: int, due_ns: int) -> None:
        heapq.heappush(self._later, (due_ns, index))
        if self._closed and len(self._units_U):
            self._want(self._unit(self._next_unit))

    # Bodies, before they are needed

    def _look_ahead(self) -> None:
        """Ask for the bodies of the next timed requests."""
        self._next_built = max(self._next_built, self._next_timed)
        until = min(self._next_timed + LOOK_AHEAD, len(self._timed_T))
        while self._next_built < until:
            self._want(int(self._timed_T[self._next_built]))
            self._next_built += 1

    def _want(self, index: int) -> None:
        if index not in self._bodies:
            self._wanted[index] = None
            if not self._building:
                self._building = True
                self._loop.call_soon(self._build)

    def _build(self) -> None:
        """Make one body, then let other callbacks have their turn."""
        self._building = False
        try:
            if self._wanted:
                index = next(iter(self._wanted))
                del self._wanted[index]
                self._bodies[index] = self._job.bodies.body(index)
        except Exception as error:
            self._fail(error)
            return
        if self._wanted:
            self._building = True
            self._loop.call_soon(self._build)

    # The end

    @property
    def _nothing_left(self) -> bool:
        """True when no request is known to become due any more, but for turns that wait for an answer."""
        return not self._later and self._next_timed >= len(self._timed_T)

    def _check_over(self) -> None:
        if not self._open and (self._detail is not None or self._nothing_left):
            self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    def _tick(self) -> None:
        """Hand on what has happened, and end a run that waits in vain."""
        if self._over.done():
            return
        self._recorder.flush()
        due_ns = max(self._last_due_ns, self._stop_ns)
        if self._left:  # streams of a closed loop are still to send more, however long their answers take
            due_ns = max(due_ns, time.monotonic_ns())
        if self._nothing_left and time.monotonic_ns() > due_ns + round(self._job.drain_s * 1e9):
            self.cancel(UNFINISHED)
        self._check_over()
        self._loop.call_later(FLUSH_S, self._tick)
