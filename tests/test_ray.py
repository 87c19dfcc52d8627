"""Ray workers play one schedule as one process would, on one clock."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import BreakevenError, UserError
from breakeven.measure.events import LoadWorker, RequestDone
from breakeven.measure.player.clocks import measure_offset, offset_of
from breakeven.measure.player.tally import shifted
from breakeven.measure.progress import LoadState
from breakeven.traffic.draw import draw
from breakeven.traffic.workload import Arrivals, Length, Workload
from tests.load_fixtures import plain_server, play, schedule_of


@given(
    st.integers(-(10**15), 10**15),
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**7), st.integers(0, 10**7)), min_size=1, max_size=20),
)
def test_the_true_offset_lies_within_the_uncertainty(offset_ns: int, pings: list[tuple[int, int, int]]) -> None:
    """Whatever the two ways of a ping take, and however unequal they are."""
    seen = [(at, at + there - offset_ns, at + there + back) for at, there, back in pings]
    found = offset_of(seen)
    assert abs(found.offset_ns - offset_ns) <= found.uncertainty_ns
    assert found.uncertainty_ns == min((there + back + 1) // 2 for _, there, back in pings)


def test_a_clock_that_cannot_be_read_well_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10**12, 12_000_000))
    monkeypatch.setattr("time.monotonic_ns", lambda: next(now))
    with pytest.raises(BreakevenError, match=r"worker 3 is known only to \+-6.0 ms"):
        measure_offset(lambda: 0, "worker 3")


def test_every_time_is_put_onto_the_other_clock_and_nothing_else() -> None:
    done = RequestDone(
        block="b", model="m", stream=1, prompt_tokens=2, output_tokens=2, due_ns=10, sent_ns=11, done_ns=20,
        headers_ns=12, first_ns=13, last_ns=19, chunk_ns=[13, 19], issued_ns=10, retry_after_s=1.5,
    )  # fmt: skip
    moved = shifted(done, 100)
    assert (moved.due_ns, moved.sent_ns, moved.done_ns, moved.headers_ns) == (110, 111, 120, 112)
    assert (moved.first_ns, moved.last_ns, moved.chunk_ns, moved.issued_ns) == (113, 119, [113, 119], 110)
    assert shifted(moved, -100) == done
    assert shifted(RequestDone(**{f: getattr(done, f) for f in REQUIRED}), 5).first_ns is None


REQUIRED = ("block", "model", "stream", "prompt_tokens", "output_tokens", "due_ns", "sent_ns", "done_ns")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"the extra `scale` \(how: docs/scale\.md\)"):
        play("http://127.0.0.1:9", schedule_of([0.0]), tmp_path / "events.jsonl", ray_address="local")


def test_a_cluster_that_is_not_there_is_named_at_once(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"no Ray cluster at '{address}'.*ray start --head"):
            play("http://127.0.0.1:9", schedule_of([0.0]), tmp_path / "events.jsonl", ray_address=address)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A local cluster of two workers. Its many processes give up on each other where much else runs; hence `alone`."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # The workers must find the bodies of these tests.
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent.parent), *sys.path]))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def dispersion(due_ns: np.ndarray, bins: int) -> float:
    """Variance over mean of the counts in equal bins of time; 1 for Poisson arrivals."""
    counts, _ = np.histogram(due_ns, bins=bins)
    return float(counts.var() / counts.mean())


@pytest.mark.alone
def test_two_workers_send_what_one_process_would(ray: Any, tmp_path: Path) -> None:
    workload = Workload(
        arrivals=Arrivals(process="poisson", rate_per_s=200),
        prompt=Length(mean=7),
        output=Length(mean=2),
        duration_s=3,
        seed=5,
    )
    schedule = draw(workload)
    with plain_server() as thread:
        alone = play(thread.server.url, schedule, tmp_path / "one.jsonl")
        spread = play(thread.server.url, schedule, tmp_path / "ray.jsonl", processes=2, ray_address="auto")
    one, two = alone.by_index(), spread.by_index()
    assert sorted(one) == sorted(two) == list(range(len(schedule)))
    due_one = np.array([one[i].due_ns - alone.started.at_ns for i in sorted(one)])
    due_two = np.array([two[i].due_ns - spread.started.at_ns for i in sorted(two)])
    assert (due_one == schedule.due_ns_N).all()
    assert (due_two == schedule.due_ns_N).all()
    assert [two[i].output_tokens for i in sorted(two)] == [one[i].output_tokens for i in sorted(one)]
    assert {r.worker for r in two.values()} == {0, 1}
    assert all(r.error is None and r.due_ns <= r.sent_ns <= (r.first_ns or 0) for r in two.values())
    # 600 arrivals in 60 bins: the index of dispersion of Poisson arrivals is 1 +- sqrt(2/59) = 0.18.
    assert dispersion(due_two, 60) == dispersion(due_one, 60)
    assert 0.45 < dispersion(due_two, 60) < 1.55
    workers = [e for e in spread.events if isinstance(e, LoadWorker)]
    assert [w.worker for w in workers] == [0, 1]
    # Both read the one clock of this machine.
    assert all(abs(w.offset_ns) <= w.uncertainty_ns <= 5_000_000 for w in workers)
    assert spread.done.ok
    assert ray.is_initialized()


@pytest.mark.alone
def test_a_lost_ray_worker_is_recorded_and_the_other_goes_on(ray: Any, tmp_path: Path) -> None:
    import psutil

    schedule = schedule_of([i * 0.02 for i in range(200)])
    killed: list[int] = []

    def on_state(state: LoadState) -> None:
        if state.issued > 40 and not killed:
            # Only below this process: somebody else's cluster may run on this machine, too.
            below = psutil.Process().children(recursive=True)
            players = [p for p in below if "ray::Playing" in " ".join(p.cmdline())]
            killed.append(players[0].pid)
            os.kill(players[0].pid, signal.SIGKILL)

    with plain_server(wait_s=0.05) as thread:
        played = play(
            thread.server.url, schedule, tmp_path / "e.jsonl", processes=2, ray_address="auto", on_state=on_state
        )
    requests = played.by_index()
    assert sorted(requests) == list(range(200))
    lost = [r for r in requests.values() if r.error is not None]
    assert {(r.error, r.detail) for r in lost} == {("cancelled", "worker lost")}
    assert len({r.worker for r in lost}) == 1
    assert 0 < len(lost) <= 100
    assert any(f"{len(lost)} requests were lost" in flag for flag in played.done.flagged)


@pytest.mark.alone
def test_a_key_that_the_workers_lack_is_named(ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from tests import load_fixtures

    monkeypatch.setenv("BREAKEVEN_TEST_KEY", "sesame")  # here, but not where the cluster started
    plain = load_fixtures.backend_at
    monkeypatch.setattr(
        load_fixtures, "backend_at", lambda url: dataclasses.replace(plain(url), api_key_env="BREAKEVEN_TEST_KEY")
    )
    with plain_server() as thread, pytest.raises(UserError, match="BREAKEVEN_TEST_KEY is not set on"):
        play(thread.server.url, schedule_of([0.0, 0.1]), tmp_path / "e.jsonl", processes=2, ray_address="auto")
    assert thread.server.indices == []
