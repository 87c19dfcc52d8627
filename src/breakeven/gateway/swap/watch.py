"""Hot swap in the watching process: reads what workers ask of local engines, and tells them what is there.

Workers write `UnderWay.WANTED` and `UnderWay.IN_FLIGHT`; this writes `Known.STATE`, `PROGRESS`, `LOAD_S` and `PORT`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from breakeven.engines.cache import cache_directory
from breakeven.gateway.plan.model import BackendPlan, GatewayPlan
from breakeven.gateway.shared.block import SharedBlock
from breakeven.gateway.shared.layout import Count, Known, State, UnderWay
from breakeven.gateway.swap import types
from breakeven.gateway.swap.effects import (
    WRITING,
    Effects,
    EngineFailed,
    EngineLoaded,
    EngineMeasured,
    Engines,
    EngineUnloaded,
    Event,
)
from breakeven.gateway.swap.needs import budget_of, is_synthetic, local_backends, needs_of, threads_of
from breakeven.gateway.swap.scheduler import Scheduler
from breakeven.gateway.swap.types import Demand, prepare

TICK_S = 0.1
"""Between two looks at the demand."""
ALMOST = 0.99
"""Progress shown of an engine that takes longer than last time."""
DECODE_TOKENS = 128.0
"""Answer assumed in a request's service time until answers have been seen. Judgement."""


class Swapper:
    """Keeps the local engines of a plan. `rows`: of backends by name, in the block.

    `logs`: where engines write, else `engines` in the log's directory or the user's cache. `effects` and `clock` are
    for tests. Make it on the loop. Raises UserError when the engines cannot be, or do not fit.
    """

    def __init__(
        self,
        plan: GatewayPlan,
        block: SharedBlock,
        rows: Mapping[str, int],
        *,
        logs: Path | None = None,
        effects: Callable[[Callable[[Event], None]], Effects] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._block, self._rows, self._clock = block, dict(rows), clock
        backends, needs, budget = _read(plan)
        self._backends = backends
        self._scheduler = Scheduler(needs, budget, plan.minimum_dwell_s, plan.maximum_wait_s)
        self._threads = threads_of(list(backends.values()), needs, budget)
        self._synthetic = [name for name, backend in backends.items() if is_synthetic(backend)]
        self._wanted_since: dict[str, float] = {}
        self._loading_since: dict[str, float] = {}
        self._open: dict[str, str] = {}
        self.engines: dict[str, EngineLoaded] = {}
        """Those that run, by backend."""
        self.failures: dict[str, str] = {}
        """Why an engine last failed, by backend; gone once it is loaded."""
        directory = logs or (plan.log.directory or cache_directory().parent) / "engines"
        self._effects = effects(self._hear) if effects else Engines(directory, self._hear, block.engine_key)
        prepare(plan, block, rows)

    async def run(self) -> None:
        """Until cancelled; then stops every engine."""
        try:
            while True:
                self.tick()
                await asyncio.sleep(TICK_S)
        finally:
            await self._effects.close(20.0)

    def tick(self) -> None:
        """One look at the demand, and what follows."""
        now_s, demand = self._clock(), self._demand()
        for effect in self._scheduler.step(now_s, demand):
            match effect:
                case types.StartEngine(name):
                    self._loading_since[name] = now_s
                    self._effects.load(self._backends[name], self._threads[name])
                case types.Unload(name):
                    self._effects.unload(name)
                case types.Drain() | types.Resume():
                    pass  # told to workers below
                case _:
                    assert_never(effect)
        self._publish(now_s, demand)

    def replan(self, plan: GatewayPlan, rows: Mapping[str, int]) -> None:
        """Go on with another plan: engines it does not change keep running, the rest drain first.

        Raises UserError as the constructor does, and then nothing has changed.
        """
        backends, needs, budget = _read(plan, self._scheduler.used_bytes)
        changed = [name for name, backend in backends.items() if _recipe(backend) != _recipe(self._backends.get(name))]
        self._scheduler.replan(needs, changed, budget)
        self._scheduler.minimum_dwell_s, self._scheduler.maximum_wait_s = plan.minimum_dwell_s, plan.maximum_wait_s
        self._backends = backends
        self._threads = threads_of(list(backends.values()), needs, budget)
        self._synthetic = [name for name, backend in backends.items() if is_synthetic(backend)]
        taken = set(rows.values())
        self._rows = {**{n: r for n, r in self._rows.items() if r not in taken}, **rows}

    @property
    def warnings(self) -> list[str]:
        """A line for each engine that failed, and for each whose answers mean nothing."""
        failed = [f"{name} could not be run here: {reason}" for name, reason in sorted(self.failures.items())]
        strangers = [
            f"{name} answers at {path} whoever asks on this machine: its engine cannot be told to ask for a key there"
            for name, path in sorted(self._open.items())
        ]
        return [*failed, *strangers] + [
            f"{name} has synthetic weights: its speed is real, its text is not" for name in self._synthetic
        ]

    def _demand(self) -> dict[str, Demand]:
        now_s = self._clock()
        demand = {}
        for name in self._scheduler.names:
            row = self._rows.get(name)
            if row is None:
                continue
            waiting = max(0, int(self._block.load.total(row, UnderWay.WANTED)))
            # Since when anybody waits without a break: never less than the oldest request's wait.
            since_s = self._wanted_since.setdefault(name, now_s) if waiting else self._wanted_since.pop(name, now_s)
            in_flight = max(0, int(self._block.load.total(row, UnderWay.IN_FLIGHT)))
            demand[name] = Demand(waiting, now_s - since_s if waiting else 0.0, in_flight, self._service_s(row))
        return demand

    def _service_s(self, row: int) -> float:
        """Mean seconds a request takes there: TTFT + TPOT * tokens of an answer, as counted so far."""
        count = self._block.count
        firsts, gaps = count.total(row, Count.TTFT_COUNT), count.total(row, Count.TPOT_COUNT)
        if not firsts or not gaps:
            return Demand().service_s
        ok = count.total(row, Count.OK)
        tokens = count.total(row, Count.OUTPUT_TOKENS) / ok if ok else DECODE_TOKENS
        seconds = count.total(row, Count.TTFT_NS) / firsts + tokens * count.total(row, Count.TPOT_NS) / gaps
        return float(seconds / 1e9)

    def _publish(self, now_s: float, demand: Mapping[str, Demand]) -> None:
        known = self._block.known
        for name in self._scheduler.names:
            row = self._rows.get(name)
            if row is None:
                continue
            state = self._scheduler.state(name)
            known.put(0, row, Known.PORT, self.engines[name].port if name in self.engines else 0)
            known.put(0, row, Known.PROGRESS, self._progress(name, now_s))
            known.put(0, row, Known.LOAD_S, self._scheduler.ready_in_s(name, now_s, demand))
            known.put(0, row, Known.STATE, state)  # last: once it reads READY, its port is there

    def _progress(self, name: str, now_s: float) -> float:
        """0 to 1: of writing and loading by the time loading took before."""
        state = self._scheduler.state(name)
        if state is not State.LOADING:
            return 1.0 if state in (State.READY, State.DRAINING) else 0.0
        written = self._effects.progress(name)
        if written is not None:
            self._loading_since[name] = now_s  # loading proper begins after it
            return WRITING * min(1.0, written)
        passed_s = now_s - self._loading_since.get(name, now_s)
        return min(ALMOST, passed_s / max(self._scheduler.needs(name).load_s, 1e-3))

    def _hear(self, event: Event) -> None:
        now_s = self._clock()
        match event:
            case EngineLoaded(name, _, load_s, held, open_at):
                self.engines[name] = event
                if open_at:
                    self._open[name] = open_at
                self.failures.pop(name, None)
                self._scheduler.loaded(name, now_s, load_s, held)
            case EngineMeasured(name, held):
                self._scheduler.measured(name, held)
            case EngineFailed(name, reason):
                self.engines.pop(name, None)
                self._open.pop(name, None)
                self.failures[name] = reason
                self._scheduler.failed(name, now_s)
            case EngineUnloaded(name):
                self.engines.pop(name, None)
                self._open.pop(name, None)
                self._scheduler.unloaded(name, now_s)
                if name not in self._scheduler.names and (row := self._rows.pop(name, None)) is not None:
                    self._block.known.put(0, row, Known.STATE, State.UNLOADED)
                    self._block.known.put(0, row, Known.PORT, 0.0)
        self.tick()


def _read(plan: GatewayPlan, held_bytes: int = 0) -> tuple[dict[str, BackendPlan], list[types.EngineNeed], int]:
    """Local backends, their needs and what they may use; `held_bytes` of that is theirs already."""
    backends = local_backends(plan)
    return {b.name: b for b in backends}, needs_of(backends), budget_of(plan, held_bytes) if backends else 0


def _recipe(backend: BackendPlan | None) -> object:
    """All that decides how an engine is started; being pinned is not of it."""
    if backend is None or backend.local is None:
        return None
    local = backend.local
    embeds = "/v1/embeddings" in backend.endpoints
    return replace(local, pinned=False), backend.served_model or backend.name, embeds
