"""Blocks of requests on one backend, for whoever wants step times rather than a comparison: judged for noise, logged.

A block that the machine disturbed is run again, as in the paired comparison; the last attempt counts, and is flagged.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from breakeven.engines.backend import Backend
from breakeven.errors import EngineError
from breakeven.measure import events, noise
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.paired.blocks import decode_tokens_per_s, decode_window_ns
from breakeven.measure.paired.run import TEMPERATURE, TOP_K, PromptMaker
from breakeven.measure.requests import CompletionRequest, run_block
from breakeven.traffic.prompts import rng

MAX_ATTEMPTS = 2
WARM_UP_STREAMS, WARM_UP_PROMPT, WARM_UP_OUTPUT = 2, 16, 8
ENOUGH_GAPS = 4
"""Gaps from which a median is worth more than the mean rate."""
BUNCHED = 0.2
"""Gaps below this share of the mean are of tokens that waited together for us to read them. Where a tenth are, a median
says nothing: the machine was busy, and the mean rate is what is left."""


@dataclass(slots=True)
class ProbeRun:
    """One model that answers, and the log its blocks go to. `alive` raises EngineError when its process has ended."""

    name: str
    backend: Backend
    alive: Callable[[], None]
    log: events.EventWriter
    history: list[events.Event]
    seed: int = 0
    energy: EnergyCounter | None = None

    def warm_up(self) -> None:
        """One short block, never counted. Raises EngineError when it fails."""
        requests = self._requests("warm-up", WARM_UP_STREAMS, WARM_UP_PROMPT, WARM_UP_OUTPUT)
        results = asyncio.run(run_block(self.backend, requests))
        self._check(results)

    def block(self, streams: int, prompt_tokens: int, output_tokens: int, round_number: int) -> None:
        """One block of `streams` requests at once, again if the machine was not quiet. Raises EngineError."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = f"{self.name}/{streams}/{prompt_tokens}/{round_number}/{attempt}"
            if not self._attempt(name, streams, prompt_tokens, output_tokens, round_number, attempt):
                return

    def _attempt(
        self, name: str, streams: int, prompt_tokens: int, output_tokens: int, round_number: int, attempt: int
    ) -> bool:
        """Run a block once; True when it must be run again."""
        requests = self._requests(name, streams, prompt_tokens, output_tokens)
        pids = [self.backend.pid] if self.backend.pid is not None else []
        before = noise.sample(pids)
        joules = self.energy.read_joules() if self.energy else None
        self._append(
            events.BlockStarted(
                block=name,
                model=self.name,
                streams=streams,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                at_ns=time.monotonic_ns(),
                round=round_number,
                attempt=attempt,
            )
        )
        results = asyncio.run(run_block(self.backend, requests))
        heard = noise.assess(before, noise.sample(pids))
        spent = self.energy.read_joules() - joules if self.energy and joules is not None else None
        for result in results:
            self._append(result)
        again = bool(heard.reasons) and attempt < MAX_ATTEMPTS
        failed = any(result.error for result in results)
        done_ns = time.monotonic_ns()
        self._append(
            events.BlockDone(
                block=name, ok=not failed and not again, at_ns=done_ns, flagged=heard.reasons, joules=spent
            )
        )
        self._check(results)
        return again

    def _requests(self, block: str, streams: int, prompt_tokens: int, output_tokens: int) -> list[CompletionRequest]:
        maker = PromptMaker(self.backend)
        texts = [f"{block}/{i}" for i in range(streams)]
        try:
            made = [maker.make(text, prompt_tokens, self.seed) for text in texts]
        except EngineError:
            self.alive()  # knows better why, if the engine has ended
            raise
        return [
            CompletionRequest(
                block=block,
                stream=i,
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                max_tokens=output_tokens,
                temperature=TEMPERATURE,
                top_k=TOP_K,
                seed=int(rng(self.seed, "sampling", texts[i]).integers(1 << 31)),
            )
            for i, prompt in enumerate(made)
        ]

    def _check(self, results: Sequence[events.RequestDone]) -> None:
        self.alive()
        if failed := next((result for result in results if result.error), None):
            raise EngineError(
                f"{self.name}: request failed ({failed.error}: {failed.detail}); finished blocks are kept, "
                "run again with --resume"
            )

    def _append(self, event: events.Event) -> None:
        self.log.append(event)
        self.history.append(event)


def step_s(requests: Sequence[events.RequestDone]) -> float | None:
    """Seconds of one decode step of a block: the median gap between tokens while every stream decodes.

    The median, because one descheduled step would move the mean of a short block; but see `BUNCHED`. None when they
    never all decode.
    """
    window = decode_window_ns(requests)
    if window is None:
        return None
    start, end = window
    gaps = [
        after - before
        for request in requests
        if request.chunk_tokens is None or max(request.chunk_tokens, default=1) <= 1
        for before, after in pairwise(request.chunk_ns)
        # A stream's own token a moment before the window opens belongs to the step that opened it.
        if before >= start and after <= end
    ]
    if len(gaps) >= ENOUGH_GAPS and sum(gap < BUNCHED * statistics.fmean(gaps) for gap in gaps) < len(gaps) / 10:
        return statistics.median(gaps) / 1e9
    rate = decode_tokens_per_s(requests)
    return len(requests) / rate if rate else None
