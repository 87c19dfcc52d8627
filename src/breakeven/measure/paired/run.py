"""Run the paired comparison: rounds of interleaved blocks until precise enough or out of time, then a self-check."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from breakeven.measure import events
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.paired.blocks import blocks_of
from breakeven.measure.paired.pairs import load_states, pair_rows
from breakeven.measure.paired.plan import Enough, Plan, next_load, order
from breakeven.measure.progress import RatioRow
from breakeven.measure.runner import BlockRunner, Candidate, PromptMaker, raise_failed, run_block
from breakeven.wire.loop import run_async

MAX_ATTEMPTS = 3
"""A noisy block is run again at most this often; the last attempt counts, and is flagged."""
WARM_UP_OUTPUT = 8
CHECK_STREAMS, CHECK_ROUNDS, CHECK_PROMPT, CHECK_OUTPUT = 4, 3, 8, 12
"""The self-check: few and short blocks, for the effect it shows is large (Kimi-K2: 26.4 against 32.7 ms a step)."""


@dataclass(slots=True)
class PairedRun:
    """One study on running backends. Create it, then `run`; the log afterwards holds everything that happened."""

    plan: Plan
    candidates: Sequence[Candidate]
    log: events.EventWriter
    history: list[events.Event]
    on_progress: Callable[[float, list[RatioRow]], None]
    energy: EnergyCounter | None = None
    _runner: BlockRunner = field(init=False)

    def __post_init__(self) -> None:
        pids = [c.backend.pid for c in self.candidates if c.backend.pid is not None]
        self._runner = BlockRunner(self.log, self.history, MAX_ATTEMPTS, pids, self.energy)

    def run(self) -> str:
        """Measure until precise enough or out of time; return which. Raises EngineError when a candidate fails."""
        makers = [PromptMaker(candidate, self.plan.seed, texts=self.plan.texts) for candidate in self.candidates]
        for maker in makers:
            self._warm_up(maker)
        before_s = sum(block.seconds for block in blocks_of(self.history))
        started = time.monotonic()
        while True:
            elapsed = before_s + time.monotonic() - started
            blocks = blocks_of(self.history)
            states = load_states(blocks, self.plan, [c.name for c in self.candidates], elapsed)
            self.on_progress(elapsed, pair_rows(blocks, [c.name for c in self.candidates]))
            choice = next_load(self.plan, states, elapsed)
            if isinstance(choice, Enough):
                break
            rounds = next(state.rounds for state in states if state.streams == choice)
            self._round(choice, rounds, makers)
        for maker in makers:
            if maker.candidate.moe and max(self.plan.streams) > 1:
                self.self_check(maker)
        return choice.because

    def self_check(self, maker: PromptMaker) -> None:
        """The same prompt in every stream against distinct ones, interleaved: short blocks, for the ratio alone."""
        streams = min(CHECK_STREAMS, max(self.plan.streams))
        for number in range(CHECK_ROUNDS):
            for kind in ("same", "distinct") if number % 2 else ("distinct", "same"):
                name = f"check/{kind}/{maker.candidate.name}/{streams}/{number}"
                texts = [f"check/{number}/{0 if kind == 'same' else i}" for i in range(streams)]
                requests = maker.requests(name, texts, CHECK_PROMPT, CHECK_OUTPUT)
                self._runner.block(maker.candidate, requests, round=number, attempt=MAX_ATTEMPTS, check=kind)

    def _round(self, streams: int, number: int, makers: Sequence[PromptMaker]) -> None:
        done = {(b.model, b.round) for b in blocks_of(self.history) if b.streams == streams}
        for index in order(number, len(makers)):
            maker, candidate = makers[index], makers[index].candidate
            if (candidate.name, number) in done:  # a resumed run had finished this half of the round
                continue
            self.block(maker, streams, number)

    def block(self, maker: PromptMaker, streams: int, number: int, turn: int | None = None) -> None:
        """One candidate's block of a round, run again while the machine disturbs it. Every candidate gets its texts."""
        candidate, texts = maker.candidate, [f"{streams}/{number}/{i}" for i in range(streams)]
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = f"{candidate.name}/{streams}/{number}/{attempt}"
            requests = maker.requests(name, texts, self.plan.prompt_tokens, self.plan.output_tokens)
            if not self._runner.block(candidate, requests, round=number, attempt=attempt, turn=turn):
                break

    def _warm_up(self, maker: PromptMaker) -> None:
        """One short request with text of its own, never counted; it also tells how long a text's token is."""
        output_tokens = min(WARM_UP_OUTPUT, self.plan.output_tokens)
        requests = maker.requests("warm-up", ["warm-up/0"], self.plan.prompt_tokens, output_tokens)
        results = run_async(lambda: run_block(maker.candidate.backend, requests))
        maker.candidate.alive()
        raise_failed(maker.candidate, results)
        maker.learn(requests[0], results[0])
