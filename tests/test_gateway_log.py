"""The decision log: written beside the traffic, rotated, read in order, and never in the way."""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from gateway_experiment_fixtures import record
from hypothesis import given, settings
from hypothesis import strategies as st

from breakeven.gateway.plan.model import LogPlan
from breakeven.gateway.route.view import Score
from breakeven.gateway.seen import log as log_module
from breakeven.gateway.seen.log import DecisionLog, log_file, series
from breakeven.gateway.seen.read_log import Follower, find, latest, record_of, records
from breakeven.gateway.seen.record import Attempt, DecisionRecord


def write(directory: Path, worker: int, made: list[DecisionRecord], plan: LogPlan | None = None) -> DecisionLog:
    """All of them, flushed."""
    log = DecisionLog(directory, worker, plan or LogPlan())
    for one in made:
        log.add(one)
    log.close()
    return log


def score(headroom: float) -> Score:
    return Score(backend="dense", ttft_s=0.1, tpot_s=0.01, usd=0.0, headroom=headroom, running=2.0)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    one = record(1, scores=[score(1.5)], attempts=[Attempt(backend="dense", outcome="answered", start_s=0, seconds=1)])
    log = write(tmp_path / "new" / "log", 3, [one])
    assert log.written == 1
    assert log.dropped == 0
    assert list(records(tmp_path / "new" / "log")) == [one]
    assert stat.S_IMODE(log_file(log.directory, 3, 0).stat().st_mode) == 0o600
    assert stat.S_IMODE(log.directory.stat().st_mode) == 0o700


def test_an_infinite_headroom_comes_back(tmp_path: Path) -> None:
    away = Score(backend="a]]}", ttft_s=math.inf, tpot_s=0.1, usd=math.inf, headroom=0.0, running=0, why_not="away")
    one = record(1, scores=[score(math.inf), score(0.5), away], error='"scores":[[1,null]] ,null')
    write(tmp_path, 1, [one])
    assert list(records(tmp_path)) == [one]
    assert find(tmp_path, "r1") == one


def test_records_of_all_workers_come_by_arrival(tmp_path: Path) -> None:
    # A long request ends, and is written, after shorter ones that came later.
    write(tmp_path, 1, [record(4), record(1), record(6)])
    write(tmp_path, 2, [record(5), record(3), record(2)])
    assert [one.id for one in records(tmp_path)] == ["r1", "r2", "r3", "r4", "r5", "r6"]


def test_prompts_are_kept_only_when_asked(tmp_path: Path) -> None:
    bodies = {"request_body": "canary-prompt", "response_body": "canary-answer"}
    write(tmp_path / "without", 1, [record(1, **bodies)])
    write(tmp_path / "with", 1, [record(1, **bodies)], LogPlan(prompts=True))
    assert b"canary" not in log_file(tmp_path / "without", 1, 0).read_bytes()
    assert next(records(tmp_path / "with")).request_body == "canary-prompt"


def test_rotation_keeps_the_newest_and_loses_nothing_between_files(tmp_path: Path) -> None:
    line = len(log_line(record(100))) + 1
    plan = LogPlan(rotate_bytes=10 * line, keep=3)
    write(tmp_path, 1, [record(n) for n in range(100, 195)], plan)
    files = [path for _, path in series(tmp_path)[1]]
    assert [path.name for path in files] == [f"decisions-1-{n}.jsonl" for n in (7, 8, 9)]
    assert all(path.stat().st_size <= plan.rotate_bytes for path in files)
    assert [one.id for one in records(tmp_path)] == [f"r{n}" for n in range(170, 195)]


def log_line(one: DecisionRecord) -> bytes:
    import msgspec

    return msgspec.json.encode(one)


def test_a_restart_goes_on_in_the_newest_file_after_a_torn_line(tmp_path: Path) -> None:
    write(tmp_path, 1, [record(1)])
    with log_file(tmp_path, 1, 0).open("ab") as file:
        file.write(log_line(record(2))[:40])
    assert [one.id for one in records(tmp_path)] == ["r1"]
    write(tmp_path, 1, [record(3)])
    assert [one.id for one in records(tmp_path)] == ["r1", "r3"]
    assert len(series(tmp_path)[1]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, a disk that is always full")
def test_a_full_disk_drops_counts_says_so_once_and_heals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "RETRY_S", 0.0)
    path = log_file(tmp_path, 1, 0)
    path.symlink_to("/dev/full")
    said: list[str] = []
    log = DecisionLog(tmp_path, 1, LogPlan(), said.append)
    for number in range(3):
        log.add(record(number))
        wait_until(lambda: log.dropped > number)  # noqa: B023
    assert len(said) == 1
    assert "No space left on device" in said[0]
    path.unlink()
    log.add(record(9))
    log.close()
    assert (log.dropped, log.written) == (3, 1)
    assert [one.id for one in records(tmp_path)] == ["r9"]


def wait_until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_queue_that_is_full_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "QUEUE_BYTES", 3 * len(log_line(record(1))))
    monkeypatch.setattr(log_module, "WRITE_EVERY_S", 3600.0)
    log = write(tmp_path, 1, [record(n) for n in range(10)])
    assert (log.written, log.dropped) == (3, 7)
    assert len(list(records(tmp_path))) == 3


def test_after_closing_records_are_counted_as_dropped(tmp_path: Path) -> None:
    log = write(tmp_path, 1, [record(1)])
    log.add(record(2))
    assert (log.written, log.dropped) == (1, 1)


def test_what_others_chose_is_cut_and_printable(tmp_path: Path) -> None:
    escape = "\x1b]0;owned\x07\x9b2J\u202e"
    strange = record(1, model="\ud800" + escape, error=escape * 100_000, finish="A" * 3_000_000)
    log = write(tmp_path, 1, [strange, record(2, model="ein Modell: größer, 大")])
    assert (log.written, log.dropped) == (2, 0)
    text = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode()
    assert len(text) < 2000
    assert all(line.isprintable() for line in text.splitlines())
    first, second = records(tmp_path)
    assert first.model == "??]0;owned??2J?"
    assert first.finish == "A" * 40
    assert second.model == "ein Modell: größer, 大"


def test_a_pipe_among_the_files_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1, [record(1)])
    os.mkfifo(log_file(tmp_path, 2, 0))
    assert [one.id for one in records(tmp_path)] == ["r1"]
    assert [one.id for one in latest(tmp_path, 5)] == ["r1"]
    assert [one.id for one in Follower(tmp_path).new()] == ["r1"]


def test_a_thread_that_the_system_refused_is_started_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        log = DecisionLog(tmp_path, 1, LogPlan())
        unlucky = DecisionLog(tmp_path, 2, LogPlan())
        log.add(record(1))
        unlucky.add(record(2))
        unlucky.close()
    log.tend()
    wait_until(lambda: log.written == 1)
    log.close()
    assert [one.id for one in records(tmp_path)] == ["r1", "r2"]


def test_a_defect_loses_records_and_not_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "RETRY_S", 0.0)
    said: list[str] = []
    log = DecisionLog(tmp_path, 1, LogPlan(), said.append)
    with monkeypatch.context() as patch:
        patch.setattr(log, "_append", lambda batch: 1 // 0)
        log.add(record(1))
        wait_until(lambda: log.dropped == 1)
    log.add(record(2))
    log.close()
    assert (log.written, log.dropped, len(said)) == (1, 1, 1)


def test_a_removed_file_is_made_again(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, 1, LogPlan())
    log.add(record(1))
    wait_until(lambda: log.written == 1)
    log_file(tmp_path, 1, 0).unlink()
    log.add(record(2))
    log.close()
    assert [one.id for one in records(tmp_path)] == ["r2"]


def test_a_request_is_found_in_any_file_and_not_by_what_others_say_of_it(tmp_path: Path) -> None:
    line = len(log_line(record(100))) + 1
    write(tmp_path, 1, [record(n) for n in range(100, 130)], LogPlan(rotate_bytes=10 * line))
    copy = record(500, shadow_of="r400", request_body='{"id":"r400",')
    write(tmp_path, 2, [copy], LogPlan(prompts=True))
    found = find(tmp_path, "r105")
    assert found is not None
    assert found.time_s == 105
    assert find(tmp_path, "r500") == copy
    assert find(tmp_path, "r400") is None
    assert find(tmp_path, 'r1"') is None
    assert find(tmp_path / "nowhere", "r1") is None


def test_following_gives_each_record_once_over_rotation_and_restart(tmp_path: Path) -> None:
    line = len(log_line(record(100))) + 1
    plan = LogPlan(rotate_bytes=4 * line)
    follower = Follower(tmp_path)
    assert follower.new() == []
    write(tmp_path, 1, [record(n) for n in range(100, 106)], plan)
    assert [one.id for one in follower.new()] == [f"r{n}" for n in range(100, 106)]
    assert follower.new() == []
    torn = log_line(record(106))
    with log_file(tmp_path, 2, 0).open("wb") as file:
        file.write(torn[:30])
        file.flush()
        assert follower.new() == []
        file.write(torn[30:] + b"\n")
    again = Follower(tmp_path, follower.offsets)
    assert [one.id for one in again.new()] == ["r106"]
    fresh = Follower(tmp_path)
    fresh.skip()
    write(tmp_path, 1, [record(107)], plan)
    assert [one.id for one in fresh.new()] == ["r107"]


def test_following_reads_a_bounded_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from breakeven.gateway.seen import read_log

    write(tmp_path, 1, [record(n) for n in range(100, 120)])
    monkeypatch.setattr(read_log, "STEP_BYTES", 3 * len(log_line(record(100))))
    follower = Follower(tmp_path)
    first = follower.new()
    assert follower.behind
    assert 1 <= len(first) < 20
    rest: list[DecisionRecord] = []
    while follower.behind:
        rest += follower.new()
    assert [one.id for one in first + rest] == [f"r{n}" for n in range(100, 120)]
    monkeypatch.setattr(read_log, "STEP_BYTES", 10)
    assert [one.id for one in Follower(tmp_path).new()] == ["r100"]


def test_following_can_leave_out_lines(tmp_path: Path) -> None:
    write(tmp_path, 1, [record(1), record(2, experiment="try"), record(3)])
    assert [one.id for one in Follower(tmp_path, holding=b'"experiment":"').new()] == ["r2"]


def test_the_latest_of_all_workers(tmp_path: Path) -> None:
    write(tmp_path, 1, [record(n) for n in range(0, 40, 2)])
    write(tmp_path, 2, [record(n) for n in range(1, 40, 2)])
    assert [one.id for one in latest(tmp_path, 3)] == ["r37", "r38", "r39"]
    assert latest(tmp_path / "nowhere", 3) == []


@given(st.binary(max_size=300))
def test_a_line_of_anything_is_a_record_or_none(line: bytes) -> None:
    assert record_of(line) is None or isinstance(record_of(line), DecisionRecord)


@given(st.integers(0, 400), st.binary(max_size=8))
def test_a_damaged_record_does_no_harm(at: int, put: bytes) -> None:
    line = bytearray(log_line(record(1, scores=[score(math.inf)])))
    line[at : at + len(put)] = put
    assert record_of(bytes(line)) is None or isinstance(record_of(bytes(line)), DecisionRecord)


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5))
def test_any_text_keeps_to_its_line(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("log")
    made = [record(n, id=f"{n}{text}", model=text, error=text) for n, text in enumerate(texts)]
    write(directory, 1, made)
    assert list(records(directory)) == made
    assert all(find(directory, one.id) == one for one in made)


def test_a_forked_worker_logs_for_itself(tmp_path: Path) -> None:
    mine = DecisionLog(tmp_path, 1, LogPlan())
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(write(tmp_path, 2, [record(2)]).written != 1)
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    mine.add(record(1))
    mine.close()
    assert [one.id for one in records(tmp_path)] == ["r1", "r2"]
