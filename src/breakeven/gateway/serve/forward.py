"""What a `Course` has done, carried out: one client, its request, and the places at backends that it is given.

Callbacks move it on; it owns no task and, without a hedge, no timer.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Sequence
from math import ceil
from typing import Literal, Protocol

from breakeven.gateway.experiment.answer import Kept
from breakeven.gateway.experts.hand import OBSERVED, observed
from breakeven.gateway.guard import HedgeBudget, delay_s
from breakeven.gateway.keys.windows import Spent
from breakeven.gateway.plan.model import GatewayPlan, PolicyPlan
from breakeven.gateway.route.choose import score_of
from breakeven.gateway.route.view import REASONS, Ask, Choice
from breakeven.gateway.serve.ask import Asked, Client
from breakeven.gateway.serve.course import Course
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.leg import Leg
from breakeven.gateway.serve.waiting import WaitingLine
from breakeven.gateway.translate.table import failed_stream
from breakeven.wire.message import Headers, Request, Responder, error_body

JSON = (b"content-type", b"application/json")
EVENTS = (b"content-type", b"text/event-stream")
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
BETA = "?beta=true"
"""The one query that reaches a backend, for the same reason: Anthropic's clients ask for what is new by it."""
_REASONS = {reason: (b"x-breakeven-reason", reason.encode()) for reason in REASONS}


class Home(Protocol):
    """What a request needs of the worker it is in."""

    loop: AbstractEventLoop
    plan: GatewayPlan
    line: WaitingLine
    budgets: dict[str, HedgeBudget]

    def new_id(self) -> str:
        """Unique among workers and restarts."""

    def over(self, forward: Forward, course: Course[Lane, Leg], leg: Leg | None, status: int, error: str) -> None:
        """Account for it once, and log it."""


class Forward:
    """One request's way to backends and back. Carries out what its `Course` decides."""

    __slots__ = (
        "_timer",
        "answer",
        "arm",
        "arrived_ns",
        "ask",
        "asked",
        "choice",
        "client",
        "early",
        "endpoint",
        "experiment",
        "group",
        "headers",
        "home",
        "id",
        "language",
        "policy",
        "query",
        "queued_ns",
        "request_body",
        "responder",
        "sent_ns",
        "shadow_of",
        "spent",
    )

    def __init__(
        self,
        home: Home,
        request: Request,
        responder: Responder,
        client: Client,
        asked: Asked,
        ask: Ask,
        policy: PolicyPlan,
        choice: Choice,
    ) -> None:
        """Nothing is sent yet."""
        self.home, self.responder, self.client = home, responder, client
        self.asked, self.ask, self.policy, self.choice = asked, ask, policy, choice
        self.endpoint = ask.endpoint
        self.id = home.new_id()
        self.query = BETA if request.query and BETA[1:] in request.query.split("&") else ""
        self.arrived_ns = request.received_ns
        headers = [header for header in request.headers if header[0] in PASSED]
        if asked.form is None:
            # It was read as JSON and goes on as such: `curl -d` calls it a form, which some servers refuse (vLLM).
            headers = [JSON, *(header for header in headers if header[0] != JSON[0])]
        self.headers: Headers = headers
        self.request_body = request.body
        self.answer: Leg | None = None
        """Whose bytes the client gets."""
        self.early = False
        """The client has a head already, with news of an engine's loading."""
        self.spent: Spent | None = None
        self.queued_ns = self.sent_ns = 0
        self._timer: TimerHandle | None = None
        self.experiment = self.arm = self.group = self.shadow_of = self.language = ""

    def begin(self, course: Course[Lane, Leg]) -> None:
        """Send it, or wait for a place."""
        responder = self.responder
        responder.on_gone = course.gone
        responder.on_pause = self._pause
        responder.on_resume = self._resume
        course.begin()

    # Places.

    def now_s(self) -> float:
        """Monotonic."""
        return time.monotonic()

    def ready(self, lane: Lane) -> bool:
        """Whether it can be asked at all."""
        return lane.plan.local is None or self.home.line.ready(lane)

    def take(self, course: Course[Lane, Leg], lane: Lane, now_s: float) -> bool:
        """A place at once."""
        line = self.home.line
        return (
            lane.breaker.allows(now_s)
            and (lane.plan.local is None or line.ready(lane))
            and line.enter_now(lane, course, self.ask.priority, now_s, self.client.slot)
        )

    def enter(self, course: Course[Lane, Leg], lane: Lane, now_s: float) -> Literal["go", "wait", "full"]:
        """A place, or one in line."""
        deadline_s = now_s + self.policy.queue_s
        entered = self.home.line.enter(lane, course, self.ask.priority, deadline_s, now_s, self.client.slot)
        if entered == "wait":
            self.queued_ns = time.monotonic_ns()
        return entered

    def leave(self, course: Course[Lane, Leg], lane: Lane) -> None:
        """Out of its line."""
        lane.gate.remove(course)

    def want(self, course: Course[Lane, Leg], lane: Lane, now_s: float) -> bool:
        """Wait for an engine of ours."""
        return self.home.line.want(lane, course, now_s)

    def unwant(self, course: Course[Lane, Leg], lane: Lane) -> None:
        """Wait for it no more."""
        self.home.line.unwant(lane, course)

    # Backends.

    def prepare(self, course: Course[Lane, Leg], lane: Lane, *, hedge: bool) -> Leg:
        """Counts it as under way there."""
        home = self.home
        leg = Leg(self, course, lane, home.line, keep=bool(self.experiment) or home.plan.log.prompts, hedge=hedge)
        looking = lane.looking
        if looking is not None and leg.question.endpoint in OBSERVED and observed(self.id, looking.share):
            if looking.in_vain(self.asked.streams, self.asked.fields):
                leg.kept = leg.kept or Kept(0)  # why is counted at its end
                leg.kept.observed = True
            else:
                leg.kept, leg.question.adds = Kept(looking.keeps, observed=True), looking.adds
        if not self.sent_ns:
            self.sent_ns = leg.start_ns
        return leg

    def hedge_later(self, course: Course[Lane, Leg], one: Leg) -> None:
        """After the silence that the backend's prediction allows; never where nothing was predicted."""
        score = score_of(self.choice, one.lane.name)
        if score is not None:
            delay = delay_s(score.ttft_s, one.lane.view.ttft_width)
            self._timer = self.home.loop.call_later(delay, course.hedge_due)

    def stop_hedge(self) -> None:
        """No hedge any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def second(self, course: Course[Lane, Leg]) -> Lane | None:
        """Another architecture first, with a free place, within the budget."""
        hedge = self.policy.hedge
        budget = self.home.budgets.get(self.policy.model)
        if hedge is None or budget is None or not budget.take():
            return None
        now_s = time.monotonic()
        line = self.home.line
        kind = course.asked[-1].lane.view.kind
        others = [lane for lane in course.order if not hedge.backends or lane.name in hedge.backends]
        for lane in sorted(others, key=lambda other: other.view.kind == kind):
            if (
                line.ready(lane)
                and lane.breaker.allows(now_s)
                and line.enter_now(lane, course, self.ask.priority, now_s, self.client.slot)
            ):
                return lane
        budget.give_back()
        return None

    # The client.

    def told(self, lane: Lane | None) -> list[tuple[bytes, bytes]]:
        """What the client is told of the decision."""
        choice = self.choice
        ident = self.id.encode()
        # By the second name OpenAI's clients keep it beside their answers; a backend's own stops here.
        told = [(b"x-breakeven-request-id", ident), (b"x-request-id", ident), _REASONS[choice.reason]]
        if lane is None:
            return told
        told.append(lane.header)
        name = lane.name
        for score in choice.scores:
            if score.backend == name:
                told.append((b"x-breakeven-ttft-ms", b"%.1f" % (score.ttft_s * 1e3)))
                told.append((b"x-breakeven-usd", b"%.9f" % score.usd))
                break
        if choice.alternative is not None:
            told.append((b"x-breakeven-alternative", choice.scores[choice.alternative].backend.encode()))
        return told

    def tell_progress(self, lane: Lane, progress: float) -> None:
        """A comment in the stream, which clients of server-sent events pass over; other answers cannot begin yet."""
        if not self.asked.streams:
            return
        self._start_early()
        self.responder.write(b": loading %s, %.0f %%\n\n" % (lane.name.encode(), 100.0 * progress))

    def tell_waiting(self, lane: Lane) -> None:
        """A sign of life, as a comment, while a backend has sent nothing but such itself."""
        if self.asked.streams:
            self._start_early()
            self.responder.write(b": waiting for %s\n\n" % lane.name.encode())

    def _start_early(self) -> None:
        if not self.early:
            self.early = True
            self.responder.start(200, [EVENTS, *self.told(None)])

    def refuse(self, status: int, message: str, code: str, retry_s: float | None) -> None:
        """An error, as an event of its stream where it has a head already."""
        body = error_body(status, message, None, code)
        if self.early:
            self.responder.write(failed_stream(self.endpoint, self.id, message, body))
            self.responder.finish()
            return
        headers = [JSON, *self.told(None)]
        if retry_s is not None:
            headers.append((b"retry-after", str(max(1, ceil(retry_s))).encode()))
        self.responder.respond(status, headers, body)

    def over(self, course: Course[Lane, Leg], one: Leg | None, status: int, error: str) -> None:
        """Into the counters and the log."""
        self.home.over(self, course, one, status, error)
        # A leg holds this object: no circle may be left.
        self.answer = None

    def _pause(self) -> None:
        if self.answer is not None and self.answer.exchange is not None:
            self.answer.exchange.pause()

    def _resume(self) -> None:
        if self.answer is not None and self.answer.exchange is not None:
            self.answer.exchange.resume()


def say(
    responder: Responder, status: int, message: str, code: str | None, headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """An error that tells the client what to do, before its request has begun."""
    responder.respond(status, [JSON, *headers], error_body(status, message, None, code))
