"""Parts of the watching process and children of the supervisor: what fails comes back, alone, and is seen. No clock."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

import pytest

from breakeven.errors import BreakevenError, UserError
from breakeven.gateway.plan.model import GatewayPlan
from breakeven.gateway.serve import children as children_module
from breakeven.gateway.serve import loading as loading_module
from breakeven.gateway.serve.children import LOOK_S, STILL, STILL_NEW, WATCHER, Children, Owed
from breakeven.gateway.serve.loading import PlanReading, Rereading
from breakeven.gateway.serve.parts import HEALTHY_S, Backoff, PartsKeeper
from breakeven.gateway.shared.block import Shape, SharedBlock
from breakeven.gateway.shared.layout import Process, Rows

NOBODY = Rows({}, {}, {}, {})


class Clock:
    """Time that passes only where somebody sleeps, and stands still for good after `until_s`."""

    def __init__(self, until_s: float) -> None:
        self.now_s, self.until_s = 0.0, until_s
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.now_s + seconds > self.until_s:
            await asyncio.Event().wait()
        self.now_s += seconds
        await asyncio.sleep(0)


def test_waits_double_up_to_a_bound_and_health_makes_them_forget() -> None:
    backoff = Backoff(first_s=0.5, most_s=8.0, healthy_s=10.0)
    assert [backoff.failed(0.1) for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert backoff.failed(11.0) == 0.5
    assert [Backoff(free=2).failed(0.0)] == [0.0]
    assert Backoff(failures=10**6).failed(0.0) == 30.0


async def _turns(until: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if until():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def test_a_part_that_fails_is_tried_again_alone_and_said_once() -> None:
    clock, said, lives = Clock(until_s=100.0), [], []
    parts = PartsKeeper(said.append, clock, clock.sleep)
    ticks = 0

    async def other() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def saver() -> None:
        lives.append(clock.now_s)
        if len(lives) <= 4:
            raise UserError("budgets.json cannot be written (No space left on device)")
        await asyncio.Event().wait()

    parts.start("other", other)
    parts.start("budgets", saver, most_s=2.0)
    await _turns(lambda: len(lives) == 5)
    assert clock.slept == [0.5, 1.0, 2.0, 2.0]
    assert len(said) == 1
    assert "No space left" in said[0]
    states = {state.name: state for state in parts.states()}
    assert (states["budgets"].state, states["budgets"].restarts) == ("running", 4)
    assert "No space left" in states["budgets"].trouble
    assert (states["other"].restarts, states["other"].trouble) == (0, "")
    assert [line for line in parts.warnings() if line.startswith("budgets: ")]
    before = ticks
    clock.now_s += HEALTHY_S
    assert parts.warnings() == []
    await _turns(lambda: ticks > before)
    await parts.stop(but=("other",))
    assert [state.name for state in parts.states()] == ["other"]
    await parts.stop()
    assert parts.states() == []


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ImportError("no redis"), "ImportError: no redis"),
        (ExceptionGroup("tasks", [ValueError("\x1b[2J" + "x" * 9000)]), "ValueError: ?[2Jxxx"),
        (asyncio.CancelledError(), "cancelled from within"),
        (None, "ended by itself"),
    ],
)
async def test_whatever_ends_a_part_it_waits_and_comes_back(raised: BaseException | None, told: str) -> None:
    clock, said, lives = Clock(until_s=1.0), [], []
    parts = PartsKeeper(said.append, clock, clock.sleep)

    async def work() -> None:
        lives.append(1)
        if raised is not None:
            raise raised

    parts.start("it", work)
    await _turns(lambda: len(clock.slept) == 2)
    [state] = parts.states()
    assert state.state == "waiting"
    assert told in state.trouble
    assert len(state.trouble) <= 300
    assert state.trouble.isprintable()
    assert state.next_try_s == pytest.approx(1.0)
    assert len(lives) == 2
    assert len(said) == 1
    await parts.stop()


def test_a_place_is_tried_at_once_and_then_ever_later() -> None:
    owed = Owed()
    now_s, waits = 0.0, []
    for _ in range(5):
        waits.append(owed.owe(0, 0.1, now_s))
        now_s += waits[-1]
        assert owed.due(now_s) == [0]
        assert owed.due(now_s) == []
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0]
    assert owed.owe(WATCHER, 0.1, now_s) == 0.0, "each place has its own patience"
    assert owed.owe(0, 60.0, now_s) == 0.0, "who served for a while is forgiven"


@pytest.fixture
def family() -> Children:
    return Children(SharedBlock(Shape(workers=4, backends=1, keys=1, models=1, experiments=1)))


def test_a_heart_that_stands_still_is_killed_and_others_are_not(
    family: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(children_module, "kill", lambda pid, number: killed.append((pid, number)))
    for row in (1, 2, 3):
        family.of[row] = children_module.Child(row, row, row - 1, 0, NOBODY, 0.0)
    beat = family.block.worker.put
    beat(2, 0, Process.BEAT_NS, 7)
    now_s = 10.0
    for look in range(STILL):
        beat(1, 0, Process.BEAT_NS, look + 1)
        assert family.kill_hung(now_s) == []
        assert family.kill_hung(now_s + LOOK_S / 2) == [], "looking twice is no second look"
        now_s += LOOK_S
    assert [child.pid for child in family.kill_hung(now_s)] == [2]
    assert killed == [(2, signal.SIGKILL)]
    # The third has not beaten yet: it may still be starting.
    for _ in range(STILL_NEW):
        now_s += LOOK_S
        beat(1, 0, Process.BEAT_NS, round(now_s))
        found = family.kill_hung(now_s)
        if found:
            break
    assert [child.pid for child in found] == [3]


def test_a_child_ends_with_its_status_and_says_why(family: Children, capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise UserError("it\x1b[2J cannot")

    pids = [family.fork(row, row - 1, 0, NOBODY, run).pid for row, run in ((1, lambda: 3), (2, fails))]
    ended: dict[int, int] = {}
    until_s = time.monotonic() + 20
    while len(ended) < 2 and time.monotonic() < until_s:
        ended |= {child.pid: status for child, status in family.reap()}
        time.sleep(0.01)
    assert [ended[pid] for pid in pids] == [3, 1]
    assert capfd.readouterr().err == "breakeven: it?[2J cannot\n"
    assert family.free_row() == 1


def test_what_children_log_drives_no_terminal(family: Children, capfd: pytest.CaptureFixture[str]) -> None:
    def logs() -> int:
        try:
            raise ValueError("\x1b[2J" + "x" * 10**6)
        except ValueError:
            logging.getLogger("breakeven.gateway.edge").exception("a request to %s", "/\x9b31m")
        raise RuntimeError("\x1b]0;owned\x07")

    pid = family.fork(1, 0, 0, NOBODY, logs).pid
    os.waitpid(pid, 0)
    said = capfd.readouterr().err
    assert all(line.isprintable() for line in said.split("\n"))
    assert "Traceback" in said
    assert "RuntimeError: ?]0;owned?" in said
    assert len(said) < 20_000


def test_reading_has_a_limit_and_leaves_nobody_behind() -> None:
    def never() -> GatewayPlan:
        time.sleep(600)
        raise AssertionError

    began_s = time.monotonic()
    reading = PlanReading(never)
    assert not reading.step()
    with pytest.raises(BreakevenError, match="took longer than"):
        reading.result(0.2)
    assert time.monotonic() - began_s < 300, "the file takes ten minutes"
    with pytest.raises(ChildProcessError):
        os.waitpid(reading._child, os.WNOHANG)


def test_a_file_that_changed_while_it_was_read_is_read_anew_and_asking_puts_off_nothing_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Instant] = []

    class Instant:
        began_s = 0.0
        given_up = False

        def __init__(self, read: object) -> None:
            made.append(self)

        def step(self) -> bool:
            return True

        def give_up(self) -> None:
            self.given_up = True

    monkeypatch.setattr(loading_module, "PlanReading", Instant)
    rereading = Rereading(lambda: GatewayPlan(path=None, backends=()), 1e9)
    assert rereading.come() is None
    rereading.ask()
    assert rereading.come() is made[0]
    assert rereading.come() is None
    came = []
    for _ in range(8):  # asked for ever again, also while it is being read
        rereading.ask()
        rereading.ask()
        came.append(rereading.come())
    assert [one is not None for one in came] == [False, True] * 4
    assert not any(one.given_up for one in came if one is not None)  # type: ignore[attr-defined]
    last = [rereading.come() for _ in range(3)]
    assert made[-1] in last, "what was asked for last is read last"


def test_a_reader_that_dies_is_told_in_words() -> None:
    def dies() -> GatewayPlan:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(BreakevenError, match="without a word"):
        PlanReading(dies).result(20.0)


@pytest.mark.skipif(sys.platform == "win32", reason="the gateway does not run there")
def test_no_room_for_a_reader_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(BreakevenError, match="no process could be started"):
        PlanReading(lambda: GatewayPlan(path=None, backends=()))
