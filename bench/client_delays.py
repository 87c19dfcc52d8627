"""What a client adds to delays that a server scripted, with 200 streams at once. A part of bench/client.py.

Requests come as a Poisson process at the rate that keeps 200 streams open: in a closed loop streams of equal script
would all be written in the same instant.

The truth of a request is what the mock wrote down: when it arrived and when each chunk was written. The client's
error of TTFT is its (first chunk - sent) less the server's (first write - arrival); its error of ITL is its gap between
two chunks less the server's. Both are absolute values here; lateness is a chunk's stamp less the time it was written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from driving import Job, Run
from mock_control import Mock
from numpy.typing import NDArray
from rivals import NAMES, TITLES, run

STREAMS, CHUNKS = 200, 64
TTFT_S, ITL_S = 0.2, 0.02
RATE = STREAMS / (TTFT_S + (CHUNKS - 1) * ITL_S)
REQUESTS = 2_000


@dataclass(frozen=True)
class Added:
    """Absolute errors in seconds, one a request (ttft) or a gap (itl), and lateness, one a chunk. Empty: not kept."""

    ttft_s: NDArray[np.float64]
    itl_s: NDArray[np.float64]
    late_s: NDArray[np.float64]


def added_by(done: Run, writes: NDArray[np.int64]) -> Added:
    """Set what a client stamped against what the server wrote down."""
    truth: dict[int, dict[int, int]] = {}
    for request, chunk, at_ns in writes.tolist():
        truth.setdefault(request, {})[chunk] = at_ns
    ttft, itl, late = [], [], []
    for request, sent_ns, stamps in done.chunks:
        wrote = truth.get(request)
        if wrote is None or not stamps:
            continue
        ttft.append((stamps[0] - sent_ns) - (wrote[0] - wrote[-1]))
        if len(stamps) != len(wrote) - 1:
            continue  # a tool that keeps only some chunks, or took two for one
        written = np.array([wrote[k] for k in range(len(stamps))])
        got = np.array(stamps)
        itl.append(np.diff(got) - np.diff(written))
        if done.tool != "guidellm":  # its clock is another
            late.append(got - written)
    return Added(*(np.abs(np.concatenate(parts)) / 1e9 if parts else np.zeros(0)
                   for parts in ([np.array(ttft)] if ttft else [], itl, late)))  # fmt: skip


def compare_delays(
    mock: Mock, tools: dict[str, str], job: Job, work: Path, runs: int, result: dict[str, object], *, quick: bool
) -> str:
    """A table of what every tool adds, all runs pooled; the figures go into `result`, in seconds."""
    requests = 2 * STREAMS if quick else REQUESTS
    found: dict[str, list[Added]] = {tool: [] for tool in tools}
    for turn in range(runs):
        for tool in tools if turn % 2 == 0 else reversed(tools):
            mock.script(ttft_s=TTFT_S, itl_s=ITL_S, keep_writes=True)
            asked = replace(
                job, requests=requests, concurrency=None, rate=RATE, stream=True, tokens=CHUNKS, chunks=True
            )
            done = run(tool, tools[tool], asked, work / f"{tool}-delays-{turn}")
            if done.error:
                print(f"{TITLES[tool]}: {done.error}", flush=True)
                continue
            found[tool].append(added_by(done, mock.writes()))
            print(f"run {turn + 1}, {TITLES[tool]}: {len(found[tool][-1].ttft_s)} streams", flush=True)
    rows = [
        f"| added with {STREAMS} streams, ms (script: first chunk after {TTFT_S * 1e3:.0f}, then one every "
        f"{ITL_S * 1e3:.0f}) | TTFT p50 | TTFT p99 | ITL p50 | ITL p99 | chunk stamped late p50 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    summary: dict[str, dict[str, float]] = {}
    for tool in ("ours", *NAMES):
        parts = found.get(tool)
        if not parts:
            rows.append(f"| {TITLES[tool]} | not available | | | | | |")
            continue
        summary[tool] = {}
        cells = []
        for name in ("ttft_s", "itl_s", "late_s"):
            values = np.concatenate([getattr(part, name) for part in parts])
            for p in (50, 99):
                if len(values) == 0:
                    cells.append("not kept")
                    continue
                summary[tool][f"{name}_p{p}"] = float(np.percentile(values, p))
                cells.append(f"{summary[tool][f'{name}_p{p}'] * 1e3:.3g}")
        rows.append(f"| {TITLES[tool]} | " + " | ".join(cells) + " |")
    result["delays"] = summary
    return "\n".join(rows)
