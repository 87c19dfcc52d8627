"""One backend asked for one request: the sink of its answer, and the way of its bytes to the client."""

from __future__ import annotations

import time
from math import ceil
from typing import Protocol

from breakeven.gateway.experiment.answer import Kept
from breakeven.gateway.guard import USUAL_HOLD_S
from breakeven.gateway.route.view import Ask
from breakeven.gateway.serve.ask import FREE, WANTS_USAGE, Asked, Client
from breakeven.gateway.serve.course import Course, Judgement
from breakeven.gateway.serve.lane import Lane
from breakeven.gateway.serve.opening import (
    EMPTY,
    SHORT_BYTES,
    WRITES,
    First,
    Opening,
    Scrub,
    error_status,
    headers_without,
    names_something,
    without,
)
from breakeven.gateway.serve.speech import Question
from breakeven.gateway.serve.tap import UNHEARD, Tap, tap_for
from breakeven.gateway.serve.waiting import WaitingLine
from breakeven.gateway.translate.table import TurnedTap, turned_tap, within_stream
from breakeven.wire.connection import Exchange
from breakeven.wire.meaning import AGAINST, ELSEWHERE, Standing, error_text, standing
from breakeven.wire.message import Headers, Responder, Trouble, asked_wait_s

KEPT_BACK = frozenset((b"set-cookie", b"server", b"alt-svc", b"strict-transport-security", b"content-length"))
"""Headers of an answer that are between the gateway and the backend."""
EVENTS, JSON, HTML = b"event-stream", b"json", b"html"  # parts of content types of streams, and of what is none
TOLD_AS = ((b"content-type", b"application/json"),)
KEEP_ALIVE_NS = 10 * 10**9
"""A client whose backend sends signs of life and nothing else hears one of ours this often."""


class Sender(Protocol):
    """The request that a leg is of. `answer`: the leg whose bytes its client gets; `early`: it has a head already."""

    responder: Responder
    client: Client
    asked: Asked
    ask: Ask
    endpoint: str
    id: str
    query: str
    headers: Headers
    early: bool
    answer: Leg | None

    def told(self, lane: Lane | None) -> list[tuple[bytes, bytes]]:
        """Headers that tell the client of the decision."""

    def tell_waiting(self, lane: Lane) -> None:
        """A sign of life for the client."""


class Leg:
    """From sending to the last byte. After failures and hedges a request has several.

    `first_ns`: of its first content, 0 until it came, and for a stream that has none. `said_ns`: of a stream's last
    content, which a finish, counts and signs of life may follow. `last_ns`: of its last byte.
    `begun`: its bytes go to the client. `nothing`: why it has no content, once that is known.
    """

    __slots__ = (
        "_alive_ns", "_course", "_failing", "_forward", "_judged", "_length", "_line", "_opening", "_reads_why",
        "_settled", "_size", "_streams", "ahead", "begun", "exchange", "first_ns", "head", "hedge", "held", "kept",
        "lane", "last_ns", "nothing", "outcome", "question", "retry_s", "running", "said_ns", "scrub", "single",
        "spell", "start_ns", "status", "tap", "tpot_factor", "ttft_factor",
    )  # fmt: skip

    def __init__(
        self, forward: Sender, course: Course[Lane, Leg], lane: Lane, line: WaitingLine, *, keep: bool, hedge: bool
    ) -> None:
        """Counts itself as under way; `send` follows. `keep`: the answer's text is wanted after its end."""
        self._forward, self._course, self.lane, self._line, self.hedge = forward, course, lane, line, hedge
        asked = forward.asked
        self.tap: Tap | TurnedTap = UNHEARD
        self.question = Question(lane.speech, lane.model_raw, forward, lane.view.way(forward.endpoint))
        self.exchange: Exchange | None = None
        self.head: Headers = ()
        self.status = self.first_ns = self.last_ns = self.said_ns = 0
        self.outcome = self.nothing = self._failing = ""
        self.single: bytes | None = None
        """The whole answer where it came in one piece: one write to the client, when its end is known to be good."""
        self.held = b""
        """What its tap still held at its end."""
        self.scrub: Scrub | None = None
        self.kept = Kept() if keep else None
        self.begun = self._settled = self._judged = self._streams = self._reads_why = False
        """`_reads_why`: nobody else is left, and what it says is no answer, only the reason."""
        self.retry_s: float | None = None
        self._opening: Opening | None = None
        self._length = -1
        """Bytes of its body as its head says, -1 when it does not."""
        view = lane.view
        self.running, self.ttft_factor, self.tpot_factor = view.running, view.ttft_factor, view.tpot_factor
        self.ahead = int(asked.prompt_tokens(lane.lengths.bytes_per_token(forward.client.name)))
        self._size = self.ahead + int(forward.ask.output_tokens / 2)
        lane.began(self.ahead, self._size)
        self.start_ns = self._alive_ns = time.monotonic_ns()
        self.spell = lane.breaker.started(self.start_ns / 1e9)

    def send(self) -> None:
        """Ask the backend."""
        upstream = self.lane.upstream
        assert upstream is not None
        sent = self.question.sent()
        self.exchange = upstream.send(sent.path, sent.headers, sent.body, self)

    def _asks_again(self) -> bool:
        """Whether this refusal names a field that its backend can be asked without, and it now is."""
        if self._opening is None or not self.question.again(self.status, self._opening.held):
            return False
        self.status, self.head, self.tap, self._opening = 0, (), UNHEARD, None
        self._length, self.first_ns, self.last_ns = -1, 0, 0
        self.send()
        return True

    # The sink.

    def on_head(self, status: int, headers: Headers) -> None:
        """The answer's head; nothing is said to the client before it is known whether there is an answer."""
        self.status, self.head = status, headers
        lane, asked = self.lane, self._forward.asked
        if lane.secret:
            self.head = headers_without(lane.secret, headers)
            if status >= 400:
                self.scrub = Scrub(lane.secret)
        kind, coding = b"", b"identity"
        for name, value in headers:
            if name == b"content-type":
                kind = value.lower()
            elif name == b"content-length":
                self._length = int(value)
            elif name == b"content-encoding":
                coding = value.strip().lower() or b"identity"
        # Its own type says how an answer is read, and what was asked for only where that says little.
        endpoint, turned = self.question.endpoint, self.question.turned
        guessed = asked.streams and endpoint in WRITES and JSON not in kind and HTML not in kind
        streams = self._streams = status < 300 and (EVENTS in kind or guessed)
        drops = streams and not asked.wants_usage and asked.streams and endpoint in WANTS_USAGE and turned is None
        tap = tap_for(endpoint, coding, streams=streams, drop_usage=drops)
        self.tap = tap if turned is None else turned_tap(tap, turned, self._forward.id, self.ahead, status)
        self.head = self.head if turned is None else turned.answered(self.head, status)
        self._opening = Opening(
            asked.fields,
            streams=streams,
            coded=coding != b"identity",
            length=self._length,
            secret=lane.secret,
            anything=endpoint not in WRITES,
            whole=turned is not None or self._forward.early,
            form=asked.form is not None,
        )
        if turned is not None and coding != b"identity" and status < 300:
            self._course.said_error(self, status, "unable", "packed, so that it cannot be translated")
            return
        if status == 200 and HTML not in kind:
            return
        if status < 300:
            stands: Standing = "answer"
        else:
            stands = standing(status, named=status >= 400 and names_something(asked.fields))
        if stands in ELSEWHERE:
            self._reads_why = self._course.failed_with(self, status, stands) and stands in AGAINST
        elif status < 300 and HTML in kind:
            self._course.said_error(self, status, "broken", "a web page")

    def on_body(self, data: bytes) -> None:
        """A piece of the answer."""
        if self.scrub is not None and not (data := self.scrub.feed(data)):
            return
        self.last_ns = time.monotonic_ns()
        if self.begun or (data := self._opened(data)):
            self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        if self.kept is not None:
            self.kept.add(data)
        tap = self.tap
        events = tap.events
        data = tap.feed(data)
        if tap.events != events:
            self.said_ns = self.last_ns
        if tap.error is not None:
            data = self._erred(tap.error, data)
        if data:
            forward = self._forward
            if forward.early:
                self._write(data)
            else:
                forward.responder.write(data)

    def _erred(self, error: bytes, data: bytes) -> bytes:
        """A stream with an error in it, which may be about its backend, and may repeat a key."""
        if not (self._failing or self.nothing) and standing(error_status(error)) in ELSEWHERE:
            self._failing = error_text(without(self.lane.secret, error)) or "an error"
        return without(self.lane.secret, data)

    def _write(self, data: bytes) -> None:
        forward = self._forward
        if forward.early and not self._streams:
            # A body, most likely an error's, within a stream that the client has been promised already.
            data = within_stream(forward.endpoint, forward.id, self.status, data)
        forward.responder.write(data)

    def _opened(self, data: bytes) -> bytes:
        """All that came so far, once it may go to the client; empty: it is held, or it is no answer."""
        if self._reads_why:
            self.held = (self.held + data)[:SHORT_BYTES]
            self._wait_on()
            return b""
        assert self._opening is not None
        if first := self._opening.feed(data):
            return self._begin() if self._is_for_client(first) else b""
        if self._streams:
            self._wait_on()
        elif not self.first_ns:
            self.first_ns = self.last_ns
        return b""

    def _wait_on(self) -> None:
        """Signs of life are no answer: the time for its first byte still runs, and the client hears one of ours."""
        if self.exchange is not None:
            self.exchange.waiting_body = True
        if not self._reads_why and self.last_ns - self._alive_ns > KEEP_ALIVE_NS:
            self._alive_ns = self.last_ns
            self._forward.tell_waiting(self.lane)

    def _is_for_client(self, first: First) -> bool:
        """Whether an answer that begins so goes to the client. False: it is dropped, and the course knows."""
        course, opening = self._course, self._opening
        assert opening is not None
        if first == "content":
            self.first_ns = self.first_ns or self.last_ns
        elif first == "error":
            course.said_error(self, opening.status, opening.stands, opening.message)
            return False
        elif first == "none":
            if self.exchange is not None:
                self.exchange.cancel()
            course.trouble(self, EMPTY, "the answer says nothing")
            return False
        else:
            self.nothing = first
            if first == "declined" and self.lane.secret and self.scrub is None:
                self.scrub = Scrub(self.lane.secret)
            return first != EMPTY or not course.says_nothing(self)
        return True

    def on_end(self) -> None:
        """The answer is whole."""
        scrub, self.scrub = self.scrub, None
        if scrub is not None and (rest := scrub.rest()):
            self.on_body(rest)
        if self._reads_why:
            self._course.came_to_nothing(self, error_text(self.held) if self.status >= 500 else "")
            return
        if not self.begun and (self._asks_again() or not self._ended()):
            return
        self.held += self.tap.rest()
        if self.single is not None and self.tap.error is not None:
            self._failing = error_text(self.tap.error)
        # A backend that dies closes its connection too: where that is all that ends an answer, the answer must say so.
        unsaid = self.status < 300 and self.exchange is not None and self.exchange.by_close and not self.tap.done
        if (how := "within an event" if self.tap.half else "without saying so" if unsaid else "") and not self._failing:
            self._course.trouble(self, "cut", f"the answer ends {how}")
            return
        self._course.whole(self, failing=self._failing, nothing=self.nothing)

    def _ended(self) -> bool:
        """The end of an answer of which nothing has gone to the client: whether there is one."""
        opening = self._opening
        assert opening is not None
        self.last_ns = self.last_ns or time.monotonic_ns()
        if not self._is_for_client(opening.end(self.status, self._forward.headers)):
            return False
        if self._streams:
            if data := self._begin():
                self._pass_on(data)
            return bool(data)
        self.first_ns = self.first_ns or self.last_ns
        if not self._first():
            return False
        data = opening.data()
        if self.kept is not None:
            self.kept.add(data)
        data = self.tap.feed(data)
        if self._forward.early:
            # A stream that has begun with news of an engine's loading has its head already.
            self.held = data
        else:
            self.single = data
        return True

    def on_trouble(self, trouble: Trouble, detail: str) -> None:
        """It ended badly."""
        if self._reads_why:
            self._course.came_to_nothing(self, "")
        else:
            self._course.trouble(self, trouble, detail)

    def _first(self) -> bool:
        """Its bytes go to the client from now on: whether this leg has won."""
        self.begun = True
        if self.status < 300 and not self.nothing:
            self.question.went_well()
        self.lane.decodes(self.ahead)
        if self._course.first_byte(self):
            self._forward.answer = self
            return True
        return False

    def _begin(self) -> bytes:
        """The head, for an answer that comes in pieces. Returns what was held; empty: another leg has won."""
        if not self._first():
            return b""
        assert self._opening is not None
        data, self._opening = self._opening.data(), None
        forward = self._forward
        if not forward.early:
            headers = [header for header in self.head if header[0] not in KEPT_BACK]
            if not self._streams and self._length >= 0:
                headers.append((b"content-length", b"%d" % self._length))
            headers.extend(self._told())
            forward.responder.start(self.status, headers)
        return data

    def _told(self) -> list[tuple[bytes, bytes]]:
        return self._forward.told(self.lane) + self.question.told()

    # What the course has done.

    def finish(self) -> None:
        """The client gets what is left of its answer: all of it where it came in one piece."""
        forward = self._forward
        if self.single is not None:
            # What could not be translated is no answer, whatever it was called.
            status, head = (502, TOLD_AS) if self._failing else (self.status, self.head)
            headers = [header for header in head if header[0] not in KEPT_BACK]
            forward.responder.respond(status, headers + self._told(), self.single + self.held)
            return
        if held := self.held:
            self._write(held)
        forward.responder.finish()

    def cut(self) -> None:
        """The client can tell that its answer is not whole."""
        self._forward.responder.abort()

    def judge(self, what: Judgement) -> None:
        """Tell the backend's breaker; the first judgement stands."""
        if self._judged:
            return
        self._judged = True
        lane, now_s = self.lane, time.monotonic()
        if what == "good":
            lane.succeeded(now_s, self.spell)
            return
        asked_s = asked_wait_s(self.head, time.time())
        if what == "broken" and self._forward.endpoint not in FREE:  # counting fails where a template wants other turns
            lane.failed(now_s, self.spell)
        else:
            lane.breaker.ended(now_s, self.spell)
        if asked_s is not None or what == "busy":
            self.retry_s = whole_s = ceil(USUAL_HOLD_S if asked_s is None else asked_s)
            lane.breaker.hold(now_s + whole_s, now_s)
            # Not every client knows dates, fractions and thousandths.
            told = [] if asked_s is None else [(b"retry-after", b"%d" % whole_s)]
            self.head = [*(header for header in self.head if not header[0].startswith(b"retry-after")), *told]

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
        if not self.begun and self._opening is not None:
            # What was held of an answer that nobody got is still what its backend did.
            self.tap.feed(self._opening.data())
            self.tap.rest()
        lane = self.lane
        if not self._judged:
            lane.breaker.ended(time.monotonic(), self.spell)
        lane.ended(self.ahead, self._size, decoding=self.begun)
        self._line.left(lane, self._course)
