"""Memory of a run of a million requests with its log on disk, and of the analysis of that log.

    python bench/client_memory.py [--requests 1000000] [--chunks 16] [--streams 64] [--dir DIR] [--json FILE]

The run goes as fast as client and server can, so an hour's worth takes minutes; nothing in the client depends on the
time between requests. Needs about 1 GB of room in DIR. Peaks are the kernel's VmHWM of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from driving import Job
from mock_control import mock_server, prompts
from rivals import run

ANALYSIS = """
import json, sys
from pathlib import Path
from breakeven.measure.events import iter_events
from breakeven.measure.load.points import load_points
point = load_points(iter_events(Path(sys.argv[1])), None)[0]
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"requests": point.requests, "answered": point.answered, "peak_bytes": int(peak) * 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--dir", type=Path, help="where the log goes")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.dir is not None:
        asked.dir.mkdir(parents=True, exist_ok=True)
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=asked.dir) as directory, mock_server(cores[-1]) as mock:
        work = Path(directory)
        mock.script(chunks=asked.chunks)
        job = Job(
            url=mock.url, requests=asked.requests, prompts=prompts(1_000), tokens=asked.chunks, tokenizer=work,
            concurrency=asked.streams, core=cores[0], figures=False, timeout_s=1800,
        )  # fmt: skip
        began = time.monotonic()
        done = run("ours", sys.executable, job, work / "run")
        run_s = time.monotonic() - began
        if done.error:
            sys.exit(done.error)
        log = work / "run" / "events.jsonl"
        size = log.stat().st_size
        began = time.monotonic()
        analysis = subprocess.run(
            [sys.executable, "-c", ANALYSIS, str(log)], stdout=subprocess.PIPE, check=True, timeout=1800
        )
        analysis_s = time.monotonic() - began
    told = json.loads(analysis.stdout)
    if told["answered"] != asked.requests:
        sys.exit(f"only {told['answered']:,} of {asked.requests:,} requests were answered")
    run_bytes = done.figures["peak_run_bytes"]
    print(f"| {told['requests']:,} requests of {asked.chunks} chunks | peak memory | took |")
    print("|---|---|---|")
    print(f"| the run, a log of {size / 1e9:.2f} GB on disk | {run_bytes / 1e6:.0f} MB | {run_s:.0f} s |")
    print(f"| the analysis of the log | {told['peak_bytes'] / 1e6:.0f} MB | {analysis_s:.0f} s |")
    if asked.json:
        asked.json.write_text(json.dumps(told | {"run_bytes": run_bytes, "run_s": run_s, "analysis_s": analysis_s,
                                                 "log_bytes": size}))  # fmt: skip


if __name__ == "__main__":
    main()
