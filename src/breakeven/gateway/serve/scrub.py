"""Keeps a backend's key out of what a client is told, should the backend repeat it in an error."""

from __future__ import annotations

from breakeven.wire.message import Headers


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
