"""A server that stops for a second: is the stall in the headline p99? A part of bench/client.py.

Requests come on a fixed schedule. One due `x` into the stall is answered when it ends, so it took `1 s - x` from its
due time, however late it was sent: a client that waits for answers before it sends shows one slow request instead.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from driving import Job
from mock_control import Mock
from rivals import run

RATE, SECONDS, STALL_AT_S, STALL_S, TTFT_S = 200.0, 15, 5.0, 1.0, 0.005


def check_stall(mock: Mock, python: str, job: Job, work: Path, result: dict[str, object]) -> str:
    """Run ours through a stall and compare its p99 of TTFT with what the due times and the stall say."""
    from breakeven.measure.events import RequestDone, iter_events

    mock.script(ttft_s=TTFT_S, chunks=1, stall_at_s=STALL_AT_S, stall_s=STALL_S)
    asked = replace(job, requests=round(RATE * SECONDS), rate=RATE, concurrency=None, stream=True, tokens=1)
    done = run("ours", python, asked, work / "stall")
    if done.error:
        return f"Stall: {done.error}"
    stats = mock.stats()
    due = np.array([
        event.due_ns for event in iter_events(work / "stall" / "events.jsonl") if isinstance(event, RequestDone)
    ])  # fmt: skip
    # In time: TTFT_S. Due in the stall, or so shortly before that the answer was due in it: when it ends. Those that
    # arrived during it are answered TTFT_S after, as their delay counts from when the server saw them.
    expected = np.full(len(due), TTFT_S)
    during = (due >= stats.stall_from_ns) & (due < stats.stall_to_ns)
    before = (due < stats.stall_from_ns) & (due + TTFT_S * 1e9 > stats.stall_from_ns)
    expected[during] = (stats.stall_to_ns - due[during]) / 1e9 + TTFT_S
    expected[before] = (stats.stall_to_ns - due[before]) / 1e9
    wanted = float(np.percentile(expected, 99))
    got, service = done.figures["ttft_s_p99"], done.figures.get("service_ttft_s_p99", float("nan"))
    result["stall"] = {"expected_p99_s": wanted, "measured_p99_s": got, "service_p99_s": service, "requests": len(due)}
    return (f"A stall of {(stats.stall_to_ns - stats.stall_from_ns) / 1e9:.3f} s at {RATE:.0f} requests/s for "
            f"{SECONDS} s: p99 of TTFT from due is {got:.3f} s, the arithmetic says {wanted:.3f} s "
            f"({got / wanted - 1:+.1%}); from sent it is {service:.3f} s; {len(due)} requests, "
            f"{int(during.sum() + before.sum())} of them in the stall.")  # fmt: skip
