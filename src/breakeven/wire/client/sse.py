"""Server-sent events from bytes, as they come: cut anywhere, ended by LF, CR or CRLF, several in one piece.

Grammar: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. Only `data`
fields matter here; comments and other fields are dropped.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 1 << 20
"""More than this without an end is not an event stream."""


class SseParser:
    """Feed bytes, get the data of every event they complete."""

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
        text = self._rest + piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                value = line[5:]
                self._data.append(value[1:] if value.startswith(b" ") else value)
        if len(self._rest) + sum(map(len, self._data)) > MAX_EVENT_BYTES:
            raise ValueError(f"no end of event within {MAX_EVENT_BYTES} bytes")
        self._partial = bool(self._rest or self._data or self._after_cr)
        return events

    @property
    def unfinished(self) -> bool:
        """True when bytes of an event that never ended are left over."""
        return bool(self._data) or bool(self._rest.strip())
