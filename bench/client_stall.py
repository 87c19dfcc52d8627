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
    log = [event for event in iter_events(work / "stall" / "events.jsonl") if isinstance(event, RequestDone)]
    due = np.array([event.due_ns for event in log])
    took = np.array([((event.first_ns or event.done_ns) - event.due_ns) / 1e9 for event in log])
    # In time: TTFT_S. Due in the stall, or so shortly before that the answer was due in it: when it ends. Those that
    # arrived during it are answered TTFT_S after, as their delay counts from when the server saw them.
    expected = np.full(len(due), TTFT_S)
    during = (due >= stats.stall_from_ns) & (due < stats.stall_to_ns)
    before = (due < stats.stall_from_ns) & (due + TTFT_S * 1e9 > stats.stall_from_ns)
    expected[during] = (stats.stall_to_ns - due[during]) / 1e9 + TTFT_S
    expected[before] = (stats.stall_to_ns - due[before]) / 1e9
    wanted = float(np.percentile(expected, 99))
    raw = float(np.percentile(took, 99))
    got, service = done.figures.get("ttft_s_p99", float("nan")), done.figures.get("service_ttft_s_p99", float("nan"))
    result["stall"] = {"expected_p99_s": wanted, "headline_p99_s": got, "log_p99_s": raw, "service_p99_s": service}
    return "\n".join([
        f"| server stops {(stats.stall_to_ns - stats.stall_from_ns) / 1e9:.3f} s; {len(due)} requests, "
        f"{RATE:.0f} a second, {int(during.sum() + before.sum())} in it | p99 of TTFT, s | over the arithmetic |",
        "|---|---|---|",
        f"| the arithmetic, from due times and the stall | {wanted:.3f} | 1 |",
        f"| headline, from due | {got:.3f} | {got / wanted:.3f} |",
        f"| every request of the log, from due | {raw:.3f} | {raw / wanted:.3f} |",
        f"| from sent | {service:.3f} | {service / wanted:.3f} |",
    ])  # fmt: skip
