"""Several processes play one schedule: the same requests as one process would send, and no process is mourned long."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from breakeven.errors import BreakevenError
from breakeven.measure.events import LoadDone, LoadWorker, RequestDone, read_events
from breakeven.measure.player.tally import Batch
from breakeven.measure.player.worker import WorkerNews, frame
from breakeven.measure.progress import LoadState
from tests.load_fixtures import closed_schedule, plain_server, play, schedule_of


def worker_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        try:
            if "breakeven.measure.player.worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def test_two_processes_send_what_one_would(tmp_path: Path) -> None:
    due_s = list(np.sort(np.random.default_rng(3).uniform(0, 1, 120)))
    schedule = schedule_of([*due_s, None, None], session=[-1] * 119 + [4] * 3, turn=[0] * 120 + [1, 2])
    states: list[LoadState] = []
    with plain_server(wait_s=0.005) as thread:
        alone = play(thread.server.url, schedule, tmp_path / "one.jsonl")
        both = play(thread.server.url, schedule, tmp_path / "two.jsonl", processes=2, on_state=states.append)
    one, two = alone.by_index(), both.by_index()
    assert sorted(one) == sorted(two) == list(range(122))
    for i in range(120):
        assert one[i].due_ns - alone.started.at_ns == two[i].due_ns - both.started.at_ns
    assert all(r.error is None and r.sent_ns >= r.due_ns for r in two.values())
    assert {r.worker for r in two.values()} == {0, 1}
    assert len({two[i].worker for i in (119, 120, 121)}) == 1
    assert two[121].due_ns == two[120].done_ns
    assert both.started.processes == 2
    assert [e.worker for e in both.events if isinstance(e, LoadWorker)] == [0, 1]
    assert states[-1].issued > 0
    assert both.done.ok
    assert worker_processes() == []


def test_the_streams_of_a_closed_loop_are_shared_out(tmp_path: Path) -> None:
    schedule = closed_schedule(8, 5, requests=60)
    with plain_server(wait_s=0.1) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl", processes=2)
        assert thread.server.most_in_flight == 5
    assert len(played.by_index()) == 60
    at_start = [r.worker for r in played.requests if r.due_ns == played.started.at_ns]
    assert sorted(at_start) == [0, 0, 0, 1, 1]


def test_a_lost_worker_is_recorded_and_the_other_goes_on(tmp_path: Path) -> None:
    schedule = schedule_of([i * 0.02 for i in range(150)])
    killed: list[int] = []

    def kill() -> None:
        victim = worker_processes()[1]
        killed.append(victim.pid)
        os.kill(victim.pid, signal.SIGKILL)

    def on_state(state: LoadState) -> None:
        if state.issued > 30 and not killed:
            kill()

    with plain_server(wait_s=0.05) as thread:
        played = play(thread.server.url, schedule, tmp_path / "events.jsonl", processes=2, on_state=on_state)
    requests = played.by_index()
    assert sorted(requests) == list(range(150))
    lost = [r for r in requests.values() if r.error is not None]
    assert {(r.error, r.detail, r.worker) for r in lost} == {("cancelled", "worker lost", 1)}
    assert 0 < len(lost) < 75
    start_ns = played.started.at_ns
    assert all(r.due_ns == start_ns + schedule.due_ns_N[r.stream] for r in requests.values())
    assert any(f"{len(lost)} requests were lost" in flag for flag in played.done.flagged)
    assert played.done.because == "finished"


def test_all_workers_lost_is_a_failure(tmp_path: Path) -> None:
    schedule = closed_schedule(50, 4, duration_s=20)

    def on_state(state: LoadState) -> None:
        if state.issued > 4:
            # One that ends while it is looked for is as dead; the next round sees to the others.
            with suppress(OSError):
                for process in worker_processes():
                    process.kill()

    path = tmp_path / "events.jsonl"
    with plain_server(wait_s=0.05) as thread, pytest.raises(BreakevenError, match="every worker process was lost"):
        play(thread.server.url, schedule, path, processes=2, on_state=on_state)
    done = read_events(path)[-1]
    assert isinstance(done, LoadDone)
    assert (done.ok, done.because) == (False, "failed")


def test_stop_reaches_every_process(tmp_path: Path) -> None:
    stop = threading.Event()
    schedule = schedule_of([i * 0.02 for i in range(1000)])
    path = tmp_path / "events.jsonl"
    with plain_server(wait_s=0.3) as thread, pytest.raises(KeyboardInterrupt):
        play(
            thread.server.url,
            schedule,
            path,
            processes=2,
            stop=stop,
            on_state=lambda state: stop.set() if state.issued > 40 else None,
        )
    requests = [e for e in read_events(path) if isinstance(e, RequestDone)]
    cancelled = {r.worker for r in requests if r.detail == "the run was interrupted"}
    assert cancelled == {0, 1}
    assert worker_processes() == []


def test_a_message_survives_its_pipe() -> None:
    import msgspec

    batch = Batch(worker=1, issued=2, lines=b"a\n" * 3, begun=[(1, 2)], ended=[3], errors={"reset": 1})
    news = WorkerNews(msgspec.Raw(msgspec.msgpack.encode(batch)))
    decoded = msgspec.msgpack.decode(frame(news)[4:], type=WorkerNews)
    assert msgspec.msgpack.decode(decoded.batch, type=Batch) == batch
