"""The load client against other load generators: one mock server on one core, the client on the other, taking turns.

    python bench/client.py [--quick] [--runs 3] [--only rates,delays,stall] [--json FILE]
        [--vllm PYTHON] [--guidellm PYTHON] [--aiperf PYTHON]

rates: how much each can drive in a closed loop, in requests/s (64 streams, whole answers of 2 kB) and in stream
events/s (64 streams of 256 chunks, each written for itself, as fast as they are taken). Compared is what the *server*
saw between the first and the last request to arrive, for all alike, so start-up, analysis and what only lay in buffers
count for nobody; each tool's own figure stands beside. delays: what each adds to the delays a server scripted, with
200 streams. stall: a server that stops for a second, against the arithmetic. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from client_delays import compare_delays
from client_stall import check_stall
from driving import Job, Run
from mock_control import Mock, Stats, mock_server, prompts
from numpy.typing import NDArray
from rivals import NAMES, TITLES, add_options, given, make_tokenizer, run

STREAMS = 64
CHUNKS = 256
REQUESTS = {"ours": 40_000, "vllm": 6_000, "guidellm": 3_000, "aiperf": 4_000}
"""Whole answers asked of each tool in one run: some seconds' worth."""
STREAMED = {"ours": 3_200, "vllm": 1_024, "guidellm": 512, "aiperf": 512}
"""Streams asked of each tool in one run."""


@dataclass(frozen=True)
class Rate:
    """One run of one tool: what the server saw, and what the tool said."""

    tool: str
    per_s: float
    own_per_s: float | None
    cpu_s_per_1000: float | None
    """None: could not be read."""
    server_busy: float
    streamed: bool


def measure_rate(mock: Mock, tool: str, python: str, job: Job, work: Path, chunks: int) -> Rate | str:
    """Run `tool` once in a closed loop; `chunks` > 0: streams of so many. A string says why there is no figure."""
    # A tool that can only stream gets its answer as one chunk of the same size.
    mock.script(chunks=chunks or 1)
    done = run(tool, python, job, work)
    stats = mock.stats()
    if done.error:
        return done.error
    if stats.answered < job.requests:
        return f"only {stats.answered} of {job.requests} requests were answered"
    return _rate(done, stats, mock.arrivals_ns(), chunks, job)


def _rate(done: Run, stats: Stats, arrivals_ns: NDArray[np.int64], chunks: int, job: Job) -> Rate:
    """In a closed loop all but the streams still open had been taken in full when the last request arrived."""
    first_ns, last_ns = int(arrivals_ns[0]), int(arrivals_ns[-1])
    taken = len(arrivals_ns) - STREAMS
    own = done.figures.get("requests_per_s")
    cpu_s = done.cpu_between(first_ns, last_ns)
    return Rate(
        tool=done.tool,
        per_s=taken * (chunks or 1) / ((last_ns - first_ns) / 1e9),
        own_per_s=own * (chunks or 1) if own is not None else None,
        cpu_s_per_1000=None if cpu_s is None else cpu_s / taken * 1000,
        server_busy=stats.busy,
        streamed=done.streamed,
    )


def compare_rates(
    mock: Mock, tools: dict[str, str], job: Job, work: Path, runs: int, chunks: int, requests: dict[str, int]
) -> dict[str, list[Rate]]:
    """All tools in turn, `runs` times over, the order reversed each time."""
    found: dict[str, list[Rate]] = {tool: [] for tool in tools}
    for turn in range(runs):
        for tool in tools if turn % 2 == 0 else reversed(tools):
            asked = replace(job, requests=requests[tool], stream=chunks > 0, tokens=chunks or 1, cpu=True)
            rate = measure_rate(mock, tool, tools[tool], asked, work / f"{tool}-{chunks}-{turn}", chunks)
            if isinstance(rate, str):
                print(f"{TITLES[tool]}: {rate}", flush=True)
                continue
            found[tool].append(rate)
            own = f"{rate.own_per_s:.0f}" if rate.own_per_s else "nothing"
            print(f"run {turn + 1}, {TITLES[tool]}: {rate.per_s:.0f}/s at the server, itself says {own}", flush=True)
    return found


def rate_table(found: dict[str, list[Rate]], what: str) -> str:
    """Medians as Markdown, with ours over the best of the others."""
    rows = [f"| {what} | per second, at the server | its own figure | CPU s per 1,000 requests | server's core used |",
            "|---|---|---|---|---|"]  # fmt: skip
    middle: dict[str, float] = {}
    for tool in ("ours", *NAMES):
        rates = found.get(tool)
        if not rates:
            rows.append(f"| {TITLES[tool]} | not available | | | |")
            continue
        middle[tool] = statistics.median(rate.per_s for rate in rates)
        low, high = min(rate.per_s for rate in rates), max(rate.per_s for rate in rates)
        own = [rate.own_per_s for rate in rates if rate.own_per_s is not None]
        cpu = [rate.cpu_s_per_1000 for rate in rates if rate.cpu_s_per_1000 is not None]
        note = (
            "" if not what.startswith("requests") or not rates[0].streamed else ", as one chunk each: it only streams"
        )
        rows.append(
            f"| {TITLES[tool]}{note} | {middle[tool]:,.0f} ({low:,.0f} to {high:,.0f}) "
            f"| {f'{statistics.median(own):,.0f}' if own else 'none'} "
            f"| {f'{statistics.median(cpu):.3g}' if cpu else 'not available'} "
            f"| {statistics.median(rate.server_busy for rate in rates):.0%} |"
        )
    rivals = {tool: rate for tool, rate in middle.items() if tool != "ours"}
    if "ours" in middle and rivals:
        best = max(rivals, key=lambda tool: rivals[tool])
        rows += ["", f"Ours over the best of them ({TITLES[best]}): {middle['ours'] / rivals[best]:.1f}."]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of a tenth of the requests")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="rates,delays,stall")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="keep what the tools wrote in this directory")
    add_options(parser)
    asked = parser.parse_args()
    only = set(asked.only.split(","))
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("client and server need a core each; this process may use one only")
    runs, share = (1, 0.1) if asked.quick else (asked.runs, 1.0)
    tools = {"ours": sys.executable} | given(asked)
    result: dict[str, object] = {"runs": runs, "tools": {tool: TITLES[tool] for tool in tools}}
    with tempfile.TemporaryDirectory() as directory, mock_server(cores[1]) as mock:
        work = asked.keep or Path(directory)
        whole = {tool: max(8 * STREAMS, round(number * share)) for tool, number in REQUESTS.items()}
        streamed = {tool: max(4 * STREAMS, round(number * share)) for tool, number in STREAMED.items()}
        job = Job(
            url=mock.url, requests=0, prompts=prompts(max(whole.values())), tokens=1,
            tokenizer=make_tokenizer(work / "tokenizer"), concurrency=STREAMS, core=cores[0],
        )  # fmt: skip
        tables = []
        if "rates" in only:
            for what, chunks, number in (("requests", 0, whole), ("stream events", CHUNKS, streamed)):
                found = compare_rates(mock, tools, job, work, runs, chunks, number)
                tables.append(rate_table(found, what))
                result[what] = {tool: [rate.__dict__ for rate in rates] for tool, rates in found.items()}
        if "delays" in only:
            tables.append(compare_delays(mock, tools, job, work, runs, result, quick=asked.quick))
        if "stall" in only:
            tables.append(check_stall(mock, tools["ours"], job, work, result))
    print("\n" + "\n\n".join(tables))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
