"""Run the paired comparison of candidates that do not fit side by side: each is loaded for its turn, then unloaded.

Every turn starts its engine afresh, so what one process happens to have (memory layout, a lucky page cache) is drawn
anew each time and is part of the spread that intervals are made of. A pair is one turn of each candidate, on the same
prompts; even turns go forward, odd ones backward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from breakeven.measure import events
from breakeven.measure.energy import EnergyCounter
from breakeven.measure.paired.blocks import blocks_of
from breakeven.measure.paired.pairs import load_states, pair_rows
from breakeven.measure.paired.plan import Enough, LoadSoFar, Plan, next_turn, order
from breakeven.measure.paired.run import PairedRun
from breakeven.measure.progress import RatioRow
from breakeven.measure.runner import Candidate, PromptMaker, raise_failed, run_block
from breakeven.wire.loop import run_async


@dataclass(slots=True)
class TurnsRun:
    """One study on candidates that are brought up one at a time, which `bring_up` does by their place in `names`."""

    plan: Plan
    names: Sequence[str]
    bring_up: Callable[[int], AbstractContextManager[Candidate]]
    log: events.EventWriter
    history: list[events.Event]
    on_progress: Callable[[float, list[RatioRow]], None]
    energy: EnergyCounter | None = None
    _measured_s: float = field(init=False, default=0.0)

    def run(self) -> str:
        """Measure until precise enough or out of time; return which. Raises EngineError when a candidate fails."""
        self._measured_s = sum(block.seconds for block in blocks_of(self.history))
        begun = [event for event in self.history if isinstance(event, events.TurnStarted)]
        turn = begun[-1] if begun else None
        if turn is not None:
            self._turn(turn)  # what a killed run left of it
        while True:
            # Before the first turn nobody knows what a round takes: its first candidate says, once it is up.
            if turn is not None:
                following = self._next(turn.turn + 1, self._states())
                if isinstance(following, Enough):
                    return following.because
                turn = following
            turn = self._turn(turn)

    def _next(self, number: int, states: Sequence[LoadSoFar]) -> events.TurnStarted | Enough:
        chosen = next_turn(self.plan, states, self._measured_s)
        if isinstance(chosen, Enough):
            return chosen
        used = [e.rounds[-1] for e in self.history if isinstance(e, events.TurnStarted)]
        first = used[-1] + 1 if used else 0
        turn = events.TurnStarted(
            turn=number, streams=list(chosen.streams), rounds=list(range(first, first + chosen.rounds))
        )
        self.log.append(turn)
        self.history.append(turn)
        return turn

    def _turn(self, turn: events.TurnStarted | None) -> events.TurnStarted:
        """Every candidate's part of `turn`, loaded for it; None: the first, which is planned while it runs."""
        for index in order(0 if turn is None else turn.turn, len(self.names)):
            if turn is not None and not self._left(turn, self.names[index]):
                continue
            with self.bring_up(index) as candidate:
                maker = PromptMaker(candidate, self.plan.seed, texts=self.plan.texts)
                alone_s = self._first_request(maker)
                if turn is None:
                    smallest = min(self.plan.streams)
                    guess_s = alone_s * len(self.names)
                    states = [
                        LoadSoFar(n, 0, float("inf"), guess_s if n == smallest else None) for n in self.plan.streams
                    ]
                    planned = self._next(0, states)
                    assert not isinstance(planned, Enough)  # the first turn always runs
                    turn = planned
                self._warm_up(maker, max(turn.streams))
                self._part(turn, candidate, maker)
        assert turn is not None
        return turn

    def _part(self, turn: events.TurnStarted, candidate: Candidate, maker: PromptMaker) -> None:
        run = PairedRun(self.plan, [candidate], self.log, self.history, self.on_progress, self.energy)
        for number, streams in self._left(turn, candidate.name):
            began = time.monotonic()
            run.block(maker, streams, number, turn=turn.turn)
            self._measured_s += time.monotonic() - began
            self.on_progress(self._measured_s, pair_rows(blocks_of(self.history), self.names))
        checked = any(
            isinstance(e, events.BlockStarted) and e.check and e.model == candidate.name for e in self.history
        )
        if candidate.moe and max(self.plan.streams) > 1 and not checked:
            run.self_check(maker)

    def _left(self, turn: events.TurnStarted, name: str) -> list[tuple[int, int]]:
        """Rounds and loads that a candidate has not finished yet; loads change fastest, and every second time back."""
        done = {(b.round, b.streams) for b in blocks_of(self.history) if b.model == name}
        found = []
        for number in turn.rounds:
            loads = turn.streams if number % 2 == 0 else turn.streams[::-1]
            found += [(number, streams) for streams in loads if (number, streams) not in done]
        return found

    def _states(self) -> list[LoadSoFar]:
        """How far each load is."""
        return load_states(blocks_of(self.history), self.plan, self.names, self._measured_s)

    def _first_request(self, maker: PromptMaker) -> float:
        """One request as it is measured, never counted; seconds it took. It tells how long a text's token is."""
        return self._uncounted(maker, 1)

    def _warm_up(self, maker: PromptMaker, streams: int) -> None:
        """Once the largest load: caches, clocks and pages of experts are as they will be. Never counted."""
        if streams > 1:
            self._uncounted(maker, streams)

    def _uncounted(self, maker: PromptMaker, streams: int) -> float:
        texts = [f"warm-up/{i}" for i in range(streams)]
        requests = maker.requests("warm-up", texts, self.plan.prompt_tokens, self.plan.output_tokens)
        began = time.monotonic()
        results = run_async(lambda: run_block(maker.candidate.backend, requests))
        maker.candidate.alive()
        raise_failed(maker.candidate, results)
        maker.learn(requests[0], results[0])
        return time.monotonic() - began
