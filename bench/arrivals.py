"""Are Poisson arrivals Poisson where it counts, at the server? Index of dispersion over 100,000 arrivals.

    python bench/arrivals.py [--arrivals 100000] [--rate 1000] [--only 1,4,ray] [--json FILE]
        [--vllm PYTHON] [--guidellm PYTHON] [--aiperf PYTHON] [--rival-arrivals 6000] [--rival-rate 200]

Arrivals are counted in windows that hold ten on average: variance over mean of the counts is 1 for a Poisson process,
and with n windows its standard error is sqrt(2 / n) (Fano factor). The whole-second share is how many arrivals fall
into the first 5 % of a second, by the server's clock from the first arrival on: 5 % unless they are pinned to seconds.
Rivals run as they come, with as many workers as they like, at a rate they can keep.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from driving import Job
from mock_control import Mock, mock_server, prompts
from numpy.typing import NDArray
from rivals import TITLES, add_options, given, make_tokenizer, run

PER_WINDOW = 10.0


@dataclass(frozen=True)
class Dispersion:
    """Of one list of moments. `error`: one standard error of `index`. `rate` in arrivals/s."""

    arrivals: int
    index: float
    error: float
    rate: float
    whole_second: float


def dispersion(at_ns: NDArray[np.int64]) -> Dispersion:
    """Index of dispersion of the counts in windows of `PER_WINDOW` arrivals on average."""
    at_s = (np.sort(at_ns) - at_ns.min()) / 1e9
    rate = (len(at_s) - 1) / at_s[-1]
    windows = int(at_s[-1] * rate / PER_WINDOW)
    counts, _ = np.histogram(at_s, windows, (0.0, windows * PER_WINDOW / rate))
    index = float(counts.var(ddof=1) / counts.mean())
    return Dispersion(len(at_s), index, float(np.sqrt(2 / windows)), rate, float((at_s % 1 < 0.05).mean()))


def ours(
    mock: Mock, job: Job, work: Path, processes: int, ray: str | None
) -> tuple[Dispersion, Dispersion, Dispersion] | str:
    """Dispersion at the server, of the sending and of the due times in our log; a string says why there is none."""
    from breakeven.measure.events import RequestDone, iter_events

    mock.script(chunks=1, reply_bytes=300)
    done = run("ours", sys.executable, replace(job, processes=processes, ray=ray, figures=False), work)
    if done.error:
        return done.error
    times = np.array([
        (event.sent_ns, event.due_ns) for event in iter_events(work / "events.jsonl") if isinstance(event, RequestDone)
    ])  # fmt: skip
    if len(times) != job.requests:
        return f"{len(times)} of {job.requests} requests in the log"
    (work / "events.jsonl").unlink()
    return dispersion(mock.arrivals_ns()), dispersion(times[:, 0]), dispersion(times[:, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrivals", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--only", default="1,4,ray", help="processes, and ray for four local Ray workers")
    parser.add_argument("--rival-arrivals", type=int, default=6_000)
    parser.add_argument("--rival-rate", type=float, default=200.0)
    parser.add_argument("--json", type=Path)
    add_options(parser)
    asked = parser.parse_args()
    rows = ["| arrivals from | arrivals | rate | index of dispersion at the server | as sent | as due "
            "| in the first 5 % of a second |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    result: dict[str, object] = {}

    def row(name: str, at_server: Dispersion, *in_log: Dispersion) -> None:
        told = " | ".join(f"{one.index:.3f}" for one in in_log) if in_log else "| "
        rows.append(
            f"| {name} | {at_server.arrivals:,} | {at_server.rate:.0f}/s | {at_server.index:.3f} +- "
            f"{at_server.error:.3f} | {told} | {at_server.whole_second:.1%} |"
        )
        print(rows[-1], flush=True)
        result[name] = {"server": at_server.__dict__, "sent and due": [one.__dict__ for one in in_log]}

    with tempfile.TemporaryDirectory() as directory, mock_server(None) as mock:
        work = Path(directory)
        seconds = asked.arrivals / asked.rate
        job = Job(
            url=mock.url, requests=asked.arrivals, prompts=prompts(1_000), tokens=1, rate=asked.rate, stream=False,
            tokenizer=make_tokenizer(work / "tokenizer"), timeout_s=2 * seconds + 120,
        )  # fmt: skip
        for kind in asked.only.split(","):
            name = f"{TITLES['ours']}, " + (
                "Ray, 4 workers" if kind == "ray" else f"{kind} process{'' if kind == '1' else 'es'}"
            )
            if kind == "ray" and importlib.util.find_spec("ray") is None:
                rows.append(f"| {name} | not available | | | | | |")
                continue
            found = ours(mock, job, work / kind, 4 if kind == "ray" else int(kind), "local" if kind == "ray" else None)
            if isinstance(found, str):
                rows.append(f"| {name} | failed: {found} | | | | | |")
                print(rows[-1], flush=True)
            else:
                row(name, *found)
        for tool, python in given(asked).items():
            mock.script(chunks=1, reply_bytes=300)
            theirs = replace(
                job, requests=asked.rival_arrivals, rate=asked.rival_rate, prompts=prompts(asked.rival_arrivals),
                timeout_s=2 * asked.rival_arrivals / asked.rival_rate + 180,
            )  # fmt: skip
            done = run(tool, python, theirs, work / tool)
            if done.error:
                rows.append(f"| {TITLES[tool]} | failed: {done.error} | | | | | |")
            else:
                row(TITLES[tool], dispersion(mock.arrivals_ns()))
    print("\n" + "\n".join(rows))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
