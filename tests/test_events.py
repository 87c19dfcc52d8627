"""The event log survives what kills a run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from breakeven.errors import BreakevenError
from breakeven.measure.events import (
    BackendReady,
    BackendStopped,
    BlockDone,
    BlockStarted,
    Event,
    EventWriter,
    NoiseSample,
    RequestDone,
    StudyStarted,
    StudyStopped,
    read_events,
)
from breakeven.wire.reply import ServerTimings, Usage

EVENTS: list[Event] = [
    StudyStarted(fingerprint="f", version="0.1", started_at="2026-01-01T00:00:00Z", command="compare", seed=1),
    BackendReady(model="a", settings={"threads": "2"}, load_s=1.5, peak_rss_bytes=10),
    BlockStarted(block="1", model="a", streams=1, prompt_tokens=128, output_tokens=64, at_ns=5),
    RequestDone(
        block="1",
        model="a",
        stream=0,
        prompt_tokens=128,
        output_tokens=2,
        due_ns=5,
        sent_ns=6,
        done_ns=9,
        headers_ns=7,
        first_ns=8,
        last_ns=9,
        chunk_ns=[8, 9],
        chunk_tokens=[1, 1],
        usage=Usage(prompt_tokens=128, completion_tokens=2, cached_tokens=0),
        server_timings=ServerTimings(prompt_n=128, prompt_ms=1.5, predicted_n=2, predicted_ms=0.5),
        anomalies=["no_done"],
    ),
    NoiseSample(block="1", at_ns=9, steal_share=0.0),
    BlockDone(block="1", ok=False, at_ns=10, flagged=["busy"]),
    BackendStopped(model="a", peak_rss_bytes=11),
    StudyStopped(because="budget", measured_s=3.0),
]


def write(path: Path, events: list[Event]) -> None:
    with EventWriter(path) as log:
        for event in events:
            log.append(event)


def test_what_is_written_is_read_back_and_each_event_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "events.jsonl"
    write(path, EVENTS)
    write(path, EVENTS)
    assert read_events(path) == EVENTS * 2
    assert path.read_bytes().count(b"\n") == 2 * len(EVENTS)


@given(st.integers(0, 10_000))
def test_a_log_cut_anywhere_gives_its_whole_events_and_can_be_resumed(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.jsonl"
        write(path, EVENTS)
        whole = path.read_bytes()
        kept = whole[: cut % (len(whole) + 1)]
        path.write_bytes(kept)
        survivors = EVENTS[: kept.count(b"\n")]
        assert read_events(path) == survivors
        write(path, EVENTS[:1])
        assert read_events(path) == [*survivors, EVENTS[0]]


def test_a_torn_line_longer_than_a_buffer_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, EVENTS)
    with path.open("ab") as file:
        file.write(b'{"event":"' + b"x" * 200_000)
    write(path, EVENTS[:1])
    assert read_events(path) == [*EVENTS, EVENTS[0]]


@pytest.mark.parametrize("broken", [b"{]", b'{"event":"unheard_of"}', b'{"event":"block_done"}', b"\xff\xfe", b""])
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "events.jsonl"
    write(path, EVENTS[:2])
    with path.open("ab") as file:
        file.write(broken + b"\n")
    write(path, EVENTS[2:3])
    with pytest.raises(BreakevenError, match=r"events\.jsonl, line 3: not an event"):
        read_events(path)


def test_no_file_to_read_and_no_place_to_write(tmp_path: Path) -> None:
    with pytest.raises(BreakevenError, match="cannot read"):
        read_events(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(BreakevenError, match="cannot write"):
        EventWriter(tmp_path / "file" / "events.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_what_is_kept_and_what_to_do(tmp_path: Path) -> None:
    log = EventWriter(tmp_path / "events.jsonl")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file.fileno())
    os.close(full)
    with pytest.raises(BreakevenError, match=r"disk is full.*finished before.*--resume") as caught:
        log.append(EVENTS[0])
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    log.close()


def test_a_killed_run_leaves_every_event_it_appended(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from breakeven.measure.events import BlockDone, EventWriter\n"
        "log = EventWriter(Path(sys.argv[1]))\n"
        "for i in range(3): log.append(BlockDone(block=str(i), ok=True, at_ns=i))\n"
        "print('written', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert read_events(path) == [BlockDone(block=str(i), ok=True, at_ns=i) for i in range(3)]
