"""The client's own ceiling: what it can drive here when the server costs nothing. Measured before every run.

The load comes from the very code that measures engines. On a machine with few cores the instant server takes its share
of them, and it may be the slower of the two: then the true ceiling is higher, and what is told is a lower bound.
A flooded client finds several events in one read, which costs it less than an engine's events do, each of which comes
alone. So events/s are the lower of two: what arrived in a flood, and what one core's time would allow at the cost an
event has when it comes alone.
`python -m breakeven.measure.ceiling KIND URL SECONDS` is one client process of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Literal, get_args

import msgspec

from breakeven.engines.backend import Backend
from breakeven.errors import BreakevenError
from breakeven.measure.events import ClientCeiling, RequestDone
from breakeven.measure.player.clocks import quiet_gc
from breakeven.measure.pool import Call, Pool
from breakeven.wire.instant import instant_server
from breakeven.wire.loop import new_loop, run_async

STREAMS = 64
"""Requests under way at once in each process."""
STREAM_TOKENS = 256
PROMPT_BYTES = 2_000
_WARM_UP_S = 0.2
"""Of each part, before counting: connections are opened then."""
_PROCESS_TIMEOUT_S = 60.0

Kind = Literal["whole", "flood", "paced"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class _Count(msgspec.Struct):
    """Requests answered and stream events received within `seconds`, of which the client computed `cpu_s`."""

    requests: int
    events: int
    seconds: float
    cpu_s: float


def measure_ceiling(processes: int = 1, seconds: float = 1.0) -> ClientCeiling:
    """Requests/s (answers in one piece, 2 kB each way) and stream events/s that `processes` client processes carry.

    Takes about `seconds`, and the start of the processes. Raises BreakevenError when the self-test itself fails.
    """
    counts: dict[Kind, list[_Count]] = {}
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(instant_server()) for _ in range(processes)]
        for kind in KINDS:
            counts[kind] = _together(kind, urls, seconds / len(KINDS))
    flood = sum(count.events / count.seconds for count in counts["flood"])
    alone = sum(count.events / count.cpu_s for count in counts["paced"])
    return ClientCeiling(
        requests_per_s=sum(count.requests / count.seconds for count in counts["whole"]),
        stream_events_per_s=min(flood, alone),
        processes=processes,
    )


def _together(kind: Kind, urls: list[str], seconds: float) -> list[_Count]:
    """One client process a server, all at once; with only one, in this process."""
    if len(urls) == 1:
        return [count_for(kind, urls[0], seconds)]
    base = [sys.executable, "-m", "breakeven.measure.ceiling", kind]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [*base, url, str(seconds)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
            for url in urls
        ]
        for process in started:
            stack.callback(process.kill)
        for process in started:  # each says that it is ready, so that none runs while others still import
            assert process.stdout is not None
            process.stdout.readline()
        with contextlib.suppress(OSError):
            for process in started:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.flush()
        counts = []
        for process in started:
            try:
                out, _ = process.communicate(timeout=seconds + _PROCESS_TIMEOUT_S)
                counts.append(msgspec.json.decode(out, type=_Count))
            except (subprocess.TimeoutExpired, msgspec.DecodeError):
                raise BreakevenError(
                    "a process of the client's self-test failed; run again with fewer --processes"
                ) from None
    return counts


def count_for(kind: Kind, url: str, seconds: float) -> _Count:
    """Drive the instant server at `url` with STREAMS closed streams. Raises BreakevenError if a request fails."""
    return run_async(lambda: _count(kind, url, seconds), new_loop)


async def _count(kind: Kind, url: str, seconds: float) -> _Count:
    backend = Backend(url, "instant", None, {"engine": "unknown"}, None, None)
    pool = Pool(backend, stall_timeout_s=10.0)
    failed: list[RequestDone] = []
    requests, events, running, from_ns = 0, 0, True, 0
    stream = kind != "whole"
    tokens = STREAM_TOKENS if stream else 1
    fields = {"prompt": "x" * PROMPT_BYTES, "max_tokens": tokens, "stream": stream, "paced": kind == "paced"}
    body = msgspec.json.encode(fields)

    def issue(index: int) -> None:
        call = Call(
            block="ceiling",
            index=index,
            path="/v1/completions",
            body=body,
            prompt_tokens=1,
            max_tokens=tokens,
            due_ns=time.monotonic_ns(),
            stream=stream,
            ignore_eos=True,
        )
        pool.start(call, on_done(index))

    def on_done(index: int) -> Callable[[RequestDone], None]:
        def take(done: RequestDone) -> None:
            nonlocal requests, events
            events += sum(at >= from_ns for at in done.chunk_ns) if done.sent_ns < from_ns else len(done.chunk_ns)
            requests += done.error is None and done.done_ns >= from_ns
            if done.error is not None and running:
                failed.append(done)
            elif running:
                issue(index)

        return take

    try:
        with quiet_gc():
            for index in range(STREAMS):
                issue(index)
            await asyncio.sleep(_WARM_UP_S)
            requests, events, from_ns, cpu_s = 0, 0, time.monotonic_ns(), -time.thread_time()
            await asyncio.sleep(seconds)
            running = False
            took_s = (time.monotonic_ns() - from_ns) / 1e9
            cpu_s += time.thread_time()
            await pool.close()  # what is under way is reported as cancelled, with the events it got
    finally:
        running = False
        await pool.close()
    if failed:
        raise BreakevenError(f"the client's self-test failed ({failed[0].error}: {failed[0].detail}); run it again")
    return _Count(requests, events, took_s, cpu_s)


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    print(msgspec.json.encode(count_for(sys.argv[1], sys.argv[2], float(sys.argv[3]))).decode())  # type: ignore[arg-type]
