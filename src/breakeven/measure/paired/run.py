"""Run the paired comparison: rounds of interleaved blocks, judged for noise, logged as they happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from breakeven.engines.backend import Backend
from breakeven.errors import EngineError, UserError
from breakeven.measure import events, noise
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.paired.blocks import blocks_of, load_states, pair_rows
from breakeven.measure.paired.plan import Plan, Stop, next_load, order
from breakeven.measure.progress import RatioRow
from breakeven.measure.requests import CompletionRequest, run_block
from breakeven.traffic import prompts as prompts

MAX_ATTEMPTS = 3
"""A noisy block is run again at most this often; the last attempt counts, and is flagged."""
WARM_UP_OUTPUT = 8
TEMPERATURE, TOP_K = 1.0, 40
"""Sampling that visits many tokens: greedy decoding of random weights soon repeats one, and one token's experts."""
CHARS_PER_TOKEN_TRIED = 4
WATCH_PERIOD_S = 2.0
CHECK_STREAMS, CHECK_ROUNDS, CHECK_PROMPT, CHECK_OUTPUT = 4, 3, 8, 12
"""The self-check: few and short blocks, for the effect it shows is large (Kimi-K2: 26.4 against 32.7 ms a step)."""


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

    backend: Backend
    chars_per_token: float | None = None

    def make(self, name: str, n_tokens: int, seed: int) -> str | list[int]:
        """Token ids where the engine takes them, else text of about that length (the reply tells the true count)."""
        if not self.backend.takes_token_ids:
            ratio = self.chars_per_token or CHARS_PER_TOKEN_TRIED
            return prompts.prompt_text(seed, name, int(n_tokens * ratio))[: max(1, int(n_tokens * ratio))]
        n_chars = n_tokens * 2
        while True:
            ids = self.backend.tokenize(prompts.prompt_text(seed, name, n_chars))
            if ids is None:
                raise EngineError(f"{self.backend.model}: the engine at {self.backend.url} stopped tokenising")
            if len(ids) >= n_tokens:
                return prompts.cut(ids, n_tokens)
            n_chars *= 2


@dataclass(slots=True)
class PairedRun:
    """One study on running backends. Create it, then `run`; the log afterwards holds everything that happened."""

    plan: Plan
    candidates: Sequence[Candidate]
    log: events.EventWriter
    history: list[events.Event]
    on_progress: Callable[[float, list[RatioRow]], None]
    energy: EnergyCounter | None = None

    def run(self) -> str:
        """Measure until precise enough or out of time; return which. Raises EngineError when a candidate fails."""
        makers = [PromptMaker(candidate.backend) for candidate in self.candidates]
        for candidate, maker in zip(self.candidates, makers, strict=True):
            self._warm_up(candidate, maker)
        before_s = sum(block.seconds for block in blocks_of(self.history))
        started = time.monotonic()
        while True:
            elapsed = before_s + time.monotonic() - started
            blocks = blocks_of(self.history)
            states = load_states(blocks, self.plan, [c.name for c in self.candidates])
            self.on_progress(elapsed, pair_rows(blocks, [c.name for c in self.candidates]))
            choice = next_load(self.plan, states, elapsed)
            if isinstance(choice, Stop):
                break
            rounds = next(state.rounds for state in states if state.streams == choice)
            self._round(choice, rounds, makers)
        for candidate, maker in zip(self.candidates, makers, strict=True):
            if candidate.moe and max(self.plan.streams) > 1:
                self._self_check(candidate, maker)
        return choice.because

    def _self_check(self, candidate: Candidate, maker: PromptMaker) -> None:
        """The same prompt in every stream against distinct ones, interleaved: short blocks, for the ratio alone."""
        streams = min(CHECK_STREAMS, max(self.plan.streams))
        for number in range(CHECK_ROUNDS):
            for kind in ("same", "distinct") if number % 2 else ("distinct", "same"):
                name = f"check/{kind}/{candidate.name}/{streams}/{number}"
                text = f"check/{number}"
                requests = self._requests(
                    candidate, maker, name, streams, text, CHECK_OUTPUT, prompt_tokens=CHECK_PROMPT, same=kind == "same"
                )
                self._block(candidate, requests, number, attempt=MAX_ATTEMPTS, check=kind)

    def _round(self, streams: int, number: int, makers: Sequence[PromptMaker]) -> None:
        done = {(b.model, b.round) for b in blocks_of(self.history) if b.streams == streams}
        for index in order(number, len(self.candidates)):
            candidate = self.candidates[index]
            if (candidate.name, number) in done:  # a resumed run had finished this half of the round
                continue
            for attempt in range(1, MAX_ATTEMPTS + 1):
                name = f"{candidate.name}/{streams}/{number}/{attempt}"
                requests = self._requests(
                    candidate, makers[index], name, streams, f"{streams}/{number}", self.plan.output_tokens
                )
                if not self._block(candidate, requests, number, attempt):
                    break

    def _block(
        self,
        candidate: Candidate,
        requests: Sequence[CompletionRequest],
        number: int,
        attempt: int,
        check: Literal["same", "distinct"] | None = None,
    ) -> list[str]:
        """Run one block; return why it must be repeated (empty: it need not)."""
        name = requests[0].block
        pids = [c.backend.pid for c in self.candidates if c.backend.pid is not None]
        before = noise.sample(pids)
        joules = self.energy.read_joules() if self.energy else None
        self._append(
            events.BlockStarted(
                block=name,
                model=candidate.name,
                streams=len(requests),
                prompt_tokens=requests[0].prompt_tokens,
                output_tokens=requests[0].max_tokens,
                at_ns=time.monotonic_ns(),
                round=number,
                attempt=attempt,
                check=check,
            )
        )
        results, during = asyncio.run(_run_watched(candidate.backend, requests))
        after = noise.sample(pids)
        spent = self.energy.read_joules() - joules if self.energy and joules is not None else None
        candidate.alive()
        for result in results:
            self._append(result)
        heard = noise.assess(before, after, during)
        fields = {field: getattr(heard, field) for field in heard.__struct_fields__ if field != "reasons"}
        self._append(events.NoiseSample(block=name, at_ns=after.at_ns, **fields))
        failed = [result for result in results if result.error]
        reasons = heard.reasons if candidate.backend.pid is not None else []
        repeat = bool(reasons) and attempt < MAX_ATTEMPTS
        self._append(
            events.BlockDone(
                block=name, ok=not failed and not repeat, at_ns=time.monotonic_ns(), flagged=reasons, joules=spent
            )
        )
        if failed:
            raise _request_error(candidate, failed[0])
        return reasons if repeat else []

    def _requests(
        self,
        candidate: Candidate,
        maker: PromptMaker,
        block: str,
        streams: int,
        text: str,
        output_tokens: int,
        *,
        prompt_tokens: int | None = None,
        same: bool = False,
    ) -> list[CompletionRequest]:
        prompt_tokens = prompt_tokens or self.plan.prompt_tokens
        names = [f"{text}/{0 if same else i}" for i in range(streams)]
        try:
            made = [maker.make(name, prompt_tokens, self.plan.seed) for name in names]
        except EngineError:
            candidate.alive()  # knows better why, if the engine has ended
            raise
        return [
            CompletionRequest(
                block=block,
                stream=i,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                max_tokens=output_tokens,
                chat=candidate.backend.chat_only,
                ignore_eos=candidate.backend.pid is not None or candidate.backend.takes_token_ids,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                seed=int(prompts.rng(self.plan.seed, "sampling", names[i]).integers(1 << 31)),
            )
            for i, prompt in enumerate(made)
        ]

    def _warm_up(self, candidate: Candidate, maker: PromptMaker) -> None:
        """One short request with text of its own, never counted; it also tells how long a text's token is."""
        requests = self._requests(
            candidate, maker, "warm-up", 1, "warm-up", min(WARM_UP_OUTPUT, self.plan.output_tokens)
        )
        (result,) = asyncio.run(run_block(candidate.backend, requests))
        candidate.alive()
        if result.error:
            raise _request_error(candidate, result)
        sent = requests[0].prompt
        if isinstance(sent, str) and result.usage and result.usage.prompt_tokens:
            maker.chars_per_token = len(sent) / result.usage.prompt_tokens

    def _append(self, event: events.Event) -> None:
        self.log.append(event)
        self.history.append(event)


async def _run_watched(
    backend: Backend, requests: Sequence[CompletionRequest]
) -> tuple[list[events.RequestDone], list[noise.Reading]]:
    """Run a block and read the clock and temperature while it runs."""
    during: list[noise.Reading] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            during.append(noise.sample())

    watcher = asyncio.create_task(watch())
    try:
        return await run_block(backend, requests), during
    finally:
        watcher.cancel()


def _request_error(candidate: Candidate, result: events.RequestDone) -> EngineError | UserError:
    what = f"{candidate.name} at {candidate.backend.url}: request failed ({result.error}: {result.detail})"
    if result.error in ("http_401", "http_403"):
        return UserError(f"{what}; set BREAKEVEN_API_KEY to a key this endpoint accepts")
    return EngineError(f"{what}; finished blocks are kept, run again with --resume")
