"""A world of pretended engines: time that is told, memory that is counted, requests that wait and end."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from breakeven.gateway.plan.model import BackendPlan, GatewayPlan, PolicyPlan
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import State
from breakeven.gateway.swap.effects import Event
from breakeven.gateway.swap.scheduler import Scheduler
from breakeven.gateway.swap.types import Demand, Drain, Effect, EngineNeed, Resume, StartEngine, Unload
from tests.small_models import BASE, CONFIGS

TICK_S = 0.25


@dataclass
class Pretended:
    """One engine in the world. `ends` are the times at which its running requests end."""

    need: EngineNeed
    load_s: float
    service_s: float
    state: str = "off"
    since_s: float = 0.0
    arrived: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)


class World:
    """Carries out a scheduler's effects and checks, at each, what must always hold."""

    def __init__(
        self,
        engines: Sequence[tuple[EngineNeed, float, float]],
        budget: int,
        dwell_s: float = 20.0,
        longest_wait_s: float = 60.0,
    ) -> None:
        self.engines = {need.name: Pretended(need, load_s, service_s) for need, load_s, service_s in engines}
        self.scheduler = Scheduler([need for need, _, _ in engines], budget, dwell_s, longest_wait_s)
        self.budget, self.dwell_s, self.now_s = budget, dwell_s, 0.0
        self.effects: list[tuple[float, Effect]] = []

    @property
    def held(self) -> int:
        return sum(e.need.bytes for e in self.engines.values() if e.state != "off")

    def demand(self) -> dict[str, Demand]:
        return {
            name: Demand(len(e.arrived), self.now_s - min(e.arrived, default=self.now_s), len(e.ends), e.service_s)
            for name, e in self.engines.items()
        }

    def arrive(self, name: str, count: int = 1) -> None:
        self.engines[name].arrived += [self.now_s] * count

    def step(self) -> list[Effect]:
        effects = self.scheduler.step(self.now_s, self.demand())
        for effect in effects:
            self.effects.append((self.now_s, effect))
            self._carry_out(effect, self.engines[effect.name])
        assert self.held <= self.budget
        return effects

    def _carry_out(self, effect: Effect, engine: Pretended) -> None:
        match effect:
            case StartEngine():
                assert engine.state == "off"
                engine.state, engine.since_s = "loading", self.now_s
                engine.loads.append(self.now_s)
            case Drain():
                assert engine.state == "ready"
                assert not engine.need.pinned
                assert self.now_s - engine.since_s >= self.dwell_s
                engine.state = "draining"
            case Resume():
                assert engine.state == "draining"
                engine.state = "ready"  # its dwell counts from its load
            case Unload():
                assert engine.state == "draining"
                assert not engine.ends, "a busy engine was stopped"
                engine.state = "stopping"

    def loaded(self, name: str) -> None:
        engine = self.engines[name]
        engine.state, engine.since_s = "ready", self.now_s
        self.scheduler.loaded(name, self.now_s, engine.load_s)

    def stopped(self, name: str) -> None:
        self.engines[name].state = "off"
        self.scheduler.unloaded(name, self.now_s)

    def failed(self, name: str) -> None:
        engine = self.engines[name]
        engine.state = "off"
        engine.ends.clear()
        self.scheduler.failed(name, self.now_s)

    def run(self, seconds: float, traffic: Callable[[float], Sequence[str]] = lambda _: ()) -> None:
        """All by itself: what is loading gets loaded, who waits is served once its engine is ready, and ends."""
        ends_s = self.now_s + seconds
        while self.now_s < ends_s:
            self.now_s += TICK_S
            for name in traffic(self.now_s):
                self.arrive(name)
            for name, engine in self.engines.items():
                if engine.state == "loading" and self.now_s - engine.since_s >= engine.load_s:
                    self.loaded(name)
                elif engine.state == "stopping":
                    self.stopped(name)
                engine.ends = [end for end in engine.ends if end > self.now_s]
                if engine.state == "ready":
                    engine.waits += [self.now_s - arrived for arrived in engine.arrived]
                    engine.ends += [self.now_s + engine.service_s] * len(engine.arrived)
                    engine.arrived.clear()
            self.step()

    def count(self, kind: type, name: str) -> int:
        return sum(isinstance(effect, kind) and effect.name == name for _, effect in self.effects)

    def state(self, name: str) -> State:
        return self.scheduler.state(name)


class Pretending:
    """`Effects` that only note what they were told; the test tells what came of it."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self.tell = tell
        self.loads: list[tuple[str, int]] = []
        self.unloads: list[str] = []
        self.written: dict[str, float] = {}
        self.closed = False

    def load(self, backend: BackendPlan, threads: int) -> None:
        self.loads.append((backend.name, threads))

    def unload(self, name: str) -> None:
        self.unloads.append(name)

    def progress(self, name: str) -> float | None:
        return self.written.get(name)

    async def close(self, timeout_s: float) -> None:
        self.closed = True


def plan_of(*backends: BackendPlan, memory_bytes: int | None = None, **rest: Any) -> GatewayPlan:
    """A gateway of these backends and no more."""
    policy = PolicyPlan(model="breakeven", backends=tuple(backend.name for backend in backends))
    return GatewayPlan(path=None, backends=backends, policies=(policy,), memory_bytes=memory_bytes, **rest)


def block_for(plan: GatewayPlan) -> tuple[SharedBlock, dict[str, int]]:
    """The shared block of one worker, and the rows of its backends."""
    block = SharedBlock(Shape(workers=2, backends=8, keys=1, models=1, experiments=1))
    return block, {backend.name: row for row, backend in enumerate(plan.backends)}


def described(directory: Path, family: str) -> Path:
    """A config.json of a small model of this family, which Breakeven writes weights for."""
    path = directory / family / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**BASE, **CONFIGS[family]}))
    return path


def ask(url: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, Any]:
    """Status and JSON (or text) of one answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=120) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text
