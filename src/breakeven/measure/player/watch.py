"""What is looked at while a schedule is played: engine, energy, noise, clocks, and whoever watches the screen.

Nothing here may delay a request, and nothing raises: whatever reads files or draws runs in a thread, the engine's
`/metrics` is asked over connections of their own, which stand in nobody's queue and are not counted among the load, and
a look that takes too long only delays the next look.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from breakeven.engines.backend import Backend
from breakeven.measure import noise
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.events import EnergySample, EngineSample, Event
from breakeven.measure.progress import LoadState
from breakeven.wire.metrics import EngineNumbers, engine_numbers
from breakeven.wire.tls import client_tls

TIMEOUT_S = 0.5
FAILURES = 3
"""An engine that has never told anything is not asked again after this many tries."""
_MOST_BYTES = 8 << 20


class EngineWatch:
    """Looks at one backend's `/metrics`. It has none, or hides it: `sample` gives None, and soon without asking."""

    def __init__(self, backend: Backend) -> None:
        parts, dialect = urlsplit(backend.url), backend.dialect
        self._host = parts.hostname or ""
        self._tls = client_tls(dialect.tls_files) if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        lines = [
            f"GET {dialect.metrics_at or parts.path + '/metrics'} HTTP/1.1",
            f"Host: {parts.netloc}",
            "Accept: text/plain",
            "Connection: close",
            *(f"{name}: {value}" for name, value in backend.headers().items()),
        ]
        self._request = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        self._failures = 0
        self._told = False
        self._closed = bool(dialect.proxy or dialect.socket)
        """Nothing is asked any more, or ever: the way through a proxy or a socket is the load's alone."""
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


TICK_S = 0.1
STATE_S = 0.5
SAMPLE_S = 1.0
NOISE_S = 2.0
SMALLEST_STEP_S = 0.05
"""A wall clock is always slewed a little; less than this is not called a step."""
_BRACKET_NS = 1_000_000
_BRACKET_TRIES = 5


class WallClock:
    """How far the wall clock was moved against the monotonic one. No interval is ever taken from it."""

    def __init__(self) -> None:
        self._first_ns = self._last_ns = _wall_minus_monotonic_ns()
        self._step_ns = 0

    def look(self) -> None:
        """Compare the two clocks again; once a second tells a step from a slow slew."""
        now_ns = _wall_minus_monotonic_ns()
        steps = (self._step_ns, now_ns - self._last_ns, now_ns - self._first_ns)
        self._step_ns = max(steps, key=abs)
        self._last_ns = now_ns

    @property
    def step_s(self) -> float | None:
        """The largest step so far, forward positive; None for none worth the name."""
        step_s = self._step_ns / 1e9
        return step_s if abs(step_s) > SMALLEST_STEP_S else None


def _wall_minus_monotonic_ns() -> int:
    """Wall minus monotonic clock, read so close together that being scheduled out in between is noticed."""
    best: tuple[int, int] | None = None
    for _ in range(_BRACKET_TRIES):
        before_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        apart_ns = time.monotonic_ns() - before_ns
        if best is None or apart_ns < best[0]:
            best = apart_ns, wall_ns - before_ns - apart_ns // 2
        if apart_ns < _BRACKET_NS:
            break
    assert best is not None
    return best[1]


class AsksEngine(Protocol):
    """What `EngineWatch` offers."""

    async def sample(self, block: str) -> EngineSample | None:
        """The engine's state now; None when it does not tell."""

    async def close(self) -> None:
        """Ask no more."""


class Watch:
    """Looks around until cancelled, told to stop, or the engine is found dead."""

    def __init__(
        self,
        block: str,
        append: Callable[[Event], None],
        *,
        engine: AsksEngine | None,
        energy: EnergyCounter | None,
        pids: Sequence[int],
        alive: Callable[[], None],
        state: Callable[[], LoadState],
        on_state: Callable[[LoadState], None],
        stop: threading.Event | None,
    ) -> None:
        self._block, self._append, self._engine, self._energy = block, append, engine, energy
        self._alive, self._state, self._on_state, self._stop = alive, state, on_state, stop
        self._pids = list(pids)
        self._wall = WallClock()
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="watch")
        self._before = noise.sample(self._pids)
        self._during: list[noise.Reading] = []
        self.engine_state: EngineSample | None = None
        """The latest word of the engine."""

    async def run(self) -> None:
        """Look around; returns when told to stop. Raises what `alive` and `on_state` raise."""
        loop = asyncio.get_running_loop()
        asking: asyncio.Task[None] | None = None
        tick = 0
        try:
            while self._stop is None or not self._stop.is_set():
                if tick % round(SAMPLE_S / TICK_S) == 0:
                    if self._engine is not None and (asking is None or asking.done()):
                        asking = asyncio.ensure_future(self._ask_engine())
                    await loop.run_in_executor(self._threads, self._each_second)
                if tick % round(NOISE_S / TICK_S) == 0:
                    self._during.append(await loop.run_in_executor(self._threads, noise.sample))
                    # The clock is judged by its extremes: a long run needs no more readings than tell them.
                    del self._during[1:-600]
                if tick % round(STATE_S / TICK_S) == 0:
                    await loop.run_in_executor(self._threads, self._on_state, self._state())
                tick += 1
                await asyncio.sleep(TICK_S)
        finally:
            if asking is not None:
                asking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asking
            if self._engine is not None:
                await self._engine.close()

    def finish(self) -> tuple[noise.BlockNoise, float | None]:
        """Look a last time; how noisy it was, and the largest step of the wall clock, seconds."""
        self._wall.look()
        self._read_energy()
        self._threads.shutdown(wait=True)
        after = noise.sample(self._pids)
        return noise.assess(self._before, after, self._during), self._wall.step_s

    def _each_second(self) -> None:
        self._wall.look()
        self._read_energy()
        self._alive()

    def _read_energy(self) -> None:
        if self._energy is None:
            return
        try:
            joules = self._energy.read_joules()
        except OSError:  # the counter has gone; what it told so far stands
            self._energy = None
            return
        self._append(EnergySample(block=self._block, at_ns=time.monotonic_ns(), joules=joules))

    async def _ask_engine(self) -> None:
        assert self._engine is not None
        found = await self._engine.sample(self._block)
        if found is not None:
            self.engine_state = found
            self._append(found)
