"""One backend asked for one request: the sink of its answer. After failures and hedges a request has several."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from breakeven.gateway.experiment.answer import Kept
from breakeven.gateway.guard.retry import BUSY, USUAL_HOLD_S, retry_after_s, status_fails_over, trouble_is_broken
from breakeven.gateway.serve.cells import AHEAD_TOKENS, CONTEXT_TOKENS, DECODING, IN_FLIGHT, REQUESTS
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.scrub import Scrub, headers_without
from breakeven.gateway.serve.tap import StreamTap, WholeTap
from breakeven.gateway.shared.layout import Count
from breakeven.wire.client import Exchange
from breakeven.wire.message import Headers, Trouble

if TYPE_CHECKING:
    from breakeven.gateway.serve.forward import Forward


class Leg:
    """From sending to the last byte. `first_ns`, `last_ns`: of the answer's body, 0 until it came."""

    __slots__ = (
        "_judged",
        "_settled",
        "_size",
        "ahead",
        "exchange",
        "first_ns",
        "forward",
        "head",
        "hedge",
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

    def __init__(self, forward: Forward, lane: Lane, tap: StreamTap | WholeTap, *, hedge: bool) -> None:
        """Counts itself as under way; `send` follows."""
        self.forward, self.lane, self.tap, self.hedge = forward, lane, tap, hedge
        self.exchange: Exchange | None = None
        self.head: Headers = ()
        self.status = 0
        self.first_ns = self.last_ns = 0
        self.outcome = ""
        self.single: bytes | None = None
        self.scrub: Scrub | None = None
        self.kept = Kept() if forward.experiment or forward.desk.plan.log.prompts else None
        self._settled = False
        view = lane.view
        self.running = view.running
        self.ttft_factor, self.tpot_factor = view.ttft_factor, view.tpot_factor
        self.ahead = int(forward.prompt_tokens(lane))
        self._size = self.ahead + int(forward.ask.output_tokens / 2)
        lane.add(IN_FLIGHT, 1)
        lane.add(AHEAD_TOKENS, self.ahead)
        lane.add(CONTEXT_TOKENS, self._size)
        lane.counted(REQUESTS)
        self._judged = False
        self.start_ns = time.monotonic_ns()
        self.spell = lane.breaker.started(self.start_ns / 1e9)

    def send(self, path: str, headers: Headers, body: bytes) -> None:
        """Ask the backend."""
        upstream = self.lane.upstream
        assert upstream is not None
        self.exchange = upstream.send(path, headers, body, self)

    # The sink.

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head; nothing is said to the client before its first byte."""
        self.status, self.head = status, headers
        lane, now_s = self.lane, time.monotonic()
        if lane.secret:
            self.head = headers_without(lane.secret, headers)
            if status >= 400:
                self.scrub = Scrub(lane.secret)
        if status_fails_over(status):
            if status == BUSY:
                asked_s = retry_after_s(_header(headers, b"retry-after"), time.time())
                lane.breaker.hold(now_s + (USUAL_HOLD_S if asked_s is None else asked_s), now_s)
                lane.breaker.ended(now_s, self.spell)
            else:
                lane.failed(now_s, self.spell)
            self._judged = True
            if self.forward.may_try_another(self):
                self.drop(f"status_{status}")
                self.forward.lost(self, f"answered with status {status}")

    def on_body(self, data: bytes) -> None:
        """A piece of the answer."""
        if self.scrub is not None and not (data := self.scrub.feed(data)):
            return
        self.last_ns = time.monotonic_ns()
        forward = self.forward
        if not self.first_ns:
            self._first()
            if forward.winner is not self:
                return
            if type(self.tap) is WholeTap and not forward.early and forward.length_of(self) == len(data):
                # The whole answer in one piece: one write to the client, when its end is known to be good.
                self.single = self.tap.feed(data)
                if self.kept is not None:
                    self.kept.add(data)
                return
            forward.start(self)
        if self.kept is not None:
            self.kept.add(data)
        if data := self.tap.feed(data):
            forward.responder.write(_as_event(data) if forward.early and self.status >= 400 else data)

    def on_end(self) -> None:
        """The answer is whole."""
        scrub, self.scrub = self.scrub, None
        if scrub is not None and (held := scrub.rest()):
            self.on_body(held)
        forward = self.forward
        if not self.first_ns:
            self.last_ns = time.monotonic_ns()
            self._first()
            if forward.winner is not self:
                return
            # A stream that has begun with news of an engine's loading has its head already.
            self.single = None if forward.early else b""
        rest = self.tap.rest()
        if not self._judged:
            self._judged = True
            self.lane.succeeded(time.monotonic(), self.spell)
        self.settle("answered" if self.status < 400 else f"status_{self.status}")
        if self.single is not None:
            forward.respond(self)
        else:
            if rest:
                forward.responder.write(_as_event(rest) if forward.early and self.status >= 400 else rest)
            forward.responder.finish()
        forward.ended(self, "")

    def on_trouble(self, trouble: Trouble, detail: str) -> None:
        """It ended badly."""
        lane = self.lane
        if trouble_is_broken(trouble) and not self._judged:
            lane.failed(time.monotonic(), self.spell)
            self._judged = True
        lane.counted(Count.TROUBLES)
        self.settle(trouble)
        forward = self.forward
        if forward.winner is self:
            lane.counted(Count.CUT)
            if self.single is not None:
                self.single = None
                forward.start(self)
            forward.responder.abort()
            forward.ended(self, f"{trouble}: {detail}")
        else:
            forward.lost(self, f"{trouble}: {detail}")

    # The end.

    def drop(self, outcome: str) -> None:
        """Cancel what is under way; the sink hears no more."""
        if self.exchange is not None:
            self.exchange.cancel()
        self.settle(outcome)

    def settle(self, outcome: str) -> None:
        """Nothing of it is under way any more; whoever waited for its place goes."""
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
        self.forward.desk.line.left(lane)

    def _first(self) -> None:
        """The first byte: this leg has won, or another one had."""
        self.first_ns = self.last_ns
        self.lane.add(AHEAD_TOKENS, -self.ahead)
        self.lane.add(DECODING, 1)
        self.forward.won(self)


def _as_event(data: bytes) -> bytes:
    """An error's body within a stream that the client has been promised already."""
    return b"data: %s\n\n" % b" ".join(data.split())


def _header(headers: Headers, name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None
