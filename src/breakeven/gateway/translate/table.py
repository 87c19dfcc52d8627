"""Which API a backend is asked in, and the request, the answer and the stream of that way.

    way_to(endpoint, serves)            the backend's endpoint for a client's; None: it cannot be asked
    Turned(endpoint, way, fields)       the request in the words of `way`, and whoever writes the answers
    TurnedTap(tap, turned, facts)       bytes of the backend in, bytes for the client out, counted in between
    failed_stream(endpoint, ...)        an error for a client whose stream has begun with signs of life alone

Chat completions stand in the middle: a request goes to them and, for a backend that has messages alone, on from there.
A new API is one entry in each of the four tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from itertools import repeat

import msgspec

from breakeven.errors import printable
from breakeven.gateway.serve.opening import error_status
from breakeven.gateway.serve.tap import StreamTap, Tap
from breakeven.gateway.serve.usage import Counted
from breakeven.gateway.translate.chat import USUAL_MAX_TOKENS, ChatWriter, chat_to_messages
from breakeven.gateway.translate.messages_asked import messages_to_chat
from breakeven.gateway.translate.messages_told import MessageWriter
from breakeven.gateway.translate.responses_asked import responses_to_chat
from breakeven.gateway.translate.responses_told import ResponseWriter
from breakeven.gateway.translate.said import (
    CHAT,
    EXTRA,
    MESSAGES,
    READERS,
    RESPONSES,
    UNREADABLE,
    AnswerFacts,
    AnswerPart,
    AnswerSaid,
    CannotTranslateError,
    Counts,
    Json,
    ToldError,
    Writer,
    decode,
    encode,
)
from breakeven.wire.meaning import body_kind, error_text, is_ping
from breakeven.wire.message import Headers, error_body
from breakeven.wire.sse import MAX_EVENT_BYTES, SseParser, event

Fields = dict[str, msgspec.Raw]
Asks = Callable[[Json, list[str]], Json]
TO_CHAT: dict[str, Asks] = {MESSAGES: messages_to_chat, RESPONSES: responses_to_chat}
FROM_CHAT: dict[str, Asks] = {MESSAGES: chat_to_messages}
WRITERS: dict[str, Callable[[Json, AnswerFacts], Writer]] = {
    CHAT: ChatWriter,
    MESSAGES: MessageWriter,
    RESPONSES: ResponseWriter,
}
HEADERS: dict[str, Headers] = {MESSAGES: [(b"anthropic-version", b"2023-06-01")]}
"""What a backend of this API wants to be told with each request."""
WAYS = {CHAT: (MESSAGES,), MESSAGES: (CHAT,), RESPONSES: (CHAT, MESSAGES)}
"""By which APIs a client's may be served, the better one first."""
THOUGHTS = ("reasoning_content", "reasoning")
"""What chat servers call an assistant's earlier thoughts: llama.cpp, SGLang and DeepSeek by the first name, vLLM (0.32)
and Cerebras by the second. Most pass over what they do not know; who refuses it is asked again without."""
LEFT_OUT = b"x-breakeven-left-out"
"""Header that names what a client said and its backend was not told."""
_MOST_TOLD = 2000
"""Characters of a backend's error that a client gets."""


def way_to(endpoint: str, serves: Collection[str]) -> str | None:
    """`endpoint` itself where a backend `serves` it, else that by which it is asked; None: neither."""
    if endpoint in serves:
        return endpoint
    return next((way for way in WAYS.get(endpoint, ()) if way in serves), None)


class Turned:
    """A request in the words of another API. `left`: names of what had to be left out, for the client to hear.

    `thinks`: earlier thoughts stand in it. `unlimited`: it says not how long its answer may be, and `way` wants that.
    """

    __slots__ = ("_asked", "_made", "_signed", "_turns", "endpoint", "left", "thinks", "unlimited", "way")

    def __init__(self, endpoint: str, way: str, fields: Fields) -> None:
        """Raises CannotTranslateError, which names what the other API has no words for."""
        self.endpoint, self.way = endpoint, way
        left: list[str] = []
        try:
            self._asked: Json = {name: decode(raw) for name, raw in fields.items()}
        except UNREADABLE as error:
            raise CannotTranslateError(f"the body: {error}") from None
        try:
            made = TO_CHAT[endpoint](self._asked, left) if endpoint != CHAT else self._asked
            if way != CHAT:
                made = FROM_CHAT[way](made, left)
            elif self._asked.get("stream"):
                made["stream_options"] = {"include_usage": True}
            first, other = THOUGHTS
            thinking = [turn for turn in made["messages"] if first in turn] if way == CHAT else []
            for turn in thinking:
                turn[other] = turn[first]
            signed = [turn for turn in made["messages"] if any(EXTRA in one for one in turn.get("tool_calls") or ())]
            self._turns: list[Json] = made["messages"] if thinking or signed else []
            self.thinks, self._signed = bool(thinking), bool(signed)
            self.unlimited = way == MESSAGES and "max_tokens" not in made
            # Here, before a place is taken: what is as deep as can be read may be too deep to be written.
            self._made: Fields = {name: msgspec.Raw(encode(value)) for name, value in made.items()}
        except (*UNREADABLE, TypeError, ValueError, LookupError, AttributeError):
            # As deep as it is read; a backend that speaks this API would say more of it.
            raise CannotTranslateError("a field of a type that it cannot have") from None
        self.left = tuple(dict.fromkeys(left))

    def fields(
        self,
        served_model: msgspec.Raw,
        most_output: int = USUAL_MAX_TOKENS,
        untold: Collection[str] = (),
        *,
        signs: bool = False,
    ) -> Fields:
        """Of the body for a backend that calls the model so.

        `most_output`: tokens of an answer, where the client says nothing. `untold`: of `THOUGHTS`, which it refuses.
        `signs`: it wants the signatures of its calls back, which others may refuse.
        """
        made: Fields = {"model": served_model, **self._made}
        if self.unlimited:
            made["max_tokens"] = msgspec.Raw(b"%d" % most_output)
        if (self.thinks and untold) or (self._signed and not signs):
            turns = [{name: turn[name] for name in turn if name not in untold} for turn in self._turns]
            made["messages"] = msgspec.Raw(encode(turns if signs else list(map(_unsigned_turn, turns))))
        return made

    @property
    def streams(self) -> bool:
        """Whether its client wants a stream."""
        return bool(self._asked.get("stream"))

    def headers(self, given: Headers) -> Headers:
        """Those that its API wants beside the client's."""
        wanted = HEADERS.get(self.way, ())
        there = {name for name, _ in given}
        return [*given, *(pair for pair in wanted if pair[0] not in there)]

    def answered(self, head: Headers, status: int) -> Headers:
        """An answer's headers for its client: of a stream where it wants one, whether its backend heeds that or not."""
        if not self.streams or status >= 300:
            return head
        return [(b"content-type", b"text/event-stream"), *(pair for pair in head if pair[0] != b"content-type")]

    def writer(self, facts: AnswerFacts) -> Writer:
        """For one answer."""
        return WRITERS[self.endpoint](self._asked, facts)


def _unsigned_turn(turn: Json) -> Json:
    if not turn.get("tool_calls"):
        return turn
    return {**turn, "tool_calls": [{name: one[name] for name in one if name != EXTRA} for one in turn["tool_calls"]]}


def failed_stream(endpoint: str, ident: str, message: str, body: bytes) -> bytes:
    """An error for a client whose stream has a head and nothing else, as its SDKs read it; `body`: the same as JSON."""
    made = WRITERS.get(endpoint)
    if made is None or endpoint == CHAT:
        return event(b" ".join(body.split()))
    writer = made({}, AnswerFacts(ident, int(time.time()), 0))
    # Of a response its clients want to hear first that it was made.
    begun = writer.begin(AnswerSaid()) if endpoint == RESPONSES else b""
    return begun + writer.fail(message)


def within_stream(endpoint: str, ident: str, status: int, body: bytes) -> bytes:
    """A whole body for such a client: an error as it reads one there, anything else but events as one event."""
    if body.startswith((b"event: ", b"data: ")):
        return body
    if status >= 400 or body_kind(body) == "error":
        return failed_stream(endpoint, ident, error_text(body, _MOST_TOLD), body)
    return event(b" ".join(body.split()))


def turned_tap(tap: Tap, turned: Turned, ident: str, prompt: int, status: int) -> TurnedTap:
    """`tap`, and translation behind it. `prompt`: its tokens as they are guessed; `status`: of the answer."""
    return TurnedTap(tap, turned, AnswerFacts(ident, int(time.time()), prompt), status)


def told_of(turned: Turned | None, left_out: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Headers that say in which API a backend was asked, where not in the client's, and what it was not told."""
    headers = [] if turned is None else [(b"x-breakeven-translated", turned.way.encode())]
    if left := [*(() if turned is None else turned.left), *left_out]:
        headers.append((LEFT_OUT, printable(", ".join(left)[:400]).encode("ascii", "replace")))
    return headers


class StreamTurner:
    """A backend's stream in, a client's out. `error`: why it broke off, in words; nothing follows then."""

    __slots__ = ("_begun", "_parser", "_read", "_said", "_writer", "error")

    def __init__(self, read: Callable[[bytes, AnswerSaid], list[AnswerPart]], writer: Writer) -> None:
        self._read, self._writer = read, writer
        self._parser = SseParser(MAX_EVENT_BYTES)
        self._said = AnswerSaid()
        self._begun = False
        self.error = ""

    def feed(self, data: bytes) -> bytes:
        """The next bytes of the backend; never raises."""
        if self.error:
            return b""
        out: list[bytes] = []
        try:
            events = self._parser.feed(data)
            for told, name in zip(events, self._parser.names or repeat(b""), strict=False):
                self._take(told, name, out)
        except ToldError as error:
            self._fail(str(error), out)
        except (*UNREADABLE, ValueError, TypeError, AttributeError):
            self._fail("the backend sent an event that cannot be read", out)
        return b"".join(out)

    def end(self, counts: Counts) -> bytes:
        """Nothing follows. A stream without a reason for its end gets none here either."""
        out = [self.feed(b"\n\n")]  # some servers leave the last empty line out
        if not self.error and self._said.finish:
            self._begin(out)
            out.append(self._writer.end(self._said, counts))
        return b"".join(out)

    def _take(self, data: bytes, name: bytes, out: list[bytes]) -> None:
        if data.strip() == b"[DONE]":
            self._said.finish = self._said.finish or "stop"
            return
        if is_ping(data, name):
            return
        if name == b"error":
            raise ToldError(error_text(data))
        parts = self._read(data, self._said)
        if parts or self._said.model:  # Azure says what its filter thinks of a prompt before it says who answers
            self._begin(out)
        out.extend(self._writer.part(part) for part in parts)

    def _begin(self, out: list[bytes]) -> None:
        if not self._begun:
            self._begun = True
            out.append(self._writer.begin(self._said))

    def _fail(self, message: str, out: list[bytes]) -> None:
        self.error = message or "the backend failed"
        self._begin(out)
        out.append(self._writer.fail(self.error))


class TurnedTap:
    """A tap that reads a backend's bytes and passes them on in the client's words.

    What an answer took is counted of the backend's own words. An answer in one piece is held to its end.
    """

    __slots__ = ("_facts", "_failure", "_held", "_status", "_stream", "_tap", "_turned", "_writer")

    def __init__(self, tap: Tap, turned: Turned, facts: AnswerFacts, status: int) -> None:
        """`tap`: for the backend's endpoint. `status`: of the answer."""
        self._tap, self._turned, self._facts, self._status = tap, turned, facts, status
        self._writer = turned.writer(facts)
        streams = isinstance(tap, StreamTap)
        self._stream = StreamTurner(READERS[turned.way].event, self._writer) if streams else None
        self._held: list[bytes] = []
        self._failure: bytes | None = None

    @property
    def counted(self) -> Counted:
        """What the backend counted."""
        return self._tap.counted

    @property
    def events(self) -> int:
        """Those with output."""
        return self._tap.events

    @property
    def finish(self) -> str:
        """The reason it gave."""
        return self._tap.finish

    @property
    def output_tokens(self) -> int:
        """As counted, as seen, or as estimated, whichever is more."""
        return self._tap.output_tokens

    @property
    def half(self) -> bool:
        """It ended within an event."""
        return self._tap.half

    @property
    def done(self) -> bool:
        """Whether it said that it ends."""
        return self._tap.done

    @property
    def error(self) -> bytes | None:
        """What the backend said of its failure, else why it could not be translated."""
        return self._tap.error or self._failure

    def feed(self, data: bytes) -> bytes:
        """Bytes from the backend in, bytes for the client out."""
        data = self._tap.feed(data)
        if self._stream is None:
            self._held.append(data)
            return b""
        out = self._stream.feed(data)
        if self._stream.error:
            self._failure = error_body(500, self._stream.error)
        return out

    def rest(self) -> bytes:
        """All that is left for the client, once the backend has ended."""
        self._tap.rest()
        counted = self._tap.counted
        prompt = counted.prompt_tokens or self._facts.prompt  # a count of nothing is none
        # What is charged is the most of what was counted and seen; told is the backend's own count of a whole answer.
        whole = self._tap.finish and counted.output_tokens
        output = whole or self._tap.output_tokens
        counts = Counts(prompt, counted.cached_tokens, output, min(counted.thoughts, output), counted.written_tokens)
        if self._stream is not None:
            return self._stream.end(counts)
        body, self._held = b"".join(self._held), []
        if self._status >= 400 or body_kind(body) == "error":
            status = self._status if self._status >= 400 else error_status(body)
            same = self._turned.endpoint == RESPONSES and self._turned.way == CHAT and _is_openais(body)
            return body if same else self._writer.error(status, error_text(body, _MOST_TOLD))
        try:
            said = READERS[self._turned.way].whole(body)
            if self._turned.streams:  # some servers do not, with tools above all
                return self._as_stream(said, counts)
            return encode(self._writer.whole(said, counts))
        except CannotTranslateError as error:
            self._failure = error_body(500, f"the answer cannot be translated: {error}")
            return self._writer.error(502, f"the answer cannot be translated: {error}")

    def _as_stream(self, said: AnswerSaid, counts: Counts) -> bytes:
        for at, part in enumerate(said.parts):
            part.at = at
        writer = self._writer
        return b"".join([writer.begin(said), *map(writer.part, said.parts), writer.end(said, counts)])


def _is_openais(error: bytes) -> bool:
    """Whether it has OpenAI's form, which chat completions and responses share, with a code, a type, a parameter."""
    try:
        told = decode(error)
    except UNREADABLE:
        return False
    return isinstance(told, dict) and isinstance(told.get("error"), dict)
