"""Server-sent events: the one place that knows their grammar, for whoever reads them, passes them on or writes them.

Bytes come cut anywhere; a line ends with LF, CR or CRLF; an empty line ends an event. Only `data` fields matter here,
comments and other fields are dropped (`SseParser`) or passed on as they came (`SseCutter`).
Grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 1 << 20
"""More than this without an end is not an event stream."""
DONE = b"data: [DONE]\n\n"
"""What OpenAI's streams end with."""


def event(data: bytes, name: bytes = b"") -> bytes:
    """One event that holds `data`, which has no line break in it."""
    return b"event: %b\ndata: %b\n\n" % (name, data) if name else b"data: %b\n\n" % data


def data_of(raw: bytes) -> bytes | None:
    """The data of one event, None where it has none. Several data lines are joined by a line feed."""
    if raw.startswith(b"data: ") and b"\n" not in raw and b"\r" not in raw:
        return raw[6:]
    found = [line for line in map(_value, _plain(raw).split(b"\n")) if line is not None]
    return b"\n".join(found) if found else None


def events_of(raw: bytes) -> list[bytes]:
    """The data of every event of a whole stream, of one that it breaks off in as well."""
    found = (data_of(part) for part in _plain(raw).split(b"\n\n"))
    return [data for data in found if data is not None]


def _plain(raw: bytes) -> bytes:
    """The same with every line ended by LF."""
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in raw else raw


def _value(line: bytes) -> bytes | None:
    """What a line says if it is a `data` field."""
    if not line.startswith(b"data:"):
        return None
    value = line[5:]
    return value[1:] if value.startswith(b" ") else value


class SseParser:
    """Feed bytes, get the data of every event they complete."""

    __slots__ = ("_after_cr", "_data", "_partial", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._data: list[bytes] = []
        self._partial = False
        """Something of what came is still to be ended."""

    def feed(self, piece: bytes) -> list[bytes]:
        """Data of the events completed by `piece`. Raises ValueError for an event longer than MAX_EVENT_BYTES."""
        if piece.startswith(b"data: ") and piece.endswith(b"\n\n") and not self._partial and b"\r" not in piece:
            # Whole events of one line each and nothing else, as nearly every read brings them.
            whole = piece[6:-2].split(b"\n\ndata: ")
            if piece.count(b"\n") == 2 * len(whole):
                return whole
        events: list[bytes] = []
        if self._after_cr and piece:
            # A CR ended a line at once, so that no event waits for bytes to come; this may be its other half.
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = self._after_cr or piece.endswith(b"\r")
        *lines, self._rest = (self._rest + _plain(piece)).split(b"\n")
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif (value := _value(line)) is not None:
                self._data.append(value)
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise ValueError(f"no end of event within {MAX_EVENT_BYTES} bytes")
        self._partial = bool(self._rest or self._data or self._after_cr)
        return events

    @property
    def unfinished(self) -> bool:
        """True when bytes of an event that never ended are left over."""
        return bool(self._data) or bool(self._rest.strip())


class SseCutter:
    """Feed bytes, get the same bytes back in whole events; for whoever passes a stream on.

    `end` is how events end, once the first line has told: empty before. `held`: the part of an event that has come.
    A stream of which `most` bytes have come without an end of an event goes through as it comes.
    """

    __slots__ = ("_most", "end", "held")

    def __init__(self, most: int) -> None:
        self._most = most
        self.end = b""
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        """Whole events, none or several, as they came."""
        whole = self.held + data if self.held else data
        end = self.end
        if not end:
            end = self.end = _ending(whole) or (b"\n\n" if len(whole) > self._most else b"")
            if not end:
                self.held = whole
                return b""
        if whole.endswith(end) or len(whole) > self._most:
            self.held = b""
            return whole
        cut = whole.rfind(end)
        cut = 0 if cut < 0 else cut + len(end)
        self.held = whole[cut:]
        return whole[:cut]

    def rest(self) -> bytes:
        """What is still held when the stream ends."""
        held, self.held = self.held, b""
        return held


def _ending(start: bytes) -> bytes:
    """How events end in a stream that begins so; empty while no line of it has ended for certain."""
    feed, back = start.find(b"\n"), start.find(b"\r")
    if back < 0 or 0 <= feed < back:
        return b"\n\n" if feed >= 0 else b""
    after = start[back + 1 : back + 2]
    if not after:  # its other half may follow
        return b""
    return b"\r\n\r\n" if after == b"\n" else b"\r\r"
