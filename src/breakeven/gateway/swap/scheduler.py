"""Which local engines hold memory: a pure state machine over demand, with a clock that is told to it.

It starts nothing and waits for nothing. `step` takes the time and what each engine is asked for and gives effects;
whoever carries them out reports back with `loaded`, `failed` and `unloaded`. docs/hot-swap.md explains the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from breakeven.gateway.shared.layout import State
from breakeven.gateway.swap.types import Demand, Drain, Effect, EngineNeed, Resume, StartEngine, Unload, check_budget

FAIR = 0.5
"""Share of the maximum wait after which an engine's turn has come; the rest is for draining others and for loading."""
SETTLE_S = 0.2
"""After `Drain`, before an engine without requests is stopped: a worker may have chosen it a moment before."""
BACKOFF_S = (2.0, 300.0)
"""Wait after the first failure, doubled with each further one up to the second number. Judgement."""
SOUND_S = 60.0
"""An engine that was ready this long failed for a new reason: counting starts again. Judgement."""
IDLE = Demand()


class _Engine:
    """One engine as the scheduler knows it. `room_for`: the engine it is drained for; its own name: it must go."""

    __slots__ = (
        "after",
        "bytes",
        "changed_s",
        "eager",
        "failures",
        "gone",
        "load_s",
        "measured",
        "name",
        "pinned",
        "retry_s",
        "room_for",
        "state",
        "unloading",
        "used_s",
    )

    def __init__(self, need: EngineNeed) -> None:
        self.name, self.bytes, self.load_s, self.pinned = need.name, need.bytes, need.load_s, need.pinned
        self.state = State.UNLOADED
        self.changed_s = self.used_s = -math.inf
        self.eager, self.gone, self.unloading, self.measured = True, False, False, False
        self.after: EngineNeed | None = None
        self.room_for: str | None = None
        self.failures, self.retry_s = 0, 0.0

    @property
    def resident(self) -> bool:
        """Holds memory."""
        return self.state in (State.READY, State.LOADING, State.DRAINING)

    def unused(self, now_s: float, demand: Demand) -> bool:
        """Nobody has asked for it for as long as loading it again would take."""
        return not demand.asked and now_s - self.used_s >= self.load_s


class Scheduler:
    """Decides by `step`. Raises UserError when what is pinned, or one engine beside it, does not fit `budget_bytes`."""

    def __init__(
        self, engines: Sequence[EngineNeed], budget_bytes: int, minimum_dwell_s: float, maximum_wait_s: float
    ) -> None:
        check_budget(engines, budget_bytes)
        self.budget_bytes, self.minimum_dwell_s, self.maximum_wait_s = budget_bytes, minimum_dwell_s, maximum_wait_s
        self._engines = {need.name: _Engine(need) for need in engines}

    # What it knows.

    def state(self, name: str) -> State:
        """Of one engine. KeyError for one that is not known, or no longer."""
        return self._engines[name].state

    def needs(self, name: str) -> EngineNeed:
        """What one engine takes, as measured once it was loaded."""
        engine = self._engines[name]
        return EngineNeed(engine.name, engine.bytes, engine.load_s, engine.pinned)

    @property
    def names(self) -> tuple[str, ...]:
        """All engines, also those that are on their way out."""
        return tuple(self._engines)

    @property
    def used_bytes(self) -> int:
        """Held by engines that are loaded, loading or not yet gone."""
        return sum(engine.bytes for engine in self._engines.values() if engine.resident)

    def ready_in_s(self, name: str, now_s: float, demand: Mapping[str, Demand]) -> float:
        """Seconds until it could answer, were it asked for now: an estimate; inf when it cannot come."""
        engine = self._engines[name]
        if engine.state is State.READY:
            return 0.0
        if engine.state is State.LOADING:
            return max(0.0, engine.load_s - (now_s - engine.changed_s))
        if engine.state is State.FAILED:
            return max(0.0, engine.retry_s - now_s) + engine.load_s
        if engine.bytes <= self._promised(engine):
            return engine.load_s
        victims = self._choose(engine, [e for e in self._engines.values() if self._evictable(e)], now_s, demand)
        if victims is None:
            return math.inf
        own = demand.get(name, IDLE)
        fair_s = max(0.0, FAIR * self.maximum_wait_s - engine.load_s - own.oldest_wait_s)
        wait_s = 0.0
        for victim in victims:
            asked = demand.get(victim.name, IDLE)
            unused_s = math.inf if asked.asked else victim.load_s - (now_s - victim.used_s)
            dwell_s = self.minimum_dwell_s - (now_s - victim.changed_s)
            ends_s = asked.service_s if asked.in_flight else 0.0
            wait_s = max(wait_s, dwell_s + ends_s, min(unused_s, fair_s) + ends_s)
        return wait_s + SETTLE_S + engine.load_s

    # What happened.

    def loaded(self, name: str, now_s: float, load_s: float | None = None, measured_bytes: int | None = None) -> None:
        """It answers. Its measured load time replaces the guess, then moves by half; memory only ever rises."""
        engine = self._engines[name]
        if engine.state is not State.LOADING:
            return
        engine.state, engine.changed_s, engine.used_s, engine.eager = State.READY, now_s, now_s, False
        if load_s is not None:
            engine.load_s = (engine.load_s + load_s) / 2 if engine.measured else load_s
            engine.measured = True
        if measured_bytes is not None:
            self.measured(name, measured_bytes)

    def measured(self, name: str, measured_bytes: int) -> None:
        """It was seen to hold this much memory."""
        engine = self._engines[name]
        engine.bytes = max(engine.bytes, measured_bytes)

    def failed(self, name: str, now_s: float) -> None:
        """It did not load, or died; its memory is free. It is tried again after a wait that doubles each time."""
        engine = self._engines[name]
        if engine.gone or engine.unloading:
            self.unloaded(name, now_s)
            return
        if engine.state in (State.READY, State.DRAINING) and now_s - engine.changed_s >= SOUND_S:
            engine.failures = 0
        engine.failures += 1
        engine.retry_s = now_s + min(BACKOFF_S[1], BACKOFF_S[0] * 2.0 ** min(engine.failures - 1, 30))
        # One that was in use comes back as soon as there is room, without being asked for.
        engine.eager = engine.pinned or engine.state is State.READY
        engine.state, engine.room_for = State.FAILED, None

    def unloaded(self, name: str, now_s: float) -> None:
        """It has stopped; its memory is free."""
        engine = self._engines[name]
        if engine.gone:
            del self._engines[name]
            if engine.after is not None:
                self._engines[name] = _Engine(engine.after)
            return
        engine.state, engine.changed_s, engine.room_for, engine.unloading = State.UNLOADED, now_s, None, False

    def replan(self, engines: Sequence[EngineNeed], changed: Iterable[str], budget_bytes: int) -> None:
        """New engines from now on. Those no longer named, or `changed`, drain and stop first; others go on as they are.

        Raises UserError as the constructor does, and then nothing has changed.
        """
        check_budget(engines, budget_bytes)
        self.budget_bytes = budget_bytes
        wanted, changed = {need.name: need for need in engines}, frozenset(changed)
        for name, engine in list(self._engines.items()):
            need = wanted.pop(name, None)
            if need is not None and name not in changed and not engine.gone:
                engine.pinned = need.pinned
            elif engine.resident:
                engine.gone, engine.after, engine.pinned = True, need, False
            else:
                del self._engines[name]
                if need is not None:
                    self._engines[name] = _Engine(need)
        self._engines.update((name, _Engine(need)) for name, need in wanted.items())

    # What to do.

    def step(self, now_s: float, demand: Mapping[str, Demand]) -> list[Effect]:
        """What follows from the demand of this moment, to be carried out in this order."""
        effects: list[Effect] = []
        for engine in self._engines.values():
            if demand.get(engine.name, IDLE).asked:
                engine.used_s = now_s
            if engine.state is State.FAILED and now_s >= engine.retry_s:
                engine.state = State.UNLOADED
        self._drop(now_s, demand, effects)
        self._load(now_s, demand, effects)
        self._unload(now_s, demand, effects)
        return effects

    def _drop(self, now_s: float, demand: Mapping[str, Demand], effects: list[Effect]) -> None:
        """Drain what the plan no longer has and what memory cannot hold; resume what drains for nobody."""
        for engine in self._engines.values():
            if engine.gone and engine.state is State.READY:
                self._drain(engine, engine.name, now_s, effects)
            leaves = engine.gone or engine.unloading or engine.room_for == engine.name or self._needed(engine, demand)
            if engine.state is State.DRAINING and not leaves:
                engine.state, engine.room_for = State.READY, None
                effects.append(Resume(engine.name))
        staying = sum(e.bytes for e in self._engines.values() if e.resident and e.state is not State.DRAINING)
        for engine in self._by_use(now_s, demand) if staying > self.budget_bytes else ():
            # More memory than planned was measured: what is used least goes, however new it is.
            if staying > self.budget_bytes and self._evictable(engine):
                self._drain(engine, engine.name, now_s, effects)
                staying -= engine.bytes

    def _load(self, now_s: float, demand: Mapping[str, Demand], effects: list[Effect]) -> None:
        """Load what fits, in the order of `_line`; make room for what does not where the rules allow it."""
        for engine in self._line(demand):
            if engine.bytes <= min(self.budget_bytes - self.used_bytes, self._promised(engine)):
                engine.state, engine.changed_s = State.LOADING, now_s
                effects.append(StartEngine(engine.name))
                continue
            asked = demand.get(engine.name, IDLE)
            if not asked.waiting:
                engine.eager = engine.pinned or engine.failures > 0  # it had its chance to come unasked
                continue
            if engine.bytes <= self._promised(engine):
                continue  # its room is being made
            ready = (e for e in self._engines.values() if self._evictable(e))
            settled = [e for e in ready if now_s - e.changed_s >= self.minimum_dwell_s]
            victims = self._choose(engine, settled, now_s, demand)
            if victims is not None and (self._due(engine, asked) or self._pays(engine, victims, now_s, demand)):
                for victim in victims:
                    self._drain(victim, engine.name, now_s, effects)
            elif self._due(engine, asked) and engine.bytes <= self.budget_bytes - self._pinned_bytes:
                break  # its turn has come: nothing behind it may take the room that it waits for

    def _unload(self, now_s: float, demand: Mapping[str, Demand], effects: list[Effect]) -> None:
        for engine in self._engines.values():
            settled = engine.state is State.DRAINING and now_s - engine.changed_s >= SETTLE_S
            if settled and not engine.unloading and not demand.get(engine.name, IDLE).in_flight:
                engine.unloading = True
                effects.append(Unload(engine.name))

    def _line(self, demand: Mapping[str, Demand]) -> list[_Engine]:
        """Engines to load: those that room is made for, those due by the longest wait, by work, then unasked ones."""
        coming = {engine.room_for for engine in self._engines.values() if engine.state is State.DRAINING}

        def turn(engine: _Engine) -> tuple[bool, float, float, bool]:
            asked = demand.get(engine.name, IDLE)
            due = self._due(engine, asked)
            first = engine.name in coming
            return not first, -asked.oldest_wait_s if due else 0.0, -asked.waiting * asked.service_s, not engine.pinned

        return sorted((e for e in self._engines.values() if self._wants(e.name, demand) and not e.resident), key=turn)

    def _needed(self, victim: _Engine, demand: Mapping[str, Demand]) -> bool:
        """The engine that it makes room for still waits for it."""
        engine = self._engines.get(victim.room_for or "")
        if engine is None or engine.resident or not self._wants(engine.name, demand):
            return False
        return demand.get(engine.name, IDLE).waiting > 0

    @property
    def _pinned_bytes(self) -> int:
        return sum(engine.bytes for engine in self._engines.values() if engine.pinned)

    def _wants(self, name: str, demand: Mapping[str, Demand]) -> bool:
        """It may be loaded, and somebody waits for it or it was never given up."""
        engine = self._engines[name]
        if engine.state is State.FAILED or engine.gone:
            return False
        return demand.get(name, IDLE).waiting > 0 or engine.eager

    def _due(self, engine: _Engine, asked: Demand) -> bool:
        """Its oldest request has waited for as long as is fair: oldest wait + load >= half of the maximum wait."""
        return asked.waiting > 0 and asked.oldest_wait_s + engine.load_s >= FAIR * self.maximum_wait_s

    def _pays(self, engine: _Engine, victims: Sequence[_Engine], now_s: float, demand: Mapping[str, Demand]) -> bool:
        """Its queue holds more work than the swap costs: loading it, and loading again what is still in use.

        In seconds of an engine: waiting * service > load + sum over victims in use of (load + in flight * service).
        """
        asked = demand.get(engine.name, IDLE)
        used = [victim for victim in victims if not victim.unused(now_s, demand.get(victim.name, IDLE))]
        if not used:
            return True
        cost_s = engine.load_s
        for victim in used:
            theirs = demand.get(victim.name, IDLE)
            cost_s += victim.load_s + theirs.in_flight * theirs.service_s
        return asked.waiting * asked.service_s > cost_s

    def _choose(
        self, engine: _Engine, ready: Sequence[_Engine], now_s: float, demand: Mapping[str, Demand]
    ) -> list[_Engine] | None:
        """The least used of `ready` whose memory is enough, none of them needlessly; None when all are too little."""
        missing = engine.bytes - self._promised(engine)
        chosen: list[_Engine] = []
        for victim in self._by_use(now_s, demand):
            if missing > 0 and victim in ready and victim is not engine:
                chosen.append(victim)
                missing -= victim.bytes
        if missing > 0:
            return None
        for victim in reversed(chosen):
            if victim.bytes <= -missing:
                chosen.remove(victim)
                missing += victim.bytes
        return chosen

    def _by_use(self, now_s: float, demand: Mapping[str, Demand]) -> list[_Engine]:
        """Least used first: without demand, with least work in hand, not asked for the longest."""

        def use(engine: _Engine) -> tuple[bool, float, float]:
            asked = demand.get(engine.name, IDLE)
            return not engine.unused(now_s, asked), asked.in_flight * asked.service_s, engine.used_s

        return sorted(self._engines.values(), key=use)

    def _evictable(self, engine: _Engine) -> bool:
        return engine.state is State.READY and not engine.pinned

    def _promised(self, engine: _Engine) -> int:
        """Bytes that `engine` may count on: all but what stays, what loads, and what others are given room for."""
        taken, coming = 0, set()
        for other in self._engines.values():
            if other.state in (State.READY, State.LOADING):
                taken += other.bytes
            elif other.state is State.DRAINING and other.room_for not in (None, engine.name, other.name):
                coming.add(other.room_for)
        return self.budget_bytes - taken - sum(self._engines[n].bytes for n in coming if n in self._engines)

    def _drain(self, engine: _Engine, room_for: str, now_s: float, effects: list[Effect]) -> None:
        engine.state, engine.changed_s, engine.room_for = State.DRAINING, now_s, room_for
        effects.append(Drain(engine.name))
