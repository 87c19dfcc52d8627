"""One backend as one worker sees it: its connections, its breaker and gate, its numbers in shared memory, its view.

`WaitingLine` is everybody of one worker who waits: for a place at a backend, or for an engine of ours to be loaded.

Numbers of other workers are read again only every few milliseconds: ours are exact, theirs hardly change in between.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Hashable
from math import exp
from typing import Any, Literal, Protocol

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.guard import CODES, Breaker, Gate
from breakeven.gateway.plan.model import BackendPlan, Limits
from breakeven.gateway.route.speed import bound_of, peaked
from breakeven.gateway.route.view import Speed, View, view_of
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import (
    AHEAD_TOKENS,
    BYTES_PER_TOKEN,
    CONTEXT_TOKENS,
    IN_FLIGHT,
    LOAD_S,
    MEAN_OUTPUT,
    OURS_AT_POLL,
    POLLED_S,
    QUEUED,
    RUNNING,
    STATE,
    TPOT_LOG,
    TTFT_LOG,
    TTFT_WIDTH,
    WAITING,
    Count,
    Known,
    State,
    UnderWay,
)
from breakeven.wire.client import HttpClient

USUAL_BYTES = 4.0
"""Of English text as JSON, until the backend's own counts say otherwise."""
USUAL_OUTPUT = 200.0
"""An answer's length until some have been seen; the mean of the Azure conversation trace is 211."""
STALE_S = 5.0
"""Numbers of an engine that was looked at before and not since are not believed any more."""
REFRESH_S = 0.005
READY, FAILED = int(State.READY), int(State.FAILED)
_LEARNING = 0.05
"""Weight of one answer in what is learned of lengths: the last twenty or so count."""
LOOK_S = 0.01
"""Places that other workers free, and engines that became ready, are seen this late at most."""
TELL_S = 1.0
"""A client that waits for an engine hears this often how far it is."""


class Waiter(Hashable, Protocol):
    """A request in line. One of these is called once when its waiting ends, but for `tell_progress`."""

    def go(self, lane: Lane) -> None:
        """It has its place."""

    def no_place(self, lane: Lane, why: str) -> None:
        """It lost its place in line."""

    def loaded(self, lane: Lane) -> None:
        """The engine it waited for is there."""

    def not_loaded(self, lane: Lane, why: str) -> None:
        """The engine does not come."""

    def tell_progress(self, lane: Lane, progress: float) -> None:
        """The engine is on its way, 0 to 1."""


class Lane:
    """A backend of this worker's plan. `slot` is its row in shared memory."""

    __slots__ = (
        "_elsewhere_s",
        "_known",
        "_known_at",
        "_load",
        "_load_at",
        "_others",
        "_peaked_s",
        "_secret",
        "_workers",
        "bound",
        "breaker",
        "count",
        "count_at",
        "gate",
        "header",
        "model_raw",
        "name",
        "plan",
        "port",
        "secret",
        "slot",
        "upstream",
        "view",
    )

    def __init__(
        self,
        index: int,
        plan: BackendPlan,
        slot: int,
        block: SharedBlock,
        worker: int,
        speed: Speed,
        limits: Limits,
        queue_size: int,
    ):
        """Opens nothing. Raises UserError where the key's variable is not set."""
        self.plan, self.slot, self.name = plan, slot, plan.name
        self.header = (b"x-breakeven-backend", plan.name.encode())
        self.model_raw = msgspec.Raw(msgspec.json.encode(plan.served_model or plan.name))
        self.upstream: HttpClient | None = None
        self.port = 0
        self._secret = secret_of(plan, block)
        self.secret = self._secret[0][1].removeprefix(b"Bearer ") if self._secret else b""
        if plan.url is not None:
            self.upstream = self.connect(plan.url, limits)
        self.breaker = Breaker()
        self.gate: Gate[Waiter] = Gate(plan.limit, queue_size)
        self.view = view_of(index, plan, speed)
        self.bound = bound_of(speed)
        self._load: Any = block.load.mine(worker)
        self._load_at = slot * block.load.columns
        self.count: Any = block.count.mine(worker)
        self.count_at = slot * block.count.columns
        self._known: Any = block.known.mine(0)
        self._known_at = slot * block.known.columns
        # Every other worker's cells of this backend: whole rows, so that one slice a column is all there is to add up.
        self._workers = [block.load.mine(w) for w in range(block.shape.workers) if w != worker]
        self._elsewhere_s = self._peaked_s = 0.0
        self._others = (0, 0, 0, 0)

    def connect(self, url: str, limits: Limits) -> HttpClient:
        """The client for a URL that ends in /v1."""
        plan = self.plan
        return HttpClient(
            url.rstrip("/").removesuffix("/v1"),
            timeouts=plan.timeouts,
            secret=self._secret,
            tls=plan.tls_files,
            proxy=plan.proxy,
            allow_link_local=plan.allow_link_local,
            response_bytes=limits.response_bytes,
        )

    # Shared numbers. `add` and `known` are on the hot path.

    def add(self, column: int, by: int) -> None:
        """Raise or lower one of this worker's `UnderWay` cells."""
        self._load[self._load_at + column] += by

    def counted(self, column: int, by: int = 1) -> None:
        """Raise one of this worker's `Count` cells or a bucket behind them."""
        self.count[self.count_at + column] += by

    def known(self, column: int) -> float:
        """What the watching process or all workers together know."""
        value: float = self._known[self._known_at + column]
        return value

    def learn(self, column: int, value: float) -> None:
        """Set such a number; of two workers at once the later one wins, which costs one lesson."""
        self._known[self._known_at + column] = value

    def learn_mean(self, column: int, value: float) -> None:
        """Move a running mean towards `value`; the first value is taken whole."""
        old = self.known(column)
        self.learn(column, value if old == 0.0 else old + _LEARNING * (value - old))

    def slow(self, predicted_s: float, actual_s: float, now_s: float) -> None:
        """Remember how slow it was just now, for the choice among replicas."""
        self.view.peak = peaked(self.view.peak, predicted_s, actual_s, now_s - self._peaked_s)
        self._peaked_s = now_s

    @property
    def bytes_per_token(self) -> float:
        """Of prompts of this backend's tokenizer."""
        return self.known(BYTES_PER_TOKEN) or USUAL_BYTES

    @property
    def output_tokens(self) -> float:
        """Of its mean answer."""
        return self.known(MEAN_OUTPUT) or USUAL_OUTPUT

    def elsewhere(self, now_s: float) -> int:
        """Requests that other workers have in flight here."""
        return self._elsewhere(now_s)[0]

    def _elsewhere(self, now_s: float) -> tuple[int, int, int, int]:
        if now_s - self._elsewhere_s > REFRESH_S:
            self._elsewhere_s = now_s
            at = self._load_at
            in_flight = ahead = context = queued = 0
            for load in self._workers:
                in_flight += load[at + IN_FLIGHT]
                ahead += load[at + AHEAD_TOKENS]
                context += load[at + CONTEXT_TOKENS]
                queued += load[at + QUEUED]
            self._others = (in_flight, ahead, context, queued)
        return self._others

    def refresh(self, now_s: float) -> View:
        """The view as of now."""
        view, load, at = self.view, self._load, self._load_at
        known, k = self._known, self._known_at
        in_flight, ahead, context, queued = self._elsewhere(now_s)
        ours = load[at + IN_FLIGHT] + in_flight
        running = float(ours)
        polled_s = known[k + POLLED_S]
        view.stale = polled_s > 0.0 and now_s - polled_s > STALE_S
        if polled_s > 0.0:
            # What it does beyond what it had of ours when it was asked is other people's.
            foreign = known[k + RUNNING] + known[k + WAITING] - known[k + OURS_AT_POLL]
            if foreign > 0.0:
                running += foreign
        view.running = running
        view.waiting = running - view.slots if running > view.slots else 0.0
        view.ahead_tokens = float(load[at + AHEAD_TOKENS] + ahead)
        view.context = (load[at + CONTEXT_TOKENS] + context) / ours if ours else 0.0
        view.queued = load[at + QUEUED] + queued
        view.free = self.plan.limit - ours
        before = self.breaker.state
        view.open = self.breaker.allows(now_s)
        if before != self.breaker.state:
            self._show_breaker(before)
        state = known[k + STATE]
        view.ready = state == READY
        view.load_s = 0.0 if view.ready else None if state == FAILED else known[k + LOAD_S]
        view.ttft_factor = exp(known[k + TTFT_LOG])
        view.tpot_factor = exp(known[k + TPOT_LOG])
        view.ttft_width = known[k + TTFT_WIDTH] or 0.5
        return view

    def failed(self, now_s: float, spell: int) -> None:
        """One more failure that is the backend's own."""
        before = self.breaker.state
        self.breaker.failed(now_s, spell)
        self._show_breaker(before)

    def succeeded(self, now_s: float, spell: int) -> None:
        """It answered."""
        before = self.breaker.state
        self.breaker.succeeded(now_s, spell)
        self._show_breaker(before)

    def _show_breaker(self, before: str) -> None:
        state = self.breaker.state
        if state != before:
            self._load[self._load_at + UnderWay.BREAKER] = CODES[state]
            if state == "open":
                self.counted(Count.BREAKER_OPENED)


class WaitingLine:
    """Everybody of one worker who waits. One timer while anybody does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits, maximum_wait_s: float) -> None:
        """Nobody waits. `maximum_wait_s`: for an engine."""
        self._loop, self._limits, self._maximum_wait_s = loop, limits, maximum_wait_s
        self._queued: set[Lane] = set()
        self._wanted: dict[Lane, dict[Waiter, tuple[float, float]]] = {}
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
            lane.upstream = lane.connect(f"http://127.0.0.1:{port}/v1", self._limits)
        return True

    def enter(
        self, lane: Lane, waiter: Waiter, priority: int, deadline_s: float, now_s: float
    ) -> Literal["go", "wait", "full"]:
        """Ask for a place at a backend."""
        gate = lane.gate
        entered = gate.enter(waiter, priority, deadline_s, now_s, lane.elsewhere(now_s))
        if entered != "go":
            for other in gate.pushed_out():
                other.no_place(lane, "others of higher priority came first")
            if entered == "wait":
                self._queued.add(lane)
                self._watch()
        return entered

    def enter_now(self, lane: Lane, waiter: Waiter, priority: int, now_s: float) -> bool:
        """Take a place if one is free."""
        return lane.gate.enter(waiter, priority, now_s, now_s, lane.elsewhere(now_s)) == "go"

    def left(self, lane: Lane) -> None:
        """A request ended there; the next one goes."""
        now_s = time.monotonic()
        for waiter in lane.gate.leave(now_s, lane.elsewhere(now_s) if lane.gate.queued else 0):
            waiter.go(lane)

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
            self._timer = self._loop.call_later(LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        now_s = time.monotonic()
        for lane in list(self._queued):
            for waiter in lane.gate.wake(now_s, lane.elsewhere(now_s)):
                waiter.go(lane)
            for waiter in lane.gate.expired(now_s):
                waiter.no_place(lane, "it waited too long for a place")
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


def secret_of(plan: BackendPlan, block: SharedBlock | None = None) -> tuple[tuple[bytes, bytes], ...]:
    """The header that carries a backend's key: its own, or that which `block` has for an engine of ours.

    Raises UserError when its variable is not set or unprintable.
    """
    if plan.local is not None and block is not None:
        return ((b"authorization", f"Bearer {block.engine_key(plan.name)}".encode()),)
    if plan.api_key_env is None:
        return ()
    value = os.environ.get(plan.api_key_env, "")
    if not value:
        raise UserError(f"backend {plan.name}: the environment variable {plan.api_key_env} holds no key; set it")
    if not (value.isascii() and value.isprintable()):
        raise UserError(f"backend {plan.name}: the key in {plan.api_key_env} has an unprintable character; set it anew")
    if plan.key_header == "x-api-key":
        return ((b"x-api-key", value.encode("latin-1")),)
    return ((b"authorization", f"Bearer {value}".encode("latin-1")),)
