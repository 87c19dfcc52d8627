"""The load client: sends requests, stamps what comes back, and calls every failure by its name.

It knows nothing of statistics. How bytes travel and are stamped is in `wire`; here are whole blocks of requests,
for the paired comparison and whoever wants a few answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence

from breakeven.engines.backend import Backend
from breakeven.measure.events import RequestDone
from breakeven.wire.client.pool import Call, Pool
from breakeven.wire.client.request import Request

ERROR_KINDS = ("timeout", "unreachable", "reset", "broken_stream", "refused", "short", "cancelled")
"""What `RequestDone.error` can be, beside `http_<status>`.

timeout: silent or running too long. unreachable: no connection. reset: the connection broke. broken_stream: bytes that
are no stream of completions, or one that stops without an end. refused: the engine reported an error inside the stream.
short: fewer tokens than asked for with `ignore_eos`. cancelled: by us.
"""


@contextlib.contextmanager
def quiet_gc() -> Iterator[None]:
    """Keep the garbage collector out of a measurement: what exists is set aside, and nothing is collected inside."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


async def run_block(
    backend: Backend,
    requests: Sequence[Request],
    *,
    on_done: Callable[[RequestDone], None] | None = None,
) -> list[RequestDone]:
    """Issue all requests together (a closed loop of `len(requests)` streams) and wait for all of them.

    Results are in the order of the requests; a failed request is a result with `error` set. When this is cancelled,
    every request still under way is reported to `on_done` as cancelled before the cancellation goes on.
    """
    calls = [_call(backend, request, request.body(backend)) for request in requests]
    pool = Pool(backend)
    try:
        with quiet_gc():
            return list(await asyncio.gather(*[_done(pool, call, on_done) for call in calls]))
    finally:
        await pool.close()


async def stream_completion(
    pool: Pool,
    request: Request,
    *,
    body: bytes | None = None,
    on_done: Callable[[RequestDone], None] | None = None,
) -> RequestDone:
    """Send one request and read its answer to the end. Never raises for what the server does: see `ERROR_KINDS`.

    `body` is `request.body(backend)` when it was made before. A cancelled request is reported to `on_done` as such,
    then the cancellation goes on.
    """
    return await _done(pool, _call(pool.backend, request, body or request.body(pool.backend)), on_done)


def _call(backend: Backend, request: Request, body: bytes) -> Call:
    return Call(
        block=request.block,
        index=request.stream,
        path=request.path(backend),
        body=body,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        ignore_eos=request.ignore_eos,
        due_ns=request.due_ns,
        stall_timeout_s=request.stall_timeout_s,
        total_timeout_s=request.total_timeout_s,
    )


def _done(pool: Pool, call: Call, on_done: Callable[[RequestDone], None] | None) -> asyncio.Future[RequestDone]:
    """A future of the result. Cancelling it cancels the request."""
    future: asyncio.Future[RequestDone] = asyncio.get_running_loop().create_future()

    def finish(done: RequestDone) -> None:
        try:
            if on_done is not None:
                on_done(done)
        except Exception as error:
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(done)

    exchange = pool.start(call, finish)
    future.add_done_callback(lambda _: exchange.cancel())
    return future
