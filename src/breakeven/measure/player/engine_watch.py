"""Asks an engine's `/metrics` how it is doing while requests run. It never disturbs them: nothing here raises or waits.

Each look is a connection of its own, so it stands in nobody's queue and is not counted among the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from urllib.parse import urlsplit

import msgspec

from breakeven.engine.backend import Backend
from breakeven.engine.metric_names import EngineNumbers, engine_numbers
from breakeven.measure.events import EngineSample

TIMEOUT_S = 0.5
FAILURES = 3
"""An engine that has never told anything is not asked again after this many tries."""
_MOST_BYTES = 8 << 20


class EngineWatch:
    """Looks at one backend's `/metrics`. It has none, or hides it: `sample` gives None, and soon without asking."""

    def __init__(self, backend: Backend) -> None:
        parts = urlsplit(backend.url)
        self._host = parts.hostname or ""
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        lines = [
            f"GET {parts.path}/metrics HTTP/1.1",
            f"Host: {parts.netloc}",
            "Accept: text/plain",
            "Connection: close",
            *(f"{name}: {value}" for name, value in backend.headers().items()),
        ]
        self._request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        self._failures = 0
        self._told = False
        self._closed = False
        self._writer: asyncio.StreamWriter | None = None

    async def sample(self, block: str) -> EngineSample | None:
        """What the engine says now; None when it does not answer in half a second, or has nothing to say.

        An engine that once answered is asked on: it may come back.
        """
        if self._closed or (self._failures >= FAILURES and not self._told):
            return None
        numbers: EngineNumbers | None = None
        with contextlib.suppress(OSError, ValueError, EOFError, asyncio.LimitOverrunError):
            async with asyncio.timeout(TIMEOUT_S):
                numbers = engine_numbers(await self._page())
        if numbers is None:
            self._failures += 1
            return None
        self._told = True
        return EngineSample(block=block, at_ns=time.monotonic_ns(), **msgspec.structs.asdict(numbers))

    async def close(self) -> None:
        """Ask no more, and drop a connection that is open."""
        self._closed = True
        if self._writer is not None:
            self._writer.close()

    async def _page(self) -> str:
        """The page. Raises OSError, ValueError or EOFError for anything that is not one."""
        reader, self._writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=_MOST_BYTES)
        try:
            self._writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            if head.split(" ", 2)[1:2] != ["200"]:
                raise ValueError("not there")
            body = await _chunks(reader) if "transfer-encoding: chunked" in head else await _rest(reader, head)
            return body.decode("utf-8", "replace")
        finally:
            self._writer.close()
            self._writer = None


async def _rest(reader: asyncio.StreamReader, head: str) -> bytes:
    """A body of known length, else everything up to the end."""
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        if name == "content-length":
            return await reader.readexactly(min(int(value), _MOST_BYTES))
    return await reader.read(_MOST_BYTES)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A body in HTTP/1.1 chunks."""
    body = bytearray()
    while len(body) < _MOST_BYTES:
        size = int((await reader.readuntil(b"\r\n")).split(b";", 1)[0], 16)
        if size == 0:
            break
        body += await reader.readexactly(min(size, _MOST_BYTES))
        await reader.readexactly(2)
    return bytes(body)
