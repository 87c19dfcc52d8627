"""The small parts of a run under load, each by itself."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.measure.events import RequestDone
from breakeven.measure.player.clocks import Alarm
from breakeven.measure.player.job import Job, Outstanding, followers, parts
from breakeven.measure.player.tally import (
    FLUSH_BYTES,
    AnswerDelays,
    Batch,
    LiveWindow,
    Recorder,
    mean_per_s,
    peak_per_s,
)
from breakeven.wire.loop import new_loop
from tests.load_fixtures import PlainBodies, backend_at, closed_schedule, schedule_of

LOOPS = [asyncio.new_event_loop, new_loop]


def job_of(schedule: object, **options: object) -> Job:
    return Job(
        backend=backend_at("http://127.0.0.1:9"),
        schedule=schedule,  # type: ignore[arg-type]
        bodies=PlainBodies(schedule),  # type: ignore[arg-type]
        block="b",
        drain_s=1.0,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("make_loop", LOOPS)
def test_an_alarm_never_rings_early_and_rings_for_what_was_set_last(
    make_loop: Callable[[], asyncio.AbstractEventLoop], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exact:
        monkeypatch.setattr(sys, "platform", "elsewhere")

    async def run() -> list[int]:
        rung: list[int] = []
        more = asyncio.Event()

        def ring() -> None:
            rung.append(time.monotonic_ns())
            more.set()

        alarm = Alarm(asyncio.get_running_loop(), ring)
        assert alarm.exact == (exact and sys.platform == "linux")
        start_ns = time.monotonic_ns()
        alarm.set(start_ns + 3_600_000_000_000)
        alarm.set(start_ns + 20_000_000)
        await more.wait()
        more.clear()
        alarm.set(0)  # long past: at once
        await more.wait()
        alarm.set(time.monotonic_ns() + 10_000_000)
        alarm.close()
        await asyncio.sleep(0.03)
        return [at_ns - start_ns for at_ns in rung]

    with asyncio.Runner(loop_factory=make_loop) as runner:
        rung_ns = runner.run(run())
    assert len(rung_ns) == 2
    # The loop's own timer may round down to its clock's resolution, a timerfd not at all.
    assert rung_ns[0] >= (20_000_000 if exact else 18_000_000)


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60))
def test_the_peak_is_the_most_within_any_second(due_s: list[float]) -> None:
    schedule = schedule_of(sorted(due_s))
    due_ns = schedule.due_ns_N
    brute = max(int(((due_ns >= at) & (due_ns < at + 10**9)).sum()) for at in due_ns)
    assert peak_per_s(schedule) == brute
    assert mean_per_s(schedule) <= len(due_s)


def test_a_closed_loop_offers_no_rate() -> None:
    assert peak_per_s(closed_schedule(5, 2)) == mean_per_s(closed_schedule(5, 2)) == 0.0


def test_the_window_forgets_what_is_old_and_what_does_not_fit() -> None:
    window = LiveWindow(capacity=4)
    assert window.percentile("ttft", 50, 0) is None
    window.add(AnswerDelays(i * 10**9, float(i), None if i % 2 else 0.5, 0.0) for i in range(6))
    assert window.percentile("ttft", 0, 5 * 10**9) == 2.0  # the two oldest made room
    assert window.percentile("ttft", 100, 5 * 10**9) == 5.0
    assert window.percentile("tpot", 50, 5 * 10**9) == 0.5
    assert window.percentile("ttft", 0, 34 * 10**9) == 4.0  # of the last 30 s
    assert window.percentile("ttft", 50, 60 * 10**9) is None


def test_rates_are_of_the_last_seconds_not_of_the_whole_run() -> None:
    window = LiveWindow()
    assert window.rates(0, 0, 0) == (None, None)
    for second in range(1, 101):
        rates = window.rates(second * 10**9, 5 * min(second, 50), 20 * min(second, 50))
        if second <= 50:
            assert rates == (5.0, 20.0)
    assert rates == (0.0, 0.0)


def request(index: int, **fields: object) -> RequestDone:
    return RequestDone(
        block="b", model="m", stream=index, prompt_tokens=1, output_tokens=3, due_ns=0, sent_ns=5, done_ns=40,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_batch_tells_all_that_happened_since_the_one_before() -> None:
    batches: list[Batch] = []
    recorder = Recorder(batches.append, worker=3, track=True)
    recorder.flush()
    assert batches == []
    recorder.begun(0, 7)
    recorder.begun(1, 9)
    recorder.done(request(0, first_ns=10, last_ns=30, chunk_ns=[10, 30]))
    recorder.done(request(1, error="reset"))
    recorder.flush()
    (batch,) = batches
    assert (batch.worker, batch.issued, batch.ended_n, batch.answered, batch.events) == (3, 2, 2, 1, 2)
    assert (batch.errors, batch.begun, batch.ended, batch.last_due_ns) == ({"reset": 1}, [(0, 7), (1, 9)], [0, 1], 9)
    assert batch.delays == [AnswerDelays(40, 10e-9, 10e-9, 5e-9)]
    assert batch.lines.count(b"\n") == 2


def test_a_batch_is_handed_on_when_it_has_grown() -> None:
    batches: list[Batch] = []
    recorder = Recorder(batches.append)
    for index in range(2_000):
        recorder.done(request(index))
    assert len(batches) >= 2
    assert all(len(batch.lines) < FLUSH_BYTES + 1_000 for batch in batches)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.integers(1, 5))
def test_parts_share_no_request_and_miss_none(turns: list[int], workers: int) -> None:
    session = [s for s, n in enumerate(turns) for _ in range(n)]
    turn = [t for n in turns for t in range(n)]
    schedule = schedule_of([0.0 if t == 0 else None for t in turn], session=session, turn=turn)
    rows = [job.rows() for job in parts(job_of(schedule), workers)]
    assert sorted(np.concatenate(rows)) == list(range(len(schedule)))
    after_N = followers(schedule)
    for part in rows:
        assert {int(after_N[row]) for row in part} - {-1} <= set(map(int, part))
    assert [int(a) for a in after_N] == [
        i + 1 if i + 1 < len(turn) and turn[i + 1] > 0 else -1 for i in range(len(turn))
    ]
    assert job_of(schedule).most_workers() == len(turns)


def test_what_a_lost_worker_owes_in_an_open_loop_is_all_it_had_not_finished() -> None:
    schedule = schedule_of([i * 1e-9 for i in range(10)])
    outstanding = Outstanding(parts(job_of(schedule), 2)[1])  # rows 1, 3, 5, 7, 9
    outstanding.add(Batch(worker=1, begun=[(1, 101), (3, 103)], ended=[1]))
    lost = list(outstanding.lost(start_ns=100, now_ns=105))
    assert [(begun, done.stream, done.due_ns, done.done_ns) for begun, done in lost] == [
        (True, 3, 103, 105),
        (False, 5, 105, 105),
        (False, 7, 107, 107),
        (False, 9, 109, 109),
    ]


def test_what_a_lost_worker_owes_in_a_closed_loop_is_what_was_in_flight() -> None:
    outstanding = Outstanding(parts(job_of(closed_schedule(4, 2, requests=9)), 2)[0])
    outstanding.add(Batch(worker=0, begun=[(0, 100), (2, 110)], ended=[0]))
    outstanding.add(Batch(worker=0, begun=[(4, 120)], ended=[2]))
    assert [(done.stream, done.due_ns) for _, done in outstanding.lost(100, 130)] == [(4, 120)]
