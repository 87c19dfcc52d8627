"""Looks at an answer as it passes: when it began and ended, how many tokens it took, why it ended.

Bytes go on as they came. Where we asked for the usage and the client did not, the one event that tells it is taken
out, which needs whole events: the part of one is held until the rest of it comes.

A backend's key is kept out of what a client is told, should the backend repeat it in an error.
"""

from __future__ import annotations

import msgspec

from breakeven.wire.message import Headers
from breakeven.wire.sse import SseCutter, data_of

_MOST_HELD = 256 * 1024
"""Of an event that has not ended; longer ones pass as they come. No event that tells the usage is as long."""
_MOST_KEPT = 4 * 2**20
"""Of an answer in one piece that is read for its usage."""
_MOST_TOKENS = 10**8
"""Counts beyond, or below 0, are no counts: budgets are computed with them."""
_USAGE = (b'"usage":{', b'"usage": {')
_FINISH: dict[str, tuple[bytes, ...]] = {
    "/v1/chat/completions": (b'"finish_reason":"', b'"finish_reason": "'),
    "/v1/completions": (b'"finish_reason":"', b'"finish_reason": "'),
    "/v1/responses": (b"response.completed", b"response.incomplete", b"response.failed"),
    "/v1/messages": (b"message_stop",),
}
"""What a stream that ends well has said, by endpoint."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Holder(msgspec.Struct):
    usage: _Usage | None = None


class _Answer(msgspec.Struct):
    """Any endpoint's answer or event: OpenAI's, the responses' nested one, the messages' start and end."""

    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    response: _Holder | None = None
    message: _Holder | None = None
    stop_reason: str | None = None
    status: str | None = None


_ANSWER = msgspec.json.Decoder(_Answer)


class Counted(msgspec.Struct):
    """Tokens as the backend counted them; None: it did not say."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class StreamTap:
    """Events of one stream. `events` counts them; `finish` is the reason it gave, empty while it gave none."""

    __slots__ = ("_cutter", "_drop", "_marks", "counted", "events", "finish")

    def __init__(self, endpoint: str, *, drop_usage: bool) -> None:
        self._drop = drop_usage
        self._cutter = SseCutter(_MOST_HELD)
        """With `drop_usage` the client has not had yet what it holds."""
        self._marks = _FINISH.get(endpoint, ())
        self.counted = Counted()
        self.events = 0
        self.finish = ""

    def feed(self, data: bytes) -> bytes:
        """Bytes from the backend in, bytes for the client out."""
        cutter = self._cutter
        events = cutter.feed(data)
        if events:
            self.events += len(events)
            events = self._look(events)
        if not self._drop:
            return data
        if len(events) == 1 and not cutter.loose:
            return events[0]
        return b"".join((cutter.loose, *events))

    def rest(self) -> bytes:
        """What is still held when the stream ends."""
        held = self._cutter.rest()
        kept = self._look([held]) if held else []
        return b"".join(kept) if self._drop else b""

    def _look(self, events: list[bytes]) -> list[bytes]:
        """Read whole events; returns them without the one that only we asked for."""
        together = events[0] if len(events) == 1 else b"".join(events)
        if not self.finish:
            for mark in self._marks:
                if (at := together.find(mark)) >= 0:
                    self.finish = _reason(together, at, mark)
                    break
        if _USAGE[0] not in together and _USAGE[1] not in together:
            return events
        kept = []
        for event in events:
            answer = _event(event)
            if answer is not None:
                self._count(answer)
                if self._drop and answer.usage is not None and not answer.choices:
                    self.events -= 1
                    continue
            kept.append(event)
        return kept

    def _count(self, answer: _Answer) -> None:
        holder = answer.response or answer.message
        for usage in (answer.usage, holder.usage if holder else None):
            if usage is not None:
                _add(self.counted, usage)


class WholeTap:
    """An answer in one piece, read when it is whole."""

    __slots__ = ("_pieces", "_size", "counted", "events", "finish")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.counted = Counted()
        self.events = 0
        self.finish = ""

    def feed(self, data: bytes) -> bytes:
        """Bytes through, unchanged."""
        self._size += len(data)
        if self._size <= _MOST_KEPT:
            self._pieces.append(data)
        return data

    def rest(self) -> bytes:
        """Nothing is held; the answer is read now."""
        if self._size > _MOST_KEPT:
            return b""
        try:
            answer = _ANSWER.decode(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""
        if answer.usage is not None:
            _add(self.counted, answer.usage)
        reason = answer.choices[0].finish_reason if answer.choices else answer.stop_reason or answer.status
        self.finish = reason or ""
        return b""


Tap = StreamTap | WholeTap


def _event(event: bytes) -> _Answer | None:
    """The data of one event, None where it is none that we know."""
    data = data_of(event)
    if data is None:
        return None
    try:
        return _ANSWER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _add(counted: Counted, usage: _Usage) -> None:
    prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    output = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = details.cached_tokens if details else usage.cache_read_input_tokens
    if prompt is not None and 0 <= prompt <= _MOST_TOKENS:
        counted.prompt_tokens = prompt
    if output is not None and 0 <= output <= _MOST_TOKENS:
        counted.output_tokens = output
    if cached is not None and 0 <= cached <= _MOST_TOKENS:
        counted.cached_tokens = cached


def _reason(data: bytes, at: int, mark: bytes) -> str:
    if not mark.endswith(b'"'):
        return mark.decode()
    start = at + len(mark)
    return data[start : data.find(b'"', start)].decode(errors="replace")[:40]


class Scrub:
    """Bytes of one answer through; the key becomes as many stars, wherever the answer is cut into pieces."""

    __slots__ = ("_held", "_key", "_stars")

    def __init__(self, key: bytes) -> None:
        """`key` is not empty."""
        self._key, self._stars, self._held = key, b"*" * len(key), b""

    def feed(self, data: bytes) -> bytes:
        """What may go on; the beginning of a key that may follow is held."""
        data = (self._held + data).replace(self._key, self._stars)
        most = min(len(self._key) - 1, len(data))
        hold = next((size for size in range(most, 0, -1) if self._key.startswith(data[-size:])), 0)
        self._held = data[len(data) - hold :]
        return data[: len(data) - hold]

    def rest(self) -> bytes:
        """What was held, when nothing follows."""
        held, self._held = self._held, b""
        return held


def headers_without(key: bytes, headers: Headers) -> Headers:
    """All headers but those that hold the key."""
    return [pair for pair in headers if key not in pair[1]]
