"""Who holds memory: never more than there is, nobody interrupted, nobody forgotten, no swapping for its own sake."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from breakeven.errors import UserError
from breakeven.gateway.shared.layout import State
from breakeven.gateway.swap.scheduler import FAIR, SETTLE_S, Scheduler
from breakeven.gateway.swap.types import Demand, Drain, EngineNeed, Resume, StartEngine, Unload
from tests.gateway_swap_fixtures import TICK_S, World

GB = 10**9


def two(load_s: float = 4.0, service_s: float = 1.0, **limits: float) -> World:
    """A dense model and an MoE of which memory holds one."""
    needs = [EngineNeed("dense", 2 * GB, load_s), EngineNeed("moe", 3 * GB, load_s)]
    return World([(need, load_s, service_s) for need in needs], 4 * GB, **limits)


def test_what_fits_is_loaded_unasked_in_the_order_of_the_plan() -> None:
    world = two()
    assert world.step() == [StartEngine("dense")]
    assert world.state("moe") is State.UNLOADED
    both = World([(EngineNeed("a", GB, 1.0), 1.0, 1.0), (EngineNeed("b", GB, 1.0), 1.0, 1.0)], 2 * GB)
    assert both.step() == [StartEngine("a"), StartEngine("b")]


def test_what_is_pinned_comes_first() -> None:
    needs = [EngineNeed("a", 3 * GB, 1.0), EngineNeed("b", 3 * GB, 1.0, pinned=True)]
    with pytest.raises(UserError, match=r"a needs 3.0 GB beside the pinned 3.0 GB .* give it a smaller format"):
        Scheduler(needs, 5 * GB, 20.0, 60.0)
    world = World([(EngineNeed("a", 2 * GB, 1.0), 1.0, 1.0), (needs[1], 1.0, 1.0)], 5 * GB)
    assert world.step() == [StartEngine("b"), StartEngine("a")]


@pytest.mark.parametrize("pinned", [False, True])
def test_what_never_fits_is_refused_with_the_numbers(pinned: bool) -> None:
    with pytest.raises(UserError, match=r"need[s]? 9.0 GB.*4.0 GB"):
        Scheduler([EngineNeed("big", 9 * GB, 1.0, pinned)], 4 * GB, 20.0, 60.0)


def test_an_idle_engine_gives_way_at_once_after_its_dwell() -> None:
    world = two()
    world.run(30)
    world.arrive("moe")
    world.run(2 * TICK_S + SETTLE_S + 4.0 + 2 * TICK_S)
    assert world.state("moe") is State.READY
    assert [type(effect) for _, effect in world.effects] == [StartEngine, Drain, Unload, StartEngine]


def test_dwell_is_kept() -> None:
    world = two(longest_wait_s=1.0)
    world.run(6)
    world.arrive("moe")
    world.run(10)
    assert world.count(Drain, "dense") == 0
    world.run(15)
    assert world.count(Drain, "dense") == 1


def test_one_request_does_not_take_a_busy_engine_from_others_until_it_is_due() -> None:
    world = two()
    busy = lambda now_s: ["dense"]  # noqa: E731
    world.run(30, busy)
    world.arrive("moe")
    arrived = world.now_s
    world.run(20, busy)
    assert world.count(Drain, "dense") == 0
    world.run(40, busy)
    drained = next(at for at, effect in world.effects if effect == Drain("dense"))
    assert arrived + FAIR * 60.0 - 4.0 <= drained <= arrived + FAIR * 60.0 - 4.0 + 2 * TICK_S
    assert world.engines["moe"].waits[0] <= FAIR * 60.0 + 1.0 + SETTLE_S + 4 * TICK_S < 60.0


def test_a_queue_worth_more_than_the_swap_gets_its_turn() -> None:
    """8 s to load here, 8 s to come back, and 4 requests of 1 s in flight: 20 s of waiting work do not pay, 21 do."""
    demand = {"dense": Demand(in_flight=4, service_s=1.0)}
    for waiting, pays in ((20, False), (21, True)):
        world = two(load_s=8.0)
        world.run(40)
        world.scheduler.step(world.now_s, demand)
        effects = world.scheduler.step(
            world.now_s, {**demand, "moe": Demand(waiting=waiting, oldest_wait_s=1.0, service_s=1.0)}
        )
        assert effects == ([Drain("dense")] if pays else [])


def test_requests_end_before_their_engine_does() -> None:
    world = two(service_s=30.0, longest_wait_s=10.0)
    world.run(24)
    world.arrive("dense", 3)
    world.run(1)
    world.arrive("moe")
    world.run(20)
    assert world.state("dense") is State.DRAINING
    assert world.count(Unload, "dense") == 0
    world.run(15)
    assert world.state("moe") is State.READY  # `World` asserts that none was cut


def test_nobody_waits_any_more_and_the_engine_resumes() -> None:
    world = two(service_s=30.0, longest_wait_s=10.0)
    world.run(24)
    world.arrive("dense")
    world.run(1)
    world.arrive("moe")
    world.run(10)
    assert world.state("dense") is State.DRAINING
    world.engines["moe"].arrived.clear()
    assert world.step() == [Resume("dense")]
    assert world.state("dense") is State.READY


def test_room_being_made_is_not_taken_by_another() -> None:
    needs = [EngineNeed("a", 3, 1.0), EngineNeed("b", 3, 1.0), EngineNeed("c", 1, 1.0)]
    world = World([(need, 1.0, 50.0) for need in needs], 3, dwell_s=1.0, longest_wait_s=5.0)
    world.run(4)
    world.arrive("a")
    world.run(2)
    world.arrive("b")
    world.run(10)
    assert world.state("a") is State.DRAINING
    world.arrive("c", 5)
    world.run(130)
    assert world.engines["b"].loads[0] < world.engines["c"].loads[0]


def test_failures_wait_twice_as_long_each_time() -> None:
    world = World([(EngineNeed("only", GB, 4.0), 4.0, 1.0)], 4 * GB)
    world.arrive("only")
    tries = []
    while len(tries) < 5 and world.now_s < 100:
        if world.step() == [StartEngine("only")]:
            tries.append(world.now_s)
            world.failed("only")
        world.now_s += 0.125
    assert [b - a for a, b in itertools.pairwise(tries)] == [2.0, 4.0, 8.0, 16.0]
    assert world.scheduler.ready_in_s("only", tries[-1], {}) == pytest.approx(32.0 + 4.0)


def test_an_engine_that_dies_comes_back_unasked() -> None:
    world = two()
    world.run(100)
    world.failed("dense")
    assert world.state("dense") is State.FAILED
    world.run(3)
    assert world.state("dense") is State.LOADING


def test_more_memory_than_planned_sends_away_what_is_used_least() -> None:
    needs = [EngineNeed("a", GB, 1.0), EngineNeed("b", GB, 1.0)]
    world = World([(need, 1.0, 1.0) for need in needs], 2 * GB)
    world.run(30, lambda _: ["b"])
    world.scheduler.measured("b", GB * 3 // 2)
    world.run(3, lambda _: ["b"])
    assert world.state("a") is State.UNLOADED
    assert world.state("b") is State.READY
    assert world.scheduler.needs("b").bytes == GB * 3 // 2
    assert world.scheduler.used_bytes <= 2 * GB


def test_another_plan_keeps_what_it_does_not_change() -> None:
    world = two()
    world.run(30)
    new = [EngineNeed("dense", 2 * GB, 1.0), EngineNeed("other", 2 * GB, 1.0)]
    with pytest.raises(UserError):
        world.scheduler.replan([EngineNeed("x", 9 * GB, 1.0)], (), 4 * GB)
    assert world.scheduler.names == ("dense", "moe")
    world.scheduler.replan(new, (), 4 * GB)
    assert world.scheduler.state("dense") is State.READY
    assert world.scheduler.step(world.now_s, {}) == [StartEngine("other")]
    world.scheduler.loaded("other", world.now_s)
    world.scheduler.replan(new, ("dense",), 4 * GB)
    assert world.scheduler.step(world.now_s, {}) == [Drain("dense")]
    assert world.scheduler.step(world.now_s + 2 * SETTLE_S, {}) == [Unload("dense")]
    world.scheduler.unloaded("dense", world.now_s + 2 * SETTLE_S)
    assert world.scheduler.step(world.now_s + 2 * SETTLE_S, {}) == [StartEngine("dense")]


def test_how_long_until_it_would_be_there() -> None:
    world = two()
    world.step()
    world.now_s = 1.0
    assert world.scheduler.ready_in_s("dense", 1.0, {}) == pytest.approx(3.0)
    assert world.scheduler.ready_in_s("moe", 1.0, {}) == math.inf  # nothing can give way while it loads
    world.now_s = 4.0
    world.loaded("dense")
    assert world.scheduler.ready_in_s("dense", 5.0, {}) == 0.0
    assert world.scheduler.ready_in_s("moe", 14.0, {}) == pytest.approx(10.0 + SETTLE_S + 4.0)
    assert world.scheduler.ready_in_s("moe", 40.0, {}) == pytest.approx(SETTLE_S + 4.0)
    busy = {"dense": Demand(in_flight=1, service_s=2.0)}
    world.scheduler.step(40.0, busy)
    assert world.scheduler.ready_in_s("moe", 40.0, busy) == pytest.approx(FAIR * 60.0 - 4.0 + 2.0 + SETTLE_S + 4.0)


needs = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([0.5, 3.0, 9.0]), st.sampled_from([0.5, 2.0, 8.0])),
    min_size=2,
    max_size=5,
)


@settings(max_examples=25, deadline=None)
@given(needs, st.integers(6, 12), st.data())
def test_nobody_starves_and_nothing_thrashes(
    engines: list[tuple[int, float, float]], budget: int, data: st.DataObject
) -> None:
    dwell_s, longest_wait_s = 5.0, 20.0
    world = World(
        [(EngineNeed(f"e{i}", size, load), load, service) for i, (size, load, service) in enumerate(engines)],
        budget,
        dwell_s=dwell_s,
        longest_wait_s=longest_wait_s,
    )
    shares = data.draw(st.lists(st.integers(0, 4), min_size=len(engines), max_size=len(engines)))
    names = list(world.engines)

    def traffic(now_s: float) -> list[str]:
        tick = round(now_s / TICK_S)
        return [name for name, share in zip(names, shares, strict=True) if share and tick % (4 * share) == 0]

    world.run(240, traffic)
    # Its turn comes after the longest wait; before it can be every other engine once, each of them loaded, kept for
    # its dwell, and drained.
    turn_s = dwell_s + max(load + service for _, load, service in engines) + SETTLE_S + 4 * TICK_S
    bound_s = FAIR * longest_wait_s + len(engines) * turn_s
    for engine in world.engines.values():
        waited = [*engine.waits, *(world.now_s - arrived for arrived in engine.arrived)]
        assert max(waited, default=0.0) <= bound_s
        gaps = [b - a for a, b in itertools.pairwise(engine.loads)]
        assert all(gap >= dwell_s for gap in gaps)


@settings(max_examples=15, deadline=None)
@given(needs, st.integers(6, 12))
def test_without_demand_nothing_moves(engines: list[tuple[int, float, float]], budget: int) -> None:
    world = World([(EngineNeed(f"e{i}", e[0], e[1]), e[1], e[2]) for i, e in enumerate(engines)], budget)
    world.run(15)
    before = len(world.effects)
    world.run(200)
    assert len(world.effects) == before


class Anything(RuleBasedStateMachine):
    """Any order of arrivals, ends, losses, failures and deaths; `World` asserts what must hold at every effect."""

    world: World

    @initialize(engines=needs, budget=st.integers(6, 12), pinned=st.booleans())
    def begin(self, engines: list[tuple[int, float, float]], budget: int, pinned: bool) -> None:
        made = [
            (EngineNeed(f"e{i}", size, load, pinned and i == 0 and size <= budget - 6), load, service)
            for i, (size, load, service) in enumerate(engines)
        ]
        self.world = World(made, budget, dwell_s=3.0, longest_wait_s=10.0)

    def pick(self, data: st.DataObject, *states: str) -> str | None:
        names = [name for name, engine in self.world.engines.items() if not states or engine.state in states]
        return data.draw(st.sampled_from(names)) if names else None

    @rule(data=st.data(), count=st.integers(1, 30))
    def arrive(self, data: st.DataObject, count: int) -> None:
        name = self.pick(data)
        assert name is not None
        if self.world.engines[name].state == "ready":
            self.world.engines[name].ends += [math.inf] * count
        else:
            self.world.arrive(name, count)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if name := self.pick(data):
            self.world.engines[name].ends.clear()

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        if name := self.pick(data):
            self.world.engines[name].arrived.clear()

    @rule(data=st.data())
    def load_ends(self, data: st.DataObject) -> None:
        if name := self.pick(data, "loading"):
            self.world.loaded(name)
            engine = self.world.engines[name]
            engine.ends += [math.inf] * len(engine.arrived)
            engine.arrived.clear()

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if name := self.pick(data, "loading", "ready", "draining", "stopping"):
            self.world.failed(name)

    @rule(data=st.data())
    def stop_ends(self, data: st.DataObject) -> None:
        if name := self.pick(data, "stopping"):
            self.world.stopped(name)

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.5, 3.0, 30.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now_s += seconds
        self.world.step()

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def states_agree(self) -> None:
        told = {State.READY: "ready", State.LOADING: "loading", State.UNLOADED: "off", State.FAILED: "off"}
        for name, engine in self.world.engines.items():
            state = self.world.state(name)
            assert engine.state in ("draining", "stopping") if state is State.DRAINING else engine.state == told[state]
            assert self.world.scheduler.ready_in_s(name, self.world.now_s, self.world.demand()) >= 0.0


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
