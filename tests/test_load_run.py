"""A schedule played against a real server over real sockets: what was planned, and what the log says of it."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from breakeven.errors import BreakevenError, EngineError, UserError
from breakeven.measure.events import (
    ClientCeiling,
    EnergySample,
    EventWriter,
    LoadDone,
    LoadStarted,
    NoiseSample,
    RequestDone,
    read_events,
)
from breakeven.measure.player import watch as load_watch
from breakeven.measure.player.run import run_load
from breakeven.measure.progress import LoadState
from breakeven.runs.load import LoadOptions, _patience_s
from breakeven.traffic.workload import Arrivals, Slo, Workload
from tests.load_fixtures import MS, PlainBodies, Played, backend_at, closed_schedule, plain_server, play, schedule_of


def test_every_request_is_sent_once_and_keeps_its_due_time(tmp_path: Path) -> None:
    due_s = list(np.round(np.sort(np.random.default_rng(1).uniform(0, 1, 200)), 6))
    schedule = schedule_of(due_s)
    with plain_server(wait_s=0.01) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
        assert sorted(thread.server.indices) == list(range(200))
    requests = played.by_index()
    start_ns = played.started.at_ns
    assert [requests[i].due_ns - start_ns for i in range(200)] == list(schedule.due_ns_N)
    assert all(r.error is None and r.output_tokens == 3 and r.sent_ns >= r.due_ns for r in requests.values())
    assert played.done.ok
    assert played.done.because == "finished"
    assert played.done.arrivals_end_ns == start_ns + schedule.due_ns_N.max()
    assert isinstance(played.events[0], LoadStarted)
    assert isinstance(played.events[-1], LoadDone)
    assert [e.block for e in played.events if isinstance(e, NoiseSample)] == ["b"]


def test_a_stall_of_the_server_is_in_the_delays_from_the_due_time(tmp_path: Path) -> None:
    """Requests keep coming every 20 ms while nobody is answered: each waits for what was left of the stall."""
    # The stall begins with whichever request comes as the sixth, and ends before the last is due, however late that is.
    schedule = schedule_of([i * 0.02 for i in range(150)], output=1)
    with plain_server(stall_at=5, stall_s=1.0) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
        begin_ns, end_ns = thread.server.stalled_ns
    requests = played.by_index()
    caught = [r for r in requests.values() if begin_ns <= r.due_ns < end_ns]
    assert 45 <= len(caught) <= 51  # 1 s of one every 20 ms
    for request in caught:
        assert request.first_ns is not None
        assert request.first_ns >= end_ns - 2 * MS
        assert request.first_ns - request.due_ns >= end_ns - request.due_ns - 2 * MS
    assert sum((r.first_ns or 0) - r.due_ns >= 500 * MS for r in requests.values()) >= 24
    assert all(r.error is None for r in requests.values())


def test_late_requests_are_sent_at_once_and_none_is_left_out(tmp_path: Path) -> None:
    schedule = schedule_of([0.0] * 300, output=1)
    with plain_server(wait_s=2.0) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
        assert thread.server.most_in_flight > 100
    assert {r.due_ns for r in played.requests} == {played.started.at_ns}
    assert len(played.by_index()) == 300


def test_a_closed_loop_keeps_its_number_of_streams(tmp_path: Path) -> None:
    schedule = closed_schedule(7, 4, requests=41)
    with plain_server(wait_s=0.01) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
        assert thread.server.most_in_flight == 4
    assert sorted(r.stream for r in played.requests) == list(range(41))
    ordered = sorted(played.requests, key=lambda r: r.due_ns)
    assert all(r.due_ns == played.started.at_ns for r in ordered[:4])
    # Every later request became due with somebody's answer.
    answers = {r.done_ns for r in played.requests}
    assert all(r.due_ns in answers for r in ordered[4:])


def test_a_closed_loop_thinks_and_ends_with_its_time(tmp_path: Path) -> None:
    schedule = closed_schedule(256, 3, think_s=0.05, duration_s=2.0)
    with plain_server(wait_s=0.01) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
    start_ns = played.started.at_ns
    answers = {r.done_ns for r in played.requests}
    later = [r for r in played.requests if r.due_ns > start_ns]
    assert len(later) >= 6
    assert all(r.due_ns - 50 * MS in answers for r in later)
    assert all(r.due_ns < start_ns + 2000 * MS for r in played.requests)


def test_turns_follow_their_answers_and_a_failed_turn_ends_its_conversation(tmp_path: Path) -> None:
    schedule = schedule_of(
        [0.0, None, None, 0.01, None, None],
        session=[0, 0, 0, 1, 1, 1],
        turn=[0, 1, 2, 0, 1, 2],
        think_s=0.03,
    )
    with plain_server(wait_s=0.01, fail=frozenset({4})) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
        assert 5 not in thread.server.indices
    r = played.by_index()
    assert sorted(r) == list(range(6))
    assert r[1].due_ns == r[0].done_ns + 30 * MS
    assert r[2].due_ns == r[1].done_ns + 30 * MS
    assert (r[4].error, r[5].error) == ("http_500", "cancelled")
    assert "earlier turn" in (r[5].detail or "")
    assert [(r[i].session, r[i].turn) for i in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert played.done.ok


def test_what_never_ends_is_cancelled_after_the_drain(tmp_path: Path) -> None:
    schedule = schedule_of([0.0, 0.01, 0.02, None], session=[-1, 5, -1, 5], turn=[0, 0, 0, 1])
    with plain_server(hang=frozenset({1})) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl", drain_s=2.0)
    r = played.by_index()
    assert [r[i].error for i in range(4)] == [None, "cancelled", None, "cancelled"]
    assert r[1].detail == r[3].detail == "unfinished when the run ended"
    assert played.done.ok
    assert played.done.because == "finished"


def test_the_warm_up_is_marked_and_the_rest_is_not(tmp_path: Path) -> None:
    workload = Workload(arrivals=Arrivals(process="constant", rate_per_s=50), warm_up_s=0.2)
    schedule = schedule_of([i / 50 for i in range(20)], workload=workload)
    with plain_server() as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
    assert played.started.measure_from_ns == played.started.at_ns + 200 * MS
    assert all(r.warm == (r.due_ns < played.started.measure_from_ns) for r in played.requests)
    assert sum(r.warm for r in played.requests) == 10


def test_an_endpoint_that_dies_and_comes_back_is_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    schedule = schedule_of([i * 0.01 for i in range(500)])
    with plain_server(wait_s=0.005) as thread:
        todo = [(80, thread.up), (30, thread.down)]

        def on_state(state: LoadState) -> None:
            if todo and state.issued > todo[-1][0]:
                todo.pop()[1]()

        played = play(thread.server.url, schedule, tmp_path / "events.jsonl", on_state=on_state)
    requests = played.by_index()
    assert sorted(requests) == list(range(500))
    errors = {r.error for r in requests.values()} - {None}
    assert "unreachable" in errors
    assert errors <= {"unreachable", "reset"}
    assert requests[0].error is None
    assert requests[499].error is None
    assert played.done.ok


def test_a_dead_endpoint_does_not_make_a_closed_loop_spin(tmp_path: Path) -> None:
    schedule = closed_schedule(50, 2, duration_s=1.0)
    played = play("http://127.0.0.1:1", schedule, tmp_path / "events.jsonl")
    assert {r.error for r in played.requests} == {"unreachable"}
    # 2 streams, one try each 200 ms at most
    assert 2 <= len(played.requests) <= 12


def _stopped(tmp_path: Path, **options: object) -> Played:
    schedule = schedule_of([i * 0.02 for i in range(500)])
    path = tmp_path / "events.jsonl"
    with plain_server(wait_s=0.3) as thread, pytest.raises(KeyboardInterrupt):
        play(thread.server.url, schedule, path, **options)
    events = read_events(path)
    done = events[-1]
    assert isinstance(done, LoadDone)
    return Played(done, events)


def test_stop_cancels_what_is_in_flight_and_brings_the_log_to_an_end(tmp_path: Path) -> None:
    stop = threading.Event()
    played = _stopped(tmp_path, stop=stop, on_state=lambda state: stop.set() if state.issued > 20 else None)
    assert (played.done.ok, played.done.because) == (False, "interrupted")
    requests = played.by_index()
    assert sorted(requests) == list(range(len(requests)))
    assert len(requests) < 400
    cancelled = [r for r in requests.values() if r.error == "cancelled"]
    assert cancelled
    assert {r.detail for r in cancelled} == {"the run was interrupted"}


def test_ctrl_c_does_the_same(tmp_path: Path) -> None:
    presses = [signal.SIGINT]

    def on_state(state: LoadState) -> None:
        if presses and state.issued > 20:
            os.kill(os.getpid(), presses.pop())

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        played = _stopped(tmp_path, on_state=on_state)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (played.done.ok, played.done.because) == (False, "interrupted")
    assert any(r.error == "cancelled" for r in played.requests)


def test_our_own_engine_dying_ends_the_run_and_is_told(tmp_path: Path) -> None:
    looks = 0

    def alive() -> None:
        nonlocal looks
        looks += 1
        if looks > 1:
            raise EngineError("the engine has died; its last words")

    schedule = schedule_of([i * 0.02 for i in range(500)])
    path = tmp_path / "events.jsonl"
    with plain_server() as thread, pytest.raises(EngineError, match="last words"):
        play(thread.server.url, schedule, path, alive=alive)
    done = read_events(path)[-1]
    assert isinstance(done, LoadDone)
    assert (done.ok, done.because) == (False, "failed")


def test_a_disk_that_fills_up_ends_the_run_and_leaves_whole_lines(tmp_path: Path) -> None:
    schedule = schedule_of([i * 0.01 for i in range(400)])
    path = tmp_path / "events.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with plain_server() as thread:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(BreakevenError, match="could not write"):
                play(thread.server.url, schedule, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(thread.server.indices) < 400
    kept = path.read_bytes()
    assert kept.endswith(b"\n")
    requests = [e for e in read_events(path) if isinstance(e, RequestDone)]
    assert len(requests) > 10


def test_a_moved_wall_clock_is_reported_and_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_ns, moved = time.time_ns, threading.Event()
    monkeypatch.setattr(time, "time_ns", lambda: true_ns() + (3600 * 10**9 if moved.is_set() else 0))
    schedule = schedule_of([i * 0.1 for i in range(20)])
    with plain_server() as thread:
        played = play(
            thread.server.url,
            schedule,
            tmp_path / "events.jsonl",
            on_state=lambda state: moved.set() if state.issued > 5 else None,
        )
    assert played.done.wall_step_s == pytest.approx(3600, abs=1)
    for request in played.requests:
        assert request.due_ns <= request.sent_ns <= (request.first_ns or 0) <= request.done_ns
        assert request.done_ns - request.due_ns < 1_800_000 * MS, "half of what the clock was moved by"


def test_a_clock_left_alone_is_not_reported(tmp_path: Path) -> None:
    clock = load_watch.WallClock()
    clock.look()
    assert clock.step_s is None


def test_more_than_the_client_can_drive_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    schedule = schedule_of([i * 0.001 for i in range(500)], output=10)
    with plain_server() as thread:
        slow = ClientCeiling(requests_per_s=400, stream_events_per_s=1e6, processes=1)
        with pytest.raises(UserError, match=r"500 requests within one second.*400 a second.*--processes"):
            play(thread.server.url, schedule, tmp_path / "a.jsonl", ceiling=slow)
        deaf = ClientCeiling(requests_per_s=1e4, stream_events_per_s=4_000, processes=2)
        with pytest.raises(UserError, match=r"5000 tokens a second.*4000 stream events.*more than 2"):
            play(thread.server.url, schedule, tmp_path / "b.jsonl", ceiling=deaf)
        assert thread.server.indices == []
    assert read_events(tmp_path / "a.jsonl") == []


def test_whoever_watches_is_told_what_happens(tmp_path: Path) -> None:
    class Counter:
        rail = "test"
        joules = 0.0

        def read_joules(self) -> float:
            self.joules += 1
            return self.joules

        def close(self) -> None: ...

    states: list[LoadState] = []
    schedule = schedule_of([i * 0.02 for i in range(150)])
    ceiling = ClientCeiling(requests_per_s=1000, stream_events_per_s=10_000, processes=1)
    with plain_server(wait_s=0.02, gap_s=0.01) as thread:
        played = play(
            thread.server.url,
            schedule,
            tmp_path / "events.jsonl",
            on_state=states.append,
            energy=Counter(),
            ceiling=ceiling,
        )
    assert len(states) >= 3
    last = states[-1]
    assert (last.model, last.load, last.errors) == ("plain", "test", {})
    assert last.of_s == pytest.approx(2.98)
    assert last.issued >= last.answered > 30
    assert last.ttft_p50_s is not None
    assert last.ttft_p50_s >= 0.02
    assert last.tpot_p50_s is not None
    assert last.tpot_p50_s >= 0.01
    assert last.offered_per_s == pytest.approx(50, rel=0.2)
    assert last.headroom is not None
    joules = [e.joules for e in played.events if isinstance(e, EnergySample)]
    assert len(joules) >= 3
    assert joules == sorted(joules)


def test_a_log_that_cannot_be_written_leaves_the_writer_usable(tmp_path: Path) -> None:
    """Half a line is taken back, so that what is appended later stands on a line of its own."""
    path = tmp_path / "events.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    done = LoadDone(block="b", ok=True, at_ns=1, arrivals_end_ns=1)
    with EventWriter(path) as log:
        log.append(done)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            with pytest.raises(BreakevenError):
                log.append_encoded(b"x" * 200 + b"\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.append(done)
    assert read_events(path) == [done, done]


def test_streams_of_a_closed_loop_hold_whole_conversations(tmp_path: Path) -> None:
    workload = Workload(arrivals=Arrivals(process="closed", concurrency=2), requests=14)
    schedule = schedule_of([None] * 6, session=[0, 0, 0, 1, 1, 1], turn=[0, 1, 2] * 2, workload=workload)
    with plain_server(wait_s=0.01) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl")
        assert thread.server.most_in_flight == 2
    requests = played.by_index()
    assert len(requests) == 14
    conversations: dict[int, list[RequestDone]] = {}
    for request in requests.values():
        assert request.session is not None
        conversations.setdefault(request.session, []).append(request)
    # The shapes repeat beyond the last row; the conversations do not.
    assert len(conversations) > 2
    for turns in conversations.values():
        turns.sort(key=lambda r: r.turn)
        assert [r.turn for r in turns] == list(range(len(turns)))
        assert all(b.due_ns == a.done_ns for a, b in itertools.pairwise(turns))


def test_a_name_of_the_study_s_own_does_not_reach_the_server(tmp_path: Path) -> None:
    schedule = schedule_of([0.0])
    with plain_server() as thread, EventWriter(tmp_path / "events.jsonl") as log:
        run_load(
            backend_at(thread.server.url),
            schedule,
            PlainBodies(schedule),  # type: ignore[arg-type]
            log,
            block="b",
            model="my name for it",
            load="test",
            schedule_file="schedule.jsonl",
        )
    models = {e.model for e in read_events(tmp_path / "events.jsonl") if isinstance(e, LoadStarted | RequestDone)}
    assert models == {"my name for it"}


@pytest.mark.parametrize("where", ["body", "state"])
def test_a_fault_of_our_own_ends_the_run_and_what_was_in_flight_is_in_the_log(tmp_path: Path, where: str) -> None:
    class Bodies(PlainBodies):
        def body(self, i: int) -> bytes:
            if i == 30 and where == "body":
                raise ValueError("no such prompt")
            return super().body(i)

    def on_state(state: LoadState) -> None:
        if state.issued > 10 and where == "state":
            raise ValueError("no such screen")

    schedule = schedule_of([i * 0.02 for i in range(300)])
    path = tmp_path / "events.jsonl"
    with plain_server(wait_s=0.3) as thread, pytest.raises(ValueError, match="no such"):
        play(thread.server.url, schedule, path, bodies=Bodies(schedule), on_state=on_state)
    events = read_events(path)
    done = events[-1]
    assert isinstance(done, LoadDone)
    assert (done.ok, done.because) == (False, "failed")
    requests = Played(done, events).by_index()
    assert sorted(requests) == list(range(len(requests)))
    assert {(r.error, r.detail) for r in requests.values() if r.error} == {("cancelled", "the run failed")}


@pytest.mark.parametrize(
    ("slo", "seconds"),
    [
        (None, 0.0),
        (Slo(e2e_s=90.0, tpot_s=5.0), 90.0),
        (Slo(ttft_s=1.0, tpot_s=0.5), 1.0 + 4 * 0.5),
        (Slo(itl_s=2.0), 4 * 2.0),
        (Slo(ttft_s=5.0), 5.0),
    ],
)
def test_a_study_waits_as_long_as_its_slo_lets_an_answer_take(slo: Slo | None, seconds: float) -> None:
    assert _patience_s(slo, schedule_of([0.0, 1.0], output=4)) == seconds


def test_a_wait_that_is_negative_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match=r"LoadOptions\.drain_s"):
        LoadOptions(drain_s=-1.0).check()
