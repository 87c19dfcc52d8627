"""The load client: sends requests, stamps what comes back, and calls every failure by its name.

It knows nothing of statistics. How bytes travel and are stamped is in `wire`; here are whole blocks of requests,
for the paired comparison and whoever wants a few answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from breakeven.engines.backend import Backend
from breakeven.measure.events import RequestDone
from breakeven.measure.pool import STALL_TIMEOUT_S, Call, Pool
from breakeven.wire.dialects import completion_fields

ERROR_KINDS = ("timeout", "unreachable", "reset", "broken_stream", "refused", "short", "cancelled")
"""What `RequestDone.error` can be, beside `http_<status>`.

timeout: silent or running too long. unreachable: no connection. reset: the connection broke. broken_stream: bytes that
are no stream of completions, or one that stops without an end. refused: the engine reported an error inside the stream.
short: fewer tokens than asked for with `ignore_eos`. cancelled: by us.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One completion to ask for.

    `prompt` is token ids where the backend takes them (no tokenising on the hot path), else text; `prompt_tokens` is
    its length. `chat` sends the text as one user message, as is done anyway where a backend knows only chat.
    `ignore_eos` asks for exactly `max_tokens` tokens, and fewer is then an error. `due_ns` None: due when it is
    issued. `total_timeout_s` bounds the whole request.
    """

    block: str
    stream: int
    prompt: str | list[int]
    prompt_tokens: int
    max_tokens: int
    chat: bool = False
    ignore_eos: bool = True
    temperature: float = 0.0
    seed: int | None = None
    top_k: int | None = None
    due_ns: int | None = None
    stall_timeout_s: float = STALL_TIMEOUT_S
    total_timeout_s: float | None = None

    def path(self, backend: Backend) -> str:
        """Where it goes, below the backend's URL."""
        return "/v1/chat/completions" if self.chat or backend.chat_only else "/v1/completions"

    def body(self, backend: Backend) -> bytes:
        """JSON in the dialect of the backend's engine. Raises ValueError for token ids it does not take."""
        fields = completion_fields(
            backend,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            ignore_eos=self.ignore_eos,
            top_k=self.top_k,
            seed=self.seed,
        )
        if isinstance(self.prompt, str):
            if self.chat or backend.chat_only:
                fields["messages"] = [{"role": "user", "content": self.prompt}]
            else:
                fields["prompt"] = self.prompt
        elif self.chat or not backend.takes_token_ids:
            raise ValueError(f"{backend.engine} at {backend.url} takes text, not token ids")
        else:
            fields["prompt"] = self.prompt
        return msgspec.json.encode(fields)


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
    requests: Sequence[CompletionRequest],
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
    request: CompletionRequest,
    *,
    body: bytes | None = None,
    on_done: Callable[[RequestDone], None] | None = None,
) -> RequestDone:
    """Send one request and read its answer to the end. Never raises for what the server does: see `ERROR_KINDS`.

    `body` is `request.body(backend)` when it was made before. A cancelled request is reported to `on_done` as such,
    then the cancellation goes on.
    """
    return await _done(pool, _call(pool.backend, request, body or request.body(pool.backend)), on_done)


def _call(backend: Backend, request: CompletionRequest, body: bytes) -> Call:
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
