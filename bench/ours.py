"""Breakeven's own client in a process of its own, as a rival is: reads a job, plays it, leaves a log and figures.

    python bench/ours.py JOB.json

The job's prompts come from a file, as every rival's do, so that all send the same text. Not meant to be run by hand.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, cast

from file_bodies import FileBodies

from breakeven.engines.backend import Backend
from breakeven.measure.events import EventWriter, RequestDone, iter_events
from breakeven.measure.load.points import load_points
from breakeven.measure.player.run import run_load
from breakeven.results.load import LoadPoint
from breakeven.traffic.draw import draw
from breakeven.traffic.schedule_file import save_schedule
from breakeven.traffic.workload import Arrivals, Length, Workload


def workload_of(job: dict[str, Any]) -> Workload:
    """The traffic a job asks for."""
    arrivals = (
        Arrivals(process=job["arrivals"], rate_per_s=job["rate"])
        if job["rate"]
        else Arrivals(process="closed", concurrency=job["concurrency"])
    )
    return Workload(
        arrivals=arrivals,
        prompt=Length(mean=16),
        output=Length(mean=job["tokens"]),
        requests=job["requests"],
        stream=job["stream"],
        seed=job["seed"],
    )


def figures_of(point: LoadPoint) -> dict[str, float]:
    """What Breakeven says of a run, by the names the rivals' figures have."""
    found = {"requests_per_s": point.requests_per_s, "output_tokens_per_s": point.output_tokens_per_s}
    found["answered"] = float(point.answered)
    for latency in point.latencies:
        if latency.mean is not None:
            found[latency.metric] = latency.mean.value
        for percentile in latency.percentiles:
            if percentile.value is not None:
                found[f"{latency.metric}_p{percentile.p:g}"] = percentile.value
    return found


def main() -> None:
    """Play the job named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text())
    work = Path(sys.argv[1]).parent
    backend = Backend(
        url=job["url"], model=job["model"], api_key_env=None, settings={"engine": job["engine"]}, pid=None, load_s=None
    )
    prompts = Path(job["prompts"]).read_text().splitlines()
    bodies = FileBodies(prompts=prompts, tokens=job["tokens"], stream=job["stream"], model=job["model"])
    schedule = draw(workload_of(job))
    save_schedule(schedule, work / "schedule.jsonl")
    log_path = work / "events.jsonl"
    with EventWriter(log_path) as log:
        done = run_load(
            backend, schedule, cast(Any, bodies), log, block="1", model=job["model"], load="bench",
            schedule_file="schedule.jsonl", processes=job["processes"], ray_address=job["ray"],
        )  # fmt: skip
    peak = _peak_bytes()
    result: dict[str, object] = {"ok": done.ok, "flagged": done.flagged, "peak_run_bytes": peak}
    if job["figures"]:
        began = time.monotonic()
        result["figures"] = figures_of(load_points(iter_events(log_path), None)[0])
        result["analysis_s"] = time.monotonic() - began
    if job["chunks"]:
        result["chunks"] = [
            (event.stream, event.sent_ns, event.chunk_ns)
            for event in iter_events(log_path)
            if isinstance(event, RequestDone) and event.error is None
        ]
    (work / "result.json").write_text(json.dumps(result))


def _peak_bytes() -> int:
    """Largest resident set of this process so far, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
