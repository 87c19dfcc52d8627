"""One backend asked for one request: the sink of its answer, and the way of its bytes to the client."""

from __future__ import annotations

import time
from typing import Protocol

from breakeven.gateway.experiment.answer import Kept
from breakeven.gateway.guard import USUAL_HOLD_S, retry_after_s
from breakeven.gateway.route.view import Ask
from breakeven.gateway.serve.ask import WANTS_USAGE, Asked, body_for
from breakeven.gateway.serve.course import Course, Judgement, status_fails_over
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.tap import Scrub, StreamTap, WholeTap, headers_without
from breakeven.gateway.serve.waiting import WaitingLine
from breakeven.gateway.shared.layout import AHEAD_TOKENS, CONTEXT_TOKENS, DECODING, IN_FLIGHT, REQUESTS
from breakeven.wire.connection import Exchange
from breakeven.wire.message import Headers, Responder, Trouble

KEPT_BACK = frozenset((b"set-cookie", b"server", b"alt-svc", b"strict-transport-security", b"content-length"))
"""Headers of an answer that are between the gateway and the backend."""


class Sender(Protocol):
    """The request that a leg is of. `answer`: the leg whose bytes its client gets; `early`: it has a head already."""

    responder: Responder
    asked: Asked
    ask: Ask
    endpoint: str
    headers: Headers
    early: bool
    answer: Leg | None

    def told(self, lane: Lane | None) -> list[tuple[bytes, bytes]]:
        """Headers that tell the client of the decision."""


class Leg:
    """From sending to the last byte. After failures and hedges a request has several.

    `first_ns`, `last_ns`: of the answer's body, 0 until it came."""

    __slots__ = (
        "_course",
        "_forward",
        "_judged",
        "_line",
        "_settled",
        "_size",
        "ahead",
        "exchange",
        "first_ns",
        "head",
        "hedge",
        "held",
        "kept",
        "lane",
        "last_ns",
        "outcome",
        "running",
        "scrub",
        "single",
        "spell",
        "start_ns",
        "status",
        "tap",
        "tpot_factor",
        "ttft_factor",
    )

    def __init__(
        self, forward: Sender, course: Course[Lane, Leg], lane: Lane, line: WaitingLine, *, keep: bool, hedge: bool
    ) -> None:
        """Counts itself as under way; `send` follows. `keep`: the answer's text is wanted after its end."""
        self._forward, self._course, self.lane, self._line, self.hedge = forward, course, lane, line, hedge
        asked = forward.asked
        self.tap: StreamTap | WholeTap
        if asked.streams:
            self.tap = StreamTap(forward.endpoint, drop_usage=forward.endpoint in WANTS_USAGE and not asked.wants_usage)
        else:
            self.tap = WholeTap()
        self.exchange: Exchange | None = None
        self.head: Headers = ()
        self.status = 0
        self.first_ns = self.last_ns = 0
        self.outcome = ""
        self.single: bytes | None = None
        """The whole answer where it came in one piece: one write to the client, when its end is known to be good."""
        self.held = b""
        """What its tap still held at its end."""
        self.scrub: Scrub | None = None
        self.kept = Kept() if keep else None
        self._settled = self._judged = False
        view = lane.view
        self.running = view.running
        self.ttft_factor, self.tpot_factor = view.ttft_factor, view.tpot_factor
        self.ahead = int(asked.prompt_tokens(lane.bytes_per_token))
        self._size = self.ahead + int(forward.ask.output_tokens / 2)
        lane.add(IN_FLIGHT, 1)
        lane.add(AHEAD_TOKENS, self.ahead)
        lane.add(CONTEXT_TOKENS, self._size)
        lane.counted(REQUESTS)
        self.start_ns = time.monotonic_ns()
        self.spell = lane.breaker.started(self.start_ns / 1e9)

    def send(self) -> None:
        """Ask the backend."""
        forward, lane = self._forward, self.lane
        upstream, asked = lane.upstream, forward.asked
        assert upstream is not None
        body = body_for(asked, lane.model_raw, tell_usage=asked.streams and forward.endpoint in WANTS_USAGE)
        self.exchange = upstream.send(forward.endpoint, forward.headers, body, self)

    # The sink.

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head; nothing is said to the client before its first byte."""
        self.status, self.head = status, headers
        lane = self.lane
        if lane.secret:
            self.head = headers_without(lane.secret, headers)
            if status >= 400:
                self.scrub = Scrub(lane.secret)
        if status_fails_over(status):
            self._course.failed_with(self, status)

    def on_body(self, data: bytes) -> None:
        """A piece of the answer."""
        if self.scrub is not None and not (data := self.scrub.feed(data)):
            return
        self.last_ns = time.monotonic_ns()
        forward = self._forward
        if not self.first_ns:
            if not self._first():
                return
            if type(self.tap) is WholeTap and not forward.early and self._length() == len(data):
                self.single = self.tap.feed(data)
                if self.kept is not None:
                    self.kept.add(data)
                return
            self._start()
        if self.kept is not None:
            self.kept.add(data)
        if data := self.tap.feed(data):
            forward.responder.write(_as_event(data) if forward.early and self.status >= 400 else data)

    def on_end(self) -> None:
        """The answer is whole."""
        scrub, self.scrub = self.scrub, None
        if scrub is not None and (rest := scrub.rest()):
            self.on_body(rest)
        if not self.first_ns:
            self.last_ns = time.monotonic_ns()
            if not self._first():
                return
            # A stream that has begun with news of an engine's loading has its head already.
            self.single = None if self._forward.early else b""
        self.held = self.tap.rest()
        self._course.whole(self)

    def on_trouble(self, trouble: Trouble, detail: str) -> None:
        """It ended badly."""
        self._course.trouble(self, trouble, detail)

    def _first(self) -> bool:
        """The first byte: whether this leg has won."""
        self.first_ns = self.last_ns
        self.lane.add(AHEAD_TOKENS, -self.ahead)
        self.lane.add(DECODING, 1)
        if self._course.first_byte(self):
            self._forward.answer = self
            return True
        return False

    def _start(self) -> None:
        """The head, for an answer that comes in pieces."""
        forward = self._forward
        if forward.early:
            return
        headers = [header for header in self.head if header[0] not in KEPT_BACK]
        if type(self.tap) is WholeTap and (length := self._length()) >= 0:
            headers.append((b"content-length", str(length).encode()))
        headers.extend(forward.told(self.lane))
        forward.responder.start(self.status, headers)

    def _length(self) -> int:
        """Bytes of its body as its head says, -1 when it does not."""
        value = _header(self.head, b"content-length")
        return -1 if value is None else int(value)

    # What the course has done.

    def finish(self) -> None:
        """The client gets what is left of its answer: all of it where it came in one piece."""
        forward = self._forward
        if self.single is not None:
            headers = [header for header in self.head if header[0] not in KEPT_BACK]
            headers.extend(forward.told(self.lane))
            forward.responder.respond(self.status, headers, self.single)
            return
        if held := self.held:
            forward.responder.write(_as_event(held) if forward.early and self.status >= 400 else held)
        forward.responder.finish()

    def cut(self) -> None:
        """The client can tell that its answer is not whole."""
        if self.single is not None:
            self.single = None
            self._start()
        self._forward.responder.abort()

    def judge(self, what: Judgement) -> None:
        """Tell the backend's breaker; the first judgement stands."""
        if self._judged:
            return
        self._judged = True
        lane, now_s = self.lane, time.monotonic()
        if what == "good":
            lane.succeeded(now_s, self.spell)
        elif what == "broken":
            lane.failed(now_s, self.spell)
        else:
            asked_s = retry_after_s(_header(self.head, b"retry-after"), time.time())
            lane.breaker.hold(now_s + (USUAL_HOLD_S if asked_s is None else asked_s), now_s)
            lane.breaker.ended(now_s, self.spell)

    def drop(self, outcome: str) -> None:
        """Cancel what is under way; the sink hears no more."""
        if self.exchange is not None:
            self.exchange.cancel()
        self.settle(outcome)

    def settle(self, outcome: str) -> None:
        """Give its place back."""
        if self._settled:
            return
        self._settled = True
        self.outcome = outcome
        lane = self.lane
        if not self._judged:
            lane.breaker.ended(time.monotonic(), self.spell)
        lane.add(IN_FLIGHT, -1)
        lane.add(CONTEXT_TOKENS, -self._size)
        if self.first_ns:
            lane.add(DECODING, -1)
        else:
            lane.add(AHEAD_TOKENS, -self.ahead)
        self._line.left(lane, self._course)


def _as_event(data: bytes) -> bytes:
    """An error's body within a stream that the client has been promised already."""
    return b"data: %s\n\n" % b" ".join(data.split())


def _header(headers: Headers, name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None
