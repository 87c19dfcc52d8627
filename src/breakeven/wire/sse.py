"""Server-sent events: the one place that knows their grammar, for whoever reads them, passes them on or writes them.

A byte order mark may come first. A line ends with LF, CR or CRLF, each line as it likes; an empty line ends an event,
and what no empty line ends is no event. Of a line that has no colon the whole is the field's name; one space after the
colon is not part of the value; lines that begin with a colon are comments. All of it is told by bytes below 128, so
that bytes cut anywhere, within a character too, read the same.
Grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.

    SseCutter   bytes in, the same bytes out event by event; holds at most one event, and no more than it is told
    fields_of   the data and the name of one such event
    SseParser   both together, for whoever wants nothing but the data
"""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 64 << 20
"""As much as an answer in one piece may have; more than this without an end is not an event stream."""
DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""
BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"\n\n|[\n\r]\r\n?")
"""A line's end and the empty line after it, however the two are written. The LF of a CRLF may come later."""
_ODD = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|-?\b(?:NaN|Infinity)\b', re.DOTALL)
"""A text, or a number that JSON does not have. A text without an end is one whole: else each quote in it is tried."""
_ESCAPES = re.compile(rb"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)")
"""An escaped backslash, a whole pair, and half of one."""
_NAMELESS: tuple[bytes, ...] = ()


def event(data: bytes, name: bytes = b"") -> bytes:
    """One event that holds `data`, which has no line break in it."""
    return b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data


def fields_of(raw: bytes) -> tuple[bytes | None, bytes]:
    """The data of one event, None where it has none, and its name. Several data lines are joined by a line feed.

    Servers of llama.cpp once told an error in a field `error` of its own, which the grammar has no use for: an event
    that holds nothing else is one of that name.
    """
    if raw.startswith(b"data: "):  # one line, as nearly always
        if raw.endswith(b"\n\n") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
            return raw[6:-2], b""
        if raw.endswith(b"\r\n\r\n") and raw.find(b"\r") == len(raw) - 4 and raw.find(b"\n") == len(raw) - 3:
            return raw[6:-4], b""
    if raw.startswith(b":") and raw.find(b"\n") >= len(raw) - 2 and b"\r" not in raw:
        return None, b""  # a comment
    data: list[bytes] = []
    name, failure = b"", None
    for line in _plain(raw).split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
        elif field == b"error":
            failure = value.removeprefix(b" ")
    if data:
        return b"\n".join(data), name
    return (None, name) if failure is None else (failure, b"error")


def lone(data: bytes) -> bytes:
    """The one object of a list, as Gemini tells errors; all else as it came."""
    bare = data.strip()
    return bare[1:-1].strip() if bare.startswith(b"[") and bare.endswith(b"]") else data


def mended(data: bytes) -> bytes:
    """JSON as servers write it and no reader of ours takes it, in words that are.

    As the grammar decodes it, so that what is no UTF-8 becomes U+FFFD; so does half of a pair of escapes, which servers
    that cut texts by UTF-16 send of a character that comes in two pieces; a number that is none becomes null; and a
    byte order mark before it is passed over.
    """
    text = data.removeprefix(BOM).decode(errors="replace").encode()
    if b"\\u" not in text and b"N" not in text and b"Infinity" not in text:
        return text
    return _ODD.sub(lambda found: _plainly(found[0]), text)


def _plainly(text: bytes) -> bytes:
    if not text.startswith(b'"'):
        return b"null"
    return _ESCAPES.sub(lambda found: b"\\ufffd" if found[1] else found[0], text) if b"\\u" in text else text


def data_of(raw: bytes) -> bytes | None:
    """The data of one event, None where it has none: comments, a name alone."""
    return fields_of(raw)[0]


def split_events(raw: bytes) -> list[bytes]:
    """Whole events, one after another, each with the empty line that ends it; what no empty line ends comes last."""
    if b"\r" not in raw:
        *ended, rest = raw.split(b"\n\n")
        found = [part + b"\n\n" for part in ended]
    else:
        found, start = [], 0
        for blank in _BLANK.finditer(raw):
            found.append(raw[start : blank.end()])
            start = blank.end()
        rest = raw[start:]
    return [*found, rest] if rest else found


def events_of(raw: bytes) -> list[bytes]:
    """The data of every event of a whole stream, of one that it breaks off in as well."""
    found = map(data_of, split_events(raw.removeprefix(BOM)))
    return [data for data in found if data is not None]


def _plain(raw: bytes) -> bytes:
    """The same with every line ended by LF."""
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in raw else raw


class SseCutter:
    """Feed bytes, get the same bytes back in whole events; a byte order mark alone is left out.

    An event of which more than `most` bytes have come without its end goes through as it comes, in `loose`: the bytes
    that were before the events of the last feed and belong to such a one. `long` counts those that have ended; no more
    is held than `most` and one feed's bytes. `resting`: nothing is held and no event is under way.
    """

    __slots__ = ("_begun", "_last", "_most", "_parts", "_passing", "_size", "long", "loose", "resting")

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[bytes] = []
        self._size = 0
        self._last = b""
        """The last byte of what is held or passing: an empty line may begin with it."""
        self._begun = self._passing = False
        self.resting = False
        self.loose = b""
        self.long = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The events that end in `data`, each with the empty line that ends it."""
        if self.loose:
            self.loose = b""
        if self.resting:
            # One event and nothing else, as nearly every read brings it; one line of data, as nearly every event is.
            if data.endswith(b"\n\n"):
                size = len(data)
                if (data.find(b"\n") == size - 2 or data.find(b"\n\n") >= size - 3) and b"\r" not in data:
                    return [data]
            elif data.endswith(b"\r\n\r\n") and _is_one(data):
                return [data]
        elif not self._begun:
            data = self._start(data)
        if not data:
            return []
        if self._size > self._most:
            self._let_go()
        if self._passing:
            data = self._pass(data)
        elif self._parts and not _has_blank(self._last + data):
            self._hold(data)
            if self._size > self._most:
                self._let_go()
            return []
        if self._parts:
            data = b"".join(self._parts) + data
            self._parts, self._size = [], 0
        events = split_events(data)
        if events and not _ends_blank(events[-1]):
            self._hold(events.pop())
        self.resting = not self._parts and not self._passing
        return events

    @property
    def held(self) -> bytes:
        """The part of an event that has come and was not handed on."""
        return b"".join(self._parts)

    def rest(self) -> bytes:
        """What is still held when the stream ends: by the grammar no event."""
        held = self.held
        self._parts, self._size = [], 0
        return held

    def _start(self, data: bytes) -> bytes:
        """The first bytes without a byte order mark; empty while they may yet be one."""
        data = self.held + data
        if len(data) < len(BOM) and BOM.startswith(data):
            self._parts = [data]
            return b""
        self._parts, self._begun = [], True
        return data.removeprefix(BOM)

    def _hold(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._last = data[-1:]
        self.resting = False

    def _let_go(self) -> None:
        self._passing, self.loose = True, b"".join(self._parts)
        self._parts, self._size = [], 0

    def _pass(self, data: bytes) -> bytes:
        """Let go what belongs to the long event; returns what follows its end."""
        blank = _BLANK.search(self._last + data)
        if blank is None:
            self.loose += data
            self._last = data[-1:]
            return b""
        cut = blank.end() - len(self._last)
        self.loose += data[:cut]
        self._passing = False
        self.long += 1
        return data[cut:]


def _is_one(data: bytes) -> bool:
    """Whether what ends with CRLF CRLF is certainly one event and no more."""
    size = len(data)
    if data.find(b"\n") == size - 3:
        return data.find(b"\r") == size - 4
    return data.find(b"\n\r") == size - 3 and b"\n\n" not in data and b"\r\r" not in data


def _has_blank(data: bytes) -> bool:
    """Whether a line's end and an empty line are in it."""
    return b"\n\n" in data or (b"\r" in data and (b"\r\r" in data or b"\n\r" in data))


def _ends_blank(event: bytes) -> bool:
    """Whether what was cut off is a whole event."""
    return event.endswith((b"\n\n", b"\r\r", b"\n\r", b"\n\r\n", b"\r\r\n"))


class SseParser:
    """Feed bytes, get the data of every event they complete. `names`: of these events, empty where none has one."""

    __slots__ = ("_cutter", "_most", "names")

    def __init__(self, most: int = MAX_EVENT_BYTES) -> None:
        self._cutter, self._most = SseCutter(most), most
        self.names: list[bytes] | tuple[bytes, ...] = _NAMELESS

    def feed(self, piece: bytes) -> list[bytes]:
        """Data of the events completed by `piece`. Raises ValueError for an event that is longer than `most`."""
        cutter = self._cutter
        if cutter.resting and piece.startswith(b"data: ") and piece.endswith(b"\n\n") and b"\r" not in piece:
            # Whole events of one line each and nothing else, as nearly every read brings them.
            self.names = _NAMELESS
            if piece.find(b"\n") == len(piece) - 2:
                return [piece[6:-2]]
            whole = piece[6:-2].split(b"\n\ndata: ")
            if piece.count(b"\n") == 2 * len(whole):
                return whole
        found: list[bytes] = []
        names: list[bytes] = []
        named = False
        for raw in cutter.feed(piece):
            data, name = fields_of(raw)
            if data is not None:
                found.append(data)
                names.append(name)
                named = named or bool(name)
        if cutter.loose:
            raise ValueError(f"no end of event within {self._most} bytes")
        self.names = names if named else _NAMELESS
        return found

    @property
    def unfinished(self) -> bool:
        """True when bytes of an event that never ended are left over."""
        if self._cutter.resting:
            return False
        held = self._cutter.held
        last = _plain(held).rpartition(b"\n")[2].strip()
        return data_of(held) is not None or (bool(last) and not last.startswith(b":"))

    @property
    def held(self) -> bytes:
        """The bytes of an event that has not ended."""
        return self._cutter.held
