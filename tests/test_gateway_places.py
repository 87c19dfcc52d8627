"""Places at a backend and the line before them, between priorities, keys and workers. Pure: a clock is made up here."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from breakeven.gateway.places import Gate, NextInLine, kept_places


def test_places_then_line_then_full() -> None:
    gate: Gate[str] = Gate(2, 1)
    assert [gate.enter(name, 0, 10.0, 0.0) for name in "abcd"] == ["go", "go", "wait", "full"]
    assert (gate.in_flight, gate.queued) == (2, 1)
    assert gate.leave("a", 1.0) == ["c"]
    assert gate.leave("b", 1.0) == []
    assert gate.leave("c", 1.0) == []
    assert (gate.in_flight, gate.queued) == (0, 0)
    with pytest.raises(AssertionError):
        gate.leave("c", 1.0)


def test_higher_priority_first_then_first_come() -> None:
    gate: Gate[str] = Gate(1, 10)
    gate.enter("busy", 0, 10.0, 0.0)
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
        assert gate.enter(name, priority, 10.0, 0.0) == "wait"
    order = ["busy"]
    while going := gate.leave(order[-1], 1.0):
        order += going
    assert order[1:] == ["b", "d", "a", "c", "e"]


def test_a_full_line_drops_the_newest_of_the_lowest_priority() -> None:
    gate: Gate[str] = Gate(0, 3)
    for name, priority in (("a", 0), ("b", -1), ("c", -1)):
        gate.enter(name, priority, 10.0, 0.0)
    assert gate.enter("d", -1, 10.0, 0.0) == "full"
    assert gate.pushed_out() == []
    assert gate.enter("e", 0, 10.0, 0.0) == "wait"
    assert gate.pushed_out() == ["c"]
    assert gate.pushed_out() == []
    assert gate.enter("f", 1, 10.0, 0.0) == "wait"
    assert gate.pushed_out() == ["b"]
    assert gate.enter("g", 0, 10.0, 0.0) == "full"


def test_late_ones_never_go() -> None:
    gate: Gate[str] = Gate(1, 10)
    gate.enter("busy", 0, 10.0, 0.0)
    gate.enter("late", 0, 1.0, 0.0)
    gate.enter("there", 0, 10.0, 0.0)
    assert gate.expired(0.5) == []
    assert gate.leave("busy", 2.0) == ["there"]
    assert gate.expired(2.0) == ["late"]
    assert gate.expired(2.0) == []
    assert gate.enter("never", 0, 3.0, 3.0) == "full"


def test_a_late_ticket_leaves_room_for_the_next() -> None:
    gate: Gate[str] = Gate(0, 1)
    assert gate.enter("a", 0, 1.0, 0.0) == "wait"
    assert gate.enter("b", 0, 9.0, 0.5) == "full"
    assert gate.enter("b", 0, 9.0, 1.0) == "wait"
    assert gate.expired(1.0) == ["a"]


def test_other_workers_take_places_and_free_them() -> None:
    gate: Gate[str] = Gate(4, 10)
    assert gate.enter("a", 0, 10.0, 0.0, elsewhere=4) == "wait"
    assert gate.enter("b", 0, 10.0, 0.0, elsewhere=4) == "wait"
    assert gate.wake(0.1, elsewhere=4) == []
    assert gate.wake(0.1, elsewhere=3) == ["a"]
    assert gate.enter("c", 0, 10.0, 0.2, elsewhere=2) == "wait", "b was here before"
    assert gate.enter("d", 1, 10.0, 0.2, elsewhere=2) == "go", "and d is more urgent"
    assert gate.wake(0.2, elsewhere=0) == ["b", "c"]


def test_who_left_the_line_does_not_go_and_may_come_back() -> None:
    gate: Gate[str] = Gate(1, 10)
    gate.enter("busy", 0, 10.0, 0.0)
    gate.enter("a", 0, 1.0, 0.0)
    assert gate.remove("a")
    assert not gate.remove("a")
    gate.enter("a", 0, 5.0, 0.5)
    assert gate.expired(2.0) == [], "its first deadline is void"
    assert gate.expired(5.0) == ["a"]


def test_forgotten_deadlines_do_not_pile_up() -> None:
    gate: Gate[int] = Gate(0, 10)
    for k in range(5000):
        assert gate.enter(k, 0, 1e9, 0.0) == "wait"
        gate.remove(k)
    assert len(gate._deadlines) < 200


PLACES, LINE, KEPT = 4, 5, 1


class GateMachine(RuleBasedStateMachine):
    """Against a plain list that is sorted anew each time. Keys 0 to 2 here; what they hold elsewhere is key 2's."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere_of_2 = 0
        self.gate: Gate[int] = Gate(PLACES, LINE, KEPT, None, lambda key: self.elsewhere_of_2 if key == 2 else 0)
        self.line: list[tuple[int, int, int, float]] = []
        """Priority, key, ticket, deadline."""
        self.holders: dict[int, tuple[int, float]] = {}
        self.had: dict[int, float] = {}
        self.now_s = 0.0
        self.next = 0
        self.late: list[int] = []
        self.out: list[int] = []

    def _held(self, key: int) -> int:
        here = sum(1 for one, _ in self.holders.values() if one == key)
        return here + (self.elsewhere_of_2 if key == 2 else 0)

    def _sweep(self) -> None:
        self.late += [one[2] for one in self.line if one[3] <= self.now_s]
        self.line = [one for one in self.line if one[3] > self.now_s]

    def _free(self) -> int:
        return PLACES - len(self.holders) - self.elsewhere_of_2

    def _may(self, priority: int, key: int) -> bool:
        return self._free() > (0 if priority >= 0 and not self._held(key) else KEPT)

    def _best(self) -> tuple[int, int, int, float] | None:
        able = [one for one in self.line if self._may(one[0], one[1])]
        return min(able, key=lambda one: (-one[0], self._held(one[1]), self.had.get(one[1], 0.0), one[2]), default=None)

    def _go(self) -> list[int]:
        going = []
        self._sweep()
        while (best := self._best()) is not None:
            self.line.remove(best)
            self.holders[best[2]] = (best[1], self.now_s)
            going.append(best[2])
        return going

    @rule(priority=st.integers(-1, 2), key=st.integers(0, 2), wait_s=st.floats(0.0, 10.0))
    def enter(self, priority: int, key: int, wait_s: float) -> None:
        ticket, self.next = self.next, self.next + 1
        deadline = self.now_s + wait_s
        self._sweep()
        best = self._best()
        expected = "full"
        if self._may(priority, key) and (best is None or best[0] < priority):
            self.holders[ticket] = (key, self.now_s)
            expected = "go"
        elif deadline > self.now_s:
            if len(self.line) < LINE:
                expected = "wait"
            else:
                level = min(one[0] for one in self.line)
                count = {k: [o for o in self.line if o[:2] == (level, k)] for k in range(3)}
                has = {k: (self._held(k) + len(line), len(line), k) for k, line in count.items() if line}
                most = max(has.values())
                mine = self._held(key) + len(count[key])
                if level < priority or (level == priority and most[0] > mine + 1):
                    self.line.remove(count[most[2]][-1])
                    self.out.append(count[most[2]][-1][2])
                    expected = "wait"
                    count[most[2]].pop()
            if expected == "wait":
                if not self.line:
                    self.had = {}
                others = {one[1] for one in self.line if one[0] == priority}
                if key not in others:
                    least = min((self.had.get(one, 0.0) for one in others), default=0.0)
                    self.had[key] = max(self.had.get(key, 0.0), least)
                self.line.append((priority, key, ticket, deadline))
        assert self.gate.enter(ticket, priority, deadline, self.now_s, self.elsewhere_of_2, key) == expected

    @precondition(lambda self: self.holders)
    @rule(which=st.integers(0, 100))
    def leave(self, which: int) -> None:
        ticket = list(self.holders)[which % len(self.holders)]
        key, since_s = self.holders.pop(ticket)
        if self.line:
            self.had[key] = self.had.get(key, 0.0) + self.now_s - since_s
        assert self.gate.leave(ticket, self.now_s, self.elsewhere_of_2) == self._go()

    @rule(elsewhere=st.integers(0, 4))
    def wake(self, elsewhere: int) -> None:
        self.elsewhere_of_2 = elsewhere
        assert self.gate.wake(self.now_s, elsewhere) == self._go()

    @rule(seconds=st.floats(0.0, 5.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def expire(self) -> None:
        self._sweep()
        assert sorted(self.gate.expired(self.now_s)) == sorted(self.late)
        self.late = []

    @precondition(lambda self: self.line)
    @rule(which=st.integers(0, 100))
    def remove(self, which: int) -> None:
        one = self.line.pop(which % len(self.line))
        assert self.gate.remove(one[2]) == (one[2] not in self.late)

    @invariant()
    def same(self) -> None:
        assert self.gate.in_flight == len(self.holders)
        assert [self.gate.held(key) for key in range(3)] == [self._held(key) for key in range(3)]
        assert self.gate.queued == len(self.line)
        assert self.gate.pushed_out() == self.out
        self.out = []


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# Keys beside each other.


def test_one_key_s_long_answers_do_not_shut_another_out() -> None:
    gate: Gate[str] = Gate(8, 4, kept_places(8, keys=3))
    anna = [gate.enter(f"a{k}", 0, 60.0, 0.0, key=1) for k in range(12)]
    assert anna == ["go"] * 7 + ["wait"] * 4 + ["full"]
    assert gate.enter("b", 0, 1.0, 0.0, key=2) == "go", "a place is kept for who has none"
    assert gate.enter("c", 0, 9.0, 0.0, key=3) == "wait", "and takes a place in line from who has most"
    assert gate.pushed_out() == ["a10"]
    assert gate.leave("a0", 1.0) == ["c"], "which goes next, though others came before"
    assert gate.leave("b", 2.0) == [], "and again one is kept"
    assert gate.leave("a1", 2.0) == ["a7"]


def test_what_is_shed_first_has_no_claim_on_a_kept_place() -> None:
    gate: Gate[str] = Gate(4, 4, 1)
    assert [gate.enter(f"a{k}", 0, 60.0, 0.0, key=1) for k in range(3)] == ["go"] * 3
    assert gate.enter("copy", -100, 60.0, 0.0, key=0) == "wait"
    assert gate.enter("b", 0, 60.0, 0.0, key=2) == "go"


def test_how_many_are_kept() -> None:
    limits = (1, 3, 4, 8, 16, 64, 256, 4096)
    assert [kept_places(limit, 1000) for limit in limits] == [0, 0, 1, 1, 1, 4, 8, 8]
    assert [kept_places(64, keys) for keys in (0, 1, 2, 9)] == [0, 0, 1, 4], "never for keys that there are not"


def test_keys_share_the_seconds_of_one_place() -> None:
    """Requests of ten seconds beside requests of one, both always in line: each key gets half of the time."""
    gate: Gate[tuple[str, int]] = Gate(1, 100)
    takes_s = {"long": 10.0, "short": 1.0}
    had_s, now_s = dict.fromkeys(takes_s, 0.0), 0.0
    gate.enter(("first", 0), 0, 1e9, 0.0, key=0)
    for k in range(40):
        for key, name in enumerate(takes_s, start=1):
            gate.enter((name, k), 0, 1e9, 0.0, key=key)
    going = gate.leave(("first", 0), 0.0)
    while now_s < 40.0:
        name, _ = going[0]
        now_s += takes_s[name]
        had_s[name] += takes_s[name]
        going = gate.leave(going[0], now_s)
    assert abs(had_s["long"] - had_s["short"]) <= 10.0


def test_a_line_elsewhere_is_left_a_place_while_its_claim_is_better() -> None:
    gate: Gate[str] = Gate(4, 9, 1)
    for k in range(5):
        gate.enter(f"a{k}", 0, 60.0, 0.0, key=1)
    assert gate.claim() == NextInLine(0, -3)
    assert gate.leave("a0", 1.0, ahead=NextInLine(0, -1)) == [], "its key has two left, theirs has one"
    assert gate.wake(1.0, ahead=NextInLine(7, -9)) == [], "and theirs is more urgent"
    assert gate.wake(1.0, ahead=NextInLine(0, -2)) == ["a3"]
    assert gate.enter("b", 0, 60.0, 1.0, key=2, ahead=NextInLine(7, -9)) == "go", "what is kept is not for who has some"
    gate.remove("a4")
    gate.leave("b", 2.0)
    assert gate.enter("c", 0, 60.0, 2.0, key=3, ahead=NextInLine(1, 0)) == "wait"
    assert gate.wake(2.0, ahead=None) == ["c"]
    assert gate.claim() is None
