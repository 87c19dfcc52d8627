"""Whole blocks of requests: prompts made, sent together, judged for noise, logged. `compare` and `calibrate` share it.

A block that the machine disturbed is run again; the last attempt counts, and is flagged. It knows nothing of statistics
or of what is compared, and not how bytes travel, which is `wire`'s affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from breakeven.engines.backend import Backend
from breakeven.errors import EngineError, UserError
from breakeven.measure import events, noise
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.events import RequestDone
from breakeven.measure.player.clocks import quiet_gc
from breakeven.measure.pool import STALL_TIMEOUT_S, Call, Pool
from breakeven.traffic import prompts
from breakeven.wire.dialects import completion_fields
from breakeven.wire.loop import run_async

ERROR_KINDS = ("timeout", "unreachable", "reset", "broken_stream", "refused", "empty", "short", "cancelled")
"""What `RequestDone.error` can be, beside `http_<status>`.

timeout: silent or running too long. unreachable: no connection. reset: the connection broke. broken_stream: bytes that
are no stream of completions, or one that stops without an end. refused: the engine reported an error inside the stream.
empty: an answer that ended as it should, without output. short: fewer tokens than asked for with `ignore_eos`.
cancelled: by us.
"""

TEMPERATURE, TOP_K = 1.0, 40
"""Sampling that visits many tokens: greedy decoding of random weights soon repeats one, and one token's experts."""
CHARS_PER_TOKEN_TRIED = 4
WATCH_PERIOD_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One completion to ask for.

    `prompt` is token ids where the backend takes them (no tokenising on the hot path), else text; `prompt_tokens` is
    its length. `chat` sends the text as one user message, as is done anyway where a backend knows only chat.
    `ignore_eos` asks for exactly `max_tokens` tokens, and fewer is then an error. `due_ns` None: due when it is
    issued. `total_timeout_s` bounds the whole request. `slot`: which of llama.cpp's is to take it; None: as it chooses.
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
    slot: int | None = None

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
            chat=self.chat or backend.chat_only,
        )
        if self.slot is not None:
            fields["id_slot"] = self.slot
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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backend under test and its name in every table. `alive` raises EngineError when its process has ended."""

    name: str
    backend: Backend
    alive: Callable[[], None]
    moe: bool = False


@dataclass(slots=True)
class PromptMaker:
    """Prompts for one candidate, made and counted before a block starts."""

    candidate: Candidate
    seed: int
    chars_per_token: float | None = None
    texts: tuple[str, ...] = ()
    """What prompts are made of; empty: the built-in passages."""

    def requests(
        self, block: str, names: Sequence[str], prompt_tokens: int, output_tokens: int
    ) -> list[CompletionRequest]:
        """One request for each of `names`, which say what its prompt and its sampling are drawn from."""
        backend = self.candidate.backend
        try:
            made = [self._prompt(name, prompt_tokens) for name in names]
        except EngineError:
            self.candidate.alive()  # knows better why, if the engine has ended
            raise
        return [
            CompletionRequest(
                block=block,
                stream=i,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                max_tokens=output_tokens,
                chat=backend.chat_only,
                ignore_eos=backend.pid is not None or backend.takes_token_ids,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                seed=int(prompts.rng(self.seed, "sampling", names[i]).integers(1 << 31)),
            )
            for i, prompt in enumerate(made)
        ]

    def learn(self, request: CompletionRequest, result: RequestDone) -> None:
        """How long a text's token is, from an answer that tells how many the prompt had."""
        if isinstance(request.prompt, str) and result.usage and result.usage.prompt_tokens:
            self.chars_per_token = len(request.prompt) / result.usage.prompt_tokens

    def _prompt(self, name: str, n_tokens: int) -> str | list[int]:
        """Token ids where the engine takes them, else text of about that length (the reply tells the true count)."""
        backend = self.candidate.backend
        if not backend.takes_token_ids:
            ratio = self.chars_per_token or CHARS_PER_TOKEN_TRIED
            n_chars = int(n_tokens * ratio)
            return prompts.prompt_text(self.seed, name, n_chars, self.texts)[: max(1, n_chars)]
        n_chars = n_tokens * 2
        while True:
            ids = backend.tokenize(prompts.prompt_text(self.seed, name, n_chars, self.texts))
            if ids is None:
                raise EngineError(f"{backend.model}: the engine at {backend.url} stopped tokenising")
            if len(ids) >= n_tokens:
                return prompts.cut(ids, n_tokens)
            n_chars *= 2


@dataclass(slots=True)
class BlockRunner:
    """Runs blocks and appends what happens to `log` and `history`.

    `attempts`: how often a block may be run in all. `pids`: processes of ours whose use of the CPU is no noise.
    `listen`: read the clock and temperature while a block runs, judge by them too, and log the readings.
    """

    log: events.EventWriter
    history: list[events.Event]
    attempts: int
    pids: Sequence[int]
    energy: EnergyCounter | None = None
    listen: bool = True

    def block(
        self,
        candidate: Candidate,
        requests: Sequence[CompletionRequest],
        *,
        round: int,
        attempt: int,
        check: Literal["same", "distinct"] | None = None,
        turn: int | None = None,
    ) -> bool:
        """Run one block; True when it must be run again. Raises EngineError or UserError when a request failed."""
        name, backend = requests[0].block, candidate.backend
        before = noise.sample(self.pids)
        joules = self.energy.read_joules() if self.energy else None
        self.append(
            events.BlockStarted(
                block=name,
                model=candidate.name,
                streams=len(requests),
                prompt_tokens=requests[0].prompt_tokens,
                output_tokens=requests[0].max_tokens,
                at_ns=time.monotonic_ns(),
                round=round,
                attempt=attempt,
                check=check,
                turn=turn,
            )
        )
        results, during = run_async(lambda: _run_watched(backend, requests, self.listen))
        after = noise.sample(self.pids)
        spent = self.energy.read_joules() - joules if self.energy and joules is not None else None
        candidate.alive()
        for result in results:
            self.append(result)
        heard = noise.assess(before, after, during)
        if self.listen:
            fields = {field: getattr(heard, field) for field in heard.__struct_fields__ if field != "reasons"}
            self.append(events.NoiseSample(block=name, at_ns=after.at_ns, **fields))
        # Beside an engine of somebody else's, the others may well be that engine.
        reasons = heard.reasons if backend.pid is not None else []
        failed = any(result.error for result in results)
        again = bool(reasons) and attempt < self.attempts
        self.append(
            events.BlockDone(
                block=name, ok=not failed and not again, at_ns=time.monotonic_ns(), flagged=reasons, joules=spent
            )
        )
        raise_failed(candidate, results)
        return again

    def append(self, event: events.Event) -> None:
        """Into the log and what is known of it."""
        self.log.append(event)
        self.history.append(event)


def raise_failed(candidate: Candidate, results: Sequence[RequestDone]) -> None:
    """Raise EngineError for the first request that failed, UserError where a key is what it lacks."""
    failed = next((result for result in results if result.error), None)
    if failed is None:
        return
    what = f"{candidate.name} at {candidate.backend.url}: request failed ({failed.error}: {failed.detail})"
    if failed.error in ("http_401", "http_403"):
        raise UserError(f"{what}; set BREAKEVEN_API_KEY to a key this endpoint accepts")
    raise EngineError(f"{what}; finished blocks are kept, run again with --resume")


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


async def _run_watched(
    backend: Backend, requests: Sequence[CompletionRequest], listen: bool
) -> tuple[list[RequestDone], list[noise.Reading]]:
    """Run a block and, when told to, read the clock and temperature while it runs."""
    during: list[noise.Reading] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            during.append(noise.sample())

    watcher = asyncio.create_task(watch()) if listen else None
    try:
        return await run_block(backend, requests), during
    finally:
        if watcher is not None:
            watcher.cancel()
