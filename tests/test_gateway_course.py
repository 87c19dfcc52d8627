"""What becomes of one request, without a socket or a clock: events in, effects written down."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.serve.course import CLIENT_LEFT, Course, Judgement
from breakeven.gateway.shared.layout import Count, UnderWay


class Lane:
    """A backend with places: `free` at once, else `line` says what happens to who enters."""

    def __init__(self, name: str, free: int = 9, line: str = "full", away: bool = False, comes: bool = True) -> None:
        self.name, self.free, self.line, self.away, self.comes = name, free, line, away, comes
        self.queued = 0
        self.counts: dict[int, int] = {}

    def add(self, column: int, by: int) -> None:
        assert column == UnderWay.QUEUED
        self.queued += by

    def counted(self, column: int, by: int = 1) -> None:
        self.counts[column] = self.counts.get(column, 0) + by


class One:
    """One backend asked."""

    def __init__(self, world: World, lane: Lane, hedge: bool) -> None:
        self.world, self.lane, self.hedge = world, lane, hedge
        self.outcome, self.status = "", 0
        self.judged = ""

    def send(self) -> None:
        self.world.did.append(f"send {self.lane.name}")

    def judge(self, what: Judgement) -> None:
        self.judged = self.judged or what

    def settle(self, outcome: str) -> None:
        self.outcome = self.outcome or outcome

    def drop(self, outcome: str) -> None:
        self.world.did.append(f"drop {self.lane.name}")
        self.settle(outcome)

    def finish(self) -> None:
        self.world.did.append("finish")

    def cut(self) -> None:
        self.world.did.append("cut")


class World:
    """`RequestEffects` that are only written down."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.ends: list[tuple[str, int, str]] = []
        self.hedge_to: Lane | None = None
        self.timer = False

    def now_s(self) -> float:
        return 0.0

    def ready(self, lane: Lane) -> bool:
        return not lane.away

    def take(self, course: Course[Lane, One], lane: Lane, now_s: float) -> bool:
        if lane.away or not lane.free:
            return False
        lane.free -= 1
        return True

    def enter(self, course: Course[Lane, One], lane: Lane, now_s: float) -> Literal["go", "wait", "full"]:
        assert lane.line in ("go", "wait", "full")
        return lane.line  # type: ignore[return-value]

    def leave(self, course: Course[Lane, One], lane: Lane) -> None:
        self.did.append(f"leave {lane.name}")

    def want(self, course: Course[Lane, One], lane: Lane, now_s: float) -> bool:
        return lane.comes

    def unwant(self, course: Course[Lane, One], lane: Lane) -> None:
        self.did.append(f"unwant {lane.name}")

    def prepare(self, course: Course[Lane, One], lane: Lane, *, hedge: bool) -> One:
        return One(self, lane, hedge)

    def hedge_later(self, course: Course[Lane, One], one: One) -> None:
        self.timer = True

    def stop_hedge(self) -> None:
        self.timer = False

    def second(self, course: Course[Lane, One]) -> Lane | None:
        return self.hedge_to

    def tell_progress(self, lane: Lane, progress: float) -> None:
        self.did.append(f"{lane.name} {progress:g}")

    def refuse(self, status: int, message: str, code: str, retry_s: float | None) -> None:
        self.did.append(f"refuse {status} {code}")

    def over(self, course: Course[Lane, One], one: One | None, status: int, error: str) -> None:
        self.ends.append(("" if one is None else one.lane.name, status, error))


def begun(*lanes: Lane, attempts: int = 3, hedges: bool = False) -> tuple[Course[Lane, One], World]:
    world = World()
    course: Course[Lane, One] = Course(world, list(lanes), attempts, hedges=hedges)
    course.begin()
    return course, world


def test_the_best_backend_answers() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    one = course.asked[0]
    one.status = 200
    assert course.first_byte(one)
    course.whole(one)
    assert world.did == ["send a", "finish"]
    assert world.ends == [("a", 200, "")]
    assert (one.judged, one.outcome) == ("good", "answered")
    assert course.ended
    assert not course.asked


def test_a_free_place_elsewhere_comes_before_a_line() -> None:
    _, world = begun(Lane("a", free=0, line="wait"), Lane("b"))
    assert world.did == ["send b"]


def test_who_waits_in_line_goes_when_a_place_is_free() -> None:
    a = Lane("a", free=0, line="wait")
    course, world = begun(a)
    assert (a.queued, world.did) == (1, [])
    course.go(a)
    assert (a.queued, world.did) == (0, ["send a"])


def test_who_loses_its_place_in_line_is_told() -> None:
    a = Lane("a", free=0, line="wait")
    course, world = begun(a)
    course.no_place(a, "it waited too long for a place")
    assert a.queued == 0
    assert a.counts[Count.SHED] == 1
    assert world.did == ["refuse 503 overloaded"]
    assert world.ends == [("", 503, "no place became free: it waited too long for a place")]


def test_nobody_has_a_place() -> None:
    a, b = Lane("a", free=0), Lane("b", free=0)
    _, world = begun(a, b)
    assert a.counts[Count.SHED] == b.counts[Count.SHED] == 1
    assert world.did == ["refuse 503 overloaded"]


@pytest.mark.parametrize(("status", "judged"), [(429, "busy"), (500, "broken"), (503, "broken"), (529, "broken")])
def test_a_failing_status_sends_it_to_the_next_backend(status: int, judged: str) -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    one = course.asked[0]
    course.failed_with(one, status)
    assert world.did == ["send a", "drop a", "send b"]
    assert (one.judged, one.outcome) == (judged, f"status_{status}")
    assert b.counts[Count.RETRIED] == 1


def test_the_last_backend_s_error_is_the_answer() -> None:
    course, world = begun(Lane("a"))
    one = course.asked[0]
    one.status = 500
    course.failed_with(one, 500)
    assert world.did == ["send a"]
    assert course.first_byte(one)
    course.whole(one)
    assert (one.judged, one.outcome) == ("broken", "status_500")
    assert world.ends == [("a", 500, "")]


def test_attempts_are_bounded() -> None:
    course, world = begun(Lane("a"), Lane("b"), Lane("c"), attempts=2)
    course.trouble(course.asked[0], "refused", "nobody listens")
    course.trouble(course.asked[1], "timeout", "no head")
    assert world.did == ["send a", "send b", "refuse 504 upstream_timeout"]
    assert world.ends == [("", 504, "a refused: nobody listens; b timeout: no head")]


def test_nothing_is_tried_again_once_the_client_has_a_byte() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b)
    one = course.asked[0]
    one.status = 200
    course.first_byte(one)
    course.trouble(one, "cut", "closed")
    assert world.did == ["send a", "cut"]
    assert world.ends == [("a", 200, "cut: closed")]
    assert a.counts[Count.CUT] == 1


def test_an_answer_above_our_own_limit_does_not_speak_against_a_backend() -> None:
    course, _ = begun(Lane("a"))
    one = course.asked[0]
    course.trouble(one, "too_large", "")
    assert one.judged == ""


def test_a_hedge_that_answers_first_wins_and_the_other_is_dropped() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b, hedges=True)
    assert world.timer
    world.hedge_to = b
    course.hedge_due()
    first, second = course.asked
    assert course.first_byte(second)
    assert not world.timer
    assert first.outcome == "hedge_lost"
    assert not course.first_byte(first)
    assert (b.counts[Count.HEDGED], b.counts[Count.HEDGE_WON]) == (1, 1)
    assert Count.RETRIED not in b.counts
    assert world.did == ["send a", "send b", "drop a", "drop a"]


def test_a_failure_beside_a_hedge_waits_for_the_hedge() -> None:
    a, b, c = Lane("a"), Lane("b"), Lane("c")
    course, world = begun(a, b, c, hedges=True)
    world.hedge_to = b
    course.hedge_due()
    course.trouble(course.asked[0], "reset", "")
    assert world.did == ["send a", "send b"]
    course.trouble(course.asked[1], "reset", "")
    assert world.did == ["send a", "send b", "send c"]


def test_nobody_is_asked_as_well_after_the_first_byte() -> None:
    course, world = begun(Lane("a"), Lane("b"), hedges=True)
    world.hedge_to = Lane("c")
    course.first_byte(course.asked[0])
    course.hedge_due()
    assert world.did == ["send a"]


def test_an_engine_that_loads_is_waited_for() -> None:
    a, b = Lane("a", away=True), Lane("b")
    course, world = begun(a, b)
    assert course.wanted is a
    course.tell_progress(a, 0.5)
    a.away = False
    course.loaded(a)
    assert world.did == ["a 0.5", "send a"]


def test_an_engine_that_does_not_come_leaves_it_to_the_next() -> None:
    a, b = Lane("a", away=True), Lane("b")
    course, world = begun(a, b)
    course.not_loaded(a, "it was not loaded in time")
    assert world.did == ["send b"]
    course.trouble(course.asked[0], "reset", "closed")
    assert world.ends == [("", 502, "a: it was not loaded in time; b reset: closed")]


def test_a_client_that_leaves_ends_everything_once() -> None:
    a, b = Lane("a"), Lane("b")
    course, world = begun(a, b, hedges=True)
    world.hedge_to = b
    course.hedge_due()
    course.gone()
    course.gone()
    assert world.did == ["send a", "send b", "drop a", "drop b"]
    assert world.ends == [("", CLIENT_LEFT, "the client left")]
    assert a.counts[Count.CANCELLED] == b.counts[Count.CANCELLED] == 1
    assert not world.timer


def test_a_client_that_leaves_a_line_or_an_engine_gives_its_place_up() -> None:
    a = Lane("a", free=0, line="wait")
    course, world = begun(a)
    course.gone()
    assert (a.queued, world.did) == (0, ["leave a"])
    course, world = begun(Lane("b", away=True))
    course.gone()
    assert world.did == ["unwant b"]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.booleans())
def test_whatever_happens_it_ends_once_and_leaves_nothing_under_way(seed: int, attempts: int, hedges: bool) -> None:
    dice = random.Random(seed)
    lanes = [
        Lane(name, dice.choice((0, 9)), dice.choice(("go", "wait", "full")), dice.random() < 0.2, dice.random() < 0.7)
        for name in "abcd"
    ]
    course, world = begun(*lanes, attempts=attempts, hedges=hedges)
    everybody: list[One] = []
    for _ in range(60):
        everybody += [one for one in course.asked if one not in everybody]
        if course.ended:
            break
        live = [one for one in course.asked if not one.outcome]
        if course.waits_at is not None and not live:
            lane = course.waits_at
            if (event := dice.randrange(3)) == 0:
                course.gone()
            elif event == 1:
                course.no_place(lane, "late")
            else:
                course.go(lane)
        elif course.wanted is not None and not live:
            lane = course.wanted
            lane.away, lane.comes = dice.random() < 0.5, False
            if (event := dice.randrange(3)) == 0:
                course.gone()
            elif event == 1:
                course.not_loaded(lane, "late")
            else:
                course.loaded(lane)
        elif live:
            one = dice.choice(live)
            event = dice.randrange(5)
            if event == 0 and not one.status:
                one.status = dice.choice((200, 400, 429, 500))
                if one.status in (429, 500):
                    course.failed_with(one, one.status)
            elif event == 1 and one.status and (course.winner is one or course.first_byte(one)):
                if dice.random() < 0.7:
                    course.whole(one)
            elif event == 2:
                course.trouble(one, dice.choice(("timeout", "reset", "too_large")), "")
            elif event == 3 and world.timer:
                world.hedge_to = dice.choice([None, *course.order])
                course.hedge_due()
            elif event == 4 and dice.random() < 0.3:
                course.gone()
    if not course.ended:
        course.gone()
    assert len(world.ends) == 1
    assert all(one.outcome for one in everybody)
    assert sum(not one.hedge for one in everybody) <= attempts
    assert all(lane.queued == 0 for lane in lanes)
    assert sum(did.split()[0] in ("finish", "cut", "refuse") for did in world.did) <= 1
    assert not world.timer
