"""Looks at an answer as it passes: how many tokens it took, and why it ended.

Bytes go on as they came. Where we asked for the usage and the client did not, the one event that tells it is taken
out, which needs whole events: the part of one is held until the rest of it comes.

What an answer took is the backend's count and what passed since, and never less than the events that brought output.
Where nobody counts, its text is measured. Of events that are made alike, a few are taken apart, and of those that
follow the length tells how much text they hold.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from breakeven.gateway.serve.opening import WRITES
from breakeven.gateway.serve.usage import (
    ENDS,
    UNREADABLE,
    Counted,
    UsageScan,
    WholeBody,
    choice_bytes,
    event_bytes,
    finish_of,
    is_document,
    parts_bytes,
    thinks_aloud,
    tokens_of,
    usage_of,
)
from breakeven.wire.meaning import StreamEvent, event_kind, is_ping, kind_of
from breakeven.wire.sse import SseCutter, fields_of, mended

_MOST_HELD = 64 * 1024
"""Of an event that has not ended; longer ones pass as they come. None that tells nothing but the usage is as long."""
_MOST_KEPT = 2**20
"""Of an answer in one piece that is read when it is whole; of a longer one the usage is read as it passes."""
_MOST_INFLATED = 64 * 2**20
"""Of a compressed answer; what is beyond is not read, and charged by the bytes that came."""
_INFLATED_AT_ONCE = 256 * 1024
_PLAIN_A_BYTE, _LINES_A_BYTE, _FREE_LINES, _MOST_MEMBERS = 64, 4, 4096, 1000  # more is made to keep us busy
_ALIKE_BYTES = 4  # events whose frames differ by no more are made alike
_TAKEN_APART, _TAKEN_AS_ALIKE = 3, 250
"""So many in a row show how events are made, then so many are measured by their length; and anew."""
_CHOICES = ("/v1/chat/completions", "/v1/completions")
_PLAIN = frozenset((b"", b"identity"))
_decode = msgspec.json.Decoder(StreamEvent).decode
_decode_body = msgspec.json.Decoder(WholeBody).decode


class StreamTap:
    """Events of one stream. `events` counts those with output; `finish` is the reason it gave, else empty.

    `error`: the data of its first error. `half`: it ended within an event, without a reason before. `done`: it said
    that it ends, whether with a reason or without.
    """

    __slots__ = (
        "_apart", "_as_alike", "_choices", "_cutter", "_drop", "_ended", "_frame", "_half_dropped", "_idle", "_lines",
        "_long", "_long_counts", "_longs", "_mark", "_marked", "_start", "_text", "_told_events", "_told_text",
        "counted", "error", "events", "finish", "half",
    )  # fmt: skip

    def __init__(self, endpoint: str, *, drop_usage: bool) -> None:
        self._drop = drop_usage
        self._cutter = SseCutter(_MOST_HELD)  # with `drop_usage` the client has not had yet what it holds
        self._choices = endpoint in _CHOICES
        self.counted = Counted()
        self.events = self._text = self._told_events = self._told_text = 0
        self.finish = ""
        self.error: bytes | None = None
        self.half = self._half_dropped = False
        self._ended = endpoint not in WRITES  # how others end is not known
        self._long: UsageScan | None = None
        self._longs, self._long_counts = 0, False
        # How events with output are made: their beginning, a mark that each or none has, lines, bytes without the text.
        self._as_alike = self._apart = self._frame = self._lines = 0
        self._start, self._mark, self._marked = b"", b"", False
        self._idle = b""  # the last event that said nothing: some backends repeat one by the thousand

    @property
    def done(self) -> bool:
        """Whether it said that it ends, an error among the ways to."""
        return self._ended or bool(self.finish) or self.error is not None

    @property
    def output_tokens(self) -> int:
        """As counted, as seen, or as estimated, whichever is more."""
        events, text = self.events, self._text
        if held := self._cutter.held:
            # Of an event that never ended, who passes bytes on has had the beginning.
            text += max(0, len(held) - self._frame)
        since = max(events - self._told_events, tokens_of(text - self._told_text))
        return max((self.counted.output_tokens or 0) + since, events)

    def feed(self, data: bytes) -> bytes:
        """Bytes from the backend in, bytes for the client out."""
        cutter = self._cutter
        if self._as_alike and cutter.resting and self._are_alike(data):
            # Whole events made as those before them and nothing else, as nearly every read brings it.
            self._half_dropped = False
            return data
        events = cutter.feed(data)
        loose = cutter.loose
        if loose:
            self._pass_long(loose)
        if not self._drop:
            for event in events:
                self._look(event)
            return data
        if len(events) == 1 and not loose:
            return self._kept(events[0])
        return loose + b"".join(map(self._kept, events))

    def rest(self) -> bytes:
        """What is still held when the stream ends."""
        held = self._cutter.rest()
        # Some servers leave the last empty line out, so that what can be read is an event all the same.
        self.half = bool(held) and not self.finish and event_kind(*fields_of(held)) == "unread"
        if held and not self._drop:
            self._look(held)
        return self._kept(held) if held and self._drop else b""

    def _kept(self, event: bytes) -> bytes:
        """What the client gets of an event. The LF of a CRLF may come with the event after it."""
        late = event.startswith(b"\n")
        if self._look(event):
            event = event[1:] if late and self._half_dropped else event
            self._half_dropped = False
            return event
        kept = b"\n" if late and not self._half_dropped else b""
        self._half_dropped = event.endswith(b"\r")
        return kept

    def _look(self, event: bytes) -> bool:
        """Read an event; False for the one that only we asked for."""
        if (self._as_alike and self._are_alike(event)) or event == self._idle or event.isspace():
            return True
        data, name = fields_of(event)
        if name == b"error":
            self.error = self.error or data or b"error"
            return True
        ends = data is not None and data.strip() == b"[DONE]"
        if data is None or ends or is_ping(data, name):
            # Some servers do not stream, and do not say so.
            self._ended, self._idle = self._ended or ends or is_document(event), event
            return True
        try:
            found = _decode(data)
        except UNREADABLE:
            try:
                found = _decode(mended(data))
            except UNREADABLE:
                # Whatever it is, it was said.
                if event_kind(data) == "error":
                    self.error = self.error or data
                self.events += 1
                self._text += len(data)
                UsageScan(self.counted).feed(data)
                return True
        kind = kind_of(found)
        if kind == "content" or (kind == "error" and found.choices):  # one that is broken off may have last words
            self._take(event, found)
        if kind == "error":
            self.error = self.error or data
        self.finish = self.finish or finish_of(found)
        usage = usage_of(found)
        if self.counted.add(usage):
            self._told_events, self._told_text = self.events, self._text
        elif kind == "empty" and usage is None:
            self._idle = event
        return not (self._drop and isinstance(found.usage, dict) and not found.choices and not found.error)

    def _are_alike(self, data: bytes) -> bool:
        """Whether these are whole events made as those before them; they are counted then.

        Quotes within a text are written otherwise, so that marks are found in the frames alone.
        """
        lines = data.count(b"\n")
        count, part = (1, 0) if lines == self._lines else divmod(lines, self._lines)
        text = len(data) - count * self._frame
        start, mark = self._start, self._mark
        if part or text < count or b"\r" in data or not (data.startswith(start) and data.endswith(b"\n\n")):
            return False
        if count == 1:
            if (mark in data) is not self._marked:
                return False
        elif (
            not count
            or data.count(mark) != count * self._marked
            or data.count(b"\n\n") != count
            or data.count(b"\n\n" + start) != count - 1
        ):
            return False
        if b'"error"' in data or not (self._marked or data.count(b'"choices"') == count):
            return False
        if b'"usage"' in data and data.count(b'"usage"') != data.count(b'"usage":null'):
            return False
        self._as_alike = max(0, self._as_alike - count)
        self.events += count
        self._text += text
        return True

    def _take(self, event: bytes, found: StreamEvent) -> None:
        """An event of output: how many answers it brings on, and how much text."""
        choices = found.choices
        if not self.events:
            self.counted.thinks_aloud = thinks_aloud(found)
        if choices:
            sizes = [size for choice in choices if (size := choice_bytes(choice, whole=not self.events)) >= 0]
            self.events += len(sizes)
            text = sum(sizes)
        elif found.type is None or str(found.type).endswith(("delta", "_start")) or not self.events:
            # Other types repeat at their end what came in deltas; where no delta came, they bring it.
            self.events += 1
            text = event_bytes(found)
        else:
            return
        self._text += text
        self._as_alike = 0
        if not choices:
            self._learn(event, b'"%s"' % str(found.type).encode(), len(event) - text)
        elif len(choices) == 1:
            mark = b'"finish_reason":null' if b'"finish_reason":null' in event else b'"finish_reason": null'
            self._learn(event, mark if mark in event else b'"finish_reason"', len(event) - text)

    def _learn(self, event: bytes, mark: bytes, frame: int) -> None:
        """How events of output are made, so that those alike need not be taken apart."""
        if b"\r" in event or not event.endswith(b"\n\n"):
            self._apart = 0
            return
        made = (event[: event.find(b":") + 1], mark, mark in event)
        alike = made == (self._start, self._mark, self._marked) and abs(frame - self._frame) <= _ALIKE_BYTES
        if not (self._apart and alike):
            self._apart, self._frame, self._lines = 0, frame, event.count(b"\n")
            self._start, self._mark, self._marked = made
        self._frame = min(frame, self._frame)
        self._apart += 1
        if self._apart == _TAKEN_APART:
            self._apart, self._as_alike = 0, _TAKEN_AS_ALIKE

    def _pass_long(self, loose: bytes) -> None:
        """A part of an event that is too long to hold: it passes, and so does what it says of usage."""
        if self._long is None:
            self._long = UsageScan(self.counted)
            head = loose[:1024]
            self._long_counts = self._choices or b'delta"' in head or not self.events
            self.events += self._long_counts
            name = head.partition(b"\n")[0].removeprefix(b"event:").strip().decode(errors="replace")
            ended = name if name in ENDS else next((end for end in ENDS if b'"%s"' % end.encode() in head), "")
            self.finish = self.finish or ended
            self._ended = self._ended or head.startswith(b"{")  # no event: a document that is too long to be looked at
        self._long.feed(loose)
        if self._long_counts:
            self._text += len(loose)
        if self._cutter.long > self._longs:
            if self._long.told:
                self._told_events, self._told_text = self.events, self._text
            self._longs, self._long = self._cutter.long, None


class WholeTap:
    """An answer in one piece, read when it is whole, else as it passes. `done`: it is no half of a document."""

    __slots__ = ("_is_json", "_pieces", "_scan", "_size", "_text", "counted", "done", "events", "finish")
    error: bytes | None = None
    half = False

    def __init__(self, endpoint: str = "") -> None:
        self._is_json, self.done = endpoint in WRITES, True
        self._pieces: list[bytes] = []
        self._size = self.events = 0
        self._text = -1  # bytes of its text; below 0: not known
        self._scan: UsageScan | None = None
        self.counted = Counted()
        self.finish = ""

    @property
    def output_tokens(self) -> int:
        """As counted, else as estimated."""
        return self.counted.output_tokens or tokens_of(self._size if self._text < 0 else self._text)

    def feed(self, data: bytes) -> bytes:
        """Bytes through, unchanged."""
        self._size += len(data)
        if self._scan is not None:
            self._scan.feed(data)
            return data
        self._pieces.append(data)
        if self._size > _MOST_KEPT:
            self._scan = UsageScan(self.counted)
            for piece in self._pieces:
                self._scan.feed(piece)
            self._pieces = []
        return data

    def rest(self) -> bytes:
        """Nothing is held; the answer is read now."""
        if self._scan is not None:
            return b""
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        try:
            answer = _decode_body(body if body[:1] == b"{" else mended(body))
        except UNREADABLE:
            UsageScan(self.counted).feed(body)
            self.done = not self._is_json or is_document(body)
            return b""
        if not self.counted.add(answer.usage):
            self._text = parts_bytes(answer.choices, answer.content, answer.output, answer.text)
        self.finish = answer.finish
        return b""


class CodedTap:
    """A compressed answer: its bytes pass as they are, and are read beside; a token a byte where they cannot be."""

    __slots__ = (
        "_bare", "_inflate", "_inflated", "_lines", "_members", "_size", "_tap", "counted", "done", "error", "half",
    )  # fmt: skip

    def __init__(self, tap: StreamTap | WholeTap, encoding: bytes) -> None:
        self._tap, self.counted = tap, tap.counted
        self._inflate: Any = zlib.decompressobj(47) if encoding in (b"gzip", b"x-gzip", b"deflate") else None
        self._bare = encoding == b"deflate"  # which may come without the frame that it should have
        self._inflated = self._lines = self._members = self._size = 0
        self.error: bytes | None = None
        self.half, self.done = False, True

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
        seen = self._tap.output_tokens
        return seen if self._inflate is not None or self.counted.output_tokens else max(seen, self._size)

    def feed(self, data: bytes) -> bytes:
        """Bytes through, unchanged."""
        self._size += len(data)
        left = data
        while (inflate := self._inflate) is not None:
            try:
                plain = inflate.decompress(left, _INFLATED_AT_ONCE)
            except zlib.error:
                self._inflate = zlib.decompressobj(-15) if self._bare else None
                self._bare = False
                continue
            self._bare = self._bare and not plain
            self._inflated += len(plain)
            self._lines += plain.count(b"\n") + plain.count(b"\r")
            if self._is_bomb():
                self._inflate = None
                break
            self._tap.feed(plain)
            left = inflate.unconsumed_tail
            if inflate.eof and (left := inflate.unused_data):
                self._members += 1
                self._inflate = zlib.decompressobj(47)
            elif not left and len(plain) < _INFLATED_AT_ONCE:
                break
        self.error = self._tap.error
        return data

    def _is_bomb(self) -> bool:
        """Whether reading on would cost more than there can be to read: empty lines cost as much as events."""
        most, lines = 4 * _INFLATED_AT_ONCE + _PLAIN_A_BYTE * self._size, _FREE_LINES + _LINES_A_BYTE * self._size
        return self._inflated > min(most, _MOST_INFLATED) or self._lines > lines or self._members > _MOST_MEMBERS

    def rest(self) -> bytes:
        """Nothing is held."""
        self._tap.rest()
        self.half = self._inflate is not None and self._tap.half
        self.done = self._inflate is None or self._tap.done
        return b""


Tap = StreamTap | WholeTap | CodedTap
UNHEARD = WholeTap()
"""Of a backend that has not said yet what comes."""


def tap_for(endpoint: str, coding: bytes, *, streams: bool, drop_usage: bool) -> Tap:
    """For an answer. `coding`: its content-encoding. `streams`: its own type says that it is a stream.

    `drop_usage`: the event of the usage is not for the client; from a compressed stream it cannot be taken out.
    """
    plain = coding in _PLAIN
    tap = StreamTap(endpoint, drop_usage=drop_usage and plain) if streams else WholeTap(endpoint)
    return tap if plain else CodedTap(tap, coding)
