"""Blocks of requests on one backend, for whoever wants step times rather than a comparison, and the step's time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from breakeven.engines.backend import LLAMA_CPP
from breakeven.measure import events
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.paired.blocks import decode_tokens_per_s, decode_window_ns
from breakeven.measure.runner import BlockRunner, Candidate, PromptMaker, raise_failed, run_block
from breakeven.wire.loop import run_async

MAX_ATTEMPTS = 2
WARM_UP_STREAMS, WARM_UP_PROMPT, WARM_UP_OUTPUT = 2, 16, 8
ENOUGH_GAPS = 4
"""Gaps from which a median is worth more than the mean rate."""
BUNCHED = 0.2
"""Gaps below this share of the mean are of tokens that waited together for us to read them. Where a tenth are, a median
says nothing: the machine was busy, and the mean rate is what is left."""


@dataclass(slots=True)
class ProbeRun:
    """One model that answers, and the log its blocks go to."""

    candidate: Candidate
    log: events.EventWriter
    history: list[events.Event]
    seed: int = 0
    energy: EnergyCounter | None = None
    _maker: PromptMaker = field(init=False)
    _runner: BlockRunner = field(init=False)

    def __post_init__(self) -> None:
        pid = self.candidate.backend.pid
        self._maker = PromptMaker(self.candidate, self.seed)
        pids = [pid] if pid is not None else []
        self._runner = BlockRunner(self.log, self.history, MAX_ATTEMPTS, pids, self.energy, listen=False)

    def warm_up(self) -> None:
        """One short block, never counted. Raises EngineError when it fails."""
        texts = [f"warm-up/{i}" for i in range(WARM_UP_STREAMS)]
        requests = self._maker.requests("warm-up", texts, WARM_UP_PROMPT, WARM_UP_OUTPUT)
        results = run_async(lambda: run_block(self.candidate.backend, requests))
        self.candidate.alive()
        raise_failed(self.candidate, results)

    def block(self, streams: int, prompt_tokens: int, output_tokens: int, round_number: int) -> None:
        """One block of `streams` requests at once, again if the machine was not quiet. Raises EngineError.

        In slots side by side where the engine is our llama.cpp, which computes no others together
        (`forecast.simulator.policy`).
        """
        backend = self.candidate.backend
        side_by_side = backend.engine == LLAMA_CPP and backend.pid is not None
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = f"{self.candidate.name}/{streams}/{prompt_tokens}/{round_number}/{attempt}"
            texts = [f"{name}/{i}" for i in range(streams)]
            requests = self._maker.requests(name, texts, prompt_tokens, output_tokens)
            if side_by_side:
                requests = [replace(request, slot=request.stream) for request in requests]
            if not self._runner.block(self.candidate, requests, round=round_number, attempt=attempt):
                return


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
