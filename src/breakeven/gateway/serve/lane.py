"""One backend as one worker sees it: its connections, its breaker and gate, its numbers in shared memory, its view.

Numbers of other workers are read again only every few milliseconds: ours are exact, theirs hardly change in between.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from math import exp
from typing import Any, Protocol

import msgspec

from breakeven.errors import UserError
from breakeven.gateway.experts.hand import looking_at
from breakeven.gateway.guard import CODES, Breaker
from breakeven.gateway.places import Gate, NextInLine, kept_places
from breakeven.gateway.plan.limits import Limits
from breakeven.gateway.plan.model import BackendPlan
from breakeven.gateway.plan.reach import value_of
from breakeven.gateway.route.learned import Lengths
from breakeven.gateway.route.speed import bound_of, peaked
from breakeven.gateway.route.view import Speed, View, view_of
from breakeven.gateway.serve.speech import Speech
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import (
    AHEAD_TOKENS,
    CONTEXT_TOKENS,
    DECODING,
    IN_FLIGHT,
    LOAD_S,
    OURS_AT_POLL,
    POLLED_S,
    QUEUED,
    REQUESTS,
    RUNNING,
    STATE,
    TPOT_LOG,
    TTFT_LOG,
    TTFT_WIDTH,
    UP,
    WAITING,
    Count,
    State,
    UnderWay,
)
from breakeven.gateway.translate.table import WAYS, way_to
from breakeven.wire.client import HttpClient
from breakeven.wire.target import split_base

PLAIN = (b"accept-encoding", b"identity")
"""What a backend compresses all the same is read as far as it can be, and costs more where it cannot."""
STALE_S = 5.0
"""Numbers of an engine that was looked at before and not since are not believed any more."""
REFRESH_S = 0.005
READY, FAILED = int(State.READY), int(State.FAILED)
CLAIM_HOLDS_NS = 100_000_000
"""What a worker said of its line is believed this long; it says so anew with every look."""


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
        "_holding",
        "_known",
        "_known_at",
        "_load",
        "_load_at",
        "_others",
        "_peaked_s",
        "_said",
        "_secret",
        "_workers",
        "ahead",
        "bound",
        "breaker",
        "count",
        "count_at",
        "gate",
        "header",
        "key_columns",
        "lengths",
        "looking",
        "model_raw",
        "name",
        "plan",
        "port",
        "secret",
        "slot",
        "speech",
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
        keys: int = 0,
    ):
        """Opens nothing. `keys`: how many may ask. Raises UserError where the backend's key's variable is not set."""
        self.plan, self.slot, self.name = plan, slot, plan.name
        self.header = (b"x-breakeven-backend", plan.name.encode())
        self.model_raw = msgspec.Raw(msgspec.json.encode(plan.served_model or plan.name))
        self.speech = Speech(plan, slot, block)
        self.looking = looking_at(plan)
        self.upstream: HttpClient | None = None
        self.port = 0
        self._secret = secret_of(plan, block)
        self.secret = self._secret[0][1].removeprefix(b"Bearer ") if self._secret else b""
        if plan.url is not None:
            self.upstream = self.connect(plan.url, limits)
        self.breaker = Breaker()
        self.key_columns = columns = block.held.columns
        held = [block.held.mine(w)[slot * columns : (slot + 1) * columns] for w in range(block.shape.workers)]
        # Every other worker's cells of this backend's places by key.
        self._holding = [cells for w, cells in enumerate(held) if w != worker]
        kept = kept_places(plan.limit, keys)
        self.gate: Gate[Waiter] = Gate(plan.limit, queue_size, kept, held[worker], self._held_elsewhere)
        self.view = view_of(index, plan, speed)
        ways = ((endpoint, way_to(endpoint, self.view.endpoints)) for endpoint in WAYS)
        self.view.translates = {endpoint: way for endpoint, way in ways if way not in (None, endpoint)}
        self.bound = bound_of(speed)
        self._load: Any = block.load.mine(worker)
        self._load_at = slot * block.load.columns
        self.count: Any = block.count.mine(worker)
        self.count_at = slot * block.count.columns
        self._known: Any = block.known.mine(0)
        self._known_at = slot * block.known.columns
        self.lengths = Lengths(self._known, self._known_at)
        # Every other worker's cells of this backend: whole rows, so that one slice a column is all there is to add up.
        self._workers = [block.load.mine(w) for w in range(block.shape.workers) if w != worker]
        self._elsewhere_s = self._peaked_s = 0.0
        self._others = (0, 0, 0, 0)
        self.ahead: NextInLine | None = None
        """Who goes next of other workers' lines, as of the last look at `elsewhere`."""
        self._said = False

    def connect(self, url: str, limits: Limits) -> HttpClient:
        """The client for a base URL."""
        plan = self.plan
        return HttpClient(
            split_base(url)[0],
            timeouts=plan.timeouts,
            secret=(*self._secret, *agent_of(plan), PLAIN),
            tls=plan.tls_files,
            proxy=plan.proxy,
            socket=None if plan.socket is None else str(plan.socket),
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

    def began(self, ahead: int, size: int) -> None:
        """A request goes there: its prompt's tokens, and those that it is expected to hold."""
        load, at = self._load, self._load_at
        load[at + IN_FLIGHT] += 1
        load[at + AHEAD_TOKENS] += ahead
        load[at + CONTEXT_TOKENS] += size
        self.count[self.count_at + REQUESTS] += 1

    def ended(self, ahead: int, size: int, *, decoding: bool) -> None:
        """It is there no more. `decoding`: its prompt was done, see `decodes`."""
        load, at = self._load, self._load_at
        load[at + IN_FLIGHT] -= 1
        load[at + CONTEXT_TOKENS] -= size
        if decoding:
            load[at + DECODING] -= 1
        else:
            load[at + AHEAD_TOKENS] -= ahead

    def decodes(self, ahead: int) -> None:
        """Its first byte came: its prompt is ahead of nobody any more."""
        load, at = self._load, self._load_at
        load[at + AHEAD_TOKENS] -= ahead
        load[at + DECODING] += 1

    def known(self, column: int) -> float:
        """What the watching process or all workers together know."""
        value: float = self._known[self._known_at + column]
        return value

    def learn(self, column: int, value: float) -> None:
        """Set such a number; of two workers at once the later one wins, which costs one lesson."""
        self._known[self._known_at + column] = value

    def slow(self, predicted_s: float, actual_s: float, now_s: float) -> None:
        """Remember how slow it was just now, for the choice among replicas."""
        self.view.peak = peaked(self.view.peak, predicted_s, actual_s, now_s - self._peaked_s)
        self._peaked_s = now_s

    def elsewhere(self, now_s: float) -> int:
        """Requests that other workers have in flight here."""
        if now_s - self._elsewhere_s > REFRESH_S:
            self._look_elsewhere(now_s)
        return self._others[0]

    def _look_elsewhere(self, now_s: float) -> None:
        self._elsewhere_s = now_s
        at = self._load_at
        in_flight = ahead = context = queued = 0
        for load in self._workers:
            in_flight += load[at + IN_FLIGHT]
            ahead += load[at + AHEAD_TOKENS]
            context += load[at + CONTEXT_TOKENS]
            queued += load[at + QUEUED]
        self._others = (in_flight, ahead, context, queued)
        self.ahead = self._claim_elsewhere() if queued else None

    # Places, which keys share fairly over workers.

    def _held_elsewhere(self, key: int) -> int:
        """Places that a key has here in other workers."""
        return sum(cells[key] for cells in self._holding)

    def _claim_elsewhere(self) -> NextInLine | None:
        at, now_ns = self._load_at, time.monotonic_ns()
        said = [
            NextInLine(load[at + UnderWay.CLAIM_PRIORITY], load[at + UnderWay.CLAIM_FEWER])
            for load in self._workers
            # A worker that has stopped must not hold places back that it does not take.
            if now_ns - load[at + UnderWay.CLAIM_NS] < CLAIM_HOLDS_NS
        ]
        return max(said, default=None)

    def tell_claim(self) -> None:
        """Let other workers know who goes next of this one's line."""
        claim = self.gate.claim()
        if claim is None and not self._said:
            return
        self._said = claim is not None
        load, at = self._load, self._load_at
        load[at + UnderWay.CLAIM_PRIORITY], load[at + UnderWay.CLAIM_FEWER] = claim or (0, 0)
        load[at + UnderWay.CLAIM_NS] = 0 if claim is None else time.monotonic_ns()

    def refresh(self, now_s: float) -> View:
        """The view as of now."""
        view, load, at = self.view, self._load, self._load_at
        known, k = self._known, self._known_at
        if now_s - self._elsewhere_s > REFRESH_S:
            self._look_elsewhere(now_s)
        in_flight, ahead, context, queued = self._others
        ours = load[at + IN_FLIGHT] + in_flight
        running = float(ours)
        polled_s = known[k + POLLED_S]
        view.stale = polled_s > 0.0 and now_s - polled_s > STALE_S
        view.away = self.plan.poll and known[k + UP] != 1.0
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
        breaker = self.breaker
        before = breaker.state
        if before == "closed":
            view.open = now_s >= breaker.held_until_s
        else:
            view.open = breaker.allows(now_s)
            if before != breaker.state:
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
        if before != "closed":
            self._show_breaker(before)

    def _show_breaker(self, before: str) -> None:
        state = self.breaker.state
        if state != before:
            self._load[self._load_at + UnderWay.BREAKER] = CODES[state]
            if state == "open":
                self.counted(Count.BREAKER_OPENED)


def secret_of(plan: BackendPlan, block: SharedBlock | None = None) -> tuple[tuple[bytes, bytes], ...]:
    """The header that carries a backend's key: its own, or that which `block` has for an engine of ours.

    Raises UserError when its variable is not set or unprintable.
    """
    if plan.local is not None and block is not None:
        return ((b"authorization", f"Bearer {block.engine_key(plan.name)}".encode()),)
    if plan.api_key_env is None:
        return ()
    value = value_of(plan.api_key_env)
    if not value:
        raise UserError(f"backend {plan.name}: the environment variable {plan.api_key_env} holds no key; set it")
    if not (value.isascii() and value.isprintable()):
        raise UserError(f"backend {plan.name}: the key in {plan.api_key_env} has an unprintable character; set it anew")
    header, line = plan.spoken.key_line(value)
    return ((header.encode(), line.encode("latin-1")),)


def agent_of(plan: BackendPlan) -> tuple[tuple[bytes, bytes], ...]:
    """The `user-agent` that its own headers name, which goes in the place of ours; empty: they name none."""
    named = {name.lower(): value for name, value in plan.spoken.headers.items()}.get("user-agent")
    return () if named is None else ((b"user-agent", named.encode()),)
