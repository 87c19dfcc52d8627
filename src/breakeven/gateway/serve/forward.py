"""One request from its choice to its record. Callbacks move it on; it owns no task and, without a hedge, no timer.

    begin -> [wait for a place | wait for an engine] -> leg -> first byte -> ... -> end -> record
                                                     \\-> lost before the first byte -> next backend

Another backend is tried only while the client has got nothing. The client's leaving ends all of it at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from breakeven.gateway.plan.model import PolicyPlan
from breakeven.gateway.route.view import Ask, Choice
from breakeven.gateway.serve.account import answered, record_of
from breakeven.gateway.serve.ask import WANTS_USAGE, Asked, body_for
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.leg import Leg
from breakeven.gateway.serve.say import JSON
from breakeven.gateway.serve.tap import StreamTap, WholeTap
from breakeven.gateway.shared.layout import Count, Load
from breakeven.wire.message import Headers, Request, Responder, error_body

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from breakeven.gateway.keys.windows import Spent
    from breakeven.gateway.serve.desk import Client, Desk

EVENTS = (b"content-type", b"text/event-stream")
CLIENT_LEFT = 499
"""nginx's word for a client that closed before its answer; it stands in the log only."""
PASSED = frozenset(
    (
        b"content-type",
        b"accept",
        b"anthropic-version",
        b"anthropic-beta",
        b"openai-beta",
        b"traceparent",
        b"tracestate",
    )
)
"""Request headers that reach a backend. No others do, so no credential, cookie or address of the client's can."""
KEPT_BACK = frozenset((b"set-cookie", b"server", b"alt-svc", b"strict-transport-security", b"content-length"))
"""Headers of an answer that are between the gateway and the backend."""


class Forward:
    """A request on its way. `order` are lanes still to be tried, best first."""

    __slots__ = (
        "arm",
        "arrived_ns",
        "ask",
        "asked",
        "attempts",
        "choice",
        "client",
        "desk",
        "early",
        "ended_",
        "endpoint",
        "errors",
        "experiment",
        "group",
        "headers",
        "hedge_timer",
        "id",
        "legs",
        "order",
        "policy",
        "queued_ns",
        "request_body",
        "responder",
        "sent_ns",
        "shadow_of",
        "spent",
        "waits_at",
        "wanted",
        "winner",
    )

    def __init__(
        self,
        desk: Desk,
        request: Request,
        responder: Responder,
        client: Client,
        asked: Asked,
        ask: Ask,
        policy: PolicyPlan,
        choice: Choice,
    ) -> None:
        """Nothing is sent yet."""
        self.desk, self.responder, self.client = desk, responder, client
        self.asked, self.ask, self.policy, self.choice = asked, ask, policy, choice
        self.endpoint = ask.endpoint
        self.id = desk.new_id()
        self.arrived_ns = request.received_ns
        self.headers = [header for header in request.headers if header[0] in PASSED]
        self.request_body = request.body
        self.order: list[Lane] = []
        self.attempts = 0
        self.legs: list[Leg] = []
        self.winner: Leg | None = None
        self.errors = ""
        self.early = False
        self.spent: Spent | None = None
        self.ended_ = False
        self.waits_at: Lane | None = None
        self.wanted: Lane | None = None
        self.queued_ns = self.sent_ns = 0
        self.hedge_timer: TimerHandle | None = None
        self.experiment = self.arm = self.group = self.shadow_of = ""

    # The way out.

    def begin(self) -> None:
        """Send it, or wait for a place."""
        responder = self.responder
        responder.on_gone = self._gone
        responder.on_pause = self._pause
        responder.on_resume = self._resume
        self._next()

    def prompt_tokens(self, lane: Lane) -> float:
        """Of this prompt, by this backend's tokenizer as far as it is known."""
        return self.asked.prompt_tokens(lane.bytes_per_token)

    def _next(self) -> None:
        """The best backend that can be asked at once; else a place in the line of the best one."""
        now_s = time.monotonic()
        line = self.desk.line
        order = self.order
        if not self.attempts and self._wait_for_engine(order[0] if order else None, now_s):
            return
        for k, lane in enumerate(order):
            if lane.breaker.allows(now_s) and line.ready(lane) and line.enter_now(lane, self, now_s):
                del order[k]
                self.go(lane)
                return
        while order:
            if self._wait_for_engine(order[0], now_s):
                return
            lane = order.pop(0)
            if not line.ready(lane):
                continue
            # With every breaker open, the best one is tried all the same: it may have come back.
            entered = line.enter(lane, self, now_s)
            if entered == "go":
                self.go(lane)
                return
            if entered == "wait":
                self.waits_at = lane
                self.queued_ns = time.monotonic_ns()
                lane.add(Load.QUEUED, 1)
                return
            lane.counted(Count.SHED)
        self._refuse()

    def _wait_for_engine(self, lane: Lane | None, now_s: float) -> bool:
        """Wait for an engine of ours that is not loaded, if it can be: it was chosen with its loading in mind."""
        if lane is None or self.desk.line.ready(lane) or not self.desk.line.want(lane, self, now_s):
            return False
        self.order.remove(lane)
        self.wanted = lane
        return True

    def loaded(self, lane: Lane) -> None:
        """The engine it waited for is there."""
        self.wanted = None
        self.order.insert(0, lane)
        self._next()

    def not_loaded(self, lane: Lane, why: str) -> None:
        """The engine it waited for does not come: on to the next backend."""
        self.wanted = None
        self.errors = f"{self.errors}; {lane.plan.name}: {why}" if self.errors else f"{lane.plan.name}: {why}"
        self._next()

    def tell_progress(self, lane: Lane, progress: float) -> None:
        """A comment in the stream, which clients of server-sent events pass over; other answers cannot begin yet."""
        if not self.asked.streams:
            return
        if not self.early:
            self.early = True
            self.responder.start(200, [EVENTS, *self.desk.told(self, None)])
        self.responder.write(b": loading %s, %.0f %%\n\n" % (lane.plan.name.encode(), 100.0 * progress))

    def go(self, lane: Lane, *, hedge: bool = False) -> None:
        """There is a place at this backend: ask it."""
        if self.waits_at is not None:
            self.waits_at.add(Load.QUEUED, -1)
            self.waits_at = None
        self.wanted = None
        ask_usage = self.asked.streams and self.endpoint in WANTS_USAGE
        tap: StreamTap | WholeTap
        tap = (
            StreamTap(self.endpoint, drop_usage=ask_usage and not self.asked.wants_usage)
            if self.asked.streams
            else WholeTap()
        )
        leg = Leg(self, lane, tap, hedge=hedge)
        self.legs.append(leg)
        if not self.sent_ns:
            self.sent_ns = leg.start_ns
        if hedge:
            lane.counted(Count.HEDGED)
        else:
            self.attempts += 1
            if self.attempts > 1:
                lane.counted(Count.RETRIED)
            elif self.policy.hedge is not None and self.order:
                self._plan_hedge()
        leg.send(self.endpoint, self.headers, body_for(self.asked, lane.model_raw, tell_usage=ask_usage))

    def may_try_another(self, leg: Leg) -> bool:
        """Whether a failing leg should make room for the next one rather than tell the client."""
        if self.winner is not None:
            return False
        others = any(other is not leg and not other.outcome for other in self.legs)
        return others or (bool(self.order) and self.attempts < self.policy.attempts)

    def lost(self, leg: Leg, why: str) -> None:
        """A leg ended without a byte for the client."""
        self.errors = f"{self.errors}; {leg.lane.plan.name} {why}" if self.errors else f"{leg.lane.plan.name} {why}"
        if self.ended_ or self.winner is not None or any(not other.outcome for other in self.legs):
            return
        if self.order and self.attempts < self.policy.attempts:
            self._next()
        else:
            self._refuse()

    def _refuse(self) -> None:
        """Nobody is left to ask."""
        last = self.legs[-1] if self.legs else None
        if last is None:
            self.refuse(503, "no backend has a place; try again", "overloaded", retry_s=1.0)
        elif last.outcome == "timeout":
            self.refuse(504, "the backend did not answer in time", "upstream_timeout")
        else:
            self.refuse(502, "no backend could answer", "upstream_failed")

    def refuse(self, status: int, message: str, code: str, *, retry_s: float | None = None) -> None:
        """Tell the client that it gets no answer, and why as far as it is its business."""
        body = error_body(status, message, None, code)
        if self.early:
            self.responder.write(b"data: " + body + b"\n\n")
            self.responder.finish()
        else:
            headers = [JSON, *self.desk.told(self, None)]
            if retry_s is not None:
                headers.append((b"retry-after", str(max(1, round(retry_s))).encode()))
            self.responder.respond(status, headers, body)
        self._end(None, status, self.errors or message)

    # The way back.

    def won(self, leg: Leg) -> None:
        """The first byte of a leg: it is the answer, the others are cancelled."""
        if self.winner is not None:
            leg.drop("hedge_lost")
            return
        self.winner = leg
        self._stop_hedge()
        for other in self.legs:
            if other is not leg and not other.outcome:
                other.drop("hedge_lost")
        if leg.hedge:
            leg.lane.counted(Count.HEDGE_WON)

    def length_of(self, leg: Leg) -> int:
        """Bytes of its body as its head says, -1 when it does not."""
        for name, value in leg.head:
            if name == b"content-length":
                return int(value)
        return -1

    def start(self, leg: Leg) -> None:
        """The head, for an answer that comes in pieces."""
        if self.early:
            return
        headers = [header for header in leg.head if header[0] not in KEPT_BACK]
        if type(leg.tap) is WholeTap and (length := self.length_of(leg)) >= 0:
            headers.append((b"content-length", str(length).encode()))
        headers.extend(self.desk.told(self, leg))
        self.responder.start(leg.status, headers)

    def respond(self, leg: Leg) -> None:
        """An answer that came in one piece."""
        headers = [header for header in leg.head if header[0] not in KEPT_BACK]
        headers.extend(self.desk.told(self, leg))
        self.responder.respond(leg.status, headers, leg.single or b"")

    def ended(self, leg: Leg, error: str) -> None:
        """The answer is over, whole or cut."""
        self._end(leg, leg.status, error)

    def _end(self, leg: Leg | None, status: int, error: str) -> None:
        if self.ended_:
            return
        self.ended_ = True
        self._stop_hedge()
        if leg is not None:
            answered(self, leg)
        self.desk.done(self, record_of(self, leg, status, error))
        # Legs hold this object: without the circle both go at once instead of with the next collection.
        self.legs = []
        self.winner = None

    # The client.

    def leave(self) -> None:
        """Stop it as if its client had left."""
        self._gone()

    def _gone(self) -> None:
        if self.ended_:
            return
        if self.waits_at is not None:
            self.waits_at.gate.remove(self)
            self.waits_at.add(Load.QUEUED, -1)
            self.waits_at = None
        if self.wanted is not None:
            self.desk.line.unwant(self.wanted, self)
            self.wanted = None
        for leg in self.legs:
            if not leg.outcome:
                leg.lane.counted(Count.CANCELLED)
                leg.drop("cancelled")
        self._end(self.winner, CLIENT_LEFT, "the client left")

    def _pause(self) -> None:
        if self.winner is not None and self.winner.exchange is not None:
            self.winner.exchange.pause()

    def _resume(self) -> None:
        if self.winner is not None and self.winner.exchange is not None:
            self.winner.exchange.resume()

    # Hedging.

    def _plan_hedge(self) -> None:
        delay_s = self.desk.hedge_delay_s(self)
        if delay_s is not None:
            self.hedge_timer = self.desk.loop.call_later(delay_s, self._hedge)

    def _hedge(self) -> None:
        self.hedge_timer = None
        if self.ended_ or self.winner is not None:
            return
        lane = self.desk.hedge_lane(self)
        if lane is not None:
            if lane in self.order:
                self.order.remove(lane)
            self.go(lane, hedge=True)

    def _stop_hedge(self) -> None:
        if self.hedge_timer is not None:
            self.hedge_timer.cancel()
            self.hedge_timer = None


__all__ = ["CLIENT_LEFT", "Forward", "Headers"]
