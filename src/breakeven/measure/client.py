"""The load client: sends requests, stamps what comes back, and calls every failure by its name.

It knows nothing of statistics. Times are taken when bytes arrive, before they are looked at. No proxy is used and no
redirect followed, so a key goes nowhere but to the URL it is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence

import aiohttp

from breakeven.engine.backend import Backend
from breakeven.measure.events import RequestDone
from breakeven.measure.reply import BrokenStreamError, Reply
from breakeven.measure.request import Request

ERROR_KINDS = ("timeout", "unreachable", "reset", "broken_stream", "refused", "short", "cancelled")
"""What `RequestDone.error` can be, beside `http_<status>`.

timeout: silent or running too long. unreachable: no connection. reset: the connection broke. broken_stream: bytes that
are no stream of completions, or one that stops without an end. refused: the engine reported an error inside the stream.
short: fewer tokens than asked for with `ignore_eos`. cancelled: by us.
"""

_CONNECT_TIMEOUT_S = 10.0
_DRAIN_S = 1.0
_DETAIL_CHARS = 300


def open_session(backend: Backend) -> aiohttp.ClientSession:
    """An HTTP session for `backend`, for use as an async context manager. It caps nothing.

    An engine of ours gets a new connection a request: it costs a fraction of a millisecond on loopback, and no
    request can meet a connection that the engine closed while the other candidate was being measured.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=backend.pid is not None)
    return aiohttp.ClientSession(connector=connector)


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
    session: aiohttp.ClientSession | None = None,
    on_done: Callable[[RequestDone], None] | None = None,
) -> list[RequestDone]:
    """Issue all requests together (a closed loop of `len(requests)` streams) and wait for all of them.

    Results are in the order of the requests; a failed request is a result with `error` set. When this is cancelled,
    every request still under way is reported to `on_done` as cancelled before the cancellation goes on.
    """
    async with contextlib.AsyncExitStack() as stack:
        if session is None:
            session = await stack.enter_async_context(open_session(backend))
        stack.enter_context(quiet_gc())
        bodies = [request.body(backend) for request in requests]
        tasks = [
            asyncio.create_task(stream_completion(session, backend, request, body=body, on_done=on_done))
            for request, body in zip(requests, bodies, strict=True)
        ]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise


async def stream_completion(
    session: aiohttp.ClientSession,
    backend: Backend,
    request: Request,
    *,
    body: bytes | None = None,
    on_done: Callable[[RequestDone], None] | None = None,
) -> RequestDone:
    """Send one request and read its stream to the end. Never raises for what the server does: see `ERROR_KINDS`.

    `body` is `request.body(backend)` when it was made before. A cancelled request is reported to `on_done` as such,
    then the cancellation goes on.
    """
    body = request.body(backend) if body is None else body
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **backend.headers()}
    timeout = aiohttp.ClientTimeout(
        total=request.total_timeout_s, sock_connect=_CONNECT_TIMEOUT_S, sock_read=request.stall_timeout_s
    )
    reply = Reply()
    error: str | None = None
    detail: str | None = None
    cancelled: asyncio.CancelledError | None = None
    headers_ns: int | None = None
    sent_ns = time.monotonic_ns()
    try:
        async with session.post(
            backend.url + request.path(backend), data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as response:
            headers_ns = time.monotonic_ns()
            if response.status == 200:
                await _read_stream(response, reply)
            else:
                error = f"http_{response.status}"
                detail = (await response.content.read(4 * _DETAIL_CHARS)).decode(errors="replace")
    except asyncio.CancelledError as caught:
        error, cancelled = "cancelled", caught
    except BrokenStreamError as caught:
        error, detail = caught.kind, str(caught)
    except (aiohttp.ClientError, OSError) as caught:
        error = error or _kind(caught)
        detail = detail or str(caught) or type(caught).__name__
    ended_ns = time.monotonic_ns()
    if error is None and request.ignore_eos and reply.output_tokens < request.max_tokens:
        error, detail = "short", f"{reply.output_tokens} tokens came of {request.max_tokens} asked for"
    done = RequestDone(
        block=request.block,
        model=backend.model,
        stream=request.stream,
        prompt_tokens=reply.usage.prompt_tokens if reply.usage else request.prompt_tokens,
        output_tokens=reply.output_tokens,
        due_ns=sent_ns if request.due_ns is None else request.due_ns,
        sent_ns=sent_ns,
        headers_ns=headers_ns,
        first_ns=reply.chunk_ns[0] if reply.chunk_ns else None,
        last_ns=reply.chunk_ns[-1] if reply.chunk_ns else None,
        done_ns=reply.done_ns or ended_ns,
        chunk_ns=reply.chunk_ns,
        chunk_tokens=reply.tokens_by_chunk(),
        usage=reply.usage,
        server_timings=reply.timings,
        error=error,
        detail=_tidy(detail, backend),
        anomalies=reply.anomalies(request.max_tokens, several_usages_expected=backend.engine == "vllm"),
    )
    if on_done is not None:
        on_done(done)
    if cancelled is not None:
        raise cancelled
    return done


async def _read_stream(response: aiohttp.ClientResponse, reply: Reply) -> None:
    """Feed `reply` until the stream ends. Raises BrokenStreamError when it ended without having been whole."""
    pieces = response.content.iter_any()
    async for piece in pieces:
        if reply.feed(piece, time.monotonic_ns()):
            break
    else:
        reply.end()
        return
    # The end was announced; whatever follows is not output, but worth knowing.
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for piece in pieces:
                reply.feed(piece, time.monotonic_ns())
    except (TimeoutError, aiohttp.ClientError, OSError):
        reply.note("no_close_after_done")
        response.close()


def _kind(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return "unreachable"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientConnectionError | ConnectionError):
        return "reset"
    return "broken_stream"


def _tidy(detail: str | None, backend: Backend) -> str | None:
    """`detail` on one line, cut short, and without the key should the server have echoed it."""
    if detail is None:
        return None
    for value in backend.headers().values():
        detail = detail.replace(value.removeprefix("Bearer "), "***")
    return " ".join(detail.split())[:_DETAIL_CHARS]
